//! `headers`: rules for requests and responses, on every level.

use crate::support::{Gateway, Upstream};

#[test]
fn each_level_removes_then_sets_then_adds() {
    let upstream = Upstream::serve(|_, conn| conn.answer(200, "x-a: up\r\nx-b: up\r\nserver: backend\r\n", "hi"));
    let yaml = "
        upstreams: { up: { endpoints: [http://@0] } }
        defaults: { headers: { request: { set: { x-level: defaults } }, response: { set: { x-level: defaults }, remove: [server] } } }
        routes:
          - match: /*
            headers:
              request: { remove: [x-gone], set: { x-level: route, x-path: '{path}', x-q: '{query}' }, add: { x-more: two } }
              response: { remove: [x-a], set: { x-b: gateway }, add: { x-b: more } }
            upstream: up
    ";
    let gateway = Gateway::new(yaml, &[upstream.address]);
    let answer = gateway.request("GET", "/p/q?r=s", &[("X-Gone", "1"), ("X-More", "one"), ("X_Level", "client")], "");
    let seen = upstream.last();
    assert!(!seen.has("x-gone") && !seen.has("x_level"), "{seen:?}");
    assert_eq!(seen.all("x-level"), ["route"]);
    assert_eq!((seen.header("x-path"), seen.header("x-q")), (Some("/p/q"), Some("r=s")));
    assert_eq!(seen.all("x-more"), ["one", "two"]);
    assert!(!answer.has("x-a") && !answer.has("server"), "{answer:?}");
    assert_eq!(answer.all("x-b"), ["gateway", "more"]);
    assert_eq!(answer.all("x-level"), ["defaults"]);
}

#[test]
fn a_value_that_is_missing_is_not_sent_and_the_clients_copy_is_gone() {
    let upstream = Upstream::echo();
    let gateway = Gateway::to(upstream.address, "headers: { request: { set: { x-user: '{user}', x-claim: '{claim:sub}' } } }");
    gateway.request("GET", "/", &[("X-User", "root"), ("X-Claim", "root")], "");
    assert!(!upstream.last().has("x-user") && !upstream.last().has("x-claim"));
}

#[test]
fn response_rules_hold_for_gateway_made_errors_too() {
    let yaml = "
        defaults: { headers: { response: { set: { x-default: d } } } }
        routes:
          - { match: /denied, ip: { deny: [127.0.0.1] }, headers: { response: { set: { x-route: r } }, security: true }, respond: { status: 200 } }
    ";
    let gateway = Gateway::new(yaml, &[]);
    let denied = gateway.get("/denied");
    denied.refused(403, "ip_denied");
    assert_eq!((denied.header("x-default"), denied.header("x-route")), (Some("d"), Some("r")));
    assert_eq!(denied.header("x-content-type-options"), Some("nosniff"));
    let missing = gateway.get("/missing");
    missing.refused(404, "no_route");
    assert_eq!((missing.header("x-default"), missing.header("x-route")), (Some("d"), None));
    let bad = gateway.get("/%zz");
    bad.refused(400, "bad_request");
    assert!(!bad.has("x-default") && bad.has("x-request-id"), "{bad:?}");
}

#[test]
fn security_fills_gaps_only() {
    let upstream = Upstream::serve(|_, conn| conn.answer(200, "x-frame-options: SAMEORIGIN\r\n", ""));
    let gateway = Gateway::to(upstream.address, "headers: { security: true }");
    let answer = gateway.get("/");
    assert_eq!(answer.all("x-frame-options"), ["SAMEORIGIN"]);
    assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(answer.header("referrer-policy"), Some("strict-origin-when-cross-origin"));
    assert!(!answer.has("strict-transport-security"), "not over plain HTTP");
}

#[test]
fn the_gateway_adds_a_date_but_no_server_and_no_via() {
    let upstream = Upstream::text("x");
    let gateway = Gateway::to(upstream.address, "");
    let answer = gateway.get("/");
    assert_eq!(answer.all("date").len(), 1);
    assert!(!answer.has("server") && !answer.has("via"));
    assert!(!upstream.last().has("via"));
}

#[test]
fn fields_of_the_upstream_pass_unchanged() {
    let upstream = Upstream::serve(|_, conn| {
        conn.answer(
            302,
            "location: http://inner:81/x\r\nset-cookie: a=1; Domain=inner\r\nset-cookie: b=2\r\ndate: Tue, 01 Jan 2030 00:00:00 GMT\r\n",
            "",
        )
    });
    let gateway = Gateway::to(upstream.address, "");
    let answer = gateway.get("/");
    assert_eq!((answer.status, answer.phrase.as_str()), (302, "Status"), "the upstream's own phrase");
    assert_eq!(answer.header("location"), Some("http://inner:81/x"));
    assert_eq!(answer.all("set-cookie"), ["a=1; Domain=inner", "b=2"]);
    assert_eq!(answer.all("date"), ["Tue, 01 Jan 2030 00:00:00 GMT"]);
}
