//! Tests of shared limits against a real `redis-server`, each with its own.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Instant;

use http::HeaderMap;

use super::super::tests::{at, compile, limit, rate_fields};
use super::super::{Decision, RateLimits, Registry, Stores};
use super::*;
use crate::config::Problems;
use crate::config::route::RateLimit;
use crate::error::Refusal;
use crate::http::exchange::Exchange;
use crate::http::selector::testing::{fields, request};
use crate::units::{Duration as Written, Secret};

/// A server of its own; ended when the test ends.
struct Server {
    port: u16,
    child: Option<Child>,
}

impl Server {
    fn absent() -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Self { port, child: None }
    }

    fn start(&mut self) {
        let port = self.port.to_string();
        let child = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", &port, "--save", "", "--appendonly", "no"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("these tests need `redis-server` (Debian package redis-server)");
        self.child = Some(child);
    }

    fn started() -> Self {
        let mut server = Self::absent();
        server.start();
        server
    }

    fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    fn client(&self) -> redis::Connection {
        redis::Client::open(format!("redis://127.0.0.1:{}", self.port)).unwrap().get_connection().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// One gateway with limits in the store `main`.
struct Gateway {
    registry: Arc<Registry>,
    stores: Stores,
    seen: Arc<Mutex<Vec<bool>>>,
    start: Instant,
}

impl Gateway {
    fn new(server: &Server) -> Self {
        Self::with_timeout(server, 1_000)
    }

    fn with_timeout(server: &Server, timeout_ms: u64) -> Self {
        let registry = Registry::new(2);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let noted = seen.clone();
        let observer: StoreObserver = Arc::new(move |_, up| noted.lock().unwrap().push(up));
        let stores = Self::load(&registry, server, timeout_ms, &observer);
        Self { registry, stores, seen, start: Instant::now() }
    }

    fn load(registry: &Registry, server: &Server, timeout_ms: u64, observer: &StoreObserver) -> Stores {
        let url = Secret::new(format!("redis://127.0.0.1:{}", server.port));
        let config = BTreeMap::from([("main".to_owned(), Redis { url, timeout: Written::from_millis(timeout_ms) })]);
        let mut problems = Problems::default();
        let stores = Stores::start(&config, registry, Some(&Handle::current()), observer, &mut problems);
        assert!(!problems.has_errors(), "{problems:?}");
        stores
    }

    fn store(&self) -> Arc<Store> {
        self.stores.find("main", &crate::config::At::default(), &mut Problems::default()).unwrap()
    }

    fn limits(&self, limits: &[RateLimit]) -> RateLimits {
        compile(&at("r", limits), &self.stores, &self.registry)
    }

    async fn is(&self, up: bool) {
        eventually(|| self.store().is_up() == up).await;
    }

    /// Asks at `self.start`, whether by the store or not.
    async fn ask(&self, limits: &RateLimits, ex: &mut Exchange) -> Option<Box<Refusal>> {
        match limits.check_address(ex, &HeaderMap::new(), self.start) {
            Decision::Pass => None,
            Decision::Refused(refusal) => Some(refusal),
            Decision::Remote(pending) => pending.finish(ex).await.err(),
        }
    }

    async fn passed(&self, limits: &RateLimits, ip: &str, times: usize) -> usize {
        let mut passed = 0;
        for _ in 0..times {
            passed += usize::from(self.ask(limits, &mut request(ip, "/")).await.is_none());
        }
        passed
    }
}

/// Waits for a state that another task brings about.
async fn eventually(mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "the state did not come");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

fn shared(by: &[&str], rate: &str, burst: u64) -> RateLimit {
    RateLimit { store: Some("main".to_owned()), ..limit(by, rate, burst) }
}

const IP: &str = "192.0.2.1";

#[test]
fn gateways_share_a_limit_exactly() {
    run(async {
        let server = Server::started();
        let (a, b) = (Gateway::new(&server), Gateway::new(&server));
        a.is(true).await;
        b.is(true).await;
        let limit = [shared(&["ip"], "3/d", 30)];
        let (la, lb) = (a.limits(&limit), b.limits(&limit));
        let (pa, pb) = tokio::join!(a.passed(&la, IP, 40), b.passed(&lb, IP, 40));
        assert_eq!(pa + pb, 30);
        assert_eq!(a.passed(&la, "192.0.2.2", 1).await, 1);
        let mut ex = request("192.0.2.2", "/");
        assert!(b.ask(&lb, &mut ex).await.is_none());
        assert_eq!(rate_fields(&lb, &ex).1, "\"ip\";r=28;t=28800");
    });
}

#[test]
fn a_refusal_names_the_wait_and_does_not_reach_the_store_again() {
    run(async {
        let server = Server::started();
        let gateway = Gateway::new(&server);
        gateway.is(true).await;
        let limits = gateway.limits(&[shared(&["ip"], "1/m", 1)]);
        assert_eq!(gateway.passed(&limits, IP, 1).await, 1);
        let mut ex = request(IP, "/");
        let refusal = gateway.ask(&limits, &mut ex).await.unwrap();
        assert_eq!(refusal.headers.get("retry-after").unwrap(), "60");
        assert_eq!(refusal.extra, [("violated-policies", serde_json::json!(["ip"]))]);
        assert_eq!(ex.rate_limit.as_deref(), Some("ip"));
        let mut ex = request(IP, "/");
        let later = gateway.start + Duration::from_secs(8);
        let Decision::Refused(refusal) = limits.check_address(&mut ex, &HeaderMap::new(), later) else { panic!("asked again") };
        assert_eq!(refusal.headers.get("retry-after").unwrap(), "52");
        // Not for the whole minute: somebody may have let the caller off.
        let later = gateway.start + Duration::from_secs(11);
        assert!(matches!(limits.check_address(&mut ex, &HeaderMap::new(), later), Decision::Remote(_)));
    });
}

#[test]
fn limits_behind_a_refusal_are_not_charged_in_the_store_or_here() {
    run(async {
        let server = Server::started();
        let gateway = Gateway::new(&server);
        gateway.is(true).await;
        // In written order: shared, local, shared.
        let limits = gateway.limits(&[shared(&["ip"], "1/d", 9), limit(&["header:k"], "1/d", 2), shared(&["path"], "1/d", 3)]);
        let left = async |path: &str| {
            let mut ex = request(IP, path);
            let refused = gateway.ask(&limits, &mut ex).await.is_some();
            (refused, ex.rate_limit.as_ref().map(ToString::to_string), rate_fields(&limits, &ex).1)
        };
        assert_eq!(left("/a").await, (false, None, "\"header:k\";r=1;t=86400".to_owned()));
        assert!(!left("/a").await.0);
        // The local one refuses: `path` keeps the one it has left, `ip` is charged.
        assert_eq!(left("/a").await.1.as_deref(), Some("header:k"));
        let alone = gateway.limits(&[shared(&["ip"], "1/d", 9), limit(&["path"], "1/d", 9), shared(&["path"], "1/d", 3)]);
        let mut ex = request(IP, "/a");
        assert!(gateway.ask(&alone, &mut ex).await.is_none());
        assert_eq!(rate_fields(&alone, &ex).1, "\"path-2\";r=0;t=86400");
        let mut ex = request(IP, "/a");
        assert!(gateway.ask(&alone, &mut ex).await.is_some());
        assert_eq!(ex.rate_limit.as_deref(), Some("path-2"));
        // 5 requests so far have charged `ip`, which stands in front of all that refused.
        let ip_only = gateway.limits(&[shared(&["ip"], "1/d", 9)]);
        assert_eq!(gateway.passed(&ip_only, IP, 9).await, 4);
    });
}

#[test]
fn keys_hold_no_values_and_expire_when_full() {
    run(async {
        let server = Server::started();
        let gateway = Gateway::new(&server);
        gateway.is(true).await;
        let limits = gateway.limits(&[shared(&["header:x-key", "ip"], "1/m", 5)]);
        let mut ex = request(IP, "/");
        let headers = fields(&[("x-key", "secret-value")]);
        let Decision::Remote(pending) = limits.check_address(&mut ex, &headers, gateway.start) else { panic!("not asked") };
        assert!(pending.finish(&mut ex).await.is_ok());
        let mut client = server.client();
        let keys: Vec<String> = redis::cmd("KEYS").arg("tollgate:*").query(&mut client).unwrap();
        let bucket = keys.iter().find(|key| !key.ends_with("gateways")).unwrap();
        assert_eq!(bucket.len(), "tollgate:{limits}:".len() + 32);
        let ttl: i64 = redis::cmd("PTTL").arg(bucket).query(&mut client).unwrap();
        assert!((50_000..=60_000).contains(&ttl), "{ttl}");
    });
}

#[test]
fn without_the_store_the_whole_limit_holds_here_and_it_is_used_once_it_answers() {
    run(async {
        let mut server = Server::absent();
        let gateway = Gateway::new(&server);
        let limits = gateway.limits(&[shared(&["ip"], "1/d", 4)]);
        assert_eq!(gateway.passed(&limits, IP, 9).await, 4);
        assert_eq!(*gateway.seen.lock().unwrap(), [false]);
        server.start();
        gateway.is(true).await;
        assert_eq!(gateway.passed(&limits, IP, 9).await, 4);
        assert_eq!(*gateway.seen.lock().unwrap(), [false, true]);
    });
}

#[test]
fn an_outage_divides_the_limit_and_a_restarted_store_is_used_again() {
    run(async {
        let mut server = Server::started();
        let (a, b) = (Gateway::new(&server), Gateway::new(&server));
        a.is(true).await;
        b.is(true).await;
        // The later one has seen both.
        let both = if a.store().gateways() == 2 { &a } else { &b };
        assert_eq!(both.store().gateways(), 2);
        let limits = both.limits(&[shared(&["ip"], "1/d", 10), shared(&["path"], "1/d", 100)]);
        assert_eq!(both.passed(&limits, IP, 1).await, 1);
        server.stop();
        assert_eq!(both.passed(&limits, IP, 20).await, 5);
        both.is(false).await;
        server.start();
        both.is(true).await;
        // Nothing is left of the old buckets, nor of the script.
        assert_eq!(both.passed(&limits, IP, 20).await, 10);
        assert_eq!(*both.seen.lock().unwrap(), [false, true, false, true]);
    });
}

#[test]
fn a_slow_store_is_waited_for_three_times_and_comes_back() {
    run(async {
        let server = Server::started();
        let gateway = Gateway::with_timeout(&server, 50);
        gateway.is(true).await;
        let limits = gateway.limits(&[shared(&["ip"], "1/d", 100)]);
        redis::cmd("CLIENT").arg("PAUSE").arg(1_500).arg("ALL").exec(&mut server.client()).unwrap();
        let mut asked = 0;
        while gateway.store().is_up() {
            assert!(gateway.ask(&limits, &mut request(IP, "/")).await.is_none());
            asked += 1;
        }
        assert_eq!(asked, 3);
        assert!(matches!(limits.check_address(&mut request(IP, "/"), &HeaderMap::new(), gateway.start), Decision::Pass));
        gateway.is(true).await;
        assert!(gateway.ask(&limits, &mut request(IP, "/")).await.is_none());
    });
}

#[test]
fn a_store_survives_reloads_unless_it_changes_and_ends_with_its_last_snapshot() {
    run(async {
        let server = Server::started();
        let mut gateway = Gateway::new(&server);
        gateway.is(true).await;
        let first = gateway.store();
        let observer: StoreObserver = Arc::new(|_, _| {});
        gateway.stores = Gateway::load(&gateway.registry, &server, 1_000, &observer);
        assert!(Arc::ptr_eq(&first, &gateway.store()));
        // A load that changes it and is then given up does not end the running one.
        drop(Gateway::load(&gateway.registry, &server, 999, &observer));
        gateway.stores = Gateway::load(&gateway.registry, &server, 1_000, &observer);
        assert!(Arc::ptr_eq(&first, &gateway.store()));
        gateway.stores = Gateway::load(&gateway.registry, &server, 999, &observer);
        assert!(!Arc::ptr_eq(&first, &gateway.store()));
        let task = first.task.clone().unwrap();
        drop(first);
        eventually(|| task.is_finished()).await;
    });
}

/// Asks on a runtime that ends with it, as a worker's; how many of `times` passed.
fn asked_elsewhere(gateway: &Gateway, limits: &RateLimits, worker: usize, times: usize) -> usize {
    let ask = async {
        let mut passed = 0;
        for _ in 0..times {
            let mut ex = Exchange { worker, ..request(IP, "/") };
            passed += usize::from(gateway.ask(limits, &mut ex).await.is_none());
        }
        passed
    };
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    std::thread::scope(|scope| scope.spawn(|| runtime().block_on(ask)).join().unwrap())
}

#[test]
fn workers_and_other_threads_ask_on_their_own_connections_which_outlive_no_runtime() {
    run(async {
        let server = Server::started();
        let gateway = Gateway::new(&server);
        gateway.is(true).await;
        let limits = gateway.limits(&[shared(&["ip"], "1/d", 9)]);
        let mut client = server.client();
        let received = |client: &mut redis::Connection| -> u64 {
            let info: String = redis::cmd("INFO").arg("stats").query(client).unwrap();
            info.lines().find_map(|line| line.strip_prefix("total_connections_received:")?.trim().parse().ok()).unwrap()
        };
        let before = received(&mut client);
        // Decided here, a full bucket of nine would be left to each that cannot ask.
        for worker in [0, 1, usize::MAX] {
            assert_eq!(asked_elsewhere(&gateway, &limits, worker, 2), 2);
        }
        assert_eq!(received(&mut client) - before, 3);
        assert_eq!(asked_elsewhere(&gateway, &limits, 0, 9), 3, "a worker's next runtime connects again");
        assert_eq!(received(&mut client) - before, 4);
        assert_eq!(*gateway.seen.lock().unwrap(), [false, true]);
    });
}

#[test]
fn tls_urls_and_wrong_urls_are_told_apart() {
    assert!(Target::parse("redis://127.0.0.1:6379/2").is_ok());
    assert!(Target::parse("rediss://:pass@redis.internal").is_ok());
    for wrong in ["127.0.0.1:6379", "http://127.0.0.1", "redis://", "redis://host:port", "unix:///run/redis.sock"] {
        let error = Target::parse(wrong).err().unwrap_or_else(|| panic!("{wrong}"));
        assert_eq!(error, "this is not a redis:// or rediss:// URL", "{wrong}");
    }
}
