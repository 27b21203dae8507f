//! What the parts of one HTTP/1 connection share.

use std::cell::RefCell;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use ::http::header::HOST;
use ::http::request;

use super::Host;
use super::clock::Clock;
use super::target::host;

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
    pub hold: Arc<dyn std::any::Any + Send + Sync>,
    /// The host of the first request: nearly always that of the others, too.
    host: OnceLock<Host>,
}

/// What the answer to a request goes back on.
#[derive(Clone, Debug)]
pub enum Link {
    /// An HTTP/1 connection.
    Http1(Arc<ConnectionState>),
    /// A stream of HTTP/2, which has a clock of its own.
    Http2(Arc<Clock>),
}

impl Link {
    /// The clock of the request.
    pub fn clock(&self) -> &Arc<Clock> {
        match self {
            Self::Http1(state) => &state.clock,
            Self::Http2(clock) => clock,
        }
    }

    /// State of an HTTP/1 connection.
    pub fn http1(&self) -> Option<&ConnectionState> {
        match self {
            Self::Http1(state) => Some(state),
            Self::Http2(_) => None,
        }
    }
}

impl AsRef<Clock> for ConnectionState {
    fn as_ref(&self) -> &Clock {
        &self.clock
    }
}

impl ConnectionState {
    /// State of a new connection that `hold` counts.
    pub fn new(clock: Arc<Clock>, hold: Arc<dyn std::any::Any + Send + Sync>) -> Self {
        Self { clock, abort: AtomicBool::new(false), linger: AtomicBool::new(false), hold, host: OnceLock::new() }
    }

    /// [`host`] of a request of this connection.
    ///
    /// # Errors
    /// Those of [`host`].
    pub fn host(&self, head: &request::Parts) -> Result<Host, &'static str> {
        let mut lines = head.headers.get_all(HOST).iter();
        let (Some(line), None, None) = (lines.next(), lines.next(), head.uri.authority()) else {
            return host(head.version, &head.headers, &head.uri);
        };
        if let Some(host) = self.host.get().filter(|host| host.authority.as_ref() == Some(line)) {
            return Ok(host.clone());
        }
        let host = LAST.with_borrow_mut(|last| match last {
            Some(last) if last.authority.as_ref() == Some(line) => Ok(last.clone()),
            Some(_) | None => {
                let host = host(head.version, &head.headers, &head.uri)?;
                Ok::<_, &'static str>(last.insert(host.detached()).clone())
            }
        })?;
        // Only the first is kept.
        let _ = self.host.set(host.clone());
        Ok(host)
    }
}

thread_local! {
    /// The host that was read last on this thread: nearly always that of the next connection, too.
    static LAST: RefCell<Option<Host>> = const { RefCell::new(None) };
}
