//! How long copies last: as long as their requests, and their connections a moment longer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::mirror::{Copies, mirrored, pair, result};
use crate::support::certs::Authority;
use crate::support::client::{get, request};
use crate::support::h2::H2Upstream;
use crate::support::upstream::Unreachable;
use crate::support::wire::Wire;
use crate::support::{Conn, Gate, Gateway, PATIENCE, Then, Upstream, eventually};

/// A shadow that takes each copy and never answers.
fn silent(copies: &Copies) -> Upstream {
    copies.shadow(|conn| {
        conn.wait_end();
        Then::Close
    })
}

/// An upstream that begins its answers when a copy has arrived, and ends them at the gate.
fn slow(copies: &Copies, gate: &Gate) -> Upstream {
    let gate = gate.clone();
    copies.main(1, move |conn| {
        conn.write("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nab");
        gate.pass();
        conn.write("cd");
        Then::Keep
    })
}

/// With `timeout: 1m` nothing ends before a test gives up, but for what is tested.
fn patient(mirror: &str, main: SocketAddr, shadow: SocketAddr) -> Gateway {
    Gateway::new(&mirrored("timeout: 1m,", mirror), &[main, shadow])
}

fn upstreams(gateway: &Gateway, name: &str) -> serde_json::Value {
    let all = gateway.admin_get("/upstreams").json();
    let found = all["upstreams"].as_array().unwrap().iter().find(|upstream| upstream["name"] == name);
    found.unwrap()["endpoints"][0].clone()
}

fn becomes_closed(shadow: &Upstream) {
    eventually("its connection is closed", || (shadow.open() == 0).then_some(()));
}

#[test]
fn the_connection_of_a_copy_lingers_so_long_and_no_longer() {
    for (linger, least) in [("0s", Duration::ZERO), ("300ms", Duration::from_millis(300))] {
        let copies = Copies::default();
        let (main, shadow) = (copies.main(usize::MAX, |conn| conn.ok("main")), silent(&copies));
        let gateway = patient(&format!("{{ upstream: shadow, linger: {linger} }}"), main.address, shadow.address);
        let started = Instant::now();
        assert_eq!(gateway.get("/").text(), "main");
        becomes_closed(&shadow);
        assert!((least..PATIENCE).contains(&started.elapsed()), "{linger}: {:?}", started.elapsed());
        result(&gateway, "sent", 1.0);
    }
}

#[test]
fn without_lingering_a_connection_is_closed_with_the_request() {
    let copies = Copies::default();
    let (gate, shadow) = (Gate::new(), silent(&copies));
    let main = slow(&copies, &gate);
    let gateway = patient("{ upstream: shadow, linger: 0s }", main.address, shadow.address);
    let mut raw = gateway.connect();
    raw.send(get("/"));
    let head = raw.wire.answer_head();
    assert_eq!((head.status, shadow.open()), (200, 1));
    gate.open();
    becomes_closed(&shadow);
    result(&gateway, "sent", 1.0);
}

#[test]
fn an_answer_that_takes_long_leaves_its_copy_the_time() {
    let copies = Copies::default();
    let (gate, answered) = (Gate::new(), Gate::new());
    let shadow_gate = answered.clone();
    let shadow = copies.shadow(move |conn| {
        shadow_gate.pass();
        conn.ok("shadow")
    });
    let main = slow(&copies, &gate);
    let gateway = patient("{ upstream: shadow, linger: 0s }", main.address, shadow.address);
    let mut raw = gateway.connect();
    raw.send(get("/"));
    copies.wait_for(1);
    answered.open();
    result(&gateway, "sent", 1.0);
    gate.open();
    assert_eq!(raw.read().text(), "abcd");
    assert_eq!(raw.ask(get("/")).text(), "abcd");
    result(&gateway, "sent", 2.0);
    assert_eq!(shadow.connections(), 1, "the second one found the connection of the first");
}

#[test]
fn a_copy_has_no_more_time_than_the_timeout_of_the_route() {
    let copies = Copies::default();
    let (gate, shadow) = (Gate::new(), silent(&copies));
    let main = slow(&copies, &gate);
    let gateway = Gateway::new(&mirrored("timeout: 200ms,", "{ upstream: shadow, linger: 1m }"), &[main.address, shadow.address]);
    let (mut raw, started) = (gateway.connect(), Instant::now());
    raw.send(get("/"));
    result(&gateway, "failed", 1.0);
    assert!(started.elapsed() >= Duration::from_millis(200), "it was given up early: {:?}", started.elapsed());
    becomes_closed(&shadow);
    gate.open();
    assert_eq!(raw.read().text(), "abcd");
}

#[test]
fn copies_of_a_fast_upstream_arrive_on_one_connection() {
    let (first, shadow) = pair();
    let main = Upstream::text("fast");
    let yaml = mirrored("", "{ upstream: shadow }");
    let gateway = Gateway::new(&yaml, &[first.address, shadow.address]);
    let mut raw = gateway.connect();
    assert_eq!(raw.ask(get("/")).text(), "main");
    result(&gateway, "sent", 1.0);
    // From now on nothing waits for the shadow.
    gateway.reload_ok(&yaml, &[main.address, shadow.address]);
    for count in 2..20 {
        assert_eq!(raw.ask(get("/")).text(), "fast");
        result(&gateway, "sent", f64::from(count));
    }
    assert_eq!((shadow.count(), shadow.connections()), (19, 1));
}

#[test]
fn a_copy_for_which_there_is_no_connection_yet_is_given_up() {
    let (main, shadow) = (Upstream::text("main"), Unreachable::new());
    let gateway = patient("{ upstream: shadow, linger: 1m }", main.address, shadow.address);
    let mut raw = gateway.connect();
    for _ in 0..200 {
        assert_eq!(raw.ask(get("/")).text(), "main");
    }
    // Not one of them waits for the connection: all have their place.
    let given_up = || {
        let of = |result: &str| gateway.metric(&format!("gateway_mirrored_total{{route=\"all\",result=\"{result}\"}}"));
        (of("late") + of("failed"), of("dropped"))
    };
    eventually("all are given up", || (given_up() == (200.0, 0.0)).then_some(()));
}

/// A shadow in HTTP/1.1 over TLS, whose handshakes wait at the gate.
fn tls_shadow(dir: &std::path::Path, copies: &Copies, gate: &Gate) -> Upstream {
    let (config, copies, gate) = (Authority::server(dir, "shadow", &["http/1.1"]), copies.clone(), gate.clone());
    Upstream::raw(move |conn| {
        gate.pass();
        let session = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
        let mut wire = Wire::over(Box::new(rustls::StreamOwned::new(session, conn.socket.try_clone().unwrap())));
        while let Ok(Some(_)) = wire.request() {
            copies.arrived();
            if wire.write("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").is_err() {
                break;
            }
        }
        Then::Close
    })
}

fn over_tls(tls: &str) -> String {
    mirrored("", "{ upstream: shadow }").replace("http://@1", "https://@1").replace("connect_timeout: 300ms", &format!("tls: {tls}"))
}

#[test]
fn a_mirror_whose_handshakes_are_slower_than_the_answers_gets_its_copies() {
    // What the mirror speaks is found out, or known before.
    for protocol in ["auto", "http1"] {
        let (dir, authority) = (tempfile::tempdir().unwrap(), Authority::new());
        authority.issue(dir.path(), "shadow", &["shadow.internal"]);
        std::fs::write(dir.path().join("ca.pem"), authority.pem()).unwrap();
        let (main, copies, gate) = (Upstream::text("main"), Copies::default(), Gate::new());
        let shadow = tls_shadow(dir.path(), &copies, &gate);
        let yaml = over_tls(&format!("{{ server_name: shadow.internal, ca: ca.pem }}, protocol: {protocol}"));
        let gateway = Gateway::in_dir(dir, &yaml, &[main.address, shadow.address]);
        let mut raw = gateway.connect();
        for count in [1.0, 2.0] {
            assert_eq!(raw.ask(get("/")).text(), "main");
            result(&gateway, "late", count);
        }
        gate.open();
        eventually("the connection is there", || (upstreams(&gateway, "shadow")["connections"]["idle"] == 1).then_some(()));
        assert_eq!(raw.ask(get("/")).text(), "main");
        copies.wait_for(1);
        result(&gateway, "sent", 1.0);
        assert_eq!(shadow.connections(), 1, "those who came later waited for the first one's");
    }
}

#[test]
fn why_a_mirror_cannot_be_connected_to_is_told_when_all_copies_are_gone() {
    let (dir, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    authority.issue(dir.path(), "shadow", &["shadow.internal"]);
    std::fs::write(dir.path().join("ca.pem"), authority.pem()).unwrap();
    let (main, copies, gate) = (Upstream::text("main"), Copies::default(), Gate::new());
    let shadow = tls_shadow(dir.path(), &copies, &gate);
    let yaml = over_tls("{ server_name: another.internal, ca: ca.pem }");
    let gateway = Gateway::in_dir(dir, &yaml, &[main.address, shadow.address]);
    assert_eq!(gateway.get("/").text(), "main");
    result(&gateway, "late", 1.0);
    gate.open();
    eventually("the cause", || upstreams(&gateway, "shadow")["last_connect_error"]["error"].as_str().map(str::to_owned));
}

#[test]
fn a_client_that_leaves_ends_its_copy() {
    let (copies, gate) = (Copies::default(), Gate::new());
    let (at_gate, its) = (gate.clone(), copies.clone());
    let main = Upstream::serve(move |_, conn: &mut Conn| {
        its.wait_for(1);
        at_gate.pass();
        conn.ok("main")
    });
    let shadow = silent(&copies);
    let gateway = patient("{ upstream: shadow, linger: 0s }", main.address, shadow.address);
    let mut raw = gateway.connect();
    raw.send(get("/gone"));
    copies.wait_for(1);
    assert_eq!(shadow.open(), 1);
    drop(raw);
    becomes_closed(&shadow);
    result(&gateway, "sent", 1.0);
    assert_eq!(gateway.logged("/gone")["reason"], "client_closed");
    gate.open();
}

#[test]
fn a_reload_leaves_copies_alone_and_a_stop_ends_them() {
    let copies = Copies::default();
    let (gate, shadow) = (Gate::new(), silent(&copies));
    let main = slow(&copies, &gate);
    let gateway = patient("{ upstream: shadow, linger: 1m }", main.address, shadow.address);
    let mut raw = gateway.connect();
    raw.send(get("/"));
    assert_eq!(raw.wire.answer_head().status, 200);
    gateway.reload_ok(&mirrored("timeout: 1m,", "off"), &[main.address, shadow.address]);
    gate.open();
    assert_eq!(shadow.open(), 1);
    assert_eq!(gateway.get("/").text(), "abcd");
    assert_eq!((shadow.count(), shadow.open()), (1, 1));
    let started = Instant::now();
    drop(gateway);
    becomes_closed(&shadow);
    assert!(started.elapsed() < PATIENCE, "{:?}", started.elapsed());
}

/// An HTTP/2 shadow that counts copies and answers none, until they are reset.
fn until_reset(builder: ::h2::server::Builder, copies: &Copies, resets: &Copies) -> H2Upstream {
    let (its, reset) = (copies.clone(), resets.clone());
    H2Upstream::with(None, builder, move |(request, mut respond)| {
        let (copies, resets) = (its.clone(), reset.clone());
        async move {
            copies.arrived();
            let reason = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
            assert_eq!(reason.unwrap(), ::h2::Reason::CANCEL);
            resets.arrived();
            drop(request);
        }
    })
}

#[test]
fn a_stream_of_http_2_is_reset_when_it_has_lingered() {
    let (copies, resets) = (Copies::default(), Copies::default());
    let shadow = until_reset(::h2::server::Builder::new(), &copies, &resets);
    let main = copies.main(usize::MAX, |conn| conn.ok("main"));
    let yaml = mirrored("timeout: 1m,", "{ upstream: shadow, linger: 0s }").replace("connect_timeout: 300ms", "protocol: h2");
    let gateway = Gateway::new(&yaml, &[main.address, shadow.address]);
    let mut raw = gateway.connect();
    for count in [1_u16, 2, 3] {
        assert_eq!(raw.ask(get("/")).text(), "main");
        resets.wait_for(usize::from(count));
        result(&gateway, "sent", f64::from(count));
    }
    assert_eq!(shadow.connections(), [0, 0, 0], "the connection lives on");
}

#[test]
fn a_body_that_http_2_does_not_take_in_time_is_late() {
    let mut builder = ::h2::server::Builder::new();
    builder.initial_window_size(0);
    let (copies, resets) = (Copies::default(), Copies::default());
    // It never takes a byte of a body.
    let shadow = until_reset(builder, &copies, &resets);
    let main = copies.main(usize::MAX, |conn| conn.ok("main"));
    let yaml = mirrored("timeout: 1m,", "{ upstream: shadow, linger: 1m }").replace("connect_timeout: 300ms", "protocol: h2");
    let gateway = Gateway::new(&yaml, &[main.address, shadow.address]);
    assert_eq!(gateway.ask(request("POST", "/", &[], "body")).text(), "main");
    result(&gateway, "late", 1.0);
    resets.wait_for(1);
}
