//! Weighted choice between upstreams: at random, or sticky by a key.

use xxhash_rust::xxh3::xxh3_64;

use crate::config::{At, Problems, route};
use crate::units::Selector;

/// A compiled split.
#[derive(Clone, Debug)]
pub struct Split {
    by: Vec<Selector>,
    names: Vec<String>,
    branches: Vec<Branch>,
    /// Sum of the weights, never 0.
    sum: u64,
}

#[derive(Clone, Copy, Debug)]
struct Branch {
    weight: u32,
    /// XXH3-64 of the upstream's name: keys stay with names, whatever their order.
    seed: u64,
}

impl Split {
    /// Compiles what is written at `at` (the route's `split`). That the upstreams exist is checked where they are known.
    pub fn compile(written: &route::Split, at: &At, problems: &mut Problems) -> Option<Self> {
        let before = problems.list().len();
        if written.to.is_empty() {
            problems.error(at.clone(), "`split` has no branches").help("write at least one `{ upstream: NAME, weight: N }`");
        }
        // The short form is the list itself.
        let list = if written.by.is_empty() { at.clone() } else { at.key("to") };
        for (index, branch) in written.to.iter().enumerate() {
            if written.to.iter().take(index).any(|other| other.upstream == branch.upstream) {
                let message = format!("the upstream `{}` is in this split twice", branch.upstream);
                problems.error(list.index(index).key("upstream"), message).help("write it once, with the sum of the weights");
            }
        }
        let sum = written.to.iter().map(|branch| u64::from(branch.weight)).sum();
        if sum == 0 && !written.to.is_empty() {
            problems.error(at.clone(), "all weights of this split are 0").help("give at least one branch a weight");
        }
        if written.by.contains(&Selector::Global) {
            problems.error(at.key("by"), "`global` is the same for all requests").help("it is for rate limits only");
        }
        let branch = |branch: &route::Branch| Branch { weight: branch.weight, seed: xxh3_64(branch.upstream.as_bytes()) };
        (problems.list().len() == before).then(|| Self {
            by: written.by.clone(),
            names: written.to.iter().map(|branch| branch.upstream.clone()).collect(),
            branches: written.to.iter().map(branch).collect(),
            sum,
        })
    }

    /// Names of the upstreams; [`Split::choose`] gives indices into them.
    pub fn upstreams(&self) -> &[String] {
        &self.names
    }

    /// What the choice sticks to: the first selector present is the key. Empty is at random.
    pub fn by(&self) -> &[Selector] {
        &self.by
    }

    /// The branch for a request. With a `key` it is the same one for that key on every gateway, and a change of weights moves only
    /// the keys that it must; without one, `random` (uniform over all of `u64`) decides.
    pub fn choose(&self, random: u64, key: Option<&[u8]>) -> usize {
        match key {
            Some(key) => self.sticky(xxh3_64(key)),
            None => self.drawn(random),
        }
    }

    fn drawn(&self, random: u64) -> usize {
        let scaled = u128::from(random) * u128::from(self.sum) >> 64;
        let mut left = scaled;
        for (index, branch) in self.branches.iter().enumerate() {
            match left.checked_sub(u128::from(branch.weight)) {
                Some(rest) => left = rest,
                None => return index,
            }
        }
        0
    }

    /// Weighted rendezvous hashing (Schindelhauer and Schomaker, 2005): each branch draws `-weight / ln(u)` with a `u` of its own
    /// from the key, and the highest wins. A branch whose weight grows can only win keys, one whose weight falls only lose them.
    fn sticky(&self, key: u64) -> usize {
        let mut best = (0, f64::NEG_INFINITY);
        for (index, branch) in self.branches.iter().enumerate() {
            if branch.weight == 0 {
                continue;
            }
            // The top 52 bits and a half: exact in 53, never 0 and never 1, so that the logarithm is finite and not 0.
            #[allow(clippy::cast_precision_loss)]
            let u = ((mix(key ^ branch.seed) >> 12) as f64 + 0.5) / (1_u64 << 52) as f64;
            let score = -f64::from(branch.weight) / u.ln();
            if score > best.1 {
                best = (index, score);
            }
        }
        best.0
    }
}

/// The finaliser of splitmix64 (Steele, Lea and Flood, 2014): every bit of the input reaches every bit of the output.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
