//! A random endpoint: uniform, or by share.

use super::{Candidates, DRAWS, Usable, below, redraw};

/// Cumulated shares of the usable endpoints.
#[derive(Debug)]
pub struct Shares {
    /// Sum of the shares up to and including each position.
    upto: Vec<u64>,
    /// Whether all are equal, so that no search is needed.
    uniform: bool,
}

impl Shares {
    /// Shares by `share`.
    pub fn new<'a>(usable: &[Usable<'a>], share: impl Fn(&Usable<'a>) -> u64) -> Self {
        let shares: Vec<u64> = usable.iter().map(share).collect();
        let mut sum = 0;
        let upto = shares.iter().map(|share| (sum += share, sum).1).collect();
        Self { upto, uniform: shares.windows(2).all(|pair| pair[0] == pair[1]) }
    }

    fn share(&self, position: usize) -> u64 {
        let before = position.checked_sub(1).and_then(|before| self.upto.get(before)).copied().unwrap_or(0);
        self.upto.get(position).map_or(0, |upto| upto - before)
    }

    /// A position that fits, each with its share of the chance.
    pub fn pick(&self, random: u64, candidates: &impl Candidates) -> Option<usize> {
        let mut random = random;
        // All that fit keep their proportions, however often it is drawn.
        for _ in 0..DRAWS {
            let drawn = if self.uniform {
                below((random >> 32) as u32, self.upto.len())
            } else {
                let point = scale(random, *self.upto.last()?);
                self.upto.partition_point(|upto| *upto <= point)
            };
            if drawn < self.upto.len() && candidates.fits(drawn) {
                return Some(drawn);
            }
            random = redraw(random);
        }
        let fitting = || (0..self.upto.len()).filter(|position| candidates.fits(*position));
        let total: u64 = fitting().map(|position| self.share(position)).sum();
        let mut point = scale(random, total);
        fitting().find(|position| {
            let share = self.share(*position);
            let hit = point < share;
            point = point.saturating_sub(share);
            hit
        })
    }
}

/// A random number below `end`.
fn scale(random: u64, end: u64) -> u64 {
    ((u128::from(random) * u128::from(end)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::testing::{Fake, histogram, ids, splitmix, usable};

    fn shares(weights: &[u32]) -> Vec<u32> {
        spread(weights, &Fake::default())
    }

    fn spread(weights: &[u32], fake: &Fake) -> Vec<u32> {
        let all = ids(weights);
        let shares = Shares::new(&usable(&all), |endpoint| u64::from(endpoint.weight));
        let mut seed = 1;
        histogram(weights.len(), (0..60_000).filter_map(|_| shares.pick(splitmix(&mut seed), fake)))
    }

    fn near(counts: &[u32], expected: &[u32]) -> bool {
        // 5 standard deviations of 60,000 trials are below 620.
        counts.iter().zip(expected).all(|(count, expected)| count.abs_diff(*expected) < 620)
    }

    #[test]
    fn is_uniform() {
        assert!(near(&shares(&[1, 1, 1]), &[20_000; 3]));
    }

    #[test]
    fn follows_shares() {
        assert!(near(&shares(&[1, 2, 3]), &[10_000, 20_000, 30_000]));
    }

    #[test]
    fn what_does_not_fit_leaves_proportions() {
        let fake = Fake { out: vec![1], ..Fake::default() };
        assert!(near(&spread(&[1, 1, 1, 1], &fake), &[20_000, 0, 20_000, 20_000]));
        assert!(near(&spread(&[1, 2, 3], &fake), &[15_000, 0, 45_000]));
    }

    #[test]
    fn nothing_fits() {
        let fake = Fake { out: vec![0, 1], ..Fake::default() };
        assert!(spread(&[1, 1], &fake).iter().all(|count| *count == 0));
        assert_eq!(Shares::new(&[], |_| 1).pick(7, &fake), None);
    }
}
