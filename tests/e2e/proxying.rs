//! Requests and responses across the gateway: methods, bodies, connections, HTTP/1.0, `Expect`, early answers.

use crate::support::client::{get, request};
use crate::support::{End, Gate, Gateway, Raw, Then, Upstream, eventually};

#[test]
fn a_request_and_its_answer_pass() {
    let upstream = Upstream::echo();
    let gateway = Gateway::to(upstream.address, "");
    let answer = gateway.request("POST", "/a/b?c=d", &[("X-A", "1"), ("X-A", "2"), ("Authorization", "Bearer t")], "body");
    assert_eq!((answer.status, answer.end), (200, End::Framed));
    let seen = upstream.last();
    assert_eq!((seen.method.as_str(), seen.target.as_str(), seen.version.as_str()), ("POST", "/a/b?c=d", "HTTP/1.1"));
    assert_eq!((seen.text().as_str(), seen.all("x-a"), seen.header("authorization")), ("body", vec!["1", "2"], Some("Bearer t")));
    assert_eq!(answer.json()["body"], "body");
}

#[test]
fn connections_to_the_upstream_are_reused() {
    let upstream = Upstream::echo();
    let yaml = format!("server: {{ workers: 1, timeouts: {{ drain: 200ms }} }}\n{}", Gateway::simple(""));
    let gateway = Gateway::new(&yaml, &[upstream.address]);
    let mut raw = gateway.connect();
    for index in 0..20 {
        assert_eq!(raw.ask(request("POST", &format!("/{index}"), &[], "x")).status, 200);
    }
    assert_eq!(gateway.get("/other-client").status, 200);
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn an_upstream_that_says_close_is_not_asked_again_on_that_connection() {
    let upstream = Upstream::serve(|_, conn| {
        conn.answer(200, "connection: close\r\n", "x");
        Then::Close
    });
    let gateway = Gateway::to(upstream.address, "");
    let mut raw = gateway.connect();
    for _ in 0..5 {
        let answer = raw.ask(get("/"));
        assert_eq!((answer.status, answer.closes()), (200, false));
    }
    assert_eq!(upstream.connections(), 5);
}

#[test]
fn http_1_0_upstreams_are_asked_on_a_fresh_connection_each_time() {
    let upstream = Upstream::serve(|request, conn| {
        conn.write(format!(
            "HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: {}\r\n\r\n{}",
            request.target.len(),
            request.target
        ));
        Then::Keep
    });
    let gateway = Gateway::to(upstream.address, "");
    let mut raw = gateway.connect();
    for path in ["/a", "/b"] {
        assert_eq!(raw.ask(get(path)).text(), path);
        assert_eq!(upstream.last().version, "HTTP/1.1");
    }
    let chunked = "POST /c HTTP/1.1\r\nHost: site\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
    assert_eq!(raw.ask(chunked).text(), "/c");
    assert_eq!(upstream.last().text(), "hi");
    assert_eq!(upstream.connections(), 3);
}

#[test]
fn a_body_delimited_by_the_end_of_the_connection_passes_whole() {
    let upstream = Upstream::bytes("HTTP/1.0 200 OK\r\n\r\nuntil the end", Then::Close);
    let gateway = Gateway::to(upstream.address, "");
    let mut raw = gateway.connect();
    for _ in 0..2 {
        let answer = raw.ask(get("/"));
        assert_eq!((answer.text().as_str(), answer.end), ("until the end", End::Framed));
        assert_eq!(answer.header("transfer-encoding"), Some("chunked"));
    }
}

#[test]
fn http_1_0_clients_get_answers_they_understand() {
    let upstream = Upstream::serve(|_, conn| {
        conn.write("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n");
        Then::Keep
    });
    let gateway = Gateway::to(upstream.address, "");
    let mut raw = gateway.connect();
    let answer = raw.ask("GET / HTTP/1.0\r\nHost: site\r\n\r\n");
    assert_eq!((answer.version.as_str(), answer.text().as_str(), answer.end), ("HTTP/1.0", "hello", End::Eof));
    assert!(!answer.has("transfer-encoding"));
    assert_eq!(upstream.last().version, "HTTP/1.1");
}

#[test]
fn http_1_0_clients_may_keep_the_connection() {
    let upstream = Upstream::text("hello");
    let gateway = Gateway::to(upstream.address, "");
    let mut raw = gateway.connect();
    for _ in 0..2 {
        let answer = raw.ask("GET / HTTP/1.0\r\nHost: site\r\nConnection: keep-alive\r\n\r\n");
        assert_eq!((answer.text().as_str(), answer.header("connection")), ("hello", Some("keep-alive")));
    }
    raw.ask("GET / HTTP/1.0\r\nHost: site\r\n\r\n");
    raw.assert_closed();
}

#[test]
fn a_client_that_says_close_is_closed() {
    let upstream = Upstream::text("hello");
    let gateway = Gateway::to(upstream.address, "");
    let mut raw = gateway.connect();
    let answer = raw.ask(request("GET", "/", &[("Connection", "close")], ""));
    assert!(answer.closes());
    raw.assert_closed();
    assert!(!upstream.last().has("connection"));
}

#[test]
fn a_204_and_a_304_never_have_a_body_and_leave_the_connection_intact() {
    let upstream = Upstream::serve(|request, conn| {
        match request.target.as_str() {
            "/204" => conn.write("HTTP/1.1 204 No Content\r\n\r\n"),
            "/204-length" => conn.write("HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\n"),
            "/304" => conn.write("HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\netag: \"x\"\r\n\r\n"),
            _ => {
                conn.ok("next");
                true
            }
        };
        Then::Keep
    });
    let gateway = Gateway::to(upstream.address, "");
    let mut raw = gateway.connect();
    // The length of a 304 is that of the answer to a GET (RFC 9110, 8.6).
    for (path, status, length) in [("/204", 204, None), ("/204-length", 204, None), ("/304", 304, Some("5"))] {
        let answer = raw.ask(get(path));
        assert_eq!((answer.status, answer.header("content-length"), answer.header("transfer-encoding")), (status, length, None), "{path}");
        assert_eq!(raw.ask(get("/next")).text(), "next");
    }
}

#[test]
fn a_continue_is_sent_only_when_the_body_is_wanted() {
    let upstream = Upstream::echo();
    let yaml = "
        upstreams: { up: { endpoints: [http://@0] } }
        routes:
          - { match: /denied, ip: { deny: [127.0.0.1] }, upstream: up }
          - { match: /*, upstream: up }
    ";
    let gateway = Gateway::new(yaml, &[upstream.address]);
    let mut raw = gateway.connect();
    let head = |path: &str| request("POST", path, &[("Expect", "100-continue"), ("Content-Length", "5")], "");
    let interim = raw.ask(head("/x"));
    assert_eq!(interim.status, 100);
    let answer = raw.ask("hello");
    assert_eq!((answer.status, answer.json()["body"].as_str()), (200, Some("hello")));
    assert!(!upstream.last().has("expect"));
    raw.ask(head("/denied")).refused(403, "ip_denied");
    assert_eq!(upstream.count(), 1);
    // Nor where the head itself is refused.
    gateway.ask("POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n").refused(400, "bad_request");
}

#[test]
fn line_ends_between_requests_are_no_request() {
    let upstream = Upstream::echo();
    let gateway = Gateway::to(upstream.address, "");
    let mut raw = gateway.connect();
    for path in ["/1", "/2"] {
        raw.send("\r\n");
        assert_eq!(raw.ask(get(path)).status, 200);
        raw.send("\r\n\r\n");
    }
    // A drain does not wait for what never began.
    drop(gateway);
    raw.assert_closed();
}

#[test]
fn interim_responses_of_the_upstream_are_dropped() {
    let upstream = Upstream::serve(|_, conn| {
        conn.write("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n");
        conn.ok("final")
    });
    let gateway = Gateway::to(upstream.address, "");
    let mut raw = gateway.connect();
    for _ in 0..3 {
        let answer = raw.ask(get("/"));
        assert_eq!((answer.status, answer.text().as_str(), answer.header("link")), (200, "final", None));
    }
}

#[test]
fn more_than_sixteen_interim_responses_are_an_error() {
    let upstream = Upstream::serve(|request, conn| {
        let count: usize = request.target[1..].parse().unwrap();
        conn.write("HTTP/1.1 103 Early Hints\r\n\r\n".repeat(count));
        conn.ok("final")
    });
    let gateway = Gateway::to(upstream.address, "");
    assert_eq!(gateway.get("/16").text(), "final");
    gateway.get("/17").refused(502, "upstream_protocol_error");
    gateway.get("/10000").refused(502, "upstream_protocol_error");
}

#[test]
fn an_early_answer_is_delivered_and_the_upload_stops() {
    let upstream = Upstream::raw(|conn| {
        conn.wire.request_head().unwrap();
        conn.write("HTTP/1.1 413 Too Large\r\ncontent-length: 5\r\n\r\nlarge");
        conn.wait_end();
        Then::Close
    });
    let gateway = Gateway::to(upstream.address, "");
    let mut raw = gateway.connect();
    raw.send("POST /upload HTTP/1.1\r\nHost: site\r\nContent-Length: 1000000000\r\n\r\nbegin");
    let answer = raw.read();
    assert_eq!((answer.status, answer.text().as_str()), (413, "large"));
    // The gateway does not wait for a gigabyte: it closes, and the upstream's connection is not used again.
    let (rest, _) = raw.rest();
    assert!(rest.is_empty());
    eventually("the upstream's connection ends", || (upstream.open() == 0).then_some(()));
}

#[test]
fn a_short_rest_of_a_body_is_dropped_so_that_the_client_sees_the_answer() {
    let gateway = Gateway::new("routes: [{ match: /x, ip: { deny: [127.0.0.1] }, respond: { status: 200 } }]", &[]);
    let mut raw = gateway.connect();
    raw.send("POST /x HTTP/1.1\r\nHost: site\r\nContent-Length: 60000\r\n\r\n");
    raw.send(vec![b'x'; 60000]);
    raw.read().refused(403, "ip_denied");
}

#[test]
fn trailers_pass_both_ways_and_are_never_merged_into_headers() {
    let upstream = Upstream::serve(|_, conn| {
        conn.write(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum, set-cookie\r\n\r\n\
             2\r\nhi\r\n0\r\nx-sum: 1\r\ncontent-length: 9\r\nx-more: 2\r\n\r\n",
        );
        Then::Keep
    });
    let gateway = Gateway::to(upstream.address, "");
    let mut raw = gateway.connect();
    let answer = raw.ask(
        "POST / HTTP/1.1\r\nHost: site\r\nTE: trailers\r\nConnection: TE\r\nTrailer: x-check\r\nTransfer-Encoding: chunked\r\n\r\n\
         2\r\nhi\r\n0\r\nx-check: 7\r\nx-late: 8\r\nhost: evil\r\n\r\n",
    );
    // Whether `Trailer` announces them or not.
    assert_eq!(upstream.last().trailers, [("x-check".to_owned(), "7".to_owned()), ("x-late".to_owned(), "8".to_owned())]);
    assert!(!upstream.last().has("x-check"));
    assert_eq!(answer.trailers, [("x-sum".to_owned(), "1".to_owned()), ("x-more".to_owned(), "2".to_owned())]);
    assert!(!answer.has("x-sum"));
    let without = raw.ask(get("/"));
    assert_eq!((without.trailers.len(), without.text().as_str(), without.end), (0, "hi", End::Framed));
}

#[test]
fn a_stale_connection_never_surfaces_for_an_idempotent_request() {
    let upstream = Upstream::serve(|_, conn| {
        // One answer, then the connection is closed without a word, as servers do when their keep-alive is over.
        conn.ok("x");
        Then::Close
    });
    let yaml = format!("server: {{ workers: 1, timeouts: {{ drain: 200ms }} }}\n{}", Gateway::simple("retry: off"));
    let gateway = Gateway::new(&yaml, &[upstream.address]);
    let mut raw = gateway.connect();
    for _ in 0..50 {
        assert_eq!(raw.ask(get("/")).status, 200);
    }
}

#[test]
fn a_post_whose_bytes_may_have_been_read_is_never_sent_twice() {
    // The second request on a connection is read and then dropped: whether it was acted on, nobody knows.
    let upstream = Upstream::serve(|_, conn| if conn.served == 0 { conn.ok("x") } else { Then::Reset });
    let yaml = format!(
        "server: {{ workers: 1, timeouts: {{ drain: 200ms }} }}\n{}",
        Gateway::simple("retry: { attempts: 3, when: [connect, reset, 502] }")
    );
    let gateway = Gateway::new(&yaml, &[upstream.address]);
    let mut raw = gateway.connect();
    assert_eq!(raw.ask(request("POST", "/first", &[], "x")).status, 200);
    raw.ask(request("POST", "/second", &[], "x")).refused(502, "upstream_reset");
    let seconds = upstream.requests().iter().filter(|request| request.target == "/second").count();
    assert_eq!(seconds, 1);
    // The same with a GET goes once more on a fresh connection.
    assert_eq!(raw.ask(get("/third")).status, 200);
    assert_eq!(raw.ask(get("/fourth")).status, 200);
}

#[test]
fn a_client_that_leaves_cancels_its_request_upstream() {
    let gate = Gate::new();
    let ended = gate.clone();
    let upstream = Upstream::raw(move |conn| {
        conn.wire.request_head().unwrap();
        conn.wait_end();
        ended.open();
        Then::Close
    });
    let gateway = Gateway::to(upstream.address, "");
    let mut raw = gateway.connect();
    raw.send(get("/left"));
    eventually("the upstream has it", || (upstream.connections() == 1).then_some(()));
    drop(raw);
    gate.pass();
    let line = gateway.logged("/left");
    assert_eq!((line["status"].as_u64(), line["reason"].as_str()), (Some(499), Some("client_closed")));
    gateway.metric_becomes("gateway_requests_total{route=\"all\",method=\"GET\",status=\"499\"}", 1.0);
    gateway.metric_becomes("gateway_requests_in_flight", 0.0);
}

#[test]
fn a_unix_socket_can_be_an_endpoint() {
    use std::io::{Read as _, Write as _};
    let dir = tempfile::tempdir().unwrap();
    let listener = std::os::unix::net::UnixListener::bind(dir.path().join("app.sock")).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            if stream.read(&mut byte).unwrap() == 0 {
                return;
            }
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{head}", head.len()).unwrap();
    });
    let yaml = "
        upstreams: { up: { endpoints: ['unix:@DIR/app.sock'] } }
        routes: [{ match: /*, rewrite: { host: upstream }, upstream: up }]
    ";
    let gateway = Gateway::in_dir(dir, yaml, &[]);
    let text = gateway.get("/x").text();
    assert!(text.starts_with("GET /x HTTP/1.1\r\n"), "{text}");
    assert!(text.to_ascii_lowercase().contains("host: localhost\r\n"), "{text}");
}

#[test]
fn round_robin_takes_the_endpoints_in_turn() {
    let upstreams = [Upstream::text("a"), Upstream::text("b"), Upstream::text("c")];
    let yaml = "
        upstreams: { up: { endpoints: [http://@0, http://@1, http://@2] } }
        routes: [{ match: /*, upstream: up }]
    ";
    let gateway = Gateway::new(yaml, &upstreams.each_ref().map(|upstream| upstream.address));
    let mut raw: Raw = gateway.connect();
    let picks: Vec<String> = (0..9).map(|_| raw.ask(get("/")).text()).collect();
    assert_eq!(picks[..3], picks[3..6]);
    assert_eq!(picks[..3], picks[6..]);
    let mut first = picks[..3].to_vec();
    first.sort();
    assert_eq!(first, ["a", "b", "c"]);
}
