//! Time of one local rate limit decision, request to answer fields, with one key and with nearly a million.

#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs)]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderValue, Method, Version};
use tollgate::config::route::{RateLimit, Selectors};
use tollgate::config::{At, Problems};
use tollgate::http::{Connection, Exchange, Host, Params, Scheme};
use tollgate::middleware::rate_limit::{Homes, RateLimits, Registry, Stores};
use tollgate::units::Selector;

const KEYS: u32 = 900_000;
const ROUNDS: u32 = 2_000_000;

fn main() {
    let registry = Registry::new();
    let limit = RateLimit { by: Selectors(vec![Selector::Ip]), rate: "100/m".parse().unwrap(), burst: None, name: None, store: None };
    let limits = [(limit, At::main("defaults").key("rate_limit").index(0))];
    let mut problems = Problems::default();
    let limits = RateLimits::compile(&limits, &Homes::default(), &Stores::default(), &registry, &mut problems).unwrap();
    let mut ex = exchange();
    let start = Instant::now();
    run("new keys", &limits, &mut ex, start, KEYS, |n| n);
    run("900,000 keys at random", &limits, &mut ex, start + Duration::from_secs(30), ROUNDS, |n| {
        u32::try_from(u64::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32).unwrap_or(0) % KEYS
    });
    run("one key", &limits, &mut ex, start + Duration::from_secs(60), ROUNDS, |_| 7);
    println!("{} keys in memory", registry.buckets().len());
}

fn run(name: &str, limits: &RateLimits, ex: &mut Exchange, now: Instant, rounds: u32, key: impl Fn(u32) -> u32) {
    let headers = HeaderMap::new();
    let began = Instant::now();
    for n in 0..rounds {
        ex.client_ip = IpAddr::V4(Ipv4Addr::from_bits(key(n)));
        ex.rate_fields = None;
        black_box(limits.check_address(ex, &headers, now));
    }
    println!("{name}: {:.0} ns", began.elapsed().as_secs_f64() * 1e9 / f64::from(rounds));
}

fn exchange() -> Exchange {
    let client_ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
    Exchange {
        worker: 0,
        connection: Arc::new(Connection {
            listener: 0,
            peer: SocketAddr::new(client_ip, 1),
            tls: false,
            tls_version: None,
            client_cert: None,
        }),
        started: Instant::now(),
        method: Method::GET,
        version: Version::HTTP_11,
        received: "/".parse().unwrap(),
        target: "/".parse().unwrap(),
        host: Host::new(None, HeaderValue::from_static(""), 0..0),
        scheme: Scheme::Http,
        client_ip,
        request_id: HeaderValue::from_static("id"),
        params: Params::default(),
        identity: None,
        rate_fields: None,
        auth_error: None,
        rate_limit: None,
    }
}
