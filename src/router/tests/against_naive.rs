//! The router against a naive matcher, over generated routes and requests.

use std::cell::RefCell;
use std::cmp::Ordering;
use std::collections::HashMap;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use proptest::prelude::*;

use super::route;
use crate::config::route::Match;
use crate::config::{Problems, resolve, route as written};
use crate::http::Scheme;
use crate::router::{Outcome, Query, Router, Verdict};

#[derive(Clone, Debug)]
struct Request {
    scheme: Scheme,
    method: String,
    host: String,
    path: String,
    headers: Vec<(String, String)>,
    query: Vec<(String, String)>,
}

fn pick(items: &[&'static str]) -> impl Strategy<Value = String> + use<> {
    proptest::sample::select(items.to_vec()).prop_map(str::to_owned)
}

fn pattern() -> impl Strategy<Value = Match> {
    let segments = proptest::collection::vec(pick(&["a", "b", "c", "a;x", "{p}"]), 0..4);
    let path = (segments, pick(&["", "/", "/{*rest}"]), any::<bool>()).prop_map(|(segments, end, prefix)| {
        let named: Vec<String> =
            segments.iter().enumerate().map(|(index, s)| if s == "{p}" { format!("{{p{index}}}") } else { s.clone() }).collect();
        let text = named.iter().map(|segment| format!("/{segment}")).collect::<String>();
        if prefix {
            let end = if end == "/{*rest}" { "" } else { &end };
            Match { prefix: Some(if text.is_empty() { "/".to_owned() } else { text + end }), ..Match::default() }
        } else {
            let end = if text.is_empty() && end.is_empty() { "/" } else { &end };
            Match { path: Some(text + end), ..Match::default() }
        }
    });
    let regex = pick(&["^/a/[ab]$", "^/.*$", "/a/b/.*", "^/[a-c]+/.+", "^/a/[^/]*$", "/b/(?<n>[a-z]+)/c"])
        .prop_map(|regex| Match { regex: Some(regex), ..Match::default() });
    prop_oneof![4 => path, 1 => regex]
}

fn generated_route() -> impl Strategy<Value = resolve::Route> {
    let hosts = proptest::option::weighted(0.5, pick(&["x.org", "a.x.org", "*.x.org", "*.a.x.org", "*.org"]));
    let methods = proptest::option::weighted(0.5, proptest::collection::vec(pick(&["GET", "HEAD", "POST"]), 1..3));
    let schemes = proptest::option::weighted(0.2, proptest::sample::select(vec![written::Scheme::Http, written::Scheme::Https]));
    let conditions = || proptest::collection::btree_map(pick(&["k", "l"]), pick(&["*", "1", "2"]), 0..2);
    let rest = (schemes, conditions(), conditions(), prop_oneof![8 => Just(0), 1 => Just(1)]);
    (pattern(), hosts, methods, rest).prop_map(|(matcher, host, methods, (scheme, headers, query, priority))| {
        route("r", Match { scheme, host, methods, headers, query, ..matcher }, priority)
    })
}

fn generated_request() -> impl Strategy<Value = Request> {
    let path = proptest::collection::vec(pick(&["a", "b", "c", "a;x", "a;y", "d", ""]), 1..5).prop_map(|segments| {
        // Canonical paths have no empty segment but the last.
        let last = segments.len() - 1;
        let kept = segments.into_iter().enumerate().filter(|(index, segment)| *index == last || !segment.is_empty());
        kept.map(|(_, segment)| format!("/{segment}")).collect::<String>()
    });
    let pairs = || proptest::collection::vec((pick(&["k", "l"]), pick(&["1", "2", "3"])), 0..3);
    let headers =
        proptest::collection::btree_map(pick(&["k", "l"]), pick(&["1", "2", "3"]), 0..3).prop_map(|map| map.into_iter().collect());
    let scheme = proptest::sample::select(vec![Scheme::Http, Scheme::Https]);
    (scheme, pick(&["GET", "HEAD", "POST", "PUT"]), pick(&["x.org", "a.x.org", "b.a.x.org", "y.org", ""]), path, headers, pairs())
        .prop_map(|(scheme, method, host, path, headers, query)| Request { scheme, method, host, path, headers, query })
}

/// The naive matcher: written from the specification, on the texts of the matches, sharing nothing with the router.
mod naive {
    use super::*;

    thread_local! {
        static REGEXES: RefCell<HashMap<String, regex::Regex>> = RefCell::default();
    }

    fn literal_fits(written: &str, segment: &str) -> bool {
        written == segment || segment.split(';').next() == Some(written)
    }

    fn segments_fit(pattern: &[&str], path: &[&str]) -> bool {
        match (pattern, path) {
            ([], []) => true,
            ([rest], [_, ..]) if rest.starts_with("{*") => true,
            ([first, pattern @ ..], [segment, path @ ..]) => {
                let fits = if first.starts_with('{') { !segment.is_empty() } else { literal_fits(first, segment) };
                fits && segments_fit(pattern, path)
            }
            _ => false,
        }
    }

    fn path_fits(matcher: &Match, path: &str) -> bool {
        let segments: Vec<&str> = path[1..].split('/').collect();
        if let Some(pattern) = &matcher.path {
            return segments_fit(&pattern[1..].split('/').collect::<Vec<_>>(), &segments);
        }
        if let Some(prefix) = &matcher.prefix {
            let prefix: Vec<&str> = prefix[1..].split('/').filter(|segment| !segment.is_empty()).collect();
            return prefix.len() <= segments.len() && segments_fit(&prefix, &segments[..prefix.len()]);
        }
        let text = matcher.regex.as_ref().unwrap();
        let regex = REGEXES.with_borrow_mut(|known| {
            known.entry(text.clone()).or_insert_with(|| regex::Regex::new(&format!("^(?:{text})$")).unwrap()).clone()
        });
        let cut: Vec<&str> = segments.iter().map(|segment| segment.split(';').next().unwrap()).collect();
        regex.is_match(path) || regex.is_match(&format!("/{}", cut.join("/")))
    }

    fn path_ranks(matcher: &Match) -> String {
        let segments = |text: &str| -> String {
            let rank = |segment: &str| {
                if segment.starts_with("{*") {
                    'd'
                } else if segment.starts_with('{') {
                    'b'
                } else {
                    'a'
                }
            };
            text[1..].split('/').map(rank).collect()
        };
        match (&matcher.path, &matcher.prefix, &matcher.regex) {
            (Some(path), _, _) => segments(path) + "a",
            (_, Some(prefix), _) if prefix == "/" => "e".to_owned(),
            (_, Some(prefix), _) => segments(prefix.trim_end_matches('/')) + "e",
            (_, _, regex) => {
                let text = regex.as_ref().unwrap().trim_start_matches('^');
                let literal: String = text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '/').collect();
                "a".repeat(literal.matches('/').count() - 1) + "c"
            }
        }
    }

    fn host_rank(matcher: &Match, host: &str) -> Option<usize> {
        match matcher.host.as_deref() {
            None => Some(0),
            Some(pattern) if pattern.starts_with("*.") => host.ends_with(&pattern[1..]).then(|| pattern.matches('.').count()),
            Some(pattern) => (pattern == host).then_some(1000),
        }
    }

    fn method_rank(matcher: &Match, method: &str) -> Option<u8> {
        let has = |wanted: &str| matcher.methods.as_ref().is_some_and(|methods| methods.iter().any(|m| m == wanted));
        if matcher.methods.is_none() {
            Some(0)
        } else if has(method) {
            Some(2)
        } else {
            (method == "HEAD" && has("GET")).then_some(1)
        }
    }

    /// Numbers of conditions and of exact ones, if they hold.
    fn conditions(written: &std::collections::BTreeMap<String, String>, sent: &[(String, String)]) -> Option<(usize, usize)> {
        let first = |name: &str| sent.iter().find(|(n, _)| n == name).map(|(_, value)| value);
        let holds = written.iter().all(|(name, value)| first(name).is_some_and(|sent| value == "*" || value == sent));
        holds.then(|| (written.len(), written.values().filter(|value| *value != "*").count()))
    }

    /// Whether a scheme is named, if it is the request's.
    fn scheme(matcher: &Match, sent: Scheme) -> Option<bool> {
        match matcher.scheme {
            None => Some(false),
            Some(written::Scheme::Http) => (sent == Scheme::Http).then_some(true),
            Some(written::Scheme::Https) => (sent == Scheme::Https).then_some(true),
        }
    }

    type Key = (i32, usize, std::cmp::Reverse<String>, u8, bool, (usize, usize), (usize, usize));

    fn key(route: &resolve::Route, request: &Request) -> Option<Key> {
        let matcher = &route.matcher;
        if !path_fits(matcher, &request.path) {
            return None;
        }
        Some((
            route.priority,
            host_rank(matcher, &request.host)?,
            std::cmp::Reverse(path_ranks(matcher)),
            method_rank(matcher, &request.method)?,
            scheme(matcher, request.scheme)?,
            conditions(&matcher.headers, &request.headers)?,
            conditions(&matcher.query, &request.query)?,
        ))
    }

    /// All best routes: the first one wins, and more than one is a tie.
    pub(super) fn best(routes: &[resolve::Route], request: &Request) -> Vec<usize> {
        let mut best: Vec<(usize, Key)> = Vec::new();
        for (index, route) in routes.iter().enumerate() {
            let Some(key) = key(route, request) else { continue };
            match best.first().map_or(Ordering::Greater, |(_, known)| key.cmp(known)) {
                Ordering::Greater => best = vec![(index, key)],
                Ordering::Equal => best.push((index, key)),
                Ordering::Less => {}
            }
        }
        best.into_iter().map(|(index, _)| index).collect()
    }

    pub(super) fn fits_but_for_method(routes: &[resolve::Route], request: &Request) -> bool {
        routes.iter().any(|route| {
            let matcher = &route.matcher;
            path_fits(matcher, &request.path)
                && host_rank(matcher, &request.host).is_some()
                && scheme(matcher, request.scheme).is_some()
                && conditions(&matcher.headers, &request.headers).is_some()
                && conditions(&matcher.query, &request.query).is_some()
        })
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn the_router_agrees_with_the_naive_matcher(
        routes in proptest::collection::vec(generated_route(), 1..14),
        requests in proptest::collection::vec(generated_request(), 1..24),
    ) {
        let mut problems = Problems::default();
        let router = Router::compile(&routes, &mut problems);
        for request in &requests {
            let method = Method::from_bytes(request.method.as_bytes()).unwrap();
            let mut headers = HeaderMap::new();
            for (name, value) in &request.headers {
                headers.insert(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
            }
            let text = request.query.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&");
            let Request { scheme, host, path, .. } = request;
            let query = Query { scheme: *scheme, host, path, query: Some(&text), method: &method, headers: &headers };
            let best = naive::best(&routes, request);
            match router.find(&query) {
                Outcome::Found { route, .. } => {
                    prop_assert!(best.contains(&route), "{:?}: found {}, expected {:?}", request, route, best);
                    if problems.list().is_empty() {
                        prop_assert_eq!(best.first(), Some(&route));
                        let regexes = best.iter().all(|index| routes[*index].matcher.regex.is_some());
                        prop_assert!(best.len() == 1 || regexes, "an unreported tie of {:?} for {:?}", best, request);
                    }
                    let won: Vec<usize> = router.explain(&query).into_iter().filter(|(_, v)| *v == Verdict::Won).map(|(r, _)| r).collect();
                    prop_assert_eq!(won, [route]);
                }
                outcome => {
                    prop_assert!(best.is_empty(), "{:?}: not found, expected {:?}", request, best);
                    let method = matches!(outcome, Outcome::MethodNotAllowed { .. });
                    prop_assert_eq!(method, naive::fits_but_for_method(&routes, request));
                }
            }
        }
    }
}
