#!/usr/bin/env python3
"""Tests gRPC through the gateway with Python's grpcio as client and server: an implementation that shares no code with the gateway's.

  scripts/grpc_python_test.py [BINARY]      default: target/debug/tollgate

Needs grpcio (scripts/setup puts it into target/venv). Messages are plain bytes, so nothing is generated. Everything listens on free ports of
loopback. Prints `N passed, M failed`; exits with 1 if anything failed.
"""

import json
import pathlib
import queue
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from concurrent import futures

import grpc
from grpc import StatusCode

# Longest wait for anything that is expected to happen: only a failing test uses it up.
PATIENCE = 10
# Proxy settings of the environment are not meant for loopback.
OPTIONS = [("grpc.enable_http_proxy", 0)]
BINARY_DATA = bytes([0, 255, 7])

CONFIG = """
listeners: [{{ address: '127.0.0.1:0' }}]
server: {{ workers: 2, timeouts: {{ drain: 2s }} }}
log: {{ level: info, format: json, access: {{ enabled: false }} }}
upstreams:
  echo: {{ endpoints: ['http://127.0.0.1:{server}'], protocol: h2 }}
  dead: {{ endpoints: ['http://127.0.0.1:{dead}'], protocol: h2 }}
routes:
  - {{ match: /test.Echo/*, upstream: echo }}
  - {{ match: /test.Echo/Impatient, timeout: 300ms, upstream: echo, rewrite: {{ path: /test.Echo/Hang }} }}
  - {{ match: /test.Echo/Limited, upstream: echo, rewrite: {{ path: /test.Echo/Unary }}, rate_limit: [{{ by: ip, rate: 1/h, burst: 2 }}] }}
  - {{ match: /test.Dead/*, upstream: dead }}
"""


class Server:
    """The upstream: one method of each kind, one that fails as it is told, and two that never end by themselves."""

    def __init__(self):
        # What `Hang` and `Endless` saw, by request: the time left as they began, and that they were ended from outside.
        self.began = Seen()
        self.ended = Seen()
        # A call that hangs holds a thread.
        self.server = grpc.server(futures.ThreadPoolExecutor(max_workers=16), options=OPTIONS)
        methods = {
            "Unary": grpc.unary_unary_rpc_method_handler(self.unary),
            "Five": grpc.unary_stream_rpc_method_handler(self.five),
            "Join": grpc.stream_unary_rpc_method_handler(lambda requests, _: b"".join(requests)),
            "Both": grpc.stream_stream_rpc_method_handler(lambda requests, _: requests),
            "Fail": grpc.unary_unary_rpc_method_handler(self.fail),
            "Hang": grpc.unary_unary_rpc_method_handler(self.hang),
            "Endless": grpc.unary_stream_rpc_method_handler(self.endless),
        }
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", methods),))
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    def unary(self, request, context):
        sent = dict(context.invocation_metadata())
        context.send_initial_metadata((("x-first", "initial"), ("x-back-bin", sent.get("x-there-bin", b""))))
        context.set_trailing_metadata((("x-last", "trailing"), ("x-last-bin", BINARY_DATA)))
        return request

    def five(self, request, context):
        for number in range(5):
            yield request + bytes([number])
        if request == b"fail":
            context.set_trailing_metadata((("x-last", "trailing"),))
            context.abort(StatusCode.OUT_OF_RANGE, "five is enough")

    def fail(self, request, context):
        context.set_trailing_metadata((("x-why", "told to"), ("x-why-bin", BINARY_DATA)))
        code = next(code for code in StatusCode if code.value[0] == int(request))
        context.abort(code, f"code {int(request)}: 100 % schön")

    def hang(self, request, context):
        over = threading.Event()
        self.watch(request, context, over)
        over.wait(2 * PATIENCE)
        return b"late"

    def endless(self, request, context):
        over = threading.Event()
        self.watch(request, context, over)
        while not over.wait(0.02):
            yield b"more"

    def watch(self, request, context, over):
        def end():
            over.set()
            self.ended.put(request, True)

        if not context.add_callback(end):
            end()
        self.began.put(request, context.time_remaining())


class Seen:
    """What happened to requests, to be waited for."""

    def __init__(self):
        self.values = {}
        self.changed = threading.Condition()

    def put(self, request, value):
        with self.changed:
            self.values[request] = value
            self.changed.notify_all()

    def wait(self, request):
        with self.changed:
            assert self.changed.wait_for(lambda: request in self.values, PATIENCE), f"{request!r} was not seen"
            return self.values[request]


class Gateway:
    """A gateway of its own process in front of the server."""

    def __init__(self, binary, directory, config):
        path = directory / "gateway.yaml"
        path.write_text(config)
        self.log = directory / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([binary, "serve", "--config", path], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            self.address = self.listening()
        except BaseException:
            self.kill()
            raise

    def listening(self):
        """Waits for the port that the kernel chose, which the gateway logs."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and self.process.poll() is None:
            # A line may be half written still: only whole ones are read.
            for line in self.log.read_text().split("\n")[:-1]:
                event = json.loads(line) if line.startswith("{") else {}
                if event.get("message") == "listening":
                    return event["address"]
            time.sleep(0.02)
        raise RuntimeError(f"the gateway does not listen:\n{self.log.read_text()}")

    def stop(self):
        """Its exit code after SIGTERM."""
        self.process.terminate()
        return self.process.wait(3 * PATIENCE)

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Tests:
    """Each method named `test_…` is a test; they share one channel, as a client would."""

    def __init__(self, server, channel):
        self.server = server
        self.channel = channel

    def unary(self, request, method="/test.Echo/Unary", **options):
        """The answer and the finished call; raises what the call ends with, if not OK."""
        return self.channel.unary_unary(method).with_call(request, **{"timeout": PATIENCE, **options})

    def fails(self, code, request=b"", method="/test.Echo/Unary", **options):
        """The error of a call that must end with `code`."""
        try:
            answer, _ = self.unary(request, method, **options)
        except grpc.RpcError as error:
            same(error.code(), code, error.details())
            return error
        raise AssertionError(f"{method} answered {answer!r} instead of {code}")

    def test_a_unary_call_passes_with_metadata_both_ways(self):
        answer, call = self.unary(b"hello", metadata=(("x-there-bin", BINARY_DATA),))
        same((answer, call.code()), (b"hello", StatusCode.OK))
        first, last = dict(call.initial_metadata()), dict(call.trailing_metadata())
        same((first["x-first"], first["x-back-bin"]), ("initial", BINARY_DATA))
        same((last["x-last"], last["x-last-bin"]), ("trailing", BINARY_DATA))

    def test_large_empty_and_compressed_messages_arrive_whole(self):
        for message in (b"", bytes(range(256)) * 12_000):
            for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
                answer, _ = self.unary(message, compression=compression)
                # Not `same`: it would print megabytes.
                assert answer == message, f"{len(answer)} of {len(message)} bytes, or others"

    def test_many_calls_share_the_connection(self):
        method = self.channel.unary_unary("/test.Echo/Unary")
        calls = [(b"%d" % number, method.future(b"%d" % number, timeout=PATIENCE)) for number in range(200)]
        for request, call in calls:
            same(call.result(), request)

    def test_a_unary_request_gets_a_stream(self):
        call = self.channel.unary_stream("/test.Echo/Five")(b"n", timeout=PATIENCE)
        same(list(call), [b"n" + bytes([number]) for number in range(5)])
        same(call.code(), StatusCode.OK)

    def test_a_stream_can_fail_after_its_messages(self):
        call = self.channel.unary_stream("/test.Echo/Five")(b"fail", timeout=PATIENCE)
        got = []
        try:
            for message in call:
                got.append(message)
        except grpc.RpcError:
            pass  # what it is comes from the call below
        same(len(got), 5)
        same((call.code(), call.details()), (StatusCode.OUT_OF_RANGE, "five is enough"))
        same(dict(call.trailing_metadata())["x-last"], "trailing")

    def test_a_stream_gets_a_unary_answer(self):
        parts = [b"a", b"", b"b" * 300_000, b"c"]
        answer, call = self.channel.stream_unary("/test.Echo/Join").with_call(iter(parts), timeout=PATIENCE)
        assert answer == b"".join(parts), f"{len(answer)} bytes"
        same(call.code(), StatusCode.OK)

    def test_a_stream_in_both_directions_is_not_held_back(self):
        questions = queue.Queue()
        call = self.channel.stream_stream("/test.Echo/Both")(iter(questions.get, None), timeout=PATIENCE)
        for number in range(50):
            questions.put(b"%d" % number)
            # The answer comes before the next question is asked.
            same(next(call), b"%d" % number)
        questions.put(None)
        same(list(call), [])
        same(call.code(), StatusCode.OK)

    def test_every_status_passes_with_its_message_and_trailing_metadata(self):
        for code in StatusCode:
            if code is not StatusCode.OK:
                number = code.value[0]
                error = self.fails(code, str(number).encode(), "/test.Echo/Fail")
                same(error.details(), f"code {number}: 100 % schön")
                last = dict(error.trailing_metadata())
                same((last["x-why"], last["x-why-bin"]), ("told to", BINARY_DATA))

    def test_a_method_the_server_lacks_is_unimplemented(self):
        self.fails(StatusCode.UNIMPLEMENTED, method="/test.Echo/None")

    def test_a_deadline_is_told_to_the_server_and_ends_the_call_there(self):
        self.fails(StatusCode.DEADLINE_EXCEEDED, b"deadline", "/test.Echo/Hang", timeout=1)
        left = self.server.began.wait(b"deadline")
        # grpcio itself rounds what it sends up by as much as a hundredth.
        assert left is not None and 0 < left < 1.05, f"{left} s were left"
        self.server.ended.wait(b"deadline")

    def test_the_routes_timeout_is_a_deadline(self):
        began = time.monotonic()
        # The client would wait for much longer.
        self.fails(StatusCode.DEADLINE_EXCEEDED, b"impatient", "/test.Echo/Impatient", timeout=2 * PATIENCE)
        took = time.monotonic() - began
        assert 0.29 <= took < PATIENCE, f"{took} s"
        self.server.began.wait(b"impatient")
        self.server.ended.wait(b"impatient")

    def test_a_cancelled_call_ends_at_the_server(self):
        call = self.channel.unary_unary("/test.Echo/Hang").future(b"cancel", timeout=2 * PATIENCE)
        self.server.began.wait(b"cancel")
        assert call.cancel()
        self.server.ended.wait(b"cancel")
        same(call.code(), StatusCode.CANCELLED)

    def test_a_cancelled_stream_ends_at_the_server(self):
        call = self.channel.unary_stream("/test.Echo/Endless")(b"stream", timeout=2 * PATIENCE)
        same([next(call), next(call)], [b"more", b"more"])
        self.server.began.wait(b"stream")
        call.cancel()
        self.server.ended.wait(b"stream")
        same(call.code(), StatusCode.CANCELLED)

    def test_a_dead_upstream_is_unavailable(self):
        error = self.fails(StatusCode.UNAVAILABLE, method="/test.Dead/Unary")
        same(error.details(), "The upstream refused the connection.")

    def test_no_route_is_unimplemented(self):
        error = self.fails(StatusCode.UNIMPLEMENTED, method="/test.None/Unary")
        assert "route" in error.details(), error.details()

    def test_a_rate_limit_is_resource_exhausted(self):
        for _ in range(2):
            same(self.unary(b"in", "/test.Echo/Limited")[0], b"in")
        self.fails(StatusCode.RESOURCE_EXHAUSTED, b"out", "/test.Echo/Limited")


def same(actual, expected, more=None):
    assert actual == expected, f"{actual!r} is not {expected!r}" + (f" ({more})" if more else "")


def run(name, test):
    """Whether the test passed."""
    try:
        test()
    except Exception:
        print(f"FAILED {name}", file=sys.stderr)
        traceback.print_exc()
        return False
    print(f"ok     {name}")
    return True


def run_all(binary, directory, server, dead):
    """For each test, whether it passed."""
    gateway = Gateway(binary, directory, CONFIG.format(server=server.port, dead=dead))
    try:
        with grpc.insecure_channel(gateway.address, options=OPTIONS) as channel:
            tests = Tests(server, channel)
            names = [name for name in dir(tests) if name.startswith("test_")]
            results = [run(name.removeprefix("test_"), getattr(tests, name)) for name in names]
        results.append(run("the_gateway_ends_with_0_when_told_to", lambda: same(gateway.stop(), 0)))
        if not all(results):
            print(f"---- the gateway's log\n{gateway.log.read_text()}", file=sys.stderr)
        return results
    finally:
        gateway.kill()


def main():
    root = pathlib.Path(__file__).resolve().parent.parent
    binary = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else root / "target/debug/tollgate").resolve()
    if not binary.is_file():
        sys.exit(f"no program at {binary}: cargo build first")
    server = Server()
    # Bound but not listening: connections are refused, and nobody else can take the port.
    with tempfile.TemporaryDirectory() as directory, socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))
        try:
            results = run_all(binary, pathlib.Path(directory), server, dead.getsockname()[1])
        finally:
            server.server.stop(grace=None).wait(PATIENCE)
    passed = sum(results)
    print(f"{passed} passed, {len(results) - passed} failed")
    sys.exit(0 if passed == len(results) else 1)


if __name__ == "__main__":
    main()
