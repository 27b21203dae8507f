//! Messages that could be read in two ways: one request never becomes two.

use crate::support::client::{get, request};
use crate::support::{Answer, Gateway, Raw, Then, Upstream};

const SMUGGLED: &str = "GET /admin HTTP/1.1\r\nHost: site\r\n\r\n";

fn proxy() -> (Gateway, Upstream) {
    let upstream = Upstream::echo();
    (Gateway::to(upstream.address, ""), upstream)
}

/// Sends bytes; everything that comes back until the gateway closes, the first answer parsed.
#[track_caller]
fn refused_and_closed(gateway: &Gateway, bytes: &[u8]) -> Answer {
    let mut raw = gateway.connect();
    let answer = raw.ask(bytes);
    assert_eq!(answer.status, 400, "{:?} {answer:?}", String::from_utf8_lossy(bytes));
    let (rest, _) = raw.rest();
    assert!(rest.is_empty(), "{:?} was answered twice: {:?}", String::from_utf8_lossy(bytes), String::from_utf8_lossy(&rest));
    answer
}

#[test]
fn a_length_beside_chunked_is_refused_in_either_order() {
    let (gateway, upstream) = proxy();
    for head in ["Content-Length: 6\r\nTransfer-Encoding: chunked\r\n", "Transfer-Encoding: chunked\r\nContent-Length: 6\r\n"] {
        let bytes = format!("POST / HTTP/1.1\r\nHost: site\r\n{head}\r\n0\r\n\r\n{SMUGGLED}");
        refused_and_closed(&gateway, bytes.as_bytes());
    }
    assert_eq!(upstream.count(), 0);
}

#[test]
fn lengths_that_differ_or_are_no_numbers_are_refused() {
    let (gateway, upstream) = proxy();
    for lengths in [
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: 5,5\r\n",
        "Content-Length: +5\r\n",
        "Content-Length: -1\r\n",
        "Content-Length: 0x5\r\n",
        "Content-Length: \r\n",
        "Content-Length: 5\x0b\r\n",
        "Content-Length: 18446744073709551616\r\n",
    ] {
        refused_and_closed(&gateway, format!("POST / HTTP/1.1\r\nHost: site\r\n{lengths}\r\nhello{SMUGGLED}").as_bytes());
    }
    assert_eq!(upstream.count(), 0);
}

#[test]
fn any_transfer_coding_but_one_chunked_is_refused() {
    let (gateway, upstream) = proxy();
    for coding in [
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked;q=1",
        "Transfer-Encoding: ,chunked",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked, gzip",
        "Transfer-Encoding: identity",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding:\x0bchunked",
        "Transfer-Encoding:\r\n chunked",
        "Transfer-Encoding: \"chunked\"",
    ] {
        refused_and_closed(&gateway, format!("POST / HTTP/1.1\r\nHost: site\r\n{coding}\r\n\r\n0\r\n\r\n{SMUGGLED}").as_bytes());
    }
    assert_eq!(upstream.count(), 0);
}

#[test]
fn http_1_0_with_a_transfer_coding_is_refused() {
    let (gateway, upstream) = proxy();
    refused_and_closed(
        &gateway,
        format!("POST / HTTP/1.0\r\nHost: site\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{SMUGGLED}").as_bytes(),
    );
    assert_eq!(upstream.count(), 0);
}

#[test]
fn control_bytes_and_spaces_before_the_colon_are_refused() {
    let (gateway, upstream) = proxy();
    for field in ["X-A: a\rb", "X-A: a\0b", "X-A : b", " X-A: b", "X A: b", "X-A: \x01"] {
        refused_and_closed(&gateway, format!("GET / HTTP/1.1\r\nHost: site\r\n{field}\r\n\r\n").as_bytes());
    }
    assert_eq!(upstream.count(), 0);
}

#[test]
fn bare_line_feeds_end_lines_but_are_never_forwarded() {
    let (gateway, upstream) = proxy();
    let answer = gateway.ask("GET /lf HTTP/1.1\nHost: site\nX-A: b\n\n");
    assert!(answer.status == 200 || answer.status == 400, "{answer:?}");
    if answer.status == 200 {
        assert_eq!(upstream.last().header("x-a"), Some("b"));
    }
}

#[test]
fn equal_lengths_are_one() {
    let (gateway, upstream) = proxy();
    let mut raw = gateway.connect();
    raw.send("POST / HTTP/1.1\r\nHost: site\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello");
    let answer = raw.read();
    if answer.status == 200 {
        assert_eq!(upstream.last().all("content-length"), ["5"]);
        assert_eq!(upstream.last().text(), "hello");
    } else {
        assert_eq!(answer.status, 400);
    }
}

#[test]
fn broken_chunks_never_become_a_complete_request() {
    let (gateway, upstream) = proxy();
    let long = format!("5;{}\r\nhello\r\n0\r\n\r\n", "a".repeat(17 * 1024));
    for body in [
        "5;a=\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "5_0\r\nhello\r\n0\r\n\r\n",
        "\r\n5\r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhelloX0\r\n\r\n",
        "-1\r\nhello\r\n0\r\n\r\n",
        "FFFFFFFFFFFFFFFFF\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\r\nbad trailer: x\r\n\r\n",
        "5\r\nhello\r\n0\r\nx: y\n\r\n",
        long.as_str(),
    ] {
        let bytes = format!("POST /broken HTTP/1.1\r\nHost: site\r\nTransfer-Encoding: chunked\r\n\r\n{body}{SMUGGLED}");
        let answer = refused_and_closed(&gateway, bytes.as_bytes());
        assert_eq!((answer.reason().as_str(), answer.header("connection")), ("bad_request", Some("close")), "{body:?}");
    }
    assert_eq!(upstream.count(), 0, "{:?}", upstream.requests());
}

#[test]
fn a_body_that_its_client_cuts_is_499_in_the_log_and_never_on_the_wire() {
    let (gateway, upstream) = proxy();
    for (path, body) in [("/length", "Content-Length: 50\r\n\r\nhello"), ("/chunks", "Transfer-Encoding: chunked\r\n\r\n5\r\nhel")] {
        let mut raw = gateway.connect();
        raw.send(format!("POST {path} HTTP/1.1\r\nHost: site\r\n{body}"));
        raw.half_close();
        let (answers, _) = raw.rest();
        assert!(answers.is_empty(), "{:?}", String::from_utf8_lossy(&answers));
        let line = gateway.logged(path);
        assert_eq!((&line["status"], &line["reason"], &line["complete"]), (&499.into(), &"client_closed".into(), &false.into()), "{line}");
    }
    assert_eq!(upstream.count(), 0);
}

#[test]
fn a_body_is_forwarded_with_framing_on_every_method() {
    let (gateway, upstream) = proxy();
    let mut raw = gateway.connect();
    for method in ["GET", "DELETE", "OPTIONS", "PUT", "PATCH", "POST"] {
        assert_eq!(raw.ask(request(method, "/x", &[], "hello")).status, 200);
        let seen = upstream.last();
        assert_eq!((seen.method.as_str(), seen.text().as_str(), seen.header("content-length")), (method, "hello", Some("5")));
        let chunked = format!("{method} /x HTTP/1.1\r\nHost: site\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n");
        assert_eq!(raw.ask(chunked).status, 200);
        let seen = upstream.last();
        assert_eq!((seen.method.as_str(), seen.text().as_str()), (method, "hello"), "chunked {seen:?}");
    }
    raw.send(request("HEAD", "/x", &[], "hello"));
    raw.read_to_head();
    assert_eq!((upstream.last().method.as_str(), upstream.last().text().as_str()), ("HEAD", "hello"));
}

#[test]
fn a_request_without_a_body_gets_no_framing() {
    let (gateway, upstream) = proxy();
    gateway.get("/x");
    assert!(!upstream.last().has("content-length") && !upstream.last().has("transfer-encoding"));
    gateway.ask("POST /x HTTP/1.1\r\nHost: site\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(upstream.last().header("content-length"), Some("0"));
}

/// A body that looks like a request to a locally answered route must not be answered.
#[test]
fn an_unread_body_is_never_taken_for_a_request() {
    let upstream = Upstream::echo();
    let yaml = "
        upstreams: { up: { endpoints: [http://@0] } }
        authenticators: { keys: { api_key: { from: [header:x-key], keys: [{ id: a, sha256: 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae }] } } }
        routes:
          - { match: /respond, respond: { status: 200, body: local } }
          - { match: /redirect, redirect: { to: /other, status: 302 } }
          - { match: /auth, auth: keys, upstream: up }
          - { match: /limit, rate_limit: [{ by: ip, rate: 1/h, burst: 1 }], respond: { status: 200 } }
          - { match: /large, body_limit: 1B, upstream: up }
          - { match: /denied, ip: { deny: [127.0.0.1] }, upstream: up }
          - { match: /admin, respond: { status: 299, body: ADMIN } }
          - { match: /second, respond: { status: 298, body: second } }
          - { match: /cors, cors: { origins: ['https://app.test'], methods: [PUT] }, upstream: up }
    ";
    let gateway = Gateway::new(yaml, &[upstream.address]);
    gateway.get("/limit");
    let preflight = "Origin: https://app.test\r\nAccess-Control-Request-Method: PUT\r\n";
    for (method, path, fields, status) in [
        ("POST", "/respond", "", 200),
        ("POST", "/redirect", "", 302),
        ("POST", "/auth", "", 401),
        ("POST", "/limit", "", 429),
        ("POST", "/large", "", 413),
        ("POST", "/denied", "", 403),
        ("POST", "/nowhere", "", 404),
        ("OPTIONS", "/cors", preflight, 204),
    ] {
        for chunked in [false, true] {
            let mut raw = gateway.connect();
            let head = if chunked { "Transfer-Encoding: chunked".to_owned() } else { format!("Content-Length: {}", SMUGGLED.len()) };
            let body = if chunked { format!("{:x}\r\n{SMUGGLED}\r\n0\r\n\r\n", SMUGGLED.len()) } else { SMUGGLED.to_owned() };
            raw.send(format!("{method} {path} HTTP/1.1\r\nHost: site\r\n{fields}{head}\r\n\r\n{body}{}", get("/second")));
            let first = raw.read();
            assert_eq!(first.status, status, "{path}");
            let (rest, _) = {
                raw.half_close();
                raw.rest()
            };
            let rest = String::from_utf8_lossy(&rest);
            assert!(!rest.contains("ADMIN"), "{path}: {rest}");
            assert!(rest.is_empty() || rest.starts_with("HTTP/1.1 298"), "{path}: {rest}");
        }
    }
    assert_eq!(upstream.count(), 0);
}

#[test]
fn another_upgrade_with_a_pipelined_request_opens_no_tunnel() {
    let upstream = Upstream::text("plain");
    let yaml = "
        upstreams: { up: { endpoints: [http://@0] } }
        routes:
          - { match: /up, upstream: up }
          - { match: /admin, ip: { deny: [127.0.0.1] }, upstream: up }
    ";
    let gateway = Gateway::new(yaml, &[upstream.address]);
    let mut raw = gateway.connect();
    raw.send(format!("GET /up HTTP/1.1\r\nHost: site\r\nConnection: upgrade\r\nUpgrade: foo\r\n\r\n{SMUGGLED}"));
    assert_eq!(raw.read().text(), "plain");
    raw.read().refused(403, "ip_denied");
    assert_eq!(upstream.count(), 1);
    assert!(!upstream.last().has("upgrade"));
}

#[test]
fn fifty_pipelined_requests_get_fifty_answers_in_order() {
    let upstream = Upstream::serve(|request, conn| conn.ok(&request.target));
    let gateway = Gateway::to(upstream.address, "");
    let mut raw = gateway.connect();
    raw.send((0..50).map(|index| get(&format!("/{index}"))).collect::<String>());
    for index in 0..50 {
        assert_eq!(raw.read().text(), format!("/{index}"));
    }
}

#[test]
fn a_request_after_a_chunked_one_starts_where_the_chunks_end() {
    let (gateway, upstream) = proxy();
    let mut raw = gateway.connect();
    raw.send(format!("POST /a HTTP/1.1\r\nHost: site\r\nTransfer-Encoding: ChUnKeD\r\n\r\n2\r\nhi\r\n0\r\n\r\n{}", get("/b")));
    assert_eq!(raw.read().json()["body"], "hi");
    assert_eq!(raw.read().json()["target"], "/b");
    assert_eq!(upstream.count(), 2);
}

#[test]
fn upstream_framing_that_can_be_read_in_two_ways_is_502_and_poisons_nothing() {
    let ambiguous: [&[u8]; 5] = [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nxx",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ];
    for bytes in ambiguous {
        let upstream = Upstream::serve(move |request, conn| {
            if request.target == "/good" {
                return conn.ok("good");
            }
            conn.write(bytes);
            Then::Keep
        });
        let gateway = Gateway::to(upstream.address, "outlier: off".replace("outlier: off", "retry: off").as_str());
        let mut raw = gateway.connect();
        raw.ask(get("/bad")).refused(502, "upstream_protocol_error");
        assert_eq!(raw.ask(get("/good")).text(), "good", "{}", String::from_utf8_lossy(bytes));
    }
}

#[test]
fn bytes_after_an_upstream_body_are_dropped_with_their_connection() {
    let upstream = Upstream::serve(|request, conn| {
        if request.target == "/good" {
            return conn.ok("good");
        }
        conn.write("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nPOISON");
        Then::Keep
    });
    let gateway = Gateway::to(upstream.address, "");
    let mut raw: Raw = gateway.connect();
    assert_eq!(raw.ask(get("/bad")).text(), "hello");
    for _ in 0..4 {
        assert_eq!(raw.ask(get("/good")).text(), "good");
    }
}
