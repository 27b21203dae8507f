//! The endpoint with the fewest requests in flight for its weight.

use super::ranking::Ranking;
use super::{Candidates, Turn, Usable};

/// With up to this many endpoints each pick looks at them all: cheaper than keeping them ranked.
const FEW: usize = 32;

/// Shares of the usable endpoints.
#[derive(Debug)]
pub struct Shares {
    shares: Vec<u64>,
    greatest: u64,
    /// Where there are more than a [`FEW`].
    ranking: Option<Ranking>,
}

impl Shares {
    /// Weight × factor of slow start of each.
    pub fn new(usable: &[Usable<'_>]) -> Self {
        let shares: Vec<u64> = usable.iter().map(Usable::share).collect();
        let ranking = (shares.len() > FEW).then(|| Ranking::new(shares.len()));
        Self { greatest: shares.iter().copied().max().unwrap_or(0), shares, ranking }
    }

    /// Whether it has to be told of loads that change.
    pub fn ranks(&self) -> bool {
        self.ranking.is_some()
    }

    /// Looks at all loads.
    pub fn rank(&self, turn: &Turn, candidates: &impl Candidates) {
        if let Some(ranking) = &self.ranking {
            ranking.play(turn.get(), &self.shares, candidates);
        }
    }

    /// The requests in flight on the endpoint at `position` have changed, also by being picked.
    pub fn load_changed(&self, position: usize, candidates: &impl Candidates) {
        if let Some(ranking) = &self.ranking {
            ranking.replay(position, &self.shares, candidates);
        }
    }

    /// The position with the lowest (in flight + 1) / weight among those that fit; ties are in rotation.
    pub fn pick(&self, turn: &Turn, candidates: &impl Candidates) -> Option<usize> {
        let Some(ranking) = &self.ranking else { return self.search(turn, candidates) };
        let number = turn.next();
        ranking.replay(number % self.shares.len(), &self.shares, candidates);
        let leader = ranking.leader();
        // One that does not fit was tried by this request before, or is full with little in flight: rare enough to look at all.
        let position = if candidates.fits(leader) { leader } else { ranking.leader_that_fits(&self.shares, candidates)? };
        ranking.picked(position, number);
        Some(position)
    }

    /// Looks at each. The search starts behind the last pick, so ties are in rotation, and ends at an idle endpoint of the greatest weight, since
    /// none can be better.
    fn search(&self, turn: &Turn, candidates: &impl Candidates) -> Option<usize> {
        let len = self.shares.len();
        let start = turn.get().checked_rem(len)?;
        let (before, after) = self.shares.split_at(start);
        let mut best: Option<(usize, u64, u64)> = None;
        for (position, share) in after.iter().enumerate().map(|(n, share)| (n + start, share)).chain(before.iter().enumerate()) {
            let load = u64::from(candidates.in_flight(position)) + 1;
            // load / share < best load / best share, without division
            let better = best.is_none_or(|(_, best_load, best_share)| load * best_share < best_load * share);
            if better && candidates.fits(position) {
                best = Some((position, load, *share));
                if load == 1 && *share == self.greatest {
                    break;
                }
            }
        }
        let (position, _, _) = best?;
        turn.set(position + 1);
        Some(position)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::balance::testing::{Fake, histogram, ids, usable};

    fn shares(weights: &[u32]) -> Shares {
        Shares::new(&usable(&ids(weights)))
    }

    #[test]
    fn idle_endpoints_take_turns() {
        let (shares, turn) = (shares(&[1, 1, 1]), Turn::default());
        let picks: Vec<_> = (0..6).filter_map(|_| shares.pick(&turn, &Fake::default())).collect();
        assert_eq!(picks, [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn ties_beside_a_busy_endpoint_are_shared_evenly() {
        let (shares, turn) = (shares(&[1, 1, 1]), Turn::default());
        let busy = Fake { in_flight: vec![3, 0, 0], ..Fake::default() };
        assert_eq!(histogram(3, (0..100).filter_map(|_| shares.pick(&turn, &busy))), [0, 50, 50]);
    }

    #[test]
    fn weight_divides_the_load() {
        let (shares, turn) = (shares(&[4, 1]), Turn::default());
        let mut load = Fake { in_flight: vec![0, 0], ..Fake::default() };
        for _ in 0..50 {
            let position = shares.pick(&turn, &load).expect("one fits");
            load.in_flight[position] += 1;
        }
        assert_eq!(load.in_flight, [40, 10]);
    }

    #[test]
    fn many_idle_endpoints_take_turns_too() {
        let (shares, turn) = (shares(&[1; 100]), Turn::default());
        shares.rank(&turn, &Fake::default());
        let round = || -> Vec<usize> {
            let picks = (0..100).map(|_| {
                let position = shares.pick(&turn, &Fake::default()).expect("one fits");
                shares.load_changed(position, &Fake::default());
                position
            });
            picks.collect()
        };
        assert_eq!((round(), round()), ((0..100).collect(), (0..100).collect()));
    }

    #[test]
    fn a_load_that_nobody_told_of_is_seen_within_a_round() {
        let (shares, turn) = (shares(&[1; 40]), Turn::default());
        let mut load = Fake { in_flight: vec![5; 40], ..Fake::default() };
        shares.rank(&turn, &load);
        load.in_flight[17] = 0;
        let found = (0..40).find(|_| {
            let position = shares.pick(&turn, &load).expect("one fits");
            shares.load_changed(position, &load);
            position == 17
        });
        assert!(found.is_some());
    }

    proptest! {
        #[test]
        fn among_many_nothing_that_fits_is_cheaper_however_loads_change(
            weights in prop::collection::vec(1u32..=1000, 33..200),
            steps in prop::collection::vec((any::<prop::sample::Index>(), 0u32..4, any::<prop::sample::Index>(), prop::bool::weighted(0.1)), 1..300),
        ) {
            let len = weights.len();
            let (shares, turn) = (shares(&weights), Turn::default());
            let mut fake = Fake { in_flight: vec![0; len], ..Fake::default() };
            shares.rank(&turn, &fake);
            for (ended, less, tried, again) in steps {
                let ended = ended.index(len);
                fake.in_flight[ended] = fake.in_flight[ended].saturating_sub(less);
                shares.load_changed(ended, &fake);
                fake.out = if again { vec![tried.index(len)] } else { vec![] };
                let picked = shares.pick(&turn, &fake).expect("one fits");
                prop_assert!(!fake.out.contains(&picked));
                let cost = |n: usize| f64::from(fake.in_flight[n] + 1) / f64::from(weights[n]);
                for other in (0..len).filter(|other| !fake.out.contains(other)) {
                    prop_assert!(cost(picked) <= cost(other) + 1e-12);
                }
                fake.in_flight[picked] += 1;
                shares.load_changed(picked, &fake);
            }
        }

        #[test]
        fn nothing_that_fits_is_cheaper(
            endpoints in prop::collection::vec((1u32..=1000, 0u32..50, prop::bool::weighted(0.8)), 1..20),
            start in 0usize..100,
        ) {
            let weights: Vec<u32> = endpoints.iter().map(|e| e.0).collect();
            let fake = Fake {
                in_flight: endpoints.iter().map(|e| e.1).collect(),
                out: (0..endpoints.len()).filter(|n| !endpoints[*n].2).collect(),
                ..Fake::default()
            };
            let turn = Turn::default();
            turn.set(start);
            let cost = |n: usize| f64::from(endpoints[n].1 + 1) / f64::from(endpoints[n].0);
            match shares(&weights).pick(&turn, &fake) {
                None => prop_assert!(endpoints.iter().all(|e| !e.2)),
                Some(picked) => {
                    prop_assert!(endpoints[picked].2);
                    for other in (0..endpoints.len()).filter(|n| endpoints[*n].2) {
                        prop_assert!(cost(picked) <= cost(other) + 1e-12);
                    }
                }
            }
        }
    }
}
