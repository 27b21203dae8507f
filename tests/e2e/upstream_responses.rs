//! Upstream responses that are cut, malformed or too large.

use crate::support::client::get;
use crate::support::h2::{H2Upstream, reply};
use crate::support::{End, Gate, Gateway, Then, Upstream};

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
        "HTTP/1.1 200 OK\r\nx-a: a\nb\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx-a: a\r\n b\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx-a: a\r\n\tb\r\ncontent-length: 0\r\n\r\n",
        "HTTP/0.9 200 OK\r\ncontent-length: 0\r\n\r\n",
        "<html>an answer of HTTP/0.9</html>\r\n",
        "HTTP/1.1 600 High\r\ncontent-length: 0\r\n\r\n",
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
fn a_status_above_599_is_a_protocol_error_over_http_2_too() {
    let upstream = H2Upstream::serve(|stream| async move {
        let status = if stream.0.uri().path() == "/high" { 600 } else { 599 };
        reply(stream, status, &[], b"hi", &[]).await;
    });
    let yaml = "
        upstreams: { up: { endpoints: [http://@0], protocol: h2 } }
        routes: [{ match: /*, upstream: up }]";
    let gateway = Gateway::new(yaml, &[upstream.address]);
    let mut raw = gateway.connect();
    for _ in 0..2 {
        raw.ask(get("/high")).refused(502, "upstream_protocol_error");
        let answer = raw.ask(get("/"));
        assert_eq!((answer.status, answer.text().as_str()), (599, "hi"), "the connection goes on");
    }
    assert_eq!(upstream.requests().len(), 4, "an unreadable response is not asked for again");
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
fn bytes_after_an_answer_that_has_no_body_are_nobodys_answer() {
    const POISON: &str = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nPOISON";
    for (method, head) in [
        ("HEAD", "200 OK\r\ncontent-length: 6"),
        ("HEAD", "200 OK\r\ntransfer-encoding: chunked"),
        ("HEAD", "404 Not Found\r\nx-length: none"),
        ("GET", "204 No Content\r\nx-length: none"),
        ("GET", "204 No Content\r\ncontent-length: 6"),
        ("POST", "204 No Content\r\nx-length: none"),
        ("GET", "304 Not Modified\r\nx-length: none"),
        ("GET", "304 Not Modified\r\ncontent-length: 6"),
    ] {
        let upstream = Upstream::serve(move |request, conn| {
            if request.target == "/good" {
                return conn.ok("good");
            }
            // In one write: the bytes are there as soon as the answer is.
            conn.write(format!("HTTP/1.1 {head}\r\n\r\n{POISON}"));
            Then::Keep
        });
        let gateway = Gateway::to(upstream.address, "");
        let mut raw = gateway.connect();
        for _ in 0..2 {
            raw.send(format!("{method} /bad HTTP/1.1\r\nHost: site\r\n\r\n"));
            let answer = raw.read_to_head();
            assert_eq!(answer.status.to_string(), head[..3], "{method} {head}: {answer:?}");
            assert!(!answer.closes(), "{answer:?}");
            // What would have leaked stands before the next answer, which could not be read then.
            let next = raw.ask(get("/good"));
            assert_eq!((next.status, next.text().as_str()), (200, "good"), "{method} {head}");
        }
        assert!(raw.wire.buffer.is_empty(), "{method} {head}: {:?}", String::from_utf8_lossy(&raw.wire.buffer));
        let requests = upstream.requests();
        for (index, bad) in requests.iter().enumerate().filter(|(_, request)| request.target == "/bad") {
            let later = requests[index + 1..].iter().any(|request| request.connection == bad.connection);
            assert!(!later, "{method} {head}: its connection was used again");
        }
    }
}

#[test]
fn bytes_that_come_late_after_an_answer_without_a_body_are_nobodys_answer_either() {
    let (asked, said) = (Gate::new(), Gate::new());
    let (go, done) = (asked.clone(), said.clone());
    let upstream = Upstream::serve(move |request, conn| {
        if request.target == "/good" {
            return conn.ok("good");
        }
        conn.write("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n");
        go.pass();
        conn.write("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nPOISON");
        done.open();
        Then::Keep
    });
    let gateway = Gateway::to(upstream.address, "");
    let mut raw = gateway.connect();
    raw.send("HEAD /bad HTTP/1.1\r\nHost: site\r\n\r\n");
    assert_eq!(raw.read_to_head().status, 200);
    // The connection is idle in the pool by now, or about to be.
    asked.open();
    said.pass();
    for _ in 0..4 {
        assert_eq!(raw.ask(get("/good")).text(), "good");
    }
}

#[test]
fn the_length_of_a_304_is_kept() {
    let upstream = Upstream::bytes("HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n", Then::Keep);
    let gateway = Gateway::to(upstream.address, "");
    assert_eq!(gateway.get("/").header("content-length"), Some("5"));
}

/// Fields in lower case and in order of their names; those that differ from request to request are left out.
fn told(fields: &[(String, String)]) -> Vec<(String, String)> {
    let mut told: Vec<_> = fields.iter().map(|(name, value)| (name.to_lowercase(), value.clone())).collect();
    told.retain(|(name, _)| !matches!(name.as_str(), "x-request-id" | "x-ruled"));
    // The gateway's own is that of the second, which may change between two answers.
    told.iter_mut().filter(|(name, value)| name == "date" && value.ends_with(" GMT")).for_each(|(_, value)| "now".clone_into(value));
    told.sort();
    told
}

#[test]
fn a_route_that_looks_at_no_field_passes_on_the_same_as_one_that_does() {
    let heads = [
        "200 OK\r\nServer: s\r\nDate: today\r\nSet-Cookie: a=b\r\nSet-Cookie: c=d\r\nContent-Length: 2\r\nConnection: keep-alive\r\n",
        "200 OK\r\nContent-Length: 2\r\nKeep-Alive: timeout=5\r\nX-A:tight\r\nX-B:  wide \t\r\nX-Empty:\r\nX-Empty: \r\n",
        "200 Fine\r\ncontent-length: 2\r\nX-Request-Id: theirs\r\nx-bytes: \u{fc}\r\n",
        "404 Not Found\r\nContent-Length: 2\r\nContent-Length: 2\r\nX-Last: 1\r\n",
        "200 OK\r\nX-One: 1\r\nTransfer-Encoding: Chunked\r\nX-Two: 2\r\nConnection: X-One\r\n",
        "200 OK\r\nA: 1\r\nDate: x\r\nConnection: close\r\nB: 2\r\nKeep-Alive: x\r\nC: 3\r\nContent-Length: 2\r\nD: 4\r\nTE: x\r\nE: 5\r\n",
        "204 No Content\r\nContent-Length: 2\r\nX-A: 1\r\n",
        "304 Not Modified\r\nContent-Length: 2\r\nETag: \"1\"\r\n",
    ];
    for head in heads {
        let body = match head {
            _ if head.starts_with("204") || head.starts_with("304") => "",
            _ if head.contains("Transfer") => "2\r\nhi\r\n0\r\n\r\n",
            _ => "hi",
        };
        let upstream = Upstream::serve(move |request, conn| {
            conn.write(format!("HTTP/1.1 {head}\r\n{}", if request.method == "HEAD" { "" } else { body }));
            if head.contains("close") { Then::Close } else { Then::Keep }
        });
        let plain = Gateway::to(upstream.address, "");
        let ruled = Gateway::to(
            upstream.address,
            "headers: { request: { set: { x-ruled: yes-it-is } }, response: { set: { x-ruled: yes-it-is } } }",
        );
        for method in ["GET", "HEAD"] {
            let ask = |gateway: &Gateway| {
                let fields = [
                    ("Cookie", "a=b"),
                    ("cookie", "c=d"),
                    ("X-Forwarded-For", "1.2.3.4"),
                    ("X_Forwarded_Host", "evil"),
                    ("Forwarded", "for=evil"),
                    ("X-Request-Id", "bad id"),
                    ("Accept", "*/*"),
                    ("X-Twice", "1"),
                    ("X-Twice", "2"),
                    ("TE", "trailers, x"),
                    ("Connection", "te, x-hop"),
                    ("X-Hop", "1"),
                ];
                let answer = gateway.request(method, "/x?y", &fields, "");
                let id = answer.all("x-request-id").into_iter().map(str::to_owned).collect::<Vec<_>>();
                assert_eq!(upstream.last().all("x-request-id"), id, "{head}");
                assert!(id.len() == 1 && id[0] != "theirs", "{id:?}");
                (answer, told(&upstream.last().headers))
            };
            let ((by_line, asked_by_line), (by_map, asked_by_map)) = (ask(&plain), ask(&ruled));
            assert_eq!((by_line.status, &by_line.phrase, by_line.end), (by_map.status, &by_map.phrase, by_map.end), "{head}");
            assert_eq!(by_line.body, by_map.body, "{head}");
            assert_eq!(told(&by_line.headers), told(&by_map.headers), "{method} {head}");
            assert_eq!(asked_by_line, asked_by_map, "{head}");
            assert!(by_map.has("x-ruled") && !by_line.has("x-ruled"));
        }
    }
}
