//! Work for requests that a worker must not do: calls to other servers, and what is slow on purpose. It runs on the control
//! runtime; the worker waits for a message. Requests with the same credential share one piece of work.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwapOption;
use http::Uri;
use tokio::sync::{OnceCell, Semaphore, oneshot};

use super::Observer;
use super::chain::{Answer, Outcome};
use super::failure::AuthError;
use super::jwt::Digest;
use crate::http::fetch::ClientTls;

/// Distinct credentials that may wait for work at a time, per authenticator; beyond, the answer is 503.
const MAX_WAITING: usize = 4096;

/// Where errands run, shared by all authenticators over reloads.
#[derive(Default)]
pub(super) struct Errands {
    started: ArcSwapOption<Started>,
    tls: OnceCell<ClientTls>,
}

struct Started {
    runtime: tokio::runtime::Handle,
    observer: Arc<dyn Observer>,
}

impl std::fmt::Debug for Errands {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Errands")
    }
}

impl Errands {
    /// From now on errands run there.
    pub(super) fn start(&self, runtime: &tokio::runtime::Handle, observer: &Arc<dyn Observer>) {
        self.started.store(Some(Arc::new(Started { runtime: runtime.clone(), observer: observer.clone() })));
    }

    fn runtime(&self) -> Option<tokio::runtime::Handle> {
        self.started.load().as_ref().map(|started| started.runtime.clone())
    }

    /// Tells the observer that introspection failed.
    pub(super) fn introspection_failed(&self, authenticator: &str, error: &str) {
        if let Some(started) = &*self.started.load() {
            started.observer.introspection_failed(authenticator, error);
        }
    }

    /// TLS for calls of `uri`. The system's roots are read once, on a blocking thread, and only for https.
    pub(super) async fn tls(&self, uri: &Uri) -> Result<ClientTls, String> {
        if uri.scheme_str() == Some("http") {
            return ClientTls::with_roots(rustls::RootCertStore::empty()).map_err(|error| error.to_string());
        }
        let load = || async {
            let loaded = tokio::task::spawn_blocking(ClientTls::system).await.map_err(|error| error.to_string())?;
            loaded.map_err(|error| error.to_string())
        };
        self.tls.get_or_try_init(load).await.cloned()
    }
}

/// Work under way, by the digest of the credential.
#[derive(Debug)]
pub(super) struct Flights {
    waiting: Mutex<HashMap<Digest, Vec<oneshot::Sender<Outcome>>>>,
    /// Pieces of work at a time.
    slots: Semaphore,
    /// Credentials that may wait.
    room: usize,
}

impl Flights {
    /// At most `slots` pieces of work at a time.
    pub(super) fn new(slots: usize) -> Arc<Self> {
        Self::with_room(slots, MAX_WAITING)
    }

    fn with_room(slots: usize, room: usize) -> Arc<Self> {
        Arc::new(Self { waiting: Mutex::default(), slots: Semaphore::new(slots), room })
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<Digest, Vec<oneshot::Sender<Outcome>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Joins the work for `key`, or starts it. `known` is asked once more first: the work may have ended a moment ago.
    /// `work` must remember what `known` tells before it ends.
    pub(super) fn join<W>(self: &Arc<Self>, key: Digest, errands: &Errands, known: impl Fn() -> Option<Outcome>, work: W) -> Answer
    where
        W: Future<Output = Outcome> + Send + 'static,
    {
        let Some(runtime) = errands.runtime() else { return Answer::Now(Err(AuthError::Unavailable)) };
        let (sender, receiver) = oneshot::channel();
        let mut waiting = self.waiting();
        if let Some(others) = waiting.get_mut(&key) {
            others.push(sender);
            return Answer::Later(receiver);
        }
        if let Some(outcome) = known() {
            return Answer::Now(outcome);
        }
        if waiting.len() >= self.room {
            return Answer::Now(Err(AuthError::Unavailable));
        }
        waiting.insert(key, vec![sender]);
        drop(waiting);
        let mut flight = Flight { flights: self.clone(), key, listed: true };
        runtime.spawn(async move {
            let flights = flight.flights.clone();
            let _slot = flights.slots.acquire().await;
            // Requests that left while this waited for its turn need no answer.
            if flight.is_awaited() {
                let outcome = work.await;
                flight.land(&outcome);
            }
        });
        Answer::Later(receiver)
    }
}

/// One piece of work: however it ends, by a panic or with its runtime too, its waiters are let go.
struct Flight {
    flights: Arc<Flights>,
    key: Digest,
    /// Whether others can still join it.
    listed: bool,
}

impl Flight {
    /// Whether anyone still waits. If not, nobody can join any more either.
    fn is_awaited(&mut self) -> bool {
        let mut waiting = self.flights.waiting();
        let awaited = waiting.get(&self.key).is_some_and(|senders| senders.iter().any(|sender| !sender.is_closed()));
        if !awaited {
            waiting.remove(&self.key);
            self.listed = false;
        }
        awaited
    }

    fn land(mut self, outcome: &Outcome) {
        let waiters = self.flights.waiting().remove(&self.key).unwrap_or_default();
        self.listed = false;
        for sender in waiters {
            // A request that left does not need it.
            let _left = sender.send(outcome.clone());
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if self.listed {
            self.flights.waiting().remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    struct Nobody;
    impl Observer for Nobody {
        fn jwks_fetched(&self, _: &str, _: &'static str, _: Option<&str>) {}
        fn introspection_failed(&self, _: &str, _: &str) {}
    }

    fn later(answer: Answer) -> oneshot::Receiver<Outcome> {
        match answer {
            Answer::Later(receiver) => receiver,
            Answer::Remembered(_) | Answer::Now(_) | Answer::Keys(_) => panic!("answered at once"),
        }
    }

    #[tokio::test]
    async fn beyond_the_room_nobody_waits_and_who_left_costs_no_work() {
        let errands = Errands::default();
        let observer: Arc<dyn Observer> = Arc::new(Nobody);
        errands.start(&tokio::runtime::Handle::current(), &observer);
        let flights = Flights::with_room(1, 3);
        let (worked, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
        let join = |n: u8| {
            let (worked, gate) = (worked.clone(), gate.clone());
            let mut key = Digest::default();
            key[0] = n;
            flights.join(key, &errands, || None, async move {
                worked.fetch_add(1, Ordering::Relaxed);
                drop(gate.acquire().await);
                Err(AuthError::Unknown)
            })
        };
        let mut waiting: Vec<_> = (0..3).map(|n| later(join(n))).collect();
        assert!(matches!(join(3), Answer::Now(Err(AuthError::Unavailable))), "full");
        // The same credential shares the work of the one that waits.
        let shared = later(join(0));
        while worked.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        let left = waiting.pop();
        drop(left);
        gate.add_permits(10);
        for receiver in waiting.into_iter().chain([shared]) {
            assert!(matches!(receiver.await, Ok(Err(AuthError::Unknown))));
        }
        while !flights.waiting().is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(worked.load(Ordering::Relaxed), 2, "one that left, one that shared");
        assert!(matches!(join(3), Answer::Later(_)), "there is room again");
    }
}
