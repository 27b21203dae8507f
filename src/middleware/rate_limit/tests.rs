//! Tests of limits in this process, by the door that requests use.

use std::collections::BTreeMap;
use std::time::Duration;

use http::header::RETRY_AFTER;

use super::*;
use crate::config::problem::Seg;
use crate::config::route::{Match, Policy, RateLimit, Route, Selectors};
use crate::config::{At, Config, Problems};
use crate::http::selector::testing::{as_user, fields, request};

pub(super) fn limit(by: &[&str], rate: &str, burst: u64) -> RateLimit {
    RateLimit {
        by: Selectors(by.iter().map(|selector| selector.parse().unwrap()).collect()),
        rate: rate.parse().unwrap(),
        burst: Some(burst),
        name: None,
        store: None,
    }
}

fn place(home: &str, index: usize) -> At {
    At { file: 0, path: vec![Seg::Key(home.to_owned()), Seg::Key("rate_limit".to_owned()), Seg::Index(index)], on_key: false }
}

/// Limits of one home.
pub(super) fn at(home: &str, limits: &[RateLimit]) -> Vec<(RateLimit, At)> {
    limits.iter().enumerate().map(|(index, limit)| (limit.clone(), place(home, index))).collect()
}

pub(super) fn compile(limits: &[(RateLimit, At)], stores: &Stores, registry: &Arc<Registry>) -> RateLimits {
    let mut problems = Problems::default();
    let compiled = RateLimits::compile(limits, &Homes::default(), stores, registry, &mut problems);
    compiled.unwrap_or_else(|| panic!("{problems:?}"))
}

struct Gate {
    limits: RateLimits,
    start: Instant,
}

impl Gate {
    fn new(limits: &[RateLimit]) -> Self {
        Self { limits: compile(&at("r", limits), &Stores::default(), &Registry::new(1)), start: Instant::now() }
    }

    /// Both steps at `ms` after the start, as the chain runs them; the refusal, if there is one.
    fn ask(&self, ms: u64, ex: &mut Exchange, headers: &HeaderMap) -> Option<Box<Refusal>> {
        let now = self.start + Duration::from_millis(ms);
        refusal(self.limits.check_address(ex, headers, now)).or_else(|| refusal(self.limits.check_identity(ex, headers, now)))
    }

    fn passes(&self, ms: u64, mut ex: Exchange, headers: &[(&str, &str)]) -> bool {
        self.ask(ms, &mut ex, &fields(headers)).is_none()
    }
}

fn refusal(decision: Decision) -> Option<Box<Refusal>> {
    match decision {
        Decision::Pass => None,
        Decision::Refused(refusal) => Some(refusal),
        Decision::Remote(pending) => panic!("no store is asked: {pending:?}"),
    }
}

/// `RateLimit-Policy` and `RateLimit`.
pub(super) fn rate_fields(limits: &RateLimits, ex: &Exchange) -> (String, String) {
    let mut map = HeaderMap::new();
    limits.fields(ex, &mut map);
    let text = |value: &http::HeaderValue| value.to_str().unwrap().to_owned();
    let found: Vec<_> = map.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
    let [(policy, policies), (limit, left)] = <[_; 2]>::try_from(found).unwrap();
    assert_eq!((policy.as_str(), limit.as_str()), ("ratelimit-policy", "ratelimit"));
    (policies, left)
}

const IP: &str = "192.0.2.1";

#[test]
fn burst_at_once_then_one_per_interval() {
    let gate = Gate::new(&[limit(&["ip"], "10/s", 20)]);
    for n in 0..20 {
        assert!(gate.passes(0, request(IP, "/"), &[]), "request {n}");
    }
    let refusal = gate.ask(0, &mut request(IP, "/"), &HeaderMap::new()).unwrap();
    assert_eq!((refusal.reason, refusal.status().as_u16()), (crate::error::Reason::RateLimited, 429));
    assert_eq!(refusal.headers.get(RETRY_AFTER).unwrap(), "1");
    assert!(!gate.passes(99, request(IP, "/"), &[]));
    assert!(gate.passes(100, request(IP, "/"), &[]));
    assert!(!gate.passes(100, request(IP, "/"), &[]));
    assert!(gate.passes(100, request("192.0.2.2", "/"), &[]));
}

#[test]
fn refusals_cost_nothing_and_an_idle_bucket_is_full_again() {
    let gate = Gate::new(&[limit(&["ip"], "1/s", 2)]);
    assert!(gate.passes(0, request(IP, "/"), &[]) && gate.passes(0, request(IP, "/"), &[]));
    for _ in 0..50 {
        assert!(!gate.passes(999, request(IP, "/"), &[]));
    }
    assert!(gate.passes(1_000, request(IP, "/"), &[]));
    assert!(gate.passes(60_000, request(IP, "/"), &[]) && gate.passes(60_000, request(IP, "/"), &[]));
    assert!(!gate.passes(60_000, request(IP, "/"), &[]));
}

#[test]
fn burst_defaults_to_the_rates_number() {
    let mut config = limit(&["ip"], "3/m", 1);
    config.burst = None;
    let gate = Gate::new(&[config]);
    assert_eq!((0..9).filter(|_| gate.passes(0, request(IP, "/"), &[])).count(), 3);
    let mut ex = request(IP, "/");
    let refusal = gate.ask(0, &mut ex, &HeaderMap::new()).unwrap();
    assert_eq!(refusal.headers.get(RETRY_AFTER).unwrap(), "20");
    assert_eq!(rate_fields(&gate.limits, &ex), ("\"ip\";q=3;w=60".into(), "\"ip\";r=0;t=20".into()));
}

#[test]
fn a_clock_that_steps_back_gives_nothing_away() {
    let gate = Gate::new(&[limit(&["ip"], "1/s", 5)]);
    assert_eq!((0..9).filter(|_| gate.passes(10_000, request(IP, "/"), &[])).count(), 5);
    assert!(!gate.passes(0, request(IP, "/"), &[]));
    assert!(!gate.passes(10_500, request(IP, "/"), &[]));
    assert!(gate.passes(11_000, request(IP, "/"), &[]));
}

#[test]
fn two_hundred_parallel_requests_at_a_burst_of_a_hundred_let_exactly_a_hundred_through() {
    let gate = Gate::new(&[limit(&["global"], "1/d", 100)]);
    let passed = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..25 {
                    passed.fetch_add(usize::from(gate.passes(0, request(IP, "/"), &[])), std::sync::atomic::Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(passed.into_inner(), 100);
}

#[test]
fn the_first_selector_present_counts_and_which_one_it_was() {
    let gate = Gate::new(&[limit(&["header:x-tenant", "query:t", "ip"], "1/h", 1)]);
    assert!(gate.passes(0, request(IP, "/?t=a"), &[("x-tenant", "a")]));
    assert!(!gate.passes(0, request("192.0.2.9", "/"), &[("x-tenant", "a")]));
    // The same text from another selector is another key.
    assert!(gate.passes(0, request(IP, "/?t=a"), &[]));
    assert!(!gate.passes(0, request(IP, "/?t=a"), &[("x-tenant", "")]));
    assert!(gate.passes(0, request(IP, "/?t="), &[]));
    assert!(!gate.passes(0, request(IP, "/"), &[]));
}

#[test]
fn without_any_selector_the_address_counts_never_nothing() {
    let gate = Gate::new(&[limit(&["user"], "1/h", 1), limit(&["header:x-key"], "1/h", 2)]);
    assert!(gate.passes(0, request(IP, "/"), &[]));
    assert!(!gate.passes(0, request(IP, "/"), &[]));
    assert!(gate.passes(0, request("192.0.2.2", "/"), &[]));
    assert!(gate.passes(0, as_user(request("192.0.2.3", "/"), "ada"), &[]));
    assert!(!gate.passes(0, as_user(request("192.0.2.4", "/"), "ada"), &[]));
}

#[test]
fn ipv6_counts_by_its_64_and_mapped_addresses_as_ipv4() {
    let gate = Gate::new(&[limit(&["ip"], "1/h", 1)]);
    assert!(gate.passes(0, request("2001:db8:1:2::1", "/"), &[]));
    assert!(!gate.passes(0, request("2001:db8:1:2:ffff::1", "/"), &[]));
    assert!(gate.passes(0, request("2001:db8:1:3::1", "/"), &[]));
    assert!(gate.passes(0, request("::ffff:192.0.2.1", "/"), &[]));
    assert!(!gate.passes(0, request("192.0.2.1", "/"), &[]));
}

#[test]
fn steps_take_their_own_limits_and_global_is_last() {
    let limits = [limit(&["global"], "9/s", 9), limit(&["user", "ip"], "9/s", 8), limit(&["ip"], "9/s", 7), limit(&["path"], "9/s", 6)];
    let gate = Gate::new(&limits);
    let mut ex = request(IP, "/");
    assert!(refusal(gate.limits.check_address(&mut ex, &HeaderMap::new(), gate.start)).is_none());
    assert_eq!(rate_fields(&gate.limits, &ex).0, "\"ip\";q=7;w=1, \"path\";q=6;w=1");
    assert!(refusal(gate.limits.check_identity(&mut ex, &HeaderMap::new(), gate.start)).is_none());
    assert_eq!(rate_fields(&gate.limits, &ex).0, "\"ip\";q=7;w=1, \"path\";q=6;w=1, \"user|ip\";q=8;w=1, \"global\";q=9;w=1");
}

#[test]
fn one_that_refuses_is_not_charged_nor_are_those_after_it_but_earlier_charges_stay() {
    let gate = Gate::new(&[limit(&["ip"], "1/h", 3), limit(&["path"], "1/h", 1), limit(&["global"], "1/h", 2)]);
    assert!(gate.passes(0, request(IP, "/a"), &[]));
    let mut ex = request(IP, "/a");
    let refused = gate.ask(0, &mut ex, &HeaderMap::new()).unwrap();
    assert_eq!(refused.extra, [("violated-policies", serde_json::json!(["path"]))]);
    assert_eq!(ex.rate_limit.as_deref(), Some("path"));
    // `ip` was charged twice, `global` once: both have exactly one left.
    assert!(gate.passes(0, request(IP, "/b"), &[]));
    let mut ex = request(IP, "/c");
    assert!(gate.ask(0, &mut ex, &HeaderMap::new()).is_some());
    assert_eq!(ex.rate_limit.as_deref(), Some("ip"));
    let mut ex = request("192.0.2.7", "/d");
    assert!(gate.ask(0, &mut ex, &HeaderMap::new()).is_some());
    assert_eq!(ex.rate_limit.as_deref(), Some("global"));
}

#[test]
fn the_refusal_says_what_the_standards_want() {
    let mut per_key = limit(&["ip"], "1/m", 1);
    per_key.name = Some("per \"key\"".to_owned());
    let gate = Gate::new(&[limit(&["global"], "100/s", 100), per_key]);
    assert!(gate.passes(0, request(IP, "/"), &[]));
    let mut ex = request(IP, "/");
    let refusal = gate.ask(500, &mut ex, &HeaderMap::new()).unwrap();
    assert_eq!(refusal.headers.get(RETRY_AFTER).unwrap(), "60");
    assert_eq!(refusal.problem_type, Some("https://iana.org/assignments/http-problem-types#quota-exceeded"));
    assert_eq!(refusal.extra, [("violated-policies", serde_json::json!(["per \"key\""]))]);
    assert_eq!(ex.rate_limit.as_deref(), Some("per \"key\""));
    // Only what was evaluated: `global` was not reached.
    assert_eq!(rate_fields(&gate.limits, &ex), (r#""per \"key\"";q=1;w=60"#.into(), r#""per \"key\"";r=0;t=60"#.into()));
}

#[test]
fn the_fields_show_the_limit_with_the_least_left_over_both_steps() {
    let mut user = limit(&["user"], "100/s", 200);
    user.name = Some("user".to_owned());
    let gate = Gate::new(&[limit(&["ip"], "10/m", 10), user, limit(&["global"], "10000/s", 10_000)]);
    let mut ex = as_user(request(IP, "/"), "ada");
    assert!(gate.ask(0, &mut ex, &HeaderMap::new()).is_none());
    let policy = "\"ip\";q=10;w=60, \"user\";q=200;w=2, \"global\";q=10000;w=1";
    assert_eq!(rate_fields(&gate.limits, &ex), (policy.into(), "\"ip\";r=9;t=6".into()));
    // From nine other addresses: now the user has relatively less left than each of them.
    for n in 2..60 {
        let mut ex = as_user(request(&format!("192.0.2.{n}"), "/"), "ada");
        assert!(gate.ask(0, &mut ex, &HeaderMap::new()).is_none());
    }
    let mut ex = as_user(request("192.0.2.99", "/"), "ada");
    assert!(gate.ask(0, &mut ex, &HeaderMap::new()).is_none());
    assert_eq!(rate_fields(&gate.limits, &ex), (policy.into(), "\"user\";r=140;t=1".into()));
}

#[test]
fn equal_names_get_numbers() {
    let gate = Gate::new(&[
        limit(&["ip"], "9/s", 9),
        limit(&["ip"], "90/m", 90),
        limit(&["header:x-a", "ip"], "9/s", 9),
        limit(&["ip"], "9/h", 9),
    ]);
    let mut ex = request(IP, "/");
    assert!(gate.ask(0, &mut ex, &HeaderMap::new()).is_none());
    assert_eq!(rate_fields(&gate.limits, &ex).0, "\"ip\";q=9;w=1, \"ip-2\";q=90;w=60, \"header:x-a|ip\";q=9;w=1, \"ip-3\";q=9;w=3600");
}

#[test]
fn buckets_live_where_they_are_written_and_stay_over_reloads() {
    let registry = Registry::new(1);
    let start = Instant::now();
    let passes = |limits: &[(RateLimit, At)]| {
        let limits = compile(limits, &Stores::default(), &registry);
        refusal(limits.check_address(&mut request(IP, "/"), &HeaderMap::new(), start)).is_none()
    };
    let one = limit(&["ip"], "1/h", 1);
    assert!(passes(&at("defaults", std::slice::from_ref(&one))));
    // Inherited by another route, or compiled again: the same bucket.
    assert!(!passes(&at("defaults", std::slice::from_ref(&one))));
    // Written elsewhere, or changed: another bucket, and it starts full.
    assert!(passes(&at("route", std::slice::from_ref(&one))));
    assert!(passes(&at("defaults", &[limit(&["ip"], "2/h", 1)])));
    assert!(passes(&at("defaults", &[limit(&["ip"], "1/h", 2)])));
    assert!(passes(&at("defaults", &[limit(&["header:x", "ip"], "1/h", 1)])));
    assert!(passes(&[(one.clone(), place("defaults", 1))]));
    // A new name is no new bucket.
    let mut renamed = one;
    renamed.name = Some("other".to_owned());
    assert!(!passes(&at("defaults", &[renamed])));
}

#[test]
fn homes_stay_when_routes_above_them_come_and_go() {
    let route = |name: Option<&str>, path: &str, index: usize| Route {
        name: name.map(str::to_owned),
        matcher: Match { prefix: Some(path.to_owned()), ..Match::default() },
        at: At::main("routes").index(index),
        ..Route::default()
    };
    let group = |index: usize| Route {
        routes: Some(vec![Route { at: At::main("routes").index(index).key("routes").index(0), ..route(None, "/x", 0) }]),
        ..route(None, "/v1", index)
    };
    let homes = |routes: Vec<Route>| Homes::of(&Config { routes, defaults: Policy::default(), ..Config::default() });
    let own = |index: usize| At::main("routes").index(index).key("rate_limit").index(0);
    let child = |index: usize| At::main("routes").index(index).key("routes").index(0).key("rate_limit").index(0);

    let before = homes(vec![group(0), route(Some("a"), "/a", 1)]);
    let after = homes(vec![route(None, "/new", 0), group(1), route(Some("a"), "/other", 2)]);
    assert_eq!(before.identity(&own(0)), after.identity(&own(1)));
    assert_eq!(before.identity(&child(0)), after.identity(&child(1)));
    assert_eq!(before.identity(&own(1)), after.identity(&own(2)));
    let twins = homes(vec![group(0), group(1)]);
    let all: std::collections::BTreeSet<String> = [own(0), own(1), child(0), child(1)].iter().map(|at| twins.identity(at)).collect();
    assert_eq!(all.len(), 4, "{all:?}");
    let defaults = At::main("defaults").key("rate_limit").index(1);
    assert_eq!(before.identity(&defaults), "defaults [1]");
}

#[test]
fn wrong_limits_are_all_reported_once_at_their_place() {
    let mut named = limit(&["ip"], "1/s", 1);
    named.name = Some("ü".to_owned());
    let mut stored = limit(&["ip"], "1/s", 1);
    stored.store = Some("main".to_owned());
    let limits = at("defaults", &[limit(&["ip"], "1/s", 0), limit(&[], "1/s", 1), named, stored, limit(&["ip"], "1/d", 4_000_000_000)]);
    let mut problems = Problems::default();
    for _ in 0..2 {
        let registry = Registry::new(1);
        assert!(RateLimits::compile(&limits, &Homes::default(), &Stores::default(), &registry, &mut problems).is_none());
    }
    let places: Vec<At> = problems.list().iter().map(|problem| problem.at.clone()).collect();
    let place = |index: usize, key: &str| place("defaults", index).key(key);
    assert_eq!(places, [place(0, "burst"), place(1, "by"), place(2, "name"), place(3, "store"), place(4, "burst")], "{problems:?}");
    assert!(problems.list().iter().all(|problem| problem.help.is_some()));
    assert!(problems.list()[0].message.starts_with("a burst of 0"));
}

#[test]
fn a_route_without_limits_has_none() {
    let mut problems = Problems::default();
    assert!(RateLimits::compile(&[], &Homes::default(), &Stores::default(), &Registry::new(1), &mut problems).is_none());
    assert!(!problems.has_errors());
}

#[test]
fn stores_of_a_checked_file_are_not_started_and_wrong_urls_are_reported_without_them() {
    let redis =
        |url: &str| crate::config::server::Redis { url: crate::units::Secret::new(url), timeout: crate::units::Duration::from_millis(50) };
    let config = BTreeMap::from([("a".to_owned(), redis("redis://127.0.0.1:1")), ("b".to_owned(), redis("http://:hunter2@x"))]);
    let mut problems = Problems::default();
    let observer: StoreObserver = Arc::new(|name, up| panic!("{name} {up}"));
    let stores = Stores::start(&config, &Registry::default(), None, &observer, &mut problems);
    assert_eq!(stores.states().collect::<Vec<_>>(), [("a", false), ("b", false)]);
    if cfg!(feature = "redis") {
        assert_eq!(problems.list().len(), 1);
        assert_eq!(problems.list()[0].at, At::main("redis").key("b").key("url"));
        assert!(!format!("{problems:?}").contains("hunter2"));
    }
}
