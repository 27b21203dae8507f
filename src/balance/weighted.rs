//! Smooth weighted round robin, as nginx has it: each pick adds its weight to every endpoint's score, takes the highest
//! (first written wins ties), and subtracts the sum of weights from it. 5, 1, 1 give A A B A C A A.
//!
//! The textbook form touches every endpoint per pick. Here a score is a line over the number of picks, which gains its weight with each,
//! and [`Lines`] find the highest: a pick costs amortised O(log² n) at most, and gives exactly the textbook's sequence, also with scores
//! carried over from another set.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::kinetic::{Line, Lines};
use super::{Candidates, Usable};

/// Scores of endpoints by id: what goes on when the set changes.
pub type Scores = HashMap<Arc<str>, i64>;

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
    /// Scores over the number of the pick that comes next, with the gain of that pick.
    scores: Lines,
    /// Sum of weights.
    total: i64,
    /// Who did not fit, during a pick.
    refused: Vec<usize>,
}

impl Smooth {
    /// Scores for `usable`, going on from `before`; of endpoints not in `all` the scores are forgotten.
    pub fn new(usable: &[Usable<'_>], all: &[(Arc<str>, u32)], mut before: Scores) -> Self {
        let line = |endpoint: &Usable<'_>| Line {
            start: before.remove(endpoint.id).unwrap_or(0),
            gain: i64::try_from(endpoint.share()).unwrap_or(i64::MAX),
        };
        let lines: Vec<Line> = usable.iter().map(line).collect();
        let parked = all.iter().filter_map(|(id, _)| before.remove_entry(id)).collect();
        let total = lines.iter().map(|line| line.gain).sum();
        Self {
            ids: usable.iter().map(|endpoint| endpoint.id.clone()).collect(),
            parked,
            state: Mutex::new(State { scores: Lines::new(lines), total, refused: Vec::with_capacity(usable.len()) }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All scores, for the set that follows this one.
    pub fn scores(&self) -> Scores {
        let state = self.lock();
        let current = self.ids.iter().cloned().zip(state.scores.heights_before());
        current.chain(self.parked.iter().cloned()).collect()
    }

    /// The position with the highest score among those that fit. Those with a higher one, which do not, take no part in this pick:
    /// they gain nothing, so that they do not come back with a burst.
    pub fn pick(&self, candidates: &impl Candidates) -> Option<usize> {
        self.lock().pick(candidates)
    }
}

impl State {
    fn pick(&mut self, candidates: &impl Candidates) -> Option<usize> {
        self.refused.clear();
        let picked = self.scores.highest(|position| candidates.fits(position), &mut self.refused)?;
        let mut total = self.total;
        for position in self.refused.drain(..) {
            let gain = self.scores.get(position).map_or(0, |line| line.gain);
            self.scores.lower(position, gain);
            total -= gain;
        }
        self.scores.lower(picked, total);
        self.scores.step();
        Some(picked)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::cmp::Reverse;

    use proptest::prelude::*;

    use super::*;
    use crate::balance::testing::{Fake, histogram, ids, splitmix, usable};

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
    fn the_sequence_goes_on_where_time_starts_anew() {
        // With weights like these that is about every 268,000 picks.
        let smooth = smooth(&[u32::MAX, u32::MAX / 5, u32::MAX / 5]);
        (0..40_000).for_each(|_| assert_eq!(letters(&smooth, 7), "AABACAA"));
    }

    /// The textbook algorithm for sets that change, and endpoints that do not fit.
    #[derive(Default)]
    struct Textbook {
        scores: Scores,
    }

    impl Textbook {
        fn change(&mut self, usable: &[Usable<'_>], all: &[(Arc<str>, u32)]) {
            self.scores.retain(|id, _| all.iter().any(|(known, _)| known == id));
            for endpoint in usable {
                self.scores.entry(endpoint.id.clone()).or_insert(0);
            }
        }

        fn pick(&mut self, usable: &[Usable<'_>], fits: &Fits) -> Option<usize> {
            let gained: Vec<i64> = usable.iter().map(|endpoint| self.scores[endpoint.id] + endpoint.share() as i64).collect();
            let rank = |position: usize| (gained[position], Reverse(position));
            let picked = (0..usable.len()).filter(|position| fits.fits[*position]).max_by_key(|position| rank(*position))?;
            // Who would have been picked, but does not fit, is passed over.
            let mut total = 0;
            for position in (0..usable.len()).filter(|position| rank(*position) <= rank(picked)) {
                total += usable[position].share() as i64;
                self.scores.insert(usable[position].id.clone(), gained[position]);
            }
            *self.scores.get_mut(usable[picked].id)? -= total;
            Some(picked)
        }
    }

    /// Whether each fits, and how many were asked.
    struct Fits {
        fits: Vec<bool>,
        asked: Cell<u32>,
    }

    impl Candidates for Fits {
        fn fits(&self, position: usize) -> bool {
            self.asked.set(self.asked.get() + 1);
            self.fits[position]
        }
        fn in_flight(&self, _: usize) -> u32 {
            0
        }
        fn latency(&self, _: usize) -> f32 {
            0.0
        }
    }

    /// Weights that are hard on the tree in different ways.
    fn hard_weights(len: usize) -> Vec<(&'static str, Vec<u32>)> {
        let primes = || (2u32..).filter(|n| (2..*n).take_while(|d| d * d <= *n).all(|d| n % d != 0));
        let each = |weight: &dyn Fn(usize) -> u32| (0..len).map(weight).collect::<Vec<u32>>();
        vec![
            ("equal", each(&|_| 1)),
            ("all different, rising", each(&|n| n as u32 + 1)),
            ("all different, mixed", each(&|n| (n * 617 % len) as u32 + 1)),
            ("random", each(&|n| (splitmix(&mut (n as u64)) % 1000) as u32 + 1)),
            ("powers of two", each(&|n| 1 << (n % 10))),
            ("primes", primes().take(len).collect()),
            ("one giant", each(&|n| if n == len / 2 { 1000 } else { 1 })),
            ("one giant among different ones", each(&|n| if n == len / 2 { 1_000_000 } else { n as u32 + 1 })),
            ("two extremes", each(&|n| if n % 2 == 0 { 1000 } else { 1 })),
        ]
    }

    /// Nodes that are looked at for each endpoint that is asked whether it fits: one per pick, and those that do not.
    fn mean_visits(weights: &[u32], tenth_out: bool) -> f64 {
        let smooth = smooth(weights);
        let fits = Fits { fits: (0..weights.len()).map(|n| !tenth_out || n % 10 != 3).collect(), asked: Cell::new(0) };
        let mut state = smooth.lock();
        state.scores.visits.set(0);
        while fits.asked.get() < 10_000 {
            state.pick(&fits).expect("some fit");
        }
        state.scores.visits.get() as f64 / f64::from(fits.asked.get())
    }

    #[test]
    fn a_pick_looks_at_a_few_times_log_n_nodes_on_average() {
        for len in [1, 10, 100, 1_000] {
            for (name, weights) in hard_weights(len) {
                for tenth_out in [false, true] {
                    let mean = mean_visits(&weights, tenth_out);
                    assert!(mean <= 5.0 * (len as f64).log2() + 1.0, "{name}, {len} endpoints: {mean} nodes");
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn equals_the_textbook_in_large_sets_that_change(kind in 0usize..4, len in 1usize..400, seed in any::<u64>()) {
            let mut seed = seed;
            let mut random = |below: usize| (splitmix(&mut seed) % below as u64) as usize;
            let weight = |n: usize| [n * 617 % 1001, 7, [1, 1000][n % 2], n % 4][kind] as u32;
            let written = ids(&(0..len).map(weight).collect::<Vec<_>>());
            let (mut textbook, mut scores) = (Textbook::default(), Scores::new());
            for _ in 0..6 {
                let all: Vec<_> = written.iter().filter(|_| random(20) > 0).cloned().collect();
                let mut usable = usable(&all);
                usable.retain(|_| random(10) > 0);
                usable.iter_mut().for_each(|endpoint| endpoint.factor = [1.0, 1.0, 1.0, 0.1 + random(900) as f64 / 1000.0][random(4)]);
                let smooth = Smooth::new(&usable, &all, scores);
                textbook.change(&usable, &all);
                for _ in 0..40 {
                    let full = [0, 0, 1, 10, 90, 100][random(6)];
                    let fits = Fits { fits: usable.iter().map(|_| random(100) >= full).collect(), asked: Cell::new(0) };
                    prop_assert_eq!(smooth.pick(&fits), textbook.pick(&usable, &fits));
                }
                scores = smooth.scores();
                prop_assert_eq!(&scores, &textbook.scores);
            }
        }
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
