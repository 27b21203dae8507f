//! What the parts of one HTTP/1 connection share.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use super::clock::{Clock, Phase};

/// Most bytes of a raw head that are kept: enough for every head that passes the limits with room to spare.
const KEPT_HEAD: usize = 128 << 10;

/// What the connection's parts share: its socket, its service and its watcher. All on one task, so nothing here is contended.
#[derive(Debug)]
pub struct ConnectionState {
    /// Which timeout runs.
    pub clock: Arc<Clock>,
    /// Bytes read since the current request head began.
    head: Mutex<Vec<u8>>,
    /// Requests since `head` was last emptied.
    requests_in_head: AtomicU32,
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
        Self {
            clock,
            head: Mutex::new(Vec::new()),
            requests_in_head: AtomicU32::new(0),
            abort: AtomicBool::new(false),
            linger: AtomicBool::new(false),
            hold: OnceLock::new(),
        }
    }

    /// Notes that a request was parsed and says whether its raw head held both `Content-Length` and `Transfer-Encoding`.
    ///
    /// hyper hides the length in that case. Only the first request of a batch of pipelined ones can be looked up; the parser
    /// closes the connection after the others by itself, so one request never becomes two.
    pub fn request_parsed(&self, chunked: bool) -> bool {
        let earlier = self.requests_in_head.fetch_add(1, Relaxed);
        chunked && earlier == 0 && super::target::head_has_length_and_chunked(&self.head.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Bytes came in from the client.
    pub fn received(&self, bytes: &[u8]) {
        self.clock.moved(bytes.len());
        let phase = self.clock.phase();
        if phase == Phase::Idle {
            self.clock.enter(Phase::Head, Instant::now());
            self.requests_in_head.store(0, Relaxed);
            let mut head = self.head.lock().unwrap_or_else(PoisonError::into_inner);
            head.clear();
            head.extend_from_slice(&bytes[..bytes.len().min(KEPT_HEAD)]);
        } else if phase == Phase::Head {
            let mut head = self.head.lock().unwrap_or_else(PoisonError::into_inner);
            let room = KEPT_HEAD.saturating_sub(head.len());
            head.extend_from_slice(&bytes[..bytes.len().min(room)]);
        }
    }
}
