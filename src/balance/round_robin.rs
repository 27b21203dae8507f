//! One after the other.

use super::{Candidates, Turn};

/// Positions in turn. What does not fit draws the next number instead of handing its turn to its neighbour,
/// which would get a double share.
pub fn pick(len: usize, turn: &Turn, candidates: &impl Candidates) -> Option<usize> {
    let mut position = 0;
    for _ in 0..len {
        position = turn.next() % len;
        if candidates.fits(position) {
            return Some(position);
        }
    }
    // Other threads may have drawn the numbers that fit: look at each once.
    (0..len).map(|step| (position + step) % len).find(|position| candidates.fits(*position))
}
