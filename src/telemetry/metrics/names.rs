//! Handles by name, kept while somebody else holds them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A registry of handles. Used when snapshots are built and at scrapes, never by requests.
#[derive(Debug)]
pub struct Names<K, T>(Mutex<BTreeMap<K, Arc<T>>>);

impl<K, T> Default for Names<K, T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Ord, T> Names<K, T> {
    /// The handle of this name; made if there is none.
    pub fn get(&self, name: K, make: impl FnOnce() -> T) -> Arc<T> {
        Arc::clone(self.lock().entry(name).or_insert_with(|| Arc::new(make())))
    }

    /// Forgets handles that nobody else holds. Only this registry makes new holders, and only under its lock.
    pub fn retain(&self) {
        self.lock().retain(|_, handle| Arc::strong_count(handle) > 1);
    }

    /// Calls `f` for each, in the order of names.
    pub fn each(&self, mut f: impl FnMut(&K, &T)) {
        self.lock().iter().for_each(|(name, handle)| f(name, handle));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<K, Arc<T>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
