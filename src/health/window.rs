//! Counts of the last 10 seconds in 40 buckets of 250 ms, updated without a lock.

use std::sync::atomic::{AtomicU32, Ordering};
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
    /// Number of the 250 ms this holds, since the process' epoch; 0 is unused. Enough for 34 years.
    period: AtomicU32,
    counts: [AtomicU32; KINDS],
}

impl<const KINDS: usize> Default for Window<KINDS> {
    fn default() -> Self {
        Self { buckets: std::array::from_fn(|_| Bucket { period: AtomicU32::new(0), counts: std::array::from_fn(|_| AtomicU32::new(0)) }) }
    }
}

impl<const KINDS: usize> Window<KINDS> {
    /// Counts one of `kind` at `now`.
    pub fn add(&self, kind: usize, now: Instant) {
        if let Some(count) = self.bucket(now).counts.get(kind) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The same for a `kind` that this thread alone counts here: that needs no atomic addition, which costs twenty times as much.
    pub fn add_own(&self, kind: usize, now: Instant) {
        if let Some(count) = self.bucket(now).counts.get(kind) {
            count.store(count.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        }
    }

    /// The bucket of `now`, made ready if this is its first count.
    fn bucket(&self, now: Instant) -> &Bucket<KINDS> {
        let period = period(now);
        let bucket = &self.buckets[period as usize % BUCKETS];
        let held = bucket.period.load(Ordering::Acquire);
        if held < period {
            for count in &bucket.counts {
                count.store(0, Ordering::Relaxed);
            }
            // Losing this race means that another thread made the same bucket ready.
            let _ = bucket.period.compare_exchange(held, period, Ordering::Release, Ordering::Relaxed);
        }
        bucket
    }

    /// Counts per bucket, newest first; buckets without any count in the window are left out.
    pub fn newest_first(&self, now: Instant) -> impl Iterator<Item = [u32; KINDS]> + '_ {
        let newest = period(now);
        (0..BUCKETS as u32).filter_map(move |age| {
            let period = newest.checked_sub(age)?;
            let bucket = &self.buckets[period as usize % BUCKETS];
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
fn period(now: Instant) -> u32 {
    u32::try_from(clock::nanos(now) / BUCKET_NANOS + 1).unwrap_or(u32::MAX)
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
    fn what_a_thread_counts_alone_is_counted_like_the_rest() {
        let window = Window::<2>::default();
        let start = Instant::now();
        for seconds in [0, 0, 5, 5, 5] {
            window.add_own(0, start + Duration::from_secs(seconds));
            window.add(1, start + Duration::from_secs(seconds));
        }
        assert_eq!(window.sums(start + Duration::from_secs(5)), [5, 5]);
        assert_eq!(window.sums(start + Duration::from_millis(10_001)), [3, 3]);
        window.add_own(0, start + Duration::from_secs(10));
        assert_eq!(window.sums(start + Duration::from_secs(10)), [4, 3]);
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
