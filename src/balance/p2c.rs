//! Power of two choices: of two random endpoints the one with the lower peak EWMA latency × (in flight + 1).
//!
//! Two choices instead of the best of all: with many gateways, all would run to the same best one.

use super::{Candidates, DRAWS, Usable, below, redraw};

/// Factors of slow start, by which costs are divided.
#[derive(Debug)]
pub struct Factors(Vec<f32>);

impl Factors {
    /// The factor of each.
    pub fn new(usable: &[Usable<'_>]) -> Self {
        Self(usable.iter().map(|endpoint| endpoint.factor as f32).collect())
    }

    /// The cheaper of two distinct random positions that fit.
    pub fn pick(&self, random: u64, candidates: &impl Candidates) -> Option<usize> {
        let len = self.0.len();
        let mut random = random;
        if len > 1 {
            // All pairs that fit stay equally likely, however often it is drawn.
            for _ in 0..DRAWS {
                let (one, other) = distinct((random >> 32) as u32, random as u32, len);
                if candidates.fits(one) && candidates.fits(other) {
                    return Some(self.cheaper(one, other, candidates));
                }
                random = redraw(random);
            }
        }
        let fitting = || (0..len).filter(|position| candidates.fits(*position));
        match fitting().count() {
            0 => None,
            1 => fitting().next(),
            count => {
                let (one, other) = distinct((random >> 32) as u32, random as u32, count);
                let (one, other) = (fitting().nth(one)?, fitting().nth(other)?);
                Some(self.cheaper(one, other, candidates))
            }
        }
    }

    fn cheaper(&self, one: usize, other: usize, candidates: &impl Candidates) -> usize {
        let cost = |position: usize| {
            let factor = self.0.get(position).copied().unwrap_or(1.0);
            candidates.latency(position) * (candidates.in_flight(position) as f32 + 1.0) / factor
        };
        if cost(other) < cost(one) { other } else { one }
    }
}

/// Two distinct numbers below `len`, which is at least 2.
fn distinct(high: u32, low: u32, len: usize) -> (usize, usize) {
    let one = below(high, len);
    let other = below(low, len - 1);
    (one, if other >= one { other + 1 } else { other })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::balance::testing::{Fake, histogram, ids, splitmix, usable};

    fn picks(len: usize, fake: &Fake) -> Vec<u32> {
        let factors = Factors::new(&usable(&ids(&vec![1; len])));
        let mut seed = 3;
        histogram(len, (0..30_000).filter_map(|_| factors.pick(splitmix(&mut seed), fake)))
    }

    #[test]
    fn equal_costs_are_spread_evenly() {
        assert!(picks(3, &Fake::default()).iter().all(|count| count.abs_diff(10_000) < 500));
    }

    #[test]
    fn the_most_expensive_is_never_picked_and_the_cheapest_wins_each_of_its_pairs() {
        let fake = Fake { latency: vec![0.1, 0.02, 0.05], ..Fake::default() };
        let counts = picks(3, &fake);
        assert_eq!(counts[0], 0);
        assert!(counts[1].abs_diff(20_000) < 500, "{counts:?}");
    }

    #[test]
    fn requests_in_flight_multiply_the_cost() {
        let fake = Fake { latency: vec![0.01, 0.05], in_flight: vec![5, 0], ..Fake::default() };
        assert_eq!(picks(2, &fake), [0, 30_000]);
    }

    #[test]
    fn slow_start_makes_dearer() {
        let all = ids(&[1, 1]);
        let mut described = usable(&all);
        described[0].factor = 0.1;
        let factors = Factors::new(&described);
        let fake = Fake { latency: vec![0.01, 0.05], ..Fake::default() };
        assert_eq!(factors.pick(0, &fake), Some(1));
        assert_eq!(factors.pick(u64::MAX, &fake), Some(1));
    }

    #[test]
    fn what_does_not_fit_is_left_out_without_favour() {
        let counts = picks(4, &Fake { out: vec![2], ..Fake::default() });
        assert_eq!(counts[2], 0);
        assert!([0, 1, 3].iter().all(|position| counts[*position].abs_diff(10_000) < 500), "{counts:?}");
        assert_eq!(picks(2, &Fake { out: vec![0], ..Fake::default() }), [0, 30_000]);
        assert_eq!(picks(1, &Fake::default()), [30_000]);
        assert_eq!(picks(2, &Fake { out: vec![0, 1], ..Fake::default() }), [0, 0]);
    }

    proptest! {
        #[test]
        fn whoever_is_picked_fits_and_is_no_dearer_than_another_that_fits(
            endpoints in prop::collection::vec((1u8..=200, 0u32..20, prop::bool::weighted(0.7)), 1..40),
            random in any::<u64>(),
        ) {
            let factors = Factors::new(&usable(&ids(&vec![1; endpoints.len()])));
            let fake = Fake {
                latency: endpoints.iter().map(|endpoint| f32::from(endpoint.0) / 100.0).collect(),
                in_flight: endpoints.iter().map(|endpoint| endpoint.1).collect(),
                out: (0..endpoints.len()).filter(|position| !endpoints[*position].2).collect(),
            };
            let cost = |position: usize| u32::from(endpoints[position].0) * (endpoints[position].1 + 1);
            let fitting: Vec<usize> = (0..endpoints.len()).filter(|position| endpoints[*position].2).collect();
            let picked = factors.pick(random, &fake);
            prop_assert_eq!(picked.is_some(), !fitting.is_empty());
            let Some(picked) = picked else { return Ok(()) };
            prop_assert!(endpoints[picked].2);
            // It was cheaper than another one, or as cheap.
            prop_assert!(fitting.len() == 1 || fitting.iter().any(|other| *other != picked && cost(picked) <= cost(*other)));
        }
    }
}
