//! HTTP/2 clients that cost more than they should: each is dismissed, and the others are served.

use std::time::{Duration, Instant};

use crate::support::frames::{HEAD, frame, frames, raw, went_away};
use crate::support::{Gateway, Raw, Then, Upstream, eventually};

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

/// A client that has been there all along, on HTTP/2 connections of its own.
struct Neighbour {
    raw: Raw,
    stream: u32,
}

impl Neighbour {
    fn of(gateway: &Gateway) -> Self {
        Self { raw: raw(gateway.address()), stream: 1 }
    }
    /// Asserts that it is served, soon.
    fn is_served(&mut self, during: &str) {
        let (begun, stream) = (Instant::now(), self.stream);
        self.stream += 2;
        self.raw.send(frame(1, 5, stream, HEAD));
        while !frames(&self.raw.wire.buffer).contains(&(1, stream)) {
            assert!(self.raw.wire.fill().unwrap() > 0, "the neighbour of {during} was closed");
        }
        assert!(begun.elapsed() < Duration::from_secs(2), "{during}: {:?}", begun.elapsed());
    }
}

#[test]
fn floods_end_the_connection_and_honest_clients_are_served() {
    let upstream = Upstream::text("hi");
    let gateway = Gateway::to(upstream.address, "");
    let mut neighbours: Vec<Neighbour> = (0..4).map(|_| Neighbour::of(&gateway)).collect();
    let mut honest = |what: &str| {
        let begun = Instant::now();
        assert_eq!(gateway.get("/honest").status, 200);
        assert!(begun.elapsed() < Duration::from_secs(2), "{what}");
        neighbours.iter_mut().for_each(|neighbour| neighbour.is_served(what));
    };
    honest("nothing");
    for (what, one) in [
        ("ping", frame(6, 0, 0, b"12345678")),
        ("ping answers", frame(6, 1, 0, b"12345678")),
        ("settings", frame(4, 0, 0, b"")),
        ("settings answers", frame(4, 1, 0, b"")),
        ("priority", frame(2, 0, 3, &[0, 0, 0, 1, 1])),
        ("unknown frames", frame(0xfa, 0, 0, b"")),
    ] {
        flooded(&gateway, b"", |_| one.repeat(1000), 1000);
        honest(what);
    }
    // Empty frames on an open stream.
    let head = frame(1, 4, 1, b"\x83\x86\x84\x41\x04site");
    flooded(&gateway, &head, |_| frame(0, 0, 1, b"").repeat(1000), 1000);
    honest("empty data");
    let begin = frame(1, 1, 1, HEAD);
    flooded(&gateway, &begin, |_| frame(9, 0, 1, b"").repeat(1000), 1000);
    honest("empty continuation");
    flooded(&gateway, &begin, |_| frame(9, 0, 1, &[0x40, 1, b'a', 1, b'b'].repeat(1000)), 10_000);
    honest("continuation");
    gateway.metric_becomes("gateway_requests_in_flight", 0.0);
}

/// An upstream whose requests end only with their connection.
fn hanging() -> Upstream {
    Upstream::serve(|request, conn| {
        if request.target == "/quick" {
            return conn.ok("quick");
        }
        conn.wait_end();
        Then::Close
    })
}

#[test]
fn a_rapid_reset_ends_in_goaway() {
    let upstream = hanging();
    let yaml = format!("{}server: {{ workers: 1, timeouts: {{ drain: 200ms }} }}\n", Gateway::simple(""));
    let gateway = Gateway::new(&yaml, &[upstream.address]);
    let mut patient = raw(gateway.address());
    patient.send(frame(1, 5, 1, HEAD));
    eventually("an honest request is upstream", || (upstream.count() == 1).then_some(()));
    let pair = |index: u32| [frame(1, 5, 2 * index + 1, HEAD), frame(3, 0, 2 * index + 1, &[0, 0, 0, 8])].concat();
    let bytes = flooded(&gateway, b"", pair, 100_000);
    assert!(went_away(&bytes));
    assert!(upstream.connections() <= 1100, "{}", upstream.connections());
    eventually("every upstream request but the honest one is cancelled", || (upstream.open() == 1).then_some(()));
    assert_eq!(gateway.get("/quick").text(), "quick");
    // Its connection is another one.
    patient.send(frame(6, 0, 0, b"12345678"));
    while !frames(&patient.wire.buffer).contains(&(6, 0)) {
        assert!(patient.wire.fill().unwrap() > 0, "the honest client was closed");
    }
    drop(patient);
    gateway.metric_becomes("gateway_requests_in_flight", 0.0);
    gateway.metric_becomes(&format!("gateway_connections{{listener=\"{}\"}}", gateway.address()), 0.0);
}

#[test]
fn a_page_that_is_left_is_no_flood() {
    let upstream = hanging();
    let gateway = Gateway::to(upstream.address, "");
    let mut browser = raw(gateway.address());
    // All that it was loading, cancelled at once: many requests have not been looked at yet.
    let begin: Vec<u8> = (0..100).flat_map(|index| frame(1, 5, 2 * index + 1, HEAD)).collect();
    let cancel: Vec<u8> = (0..100).flat_map(|index| frame(3, 0, 2 * index + 1, &[0, 0, 0, 8])).collect();
    browser.send([begin, cancel].concat());
    browser.send(frame(1, 5, 201, b"\x82\x86\x44\x06/quick\x41\x04site"));
    while !frames(&browser.wire.buffer).contains(&(1, 201)) {
        assert!(browser.wire.fill().unwrap() > 0, "the connection was closed");
    }
    assert!(!went_away(&browser.wire.buffer));
    eventually("what was cancelled is gone", || (upstream.open() <= 1).then_some(()));
}

#[test]
fn provoked_resets_end_in_goaway() {
    // What makes the gateway reset a stream (CVE-2025-8671), behind a request that would run on: the resets are the gateway's own, and so
    // none of them counts as the client's.
    let broken = |name: &str, value: &str| {
        let mut head = HEAD.to_vec();
        head.extend([0, u8::try_from(name.len()).unwrap()]);
        head.extend(name.as_bytes());
        head.push(u8::try_from(value.len()).unwrap());
        head.extend(value.as_bytes());
        head
    };
    let (short, upper) = (broken("content-length", "5"), broken("Upper", "x"));
    let provoke = |kind: &str, stream: u32| match kind {
        "a window of nothing" => [frame(1, 5, stream, HEAD), frame(8, 0, stream, &[0, 0, 0, 0])].concat(),
        "a window too large" => [frame(1, 5, stream, HEAD), frame(8, 0, stream, &[0x7f, 0xff, 0xff, 0xff])].concat(),
        "data behind the end" => [frame(1, 5, stream, HEAD), frame(0, 0, stream, b"more")].concat(),
        "a second head" => [frame(1, 5, stream, HEAD), frame(1, 5, stream, HEAD)].concat(),
        "a dependency on itself" => [frame(1, 5, stream, HEAD), frame(2, 0, stream, &[&stream.to_be_bytes()[..], &[1]].concat())].concat(),
        "a priority cut short" => [frame(1, 5, stream, HEAD), frame(2, 0, stream, &[0, 0, 0])].concat(),
        "a body shorter than its length" => frame(1, 5, stream, &short),
        "a field that is malformed" => frame(1, 5, stream, &upper),
        other => panic!("{other}"),
    };
    for kind in [
        "a window of nothing",
        "a window too large",
        "data behind the end",
        "a second head",
        "a dependency on itself",
        "a priority cut short",
        "a body shorter than its length",
        "a field that is malformed",
    ] {
        let upstream = hanging();
        let yaml = format!("{}server: {{ workers: 1, timeouts: {{ drain: 200ms }} }}\n", Gateway::simple(""));
        let gateway = Gateway::new(&yaml, &[upstream.address]);
        let bytes = flooded(&gateway, b"", |index| provoke(kind, 2 * index + 1), 20_000);
        assert!(went_away(&bytes), "{kind}");
        assert!(upstream.connections() <= 2100, "{kind}: {}", upstream.connections());
        eventually("every upstream request is cancelled", || (upstream.open() == 0).then_some(()));
        assert_eq!(gateway.get("/quick").text(), "quick", "{kind}");
        gateway.metric_becomes("gateway_requests_in_flight", 0.0);
    }
}
