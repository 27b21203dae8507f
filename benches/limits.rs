//! Time of one local rate limit decision, from the request to the fields of its answer, with one key and with a million.
//!
//! `cargo bench --bench limits`

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

/// What the program runs with.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const KEYS: u32 = 1_000_000;
const DECISIONS: u32 = 2_000_000;

fn main() {
    let start = Instant::now();
    let mut ex = exchange();

    let (limits, registry) = limits(Selector::Ip, "100/d");
    // A bucket that was used once is active for a quarter of an hour.
    let minute = |minutes: u64| start + Duration::from_secs(30 * minutes);
    run("by ip, new keys", &limits, &mut ex, start, KEYS, |n| n);
    run("by ip, a million keys at random", &limits, &mut ex, minute(1), DECISIONS, scattered);
    println!("  {} keys in memory", registry.buckets().active(minute(1)));
    // A bucket that is used up refuses; the answer names the limit.
    run("by ip, refused", &limits, &mut ex, minute(2), DECISIONS, |_| 7);

    let (limits, _registry) = self::limits(Selector::Ip, "1000000000/s");
    run("by ip, one key", &limits, &mut ex, start, DECISIONS, |_| 7);
    let (limits, _registry) = self::limits(Selector::Global, "1000000000/s");
    run("by global", &limits, &mut ex, start, DECISIONS, |_| 7);
}

/// A key at random, by the finaliser of MurmurHash3.
fn scattered(n: u32) -> u32 {
    let mut hash = n.wrapping_add(1);
    for factor in [0x85eb_ca6b, 0xc2b2_ae35] {
        hash = (hash ^ hash >> 15).wrapping_mul(factor);
    }
    (hash ^ hash >> 16) % KEYS
}

fn limits(by: Selector, rate: &str) -> (RateLimits, Arc<Registry>) {
    let registry = Registry::new(1);
    let limit = RateLimit { by: Selectors(vec![by]), rate: rate.parse().unwrap(), burst: None, name: None, store: None };
    let limits = [(limit, At::main("defaults").key("rate_limit").index(0))];
    let mut problems = Problems::default();
    let limits = RateLimits::compile(&limits, &Homes::default(), &Stores::default(), &registry, &mut problems).unwrap();
    (limits, registry)
}

fn run(name: &str, limits: &RateLimits, ex: &mut Exchange, now: Instant, rounds: u32, key: impl Fn(u32) -> u32) {
    let headers = HeaderMap::new();
    let began = Instant::now();
    for n in 0..rounds {
        ex.client_ip = IpAddr::V4(Ipv4Addr::from_bits(key(n)));
        ex.rate_fields = None;
        black_box(limits.check_address(ex, &headers, now));
        black_box(limits.check_identity(ex, &headers, now));
    }
    println!("{name}: {:.0} ns", began.elapsed().as_secs_f64() * 1e9 / f64::from(rounds));
}

fn exchange() -> Exchange {
    let client_ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
    Exchange {
        worker: 0,
        connection: Connection { listener: 0, peer: SocketAddr::new(client_ip, 1), tls: false, tls_version: None, client_cert: None },
        started: Instant::now(),
        method: Method::GET,
        version: Version::HTTP_11,
        target: "/".parse().unwrap(),
        host: Host::new(None, None, 0..0),
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
