//! Consistent hashing by a Maglev table: the same key on the same endpoint, whatever the order in the list or the health of others.
//!
//! After "Maglev: A Fast and Reliable Software Network Load Balancer" (NSDI 2016), section 3.4, with shares by weight:
//! in round r an endpoint takes a slot when `r · weight` has passed the next multiple of the greatest weight.

use std::sync::{Arc, Mutex, PoisonError};

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::{Ask, Candidates, Usable, random};

/// Slots: a prime, over 65 for each of 1,000 endpoints, so that shares are exact to about 1.5 %.
pub const SLOTS: usize = 65_537;
/// Marks an endpoint that is not usable.
const NOWHERE: u32 = u32::MAX;
/// After this many slots that do not fit, look whether any endpoint does before going on.
const PATIENCE: u64 = 64;
/// Most slots that are drawn before all are gone through.
const DRAWS: u64 = 1024;

/// Hash of a key for [`Ask::hash`]: XXH3-64, seed 0, so that all gateways and restarts agree.
pub fn hash_key(key: &[u8]) -> u64 {
    xxh3_64(key)
}

/// Which endpoint each slot belongs to.
#[derive(Debug)]
pub struct Table {
    /// Endpoints with weight above 0 by id, sorted.
    members: Vec<(Arc<str>, u32)>,
    /// Index into `members`.
    slots: Vec<u16>,
}

impl Table {
    /// The table of some endpoints, in any order. Those of weight 0 get no slot.
    pub fn new(endpoints: &[(Arc<str>, u32)]) -> Self {
        let members = sorted(endpoints);
        let slots = fill(&members);
        Self { members, slots }
    }
}

fn sorted(endpoints: &[(Arc<str>, u32)]) -> Vec<(Arc<str>, u32)> {
    let mut members: Vec<_> = endpoints.iter().filter(|(_, weight)| *weight > 0).cloned().collect();
    members.sort();
    members.truncate(usize::from(u16::MAX));
    members
}

fn fill(members: &[(Arc<str>, u32)]) -> Vec<u16> {
    const EMPTY: u16 = u16::MAX;
    struct Turns {
        next: usize,
        skip: usize,
        due: u64,
    }
    let greatest = members.iter().map(|(_, weight)| u64::from(*weight)).max().unwrap_or(0);
    let size = SLOTS as u64;
    let mut turns: Vec<Turns> = members
        .iter()
        .map(|(id, _)| Turns {
            next: (xxh3_64(id.as_bytes()) % size) as usize,
            skip: (xxh3_64_with_seed(id.as_bytes(), 1) % (size - 1)) as usize + 1,
            due: 0,
        })
        .collect();
    let mut slots = vec![EMPTY; SLOTS];
    let mut left = if members.is_empty() { 0 } else { SLOTS };
    let mut round = 0;
    while left > 0 {
        round += 1;
        for (member, ((_, weight), turn)) in (0u16..).zip(members.iter().zip(&mut turns)) {
            if left == 0 {
                break;
            }
            if round * u64::from(*weight) <= turn.due {
                continue;
            }
            turn.due += greatest;
            // Ends: the skip walks through all slots, as their number is prime, and one is empty.
            while slots[turn.next] != EMPTY {
                turn.next = (turn.next + turn.skip) % SLOTS;
            }
            slots[turn.next] = member;
            left -= 1;
        }
    }
    slots
}

/// Keeps the last table, as building one takes a millisecond and most changes do not touch membership.
#[derive(Clone, Debug, Default)]
pub struct TableCache(Arc<Mutex<Option<Arc<Table>>>>);

impl TableCache {
    /// The table of these endpoints.
    pub fn table(&self, endpoints: &[(Arc<str>, u32)]) -> Arc<Table> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = held.as_ref().filter(|table| table.members == sorted(endpoints)) {
            return table.clone();
        }
        let table = Arc::new(Table::new(endpoints));
        *held = Some(table.clone());
        table
    }
}

/// A table seen through the usable endpoints.
#[derive(Debug)]
pub struct Ring {
    table: Arc<Table>,
    /// For each member of the table its position among the usable ones, or [`NOWHERE`].
    positions: Vec<u32>,
    /// For each position the bound on its load: `c · weight / Σ weights`.
    bounds: Option<Vec<f64>>,
    by_weight: random::Shares,
}

impl Ring {
    /// A ring over `usable`, which are members of `table`.
    pub fn new(usable: &[Usable<'_>], table: &Arc<Table>, bounded_load: Option<f64>) -> Self {
        let mut positions = vec![NOWHERE; table.members.len()];
        for (position, endpoint) in usable.iter().enumerate() {
            if let Ok(member) = table.members.binary_search_by(|(id, _)| id.cmp(endpoint.id))
                && let Ok(position) = u32::try_from(position)
            {
                positions[member] = position;
            }
        }
        let total: f64 = usable.iter().map(|endpoint| f64::from(endpoint.weight)).sum();
        let bounds = bounded_load.map(|factor| usable.iter().map(|endpoint| factor * f64::from(endpoint.weight) / total).collect());
        let by_weight = random::Shares::new(usable, |endpoint| u64::from(endpoint.weight));
        Self { table: table.clone(), positions, bounds, by_weight }
    }

    /// The position of the key's slot, or of the next one drawn by the key that fits. Without a key a random one by weight.
    pub fn pick(&self, candidates: &impl Candidates, ask: &Ask<'_>) -> Option<usize> {
        let Some(key) = (ask.hash)() else {
            return self.by_weight.pick(ask.random, candidates);
        };
        let within = |position: usize| self.within_bound(position, candidates, ask.in_flight) && candidates.fits(position);
        // An endpoint over its bound is better than none.
        self.walk(key, &within).or_else(|| self.bounds.is_some().then(|| self.walk(key, &|p| candidates.fits(p))).flatten())
    }

    fn within_bound(&self, position: usize, candidates: &impl Candidates, in_flight: u32) -> bool {
        let Some(share) = self.bounds.as_ref().and_then(|bounds| bounds.get(position)) else {
            return true;
        };
        // The tolerance keeps 1.1 · 10 / 11 from being 2.
        let bound = (share * (f64::from(in_flight) + 1.0) - 1e-9).ceil();
        f64::from(candidates.in_flight(position)) < bound
    }

    /// The key's slot; while that does not fit, others drawn by the key. Each draw is like a new key, so whoever is out leaves its keys to
    /// the rest by their shares. (The slot behind is no such draw: neighbours in the table go together.)
    fn walk(&self, key: u64, fits: &dyn Fn(usize) -> bool) -> Option<usize> {
        let position = |slot: u64| {
            let member = self.table.slots.get((slot % SLOTS as u64) as usize)?;
            let position = self.positions.get(usize::from(*member)).copied().filter(|position| *position != NOWHERE)?;
            Some(position as usize).filter(|position| fits(*position))
        };
        for draw in 0..DRAWS {
            let found = position(if draw == 0 { key } else { mixed(key, draw) });
            if found.is_some() {
                return found;
            }
            if draw == PATIENCE && !self.positions.iter().any(|position| *position != NOWHERE && fits(*position as usize)) {
                return None;
            }
        }
        // So few fit that draws miss them.
        (0..SLOTS as u64).find_map(|step| position((key % SLOTS as u64) + step))
    }
}

/// The `draw`-th number that follows from `key`: the output function of SplitMix64 (Steele, Lea and Flood 2014).
fn mixed(key: u64, draw: u64) -> u64 {
    let mut z = key.wrapping_add(draw.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::balance::testing::{Fake, ask, histogram, ids, usable};

    fn owners(all: &[(Arc<str>, u32)]) -> Vec<Arc<str>> {
        let table = Table::new(all);
        table.slots.iter().map(|member| table.members[usize::from(*member)].0.clone()).collect()
    }

    fn ring(weights: &[u32], bounded_load: Option<f64>) -> Ring {
        let all = ids(weights);
        Ring::new(&usable(&all), &Arc::new(Table::new(&all)), bounded_load)
    }

    fn pick(ring: &Ring, key: u64, fake: &Fake) -> Option<usize> {
        ring.pick(fake, &Ask { hash: &|| Some(key), in_flight: fake.in_flight.iter().sum(), ..ask(0) })
    }

    #[test]
    fn the_key_hash_is_xxh3_with_seed_zero() {
        // Test vector of the XXH3 specification: the empty input.
        assert_eq!(hash_key(b""), 0x2D06_8005_38D3_94C2);
    }

    #[test]
    fn shares_follow_weights() {
        for weights in [vec![1u32; 10], vec![5, 1, 1], vec![1000, 1, 500], vec![3; 1000]] {
            let all = ids(&weights);
            let table = Table::new(&all);
            let counts = histogram(weights.len(), table.slots.iter().map(|member| usize::from(*member)));
            let total: u32 = weights.iter().sum();
            for (count, (_, weight)) in counts.iter().zip(&table.members) {
                let ideal = SLOTS as f64 * f64::from(*weight) / f64::from(total);
                assert!((f64::from(*count) - ideal).abs() <= 2.0, "{count} slots instead of {ideal}");
            }
        }
    }

    #[test]
    fn order_in_the_list_changes_nothing() {
        let mut all = ids(&[1, 2, 3, 4]);
        let table = owners(&all);
        all.reverse();
        assert!(owners(&all) == table);
    }

    #[test]
    fn weight_zero_gets_no_slot() {
        let all = ids(&[1, 0, 1]);
        assert!(owners(&all).iter().all(|owner| **owner != *all[1].0));
    }

    #[test]
    fn a_change_of_membership_moves_few_keys_of_others() {
        for n in [2usize, 3, 10, 100] {
            let more = ids(&vec![1; n + 1]);
            let fewer = &more[..n];
            let (with, without) = (owners(&more), owners(fewer));
            let gone = &more[n].0;
            let moved = with.iter().zip(&without).filter(|(with, without)| with != without).count();
            let of_others = with.iter().zip(&without).filter(|(with, without)| with != without && *with != gone).count();
            let share = SLOTS / (n + 1);
            assert!(moved - of_others <= share + 1, "the one that left or joined moves its share");
            // The paper's figures: a few percent of the others' slots move besides.
            assert!(of_others * 100 / SLOTS <= 5, "{of_others} slots of others moved, n = {n}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn a_change_of_membership_moves_few_keys_of_others_whatever_the_weights(
            weights in prop::collection::vec(1u32..=1000, 2..60),
            gone in any::<prop::sample::Index>(),
        ) {
            let more = ids(&weights);
            let gone = &more[gone.index(more.len())];
            let fewer: Vec<_> = more.iter().filter(|(id, _)| *id != gone.0).cloned().collect();
            let (with, without) = (owners(&more), owners(&fewer));
            let share = SLOTS as f64 * f64::from(gone.1) / f64::from(weights.iter().sum::<u32>());
            let its = with.iter().filter(|owner| **owner == gone.0).count();
            prop_assert!((its as f64 - share).abs() <= 2.0, "its keys are its share: {its} of {share}");
            let of_others = with.iter().zip(&without).filter(|(with, without)| with != without && **with != gone.0).count();
            prop_assert!(of_others * 50 <= SLOTS, "{of_others} slots of others moved");
        }
    }

    #[test]
    fn health_moves_only_the_keys_of_what_is_out_and_spreads_them() {
        let ring = ring(&[1; 10], None);
        let out = Fake { out: vec![4], ..Fake::default() };
        let mut heirs = vec![0u32; 10];
        for key in 0..20_000u64 {
            let key = key.wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let (before, after) = (pick(&ring, key, &Fake::default()).expect("fits"), pick(&ring, key, &out).expect("fits"));
            if before == 4 {
                heirs[after] += 1;
            } else {
                assert_eq!(before, after);
            }
        }
        assert_eq!(heirs[4], 0);
        assert!(heirs.iter().enumerate().all(|(position, count)| position == 4 || *count > 120), "{heirs:?}");
    }

    #[test]
    fn endpoints_that_are_not_usable_are_passed_over_like_full_ones() {
        let all = ids(&[1; 5]);
        let table = Arc::new(Table::new(&all));
        let reduced: Vec<_> = usable(&all).into_iter().filter(|endpoint| **endpoint.id != *all[2].0).collect();
        let (whole, reduced) = (Ring::new(&usable(&all), &table, None), Ring::new(&reduced, &table, None));
        let out = Fake { out: vec![2], ..Fake::default() };
        for key in (0..5_000u64).map(|key| key * 7_919) {
            let expected = pick(&whole, key, &out).map(|position| if position > 2 { position - 1 } else { position });
            assert_eq!(pick(&reduced, key, &Fake::default()), expected);
        }
    }

    #[test]
    fn nothing_fits() {
        assert_eq!(pick(&ring(&[1, 1], None), 5, &Fake { out: vec![0, 1], ..Fake::default() }), None);
        assert_eq!(pick(&ring(&[], None), 5, &Fake::default()), None);
    }

    #[test]
    fn without_a_key_it_is_random_by_weight() {
        let ring = ring(&[3, 1], None);
        let mut seed = 5;
        let picks = (0..40_000).filter_map(|_| ring.pick(&Fake::default(), &ask(crate::balance::testing::splitmix(&mut seed))));
        assert!(histogram(2, picks)[0].abs_diff(30_000) < 500);
    }

    #[test]
    fn bounded_load_sends_the_overflow_of_a_hot_key_elsewhere() {
        let ring = ring(&[1; 4], Some(1.25));
        let mut load = Fake { in_flight: vec![0; 4], ..Fake::default() };
        for _ in 0..100 {
            let position = pick(&ring, 42, &load).expect("fits");
            let total: u32 = load.in_flight.iter().sum();
            load.in_flight[position] += 1;
            assert!(f64::from(load.in_flight[position]) <= (1.25 * f64::from(total + 1) / 4.0).ceil());
        }
        assert!(load.in_flight.iter().all(|count| *count <= 32), "{load:?}");
    }

    #[test]
    fn a_load_bound_never_refuses_what_has_room() {
        let ring = ring(&[1; 2], Some(1.01));
        let overloaded = Fake { in_flight: vec![50, 0], out: vec![1], ..Fake::default() };
        assert_eq!(pick(&ring, 42, &overloaded), Some(0));
    }

    #[test]
    fn the_table_is_built_again_only_for_other_members() {
        let cache = TableCache::default();
        let (all, more) = (ids(&[1, 1]), ids(&[1, 1, 1]));
        let first = cache.table(&all);
        assert!(Arc::ptr_eq(&first, &cache.table(&all)));
        assert!(!Arc::ptr_eq(&first, &cache.table(&more)));
    }
}
