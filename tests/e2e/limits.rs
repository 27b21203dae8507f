//! Limits of heads and connections.

use crate::support::client::get;
use crate::support::{Gateway, Raw, eventually};

const SMALL: &str = "
    server: { workers: 1, max_header_size: 1KiB, max_headers: 10, timeouts: { drain: 100ms } }
    routes: [{ match: /*, respond: { status: 200 } }]
";

#[test]
fn a_target_that_is_too_long_is_414() {
    let gateway = Gateway::new(SMALL, &[]);
    assert_eq!(gateway.get(&format!("/{}", "a".repeat(900))).status, 200);
    let answer = gateway.get(&format!("/{}", "a".repeat(1100)));
    answer.refused(414, "uri_too_long");
    let far = gateway.get(&format!("/{}", "a".repeat(20_000)));
    assert_eq!(far.status, 414, "{far:?}");
}

#[test]
fn a_head_that_is_too_long_is_431() {
    let gateway = Gateway::new(SMALL, &[]);
    let with = |size: usize| gateway.request("GET", "/", &[("X-A", &"a".repeat(size))], "");
    assert_eq!(with(900).status, 200);
    with(1100).refused(431, "headers_too_large");
    assert_eq!(with(20_000).status, 431);
}

#[test]
fn the_limit_of_a_head_is_inclusive_and_counts_every_byte() {
    let gateway = Gateway::new(SMALL, &[]);
    let of_size = |bytes: usize| format!("GET / HTTP/1.1\r\nHost: a\r\nX-A: {:x<1$}\r\n\r\n", "", bytes - 34);
    assert_eq!(of_size(1024).len(), 1024);
    assert_eq!(gateway.ask(of_size(1024)).status, 200);
    gateway.ask(of_size(1025)).refused(431, "headers_too_large");
}

#[test]
fn too_many_fields_are_431() {
    let gateway = Gateway::new(SMALL, &[]);
    let with = |count: usize| gateway.request("GET", "/", &vec![("X-A", "b"); count], "");
    assert_eq!(with(9).status, 200, "and Host makes ten");
    with(10).refused(431, "headers_too_large");
    assert_eq!(with(90).status, 431);
}

#[test]
fn the_default_of_a_hundred_fields_holds() {
    let gateway = Gateway::new("routes: [{ match: /*, respond: { status: 200 } }]", &[]);
    let with = |count: usize| gateway.request("GET", "/", &vec![("X-A", "b"); count], "");
    assert_eq!(with(99).status, 200);
    with(100).refused(431, "headers_too_large");
    // So many that the parser itself refuses them.
    with(300).refused(431, "headers_too_large");
    let small = Gateway::new("server: { max_headers: 10 }\nroutes: [{ match: /*, respond: { status: 200 } }]", &[]);
    small.request("GET", "/", &[("X-A", "b"); 12], "").refused(431, "headers_too_large");
}

#[test]
fn a_head_the_parser_refuses_is_counted() {
    let gateway = Gateway::new(SMALL, &[]);
    gateway.ask("NOT HTTP AT ALL\r\n\r\n").refused(400, "bad_request");
    let counted = |kind: &str, count: f64| {
        let series = format!("gateway_connection_errors_total{{listener=\"{}\",kind=\"{kind}\"}}", gateway.address());
        gateway.metric_becomes(&series, count);
    };
    counted("bad_request", 1.0);
    // Far beyond what the parser reads, where the gateway's own check never sees them.
    let long = "a".repeat(200_000);
    assert_eq!(gateway.get(&format!("/{long}")).status, 414);
    counted("too_large", 1.0);
    assert_eq!(gateway.request("GET", "/", &[("X-A", &long)], "").status, 431);
    counted("too_large", 2.0);
    assert_eq!(gateway.request("GET", "/", &[("X-A", "b"); 300], "").status, 431);
    counted("too_large", 3.0);
    counted("bad_request", 1.0);
}

#[test]
fn connections_beyond_the_limit_wait_and_the_admin_still_answers() {
    let gateway = Gateway::new(
        "server: { workers: 2, max_connections: 2, timeouts: { drain: 100ms } }\nroutes: [{ match: /*, respond: { status: 200 } }]",
        &[],
    );
    let (mut first, mut second) = (gateway.connect(), gateway.connect());
    assert_eq!((first.ask(get("/")).status, second.ask(get("/")).status), (200, 200));
    let mut third = gateway.connect();
    third.send(get("/"));
    third.socket.set_read_timeout(Some(std::time::Duration::from_millis(200))).unwrap();
    let waited = std::io::Read::read(&mut &third.socket, &mut [0]).unwrap_err();
    assert!(matches!(waited.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut), "{waited}");
    assert_eq!(gateway.admin_get("/health").status, 200);
    drop(first);
    third.socket.set_read_timeout(Some(crate::support::PATIENCE)).unwrap();
    assert_eq!(third.read().status, 200);
}

#[test]
fn connections_of_one_address_beyond_its_limit_are_closed() {
    let gateway = Gateway::new(
        "server: { workers: 2, max_connections_per_ip: 2, timeouts: { drain: 100ms } }\nroutes: [{ match: /*, respond: { status: 200 } }]",
        &[],
    );
    let (mut first, mut second) = (gateway.connect(), gateway.connect());
    assert_eq!((first.ask(get("/")).status, second.ask(get("/")).status), (200, 200));
    gateway.connect().assert_closed();
    drop(first);
    eventually("there is room again", || {
        let mut raw = Raw::connect(gateway.address());
        raw.send("GET / HTTP/1.1\r\nHost: site\r\nConnection: close\r\n\r\n");
        let (bytes, _) = raw.rest();
        bytes.starts_with(b"HTTP/1.1 200").then_some(())
    });
}
