//! What is counted per route.

use std::time::Duration;

use http::Method;

use super::collect::Scrape;
use super::shard::{Counter, Counters, DurationSums, Durations, Lazy, Level, PerWorker, StatusSums, Statuses};
use super::table::Family;
use crate::error::Reason;

/// Values of the `method` label.
const METHODS: [&str; 10] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE", "other"];

/// Words for the exact cause of an authentication failure.
pub const AUTH_ERRORS: [&str; 14] = [
    "missing",
    "malformed",
    "algorithm",
    "key",
    "signature",
    "expired",
    "not_yet_valid",
    "issuer",
    "audience",
    "inactive",
    "unknown",
    "scope",
    "claims",
    "unavailable",
];

/// What became of a request's copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Mirrored {
    /// The mirror got all of it.
    Sent,
    /// It could not be reached, or ended the connection before it answered.
    Failed,
    /// Too many copies were under way.
    Dropped,
    /// The body was too long, or never complete.
    Skipped,
    /// The request was over before its copy was sent.
    Late,
}

/// Values of the `result` label, by [`Mirrored`].
const MIRRORED: [&str; 5] = ["sent", "failed", "dropped", "skipped", "late"];

/// Last grpc-status that gRPC defines.
const LAST_GRPC_STATUS: u8 = 16;
const GRPC_STATUSES: usize = LAST_GRPC_STATUS as usize + 2;
const REASONS: usize = Reason::ALL.len();

/// Counters of one route, or of the requests without a route. Resolved when a snapshot is built; the request path only adds.
#[derive(Debug)]
pub struct RouteMetrics {
    shards: PerWorker<Shard>,
}

#[derive(Debug, Default)]
struct Shard {
    durations: Durations,
    methods: [Lazy<Statuses>; METHODS.len()],
    errors: Counters<REASONS>,
    auth: Counters<{ AUTH_ERRORS.len() }>,
    grpc: Counters<GRPC_STATUSES>,
    mirrored: Counters<{ MIRRORED.len() }>,
    rate_limited: Counter,
    tunnels: Level,
}

impl RouteMetrics {
    pub(super) fn new(workers: usize) -> Self {
        Self { shards: PerWorker::new(workers) }
    }

    /// A request ended with the status that was sent. `None` for the duration of a tunnel, which is not observed.
    pub fn request(&self, worker: usize, method: &Method, status: u16, duration: Option<Duration>) {
        let shard = self.shards.of(worker);
        if let Some(statuses) = shard.methods.get(method_index(method)) {
            statuses.get().one(status);
        }
        if let Some(duration) = duration {
            shard.durations.observe(duration);
        }
    }

    /// A request was answered by the gateway itself, or cut, for this reason.
    pub fn error(&self, worker: usize, reason: Reason) {
        self.shards.of(worker).errors.one(reason as usize);
    }

    /// A rate limit refused a request.
    pub fn rate_limited(&self, worker: usize) {
        self.shards.of(worker).rate_limited.one();
    }

    /// Authentication failed for the cause `auth_error`, one of [`AUTH_ERRORS`]. Any other word counts nowhere: the list is closed.
    pub fn auth_failure(&self, worker: usize, auth_error: &'static str) {
        let index = AUTH_ERRORS.iter().position(|word| *word == auth_error);
        debug_assert!(index.is_some(), "{auth_error} is not in the closed list");
        if let Some(index) = index {
            self.shards.of(worker).auth.one(index);
        }
    }

    /// A gRPC call ended with this grpc-status; what gRPC does not define counts as `other`.
    pub fn grpc(&self, worker: usize, grpc_status: u8) {
        self.shards.of(worker).grpc.one(usize::from(grpc_status.min(LAST_GRPC_STATUS + 1)));
    }

    /// A request was chosen for a copy, with this result.
    pub fn mirrored(&self, worker: usize, result: Mirrored) {
        self.shards.of(worker).mirrored.one(result as usize);
    }

    /// A tunnel was opened.
    pub fn tunnel_opened(&self, worker: usize) {
        self.shards.of(worker).tunnels.up();
    }

    /// A tunnel was closed.
    pub fn tunnel_closed(&self, worker: usize) {
        self.shards.of(worker).tunnels.down();
    }

    /// Adds the route's series. A route that never had a request has none, for ten thousand silent histograms help nobody.
    pub(super) fn collect(&self, route: &str, scrape: &mut Scrape) {
        if self.shards.used().next().is_none() {
            return;
        }
        let mut durations = DurationSums::default();
        let (mut errors, mut auth, mut grpc) = ([0; REASONS], [0; AUTH_ERRORS.len()], [0; GRPC_STATUSES]);
        let mut mirrored = [0; MIRRORED.len()];
        for shard in self.shards.used() {
            shard.durations.add_to(&mut durations);
            shard.errors.add_to(&mut errors);
            shard.auth.add_to(&mut auth);
            shard.grpc.add_to(&mut grpc);
            shard.mirrored.add_to(&mut mirrored);
        }
        scrape.durations(Family::RequestDuration, &[route], &durations);
        scrape.count(Family::RateLimited, &[route], self.shards.sum(|shard| &shard.rate_limited));
        scrape.number(Family::Tunnels, &[route], self.shards.level(|shard| &shard.tunnels) as f64);
        self.collect_requests(route, scrape);
        for (reason, count) in Reason::ALL.iter().zip(errors).filter(|(_, count)| *count > 0) {
            scrape.count(Family::Errors, &[route, reason.as_str()], count);
        }
        for (word, count) in AUTH_ERRORS.iter().zip(auth).filter(|(_, count)| *count > 0) {
            scrape.count(Family::AuthFailures, &[route, word], count);
        }
        for (result, count) in MIRRORED.iter().zip(mirrored).filter(|(_, count)| *count > 0) {
            scrape.count(Family::Mirrored, &[route, result], count);
        }
        for (status, count) in grpc.into_iter().enumerate().filter(|(_, count)| *count > 0) {
            let word = if status > usize::from(LAST_GRPC_STATUS) { "other".to_owned() } else { status.to_string() };
            scrape.count(Family::GrpcResponses, &[route, &word], count);
        }
    }

    fn collect_requests(&self, route: &str, scrape: &mut Scrape) {
        for (index, method) in METHODS.iter().enumerate() {
            let mut used = self.shards.used().filter_map(|shard| shard.methods.get(index)?.used()).peekable();
            if used.peek().is_none() {
                continue;
            }
            let mut sums = StatusSums::default();
            used.for_each(|statuses| statuses.add_to(&mut sums));
            for (status, count) in sums.seen() {
                scrape.count(Family::Requests, &[route, method, &status.to_string()], count);
            }
        }
    }
}

fn method_index(method: &Method) -> usize {
    match *method {
        Method::GET => 0,
        Method::HEAD => 1,
        Method::POST => 2,
        Method::PUT => 3,
        Method::PATCH => 4,
        Method::DELETE => 5,
        Method::OPTIONS => 6,
        Method::CONNECT => 7,
        Method::TRACE => 8,
        _ => 9,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_counts_under_its_own_name() {
        for name in &METHODS[..9] {
            assert_eq!(METHODS[method_index(&name.parse().unwrap())], *name);
        }
        for name in ["get", "PROPFIND", "X"] {
            assert_eq!(METHODS[method_index(&name.parse().unwrap())], "other");
        }
    }
}
