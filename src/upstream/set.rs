//! The usable endpoints at one moment, with a balancer built for them.

use std::ops::Deref;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::in_flight::LANES;
use super::{Endpoint, Members, Rules, View};
use crate::balance::{Balancer, Strategy, Turn, Usable};
use crate::kept::next_number;

/// How finely slow start goes up: this many steps per window, but not more often than [`SHORTEST_STEP`].
const SLOW_STEPS: u32 = 200;
const SHORTEST_STEP: Duration = Duration::from_millis(10);

/// The set that is used now, with a handle for each worker.
#[derive(Debug)]
pub(super) struct Current {
    set: Arc<Set>,
    /// No other set has it.
    pub number: u64,
    handles: [OnceLock<Arc<Handle>>; LANES],
}

/// A worker's handle to a set: every attempt holds one, and were the count of who does so shared, all workers would write one line of memory.
#[derive(Debug)]
pub(super) struct Handle(Arc<Set>);

impl Current {
    pub fn new(set: Set) -> Self {
        Self { set: Arc::new(set), number: next_number(), handles: [const { OnceLock::new() }; LANES] }
    }

    /// The handle of a worker. Made by the worker, so that it is in memory of its own; those beyond the lanes share them.
    pub fn handle(&self, worker: usize) -> &Arc<Handle> {
        self.handles[worker % LANES].get_or_init(|| Arc::new(Handle(Arc::clone(&self.set))))
    }
}

impl Deref for Current {
    type Target = Set;
    fn deref(&self) -> &Set {
        &self.set
    }
}

impl Deref for Handle {
    type Target = Set;
    fn deref(&self) -> &Set {
        &self.0
    }
}

/// See module.
#[derive(Debug)]
pub(super) struct Set {
    pub members: Members,
    pub usable: Vec<Arc<Endpoint>>,
    pub balancer: Balancer,
    pub panic: bool,
    /// Place among the usable of each member, for a balancer that ranks.
    positions: Vec<Option<usize>>,
    generation: u64,
    /// When time alone changes it: an ejection ends, or slow start goes on.
    until: Option<Instant>,
}

impl Set {
    /// A set that holds nothing and is built again at its first use.
    pub fn stale() -> Self {
        Self {
            members: Arc::new([]),
            usable: Vec::new(),
            balancer: Balancer::empty(),
            panic: false,
            positions: Vec::new(),
            generation: 0,
            until: None,
        }
    }

    /// The attempts in flight on an endpoint have changed.
    pub fn load_changed(&self, endpoint: &Endpoint, now: Instant) {
        let position = self.positions.get(endpoint.index).copied().flatten();
        // The index may be one of another set; whoever is not found is seen in rotation.
        if let Some(position) =
            position.filter(|position| self.usable.get(*position).is_some_and(|it| Arc::ptr_eq(&it.state, &endpoint.state)))
        {
            self.balancer.load_changed(position, &View { usable: &self.usable, tried: &[], now });
        }
    }

    /// Whether it is still right.
    pub fn holds(&self, generation: u64, now: Instant) -> bool {
        self.generation == generation && self.until.is_none_or(|until| now < until)
    }

    pub fn build(
        members: Members,
        generation: u64,
        now: Instant,
        rules: &Rules,
        strategy: &Strategy,
        turn: &Turn,
        old: Option<&Self>,
    ) -> Self {
        // The lowest priority of which any is available (RFC 2782); the others do not count. Most upstreams have just one.
        let priority = members.iter().filter(|endpoint| rules.available(endpoint, now)).map(|endpoint| endpoint.priority).min();
        let counts = |endpoint: &&Arc<Endpoint>| priority.is_none_or(|priority| endpoint.priority == priority);
        let available = members.iter().filter(counts).filter(|endpoint| rules.available(endpoint, now)).count();
        let all_that_count = members.iter().filter(counts).count();
        let panic = rules.panic_threshold > 0.0 && (available as f64) < rules.panic_threshold * all_that_count as f64 - 1e-9;
        let can_serve = |endpoint: &&Arc<Endpoint>| {
            counts(endpoint) && if panic { endpoint.weight > 0 && endpoint.is_resolved() } else { rules.available(endpoint, now) }
        };
        let usable: Vec<Arc<Endpoint>> = members.iter().filter(can_serve).cloned().collect();
        let factors: Vec<f64> = usable.iter().map(|endpoint| rules.factor(endpoint, now)).collect();
        let step = factors.iter().any(|factor| *factor < 1.0).then(|| now + (rules.slow_start / SLOW_STEPS).max(SHORTEST_STEP));
        let back = members.iter().filter_map(|endpoint| endpoint.state.ejected_until(now)).min();
        let described: Vec<Usable<'_>> = usable
            .iter()
            .zip(&factors)
            .map(|(endpoint, factor)| Usable { id: &endpoint.id, weight: endpoint.weight, factor: *factor })
            .collect();
        let all: Vec<(Arc<str>, u32)> = members.iter().map(|endpoint| (endpoint.id.clone(), endpoint.weight)).collect();
        let balancer = Balancer::build(strategy, &described, &all, old.map(|old| &old.balancer));
        let mut positions = Vec::new();
        if balancer.ranks() {
            positions.resize(members.len(), None);
            for (position, endpoint) in usable.iter().enumerate() {
                if let Some(place) = positions.get_mut(endpoint.index) {
                    *place = Some(position);
                }
            }
            balancer.rank(turn, &View { usable: &usable, tried: &[], now });
        }
        Self { usable, balancer, panic, positions, generation, until: step.into_iter().chain(back).min(), members }
    }
}
