//! `breaker: adaptive`: what cannot be served is not sent, and what can be again is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crate::support::client::get;
use crate::support::{Gateway, Upstream};

#[test]
fn an_overloaded_upstream_is_spared_and_gets_its_traffic_back() {
    let broken = Arc::new(AtomicBool::new(true));
    let state = Arc::clone(&broken);
    let upstream = Upstream::serve(move |_, conn| if state.load(SeqCst) { conn.answer(503, "", "mine") } else { conn.ok("ok") });
    let yaml = "
        upstreams: { up: { endpoints: [http://@0], breaker: adaptive }, other: { endpoints: [http://@1], breaker: adaptive } }
        routes: [{ match: /*, upstream: up, retry: off }, { match: /other, upstream: other, retry: off }]";
    let other = Upstream::text("other");
    let gateway = Gateway::new(yaml, &[upstream.address, other.address]);
    let mut raw = gateway.connect();
    let answers: Vec<_> = (0..300).map(|_| raw.ask(get("/"))).collect();
    let dropped: Vec<_> = answers.iter().filter(|answer| answer.header("content-type") == Some("application/problem+json")).collect();
    assert!(dropped.len() > 150, "{} of 300 were dropped", dropped.len());
    dropped[0].refused(503, "overloaded");
    assert_eq!(dropped[0].header("retry-after"), Some("1"));
    assert_eq!(upstream.count() + dropped.len(), 300);
    #[allow(clippy::cast_precision_loss)]
    gateway.metric_becomes("gateway_breaker_dropped_total{upstream=\"up\"}", dropped.len() as f64);
    assert!((0..50).all(|_| raw.ask(get("/other")).text() == "other"), "each upstream has a breaker of its own");
    let upstreams = gateway.admin_get("/upstreams").json()["upstreams"].clone();
    let breaker = &upstreams.as_array().unwrap().iter().find(|shown| shown["name"] == "up").unwrap()["breaker"];
    assert_eq!(breaker["mode"], "adaptive");
    assert!(breaker["drop"].as_f64().unwrap() > 0.5, "{breaker}");

    broken.store(false, SeqCst);
    // It notices by itself: one attempt a second passes, and each success lets more through. What was dropped counts against it for ten
    // seconds, and this loop goes on asking: mostly it is quick, but nothing says that it must be.
    let give_up = Instant::now() + Duration::from_secs(90);
    while !(0..20).all(|_| raw.ask(get("/")).status == 200) {
        assert!(Instant::now() < give_up, "it never recovers");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_healthy_upstream_is_never_throttled() {
    let upstream = Upstream::serve(|_, conn| conn.answer(500, "", "a 500 is an answer"));
    let yaml = "
        upstreams: { up: { endpoints: [http://@0], breaker: adaptive } }
        routes: [{ match: /*, upstream: up }]";
    let gateway = Gateway::new(yaml, &[upstream.address]);
    let mut raw = gateway.connect();
    for _ in 0..200 {
        assert_eq!(raw.ask(get("/")).status, 500);
    }
    assert_eq!(upstream.count(), 200);
}
