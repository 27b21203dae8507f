"""The rows of the table: what each measures, on whom, and the ratio it is meant to reach."""

import dataclasses
from collections.abc import Callable

from .fleet import CHAIN
from .scale import ROUTED_PATH

PEERS = ("nginx", "haproxy", "envoy")
IDLE_CONNECTIONS = 10_000
# Where each takes two sockets of a process, or a handshake.
FEWER_CONNECTIONS = 2_000


@dataclasses.dataclass(frozen=True)
class Row:
    """One row. `measure(run, proxy name) -> Result` gives the figure that the ratios are made of."""
    name: str
    about: str
    unit: str
    measure: Callable
    # The most that (figure of the subject / figure of this one) should be.
    goals: dict = dataclasses.field(default_factory=dict)
    # The most that Tollgate's own figure should be.
    limit: float | None = None
    # Who is measured when Tollgate is the subject; None: it and the chosen peers.
    subjects: tuple | None = None
    # Outside the default selection.
    extra: bool = False


@dataclasses.dataclass(frozen=True)
class Result:
    """One measurement: the row's figure, and what is shown beside it."""
    figure: float
    rps: float | None = None
    p50: float | None = None
    p99: float | None = None
    rss_mib: float | None = None


def _cpu(load, **options):
    return {"unit": "µs CPU", "measure": lambda run, name: run.cpu_per_request(name, load), **options}


def _scale(load, *subjects, **options):
    """Tollgate in several sizes. `load(name)` is what each of them gets; the ratios are those of the first to the others."""
    return {"unit": "µs CPU", "measure": lambda run, name: run.cpu_per_request(name, load(name)), "subjects": subjects, "extra": True, **options}


def _connections(name):
    return int(name.removeprefix("tollgate-c"))


def all_rows(loads):
    """Every row, in the order of the table."""
    plain = loads.wrk(64)
    return [
        Row("plain", "plain proxy, 64 keep-alive connections", **_cpu(plain, goals={"nginx": 0.90, "haproxy": 0.90, "envoy": 0.30})),
        Row("plain-same", "the same, where the peers add the same fields: X-Forwarded-Host and -Port, and a request id both ways",
            **_cpu(plain, goals={"nginx-same": 0.90, "haproxy-same": 0.90}, subjects=("tollgate", "nginx-same", "haproxy-same"))),
        Row("chain", "JWT RS256, limits per ip and global, CORS, header rules, JSON access log to a file, metrics; against plain proxies",
            **_cpu(plain, goals={"tollgate": 1.35, "nginx": 1.15}, subjects=(CHAIN, "tollgate", "nginx"))),
        Row("keepalive512", "512 keep-alive connections", **_cpu(loads.wrk(512), goals={"nginx": 0.95})),
        Row("download1m", "responses of 1 MiB, 16 connections", **_cpu(loads.wrk(16, path="/1m"), goals={"nginx": 0.60})),
        Row("upload1m", "uploads of 1 MiB, 16 connections", **_cpu(loads.wrk(16, path="/upload", script="upload.lua"), goals={"nginx": 0.60})),
        Row("newconn", "a new connection for each request, 64 at a time", **_cpu(loads.wrk(64, close=True), goals={"nginx": 1.05})),
        Row("tls-handshake", "a full TLS 1.3 handshake for each request, 8 clients", **_cpu(loads.handshakes(8), goals={"nginx": 1.05})),
        Row("tls-keepalive", "TLS, 64 keep-alive connections", **_cpu(loads.wrk(64, tls=True), goals={"nginx": 0.95})),
        Row("h2", "HTTP/2 over TLS, 20 streams × 10 connections", **_cpu(loads.h2load(10, 20, tls=True), goals={"nginx": 0.90})),
        Row("h2c", "HTTP/2 in clear, 20 streams × 10 connections", **_cpu(loads.h2load(10, 20, tls=False), goals={"nginx": 0.90})),
        Row("websocket", "WebSocket messages of 128 bytes there and back, 64 tunnels", **_cpu(loads.websocket(64, 128), goals={"nginx": 1.0})),
        Row("p99-half", "p99 at half of the reference's saturation rate, open loop, 64 connections", "ms p99",
            lambda run, name: run.latency_at(name, 0.5), goals={"nginx": 1.0}),
        Row("p99-90", "p99 at 90 % of the reference's saturation rate, open loop, 64 connections", "ms p99",
            lambda run, name: run.latency_at(name, 0.9)),
        Row("idle-memory", f"memory per idle keep-alive connection, {IDLE_CONNECTIONS:,} connections", "KiB RSS",
            lambda run, name: run.idle_memory(name, IDLE_CONNECTIONS), limit=12.0),
        Row("idle-memory-tls", f"memory per idle TLS connection, {FEWER_CONNECTIONS:,} connections", "KiB RSS",
            lambda run, name: run.idle_memory(name, FEWER_CONNECTIONS, "tls"), extra=True),
        Row("idle-memory-tunnel", f"memory per idle WebSocket tunnel, {FEWER_CONNECTIONS:,} tunnels", "KiB RSS",
            lambda run, name: run.idle_memory(name, FEWER_CONNECTIONS, "tunnel"), extra=True),
        Row("startup-memory", "resident memory at start, sum over all processes", "MiB RSS", lambda run, name: run.startup_memory(name), limit=20.0),
        Row("keepalive1", "1 keep-alive connection", **_cpu(loads.wrk(1), extra=True)),
        Row("keepalive4096", "4,096 keep-alive connections", **_cpu(loads.wrk(4096), extra=True)),
        Row("scale-connections", "Tollgate with 4,096, 1, 64 and 512 keep-alive connections",
            **_scale(lambda name: loads.wrk(_connections(name)), "tollgate-c4096", "tollgate-c1", "tollgate-c64", "tollgate-c512")),
        Row("scale-routes", "Tollgate with 10,000, 1 and 100 routes, asked for the last, 64 connections",
            **_scale(lambda name: loads.wrk(64, path=ROUTED_PATH.format(max(0, int(name.removeprefix("tollgate-r")) - 2))),
                     "tollgate-r10000", "tollgate-r1", "tollgate-r100")),
        Row("scale-endpoints", "Tollgate with 1,000 endpoints and with 1, 64 connections", **_scale(lambda _: plain, "tollgate-e1000", "tollgate-e1")),
        Row("scale-workers", "Tollgate with 2 workers and with 1, 64 connections", **_scale(lambda _: plain, "tollgate-w2", "tollgate-w1")),
        Row("scale-max-connections", "time until 100 clients beyond max_connections (200) are served, once places are free; none is refused", "ms",
            lambda run, name: run.beyond_max_connections(name), subjects=("tollgate-m200",), extra=True),
        Row("scale-hostile", "honest clients' p99 at half of saturation, with 10 % hostile clients beside them and without", "ms p99",
            lambda run, name: run.latency_disturbed(name, 0.5), goals={"tollgate": 2.0}, subjects=("tollgate-hostile", "tollgate"), extra=True),
        Row("scale-slow-backend", "p99 at half of saturation, with 64 more clients on a route whose backend takes 500 ms and without", "ms p99",
            lambda run, name: run.latency_disturbed(name, 0.5), goals={"tollgate": 2.0}, subjects=("tollgate-slow", "tollgate"), extra=True),
        Row("tls-resume", "a resumed TLS 1.3 session for each request, 64 at a time", **_cpu(loads.wrk(64, tls=True, close=True), extra=True)),
    ]
