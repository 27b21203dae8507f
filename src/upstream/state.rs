//! What an upstream keeps over reloads, and who is told when it changes.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::budget::RetryBudget;
use super::endpoint::{EndpointSpec, EndpointState};
use super::names::Discover;
use crate::balance::Turn;
use crate::balance::hash::TableCache;
use crate::discovery::Found;
use crate::health::breaker::Breaker;

/// Hears of changes; the metrics and the log stand behind it. Called from any thread, must not block.
pub trait Observer: Send + Sync {
    /// Active checks changed their verdict; `error` is why an endpoint is out.
    fn health_changed(&self, upstream: &str, endpoint: &str, healthy: bool, error: Option<&str>);
    /// An endpoint was ejected.
    fn ejected(&self, upstream: &str, endpoint: &str, span: Duration);
    /// An endpoint became available, or no longer is. Called once for each endpoint at the start.
    fn available_changed(&self, upstream: &str, endpoint: &str, available: bool);
    /// The upstream began or ceased to use all endpoints because too few are available. Called once at the start.
    fn panic_changed(&self, upstream: &str, panic: bool);
    /// A name could not be looked up; the last addresses stay in use.
    fn lookup_failed(&self, upstream: &str, name: &str, error: &str);
    /// The endpoint is gone: its series end.
    fn endpoint_removed(&self, upstream: &str, endpoint: &str);
}

/// Tells nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn health_changed(&self, _: &str, _: &str, _: bool, _: Option<&str>) {}
    fn ejected(&self, _: &str, _: &str, _: Duration) {}
    fn available_changed(&self, _: &str, _: &str, _: bool) {}
    fn panic_changed(&self, _: &str, _: bool) {}
    fn lookup_failed(&self, _: &str, _: &str, _: &str) {}
    fn endpoint_removed(&self, _: &str, _: &str) {}
}

/// What survives reloads; its key is the upstream's name.
pub struct UpstreamState {
    /// The upstream's name.
    pub name: Arc<str>,
    pub(super) observer: Arc<dyn Observer>,
    /// Whose turn it is, for round robin and ties.
    pub(super) turn: Turn,
    pub(super) breaker: Breaker,
    budget: RetryBudget,
    /// Attempts in flight on all endpoints; counted only while `bounded_load` needs it.
    pub(super) in_flight: AtomicU32,
    /// Whether the balancer wants to hear of attempts that end.
    pub(super) ranks: AtomicBool,
    /// Grows whenever availability may have changed; sets built from an older number are built again.
    generation: AtomicU64,
    /// Number of the snapshot that serves: only that one tells the observer.
    serving: AtomicU64,
    snapshots: AtomicU64,
    /// What the observer was last told about panic: 0 nothing, 1 no, 2 yes.
    pub(super) told_panic: AtomicU8,
    /// Endpoints the observer may know of.
    pub(super) announced: Mutex<HashSet<Arc<str>>>,
    /// The last table of `consistent_hash`.
    pub(super) tables: TableCache,
    /// States of endpoints that some snapshot still holds.
    endpoints: Mutex<HashMap<Arc<str>, Weak<EndpointState>>>,
    /// What discovery last found, for the next snapshot.
    discovered: Mutex<Option<(Discover, Vec<Found>)>>,
}

impl std::fmt::Debug for UpstreamState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UpstreamState").field("name", &self.name).finish_non_exhaustive()
    }
}

impl UpstreamState {
    /// The state of an upstream that is new.
    pub fn new(name: &str, observer: Arc<dyn Observer>) -> Arc<Self> {
        Arc::new(Self {
            name: name.into(),
            observer,
            turn: Turn::default(),
            breaker: Breaker::default(),
            budget: RetryBudget::default(),
            in_flight: AtomicU32::new(0),
            ranks: AtomicBool::new(false),
            generation: AtomicU64::new(1),
            serving: AtomicU64::new(0),
            snapshots: AtomicU64::new(0),
            told_panic: AtomicU8::new(0),
            announced: Mutex::default(),
            tables: TableCache::default(),
            endpoints: Mutex::default(),
            discovered: Mutex::default(),
        })
    }

    /// The retry budget.
    pub fn budget(&self) -> &RetryBudget {
        &self.budget
    }

    /// Keeps what was found.
    pub(super) fn remember(&self, discover: &Discover, found: Vec<Found>) {
        *self.discovered.lock().unwrap_or_else(PoisonError::into_inner) = Some((discover.clone(), found));
    }

    /// What was last found for `discover`; nothing if something else was asked for.
    pub(super) fn remembered(&self, discover: &Discover) -> Vec<Found> {
        let discovered = self.discovered.lock().unwrap_or_else(PoisonError::into_inner);
        discovered.as_ref().filter(|(asked, _)| asked.is_same_source(discover)).map(|(_, found)| found.clone()).unwrap_or_default()
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Says that availability changed: every set is built again at its next pick.
    pub(super) fn changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn next_snapshot(&self) -> u64 {
        self.snapshots.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(super) fn is_serving(&self, snapshot: u64) -> bool {
        self.serving.load(Ordering::Relaxed) == snapshot
    }

    pub(super) fn serve(&self, snapshot: u64) {
        self.serving.store(snapshot, Ordering::Relaxed);
    }

    /// The observer forgot this endpoint: should it come back, it hears of it anew.
    pub(super) fn forget_told(&self, id: &Arc<str>) {
        if let Some(state) = self.lock_endpoints().get(id).and_then(Weak::upgrade) {
            state.told.store(0, Ordering::Relaxed);
        }
    }

    /// Also what serialises ejections, since their limits concern all endpoints.
    pub(super) fn lock_endpoints(&self) -> MutexGuard<'_, HashMap<Arc<str>, Weak<EndpointState>>> {
        self.endpoints.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// States of `specs`, in their order: those that are held somewhere, new ones for the others.
    /// A new endpoint starts at the mean latency of the known ones, else 30 ms; it starts slowly, unless there was none before.
    pub(super) fn states_of(&self, specs: &[EndpointSpec], now: Instant) -> Vec<Arc<EndpointState>> {
        const UNKNOWN: Duration = Duration::from_millis(30);
        let mut known = self.lock_endpoints();
        known.retain(|_, state| state.strong_count() > 0);
        let held: Vec<_> = specs.iter().map(|spec| known.get(&spec.id).and_then(Weak::upgrade)).collect();
        let others: Vec<f32> = held.iter().flatten().map(|state| state.ewma.read(now)).collect();
        let mean = others.iter().sum::<f32>() / others.len().max(1) as f32;
        let start = if others.is_empty() { UNKNOWN } else { Duration::try_from_secs_f32(mean).unwrap_or(UNKNOWN) };
        let added = (!known.is_empty()).then_some(now);
        let states = specs.iter().zip(held);
        let states = states.map(|(spec, held)| held.unwrap_or_else(|| Arc::new(EndpointState::new(spec, start, added, now))));
        let states: Vec<_> = states.collect();
        known.extend(states.iter().map(|state| (state.id.clone(), Arc::downgrade(state))));
        states
    }
}
