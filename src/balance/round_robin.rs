//! One after the other.

use super::{Candidates, Turn};

/// Positions in turn. What does not fit draws the next number instead of handing its turn to its neighbour,
/// which would get a double share.
pub fn pick(len: usize, turn: &Turn, candidates: &impl Candidates) -> Option<usize> {
    if len == 1 {
        // Nothing to take turns in: the number is one that all workers write.
        return candidates.fits(0).then_some(0);
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::testing::{Fake, histogram};

    #[test]
    fn goes_round_in_written_order() {
        let turn = Turn::default();
        let picks: Vec<_> = (0..7).filter_map(|_| pick(3, &turn, &Fake::default())).collect();
        assert_eq!(picks, [0, 1, 2, 0, 1, 2, 0]);
    }

    #[test]
    fn what_does_not_fit_leaves_the_others_equal_shares() {
        let turn = Turn::default();
        let full = Fake { out: vec![1], ..Fake::default() };
        assert_eq!(histogram(4, (0..300).filter_map(|_| pick(4, &turn, &full))), [100, 0, 100, 100]);
    }

    #[test]
    fn nothing_fits() {
        let full = Fake { out: vec![0, 1], ..Fake::default() };
        assert_eq!(pick(2, &Turn::default(), &full), None);
        assert_eq!(pick(0, &Turn::default(), &full), None);
    }

    #[test]
    fn threads_share_one_counter() {
        let turn = Turn::default();
        let counts = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..4).map(|_| scope.spawn(|| (0..750).filter_map(|_| pick(3, &turn, &Fake::default())).collect::<Vec<_>>())).collect();
            histogram(3, threads.into_iter().flat_map(|thread| thread.join().expect("no panic")))
        });
        assert_eq!(counts, [1000, 1000, 1000]);
    }
}
