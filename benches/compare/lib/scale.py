"""Tollgate in other sizes: how its cost grows with connections, routes, endpoints and workers, and who can disturb whom."""

import contextlib
import dataclasses
import os
import select
import socket
import time

from .errors import CompareError
from .processes import free_ports, wait_for_port

# Clients beyond `max_connections`, and how long the row looks for one of them being served too early.
WAITING = 100
PATIENCE_SECONDS = 1
SERVED_WITHIN_SECONDS = 10
# Of 64 honest connections; each misbehaves in a way of its own.
HOSTILE_CONNECTIONS = 7
SLOW_MILLISECONDS = 500
SLOW_CONNECTIONS = 64


@dataclasses.dataclass(frozen=True)
class Size:
    """A Tollgate that differs from the plain one in these; None: as that."""
    workers: int | None = None
    routes: int | None = None
    endpoints: int | None = None
    max_connections: int | None = None
    # With a route /slow to a backend that takes its time.
    slow: bool = False


SIZES = {
    "tollgate-c1": Size(), "tollgate-c64": Size(), "tollgate-c512": Size(), "tollgate-c4096": Size(),
    "tollgate-r1": Size(routes=1), "tollgate-r100": Size(routes=100), "tollgate-r10000": Size(routes=10_000),
    "tollgate-e1": Size(endpoints=1), "tollgate-e1000": Size(endpoints=1_000),
    "tollgate-w1": Size(workers=1), "tollgate-w2": Size(workers=2),
    "tollgate-m200": Size(max_connections=200),
    "tollgate-hostile": Size(), "tollgate-slow": Size(slow=True),
}

# The path of the last route but one, which a prefix route serves where there are fewer.
ROUTED_PATH = "/svc{}/users/1"


def addresses(count):
    """So many loopback addresses, which all belong to this machine."""
    return [f"127.{1 + index // 62500}.{index // 250 % 250}.{index % 250 + 1}" for index in range(count)]


class Extras:
    """The backends that only these rows need, started when they are first needed."""

    def __init__(self, processes, tools, loader, new_directory, write_backend):
        self._processes, self._tools, self._loader = processes, tools, loader
        self._new_directory, self._write_backend = new_directory, write_backend
        self._many = self._slow = None

    def endpoints(self, count):
        """URLs of so many endpoints: one nginx, on many addresses."""
        if self._many is None:
            directory = self._new_directory("endpoints")
            port = free_ports(1)[0]
            path = self._write_backend(directory, addresses(1_000), port)
            process = self._processes.start([self._tools["nginx"], "-p", directory, "-c", path, "-e", "stderr"], os.path.join(directory, "log"))
            wait_for_port(process, port, addresses(1)[0])
            self._many = port
        return [f"http://{address}:{self._many}" for address in addresses(count)]

    def slow(self):
        """Port of a backend that answers after a while."""
        if self._slow is None:
            if self._loader is None:
                raise CompareError("needs rustc, to compile loader.rs")
            port = free_ports(1)[0]
            log = os.path.join(self._new_directory("slow"), "log")
            wait_for_port(self._processes.start([self._loader, "slow", f"127.0.0.1:{port}", str(SLOW_MILLISECONDS)], log), port)
            self._slow = port
        return self._slow


@contextlib.contextmanager
def disturbance(processes, loader, name, target, seconds, directory):
    """What goes on beside the honest clients of this proxy; nothing for most."""
    address = f"127.0.0.1:{target.ports['http']}"
    commands = {
        "tollgate-hostile": [loader, "hostile", address, str(HOSTILE_CONNECTIONS), str(seconds)],
        "tollgate-slow": [loader, "rate", address, "/slow", str(SLOW_CONNECTIONS), "0", str(seconds)],
    }
    if name not in commands:
        yield
        return
    log = os.path.join(directory, f"{name}.disturbance.log")
    process = processes.start(commands[name], log)
    try:
        yield
        if process.poll() not in (None, 0):
            raise CompareError(f"the disturbance ended with {process.returncode}")
    finally:
        processes.stop(process)


def beyond_max_connections(port, most):
    """Milliseconds until clients that found all places taken are served, once places are free.

    First `most` clients are served and stay; those who come then must be neither refused nor served.
    """
    request = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"

    def connect(held):
        connection = held.enter_context(socket.create_connection(("127.0.0.1", port), timeout=SERVED_WITHIN_SECONDS))
        connection.sendall(request)
        return connection

    def answer(connection):
        if not connection.recv(4096).startswith(b"HTTP/1.1 200"):
            raise CompareError("a client beyond max_connections was not served in the end")

    with contextlib.ExitStack() as late:
        with contextlib.ExitStack() as first:
            for _ in range(most):
                answer(connect(first))
            waiting = [connect(late) for _ in range(WAITING)]
            poll = select.poll()
            for connection in waiting:
                poll.register(connection, select.POLLIN | select.POLLRDHUP)
            if early := len(poll.poll(PATIENCE_SECONDS * 1000)):
                raise CompareError(f"{early} of {WAITING} clients beyond max_connections were answered or refused")
        freed = time.monotonic()
        for connection in waiting:
            answer(connection)
        return (time.monotonic() - freed) * 1000
