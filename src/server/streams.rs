//! How many streams an HTTP/2 connection has open, which decides whether it is idle.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use crate::http::clock::{Clock, Phase};

/// The streams of a connection. All that write it run on one thread, so no addition has to be atomic.
#[derive(Debug)]
pub struct Streams {
    /// The connection's clock: idle without streams.
    connection: Arc<Clock>,
    open: AtomicUsize,
    /// Of these, the tunnels.
    tunnels: AtomicUsize,
}

impl Streams {
    /// Those of a connection with this clock.
    pub fn of(connection: &Arc<Clock>) -> Arc<Self> {
        Arc::new(Self { connection: Arc::clone(connection), open: AtomicUsize::new(0), tunnels: AtomicUsize::new(0) })
    }

    /// The connection's clock.
    pub fn clock(&self) -> &Clock {
        &self.connection
    }

    /// Whether a stream has become a tunnel.
    pub fn has_tunnels(&self) -> bool {
        self.tunnels.load(Relaxed) > 0
    }

    /// A stream opens.
    pub fn begin(self: &Arc<Self>) -> StreamGuard {
        let open = self.open.load(Relaxed);
        self.open.store(open.wrapping_add(1), Relaxed);
        if open == 0 {
            self.connection.enter(Phase::Tunnel, Instant::now());
        }
        StreamGuard { streams: Arc::clone(self), tunnel: false }
    }
}

/// Notes the end of a stream.
#[derive(Debug)]
pub struct StreamGuard {
    streams: Arc<Streams>,
    tunnel: bool,
}

impl StreamGuard {
    /// The stream becomes a tunnel, which has timers of its own; but the connection is in use.
    pub fn tunnel(&mut self) {
        let tunnels = &self.streams.tunnels;
        tunnels.store(tunnels.load(Relaxed).wrapping_add(1), Relaxed);
        self.tunnel = true;
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        let Streams { connection, open, tunnels } = &*self.streams;
        if self.tunnel {
            tunnels.store(tunnels.load(Relaxed).wrapping_sub(1), Relaxed);
        }
        let left = open.load(Relaxed).wrapping_sub(1);
        open.store(left, Relaxed);
        if left == 0 {
            connection.enter(Phase::Idle, Instant::now());
        }
    }
}
