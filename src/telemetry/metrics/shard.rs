//! Numbers that many workers count and one scrape reads.
//!
//! Every worker adds to its own cache lines; a scrape sums the workers. So the data path shares no line and takes no lock. What is
//! counted with every request is an [`Own`], which the worker alone writes: an atomic addition costs twenty times as much as a plain
//! one, even on a line that no other core has. What a worker never used is never allocated: ten thousand routes cost ten thousand
//! pointers a worker.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// A value on cache lines of its own. 128 and not 64 bytes, for processors fetch lines in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Padded<T>(T);

/// A value that is made at its first use.
#[derive(Debug)]
pub struct Lazy<T>(OnceLock<Box<Padded<T>>>);

impl<T> Default for Lazy<T> {
    fn default() -> Self {
        Self(OnceLock::new())
    }
}

impl<T: Default> Lazy<T> {
    /// The value, made now if this is its first use.
    pub fn get(&self) -> &T {
        &self.0.get_or_init(Box::default).0
    }
    /// The value, if it was ever used.
    pub fn used(&self) -> Option<&T> {
        self.0.get().map(|boxed| &boxed.0)
    }
}

/// One shard for each worker, and one for all other threads.
#[derive(Debug)]
pub struct PerWorker<T> {
    workers: Box<[Lazy<T>]>,
    others: Lazy<T>,
}

impl<T: Default> PerWorker<T> {
    /// Shards for `workers` workers.
    pub fn new(workers: usize) -> Self {
        Self { workers: (0..workers).map(|_| Lazy::default()).collect(), others: Lazy::default() }
    }
    /// The shard of a worker. An index that is no worker's means the shard of all other threads.
    pub fn of(&self, worker: usize) -> &T {
        self.workers.get(worker).unwrap_or(&self.others).get()
    }
    /// All shards that were ever used.
    pub fn used(&self) -> impl Iterator<Item = &T> {
        self.workers.iter().chain([&self.others]).filter_map(Lazy::used)
    }
    /// Sum of a counter over all shards.
    pub fn sum(&self, counter: impl Fn(&T) -> &Counter) -> u64 {
        self.used().map(|shard| counter(shard).get()).sum()
    }
    /// Sum over all shards of a counter that each worker alone writes.
    pub fn sum_own(&self, counter: impl Fn(&T) -> &Own) -> u64 {
        self.used().fold(0, |sum, shard| sum.wrapping_add(counter(shard).get()))
    }
    /// Sum of a gauge over all shards. A connection may open on one worker and close on another, so single shards may be negative.
    pub fn level(&self, gauge: impl Fn(&T) -> &Level) -> i64 {
        self.used().map(|shard| gauge(shard).0.load(Relaxed)).sum::<i64>().max(0)
    }
}

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn one(&self) {
        self.add(1);
    }
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }
    /// What was counted.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A number that only its own worker's thread writes, and any thread reads. Were two to write it, counts would be lost.
#[derive(Debug, Default)]
pub struct Own(AtomicU64);

impl Own {
    /// Adds one.
    pub fn one(&self) {
        self.add(1);
    }
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }
    /// Takes one away.
    pub fn take(&self) {
        self.0.store(self.0.load(Relaxed).wrapping_sub(1), Relaxed);
    }
    /// What was counted.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A number that goes up and down.
#[derive(Debug, Default)]
pub struct Level(AtomicI64);

impl Level {
    /// One more.
    pub fn up(&self) {
        self.0.fetch_add(1, Relaxed);
    }
    /// One fewer.
    pub fn down(&self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// A fixed number of counters, made at their first use.
#[derive(Debug)]
pub struct Counters<const N: usize>(Lazy<CounterArray<N>>);

#[derive(Debug)]
struct CounterArray<const N: usize>([Counter; N]);

impl<const N: usize> Default for CounterArray<N> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Counter::default()))
    }
}

impl<const N: usize> Default for Counters<N> {
    fn default() -> Self {
        Self(Lazy::default())
    }
}

impl<const N: usize> Counters<N> {
    /// Adds one at `index`; an index beyond the end counts nowhere.
    pub fn one(&self, index: usize) {
        if let Some(counter) = self.0.get().0.get(index) {
            counter.one();
        }
    }
    /// Adds these counts to `sums`.
    pub fn add_to(&self, sums: &mut [u64; N]) {
        if let Some(CounterArray(counters)) = self.0.used() {
            for (sum, counter) in sums.iter_mut().zip(counters) {
                *sum += counter.get();
            }
        }
    }
}

/// Status codes a block of [`Statuses`] has counters for: one cache line pair.
const BLOCK: usize = 16;
/// First and last status code that is counted as itself.
const FIRST: u16 = 100;
const LAST: u16 = 599;
const BLOCKS: usize = (LAST - FIRST) as usize / BLOCK + 1;

/// Counters by HTTP status, in blocks that are made at their first use: most routes see three codes out of five hundred. Written by one
/// worker only.
#[derive(Debug)]
pub struct Statuses([Lazy<[Own; BLOCK]>; BLOCKS]);

impl Default for Statuses {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Lazy::default()))
    }
}

impl Statuses {
    /// Counts a status. Codes outside of 100–599, which HTTP does not have, count as the nearest one that it has.
    pub fn one(&self, status: u16) {
        let at = usize::from(status.clamp(FIRST, LAST) - FIRST);
        if let Some(counter) = self.0.get(at / BLOCK).and_then(|block| block.get().get(at % BLOCK)) {
            counter.one();
        }
    }
    /// Adds these counts to `sums`.
    pub fn add_to(&self, sums: &mut StatusSums) {
        for (block, sums) in self.0.iter().zip(&mut sums.0) {
            for (sum, counter) in sums.iter_mut().zip(block.used().into_iter().flatten()) {
                *sum += counter.get();
            }
        }
    }
}

/// Counts by status, summed over workers.
#[derive(Debug)]
pub struct StatusSums([[u64; BLOCK]; BLOCKS]);

impl Default for StatusSums {
    fn default() -> Self {
        Self([[0; BLOCK]; BLOCKS])
    }
}

impl StatusSums {
    /// Codes that were seen, with their counts.
    pub fn seen(&self) -> impl Iterator<Item = (usize, u64)> {
        self.0.iter().flatten().enumerate().filter(|(_, count)| **count > 0).map(|(at, count)| (at + usize::from(FIRST), *count))
    }
}

/// Upper bounds of the duration buckets, in seconds.
pub const BUCKETS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// The same in nanoseconds: a duration is compared as it is measured.
const BOUNDS: [u64; 14] = [
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
    30_000_000_000,
];

/// A worker's share of a duration histogram, written by it alone. The last bucket is what is longer than every bound.
#[derive(Debug)]
pub struct Durations {
    buckets: [Own; BUCKETS.len() + 1],
    nanoseconds: Own,
}

impl Default for Durations {
    fn default() -> Self {
        Self { buckets: std::array::from_fn(|_| Own::default()), nanoseconds: Own::default() }
    }
}

impl Durations {
    /// Takes one duration in.
    pub fn observe(&self, duration: Duration) {
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX >> 8);
        let at = BOUNDS.partition_point(|bound| *bound < nanoseconds);
        if let Some(bucket) = self.buckets.get(at) {
            bucket.one();
        }
        self.nanoseconds.add(nanoseconds);
    }
    /// Adds what was observed to `sums`.
    pub fn add_to(&self, sums: &mut DurationSums) {
        for (sum, bucket) in sums.buckets.iter_mut().zip(&self.buckets) {
            *sum += bucket.get();
        }
        sums.nanoseconds += u128::from(self.nanoseconds.get());
    }
}

/// A duration histogram, summed over workers.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct DurationSums {
    /// Observations in each bucket, not cumulated; the last is beyond every bound.
    pub buckets: [u64; BUCKETS.len() + 1],
    /// Sum of all observations.
    pub nanoseconds: u128,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_the_buckets_in_nanoseconds() {
        for (seconds, nanoseconds) in BUCKETS.iter().zip(BOUNDS) {
            assert_eq!(Duration::from_secs_f64(*seconds), Duration::from_nanos(nanoseconds));
        }
    }

    #[test]
    fn a_duration_on_a_bound_is_in_the_bucket_below_it() {
        let durations = Durations::default();
        durations.observe(Duration::from_millis(1));
        durations.observe(Duration::from_nanos(1_000_001));
        durations.observe(Duration::from_secs(30));
        durations.observe(Duration::from_secs(31));
        durations.observe(Duration::ZERO);
        let mut sums = DurationSums::default();
        durations.add_to(&mut sums);
        assert_eq!(sums.buckets, [2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
        assert_eq!(sums.nanoseconds, 61_002_000_001);
    }

    #[test]
    fn statuses_are_counted_as_themselves_and_impossible_ones_at_the_ends() {
        let statuses = Statuses::default();
        for status in [0, 99, 100, 200, 200, 599, 600, u16::MAX] {
            statuses.one(status);
        }
        let mut sums = StatusSums::default();
        statuses.add_to(&mut sums);
        assert_eq!(sums.seen().collect::<Vec<_>>(), [(100, 3), (200, 2), (599, 3)]);
    }

    #[test]
    fn every_status_has_its_own_counter() {
        let statuses = Statuses::default();
        (FIRST..=LAST).for_each(|status| statuses.one(status));
        let mut sums = StatusSums::default();
        statuses.add_to(&mut sums);
        assert!(sums.seen().map(|(status, _)| status).eq(100..=599));
        assert!(sums.seen().all(|(_, count)| count == 1));
    }

    #[test]
    fn shards_of_all_workers_and_of_other_threads_are_summed() {
        #[derive(Default)]
        struct Shard {
            count: Counter,
            level: Level,
        }
        let shards = PerWorker::<Shard>::new(2);
        assert_eq!(shards.used().count(), 0);
        for worker in [0, 1, 1, 7, usize::MAX] {
            shards.of(worker).count.one();
        }
        shards.of(0).level.up();
        shards.of(0).level.up();
        shards.of(1).level.down();
        assert_eq!(shards.sum(|shard| &shard.count), 5);
        assert_eq!(shards.level(|shard| &shard.level), 1);
        assert_eq!(shards.used().count(), 3);
    }

    #[test]
    fn shards_stand_on_lines_of_their_own() {
        let shards = PerWorker::<Counter>::new(2);
        let address = |worker| std::ptr::from_ref(shards.of(worker)) as usize;
        assert_eq!(address(0) % 128, 0);
        assert!(address(0).abs_diff(address(1)) >= 128);
    }
}
