//! How many attempts are in flight.
//!
//! Where a strategy balances by it, all workers change and read one number. Elsewhere it is only shown, and each worker counts in a
//! lane of its own: one line of memory that all cores write with every request is what would stop them first.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Lanes; workers beyond share them.
pub(super) const LANES: usize = 16;

/// Attempts in flight on an endpoint.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    shared: Lane,
    lanes: [Lane; LANES],
}

/// Counts on a cache line of their own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Lane {
    /// Written by the one worker whose lane it is: what nobody else writes needs no atomic addition, which costs twenty times as much.
    own: AtomicU32,
    /// Written by all others.
    others: AtomicU32,
}

/// Where an attempt is counted; it is counted down there, too, whatever the strategy is by then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Where a strategy sees it.
    Shared,
    /// In a worker's lane.
    Lane(usize),
}

impl InFlight {
    /// One more. `place` may be a worker's lane on that worker's thread only.
    pub(super) fn up(&self, place: Place) {
        self.add(place, 1);
    }

    /// One less, where and on the thread on which it was counted up.
    pub(super) fn down(&self, place: Place) {
        self.add(place, u32::MAX);
    }

    /// Adds, wrapping round: the greatest number takes one away.
    fn add(&self, place: Place, count: u32) {
        match place {
            Place::Lane(worker) if worker < LANES => {
                let own = &self.lanes[worker].own;
                own.store(own.load(Relaxed).wrapping_add(count), Relaxed);
            }
            Place::Lane(worker) => {
                self.lanes[worker % LANES].others.fetch_add(count, Relaxed);
            }
            Place::Shared => {
                self.shared.others.fetch_add(count, Relaxed);
            }
        }
    }

    /// Those that a strategy balances by.
    pub(super) fn shared(&self) -> u32 {
        self.shared.others.load(Relaxed)
    }

    /// All of them.
    pub(super) fn all(&self) -> u32 {
        let sum = |lane: &Lane| lane.own.load(Relaxed).wrapping_add(lane.others.load(Relaxed));
        self.lanes.iter().fold(self.shared(), |all, lane| all.wrapping_add(sum(lane)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_counts_in_the_sum_and_only_the_shared_one_for_a_strategy() {
        let count = InFlight::default();
        let places = [Place::Shared, Place::Lane(0), Place::Lane(3), Place::Lane(3 + LANES), Place::Lane(usize::MAX)];
        for place in places {
            count.up(place);
        }
        assert_eq!((count.all(), count.shared()), (5, 1));
        for place in places {
            count.down(place);
        }
        assert_eq!((count.all(), count.shared()), (0, 0));
    }
}
