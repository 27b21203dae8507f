//! Random numbers for balancing and jitter: fast, per thread, and not for secrets.

use std::cell::Cell;
use std::hash::{BuildHasher, RandomState};

thread_local! {
    static STATE: Cell<u64> = Cell::new(RandomState::new().hash_one(0_u8));
}

/// The next number of this thread's generator (wyrand: one multiplication, passes BigCrush).
pub fn next() -> u64 {
    STATE.with(|state| {
        let next = state.get().wrapping_add(0xA076_1D64_78BD_642F);
        state.set(next);
        let wide = u128::from(next) * u128::from(next ^ 0xE703_7ED1_A0B4_28DB);
        ((wide >> 64) ^ wide) as u64
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn numbers_spread_over_the_whole_range() {
        let mut buckets = [0_u32; 16];
        for _ in 0..16_000 {
            buckets[(super::next() >> 60) as usize] += 1;
        }
        assert!(buckets.iter().all(|count| (800..1_200).contains(count)), "{buckets:?}");
    }
}
