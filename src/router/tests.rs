//! The router against the examples of the specification; the naive matcher is beside them.

mod against_naive;

use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::{Outcome, Query, Router, Verdict};
use crate::config::route::{self, Cors, Match, Respond};
use crate::config::{At, Problems, resolve};
use crate::http::Scheme;

fn route(name: &str, matcher: Match, priority: i32) -> resolve::Route {
    resolve::Route {
        name: name.to_owned(),
        at: At::main("routes"),
        matcher,
        priority,
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
        target: resolve::Target::Respond(Respond::default()),
    }
}

/// `[METHODS ]PATH[ @HOST]`, where a path that starts with `^` is a regex and one that ends in `/*` a prefix.
fn matcher(text: &str) -> Match {
    let (text, host) = text.split_once(" @").map_or((text, None), |(text, host)| (text, Some(host.to_owned())));
    let (methods, path) = text.split_once(' ').map_or((None, text), |(methods, path)| (Some(methods), path));
    let methods = methods.map(|methods| methods.split(',').map(str::to_owned).collect());
    let mut matcher = Match { host, methods, ..Match::default() };
    if path.starts_with('^') {
        matcher.regex = Some(path.to_owned());
    } else if let Some(prefix) = path.strip_suffix("/*") {
        matcher.prefix = Some(if prefix.is_empty() { "/".to_owned() } else { prefix.to_owned() });
    } else {
        matcher.path = Some(path.to_owned());
    }
    matcher
}

fn with(text: &str, headers: &[(&str, &str)], query: &[(&str, &str)]) -> Match {
    let owned = |pairs: &[(&str, &str)]| pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
    Match { headers: owned(headers), query: owned(query), ..matcher(text) }
}

fn compile(matchers: &[Match]) -> (Router, Problems) {
    let routes: Vec<_> = matchers.iter().map(|matcher| route("r", matcher.clone(), 0)).collect();
    let mut problems = Problems::default();
    let router = Router::compile(&routes, &mut problems);
    (router, problems)
}

fn router(texts: &[&str]) -> Router {
    let (router, problems) = compile(&texts.iter().map(|text| matcher(text)).collect::<Vec<_>>());
    assert!(problems.list().is_empty(), "{problems:?}");
    router
}

fn message(matcher: Match) -> String {
    compile(&[matcher]).1.list().iter().map(|problem| problem.message.clone()).collect::<Vec<_>>().join("\n")
}

/// `METHOD [https://]HOST/path?query`.
fn find(router: &Router, request: &str, headers: &HeaderMap) -> Outcome {
    let (method, target) = request.split_once(' ').unwrap();
    let (scheme, target) = target.strip_prefix("https://").map_or((Scheme::Http, target), |target| (Scheme::Https, target));
    let (host, rest) = target.split_at(target.find('/').unwrap());
    let (path, query) = rest.split_once('?').map_or((rest, None), |(path, query)| (path, Some(query)));
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    router.find(&Query { scheme, host, path, query, method: &method, headers })
}

fn found(router: &Router, request: &str) -> Option<usize> {
    match find(router, request, &HeaderMap::new()) {
        Outcome::Found { route, .. } => Some(route),
        Outcome::MethodNotAllowed { .. } | Outcome::NotFound => None,
    }
}

fn allow(router: &Router, request: &str) -> Option<String> {
    match find(router, request, &HeaderMap::new()) {
        Outcome::MethodNotAllowed { allow } => Some(allow.to_str().unwrap().to_owned()),
        Outcome::Found { .. } | Outcome::NotFound => None,
    }
}

fn params(router: &Router, path: &str) -> Vec<(String, String)> {
    match find(router, &format!("GET {path}"), &HeaderMap::new()) {
        Outcome::Found { params, .. } => params.names().map(|name| (name.to_owned(), params.raw(name, path).unwrap().to_owned())).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_scheme_is_a_condition_that_counts_before_headers() {
    let scheme = |text: &str, scheme| Match { scheme: Some(scheme), ..matcher(text) };
    let (router, problems) = compile(&[
        matcher("/*"),
        scheme("/*", route::Scheme::Http),
        with("/*", &[("x-a", "1")], &[]),
        scheme("/a", route::Scheme::Https),
        scheme("/*", route::Scheme::Https),
    ]);
    assert!(problems.list().is_empty(), "different schemes never meet: {problems:?}");
    for (request, route) in [("GET h/x", 1), ("GET https://h/x", 4), ("GET h/a", 1), ("GET https://h/a", 3)] {
        assert_eq!(found(&router, request), Some(route), "{request}");
    }
    let headers = HeaderMap::from_iter([(HeaderName::from_static("x-a"), HeaderValue::from_static("1"))]);
    assert!(matches!(find(&router, "GET h/x", &headers), Outcome::Found { route: 1, .. }));
    let query = Query { scheme: Scheme::Http, host: "h", path: "/a", query: None, method: &Method::GET, headers: &headers };
    let verdicts = router.explain(&query);
    let verdict = |route| verdicts.iter().find(|(index, _)| *index == route).unwrap().1.to_string();
    assert_eq!(verdict(3), "the scheme differs");
    assert_eq!(verdict(2), "fits, but the winner comes first by scheme");
    let only = compile(&[scheme("POST /a", route::Scheme::Https)]).0;
    assert_eq!((allow(&only, "GET https://h/a").as_deref(), allow(&only, "GET h/a")), (Some("POST"), None));
    assert_eq!(compile(&[scheme("/a", route::Scheme::Http), scheme("/a", route::Scheme::Http)]).1.list().len(), 2, "a tie");
}

#[test]
fn paths_win_in_the_documented_order() {
    let best_first =
        ["/api/users/5", "/api/users/{id}", "^/api/users/[0-9]+$", "/api/users/{*rest}", "/api/users/*", "/{a}/{b}/{c}", "^/.*$", "/*"];
    for skip in 0..best_first.len() {
        let mut left = best_first[skip..].to_vec();
        assert_eq!(found(&router(&left), "GET h/api/users/5"), Some(0), "{left:?}");
        left.reverse();
        let router = router(&left);
        assert_eq!(found(&router, "GET h/api/users/5"), Some(left.len() - 1), "{left:?}");
        assert_eq!(router.precedence(), (0..left.len()).rev().collect::<Vec<_>>());
    }
}

#[test]
fn a_regex_cannot_open_a_hole_in_a_prefix_after_its_literals() {
    let router = router(&["/admin/*", "^/[a-z]+/.*$", "/*"]);
    assert_eq!(found(&router, "GET h/admin/x"), Some(0));
    assert_eq!(found(&router, "GET h/other/x"), Some(1));
    assert_eq!(found(&router, "GET h/5/x"), Some(2));
}

#[test]
fn regexes_stand_where_every_match_of_them_is_found() {
    assert_eq!(found(&router(&["^/api/?.*$"]), "GET h/apix"), Some(0));
    assert_eq!(found(&router(&["^/a/b|/c$"]), "GET h/c"), Some(0));
    assert_eq!(found(&router(&["^/a/b|/c$"]), "GET h/a/b"), Some(0));
    assert_eq!(found(&router(&["^/a/b|/c$"]), "GET h/a/b/x"), None);
    assert_eq!(found(&router(&["^/v1"]), "GET h/v1x"), None);
    assert_eq!(found(&router(&["^/(?:a|b)/x"]), "GET h/b/x"), Some(0));
}

#[test]
fn hosts_fall_through_to_less_specific_ones() {
    let router =
        router(&["/a @api.example.com", "/b @*.api.example.com", "/a @*.example.com", "/b @*.example.com", "/c", "POST /d @x.org", "/d"]);
    assert_eq!(found(&router, "GET api.example.com/a"), Some(0));
    assert_eq!(found(&router, "GET api.example.com/b"), Some(3));
    assert_eq!(found(&router, "GET api.example.com/c"), Some(4));
    assert_eq!(found(&router, "GET v.w.api.example.com/b"), Some(1));
    assert_eq!(found(&router, "GET v.api.example.com/a"), Some(2));
    assert_eq!(found(&router, "GET example.com/a"), None);
    assert_eq!(found(&router, "GET x.org/d"), Some(6));
    assert_eq!(found(&router, "POST x.org/d"), Some(5));
    assert_eq!(found(&router, "GET /c"), Some(4), "HTTP/1.0 without Host");
}

#[test]
fn prefixes_and_parameters_take_whole_segments() {
    let router = router(&["/api/*", "/x/{id}", "/y/{*rest}", "/z/"]);
    for path in ["/api", "/api/", "/api/x/y"] {
        assert_eq!(found(&router, &format!("GET h{path}")), Some(0), "{path}");
    }
    assert_eq!(found(&router, "GET h/apix"), None);
    assert_eq!(found(&router, "GET h/x/"), None);
    assert_eq!(found(&router, "GET h/x/1/"), None);
    assert_eq!(found(&router, "GET h/y"), None);
    assert_eq!(found(&router, "GET h/y/"), Some(2));
    assert_eq!(found(&router, "GET h/z"), None);
    assert_eq!(found(&router, "GET h/z/"), Some(3));
}

#[test]
fn a_segment_is_compared_up_to_its_semicolon() {
    let open = router(&["/admin/*", "/*", "/v;2/a", "/admin/{id}", "^/secret$", "^/keys/(?<key>[a-z]+)$"]);
    assert_eq!(found(&open, "GET h/admin;x"), Some(0));
    assert_eq!(found(&open, "GET h/admin;x/5"), Some(3));
    assert_eq!(found(&open, "GET h/admin%3Bx"), Some(1));
    assert_eq!(found(&open, "GET h/v/a"), Some(1));
    assert_eq!(found(&open, "GET h/v;2/a"), Some(2));
    assert_eq!(found(&open, "GET h/secret;x"), Some(4));
    assert_eq!(params(&open, "/admin;x/5;y"), [("id".to_owned(), "5;y".to_owned())]);
    assert_eq!(params(&open, "/keys;a/abc;d"), [("key".to_owned(), "abc;d".to_owned())]);
    // Both literals fit `a;x`; what comes later in the path decides.
    let both = router(&["/a;x/{*rest}", "/a/{id}", "/a;x/b"]);
    assert_eq!(found(&both, "GET h/a;x/5"), Some(1));
    assert_eq!(found(&both, "GET h/a;x/5/6"), Some(0));
    assert_eq!(found(&both, "GET h/a;x/b"), Some(2));
}

#[test]
fn parameters_are_places_in_the_path() {
    let router = router(&["/a/{x}/b/{y-z}", "/f/{*rest}", "^/v(?<major>[0-9]+)/(?<rest>.*)$", "/p/{q}/*"]);
    let pairs = |path| params(&router, path);
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    assert_eq!(pairs("/a/1%20/b/2"), [pair("x", "1%20"), pair("y-z", "2")]);
    assert_eq!(pairs("/f/"), [pair("rest", "")]);
    assert_eq!(pairs("/f/a/b/"), [pair("rest", "a/b/")]);
    assert_eq!(pairs("/v12/x/y"), [pair("major", "12"), pair("rest", "x/y")]);
    assert_eq!(pairs("/p/1/2/3"), [pair("q", "1")]);
}

#[test]
fn methods_decide_after_the_path() {
    let router = router(&["GET /a", "HEAD /a", "/a", "GET /b", "/b", "POST /c/{id}", "/c/*"]);
    assert_eq!(found(&router, "GET h/a"), Some(0));
    assert_eq!(found(&router, "HEAD h/a"), Some(1));
    assert_eq!(found(&router, "HEAD h/b"), Some(3));
    assert_eq!(found(&router, "PUT h/b"), Some(4));
    assert_eq!(found(&router, "OPTIONS h/b"), Some(4));
    assert_eq!(found(&router, "GET h/c/1"), Some(6));
    assert_eq!(found(&router, "TRACE h/b"), None);
}

#[test]
fn allow_is_the_union_of_what_fits_but_for_the_method() {
    let mut routes = vec![
        route("a", matcher("GET /a"), 0),
        route("b", matcher("POST,LINK /{x}"), 0),
        route("c", with("PUT /a", &[("x-a", "*")], &[]), 0),
        route("d", matcher("DELETE /b"), 5),
    ];
    let mut problems = Problems::default();
    let first = Router::compile(&routes, &mut problems);
    assert_eq!(allow(&first, "PATCH h/a").as_deref(), Some("GET, HEAD, POST, LINK"));
    assert_eq!(allow(&first, "GET h/b").as_deref(), Some("POST, DELETE, LINK"));
    assert_eq!(allow(&first, "GET h/b/c"), None);
    let cors = Cors {
        origins: Vec::new(),
        methods: Vec::new(),
        headers: None,
        expose: Vec::new(),
        credentials: false,
        max_age: crate::units::Duration::from_secs(1),
    };
    routes[0].cors = Some((cors, At::default()));
    let second = Router::compile(&routes, &mut problems);
    assert_eq!(allow(&second, "PATCH h/a").as_deref(), Some("GET, HEAD, POST, OPTIONS, LINK"));
}

#[test]
fn conditions_decide_after_the_method() {
    let (router, problems) = compile(&[
        matcher("/a"),
        with("/a", &[("X-A", "*")], &[]),
        with("/a", &[("x-a", "1, 2")], &[]),
        with("/a", &[("x-a", "*"), ("x-b", "*")], &[]),
        with("/a", &[], &[("v", "1 2"), ("w", "*")]),
        with("/a", &[], &[("v", "*"), ("w", "*")]),
        with("/a", &[("x-a", "*")], &[("v", "1")]),
    ]);
    assert!(problems.list().is_empty(), "{problems:?}");
    let go = |request: &str, lines: &[(&'static str, &'static str)]| {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        match find(&router, request, &headers) {
            Outcome::Found { route, .. } => route,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(go("GET h/a", &[]), 0);
    assert_eq!(go("GET h/a", &[("x-a", "1")]), 1);
    assert_eq!(go("GET h/a", &[("x-a", "1"), ("x-a", "2")]), 2);
    assert_eq!(go("GET h/a", &[("x-a", "1, 2")]), 2);
    assert_eq!(go("GET h/a", &[("x-a", "1, 2"), ("x-b", "")]), 3);
    assert_eq!(go("GET h/a?w&v=1+2&v=3", &[]), 4);
    assert_eq!(go("GET h/a?w&v=3", &[]), 5);
    assert_eq!(go("GET h/a?v=1", &[("x-a", "3")]), 6);
}

#[test]
fn priority_comes_before_everything() {
    let routes = [route("a", matcher("/a @h.org"), 0), route("b", matcher("/*"), 1), route("c", matcher("GET /a @h.org"), -1)];
    let mut problems = Problems::default();
    let router = Router::compile(&routes, &mut problems);
    assert_eq!(found(&router, "GET h.org/a"), Some(1));
    assert_eq!(router.precedence(), [1, 0, 2]);
}

#[test]
fn ties_are_reported_at_both_routes() {
    let tie = |a: Match, b: Match| {
        let (_, problems) = compile(&[a, b]);
        assert!(matches!(problems.list().len(), 0 | 2), "{problems:?}");
        !problems.list().is_empty()
    };
    let text = |a: &str, b: &str| tie(matcher(a), matcher(b));
    assert!(text("/a/{x}", "/a/{y}"));
    assert!(text("/a/*", "/a/*"));
    assert!(text("GET,POST /a", "POST,PUT /a"));
    assert!(text("/a @H.org", "/a @h.org."));
    assert!(text("/a;x", "/a"));
    assert!(text("/%61", "/a"));
    assert!(text("^/a/[0-9]$", "/a/[0-9]".replacen('/', "^/", 1).as_str()));
    assert!(!text("/a;x", "/a;y"));
    assert!(!text("GET /a", "POST /a"));
    assert!(!text("GET /a", "HEAD /a"));
    assert!(!text("GET /a", "/a"));
    assert!(!text("/a", "/a/"));
    assert!(!text("/a @*.x.org", "/a @*.y.org"));
    assert!(!text("^/a/[0-9]$", "^/a/[0-8]$"));
    assert!(tie(with("/a", &[("x-a", "1")], &[]), with("/a", &[("x-b", "1")], &[])));
    assert!(tie(with("/a", &[], &[("v", "*")]), with("/a", &[], &[("w", "*")])));
    assert!(!tie(with("/a", &[("x-a", "1")], &[]), with("/a", &[("X-A", "2")], &[])));
    assert!(!tie(with("/a", &[], &[("v", "1")]), with("/a", &[], &[("v", "2")])));
    let (_, problems) = compile(&[matcher("^/a/[0-9]+$"), matcher("^/a/[0-9]*$")]);
    assert!(problems.list().is_empty());
    assert_eq!(found(&router(&["^/a/[0-9]+$", "^/a/[0-9]*$"]), "GET h/a/1"), Some(0));
}

#[test]
fn bad_patterns_are_reported() {
    let path = |text: &str| message(Match { path: Some(text.to_owned()), ..Match::default() });
    for bad in [
        "a", "/a{b}", "/{a}{b}", "/{}", "/{*}", "/{*r}/x", "/{a b}", "/{a}/{a}", "/{path}", "/{user}", "/a//b", "/a/../b", "/.", "/a?b",
        "/%zz", "/*/a", "/;x",
    ] {
        assert!(!path(bad).is_empty(), "{bad}");
    }
    assert!(path("/{user}").contains("built-in"));
    for good in ["/", "/a.b/{c_1}/{*rest}", "/a;v=1/", "/é", "/.well-known", "/a+b"] {
        assert_eq!(path(good), "", "{good}");
    }
    for bad in ["^/(", "/(?<path>.*)", "/a{1000}{1000}", "/a)|(/b", "/a[", "(?x)/a # [\n)|(/b"] {
        assert!(!message(Match { regex: Some(bad.to_owned()), ..Match::default() }).is_empty(), "{bad}");
    }
    for good in ["/[])]", "/\\)", "/(a|b)", "/[)(]+"] {
        assert_eq!(message(Match { regex: Some(good.to_owned()), ..Match::default() }), "", "{good}");
    }
    assert!(!message(Match { prefix: Some("/a/{*rest}".to_owned()), ..Match::default() }).is_empty());
    assert!(!message(Match { prefix: Some("/a".to_owned()), path: Some("/a".to_owned()), ..Match::default() }).is_empty());
    assert!(!message(Match::default()).is_empty());
    for bad in ["a:80", "*", "*.*.x", "a b", "", "x.*"] {
        assert!(!message(Match { host: Some(bad.to_owned()), ..matcher("/a") }).is_empty(), "{bad}");
    }
    for bad in ["CONNECT", "TRACE", "GET POST", ""] {
        assert!(!message(Match { methods: Some(vec![bad.to_owned()]), ..matcher("/a") }).is_empty(), "{bad}");
    }
    assert!(!message(Match { methods: Some(Vec::new()), ..matcher("/a") }).is_empty());
    assert!(!message(with("/a", &[("a b", "1")], &[])).is_empty());
    assert!(!message(with("/a", &[("X-A", "1"), ("x-a", "2")], &[])).is_empty());
}

#[test]
fn explain_says_why_each_route_lost() {
    let (router, _) = compile(&[
        matcher("/*"),
        matcher("GET /a"),
        matcher("POST /a"),
        matcher("/a @x.org"),
        with("GET /a", &[("x-a", "1")], &[]),
        with("GET /a", &[], &[("v", "1")]),
        matcher("/b"),
    ]);
    let headers = HeaderMap::from_iter([(HeaderName::from_static("x-a"), HeaderValue::from_static("2"))]);
    let query = Query { scheme: Scheme::Http, host: "h", path: "/a", query: None, method: &Method::GET, headers: &headers };
    let mut verdicts = router.explain(&query);
    assert_eq!(verdicts.iter().map(|(route, _)| *route).collect::<Vec<_>>(), router.precedence());
    verdicts.sort_by_key(|(route, _)| *route);
    let verdicts: Vec<Verdict> = verdicts.into_iter().map(|(_, verdict)| verdict).collect();
    assert_eq!(
        verdicts,
        [
            Verdict::LessSpecific("path"),
            Verdict::Won,
            Verdict::Method,
            Verdict::Host,
            Verdict::HeaderDiffers("x-a".into()),
            Verdict::QueryMissing("v".into()),
            Verdict::Path,
        ]
    );
    assert_eq!(verdicts[4].to_string(), "header `x-a` has another value");
}
