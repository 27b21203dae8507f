//! Metrics: the closed list of `docs/metrics.md`, counted in per-worker shards and summed when they are asked for.
//!
//! A handle ([`RouteMetrics`], [`UpstreamMetrics`], …) is resolved by name when a snapshot is built and held by it, so the request path
//! neither hashes a label nor takes a lock. Asking for the same name again, in a later snapshot, gives the same handle: counters survive
//! reloads. A handle that only the registry holds is one whose name left the config: its series ends at the next scrape.

mod collect;
mod listener;
mod names;
mod process;
mod route;
mod shard;
mod table;
mod upstream;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

pub use self::listener::{ConnectionError, ListenerMetrics};
pub use self::process::{AuthenticatorMetrics, Reload, StoreMetrics};
pub use self::route::{AUTH_ERRORS, Mirrored, RouteMetrics};
pub use self::shard::PerWorker;
pub use self::table::{Family, Kind, markdown};
pub use self::upstream::{EndpointMetrics, UpstreamMetrics};

use self::collect::Scrape;
use self::names::Names;
use self::process::{Certificates, Reloads};
use self::shard::Own;

/// Name of the route that requests without a route are counted under.
pub const NO_ROUTE: &str = "-";

/// All metrics of the process.
#[derive(Debug)]
pub struct Metrics {
    workers: usize,
    version: String,
    commit: String,
    in_flight: PerWorker<Own>,
    access_log_dropped: Arc<AtomicU64>,
    no_route: Arc<RouteMetrics>,
    routes: Names<String, RouteMetrics>,
    upstreams: Names<String, UpstreamMetrics>,
    endpoints: Names<(String, String), EndpointMetrics>,
    listeners: Names<String, ListenerMetrics>,
    stores: Names<String, StoreMetrics>,
    authenticators: Names<String, AuthenticatorMetrics>,
    certificates: Certificates,
    reloads: Reloads,
    /// The `prometheus` crate's collector of what the kernel knows of the process. It keeps state: one for all scrapes.
    process: prometheus::process_collector::ProcessCollector,
}

impl Metrics {
    /// Metrics for so many workers of a program of this version and commit.
    pub fn new(workers: usize, version: &str, commit: &str) -> Arc<Self> {
        Arc::new(Self {
            workers,
            version: version.to_owned(),
            commit: commit.to_owned(),
            in_flight: PerWorker::new(workers),
            access_log_dropped: Arc::default(),
            no_route: Arc::new(RouteMetrics::new(workers)),
            routes: Names::default(),
            upstreams: Names::default(),
            endpoints: Names::default(),
            listeners: Names::default(),
            stores: Names::default(),
            authenticators: Names::default(),
            certificates: Certificates::default(),
            reloads: Reloads::default(),
            process: prometheus::process_collector::ProcessCollector::for_self(),
        })
    }

    /// The handle of a route; [`NO_ROUTE`] for requests without one.
    pub fn route(&self, name: &str) -> Arc<RouteMetrics> {
        if name == NO_ROUTE {
            return Arc::clone(&self.no_route);
        }
        self.routes.get(name.to_owned(), || RouteMetrics::new(self.workers))
    }

    /// The handle of an upstream.
    pub fn upstream(&self, name: &str) -> Arc<UpstreamMetrics> {
        self.upstreams.get(name.to_owned(), || UpstreamMetrics::new(self.workers))
    }

    /// The handle of an endpoint, by its id `scheme://host:port`.
    pub fn endpoint(&self, upstream: &str, endpoint_id: &str) -> Arc<EndpointMetrics> {
        self.endpoints.get((upstream.to_owned(), endpoint_id.to_owned()), || EndpointMetrics::new(self.workers))
    }

    /// The handle of a listener, by its address as written.
    pub fn listener(&self, address: &str) -> Arc<ListenerMetrics> {
        self.listeners.get(address.to_owned(), || ListenerMetrics::new(self.workers))
    }

    /// The handle of a store.
    pub fn store(&self, name: &str) -> Arc<StoreMetrics> {
        self.stores.get(name.to_owned(), StoreMetrics::default)
    }

    /// The handle of an authenticator that fetches keys. Only such ones should have one: it shows as series that begin at 0.
    pub fn authenticator(&self, name: &str) -> Arc<AuthenticatorMetrics> {
        self.authenticators.get(name.to_owned(), AuthenticatorMetrics::default)
    }

    /// Sets what certificates a listener has: file and expiry in Unix seconds. Replaces what it had; empty ends its series.
    pub fn set_certificates(&self, listener: &str, certificates: Vec<(String, i64)>) {
        self.certificates.set(listener, certificates);
    }

    /// Ends the series whose handle nobody else holds any more. To be called after a reload; each scrape does the same, for handles that
    /// requests in flight held longer.
    pub fn retain(&self) {
        self.routes.retain();
        self.upstreams.retain();
        self.endpoints.retain();
        self.listeners.retain();
        self.stores.retain();
        self.authenticators.retain();
    }

    /// A request begins.
    pub fn request_started(&self, worker: usize) {
        self.in_flight.of(worker).one();
    }

    /// A request ended.
    pub fn request_ended(&self, worker: usize) {
        self.in_flight.of(worker).take();
    }

    /// Requests that have begun and not ended, over all workers.
    pub fn requests_in_flight(&self) -> u64 {
        self.in_flight.sum_own(|count| count)
    }

    /// The counter of access log lines dropped, for the access log to count in. It is the same for every access log.
    pub fn access_log_dropped(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.access_log_dropped)
    }

    /// The first configuration was loaded, at this moment: a start, which no counter of reloads counts.
    pub fn loaded(&self) {
        self.reloads.at(Reload::Ok, std::time::SystemTime::now());
    }

    /// A reload ended like this, at this moment.
    pub fn reload(&self, result: Reload) {
        self.reloads.one(result, std::time::SystemTime::now());
    }

    /// A scrape in the Prometheus text format, version 0.0.4.
    pub fn encode(&self) -> String {
        let mut families = self.gather();
        families.extend(prometheus::core::Collector::collect(&self.process));
        process::encode(&families)
    }

    /// The gateway's own families, without those of the process.
    fn gather(&self) -> Vec<prometheus::proto::MetricFamily> {
        self.retain();
        let mut scrape = Scrape::default();
        scrape.number(Family::BuildInfo, &[&self.version, &self.commit], 1.0);
        scrape.count(Family::RequestsInFlight, &[], self.requests_in_flight());
        scrape.count(Family::AccessLogDropped, &[], self.access_log_dropped.load(Relaxed));
        self.no_route.collect(NO_ROUTE, &mut scrape);
        self.routes.each(|name, route| route.collect(name, &mut scrape));
        self.upstreams.each(|name, upstream| upstream.collect(name, &mut scrape));
        self.endpoints.each(|(upstream, endpoint), metrics| metrics.collect(upstream, endpoint, &mut scrape));
        self.listeners.each(|address, listener| listener.collect(address, &mut scrape));
        self.stores.each(|name, store| store.collect(name, &mut scrape));
        self.authenticators.each(|name, authenticator| authenticator.collect(name, &mut scrape));
        self.certificates.collect(&mut scrape);
        self.reloads.collect(&mut scrape);
        scrape.finish()
    }
}

#[cfg(test)]
mod tests;
