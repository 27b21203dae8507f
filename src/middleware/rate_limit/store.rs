//! A Redis store that several gateways share limits through: whether it answers, and what to do while it does not.
//!
//! One task on the control runtime connects, pings and writes the heartbeat: it says when the store is up. Decisions go
//! over each worker's own connection ([`Lane`]), with the store's `timeout` around them. Three failures in a row and the
//! store counts as down: nobody waits for it, all its limits are decided in each gateway with that gateway's share, until
//! a ping is answered again. A worker whose own connection fails is not a store that is down: it has the task look.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::gcra::Quota;
use super::lane::Lane;
use super::redis::{Connection, Target, in_time};
use super::registry::Registry;
use crate::config::server::Redis;
use crate::telemetry::events;
use crate::telemetry::metrics::PerWorker;

/// Told a store's name and whether it answers, at each change.
pub type StoreObserver = Arc<dyn Fn(&str, bool) + Send + Sync>;

/// Failures in a row after which a store counts as down.
pub(super) const FAILURES: u32 = 3;
/// A store that is down is tried this often at first, and then at doubling distances.
pub(super) const FIRST_PING: Duration = Duration::from_millis(100);
pub(super) const SLOWEST_PING: Duration = Duration::from_secs(1);
/// Heartbeats live 60 s in the store, so that some may be lost.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// The second heartbeat on a connection, and then at doubling distances: gateways that start together, or find a store that
/// has lost its data, soon know of each other.
const FIRST_HEARTBEAT: Duration = Duration::from_secs(1);
/// Longest wait for connecting and for an answer to the heartbeat.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);
/// Remembered refusals, per store. Beyond, the store is asked again.
const DENIED_KEYS: usize = 100_000;
/// A refusal is remembered this long at most, so that who is let off in the store does not wait for days.
const LONGEST_DENIAL: Duration = Duration::from_secs(10);

/// A store that several gateways share.
#[derive(Debug)]
pub struct Store {
    state: Arc<State>,
    task: Option<AbortHandle>,
}

/// What workers and the task share. Decisions only read it, but for the refusals; failures write it.
pub(super) struct State {
    pub(super) name: String,
    pub(super) target: Target,
    timeout: Duration,
    /// The server that the task is connected to: workers connect to the same, and look up no name.
    server: Mutex<Option<SocketAddr>>,
    up: AtomicBool,
    /// Number of the time that it is up. Workers' connections belong to one, and so does what their calls come to.
    period: AtomicU32,
    /// Failures in a row in this period, of all workers together.
    failures: AtomicU32,
    /// Gateways seen in the last minute; 0 while unknown.
    gateways: AtomicU32,
    lanes: PerWorker<Lane>,
    /// Wakes the task: the store is down, or may be.
    broken: Notify,
    /// Refused buckets: when the refusal ends, and what the bucket then needs to be full, on the clock of the buckets.
    denied: quick_cache::sync::Cache<u128, Denied>,
    observer: StoreObserver,
}

#[derive(Clone, Copy, Debug)]
struct Denied {
    until: u64,
    full_at: u64,
}

/// What was known when a call began.
#[derive(Clone, Copy, Debug)]
struct Begun {
    period: u32,
    failures: u32,
}

/// One bucket to decide.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    pub(super) key: u128,
    pub(super) quota: Quota,
}

/// What the store said about a bucket: whether the request is allowed, and how many nanoseconds from full it is now.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer {
    pub(super) allowed: bool,
    pub(super) used: u64,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("name", &self.name).field("up", &self.up).field("gateways", &self.gateways).finish_non_exhaustive()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
        self.state.close_lanes();
    }
}

impl Store {
    /// Begins to connect on `control`, and returns at once. The error is about the URL.
    pub(super) fn open(
        name: &str,
        config: &Redis,
        registry: &Registry,
        control: Option<&Handle>,
        observer: &StoreObserver,
    ) -> Result<Arc<Self>, &'static str> {
        let state = Arc::new(State {
            name: name.to_owned(),
            target: Target::parse(config.url.expose())?,
            timeout: config.timeout.get(),
            server: Mutex::default(),
            up: AtomicBool::new(false),
            period: AtomicU32::new(0),
            failures: AtomicU32::new(0),
            gateways: AtomicU32::new(0),
            lanes: PerWorker::new(registry.workers),
            broken: Notify::new(),
            denied: quick_cache::sync::Cache::new(DENIED_KEYS),
            observer: observer.clone(),
        });
        let task = control.map(|control| {
            observer(name, false);
            control.spawn(keep_connected(Arc::downgrade(&state), registry.gateway.to_string())).abort_handle()
        });
        Ok(Arc::new(Self { state, task }))
    }

    /// Whether it is asked at present.
    pub(super) fn is_up(&self) -> bool {
        self.state.is_up()
    }

    /// Gateways that share it, this one included; 1 while that is unknown.
    pub(super) fn gateways(&self) -> u32 {
        self.state.gateways.load(Ordering::Relaxed).max(1)
    }

    /// For a bucket that is known to refuse at `now`: the nanoseconds it needs to be full.
    pub(super) fn denied(&self, key: u128, now: u64) -> Option<u64> {
        let denied = self.state.denied.get(&key)?;
        (now < denied.until).then(|| denied.full_at.saturating_sub(now))
    }

    /// Remembers a refusal for its `wait`: until then the bucket cannot allow, whatever other gateways do, so a flood
    /// of refused requests does not reach the store.
    pub(super) fn deny(&self, key: u128, now: u64, used: u64, wait: Duration) {
        let until = now.saturating_add(u64::try_from(wait.min(LONGEST_DENIAL).as_nanos()).unwrap_or(u64::MAX));
        self.state.denied.insert(key, Denied { until, full_at: now.saturating_add(used) });
    }

    /// Decides `calls` in one round trip of `worker`'s own connection, which is opened if need be, on the calling runtime.
    /// `None` if the store did not answer in time: decide locally.
    pub(super) async fn check(&self, worker: usize, calls: &[Call]) -> Option<Vec<Answer>> {
        let state = &self.state;
        let begun = state.begin();
        let lane = state.lanes.of(worker);
        let mut asked = None;
        let work = async {
            let connection = lane.connection(state, begun.period).await?;
            Some(asked.insert(connection).decide(calls).await)
        };
        let outcome = tokio::time::timeout(state.timeout, work).await;
        match (outcome, asked) {
            (Ok(Some(Ok(answers))), Some(connection)) => {
                connection.worked();
                state.worked();
                return Some(answers);
            }
            (Ok(Some(Err(error))), Some(connection)) => {
                let dead = error.is_unrecoverable_error();
                connection.failed(dead);
                if dead { state.lost(begun) } else { state.failed(begun) }
            }
            (Err(_), Some(connection)) => {
                connection.failed(false);
                state.failed(begun);
            }
            (Err(_), None) => {
                lane.late(begun.period);
                state.lost(begun);
            }
            // This worker has no connection for now, or no longer.
            (Ok(_), _) => {}
        }
        None
    }
}

impl State {
    fn begin(&self) -> Begun {
        Begun { period: self.period.load(Ordering::Acquire), failures: self.failures.load(Ordering::Relaxed) }
    }

    /// Ends a row of failures; all workers read that there is none, and none writes it.
    fn worked(&self) {
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
    }

    /// Counts a call that failed or was not answered in time.
    fn failed(&self, begun: Begun) {
        if self.is_now(begun.period) {
            self.missed();
        }
    }

    /// Counts a failure; whether the store is down now.
    fn missed(&self) -> bool {
        self.counted(self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1))
    }

    /// Counts a call that waited for its worker's connection in vain, or was under way when it broke. Those under way at
    /// the same time count as one, for it may not be the store: the task looks.
    fn lost(&self, begun: Begun) {
        let failures = begun.failures.saturating_add(1);
        let counts = || self.failures.compare_exchange(begun.failures, failures, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if self.is_now(begun.period) && counts() {
            self.counted(failures);
        }
        self.suspect(begun.period);
    }

    /// Whether that were too many; if so, the store is down.
    fn counted(&self, failures: u32) -> bool {
        let too_many = failures >= FAILURES;
        if too_many {
            self.set_up(false);
            self.broken.notify_one();
        }
        too_many
    }

    /// Has the task look whether the store still answers, since a worker's connection of `period` failed.
    pub(super) fn suspect(&self, period: u32) {
        if self.is_now(period) {
            self.broken.notify_one();
        }
    }

    /// Whether `period` lasts: what fails in an earlier one says nothing about the store as it is.
    pub(super) fn is_now(&self, period: u32) -> bool {
        self.is_up() && self.period.load(Ordering::Acquire) == period
    }

    fn is_up(&self) -> bool {
        self.up.load(Ordering::Acquire)
    }

    fn set_up(&self, up: bool) {
        if self.up.swap(up, Ordering::AcqRel) != up {
            (self.observer)(&self.name, up);
        }
    }

    /// The task has connected to `server`, which may have lost its data: how many `gateways` it has seen is a lower bound,
    /// and who was refused need not be any more.
    fn connected(&self, server: SocketAddr, gateways: u32) {
        *self.server.lock().unwrap_or_else(PoisonError::into_inner) = Some(server);
        self.gateways.fetch_max(gateways, Ordering::Relaxed);
        self.denied.clear();
        self.period.fetch_add(1, Ordering::AcqRel);
        self.failures.store(0, Ordering::Relaxed);
        self.set_up(true);
    }

    /// The server that workers connect to; `None` if there was none yet.
    pub(super) fn server(&self) -> Option<SocketAddr> {
        *self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close_lanes(&self) {
        self.lanes.used().for_each(Lane::close);
    }
}

/// Connects, and connects again, for as long as the store is held.
async fn keep_connected(state: Weak<State>, id: String) {
    let mut pause = FIRST_PING;
    // Why it could not be reached at last: each cause is told once.
    let mut told = String::new();
    loop {
        // `Store` ends this task when it is dropped, so the task may hold the state.
        let Some(state) = state.upgrade() else { return };
        let mut begun = Instant::now();
        match connect(&state, &id).await {
            Ok((connection, gateways)) => {
                state.connected(connection.peer, gateways);
                events::store_up(&state.name, gateways);
                let why = serve(&state, &connection, &id, gateways).await;
                state.set_up(false);
                state.close_lanes();
                events::store_down(&state.name, &why);
                told.clear();
                // One that soon fails again is not tried at once each time.
                if begun.elapsed() > HEARTBEAT {
                    pause = FIRST_PING;
                }
                begun = Instant::now();
            }
            Err(error) => {
                let why = error.to_string();
                if why != told {
                    events::store_unreachable(&state.name, &why);
                    told = why;
                }
            }
        }
        drop(state);
        // Counted from the attempt's begin: a server that does not answer is not tried less often than one that refuses.
        tokio::time::sleep_until(begun + pause).await;
        pause = (pause * 2).min(SLOWEST_PING);
    }
}

/// A new connection that has answered a ping within the store's `timeout`: a slow store stays down.
async fn connect(state: &State, id: &str) -> Result<(Connection, u32), redis::RedisError> {
    let connection = Connection::open(&state.target, None, PATIENCE).await?;
    in_time(state.timeout, connection.ping()).await?;
    let gateways = beat(&connection, id).await?;
    Ok((connection, gateways))
}

async fn beat(connection: &Connection, id: &str) -> Result<u32, redis::RedisError> {
    in_time(PATIENCE, connection.heartbeat(id)).await
}

/// Writes heartbeats, of which the first has seen `seen` gateways, and pings where there is doubt, until the store is down;
/// returns why.
async fn serve(state: &State, connection: &Connection, id: &str, mut seen: u32) -> String {
    let mut pause = FIRST_HEARTBEAT;
    let mut next = Instant::now() + pause;
    loop {
        let outcome = tokio::select! {
            () = state.broken.notified() => {
                if !state.is_up() {
                    return "its calls failed".to_owned();
                }
                // A worker's connection failed, now or in an earlier period: is it the store?
                in_time(state.timeout, connection.ping()).await
            }
            () = connection.closed() => return "the connection was closed".to_owned(),
            () = tokio::time::sleep_until(next) => {
                let outcome = beat(connection, id).await.map(|gateways| {
                    // A store that has lost its data knows only of those that have written since.
                    let before = if pause < HEARTBEAT { state.gateways.load(Ordering::Relaxed) } else { seen };
                    state.gateways.store(gateways.max(before), Ordering::Relaxed);
                    seen = gateways;
                });
                pause = (pause * 2).min(HEARTBEAT);
                next = Instant::now() + pause;
                outcome
            }
        };
        match outcome {
            Ok(()) => state.worked(),
            // A late answer is one failure; those in a row count.
            Err(error) if error.is_timeout() && !state.missed() => state.broken.notify_one(),
            Err(error) => return error.to_string(),
        }
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
