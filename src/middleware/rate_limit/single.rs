//! The bucket of a limit by `global`: one key, so one number, and nothing to look up.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// When the bucket is full again, in nanoseconds on the clock of [`super::Buckets`]. It has a cache line to itself, for all workers
/// write it.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(super) struct Single(AtomicU64);

impl Single {
    /// Its `tat`.
    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Replaces `tat` by what `charge` makes of it, atomically; `Err` is the one that `charge` refused.
    pub(super) fn update(&self, charge: impl Fn(u64) -> Option<u64>) -> Result<u64, u64> {
        let mut tat = self.get();
        loop {
            let Some(next) = charge(tat) else { return Err(tat) };
            match self.0.compare_exchange_weak(tat, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(next),
                Err(other) => tat = other,
            }
        }
    }
}

/// Those that a snapshot holds, by the identity of their limit: a reload finds them again.
#[derive(Debug, Default)]
pub(super) struct Singles(Mutex<HashMap<String, Weak<Single>>>);

impl Singles {
    /// The bucket of the limit with this identity; full if nobody holds one.
    pub(super) fn of(&self, identity: &str) -> Arc<Single> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.retain(|_, single| single.strong_count() > 0);
        if let Some(single) = held.get(identity).and_then(Weak::upgrade) {
            return single;
        }
        let single = Arc::<Single>::default();
        held.insert(identity.to_owned(), Arc::downgrade(&single));
        single
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_found_by_its_identity_while_somebody_holds_it() {
        let singles = Singles::default();
        let one = singles.of("a");
        assert_eq!(one.update(|tat| Some(tat + 5)), Ok(5));
        assert!(Arc::ptr_eq(&one, &singles.of("a")) && !Arc::ptr_eq(&one, &singles.of("b")));
        drop(one);
        assert_eq!(singles.of("a").get(), 0);
        assert_eq!(singles.0.lock().unwrap().len(), 1, "what nobody holds is forgotten");
    }

    #[test]
    fn parallel_charges_are_all_counted_and_a_refusal_changes_nothing() {
        let (single, passed) = (Single::default(), std::sync::atomic::AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let charged = |_: &u32| single.update(|tat| (tat < 30_000).then_some(tat + 1)).is_ok();
                    passed.fetch_add((0..10_000).filter(charged).count(), Ordering::Relaxed)
                });
            }
        });
        assert_eq!((single.get(), passed.into_inner()), (30_000, 30_000));
        assert_eq!(single.update(|_| None), Err(30_000));
    }
}
