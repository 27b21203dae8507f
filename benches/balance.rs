//! Nanoseconds per pick and drop of an attempt: each strategy with 1 and 1,000 endpoints, all available; idle, or with several attempts in
//! flight on each.
#![allow(clippy::print_stdout, missing_docs)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use tollgate::config::Problems;
use tollgate::config::upstream::{self as config, Balance, Endpoint};
use tollgate::telemetry::metrics::Metrics;
use tollgate::upstream::connect::Destination;
use tollgate::upstream::pool::EndpointPool;
use tollgate::upstream::{EndpointSpec, PickArgs, Unobserved, Upstream, UpstreamState};

const PICKS: u32 = 200_000;

fn main() {
    let hash = |bounded_load| Balance::ConsistentHash { key: vec![tollgate::units::Selector::Ip], bounded_load };
    let strategies = [
        ("round_robin", Balance::RoundRobin, 1),
        ("weighted, equal weights", Balance::Weighted, 1),
        ("weighted, 10 weights", Balance::Weighted, 10),
        ("weighted, all different", Balance::Weighted, 1000),
        ("least_requests", Balance::LeastRequests, 1),
        ("p2c", Balance::P2c, 1),
        ("random", Balance::Random, 1),
        ("consistent_hash", hash(None), 1),
        ("consistent_hash, bounded", hash(Some(1.25)), 1),
    ];
    for (name, balance, weights) in strategies {
        for (load, held) in [("idle", 0), ("busy", 5)] {
            let times: Vec<String> = [1, 1000].map(|endpoints| format!("{:8.0}", measure(&balance, endpoints, weights, held))).into();
            println!("{name:28} {load} {} ns with 1, {} ns with 1000 endpoints", times[0], times[1]);
        }
    }
}

fn measure(balance: &Balance, endpoints: usize, weights: usize, held: usize) -> f64 {
    // In no order: 617 has no factor in common with the numbers of weights.
    let weight = |n: usize| (n * 617 % weights) as u32 + 1;
    let written = (0..endpoints).map(|n| Endpoint { url: format!("http://10.0.{}.{}:80", n / 250, n % 250), weight: weight(n) });
    let config = config::Upstream { endpoints: written.collect(), balance: balance.clone(), ..config::Upstream::default() };
    let state = UpstreamState::new("bench", Arc::new(Unobserved));
    let mut problems = Problems::default();
    let metrics = Metrics::new(1, "", "");
    let make_pool = Arc::new(move |spec: &EndpointSpec| {
        let destination = Destination::new(spec, None, config::Protocol::Auto);
        Arc::new(EndpointPool::new(1, destination, &config::Pool::default(), metrics.endpoint("u", &spec.id)))
    });
    let upstream = Upstream::compile("bench", &config, state, make_pool, &mut problems);
    let Some(upstream) = upstream else {
        println!("{problems:?}");
        return f64::NAN;
    };
    let now = Instant::now();
    let mut random = 1u64;
    let pick = |random| upstream.pick(&PickArgs { worker: 0, now, tried: &[], hash: &|| Some(random), random });
    let _held: Vec<_> = (0..endpoints * held).map(|n| pick((n as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15))).collect();
    let mut run = || {
        let start = Instant::now();
        for _ in 0..PICKS {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let key = random ^ (random >> 29);
            black_box(pick(key)).ok();
        }
        start.elapsed().as_nanos() as f64 / f64::from(PICKS)
    };
    run();
    (0..3).map(|_| run()).fold(f64::INFINITY, f64::min)
}
