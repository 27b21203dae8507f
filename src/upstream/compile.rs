//! From the written upstream to the running one, with every problem reported.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use arc_swap::ArcSwap;

use super::names::Discover;
use super::set::{Current, Set};
use super::{Endpoint, EndpointSpec, Links, MakePool, Members, Rules, Upstream, UpstreamState};
use crate::balance::Strategy;
use crate::balance::hash::TableCache;
use crate::config::upstream::{self as config, Balance};
use crate::config::{At, Problems};
use crate::health::outlier;
use crate::units::Selector;

/// The Maglev table has 65537 slots; with more endpoints than this some would get none.
const MOST_ENDPOINTS: usize = 65_535;
const MOST_WEIGHT: u32 = 1_000;

impl Upstream {
    /// Compiles an upstream; reports everything that is wrong with it. Does no I/O.
    pub fn compile(
        name: &str,
        config: &config::Upstream,
        state: Arc<UpstreamState>,
        make_pool: MakePool,
        problems: &mut Problems,
    ) -> Option<Arc<Self>> {
        let before = problems.list().len();
        let mut specs = read_endpoints(config, problems);
        let discover = config.discover.as_ref().and_then(|discover| read_discover(discover, &config.at.key("discover"), problems));
        if config.discover.is_none() && config.endpoints.is_empty() {
            problems.error(config.at.clone(), "an upstream needs `endpoints` or `discover`").help("list at least one endpoint");
        }
        if config.discover.is_some() && !config.endpoints.is_empty() {
            problems.error(config.at.key("discover"), "`endpoints` and `discover` exclude each other").help("keep one of them");
        }
        let (strategy, selectors) = read_balance(&config.balance, &config.at.key("balance"), &state.tables, problems);
        let rules = read_rules(config, problems);
        let new_problems = &problems.list()[before..];
        if new_problems.iter().any(|problem| problem.severity == crate::config::problem::Severity::Error) {
            return None;
        }
        let name: Arc<str> = name.into();
        let snapshot = state.next_snapshot();
        if let Some(discover) = &discover {
            // Until the first look-up of this snapshot ends, or for as long as none succeeds.
            specs = discover.specs(&state.remembered(discover), strategy.has_weights());
        }
        let upstream = Arc::new_cyclic(|this| Self {
            name,
            protocol: config.protocol,
            connect_timeout: config.connect_timeout.get(),
            rules,
            strategy,
            selectors,
            discover,
            make_pool,
            snapshot,
            this: this.clone(),
            members: Mutex::new(Arc::new([])),
            set: ArcSwap::from_pointee(Current::new(Set::stale())),
            set_number: AtomicU64::new(0),
            lookups: Mutex::default(),
            state,
        });
        upstream.replace_members(specs, Instant::now());
        Some(upstream)
    }

    /// Makes `specs` the endpoints. Those that stay keep their `Endpoint`, those known from elsewhere their state.
    pub(super) fn replace_members(&self, specs: Vec<EndpointSpec>, now: Instant) {
        let states = self.state.states_of(&specs, now);
        let mut members = self.lock_members();
        let held: HashMap<Arc<str>, Arc<Endpoint>> = members.iter().map(|endpoint| (endpoint.id.clone(), endpoint.clone())).collect();
        let links = Links { state: self.state.clone(), upstream: self.this.clone(), breaker: self.rules.breaker };
        let new: Members = specs
            .into_iter()
            .zip(states)
            .enumerate()
            .map(|(index, (spec, state))| match held.get(&spec.id) {
                Some(endpoint) if (endpoint.index, endpoint.weight, endpoint.priority) == (index, spec.weight, spec.priority) => {
                    endpoint.clone()
                }
                Some(endpoint) => Arc::new(Endpoint::new(spec, index, state, endpoint.pool.clone(), links.clone())),
                None => {
                    let pool = (self.make_pool)(&spec);
                    Arc::new(Endpoint::new(spec, index, state, pool, links.clone()))
                }
            })
            .collect();
        let old = std::mem::replace(&mut *members, new);
        self.rebuild(&members, now);
        // Attempts may hold on to those that are gone for a while, but keep no connection open.
        for endpoint in old.iter().filter(|old| !members.iter().any(|member| Arc::ptr_eq(member, old))) {
            endpoint.leave();
        }
    }
}

fn read_endpoints(config: &config::Upstream, problems: &mut Problems) -> Vec<EndpointSpec> {
    let list = config.at.key("endpoints");
    let mut places: HashMap<Arc<str>, usize> = HashMap::new();
    let mut specs = Vec::with_capacity(config.endpoints.len());
    let has_weights = matches!(config.balance, Balance::Weighted | Balance::LeastRequests | Balance::ConsistentHash { .. });
    for (index, written) in config.endpoints.iter().enumerate() {
        let at = list.index(index);
        if written.weight > MOST_WEIGHT {
            problems.error(at.key("weight"), format!("a weight of {} is out of range", written.weight)).help("write 0 to 1000");
        } else if written.weight != 1 && !has_weights {
            problems
                .error(at.key("weight"), format!("this `balance` has no weights, so a weight of {} would do nothing", written.weight))
                .help("use balance: weighted, least_requests or consistent_hash");
        }
        let Some(spec) = EndpointSpec::parse(&written.url, written.weight, &at, problems) else {
            continue;
        };
        match places.get(&spec.id) {
            Some(first) => {
                problems
                    .error(at, format!("endpoint {} is listed twice (also at number {})", spec.id, first + 1))
                    .help("list it once; `weight` gives it a larger share");
            }
            None => {
                places.insert(spec.id.clone(), index);
                specs.push(spec);
            }
        }
    }
    if specs.len() > MOST_ENDPOINTS {
        problems.error(list.clone(), format!("{} endpoints are too many", specs.len())).help(format!("at most {MOST_ENDPOINTS}"));
    }
    if !config.endpoints.is_empty() && config.endpoints.iter().all(|endpoint| endpoint.weight == 0) {
        problems.error(list, "all weights are 0, so no endpoint would get a request").help("give at least one endpoint a weight above 0");
    }
    specs
}

fn read_discover(discover: &config::Discover, at: &At, problems: &mut Problems) -> Option<Discover> {
    let later =
        [("consul", &discover.consul), ("etcd", &discover.etcd), ("kubernetes", &discover.kubernetes), ("registry", &discover.registry)];
    let mut refused = false;
    for (key, _) in later.iter().filter(|(_, value)| value.is_some()) {
        problems.error(at.key(key).its_key(), format!("`discover: {{ {key} }}` is not supported yet")).help("use `dns` or `endpoints`");
        refused = true;
    }
    let Some(written) = &discover.dns else {
        if !refused {
            problems.error(at.clone(), "`discover` names no source").help("write { dns: NAME:PORT }");
        }
        return None;
    };
    if discover.refresh.get().is_zero() {
        problems.error(at.key("refresh"), "a refresh of 0s would look the name up without pause").help("write at least 1s");
    }
    match Discover::parse(written, discover.refresh.get()) {
        Ok(discover) => Some(discover),
        Err((message, help)) => {
            problems.error(at.key("dns"), message).help(help);
            None
        }
    }
}

fn read_balance(balance: &Balance, at: &At, tables: &TableCache, problems: &mut Problems) -> (Strategy, Vec<Selector>) {
    match balance {
        Balance::RoundRobin => (Strategy::RoundRobin, Vec::new()),
        Balance::Weighted => (Strategy::Weighted, Vec::new()),
        Balance::LeastRequests => (Strategy::LeastRequests, Vec::new()),
        Balance::P2c => (Strategy::P2c, Vec::new()),
        Balance::Random => (Strategy::Random, Vec::new()),
        Balance::ConsistentHash { key, bounded_load } => {
            let at = at.key("consistent_hash");
            if key.is_empty() {
                problems.error(at.key("key"), "`consistent_hash` needs a key").help("write what to hash, like key: [ip]");
            }
            if let Some(index) = key.iter().position(|selector| *selector == Selector::Global) {
                problems
                    .error(at.key("key").index(index), "`global` is no key: it is the same for all requests")
                    .help("write ip or header:NAME");
            }
            if bounded_load.is_some_and(|factor| !factor.is_finite() || factor <= 1.0) {
                problems.error(at.key("bounded_load"), "`bounded_load` must be above 1").help("write off or a factor like 1.25");
            }
            (Strategy::ConsistentHash { bounded_load: *bounded_load, cache: tables.clone() }, key.clone())
        }
    }
}

fn read_rules(config: &config::Upstream, problems: &mut Problems) -> Rules {
    if let Some(health) = &config.health {
        check_health(health, &config.at.key("health"), problems);
    }
    let outlier = config.outlier.on().map(|outlier| {
        let at = config.at.key("outlier");
        if outlier.errors == 0 {
            problems.error(at.key("errors"), "`errors` must be at least 1").help("write `outlier: off` to switch ejection off");
        }
        if outlier.eject_for.get().is_zero() {
            problems.error(at.key("eject_for"), "`eject_for` must be above 0s").help("write `outlier: off` to switch ejection off");
        }
        outlier::Rules { errors: outlier.errors, eject_for: outlier.eject_for.get(), max_ejected: outlier.max_ejected.fraction() }
    });
    Rules {
        health: config.health.clone(),
        outlier,
        slow_start: config.slow_start.get(),
        panic_threshold: config.panic_threshold.fraction(),
        breaker: match config.breaker.on() {
            Some(config::Breaker::Adaptive) => true,
            None => false,
        },
    }
}

fn check_health(health: &config::Health, at: &At, problems: &mut Problems) {
    let kinds = usize::from(health.path.is_some()) + usize::from(health.tcp) + usize::from(health.grpc.is_some());
    if kinds != 1 {
        problems.error(at.clone(), "`health` needs exactly one of `path`, `tcp: true` and `grpc`").help("write { path: /health }");
    }
    if let Some(path) = &health.path
        && (!path.starts_with('/') || path.parse::<http::uri::PathAndQuery>().is_err())
    {
        problems.error(at.key("path"), format!("`{path}` is not a path")).help("write one like /health");
    }
    for (key, duration) in [("interval", health.interval), ("timeout", health.timeout)] {
        if duration.get().is_zero() {
            problems.error(at.key(key), format!("`{key}` must be above 0s")).help("leave it out for the default");
        }
    }
    for (key, count) in [("healthy", health.healthy), ("unhealthy", health.unhealthy)] {
        if count == 0 {
            problems.error(at.key(key), format!("`{key}` must be at least 1")).help("leave it out for the default");
        }
    }
    if health.expect.is_empty() {
        problems.error(at.key("expect"), "no status would pass").help("write ranges like [200-399]");
    }
}
