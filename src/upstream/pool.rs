//! Connections to one endpoint, kept per worker.
//!
//! Each worker has a shard of its own: idle HTTP/1.1 connections newest first, and open HTTP/2 connections. Only the number of
//! open connections is shared, and it changes only when one is opened or closed, so a request on a kept connection touches
//! nothing that another worker writes.

mod moved;
mod users;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use hyper::client::conn::http2;
use tokio::sync::{Notify, watch};

use crate::config;
use crate::http::body::RequestBody;
use crate::telemetry::metrics::EndpointMetrics;
use crate::upstream::connect::{ConnectError, Destination, Sender};
use crate::upstream::h1::H1;
use moved::Moved;
use users::Users;

/// Most requests that wait for a connection of one endpoint.
const MAX_WAITING: usize = 1024;

/// Connections to one endpoint.
#[derive(Debug)]
pub struct EndpointPool {
    destination: Destination,
    max_connections: usize,
    max_idle: usize,
    /// The configured `idle_timeout`, in milliseconds.
    most_idle: u64,
    /// The one that holds, in milliseconds: less than the configured one when the upstream announced a shorter one.
    idle_timeout: AtomicU64,
    /// Open connections of all workers.
    open: AtomicUsize,
    shards: Box<[Shard]>,
    /// Rings when a connection is given back or closed, for requests that wait.
    freed: Notify,
    waiting: AtomicUsize,
    /// What the last connection spoke.
    spoken: AtomicU8,
    moved: Moved,
    users: Users,
    metrics: Arc<EndpointMetrics>,
}

/// One worker's connections; on cache lines of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    idle: Vec<Idle>,
    h2: Vec<Shared>,
    /// A connection under way that many requests may share, and its outcome.
    opening: Option<Opening>,
}

/// The outcome of a connection, once there is one.
type Opening = watch::Receiver<Option<Result<(), ConnectError>>>;

/// Told why there is no connection, by who may not wait for it.
pub type Apart = Box<dyn FnOnce(&ConnectError) + Send>;

/// What is known of an endpoint's protocol.
const UNKNOWN: u8 = 0;
const HTTP_1: u8 = 1;
const HTTP_2: u8 = 2;

#[derive(Debug)]
struct Idle {
    connection: H1,
    since: Instant,
}

/// An HTTP/2 connection and the streams open on it.
#[derive(Debug)]
struct Shared {
    sender: http2::SendRequest<RequestBody>,
    streams: Arc<Streams>,
    /// Since when it was seen without a stream.
    idle_since: Option<Instant>,
}

/// Streams of an HTTP/2 connection.
#[derive(Debug)]
struct Streams {
    open: AtomicUsize,
    /// As many as the upstream allows; its driver keeps it up to date.
    max: AtomicUsize,
    /// The address that was reached.
    peer: OnceLock<SocketAddr>,
}

/// Counts an open connection as long as it lives.
#[derive(Debug)]
pub struct OpenConnection {
    pool: Arc<EndpointPool>,
    worker: usize,
    streams: Arc<Streams>,
}

impl OpenConnection {
    /// The upstream allows this many streams on the connection.
    pub fn allows_streams(&self, max: usize) {
        self.streams.max.store(max, Relaxed);
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        if self.pool.open.fetch_sub(1, Relaxed) == 1 {
            // Whoever answers the next connection may be another process, with other timeouts.
            self.pool.idle_timeout.store(self.pool.most_idle, Relaxed);
        }
        self.pool.metrics.connection_closed(self.worker);
        self.pool.freed.notify_one();
    }
}

/// A connection on loan for one request.
#[derive(Debug)]
pub struct Lease {
    /// What requests are sent through; gone once given back.
    pub sender: Option<Sender>,
    /// Whether an earlier request used it: then it may have been closed by the upstream in the meantime.
    pub reused: bool,
    /// The worker whose it is.
    pub worker: usize,
    /// Of HTTP/2: counted as long as it is on loan.
    stream: Option<(Arc<EndpointPool>, Arc<Streams>)>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some((pool, streams)) = &self.stream {
            streams.open.fetch_sub(1, Relaxed);
            pool.freed.notify_one();
        }
    }
}

impl EndpointPool {
    /// An empty pool.
    pub fn new(workers: usize, destination: Destination, config: &config::upstream::Pool, metrics: Arc<EndpointMetrics>) -> Self {
        let most_idle = u64::try_from(config.idle_timeout.get().as_millis()).unwrap_or(u64::MAX);
        Self {
            spoken: AtomicU8::new(destination.speaks_h2().map_or(UNKNOWN, |h2| if h2 { HTTP_2 } else { HTTP_1 })),
            destination,
            max_connections: config.max_connections,
            max_idle: config.max_idle.div_ceil(workers.max(1)),
            most_idle,
            idle_timeout: AtomicU64::new(most_idle),
            open: AtomicUsize::new(0),
            shards: (0..workers.max(1)).map(|_| Shard::default()).collect(),
            freed: Notify::new(),
            waiting: AtomicUsize::new(0),
            moved: Moved::default(),
            users: Users::default(),
            metrics,
        }
    }

    fn shard(&self, worker: usize) -> MutexGuard<'_, Kept> {
        self.shards[worker % self.shards.len()].0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Metrics of its endpoint.
    pub fn metrics(&self) -> &Arc<EndpointMetrics> {
        &self.metrics
    }

    /// Whether a further request would have to wait for a connection.
    pub fn is_full(&self) -> bool {
        if self.open.load(Relaxed) < self.max_connections {
            return false;
        }
        (0..self.shards.len()).all(|worker| {
            let kept = self.shard(worker);
            kept.idle.is_empty() && !kept.h2.iter().any(Shared::has_room)
        })
    }

    /// Open and idle connections of all workers.
    pub fn counts(&self) -> (usize, usize) {
        (self.open.load(Relaxed), (0..self.shards.len()).map(|worker| self.shard(worker).unused()).sum())
    }

    /// A kept connection, newest first.
    pub fn checkout(self: &Arc<Self>, worker: usize, now: Instant) -> Option<Lease> {
        let idle_timeout = Duration::from_millis(self.idle_timeout.load(Relaxed));
        let mut kept = self.shard(worker);
        while let Some(mut idle) = kept.idle.pop() {
            // One after a long response counts from its head, and may be stale where older ones are not.
            if idle.since.checked_add(idle_timeout).is_none_or(|until| now < until) && idle.connection.is_ready() {
                return Some(Lease::h1(idle.connection, worker, true));
            }
        }
        self.share(kept, worker)
    }

    fn checkout_h2(self: &Arc<Self>, worker: usize) -> Option<Lease> {
        self.share(self.shard(worker), worker)
    }

    /// A stream on the open connection with the fewest.
    fn share(self: &Arc<Self>, mut kept: MutexGuard<'_, Kept>, worker: usize) -> Option<Lease> {
        if kept.h2.is_empty() {
            return None;
        }
        kept.h2.retain(|shared| !shared.sender.is_closed());
        let shared = kept.h2.iter_mut().filter(|shared| shared.has_room()).min_by_key(|shared| shared.streams.open.load(Relaxed))?;
        shared.streams.open.fetch_add(1, Relaxed);
        shared.idle_since = None;
        let (sender, streams) = (shared.sender.clone(), Arc::clone(&shared.streams));
        drop(kept);
        Some(Lease { sender: Some(Sender::H2(sender)), reused: true, worker, stream: Some((Arc::clone(self), streams)) })
    }

    /// A stream on another worker's connection, where this one may not open its own.
    pub fn borrow(self: &Arc<Self>, worker: usize) -> Option<Lease> {
        let shards = self.shards.len();
        (0..shards).find_map(|next| self.checkout_h2((worker + next) % shards))
    }

    /// A new connection, or `None` when `max_connections` are open and none of them can be used. Where connections are shared (HTTP/2), requests
    /// of a worker wait for one that is under way instead of opening one each. So does, once, who may leave before there is one: with
    /// `apart` it is made all the same, for whoever comes next.
    ///
    /// # Errors
    /// [`ConnectError`]; [`ConnectError::Timeout`] after `timeout`.
    pub async fn connect(
        self: &Arc<Self>,
        worker: usize,
        addresses: &[SocketAddr],
        timeout: Duration,
        mut apart: Option<Apart>,
    ) -> Option<Result<Lease, ConnectError>> {
        let mut wait = apart.is_some() && self.max_idle > 0;
        while std::mem::take(&mut wait) || self.spoken.load(Relaxed) != HTTP_1 {
            let Some(mut outcome) = self.opening(worker, addresses, timeout, &mut apart) else { return self.borrow(worker).map(Ok) };
            let failed = match outcome.wait_for(Option::is_some).await {
                Ok(outcome) => outcome.as_ref().and_then(|outcome| outcome.as_ref().err().map(ConnectError::again)),
                // Its task ended without an outcome: the runtime is stopping.
                Err(_) => Some(ConnectError::Timeout),
            };
            if let Some(error) = failed {
                return Some(Err(error));
            }
            if let Some(lease) = self.checkout(worker, Instant::now()) {
                // It was opened for those who waited for it.
                return Some(Ok(lease.of_a_new_connection()));
            }
        }
        let open = self.reserve(worker, false)?;
        let streams = Arc::clone(&open.streams);
        let outcome = tokio::time::timeout(timeout, self.destination.connect(addresses, open)).await;
        match self.connected(worker, streams, outcome.unwrap_or(Err(ConnectError::Timeout))) {
            Ok(Some(connection)) => Some(Ok(Lease::h1(connection, worker, false))),
            Ok(None) => self.checkout_h2(worker).map(|lease| Ok(lease.of_a_new_connection())),
            Err(error) => Some(Err(error)),
        }
    }

    /// The shared connection that is under way for this worker; begins one if there is none. `None` when none may be opened.
    fn opening(self: &Arc<Self>, worker: usize, addresses: &[SocketAddr], timeout: Duration, apart: &mut Option<Apart>) -> Option<Opening> {
        if let Some(opening) = &self.shard(worker).opening {
            return Some(opening.clone());
        }
        let open = self.reserve(worker, false)?;
        let (done, opening) = watch::channel(None);
        self.shard(worker).opening = Some(opening.clone());
        // A task of its own: the request that began it may leave while others wait.
        let (pool, addresses, apart) = (Arc::clone(self), addresses.to_vec(), apart.take());
        tokio::spawn(async move {
            let streams = Arc::clone(&open.streams);
            let outcome = tokio::time::timeout(timeout, pool.destination.connect(&addresses, open)).await;
            let outcome = pool.connected(worker, streams, outcome.unwrap_or(Err(ConnectError::Timeout))).map(|connection| {
                if let Some(connection) = connection {
                    pool.give_back(connection, worker, Instant::now());
                }
            });
            pool.shard(worker).opening = None;
            if let (Some(failed), Err(error)) = (apart, &outcome) {
                failed(error);
            }
            done.send_replace(Some(outcome));
        });
        Some(opening)
    }

    /// Keeps a new HTTP/2 connection, or hands out a new HTTP/1.1 one.
    fn connected(&self, worker: usize, streams: Arc<Streams>, outcome: Result<Sender, ConnectError>) -> Result<Option<H1>, ConnectError> {
        match outcome? {
            Sender::H1(connection) => {
                self.spoken.store(HTTP_1, Relaxed);
                Ok(Some(connection))
            }
            Sender::H2(sender) => {
                self.spoken.store(HTTP_2, Relaxed);
                self.shard(worker).h2.push(Shared { sender, streams, idle_since: None });
                // Requests that wait for room have some now.
                self.freed.notify_waiters();
                Ok(None)
            }
        }
    }

    /// Opens a connection for one WebSocket: HTTP/1.1, never kept.
    ///
    /// # Errors
    /// [`ConnectError`]; [`ConnectError::Timeout`] after `timeout`.
    pub async fn connect_for_tunnel(
        self: &Arc<Self>,
        worker: usize,
        addresses: &[SocketAddr],
        timeout: Duration,
    ) -> Option<Result<H1, ConnectError>> {
        let open = self.reserve(worker, true)?;
        let connecting = self.destination.connect_for_tunnel(addresses, open);
        Some(tokio::time::timeout(timeout, connecting).await.unwrap_or(Err(ConnectError::Timeout)))
    }

    /// Takes one of the `max_connections`; an idle connection of another worker makes room. With `h2` an unused HTTP/2 connection does, too; who
    /// can share it should do that instead.
    fn reserve(self: &Arc<Self>, worker: usize, h2: bool) -> Option<OpenConnection> {
        let taken = |open: usize| (open < self.max_connections).then_some(open + 1);
        while self.open.try_update(Relaxed, Relaxed, taken).is_err() {
            // The place of an HTTP/1.1 connection is free once it is dropped, and whoever is first takes it: only so are there never too
            // many. One of HTTP/2 ends a moment later, when its task has seen that nobody holds it.
            let other = (0..self.shards.len()).find_map(|worker| self.shard(worker).give_up(h2))?;
            if matches!(other, Sender::H2(_)) {
                self.open.fetch_add(1, Relaxed);
                break;
            }
            drop(other);
        }
        self.metrics.connection_opened(worker);
        // The peer's settings say how many.
        let streams = Arc::new(Streams { open: AtomicUsize::new(0), max: AtomicUsize::new(0), peer: OnceLock::new() });
        Some(OpenConnection { pool: Arc::clone(self), worker, streams })
    }

    /// Waits until a request may find a connection. `false` when too many wait already.
    pub async fn wait_for_room(&self) -> bool {
        self.wait_while(Self::is_full).await
    }

    /// Waits until a connection of its own may be opened, for who cannot share one. `false` when too many wait already.
    pub async fn wait_for_place(&self) -> bool {
        self.wait_while(|pool| pool.open.load(Relaxed) >= pool.max_connections && pool.counts().1 == 0).await
    }

    async fn wait_while(&self, full: impl Fn(&Self) -> bool) -> bool {
        struct Waiting<'a>(&'a AtomicUsize);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Relaxed);
            }
        }
        let earlier = self.waiting.fetch_add(1, Relaxed);
        let _waiting = Waiting(&self.waiting);
        if earlier >= MAX_WAITING {
            return false;
        }
        let freed = self.freed.notified();
        if full(self) {
            freed.await;
        }
        true
    }

    /// The upstream said how long it keeps idle connections (`Keep-Alive: timeout=`): ours must go first. Its latest word counts, until
    /// its last connection is closed.
    pub fn learn_idle_timeout(&self, theirs: Duration) {
        let ours = theirs.saturating_sub(Duration::from_secs(1)).max(Duration::from_millis(500));
        let ours = u64::try_from(ours.as_millis()).unwrap_or(u64::MAX).min(self.most_idle);
        // Read first: the same word comes with every response, and all workers read this line.
        if self.idle_timeout.load(Relaxed) != ours {
            self.idle_timeout.store(ours, Relaxed);
        }
    }

    /// Closes what has been idle too long.
    pub fn sweep(&self, worker: usize, now: Instant) {
        let idle_timeout = Duration::from_millis(self.idle_timeout.load(Relaxed));
        let mut kept = self.shard(worker);
        // Oldest first, since connections are pushed as they become idle.
        let fresh = kept.idle.iter().position(|idle| now.saturating_duration_since(idle.since) < idle_timeout).unwrap_or(kept.idle.len());
        let mut stale: Vec<_> = kept.idle.drain(..fresh).collect();
        // Those that the upstream has closed go as well.
        stale.extend(kept.idle.extract_if(.., |idle| !idle.connection.is_ready()));
        kept.h2.retain_mut(|shared| !shared.sender.is_closed() && !shared.idle_too_long(now, idle_timeout));
        drop(kept);
        drop(stale);
    }

    /// Takes an HTTP/1.1 connection back that is fit for another request, idle since `since`.
    pub fn give_back(&self, connection: H1, worker: usize, since: Instant) {
        let wanted = self.users.any() && connection.is_wanted();
        let mut kept = self.shard(worker);
        if wanted && kept.idle.len() < self.max_idle {
            kept.idle.push(Idle { connection, since });
            drop(kept);
        } else {
            drop(kept);
            drop(connection);
        }
        if self.waiting.load(Relaxed) > 0 {
            self.freed.notify_one();
        }
    }
}

impl Kept {
    /// Connections without a request.
    fn unused(&self) -> usize {
        self.idle.len() + self.h2.iter().filter(|shared| shared.is_unused()).count()
    }

    /// Takes out a connection without a request, to be dropped when the lock is gone; with `h2` also an HTTP/2 one.
    fn give_up(&mut self, h2: bool) -> Option<Sender> {
        if !self.idle.is_empty() {
            return Some(Sender::H1(self.idle.remove(0).connection));
        }
        let unused = self.h2.iter().position(Shared::is_unused).filter(|_| h2)?;
        Some(Sender::H2(self.h2.swap_remove(unused).sender))
    }
}

impl Shared {
    fn is_unused(&self) -> bool {
        self.streams.open.load(Relaxed) == 0
    }

    /// Whether it was without a stream for `limit`, looked at every now and then.
    fn idle_too_long(&mut self, now: Instant, limit: Duration) -> bool {
        if !self.is_unused() {
            self.idle_since = None;
            return false;
        }
        now.saturating_duration_since(*self.idle_since.get_or_insert(now)) >= limit
    }

    fn has_room(&self) -> bool {
        !self.sender.is_closed() && self.streams.open.load(Relaxed) < self.streams.max.load(Relaxed)
    }
}

impl Lease {
    fn h1(connection: H1, worker: usize, reused: bool) -> Self {
        Self { sender: Some(Sender::H1(connection)), reused, worker, stream: None }
    }

    fn of_a_new_connection(mut self) -> Self {
        self.reused = false;
        self
    }
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
