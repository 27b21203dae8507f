//! Counts of the last 10 seconds in 40 buckets of 250 ms, updated without a lock.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use crate::balance::clock;

/// Buckets in the window.
pub const BUCKETS: usize = 40;
/// Nanoseconds of one bucket.
const BUCKET_NANOS: u64 = 250_000_000;

/// `KINDS` counters per bucket. Threads that meet at the first count of a bucket may lose a few of it: a price worth having no lock.
#[derive(Debug)]
pub struct Window<const KINDS: usize> {
    buckets: [Bucket<KINDS>; BUCKETS],
}

#[derive(Debug)]
struct Bucket<const KINDS: usize> {
    /// Number of the 250 ms this holds, since the process' epoch; 0 is unused.
    period: AtomicU64,
    counts: [AtomicU32; KINDS],
}

impl<const KINDS: usize> Default for Window<KINDS> {
    fn default() -> Self {
        Self { buckets: std::array::from_fn(|_| Bucket { period: AtomicU64::new(0), counts: std::array::from_fn(|_| AtomicU32::new(0)) }) }
    }
}

impl<const KINDS: usize> Window<KINDS> {
    /// Counts one of `kind` at `now`.
    pub fn add(&self, kind: usize, now: Instant) {
        let period = period(now);
        let bucket = &self.buckets[(period % BUCKETS as u64) as usize];
        let held = bucket.period.load(Ordering::Acquire);
        if held < period {
            for count in &bucket.counts {
                count.store(0, Ordering::Relaxed);
            }
            // Losing this race means that another thread made the same bucket ready.
            let _ = bucket.period.compare_exchange(held, period, Ordering::Release, Ordering::Relaxed);
        }
        if let Some(count) = bucket.counts.get(kind) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts per bucket, newest first; buckets without any count in the window are left out.
    pub fn newest_first(&self, now: Instant) -> impl Iterator<Item = [u32; KINDS]> + '_ {
        let newest = period(now);
        (0..BUCKETS as u64).filter_map(move |age| {
            let period = newest.checked_sub(age)?;
            let bucket = &self.buckets[(period % BUCKETS as u64) as usize];
            (bucket.period.load(Ordering::Acquire) == period).then(|| bucket.counts.each_ref().map(|count| count.load(Ordering::Relaxed)))
        })
    }

    /// Sums over the window.
    pub fn sums(&self, now: Instant) -> [u64; KINDS] {
        let mut sums = [0; KINDS];
        for counts in self.newest_first(now) {
            for (sum, count) in sums.iter_mut().zip(counts) {
                *sum += u64::from(count);
            }
        }
        sums
    }
}

/// At least 1, so that 0 can mean "unused".
fn period(now: Instant) -> u64 {
    clock::nanos(now) / BUCKET_NANOS + 1
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn counts_leave_after_ten_seconds() {
        let window = Window::<2>::default();
        let start = Instant::now();
        window.add(0, start);
        window.add(1, start);
        window.add(1, start + Duration::from_secs(9));
        assert_eq!(window.sums(start + Duration::from_secs(9)), [1, 2]);
        assert_eq!(window.sums(start + Duration::from_millis(10_001)), [0, 1]);
        assert_eq!(window.sums(start + Duration::from_secs(30)), [0, 0]);
    }

    #[test]
    fn a_bucket_is_empty_when_its_place_comes_round_again() {
        let window = Window::<1>::default();
        let start = Instant::now();
        (0..5).for_each(|_| window.add(0, start));
        window.add(0, start + Duration::from_secs(10));
        assert_eq!(window.sums(start + Duration::from_secs(10)), [1]);
    }
}
