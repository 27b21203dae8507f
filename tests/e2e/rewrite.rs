//! `rewrite`: which path the upstream gets.

use crate::support::{Gateway, Upstream};

fn proxy(routes: &str) -> (Gateway, Upstream) {
    let upstream = Upstream::echo();
    let yaml = format!("upstreams: {{ up: {{ endpoints: [http://@0] }} }}\nroutes:\n{routes}");
    (Gateway::new(&yaml, &[upstream.address]), upstream)
}

#[track_caller]
fn becomes(gateway: &Gateway, upstream: &Upstream, path: &str, target: &str) {
    let answer = gateway.get(path);
    assert_eq!(answer.status, 200, "{path}: {answer:?}");
    assert_eq!(upstream.last().target, target, "{path}");
}

#[test]
fn a_template_puts_parameters_where_it_says() {
    let (gateway, upstream) = proxy(
        "  - { match: '/api/users/{id}', rewrite: { path: '/users/{id}' }, upstream: up }\n  \
           - { match: '/files/{*rest}', rewrite: { path: '/f/{rest}?from=gateway' }, upstream: up }\n  \
           - { match: '/find/{what}', rewrite: { path: '/search?q={what}' }, upstream: up }\n",
    );
    becomes(&gateway, &upstream, "/api/users/5?x=y", "/users/5?x=y");
    becomes(&gateway, &upstream, "/api/users/a%20b", "/users/a%20b");
    becomes(&gateway, &upstream, "/api/users/a%3Fb%23c", "/users/a%3Fb%23c");
    becomes(&gateway, &upstream, "/files/a/b/c?y=z", "/f/a/b/c?from=gateway&y=z");
    becomes(&gateway, &upstream, "/find/a%26b=c%3D1", "/search?q=a%26b%3Dc%3D1");
}

#[test]
fn strip_prefix_removes_whole_segments() {
    let (gateway, upstream) = proxy("  - { match: /api/*, rewrite: { strip_prefix: /api }, upstream: up }\n");
    becomes(&gateway, &upstream, "/api/x/y?z", "/x/y?z");
    becomes(&gateway, &upstream, "/api", "/");
    becomes(&gateway, &upstream, "/api/", "/");
}

#[test]
fn a_regex_replaces_the_first_match_or_leaves_the_path() {
    let (gateway, upstream) = proxy("  - { match: /*, rewrite: { regex: '^/old/(?P<rest>.*)', to: '/new/$rest' }, upstream: up }\n");
    becomes(&gateway, &upstream, "/old/a/b?q", "/new/a/b?q");
    becomes(&gateway, &upstream, "/other", "/other");
}

#[test]
fn a_value_can_never_climb() {
    let (gateway, upstream) = proxy(
        "  - { match: { regex: '^/r/(?P<x>.*)$' }, rewrite: { path: '/base/{x}' }, upstream: up }\n  \
           - { match: '/c/{id}', rewrite: { path: '/users/{claim:sub}' }, upstream: up }\n",
    );
    becomes(&gateway, &upstream, "/r/a/b", "/base/a%2Fb");
    gateway.get("/r/").refused(400, "bad_request");
    gateway.get("/c/1").refused(400, "bad_request");
    assert_eq!(upstream.count(), 1);
}

#[test]
fn a_route_switches_the_rewrite_of_its_group_off() {
    let upstream = Upstream::echo();
    let yaml = "
        upstreams: { up: { endpoints: [http://@0] } }
        routes:
          - match: /g/*
            rewrite: { strip_prefix: /g }
            routes:
              - { match: /cut, upstream: up }
              - { match: /whole, rewrite: off, upstream: up }
    ";
    let gateway = Gateway::new(yaml, &[upstream.address]);
    for (path, sent) in [("/g/cut", "/cut"), ("/g/whole", "/g/whole")] {
        assert_eq!(gateway.get(path).status, 200);
        assert_eq!(upstream.last().target, sent);
    }
}
