//! HTTP/2 clients that cost more than they should: each is dismissed, and the others are served.

use std::time::{Duration, Instant};

use crate::support::frames::{HEAD, frame, raw, went_away};
use crate::support::{Gateway, Then, Upstream, eventually};

/// Sends `bytes` again and again until the gateway ends the connection; panics if it never does.
fn flooded(gateway: &Gateway, first: &[u8], piece: impl Fn(u32) -> Vec<u8>, most: u32) -> Vec<u8> {
    let mut raw = raw(gateway.address());
    raw.send(first);
    let socket = raw.socket.try_clone().unwrap();
    let reader = std::thread::spawn(move || raw.rest().0);
    let mut socket = socket;
    let mut open = true;
    for index in 0..most {
        if std::io::Write::write_all(&mut socket, &piece(index)).is_err() {
            open = false;
            break;
        }
    }
    let _ = socket.shutdown(std::net::Shutdown::Write);
    let bytes = reader.join().unwrap();
    assert!(!open || went_away(&bytes), "the flood was taken");
    bytes
}

fn repeated(frame: &[u8], times: usize) -> Vec<u8> {
    frame.repeat(times)
}

#[test]
fn floods_end_the_connection_and_honest_clients_are_served() {
    let upstream = Upstream::text("hi");
    let gateway = Gateway::to(upstream.address, "");
    let honest = |what: &str| {
        let begun = Instant::now();
        assert_eq!(gateway.get("/honest").status, 200);
        assert!(begun.elapsed() < Duration::from_secs(2), "{what}");
    };
    for (what, one) in
        [("ping", frame(6, 0, 0, b"12345678")), ("settings", frame(4, 0, 0, b"")), ("priority", frame(2, 0, 3, &[0, 0, 0, 1, 1]))]
    {
        flooded(&gateway, b"", |_| repeated(&one, 1000), 1000);
        honest(what);
    }
    // Empty frames on an open stream.
    let head = frame(1, 4, 1, b"\x83\x86\x84\x41\x04site");
    flooded(&gateway, &head, |_| repeated(&frame(0, 0, 1, b""), 1000), 1000);
    honest("empty data");
    let begin = frame(1, 1, 1, HEAD);
    flooded(&gateway, &begin, |_| repeated(&frame(9, 0, 1, b""), 1000), 1000);
    honest("empty continuation");
    flooded(&gateway, &begin, |_| frame(9, 0, 1, &[0x40, 1, b'a', 1, b'b'].repeat(1000)), 10_000);
    honest("continuation");
}

#[test]
fn a_rapid_reset_ends_in_goaway() {
    let upstream = Upstream::serve(|_, conn| {
        conn.wait_end();
        Then::Close
    });
    let yaml = format!("{}server: {{ workers: 1, timeouts: {{ drain: 200ms }} }}\n", Gateway::simple(""));
    let gateway = Gateway::new(&yaml, &[upstream.address]);
    let pair = |index: u32| [frame(1, 5, 2 * index + 1, HEAD), frame(3, 0, 2 * index + 1, &[0, 0, 0, 8])].concat();
    let bytes = flooded(&gateway, b"", pair, 100_000);
    assert!(went_away(&bytes));
    assert!(upstream.connections() <= 1100, "{}", upstream.connections());
    eventually("every upstream request is cancelled", || (upstream.open() == 0).then_some(()));
    gateway.metric_becomes("gateway_requests_in_flight", 0.0);
    gateway.metric_becomes(&format!("gateway_connections{{listener=\"{}\"}}", gateway.address()), 0.0);
}

#[test]
fn provoked_resets_end_in_goaway() {
    let upstream = Upstream::serve(|_, conn| {
        conn.wait_end();
        Then::Close
    });
    let yaml = format!("{}server: {{ workers: 1, timeouts: {{ drain: 200ms }} }}\n", Gateway::simple(""));
    let gateway = Gateway::new(&yaml, &[upstream.address]);
    let pair = |index: u32| [frame(1, 5, 2 * index + 1, HEAD), frame(8, 0, 2 * index + 1, &[0, 0, 0, 0])].concat();
    let bytes = flooded(&gateway, b"", pair, 20_000);
    assert!(went_away(&bytes));
    assert!(upstream.connections() <= 2100, "{}", upstream.connections());
    eventually("every upstream request is cancelled", || (upstream.open() == 0).then_some(()));
}
