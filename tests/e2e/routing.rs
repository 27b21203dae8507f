//! Which route answers, and what is answered where none does.

use crate::support::client::{get, request};
use crate::support::{Gateway, Upstream};

/// A gateway whose routes answer with their names. Each line is `NAME MATCH`.
fn named(lines: &[(&str, &str)]) -> Gateway {
    let mut yaml = String::from("routes:\n");
    for (name, matcher) in lines {
        let matcher = if matcher.starts_with('{') { (*matcher).to_owned() } else { format!("'{matcher}'") };
        yaml.push_str(&format!("  - {{ name: '{name}', match: {matcher}, respond: {{ status: 200, body: '{name}' }} }}\n"));
    }
    Gateway::new(&yaml, &[])
}

fn answers(gateway: &Gateway, host: &str, path: &str) -> String {
    let answer = gateway.request("GET", path, &[("host", host)], "");
    if answer.status == 200 { answer.text() } else { answer.status.to_string() }
}

#[test]
fn a_host_is_matched_exactly_then_by_the_longest_suffix_then_by_any() {
    let gateway = named(&[
        ("any", "{ prefix: / }"),
        ("suffix", "{ host: '*.example.com', prefix: / }"),
        ("long", "{ host: '*.api.example.com', prefix: / }"),
        ("exact", "{ host: v1.api.example.com, prefix: / }"),
    ]);
    for (host, expected) in [
        ("v1.api.example.com", "exact"),
        ("V1.API.Example.Com.:8080", "exact"),
        ("v2.api.example.com", "long"),
        ("a.b.api.example.com", "long"),
        ("api.example.com", "suffix"),
        ("example.com", "any"),
        ("badexample.com", "any"),
        ("v1.api.example.com.evil.org", "any"),
    ] {
        assert_eq!(answers(&gateway, host, "/x"), expected, "{host}");
    }
}

#[test]
fn a_less_specific_host_answers_where_the_best_one_has_no_fitting_path() {
    let gateway = named(&[("best", "{ host: a.example.com, path: /only }"), ("rest", "{ host: '*.example.com', prefix: / }")]);
    assert_eq!(answers(&gateway, "a.example.com", "/only"), "best");
    assert_eq!(answers(&gateway, "a.example.com", "/other"), "rest");
}

#[test]
fn the_most_specific_path_wins_whatever_the_written_order() {
    let gateway = named(&[
        ("root", "{ prefix: / }"),
        ("any", "{ regex: '^/.*$' }"),
        ("three", "/{a}/{b}/{c}"),
        ("prefix", "{ prefix: /api/users }"),
        ("rest", "{ path: '/api/users/{*rest}' }"),
        ("digits", "{ regex: '^/api/users/[0-9]+$' }"),
        ("param", "{ path: '/api/users/{id}' }"),
        ("literal", "{ path: /api/users/5 }"),
    ]);
    assert_eq!(answers(&gateway, "site", "/api/users/5"), "literal");
    assert_eq!(answers(&gateway, "site", "/api/users/6"), "param");
    assert_eq!(answers(&gateway, "site", "/api/users/6/7"), "rest");
    assert_eq!(answers(&gateway, "site", "/a/b/c"), "three");
    assert_eq!(answers(&gateway, "site", "/a/b"), "any");
}

#[test]
fn a_regex_beats_the_catch_all_but_not_a_protected_prefix() {
    let gateway = named(&[("admin", "/admin/*"), ("regex", "{ regex: '/.*' }"), ("all", "/*")]);
    assert_eq!(answers(&gateway, "site", "/admin/x"), "admin");
    assert_eq!(answers(&gateway, "site", "/x"), "regex");
}

#[test]
fn a_prefix_is_matched_by_whole_segments() {
    let gateway = named(&[("api", "{ prefix: /api }")]);
    for (path, expected) in [("/api", "api"), ("/api/", "api"), ("/api/x/y", "api"), ("/apix", "404"), ("/", "404"), ("/API", "404")] {
        assert_eq!(answers(&gateway, "site", path), expected, "{path}");
    }
}

#[test]
fn a_final_slash_and_case_count_in_a_path() {
    let gateway = named(&[("exact", "{ path: /a }")]);
    assert_eq!(answers(&gateway, "site", "/a"), "exact");
    assert_eq!(answers(&gateway, "site", "/a/"), "404");
    assert_eq!(answers(&gateway, "site", "/A"), "404");
}

#[test]
fn priority_beats_every_other_criterion() {
    let yaml = "
        routes:
          - { name: exact, match: { host: site, path: /x }, respond: { status: 200, body: exact } }
          - { name: urgent, priority: 1, match: { prefix: / }, respond: { status: 200, body: urgent } }
    ";
    let gateway = Gateway::new(yaml, &[]);
    assert_eq!(gateway.get("/x").text(), "urgent");
}

#[test]
fn header_and_query_conditions_choose_between_routes() {
    let gateway = named(&[
        ("plain", "{ path: /x }"),
        ("present", "{ path: /x, headers: { x-beta: '*' } }"),
        ("exact", "{ path: /x, headers: { x-beta: '1' } }"),
        ("query", "{ path: /x, query: { v: '2 3' } }"),
    ]);
    let with = |headers: &[(&str, &str)], path| gateway.request("GET", path, headers, "").text();
    assert_eq!(with(&[], "/x"), "plain");
    assert_eq!(with(&[("X-Beta", "1")], "/x"), "exact");
    assert_eq!(with(&[("X-Beta", "2")], "/x"), "present");
    assert_eq!(with(&[("X-Beta", "1"), ("X-Beta", "2")], "/x"), "present", "two lines are one joined value");
    assert_eq!(with(&[], "/x?v=2+3"), "query");
    assert_eq!(with(&[], "/x?v=2%203&v=9"), "query", "the first value counts");
    assert_eq!(with(&[], "/x?v=9&v=2+3"), "plain");
}

#[test]
fn a_path_nobody_has_is_404() {
    let gateway = named(&[("a", "GET /a")]);
    gateway.get("/b").refused(404, "no_route");
}

#[test]
fn a_method_nobody_takes_is_405_with_the_union_of_methods() {
    let gateway = named(&[("get", "GET /a"), ("post", "POST,PUT /a")]);
    let answer = gateway.request("DELETE", "/a", &[], "");
    answer.refused(405, "method_not_allowed");
    let mut allow: Vec<&str> = answer.header("allow").unwrap().split(", ").collect();
    allow.sort_unstable();
    assert_eq!(allow, ["GET", "HEAD", "POST", "PUT"]);
}

#[test]
fn methods_are_case_sensitive() {
    let gateway = named(&[("get", "GET /a")]);
    gateway.request("get", "/a", &[], "").refused(405, "method_not_allowed");
}

#[test]
fn head_is_answered_by_the_get_route_without_a_body() {
    let upstream = Upstream::serve(|request, conn| {
        assert_eq!(request.method, "HEAD");
        conn.write("HTTP/1.1 200 OK\r\ncontent-length: 5\r\nx-up: 1\r\n\r\n");
        crate::support::Then::Keep
    });
    let yaml = "
        upstreams: { up: { endpoints: [http://@0] } }
        routes:
          - { match: GET /local, respond: { status: 200, body: hello } }
          - { match: GET /up, upstream: up }
    ";
    let gateway = Gateway::new(yaml, &[upstream.address]);
    let mut raw = gateway.connect();
    for path in ["/local", "/up", "/local"] {
        raw.send(request("HEAD", path, &[], ""));
        let answer = raw.read_to_head();
        assert_eq!((answer.status, answer.header("content-length")), (200, Some("5")), "{path}");
    }
    // Had a body been sent, this answer would not be readable.
    assert_eq!(raw.ask(get("/local")).text(), "hello");
}

#[test]
fn options_is_an_ordinary_request_unless_it_is_a_preflight() {
    let gateway = named(&[("get", "GET /a"), ("all", "/b")]);
    gateway.request("OPTIONS", "/a", &[], "").refused(405, "method_not_allowed");
    assert_eq!(gateway.request("OPTIONS", "/b", &[], "").text(), "all");
    assert_eq!(gateway.ask("OPTIONS * HTTP/1.1\r\nHost: site\r\n\r\n").status, 204);
}

#[test]
fn connect_and_trace_are_405_without_a_dial() {
    let upstream = Upstream::echo();
    let gateway = Gateway::to(upstream.address, "");
    let target = upstream.address;
    for line in [format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"), "TRACE / HTTP/1.1\r\nHost: site\r\n\r\n".to_owned()] {
        let answer = gateway.ask(&line);
        answer.refused(405, "method_not_allowed");
        assert_eq!(answer.header("allow"), Some("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"));
    }
    assert_eq!(upstream.connections(), 0);
}

#[test]
fn children_of_a_group_have_its_prefix_and_what_it_sets() {
    let upstream = Upstream::echo();
    let yaml = "
        upstreams: { up: { endpoints: [http://@0] } }
        routes:
          - match: /admin/*
            headers: { request: { set: { x-group: outer } } }
            routes:
              - { match: 'GET /users/{id}', rewrite: { path: '/u/{id}' }, upstream: up }
    ";
    let gateway = Gateway::new(yaml, &[upstream.address]);
    assert_eq!(gateway.get("/admin/users/7").status, 200);
    assert_eq!(upstream.last().target, "/u/7");
    assert_eq!(upstream.last().header("x-group"), Some("outer"));
    assert_eq!(gateway.get("/users/7").status, 404);
    assert_eq!(gateway.get("/admin/other").status, 404, "the group itself answers nothing");
    assert_eq!(gateway.logged("/admin/users/7")["route"], "GET /admin/users/{id}");
}

#[test]
fn routes_that_nothing_separates_do_not_load() {
    let yaml = "
        routes:
          - { match: '/{a}/x', respond: { status: 200 } }
          - { match: '/{b}/x', respond: { status: 200 } }
    ";
    assert!(Gateway::start_error(yaml, &[]).is_some());
}

#[test]
fn respond_and_redirect_answer_as_written() {
    let yaml = "
        routes:
          - { match: GET /status, respond: { status: 201, headers: { x-a: b, content-type: application/json }, body: '{\"ok\":true}' } }
          - { match: GET /plain, respond: { status: 200, body: hi } }
          - { match: GET /empty, respond: { status: 204 } }
          - { match: { host: old.example.com, prefix: / }, redirect: { to: 'https://new.example.com{path}', status: 308 } }
          - { match: GET /query, redirect: { to: '/other?x=1', status: 302 } }
    ";
    let gateway = Gateway::new(yaml, &[]);
    let status = gateway.get("/status");
    assert_eq!((status.status, status.text().as_str()), (201, "{\"ok\":true}"));
    assert_eq!((status.header("x-a"), status.header("content-type")), (Some("b"), Some("application/json")));
    assert_eq!(gateway.get("/plain").header("content-type"), Some("text/plain; charset=utf-8"));
    let empty = gateway.get("/empty");
    assert_eq!((empty.status, empty.header("content-length"), empty.header("transfer-encoding")), (204, None, None));
    let moved = gateway.request("GET", "/a/b?c=d", &[("host", "old.example.com")], "");
    assert_eq!((moved.status, moved.header("location"), moved.text().as_str()), (308, Some("https://new.example.com/a/b?c=d"), ""));
    assert_eq!(gateway.get("/query?y=2").header("location"), Some("/other?x=1"));
}

#[test]
fn clear_text_is_sent_to_tls_on_the_same_host() {
    let yaml = "
        server: { trusted_proxies: [127.0.0.1] }
        routes:
          - { name: to-https, priority: 1, match: { scheme: http, prefix: / }, redirect: { to: 'https://{host}{path}', status: 308 } }
          - { name: acme, priority: 2, match: { scheme: http, prefix: /.well-known/acme-challenge }, respond: { body: token } }
          - { match: /admin/*, respond: { body: admin } }
          - { match: /*, respond: { body: site } }
    ";
    let gateway = Gateway::new(yaml, &[]);
    let ask = |path, headers: &[(&str, &str)]| gateway.request("GET", path, &[&[("host", "a.test:8080")], headers].concat(), "");
    let moved = ask("/admin/x?y=1", &[]);
    assert_eq!((moved.status, moved.header("location")), (308, Some("https://a.test/admin/x?y=1")));
    assert_eq!(ask("/.well-known/acme-challenge/1", &[]).text(), "token");
    // A trusted proxy in front ended TLS.
    assert_eq!(ask("/admin/x", &[("x-forwarded-proto", "https")]).text(), "admin");
    assert_eq!(ask("/.well-known/acme-challenge/1", &[("x-forwarded-proto", "https")]).text(), "site");
    let routes: serde_json::Value = serde_json::from_str(&gateway.admin_get("/routes").text()).unwrap();
    assert_eq!((&routes["routes"][0]["name"], &routes["routes"][0]["scheme"]), (&"acme".into(), &"http".into()));
    assert_eq!(routes["routes"][3].get("scheme"), None);
}

#[test]
fn an_absolute_target_is_routed_by_its_own_host_and_never_dialled() {
    let upstream = Upstream::echo();
    let yaml = "
        upstreams: { up: { endpoints: [http://@0] } }
        routes:
          - { match: { host: other, prefix: / }, upstream: up }
    ";
    let gateway = Gateway::new(yaml, &[upstream.address]);
    let answer = gateway.ask("GET http://other/x?y HTTP/1.1\r\nHost: site\r\n\r\n");
    assert_eq!(answer.status, 200);
    assert_eq!((upstream.last().header("host"), upstream.last().target.as_str()), (Some("other"), "/x?y"));
    gateway.ask(format!("GET http://{}/ HTTP/1.1\r\nHost: site\r\n\r\n", upstream.address)).refused(404, "no_route");
    assert_eq!(upstream.count(), 1);
    for target in ["ftp://other/x", "foo", "http://u@other/"] {
        let answer = gateway.ask(format!("GET {target} HTTP/1.1\r\nHost: other\r\n\r\n"));
        assert_eq!(answer.status, 400, "{target}");
    }
    assert_eq!(upstream.count(), 1);
}

#[test]
fn x_forwarded_host_never_routes() {
    let gateway = named(&[("secret", "{ host: inner, prefix: / }"), ("open", "{ host: site, prefix: / }")]);
    assert_eq!(gateway.request("GET", "/", &[("X-Forwarded-Host", "inner")], "").text(), "open");
}
