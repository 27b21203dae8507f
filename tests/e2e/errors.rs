//! What clients are told when the gateway answers itself.

use serde_json::{Value, json};

use crate::support::{Gateway, Refused, Then, Upstream};

#[test]
fn the_body_is_a_problem_with_exactly_these_members() {
    let refused = Refused::new();
    let gateway = Gateway::to(refused.address, "");
    let answer = gateway.request("GET", "/x", &[("X-Request-Id", "abc")], "");
    assert_eq!((answer.status, answer.header("content-type")), (502, Some("application/problem+json")));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert_eq!(
        answer.json(),
        json!({"type": "about:blank", "title": "Bad Gateway", "status": 502, "detail": "The upstream refused the connection.",
            "reason": "upstream_connect_failed", "request_id": "abc"})
    );
    assert_eq!(answer.header("content-length"), Some(answer.body.len().to_string().as_str()));
}

#[test]
fn the_log_and_the_metrics_have_the_reason_of_the_body() {
    let refused = Refused::new();
    let reset = Upstream::raw(|conn| {
        conn.wire.request_head().unwrap();
        Then::Reset
    });
    let garbage = Upstream::bytes("garbage\r\n\r\n", Then::Close);
    let silent = Upstream::raw(|conn| {
        conn.wait_end();
        Then::Close
    });
    let yaml = "
        upstreams:
          refused: { endpoints: [http://@0] }
          reset: { endpoints: [http://@1] }
          garbage: { endpoints: [http://@2] }
          silent: { endpoints: [http://@3] }
          idle: { endpoints: [{ url: http://@3, weight: 1 }], health: { path: /, timeout: 100ms }, panic_threshold: 0% }
        authenticators:
          keys: { api_key: { from: [header:x-key], keys: [{ id: a, sha256: 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae, scopes: [r] }] } }
        routes:
          - { match: /refused, retry: off, upstream: refused }
          - { match: /reset, retry: off, upstream: reset }
          - { match: /garbage, retry: off, upstream: garbage }
          - { match: /silent, timeout: 100ms, retry: off, upstream: silent }
          - { match: /unhealthy, upstream: idle }
          - { match: /auth, auth: keys, respond: { status: 200 } }
          - { match: /scope, auth: { any: [keys], scopes: [w] }, respond: { status: 200 } }
          - { match: /denied, ip: { deny: [127.0.0.1] }, respond: { status: 200 } }
          - { match: GET /get, respond: { status: 200 } }
          - { match: /limit, rate_limit: [{ by: global, rate: 1/h }], respond: { status: 200 } }
          - { match: /large, body_limit: 1B, respond: { status: 200 } }
    ";
    let gateway = Gateway::new(yaml, &[refused.address, reset.address, garbage.address, silent.address]);
    gateway.get("/limit");
    for (method, path, status, reason, route) in [
        ("GET", "/refused", 502, "upstream_connect_failed", "/refused"),
        ("GET", "/reset", 502, "upstream_reset", "/reset"),
        ("GET", "/garbage", 502, "upstream_protocol_error", "/garbage"),
        ("GET", "/silent", 504, "upstream_timeout", "/silent"),
        ("GET", "/unhealthy", 503, "no_healthy_endpoint", "/unhealthy"),
        ("GET", "/auth", 401, "unauthenticated", "/auth"),
        ("GET", "/scope", 403, "forbidden", "/scope"),
        ("GET", "/denied", 403, "ip_denied", "/denied"),
        ("POST", "/get", 405, "method_not_allowed", "-"),
        ("GET", "/nowhere", 404, "no_route", "-"),
        ("GET", "/limit", 429, "rate_limited", "/limit"),
        ("POST", "/large", 413, "body_too_large", "/large"),
        ("GET", "/%zz", 400, "bad_request", "-"),
    ] {
        let headers: &[(&str, &str)] = if path == "/scope" { &[("x-key", "foo")] } else { &[] };
        let answer = gateway.request(method, path, headers, if path == "/large" { "xx" } else { "" });
        answer.refused(status, reason);
        let id = answer.json()["request_id"].clone();
        assert_eq!(answer.header("x-request-id"), id.as_str(), "{path}");
        let line: Value = crate::support::eventually("the line", || gateway.log().into_iter().find(|line| line["request_id"] == id));
        assert_eq!((line["reason"].as_str(), line["status"].as_u64()), (Some(reason), Some(u64::from(status))), "{path}: {line}");
        gateway.metric_becomes(&format!("gateway_errors_total{{route=\"{route}\",reason=\"{reason}\"}}"), 1.0);
    }
}

#[test]
fn errors_name_no_address_and_no_upstream() {
    let refused = Refused::new();
    let yaml = "
        upstreams: { topsecretname: { endpoints: [http://@0] } }
        routes: [{ match: /*, upstream: topsecretname }]
    ";
    let gateway = Gateway::new(yaml, &[refused.address]);
    let text = format!("{:?}", gateway.get("/"));
    assert!(
        !text.contains("topsecretname") && !text.contains(&refused.address.port().to_string()) && !text.contains("127.0.0.1"),
        "{text}"
    );
}

#[test]
fn a_head_request_gets_the_error_without_its_body() {
    let gateway = Gateway::new("routes: [{ match: GET /a, respond: { status: 200 } }]", &[]);
    let mut raw = gateway.connect();
    raw.send("HEAD /b HTTP/1.1\r\nHost: site\r\n\r\n");
    let answer = raw.read_to_head();
    assert_eq!((answer.status, answer.header("content-type")), (404, Some("application/problem+json")));
    assert_eq!(raw.ask(crate::support::client::get("/a")).status, 200);
}

#[test]
fn an_error_of_a_route_keeps_the_connection_usable() {
    let gateway = Gateway::new("routes: [{ match: GET /a, respond: { status: 200, body: a } }]", &[]);
    let mut raw = gateway.connect();
    for _ in 0..3 {
        raw.ask(crate::support::client::get("/b")).refused(404, "no_route");
        assert_eq!(raw.ask(crate::support::client::get("/a")).text(), "a");
    }
}
