//! Bodies pass as they come, and a slow reader slows the writer.

use crate::support::client::get;
use crate::support::{End, Gate, Gateway, PATIENCE, Then, Upstream, eventually};

#[test]
fn events_arrive_one_by_one_as_they_are_sent() {
    let step = Gate::new();
    let wait = step.clone();
    let upstream = Upstream::serve(move |_, conn| {
        conn.write("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n");
        conn.write("9\r\ndata: 1\n\n\r\n");
        wait.pass();
        conn.write("9\r\ndata: 2\n\n\r\n0\r\n\r\n");
        Then::Keep
    });
    let gateway = Gateway::to(upstream.address, "");
    let mut raw = gateway.connect();
    raw.send(get("/events"));
    let head = raw.wire.answer_head();
    assert_eq!((head.status, head.header("content-type")), (200, Some("text/event-stream")));
    assert_eq!(raw.wire.chunk().unwrap(), b"data: 1\n\n");
    step.open();
    assert_eq!(raw.wire.chunk().unwrap(), b"data: 2\n\n");
    assert_eq!(raw.wire.chunk().unwrap(), b"");
}

#[test]
fn the_head_of_a_response_goes_out_before_its_body() {
    let step = Gate::new();
    let wait = step.clone();
    let upstream = Upstream::serve(move |_, conn| {
        conn.write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n");
        wait.pass();
        conn.write("hi");
        Then::Keep
    });
    let gateway = Gateway::to(upstream.address, "");
    let mut raw = gateway.connect();
    raw.send(get("/"));
    assert_eq!(raw.wire.answer_head().header("content-length"), Some("2"));
    step.open();
    eventually("the body", || {
        raw.wire.fill().unwrap();
        (raw.wire.buffer == b"hi").then_some(())
    });
}

#[test]
fn a_request_body_reaches_the_upstream_as_it_comes() {
    let first = Gate::new();
    let seen = first.clone();
    let upstream = Upstream::raw(move |conn| {
        conn.wire.request_head().unwrap();
        assert_eq!(conn.wire.chunk().unwrap(), b"one");
        seen.open();
        assert_eq!(conn.wire.chunk().unwrap(), b"two");
        assert_eq!(conn.wire.chunk().unwrap(), b"");
        conn.ok("done")
    });
    let gateway = Gateway::to(upstream.address, "");
    let mut raw = gateway.connect();
    raw.send("POST / HTTP/1.1\r\nHost: site\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n");
    first.pass();
    raw.send("3\r\ntwo\r\n0\r\n\r\n");
    assert_eq!(raw.read().text(), "done");
}

#[test]
fn both_directions_flow_at_once() {
    let upstream = Upstream::raw(|conn| {
        conn.wire.request_head().unwrap();
        conn.write("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
        loop {
            let chunk = conn.wire.chunk().unwrap();
            conn.write(format!("{:x}\r\n{}\r\n", chunk.len(), String::from_utf8_lossy(&chunk)));
            if chunk.is_empty() {
                return Then::Close;
            }
        }
    });
    let gateway = Gateway::to(upstream.address, "");
    let mut raw = gateway.connect();
    raw.send("POST / HTTP/1.1\r\nHost: site\r\nTransfer-Encoding: chunked\r\n\r\n");
    for word in ["ping", "pong", "peng"] {
        raw.send(format!("4\r\n{word}\r\n"));
        if word == "ping" {
            assert_eq!(raw.wire.answer_head().status, 200);
        }
        assert_eq!(raw.wire.chunk().unwrap(), word.as_bytes());
    }
    raw.send("0\r\n\r\n");
    assert_eq!(raw.wire.chunk().unwrap(), b"");
}

#[test]
fn a_large_body_passes_whole_both_ways() {
    const SIZE: usize = 8 * 1024 * 1024;
    let upstream = Upstream::serve(|request, conn| {
        let sum: u64 = request.body.iter().map(|byte| u64::from(*byte)).sum();
        let mut body = format!("{sum:020}").into_bytes();
        body.extend_from_slice(&request.body);
        conn.ok(body)
    });
    let gateway = Gateway::to(upstream.address, "");
    let body: Vec<u8> = (0..SIZE).map(|index| u8::try_from(index * 7 % 251).unwrap()).collect();
    let sum: u64 = body.iter().map(|byte| u64::from(*byte)).sum();
    let mut raw = gateway.connect();
    raw.send(format!("POST /large HTTP/1.1\r\nHost: site\r\nContent-Length: {SIZE}\r\n\r\n"));
    raw.send(&body);
    let answer = raw.read();
    assert_eq!((answer.end, answer.body.len()), (End::Framed, SIZE + 20));
    assert_eq!(answer.body[..20], format!("{sum:020}").into_bytes());
    assert!(answer.body[20..] == body[..]);
    let line = gateway.logged("/large");
    assert_eq!((line["bytes_in"].as_u64(), line["bytes_out"].as_u64()), (Some(SIZE as u64), Some(SIZE as u64 + 20)));
}

#[test]
fn a_client_that_does_not_read_stops_the_upstream() {
    const OFFERED: usize = 256 * 1024 * 1024;
    let written = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let (its, ended) = (std::sync::Arc::clone(&written), Gate::new());
    let over = ended.clone();
    let upstream = Upstream::serve(move |_, conn| {
        conn.write(format!("HTTP/1.1 200 OK\r\ncontent-length: {OFFERED}\r\n\r\n"));
        let chunk = vec![b'x'; 64 * 1024];
        while conn.write(&chunk) {
            its.fetch_add(chunk.len(), std::sync::atomic::Ordering::SeqCst);
        }
        over.open();
        Then::Close
    });
    let gateway = Gateway::to(upstream.address, "");
    let mut raw = gateway.connect();
    raw.send(get("/slow-reader"));
    assert_eq!(raw.wire.answer_head().status, 200);
    // It stops when the kernel's buffers on both sides are full, far from the whole.
    let mut last = 0;
    let stopped = eventually("the upstream stops", || {
        std::thread::sleep(std::time::Duration::from_millis(100));
        let now = written.load(std::sync::atomic::Ordering::SeqCst);
        let same = now == last && now > 0;
        last = now;
        same.then_some(now)
    });
    assert!(stopped < 32 * 1024 * 1024, "{stopped} bytes were taken");
    // The client leaves: so does the gateway.
    drop(raw);
    ended.pass();
}

#[test]
fn a_client_that_stops_reading_is_cut_after_idle_timeout() {
    const OFFERED: usize = 256 * 1024 * 1024;
    let ended = Gate::new();
    let over = ended.clone();
    let upstream = Upstream::serve(move |_, conn| {
        conn.write(format!("HTTP/1.1 200 OK\r\ncontent-length: {OFFERED}\r\n\r\n"));
        let chunk = vec![b'x'; 64 * 1024];
        while conn.write(&chunk) {}
        over.open();
        Then::Close
    });
    let gateway = Gateway::to(upstream.address, "idle_timeout: 300ms");
    let mut raw = gateway.connect();
    raw.send(get("/stuck"));
    assert_eq!(raw.wire.answer_head().status, 200);
    // The client stays, and reads nothing: both sides are let go all the same.
    ended.pass();
    let line = gateway.logged("/stuck");
    assert_eq!((line["reason"].as_str(), line["complete"].as_bool()), (Some("idle_timeout"), Some(false)), "{line}");
    let duration = line["duration_ms"].as_f64().unwrap();
    assert!(duration >= 300.0, "{line}");
    gateway.metric_becomes("gateway_requests_in_flight", 0.0);
    let (rest, end) = raw.rest();
    assert!(rest.len() < OFFERED && matches!(end, End::Eof | End::Reset), "{} {end:?}", rest.len());
}

#[test]
fn an_upstream_that_does_not_read_stops_the_client() {
    let done = Gate::new();
    let wait = done.clone();
    let upstream = Upstream::raw(move |conn| {
        conn.wire.request_head().unwrap();
        wait.pass();
        Then::Reset
    });
    let gateway = Gateway::to(upstream.address, "");
    let mut raw = gateway.connect();
    raw.send("POST /slow HTTP/1.1\r\nHost: site\r\nContent-Length: 268435456\r\n\r\n");
    let sent = raw.stuff(268_435_456);
    assert!(sent < 64 * 1024 * 1024, "{sent} bytes were taken");
    done.open();
}

#[test]
fn a_client_that_leaves_a_stream_cancels_it_upstream_at_once() {
    let ended = Gate::new();
    let over = ended.clone();
    let upstream = Upstream::serve(move |_, conn| {
        conn.write("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: 1\n\n");
        conn.wait_end();
        over.open();
        Then::Close
    });
    let gateway = Gateway::to(upstream.address, "");
    let mut raw = gateway.connect();
    raw.send(get("/events"));
    assert_eq!(raw.wire.answer_head().status, 200);
    assert_eq!(raw.wire.chunk().unwrap(), b"data: 1\n\n");
    let left = std::time::Instant::now();
    drop(raw);
    ended.pass();
    assert!(left.elapsed() < std::time::Duration::from_secs(1));
    let line = gateway.logged("/events");
    assert_eq!((line["reason"].as_str(), line["complete"].as_bool()), (Some("client_closed"), Some(false)));
    assert!(left.elapsed() < PATIENCE);
}
