//! What rewrites accept, and what they make of paths.

use proptest::prelude::*;

use super::*;
use crate::config::resolve::{Route, Target};
use crate::http::template::sample::{exchange, with_param};

fn path(path: &str) -> Match {
    Match { path: Some(path.into()), ..Match::default() }
}

fn prefix(prefix: &str) -> Match {
    Match { prefix: Some(prefix.into()), ..Match::default() }
}

fn regex(regex: &str) -> Match {
    Match { regex: Some(regex.into()), ..Match::default() }
}

fn compile(matcher: Match, rewrite: &route::Rewrite) -> Result<Rewrite, Vec<String>> {
    let route = Route {
        name: "r".into(),
        at: At::main("routes").index(0),
        matcher,
        priority: 0,
        rewrite: None,
        timeout: None,
        idle_timeout: None,
        retry: None,
        body_limit: None,
        ip: None,
        cors: None,
        auth: None,
        rate_limits: Vec::new(),
        headers: Vec::new(),
        mirror: None,
        target: Target::Upstream("u".into()),
    };
    let mut problems = Problems::default();
    let compiled = Rewrite::compile(rewrite, &route, &mut problems);
    assert_eq!(compiled.is_none(), problems.has_errors());
    compiled.ok_or_else(|| problems.list().iter().map(|p| format!("{} {}", p.message, p.help.as_deref().unwrap_or_default())).collect())
}

fn template(text: &str) -> route::Rewrite {
    route::Rewrite { path: Some(text.into()), ..route::Rewrite::default() }
}

fn strip(text: &str) -> route::Rewrite {
    route::Rewrite { strip_prefix: Some(text.into()), ..route::Rewrite::default() }
}

fn replace(pattern: &str, to: &str) -> route::Rewrite {
    route::Rewrite { regex: Some(pattern.into()), to: Some(to.into()), ..route::Rewrite::default() }
}

fn apply(rewrite: &Rewrite, exchange: &Exchange) -> Result<Option<String>, u16> {
    rewrite.apply(exchange).map(|target| target.map(|t| t.to_string())).map_err(|refusal| refusal.status().as_u16())
}

fn done(matcher: Match, written: &route::Rewrite, target: &str) -> Result<Option<String>, u16> {
    apply(&compile(matcher, written).unwrap(), &exchange(target))
}

fn to(text: &str) -> Result<Option<String>, u16> {
    Ok(Some(text.to_owned()))
}

#[test]
fn a_template_makes_a_new_path_and_keeps_the_query() {
    let rewrite = compile(path("/api/users/{id}"), &template("/users/{id}")).unwrap();
    let ex = with_param(exchange("/api/users/a%20b?x=1"), "id", "a%20b");
    assert_eq!(apply(&rewrite, &ex), to("/users/a%20b?x=1"));
    let rewrite = compile(path("/api/users/{id}"), &template("/users?id={id}")).unwrap();
    assert_eq!(apply(&rewrite, &ex), to("/users?id=a%20b&x=1"));
}

#[test]
fn a_template_whose_value_is_missing_is_a_bad_request() {
    assert_eq!(done(prefix("/a"), &template("/users/{claim:sub}"), "/a/b"), Err(400));
}

#[test]
fn strip_prefix_cuts_whole_segments_and_leaves_at_least_the_root() {
    for (target, expected) in [("/api", "/"), ("/api/", "/"), ("/api/x/y?q", "/x/y?q"), ("/api;v=1/x", "/x"), ("/api?q", "/?q")] {
        assert_eq!(done(prefix("/api"), &strip("/api"), target), to(expected), "{target}");
        assert_eq!(done(prefix("/api"), &strip("/api/"), target), to(expected), "{target}");
    }
    assert_eq!(done(prefix("/a b"), &strip("/a%20b"), "/a%20b/c"), to("/c"));
    assert_eq!(done(path("/a/{id}"), &strip("/a"), "/a/x%2Fy"), to("/x%2Fy"));
}

#[test]
fn strip_prefix_that_the_route_does_not_have_is_refused() {
    for (matcher, text) in [
        (prefix("/api"), "/ap"),
        (prefix("/api"), "/api/v1"),
        (path("/{a}/b"), "/b"),
        (prefix("/api"), "api"),
        (regex("^/(api|x)/.*$"), "/api"),
    ] {
        assert!(compile(matcher, &strip(text)).is_err(), "{text}");
    }
}

#[test]
fn strip_prefix_with_a_regex_route_cuts_only_what_is_there() {
    let rewrite = compile(regex("^/api/v[0-9]+/.*$"), &strip("/api")).unwrap();
    assert_eq!(apply(&rewrite, &exchange("/api/v1/x")), to("/v1/x"));
    let rewrite = compile(regex("^/api/x.*|/other/.*$"), &strip("/api")).unwrap();
    assert_eq!(apply(&rewrite, &exchange("/other/x")), Ok(None));
}

#[test]
fn regex_replaces_the_first_match_only() {
    assert_eq!(done(prefix("/"), &replace("^/old/(.*)", "/new/$1"), "/old/a/b?q=1"), to("/new/a/b?q=1"));
    assert_eq!(done(prefix("/"), &replace("a", "b"), "/a/a"), to("/b/a"));
    assert_eq!(done(prefix("/"), &replace("^/(?<x>[a-z]+)/(?<y>.*)$", "/$y/${x}/$2x$$"), "/one/two"), to("/two/one/twox$"));
    assert_eq!(done(prefix("/"), &replace("^/old/", "/new/"), "/other?q"), Ok(None), "no match leaves the path");
}

#[test]
fn regex_with_a_query_puts_it_first_and_encodes_groups_in_it() {
    assert_eq!(done(prefix("/"), &replace("^/u/(.*)$", "/q?user=$1&v=2"), "/u/a&b%20c?x=1"), to("/q?user=a%26b%20c&v=2&x=1"));
    assert_eq!(done(prefix("/"), &replace("^/u", "/q?v=2"), "/u/tail"), to("/q/tail?v=2"));
}

#[test]
fn results_that_climb_or_are_no_paths_are_bad_requests() {
    for (pattern, replacement, target) in [
        ("^/(.*)$", "$1", "/x"),
        ("^/a/(.*)$", "/$1.", "/a/."),
        ("x", ".", "/x"),
        ("x+", "..", "/a/xx"),
        ("^/a%(..)", "/b%", "/a%20"),
        ("^/p/(.*)-(.*)$", "/$1$2", "/p/.-."),
        ("^/a", "", "/a"),
    ] {
        assert_eq!(done(prefix("/"), &replace(pattern, replacement), target), Err(400), "{pattern} {replacement} {target}");
    }
    assert_eq!(done(prefix("/"), &replace("^/a/?", "//"), "/a/b"), to("/b"), "no empty segments arise");
}

#[test]
fn broken_rewrites_are_refused_with_help() {
    let message = |written: &route::Rewrite| compile(prefix("/a"), written).unwrap_err().join("\n");
    assert!(message(&route::Rewrite { strip_prefix: Some("/a".into()), ..template("/b") }).contains("more than one"));
    assert!(message(&replace("(", "/x")).contains("not a regular expression"));
    assert!(message(&replace("^/(a)", "/$2")).contains("its groups are $1"));
    assert!(message(&replace("^/(?<name>a)", "/$nam")).contains("$name"));
    assert!(message(&replace("^/a", "/x#y")).contains("never sent"));
    assert!(message(&route::Rewrite { to: Some("/x".into()), ..route::Rewrite::default() }).contains("needs `regex`"));
    assert!(message(&route::Rewrite { regex: Some("x".into()), ..route::Rewrite::default() }).contains("needs `to`"));
    assert!(message(&template("/b#c")).contains("never sent"));
    assert!(message(&template("b")).contains("not a path"));
    assert!(message(&template("/{nope}")).contains("unknown template value"));
}

#[test]
fn host_is_kept_the_endpoints_or_a_name() {
    let host = |text: Option<&str>| {
        let written = route::Rewrite { host: text.map(str::to_owned), ..route::Rewrite::default() };
        compile(prefix("/a"), &written).map(|rewrite| rewrite.host().clone())
    };
    assert_eq!(host(None), Ok(HostMode::Preserve));
    assert_eq!(host(Some("preserve")), Ok(HostMode::Preserve));
    assert_eq!(host(Some("upstream")), Ok(HostMode::Upstream));
    assert_eq!(host(Some("api.internal:8080")), Ok(HostMode::Fixed(HeaderValue::from_static("api.internal:8080"))));
    for wrong in ["", "a b", "a/b", "u@h", ":80", "http://x"] {
        assert!(host(Some(wrong)).is_err(), "{wrong}");
    }
    let rewrite = compile(prefix("/a"), &route::Rewrite { host: Some("x".into()), ..route::Rewrite::default() }).unwrap();
    assert_eq!(apply(&rewrite, &exchange("/a?b")), Ok(None));
}

proptest! {
    #[test]
    fn no_replacement_ever_yields_a_climbing_path(target in "(/[a.;%2eF]{0,4}){1,4}", to in "(/|\\.|;|\\$1|a|%2e){0,6}") {
        if target.parse::<PathAndQuery>().is_ok()
            && let Ok(rewrite) = compile(prefix("/"), &replace("^/([^/]*)", &to))
            && let Ok(Some(result)) = apply(&rewrite, &exchange(&target))
        {
            prop_assert!(result.starts_with('/'));
            for segment in result.split('/') {
                let name = segment.split(';').next().unwrap_or_default().to_ascii_lowercase().replace("%2e", ".");
                prop_assert!(name != "." && name != "..", "{result}");
            }
        }
    }
}
