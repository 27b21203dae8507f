//! One try on one endpoint: it counts as in flight while it lives, and its end is what ejection, latency and breaker learn from.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Endpoint;
use super::in_flight::Place;
use super::set::Handle;

/// A failed attempt counts as at least this slow, so that failing fast does not attract load.
const FAILURE_COSTS: Duration = Duration::from_secs(1);

/// How an attempt failed. All kinds count alike; a 500 is none of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailKind {
    /// Refused, unreachable, or `connect_timeout`.
    Connect,
    /// TLS failed.
    Tls,
    /// Closed or reset before the response head.
    Reset,
    /// The response was unreadable.
    Protocol,
    /// No response head in time.
    Timeout,
    /// 502, 503 or 504.
    Status(u16),
    /// grpc-status 14 in the head.
    GrpcUnavailable,
}

/// An attempt in flight. Drop it at the end of the response body.
#[derive(Debug)]
pub struct Attempt {
    endpoint: Picked,
    /// Where it is counted.
    place: Place,
    /// Whether it is also counted for the whole upstream.
    counted: bool,
}

/// The endpoint of an attempt.
#[derive(Debug)]
enum Picked {
    /// One of the usable endpoints of a set, which is held instead of it.
    Of(Arc<Handle>, usize),
    /// Held by itself.
    Alone(Arc<Endpoint>),
}

impl Attempt {
    /// An attempt on the usable endpoint at `position` of `set`, which has one there.
    pub(super) fn begin(set: Arc<Handle>, position: usize, place: Place, counted: bool, now: Instant) -> Self {
        let endpoint = &set.usable[position];
        endpoint.state.in_flight.up(place);
        if counted {
            endpoint.upstream_state().in_flight.fetch_add(1, Ordering::Relaxed);
        }
        set.load_changed(endpoint, now);
        Self { endpoint: Picked::Of(set, position), place, counted }
    }

    /// Where it goes.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        match &self.endpoint {
            Picked::Of(set, position) => &set.usable[*position],
            Picked::Alone(endpoint) => endpoint,
        }
    }

    /// Lets go of the set: for an attempt that may last, as sets may be large and come often.
    pub(super) fn settle(&mut self) {
        self.endpoint = Picked::Alone(Arc::clone(self.endpoint()));
    }

    /// A response head came that is no failure, `elapsed` after the pick.
    pub fn succeeded(&self, now: Instant, elapsed: Duration) {
        self.endpoint().state.row.reset();
        self.endpoint().state.ewma.observe(elapsed, now);
        if self.endpoint().links.breaker {
            self.endpoint().upstream_state().breaker.record(now, true);
        }
    }

    /// It failed, `elapsed` after the pick.
    pub fn failed(&self, now: Instant, elapsed: Duration, kind: FailKind) {
        tracing::debug!(upstream = &*self.endpoint().upstream_state().name, endpoint = &*self.endpoint().id, ?kind, "attempt failed");
        self.endpoint().state.ewma.observe(elapsed.max(FAILURE_COSTS), now);
        if self.endpoint().links.breaker {
            self.endpoint().upstream_state().breaker.record(now, false);
        }
        // Without the upstream its snapshot is gone, and with it the rules to eject by.
        if let Some(upstream) = self.endpoint().upstream() {
            upstream.count_failure(self.endpoint(), now);
        }
    }

    /// The client gave up: it says nothing about the endpoint.
    pub fn cancelled(&self) {}
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.endpoint().state.in_flight.down(self.place);
        if self.counted {
            self.endpoint().upstream_state().in_flight.fetch_sub(1, Ordering::Relaxed);
        }
        if self.endpoint().upstream_state().ranks.load(Ordering::Relaxed)
            && let Some(upstream) = self.endpoint().upstream()
        {
            upstream.attempt_ended(self.endpoint());
        }
    }
}
