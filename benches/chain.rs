//! What each step of a route's chain costs by itself, and all of them in their order, in time and in allocations: pure functions over a
//! prepared request and response, without sockets.
//!
//! `cargo bench --bench chain`
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic, missing_docs)]
#![allow(unsafe_code, reason = "only an allocator can count allocations, and its trait is unsafe")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use http::header::{AUTHORIZATION, ORIGIN, VARY};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};
use jsonwebtoken::{EncodingKey, Header, encode};
use tollgate::config::load::{Source, load};
use tollgate::gateway::route::Route;
use tollgate::gateway::{Shared, compile};
use tollgate::http::headers::{Forwarding, Survey, remove_hop_by_hop, set_forwarded};
use tollgate::http::{Connection, Exchange, Host, Params, Scheme};
use tollgate::middleware::rate_limit::Decision;

/// Counts what is allocated; the default allocator does the work.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call is passed on to `System` as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: `ptr` came from `System` with this layout.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const SECRET: &str = "0123456789abcdef0123456789abcdef";
const ROUNDS: u32 = 200_000;

const YAML: &str = "
authenticators:
  main: { jwt: { issuer: 'https://id.test', audience: [api], algorithms: [HS256], secret: '0123456789abcdef0123456789abcdef', forward: { sub: x-user-id } } }
  keys: { api_key: { keys: [{ id: acme, sha256: 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae }], forward: { id: x-consumer-id } } }
routes:
  - { name: keys, match: /keys, auth: keys, respond: { status: 200 } }
  - name: all
    match: /api/*
    ip: { allow: [10.0.0.0/8, 127.0.0.0/8], deny: [10.9.0.0/16] }
    cors: { origins: [https://app.example.com, 'https://*.example.org'], credentials: true, expose: [x-request-id] }
    rate_limit:
      - { by: ip, rate: 1000000000/s, burst: 1000000000 }
      - { by: user, rate: 1000000000/s, burst: 1000000000 }
      - { by: global, rate: 1000000000/s, burst: 1000000000 }
    auth: { any: [main], scopes: ['orders:read'] }
    headers:
      request: { set: { x-tenant: acme, x-caller: '{user}' }, remove: [x-internal] }
      response: { set: { x-frame-options: DENY }, remove: [server] }
    respond: { status: 200 }
";

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

fn fields(list: &[(&'static str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(list.len() * 2);
    for (name, value) in list {
        headers.append(HeaderName::from_static(name), HeaderValue::try_from(*value).unwrap());
    }
    headers
}

/// A map as the parser leaves it: `clone` would leave no room for a field more.
fn copy(of: &HeaderMap) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(of.len());
    for (name, value) in of {
        headers.append(name.clone(), value.clone());
    }
    headers
}

/// Times `step` alone; what `prepare` does is not counted.
fn row<T>(name: &str, mut prepare: impl FnMut() -> T, mut step: impl FnMut(&mut T)) {
    let (mut spent, mut allocated) = (Duration::ZERO, 0);
    for round in 0..ROUNDS + 1_000 {
        let mut input = prepare();
        let before = ALLOCATIONS.load(Relaxed);
        let start = Instant::now();
        step(&mut input);
        let elapsed = start.elapsed();
        // The first rounds warm up.
        if round >= 1_000 {
            spent += elapsed;
            allocated += ALLOCATIONS.load(Relaxed) - before;
        }
        black_box(&input);
    }
    let per = |n: f64| n / f64::from(ROUNDS);
    println!("{name:<44} {:>7.0} ns {:>6.2} allocations", per(spent.as_secs_f64() * 1e9), per(allocated as f64));
}

fn now<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("nothing here has to wait"),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "taking it is what the request path does")]
fn passed(decision: Decision) {
    assert!(matches!(decision, Decision::Pass), "nothing here is refused");
}

/// The steps of [`Route::run`] in its order, as far as they need no socket.
fn way_in(route: &Route, ex: &mut Exchange, headers: &mut HeaderMap) {
    let survey = Survey::of(headers);
    remove_hop_by_hop(headers, survey);
    route.ip.as_ref().unwrap().check(ex.client_ip).unwrap();
    assert!(route.cors.as_ref().unwrap().preflight(&ex.method, headers).is_none());
    let limits = route.limits.as_ref().unwrap();
    passed(limits.check_address(ex, headers, ex.started));
    let credential = now(route.auth.as_ref().unwrap().check(ex, headers)).unwrap();
    passed(limits.check_identity(ex, headers, ex.started));
    credential.remove(headers, &mut ex.target);
    forwarded(ex, headers);
    if let Some(identity) = &ex.identity {
        for (name, value) in &identity.forward {
            headers.insert(name.clone(), value.clone());
        }
    }
    route.headers.request(ex, headers);
}

fn forwarded(ex: &Exchange, headers: &mut HeaderMap) {
    let forwarding = Forwarding { peer: ex.connection.peer.ip(), trusted: false, scheme: ex.scheme, host: ex.host.authority.as_ref() };
    set_forwarded(headers, &forwarding);
}

fn main() {
    let loaded = load(&Source::Text { yaml: YAML.to_owned(), dir: ".".into() });
    let snapshot = compile(&Shared::new(1, None), loaded, None, 1).unwrap_or_else(|reports| panic!("{reports:?}"));
    let named = |name: &str| Arc::clone(snapshot.routes.iter().find(|route| &*route.name == name).unwrap());
    let (route, keys) = (named("all"), named("keys"));
    let claims = serde_json::json!({
        "iss": "https://id.test", "aud": "api", "sub": "0198c9f0-5b1e-7c3a-9f52-6f1d2a3b4c5d", "scope": "orders:read orders:write",
        "exp": jsonwebtoken::get_current_timestamp() + 3600, "padding": "x".repeat(300)
    });
    let token = format!("Bearer {}", encode(&Header::default(), &claims, &EncodingKey::from_secret(SECRET.as_bytes())).unwrap());
    let request = fields(&[
        ("host", "site"),
        ("user-agent", "bench"),
        ("accept", "*/*"),
        ("accept-encoding", "gzip"),
        ("authorization", token.as_str()),
        ("x-api-key", "foo"),
        ("cookie", "a=1; b=2"),
    ]);
    let response = fields(&[
        ("content-type", "application/json"),
        ("content-length", "200"),
        ("date", "Sat, 21 Nov 2026 03:10:05 GMT"),
        ("server", "backend"),
        ("etag", "\"1\""),
    ]);
    let mut from_page = request.clone();
    from_page.insert(ORIGIN, HeaderValue::from_static("https://a.example.org"));
    let origin = HeaderValue::from_static("https://a.example.org");

    let cors = route.cors.as_ref().unwrap();
    row("nothing (the clock)", || (), |()| {});
    row("ip", exchange, |ex| route.ip.as_ref().unwrap().check(ex.client_ip).unwrap());
    row("cors, way in, not a preflight", || (), |()| drop(black_box(cors.preflight(&Method::GET, &request))));
    row("cors, way back, no origin", || copy(&response), |response| cors.apply(None, response));
    row("cors, way back, allowed origin", || copy(&response), |response| cors.apply(Some(origin.as_bytes()), response));
    row("rate_limit by ip", exchange, |ex| passed(route.limits.as_ref().unwrap().check_address(ex, &request, ex.started)));
    row("rate_limit by user and global", exchange, |ex| passed(route.limits.as_ref().unwrap().check_identity(ex, &request, ex.started)));
    row("auth, jwt seen before", exchange, |ex| {
        now(route.auth.as_ref().unwrap().check(ex, &request)).map(black_box).map(drop).unwrap();
    });
    row("auth, api key", exchange, |ex| now(keys.auth.as_ref().unwrap().check(ex, &request)).map(drop).unwrap());
    row("forwarded fields", || (exchange(), copy(&request)), |(ex, headers)| forwarded(ex, headers));
    row("headers.request", || (exchange(), copy(&request)), |(ex, headers)| route.headers.request(ex, headers));
    row("headers.response", || (exchange(), copy(&response)), |(ex, headers)| route.headers.response(ex, headers, false));
    row("the chain, way in", || (exchange(), copy(&request)), |(ex, headers)| way_in(&route, ex, headers));
    row("the chain, way in, from a page", || (exchange(), copy(&from_page)), |(ex, headers)| way_in(&route, ex, headers));
    row(
        "the chain, both ways",
        || (exchange(), copy(&request), copy(&response)),
        |(ex, headers, response)| {
            way_in(&route, ex, headers);
            route.headers.response(ex, response, false);
            cors.apply(headers.get(ORIGIN).map(HeaderValue::as_bytes), response);
            route.limits.as_ref().unwrap().fields(ex, response);
        },
    );
    assert!(request.contains_key(AUTHORIZATION) && !response.contains_key(VARY));
}
