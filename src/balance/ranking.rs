//! The least loaded of many endpoints without looking at each: a tournament, whose matches along one path are played again when the load of
//! one endpoint has changed.
//!
//! No locks: whoever changes a load replays its path, on live loads. Two at once may leave a match that is a moment old; it is right again
//! when either of them changes the next time, or when its turn comes: each pick replays one path more, in rotation.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use super::Candidates;

/// Winners of matches between endpoints.
#[derive(Debug)]
pub(super) struct Ranking {
    /// A binary tree as a heap from 1 on: position of each match's winner. The endpoints are its leaves, and not stored.
    winners: Box<[AtomicU32]>,
    /// When each was picked last, as a turn: of equals the one that waits longest wins.
    picked: Box<[AtomicU64]>,
    /// Leaves, rounded up to a power of two.
    leaves: usize,
}

impl Ranking {
    pub fn new(len: usize) -> Self {
        let leaves = len.next_power_of_two();
        Self { winners: (0..leaves).map(|_| AtomicU32::new(0)).collect(), picked: (0..len).map(|_| AtomicU64::new(0)).collect(), leaves }
    }

    /// Plays all matches; of equals it is the turn of `first`, then of those behind it.
    pub fn play(&self, first: usize, shares: &[u64], candidates: &impl Candidates) {
        let len = self.picked.len().max(1);
        for (position, picked) in self.picked.iter().enumerate() {
            picked.store(((position + len - first % len) % len) as u64, Relaxed);
        }
        for node in (1..self.leaves).rev() {
            self.match_at(node, shares, candidates);
        }
    }

    /// Plays the matches of one endpoint again.
    pub fn replay(&self, position: usize, shares: &[u64], candidates: &impl Candidates) {
        let mut node = (self.leaves + position) / 2;
        while node >= 1 {
            self.match_at(node, shares, candidates);
            node /= 2;
        }
    }

    /// Who leads.
    pub fn leader(&self) -> usize {
        self.winners.get(1).map_or(0, |winner| winner.load(Relaxed) as usize)
    }

    /// Who would lead if those that do not fit were not there. Looks at each.
    pub fn leader_that_fits(&self, shares: &[u64], candidates: &impl Candidates) -> Option<usize> {
        let fitting = (0..self.picked.len()).filter(|position| candidates.fits(*position));
        fitting.reduce(|one, other| if self.beats(other, one, shares, candidates) { other } else { one })
    }

    /// It was picked, the `number`th of all: of equals all others come before it now.
    pub fn picked(&self, position: usize, number: usize) {
        if let Some(picked) = self.picked.get(position) {
            picked.store(number.saturating_add(self.picked.len()) as u64, Relaxed);
        }
    }

    /// The winner at a child, which may be a leaf; leaves without an endpoint give a number beyond them.
    fn winner_below(&self, child: usize) -> u32 {
        match child.checked_sub(self.leaves) {
            Some(leaf) => u32::try_from(leaf).unwrap_or(u32::MAX),
            None => self.winners.get(child).map_or(u32::MAX, |winner| winner.load(Relaxed)),
        }
    }

    fn match_at(&self, node: usize, shares: &[u64], candidates: &impl Candidates) {
        let (one, other) = (self.winner_below(2 * node), self.winner_below(2 * node + 1));
        let beats = self.beats(other as usize, one as usize, shares, candidates);
        if let Some(winner) = self.winners.get(node) {
            winner.store(if beats { other } else { one }, Relaxed);
        }
    }

    /// Whether `other` has less load for its share than `one`, or as much and waits longer.
    fn beats(&self, other: usize, one: usize, shares: &[u64], candidates: &impl Candidates) -> bool {
        let (Some(other_share), Some(other_picked)) = (shares.get(other), self.picked.get(other)) else { return false };
        let (Some(one_share), Some(one_picked)) = (shares.get(one), self.picked.get(one)) else { return true };
        let load = |position| u64::from(candidates.in_flight(position)) + 1;
        // load / share against load / share, without division
        let (theirs, ours) = (load(other) * one_share, load(one) * other_share);
        theirs < ours || theirs == ours && other_picked.load(Relaxed) < one_picked.load(Relaxed)
    }
}
