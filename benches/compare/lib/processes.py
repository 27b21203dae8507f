"""Starting processes, knowing what they cost, and ending every one of them by its id."""

import ctypes
import os
import signal
import socket
import subprocess
import time

from .errors import CompareError

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024
START_SECONDS = 20
STOP_SECONDS = 5
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None, use_errno=True)


def _die_with_parent():
    """Runs in the child: if this program is killed outright, its children get a SIGTERM."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Processes:
    """Everything this run has started. A context manager: leaving it ends what still runs."""

    def __init__(self):
        self._running = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # A second Ctrl-C must not leave half of them behind.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for process in list(reversed(self._running)):
            self.stop(process)

    def start(self, command, log, **options):
        """Starts a process that runs until it is stopped; its output goes to the file `log`."""
        with open(log, "ab") as output:
            # A session of its own, so that the terminal's Ctrl-C reaches this program only, which then ends them in order.
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                                       start_new_session=True, preexec_fn=_die_with_parent, **options)
        process.log = log
        self._running.append(process)
        return process

    def run(self, command, timeout, **options):
        """Runs a command to its end and gives back its standard output."""
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   text=True, start_new_session=True, preexec_fn=_die_with_parent, **options)
        process.log = None
        self._running.append(process)
        try:
            output, errors = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as error:
            raise CompareError(f"{command[0]} did not end within {timeout:.0f} s") from error
        finally:
            self.stop(process)
        if process.returncode != 0:
            raise CompareError(f"{command[0]} failed with {process.returncode}: {(errors or output).strip()[-400:]}")
        return output

    def stop(self, process):
        """SIGTERM to the process; SIGKILL to it and to whatever it left behind, if that does not end them."""
        if process in self._running:
            self._running.remove(process)
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        # Children of a process that did not end them itself, a crashed nginx's workers for example.
        for pid in family(process.pid):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


def wait_for_port(process, port, address="127.0.0.1"):
    """Returns when something listens on the port; explains itself when nothing does."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise CompareError(f"it ended with {process.returncode} at its start:\n{tail(process.log)}")
        try:
            socket.create_connection((address, port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.02)
    raise CompareError(f"nothing listens on port {port} after {START_SECONDS} s:\n{tail(process.log)}")


def tail(path):
    """The last lines of a log, for an error message."""
    if path is None or not os.path.exists(path):
        return ""
    with open(path, errors="replace") as log:
        return log.read()[-1500:].strip()


def free_ports(count):
    """Free loopback ports. All are held open until the last is found, so they differ."""
    held = [socket.socket() for _ in range(count)]
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()


def _stat(pid):
    """/proc/PID/stat as far as it is needed here, or None when the process is gone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            # The name in parentheses may hold anything, so the fields count from its last parenthesis.
            fields = file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # proc(5) numbers the state as field 3; it is index 0 here. 6: session; 14 to 17: utime stime cutime cstime.
    return {"session": int(fields[3]), "ticks": sum(map(int, fields[11:15]))}


def family(leader):
    """A started process and its descendants, {pid: stat}: each was started in a session of its own, which they inherit."""
    stats = {int(name): _stat(name) for name in os.listdir("/proc") if name.isdigit()}
    return {pid: stat for pid, stat in stats.items() if stat is not None and stat["session"] == leader}


def cpu_seconds(leader):
    """User and system time of a process and its descendants so far: all threads, living and ended, and children waited for."""
    return sum(stat["ticks"] for stat in family(leader).values()) / TICKS_PER_SECOND


def memory_kib(leader):
    """Resident memory of a process and its descendants, in KiB; pages that several share count in each."""
    total = 0
    for pid in family(leader):
        with open(f"/proc/{pid}/statm") as file:
            total += int(file.read().split()[1]) * PAGE_KIB
    return total
