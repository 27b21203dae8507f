//! What a thread has seen last of values that all threads share and that are replaced now and then.
//!
//! To load such a value takes a few locked instructions, and to keep it would keep a configuration alive that was replaced long ago, on a
//! thread without requests. So a value has a number that no other has, which is read first, and a thread keeps weak references by number.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};

/// Weak references by number. Numbers that share a place displace each other.
#[derive(Debug)]
pub struct Kept<T, const PLACES: usize>([(u64, Weak<T>); PLACES]);

impl<T, const PLACES: usize> Kept<T, PLACES> {
    /// Nothing.
    #[must_use]
    pub const fn new() -> Self {
        const { assert!(PLACES > 0) };
        Self([const { (0, Weak::new()) }; PLACES])
    }

    /// The value with this number, if it is known here and somebody still holds it.
    pub fn get(&self, number: u64) -> Option<Arc<T>> {
        let (known, value) = &self.0[number as usize % PLACES];
        if *known == number { value.upgrade() } else { None }
    }

    /// Keeps the value with this number.
    pub fn keep(&mut self, number: u64, value: &Arc<T>) {
        self.0[number as usize % PLACES] = (number, Arc::downgrade(value));
    }
}

impl<T, const PLACES: usize> Default for Kept<T, PLACES> {
    fn default() -> Self {
        Self::new()
    }
}

/// A number that no value has had; 0 is none.
pub fn next_number() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    LAST.fetch_add(1, Relaxed) + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_found_by_its_own_number_while_somebody_holds_it() {
        let (one, two) = (Arc::new(1), Arc::new(2));
        let mut kept = Kept::<i32, 2>::new();
        assert_eq!(kept.get(0), None);
        kept.keep(4, &one);
        kept.keep(7, &two);
        assert_eq!((kept.get(4), kept.get(7), kept.get(2), kept.get(5)), (Some(one.clone()), Some(two), None, None));
        drop(one);
        assert_eq!(kept.get(4), None, "it does not live on here");
        kept.keep(9, &Arc::new(3));
        assert_eq!(kept.get(7), None, "displaced");
    }

    #[test]
    fn no_number_comes_twice() {
        let numbers = [next_number(), next_number(), next_number()];
        assert!(numbers.is_sorted_by(|a, b| a < b) && numbers[0] > 0);
    }
}
