//! A worker's own connection to a store.
//!
//! The first decision that needs it opens it, in a task of the worker's runtime, and all decisions of the worker are
//! pipelined on it: workers share no channel. It lasts no longer than the store is up; when the store comes back, and
//! when it breaks, the next decision opens another. Decisions wait for the first attempt, as long as the store's `timeout`
//! lets the first of them; when it fails, the task tries again at the distances at which a store that is down is tried,
//! and nobody waits.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::redis::Connection;
use super::store::{FAILURES, FIRST_PING, PATIENCE, SLOWEST_PING, State};
use crate::telemetry::events;

/// Where one worker has its connection. The lock is that worker's alone, but for the moment at which a store goes down.
#[derive(Default)]
pub(super) struct Lane(Mutex<Option<Link>>);

/// A connection, or the attempt to get one; the attempt ends when it is dropped.
struct Link {
    period: u32,
    progress: watch::Receiver<Progress>,
    task: AbortHandle,
    /// Somebody has waited for the attempt in vain.
    is_late: bool,
}

enum Progress {
    /// Worth waiting for.
    First,
    Open(Arc<Connection>),
    /// The first attempt failed, others follow.
    Failed,
}

enum Found {
    Open(Arc<Connection>),
    Opening(watch::Receiver<Progress>),
    Away,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Lane {
    /// The connection for calls in this `period`; waits while it is opened. `None`: there is none for now.
    pub(super) async fn connection(&self, state: &Arc<State>, period: u32) -> Option<Arc<Connection>> {
        let mut progress = match self.find(state, period) {
            Found::Open(connection) => return Some(connection),
            Found::Opening(progress) => progress,
            Found::Away => return None,
        };
        // The error: the attempt was given up, since the store is down or its runtime ends.
        let progress = progress.wait_for(|progress| !matches!(progress, Progress::First)).await.ok()?;
        match &*progress {
            Progress::Open(connection) => Some(Arc::clone(connection)),
            Progress::First | Progress::Failed => None,
        }
    }

    /// What there is; begins to connect on the calling runtime if there is nothing of use.
    fn find(&self, state: &Arc<State>, period: u32) -> Found {
        let mut link = self.lock();
        if let Some(found) = link.as_ref().filter(|link| link.period == period).and_then(Link::found) {
            return found;
        }
        let (sender, progress) = watch::channel(Progress::First);
        let task = tokio::spawn(open(Arc::downgrade(state), period, sender)).abort_handle();
        *link = Some(Link { period, progress: progress.clone(), task, is_late: false });
        Found::Opening(progress)
    }

    /// Notes that a call of this `period` has waited for the connection in vain, so that no other begins to.
    pub(super) fn late(&self, period: u32) {
        if let Some(link) = self.lock().as_mut().filter(|link| link.period == period) {
            link.is_late = true;
        }
    }

    /// Gives the connection up; calls under way keep it until they end.
    pub(super) fn close(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> MutexGuard<'_, Option<Link>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Link {
    /// `None` if it can never be of use again.
    fn found(&self) -> Option<Found> {
        match &*self.progress.borrow() {
            Progress::Open(connection) => connection.is_usable().then(|| Found::Open(Arc::clone(connection))),
            // The runtime that tried has ended.
            Progress::First | Progress::Failed if self.task.is_finished() => None,
            Progress::First if !self.is_late => Some(Found::Opening(self.progress.clone())),
            Progress::First | Progress::Failed => Some(Found::Away),
        }
    }
}

/// Tries to connect until that works or the period is over.
async fn open(state: Weak<State>, period: u32, progress: watch::Sender<Progress>) {
    let (mut pause, mut failures) = (FIRST_PING, 0);
    loop {
        let Some(state) = state.upgrade().filter(|state| state.is_now(period)) else { return };
        match Connection::open(&state.target, state.server(), PATIENCE).await {
            Ok(connection) => {
                if state.is_now(period) {
                    progress.send_replace(Progress::Open(Arc::new(connection)));
                }
                return;
            }
            Err(error) => {
                progress.send_replace(Progress::Failed);
                state.suspect(period);
                failures += 1;
                // By now the store would count as down if it was: only connecting fails.
                if failures == FAILURES && state.is_now(period) {
                    events::store_refuses_worker(&state.name, &error);
                }
            }
        }
        drop(state);
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(SLOWEST_PING);
    }
}
