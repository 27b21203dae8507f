//! What is counted per upstream and per endpoint.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use super::collect::Scrape;
use super::shard::{Counter, Counters, DurationSums, Durations, Lazy, Level, PerWorker, StatusSums, Statuses};
use super::table::Family;
use crate::error::Reason;

const REASONS: usize = Reason::ALL.len();

/// Counters of one upstream.
#[derive(Debug)]
pub struct UpstreamMetrics {
    shards: PerWorker<UpstreamShard>,
    lookups_failed: Counter,
    panic: AtomicBool,
}

#[derive(Debug, Default)]
struct UpstreamShard {
    durations: Durations,
    retries: Counter,
    retries_denied: Counter,
    breaker_dropped: Counter,
}

impl UpstreamMetrics {
    pub(super) fn new(workers: usize) -> Self {
        Self { shards: PerWorker::new(workers), lookups_failed: Counter::default(), panic: AtomicBool::new(false) }
    }

    /// An attempt got its response head this long after its endpoint was picked.
    pub fn attempt_duration(&self, worker: usize, duration: Duration) {
        self.shards.of(worker).durations.observe(duration);
    }

    /// An attempt after the first begins.
    pub fn retry(&self, worker: usize) {
        self.shards.of(worker).retries.one();
    }

    /// The retry budget did not allow a retry.
    pub fn retry_denied(&self, worker: usize) {
        self.shards.of(worker).retries_denied.one();
    }

    /// The breaker did not let an attempt through.
    pub fn breaker_dropped(&self, worker: usize) {
        self.shards.of(worker).breaker_dropped.one();
    }

    /// The look-up of a name of one of its endpoints failed.
    pub fn lookup_failed(&self) {
        self.lookups_failed.one();
    }

    /// Whether so few endpoints are available that all of them are used. Only a change writes, so it may be set for every pick.
    pub fn set_panic(&self, panic: bool) {
        if self.panic.load(Relaxed) != panic {
            self.panic.store(panic, Relaxed);
        }
    }

    /// What [`set_panic`](Self::set_panic) said last.
    pub fn panic(&self) -> bool {
        self.panic.load(Relaxed)
    }

    pub(super) fn collect(&self, upstream: &str, scrape: &mut Scrape) {
        let mut durations = DurationSums::default();
        self.shards.used().for_each(|shard| shard.durations.add_to(&mut durations));
        scrape.durations(Family::UpstreamRequestDuration, &[upstream], &durations);
        scrape.count(Family::Retries, &[upstream], self.shards.sum(|shard| &shard.retries));
        scrape.count(Family::RetriesDenied, &[upstream], self.shards.sum(|shard| &shard.retries_denied));
        scrape.count(Family::LookupFailures, &[upstream], self.lookups_failed.get());
        scrape.count(Family::BreakerDropped, &[upstream], self.shards.sum(|shard| &shard.breaker_dropped));
        scrape.number(Family::UpstreamPanic, &[upstream], f64::from(u8::from(self.panic())));
    }
}

/// Counters of one endpoint of one upstream.
#[derive(Debug)]
pub struct EndpointMetrics {
    shards: PerWorker<EndpointShard>,
    healthy: AtomicBool,
}

#[derive(Debug, Default)]
struct EndpointShard {
    statuses: Lazy<Statuses>,
    failures: Counters<REASONS>,
    ejections: Counter,
    connections: Level,
}

impl EndpointMetrics {
    pub(super) fn new(workers: usize) -> Self {
        Self { shards: PerWorker::new(workers), healthy: AtomicBool::new(false) }
    }

    /// An attempt got a response with this status.
    pub fn attempt_status(&self, worker: usize, status: u16) {
        self.shards.of(worker).statuses.get().one(status);
    }

    /// An attempt ended without a response.
    pub fn attempt_failed(&self, worker: usize, reason: Reason) {
        self.shards.of(worker).failures.one(reason as usize);
    }

    /// Outlier detection took the endpoint out.
    pub fn ejected(&self, worker: usize) {
        self.shards.of(worker).ejections.one();
    }

    /// How often it was ejected.
    pub fn ejections(&self) -> u64 {
        self.shards.sum(|shard| &shard.ejections)
    }

    /// Whether the endpoint is available: not unhealthy, not ejected, weight above 0. It begins as not available.
    pub fn set_healthy(&self, healthy: bool) {
        if self.healthy.load(Relaxed) != healthy {
            self.healthy.store(healthy, Relaxed);
        }
    }

    /// A connection to the endpoint was opened.
    pub fn connection_opened(&self, worker: usize) {
        self.shards.of(worker).connections.up();
    }

    /// A connection to the endpoint was closed.
    pub fn connection_closed(&self, worker: usize) {
        self.shards.of(worker).connections.down();
    }

    pub(super) fn collect(&self, upstream: &str, endpoint: &str, scrape: &mut Scrape) {
        let labels = [upstream, endpoint];
        let (mut statuses, mut failures) = (StatusSums::default(), [0; REASONS]);
        for shard in self.shards.used() {
            shard.failures.add_to(&mut failures);
            if let Some(counted) = shard.statuses.used() {
                counted.add_to(&mut statuses);
            }
        }
        for (status, count) in statuses.seen() {
            scrape.count(Family::UpstreamRequests, &[upstream, endpoint, &status.to_string()], count);
        }
        for (reason, count) in Reason::ALL.iter().zip(failures).filter(|(_, count)| *count > 0) {
            scrape.count(Family::UpstreamRequests, &[upstream, endpoint, reason.as_str()], count);
        }
        scrape.count(Family::Ejections, &labels, self.shards.sum(|shard| &shard.ejections));
        scrape.number(Family::EndpointHealthy, &labels, f64::from(u8::from(self.healthy.load(Relaxed))));
        scrape.number(Family::UpstreamConnections, &labels, self.shards.level(|shard| &shard.connections) as f64);
    }
}
