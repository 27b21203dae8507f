//! Why an endpoint could last not be connected to: for `/upstreams`, and from time to time for the log.
//!
//! The client is told a reason and no more. Whoever runs the gateway needs the cause: a refused port and a certificate for another name
//! are mended in different places.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::endpoint::LastCheck;
use crate::balance::clock;

/// An error is kept this often at most: when an endpoint is away, every request has one.
const KEPT_EVERY: Duration = Duration::from_secs(1);
/// And told this often.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// The last failure to connect.
#[derive(Debug, Default)]
pub(super) struct Unreached {
    last: Mutex<Option<LastCheck>>,
    /// When one was last kept, and last told; 0 is never.
    kept: AtomicU64,
    told: AtomicU64,
}

impl Unreached {
    /// Keeps `error`, unless one was kept a moment ago. Its text is returned when it is time to tell it.
    pub(super) fn note(&self, error: &dyn std::fmt::Display, now: Instant) -> Option<String> {
        if !is_time(&self.kept, now, KEPT_EVERY) {
            return None;
        }
        let text = error.to_string();
        let last = LastCheck { at: SystemTime::now(), ok: false, error: Some(text.as_str().into()) };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(last);
        is_time(&self.told, now, TOLD_EVERY).then_some(text)
    }

    /// The last one that was kept.
    pub(super) fn last(&self) -> Option<LastCheck> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Whether `every` has passed since `last`, which then becomes `now`; of callers at the same time one is told so.
fn is_time(last: &AtomicU64, now: Instant, every: Duration) -> bool {
    let (before, now) = (last.load(Ordering::Relaxed), clock::nanos(now));
    let over = before == 0 || now.saturating_sub(before) >= u64::try_from(every.as_nanos()).unwrap_or(u64::MAX);
    over && last.compare_exchange(before, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_kept_each_second_and_told_each_minute() {
        let (unreached, start) = (Unreached::default(), Instant::now() + Duration::from_secs(1));
        let error_at = |text: &str, seconds: f64| unreached.note(&text, start + Duration::from_secs_f64(seconds));
        let last = || unreached.last().and_then(|last| last.error).map(|error| error.to_string());
        assert_eq!(last(), None);
        assert_eq!(error_at("refused", 0.0).as_deref(), Some("refused"));
        assert_eq!((error_at("reset", 0.5), last().as_deref()), (None, Some("refused")));
        assert_eq!((error_at("another name", 2.0), last().as_deref()), (None, Some("another name")));
        assert_eq!(error_at("refused", 61.0).as_deref(), Some("refused"));
    }
}
