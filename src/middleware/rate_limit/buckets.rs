//! All local buckets of the process: a bounded map from a key's hash to its theoretical arrival time.
//!
//! Keys are 128-bit hashes that already say which limit they belong to, so one map serves all limits, and a bucket
//! stays over a reload for as long as its limit keeps its identity. A bucket that is full again equals one that does not
//! exist and is forgotten. At the bound, the bucket of the newcomer's partition that is nearest to full goes: a
//! throttled key is the farthest from full, so it is not reset, and no request is refused for lack of space.

use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;

/// Most keys per process.
pub const MAX_KEYS: usize = 1_000_000;
/// Each part is bounded by itself, so that the search for a bucket to forget sees about 500 random ones, not a million.
const PARTITIONS: usize = 2048;
const KEYS_PER_PARTITION: usize = MAX_KEYS / PARTITIONS;

/// The bounded map. One per process, shared by all snapshots.
#[derive(Debug)]
pub struct Buckets {
    origin: Instant,
    partitions: Box<[Partition]>,
}

#[derive(Debug, Default)]
struct Partition {
    map: DashMap<u128, Bucket, BuildHasherDefault<Identity>>,
    /// Places taken in `map`, reserved before they are filled: the bound is never passed, not even for a moment.
    taken: AtomicUsize,
}

#[derive(Debug)]
struct Bucket {
    /// When it is full again, in nanoseconds since `origin`.
    tat: AtomicU64,
    /// Nanoseconds from empty to full.
    capacity: u64,
}

impl Default for Buckets {
    fn default() -> Self {
        Self::new(Instant::now())
    }
}

impl Buckets {
    /// Empty, with a clock that starts at `origin`.
    pub fn new(origin: Instant) -> Self {
        let partition =
            || Partition { map: DashMap::with_hasher_and_shard_amount(BuildHasherDefault::default(), 2), taken: AtomicUsize::new(0) };
        Self { origin, partitions: (0..PARTITIONS).map(|_| partition()).collect() }
    }

    /// `now` in nanoseconds on this clock; 0 if it is before the origin.
    pub fn nanos(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.origin).as_nanos()).unwrap_or(u64::MAX)
    }

    /// Keys in memory.
    pub fn len(&self) -> usize {
        self.partitions.iter().map(|partition| partition.taken.load(Ordering::Relaxed)).sum()
    }

    /// Whether no key is in memory.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets full buckets in one of [`Buckets::parts`] parts: short enough to run between other work.
    pub fn sweep(&self, part: usize, now: Instant) {
        let now = self.nanos(now);
        if let Some(partition) = self.partitions.get(part) {
            partition.forget(|_, bucket| bucket.tat.load(Ordering::Relaxed) <= now);
        }
    }

    /// Number of parts for [`Buckets::sweep`].
    pub fn parts(&self) -> usize {
        self.partitions.len()
    }

    fn partition(&self, key: u128) -> &Partition {
        // The upper half of the hash; the map inside uses the lower one.
        &self.partitions[(key >> 64) as usize % PARTITIONS]
    }

    /// The bucket's `tat`.
    pub(super) fn get(&self, key: u128) -> Option<u64> {
        self.partition(key).map.get(&key).map(|bucket| bucket.tat.load(Ordering::Relaxed))
    }

    /// Replaces the bucket's `tat` by what `decide` makes of it, atomically; an error of `decide` changes nothing.
    pub(super) fn update<T, E>(
        &self,
        key: u128,
        capacity: u64,
        now: u64,
        decide: impl Fn(Option<u64>) -> Result<(T, u64), E>,
    ) -> Result<T, E> {
        let partition = self.partition(key);
        if let Some(bucket) = partition.map.get(&key) {
            return bucket.update(&decide);
        }
        partition.reserve(now);
        match partition.map.entry(key) {
            Entry::Occupied(bucket) => {
                partition.taken.fetch_sub(1, Ordering::Relaxed);
                bucket.get().update(&decide)
            }
            Entry::Vacant(place) => match decide(None) {
                Ok((outcome, tat)) => {
                    place.insert(Bucket { tat: AtomicU64::new(tat), capacity });
                    Ok(outcome)
                }
                Err(refusal) => {
                    partition.taken.fetch_sub(1, Ordering::Relaxed);
                    Err(refusal)
                }
            },
        }
    }
}

impl Bucket {
    fn update<T, E>(&self, decide: &impl Fn(Option<u64>) -> Result<(T, u64), E>) -> Result<T, E> {
        let mut tat = self.tat.load(Ordering::Acquire);
        loop {
            let (outcome, next) = decide(Some(tat))?;
            match self.tat.compare_exchange_weak(tat, next, Ordering::Release, Ordering::Acquire) {
                Ok(_) => return Ok(outcome),
                Err(other) => tat = other,
            }
        }
    }

    /// Distance from full: 0 is full, 1 is empty.
    fn distance(&self, now: u64) -> f64 {
        self.tat.load(Ordering::Relaxed).saturating_sub(now) as f64 / self.capacity.max(1) as f64
    }
}

impl Partition {
    /// Takes a place for one more key, at the bound by forgetting one.
    fn reserve(&self, now: u64) {
        loop {
            let place = |taken| (taken < KEYS_PER_PARTITION).then_some(taken + 1);
            if self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, place).is_ok() {
                return;
            }
            self.make_room(now);
        }
    }

    /// Forgets all full buckets, which makes room for many; if there is none, the one nearest to full.
    fn make_room(&self, now: u64) {
        let mut nearest: Option<(u128, f64)> = None;
        let forgotten = self.forget(|key, bucket| {
            let distance = bucket.distance(now);
            if nearest.is_none_or(|(_, least)| distance < least) {
                nearest = Some((key, distance));
            }
            distance == 0.0
        });
        if forgotten > 0 {
            return;
        }
        match nearest {
            Some((key, _)) => {
                if self.map.remove(&key).is_some() {
                    self.taken.fetch_sub(1, Ordering::Relaxed);
                }
            }
            // All places are reserved and not yet filled.
            None => std::hint::spin_loop(),
        }
    }

    /// Forgets the buckets that `forget` picks; how many.
    fn forget(&self, mut forget: impl FnMut(u128, &Bucket) -> bool) -> usize {
        let mut forgotten = 0;
        self.map.retain(|key, bucket| {
            let goes = forget(*key, bucket);
            forgotten += usize::from(goes);
            !goes
        });
        self.taken.fetch_sub(forgotten, Ordering::Relaxed);
        forgotten
    }
}

/// Passes a key's lower half on: keys are hashes already.
#[derive(Clone, Copy, Debug, Default)]
struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
    fn write_u128(&mut self, key: u128) {
        self.0 = key as u64;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn key(n: u64) -> u128 {
        let half = |salt: u64| u128::from(xxhash_rust::xxh3::xxh3_64_with_seed(&n.to_le_bytes(), salt));
        half(1) << 64 | half(2)
    }

    fn set(buckets: &Buckets, key: u128, now: u64, tat: u64) {
        buckets.update::<(), ()>(key, 100 * SECOND, now, |_| Ok(((), tat))).unwrap();
    }

    #[test]
    fn a_full_bucket_is_forgotten_and_others_stay() {
        let origin = Instant::now();
        let buckets = Buckets::new(origin);
        for n in 0..1_000 {
            set(&buckets, key(n), 0, if n % 2 == 0 { SECOND } else { 3 * SECOND });
        }
        assert_eq!(buckets.len(), 1_000);
        for part in 0..buckets.parts() {
            buckets.sweep(part, origin + Duration::from_secs(1));
        }
        assert_eq!(buckets.len(), 500);
        assert_eq!(buckets.get(key(1)), Some(3 * SECOND));
        assert_eq!(buckets.get(key(2)), None);
    }

    #[test]
    fn a_decision_that_fails_leaves_nothing_behind() {
        let buckets = Buckets::default();
        assert_eq!(buckets.update(key(1), SECOND, 0, |_| Err::<((), u64), _>("no")), Err("no"));
        assert!(buckets.is_empty() && buckets.get(key(1)).is_none());
    }

    #[test]
    fn a_flood_of_new_keys_is_bounded_and_resets_no_throttled_one() {
        let buckets = Buckets::default();
        // Empty buckets, a hundred seconds from full, all over the map.
        for n in 0..5_000 {
            set(&buckets, key(n), 0, 100 * SECOND);
        }
        // More active keys than there is room for, each with one request of a hundred.
        for n in 5_000..1_200_000 {
            set(&buckets, key(n), 0, SECOND + n);
        }
        assert!(buckets.len() <= MAX_KEYS, "{}", buckets.len());
        assert!(buckets.len() > MAX_KEYS * 9 / 10, "{}", buckets.len());
        for n in 0..5_000 {
            assert_eq!(buckets.get(key(n)), Some(100 * SECOND), "throttled key {n} was reset");
        }
    }

    #[test]
    fn parallel_inserts_never_pass_the_bound_and_the_count_stays_right() {
        let buckets = Buckets::default();
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let buckets = &buckets;
                // All in one partition; half of the keys are those of another thread.
                scope.spawn(move || (0..2_000).for_each(|n| set(buckets, u128::from(thread / 2 * 2_000 + n), 0, SECOND)));
            }
        });
        let partition = buckets.partition(0);
        assert_eq!(partition.map.len(), KEYS_PER_PARTITION);
        assert_eq!(partition.taken.load(Ordering::Relaxed), KEYS_PER_PARTITION);
    }
}
