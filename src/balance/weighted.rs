//! Smooth weighted round robin, as nginx has it: each pick adds its weight to every endpoint's score, takes the highest
//! (first written wins ties), and subtracts the sum of weights from it. 5, 1, 1 give A A B A C A A.
//!
//! The textbook form touches every endpoint per pick. Here endpoints of equal weight form a group: all in a group gain the same,
//! so one number per group stands for all additions, and a heap keeps the group's best on top. A pick costs
//! O(distinct weights + log n) and gives exactly the textbook's sequence, also with scores carried over from another set.

use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Candidates, Usable};

/// Scores of endpoints by id: what goes on when the set changes.
pub type Scores = HashMap<Arc<str>, i64>;

/// Gains are folded into the scores before they come near the end of `i64`.
const FOLD_AT: i64 = 1 << 60;

/// Running scores of a set of endpoints.
#[derive(Debug)]
pub struct Smooth {
    ids: Vec<Arc<str>>,
    /// Scores of endpoints that are not usable now, frozen until they are back.
    parked: Vec<(Arc<str>, i64)>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    groups: Vec<Group>,
    total: i64,
    /// Entries that did not fit, during a pick.
    skipped: Vec<(usize, Entry)>,
}

#[derive(Debug)]
struct Group {
    weight: i64,
    /// What every member gained since its entry was made.
    gained: i64,
    members: BinaryHeap<Entry>,
}

/// An endpoint's score, less its group's gain. The greatest has the highest score; of equal ones, the first written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    score: i64,
    position: usize,
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.score.cmp(&other.score).then(other.position.cmp(&self.position))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Smooth {
    /// Scores for `usable`, going on from `before`; of endpoints not in `all` the scores are forgotten.
    pub fn new(usable: &[Usable<'_>], all: &[(Arc<str>, u32)], mut before: Scores) -> Self {
        let mut groups: BTreeMap<i64, Vec<Entry>> = BTreeMap::new();
        for (position, endpoint) in usable.iter().enumerate() {
            let weight = i64::try_from(endpoint.share()).unwrap_or(i64::MAX);
            groups.entry(weight).or_default().push(Entry { score: before.remove(endpoint.id).unwrap_or(0), position });
        }
        let parked = all.iter().filter_map(|(id, _)| before.remove_entry(id)).collect();
        let total = groups.iter().map(|(weight, members)| weight * members.len() as i64).sum();
        let groups = groups.into_iter().map(|(weight, members)| Group { weight, gained: 0, members: members.into() }).collect();
        Self {
            ids: usable.iter().map(|endpoint| endpoint.id.clone()).collect(),
            parked,
            state: Mutex::new(State { groups, total, skipped: Vec::with_capacity(usable.len()) }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All scores, for the set that follows this one.
    pub fn scores(&self) -> Scores {
        let state = self.lock();
        let entries = state.groups.iter().flat_map(|group| group.members.iter().map(|entry| (entry.position, entry.score + group.gained)));
        let current = entries.filter_map(|(position, score)| Some((self.ids.get(position)?.clone(), score)));
        current.chain(self.parked.iter().cloned()).collect()
    }

    /// The position with the highest score among those that fit. Those that do not take no part in this pick:
    /// they gain nothing, so that they do not come back with a burst.
    pub fn pick(&self, candidates: &impl Candidates) -> Option<usize> {
        self.lock().pick(candidates)
    }
}

impl State {
    fn pick(&mut self, candidates: &impl Candidates) -> Option<usize> {
        let mut total = self.total;
        let mut best: Option<(usize, Entry)> = None;
        for (number, group) in self.groups.iter_mut().enumerate() {
            group.gain();
            while let Some(top) = group.members.peek().copied() {
                let standing = Entry { score: top.score + group.gained, position: top.position };
                if best.is_some_and(|(_, best)| standing < best) {
                    break;
                }
                if candidates.fits(top.position) {
                    best = Some((number, standing));
                    break;
                }
                group.members.pop();
                total -= group.weight;
                self.skipped.push((number, Entry { score: top.score - group.weight, position: top.position }));
            }
        }
        if let Some((number, _)) = best
            && let Some(mut top) = self.groups.get_mut(number).and_then(|group| group.members.peek_mut())
        {
            top.score -= total;
        }
        for (number, entry) in self.skipped.drain(..) {
            if let Some(group) = self.groups.get_mut(number) {
                group.members.push(entry);
            }
        }
        best.map(|(_, entry)| entry.position)
    }
}

impl Group {
    /// Adds the weight to every member's score.
    fn gain(&mut self) {
        self.gained += self.weight;
        if self.gained > FOLD_AT {
            let gained = std::mem::take(&mut self.gained);
            self.members = self.members.drain().map(|entry| Entry { score: entry.score + gained, ..entry }).collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::balance::testing::{Fake, histogram, ids, usable};

    fn smooth(weights: &[u32]) -> Smooth {
        let all = ids(weights);
        Smooth::new(&usable(&all), &all, Scores::new())
    }

    fn letters(smooth: &Smooth, picks: usize) -> String {
        (0..picks).filter_map(|_| smooth.pick(&Fake::default())).map(|position| char::from(b'A' + position as u8)).collect()
    }

    /// The textbook algorithm.
    fn textbook(weights: &[u32], picks: usize) -> Vec<usize> {
        let mut scores = vec![0i64; weights.len()];
        let total: i64 = weights.iter().map(|w| i64::from(*w)).sum();
        (0..picks)
            .map(|_| {
                scores.iter_mut().zip(weights).for_each(|(score, weight)| *score += i64::from(*weight));
                let highest = scores.iter().copied().max().unwrap_or(0);
                let best = scores.iter().position(|score| *score == highest).unwrap_or(0);
                scores[best] -= total;
                best
            })
            .collect()
    }

    #[test]
    fn the_known_sequence() {
        assert_eq!(letters(&smooth(&[5, 1, 1]), 14), "AABACAAAABACAA");
        assert_eq!(letters(&smooth(&[1, 1, 1]), 6), "ABCABC");
    }

    #[test]
    fn a_full_endpoint_leaves_the_others_their_proportion() {
        let smooth = smooth(&[5, 2, 1]);
        let full = Fake { out: vec![0], ..Fake::default() };
        assert_eq!(histogram(3, (0..300).filter_map(|_| smooth.pick(&full))), [0, 200, 100]);
        // And it does not come back with a burst.
        assert!(letters(&smooth, 8).matches('A').count() <= 6);
    }

    #[test]
    fn nothing_fits_and_nothing_changes() {
        let smooth = smooth(&[5, 1, 1]);
        let full = Fake { out: vec![0, 1, 2], ..Fake::default() };
        (0..10).for_each(|_| assert_eq!(smooth.pick(&full), None));
        assert_eq!(letters(&smooth, 7), "AABACAA");
    }

    #[test]
    fn scores_go_on_when_the_set_changes() {
        let all = ids(&[5, 1, 1]);
        let whole = Smooth::new(&usable(&all), &all, Scores::new());
        assert_eq!(letters(&whole, 3), "AAB");
        let same = Smooth::new(&usable(&all), &all, whole.scores());
        assert_eq!(letters(&same, 4), "ACAA");
        // While B is away, its score waits.
        let without: Vec<_> = usable(&all).into_iter().filter(|endpoint| **endpoint.id != *all[1].0).collect();
        let reduced = Smooth::new(&without, &all, Smooth::new(&usable(&all), &all, whole.scores()).scores());
        let frozen = reduced.scores()[&all[1].0];
        reduced.pick(&Fake::default());
        assert_eq!(reduced.scores()[&all[1].0], frozen);
    }

    #[test]
    fn gains_are_folded_without_changing_the_sequence() {
        let smooth = smooth(&[5, 1, 1]);
        for group in &mut smooth.lock().groups {
            let shift = FOLD_AT - 2_000;
            group.gained += shift;
            group.members = group.members.drain().map(|entry| Entry { score: entry.score - shift, ..entry }).collect();
        }
        assert_eq!(letters(&smooth, 14), "AABACAAAABACAA");
    }

    proptest! {
        #[test]
        fn equals_the_textbook(weights in prop::collection::vec(1u32..=20, 1..12)) {
            let smooth = smooth(&weights);
            let picks: Vec<_> = (0..300).filter_map(|_| smooth.pick(&Fake::default())).collect();
            prop_assert_eq!(picks, textbook(&weights, 300));
        }

        #[test]
        fn a_cycle_gives_each_exactly_its_weight(weights in prop::collection::vec(0u32..=1000, 1..8)) {
            prop_assume!(weights.iter().any(|weight| *weight > 0));
            let all = ids(&weights);
            let positive: Vec<u32> = weights.iter().copied().filter(|weight| *weight > 0).collect();
            let smooth = Smooth::new(&usable(&all), &all, Scores::new());
            let cycle = positive.iter().sum::<u32>() as usize;
            prop_assert_eq!(histogram(positive.len(), (0..cycle).filter_map(|_| smooth.pick(&Fake::default()))), positive);
        }

        #[test]
        fn no_one_waits_longer_than_a_share_and_one(weights in prop::collection::vec(1u32..=50, 2..8)) {
            let smooth = smooth(&weights);
            let total: u32 = weights.iter().sum();
            let picks: Vec<_> = (0..2 * total as usize).filter_map(|_| smooth.pick(&Fake::default())).collect();
            for (position, weight) in weights.iter().enumerate() {
                // In any prefix the count is within the number of endpoints of the ideal one: smoothness.
                let mut count = 0f64;
                for (n, pick) in picks.iter().enumerate() {
                    count += f64::from(u8::from(*pick == position));
                    let ideal = (n + 1) as f64 * f64::from(*weight) / f64::from(total);
                    prop_assert!((count - ideal).abs() <= weights.len() as f64);
                }
            }
        }
    }
}
