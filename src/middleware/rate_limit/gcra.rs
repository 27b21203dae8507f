//! The arithmetic of a limit: GCRA, the generic cell rate algorithm (ITU-T I.371), as a virtual schedule.
//!
//! A bucket is one number, its theoretical arrival time `tat`: when it will be full again. A request is allowed if
//! `max(tat, now) + T − now ≤ burst · T`, and moves `tat` on by `T`. That is a line of arithmetic, written here because the crate `governor`,
//! which the tests compare it with, comes with a store that takes several times as long for a decision. What an answer says about
//! a bucket (requests left, time to the next) is computed from `tat`, for local and shared buckets alike.

use std::time::Duration;

use super::buckets::Buckets;
use super::single::Single;
use crate::units::Rate;

/// The longest time a bucket may need to fill: a century, as for durations, so that sums of times cannot overflow.
const LONGEST_FILL: u128 = 100 * 366 * 86_400 * 1_000_000_000;

/// Rate and burst of a limit, prepared. Times are nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quota {
    /// Requests at once.
    burst: u64,
    /// T: time for one request, rounded down to a nanosecond, at least 1.
    interval: u64,
    /// burst · T: time to fill an empty bucket.
    capacity: u64,
}

impl Quota {
    /// The quota of `rate` and `burst`, or what is wrong with them.
    pub(crate) fn new(rate: Rate, burst: u64) -> Result<Self, String> {
        if burst > u64::from(u32::MAX) {
            return Err(format!("a burst of {burst} is more than {}", u32::MAX));
        }
        if burst == 0 {
            return Err("a burst of 0 would refuse every request: write at least 1".to_owned());
        }
        let interval = (rate.per.as_nanos() / u128::from(rate.count.max(1))).max(1);
        let capacity = interval * u128::from(burst);
        if capacity > LONGEST_FILL {
            return Err(format!("at {rate}, a burst of {burst} would take more than a century to fill"));
        }
        let as_u64 = |n: u128| u64::try_from(n).unwrap_or(u64::MAX);
        Ok(Self { burst, interval: as_u64(interval), capacity: as_u64(capacity) })
    }

    /// Requests at once.
    pub(crate) fn burst(&self) -> u64 {
        self.burst
    }

    /// T in nanoseconds.
    #[cfg_attr(not(feature = "redis"), expect(dead_code, reason = "shared limits only"))]
    pub(crate) fn interval(&self) -> u64 {
        self.interval
    }

    /// This gateway's part when `gateways` share the limit and cannot talk: rate and burst divided, burst at least 1.
    pub(crate) fn share(&self, gateways: u32) -> Self {
        let n = u64::from(gateways.max(1));
        let burst = (self.burst / n).max(1);
        let interval = self.interval.saturating_mul(n);
        Self { burst, interval, capacity: interval.saturating_mul(burst) }
    }

    /// The bucket's `tat` after one more request at `now`; `None` if that is refused.
    fn charge(&self, tat: u64, now: u64) -> Option<u64> {
        let next = tat.max(now).saturating_add(self.interval);
        (next - now <= self.capacity).then_some(next)
    }

    /// Decides one request at `now` (nanoseconds on the clock of `buckets`) and charges it if it is allowed; `Err` is a refusal.
    pub(crate) fn decide(&self, buckets: &Buckets, key: u128, now: u64) -> Result<Standing, Standing> {
        self.stand(buckets.update(key, self.capacity, now, |tat| self.charge(tat, now)), now)
    }

    /// The same for a bucket that has no key.
    pub(crate) fn decide_single(&self, bucket: &Single, now: u64) -> Result<Standing, Standing> {
        self.stand(bucket.update(|tat| self.charge(tat, now)), now)
    }

    fn stand(&self, outcome: Result<u64, u64>, now: u64) -> Result<Standing, Standing> {
        let standing = |tat: u64| self.standing(tat.saturating_sub(now));
        outcome.map(standing).map_err(standing)
    }

    /// Whether a request at `now` would be refused by a bucket with this `tat`; charges nothing.
    pub(crate) fn would_refuse(&self, tat: u64, now: u64) -> bool {
        self.charge(tat, now).is_none()
    }

    /// What a bucket that needs `used` nanoseconds to be full allows.
    pub(crate) fn standing(&self, used: u64) -> Standing {
        let used = used.min(self.capacity);
        let left = (self.capacity - used) / self.interval;
        // One more than now is allowed when `used` has shrunk to leave room for `left + 1`.
        let wait = if used == 0 { 0 } else { (used + (left + 1) * self.interval).saturating_sub(self.capacity) };
        Standing { left, burst: self.burst(), wait: Duration::from_nanos(wait) }
    }
}

/// What one bucket has left after a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Requests allowed at once from now.
    pub(crate) left: u64,
    /// Requests a full bucket allows.
    pub(crate) burst: u64,
    /// Time until one more is allowed; zero when full. After a refusal, the time until a request can pass.
    pub(crate) wait: Duration,
}

impl Standing {
    /// `wait` in whole seconds, rounded up.
    pub(crate) fn wait_seconds(&self) -> u64 {
        self.wait.as_secs() + u64::from(self.wait.subsec_nanos() > 0)
    }

    /// Whether this one has relatively less left than the other.
    pub(crate) fn is_scarcer_than(&self, other: &Self) -> bool {
        u128::from(self.left) * u128::from(other.burst) < u128::from(other.left) * u128::from(self.burst)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn quota(rate: &str, burst: u64) -> Quota {
        Quota::new(rate.parse().unwrap(), burst).unwrap()
    }

    #[test]
    fn what_cannot_be_counted_is_refused() {
        let rate = |text: &str| text.parse::<Rate>().unwrap();
        assert!(Quota::new(rate("1/s"), 0).is_err());
        assert!(Quota::new(rate("1/s"), 1 << 32).is_err());
        assert!(Quota::new(rate("1/d"), 36_600).is_ok());
        assert!(Quota::new(rate("1/d"), 36_601).is_err());
        assert!(Quota::new(rate("1000000000/s"), 1_000_000_000).is_ok());
    }

    #[test]
    fn a_share_divides_rate_and_burst_but_leaves_at_least_one() {
        let share = quota("10/s", 20).share(4);
        assert_eq!((share.burst(), share.interval), (5, 400_000_000));
        assert_eq!(quota("10/s", 3).share(4).burst(), 1);
        assert_eq!(quota("10/s", 3).share(0).burst(), 3);
    }

    #[test]
    fn the_standing_says_what_is_left_and_when_there_is_more() {
        let quota = quota("10/s", 20);
        let at = |ms: u64| {
            let standing = quota.standing(ms * 1_000_000);
            (standing.left, standing.wait.as_millis(), standing.wait_seconds())
        };
        assert_eq!(at(0), (20, 0, 0));
        assert_eq!(at(100), (19, 100, 1));
        assert_eq!(at(150), (18, 50, 1));
        assert_eq!(at(2_000), (0, 100, 1));
        assert_eq!(at(1_950), (0, 50, 1));
    }

    #[test]
    fn scarcity_is_relative_to_the_burst() {
        let standing = |left, burst| Standing { left, burst, wait: Duration::ZERO };
        assert!(standing(12, 200).is_scarcer_than(&standing(1, 10)));
        assert!(!standing(1, 10).is_scarcer_than(&standing(1, 10)));
    }

    proptest! {
        /// The definition, in exact arithmetic: allowed if max(tat, now) + T − now ≤ burst · T.
        #[test]
        fn decisions_are_those_of_the_definition(
            count in 1_u64..2_000,
            burst in 1_u64..50,
            steps in prop::collection::vec(0_u64..40_000_000, 1..200),
        ) {
            let quota = quota(&format!("{count}/s"), burst);
            let (buckets, single) = (Buckets::default(), Single::default());
            let (interval, mut tat, mut now) = (1_000_000_000 / count, 0, 0);
            for step in steps {
                now += step;
                let next = u64::max(tat, now) + interval;
                let expected = next - now <= burst * interval;
                let foreseen = quota.would_refuse(buckets.get(7).unwrap_or(0), now);
                let outcome = quota.decide(&buckets, 7, now);
                prop_assert_eq!(outcome, quota.decide_single(&single, now));
                let (allowed, standing) = (outcome.is_ok(), outcome.unwrap_or_else(|standing| standing));
                prop_assert_eq!(allowed, expected);
                prop_assert_eq!(foreseen, !expected);
                if expected {
                    tat = next;
                }
                let used = tat.saturating_sub(now);
                prop_assert_eq!(standing.left, (burst * interval - used) / interval);
                // After the wait, and not a nanosecond before, one more is allowed.
                if !allowed {
                    let wait = u64::try_from(standing.wait.as_nanos()).unwrap();
                    prop_assert!(quota.would_refuse(tat, now + wait - 1));
                    prop_assert!(!quota.would_refuse(tat, now + wait));
                }
            }
        }

        /// Another implementation comes to the same decisions, for several keys at once.
        #[test]
        fn decisions_are_those_of_governor(
            count in 1_u32..2_000,
            burst in 1_u32..50,
            steps in prop::collection::vec((0_u64..40_000_000, 0_u128..4), 1..200),
        ) {
            let quota = quota(&format!("{count}/s"), u64::from(burst));
            let buckets = Buckets::default();
            let period = Duration::from_nanos(quota.interval);
            let model = governor::Quota::with_period(period).unwrap().allow_burst(std::num::NonZeroU32::new(burst).unwrap());
            let clock = governor::clock::FakeRelativeClock::default();
            let models: Vec<_> = (0..4).map(|_| governor::RateLimiter::direct_with_clock(model, clock.clone())).collect();
            let mut now = 0;
            for (step, key) in steps {
                now += step;
                clock.advance(Duration::from_nanos(step));
                prop_assert_eq!(quota.decide(&buckets, (key + 1) << 8, now).is_ok(), models[key as usize].check().is_ok());
            }
        }
    }
}
