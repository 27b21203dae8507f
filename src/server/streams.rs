//! The streams of an HTTP/2 connection as tasks.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use pin_project_lite::pin_project;

use crate::http::clock::{Clock, Phase};
use crate::http::watched::Watched;

/// Runs the streams of an HTTP/2 connection, each beside its own clock, and keeps the connection's clock: idle without streams.
#[derive(Clone)]
pub struct StreamExecutor(Arc<Streams>);

impl StreamExecutor {
    /// For the connection of these streams.
    pub fn new(streams: &Arc<Streams>) -> Self {
        Self(Arc::clone(streams))
    }
}

/// The streams of a connection.
pub struct Streams {
    /// The connection's clock.
    connection: Arc<Clock>,
    /// The clock of the request whose stream is about to be run: hyper calls the service and the executor one after the other.
    next: Mutex<Option<Arc<Clock>>>,
    open: AtomicUsize,
    /// Of these, the tunnels.
    tunnels: AtomicUsize,
}

impl Streams {
    /// Those of a connection with this clock.
    pub fn of(connection: &Arc<Clock>) -> Arc<Self> {
        let connection = Arc::clone(connection);
        Arc::new(Self { connection, next: Mutex::default(), open: AtomicUsize::new(0), tunnels: AtomicUsize::new(0) })
    }

    /// The connection's clock.
    pub fn clock(&self) -> &Arc<Clock> {
        &self.connection
    }

    /// The next stream that is run has this clock.
    pub fn expect(&self, clock: Arc<Clock>) {
        *self.next() = Some(clock);
    }

    /// Whether a stream has become a tunnel.
    pub fn has_tunnels(&self) -> bool {
        self.tunnels.load(Relaxed) > 0
    }

    fn next(&self) -> MutexGuard<'_, Option<Arc<Clock>>> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(self: &Arc<Self>) -> StreamGuard {
        if self.open.fetch_add(1, Relaxed) == 0 {
            self.connection.enter(Phase::Tunnel, Instant::now());
        }
        StreamGuard(Arc::clone(self))
    }
}

impl<F> hyper::rt::Executor<F> for StreamExecutor
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, future: F) {
        let clock = self.0.next().take();
        let guard = self.0.begin();
        let Some(clock) = clock else {
            // The driver of an upgraded stream (WebSocket): it has timers of its own, but the connection is in use.
            guard.0.tunnels.fetch_add(1, Relaxed);
            tokio::spawn(async move {
                future.await;
                guard.0.tunnels.fetch_sub(1, Relaxed);
            });
            return;
        };
        tokio::spawn(Stream { watched: Watched::new(future, clock), guard });
    }
}

pin_project! {
    /// The task of a stream. (An async block would hold the future twice: as captured and as awaited.)
    struct Stream<F> {
        #[pin]
        watched: Watched<F, Arc<Clock>>,
        guard: StreamGuard,
    }
}

impl<F: Future> Future for Stream<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // One that is cut is reset when its future is dropped.
        self.project().watched.poll(cx).map(drop)
    }
}

/// Notes the end of a stream.
struct StreamGuard(Arc<Streams>);

impl Drop for StreamGuard {
    fn drop(&mut self) {
        if self.0.open.fetch_sub(1, Relaxed) == 1 {
            self.0.connection.enter(Phase::Idle, Instant::now());
        }
    }
}
