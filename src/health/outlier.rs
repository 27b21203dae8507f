//! Ejection of endpoints that fail live traffic: the row of failed attempts and the ejections of one endpoint.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::balance::clock;

/// An ejection lasts at most this many times `eject_for`.
const MOST: u32 = 10;

/// When endpoints are ejected, and for how long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rules {
    /// Failed attempts in a row that eject.
    pub errors: u32,
    /// How long the first ejection lasts.
    pub eject_for: Duration,
    /// Most endpoints out at a time, 0.0 to 1.0.
    pub max_ejected: f64,
}

impl Rules {
    /// Most endpoints of `all` that may be out at a time.
    pub fn most_ejected(&self, all: usize) -> usize {
        // The tolerance keeps 0.29 × 100 from being 28.
        (all as f64 * self.max_ejected + 1e-9).floor() as usize
    }
}

/// Failed attempts and ejections of one endpoint. Reading and resetting take no lock;
/// ejecting is done by one thread at a time (the caller sees to it, since the limits concern all endpoints).
#[derive(Debug, Default)]
pub struct Row {
    errors: AtomicU32,
    ejections: AtomicU32,
    /// End of the current or last ejection, [`clock::nanos`]; 0 is never.
    until: AtomicU64,
    /// Whether the row still belongs to the time before the last ejection's end.
    stale: AtomicU32,
}

impl Row {
    /// Counts an attempt that did not fail.
    pub fn reset(&self) {
        // Read first: the common case must not write a line that all workers read.
        if self.errors.load(Ordering::Relaxed) != 0 {
            self.errors.store(0, Ordering::Relaxed);
        }
    }

    /// Counts a failed attempt; returns whether the row is long enough to eject.
    pub fn failed(&self, rules: &Rules, now: Instant) -> bool {
        let back = self.returned_at(now).is_some();
        // What happened before the ejection is paid for: an endpoint that comes back starts a new row.
        if back && self.stale.swap(0, Ordering::Relaxed) == 1 {
            self.errors.store(0, Ordering::Relaxed);
        }
        let errors = self.errors.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        errors >= rules.errors && self.ejected_until(now).is_none()
    }

    /// Ejects it at `now`; returns for how long.
    pub fn eject(&self, rules: &Rules, now: Instant) -> Duration {
        let served = self.returned_at(now).map_or(0, |back| {
            let spans = now.saturating_duration_since(back).as_nanos() / rules.eject_for.as_nanos().max(1);
            u32::try_from(spans).unwrap_or(u32::MAX)
        });
        let ejections = self.ejections.load(Ordering::Relaxed).saturating_sub(served).saturating_add(1);
        let span = rules.eject_for.saturating_mul(ejections.min(MOST));
        self.ejections.store(ejections, Ordering::Relaxed);
        self.stale.store(1, Ordering::Relaxed);
        self.until.store(clock::nanos(now.checked_add(span).unwrap_or(now)), Ordering::Release);
        span
    }

    /// Failed attempts in a row.
    pub fn errors(&self, now: Instant) -> u32 {
        let paid = self.stale.load(Ordering::Relaxed) == 1 && self.returned_at(now).is_some();
        if paid { 0 } else { self.errors.load(Ordering::Relaxed) }
    }

    /// Until when it is ejected, if it is.
    pub fn ejected_until(&self, now: Instant) -> Option<Instant> {
        let until = self.until.load(Ordering::Acquire);
        (until > clock::nanos(now)).then(|| clock::instant(until))
    }

    /// When its last ejection ended, if it did.
    pub fn returned_at(&self, now: Instant) -> Option<Instant> {
        let until = self.until.load(Ordering::Acquire);
        (until != 0 && until <= clock::nanos(now)).then(|| clock::instant(until))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules { errors: 3, eject_for: Duration::from_secs(30), max_ejected: 0.5 };

    fn fail_until_ejected(row: &Row, now: Instant) -> Duration {
        for _ in 1..RULES.errors {
            assert!(!row.failed(&RULES, now));
        }
        assert!(row.failed(&RULES, now));
        row.eject(&RULES, now)
    }

    #[test]
    fn only_failures_in_a_row_count() {
        let (row, now) = (Row::default(), Instant::now());
        assert!(!row.failed(&RULES, now));
        assert!(!row.failed(&RULES, now));
        row.reset();
        assert!(!row.failed(&RULES, now));
        assert!(!row.failed(&RULES, now));
        assert_eq!(row.errors(now), 2);
        assert!(row.failed(&RULES, now));
    }

    #[test]
    fn each_ejection_is_longer_up_to_ten_times() {
        let (row, mut now) = (Row::default(), Instant::now());
        for n in 1..=12u32 {
            let span = fail_until_ejected(&row, now);
            assert_eq!(span, RULES.eject_for * n.min(10));
            assert_eq!(row.ejected_until(now), Some(now + span));
            now += span;
            assert_eq!(row.ejected_until(now), None);
            assert_eq!(row.errors(now), 0, "a new row begins");
        }
    }

    #[test]
    fn time_in_service_is_credited() {
        let (row, start) = (Row::default(), Instant::now());
        let mut now = start + fail_until_ejected(&row, start);
        now += fail_until_ejected(&row, now);
        now += fail_until_ejected(&row, now);
        // Three ejections, then two spans of service: the next one is the second again.
        assert_eq!(fail_until_ejected(&row, now + RULES.eject_for * 2), RULES.eject_for * 2);
    }

    #[test]
    fn an_ejected_endpoint_is_not_ejected_again_until_it_is_back() {
        let (row, now) = (Row::default(), Instant::now());
        let span = fail_until_ejected(&row, now);
        for _ in 0..10 {
            assert!(!row.failed(&RULES, now + span / 2));
        }
        assert!(!row.failed(&RULES, now + span));
        assert_eq!(row.errors(now + span), 1);
    }

    #[test]
    fn the_share_that_may_be_out_is_rounded_down() {
        assert_eq!(RULES.most_ejected(1), 0);
        assert_eq!(RULES.most_ejected(3), 1);
        assert_eq!(RULES.most_ejected(4), 2);
        assert_eq!(Rules { max_ejected: 0.29, ..RULES }.most_ejected(100), 29);
    }
}
