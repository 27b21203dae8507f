//! A Redis store that several gateways share limits through: whether it answers, and what to do while it does not.
//!
//! One task on the control runtime connects, pings and writes the heartbeat. Workers use its connection with the
//! store's `timeout` around each call. Three failures in a row and the store counts as down: nobody waits for it, all
//! its limits are decided in each gateway with that gateway's share, until a ping is answered again.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::gcra::Quota;
use super::redis::{Connection, Target, in_time};
use crate::config::server::Redis;

/// Told a store's name and whether it answers, at each change.
pub type StoreObserver = Arc<dyn Fn(&str, bool) + Send + Sync>;

/// Failures in a row after which a store counts as down.
const FAILURES: u32 = 3;
/// A store that is down is tried this often at first, and then at doubling distances.
const FIRST_PING: Duration = Duration::from_millis(100);
const SLOWEST_PING: Duration = Duration::from_secs(1);
/// Heartbeats live 60 s in the store, so that some may be lost.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Longest wait for connecting and for an answer to the heartbeat.
const PATIENCE: Duration = Duration::from_secs(1);
/// Remembered refusals, per store. Beyond, the store is asked again.
const DENIED_KEYS: usize = 100_000;

/// A store that several gateways share.
#[derive(Debug)]
pub struct Store {
    state: Arc<State>,
    task: Option<AbortHandle>,
}

/// What workers and the task share.
struct State {
    name: String,
    timeout: Duration,
    up: AtomicBool,
    /// Gateways seen in the last minute; 0 while unknown.
    gateways: AtomicU32,
    connection: ArcSwapOption<Connection>,
    /// Wakes the task when calls fail.
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
    }
}

impl Store {
    /// Begins to connect on `control`, and returns at once. The error is about the URL.
    pub(super) fn open(name: &str, config: &Redis, control: Option<&Handle>, observer: &StoreObserver) -> Result<Arc<Self>, &'static str> {
        let target = Target::parse(config.url.expose())?;
        let state = Arc::new(State {
            name: name.to_owned(),
            timeout: config.timeout.get(),
            up: AtomicBool::new(false),
            gateways: AtomicU32::new(0),
            connection: ArcSwapOption::empty(),
            broken: Notify::new(),
            denied: quick_cache::sync::Cache::new(DENIED_KEYS),
            observer: observer.clone(),
        });
        let task = control.map(|control| {
            observer(name, false);
            control.spawn(keep_connected(Arc::downgrade(&state), target)).abort_handle()
        });
        Ok(Arc::new(Self { state, task }))
    }

    /// Whether it is asked at present.
    pub(super) fn is_up(&self) -> bool {
        self.state.up.load(Ordering::Acquire)
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
        let until = now.saturating_add(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX));
        self.state.denied.insert(key, Denied { until, full_at: now.saturating_add(used) });
    }

    /// Decides `calls` in one round trip; `None` if the store did not answer in time: decide locally.
    pub(super) async fn check(&self, calls: &[Call]) -> Option<Vec<Answer>> {
        let connection = self.state.connection.load_full()?;
        let answers = tokio::time::timeout(self.state.timeout, connection.decide(calls)).await;
        match answers {
            Ok(Ok(answers)) => {
                connection.failures.store(0, Ordering::Relaxed);
                Some(answers)
            }
            Ok(Err(error)) => {
                self.state.failed(&connection, error.is_unrecoverable_error());
                None
            }
            Err(_) => {
                self.state.failed(&connection, false);
                None
            }
        }
    }
}

impl State {
    /// Counts a failed call; a `dead` connection can never answer again, so it counts as enough of them.
    fn failed(&self, connection: &Arc<Connection>, dead: bool) {
        let failures = connection.failures.fetch_add(if dead { FAILURES } else { 1 }, Ordering::Relaxed).saturating_add(1);
        let is_current = self.connection.load().as_ref().is_some_and(|current| Arc::ptr_eq(current, connection));
        if is_current && (dead || failures >= FAILURES) {
            self.set_up(false);
            self.broken.notify_one();
        }
    }

    fn set_up(&self, up: bool) {
        if self.up.swap(up, Ordering::AcqRel) != up {
            (self.observer)(&self.name, up);
        }
    }

    fn connected(&self, connection: &Arc<Connection>, gateways: u32) {
        self.gateways.store(gateways, Ordering::Relaxed);
        self.connection.store(Some(connection.clone()));
        self.set_up(true);
    }
}

/// Connects, and connects again, for as long as the store is held.
async fn keep_connected(state: Weak<State>, target: Target) {
    let id = format!("{:032x}", gateway_id());
    let mut pause = FIRST_PING;
    loop {
        let Some(timeout) = state.upgrade().map(|state| state.timeout) else { return };
        let connected = connect(&target, timeout, &id).await;
        let Some(state) = state.upgrade() else { return };
        match connected {
            Ok((connection, gateways)) => {
                tracing::info!(store = %state.name, gateways, "the store answers");
                pause = FIRST_PING;
                state.connected(&connection, gateways);
                let why = serve(&state, &connection, &id).await;
                state.set_up(false);
                state.connection.store(None);
                tracing::warn!(store = %state.name, error = %why, "the store is down: its limits are decided here");
            }
            Err(error) => tracing::debug!(store = %state.name, %error, "the store does not answer"),
        }
        drop(state);
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(SLOWEST_PING);
    }
}

/// A new connection that has answered a ping within the store's `timeout`: a slow store stays down.
async fn connect(target: &Target, timeout: Duration, id: &str) -> Result<(Arc<Connection>, u32), redis::RedisError> {
    let connection = Connection::open(target, PATIENCE).await?;
    in_time(timeout, connection.ping()).await?;
    let gateways = beat(&connection, id).await?;
    Ok((Arc::new(connection), gateways))
}

async fn beat(connection: &Connection, id: &str) -> Result<u32, redis::RedisError> {
    in_time(PATIENCE, connection.heartbeat(id)).await
}

/// Writes heartbeats until the connection is of no use; returns why.
async fn serve(state: &State, connection: &Connection, id: &str) -> String {
    loop {
        tokio::select! {
            // The note may be about an earlier connection.
            () = state.broken.notified() => if connection.failures.load(Ordering::Relaxed) >= FAILURES {
                return "its calls failed".to_owned();
            },
            () = tokio::time::sleep(HEARTBEAT) => match beat(connection, id).await {
                Ok(gateways) => state.gateways.store(gateways, Ordering::Relaxed),
                Err(error) => return error.to_string(),
            },
        }
    }
}

/// A random name of this process among the gateways.
fn gateway_id() -> u128 {
    use std::hash::{BuildHasher, RandomState};
    let random = || u128::from(RandomState::new().hash_one(std::process::id()));
    random() << 64 | random()
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
