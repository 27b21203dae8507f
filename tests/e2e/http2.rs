//! HTTP/2 on both sides: what is translated, what is bounded, and how connections end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use ::h2::Reason;
use bytes::Bytes;
use http::HeaderMap;

use crate::support::client::{self, get};
use crate::support::frames::{HEAD, PREFACE, frame, frames, raw, went_away};
use crate::support::h2::{Client, H2Upstream, drain, reply, request, whole};
use crate::support::{Conn, End, Gate, Gateway, PATIENCE, Raw, Then, Upstream, block_on, eventually};

fn h2_route(more: &str) -> String {
    format!(
        "server: {{ workers: 1, timeouts: {{ drain: 200ms }} }}\nupstreams:\n  up: {{ endpoints: [http://@0], protocol: h2{more} }}\nroutes:\n  - {{ name: all, match: /*, upstream: up }}\n"
    )
}

#[test]
fn one_port_speaks_both_versions() {
    let upstream = Upstream::echo();
    let gateway = Gateway::to(upstream.address, "");
    block_on(async {
        let mut client = Client::connect(gateway.address()).await;
        let reply = client.ask(request("POST", "/x?y=1", &[("x-a", "b")]), b"body").await.unwrap();
        assert_eq!(reply.status, 200);
        assert!(reply.header("x-request-id").is_some());
    });
    let seen = upstream.last();
    assert_eq!(
        (seen.method.as_str(), seen.target.as_str(), seen.version.as_str(), seen.text().as_str()),
        ("POST", "/x?y=1", "HTTP/1.1", "body")
    );
    assert_eq!(seen.all("host"), ["site"]);
    assert_eq!(seen.header("x-a"), Some("b"));
    assert_eq!(gateway.get("/").status, 200);
    let line = gateway.logged("/x");
    assert_eq!(line["protocol"], "HTTP/2");
}

#[test]
fn cookies_are_joined_for_http1_upstreams() {
    let upstream = Upstream::echo();
    let gateway = Gateway::to(upstream.address, "");
    block_on(async {
        let mut client = Client::connect(gateway.address()).await;
        client.ask(request("GET", "/", &[("cookie", "a=1"), ("x", "y"), ("cookie", "b=2"), ("cookie", "c=3")]), b"").await.unwrap();
    });
    assert_eq!(upstream.last().all("cookie"), ["a=1; b=2; c=3"]);
}

#[test]
fn the_host_is_the_authority() {
    let upstream = Upstream::echo();
    let gateway = Gateway::to(upstream.address, "");
    block_on(async {
        let mut client = Client::connect(gateway.address()).await;
        assert_eq!(client.ask(request("GET", "/same", &[("host", "site")]), b"").await.unwrap().status, 200);
        assert_eq!(client.ask(request("GET", "/other", &[("host", "other")]), b"").await.unwrap().status, 400);
        assert_eq!(client.ask(request("TRACE", "/trace", &[]), b"").await.unwrap().status, 405);
    });
    assert_eq!(upstream.count(), 1);
    // `host` alone: by hand, since clients send an authority.
    let mut raw = raw(gateway.address());
    raw.send(frame(1, 5, 1, b"\x82\x86\x84\x66\x05other"));
    eventually("the request arrives", || (upstream.count() == 2).then_some(()));
    assert_eq!(upstream.last().all("host"), ["other"]);
}

#[test]
fn malformed_requests_never_reach_the_upstream() {
    let upstream = Upstream::echo();
    let gateway = Gateway::to(upstream.address, "");
    let literal = |name: &str, value: &str| {
        let mut bytes = vec![0, u8::try_from(name.len()).unwrap()];
        bytes.extend_from_slice(name.as_bytes());
        bytes.push(u8::try_from(value.len()).unwrap());
        bytes.extend_from_slice(value.as_bytes());
        bytes
    };
    for (name, value) in [
        ("connection", "close"),
        ("transfer-encoding", "chunked"),
        ("te", "gzip"),
        ("Upper", "x"),
        ("x", "a\r\nb: c"),
        ("x", "a\0b"),
        (":path", "/two"),
        ("upgrade", "h2c"),
    ] {
        let mut raw = raw(gateway.address());
        raw.send([frame(1, 5, 1, &[HEAD, &literal(name, value)].concat()), frame(6, 0, 0, b"12345678")].concat());
        eventually("an answer to the ping or the end", || {
            let ended = raw.wire.fill().map_or(true, |count| count == 0);
            (ended || frames(&raw.wire.buffer).iter().filter(|(kind, _)| *kind == 6).count() > 0).then_some(())
        });
        assert_eq!(upstream.count(), 0, "{name}");
    }
}

#[test]
fn trailers_pass_both_ways() {
    let upstream = H2Upstream::serve(|(request, mut respond)| async move {
        let mut body = request.into_body();
        while let Some(Ok(data)) = body.data().await {
            let _ = body.flow_control().release_capacity(data.len());
        }
        let trailers = body.trailers().await.unwrap().unwrap();
        let sum = trailers["x-sum"].to_str().unwrap().to_owned();
        assert!(!trailers.contains_key("authorization"));
        let mut stream = respond.send_response(http::Response::new(()), false).unwrap();
        stream.send_data(Bytes::from(sum), false).unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("x-back", "1".parse().unwrap());
        stream.send_trailers(trailers).unwrap();
    });
    let gateway = Gateway::new(&h2_route(""), &[upstream.address]);
    block_on(async {
        let mut client = Client::connect(gateway.address()).await;
        let (response, mut stream) = client.open(request("POST", "/", &[])).await.unwrap();
        stream.send_data(Bytes::from_static(b"data"), false).unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", "42".parse().unwrap());
        trailers.insert("authorization", "Bearer x".parse().unwrap());
        stream.send_trailers(trailers).unwrap();
        let reply = whole(response.await.unwrap()).await.unwrap();
        assert_eq!((reply.text().as_str(), reply.trailers.get("x-back").unwrap().to_str().unwrap()), ("42", "1"));
    });
}

#[test]
fn trailers_of_http1_upstreams_pass() {
    let upstream = Upstream::serve(|_, conn| {
        conn.write("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n2\r\nhi\r\n0\r\nx-sum: 7\r\n\r\n");
        Then::Keep
    });
    let gateway = Gateway::to(upstream.address, "");
    block_on(async {
        let mut client = Client::connect(gateway.address()).await;
        let reply = client.get("/").await;
        assert_eq!((reply.text().as_str(), reply.trailers.get("x-sum").unwrap().to_str().unwrap()), ("hi", "7"));
    });
}

#[test]
fn a_cut_response_is_a_reset_stream() {
    let upstream = Upstream::serve(|_, conn| {
        conn.write("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf");
        Then::Close
    });
    let gateway = Gateway::to(upstream.address, "");
    block_on(async {
        let mut client = Client::connect(gateway.address()).await;
        let reply = client.get("/cut").await;
        assert!(reply.error.is_some_and(|error| error.is_reset()), "a clean end");
    });
    assert_eq!(gateway.logged("/cut")["reason"], "upstream_truncated");
}

/// Reads a connection of HTTP/2 up to the head of its first request.
fn read_head(conn: &mut Conn) {
    conn.write(frame(4, 0, 0, b""));
    while !frames(conn.wire.buffer.get(PREFACE.len()..).unwrap_or_default()).contains(&(1, 1)) {
        assert!(conn.wire.fill().unwrap() > 0);
    }
}

/// An upstream that answers each connection's request with a 200 and these frames, all at once.
fn framed(answer: Vec<u8>) -> Upstream {
    Upstream::raw(move |conn| {
        read_head(conn);
        conn.write([frame(1, 4, 1, b"\x88"), answer.clone()].concat());
        conn.wait_end();
        Then::Close
    })
}

#[test]
fn a_request_that_ends_every_connection_is_sent_as_often_as_its_retries_allow() {
    let upstream = Upstream::raw(|conn| {
        read_head(conn);
        Then::Close
    });
    let gateway = Gateway::new(&h2_route(""), &[upstream.address]);
    gateway.get("/poison").refused(502, "upstream_reset");
    // Once, and once more by `retry`.
    assert_eq!(upstream.connections(), 2);
}

#[test]
fn a_stream_that_is_reset_without_an_error_is_cut_all_the_same() {
    let upstream = framed([frame(0, 0, 1, b"half"), frame(3, 0, 1, &[0; 4])].concat());
    let gateway = Gateway::new(&h2_route(""), &[upstream.address]);
    block_on(async {
        let mut client = Client::connect(gateway.address()).await;
        let reply = client.get("/cut2").await;
        assert!(reply.error.is_some_and(|error| error.is_reset()), "a clean end");
    });
    let gateway = Gateway::new(&h2_route(""), &[upstream.address]);
    let mut raw = gateway.connect();
    raw.send(get("/cut1"));
    let (bytes, _) = raw.rest();
    assert!(!bytes.ends_with(b"0\r\n\r\n"), "{:?}", String::from_utf8_lossy(&bytes));
    assert_eq!(gateway.logged("/cut1")["reason"], "upstream_truncated");
}

#[test]
fn an_answer_without_a_body_ends_whatever_its_upstream_sends() {
    for rest in [frame(0, 1, 1, b"body"), Vec::new()] {
        let upstream = framed(rest);
        let gateway = Gateway::new(&h2_route(""), &[upstream.address]);
        block_on(async {
            let mut client = Client::connect(gateway.address()).await;
            let reply = client.ask(request("HEAD", "/", &[]), b"").await.unwrap();
            assert_eq!((reply.status, reply.body.len(), reply.error.is_none()), (200, 0, true));
        });
        assert_eq!(gateway.logged("/")["complete"], true);
    }
}

#[test]
fn an_answer_that_asks_for_no_more_of_the_upload_is_whole() {
    // RFC 9113 section 8.1: END_STREAM, then a reset with NO_ERROR.
    let upstream = framed([frame(0, 1, 1, b"enough"), frame(3, 0, 1, &[0; 4])].concat());
    let gateway = Gateway::new(&h2_route(""), &[upstream.address]);
    block_on(async {
        let mut client = Client::connect(gateway.address()).await;
        let (response, _stream) = client.open(request("POST", "/", &[])).await.unwrap();
        let reply = whole(response.await.unwrap()).await.unwrap();
        assert_eq!((reply.text().as_str(), reply.error.is_none()), ("enough", true));
    });
}

#[test]
fn an_upload_that_is_reset_without_an_error_never_looks_complete() {
    let (begun, gone, whole) = (Gate::new(), Gate::new(), Gate::new());
    let (its, over, bad) = (begun.clone(), gone.clone(), whole.clone());
    let upstream = Upstream::raw(move |conn| {
        while !conn.wire.buffer.ends_with(b"half\r\n") {
            assert!(conn.wire.fill().unwrap() > 0);
        }
        its.open();
        conn.wait_end();
        if conn.wire.buffer.ends_with(b"0\r\n\r\n") {
            bad.open();
        }
        over.open();
        Then::Close
    });
    let gateway = Gateway::to(upstream.address, "");
    let mut client = raw(gateway.address());
    client.send([frame(1, 4, 1, b"\x83\x86\x84\x41\x04site"), frame(0, 0, 1, b"half")].concat());
    begun.pass();
    client.send(frame(3, 0, 1, &[0; 4]));
    gone.pass();
    assert!(!whole.is_open(), "the upstream got what looks like a whole request");
    assert_eq!(gateway.logged("/")["status"], 499);
}

#[test]
fn a_cancelled_stream_cancels_the_upstream_request_and_nothing_else() {
    let (asked, gone) = (Gate::new(), Gate::new());
    let (its, over) = (asked.clone(), gone.clone());
    let upstream = Upstream::serve(move |request, conn| {
        if request.target == "/quick" {
            return conn.ok("quick");
        }
        its.open();
        conn.wait_end();
        over.open();
        Then::Close
    });
    let gateway = Gateway::to(upstream.address, "");
    block_on(async {
        let mut client = Client::connect(gateway.address()).await;
        let (response, _) = client.start(request("GET", "/hang", &[]), b"").await.unwrap();
        tokio::task::spawn_blocking(move || asked.pass()).await.unwrap();
        let left = Instant::now();
        drop(response);
        assert_eq!(client.get("/quick").await.text(), "quick");
        tokio::task::spawn_blocking(move || gone.pass()).await.unwrap();
        assert!(left.elapsed() < Duration::from_secs(1));
    });
    assert_eq!(gateway.logged("/hang")["status"], 499);
}

#[test]
fn an_http1_client_that_leaves_cancels_its_stream_upstream_though_its_body_has_arrived() {
    let (asked, gone) = (Gate::new(), Gate::new());
    let (its, over) = (asked.clone(), gone.clone());
    let upstream = H2Upstream::serve(move |(request, mut respond)| {
        let (its, over) = (its.clone(), over.clone());
        async move {
            let mut body = request.into_body();
            while let Some(Ok(_)) = body.data().await {}
            its.open();
            // Ready when the stream is reset.
            let _ = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
            over.open();
        }
    });
    let gateway = Gateway::new(&h2_route(""), &[upstream.address]);
    let mut raw = gateway.connect();
    raw.send(client::request("POST", "/left", &[], "the whole body"));
    asked.pass();
    drop(raw);
    gone.pass();
    assert_eq!(gateway.logged("/left")["status"], 499);
}

#[test]
fn a_grpc_web_answer_that_is_cut_never_looks_complete() {
    let upstream = H2Upstream::serve(|(_, mut respond)| async move {
        let answer = http::Response::builder().status(200).header("content-type", "application/grpc").body(()).unwrap();
        let mut sender = respond.send_response(answer, false).unwrap();
        sender.send_data(Bytes::from_static(b"\0\0\0\0\x02hi"), false).unwrap();
        // The message must not be lost in the reset.
        tokio::task::yield_now().await;
        sender.send_reset(Reason::INTERNAL_ERROR);
    });
    let gateway = Gateway::new(&h2_route(""), &[upstream.address]);
    for _ in 0..8 {
        let mut raw = gateway.connect();
        raw.send(client::request("POST", "/cut", &[("Content-Type", "application/grpc-web+proto")], "\0\0\0\0\0"));
        let (bytes, _) = raw.rest();
        let text = String::from_utf8_lossy(&bytes).to_lowercase();
        // Told by the status that goes with it, or else not ended at all.
        assert!(!text.ends_with("0\r\n\r\n") || text.contains("grpc-status") && !text.contains("grpc-status: 0"), "{text:?}");
    }
}

#[test]
fn an_answer_that_comes_before_the_body_lets_go_of_the_client() {
    let upstream = H2Upstream::serve(|(request, mut respond)| async move {
        let answer = http::Response::builder().status(200).header("content-length", "5").body(()).unwrap();
        let mut sender = respond.send_response(answer, false).unwrap();
        sender.send_data(Bytes::from_static(b"early"), true).unwrap();
        // Never reads the body, and never says that it does not want it.
        let _body = request.into_body();
        std::future::pending::<()>().await;
    });
    let gateway = Gateway::new(&h2_route(""), &[upstream.address]);
    let mut raw = gateway.connect();
    let answer = raw.ask("POST /early HTTP/1.1\r\nHost: site\r\nContent-Length: 1000\r\n\r\npart");
    assert_eq!((answer.status, answer.text().as_str()), (200, "early"));
    raw.assert_closed();
    gateway.metric_becomes(&format!("gateway_connections{{listener=\"{}\"}}", gateway.address()), 0.0);
}

#[test]
fn a_slow_reader_slows_the_upstream() {
    const OFFERED: usize = 64 * 1024 * 1024;
    let written = Arc::new(AtomicUsize::new(0));
    let its = Arc::clone(&written);
    let upstream = Upstream::serve(move |_, conn| {
        conn.write(format!("HTTP/1.1 200 OK\r\ncontent-length: {OFFERED}\r\n\r\n"));
        let chunk = vec![b'x'; 64 * 1024];
        for _ in 0..OFFERED / chunk.len() {
            if !conn.write(&chunk) {
                return Then::Close;
            }
            its.fetch_add(chunk.len(), SeqCst);
        }
        Then::Keep
    });
    let gateway = Gateway::to(upstream.address, "");
    block_on(async {
        let mut client = Client::connect(gateway.address()).await;
        let (response, _) = client.start(request("GET", "/", &[]), b"").await.unwrap();
        let mut body = response.await.unwrap().into_body();
        tokio::time::sleep(Duration::from_millis(700)).await;
        let taken = written.load(SeqCst);
        assert!(taken < 16 * 1024 * 1024, "{taken} bytes were taken");
        // Other streams of the connection are not stopped, and this one goes on.
        let mut total = 0;
        while let Some(data) = body.data().await {
            let data = data.unwrap();
            total += data.len();
            body.flow_control().release_capacity(data.len()).unwrap();
        }
        assert_eq!(total, OFFERED);
    });
}

/// Uploads on `stream` as fast as it is let, until nothing more is taken for 300 ms; how much that was.
async fn stuff(stream: &mut ::h2::SendStream<Bytes>, most: usize) -> usize {
    let mut sent = 0;
    while sent < most {
        stream.reserve_capacity(16 * 1024);
        let room = tokio::time::timeout(Duration::from_millis(300), std::future::poll_fn(|cx| stream.poll_capacity(cx))).await;
        let Ok(room) = room else { break };
        let chunk = vec![b'x'; room.unwrap().unwrap().min(16 * 1024)];
        sent += chunk.len();
        stream.send_data(chunk.into(), false).unwrap();
    }
    sent
}

#[test]
fn an_upload_waits_for_the_upstream() {
    const OFFERED: usize = 64 * 1024 * 1024;
    let go = Gate::new();
    let (wait, still) = (go.clone(), go.clone());
    let slow = Upstream::raw(move |conn| {
        let head = conn.wire.request_head().unwrap().unwrap();
        if head.target == "/quick" {
            return conn.ok("quick");
        }
        wait.pass();
        Then::Reset
    });
    // This one does not even open its window.
    let h2 = H2Upstream::serve(move |(request, mut respond)| {
        let still = still.clone();
        async move {
            if request.uri().path() == "/quick" {
                let mut stream = respond.send_response(http::Response::new(()), false).unwrap();
                return stream.send_data(Bytes::from_static(b"quick"), true).unwrap();
            }
            let _body = request.into_body();
            tokio::task::spawn_blocking(move || still.pass()).await.unwrap();
        }
    });
    let yaml = "
        server: { workers: 1, timeouts: { drain: 200ms } }
        upstreams: { h1: { endpoints: [http://@0] }, h2: { endpoints: [http://@1], protocol: h2 } }
        routes:
          - { match: { host: one, prefix: / }, upstream: h1 }
          - { match: { host: two, prefix: / }, upstream: h2 }";
    let gateway = Gateway::new(yaml, &[slow.address, h2.address]);
    block_on(async {
        // HTTP/1.1 fills the kernel's buffers, HTTP/2 a window and what is on the way to it.
        for (host, most) in [("one", 16 * 1024 * 1024), ("two", 1024 * 1024)] {
            let to = |method: &str, path: &str| {
                http::Request::builder().method(method).uri(format!("http://{host}{path}")).version(http::Version::HTTP_2).body(()).unwrap()
            };
            let mut client = Client::connect(gateway.address()).await;
            let (_response, mut stream) = client.open(to("POST", "/up")).await.unwrap();
            let sent = stuff(&mut stream, OFFERED).await;
            assert!(sent > 0 && sent < most, "{host}: {sent} bytes were taken");
            // The other streams of the connection have a window of their own.
            assert_eq!(client.ask(to("GET", "/quick"), b"").await.unwrap().text(), "quick", "{host}");
        }
    });
    go.open();
}

#[test]
fn slow_readers_do_not_hold_up_others_on_the_same_upstream_connection() {
    let large = vec![b'x'; 1024 * 1024];
    let upstream = H2Upstream::serve(move |stream| {
        let body = if stream.0.uri().path() == "/quick" { large[..100 * 1024].to_vec() } else { large.clone() };
        async move { reply(stream, 200, &[], &body, &[]).await }
    });
    let gateway = Gateway::new(&h2_route(""), &[upstream.address]);
    block_on(async {
        let mut slow = Client::connect(gateway.address()).await;
        let mut unread = Vec::new();
        for _ in 0..40 {
            let (response, _) = slow.start(request("GET", "/large", &[]), b"").await.unwrap();
            unread.push(response.await.unwrap().into_body());
        }
        // As much as is taken of them has been.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let mut quick = Client::connect(gateway.address()).await;
        let answer = tokio::time::timeout(PATIENCE, quick.get("/quick")).await.expect("slow readers hold everybody up");
        assert_eq!(answer.body.len(), 100 * 1024);
        drop(unread);
    });
    assert!(upstream.connections().iter().all(|connection| *connection == 0), "it was one connection: {:?}", upstream.connections());
}

#[test]
fn uploads_that_wait_do_not_hold_up_others_on_the_same_connection() {
    let stuck = H2Upstream::serve(|(request, _respond)| async move {
        let _body = request.into_body();
        std::future::pending::<()>().await;
    });
    let echo = Upstream::serve(|request, conn| conn.ok(request.body.len().to_string()));
    let yaml = "
        server: { workers: 1, timeouts: { drain: 200ms } }
        upstreams: { stuck: { endpoints: [http://@0], protocol: h2 }, echo: { endpoints: [http://@1] } }
        routes: [{ match: /stuck, upstream: stuck }, { match: /quick, upstream: echo }]";
    let gateway = Gateway::new(yaml, &[stuck.address, echo.address]);
    block_on(async {
        let mut client = Client::connect(gateway.address()).await;
        let mut waiting = Vec::new();
        for _ in 0..60 {
            let (response, mut stream) = client.open(request("POST", "/stuck", &[])).await.unwrap();
            // A window's worth each.
            stream.send_data(vec![b'x'; 65535].into(), false).unwrap();
            waiting.push((response, stream));
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        let answer = tokio::time::timeout(PATIENCE, client.ask(request("POST", "/quick", &[]), &vec![b'y'; 200_000])).await;
        assert_eq!(answer.expect("uploads that wait hold the others up").unwrap().text(), "200000");
    });
}

#[test]
fn a_transfer_that_moves_is_not_idle() {
    let upstream = Upstream::serve(|request, conn| {
        if request.method == "POST" {
            return conn.ok(request.body.len().to_string());
        }
        conn.write("HTTP/1.1 200 OK\r\ncontent-length: 15\r\n\r\n");
        for _ in 0..15 {
            conn.write("x");
            std::thread::sleep(Duration::from_millis(100));
        }
        Then::Keep
    });
    let gateway = Gateway::to(upstream.address, "idle_timeout: 500ms\ntimeout: 500ms");
    block_on(async {
        let mut client = Client::connect(gateway.address()).await;
        let reply = client.get("/").await;
        assert_eq!((reply.body.len(), reply.error.is_none()), (15, true));
        let (response, mut stream) = client.open(request("POST", "/up", &[])).await.unwrap();
        for index in 0..15 {
            stream.send_data(Bytes::from_static(b"y"), index == 14).unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(whole(response.await.unwrap()).await.unwrap().text(), "15");
        // One that stalls is.
        let (response, mut stream) = client.open(request("POST", "/stall", &[])).await.unwrap();
        stream.send_data(Bytes::from_static(b"y"), false).unwrap();
        assert_eq!(response.await.unwrap().status(), 408);
    });
}

#[test]
fn heads_and_bodies_have_limits() {
    let upstream = Upstream::echo();
    let yaml = "
        server: { workers: 1, max_header_size: 8KiB, max_headers: 20, http2: { max_streams: 3 }, timeouts: { drain: 200ms } }
        upstreams: { up: { endpoints: [http://@0] } }
        routes: [{ match: /*, body_limit: 10B, upstream: up }]";
    let gateway = Gateway::new(yaml, &[upstream.address]);
    block_on(async {
        let mut client = Client::connect(gateway.address()).await;
        let names: Vec<String> = (0..25).map(|index| format!("x-{index}")).collect();
        let many: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "v")).collect();
        assert_eq!(client.ask(request("GET", "/many", &many), b"").await.unwrap().status, 431);
        let long = "v".repeat(9000);
        assert_eq!(client.ask(request("GET", "/long", &[("x-long", &long)]), b"").await.unwrap().status, 431);
        assert_eq!(client.ask(request("GET", &format!("/{long}"), &[]), b"").await.unwrap().status, 414);
        assert_eq!(client.ask(request("POST", "/declared", &[("content-length", "11")]), b"hello world").await.unwrap().status, 413);
        assert_eq!(client.ask(request("POST", "/counted", &[]), b"hello world").await.unwrap().status, 413);
        assert_eq!(client.ask(request("POST", "/fits", &[]), b"hello worl").await.unwrap().status, 200);
        assert_eq!(client.send.current_max_send_streams(), 3);
    });
    assert_eq!(upstream.count(), 1);
}

#[test]
fn a_connection_without_requests_ends_after_idle_with_goaway() {
    let upstream = Upstream::text("hi");
    let yaml = format!("{}server: {{ workers: 1, timeouts: {{ idle: 1s, header: 300ms, drain: 200ms }} }}\n", Gateway::simple(""));
    let gateway = Gateway::new(&yaml, &[upstream.address]);
    let mut raw = raw(gateway.address());
    raw.send(frame(1, 5, 1, HEAD));
    let begun = Instant::now();
    // Pings, acknowledgements and window updates are no requests; nor are they heads that came too slowly.
    raw.send(frame(4, 1, 0, b""));
    for _ in 0..4 {
        std::thread::sleep(Duration::from_millis(200));
        raw.send([frame(8, 0, 0, &[0, 0, 0, 9]), frame(6, 0, 0, b"12345678")].concat());
    }
    let (bytes, _) = raw.rest();
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(950) && took < Duration::from_secs(5), "{took:?}");
    assert!(went_away(&bytes));
    assert!(frames(&bytes).contains(&(0, 1)), "the request was answered");
}

#[test]
fn heads_that_do_not_come_close_the_connection() {
    let upstream = Upstream::text("hi");
    let yaml = format!("{}server: {{ workers: 1, timeouts: {{ header: 300ms, drain: 200ms }} }}\n", Gateway::simple(""));
    let gateway = Gateway::new(&yaml, &[upstream.address]);
    for part in [PREFACE[..10].to_vec(), PREFACE.to_vec(), [PREFACE, &frame(4, 0, 0, b""), &frame(1, 1, 1, HEAD)].concat()] {
        let mut raw = gateway.connect();
        raw.send(&part);
        let begun = Instant::now();
        raw.rest();
        assert!(begun.elapsed() < Duration::from_secs(3), "{part:?}");
    }
    let listener = gateway.address();
    gateway.metric_becomes(&format!("gateway_connection_errors_total{{listener=\"{listener}\",kind=\"header_timeout\"}}"), 3.0);
}

#[test]
fn a_drain_sends_goaway_and_finishes_what_runs() {
    let (asked, go) = (Gate::new(), Gate::new());
    let (its, wait) = (asked.clone(), go.clone());
    let upstream = Upstream::serve(move |_, conn| {
        its.open();
        wait.pass();
        conn.ok("done")
    });
    let yaml = format!("{}server: {{ workers: 1, timeouts: {{ drain: 5s }} }}\n", Gateway::simple(""));
    let gateway = Gateway::new(&yaml, &[upstream.address]);
    block_on(async {
        let mut client = Client::connect(gateway.address()).await;
        let (response, _) = client.start(request("GET", "/last", &[]), b"").await.unwrap();
        tokio::task::spawn_blocking(move || asked.pass()).await.unwrap();
        let stopping = gateway.begin_shutdown();
        let end = Instant::now() + PATIENCE;
        // A stream that still got through is cancelled at once; after the GOAWAY none begins.
        while client.start(request("GET", "/late", &[]), b"").await.is_ok() {
            assert!(Instant::now() < end);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        go.open();
        assert_eq!(whole(response.await.unwrap()).await.unwrap().text(), "done");
        // The connection ends by itself; what the client still writes at that moment may be lost.
        let _ = client.driver.await.unwrap();
        tokio::task::spawn_blocking(move || stopping.join()).await.unwrap();
    });
}

#[test]
fn a_listener_that_is_removed_sends_its_clients_away_when_they_are_done() {
    let (asked, go) = (Gate::new(), Gate::new());
    let (its, wait) = (asked.clone(), go.clone());
    let upstream = Upstream::serve(move |_, conn| {
        its.open();
        wait.pass();
        conn.ok("done")
    });
    let yaml = format!("{}server: {{ workers: 1, timeouts: {{ drain: 5s }} }}\n", Gateway::simple(""));
    let gateway = Gateway::new(&yaml, &[upstream.address]);
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    block_on(async {
        let mut client = Client::connect(gateway.address()).await;
        let (response, _) = client.start(request("GET", "/last", &[]), b"").await.unwrap();
        tokio::task::spawn_blocking(move || asked.pass()).await.unwrap();
        gateway.reload_ok(&format!("listeners: [{{ address: '{free}' }}]\n{yaml}"), &[upstream.address]);
        let end = Instant::now() + PATIENCE;
        while client.start(request("GET", "/late", &[]), b"").await.is_ok() {
            assert!(Instant::now() < end, "no GOAWAY");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        go.open();
        assert_eq!(whole(response.await.unwrap()).await.unwrap().text(), "done");
        // The connection ends by itself; what the client still writes at that moment may be lost.
        let _ = client.driver.await.unwrap();
        assert_eq!(Client::connect(free).await.get("/new").await.text(), "done");
    });
}

#[test]
fn many_honest_requests_on_one_connection_are_no_flood() {
    let gateway = Gateway::new("routes: [{ match: /*, respond: { status: 204 } }]", &[]);
    block_on(async {
        let mut client = Client::connect(gateway.address()).await;
        for _ in 0..3000 {
            assert_eq!(client.get("/").await.status, 204);
        }
    });
}

#[test]
fn http2_upstreams_get_http2_from_any_client() {
    let upstream = H2Upstream::serve(|stream| async move { reply(stream, 200, &[("x-up", "1")], b"hi", &[]).await });
    let gateway = Gateway::new(&h2_route(""), &[upstream.address]);
    let answer = gateway.request("POST", "/x?y", &[("cookie", "a=1")], "body");
    assert_eq!((answer.status, answer.text().as_str(), answer.header("x-up")), (200, "hi", Some("1")));
    let seen = upstream.last();
    assert_eq!(seen.uri.to_string(), "http://site/x?y");
    assert!(!seen.headers.contains_key("host") && !seen.headers.contains_key("connection"));
    assert_eq!(seen.headers["cookie"], "a=1");
    let metric = format!("gateway_upstream_connections{{upstream=\"up\",endpoint=\"http://{}\"}}", upstream.address);
    gateway.metric_becomes(&metric, 1.0);
}

#[test]
fn requests_share_connections_and_open_more_only_when_streams_run_out() {
    let (go, running) = (Gate::new(), Arc::new(AtomicUsize::new(0)));
    let (wait, its) = (go.clone(), Arc::clone(&running));
    let mut builder = ::h2::server::Builder::new();
    builder.max_concurrent_streams(10);
    let upstream = H2Upstream::with(None, builder, move |stream| {
        let (wait, its) = (wait.clone(), Arc::clone(&its));
        async move {
            its.fetch_add(1, SeqCst);
            tokio::task::spawn_blocking(move || wait.pass()).await.unwrap();
            reply(stream, 200, &[], b"hi", &[]).await;
        }
    });
    let gateway = Gateway::new(&h2_route(""), &[upstream.address]);
    // All at once, before there is any connection.
    let mut clients: Vec<Raw> = (0..25).map(|_| gateway.connect()).collect();
    for client in &mut clients {
        client.send(get("/"));
    }
    eventually("all run at the same time", || (running.load(SeqCst) == 25).then_some(()));
    go.open();
    for client in &mut clients {
        assert_eq!(client.read().status, 200);
    }
    let mut used = upstream.connections();
    used.sort_unstable();
    used.dedup();
    assert_eq!(used.len(), 3, "{:?}", upstream.connections());
}

#[test]
fn the_first_requests_do_not_open_a_connection_each() {
    let upstream = H2Upstream::serve(|stream| async move { reply(stream, 200, &[], b"hi", &[]).await });
    let gateway = Gateway::new(&h2_route(""), &[upstream.address]);
    let mut clients: Vec<Raw> = (0..50).map(|_| gateway.connect()).collect();
    for client in &mut clients {
        client.send(get("/"));
    }
    for client in &mut clients {
        assert_eq!(client.read().status, 200);
    }
    assert!(upstream.connections().iter().all(|connection| *connection == 0), "{:?}", upstream.connections());
}

#[test]
fn workers_share_a_connection_where_there_may_be_only_one() {
    let upstream = H2Upstream::serve(|stream| async move {
        tokio::time::sleep(Duration::from_millis(50)).await;
        reply(stream, 200, &[], b"hi", &[]).await;
    });
    let yaml = h2_route(", pool: { max_connections: 1 }").replace("workers: 1", "workers: 3");
    let gateway = Gateway::new(&yaml, &[upstream.address]);
    let mut clients: Vec<Raw> = (0..12).map(|_| gateway.connect()).collect();
    for client in &mut clients {
        client.send(get("/"));
    }
    for client in &mut clients {
        assert_eq!(client.read().status, 200);
    }
    assert!(upstream.connections().iter().all(|connection| *connection == 0), "{:?}", upstream.connections());
}

#[test]
fn streams_beyond_all_limits_wait_and_are_then_refused() {
    let go = Gate::new();
    let wait = go.clone();
    let mut builder = ::h2::server::Builder::new();
    builder.max_concurrent_streams(1);
    let upstream = H2Upstream::with(None, builder, move |stream| {
        let wait = wait.clone();
        async move {
            tokio::task::spawn_blocking(move || wait.pass()).await.unwrap();
            reply(stream, 200, &[], b"hi", &[]).await;
        }
    });
    let gateway = Gateway::new(&h2_route(", pool: { max_connections: 1 }, connect_timeout: 500ms"), &[upstream.address]);
    let mut first = gateway.connect();
    first.send(get("/first"));
    eventually("the first runs", || (upstream.requests().len() == 1).then_some(()));
    gateway.get("/second").refused(503, "overloaded");
    let mut third = gateway.connect();
    third.send(get("/third"));
    std::thread::sleep(Duration::from_millis(100));
    go.open();
    assert_eq!((first.read().status, third.read().status), (200, 200));
}

#[test]
fn unused_upstream_connections_are_closed() {
    let upstream = H2Upstream::serve(|stream| async move { reply(stream, 200, &[], b"hi", &[]).await });
    let gateway = Gateway::new(&h2_route(", pool: { idle_timeout: 500ms }"), &[upstream.address]);
    assert_eq!(gateway.get("/").status, 200);
    let metric = format!("gateway_upstream_connections{{upstream=\"up\",endpoint=\"http://{}\"}}", upstream.address);
    gateway.metric_becomes(&metric, 1.0);
    gateway.metric_becomes(&metric, 0.0);
    assert_eq!(gateway.get("/").status, 200);
    assert_eq!(upstream.connections(), [0, 1]);
}

#[test]
fn requests_that_the_upstream_did_not_take_are_sent_again_whole() {
    for how in ["refused", "goaway"] {
        let tries = Arc::new(AtomicUsize::new(0));
        let its = Arc::clone(&tries);
        let upstream = raw_upstream(how, its);
        let gateway = Gateway::new(&h2_route(""), &[upstream]);
        let answer = gateway.request("POST", "/order", &[("x-order", "7")], "one book");
        assert_eq!((answer.status, answer.text().as_str()), (200, "7:one book"), "{how}");
        assert_eq!(tries.load(SeqCst), 2);
    }
}

/// An HTTP/2 upstream that does not take its first request: a reset with REFUSED_STREAM, or a GOAWAY that says that nothing was processed.
fn raw_upstream(how: &'static str, tries: Arc<AtomicUsize>) -> std::net::SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            loop {
                let Ok((mut socket, _)) = listener.accept().await else { return };
                let tries = Arc::clone(&tries);
                tokio::spawn(async move {
                    if how == "goaway" && tries.load(SeqCst) == 0 {
                        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
                        socket.write_all(&frame(4, 0, 0, b"")).await.unwrap();
                        let mut bytes = Vec::new();
                        while !bytes.windows(8).any(|window| window == b"one book") {
                            if socket.read_buf(&mut bytes).await.unwrap() == 0 {
                                return;
                            }
                        }
                        tries.fetch_add(1, SeqCst);
                        socket.write_all(&frame(7, 0, 0, &[0; 8])).await.unwrap();
                        let _ = socket.read_buf(&mut bytes).await;
                        return;
                    }
                    let mut connection = ::h2::server::handshake(socket).await.unwrap();
                    while let Some(Ok((request, mut respond))) = connection.accept().await {
                        if tries.fetch_add(1, SeqCst) == 0 {
                            respond.send_reset(Reason::REFUSED_STREAM);
                            continue;
                        }
                        tokio::spawn(async move {
                            let order = request.headers()["x-order"].to_str().unwrap().to_owned();
                            let body = drain(request.into_body()).await;
                            let mut stream = respond.send_response(http::Response::new(()), false).unwrap();
                            stream.send_data(Bytes::from(format!("{order}:{}", String::from_utf8(body).unwrap())), true).unwrap();
                        });
                    }
                });
            }
        });
    });
    address
}

#[test]
fn an_upstream_that_says_goodbye_finishes_what_it_has_and_gets_nothing_more() {
    let (go, left) = (Gate::new(), Gate::new());
    let (wait, over) = (go.clone(), left.clone());
    let served = Arc::new(std::sync::Mutex::new(Vec::new()));
    let its = Arc::clone(&served);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            for index in 0.. {
                let Ok((socket, _)) = listener.accept().await else { return };
                let (its, wait, over) = (Arc::clone(&its), wait.clone(), over.clone());
                tokio::spawn(async move {
                    let mut connection = ::h2::server::handshake(socket).await.unwrap();
                    while let Some(Ok((request, mut respond))) = connection.accept().await {
                        its.lock().unwrap().push((index, request.uri().path().to_owned()));
                        if index == 0 {
                            connection.graceful_shutdown();
                        }
                        let wait = wait.clone();
                        tokio::spawn(async move {
                            if index == 0 {
                                tokio::task::spawn_blocking(move || wait.pass()).await.unwrap();
                            }
                            let mut stream = respond.send_response(http::Response::new(()), false).unwrap();
                            stream.send_data(Bytes::from(format!("from {index}")), true).unwrap();
                        });
                    }
                    if index == 0 {
                        over.open();
                    }
                });
            }
        });
    });
    let gateway = Gateway::new(&h2_route(""), &[address]);
    let mut first = gateway.connect();
    first.send(get("/first"));
    eventually("the first request is upstream", || (served.lock().unwrap().len() == 1).then_some(()));
    // A request that crosses the GOAWAY may still be taken by the old connection; soon all go to the new one.
    eventually("a new connection serves", || {
        let mut next = gateway.connect();
        next.send(client::request("POST", "/next", &[], ""));
        let moved = eventually("it is upstream", || served.lock().unwrap().iter().rev().find(|(_, path)| path == "/next").cloned());
        (moved.0 == 1).then(|| assert_eq!(next.read().text(), "from 1"))
    });
    assert_eq!(gateway.request("POST", "/more", &[], "x").text(), "from 1");
    go.open();
    assert_eq!(first.read().text(), "from 0");
    left.pass();
}

#[test]
fn other_resets_are_not_repeated() {
    let upstream = H2Upstream::serve(|(_, mut respond)| async move { respond.send_reset(Reason::INTERNAL_ERROR) });
    let gateway = Gateway::new(&h2_route(""), &[upstream.address]);
    gateway.request("POST", "/", &[], "x").refused(502, "upstream_reset");
    assert_eq!(upstream.requests().len(), 1);
}

#[test]
fn an_upstream_that_only_speaks_http1_cannot_be_reached_by_http2() {
    let upstream = Upstream::text("hi");
    let gateway = Gateway::new(&h2_route(", connect_timeout: 1s"), &[upstream.address]);
    let answer = gateway.get("/");
    assert!(answer.status == 502 || answer.status == 504, "{answer:?}");
    assert_eq!(answer.end, End::Framed);
}
