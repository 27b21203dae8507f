//! How many retries an upstream bears: a share of its traffic, so that retries cannot multiply an outage.

use std::time::Instant;

use crate::health::window::Window;

const FIRST: usize = 0;
const RETRY: usize = 1;
/// First attempts of workers that have no lane of their own.
const OTHERS_FIRST: usize = 2;
/// Retries in 10 s that are always allowed, or else retries would never happen at little traffic.
const FLOOR: f64 = 30.0;

/// Counts first attempts and retries of the last 10 s.
#[derive(Debug, Default)]
pub struct RetryBudget {
    /// Workers count apart: this is written with every request, and read only when one fails.
    lanes: [Lane; LANES],
}

/// Lanes; workers beyond share them.
const LANES: usize = 8;

#[derive(Debug, Default)]
#[repr(align(128))]
struct Lane(Window<3>);

impl RetryBudget {
    /// Counts the first attempt of a request on `worker`, which is the one of this thread.
    pub fn first_attempt(&self, worker: usize, now: Instant) {
        match self.lanes.get(worker) {
            Some(lane) => lane.0.add_own(FIRST, now),
            None => self.lanes[worker % LANES].0.add(OTHERS_FIRST, now),
        }
    }

    /// Takes one retry, if there may be one more: retries ≤ max(30, `share` × first attempts).
    pub fn try_retry(&self, now: Instant, share: f64) -> bool {
        let sums = self.lanes.iter().map(|lane| lane.0.sums(now));
        let [first, retries] = sums.fold([0, 0], |[first, retries], sum| [first + sum[FIRST] + sum[OTHERS_FIRST], retries + sum[RETRY]]);
        let allowed = (retries + 1) as f64 <= FLOOR.max(share * first as f64 + 1e-9);
        if allowed {
            // In one lane: retries are few.
            self.lanes[0].0.add(RETRY, now);
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn retries_allowed(budget: &RetryBudget, now: Instant) -> usize {
        (0..10_000).take_while(|_| budget.try_retry(now, 0.2)).count()
    }

    #[test]
    fn thirty_retries_are_free() {
        let (budget, now) = (RetryBudget::default(), Instant::now());
        assert_eq!(retries_allowed(&budget, now), 30);
        assert_eq!(retries_allowed(&budget, now + Duration::from_secs(9)), 0);
        assert_eq!(retries_allowed(&budget, now + Duration::from_millis(10_251)), 30);
    }

    #[test]
    fn beyond_them_retries_are_a_share_of_first_attempts() {
        let (budget, now) = (RetryBudget::default(), Instant::now());
        (0..1000).for_each(|worker| budget.first_attempt(worker, now));
        assert_eq!(retries_allowed(&budget, now), 200);
    }
}
