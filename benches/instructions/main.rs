//! The pure parts of the request path, one at a time, for callgrind to count their instructions. `benches/instructions/run` does that.
//!
//! Started with a case's name it prepares the case, warms up, and calls [`measured`] [`ROUNDS`] times, in which alone instructions are
//! counted; without, it lists the cases. Counts do not depend on what else the machine does, so a change of one per cent is a change.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic, missing_docs)]

use std::hint::black_box;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::BytesMut;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};
use jsonwebtoken::{EncodingKey, Header, encode};
use tollgate::config::load::{Source, load};
use tollgate::config::route::{Match, Respond};
use tollgate::config::upstream::{self as written, Balance, Endpoint};
use tollgate::config::{At, Problems, resolve};
use tollgate::gateway::route::Route;
use tollgate::gateway::{Shared, compile};
use tollgate::http::h1::{Limits, parse_request, parse_response};
use tollgate::http::headers::{Forwarding, Survey, remove_hop_by_hop, set_forwarded};
use tollgate::http::target::canonical;
use tollgate::http::{Connection, Exchange, Host, Params, Scheme};
use tollgate::router::{Outcome, Query, Router};
use tollgate::telemetry::metrics::Metrics;
use tollgate::upstream::connect::Destination;
use tollgate::upstream::pool::EndpointPool;
use tollgate::upstream::{EndpointSpec, PickArgs, Unobserved, Upstream, UpstreamState};

/// As in the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measured calls of a case. `run` divides by it.
const ROUNDS: usize = 1_000;
const WARM_UP: usize = 200;
const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// As wrk asks.
const PLAIN_REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n\r\n";
/// The same with a byte that a plain head does not have.
const ODD_REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nX-Tab: a\tb\r\n\r\n";
/// As nginx answers.
const PLAIN_ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Sat, 21 Nov 2026 12:00:00 GMT\r\n\
    Content-Type: application/json\r\nContent-Length: 200\r\nConnection: keep-alive\r\n\r\n";
const LIMITS: Limits = Limits { max_head: 64 << 10, max_fields: 100 };

const YAML: &str = "
authenticators: { main: { jwt: { issuer: 'https://id.test', audience: [api], algorithms: [HS256], secret: '0123456789abcdef0123456789abcdef', forward: { sub: x-user-id } } } }
routes: [{ match: /*, auth: main, rate_limit: [{ by: ip, rate: 1000000/s }], respond: { status: 200 } }]
";

/// Callgrind counts in here only, with what it calls.
#[inline(never)]
fn measured<T>(input: &mut T, step: &mut impl FnMut(&mut T)) {
    step(black_box(input));
}

/// Runs a case; what `prepare` does is not counted.
fn case<T>(mut prepare: impl FnMut() -> T, mut step: impl FnMut(&mut T)) {
    for _ in 0..WARM_UP {
        step(black_box(&mut prepare()));
    }
    for _ in 0..ROUNDS {
        measured(&mut prepare(), &mut step);
    }
}

const CASES: [(&str, fn()); 26] = [
    ("router, exact path among 10", || router(10, "/api/svc0/users")),
    ("router, exact path among 10,000", || router(10_000, "/api/svc1999/users")),
    ("router, parameter among 10", || router(10, "/api/svc0/users/12345")),
    ("router, parameter among 10,000", || router(10_000, "/api/svc1999/users/12345")),
    ("router, no route among 10,000", || router(10_000, "/api/svc1999/nothing/here")),
    ("balance, round_robin of 3", || balance(&Balance::RoundRobin, 3, 1)),
    ("balance, weighted of 2", || balance(&Balance::Weighted, 2, 2)),
    ("balance, weighted of 3", || balance(&Balance::Weighted, 3, 3)),
    ("balance, weighted of 10", || balance(&Balance::Weighted, 10, 10)),
    ("balance, weighted of 1,000, equal", || balance(&Balance::Weighted, 1_000, 1)),
    ("balance, weighted of 1,000, all different", || balance(&Balance::Weighted, 1_000, 1_000)),
    ("balance, least_requests of 3", || balance(&Balance::LeastRequests, 3, 1)),
    ("balance, p2c of 3", || balance(&Balance::P2c, 3, 1)),
    ("balance, p2c of 1,000", || balance(&Balance::P2c, 1_000, 1)),
    ("balance, consistent_hash of 3", || balance(&hashed(), 3, 1)),
    ("balance, consistent_hash of 1,000", || balance(&hashed(), 1_000, 1)),
    ("rate limit, one by ip", limit),
    ("head, plain request", || request_head(PLAIN_REQUEST)),
    ("head, request that httparse judges", || request_head(ODD_REQUEST)),
    ("head, plain answer, as lines", || {
        case(
            || (BytesMut::from(PLAIN_ANSWER), 0),
            |(buf, seen)| drop(black_box(parse_response(buf, seen, LIMITS, true).unwrap().unwrap())),
        );
    }),
    ("headers, survey of 7 fields", || {
        case(request, |headers| {
            black_box(Survey::of(headers));
        })
    }),
    ("headers, hop-by-hop removed", || case(request, |headers| drop(black_box(remove_hop_by_hop(headers, Survey::of(headers)))))),
    ("headers, forwarded fields set", || case(|| (exchange(), request()), |(ex, headers)| forwarded(ex, headers))),
    ("path, canonical as it is", || path("/api/users/12345?x=1")),
    ("path, to be made canonical", || path("/api//users/./a%2Db?x=1")),
    ("jwt, seen before", jwt),
];

fn main() {
    // `cargo bench` adds an option of its own.
    match std::env::args().skip(1).find(|argument| !argument.starts_with("--")) {
        None => CASES.iter().for_each(|(name, _)| println!("{name}")),
        Some(name) => CASES.iter().find(|(known, _)| *known == name).unwrap_or_else(|| panic!("no case `{name}`")).1(),
    }
}

/// Looks `path` up among so many routes, five for each service.
fn router(count: usize, path: &str) {
    let route = |index: usize| {
        let service = index / 5;
        let matcher = match index % 5 {
            0 => Match { path: Some(format!("/api/svc{service}/users")), methods: Some(vec!["GET".into()]), ..Match::default() },
            1 => Match { path: Some(format!("/api/svc{service}/users/{{id}}")), ..Match::default() },
            2 => Match { prefix: Some(format!("/static/svc{service}")), ..Match::default() },
            3 => Match { path: Some("/health".into()), host: Some(format!("svc{service}.example.com")), ..Match::default() },
            _ => Match { path: Some(format!("/api/svc{service}/orders/{{id}}/items")), ..Match::default() },
        };
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
    };
    let mut problems = Problems::default();
    let router = Router::compile(&(0..count).map(route).collect::<Vec<_>>(), &mut problems);
    assert!(!problems.has_errors(), "{problems:?}");
    let headers = HeaderMap::new();
    let query = Query { scheme: Scheme::Http, host: "api.example.com", path, query: None, method: &Method::GET, headers: &headers };
    assert_eq!(matches!(router.find(&query), Outcome::Found { .. }), !path.contains("nothing"));
    case(|| (), |()| drop(black_box(router.find(black_box(&query)))));
}

fn hashed() -> Balance {
    Balance::ConsistentHash { key: vec![tollgate::units::Selector::Ip], bounded_load: None }
}

/// Picks one of so many endpoints with so many different weights, and ends the attempt.
fn balance(balance: &Balance, endpoints: usize, weights: usize) {
    let endpoint = |n: usize| Endpoint { url: format!("http://10.0.{}.{}:80", n / 250, n % 250), weight: (n % weights) as u32 + 1 };
    let config =
        written::Upstream { endpoints: (0..endpoints).map(endpoint).collect(), balance: balance.clone(), ..written::Upstream::default() };
    let metrics = Metrics::new(1, "", "");
    let make_pool = Arc::new(move |spec: &EndpointSpec| {
        let destination = Destination::new(spec, None, written::Protocol::Auto);
        Arc::new(EndpointPool::new(1, destination, &written::Pool::default(), metrics.endpoint("u", &spec.id)))
    });
    let mut problems = Problems::default();
    let state = UpstreamState::new("bench", Arc::new(Unobserved));
    let upstream = Upstream::compile("bench", &config, state, make_pool, &mut problems).unwrap_or_else(|| panic!("{problems:?}"));
    let (now, mut random) = (Instant::now(), 1_u64);
    let draw = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        random ^ (random >> 29)
    };
    case(draw, |key| drop(black_box(upstream.pick(&PickArgs { worker: 0, now, tried: &[], hash: &|| Some(*key), random: *key }))));
}

/// The route of [`YAML`].
fn route() -> Arc<Route> {
    let loaded = load(&Source::Text { yaml: YAML.to_owned(), dir: ".".into() });
    let snapshot = compile(&Shared::new(1, None), loaded, None, 1).unwrap_or_else(|reports| panic!("{reports:?}"));
    Arc::clone(&snapshot.routes[0])
}

fn limit() {
    let (route, headers) = (route(), request());
    let limits = route.limits.as_ref().unwrap();
    case(exchange, |ex| drop(black_box(limits.check_address(ex, &headers, ex.started))));
}

fn jwt() {
    let claims = serde_json::json!({
        "iss": "https://id.test", "aud": "api", "sub": "0198c9f0-5b1e-7c3a-9f52-6f1d2a3b4c5d", "scope": "orders:read orders:write",
        "exp": jsonwebtoken::get_current_timestamp() + 3600, "padding": "x".repeat(300)
    });
    let token = format!("Bearer {}", encode(&Header::default(), &claims, &EncodingKey::from_secret(SECRET.as_bytes())).unwrap());
    let (route, mut headers) = (route(), request());
    headers.insert("authorization", HeaderValue::try_from(token).unwrap());
    let auth = route.auth.as_ref().unwrap();
    case(exchange, |ex| match pin!(auth.check(ex, &headers)).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(outcome) => drop(black_box(outcome.unwrap())),
        Poll::Pending => panic!("a remembered token must not wait"),
    });
}

fn request_head(bytes: &'static [u8]) {
    case(|| (BytesMut::from(bytes), 0), |(buf, seen)| drop(black_box(parse_request(buf, seen, LIMITS).unwrap().unwrap())));
}

fn path(received: &'static str) {
    let target = PathAndQuery::from_static(received);
    case(|| (), |()| drop(black_box(canonical(black_box(&target), tollgate::config::server::EncodedSlash::default()))));
}

fn forwarded(ex: &Exchange, headers: &mut HeaderMap) {
    let forwarding = Forwarding { peer: ex.connection.peer.ip(), trusted: false, scheme: ex.scheme, host: ex.host.authority.as_ref() };
    set_forwarded(headers, &forwarding);
}

/// A request's fields as the parser leaves them.
fn request() -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(16);
    for (name, value) in [
        ("host", "site"),
        ("user-agent", "bench"),
        ("accept", "*/*"),
        ("accept-encoding", "gzip"),
        ("accept-language", "de"),
        ("x-api-key", "foo"),
        ("cookie", "a=1; b=2"),
    ] {
        headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    headers
}

fn exchange() -> Exchange {
    let peer = "127.0.0.1:9".parse().unwrap();
    Exchange {
        worker: 0,
        connection: Connection { listener: 0, peer, tls: false, tls_version: None, client_cert: None },
        started: Instant::now(),
        method: Method::GET,
        version: Version::HTTP_11,
        target: PathAndQuery::from_static("/api/users/5?x=1"),
        host: Host::new(Some(HeaderValue::from_static("site")), None, 0..4),
        scheme: Scheme::Http,
        client_ip: peer.ip(),
        request_id: HeaderValue::from_static("0198c9f0-5b1e-7c3a-9f52-6f1d2a3b4c5d"),
        params: Params::default(),
        identity: None,
        rate_fields: None,
        auth_error: None,
        rate_limit: None,
    }
}
