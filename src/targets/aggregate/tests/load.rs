//! What is refused at load.

use super::*;

fn problems(value: &Value) -> String {
    try_compile(value).unwrap_err().join("; ")
}

#[test]
fn one_upstream_of_several_parts_is_listed_once() {
    let mut second = part("b", "/", json!({}));
    second["upstream"] = json!("a");
    assert_eq!(compile(&[part("a", "/", json!({})), second]).upstreams(), ["a"]);
}

#[test]
fn a_method_in_small_letters_is_only_warned_of() {
    let mut problems = Problems::default();
    let written = written(&json!({"parts": [part("a", "/", json!({"method": "post"}))]}));
    assert!(Aggregate::compile(&written, &At::default(), &[], &mut problems).is_some());
    assert_eq!(problems.list().len(), 1);
}

#[test]
fn broken_aggregates_are_refused() {
    let one = |name: &str, path: &str, extra: Value| problems(&json!({"parts": [part(name, path, extra)]}));
    assert!(problems(&json!({"parts": []})).contains("needs parts"));
    assert!(one("a b", "/", json!({})).contains("plain word"));
    assert!(one("", "/", json!({})).contains("plain word"));
    assert!(one("a.b", "/", json!({})).contains("plain word"));
    assert!(problems(&json!({"parts": [part("a", "/", json!({})), part("a", "/", json!({}))]})).contains("two parts are named"));
    assert!(one("a", "/", json!({"allow": [], "deny": []})).contains("exclude each other"));
    assert!(one("a", "http://evil/", json!({})).contains("not a path"));
    assert!(one("a", "{host}/x", json!({})).contains("not a path"));
    assert!(one("a", "/{nope}", json!({})).contains("unknown template value"));
    assert!(one("a", "/{parts.b.x}", json!({})).contains("does not have"));
    assert!(one("a", "/", json!({"method": "CONNECT"})).contains("CONNECT"));
    assert!(one("a", "/", json!({"select": "a..b"})).contains("not a path to a value"));
    let aggregate = |key: &str, value: Value| {
        let mut written = json!({"parts": [part("a", "/", json!({}))]});
        written[key] = value;
        problems(&written)
    };
    assert!(aggregate("concurrency", json!(0)).contains("concurrency"));
    for name in ["Host", "content-type", "Range", "If-None-Match", "connection", "TE", "proxy-authorization", "a b"] {
        assert!(aggregate("forward_headers", json!([name])).contains("header"), "{name}");
    }
}

#[test]
fn parts_that_wait_in_a_circle_are_refused() {
    assert_eq!(problems(&json!({"parts": [part("a", "/{parts.a.x}", json!({}))]})), "the part `a` waits for itself");
    let parts = [
        part("free", "/", json!({})),
        part("outside", "/{parts.b.x}", json!({})),
        part("b", "/{parts.c.x}{parts.free.x}", json!({})),
        part("c", "/{parts.b.x}", json!({})),
    ];
    assert_eq!(problems(&json!({"parts": parts})), "the parts b, c wait for each other");
}
