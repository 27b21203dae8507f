"""The loads: each starts a generator against a target for some seconds and says what it saw."""

import dataclasses
import json
import os
import re
import time

from .errors import CompareError

# A run whose share of failed requests is larger did not measure what it says.
TOLERATED_ERRORS = 0.001
SLACK_SECONDS = 60


@dataclasses.dataclass(frozen=True)
class Target:
    """Where to send requests: a proxy's ports, and the fields every request to it carries."""
    ports: dict
    headers: tuple = ()


@dataclasses.dataclass(frozen=True)
class Seen:
    """What the generator saw. Latencies in ms, None where it cannot tell them."""
    requests: int
    seconds: float
    errors: int
    p50: float | None = None
    p99: float | None = None


class Loads:
    """The generators, with what they need to run."""

    def __init__(self, processes, tools, loader, source, directory):
        self._processes, self._tools, self._loader = processes, tools, loader
        self._source, self._directory = source, directory

    @property
    def has_loader(self):
        """Whether the part of the benchmark that needs rustc can run."""
        return self._loader is not None

    def wrk(self, connections, path="/", tls=False, close=False, script="report.lua"):
        """HTTP/1.1 from wrk, as fast as answers come."""
        def load(target, seconds):
            url = f"https://127.0.0.1:{target.ports['tls']}{path}" if tls else f"http://127.0.0.1:{target.ports['http']}{path}"
            headers = [*target.headers, *(["Connection: close"] if close else [])]
            flags = [part for header in headers for part in ("-H", header)]
            command = [self._tools["wrk"], f"-t{min(2, connections)}", f"-c{connections}", f"-d{_whole(seconds)}s", "--timeout", "10s",
                       "-s", os.path.join(self._source, script), *flags, url]
            output = self._run(command, seconds)
            found = re.search(r"^JSON (.*)$", output, re.MULTILINE)
            if found is None:
                raise CompareError(f"wrk said nothing to read: {output[-400:]}")
            return _checked(_from_json(found[1]))
        return load

    def h2load(self, connections, streams, tls):
        """HTTP/2 from h2load."""
        def load(target, seconds):
            url = f"https://127.0.0.1:{target.ports['tls']}/" if tls else f"http://127.0.0.1:{target.ports['h2c']}/"
            log = os.path.join(self._directory, "h2load.log")
            flags = [part for header in target.headers for part in ("-H", header)]
            output = self._run([self._tools["h2load"], "-t2", f"-c{connections}", f"-m{streams}", f"-D{_whole(seconds)}",
                                f"--log-file={log}", *flags, url], seconds)
            try:
                return _checked(_from_h2load(output, log, _whole(seconds)))
            finally:
                os.remove(log)
        return load

    def handshakes(self, clients):
        """A full TLS 1.3 handshake for each request, from `openssl s_time`: wrk would resume its sessions."""
        def load(target, seconds):
            command = [self._tools["openssl"], "s_time", "-connect", f"127.0.0.1:{target.ports['tls']}", "-new", "-tls1_3",
                       "-www", "/", "-time", str(_whole(seconds))]
            logs = [os.path.join(self._directory, f"s_time.{index}") for index in range(clients)]
            start = time.monotonic()
            running = [self._processes.start(command, log) for log in logs]
            for process in running:
                if process.wait(seconds + SLACK_SECONDS) != 0:
                    raise CompareError(f"openssl s_time failed with {process.returncode}")
                self._processes.stop(process)
            elapsed = time.monotonic() - start
            total = 0
            for log in logs:
                with open(log) as file:
                    found = re.search(r"^(\d+) connections in \d+ real seconds, (\d+) bytes", file.read(), re.MULTILINE)
                os.remove(log)
                if found is None or int(found[2]) < 200:
                    raise CompareError("openssl s_time read no answers")
                total += int(found[1])
            return Seen(total, elapsed, 0)
        return load

    def rate(self, connections, rps):
        """Keep-alive requests at a fixed rate, an open loop; `rps` 0: as fast as answers come."""
        def load(target, seconds):
            output = self._run([self._need_loader(), "rate", f"127.0.0.1:{target.ports['http']}", "/", str(connections), f"{rps:.1f}", str(seconds)], seconds)
            return _checked(_from_json(output))
        return load

    def websocket(self, connections, size):
        """Messages of `size` bytes through tunnels and back, one in flight on each."""
        def load(target, seconds):
            output = self._run([self._need_loader(), "ws", f"127.0.0.1:{target.ports['http']}", "/ws", str(connections), str(seconds), str(size)], seconds)
            return _checked(_from_json(output))
        return load

    def _need_loader(self):
        if self._loader is None:
            raise CompareError("needs rustc, to compile loader.rs")
        return self._loader

    def _run(self, command, seconds):
        return self._processes.run(command, seconds + SLACK_SECONDS)


def _whole(seconds):
    """wrk, h2load and s_time count in whole seconds."""
    return max(1, round(seconds))


def _checked(seen):
    if seen.requests == 0:
        raise CompareError("no request was answered")
    if seen.errors > seen.requests * TOLERATED_ERRORS:
        raise CompareError(f"{seen.errors} of {seen.requests} requests failed")
    return seen


def _from_json(text):
    values = json.loads(text)
    return Seen(values["requests"], values["seconds"], values["errors"], values["p50_us"] / 1000, values["p99_us"] / 1000)


def _from_h2load(output, log, seconds):
    # A timed run is cut at its end: what was in flight then is "failed" in some versions, so errors are those with a bad status.
    done = re.search(r"(\d+) succeeded", output)
    statuses = re.search(r"status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", output)
    if done is None or statuses is None:
        raise CompareError(f"h2load said nothing to read: {output[-400:]}")
    with open(log) as file:
        times = sorted(int(line.split("\t")[2]) for line in file)
    bad = sum(int(statuses[group]) for group in (2, 3, 4))
    at = (lambda part: times[round((len(times) - 1) * part)] / 1000) if times else (lambda _: None)
    return Seen(int(done[1]), seconds, bad, at(0.5), at(0.99))
