//! What all strategies have in common.

use std::cell::Cell;

use proptest::prelude::*;

use super::testing::{Fake, histogram, ids, splitmix, usable};
use super::{Ask, Balancer, Candidates, Strategy, Turn};

fn all() -> Vec<Strategy> {
    let hash = |bounded_load| Strategy::ConsistentHash { bounded_load, cache: super::hash::TableCache::default() };
    vec![Strategy::RoundRobin, Strategy::Weighted, Strategy::LeastRequests, Strategy::P2c, Strategy::Random, hash(None), hash(Some(1.25))]
}

/// Counts how often endpoints are looked at.
struct Counting<'a> {
    fake: &'a Fake,
    looks: Cell<usize>,
}

impl Counting<'_> {
    fn look(&self) {
        self.looks.set(self.looks.get() + 1);
    }
}

impl Candidates for Counting<'_> {
    fn fits(&self, position: usize) -> bool {
        self.look();
        self.fake.fits(position)
    }
    fn in_flight(&self, position: usize) -> u32 {
        self.look();
        self.fake.in_flight(position)
    }
    fn latency(&self, position: usize) -> f32 {
        self.look();
        self.fake.latency(position)
    }
}

/// Looks per pick, on average and at most, among `len` endpoints with these loads, of which those in `out` are full.
fn looks(strategy: &Strategy, len: usize, weights: u32, busy: bool, out: Vec<usize>) -> (f64, usize) {
    let written: Vec<u32> = (0..len).map(|n| n as u32 % weights + 1).collect();
    let described = ids(&written);
    let balancer = Balancer::build(strategy, &usable(&described), &described, None);
    let mut seed = 7;
    // Where all are busy nobody is as good as an idle one, so that no search can end early.
    let load = if busy { (0..len).map(|_| 3 + (splitmix(&mut seed) % 4) as u32).collect() } else { vec![0; len] };
    let fake = Fake { in_flight: load, out, ..Fake::default() };
    let (turn, counting) = (Turn::default(), Counting { fake: &fake, looks: Cell::new(0) });
    balancer.rank(&turn, &counting);
    let (mut sum, mut most) = (0, 0);
    for _ in 0..1_000 {
        let random = splitmix(&mut seed);
        let hash = || Some(random);
        counting.looks.set(0);
        let ask = Ask { random, hash: &hash, in_flight: fake.in_flight.iter().sum() };
        let picked = balancer.pick(&turn, &counting, &ask).expect("some fit");
        // Once for the pick, once for its end.
        balancer.load_changed(picked, &counting);
        balancer.load_changed(picked, &counting);
        sum += counting.looks.get();
        most = most.max(counting.looks.get());
    }
    (f64::from(u32::try_from(sum).unwrap()) / 1_000.0, most)
}

#[test]
fn a_pick_among_a_thousand_looks_at_few() {
    for strategy in all() {
        for busy in [false, true] {
            let name = format!("{strategy:?}, {}", if busy { "busy" } else { "idle" });
            let (one, _) = looks(&strategy, 1, 1, busy, vec![]);
            assert!(one <= 8.0, "{name}: {one} looks at the only one");
            // Ten matches of two, four paths: the bound is logarithmic.
            let (mean, most) = looks(&strategy, 1_000, 1, busy, vec![]);
            assert!(mean <= 80.0 && most <= 100, "{name}: {mean} looks, at most {most}");
        }
    }
}

#[test]
fn a_tenth_that_is_full_makes_a_pick_little_dearer() {
    let tenth: Vec<usize> = (0..1_000).step_by(10).collect();
    for strategy in all() {
        if matches!(strategy, Strategy::LeastRequests) {
            // An endpoint that is full has more in flight than those that are not: it does not lead.
            continue;
        }
        let (mean, most) = looks(&strategy, 1_000, 1, false, tenth.clone());
        assert!(mean <= 80.0 && most <= 200, "{strategy:?}: {mean} looks, at most {most}");
    }
}

#[test]
fn weights_that_differ_cost_a_pick_no_look_more() {
    for weights in [1, 10, 1_000] {
        assert_eq!(looks(&Strategy::Weighted, 1_000, weights, false, vec![]), (1.0, 1), "{weights} weights");
    }
}

/// Shares of 20,000 picks, each over before the next.
fn shares(strategy: &Strategy, described: &[(std::sync::Arc<str>, u32)], usable: &[super::Usable<'_>], fake: &Fake) -> Vec<u32> {
    let balancer = Balancer::build(strategy, usable, described, None);
    let turn = Turn::default();
    balancer.rank(&turn, fake);
    let mut seed = 11;
    let picks = (0..20_000).map(|_| {
        let random = splitmix(&mut seed);
        let hash = || Some(random);
        let picked = balancer.pick(&turn, fake, &Ask { random, hash: &hash, in_flight: 0 }).expect("some fit");
        balancer.load_changed(picked, fake);
        picked
    });
    histogram(usable.len(), picks)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Full ones, or ones this request has tried: they are among the usable, and do not fit.
    #[test]
    fn who_does_not_fit_is_skipped_without_skewing_the_rest(len in 3usize..60, out in prop::collection::vec(any::<prop::sample::Index>(), 1..3)) {
        let described = ids(&vec![1; len]);
        let mut out: Vec<usize> = out.iter().map(|index| index.index(len)).collect();
        out.sort_unstable();
        out.dedup();
        let left = len - out.len();
        for strategy in all() {
            let counts = shares(&strategy, &described, &usable(&described), &Fake { out: out.clone(), ..Fake::default() });
            let fair = 20_000.0 / left as f64;
            // Exact strategies are within one round, random ones within six standard deviations, hashing has its table's spread as well.
            let slack = match strategy {
                Strategy::RoundRobin | Strategy::Weighted => 2.0,
                Strategy::LeastRequests | Strategy::P2c | Strategy::Random => 6.0 * fair.sqrt(),
                Strategy::ConsistentHash { .. } => 6.0 * fair.sqrt() + 0.15 * fair,
            };
            for (position, count) in counts.iter().enumerate() {
                let expected = if out.contains(&position) { 0.0 } else { fair };
                let allowed = if out.contains(&position) { 0.0 } else { slack };
                prop_assert!((f64::from(*count) - expected).abs() <= allowed, "{strategy:?}: {counts:?} without {out:?}");
            }
        }
    }

    /// Unhealthy and ejected ones: they are not among the usable.
    #[test]
    fn who_is_not_usable_leaves_the_rest_their_proportions(weights in prop::collection::vec(1u32..=5, 3..40), gone in any::<prop::sample::Index>()) {
        let described = ids(&weights);
        let gone = gone.index(weights.len());
        let whole = usable(&described);
        let rest: Vec<super::Usable<'_>> = whole.iter().enumerate().filter(|(position, _)| *position != gone).map(|(_, it)| *it).collect();
        for strategy in all().into_iter().filter(|strategy| strategy.has_weights() && !matches!(strategy, Strategy::LeastRequests)) {
            let total: f64 = rest.iter().map(|it| f64::from(it.weight)).sum();
            let counts = shares(&strategy, &described, &rest, &Fake::default());
            for (count, it) in counts.iter().zip(&rest) {
                let fair = 20_000.0 * f64::from(it.weight) / total;
                let exact = matches!(strategy, Strategy::Weighted);
                let slack = if exact { rest.len() as f64 } else { 6.0 * fair.sqrt() + 0.15 * fair };
                prop_assert!((f64::from(*count) - fair).abs() <= slack, "{strategy:?}: {counts:?} for {rest:?}");
            }
        }
    }
}
