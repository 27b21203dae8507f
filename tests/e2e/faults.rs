//! Upstreams that fail in every way they know, alone and by the half, and clients that should notice as little as possible.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crate::support::client::{get, request};
use crate::support::upstream::Unreachable;
use crate::support::{End, Gateway, Refused, Then, Upstream, eventually};

const FIVE: &str = "
    upstreams:
      up:
        endpoints: [http://@0, http://@1, http://@2, http://@3, http://@4]
        connect_timeout: 200ms
        outlier: { errors: 3, eject_for: 1m }
    routes:
      - { name: all, match: /*, upstream: up, timeout: 5s, retry: { attempts: 3, when: [connect, reset, timeout, 503], per_try_timeout: 300ms, backoff: 1ms } }";

fn reason_of(upstream: &Upstream) -> (u16, String) {
    let gateway = Gateway::to(upstream.address, "timeout: 300ms\nretry: off");
    let answer = gateway.get("/");
    (answer.status, answer.reason())
}

#[test]
fn every_fault_has_its_own_answer() {
    let accept_and_close = Upstream::raw(|_| Then::Close);
    let accept_and_reset = Upstream::raw(|_| Then::Reset);
    let stall = Upstream::raw(|conn| {
        conn.wait_end();
        Then::Close
    });
    for (upstream, status, reason) in [
        (accept_and_close, 502, "upstream_reset"),
        (accept_and_reset, 502, "upstream_reset"),
        (stall, 504, "upstream_timeout"),
        (Upstream::serve(|_, _| Then::Close), 502, "upstream_reset"),
        (Upstream::serve(|_, _| Then::Reset), 502, "upstream_reset"),
        (Upstream::bytes("\x16\x03\x01\x02", Then::Close), 502, "upstream_protocol_error"),
        (Upstream::bytes("SSH-2.0-OpenSSH_9.9\r\n", Then::Close), 502, "upstream_protocol_error"),
        (Upstream::bytes("HTTP/1.1 200 OK\r\ncontent-le", Then::Close), 502, "upstream_reset"),
    ] {
        let got = reason_of(&upstream);
        assert_eq!((got.0, got.1.as_str()), (status, reason));
    }
    let refused = Refused::new();
    Gateway::to(refused.address, "retry: off").get("/").refused(502, "upstream_connect_failed");
    let silent = Unreachable::new();
    let yaml = "
        upstreams: { up: { endpoints: [http://@0], connect_timeout: 100ms } }
        routes: [{ match: /*, upstream: up, retry: off }]";
    Gateway::new(yaml, &[silent.address]).get("/").refused(504, "upstream_connect_timeout");
}

#[test]
fn slow_bodies_come_through_and_stalled_ones_are_cut() {
    let upstream = Upstream::serve(|request, conn| {
        conn.write("HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n");
        for _ in 0..if request.target == "/slow" { 20 } else { 5 } {
            conn.write("x");
            std::thread::sleep(Duration::from_millis(15));
        }
        if request.target == "/stalled" {
            conn.wait_end();
            return Then::Close;
        }
        Then::Keep
    });
    let gateway = Gateway::to(upstream.address, "timeout: 100ms\nidle_timeout: 200ms");
    let slow = gateway.get("/slow");
    assert_eq!((slow.body.len(), slow.end), (20, End::Framed));
    let mut raw = gateway.connect();
    raw.send(get("/stalled"));
    assert_eq!(raw.wire.answer_head().status, 200);
    let (body, _) = raw.rest();
    assert!(body.len() < 20, "{}", body.len());
    assert_eq!(gateway.logged("/stalled")["reason"], "idle_timeout");
    eventually("the stalled upstream is let go", || (upstream.open() <= 1).then_some(()));
}

#[test]
fn half_of_five_endpoints_dead_costs_no_request() {
    let refused = Refused::new();
    let resets = Upstream::serve(|_, _| Then::Reset);
    let good: Vec<_> = (0..3).map(|_| Upstream::text("ok")).collect();
    let gateway = Gateway::new(FIVE, &[refused.address, resets.address, good[0].address, good[1].address, good[2].address]);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut raw = gateway.connect();
                for _ in 0..50 {
                    assert_eq!(raw.ask(get("/")).text(), "ok");
                }
            });
        }
    });
    // Both were taken out after few failures, at most two of five.
    let upstreams = gateway.admin_get("/upstreams").json();
    let states: Vec<&str> =
        upstreams["upstreams"][0]["endpoints"].as_array().unwrap().iter().map(|e| e["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["ejected", "ejected", "healthy", "healthy", "healthy"]);
    assert!(resets.count() < 20, "{}", resets.count());
    for address in [refused.address, resets.address] {
        gateway.metric_becomes(&format!("gateway_upstream_ejections_total{{upstream=\"up\",endpoint=\"http://{address}\"}}"), 1.0);
        gateway.metric_becomes(&format!("gateway_endpoint_healthy{{upstream=\"up\",endpoint=\"http://{address}\"}}"), 0.0);
    }
    assert!(good.iter().all(|upstream| upstream.count() > 30));
}

#[test]
fn all_dead_answers_fast_and_recovers_at_once() {
    let mut upstreams: Vec<Upstream> = (0..5).map(|_| Upstream::text("ok")).collect();
    let addresses: Vec<_> = upstreams.iter().map(|upstream| upstream.address).collect();
    let gateway = Gateway::new(FIVE, &addresses);
    assert_eq!(gateway.get("/").status, 200);
    upstreams.iter_mut().for_each(Upstream::stop);
    let started = Instant::now();
    for _ in 0..20 {
        gateway.get("/").refused(502, "upstream_connect_failed");
    }
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    // Ejection never takes more than half, so somebody is always asked, and the first answer is seen.
    let _back: Vec<Upstream> = addresses.iter().map(|address| Upstream::serve_on(*address, |_, conn| conn.ok("back"))).collect();
    for _ in 0..20 {
        assert_eq!(gateway.get("/").text(), "back");
    }
}

#[test]
fn flapping_endpoints_cost_no_idempotent_request() {
    let up = Arc::new(AtomicUsize::new(0));
    let flapping: Vec<Upstream> = (0..2)
        .map(|index| {
            let up = Arc::clone(&up);
            Upstream::serve(move |_, conn| match up.load(SeqCst) % 2 == index {
                true => conn.ok("ok"),
                false => Then::Reset,
            })
        })
        .collect();
    let steady = Upstream::text("ok");
    let yaml = "
        upstreams: { up: { endpoints: [http://@0, http://@1, http://@2], outlier: { errors: 3, eject_for: 200ms } } }
        routes: [{ match: /*, upstream: up, retry: { attempts: 2, backoff: 1ms, budget: 100% } }]";
    let gateway = Gateway::new(yaml, &[flapping[0].address, flapping[1].address, steady.address]);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..20 {
                std::thread::sleep(Duration::from_millis(40));
                up.fetch_add(1, SeqCst);
            }
            over.store(true, SeqCst);
        });
        for _ in 0..3 {
            scope.spawn(|| {
                let mut raw = gateway.connect();
                while !over.load(SeqCst) {
                    assert_eq!(raw.ask(get("/")).status, 200);
                }
            });
        }
    });
    assert!(flapping.iter().all(|upstream| upstream.count() > 5));
}

/// Four clients ask without a pause, in all idempotent ways, while `restart` does its work; what `retry` is by default must be enough.
fn unnoticed(gateway: &Gateway, restart: impl FnOnce()) {
    let (over, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut raw = gateway.connect();
                for (method, body) in [("GET", ""), ("PUT", "body"), ("DELETE", "")].into_iter().cycle() {
                    if over.load(SeqCst) {
                        return;
                    }
                    let answer = raw.ask(request(method, "/", &[], body));
                    assert_eq!(answer.status, 200, "{method}: {answer:?}");
                    served.fetch_add(1, SeqCst);
                }
            });
        }
        restart();
        over.store(true, SeqCst);
    });
    assert!(served.load(SeqCst) > 100, "{served:?}");
}

/// Stops it, lets connections be refused for a while, and starts it again.
fn restart(upstream: &mut Upstream, gap: Duration) {
    let address = upstream.address;
    upstream.stop();
    std::thread::sleep(gap);
    *upstream = Upstream::serve_on(address, |_, conn| conn.ok("ok"));
    eventually("the restarted one serves again", || (upstream.count() > 10).then_some(()));
}

#[test]
fn one_of_two_backends_restarted_under_load_costs_no_idempotent_request() {
    let (steady, mut restarted) = (Upstream::text("ok"), Upstream::text("ok"));
    let yaml = "
        upstreams: { up: { endpoints: [http://@0, http://@1], outlier: { eject_for: 100ms } } }
        routes: [{ match: /*, upstream: up }]";
    let gateway = Gateway::new(yaml, &[steady.address, restarted.address]);
    unnoticed(&gateway, || {
        for _ in 0..4 {
            std::thread::sleep(Duration::from_millis(80));
            restart(&mut restarted, Duration::from_millis(60));
        }
    });
}

#[test]
fn the_only_backend_restarted_under_load_costs_no_idempotent_request() {
    for gap in [1, 100, 400] {
        let mut upstream = Upstream::text("ok");
        let gateway = Gateway::to(upstream.address, "");
        unnoticed(&gateway, || {
            for _ in 0..2 {
                std::thread::sleep(Duration::from_millis(80));
                restart(&mut upstream, Duration::from_millis(gap));
            }
        });
    }
}

#[test]
fn the_only_backend_is_waited_for_just_once_and_only_if_it_was_there() {
    let yaml = "
        upstreams: { up: { endpoints: [http://@0], connect_timeout: 1s } }
        routes: [{ match: /*, upstream: up }, { match: /once, upstream: up, retry: off }]";
    let refused = Refused::new();
    let gateway = Gateway::new(yaml, &[refused.address]);
    let ask = |gateway: &Gateway, path: &str| {
        let started = Instant::now();
        gateway.get(path).refused(502, "upstream_connect_failed");
        started.elapsed()
    };
    let soon = Duration::from_millis(700);
    assert!(ask(&gateway, "/") < soon, "it was never there");
    let mut upstream = Upstream::text("ok");
    let gateway = Gateway::new(yaml, &[upstream.address]);
    assert_eq!(gateway.get("/").text(), "ok");
    upstream.stop();
    assert!(ask(&gateway, "/once") < soon, "without retries there is no waiting");
    let (first, later) = (ask(&gateway, "/"), ask(&gateway, "/"));
    assert!(first >= soon && later < soon, "{first:?}, then {later:?}");
    let endpoint = format!("upstream=\"up\",endpoint=\"http://{}\"", upstream.address);
    // However often it asked, an attempt is one attempt: 1 + 2 + 2.
    gateway.metric_becomes(&format!("gateway_upstream_requests_total{{{endpoint},status=\"upstream_connect_failed\"}}"), 5.0);
    gateway.metric_becomes("gateway_retries_total{upstream=\"up\"}", 2.0);
}

#[test]
fn a_burst_of_requests_asks_for_the_only_backend_one_at_a_time() {
    let mut upstream = Upstream::text("ok");
    let gateway = Gateway::to(upstream.address, "");
    let address = upstream.address;
    assert_eq!(gateway.get("/").text(), "ok");
    upstream.stop();
    let mut raws: Vec<_> = (0..100).map(|_| gateway.connect()).collect();
    raws.iter_mut().for_each(|raw| {
        raw.send(request("POST", "/", &[], "x"));
    });
    std::thread::sleep(Duration::from_millis(300));
    let _back = Upstream::serve_on(address, |_, conn| conn.ok("back"));
    raws.iter_mut().for_each(|raw| assert_eq!(raw.read().text(), "back"));
    // Not one of them needed a retry, and the budget of 30 for little traffic was enough for all.
    gateway.metric_becomes("gateway_retries_total{upstream=\"up\"}", 0.0);
    gateway.metric_becomes("gateway_retries_denied_total{upstream=\"up\"}", 0.0);
}

#[test]
fn a_websocket_waits_for_the_only_backend_too() {
    let mut upstream = Upstream::text("ok");
    let gateway = Gateway::to(upstream.address, "");
    let address = upstream.address;
    assert_eq!(gateway.get("/").text(), "ok");
    upstream.stop();
    let mut raw = gateway.connect();
    raw.send(request(
        "GET",
        "/",
        &[
            ("connection", "upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ],
        "",
    ));
    std::thread::sleep(Duration::from_millis(200));
    let _back = Upstream::serve_on(address, |request, conn| {
        assert_eq!(request.header("upgrade"), Some("websocket"));
        conn.answer(426, "", "not here")
    });
    let answer = raw.read();
    assert_eq!((answer.status, answer.text().as_str()), (426, "not here"));
}

#[test]
fn a_backend_that_comes_back_on_the_same_connections_port_is_used_without_an_error() {
    // A single endpoint: kept connections are dead, fresh ones work.
    let mut upstream = Upstream::text("first");
    let address = upstream.address;
    let gateway = Gateway::to(address, "retry: off");
    let mut raws: Vec<_> = (0..8).map(|_| gateway.connect()).collect();
    raws.iter_mut().for_each(|raw| assert_eq!(raw.ask(get("/")).text(), "first"));
    upstream.stop();
    let _second = Upstream::serve_on(address, |_, conn| conn.ok("second"));
    raws.iter_mut().for_each(|raw| assert_eq!(raw.ask(get("/")).text(), "second"));
}

#[test]
fn a_500_takes_no_endpoint_out() {
    let upstreams: Vec<_> = (0..2).map(|_| Upstream::serve(|_, conn| conn.answer(500, "", "oops"))).collect();
    let yaml = "
        upstreams: { up: { endpoints: [http://@0, http://@1], outlier: { errors: 1, eject_for: 1m } } }
        routes: [{ match: /*, upstream: up }]";
    let gateway = Gateway::new(yaml, &[upstreams[0].address, upstreams[1].address]);
    for _ in 0..10 {
        assert_eq!(gateway.get("/").status, 500);
    }
    assert_eq!((upstreams[0].count(), upstreams[1].count()), (5, 5));
}

#[test]
fn too_many_interim_responses_are_a_protocol_error() {
    let upstream = Upstream::serve(|request, conn| {
        let count = if request.target == "/many" { 10_000 } else { 16 };
        for _ in 0..count {
            if !conn.write("HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n") {
                return Then::Close;
            }
        }
        conn.ok("ok")
    });
    let gateway = Gateway::to(upstream.address, "");
    assert_eq!(gateway.get("/few").text(), "ok");
    gateway.get("/many").refused(502, "upstream_protocol_error");
    assert_eq!(gateway.get("/few").text(), "ok");
}

#[test]
fn an_endpoint_is_ejected_and_returns() {
    let broken = Arc::new(AtomicBool::new(true));
    let state = Arc::clone(&broken);
    let flaky = Upstream::serve(move |_, conn| if state.load(SeqCst) { conn.answer(503, "", "") } else { conn.ok("flaky") });
    let good = Upstream::text("good");
    let yaml = "
        upstreams: { up: { endpoints: [http://@0, http://@1], outlier: { errors: 3, eject_for: 500ms } } }
        routes: [{ match: /*, upstream: up, retry: off }]";
    let gateway = Gateway::new(yaml, &[flaky.address, good.address]);
    let mut raw = gateway.connect();
    let failed = (0..20).filter(|_| raw.ask(get("/")).status == 503).count();
    assert_eq!(failed, 3, "three in a row, then it is out");
    let endpoint = gateway.admin_get("/upstreams").json()["upstreams"][0]["endpoints"][0].clone();
    assert_eq!(endpoint["state"], "ejected");
    assert!(endpoint["ejected_until"].is_string());
    assert_eq!((endpoint["why"].as_str(), endpoint["ejections"].as_u64()), (Some("3 failed attempts in a row"), Some(1)));
    broken.store(false, SeqCst);
    eventually("it is back", || (raw.ask(get("/")).text() == "flaky").then_some(()));
    let endpoint = gateway.admin_get("/upstreams").json()["upstreams"][0]["endpoints"][0].clone();
    assert_eq!((endpoint["state"].as_str(), endpoint["consecutive_errors"].as_u64()), (Some("healthy"), Some(0)));
    assert_eq!((&endpoint["why"], endpoint["ejections"].as_u64()), (&serde_json::Value::Null, Some(1)));
    gateway.metric_becomes(&format!("gateway_upstream_ejections_total{{upstream=\"up\",endpoint=\"http://{}\"}}", flaky.address), 1.0);
}

#[test]
fn the_last_endpoint_is_never_ejected() {
    let upstream = Upstream::serve(|_, conn| conn.answer(503, "", ""));
    let yaml = "
        upstreams: { up: { endpoints: [http://@0], outlier: { errors: 1, eject_for: 1m, max_ejected: 100% } } }
        routes: [{ match: /*, upstream: up, retry: off }]";
    let gateway = Gateway::new(yaml, &[upstream.address]);
    for _ in 0..5 {
        assert_eq!(gateway.get("/").status, 503);
    }
    assert_eq!(upstream.count(), 5);
}
