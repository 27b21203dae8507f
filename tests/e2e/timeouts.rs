//! Every wait ends: for the client, for the upstream, for connections.

use std::time::{Duration, Instant};

use crate::support::client::get;
use crate::support::upstream::Unreachable;
use crate::support::{End, Gate, Gateway, Raw, Then, Upstream};

/// An upstream that takes requests and never answers.
fn silent() -> Upstream {
    Upstream::raw(|conn| {
        conn.wait_end();
        Then::Close
    })
}

#[test]
fn no_answer_in_time_is_504() {
    let upstream = silent();
    let gateway = Gateway::to(upstream.address, "timeout: 200ms");
    let started = Instant::now();
    gateway.get("/").refused(504, "upstream_timeout");
    assert!((Duration::from_millis(190)..Duration::from_secs(2)).contains(&started.elapsed()), "{:?}", started.elapsed());
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn a_head_that_dribbles_is_504() {
    let upstream = Upstream::serve(|_, conn| {
        conn.write("HTTP/1.1 200 OK\r\n");
        // Interim heads and single fields never reset the clock.
        while conn.write("x-a: b\r\n") {
            std::thread::sleep(Duration::from_millis(20));
        }
        Then::Close
    });
    let gateway = Gateway::to(upstream.address, "timeout: 200ms");
    gateway.get("/").refused(504, "upstream_timeout");
}

#[test]
fn the_timeout_does_not_count_the_upload() {
    let upstream = Upstream::echo();
    let gateway = Gateway::to(upstream.address, "timeout: 200ms");
    let mut raw = gateway.connect();
    raw.send("POST / HTTP/1.1\r\nHost: site\r\nContent-Length: 5\r\n\r\nhell");
    std::thread::sleep(Duration::from_millis(400));
    assert_eq!(raw.ask("o").json()["body"], "hello");
}

#[test]
fn the_timeout_does_not_cut_an_open_stream() {
    let step = Gate::new();
    let wait = step.clone();
    let upstream = Upstream::serve(move |_, conn| {
        conn.write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nh");
        wait.pass();
        conn.write("i");
        Then::Keep
    });
    let gateway = Gateway::to(upstream.address, "timeout: 100ms");
    let mut raw = gateway.connect();
    raw.send(get("/"));
    assert_eq!(raw.wire.answer_head().status, 200);
    std::thread::sleep(Duration::from_millis(300));
    step.open();
    while raw.wire.buffer != b"hi" {
        assert_ne!(raw.wire.fill().unwrap(), 0, "the stream was cut");
    }
}

#[test]
fn a_connection_that_cannot_be_made_in_time_is_504() {
    let target = Unreachable::new();
    let yaml = "
        upstreams: { up: { endpoints: [http://@0], connect_timeout: 150ms } }
        routes: [{ match: /*, retry: off, upstream: up }]
    ";
    let gateway = Gateway::new(yaml, &[target.address]);
    gateway.get("/").refused(504, "upstream_connect_timeout");
}

#[test]
fn a_stream_that_stalls_is_cut_after_idle_timeout() {
    let upstream = Upstream::serve(|_, conn| {
        conn.write("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello");
        conn.wait_end();
        Then::Close
    });
    let gateway = Gateway::to(upstream.address, "idle_timeout: 200ms");
    let answer = gateway.get("/stall");
    assert_eq!((answer.status, answer.text().as_str()), (200, "hello"));
    assert!(matches!(answer.end, End::Cut | End::Reset));
    let line = gateway.logged("/stall");
    assert_eq!((line["reason"].as_str(), line["complete"].as_bool()), (Some("idle_timeout"), Some(false)), "{line}");
}

#[test]
fn a_client_that_stalls_its_body_is_408() {
    let upstream = silent();
    let gateway = Gateway::to(upstream.address, "idle_timeout: 200ms");
    let mut raw = gateway.connect();
    raw.send("POST / HTTP/1.1\r\nHost: site\r\nContent-Length: 10\r\n\r\nhello");
    let answer = raw.read();
    answer.refused(408, "request_timeout");
    raw.assert_closed();
}

/// An upload of `size` bytes, in `pieces` a tenth of a second apart or until the gateway has had enough; its answer.
fn upload(gateway: &Gateway, path: &str, size: usize, pieces: usize) -> Raw {
    let mut raw = gateway.connect();
    raw.send(format!("POST {path} HTTP/1.1\r\nHost: site\r\nContent-Length: {size}\r\n\r\n"));
    let answered = raw.socket.try_clone().unwrap();
    for _ in 0..pieces {
        raw.send(vec![b'x'; size / pieces]);
        // Waits for the next piece, or for an answer.
        answered.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        if answered.peek(&mut [0]).is_ok() {
            break;
        }
    }
    answered.set_read_timeout(Some(crate::support::PATIENCE)).unwrap();
    raw
}

#[test]
fn an_upload_below_min_body_rate_is_408_and_a_slow_one_above_it_is_not() {
    let upstream = Upstream::serve(|request, conn| conn.ok(request.body.len().to_string()));
    let lazy = Upstream::raw(|conn| {
        // Reads nothing for longer than the window: not the client's fault.
        std::thread::sleep(Duration::from_secs(12));
        let request = conn.wire.request().unwrap().unwrap();
        conn.answer(200, "", request.body.len().to_string())
    });
    let yaml = "
        server: { workers: 2, timeouts: { drain: 100ms, min_body_rate: 1KiB/s } }
        upstreams: { up: { endpoints: [http://@0] }, lazy: { endpoints: [http://@1] } }
        routes: [{ name: lazy, match: /lazy, upstream: lazy }, { name: up, match: /*, upstream: up }]
    ";
    let gateway = Gateway::new(yaml, &[upstream.address, lazy.address]);
    let started = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // A tenth of the rate, for as long as a minute would take.
            let mut raw = upload(&gateway, "/slow", 60_000, 600);
            let answer = raw.read();
            answer.refused(408, "request_timeout");
            assert!(answer.closes());
            raw.assert_closed();
            let took = started.elapsed();
            assert!((Duration::from_secs(10)..Duration::from_secs(25)).contains(&took), "over 10 s, and not much longer: {took:?}");
        });
        scope.spawn(|| {
            // Twice the rate for 12 s.
            assert_eq!(upload(&gateway, "/enough", 24_000, 120).read().text(), "24000");
        });
        scope.spawn(|| {
            let mut raw = gateway.connect();
            let size = 64 << 20;
            raw.send(format!("POST /lazy HTTP/1.1\r\nHost: site\r\nContent-Length: {size}\r\n\r\n"));
            let sent = raw.stuff(size);
            assert!(sent < size, "the upstream reads nothing, so the client is stopped");
            assert_eq!(raw.send(vec![b'x'; size - sent]).read().text(), size.to_string());
            assert!(started.elapsed() > Duration::from_secs(11));
        });
    });
    let line = gateway.logged("/slow");
    assert_eq!((line["status"].as_u64(), line["reason"].as_str()), (Some(408), Some("request_timeout")), "{line}");
    gateway.metric_becomes("gateway_errors_total{route=\"up\",reason=\"request_timeout\"}", 1.0);
    gateway.metric_becomes("gateway_errors_total{route=\"lazy\",reason=\"request_timeout\"}", 0.0);
}

fn impatient(timeouts: &str) -> Gateway {
    Gateway::new(
        &format!(
            "server: {{ workers: 1, timeouts: {{ drain: 100ms, {timeouts} }} }}\nroutes: [{{ match: /*, respond: {{ status: 200 }} }}]"
        ),
        &[],
    )
}

#[test]
fn a_connection_that_never_sends_a_byte_is_closed() {
    let gateway = impatient("header: 200ms");
    let started = Instant::now();
    gateway.connect().assert_closed();
    assert!(started.elapsed() >= Duration::from_millis(150));
    gateway.metric_becomes(&format!("gateway_connection_errors_total{{listener=\"{}\",kind=\"header_timeout\"}}", gateway.address()), 1.0);
}

#[test]
fn a_head_that_never_ends_is_closed_without_an_answer() {
    let gateway = impatient("header: 200ms");
    for start in ["GET / HT", "GET / HTTP/1.1\r\nHost: site\r\nX-A: ", "PRI * HTT", "PRI * HTTP/2.0\r\n\r\nSM\r\n"] {
        gateway.connect().send(start).assert_closed();
    }
    // One byte after the other does not help.
    let mut raw = gateway.connect();
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(5) {
        if raw.wire.write("G").is_err() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("still open");
}

#[test]
fn the_second_head_of_a_connection_has_the_same_time() {
    let gateway = impatient("header: 200ms, idle: 5s");
    let mut raw = gateway.connect();
    assert_eq!(raw.ask(get("/")).status, 200);
    std::thread::sleep(Duration::from_millis(400));
    assert_eq!(raw.ask(get("/")).status, 200, "waiting between requests is not a slow head");
    raw.send("GET / HTTP/1.1\r\nHost").assert_closed();
}

#[test]
fn an_idle_connection_is_closed() {
    let gateway = impatient("header: 5s, idle: 200ms");
    let mut raw = gateway.connect();
    assert_eq!(raw.ask(get("/")).status, 200);
    let started = Instant::now();
    raw.assert_closed();
    assert!((Duration::from_millis(150)..Duration::from_secs(3)).contains(&started.elapsed()), "{:?}", started.elapsed());
}

#[test]
fn two_hundred_silent_connections_are_gone_and_honest_ones_unaffected() {
    let gateway = impatient("header: 300ms");
    let mut silent: Vec<_> = (0..200).map(|_| gateway.connect()).collect();
    assert_eq!(gateway.get("/").status, 200);
    for raw in &mut silent {
        raw.assert_closed();
    }
    gateway.metric_becomes(&format!("gateway_connections{{listener=\"{}\"}}", gateway.address()), 0.0);
}
