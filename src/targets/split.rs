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
        let mut left = (u128::from(random) * u128::from(self.sum)) >> 64;
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(by: &[Selector], to: &[(&str, u32)]) -> route::Split {
        let branch = |(upstream, weight): &(&str, u32)| route::Branch { upstream: (*upstream).to_owned(), weight: *weight };
        route::Split { by: by.to_vec(), to: to.iter().map(branch).collect() }
    }

    fn split(to: &[(&str, u32)]) -> Split {
        Split::compile(&written(&[], to), &At::default(), &mut Problems::default()).unwrap()
    }

    fn problems(written: &route::Split) -> usize {
        let mut problems = Problems::default();
        assert!(Split::compile(written, &At::default(), &mut problems).is_none());
        problems.list().len()
    }

    #[test]
    fn splits_that_choose_nothing_are_refused() {
        assert_eq!(problems(&written(&[], &[])), 1);
        assert_eq!(problems(&written(&[], &[("a", 0), ("b", 0)])), 1);
        assert_eq!(problems(&written(&[Selector::Global], &[("a", 1), ("a", 1)])), 2);
    }

    #[test]
    fn sticky_choices_are_the_same_on_every_gateway() {
        // Fixed for ever: a change of these sends clients to other branches on upgrade.
        let split = split(&[("checkout-v1", 95), ("checkout-v2", 5)]);
        let v2: Vec<u32> = (0..200).filter(|n| split.choose(0, Some(format!("user-{n}").as_bytes())) == 1).collect();
        assert_eq!(v2, [26, 38, 44, 109, 120, 124, 142, 157, 166]);
    }

    #[test]
    fn sticky_shares_follow_the_weights() {
        let split = split(&[("a", 1), ("b", 3), ("c", 0), ("d", 6)]);
        let mut counts = [0_u32; 4];
        for n in 0..20_000_u32 {
            counts[split.choose(0, Some(&n.to_be_bytes()))] += 1;
        }
        // Expected 2000, 6000, 0, 12000; five standard deviations of the binomial are below 350.
        assert!(counts[0].abs_diff(2_000) < 350 && counts[1].abs_diff(6_000) < 350 && counts[3].abs_diff(12_000) < 350, "{counts:?}");
        assert_eq!(counts[2], 0);
    }

    #[test]
    fn the_order_of_branches_moves_no_key() {
        let (one, two) = (split(&[("a", 2), ("b", 3)]), split(&[("b", 3), ("a", 2)]));
        for n in 0..1_000_u32 {
            let key = n.to_be_bytes();
            assert_eq!(one.upstreams()[one.choose(0, Some(&key))], two.upstreams()[two.choose(0, Some(&key))]);
        }
    }

    const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

    fn named(weights: &[u32]) -> Vec<(&'static str, u32)> {
        NAMES.into_iter().zip(weights.iter().copied()).collect()
    }

    proptest! {
        #[test]
        fn random_shares_are_exact(weights in prop::collection::vec(0_u32..50, 1..5)) {
            let sum: u32 = weights.iter().sum();
            prop_assume!(sum > 0);
            let split = split(&named(&weights));
            let mut counts = vec![0; weights.len()];
            for step in 0..u64::from(sum) {
                // The middle of each of `sum` equal slices of the random numbers.
                let random = (u128::from(step) * 2 + 1) * (1 << 63) / u128::from(sum);
                counts[split.choose(u64::try_from(random).unwrap(), None)] += 1;
            }
            prop_assert_eq!(counts, weights);
        }

        #[test]
        fn any_random_number_and_weights_choose_a_branch_with_weight(weights in prop::collection::vec(0_u32.., 1..5), random: u64, key: Vec<u8>) {
            prop_assume!(weights.iter().any(|w| *w > 0));
            let split = split(&named(&weights));
            for index in [split.choose(random, None), split.choose(random, Some(&key)), split.choose(u64::MAX, None), split.choose(0, None)] {
                prop_assert!(weights[index] > 0);
            }
        }

        #[test]
        fn keys_move_only_towards_branches_that_grew_more(
            before in prop::collection::vec(0_u32..100, 2..5), after in prop::collection::vec(0_u32..100, 5),
        ) {
            let after = &after[..before.len()];
            prop_assume!(before.iter().any(|w| *w > 0) && after.iter().any(|w| *w > 0));
            let (one, two) = (split(&named(&before)), split(&named(after)));
            for n in 0..300_u32 {
                let key = n.to_be_bytes();
                let (old, new) = (one.choose(0, Some(&key)), two.choose(0, Some(&key)));
                // after[new] / before[new] > after[old] / before[old]
                let (gain, loss) = (u64::from(after[new]) * u64::from(before[old]), u64::from(after[old]) * u64::from(before[new]));
                prop_assert!(new == old || gain > loss, "{before:?} to {after:?} moved a key from {old} to {new}");
            }
        }

        #[test]
        fn one_changed_weight_moves_as_many_keys_as_its_share_changes(
            weights in prop::collection::vec(1_u32..50, 2..5), which: prop::sample::Index, new in 0_u32..100,
        ) {
            const KEYS: u32 = 3_000;
            let changed = which.index(weights.len());
            let mut after = weights.clone();
            after[changed] = new;
            let share = |weights: &[u32]| f64::from(weights[changed]) / f64::from(weights.iter().sum::<u32>());
            let needed = (share(&after) - share(&weights)).abs();
            let (one, two) = (split(&named(&weights)), split(&named(&after)));
            let moved = (0..KEYS).filter(|n| one.choose(0, Some(&n.to_be_bytes())) != two.choose(0, Some(&n.to_be_bytes()))).count();
            // Six standard deviations of a binomial distribution.
            let spread = 6.0 * (needed * (1.0 - needed) / f64::from(KEYS)).sqrt() + 1.0 / f64::from(KEYS);
            let moved = f64::from(u32::try_from(moved).unwrap()) / f64::from(KEYS);
            prop_assert!((moved - needed).abs() <= spread, "{moved} of the keys moved, {needed} had to");
        }

        #[test]
        fn weights_that_keep_their_proportions_move_nobody(weights in prop::collection::vec(1_u32..100, 2..5), factor in 2_u32..50) {
            let scaled: Vec<u32> = weights.iter().map(|weight| weight * factor).collect();
            let (one, two) = (split(&named(&weights)), split(&named(&scaled)));
            prop_assert!((0..300_u32).all(|n| one.choose(0, Some(&n.to_be_bytes())) == two.choose(0, Some(&n.to_be_bytes()))));
        }

        #[test]
        fn a_growing_branch_only_wins_keys(weights in prop::collection::vec(1_u32..100, 2..5), which: prop::sample::Index, more in 1_u32..100) {
            let grown = which.index(weights.len());
            let mut after = weights.clone();
            after[grown] += more;
            let (before, after) = (split(&named(&weights)), split(&named(&after)));
            for n in 0..300_u32 {
                let key = n.to_be_bytes();
                let (old, new) = (before.choose(0, Some(&key)), after.choose(0, Some(&key)));
                prop_assert!(new == old || new == grown);
            }
        }
    }
}
