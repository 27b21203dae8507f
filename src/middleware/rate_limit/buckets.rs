//! All local buckets of the process: a bounded table from a key's hash to its theoretical arrival time, `tat`.
//!
//! Keys are 128-bit hashes that already say which limit they belong to, so one table serves all limits, and a bucket stays over a
//! reload for as long as its limit keeps its identity. A bucket that is full again (`tat` in the past) equals one that does not
//! exist: its slot is free for the next key, and nothing has to be swept. At the bound, the bucket nearest to full among those that
//! stand where the newcomer may stand goes: a throttled key is the farthest from full, so it is not reset, and no request is refused
//! for lack of space.
//!
//! # Layout
//! A set is eight slots in two cache lines, eight tags and eight times. A key may stand in two sets that its hash names, and goes
//! into the first until that is half taken, then into the emptier one: a decision touches the lines of one set, seldom two, and of a table
//! that is nine tenths full one key in a hundred finds no free slot. (Mitzenmacher, "The power of two choices in randomized load
//! balancing", 1996.) Memory comes in segments, each when a key first needs it, and ends at 16 MB.
//!
//! # Why this is exact under parallel requests
//! The time of a slot moves by compare-and-swap, so each charge is made on the value it was decided on. Two bits of that word count the
//! slot's owners, so a swap that was decided for an earlier owner fails. Giving a slot to another key first replaces the time by [`MOVING`],
//! by compare-and-swap too: whoever meets it waits for the two stores that follow. A key enters under a lock that all requests
//! of that key share, and is looked for once more there, so it never has two slots. Known keys take no lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Instant;

/// Most keys per process.
pub const MAX_KEYS: usize = SEGMENTS * SETS * SLOTS;
const SLOTS: usize = 8;
/// Sets of a segment: 16 KiB, which is little to clear while a request waits.
const SETS: usize = 128;
/// As many as a million keys have room in.
const SEGMENTS: usize = 1_000_000 / (SETS * SLOTS);
/// Locks for keys that enter.
const DOORS: usize = 512;
/// A set takes its first choices up to here without a look at their second ones.
const HALF: usize = SLOTS / 2;

/// Bits of a tag that say how large the bucket is; the others are the key's.
const SCALE: u64 = 0xff;
/// Bits of a time word that count owners. A time has the other 62: a century of filling and 46 years of running.
const OWNERS: u64 = 0b11;
const OWNER_BITS: u32 = 2;
/// A time word while its slot is given to another key.
const MOVING: u64 = u64::MAX;
/// Looks at a slot that is moving before the thread lets others run.
const PATIENCE: u32 = 64;

/// The bounded table. One per process, shared by all snapshots.
pub struct Buckets {
    origin: Instant,
    segments: Box<[OnceLock<Box<[Set]>>]>,
    doors: Box<[Mutex<()>]>,
}

#[derive(Default)]
#[repr(align(128))]
struct Set {
    /// Bits of the key's hash, and the bucket's [`scale`]; 0 was never used.
    tags: [AtomicU64; SLOTS],
    /// When the bucket is full again, in nanoseconds since `origin`, and a count of owners.
    times: [AtomicU64; SLOTS],
}

/// Where a key may stand, and how it is known there.
#[derive(Clone, Copy)]
struct Place {
    sets: [usize; 2],
    /// Without the scale.
    tag: u64,
    door: usize,
}

/// A slot, and the two words of it.
#[derive(Clone, Copy)]
struct Slot<'a> {
    tag: &'a AtomicU64,
    time: &'a AtomicU64,
}

/// A slot that a key may take: the least goes first. Those that are full are below all others, the longest full first.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum Rank {
    Full(u64),
    /// How far from full: 1 is empty.
    Active(f64),
}

/// A set as a newcomer sees it.
struct Survey<'a> {
    /// Slots that are not free.
    taken: usize,
    /// The slot to take, with its time word; `None` if all are moving.
    best: Option<(Rank, Slot<'a>, u64)>,
}

/// What became of a try.
enum Tried {
    Decided(Result<u64, u64>),
    /// The slot went to another key meanwhile.
    Moved,
}

impl std::fmt::Debug for Buckets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Buckets")
    }
}

impl Default for Buckets {
    fn default() -> Self {
        Self::new(Instant::now())
    }
}

impl Buckets {
    /// Empty, with a clock that starts at `origin`.
    pub fn new(origin: Instant) -> Self {
        Self { origin, segments: (0..SEGMENTS).map(|_| OnceLock::new()).collect(), doors: (0..DOORS).map(|_| Mutex::new(())).collect() }
    }

    /// `now` in nanoseconds on this clock; 0 if it is before the origin.
    pub fn nanos(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.origin).as_nanos()).unwrap_or(u64::MAX)
    }

    /// Keys whose buckets are not full at `now`. Reads the whole table: for tests and benchmarks.
    pub fn active(&self, now: Instant) -> usize {
        let now = self.nanos(now);
        let sets = self.segments.iter().filter_map(OnceLock::get).flatten();
        sets.flat_map(|set| &set.times).filter(|time| time.load(Ordering::Relaxed) >> OWNER_BITS > now).count()
    }

    /// The bucket's `tat`; `None` if the key is not known.
    pub(super) fn get(&self, key: u128) -> Option<u64> {
        let place = Place::of(key);
        loop {
            let slot = self.find(place)?;
            let time = slot.settled();
            if slot.is(place.tag) && slot.time.load(Ordering::Acquire) == time {
                return Some(time >> OWNER_BITS);
            }
        }
    }

    /// Replaces the bucket's `tat` by what `charge` makes of it, atomically: `Ok` is the new one. `None` of `charge` is a refusal,
    /// which changes nothing: `Err` is the `tat` as it stands. A key that is not known has a `tat` of 0.
    ///
    /// `capacity` is the time from empty to full, and `now` the time at which buckets that are full can go.
    pub(super) fn update(&self, key: u128, capacity: u64, now: u64, charge: impl Fn(u64) -> Option<u64>) -> Result<u64, u64> {
        let place = Place::of(key);
        loop {
            let tried = match self.find(place) {
                Some(slot) => slot.update(place.tag, &charge),
                None => match charge(0) {
                    Some(tat) => self.enter(place, capacity, now, tat),
                    None => Tried::Decided(Err(0)),
                },
            };
            if let Tried::Decided(outcome) = tried {
                return outcome;
            }
        }
    }

    /// The slot that has the key's tag.
    fn find(&self, place: Place) -> Option<Slot<'_>> {
        place.sets.into_iter().find_map(|set| self.known_set(set)?.find(place.tag))
    }

    /// Gives the key a slot with `tat`, unless it has got one meanwhile.
    fn enter(&self, place: Place, capacity: u64, now: u64, tat: u64) -> Tried {
        let Some(door) = self.doors.get(place.door) else { return Tried::Moved };
        let _alone = door.lock().unwrap_or_else(PoisonError::into_inner);
        if self.find(place).is_some() {
            return Tried::Moved;
        }
        let [first, second] = place.sets.map(|set| self.set(set));
        loop {
            let Some((slot, time)) = choose(first, second, now) else {
                std::thread::yield_now();
                continue;
            };
            if slot.time.compare_exchange(time, MOVING, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                slot.tag.store(place.tag | scale(capacity), Ordering::Release);
                slot.time.store(word(tat, time.wrapping_add(1)), Ordering::Release);
                return Tried::Decided(Ok(tat));
            }
        }
    }

    /// The set at `index`, if its segment is there.
    fn known_set(&self, index: usize) -> Option<&Set> {
        self.segments.get(index / SETS)?.get()?.get(index % SETS)
    }

    /// The set at `index`.
    fn set(&self, index: usize) -> &Set {
        let segment = &self.segments[index / SETS % SEGMENTS];
        &segment.get_or_init(|| (0..SETS).map(|_| Set::default()).collect())[index % SETS]
    }
}

impl Place {
    fn of(key: u128) -> Self {
        let (high, low) = ((key >> 64) as u64, key as u64);
        let set = |bits: u64| (((bits & 0xffff_ffff) * (SEGMENTS * SETS) as u64) >> 32) as usize;
        // 0 is the tag of slots that were never used.
        let tag = (low & !SCALE).max(SCALE + 1);
        Self { sets: [set(high >> 32), set(high)], tag, door: high as usize % DOORS }
    }
}

impl Set {
    fn slots(&self) -> impl Iterator<Item = Slot<'_>> {
        self.tags.iter().zip(&self.times).map(|(tag, time)| Slot { tag, time })
    }

    fn find(&self, tag: u64) -> Option<Slot<'_>> {
        let index = self.tags.iter().position(|other| other.load(Ordering::Relaxed) & !SCALE == tag)?;
        Some(Slot { tag: self.tags.get(index)?, time: self.times.get(index)? })
    }

    /// What a newcomer finds at `now`.
    fn survey(&self, now: u64) -> Survey<'_> {
        let mut survey = Survey { taken: 0, best: None };
        for slot in self.slots() {
            let time = slot.time.load(Ordering::Relaxed);
            let rank = slot.rank(time, now);
            survey.taken += usize::from(!matches!(rank, Rank::Full(_)));
            if time != MOVING && survey.best.is_none_or(|(least, ..)| rank < least) {
                survey.best = Some((rank, slot, time));
            }
        }
        survey
    }
}

/// The slot for a newcomer, with its time word: in the set with fewer taken, and where none is free the one nearest to full.
/// `None` while all are moving.
fn choose<'a>(first: &'a Set, second: &'a Set, now: u64) -> Option<(Slot<'a>, u64)> {
    let mut chosen = first.survey(now);
    if chosen.taken >= HALF {
        let other = second.survey(now);
        let rank = |survey: &Survey<'_>| survey.best.map_or(Rank::Active(f64::INFINITY), |(rank, ..)| rank);
        if (other.taken, rank(&other)) < (chosen.taken, rank(&chosen)) {
            chosen = other;
        }
    }
    chosen.best.map(|(_, slot, time)| (slot, time))
}

impl Slot<'_> {
    fn is(&self, tag: u64) -> bool {
        self.tag.load(Ordering::Acquire) & !SCALE == tag
    }

    /// The time word, once nobody moves the slot.
    fn settled(&self) -> u64 {
        let mut looks = 0;
        loop {
            let time = self.time.load(Ordering::Acquire);
            if time != MOVING {
                return time;
            }
            looks += 1;
            if looks < PATIENCE { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
    }

    fn update(&self, tag: u64, charge: &impl Fn(u64) -> Option<u64>) -> Tried {
        loop {
            let time = self.settled();
            if !self.is(tag) {
                return Tried::Moved;
            }
            let tat = time >> OWNER_BITS;
            match charge(tat) {
                Some(next) => {
                    let new = word(next, time);
                    if self.time.compare_exchange(time, new, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                        return Tried::Decided(Ok(next));
                    }
                }
                // The tag was read after the time: if that is still the same, it was this key's.
                None if self.time.load(Ordering::Acquire) == time => return Tried::Decided(Err(tat)),
                None => {}
            }
        }
    }

    fn rank(&self, time: u64, now: u64) -> Rank {
        let tat = time >> OWNER_BITS;
        if tat <= now {
            return Rank::Full(tat);
        }
        Rank::Active((tat - now) as f64 / capacity(self.tag.load(Ordering::Relaxed) & SCALE))
    }
}

/// A time word with the owners of another.
fn word(tat: u64, owners: u64) -> u64 {
    // One less than what `MOVING` would be.
    tat.min((MOVING >> OWNER_BITS) - 1) << OWNER_BITS | owners & OWNERS
}

/// The bucket's time from empty to full in eight bits: its binary logarithm, plus one, and two bits of fraction.
fn scale(capacity: u64) -> u64 {
    let capacity = capacity.clamp(4, u64::MAX >> OWNER_BITS);
    let exponent = u64::from(capacity.ilog2());
    (exponent + 1) << 2 | capacity >> (exponent - 2) & 0b11
}

/// What [`scale`] was made of, to a quarter.
fn capacity(scale: u64) -> f64 {
    (4 + (scale & 0b11)) as f64 * 2_f64.powi((scale >> 2) as i32 - 3)
}

#[cfg(test)]
#[path = "buckets_tests.rs"]
mod tests;
