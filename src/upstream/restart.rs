//! Waiting for the only endpoint while it is being restarted.
//!
//! An endpoint that took connections a moment ago and refuses them now is probably being restarted. Where a request has nowhere else to go,
//! it waits for that within `connect_timeout`, which counts from the first refusal for all requests: an endpoint that stays away costs its
//! requests one such wait, those that come later fail at once. One request at a time asks whether the endpoint is back, whatever
//! the load; the others wait for its word.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use tokio::sync::Notify;

use super::call::{Call, Deadline};
use super::failure::Failure;
use super::retry::{Retriable, RetryPolicy};
use super::{Endpoint, Upstream};
use crate::balance::clock;
use crate::error::Reason;

/// Whether an endpoint takes connections.
#[derive(Debug, Default)]
pub(super) struct Reach {
    /// [`NEVER`], [`UP`], or since when it refuses connections, [`clock::nanos`].
    since: AtomicU64,
    /// Whether a request is finding out if it is back.
    asked: AtomicBool,
    /// Rings when it is back, or when nobody asks any more.
    news: Notify,
}

/// No connection was made yet: there is nothing to come back to.
const NEVER: u64 = 0;
const UP: u64 = 1;

impl Reach {
    /// It took a connection.
    pub fn took(&self) {
        // Read first: the common case must not write a line that all workers read.
        if self.since.load(Ordering::Acquire) != UP {
            self.since.store(UP, Ordering::Release);
            self.news.notify_waiters();
        }
    }

    /// It refused a connection; returns since when it does, if it took connections before.
    fn refused(&self, now: Instant) -> Option<Instant> {
        let now = clock::nanos(now).max(UP + 1);
        match self.since.compare_exchange(UP, now, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Some(clock::instant(now)),
            Err(NEVER) => None,
            Err(since) => Some(clock::instant(since)),
        }
    }

    fn is_up(&self) -> bool {
        self.since.load(Ordering::Acquire) == UP
    }
}

/// A request that waits.
pub(super) struct Comeback<'a> {
    upstream: &'a Upstream,
    endpoint: &'a Arc<Endpoint>,
    policy: &'a RetryPolicy,
    give_up: Instant,
    /// Times that this request has asked.
    asked: u32,
    /// Whether it is the one that asks.
    asks: bool,
}

impl Drop for Comeback<'_> {
    fn drop(&mut self) {
        if std::mem::take(&mut self.asks) {
            let reach = &self.endpoint.state.reach;
            reach.asked.store(false, Ordering::Release);
            reach.news.notify_waiters();
        }
    }
}

impl<'a> Comeback<'a> {
    /// Begins to wait, if `failure` says that the endpoint may be away for a moment, connections are what `retry` repeats, and there is no
    /// other endpoint.
    pub fn of(upstream: &'a Upstream, endpoint: &'a Arc<Endpoint>, call: &Call<'a>, failure: &Failure) -> Option<Self> {
        if !is_refusal(failure) {
            return None;
        }
        let policy = call.retry.filter(|policy| policy.attempts > 0 && policy.allows(Retriable::Connect, call.idempotent))?;
        let now = Instant::now();
        let give_up = endpoint.state.reach.refused(now)? + upstream.connect_timeout;
        (now < give_up && upstream.is_alone(endpoint, now)).then_some(Self { upstream, endpoint, policy, give_up, asked: 0, asks: false })
    }

    /// Whether to go on waiting after another try.
    pub fn goes_on(&self, failure: Option<&Failure>) -> bool {
        let refused = failure.is_some_and(is_refusal);
        if refused {
            // It may have been back for a moment.
            self.endpoint.state.reach.refused(Instant::now());
        }
        refused
    }

    /// Waits until it is worth while to try again; `false` when it is not any more.
    pub async fn wait(&mut self, call: &Call<'_>, per_try: Option<Deadline>) -> bool {
        let reach = &self.endpoint.state.reach;
        loop {
            let now = Instant::now();
            let until = per_try.and_then(|per_try| call.limit.end_of(per_try, now)).map_or(self.give_up, |end| end.min(self.give_up));
            if now >= until {
                return false;
            }
            let news = reach.news.notified();
            if reach.is_up() {
                return true;
            }
            if !self.asks && reach.asked.swap(true, Ordering::AcqRel) {
                // Somebody else asks. It rings when there is news, also when it leaves.
                if call.limit.run(Some(Deadline::At(until)), news).await.is_err() {
                    return false;
                }
                continue;
            }
            self.asks = true;
            if !self.upstream.budget().try_retry(now, self.policy.budget) {
                return false;
            }
            self.asked += 1;
            let pause = self.policy.wait_at_least(self.asked, crate::random::next()).min(until - now);
            return call.has_time_for(pause) && call.limit.run(None, tokio::time::sleep(pause)).await.is_ok();
        }
    }
}

/// Refused or unreachable, so that nothing was sent.
fn is_refusal(failure: &Failure) -> bool {
    failure.reason == Reason::UpstreamConnectFailed && failure.retriable == Some(Retriable::Connect)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_what_was_up_can_come_back_and_the_first_refusal_counts() {
        let (reach, now) = (Reach::default(), Instant::now() + Duration::from_secs(1));
        assert_eq!(reach.refused(now), None);
        reach.took();
        assert!(reach.is_up());
        assert_eq!(reach.refused(now), Some(now));
        assert_eq!(reach.refused(now + Duration::from_secs(5)), Some(now));
        assert!(!reach.is_up());
        reach.took();
        assert_eq!(reach.refused(now + Duration::from_secs(9)), Some(now + Duration::from_secs(9)));
    }
}
