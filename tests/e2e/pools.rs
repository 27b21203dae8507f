//! Connections to endpoints: kept, limited, waited for, closed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crate::support::client::{get, request};
use crate::support::h2::{self, H2Upstream};
use crate::support::{Gate, Gateway, Then, Upstream, block_on, eventually};

fn limited(pool: &str, more: &str) -> String {
    format!(
        "upstreams:\n  up: {{ endpoints: [http://@0], connect_timeout: 500ms, pool: {pool}{more} }}\nroutes:\n  - {{ name: all, match: /*, upstream: up }}\n"
    )
}

/// What `/upstreams` says about the only endpoint.
fn endpoint(gateway: &Gateway) -> serde_json::Value {
    gateway.admin_get("/upstreams").json()["upstreams"][0]["endpoints"][0].clone()
}

#[test]
fn one_connection_serves_one_client_for_ever() {
    let upstream = Upstream::text("ok");
    let gateway = Gateway::to(upstream.address, "");
    let mut raw = gateway.connect();
    for _ in 0..200 {
        assert_eq!(raw.ask(get("/")).status, 200);
    }
    assert_eq!(upstream.connections(), 1);
    let seen = endpoint(&gateway);
    assert_eq!(
        (seen["connections"]["open"].as_u64(), seen["connections"]["idle"].as_u64(), seen["in_flight"].as_u64()),
        (Some(1), Some(1), Some(0))
    );
}

#[test]
fn never_more_connections_than_allowed_and_who_waits_is_served() {
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (at_once, highest) = (Arc::clone(&now), Arc::clone(&most));
    let upstream = Upstream::serve(move |_, conn| {
        highest.fetch_max(at_once.fetch_add(1, SeqCst) + 1, SeqCst);
        std::thread::sleep(Duration::from_millis(2));
        at_once.fetch_sub(1, SeqCst);
        conn.ok("ok")
    });
    let gateway = Gateway::new(&limited("{ max_connections: 3 }", ""), &[upstream.address]);
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                let mut raw = gateway.connect();
                for _ in 0..20 {
                    assert_eq!(raw.ask(get("/")).status, 200);
                }
            });
        }
    });
    assert!(most.load(SeqCst) <= 3, "{most:?} requests at once");
    eventually("as many connections as allowed", || (endpoint(&gateway)["connections"]["open"].as_u64().unwrap() <= 3).then_some(()));
}

#[test]
fn waiting_for_a_full_endpoint_beside_one_that_is_out_lets_the_worker_work() {
    let gate = Gate::new();
    let pass = gate.clone();
    let upstream = Upstream::serve(move |_, conn| {
        pass.pass();
        conn.ok("ok")
    });
    let gateway = Gateway::new(
        "server: { workers: 1 }
upstreams:
  up:
    endpoints: [{ url: 'http://@0', weight: 1 }, { url: 'http://127.0.0.1:1', weight: 0 }]
    balance: weighted
    connect_timeout: 3s
    panic_threshold: 0%
    pool: { max_connections: 1 }
routes:
  - { match: /*, upstream: up }
  - { match: /status, respond: { status: 200 } }
",
        &[upstream.address],
    );
    let (mut first, mut second) = (gateway.connect(), gateway.connect());
    first.send(get("/first"));
    eventually("the first is in", || (upstream.count() == 1).then_some(()));
    second.send(get("/second"));
    let started = Instant::now();
    assert_eq!(gateway.get("/status").status, 200);
    assert!(started.elapsed() < Duration::from_secs(2), "the worker was busy waiting");
    gate.open();
    assert_eq!((first.read().status, second.read().status), (200, 200));
}

#[test]
fn who_waits_too_long_is_told_that_all_are_in_use() {
    let gate = Gate::new();
    let pass = gate.clone();
    let upstream = Upstream::serve(move |_, conn| {
        pass.pass();
        conn.ok("ok")
    });
    let gateway = Gateway::new(&limited("{ max_connections: 1 }", ""), &[upstream.address]);
    let mut first = gateway.connect();
    first.send(get("/first"));
    eventually("the first is in", || (upstream.count() == 1).then_some(()));
    let started = Instant::now();
    let answer = gateway.get("/second");
    answer.refused(503, "overloaded");
    assert_eq!(answer.header("retry-after"), Some("1"));
    let took = started.elapsed();
    assert!((Duration::from_millis(450)..Duration::from_secs(2)).contains(&took), "{took:?}");
    gate.open();
    assert_eq!(first.read().status, 200);
    assert_eq!(gateway.get("/third").status, 200);
    assert_eq!(upstream.count(), 2, "the second was never sent");
}

#[test]
fn a_client_that_stops_waiting_leaves_no_trace() {
    let gate = Gate::new();
    let pass = gate.clone();
    let upstream = Upstream::serve(move |_, conn| {
        pass.pass();
        conn.ok("ok")
    });
    let gateway = Gateway::new(&limited("{ max_connections: 1 }", ""), &[upstream.address]);
    let mut first = gateway.connect();
    first.send(get("/first"));
    eventually("the first is in", || (upstream.count() == 1).then_some(()));
    for _ in 0..10 {
        let mut waits = gateway.connect();
        waits.send(get("/gone"));
        std::thread::sleep(Duration::from_millis(5));
        drop(waits);
    }
    gateway.metric_becomes("gateway_requests_in_flight", 1.0);
    gate.open();
    assert_eq!(first.read().status, 200);
    assert_eq!(gateway.get("/last").status, 200);
    assert_eq!(upstream.count(), 2);
    assert_eq!(endpoint(&gateway)["in_flight"], 0);
}

#[test]
fn a_full_endpoint_is_passed_over() {
    let gate = Gate::new();
    let pass = gate.clone();
    let busy = Upstream::serve(move |_, conn| {
        pass.pass();
        conn.ok("busy")
    });
    let free = Upstream::text("free");
    let yaml = "
        upstreams: { up: { endpoints: [http://@0, http://@1], pool: { max_connections: 1 } } }
        routes: [{ match: /*, upstream: up }]";
    let gateway = Gateway::new(yaml, &[busy.address, free.address]);
    let mut raws: Vec<_> = (0..2).map(|_| gateway.connect()).collect();
    raws.iter_mut().for_each(|raw| {
        raw.send(get("/"));
    });
    eventually("one is stuck", || (busy.count() == 1).then_some(()));
    for _ in 0..6 {
        assert_eq!(gateway.get("/").text(), "free");
    }
    gate.open();
}

#[test]
fn idle_connections_are_closed_after_their_time() {
    let upstream = Upstream::text("ok");
    let gateway = Gateway::new(&limited("{ idle_timeout: 300ms }", ""), &[upstream.address]);
    assert_eq!(gateway.get("/").status, 200);
    assert_eq!(upstream.open(), 1);
    eventually("the idle connection is closed", || (upstream.open() == 0).then_some(()));
    assert_eq!(gateway.get("/").status, 200);
    assert_eq!(upstream.connections(), 2);
}

#[test]
fn no_more_idle_connections_are_kept_than_asked_for() {
    let gate = Gate::new();
    let pass = gate.clone();
    let upstream = Upstream::serve(move |_, conn| {
        pass.pass();
        conn.ok("ok")
    });
    let gateway = Gateway::new(&limited("{ max_idle: 2 }", ""), &[upstream.address]);
    let mut raws: Vec<_> = (0..8).map(|_| gateway.connect()).collect();
    raws.iter_mut().for_each(|raw| {
        raw.send(get("/"));
    });
    eventually("all are in", || (upstream.count() == 8).then_some(()));
    gate.open();
    raws.iter_mut().for_each(|raw| assert_eq!(raw.read().status, 200));
    eventually("at most two are kept", || (upstream.open() <= 2).then_some(()));
}

#[test]
fn the_upstreams_latest_word_on_keep_alive_counts() {
    let upstream = Upstream::serve(|request, conn| {
        let seconds = if request.target == "/short" { 1 } else { 60 };
        conn.answer(200, &format!("keep-alive: timeout={seconds}\r\n"), "ok")
    });
    let gateway = Gateway::to(upstream.address, "");
    let mut raw = gateway.connect();
    assert_eq!((raw.ask(get("/short")).status, raw.ask(get("/long")).status), (200, 200));
    // Longer than the first word allowed, with several looks at idle connections in between.
    std::thread::sleep(Duration::from_millis(1_500));
    assert_eq!((raw.ask(get("/long")).status, upstream.connections()), (200, 1));
}

#[test]
fn the_upstreams_keep_alive_is_undercut() {
    let upstream = Upstream::serve(|_, conn| conn.answer(200, "keep-alive: timeout=1\r\n", "ok"));
    let gateway = Gateway::to(upstream.address, "");
    assert_eq!(gateway.get("/").status, 200);
    let started = Instant::now();
    eventually("the idle connection is closed", || (upstream.open() == 0).then_some(()));
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
}

#[test]
fn a_connection_is_not_reused_after_connection_close_or_http_1_0() {
    for head in ["HTTP/1.1 200 OK\r\nconnection: close\r\n", "HTTP/1.0 200 OK\r\nconnection: keep-alive\r\n", "HTTP/1.0 200 OK\r\n"] {
        let upstream = Upstream::bytes(format!("{head}content-length: 2\r\n\r\nok"), Then::Keep);
        let gateway = Gateway::to(upstream.address, "");
        for round in 1..=3 {
            assert_eq!(gateway.get("/").text(), "ok");
            assert_eq!(upstream.connections(), round, "{head}");
        }
        eventually("they are closed", || (upstream.open() == 0).then_some(()));
    }
}

#[test]
fn an_answer_before_the_upload_closes_the_connection() {
    // 413 at once, then nothing is read: the upload can never end.
    let upstream = Upstream::raw(|conn| {
        let _ = conn.wire.request_head();
        conn.write("HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n");
        std::thread::sleep(Duration::from_millis(200));
        conn.wait_end();
        Then::Close
    });
    let gateway = Gateway::to(upstream.address, "");
    let mut raw = gateway.connect();
    raw.send("PUT / HTTP/1.1\r\nHost: site\r\nContent-Length: 100000000\r\n\r\nstart");
    assert_eq!(raw.read_to_head().status, 413);
    eventually("the connection is given up", || (endpoint(&gateway)["connections"]["open"] == 0).then_some(()));
    eventually("the upstream is let go", || (upstream.open() == 0).then_some(()));
}

#[test]
fn a_client_that_leaves_closes_its_upstream_connection() {
    let upstream = Upstream::serve(|_, conn| {
        conn.write("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nstart");
        conn.wait_end();
        Then::Close
    });
    let gateway = Gateway::to(upstream.address, "");
    let mut raw = gateway.connect();
    raw.send(get("/gone"));
    raw.wire.answer_head();
    drop(raw);
    eventually("the upstream connection is closed", || (upstream.open() == 0).then_some(()));
    eventually("nothing is counted", || {
        (endpoint(&gateway)["connections"]["open"] == 0 && endpoint(&gateway)["in_flight"] == 0).then_some(())
    });
    assert_eq!(gateway.logged("/gone")["status"], 499);
}

#[test]
fn counts_return_to_zero_after_every_kind_of_failure() {
    let upstream = Upstream::serve(|request, conn| match request.target.as_str() {
        "/close" => Then::Close,
        "/reset" => Then::Reset,
        "/garbage" => {
            conn.write("nonsense\r\n\r\n");
            Then::Close
        }
        "/cut" => {
            conn.write("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhi");
            Then::Close
        }
        "/slow" => {
            conn.wait_end();
            Then::Close
        }
        _ => conn.ok("ok"),
    });
    let gateway = Gateway::new(
        &limited("{ max_connections: 2 }", ", outlier: off").replace("upstream: up }", "upstream: up, timeout: 150ms }"),
        &[upstream.address],
    );
    for _ in 0..4 {
        for path in ["/close", "/reset", "/garbage", "/cut", "/slow", "/ok"] {
            let mut raw = gateway.connect();
            raw.send(request("POST", path, &[("connection", "close")], "x"));
            // A reset may overtake what was sent before it; what is counted afterwards is the point.
            raw.rest();
        }
    }
    eventually("nothing is left", || {
        let seen = endpoint(&gateway);
        // One of each worker may have been kept, but none that is in use.
        let connections = &seen["connections"];
        (seen["in_flight"] == 0 && connections["open"] == connections["idle"] && connections["open"].as_u64()? <= 2).then_some(())
    });
    assert_eq!(gateway.get("/ok").status, 200);
    // One, or two where the request came in on the other worker.
    let open = endpoint(&gateway)["connections"]["open"].as_f64().unwrap();
    assert!((1.0..=2.0).contains(&open), "{open}");
    gateway.metric_becomes(&format!("gateway_upstream_connections{{upstream=\"up\",endpoint=\"http://{}\"}}", upstream.address), open);
}

#[test]
fn http2_streams_share_a_connection_between_workers_when_no_more_may_be_opened() {
    block_on(async {
        let upstream = H2Upstream::serve(|stream| async move {
            tokio::time::sleep(Duration::from_millis(5)).await;
            h2::reply(stream, 200, &[], b"ok", &[]).await;
        });
        let gateway = Gateway::new(&limited("{ max_connections: 1 }", ", protocol: h2"), &[upstream.address]);
        let address = gateway.address();
        let tasks: Vec<_> = (0..8)
            .map(|_| {
                tokio::task::spawn_blocking(move || {
                    let mut raw = crate::support::Raw::connect(address);
                    for _ in 0..10 {
                        assert_eq!(raw.ask(get("/")).status, 200);
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert!(upstream.connections().iter().all(|connection| *connection == 0), "{:?}", upstream.connections());
    });
}

#[test]
fn an_idle_http2_connection_is_closed_after_its_time() {
    block_on(async {
        let upstream = H2Upstream::serve(|stream| h2::reply(stream, 200, &[], b"ok", &[]));
        let gateway = Gateway::new(&limited("{ idle_timeout: 200ms }", ", protocol: h2"), &[upstream.address]);
        assert_eq!(gateway.get("/").status, 200);
        assert_eq!(endpoint(&gateway)["connections"]["open"], 1);
        eventually("the idle connection is closed", || (endpoint(&gateway)["connections"]["open"] == 0).then_some(()));
        assert_eq!(gateway.get("/").status, 200);
        assert_eq!(upstream.connections(), [0, 1]);
    });
}

#[test]
fn more_streams_than_the_upstream_allows_take_another_connection() {
    block_on(async {
        let gate = Arc::new(tokio::sync::Semaphore::new(0));
        let held = Arc::clone(&gate);
        let mut builder = ::h2::server::Builder::new();
        builder.max_concurrent_streams(2);
        let upstream = H2Upstream::with(None, builder, move |stream| {
            let held = Arc::clone(&held);
            async move {
                if stream.0.uri().path() == "/wait" {
                    held.acquire().await.unwrap().forget();
                }
                h2::reply(stream, 200, &[], b"ok", &[]).await;
            }
        });
        let gateway = Gateway::new(&limited("{ max_connections: 64 }", ", protocol: h2"), &[upstream.address]);
        // The upstream's limit is known after the first answers, on both workers.
        for _ in 0..8 {
            assert_eq!(gateway.get("/").status, 200);
        }
        let mut raws: Vec<_> = (0..12).map(|_| gateway.connect()).collect();
        raws.iter_mut().for_each(|raw| {
            raw.send(get("/wait"));
        });
        eventually("all streams are open", || {
            (upstream.requests().iter().filter(|parts| parts.uri.path() == "/wait").count() == 12).then_some(())
        });
        gate.add_permits(12);
        raws.iter_mut().for_each(|raw| assert_eq!(raw.read().status, 200));
    });
}

#[test]
fn a_tunnel_waits_for_a_connection_like_any_request() {
    let upstream = Upstream::serve(|request, conn| {
        if request.has("upgrade") {
            // An ordinary answer: whether it may be a tunnel is asked elsewhere.
            return conn.answer(403, "", "no");
        }
        std::thread::sleep(Duration::from_millis(150));
        conn.ok("ok")
    });
    let gateway = Gateway::new(&limited("{ max_connections: 1 }", ""), &[upstream.address]);
    let mut first = gateway.connect();
    first.send(get("/"));
    eventually("the first is in", || (upstream.count() == 1).then_some(()));
    let handshake = [
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    let answer = gateway.request("GET", "/ws", &handshake, "");
    assert_eq!((answer.status, answer.text().as_str()), (403, "no"));
    assert_eq!(first.read().status, 200);
}
