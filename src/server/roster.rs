//! The HTTP/1 connections of one worker: who is to be woken when a listener's life goes on, and who has just come.
//!
//! A channel would do for the first, but each connection would subscribe to it and wait on it, on counts and locks that all workers
//! share, though hardly any ever hears a word. Here it leaves its waker, at a place that only its worker visits.
//!
//! Many connections are over within milliseconds. What only matters to those that stay is put off until they are woken for it, all
//! that are new together: to arm a timer, and to be told when the client leaves.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use tokio::sync::Notify;

/// How long connections are new, at most.
const NEW: Duration = Duration::from_millis(100);
/// Who is new has settled after this, whatever its worker has to do: what is over sooner must not be put off.
pub const SETTLED: Duration = Duration::from_secs(1);

/// The connections of one worker.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Roster {
    entries: Mutex<Entries>,
    /// How often all that were new have settled.
    round: AtomicU64,
    /// Rings when the first comes that is new.
    came: Notify,
}

#[derive(Debug, Default)]
struct Entries {
    wakers: Vec<Option<Waker>>,
    /// Places in `wakers` that are free.
    free: Vec<usize>,
    /// Places that were taken in this round; some may be free again.
    new: Vec<usize>,
}

/// A connection's place; it leaves when this is dropped.
#[derive(Debug)]
pub struct Entry<'a> {
    roster: &'a Roster,
    place: usize,
    round: u64,
}

impl Roster {
    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a waker. Whoever looks at what it waits for only after this misses nothing.
    pub fn enter(&self, waker: &Waker) -> Entry<'_> {
        let waker = Some(waker.clone());
        let round = self.round.load(Relaxed);
        let mut entries = self.entries();
        let free = entries.free.pop();
        let place = match free.and_then(|place| entries.wakers.get_mut(place).map(|entry| (place, entry))) {
            Some((place, entry)) => {
                *entry = waker;
                place
            }
            None => {
                entries.wakers.push(waker);
                entries.wakers.len() - 1
            }
        };
        let first = entries.new.is_empty();
        entries.new.push(place);
        drop(entries);
        if first {
            self.came.notify_one();
        }
        Entry { roster: self, place, round }
    }

    /// Wakes all.
    pub fn wake(&self) {
        // Not under the lock: whoever is woken may leave at once.
        let wakers: Vec<Waker> = self.entries().wakers.iter().flatten().cloned().collect();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Settles who is new, again and again.
    pub async fn keep(&self) {
        loop {
            self.came.notified().await;
            tokio::time::sleep(NEW).await;
            self.settle();
        }
    }

    /// Wakes those that are new, which they are no more.
    fn settle(&self) {
        self.round.fetch_add(1, Relaxed);
        let wakers: Vec<Waker> = {
            let mut entries = self.entries();
            let new = std::mem::take(&mut entries.new);
            new.into_iter().filter_map(|place| entries.wakers.get(place)?.clone()).collect()
        };
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Entry<'_> {
    /// Whether it has just come.
    pub fn is_new(&self) -> bool {
        self.roster.round.load(Relaxed) == self.round
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        let mut entries = self.roster.entries();
        let waker = entries.wakers.get_mut(self.place).and_then(Option::take);
        entries.free.push(self.place);
        drop(entries);
        // It may be the last that holds a task, whose end must not meet a lock.
        drop(waker);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Rung(AtomicUsize);

    impl Wake for Rung {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    #[test]
    fn all_that_are_there_are_woken_and_places_are_used_again() {
        let roster = Roster::default();
        let rung: [Arc<Rung>; 3] = Default::default();
        let [first, second, third] = rung.clone().map(Waker::from);
        let entry = roster.enter(&first);
        let _stays = roster.enter(&second);
        drop(entry);
        let _late = roster.enter(&third);
        roster.wake();
        assert_eq!(rung.map(|rung| rung.0.load(Relaxed)), [0, 1, 1]);
        assert_eq!(roster.entries().wakers.len(), 2);
    }

    #[test]
    fn who_is_new_is_woken_once_to_settle() {
        let roster = Roster::default();
        let rung: [Arc<Rung>; 3] = Default::default();
        let [first, second, third] = rung.clone().map(Waker::from);
        let (stays, goes) = (roster.enter(&first), roster.enter(&second));
        assert!(stays.is_new());
        drop(goes);
        roster.settle();
        assert!(!stays.is_new());
        let late = roster.enter(&third);
        roster.settle();
        assert!(!late.is_new());
        assert_eq!(rung.map(|rung| rung.0.load(Relaxed)), [1, 0, 1]);
    }
}
