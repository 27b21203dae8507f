//! The highest of many lines while time goes on: a kinetic tournament (J. Basch, L. J. Guibas, J. Hershberger: "Data Structures for
//! Mobile Data", Journal of Algorithms 31, 1999).
//!
//! A binary tree of matches, each of which knows its winner and until when that is certain. As in a kinetic segment tree there is no queue
//! of events: a match also knows when the first match below it becomes uncertain, so what is due is found from above, and nothing else
//! is touched. Time is whole numbers, so all of it is exact.
//!
//! Cost: a line that changes makes the log2(n) matches on its path due. The winners of a match over time are the upper envelope of the k
//! pieces of lines that were ever below it, which has at most k·α(k) pieces (α: inverse Ackermann, below 5). So u changes make
//! O((n + u)·log n·α) matches due, each found in O(log n): amortised O(log² n·α) a change. One step may play all matches.
//! A search looks at O(log n) nodes for each line that it asks and that does not fit.

use std::cmp::Reverse;

/// With up to this many lines looking at each is cheaper than keeping the matches.
const FEW: usize = 32;
/// Gain × time stays below this, so that heights and their differences do not overflow.
const HIGHEST_GAIN: i64 = 1 << 60;
const NEVER: i64 = i64::MAX;
const DUE: i64 = i64::MIN;

/// A line: its height at time 0, and what it gains per unit of time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line {
    pub start: i64,
    /// At least 0.
    pub gain: i64,
}

impl Line {
    /// Below every other; half of the lowest number, so that differences still fit.
    const NONE: Self = Self { start: i64::MIN / 2, gain: 0 };

    fn at(self, time: i64) -> i64 {
        self.start + self.gain * time
    }
}

/// A match, or a line by itself.
#[derive(Clone, Copy, Debug)]
struct Node {
    winner: Line,
    /// Whose line it is; [`NOBODY`] where there are fewer lines than leaves.
    position: usize,
    /// The first time at which another may have won here or in a match below; [`DUE`] if a line below has changed.
    until: i64,
}

const NOBODY: usize = usize::MAX;

/// Lines by position, of which the highest is to be found at any time; of equal ones the first.
#[derive(Debug)]
pub(super) struct Lines {
    lines: Vec<Line>,
    /// A binary tree as a heap from 1 on, whose last half are the lines in order; empty for a [`FEW`].
    nodes: Vec<Node>,
    /// From 1 on.
    now: i64,
    /// When time starts anew.
    last: i64,
    /// Nodes and lines that were looked at or changed.
    #[cfg(test)]
    pub visits: std::cell::Cell<usize>,
}

/// Height now, and position: the greater is the higher.
type Rank = (i64, Reverse<usize>);

/// A search for the highest line that fits.
struct Search<'a, F> {
    fits: F,
    best: Option<Rank>,
    refused: &'a mut Vec<usize>,
}

impl<F: Fn(usize) -> bool> Search<'_, F> {
    /// Whether it may be the best.
    fn beats(&self, rank: Rank) -> bool {
        self.best.is_none_or(|best| rank > best)
    }

    /// Asks one that may be the best; whether it fits.
    fn ask(&mut self, rank: Rank) -> bool {
        let (_, Reverse(position)) = rank;
        let fits = (self.fits)(position);
        if fits {
            self.best = Some(rank);
        } else {
            self.refused.push(position);
        }
        fits
    }
}

impl Lines {
    /// All lines, at time 1.
    pub fn new(lines: Vec<Line>) -> Self {
        let steepest = lines.iter().map(|line| line.gain).max().unwrap_or(0).max(1);
        let leaves = if lines.len() > FEW { lines.len().next_power_of_two() } else { 0 };
        let mut new = Self {
            nodes: vec![Node { winner: Line::NONE, position: NOBODY, until: NEVER }; 2 * leaves],
            lines,
            now: 1,
            last: HIGHEST_GAIN / steepest,
            #[cfg(test)]
            visits: std::cell::Cell::default(),
        };
        new.play_all();
        new
    }

    /// The line at a position.
    pub fn get(&self, position: usize) -> Option<Line> {
        self.lines.get(position).copied()
    }

    /// Heights before the last step, by position.
    pub fn heights_before(&self) -> impl Iterator<Item = i64> {
        self.lines.iter().map(|line| line.at(self.now - 1))
    }

    /// The highest line that `fits`. In `refused` are then those that are higher, and do not.
    pub fn highest(&self, fits: impl Fn(usize) -> bool, refused: &mut Vec<usize>) -> Option<usize> {
        let mut search = Search { fits, best: None, refused };
        if self.nodes.is_empty() {
            self.search_all(&mut search);
        } else {
            self.search_below(1, NOBODY, &mut search);
        }
        let best = search.best?;
        refused.retain(|position| self.rank(*position) > Some(best));
        Some(best.1.0)
    }

    /// Lowers a line, from the next step on.
    pub fn lower(&mut self, position: usize, by: i64) {
        let Some(line) = self.lines.get_mut(position) else { return };
        line.start -= by;
        let mut node = self.nodes.len() / 2 + position;
        if let Some(leaf) = self.nodes.get_mut(node) {
            leaf.winner = *line;
        }
        while let Some(due) = self.nodes.get_mut(node / 2).filter(|due| due.until != DUE)
            && node > 1
        {
            due.until = DUE;
            node /= 2;
            self.visit(1);
        }
    }

    /// One unit of time goes by.
    pub fn step(&mut self) {
        self.now += 1;
        if self.now >= self.last {
            let gone = self.now - 1;
            self.lines.iter_mut().for_each(|line| line.start = line.at(gone));
            self.now = 1;
            self.play_all();
        } else if self.nodes.get(1).is_some_and(|top| top.until <= self.now) {
            self.settle(1);
        }
    }

    fn rank(&self, position: usize) -> Option<Rank> {
        self.lines.get(position).map(|line| (line.at(self.now), Reverse(position)))
    }

    fn search_all<F: Fn(usize) -> bool>(&self, search: &mut Search<'_, F>) {
        self.visit(self.lines.len());
        let ranks = || self.lines.iter().enumerate().map(|(position, line)| (line.at(self.now), Reverse(position)));
        // Nearly always the highest fits, and no other is asked.
        let Some(highest) = ranks().max() else { return };
        if search.ask(highest) {
            return;
        }
        for rank in ranks().filter(|rank| *rank != highest) {
            if search.beats(rank) {
                search.ask(rank);
            }
        }
    }

    /// Searches at and below a node; `refused` was asked already.
    fn search_below<F: Fn(usize) -> bool>(&self, node: usize, refused: usize, search: &mut Search<'_, F>) {
        self.visit(1);
        let Some(top) = self.nodes.get(node).filter(|top| top.position != NOBODY) else { return };
        let rank = (top.winner.at(self.now), Reverse(top.position));
        if !search.beats(rank) || top.position != refused && search.ask(rank) {
            return;
        }
        let Some([one, _]) = self.children(node) else { return };
        // First where it came from: of equal lines the next is near.
        let (from, other) = if one.position == top.position { (2 * node, 2 * node + 1) } else { (2 * node + 1, 2 * node) };
        self.search_below(from, top.position, search);
        self.search_below(other, NOBODY, search);
    }

    fn children(&self, node: usize) -> Option<&[Node; 2]> {
        self.nodes.get(2 * node..).and_then(<[Node]>::first_chunk)
    }

    /// Plays a match that is due, and first what is due among those below it.
    fn settle(&mut self, node: usize) {
        self.visit(1);
        let Some([one, other]) = self.children(node) else { return };
        let (one, other) = (one.until <= self.now, other.until <= self.now);
        if one {
            self.settle(2 * node);
        }
        if other {
            self.settle(2 * node + 1);
        }
        self.play(node);
    }

    fn play_all(&mut self) {
        let leaves = self.nodes.len() / 2;
        for (position, (leaf, line)) in self.nodes.iter_mut().skip(leaves).zip(&self.lines).enumerate() {
            *leaf = Node { winner: *line, position, until: NEVER };
        }
        for node in (1..leaves).rev() {
            self.play(node);
        }
    }

    fn play(&mut self, node: usize) {
        self.visit(1);
        let Some(winner) = self.children(node).map(|[one, other]| play(one, other, self.now)) else { return };
        if let Some(place) = self.nodes.get_mut(node) {
            *place = winner;
        }
    }

    /// Counts, for tests, nodes or lines that are looked at.
    fn visit(&self, _count: usize) {
        #[cfg(test)]
        self.visits.set(self.visits.get() + _count);
    }
}

/// Who wins at `now`, and until when: `one` of equals.
fn play(one: &Node, other: &Node, now: i64) -> Node {
    let ahead = one.winner.at(now) - other.winner.at(now);
    // A draw is enough for the first, so the second leads by one less.
    let (winner, loser, lead) = if ahead < 0 { (other, one, -ahead - 1) } else { (one, other, ahead) };
    let closing = loser.winner.gain - winner.winner.gain;
    // The loser wins once it has made up for more than the lead.
    let overtakes = if closing > 0 { now + lead / closing + 1 } else { NEVER };
    Node { until: overtakes.min(one.until).min(other.until), ..*winner }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::testing::splitmix;

    #[test]
    fn time_starts_anew_unseen() {
        let mut seed = 5;
        let small: Vec<Line> =
            (0..100).map(|_| Line { start: (splitmix(&mut seed) % 500) as i64, gain: (splitmix(&mut seed) % 1000) as i64 + 1 }).collect();
        // The same a million million times as high: numbers get too large after about a thousand steps.
        let large = small.iter().map(|line| Line { start: line.start << 40, gain: line.gain << 40 }).collect();
        let total: i64 = small.iter().map(|line| line.gain).sum();
        let (mut small, mut large) = (Lines::new(small), Lines::new(large));
        for step in 1..5_000 {
            let highest = small.highest(|_| true, &mut vec![]);
            assert_eq!(large.highest(|_| true, &mut vec![]), highest, "step {step}");
            small.lower(highest.unwrap(), total);
            large.lower(highest.unwrap(), total << 40);
            small.step();
            large.step();
            assert!(small.heights_before().map(|height| height << 40).eq(large.heights_before()), "step {step}");
        }
        assert!(large.now < 2_000);
    }
}
