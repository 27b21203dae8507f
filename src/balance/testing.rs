//! Candidates for tests.

use std::sync::Arc;

use super::{Ask, Candidates, Usable};

/// Endpoints by position.
#[derive(Clone, Debug, Default)]
pub struct Fake {
    pub out: Vec<usize>,
    pub in_flight: Vec<u32>,
    pub latency: Vec<f32>,
}

impl Candidates for Fake {
    fn fits(&self, position: usize) -> bool {
        !self.out.contains(&position)
    }
    fn in_flight(&self, position: usize) -> u32 {
        self.in_flight.get(position).copied().unwrap_or(0)
    }
    fn latency(&self, position: usize) -> f32 {
        self.latency.get(position).copied().unwrap_or(0.03)
    }
}

/// Ids `a`, `b`, … with weights.
pub fn ids(weights: &[u32]) -> Vec<(Arc<str>, u32)> {
    weights.iter().enumerate().map(|(n, weight)| (format!("http://10.0.0.{n}:80").into(), *weight)).collect()
}

/// All of them usable at full speed, unless their weight is 0.
pub fn usable(all: &[(Arc<str>, u32)]) -> Vec<Usable<'_>> {
    all.iter().filter(|(_, weight)| *weight > 0).map(|(id, weight)| Usable { id, weight: *weight, factor: 1.0 }).collect()
}

/// A pick with nothing but randomness.
pub fn ask(random: u64) -> Ask<'static> {
    Ask { random, hash: &|| None, in_flight: 0 }
}

/// SplitMix64: a good sequence from any seed.
pub fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// How often each position was picked.
pub fn histogram(len: usize, picks: impl IntoIterator<Item = usize>) -> Vec<u32> {
    let mut counts = vec![0; len];
    picks.into_iter().for_each(|position| counts[position] += 1);
    counts
}
