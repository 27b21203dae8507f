//! What the parts of one client connection share.

use std::cell::RefCell;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use ::http::header::HOST;
use ::http::{Version, request};

use super::Host;
use super::clock::Clock;
use super::target::host;

/// What the connection's parts share: its socket, its service and its watcher. All on one thread, so nothing here is contended.
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
    /// A stream of HTTP/2, which has a clock of its own, and its connection.
    Http2(Arc<Clock>, Arc<ConnectionState>),
}

impl Link {
    /// The clock of the request.
    pub fn clock(&self) -> &Arc<Clock> {
        match self {
            Self::Http1(state) => &state.clock,
            Self::Http2(clock, _) => clock,
        }
    }

    /// State of an HTTP/1 connection.
    pub fn http1(&self) -> Option<&ConnectionState> {
        match self {
            Self::Http1(state) => Some(state),
            Self::Http2(..) => None,
        }
    }

    /// State of the connection.
    pub fn connection(&self) -> &ConnectionState {
        match self {
            Self::Http1(state) | Self::Http2(_, state) => state,
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
        let written = match (lines.next(), lines.next(), head.uri.authority()) {
            (Some(line), None, None) => line.as_bytes(),
            (None, None, Some(authority)) if head.version == Version::HTTP_2 => authority.as_str().as_bytes(),
            _ => return host(head.version, &head.headers, &head.uri),
        };
        if let Some(host) = self.host.get().filter(|host| host.authority.as_ref().is_some_and(|known| known.as_bytes() == written)) {
            return Ok(host.clone());
        }
        let host = LAST.with_borrow_mut(|last| match last {
            Some(last) if last.authority.as_ref().is_some_and(|known| known.as_bytes() == written) => Ok(last.clone()),
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

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use ::http::Request;

    use super::super::clock::{ConnectionTimeouts, Phase};
    use super::*;

    #[test]
    fn the_host_that_is_kept_is_only_given_to_requests_that_name_it() {
        let clock = Clock::new(Phase::Idle, Instant::now(), ConnectionTimeouts { header: None, idle: None });
        let state = ConnectionState::new(Arc::new(clock), Arc::new(()));
        let named = |version: Version, target: &str, line: Option<&str>| {
            let mut request = Request::builder().version(version).uri(target);
            if let Some(line) = line {
                request = request.header(HOST, line);
            }
            state.host(&request.body(()).unwrap().into_parts().0).map(|host| host.name().to_owned())
        };
        let (h1, h2) = (Version::HTTP_11, Version::HTTP_2);
        for _ in 0..2 {
            assert_eq!(named(h2, "http://One:8080/", None).unwrap(), "one");
            assert_eq!(named(h2, "http://two/", None).unwrap(), "two");
            assert_eq!(named(h1, "/", Some("One:8080")).unwrap(), "one");
            assert!(named(h2, "http://One:8080/", Some("two")).is_err(), "they differ");
            assert!(named(h1, "http://One:8080/", None).is_err(), "HTTP/1.1 has a Host beside it");
            assert!(named(h2, "/", None).is_err(), "no host");
        }
    }
}
