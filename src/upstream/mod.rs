//! Upstreams: which endpoint gets an attempt, and the state that decides it.
//!
//! [`Upstream`] belongs to one snapshot, [`UpstreamState`] survives reloads. A pick reads the current `set::Set`: the usable
//! endpoints with a balancer built for them. Whoever changes availability (checks, ejection, discovery) raises a number in the
//! state; a set built from an older number, or one whose time is over (an ejection ends, slow start goes on), is built again by
//! the next pick. So nothing is scanned per pick, and no timer is needed for a pick to be right.

pub mod attempt;
pub mod background;
pub mod body;
pub mod budget;
pub mod call;
pub mod client;
mod compile;
pub mod connect;
pub mod copy;
pub mod endpoint;
mod eyeballs;
pub mod failure;
mod flow;
mod frames;
pub mod h1;
pub mod handshake;
mod in_flight;
mod names;
pub mod pool;
mod restart;
pub mod retry;
mod set;
pub mod state;
pub mod status;
#[cfg(test)]
mod tests;
pub mod tunnel;
mod unreached;
mod wire;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Guard};

pub use attempt::{Attempt, FailKind};
pub use background::{Background, TlsFor};
pub use budget::RetryBudget;
pub use endpoint::{Address, Endpoint, EndpointSpec, EndpointState};
pub use state::{Observer, Unobserved, UpstreamState};
pub use status::UpstreamSnapshot;

use crate::balance::{Ask, Candidates, Strategy};
use crate::config::upstream as config;
use crate::health::active::Verdict as Checked;
use crate::health::breaker::Verdict;
use crate::health::outlier;
use crate::kept::Kept;
use crate::units::Selector;
use endpoint::LastCheck;
use in_flight::Place;
use pool::EndpointPool;
use set::{Current, Handle, Set};

/// Makes the pool of an endpoint, at load and when discovery adds one.
pub type MakePool = Arc<dyn Fn(&EndpointSpec) -> Arc<EndpointPool> + Send + Sync>;

/// The endpoints of an upstream, in written order.
type Members = Arc<[Arc<Endpoint>]>;

/// A group of endpoints that serve the same, in one snapshot.
pub struct Upstream {
    /// Its name in the configuration.
    pub name: Arc<str>,
    /// Protocol towards its endpoints.
    pub protocol: config::Protocol,
    /// TCP and TLS of one attempt.
    pub connect_timeout: Duration,
    state: Arc<UpstreamState>,
    rules: Rules,
    strategy: Strategy,
    selectors: Vec<Selector>,
    discover: Option<names::Discover>,
    make_pool: MakePool,
    snapshot: u64,
    this: Weak<Upstream>,
    /// All endpoints; the lock is held while a set is built from them.
    members: Mutex<Members>,
    set: ArcSwap<Current>,
    /// Number of the set, stored after it.
    set_number: AtomicU64,
    /// The last look-up of each name.
    lookups: Mutex<BTreeMap<String, LastCheck>>,
}

/// What decides availability.
#[derive(Clone, Debug)]
struct Rules {
    health: Option<config::Health>,
    outlier: Option<outlier::Rules>,
    slow_start: Duration,
    panic_threshold: f64,
    breaker: bool,
}

/// What an endpoint knows about its upstream.
#[derive(Clone, Debug)]
struct Links {
    state: Arc<UpstreamState>,
    upstream: Weak<Upstream>,
    breaker: bool,
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstream").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What a pick depends on besides the upstream.
pub struct PickArgs<'a> {
    /// The worker that asks.
    pub worker: usize,
    /// The time.
    pub now: Instant,
    /// Endpoints this request has tried: left out while another fits.
    pub tried: &'a [Arc<Endpoint>],
    /// Hash of the first selector present; only asked by `consistent_hash`.
    pub hash: &'a (dyn Fn() -> Option<u64> + Sync),
    /// Uniform over all of `u64`.
    pub random: u64,
}

/// Why there is no endpoint for an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PickError {
    /// None can be used.
    NoHealthyEndpoint,
    /// Those that can be used have no room for a connection: wait, and pick again.
    Full,
}

/// The usable endpoints as one request sees them.
struct View<'a> {
    usable: &'a [Arc<Endpoint>],
    tried: &'a [Arc<Endpoint>],
    now: Instant,
}

impl Candidates for View<'_> {
    fn fits(&self, position: usize) -> bool {
        self.usable.get(position).is_some_and(|endpoint| {
            // Compared by state: a retry on a newer set of the same snapshot may see another `Endpoint` of it.
            !self.tried.iter().any(|tried| Arc::ptr_eq(&tried.state, &endpoint.state)) && !endpoint.pool.is_full()
        })
    }
    fn in_flight(&self, position: usize) -> u32 {
        self.usable.get(position).map_or(u32::MAX, |endpoint| endpoint.state.in_flight.shared())
    }
    fn latency(&self, position: usize) -> f32 {
        self.usable.get(position).map_or(f32::MAX, |endpoint| endpoint.state.ewma.read(self.now))
    }
}

thread_local! {
    /// The sets that this thread has picked from, of all upstreams.
    static SETS: RefCell<Kept<Handle, 256>> = const { RefCell::new(Kept::new()) };
}

impl Upstream {
    /// Chooses the endpoint of an attempt.
    ///
    /// # Errors
    /// When no endpoint can be used, or all that can be are full.
    pub fn pick(&self, args: &PickArgs<'_>) -> Result<Attempt, PickError> {
        let set = self.held(args.worker, args.now);
        if set.usable.is_empty() {
            return Err(PickError::NoHealthyEndpoint);
        }
        let bounded = self.strategy.counts_all_in_flight();
        let in_flight = if bounded { self.state.in_flight.load(Ordering::Relaxed) } else { 0 };
        let ask = Ask { random: args.random, hash: args.hash, in_flight };
        let fresh = View { usable: &set.usable, tried: args.tried, now: args.now };
        let mut position = set.balancer.pick(&self.state.turn, &fresh, &ask);
        if position.is_none() && !args.tried.is_empty() {
            position = set.balancer.pick(&self.state.turn, &View { tried: &[], ..fresh }, &ask);
        }
        let position = position.filter(|position| *position < set.usable.len()).ok_or(PickError::Full)?;
        let place = if self.strategy.counts_in_flight() { Place::Shared } else { Place::Lane(args.worker) };
        Ok(Attempt::begin(set, position, place, bounded, args.now))
    }

    /// The same as [`Upstream::current`], for an attempt of a worker to hold on to.
    fn held(&self, worker: usize, now: Instant) -> Arc<Handle> {
        let kept = SETS.with_borrow(|sets| sets.get(self.set_number.load(Ordering::Acquire)));
        if let Some(set) = kept.filter(|set| set.holds(self.state.generation(), now)) {
            return set;
        }
        let current = self.current(now);
        let set = current.handle(worker);
        SETS.with_borrow_mut(|sets| sets.keep(current.number, set));
        Arc::clone(set)
    }

    /// An attempt on `endpoint` is over.
    fn attempt_ended(&self, endpoint: &Endpoint) {
        let set = self.set.load();
        if set.balancer.ranks() {
            set.load_changed(endpoint, Instant::now());
        }
    }

    /// Asks the breaker before an attempt; always passes without `breaker: adaptive`. `random` is uniform over all of `u64`.
    pub fn admit(&self, now: Instant, random: u64) -> Verdict {
        if self.rules.breaker { self.state.breaker.check(now, random) } else { Verdict::Pass }
    }

    /// Whether [`Upstream::admit`] could ever say no.
    pub fn has_breaker(&self) -> bool {
        self.rules.breaker
    }

    /// What `consistent_hash` hashes, best first; empty with other strategies.
    pub fn hash_selectors(&self) -> &[Selector] {
        &self.selectors
    }

    /// The retry budget.
    pub fn budget(&self) -> &RetryBudget {
        self.state.budget()
    }

    /// What survives reloads.
    pub fn state(&self) -> &Arc<UpstreamState> {
        &self.state
    }

    /// All endpoints, in written order.
    pub fn endpoints(&self) -> Arc<[Arc<Endpoint>]> {
        self.lock_members().clone()
    }

    /// The endpoints that a pick can choose from at `now`.
    pub fn usable(&self, now: Instant) -> Vec<Arc<Endpoint>> {
        self.current(now).usable.clone()
    }

    /// Whether `endpoint` is the only one that a pick can choose at `now`.
    fn is_alone(&self, endpoint: &Endpoint, now: Instant) -> bool {
        matches!(&*self.current(now).usable, [only] if Arc::ptr_eq(&only.state, &endpoint.state))
    }

    /// Brings availability up to date without a pick, so that observers hear of ejections that ended.
    pub fn refresh(&self, now: Instant) {
        drop(self.current(now));
    }

    fn lock_members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_lookups(&self) -> MutexGuard<'_, BTreeMap<String, LastCheck>> {
        self.lookups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The set that holds at `now`.
    fn current(&self, now: Instant) -> Guard<Arc<Current>> {
        let set = self.set.load();
        if set.holds(self.state.generation(), now) {
            return set;
        }
        drop(set);
        self.rebuild(&self.lock_members(), now);
        self.set.load()
    }

    /// Builds the set again unless another thread just did. The lock on the members is what makes it one at a time.
    fn rebuild(&self, members: &MutexGuard<'_, Members>, now: Instant) {
        let old = self.set.load_full();
        // Read before anything it covers: a change during the build makes the new set old at once.
        let generation = self.state.generation();
        if old.holds(generation, now) && Arc::ptr_eq(&old.members, members) {
            return;
        }
        let new = Set::build(Arc::clone(members), generation, now, &self.rules, &self.strategy, &self.state.turn, Some(&old));
        self.state.ranks.store(new.balancer.ranks(), Ordering::Relaxed);
        let new = Arc::new(Current::new(new));
        self.set.store(Arc::clone(&new));
        self.set_number.store(new.number, Ordering::Release);
        self.tell(&new, now);
    }

    /// Tells the observer what is new about the set, if this snapshot serves.
    fn tell(&self, set: &Set, now: Instant) {
        if !self.state.is_serving(self.snapshot) {
            return;
        }
        let told = |flag: &std::sync::atomic::AtomicU8, yes: bool| flag.swap(1 + u8::from(yes), Ordering::Relaxed) == 1 + u8::from(yes);
        for endpoint in set.members.iter() {
            let available = self.rules.available(endpoint, now);
            if !told(&endpoint.state.told, available) {
                self.state.observer.available_changed(&self.name, &endpoint.id, available);
            }
        }
        // Before the first look-ups and checks nothing is known: all endpoints are used, but that is no emergency.
        let known = set.members.iter().all(|endpoint| self.is_known(endpoint));
        if (known || !set.panic) && !told(&self.state.told_panic, set.panic) {
            self.state.observer.panic_changed(&self.name, set.panic);
        }
    }

    /// Whether its name has been looked up, and its first check has ended.
    fn is_known(&self, endpoint: &Endpoint) -> bool {
        let found = match &endpoint.address {
            Address::Tcp { host, .. } => endpoint.is_resolved() || self.lock_lookups().get(host).is_some_and(|last| !last.ok),
            Address::Unix(_) => true,
        };
        found && (self.rules.health.is_none() || endpoint.state.verdict() != Checked::Unchecked)
    }

    /// Counts a failed attempt and ejects the endpoint if it was one too many.
    fn count_failure(&self, endpoint: &Endpoint, now: Instant) {
        let Some(rules) = &self.rules.outlier else {
            return;
        };
        if !endpoint.state.row.failed(rules, now) {
            return;
        }
        let members = self.endpoints();
        let lock = self.state.lock_endpoints();
        if endpoint.state.row.ejected_until(now).is_some() {
            return; // another thread was faster
        }
        let ejected = members.iter().filter(|other| other.state.row.ejected_until(now).is_some()).count();
        let available = members.iter().filter(|other| self.rules.available(other, now)).count();
        let last = available == 1 && self.rules.available(endpoint, now);
        if ejected >= rules.most_ejected(members.len()) || last {
            return;
        }
        let span = endpoint.state.row.eject(rules, now);
        drop(lock);
        self.state.changed();
        self.state.observer.ejected(&self.name, &endpoint.id, span);
    }
}

impl Rules {
    /// Whether an endpoint counts as available: not unhealthy, not ejected, weight above 0, and with an address.
    fn available(&self, endpoint: &Endpoint, now: Instant) -> bool {
        let ejected = self.outlier.is_some() && endpoint.state.ejected_until(now).is_some();
        endpoint.weight > 0 && endpoint.is_resolved() && self.is_healthy(endpoint) && !ejected
    }

    fn is_healthy(&self, endpoint: &Endpoint) -> bool {
        self.health.is_none() || endpoint.state.verdict() == Checked::Healthy
    }

    /// Its factor of slow start, 0.1 to 1.0.
    fn factor(&self, endpoint: &Endpoint, now: Instant) -> f64 {
        match endpoint.state.slow_since(now) {
            Some(since) if !self.slow_start.is_zero() => {
                let share = now.saturating_duration_since(since).as_secs_f64() / self.slow_start.as_secs_f64();
                share.clamp(0.1, 1.0)
            }
            Some(_) | None => 1.0,
        }
    }
}
