//! The end of a gateway: what is accepted is finished, until the deadline.

use std::time::{Duration, Instant};

use crate::support::client::get;
use crate::support::{End, Gate, Gateway, Raw, Then, Upstream, eventually};

fn slow(gate: &Gate) -> Upstream {
    let wait = gate.clone();
    Upstream::serve(move |request, conn| {
        if request.target == "/slow" {
            wait.pass();
        }
        conn.ok("done")
    })
}

fn proxy(upstream: &Upstream, server: &str) -> Gateway {
    Gateway::new(&format!("server: {{ workers: 2, {server} }}\n{}", Gateway::simple("")), &[upstream.address])
}

#[test]
fn requests_in_flight_finish_and_their_connections_close() {
    let gate = Gate::new();
    let upstream = slow(&gate);
    let gateway = proxy(&upstream, "timeouts: { drain: 5s }");
    let mut raw = gateway.connect();
    raw.send(get("/slow"));
    eventually("it is upstream", || (upstream.count() == 1).then_some(()));
    let stopping = gateway.begin_shutdown();
    let address = stopping.address;
    eventually("new connections are refused", || Raw::try_connect(address).is_none().then_some(()));
    assert!(!stopping.is_over());
    gate.open();
    let answer = raw.read();
    assert_eq!((answer.text().as_str(), answer.closes()), ("done", true));
    raw.assert_closed();
    let started = Instant::now();
    stopping.join();
    assert!(started.elapsed() < Duration::from_secs(3));
}

#[test]
fn a_request_on_the_wire_during_the_drain_is_answered_with_close() {
    let gate = Gate::new();
    let upstream = slow(&gate);
    let gateway = proxy(&upstream, "timeouts: { drain: 5s }");
    let (mut busy, mut idle) = (gateway.connect(), gateway.connect());
    assert_eq!(idle.ask(get("/")).status, 200);
    busy.send(get("/slow"));
    eventually("it is upstream", || (upstream.count() == 2).then_some(()));
    let stopping = gateway.begin_shutdown();
    let address = stopping.address;
    eventually("new connections are refused", || Raw::try_connect(address).is_none().then_some(()));
    let answer = idle.ask(get("/late"));
    assert_eq!((answer.status, answer.closes()), (200, true));
    gate.open();
    busy.read();
    stopping.join();
}

#[test]
fn what_is_still_open_at_the_deadline_is_cut() {
    let gate = Gate::new();
    let upstream = slow(&gate);
    let gateway = proxy(&upstream, "timeouts: { drain: 300ms }");
    let mut raw = gateway.connect();
    raw.send(get("/slow"));
    eventually("it is upstream", || (upstream.count() == 1).then_some(()));
    let started = Instant::now();
    let stopping = gateway.begin_shutdown();
    let (bytes, end) = raw.rest();
    assert!(bytes.is_empty() && matches!(end, End::Eof | End::Reset), "{:?}", String::from_utf8_lossy(&bytes));
    stopping.join();
    assert!((Duration::from_millis(250)..Duration::from_secs(4)).contains(&started.elapsed()), "{:?}", started.elapsed());
    gate.open();
}

#[test]
fn idle_connections_do_not_hold_the_drain_up() {
    let upstream = Upstream::text("x");
    let gateway = proxy(&upstream, "timeouts: { drain: 30s }");
    let mut raw = gateway.connect();
    assert_eq!(raw.ask(get("/")).status, 200);
    let silent = gateway.connect();
    let started = Instant::now();
    gateway.begin_shutdown().join();
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
    raw.assert_closed();
    drop(silent);
}

#[test]
fn readiness_goes_before_the_listeners_do() {
    let upstream = Upstream::text("x");
    let gateway = proxy(&upstream, "drain_delay: 700ms, timeouts: { drain: 200ms }");
    let stopping = gateway.begin_shutdown();
    let (address, admin) = (stopping.address, stopping.admin.unwrap());
    let ready = || Raw::connect(admin).ask("GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let answer = eventually("not ready", || Some(ready()).filter(|answer| answer.status == 503));
    assert_eq!(answer.json()["status"], "draining");
    let mut raw = Raw::connect(address);
    let served = raw.ask(get("/"));
    assert_eq!((served.status, served.closes()), (200, false), "normal service during the delay");
    stopping.join();
}

#[test]
fn nothing_is_lost_under_load() {
    let upstream = Upstream::text("x");
    let gateway = proxy(&upstream, "timeouts: { drain: 5s }");
    let address = gateway.address();
    let clients: Vec<_> = (0..4)
        .map(|_| {
            std::thread::spawn(move || {
                let mut served = 0;
                while let Some(mut raw) = Raw::try_connect(address) {
                    loop {
                        raw.send(get("/"));
                        // Closed without an answer is only right where the last answer, or nothing at all, came before.
                        let Ok(Some((line, headers))) = raw.wire.head() else { break };
                        assert!(line.starts_with("HTTP/1.1 200"), "{line}");
                        while raw.wire.buffer.is_empty() {
                            assert_ne!(raw.wire.fill().unwrap(), 0);
                        }
                        raw.wire.buffer.clear();
                        served += 1;
                        if headers.iter().any(|(name, value)| name.eq_ignore_ascii_case("connection") && value == "close") {
                            break;
                        }
                    }
                }
                served
            })
        })
        .collect();
    eventually("the load is on", || (upstream.count() > 100).then_some(()));
    let gateway = gateway.begin_shutdown().join();
    let served: usize = clients.into_iter().map(|client| client.join().unwrap()).sum();
    let lines = gateway.log();
    assert_eq!(lines.iter().filter(|line| line["status"] == 200).count(), served);
    assert_eq!(lines.len(), served, "{:?}", lines.iter().find(|line| line["status"] != 200));
    assert_eq!(upstream.count(), served);
}

#[test]
fn a_stream_is_cut_visibly_at_the_deadline() {
    let upstream = Upstream::serve(|_, conn| {
        conn.write("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n");
        conn.wait_end();
        Then::Close
    });
    let gateway = proxy(&upstream, "timeouts: { drain: 200ms }");
    let mut raw = gateway.connect();
    raw.send(get("/"));
    assert_eq!(raw.wire.answer_head().status, 200);
    assert_eq!(raw.wire.chunk().unwrap(), b"hi");
    let stopping = gateway.begin_shutdown();
    assert!(raw.wire.chunk().is_err());
    stopping.join();
}
