//! Upstream responses that are cut, malformed or too large.

use crate::support::client::get;
use crate::support::{End, Gateway, Then, Upstream};

fn cut(bytes: &'static [u8], then: Then) -> (Gateway, Upstream) {
    let upstream = Upstream::bytes(bytes, then);
    (Gateway::to(upstream.address, ""), upstream)
}

#[test]
fn a_body_cut_short_is_cut_for_the_client_too() {
    let bodies: [&[u8]; 4] = [
        b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n5\r\nhe",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
    ];
    for bytes in bodies {
        for then in [Then::Close, Then::Reset] {
            let (gateway, _upstream) = cut(bytes, then);
            let answer = gateway.get("/cut");
            if answer.status == 502 && then == Then::Reset {
                // The reset may overtake the head.
                continue;
            }
            assert_eq!(answer.status, 200);
            assert!(matches!(answer.end, End::Cut | End::Reset), "{:?} {then:?}: {answer:?}", String::from_utf8_lossy(bytes));
            let line = gateway.logged("/cut");
            assert_eq!((line["reason"].as_str(), line["complete"].as_bool()), (Some("upstream_truncated"), Some(false)), "{line}");
            gateway.metric_becomes("gateway_errors_total{route=\"all\",reason=\"upstream_truncated\"}", 1.0);
        }
    }
}

#[test]
fn a_body_cut_short_is_a_reset_for_an_http_1_0_client() {
    let (gateway, _upstream) = cut(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", Then::Close);
    let answer = gateway.ask("GET / HTTP/1.0\r\nHost: site\r\n\r\n");
    assert_eq!((answer.status, answer.end), (200, End::Reset), "{answer:?}");
}

#[test]
fn a_cut_body_never_costs_the_next_request() {
    let upstream = Upstream::serve(|request, conn| {
        if request.target == "/good" {
            return conn.ok("good");
        }
        conn.write("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello");
        Then::Close
    });
    let gateway = Gateway::to(upstream.address, "");
    for _ in 0..3 {
        assert_ne!(gateway.get("/bad").end, End::Framed);
        assert_eq!(gateway.get("/good").text(), "good");
    }
}

#[test]
fn what_is_no_response_is_a_protocol_error() {
    let huge = format!("HTTP/1.1 200 OK\r\nx-a: {}\r\ncontent-length: 0\r\n\r\n", "a".repeat(70 * 1024));
    let many = format!("HTTP/1.1 200 OK\r\n{}content-length: 0\r\n\r\n", "x-a: b\r\n".repeat(300));
    for bytes in [
        "garbage\r\n\r\n",
        "SSH-2.0-OpenSSH_9.6\r\n",
        "HTTP/1.1 99 Low\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 1000 High\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 abc\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx-a: a\0b\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx-a: a\rb\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
        huge.as_str(),
        many.as_str(),
    ] {
        let upstream = Upstream::bytes(bytes, Then::Close);
        let gateway = Gateway::to(upstream.address, "");
        let answer = gateway.get("/bad");
        assert_eq!(answer.status, 502, "{:?}: {answer:?}", &bytes[..bytes.len().min(60)]);
        assert_eq!(answer.reason(), "upstream_protocol_error", "{:?}", &bytes[..bytes.len().min(60)]);
        assert_eq!(upstream.count(), 1, "an unreadable response is not asked for again");
    }
}

#[test]
fn what_is_strange_but_legal_passes() {
    for (bytes, status) in [
        ("HTTP/1.1 200\r\ncontent-length: 2\r\n\r\nhi", 200),
        ("HTTP/1.1 200 \r\ncontent-length: 2\r\n\r\nhi", 200),
        ("HTTP/1.1 599 Odd\r\ncontent-length: 2\r\n\r\nhi", 599),
        ("HTTP/1.1 299 Odd\r\ncontent-length: 2\r\n\r\nhi", 299),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Many: a,b\r\n\r\nhi", 200),
    ] {
        let upstream = Upstream::bytes(bytes, Then::Keep);
        let gateway = Gateway::to(upstream.address, "");
        let answer = gateway.get("/");
        assert_eq!((answer.status, answer.text().as_str()), (status, "hi"), "{bytes:?}");
    }
}

#[test]
fn a_head_of_many_fields_within_the_limit_passes() {
    let many = format!("HTTP/1.1 200 OK\r\n{}content-length: 0\r\n\r\n", "x-a: b\r\n".repeat(200));
    let upstream = Upstream::bytes(many, Then::Keep);
    let gateway = Gateway::to(upstream.address, "");
    assert_eq!(gateway.get("/").all("x-a").len(), 200);
}

#[test]
fn answers_of_upstreams_pass_unchanged_5xx_included() {
    let upstream = Upstream::serve(|request, conn| {
        let status = request.target[1..].parse().unwrap();
        conn.answer(status, "content-type: text/html\r\n", "<h1>theirs</h1>")
    });
    let gateway = Gateway::to(upstream.address, "");
    for status in [400, 401, 404, 429, 500, 502, 503, 504] {
        let answer = gateway.get(&format!("/{status}"));
        assert_eq!((answer.status, answer.text().as_str(), answer.header("content-type")), (status, "<h1>theirs</h1>", Some("text/html")));
        let line = gateway.logged(&format!("/{status}"));
        assert!(line["reason"].is_null(), "{line}");
    }
}

#[test]
fn a_head_request_with_a_body_in_its_answer_leaves_the_next_intact() {
    let upstream = Upstream::serve(|request, conn| conn.ok(if request.method == "HEAD" { "" } else { "x" }));
    let gateway = Gateway::to(upstream.address, "");
    let mut raw = gateway.connect();
    raw.send("HEAD / HTTP/1.1\r\nHost: site\r\n\r\n");
    assert_eq!(raw.read_to_head().status, 200);
    assert_eq!(raw.ask(get("/")).text(), "x");
}

#[test]
fn the_length_of_a_304_is_kept() {
    let upstream = Upstream::bytes("HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n", Then::Keep);
    let gateway = Gateway::to(upstream.address, "");
    assert_eq!(gateway.get("/").header("content-length"), Some("5"));
}
