//! What the parts of one HTTP/1 connection share.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use super::clock::Clock;

/// What the connection's parts share: its socket, its service and its watcher. All on one task, so nothing here is contended.
#[derive(Debug)]
pub struct ConnectionState {
    /// Which timeout runs.
    pub clock: Arc<Clock>,
    /// The body of the last answer was cut: the socket is reset, so that a close-delimited body cannot look complete.
    pub abort: AtomicBool,
    /// The client may still be sending a body that nobody reads: drop some of it before closing, so that the answer is not lost.
    pub linger: AtomicBool,
    /// What counts the connection; a tunnel keeps it when HTTP is over.
    pub hold: OnceLock<Arc<dyn std::any::Any + Send + Sync>>,
}

impl AsRef<Clock> for ConnectionState {
    fn as_ref(&self) -> &Clock {
        &self.clock
    }
}

impl ConnectionState {
    /// State of a new connection.
    pub fn new(clock: Arc<Clock>) -> Self {
        Self { clock, abort: AtomicBool::new(false), linger: AtomicBool::new(false), hold: OnceLock::new() }
    }
}
