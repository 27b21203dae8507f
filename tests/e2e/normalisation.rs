//! One canonical path and host, which policy matches and upstreams get.

use crate::support::{Gateway, Upstream};

/// `/public` is open, `/admin` answers 403 from an IP rule: what stands for "protected" here. Everything else is 404.
fn guarded(extra: &str) -> (Gateway, Upstream) {
    let upstream = Upstream::echo();
    let yaml = format!(
        "
upstreams: {{ up: {{ endpoints: [http://@0] }} }}
{extra}
routes:
  - {{ match: /public/*, upstream: up }}
  - {{ match: /admin/*, ip: {{ deny: [127.0.0.0/8] }}, upstream: up }}
"
    );
    (Gateway::new(&yaml, &[upstream.address]), upstream)
}

#[test]
fn every_spelling_of_a_protected_path_meets_its_rules() {
    let (gateway, upstream) = guarded("");
    for path in [
        "/admin",
        "/public/../admin",
        "/public/%2e%2e/admin",
        "/public/%2E./admin",
        "/public/.%2e/admin",
        "//admin",
        "/./admin",
        "/%61dmin",
        "/admin?",
        "/admin?x=1",
        "/admin;x",
        "/admin;x=1/y",
        "/admin#x",
        "/public//..//admin",
        "/public/./../admin/",
    ] {
        gateway.get(path).refused(403, "ip_denied");
    }
    assert_eq!(upstream.count(), 0);
}

#[test]
fn what_servers_disagree_on_is_refused() {
    let (gateway, upstream) = guarded("");
    for path in [
        "/public/..%2fadmin",
        "/public/..%2Fadmin",
        "/admin%2f..%2fpublic",
        "/public\\..\\admin",
        "/public/%5cadmin",
        "/admin%00",
        "/public/%0aadmin",
        "/public/%7f",
        "/public/..;/admin",
        "/public/..;x/admin",
        "/public/.;/admin",
        "/public/;x/admin",
        "/../x",
        "/public/../../x",
        "/public/%zz",
        "/public/%4",
        "/public/%",
    ] {
        let answer = gateway.get(path);
        assert_eq!(answer.status, 400, "{path}: {answer:?}");
        assert_eq!(answer.reason(), "bad_request", "{path}");
        assert!(answer.closes(), "{path}");
    }
    assert_eq!(upstream.count(), 0);
}

#[test]
fn what_is_another_path_stays_another_path() {
    let (gateway, upstream) = guarded("");
    for path in ["/admin.", "/ADMIN", "/admin%20", "/adminx"] {
        gateway.get(path).refused(404, "no_route");
    }
    assert_eq!(gateway.get("/public/%252e%252e/admin").status, 200);
    assert_eq!(upstream.last().target, "/public/%252e%252e/admin");
}

#[test]
fn the_bytes_that_matched_are_the_bytes_sent_on() {
    let (gateway, upstream) = guarded("");
    for (path, forwarded) in [
        ("/public/%7euser", "/public/~user"),
        ("/public/a%2db", "/public/a-b"),
        ("/public/%c3%a9", "/public/%C3%A9"),
        ("/public//a///b", "/public/a/b"),
        ("/public/a/./b/../c", "/public/a/c"),
        ("/public/a;v=1/b", "/public/a;v=1/b"),
        ("/public/a|b^cd{e}", "/public/a%7Cb%5Ecd%7Be%7D"),
        ("/public/\"", "/public/%22"),
        ("/public/a?q=%zz&b=a|b&;&b=2", "/public/a?q=%zz&b=a|b&;&b=2"),
        ("/public/a?", "/public/a?"),
        ("/public/a/", "/public/a/"),
        ("/public/a#frag", "/public/a"),
        ("/public/a:b@c!$&'()*+,=", "/public/a:b@c!$&'()*+,="),
    ] {
        let answer = gateway.get(path);
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        assert_eq!(upstream.last().target, forwarded, "{path}");
    }
}

#[test]
fn raw_bytes_outside_ascii_are_encoded() {
    let (gateway, upstream) = guarded("");
    let answer = gateway.ask("GET /public/é HTTP/1.1\r\nHost: site\r\n\r\n");
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(upstream.last().target, "/public/%C3%A9");
}

#[test]
fn an_encoded_slash_is_kept_inside_its_segment_where_that_is_configured() {
    let (gateway, upstream) = guarded("server: { workers: 1, encoded_slash: keep }");
    assert_eq!(gateway.get("/public/a%2Fb").status, 200);
    assert_eq!(upstream.last().target, "/public/a%2Fb");
    assert_eq!(gateway.get("/public/..%2Fadmin").status, 200, "one segment of /public, forwarded as written");
    assert_eq!(upstream.last().target, "/public/..%2Fadmin");
    gateway.get("/public%2Fx").refused(404, "no_route");
    assert_eq!(gateway.get("/public/a%5Cb").status, 400);
}

#[test]
fn a_host_that_is_missing_doubled_or_malformed_is_refused() {
    let (gateway, upstream) = guarded("");
    for head in [
        "",
        "Host:\r\n",
        "Host: a\r\nHost: a\r\n",
        "Host: a\r\nHost: b\r\n",
        "Host: a b\r\n",
        "Host: a,b\r\n",
        "Host: u@a\r\n",
        "Host: a:99999\r\n",
        "Host: a:b\r\n",
        "Host: a/b\r\n",
    ] {
        let answer = gateway.ask(format!("GET /public/x HTTP/1.1\r\n{head}\r\n"));
        assert_eq!(answer.status, 400, "{head:?}: {answer:?}");
        assert!(answer.closes(), "{head:?}");
    }
    assert_eq!(upstream.count(), 0);
}

#[test]
fn http_1_0_without_a_host_matches_routes_without_one() {
    let yaml = "
        routes:
          - { match: { path: /x }, respond: { status: 200, body: any } }
          - { match: { host: site, path: /x }, respond: { status: 200, body: site } }
          - { match: { host: site, path: /y }, respond: { status: 200, body: site } }
    ";
    let gateway = Gateway::new(yaml, &[]);
    assert_eq!(gateway.ask("GET /x HTTP/1.0\r\n\r\n").text(), "any");
    assert_eq!(gateway.ask("GET /x HTTP/1.0\r\nHost: site\r\n\r\n").text(), "site");
    assert_eq!(gateway.ask("GET /y HTTP/1.0\r\n\r\n").status, 404);
}

#[test]
fn raw_brackets_and_backticks_are_encoded() {
    let (gateway, upstream) = guarded("");
    for (path, forwarded) in [("/public/<>", "/public/%3C%3E"), ("/public/a`b", "/public/a%60b")] {
        assert_eq!(gateway.get(path).status, 200, "{path}");
        assert_eq!(upstream.last().target, forwarded);
    }
}
