//! What templates accept, and what they make of values.

use proptest::prelude::*;
use serde_json::json;

use super::sample::{exchange, params, with_claims, with_param};
use super::{Allowed, HeaderTemplate, TemplateError, UrlTemplate, check_path, encode, params_of};
use crate::config::route::Match;
use crate::http::Exchange;

fn header(text: &str, names: &[&str], ex: &Exchange) -> Option<String> {
    let params = params(names);
    let template = HeaderTemplate::parse(text, Allowed { params: &params, parts: None }).unwrap();
    template.render(ex, &mut Vec::new()).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
}

fn url(text: &str, names: &[&str], ex: &Exchange) -> Result<String, u16> {
    let params = params(names);
    let template = UrlTemplate::parse(text, Allowed { params: &params, parts: None }).unwrap();
    template.render(ex.into(), ex.query()).map_err(|refusal| refusal.status().as_u16())
}

fn refused(text: &str) -> TemplateError {
    UrlTemplate::parse(text, Allowed { params: &params(&["id"]), parts: None }).unwrap_err()
}

#[test]
fn all_built_in_values_are_known() {
    let ex = with_claims(exchange("/a/b?x=1&y"), "alice", &json!({"tenant": "acme", "n": 7, "roles": ["a", "b"], "deep": {"er": true}}));
    assert_eq!(header("{host}|{path}|{query}|{scheme}", &[], &ex).unwrap(), "shop.example.com|/a/b|x=1&y|https");
    assert_eq!(header("{client_ip}|{request_id}|{user}", &[], &ex).unwrap(), "192.0.2.7|req-1|alice");
    assert_eq!(header("{claim:tenant} {claim:n} {claim:roles} {claim:deep.er}", &[], &ex).unwrap(), "acme 7 a,b true");
    assert_eq!(header("{request_id}", &[], &ex).unwrap(), "req-1");
}

#[test]
fn doubled_braces_are_braces() {
    assert_eq!(header("{{a}} {scheme} }}{{", &[], &exchange("/")).unwrap(), "{a} https }{");
    assert_eq!(header("{{{scheme}}}", &[], &exchange("/")).unwrap(), "{https}");
}

#[test]
fn broken_templates_say_where_and_what() {
    assert_eq!(refused("/a/{id").offset, 3);
    assert_eq!(refused("/a/}").offset, 3);
    let unknown = refused("/a/{pth}");
    assert_eq!(unknown.message, "unknown template value `{pth}`");
    assert_eq!(unknown.help.as_deref(), Some("did you mean `{path}`?"));
    assert_eq!(refused("/a/{if}").help.as_deref(), Some("did you mean `{id}`?"));
    assert!(refused("/a/{something}").help.unwrap().contains("{claim:NAME}"));
    assert!(refused("/{claim:}").message.contains("claim:"));
    assert!(refused("/{parts.user.id}").message.contains("unknown"));
    assert!(refused("a/b").help.unwrap().contains("starts with `/`"));
    assert!(refused("{id}/b").message.contains("not a path"));
    assert!(refused("/a/../b").message.contains(".."));
    assert!(refused("/a/%2e").message.contains("segment"));
    assert!(refused("/a%zz").message.contains("two hex digits"));
    assert!(refused("/a\\b").message.contains("backslash"));
}

#[test]
fn a_header_without_its_value_is_not_sent() {
    let ex = with_claims(exchange("/x"), "alice", &json!({"empty": "", "null": null, "evil": "a\r\nb: c", "tab": "a\tb"}));
    for text in ["{claim:missing}", "t-{claim:missing}", "{claim:empty}", "{claim:null}", "{claim:evil}", "{claim:tab}", "{query}", ""] {
        assert_eq!(header(text, &[], &ex), None, "{text}");
    }
    assert_eq!(header("{user}", &[], &exchange("/x")), None);
}

#[test]
fn a_header_gets_parameters_decoded_but_keeps_encoded_slashes() {
    let ex = with_param(exchange("/u/a%20b%2Fc%25"), "id", "a%20b%2Fc%25");
    assert_eq!(header("{id}", &["id"], &ex).unwrap(), "a b%2Fc%");
}

#[test]
fn literal_text_that_no_header_can_hold_is_refused() {
    assert!(HeaderTemplate::parse("a\nb", Allowed::default()).is_err());
    assert!(HeaderTemplate::parse("{scheme}\u{1}", Allowed::default()).is_err());
}

#[test]
fn a_parameter_goes_into_a_path_as_it_came() {
    let ex = with_param(exchange("/u/a%20b;v=1@x%252e"), "id", "a%20b;v=1@x%252e");
    assert_eq!(url("/users/{id}/x", &["id"], &ex).unwrap(), "/users/a%20b;v=1@x%252e/x");
}

#[test]
fn only_rests_and_the_path_keep_their_slashes() {
    let ex = with_param(exchange("/f/a/b%2Fc"), "rest", "a/b%2Fc");
    assert_eq!(url("/files/{rest}", &["*rest"], &ex).unwrap(), "/files/a/b%2Fc");
    assert_eq!(url("/files/{rest}", &["rest"], &ex).unwrap(), "/files/a%2Fb%2Fc");
    assert_eq!(url("/v2{path}", &[], &ex).unwrap(), "/v2/f/a/b%2Fc");
    assert_eq!(url("{path}", &[], &ex).unwrap(), "/f/a/b%2Fc");
    assert_eq!(url("/v2/{path}", &[], &ex).unwrap(), "/v2/f/a/b%2Fc", "no empty segment arises");
}

#[test]
fn values_from_tokens_cannot_leave_their_segment() {
    let cases = [
        ("../admin", "/u/..%2Fadmin/x"),
        ("a?b#c", "/u/a%3Fb%23c/x"),
        ("a&b=c", "/u/a%26b%3Dc/x"),
        ("http://169.254.169.254/", "/u/http%3A%2F%2F169.254.169.254%2F/x"),
        ("\r\nHost: evil", "/u/%0D%0AHost%3A%20evil/x"),
        ("é", "/u/%C3%A9/x"),
        ("%2e%2e", "/u/%252e%252e/x"),
    ];
    for (claim, expected) in cases {
        let ex = with_claims(exchange("/q"), "u", &json!({"c": claim}));
        assert_eq!(url("/u/{claim:c}/x", &[], &ex).unwrap(), expected);
    }
}

#[test]
fn missing_empty_and_climbing_values_in_a_path_are_bad_requests() {
    for claim in [json!(null), json!(""), json!("."), json!("..")] {
        let ex = with_claims(exchange("/q"), "u", &json!({"c": claim}));
        assert_eq!(url("/u/{claim:c}", &[], &ex), Err(400), "{claim}");
        assert_eq!(url("/u/{claim:c}/x", &[], &ex), Err(400), "{claim}");
    }
    let ex = with_claims(exchange("/q"), "u", &json!({"c": "."}));
    assert_eq!(url("/u/{claim:c}{claim:c}", &[], &ex), Err(400), "two dots made of two values");
    assert_eq!(url("/u/v{claim:c}", &[], &ex).unwrap(), "/u/v.");
    assert_eq!(url("/u/{claim:none}", &[], &exchange("/q")), Err(400));
}

#[test]
fn the_own_query_comes_first_and_the_clients_follows() {
    let ex = with_param(exchange("/u/a%26b%20c?x=1&y=%zz"), "id", "a%26b%20c");
    assert_eq!(url("/s", &[], &ex).unwrap(), "/s?x=1&y=%zz");
    assert_eq!(url("/s?user={id}", &["id"], &ex).unwrap(), "/s?user=a%26b%20c&x=1&y=%zz");
    assert_eq!(url("/s?q={path}", &[], &ex).unwrap(), "/s?q=%2Fu%2Fa%2526b%2520c&x=1&y=%zz");
    assert_eq!(url("/s?{query}&z=1", &[], &ex).unwrap(), "/s?x=1&y=%zz&z=1", "asked for by name, it is not appended again");
    assert_eq!(url("/s?c={claim:none}", &[], &exchange("/u")).unwrap(), "/s?c=");
    assert_eq!(url("/s", &[], &exchange("/u")).unwrap(), "/s");
}

#[test]
fn a_query_component_does_not_encode_an_encoded_slash_twice() {
    let ex = with_param(exchange("/u/a%2Fb"), "id", "a%2Fb");
    assert_eq!(url("/s?user={id}", &["id"], &ex).unwrap(), "/s?user=a%2Fb");
}

#[test]
fn literal_paths_are_normalised_as_requests_are() {
    assert_eq!(url("/%7Euser/a%2fb/ü?q=ä b", &[], &exchange("/x")).unwrap(), "/~user/a%2Fb/%C3%BC?q=%C3%A4%20b");
}

#[test]
fn half_an_escape_from_a_regex_group_is_encoded() {
    let ex = with_param(exchange("/u/a%20b"), "id", "a%2");
    assert_eq!(url("/x/{id}", &["id"], &ex).unwrap(), "/x/a%252");
}

#[test]
fn parameters_of_all_three_kinds_of_match_are_found() {
    let path = Match { path: Some("/a/{id}/x/{*rest}".into()), ..Match::default() };
    assert_eq!(params_of(&path), params(&["id", "*rest"]));
    let prefix = Match { prefix: Some("/t/{tenant}".into()), ..Match::default() };
    assert_eq!(params_of(&prefix), params(&["tenant"]));
    let regex = Match { regex: Some("^/v(?P<major>[0-9]+)/(x|y)/(?<tail>.*)$".into()), ..Match::default() };
    assert_eq!(params_of(&regex), params(&["major", "tail"]));
    assert_eq!(params_of(&Match { regex: Some("(".into()), ..Match::default() }), []);
}

#[test]
fn references_to_parts_are_listed_and_checked() {
    let names = ["user".to_owned(), "orders".to_owned()];
    let allowed = Allowed { params: &[], parts: Some(&names) };
    let template = UrlTemplate::parse("/o/{parts.user.data.0.id}?t={parts.orders.t}", allowed).unwrap();
    let refs: Vec<_> = template.part_refs().iter().map(|r| (r.part.as_str(), r.path.join("."))).collect();
    assert_eq!(refs, [("user", "data.0.id".to_owned()), ("orders", "t".to_owned())]);
    let ex = exchange("/");
    let values = ["a/b".to_owned(), "c&d".to_owned()];
    let scope = super::Scope { exchange: &ex, parts: &values };
    assert_eq!(template.render(scope, None).unwrap(), "/o/a%2Fb?t=c%26d");
    let unknown = UrlTemplate::parse("/o/{parts.usr.id}", allowed).unwrap_err();
    assert_eq!(unknown.help.as_deref(), Some("did you mean `user`?"));
    assert!(UrlTemplate::parse("/o/{parts.user}", allowed).unwrap_err().message.contains("which value"));
    assert!(UrlTemplate::parse("/o/{parts.user.}", allowed).is_err());
}

#[test]
fn climbing_segments_are_seen_in_every_disguise() {
    for path in ["/a/..", "/./a", "/a/%2e%2E/b", "/a/.%2e", "/..;x/a", "/;x", "/a/%", "/a/%g0", "a", "", "/a b", "/a?b", "/a\\b"] {
        assert!(!check_path(&mut path.to_owned()), "{path}");
    }
    for (path, clean) in [("/", "/"), ("/a//b///", "/a/b/"), ("/...", "/..."), ("/a;x/..b", "/a;x/..b"), ("/[x]", "/[x]")] {
        let mut path = path.to_owned();
        assert!(check_path(&mut path));
        assert_eq!(path, clean);
    }
}

proptest! {
    #[test]
    fn no_value_adds_a_segment_a_parameter_or_a_fragment(claim in "\\PC{1,24}|[./%;?#&=\\\\\r\n]{1,8}") {
        let ex = with_claims(exchange("/q"), "u", &json!({"c": claim}));
        match url("/u/{claim:c}/x?k={claim:c}", &[], &ex) {
            Ok(target) => {
                prop_assert!(target.parse::<http::uri::PathAndQuery>().is_ok());
                let (path, query) = target.split_once('?').unwrap();
                prop_assert_eq!(path.split('/').count(), 4);
                prop_assert!(!query.contains(['&', '#', '?', '/']));
                let mut decoded = Vec::new();
                encode::push_decoded(&mut decoded, &query[2..].replace("%2F", "/"));
                prop_assert_eq!(decoded, claim.as_bytes());
            }
            Err(status) => {
                prop_assert_eq!(status, 400);
                prop_assert!(claim == "." || claim == "..");
            }
        }
    }

    #[test]
    fn parsing_any_text_never_panics(text in "\\PC*") {
        let names = ["a".to_owned()];
        let _ = UrlTemplate::parse(&text, Allowed { params: &params(&["id"]), parts: Some(&names) });
        let _ = HeaderTemplate::parse(&text, Allowed::default());
    }
}
