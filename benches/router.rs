//! Look-ups among 10, 100 and 10,000 routes: nanoseconds each, and how much dearer than among 10.
//!
//! `cargo bench --bench router`. Ratios are what counts: absolute times depend on the machine.
#![allow(missing_docs, clippy::print_stdout)]

use std::hint::black_box;
use std::time::Instant;

use http::{HeaderMap, Method};
use tollgate::config::route::{Match, Respond};
use tollgate::config::{At, Problems, resolve};
use tollgate::http::Scheme;
use tollgate::router::{Outcome, Query, Router};

/// Look-ups per measurement, and measurements of which the fastest counts.
const LOOKUPS: usize = 200_000;
const ROUNDS: usize = 9;

fn route(index: usize, matcher: Match) -> resolve::Route {
    resolve::Route {
        name: format!("r{index}"),
        at: At::main("routes").index(index),
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
        target: resolve::Target::Respond(Respond::default()),
    }
}

/// Five kinds of routes in turn, as of many services behind one gateway, and one regex for all.
fn routes(count: usize) -> Vec<resolve::Route> {
    let mut routes: Vec<resolve::Route> = (0..count - 1)
        .map(|index| {
            let service = index / 5;
            let matcher = match index % 5 {
                0 => Match { path: Some(format!("/api/svc{service}/users")), methods: Some(vec!["GET".into()]), ..Match::default() },
                1 => Match { path: Some(format!("/api/svc{service}/users/{{id}}")), ..Match::default() },
                2 => Match { prefix: Some(format!("/static/svc{service}")), ..Match::default() },
                3 => Match { path: Some("/health".into()), host: Some(format!("svc{service}.example.com")), ..Match::default() },
                _ => Match {
                    path: Some(format!("/api/svc{service}/orders/{{id}}/items")),
                    methods: Some(vec!["POST".into()]),
                    ..Match::default()
                },
            };
            route(index, matcher)
        })
        .collect();
    routes.push(route(count - 1, Match { regex: Some("^/v[0-9]+/.*$".into()), ..Match::default() }));
    routes
}

/// Requests for services spread over all that exist, so that caches hold no single one of them.
fn requests(kind: &str, count: usize) -> Vec<(String, String)> {
    let services = (count / 5).max(1);
    (0..1024)
        .map(|index| {
            let service = index * 7919 % services;
            let host = "api.example.com".to_owned();
            match kind {
                "exact" => (host, format!("/api/svc{service}/users")),
                "param" => (host, format!("/api/svc{service}/users/12345")),
                "prefix" => (host, format!("/static/svc{service}/css/site.css")),
                "host" => (format!("svc{service}.example.com"), "/health".to_owned()),
                "regex" => (host, format!("/v{service}/things")),
                _ => (host, format!("/api/svc{service}/nothing/here")),
            }
        })
        .collect()
}

fn nanoseconds(router: &Router, requests: &[(String, String)]) -> f64 {
    let headers = HeaderMap::new();
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        for (host, path) in requests.iter().cycle().take(LOOKUPS) {
            let query = Query { scheme: Scheme::Http, host, path, query: None, method: &Method::GET, headers: &headers };
            black_box(router.find(black_box(&query)));
        }
        best = best.min(start.elapsed().as_nanos() as f64 / LOOKUPS as f64);
    }
    best
}

fn main() {
    let kinds = ["exact", "param", "prefix", "host", "regex", "miss"];
    let mut first: Vec<f64> = Vec::new();
    for count in [10, 100, 10_000] {
        let routes = routes(count);
        let mut problems = Problems::default();
        let start = Instant::now();
        let router = Router::compile(&routes, &mut problems);
        assert!(!problems.has_errors(), "{problems:?}");
        println!("{count} routes compiled in {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
        for (index, kind) in kinds.into_iter().enumerate() {
            let requests = requests(kind, count);
            let (host, path) = &requests[0];
            let query = Query { scheme: Scheme::Http, host, path, query: None, method: &Method::GET, headers: &HeaderMap::new() };
            assert_eq!(matches!(router.find(&query), Outcome::Found { .. }), kind != "miss", "{kind}");
            let time = nanoseconds(&router, &requests);
            if first.len() <= index {
                first.push(time);
            }
            println!("  {kind:7} {time:7.1} ns  {:.2} x of 10 routes", time / first[index]);
        }
    }
}
