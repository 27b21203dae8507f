//! Which of the usable endpoints gets an attempt. Pure: positions in, a position out.
//!
//! A [`Balancer`] is built whenever the set of usable endpoints changes (rarely) and picks from it (always).
//! What changes with every request (in flight, latency, full pools) it asks through [`Candidates`].

pub mod clock;
pub mod ewma;
pub mod hash;
mod kinetic;
pub mod least_requests;
pub mod p2c;
pub mod random;
mod ranking;
pub mod round_robin;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
pub mod weighted;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

pub use hash::hash_key;

/// What a balancer asks about the usable endpoints, by position.
pub trait Candidates {
    /// Whether it may be picked now: not tried by this request before, and with room for a connection.
    fn fits(&self, position: usize) -> bool;
    /// Attempts in flight.
    fn in_flight(&self, position: usize) -> u32;
    /// Peak EWMA of its latency, in seconds.
    fn latency(&self, position: usize) -> f32;
}

/// Whose turn it is: a number that all workers share, alone on its cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Turn(AtomicUsize);

impl Turn {
    /// The next number.
    pub fn next(&self) -> usize {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
    fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
    fn set(&self, turn: usize) {
        self.0.store(turn, Ordering::Relaxed);
    }
}

/// How an endpoint is chosen.
#[derive(Clone, Debug)]
pub enum Strategy {
    /// One after the other.
    RoundRobin,
    /// Smooth weighted round robin.
    Weighted,
    /// Fewest in flight per weight.
    LeastRequests,
    /// The cheaper of two random ones.
    P2c,
    /// Uniform.
    Random,
    /// The same key on the same endpoint.
    ConsistentHash {
        /// Most load of one endpoint relative to the mean.
        bounded_load: Option<f64>,
        /// The table of the last membership.
        cache: hash::TableCache,
    },
}

impl Strategy {
    /// The word in the configuration.
    pub fn word(&self) -> &'static str {
        match self {
            Self::RoundRobin => "round_robin",
            Self::Weighted => "weighted",
            Self::LeastRequests => "least_requests",
            Self::P2c => "p2c",
            Self::Random => "random",
            Self::ConsistentHash { .. } => "consistent_hash",
        }
    }

    /// Whether endpoints of more weight get more requests.
    pub fn has_weights(&self) -> bool {
        match self {
            Self::Weighted | Self::LeastRequests | Self::ConsistentHash { .. } => true,
            Self::RoundRobin | Self::P2c | Self::Random => false,
        }
    }

    /// Whether it looks at the attempts in flight on an endpoint.
    pub fn counts_in_flight(&self) -> bool {
        matches!(self, Self::LeastRequests | Self::P2c) || self.counts_all_in_flight()
    }

    /// Whether it needs to know the attempts in flight on all endpoints together.
    pub fn counts_all_in_flight(&self) -> bool {
        matches!(self, Self::ConsistentHash { bounded_load: Some(_), .. })
    }
}

/// A usable endpoint, as a balancer is built from it.
#[derive(Clone, Copy, Debug)]
pub struct Usable<'a> {
    /// Its id.
    pub id: &'a Arc<str>,
    /// Its weight, above 0.
    pub weight: u32,
    /// Its factor of slow start, 0.1 to 1.0.
    pub factor: f64,
}

impl Usable<'_> {
    /// Weight × factor in thousandths, at least 1.
    fn share(&self) -> u64 {
        ((f64::from(self.weight) * self.factor * 1000.0).round() as u64).max(1)
    }
}

/// What one pick depends on.
pub struct Ask<'a> {
    /// Uniform over all of `u64`.
    pub random: u64,
    /// Hash of the request's key, if it has one.
    pub hash: &'a (dyn Fn() -> Option<u64> + Sync),
    /// Attempts in flight on all endpoints, if [`Strategy::counts_all_in_flight`].
    pub in_flight: u32,
}

/// A strategy, ready for one set of usable endpoints.
#[derive(Debug)]
pub enum Balancer {
    /// One after the other, over so many.
    RoundRobin(usize),
    /// Smooth weighted round robin; also round robin during slow start.
    Weighted(weighted::Smooth),
    /// Fewest in flight per weight.
    LeastRequests(least_requests::Shares),
    /// The cheaper of two random ones.
    P2c(p2c::Factors),
    /// Uniform, or by share.
    Random(random::Shares),
    /// The same key on the same endpoint.
    Hash(hash::Ring),
}

impl Balancer {
    /// A balancer without endpoints.
    pub fn empty() -> Self {
        Self::RoundRobin(0)
    }

    /// A balancer over `usable`, in written order. `all` are the ids and weights of all endpoints, usable or not;
    /// `previous` is the balancer before the change, whose running scores go on.
    pub fn build(strategy: &Strategy, usable: &[Usable<'_>], all: &[(Arc<str>, u32)], previous: Option<&Self>) -> Self {
        let slow = usable.iter().any(|endpoint| endpoint.factor < 1.0);
        match strategy {
            Strategy::RoundRobin if !slow => Self::RoundRobin(usable.len()),
            Strategy::RoundRobin | Strategy::Weighted => {
                let scores = match previous {
                    Some(Self::Weighted(smooth)) => smooth.scores(),
                    _other_kind_or_none => weighted::Scores::new(),
                };
                Self::Weighted(weighted::Smooth::new(usable, all, scores))
            }
            Strategy::LeastRequests => Self::LeastRequests(least_requests::Shares::new(usable)),
            Strategy::P2c => Self::P2c(p2c::Factors::new(usable)),
            Strategy::Random => Self::Random(random::Shares::new(usable, |endpoint| if slow { endpoint.share() } else { 1 })),
            Strategy::ConsistentHash { bounded_load, cache } => Self::Hash(hash::Ring::new(usable, &cache.table(all), *bounded_load)),
        }
    }

    /// Whether it has to be told of loads that change, with [`Balancer::load_changed`].
    pub fn ranks(&self) -> bool {
        match self {
            Self::LeastRequests(shares) => shares.ranks(),
            Self::RoundRobin(_) | Self::Weighted(_) | Self::P2c(_) | Self::Random(_) | Self::Hash(_) => false,
        }
    }

    /// Looks at all loads, once, before the first pick.
    pub fn rank(&self, turn: &Turn, candidates: &impl Candidates) {
        if let Self::LeastRequests(shares) = self {
            shares.rank(turn, candidates);
        }
    }

    /// The attempts in flight on the endpoint at `position` have changed, also by a pick.
    pub fn load_changed(&self, position: usize, candidates: &impl Candidates) {
        if let Self::LeastRequests(shares) = self {
            shares.load_changed(position, candidates);
        }
    }

    /// Picks a position that fits; `None` if none does.
    pub fn pick(&self, turn: &Turn, candidates: &impl Candidates, ask: &Ask<'_>) -> Option<usize> {
        match self {
            Self::RoundRobin(len) => round_robin::pick(*len, turn, candidates),
            Self::Weighted(smooth) => smooth.pick(candidates),
            Self::LeastRequests(shares) => shares.pick(turn, candidates),
            Self::P2c(factors) => factors.pick(ask.random, candidates),
            Self::Random(shares) => shares.pick(ask.random, candidates),
            Self::Hash(ring) => ring.pick(candidates, ask),
        }
    }
}

/// Draws of a random endpoint that fits before all are looked at: so few that do not fit cost a pick next to nothing.
const DRAWS: usize = 8;

/// A number below `len`, from 32 random bits, without division.
fn below(bits: u32, len: usize) -> usize {
    ((u64::from(bits) * len as u64) >> 32) as usize
}

/// Another random number from one that was used: the finaliser of SplitMix64.
fn redraw(random: u64) -> u64 {
    let z = random.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
