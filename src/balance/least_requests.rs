//! The endpoint with the fewest requests in flight for its weight.

use super::{Candidates, Turn, Usable};

/// Shares of the usable endpoints.
#[derive(Debug)]
pub struct Shares {
    shares: Vec<u64>,
    greatest: u64,
}

impl Shares {
    /// Weight × factor of slow start of each.
    pub fn new(usable: &[Usable<'_>]) -> Self {
        let shares: Vec<u64> = usable.iter().map(Usable::share).collect();
        Self { greatest: shares.iter().copied().max().unwrap_or(0), shares }
    }

    /// The position with the lowest (in flight + 1) / weight among those that fit. The search starts behind the last pick, so ties
    /// are in rotation. It ends at an idle endpoint of the greatest weight, since none can be better: with fewer requests
    /// than endpoints that is after a few steps, else every endpoint is looked at.
    pub fn pick(&self, turn: &Turn, candidates: &impl Candidates) -> Option<usize> {
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

    proptest! {
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
