//! Which of the usable endpoints gets an attempt. Pure: positions in, a position out.
//!
//! A [`Balancer`] is built whenever the set of usable endpoints changes (rarely) and picks from it (always).
//! What changes with every request (in flight, latency, full pools) it asks through [`Candidates`].

pub mod clock;
pub mod ewma;

use std::sync::atomic::{AtomicUsize, Ordering};

/// What a balancer asks about the usable endpoints, by position.
pub trait Candidates {
    /// Whether it may be picked now: not tried by this request before, and with room for a connection.
    fn fits(&self, position: usize) -> bool;
    /// Attempts in flight.
    fn in_flight(&self, position: usize) -> u32;
    /// Peak EWMA of its latency, in seconds.
    fn latency(&self, position: usize) -> f32;
}

/// A counter that all workers share, alone on its cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Turn(pub AtomicUsize);

impl Turn {
    /// The next number.
    pub fn next(&self) -> usize {
        self.0.fetch_add(1, Ordering::Relaxed)
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
        cache: TableCache,
    },
}

/// PLACEHOLDER
#[derive(Clone, Debug, Default)]
pub struct TableCache;

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

    /// Whether it needs to know the attempts in flight on all endpoints together.
    pub fn counts_all_in_flight(&self) -> bool {
        matches!(self, Self::ConsistentHash { bounded_load: Some(_), .. })
    }
}

/// A usable endpoint, as the balancer is built from it.
#[derive(Clone, Copy, Debug)]
pub struct Usable<'a> {
    /// Its id.
    pub id: &'a std::sync::Arc<str>,
    /// Its place among all endpoints, usable or not.
    pub index: usize,
    /// Its weight, above 0.
    pub weight: u32,
    /// Its factor of slow start, 0.1 to 1.0.
    pub factor: f64,
}

/// What one pick depends on.
pub struct Ask<'a> {
    /// Uniform over all of `u64`.
    pub random: u64,
    /// Hash of the request's key, if it has one.
    pub hash: &'a dyn Fn() -> Option<u64>,
    /// Attempts in flight on all endpoints, if [`Strategy::counts_all_in_flight`].
    pub in_flight: u32,
}

/// Hash of a key for [`Ask::hash`]: XXH3-64, seed 0, so that all gateways and restarts agree.
pub fn hash_key(key: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(key)
}

pub mod round_robin;

/// PLACEHOLDER
#[derive(Debug)]
pub enum Balancer {
    /// PLACEHOLDER
    RoundRobin(usize),
}
impl Balancer {
    /// PLACEHOLDER
    pub fn empty() -> Self {
        Self::RoundRobin(0)
    }
    /// PLACEHOLDER
    pub fn build(_: &Strategy, usable: &[Usable<'_>], _: &[(std::sync::Arc<str>, u32)], _: Option<&Self>) -> Self {
        Self::RoundRobin(usable.len())
    }
    /// PLACEHOLDER
    pub fn pick(&self, turn: &Turn, candidates: &impl Candidates, _: &Ask<'_>) -> Option<usize> {
        match self {
            Self::RoundRobin(len) => round_robin::pick(*len, turn, candidates),
        }
    }
}
