//! The access log, written to a file.

use crate::support::client::request;
use crate::support::h2::{self, Client};
use crate::support::{Gateway, Upstream, block_on, eventually};

#[test]
fn a_line_has_the_facts_of_its_request() {
    let upstream = Upstream::serve(|_, conn| conn.answer(201, "", "hello"));
    let gateway = Gateway::to(upstream.address, "");
    gateway.request(
        "POST",
        "/a%20b?x=y",
        &[("User-Agent", "test/1"), ("Referer", "http://r/"), ("X-Request-Id", "id-1"), ("Host", "Site:80")],
        "body",
    );
    let line = gateway.logged("/a%20b");
    for (name, value) in [
        ("request_id", "id-1"),
        ("client_ip", "127.0.0.1"),
        ("method", "POST"),
        ("scheme", "http"),
        ("path", "/a%20b"),
        ("query", "x=y"),
        ("protocol", "HTTP/1.1"),
        ("route", "all"),
        ("upstream", "up"),
        ("endpoint", &format!("http://{}", upstream.address)),
        ("user_agent", "test/1"),
        ("referer", "http://r/"),
    ] {
        assert_eq!(line[name], value, "{name}: {line}");
    }
    for (name, value) in [("status", 201), ("attempts", 1), ("bytes_in", 4), ("bytes_out", 5)] {
        assert_eq!(line[name], value, "{name}: {line}");
    }
    assert_eq!(line["complete"], true);
    assert!(line["duration_ms"].is_number() && line["upstream_ms"].is_number(), "{line}");
    let time = line["time"].as_str().unwrap();
    assert!(time.len() == 24 && time.ends_with('Z') && time.as_bytes()[19] == b'.', "{time}");
    for absent in ["reason", "user", "auth_error", "rate_limit", "grpc_status", "tls", "parts"] {
        assert!(line.get(absent).is_none(), "{absent}: {line}");
    }
}

#[test]
fn every_request_has_one_line() {
    let gateway = Gateway::new("routes: [{ match: /*, respond: { status: 200 } }]", &[]);
    let mut raw = gateway.connect();
    for index in 0..200 {
        raw.ask(request("GET", &format!("/{index}"), &[], ""));
    }
    let lines = eventually("all lines", || Some(gateway.log()).filter(|lines| lines.len() >= 200));
    assert_eq!(lines.len(), 200);
    let mut paths: Vec<&str> = lines.iter().map(|line| line["path"].as_str().unwrap()).collect();
    paths.sort_unstable();
    paths.dedup();
    assert_eq!(paths.len(), 200);
}

#[test]
fn hostile_bytes_make_no_second_line() {
    let gateway = Gateway::new("routes: [{ match: /*, respond: { status: 200 } }]", &[]);
    let mut raw = gateway.connect();
    raw.ask(
        "GET /hostile HTTP/1.1\r\nHost: site\r\nUser-Agent: a\"b\\c\u{2028}d\u{85}\te\r\nReferer: \u{1b}[31m\r\n\r\n"
            .replace('\u{1b}', "x"),
    );
    let line = gateway.logged("/hostile");
    assert!(line["user_agent"].as_str().unwrap().contains("a\"b"), "{line}");
    assert_eq!(gateway.log_text().lines().count(), 1);
    let text = gateway.log_text();
    assert!(!text.contains('\u{2028}') && !text.contains('\u{85}') && !text.contains('\t'), "{text}");
}

#[test]
fn credentials_in_a_query_are_hidden() {
    let yaml = "
        authenticators:
          keys: { api_key: { from: [query:token], keys: [{ id: acme, sha256: 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae }] } }
        routes:
          - { match: /*, auth: keys, respond: { status: 200 } }
    ";
    let gateway = Gateway::new(yaml, &[]);
    assert_eq!(gateway.get("/good?a=1&token=foo&b=2").status, 200);
    let line = gateway.logged("/good");
    assert_eq!((line["query"].as_str(), line["user"].as_str()), (Some("a=1&token=***&b=2"), Some("acme")));
    assert_eq!(gateway.get("/bad?token=wrong-secret").status, 401);
    assert_eq!(gateway.logged("/bad")["query"], "token=***");
    assert!(!gateway.log_text().contains("wrong-secret"));
}

#[test]
fn the_text_form_has_the_same_facts() {
    let yaml = "
        log: { level: error, format: text, access: { output: '@DIR/access.log' } }
        routes: [{ match: /*, respond: { status: 200 } }]
    ";
    let gateway = Gateway::new(yaml, &[]);
    gateway.get("/a?b=c");
    let text = eventually("a line", || Some(gateway.log_text()).filter(|text| text.ends_with('\n')));
    let words: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(words[1..4], ["GET", "/a", "200"], "{text}");
    assert!(text.contains("query=b=c") || text.contains("query=\"b=c\""), "{text}");
}

#[test]
fn a_log_that_is_off_writes_nothing() {
    let yaml = "
        log: { level: error, access: { enabled: false, output: '@DIR/access.log' } }
        routes: [{ match: /*, respond: { status: 200 } }]
    ";
    let gateway = Gateway::new(yaml, &[]);
    assert_eq!(gateway.get("/").status, 200);
    gateway.metric_becomes("gateway_requests_total{route=\"/*\",method=\"GET\",status=\"200\"}", 1.0);
    assert_eq!(gateway.log_text(), "");
}

#[test]
fn the_host_is_the_one_that_counts_in_every_version() {
    let gateway = Gateway::new("routes: [{ match: /*, respond: { status: 200 } }]", &[]);
    block_on(async {
        let mut client = Client::connect(gateway.address()).await;
        assert_eq!(client.ask(h2::request("GET", "/two", &[]), b"").await.unwrap().status, 200);
    });
    assert_eq!(gateway.logged("/two")["host"], "site");
    let absolute = "GET http://Other:81/absolute HTTP/1.1\r\nHost: site\r\nConnection: close\r\n\r\n";
    assert_eq!(gateway.ask(absolute).status, 200);
    assert_eq!(gateway.logged("/absolute")["host"], "Other:81");
    gateway.get("/one");
    assert_eq!(gateway.logged("/one")["host"], "site");
}
