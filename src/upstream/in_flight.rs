//! How many attempts are in flight.
//!
//! Where a strategy balances by it, all workers change and read one number. Elsewhere it is only shown, and each worker counts in a
//! lane of its own: one line of memory that all cores write with every request is what would stop them first.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Lanes; workers beyond share them.
const LANES: usize = 16;

/// Attempts in flight on an endpoint.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    shared: Lane,
    lanes: [Lane; LANES],
}

/// A count on a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Lane(AtomicU32);

/// Where an attempt is counted; it is counted down there, too, whatever the strategy is by then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Where a strategy sees it.
    Shared,
    /// In a worker's lane.
    Lane(usize),
}

impl InFlight {
    fn at(&self, place: Place) -> &AtomicU32 {
        match place {
            Place::Lane(worker) => self.lanes.get(worker % LANES).map_or(&self.shared.0, |lane| &lane.0),
            Place::Shared => &self.shared.0,
        }
    }

    /// One more.
    pub(super) fn up(&self, place: Place) {
        self.at(place).fetch_add(1, Relaxed);
    }

    /// One less.
    pub(super) fn down(&self, place: Place) {
        self.at(place).fetch_sub(1, Relaxed);
    }

    /// Those that a strategy balances by.
    pub(super) fn shared(&self) -> u32 {
        self.shared.0.load(Relaxed)
    }

    /// All of them.
    pub(super) fn all(&self) -> u32 {
        self.lanes.iter().fold(self.shared(), |sum, lane| sum.wrapping_add(lane.0.load(Relaxed)))
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
