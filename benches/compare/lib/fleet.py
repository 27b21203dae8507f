"""The backend and the proxies of a run: started, checked, measured."""

import contextlib
import http.client
import json
import os
import select
import socket
import ssl
import time

from . import configs, scale, secrets
from .errors import CompareError
from .loads import Target
from .processes import cpu_seconds, free_ports, memory_kib, tail, wait_for_port

SETTLE_SECONDS = 0.5
CHAIN = "tollgate-chain"
ACCESS_LOG = "access.log"


class Proxy:
    """A running proxy."""

    def __init__(self, name, process, target, directory):
        self.name, self.process, self.target, self.directory = name, process, target, directory

    def cpu(self):
        """CPU seconds it has used so far."""
        if self.process.poll() is not None:
            raise CompareError(f"{self.name} ended with {self.process.returncode}:\n{tail(self.process.log)}")
        return cpu_seconds(self.process.pid)

    def forget_log(self):
        """Empties the chain's access log between measurements: it grows by 100 MB in a few seconds."""
        if self.name == CHAIN:
            os.truncate(os.path.join(self.directory, ACCESS_LOG), 0)

    def memory(self):
        """Resident memory in KiB."""
        return memory_kib(self.process.pid)


class Fleet:
    """Starts and stops proxies against one backend."""

    def __init__(self, processes, directory, tools, loader):
        self._processes, self._directory, self._tools, self._loader = processes, directory, tools, loader
        self._count = 0
        self._tls = secrets.certificate(processes, tools["openssl"], self._new_directory("tls"))
        self._token, self._public_key = secrets.token(processes, tools["openssl"], self._new_directory("issuer"))
        self._backend = self._start_backend()
        self._extras = scale.Extras(processes, tools, loader, self._new_directory, configs.many_backends)

    def _new_directory(self, name):
        self._count += 1
        path = os.path.join(self._directory, f"{self._count:02}-{name}")
        os.makedirs(path)
        return path

    def _start_backend(self):
        directory = self._new_directory("backend")
        ports = dict(zip(("http", "sink", "echo"), free_ports(3)))
        path = configs.backend(directory, ports)
        process = self._processes.start([self._tools["nginx"], "-p", directory, "-c", path, "-e", "stderr"], os.path.join(directory, "log"))
        wait_for_port(process, ports["http"])
        if self._loader is not None:
            echo = self._processes.start([self._loader, "echo", f"127.0.0.1:{ports['echo']}"], os.path.join(directory, "echo.log"))
            wait_for_port(echo, ports["echo"])
        return ports

    def start(self, name):
        """Starts a proxy by its name and returns when it answers, correctly."""
        proxy = self._launch(name)
        try:
            _check(proxy)
        except (CompareError, OSError, http.client.HTTPException) as error:
            log = tail(proxy.process.log)
            self.stop(proxy)
            raise CompareError(f"{name}: {error}\n{log}".strip()) from error
        return proxy

    def _launch(self, name):
        """Starts a proxy and returns when it listens."""
        directory = self._new_directory(name)
        # Tollgate and Envoy speak h2c on the port of HTTP/1.1; the others need one of its own.
        ports = dict(zip(("http", "tls", "admin", "h2c"), free_ports(4)))
        if name in ("envoy", "tollgate", CHAIN, *scale.SIZES):
            ports["h2c"] = ports["http"]
        process = self._processes.start(self._command(name, directory, ports), os.path.join(directory, "log"))
        headers = (f"Authorization: Bearer {self._token}", f"Origin: {configs.ORIGIN}") if name == CHAIN else ()
        proxy = Proxy(name, process, Target(ports, headers), directory)
        try:
            wait_for_port(process, ports["http"])
            wait_for_port(process, ports["tls"])
        except CompareError as error:
            self.stop(proxy)
            raise CompareError(f"{name}: {error}") from error
        return proxy

    def stop(self, proxy):
        """Ends it."""
        self._processes.stop(proxy.process)

    def _command(self, name, directory, ports):
        binary = self._tools[name.partition("-")[0]]
        arguments = (directory, ports, self._backend, self._tls)
        if name in ("nginx", "nginx-same"):
            return [binary, "-p", directory, "-c", configs.nginx(*arguments, same=name != "nginx"), "-e", "stderr"]
        if name in ("haproxy", "haproxy-same"):
            return [binary, "-db", "-f", configs.haproxy(*arguments, same=name != "haproxy")]
        if name == "envoy":
            return [binary, "-c", configs.envoy(*arguments), "--concurrency", str(configs.WORKERS), "--disable-hot-restart", "-l", "error"]
        if name == "tollgate":
            return [binary, "serve", "--config", configs.tollgate(*arguments)]
        if name == CHAIN:
            return [binary, "serve", "--config", configs.tollgate_chain(*arguments, self._public_key)]
        if name in scale.SIZES:
            return [binary, "serve", "--config", configs.tollgate_sized(*arguments, scale.SIZES[name], self._extras)]
        raise CompareError(f"there is no proxy named {name}")

    def startup_memory(self, name):
        """Resident memory in KiB of a proxy that has just started and answered nothing yet."""
        with self.fresh(name) as proxy:
            time.sleep(SETTLE_SECONDS)
            return proxy.memory()

    def idle_memory(self, name, connections, kind="http"):
        """KiB of resident memory for each idle connection: after one request on each (`http`, `tls`), or as a WebSocket (`tunnel`)."""
        request, end = _IDLE[kind]
        context = ssl.create_default_context()
        # The certificate is made for the run, and who it is from is not what is measured.
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        port = "tls" if kind == "tls" else "http"
        closed = select.poll()
        with self.fresh(name) as proxy, contextlib.ExitStack() as held:
            time.sleep(SETTLE_SECONDS)
            before = proxy.memory()
            for _ in range(connections):
                connection = socket.create_connection(("127.0.0.1", proxy.target.ports[port]), timeout=10)
                if kind == "tls":
                    connection = context.wrap_socket(connection, server_hostname="localhost")
                connection = held.enter_context(connection)
                connection.sendall(request)
                answer = b""
                while not answer.endswith(end):
                    part = connection.recv(4096)
                    if not part:
                        raise CompareError("a connection was closed")
                    answer += part
                closed.register(connection, select.POLLIN | select.POLLRDHUP)
            time.sleep(SETTLE_SECONDS)
            after = proxy.memory()
            if gone := len(closed.poll(0)):
                raise CompareError(f"{gone} of {connections} idle connections were closed")
            return (after - before) / connections

    def beyond_max_connections(self, name):
        """Milliseconds until those who waited for a place are served."""
        with self.fresh(name) as proxy:
            time.sleep(SETTLE_SECONDS)
            return scale.beyond_max_connections(proxy.target.ports["http"], scale.SIZES[name].max_connections)

    def disturbed(self, proxy, seconds):
        """Runs what disturbs this proxy's clients, if it is one that is disturbed."""
        return scale.disturbance(self._processes, self._loader, proxy.name, proxy.target, seconds, self._directory)

    @contextlib.contextmanager
    def fresh(self, name):
        """A new process that has served nothing yet, so that no earlier request's memory is in its figures; ended afterwards."""
        proxy = self._launch(name)
        try:
            yield proxy
        finally:
            self.stop(proxy)


# What an idle connection has asked before, and how the answer ends.
_IDLE = {
    "http": (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"}"),
    "tls": (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"}"),
    "tunnel": (b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
               b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", b"\r\n\r\n"),
}


def _fetch(proxy, path, headers, method="GET", body=None):
    connection = http.client.HTTPConnection("127.0.0.1", proxy.target.ports["http"], timeout=10)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.read(), response.headers
    finally:
        connection.close()


def _check(proxy):
    """A proxy that answers wrongly is not measured."""
    fields = dict(header.split(": ", 1) for header in proxy.target.headers)
    status, body, headers = _fetch(proxy, "/", fields)
    if status != 200 or body != configs.BODY.encode():
        raise CompareError(f"GET / gave {status} with {len(body)} bytes: {body[:200]!r}")
    status, body, _ = _fetch(proxy, "/1m", fields)
    if status != 200 or len(body) != configs.FILE_BYTES:
        raise CompareError(f"GET /1m gave {status} with {len(body)} bytes")
    status, body, _ = _fetch(proxy, "/upload", fields, "POST", b"x" * configs.FILE_BYTES)
    if status != 200 or not json.loads(body)["stored"]:
        raise CompareError(f"POST /upload gave {status}")
    if proxy.name == CHAIN:
        _check_chain(proxy, headers, fields)


def _check_chain(proxy, headers, fields):
    """That the chain is really on: each step leaves its mark."""
    expected = {"Access-Control-Allow-Origin": configs.ORIGIN, "X-Served-By": "tollgate", "X-Content-Type-Options": "nosniff"}
    for name, value in expected.items():
        if headers.get(name) != value:
            raise CompareError(f"the chain's answer has {name}: {headers.get(name)}, not {value}")
    status, _, _ = _fetch(proxy, "/", {name: value for name, value in fields.items() if name != "Authorization"})
    if status != 401:
        raise CompareError(f"without a token the chain gave {status}, not 401")
    log = os.path.join(proxy.directory, ACCESS_LOG)
    end = time.monotonic() + 5
    while not os.path.exists(log) or os.path.getsize(log) == 0:
        if time.monotonic() > end:
            raise CompareError("the chain wrote no access log")
        time.sleep(0.05)
