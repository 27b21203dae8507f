//! State that outlives a reload, keyed by identity. Snapshots hold the `Arc`s; what no snapshot holds any more is dropped.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use crate::config::Problems;
use crate::config::server::Log;
use crate::config::upstream as config;
use crate::gateway::custom::Middleware;
use crate::middleware::{auth, rate_limit};
use crate::targets::mirror;
use crate::telemetry::access_log::{AccessLog, Options};
use crate::telemetry::events;
use crate::telemetry::metrics::Metrics;
use crate::tls::ClientTls;
use crate::upstream::connect::{Destination, H2_PING};
use crate::upstream::pool::EndpointPool;
use crate::upstream::{EndpointSpec, Observer, UpstreamState};

/// What all snapshots of one gateway share.
pub struct Shared {
    /// Number of workers: shards of pools and counters.
    pub workers: usize,
    /// All metrics.
    pub metrics: Arc<Metrics>,
    /// Rate buckets and stores.
    pub limits: Arc<rate_limit::Registry>,
    /// Authenticators that serve now.
    pub auth: auth::Registry,
    /// Room for copies of mirrored requests.
    pub mirrors: Arc<mirror::Room>,
    /// A library user's own steps of the chain.
    pub middleware: Arc<[Arc<dyn Middleware>]>,
    /// Runtime of background work; `None` when a configuration is only checked.
    pub control: Option<tokio::runtime::Handle>,
    /// How often HTTP/2 peers are pinged, clients and upstreams.
    pub http2_ping: Duration,
    upstreams: Mutex<HashMap<String, Weak<UpstreamState>>>,
    pools: Mutex<HashMap<String, Weak<EndpointPool>>>,
    /// The one that serves, with what it was made from.
    access_log: Mutex<Option<(Log, Arc<AccessLog>)>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("workers", &self.workers).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// For a gateway with `workers` workers whose background work runs on `control`.
    pub fn new(workers: usize, control: Option<tokio::runtime::Handle>) -> Arc<Self> {
        Self::with(workers, control, Vec::new(), None)
    }

    /// The same, with a library user's own steps in every route's chain, and pings as often as they say.
    pub fn with(
        workers: usize,
        control: Option<tokio::runtime::Handle>,
        middleware: Vec<Arc<dyn Middleware>>,
        http2_ping: Option<Duration>,
    ) -> Arc<Self> {
        let limits = rate_limit::Registry::new(workers);
        Arc::new(Self {
            workers,
            metrics: Metrics::new(workers, env!("CARGO_PKG_VERSION"), crate::COMMIT),
            limits,
            auth: auth::Registry::default(),
            mirrors: mirror::Room::new(workers),
            middleware: middleware.into(),
            control,
            http2_ping: http2_ping.unwrap_or(H2_PING),
            upstreams: Mutex::default(),
            pools: Mutex::default(),
            access_log: Mutex::default(),
        })
    }

    /// State of the upstream `name`: what is held somewhere, else a new one.
    pub fn upstream_state(&self, name: &str) -> Arc<UpstreamState> {
        let mut states = lock(&self.upstreams);
        states.retain(|_, state| state.strong_count() > 0);
        if let Some(state) = states.get(name).and_then(Weak::upgrade) {
            return state;
        }
        let state = UpstreamState::new(name, Arc::new(Watcher { metrics: Arc::clone(&self.metrics) }));
        states.insert(name.to_owned(), Arc::downgrade(&state));
        state
    }

    /// Makes pools for the endpoints of `upstream`; one with the same endpoint, TLS, protocol and limits is kept.
    pub fn pool_maker(
        self: &Arc<Self>,
        upstream: &str,
        config: &config::Upstream,
        tls: Option<Arc<ClientTls>>,
    ) -> crate::upstream::MakePool {
        let (shared, upstream, limits, protocol) = (Arc::clone(self), upstream.to_owned(), config.pool.clone(), config.protocol);
        let files = tls.as_ref().map_or(0, |tls| contents(tls.files()));
        let settings = format!("{:?} {:?} {:?} {files:x}", config.tls, config.protocol, config.pool);
        Arc::new(move |spec: &EndpointSpec| {
            let key = format!("{upstream} {} {settings}", spec.id);
            let mut pools = lock(&shared.pools);
            pools.retain(|_, pool| pool.strong_count() > 0);
            if let Some(pool) = pools.get(&key).and_then(Weak::upgrade) {
                return pool;
            }
            let metrics = shared.metrics.endpoint(&upstream, &spec.id);
            let destination = Destination { ping: shared.http2_ping, ..Destination::new(spec, tls.clone(), protocol) };
            let pool = Arc::new(EndpointPool::new(shared.workers, destination, &limits, metrics));
            pools.insert(key, Arc::downgrade(&pool));
            pool
        })
    }

    /// All pools in use.
    pub fn pools(&self) -> Vec<Arc<EndpointPool>> {
        lock(&self.pools).values().filter_map(Weak::upgrade).collect()
    }

    /// The access log for `log`: the one that serves if nothing changed. A new one serves from [`Self::serve_log`] on.
    pub fn access_log(&self, log: &Log, directory: &Path, problems: &mut Problems) -> Arc<AccessLog> {
        if let Some((old, open)) = &*lock(&self.access_log)
            && old.access == log.access
            && old.format == log.format
        {
            return Arc::clone(open);
        }
        let options = Options::compile(log, directory, self.metrics.access_log_dropped());
        let opened = match options {
            Some(options) if self.control.is_some() => AccessLog::new(self.workers, options),
            Some(options) => options.try_output().map(|()| AccessLog::disabled()),
            None => Ok(AccessLog::disabled()),
        };
        match opened {
            Ok(opened) => opened,
            Err(error) => {
                let at = crate::config::At::main("log").key("access").key("output");
                let help = match error.kind() {
                    io::ErrorKind::NotFound => Some("make its directory: only the file is made"),
                    io::ErrorKind::PermissionDenied => Some("the user that the gateway runs as must be allowed to write there"),
                    _ => None,
                };
                problems.error(at, format!("the access log cannot be opened: {error}")).help = help.map(str::to_owned);
                AccessLog::disabled()
            }
        }
    }

    /// Makes `open`, which is what `log` asks for, the access log that is reopened, flushed and taken over by the next configuration.
    pub fn serve_log(&self, log: &Log, open: &Arc<AccessLog>) {
        *lock(&self.access_log) = Some((log.clone(), Arc::clone(open)));
    }

    /// Reopens the access log's file, after a rotation.
    pub fn reopen_logs(&self) {
        if let Some((_, log)) = &*lock(&self.access_log) {
            log.reopen();
        }
    }

    /// Writes out what the access log still holds.
    pub fn flush_logs(&self) {
        let log = lock(&self.access_log).as_ref().map(|(_, log)| Arc::clone(log));
        if let Some(log) = log {
            log.flush(Duration::from_secs(2));
        }
    }
}

/// A hash over the contents of files, so that a new certificate at an old path makes new connections.
pub(crate) fn contents(files: &[std::path::PathBuf]) -> u64 {
    let mut hash = 0;
    for file in files {
        // One that cannot be read was reported where it is compiled.
        let bytes = std::fs::read(file).unwrap_or_default();
        hash = xxhash_rust::xxh3::xxh3_64_with_seed(&bytes, hash);
    }
    hash
}

/// Turns what upstreams tell into events and metrics.
struct Watcher {
    metrics: Arc<Metrics>,
}

impl Observer for Watcher {
    fn health_changed(&self, upstream: &str, endpoint: &str, healthy: bool, error: Option<&str>) {
        events::endpoint_health(upstream, endpoint, healthy, error);
    }
    fn ejected(&self, upstream: &str, endpoint: &str, span: Duration) {
        events::endpoint_ejected(upstream, endpoint, span);
        self.metrics.endpoint(upstream, endpoint).ejected(0);
    }
    fn available_changed(&self, upstream: &str, endpoint: &str, available: bool) {
        self.metrics.endpoint(upstream, endpoint).set_healthy(available);
    }
    fn panic_changed(&self, upstream: &str, panic: bool) {
        let metrics = self.metrics.upstream(upstream);
        // Also told when the endpoints are looked at for the first time, which is no change.
        if panic != metrics.panic() {
            events::upstream_panic(upstream, panic);
        }
        metrics.set_panic(panic);
    }
    fn lookup_failed(&self, upstream: &str, name: &str, error: &str) {
        events::discovery_failed(upstream, &format_args!("{name}: {error}"));
        self.metrics.upstream(upstream).lookup_failed();
    }
    fn endpoint_removed(&self, _: &str, _: &str) {
        self.metrics.retain();
    }
}
