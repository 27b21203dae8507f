//! Tests of `cors`.

use super::*;
use crate::http::selector::testing::fields;
use crate::units::Duration;

fn config(origins: &[&str]) -> Config {
    Config {
        origins: origins.iter().map(|origin| (*origin).to_owned()).collect(),
        methods: ["GET", "POST"].map(str::to_owned).to_vec(),
        headers: None,
        expose: vec!["x-request-id".to_owned(), "x-total".to_owned()],
        credentials: false,
        max_age: Duration::from_secs(600),
    }
}

fn compile(config: &Config) -> (Option<Cors>, Problems) {
    let mut problems = Problems::default();
    let cors = Cors::compile(config, &At::main("defaults").key("cors"), &mut problems);
    (cors, problems)
}

fn cors(config: &Config) -> Cors {
    let (cors, problems) = compile(config);
    cors.unwrap_or_else(|| panic!("{problems:?}"))
}

fn apply(cors: &Cors, origin: Option<&str>, response: &[(&str, &str)]) -> Vec<(String, String)> {
    let mut headers = fields(response);
    cors.apply(origin.map(str::as_bytes), &mut headers);
    list(&headers)
}

fn list(headers: &HeaderMap) -> Vec<(String, String)> {
    let mut list: Vec<_> = headers.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
    list.sort();
    list
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn preflight(cors: &Cors, request: &[(&str, &str)]) -> Option<Vec<(String, String)>> {
    cors.preflight(&Method::OPTIONS, &fields(request)).map(|headers| list(&headers))
}

fn allows(listed: &[&str], origin: &str) -> bool {
    apply(&cors(&config(listed)), Some(origin), &[]).iter().any(|(name, _)| name.starts_with("access-control-"))
}

#[test]
fn origins_compare_whole() {
    let listed = ["https://good.com", "http://localhost:3000"];
    for origin in ["https://good.com", "https://GOOD.com", "HTTPS://good.com", "https://good.com:443", "http://localhost:3000"] {
        assert!(allows(&listed, origin), "{origin}");
    }
    let long = format!("https://{}.com", "a".repeat(10_240));
    for origin in [
        "https://evil.com",
        "null",
        "https://good.com.evil.com",
        "https://evilgood.com",
        "http://good.com",
        "https://good.com:444",
        "https://sub.good.com",
        "https://good.com/",
        "https://good.com, https://good.com",
        "http://localhost",
        "http://localhost:30000",
        "",
        &long,
    ] {
        assert!(!allows(&listed, origin), "{origin}");
    }
}

#[test]
fn null_is_allowed_only_if_written() {
    assert!(allows(&["null"], "null"));
    assert!(!allows(&["https://null"], "null"));
}

#[test]
fn a_wildcard_stands_for_whole_labels_in_front_of_the_suffix() {
    let listed = ["https://*.example.org"];
    for origin in ["https://a.example.org", "https://a.b.example.org", "https://A.Example.ORG", "https://a-1.example.org:443"] {
        assert!(allows(&listed, origin), "{origin}");
    }
    for origin in [
        "https://example.org",
        "https://.example.org",
        "https://a..example.org",
        "https://aexample.org",
        "https://a.example.org.evil.com",
        "http://a.example.org",
        "https://a.example.org:8443",
        "https://evil.com/.example.org",
        "https://evil.com@a.example.org",
        "https://evil.com:1.example.org",
        "https://*.example.org",
    ] {
        assert!(!allows(&listed, origin), "{origin}");
    }
    assert!(allows(&["https://*.example.org:8443"], "https://a.example.org:8443"));
    assert!(!allows(&["https://*.example.org:8443"], "https://a.example.org"));
}

#[test]
fn an_allowed_origin_is_echoed_and_the_upstreams_fields_are_replaced() {
    let mut config = config(&["https://app.example.com"]);
    let upstream = [("access-control-allow-origin", "*"), ("access-control-allow-private-network", "true"), ("x-a", "1")];
    assert_eq!(
        apply(&cors(&config), Some("https://app.example.com"), &upstream),
        pairs(&[
            ("access-control-allow-origin", "https://app.example.com"),
            ("access-control-expose-headers", "x-request-id, x-total"),
            ("vary", "Origin"),
            ("x-a", "1")
        ])
    );
    assert_eq!(apply(&cors(&config), Some("https://other.com"), &upstream), pairs(&[("vary", "Origin"), ("x-a", "1")]));
    assert_eq!(apply(&cors(&config), None, &upstream), pairs(&[("vary", "Origin"), ("x-a", "1")]));
    config.credentials = true;
    config.expose = Vec::new();
    assert_eq!(
        apply(&cors(&config), Some("https://app.example.com"), &[]),
        pairs(&[
            ("access-control-allow-credentials", "true"),
            ("access-control-allow-origin", "https://app.example.com"),
            ("vary", "Origin")
        ])
    );
}

#[test]
fn any_origin_is_answered_with_a_star_and_without_vary() {
    let cors = cors(&config(&["*"]));
    let answer = pairs(&[("access-control-allow-origin", "*"), ("access-control-expose-headers", "x-request-id, x-total")]);
    assert_eq!(apply(&cors, Some("https://x.com"), &[]), answer);
    assert_eq!(apply(&cors, None, &[("vary", "Accept")]), pairs(&[("vary", "Accept")]));
}

#[test]
fn vary_is_merged_without_doubling() {
    let cors = cors(&config(&["https://a.com"]));
    for (before, after) in [
        (vec![("vary", "Accept-Encoding")], vec![("vary", "Accept-Encoding, Origin")]),
        (vec![("vary", "Accept"), ("vary", "Cookie")], vec![("vary", "Accept, Cookie, Origin")]),
        (vec![("vary", "accept, oRIGIN")], vec![("vary", "accept, oRIGIN")]),
        (vec![("vary", "*")], vec![("vary", "*")]),
        (vec![("vary", "")], vec![("vary", "Origin")]),
        (vec![("vary", "X-Origin")], vec![("vary", "X-Origin, Origin")]),
    ] {
        assert_eq!(apply(&cors, None, &before), pairs(&after), "{before:?}");
    }
}

#[test]
fn a_preflight_is_answered_with_the_rules() {
    let request =
        [("origin", "https://a.com"), ("access-control-request-method", "PUT"), ("access-control-request-headers", "content-type,x-b")];
    let mut config = config(&["https://a.com"]);
    let vary = ("vary", "Origin, Access-Control-Request-Method, Access-Control-Request-Headers");
    assert_eq!(
        preflight(&cors(&config), &request).unwrap(),
        pairs(&[
            ("access-control-allow-headers", "content-type,x-b"),
            ("access-control-allow-methods", "GET, POST"),
            ("access-control-allow-origin", "https://a.com"),
            ("access-control-max-age", "600"),
            vary
        ])
    );
    config.headers = Some(vec!["authorization".to_owned(), "x-c".to_owned()]);
    config.credentials = true;
    assert_eq!(
        preflight(&cors(&config), &request).unwrap(),
        pairs(&[
            ("access-control-allow-credentials", "true"),
            ("access-control-allow-headers", "authorization, x-c"),
            ("access-control-allow-methods", "GET, POST"),
            ("access-control-allow-origin", "https://a.com"),
            ("access-control-max-age", "600"),
            vary
        ])
    );
    config.headers = Some(Vec::new());
    assert!(preflight(&cors(&config), &request).unwrap().iter().all(|(name, _)| name != "access-control-allow-headers"));
}

#[test]
fn a_preflight_from_another_origin_gets_no_cors_fields_at_all() {
    let cors = cors(&config(&["https://a.com"]));
    let answer = preflight(&cors, &[("origin", "https://b.com"), ("access-control-request-method", "GET")]).unwrap();
    assert_eq!(answer, pairs(&[("vary", "Origin, Access-Control-Request-Method, Access-Control-Request-Headers")]));
    let twice = [("origin", "https://a.com"), ("origin", "https://a.com"), ("access-control-request-method", "GET")];
    assert_eq!(preflight(&cors, &twice).unwrap(), answer);
}

#[test]
fn only_options_with_both_fields_is_a_preflight() {
    let cors = cors(&config(&["*"]));
    let both = [("origin", "https://a.com"), ("access-control-request-method", "DELETE")];
    assert_eq!(preflight_method(&Method::OPTIONS, &fields(&both)).unwrap(), "DELETE");
    let answer = preflight(&cors, &both).unwrap();
    assert!(answer.contains(&("access-control-allow-origin".to_owned(), "*".to_owned())));
    assert!(answer.contains(&("vary".to_owned(), "Access-Control-Request-Method, Access-Control-Request-Headers".to_owned())));
    assert!(preflight(&cors, &both[..1]).is_none());
    assert!(preflight(&cors, &both[1..]).is_none());
    assert!(cors.preflight(&Method::GET, &fields(&both)).is_none());
}

#[test]
fn a_websocket_from_another_origin_is_refused_and_one_without_origin_passes() {
    let cors = cors(&config(&["https://a.com"]));
    assert!(cors.check_websocket_origin(&fields(&[])).is_ok());
    assert!(cors.check_websocket_origin(&fields(&[("origin", "https://a.com")])).is_ok());
    for headers in [vec![("origin", "https://b.com")], vec![("origin", "https://a.com"), ("origin", "https://a.com")]] {
        let refusal = cors.check_websocket_origin(&fields(&headers)).unwrap_err();
        assert_eq!((refusal.reason, refusal.status().as_u16()), (Reason::OriginDenied, 403));
    }
    assert!(super::tests::cors(&config(&["*"])).check_websocket_origin(&fields(&[("origin", "https://b.com")])).is_ok());
}

#[test]
fn star_with_credentials_or_with_others_is_a_load_error() {
    let mut star = config(&["*"]);
    star.credentials = true;
    let (compiled, problems) = compile(&star);
    assert!(compiled.is_none());
    assert_eq!(problems.list().len(), 1);
    assert_eq!(problems.list()[0].at, At::main("defaults").key("cors").key("origins"));
    assert!(problems.list()[0].help.is_some());
    assert!(compile(&config(&["*", "https://a.com"])).0.is_none());
}

#[test]
fn wrong_origins_and_names_are_all_reported() {
    let wrong = [
        "example.com",
        "https://",
        "https://a.com/",
        "https://a.com/x",
        "https://u@a.com",
        "https://a.com:x",
        "https://a.com:0",
        "https://*",
        "https://*.",
        "https://a.*.com",
        "https://*a.com",
        "://a.com",
        "https://a b.com",
        "",
    ];
    let mut config = config(&wrong);
    config.methods.push("GE T".to_owned());
    config.headers = Some(vec!["x y".to_owned()]);
    config.expose.push(String::new());
    let (compiled, problems) = compile(&config);
    assert!(compiled.is_none());
    assert_eq!(problems.list().len(), wrong.len() + 3, "{problems:?}");
    for right in ["https://a.com:8443", "http://[::1]:3000", "capacitor://localhost", "http://127.0.0.1", "https://xn--bcher-kva.example"] {
        assert!(allows(&[right], right), "{right}");
    }
}
