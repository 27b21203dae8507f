//! Upstreams as a whole: availability, panic, ejection, reloads, discovery.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::connect::Destination;
use super::pool::EndpointPool;
use super::{Attempt, EndpointSpec, FailKind, MakePool, Observer, PickArgs, PickError, Unobserved, Upstream, UpstreamState};
use crate::config::upstream::{self as config, Balance, Endpoint, Health, Outlier};
use crate::config::{At, Problems};
use crate::discovery::{Answer, Found, Lookup, Question, Resolver};
use crate::units::{Percent, Setting};

const MS: Duration = Duration::from_millis(1);

fn make_pool() -> MakePool {
    let metrics = crate::telemetry::metrics::Metrics::new(1, "", "");
    Arc::new(move |spec| {
        let destination = Destination::new(spec, None, config::Protocol::Auto);
        Arc::new(EndpointPool::new(1, destination, &config::Pool::default(), metrics.endpoint("u", &spec.id)))
    })
}

fn written(endpoints: &[(&str, u32)]) -> config::Upstream {
    config::Upstream {
        endpoints: endpoints.iter().map(|(url, weight)| Endpoint { url: (*url).to_owned(), weight: *weight }).collect(),
        at: At::main("upstreams").key("users"),
        ..config::Upstream::default()
    }
}

fn four() -> config::Upstream {
    written(&[("http://10.0.0.1", 1), ("http://10.0.0.2", 1), ("http://10.0.0.3", 1), ("http://10.0.0.4", 1)])
}

fn state() -> Arc<UpstreamState> {
    UpstreamState::new("users", Arc::new(Unobserved))
}

fn compile_with(config: &config::Upstream, state: &Arc<UpstreamState>) -> Arc<Upstream> {
    let mut problems = Problems::default();
    let upstream = Upstream::compile("users", config, state.clone(), make_pool(), &mut problems);
    upstream.unwrap_or_else(|| panic!("{:?}", problems.list()))
}

fn compile(config: &config::Upstream) -> Arc<Upstream> {
    compile_with(config, &state())
}

fn problems(config: &config::Upstream) -> Vec<String> {
    let mut problems = Problems::default();
    assert!(Upstream::compile("users", config, state(), make_pool(), &mut problems).is_none());
    problems.list().iter().map(|problem| problem.message.clone()).collect()
}

fn pick_without(upstream: &Upstream, now: Instant, tried: &[Arc<super::Endpoint>]) -> Result<Attempt, PickError> {
    upstream.pick(&PickArgs { worker: 0, now, tried, hash: &|| None, random: 42 })
}

fn pick(upstream: &Upstream, now: Instant) -> Result<Attempt, PickError> {
    pick_without(upstream, now, &[])
}

/// Last digit of each picked address.
fn picks(upstream: &Upstream, now: Instant, count: usize) -> String {
    (0..count).map(|_| pick(upstream, now).expect("picks").endpoint().tls_name.chars().last().unwrap_or('?')).collect()
}

fn fail(upstream: &Upstream, now: Instant, digit: char, times: usize) {
    let mut failed = 0;
    for _ in 0..1000 {
        if failed == times {
            return;
        }
        let attempt = pick(upstream, now).expect("picks");
        if attempt.endpoint().tls_name.ends_with(digit) {
            attempt.failed(now, MS, FailKind::Connect);
            failed += 1;
        }
    }
    panic!("{digit} was not picked often enough");
}

fn mark(upstream: &Upstream, index: usize, passed: bool, now: Instant) {
    let health = upstream.rules.health.clone().expect("has checks");
    let result = if passed { Ok(()) } else { Err("status 503, expected 200-399".to_owned()) };
    upstream.checked(&upstream.endpoints()[index], &result, &health, now);
}

#[test]
fn picks_go_round_and_count_as_in_flight_until_dropped() {
    let (upstream, now) = (compile(&four()), Instant::now());
    assert_eq!(picks(&upstream, now, 8), "12341234");
    let attempt = pick(&upstream, now).expect("picks");
    let endpoint = attempt.endpoint().clone();
    assert_eq!(endpoint.state.in_flight(), 1);
    drop(attempt);
    assert_eq!(endpoint.state.in_flight(), 0);
}

#[test]
fn an_endpoint_that_is_gone_keeps_no_connection_while_attempts_of_its_set_go_on() {
    let (upstream, now) = (compile(&four()), Instant::now());
    let mut attempt = pick(&upstream, now).expect("picks");
    let (first, pools): (_, Vec<_>) =
        (upstream.endpoints()[0].clone(), upstream.endpoints().iter().map(|endpoint| endpoint.pool.clone()).collect());
    let gone = Arc::downgrade(&upstream.endpoints()[3]);
    let mut problems = Problems::default();
    let left = four().endpoints.into_iter().take(3);
    let left = left.filter_map(|endpoint| EndpointSpec::parse(&endpoint.url, 1, &At::default(), &mut problems)).collect();
    upstream.replace_members(left, now);
    assert_eq!(pools.iter().map(|pool| pool.has_users()).collect::<Vec<_>>(), [true, true, true, false]);
    assert!(!picks(&upstream, now, 6).contains('4'));
    assert!(gone.upgrade().is_some(), "the attempt holds its set");
    attempt.settle();
    assert!(gone.upgrade().is_none() && Arc::ptr_eq(attempt.endpoint(), &first));
    drop(attempt);
    assert_eq!(first.state.in_flight(), 0);
}

#[test]
fn tried_endpoints_are_left_out_while_another_is_there() {
    let (upstream, now) = (compile(&written(&[("http://10.0.0.1", 1), ("http://10.0.0.2", 1)])), Instant::now());
    let one = upstream.endpoints()[0].clone();
    for _ in 0..4 {
        assert_eq!(pick_without(&upstream, now, std::slice::from_ref(&one)).expect("picks").endpoint().index, 1);
    }
    let all = upstream.endpoints().to_vec();
    assert!(pick_without(&upstream, now, &all).is_ok());
}

#[test]
fn unchecked_endpoints_are_used_in_panic_only() {
    let now = Instant::now();
    let config = config::Upstream { health: Some(Health { path: Some("/".to_owned()), ..Health::default() }), ..four() };
    let upstream = compile(&config);
    assert!(upstream.status(now).panic);
    assert_eq!(picks(&upstream, now, 4), "1234");
    mark(&upstream, 1, true, now);
    assert!(upstream.status(now).panic, "one of four is less than half");
    mark(&upstream, 2, true, now);
    assert!(!upstream.status(now).panic, "half is not less than half");
    let mut seen: Vec<char> = picks(&upstream, now, 2).chars().collect();
    seen.sort_unstable();
    assert_eq!(seen, ['2', '3']);

    let strict = compile(&config::Upstream { panic_threshold: Percent(0.0), ..config });
    assert_eq!(pick(&strict, now).err(), Some(PickError::NoHealthyEndpoint));
    assert_eq!(strict.status(now).endpoints[0].state, "unchecked");
}

#[test]
fn panic_is_told_once_all_are_checked() {
    let (log, now) = (Arc::new(Log::default()), Instant::now());
    let config = config::Upstream { health: Some(Health { path: Some("/".to_owned()), ..Health::default() }), ..four() };
    let upstream = compile_with(&config, &UpstreamState::new("users", log.clone()));
    upstream.state().serve(upstream.snapshot);
    upstream.refresh(now);
    for index in 0..3 {
        mark(&upstream, index, false, now);
        upstream.refresh(now);
    }
    assert!(upstream.status(now).panic && !log.has("panic true"), "the start is no emergency");
    mark(&upstream, 3, false, now);
    upstream.refresh(now);
    assert!(log.has("panic true"));
}

#[test]
fn checks_need_rows_and_survive_a_reload() {
    let now = Instant::now();
    let config = config::Upstream { health: Some(Health { path: Some("/".to_owned()), ..Health::default() }), ..four() };
    let state = state();
    let upstream = compile_with(&config, &state);
    let word = |upstream: &Upstream| upstream.status(now).endpoints[0].state;
    mark(&upstream, 0, true, now);
    assert_eq!(word(&upstream), "healthy", "the first check decides");
    mark(&upstream, 0, false, now);
    mark(&upstream, 0, false, now);
    mark(&upstream, 0, true, now);
    mark(&upstream, 0, false, now);
    mark(&upstream, 0, false, now);
    assert_eq!(word(&upstream), "healthy", "a pass resets the row");
    let reloaded = compile_with(&config, &state);
    mark(&reloaded, 0, false, now);
    assert_eq!(word(&reloaded), "unhealthy", "the row goes on over a reload");
    mark(&reloaded, 0, true, now);
    assert_eq!(word(&reloaded), "unhealthy");
    mark(&reloaded, 0, true, now);
    assert_eq!(word(&reloaded), "healthy");
    let check = reloaded.status(now).endpoints[0].last_check.clone().expect("was checked");
    assert!(check.ok && check.error.is_none());
}

#[test]
fn failures_in_a_row_eject_and_time_brings_back() {
    let (upstream, now) = (compile(&four()), Instant::now());
    fail(&upstream, now, '2', 5);
    let status = &upstream.status(now).endpoints[1];
    assert_eq!((status.state, status.available, status.consecutive_errors), ("ejected", false, 5));
    assert!(status.ejected_until.is_some());
    assert!(!picks(&upstream, now, 9).contains('2'));
    let back = now + Duration::from_secs(30);
    assert!(!picks(&upstream, back - MS, 9).contains('2'));
    assert!(picks(&upstream, back, 4).contains('2'));
    assert_eq!(upstream.status(back).endpoints[1].state, "healthy");
}

#[test]
fn a_success_between_failures_and_a_cancelled_attempt_do_not_eject() {
    let (upstream, now) = (compile(&written(&[("http://10.0.0.1", 1), ("http://10.0.0.2", 1)])), Instant::now());
    fail(&upstream, now, '1', 4);
    loop {
        let attempt = pick(&upstream, now).expect("picks");
        if attempt.endpoint().index == 0 {
            attempt.succeeded(now, MS);
            break;
        }
    }
    fail(&upstream, now, '1', 4);
    pick(&upstream, now).expect("picks").cancelled();
    assert_eq!(upstream.status(now).endpoints[0].consecutive_errors, 4);
    assert_eq!(upstream.status(now).endpoints[0].state, "healthy");
}

#[test]
fn at_most_the_written_share_is_ejected_and_never_the_last() {
    let (upstream, now) = (compile(&four()), Instant::now());
    fail(&upstream, now, '1', 5);
    fail(&upstream, now, '2', 5);
    fail(&upstream, now, '3', 10);
    let ejected = |upstream: &Upstream| upstream.status(now).endpoints.iter().filter(|endpoint| endpoint.state == "ejected").count();
    assert_eq!(ejected(&upstream), 2);

    let all = Outlier { max_ejected: Percent(100.0), ..Outlier::default() };
    let upstream = compile(&config::Upstream { outlier: Setting::On(all), panic_threshold: Percent(0.0), ..four() });
    for digit in "1234".chars() {
        fail(&upstream, now, digit, 5);
    }
    assert_eq!(ejected(&upstream), 3);

    let off = compile(&config::Upstream { outlier: Setting::Off, ..four() });
    fail(&off, now, '1', 20);
    assert_eq!(ejected(&off), 0);
}

#[test]
fn ejection_survives_a_reload_and_holds_in_both_snapshots() {
    let (state, now) = (state(), Instant::now());
    let (old, new) = (compile_with(&four(), &state), compile_with(&four(), &state));
    picks(&new, now, 4);
    fail(&old, now, '3', 5);
    assert!(!picks(&new, now, 9).contains('3'));
    assert!(Arc::ptr_eq(&old.endpoints()[0].state, &new.endpoints()[0].state));
}

#[test]
fn weight_zero_gets_nothing() {
    let mut config = written(&[("http://10.0.0.1", 5), ("http://10.0.0.2", 1), ("http://10.0.0.3", 0), ("http://10.0.0.4", 1)]);
    config.balance = Balance::Weighted;
    let upstream = compile(&config);
    assert_eq!(picks(&upstream, Instant::now(), 7), "1121411");
}

#[test]
fn the_least_loaded_of_many_is_picked_also_when_others_have_ended_or_it_comes_back() {
    let urls: Vec<String> = (0..50).map(|n| format!("http://10.0.0.{n}")).collect();
    let endpoints: Vec<(&str, u32)> = urls.iter().map(|url| (&**url, 1)).collect();
    let config = config::Upstream { balance: Balance::LeastRequests, ..written(&endpoints) };
    let (upstream, now) = (compile(&config), Instant::now());
    let mut held: Vec<Attempt> = (0..200).map(|_| pick(&upstream, now).expect("picks")).collect();
    let loads = || upstream.endpoints().iter().map(|endpoint| endpoint.state.in_flight()).collect::<Vec<_>>();
    assert_eq!(loads(), vec![4; 50]);
    let ended = held.remove(77).endpoint().index;
    assert_eq!(pick(&upstream, now).expect("picks").endpoint().index, ended);
    for attempt in held.iter().filter(|attempt| attempt.endpoint().index == 7).take(1) {
        (0..5).for_each(|_| attempt.failed(now, MS, FailKind::Connect));
    }
    held.extend((0..51).map(|_| pick(&upstream, now).expect("picks")));
    assert_eq!(loads()[7], 4, "it was out");
    assert_eq!(pick(&upstream, now + Duration::from_secs(31)).expect("picks").endpoint().index, 7);
}

#[test]
fn p2c_starves_nobody_a_slow_endpoint_is_tried_again() {
    let config = config::Upstream { balance: Balance::P2c, ..written(&[("http://10.0.0.1", 1), ("http://10.0.0.2", 1)]) };
    let (upstream, start) = (compile(&config), Instant::now());
    let mut slow = Vec::new();
    for step in 0..1_200u32 {
        let now = start + 100 * MS * step;
        let attempt = pick(&upstream, now).expect("picks");
        let took = if attempt.endpoint().index == 0 { 5_000 * MS } else { 10 * MS };
        attempt.succeeded(now, took);
        slow.extend((attempt.endpoint().index == 0).then_some(step / 10));
    }
    assert!((2..=10).contains(&slow.len()), "in two minutes, at these seconds: {slow:?}");
}

#[test]
fn an_endpoint_that_comes_back_starts_slowly() {
    let config = config::Upstream { slow_start: crate::units::Duration::from_secs(10), ..four() };
    let (upstream, now) = (compile(&config), Instant::now());
    assert_eq!(picks(&upstream, now, 4), "1234", "not at process start");
    fail(&upstream, now, '2', 5);
    let share = |at: Instant| picks(&upstream, at, 620).matches('2').count();
    let back = now + Duration::from_secs(30);
    assert_eq!(share(back), 20, "a tenth of the others' 200");
    assert!(share(back + Duration::from_secs(5)).abs_diff(620 / 7) <= 1, "half of the others'");
    assert_eq!(share(back + Duration::from_secs(10)), 155);
}

#[test]
fn the_same_key_stays_and_selectors_are_told() {
    let key = vec!["header:x-user-id".parse().expect("selector"), "ip".parse().expect("selector")];
    let config = config::Upstream { balance: Balance::ConsistentHash { key: key.clone(), bounded_load: None }, ..four() };
    let (upstream, now) = (compile(&config), Instant::now());
    assert_eq!(upstream.hash_selectors(), key);
    let of = |key: &[u8], now| {
        let hash = crate::balance::hash_key(key);
        let args = PickArgs { worker: 0, now, tried: &[], hash: &|| Some(hash), random: 1 };
        upstream.pick(&args).expect("picks").endpoint().index
    };
    let first = of(b"alice", now);
    assert!((0..20).all(|_| of(b"alice", now) == first));
    assert!((0..100u8).map(|user| of(&[user], now)).collect::<std::collections::HashSet<_>>().len() == 4);
}

#[test]
fn what_is_written_wrong_is_reported_all_at_once() {
    let found = problems(&written(&[("http://a/x", 1), ("ftp://b", 1), ("http://C:80", 1), ("http://c", 1), ("http://d", 3)]));
    assert_eq!(found.len(), 4, "{found:?}");
    assert!(found[0].contains("path") && found[1].contains("ftp") && found[2].contains("twice") && found[3].contains("no weights"));
    assert!(problems(&written(&[]))[0].contains("needs `endpoints` or `discover`"));
    let zero = config::Upstream { balance: Balance::Weighted, ..written(&[("http://a", 0), ("http://b", 0)]) };
    assert!(problems(&zero)[0].contains("all weights are 0"));
    let two = Health { path: Some("/".to_owned()), tcp: true, ..Health::default() };
    assert!(problems(&config::Upstream { health: Some(two), ..four() })[0].contains("exactly one"));
}

#[derive(Default)]
struct Log(Mutex<Vec<String>>);

impl Log {
    fn add(&self, line: String) {
        self.0.lock().expect("no panic").push(line);
    }
    fn has(&self, line: &str) -> bool {
        self.0.lock().expect("no panic").iter().any(|held| held == line)
    }
}

impl Observer for Log {
    fn health_changed(&self, _: &str, endpoint: &str, healthy: bool, error: Option<&str>) {
        self.add(format!("health {endpoint} {healthy} {}", error.unwrap_or("-")));
    }
    fn ejected(&self, upstream: &str, endpoint: &str, span: Duration) {
        self.add(format!("ejected {upstream} {endpoint} {}", span.as_secs()));
    }
    fn available_changed(&self, _: &str, endpoint: &str, available: bool) {
        self.add(format!("available {endpoint} {available}"));
    }
    fn panic_changed(&self, _: &str, panic: bool) {
        self.add(format!("panic {panic}"));
    }
    fn lookup_failed(&self, _: &str, name: &str, error: &str) {
        self.add(format!("lookup {name} {error}"));
    }
    fn endpoint_removed(&self, _: &str, endpoint: &str) {
        self.add(format!("removed {endpoint}"));
    }
}

/// Answers what it holds now.
#[derive(Clone, Default)]
struct Names(Arc<Mutex<Vec<SocketAddr>>>);

impl Names {
    fn set(&self, addresses: &[&str]) {
        *self.0.lock().expect("no panic") = addresses.iter().map(|address| address.parse().expect("address")).collect();
    }
}

impl Resolver for Names {
    fn lookup(&self, _: &Question) -> Lookup {
        let found = self
            .0
            .lock()
            .expect("no panic")
            .iter()
            .map(|address| Found { address: *address, weight: 1, priority: 0, target: "".into() })
            .collect();
        Box::pin(async move { Ok(Answer { found, ttl: Duration::MAX, missing: Vec::new() }) })
    }
}

fn run<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}

/// Waits for something that other tasks bring about; a test that would wait for ever fails.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(MS).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), wait).await.unwrap_or_else(|_| panic!("{what} did not happen"));
}

#[test]
fn discovery_adds_and_removes_endpoints_and_keeps_the_state_of_those_that_stay() {
    run(async {
        let discover = config::Discover {
            dns: Some("https://Users.internal:8443".to_owned()),
            refresh: crate::units::Duration::from_millis(5),
            consul: None,
            etcd: None,
            kubernetes: None,
            registry: None,
        };
        let config = config::Upstream { discover: Some(discover), ..written(&[]) };
        let log = Arc::new(Log::default());
        let upstream = compile_with(&config, &UpstreamState::new("users", log.clone()));
        assert_eq!(pick(&upstream, Instant::now()).err(), Some(PickError::NoHealthyEndpoint));
        let names = Names::default();
        let background = upstream.start(Arc::new(|_| None), Arc::new(names.clone()));
        until("failed look-up", || log.has("lookup users.internal no address")).await;
        names.set(&["10.0.0.2:8443", "10.0.0.1:8443"]);
        until("two endpoints", || upstream.endpoints().len() == 2).await;
        let stays = upstream.endpoints()[1].clone();
        assert_eq!(&*stays.id, "https://10.0.0.2:8443");
        assert_eq!((&*stays.tls_name, stays.authority.as_bytes()), ("users.internal", &b"users.internal:8443"[..]));
        assert!(background.first_round_done() && pick(&upstream, Instant::now()).is_ok());
        names.set(&["10.0.0.2:8443", "[::1]:8443"]);
        until("a removal", || log.has("removed https://10.0.0.1:8443")).await;
        let ids: Vec<_> = upstream.endpoints().iter().map(|endpoint| endpoint.id.to_string()).collect();
        assert_eq!(ids, ["https://10.0.0.2:8443", "https://[::1]:8443"]);
        assert!(Arc::ptr_eq(&stays.state, &upstream.endpoints()[0].state));
        names.set(&[]);
        tokio::time::sleep(15 * MS).await;
        assert_eq!(upstream.endpoints().len(), 2, "a failed look-up keeps the last addresses");
    });
}

#[test]
fn a_written_name_is_usable_once_it_is_resolved() {
    run(async {
        let upstream = compile(&written(&[("http://users.internal:8080", 1)]));
        assert_eq!(pick(&upstream, Instant::now()).err(), Some(PickError::NoHealthyEndpoint));
        let names = Names::default();
        names.set(&["10.0.0.1:8080"]);
        let _background = upstream.start(Arc::new(|_| None), Arc::new(names));
        until("an address", || pick(&upstream, Instant::now()).is_ok()).await;
        assert_eq!(*upstream.endpoints()[0].state.addresses(), ["10.0.0.1:8080".parse().expect("address")]);
    });
}

#[test]
fn checks_run_without_traffic_and_stop_with_their_handle() {
    run(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let health = Health { tcp: true, interval: crate::units::Duration::from_millis(2), ..Health::default() };
        let config = config::Upstream { health: Some(health), ..written(&[(&url, 1)]) };
        let log = Arc::new(Log::default());
        let upstream = compile_with(&config, &UpstreamState::new("users", log.clone()));
        let background = upstream.start(Arc::new(|_| None), Arc::new(Names::default()));
        assert!(!background.first_round_done());
        until("a pass", || log.has(&format!("health {url} true -"))).await;
        assert!(background.first_round_done() && log.has(&format!("available {url} true")) && log.has("panic false"));
        drop(listener);
        until("a failure", || log.has(&format!("health {url} false connect: refused"))).await;
        assert!(log.has(&format!("available {url} false")));
        drop(background);
        tokio::task::yield_now().await;
        let last = upstream.status(Instant::now()).endpoints[0].last_check.clone();
        tokio::time::sleep(20 * MS).await;
        assert_eq!(upstream.status(Instant::now()).endpoints[0].last_check, last, "no check after the handle is gone");
    });
}

#[test]
fn ejections_are_told() {
    let (log, now) = (Arc::new(Log::default()), Instant::now());
    let upstream = compile_with(&four(), &UpstreamState::new("users", log.clone()));
    fail(&upstream, now, '2', 5);
    assert!(log.has("ejected users http://10.0.0.2:80 30"));
}
