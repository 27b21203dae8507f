//! Client-side throttling by failure ratio: what cannot be served anyway is not sent.
//!
//! After "Handling Overload" of the SRE book, as Kratos and go-zero refined it: `K` falls and the slack for recovery shrinks
//! while whole buckets fail, and grows while whole buckets succeed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::window::{BUCKETS, Window};
use crate::balance::clock;

const SUCCESS: usize = 0;
const FAILURE: usize = 1;
const DROPPED: usize = 2;
/// One attempt passes if none did for this long, however bad it looks: otherwise recovery would never be seen.
const PROBE: Duration = Duration::from_secs(1);
/// Attempts that are never held against an upstream, so that a few failures at little traffic do not trip it.
const FREE: f64 = 5.0;

/// What the breaker says about an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Send it.
    Pass,
    /// Do not; it is counted as dropped already.
    Drop,
}

/// The adaptive breaker of one upstream.
#[derive(Debug, Default)]
pub struct Breaker {
    window: Window<3>,
    last_pass: AtomicU64,
}

impl Breaker {
    /// Asks before an attempt. `random` is uniform over all of `u64`.
    pub fn check(&self, now: Instant, random: u64) -> Verdict {
        let p = self.drop_probability(now);
        let at = clock::nanos(now);
        let last = self.last_pass.load(Ordering::Relaxed);
        if p <= 0.0 {
            // Written seldom: every worker reads this line.
            if at.saturating_sub(last) > PROBE.as_nanos() as u64 / 10 {
                self.last_pass.store(at, Ordering::Relaxed);
            }
            return Verdict::Pass;
        }
        let due = at.saturating_sub(last) >= PROBE.as_nanos() as u64;
        let probe = due && self.last_pass.compare_exchange(last, at, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if probe || fraction(random) >= p {
            self.last_pass.fetch_max(at, Ordering::Relaxed);
            return Verdict::Pass;
        }
        self.window.add(DROPPED, now);
        Verdict::Drop
    }

    /// Counts an attempt that ended.
    pub fn record(&self, now: Instant, success: bool) {
        self.window.add(if success { SUCCESS } else { FAILURE }, now);
    }

    /// Share of attempts that would be dropped at `now`, 0.0 to 1.0.
    pub fn drop_probability(&self, now: Instant) -> f64 {
        let (mut total, mut accepts) = (0u64, 0u64);
        let (mut failing, mut succeeding) = (0u32, 0u32);
        let (mut only_failures, mut only_successes) = (true, true);
        for [successes, failures, dropped] in self.window.newest_first(now) {
            total += u64::from(successes) + u64::from(failures) + u64::from(dropped);
            accepts += u64::from(successes);
            if successes == 0 && failures == 0 {
                continue;
            }
            only_failures &= successes == 0;
            only_successes &= failures == 0;
            failing += u32::from(only_failures);
            succeeding += u32::from(only_successes);
        }
        let buckets = BUCKETS as f64;
        let k = (1.5 - 0.4 * f64::from(failing) / buckets).max(1.1);
        let excess = (total as f64 - FREE - k * accepts as f64) / (total as f64 + 1.0);
        (excess * (buckets - f64::from(succeeding)) / buckets).clamp(0.0, 1.0)
    }
}

/// A random number as a fraction in 0.0 … below 1.0.
fn fraction(random: u64) -> f64 {
    (random >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(250);

    #[test]
    fn healthy_traffic_always_passes() {
        let (breaker, mut now) = (Breaker::default(), Instant::now());
        for _ in 0..1000 {
            assert_eq!(breaker.check(now, 0), Verdict::Pass);
            breaker.record(now, true);
            now += Duration::from_millis(5);
        }
        assert_eq!(breaker.drop_probability(now), 0.0);
    }

    #[test]
    fn five_failures_are_free() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        (0..5).for_each(|_| breaker.record(now, false));
        assert_eq!(breaker.drop_probability(now), 0.0);
        breaker.record(now, false);
        assert!((breaker.drop_probability(now) - 1.0 / 7.0).abs() < 1e-12);
    }

    #[test]
    fn the_formula_counts_rows_of_failing_and_succeeding_buckets() {
        let (breaker, start) = (Breaker::default(), Instant::now());
        // Two buckets of successes, an empty one, then three of failures: f = 3, s = 0.
        for bucket in [0u32, 1] {
            (0..10).for_each(|_| breaker.record(start + STEP * bucket, true));
        }
        for bucket in [3u32, 4, 5] {
            (0..20).for_each(|_| breaker.record(start + STEP * bucket, false));
        }
        let k = 1.5 - 0.4 * 3.0 / 40.0;
        let expected = (80.0 - 5.0 - k * 20.0) / 81.0;
        assert!((breaker.drop_probability(start + STEP * 5) - expected).abs() < 1e-12);
        // Two buckets of successes after it: f = 0, s = 2.
        breaker.record(start + STEP * 6, true);
        breaker.record(start + STEP * 8, true);
        let expected = (82.0 - 5.0 - 1.5 * 22.0) / 83.0 * 38.0 / 40.0;
        assert!((breaker.drop_probability(start + STEP * 8) - expected).abs() < 1e-12);
    }

    #[test]
    fn a_bucket_with_both_ends_both_rows() {
        let (breaker, start) = (Breaker::default(), Instant::now());
        (0..30).for_each(|_| breaker.record(start, false));
        breaker.record(start + STEP, false);
        breaker.record(start + STEP, true);
        let expected = (32.0 - 5.0 - 1.5) / 33.0;
        assert!((breaker.drop_probability(start + STEP) - expected).abs() < 1e-12);
    }

    #[test]
    fn one_attempt_a_second_passes_however_bad_it_is() {
        let (breaker, start) = (Breaker::default(), Instant::now());
        (0..10_000).for_each(|_| breaker.record(start, false));
        let mut passed = 0;
        for ms in (0..5_000).step_by(10) {
            passed += usize::from(breaker.check(start + Duration::from_millis(ms), 0) == Verdict::Pass);
        }
        assert_eq!(passed, 5);
    }

    #[test]
    fn an_upstream_that_recovers_gets_its_traffic_back() {
        let (breaker, mut now) = (Breaker::default(), Instant::now());
        let mut random = 7u64;
        let mut second = |breaker: &Breaker, works: bool| {
            let mut dropped = 0;
            for _ in 0..200 {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                match breaker.check(now, random) {
                    Verdict::Pass => breaker.record(now, works),
                    Verdict::Drop => dropped += 1,
                }
                now += Duration::from_millis(5);
            }
            dropped
        };
        let broken: Vec<u32> = (0..20).map(|_| second(&breaker, false)).collect();
        assert!(broken[19] > 180, "{broken:?}");
        let recovering: Vec<u32> = (0..25).map(|_| second(&breaker, true)).collect();
        assert_eq!(recovering[24], 0, "{recovering:?}");
    }
}
