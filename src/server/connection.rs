//! One client connection from its first byte to its last: PROXY header, TLS, HTTP version, then requests.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio_rustls::TlsAcceptor;

use crate::gateway::{Ending, Inbound, Snapshot};
use crate::http::Connection;
use crate::http::clock::{Clock, ConnectionTimeouts, Phase};
use crate::http::connection::{ConnectionState, Link};
use crate::http::watched::{End, Watched};
use crate::server::h1::{Http1, Served};
use crate::server::http2::Http2;
use crate::server::io::{ClientIo, Transport};
use crate::server::listener::{Listener, Stage};
use crate::server::per_ip::{Counted, PerIp};
use crate::server::proxy_protocol;
use crate::server::streams::Streams;
use crate::server::worker::{Accepted, Open, State};
use crate::telemetry::metrics::ConnectionError;
use crate::tls::{Alpn, client_certificate, negotiated, tls_version_word};

/// How long an HTTP/2 connection may take to end after GOAWAY when it was idle.
const GOODBYE: Duration = Duration::from_secs(1);
/// The same for one that floods: just long enough to write it.
const DISMISSAL: Duration = Duration::from_millis(50);

/// Serves a connection to its end.
pub async fn serve(worker: usize, state: Arc<State>, accepted: Accepted) {
    let Accepted { socket, peer, listener, open } = accepted;
    let Ok(tcp) = TcpStream::from_std(socket) else { return };
    listener.metrics.connection_opened(worker);
    let mut held = Held { open, per_ip: None, listener: Arc::clone(&listener), worker };
    let snapshot = state.snapshot.load_full();
    let identity = listener.identity();
    let established = tokio::select! {
        biased;
        established = establish(tcp, peer, &listener, &snapshot, &state.per_ip) => established,
        // Who is still at the handshake has no request that could be lost.
        () = listener.closing() => return,
    };
    let established = match established {
        Ok(established) => established,
        Err(Some(kind)) => return listener.metrics.connection_error(worker, kind),
        // One too many from its address: closed without a word.
        Err(None) => return,
    };
    held.per_ip = established.counted;
    let timeouts = snapshot.timeouts;
    drop(snapshot);
    let ending = Arc::new(listener.ending());
    let session = Session {
        worker,
        state: Arc::clone(&state),
        listener: Arc::clone(&listener),
        connection: Arc::new(established.connection),
        held: Arc::new(held),
        ending,
        identity,
    };
    session.run(established.transport, established.h2, timeouts).await;
}

/// Counts a connection until it ends, on whatever path.
struct Held {
    #[expect(dead_code, reason = "held for its drop")]
    open: Open,
    per_ip: Option<Counted>,
    listener: Arc<Listener>,
    worker: usize,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.listener.metrics.connection_closed(self.worker);
    }
}

struct Established {
    transport: Transport,
    connection: Connection,
    /// What ALPN chose; `None` in clear text, where the first bytes tell.
    h2: Option<bool>,
    /// Its place among the connections of its address.
    counted: Option<Counted>,
}

/// PROXY header and TLS.
async fn establish(
    mut tcp: TcpStream,
    peer: std::net::SocketAddr,
    listener: &Listener,
    snapshot: &Snapshot,
    per_ip: &PerIp,
) -> Result<Established, Option<ConnectionError>> {
    let spec = listener.spec.load_full();
    let deadline = snapshot.handshake.map(|limit| Instant::now() + limit);
    let mut connection = Connection { listener: 0, peer, tls: false, tls_version: None, client_cert: None };
    if spec.proxy_protocol && snapshot.trusted.contains(crate::http::client_addr::unmap(peer.ip())) {
        match within(deadline, proxy_protocol::read(&mut tcp)).await {
            Some(Ok(Some(source))) => connection.peer = source,
            Some(Ok(None)) => {}
            Some(Err(_)) | None => return Err(Some(ConnectionError::Proxy)),
        }
    }
    // Before TLS, so that half-open handshakes count, too.
    let counted = match snapshot.max_connections_per_ip {
        Some(limit) => Some(per_ip.count(connection.peer.ip(), limit).ok_or(None)?),
        None => None,
    };
    let Some(tls) = &spec.tls else { return Ok(Established { transport: Transport::Plain(tcp), connection, h2: None, counted }) };
    let accepted = within(deadline, TlsAcceptor::from(Arc::clone(tls.config())).accept(tcp)).await;
    let stream = match accepted {
        Some(Ok(stream)) => stream,
        Some(Err(error)) => {
            tracing::debug!(%peer, %error, "TLS handshake failed");
            return Err(Some(ConnectionError::Tls));
        }
        None => return Err(Some(ConnectionError::Tls)),
    };
    let session = stream.get_ref().1;
    connection.tls = true;
    connection.tls_version = tls_version_word(session);
    connection.client_cert = client_certificate(session).map(Arc::new);
    let h2 = negotiated(session) == Alpn::H2;
    Ok(Established { transport: Transport::Tls(Box::new(stream)), connection, h2: Some(h2), counted })
}

/// `None` when the deadline comes first.
async fn within<F: Future>(deadline: Option<Instant>, future: F) -> Option<F::Output> {
    match deadline {
        Some(deadline) => tokio::time::timeout_at(deadline.into(), future).await.ok(),
        None => Some(future.await),
    }
}

/// What the requests of a connection have in common.
pub(super) struct Session {
    pub(super) worker: usize,
    state: Arc<State>,
    pub(super) listener: Arc<Listener>,
    connection: Arc<Connection>,
    held: Arc<Held>,
    ending: Arc<Ending>,
    /// Whether the listener's TLS is still the one that this connection began with.
    identity: watch::Receiver<u64>,
}

impl Session {
    async fn run(self, transport: Transport, h2: Option<bool>, timeouts: ConnectionTimeouts) {
        let state = Arc::new(ConnectionState::new(Arc::new(Clock::new(Phase::Head, Instant::now(), timeouts))));
        let io = ClientIo::new(transport, Arc::clone(&state), Arc::clone(&self.listener.metrics), self.worker);
        let io = if h2 == Some(true) { Some(Box::new(io)) } else { self.run_h1(io, h2.is_none(), Arc::clone(&state)).await };
        if let Some(io) = io {
            // Boxed: what HTTP/2 needs is much, and connections of HTTP/1 would carry room for it.
            Box::pin(self.run_h2(*io, &state, timeouts)).await;
        }
    }

    /// What comes with a request.
    pub(super) fn inbound(&self, link: Link) -> Inbound {
        Inbound {
            worker: self.worker,
            snapshot: self.state.view(self.worker),
            connection: Arc::clone(&self.connection),
            link,
            ending: Arc::clone(&self.ending),
            upgrading: None,
            survey: None,
        }
    }

    /// Serves HTTP/1. Gives the stream back if its client speaks HTTP/2, which is looked for if `sniffing`.
    async fn run_h1(&self, io: ClientIo, sniffing: bool, state: Arc<ConnectionState>) -> Option<Box<ClientIo>> {
        let clock = Arc::clone(&state.clock);
        // Set once, here.
        let _ = state.hold.set(Arc::clone(&self.held) as _);
        let closing = AtomicBool::new(false);
        let mut watched = pin!(Watched::new(Http1::new(self, io, sniffing, state, &closing).run(), clock));
        let mut stages = self.stages();
        let mut cut = pin!(async {
            while stages.changed().await.is_ok() {
                match *stages.borrow_and_update() {
                    Stage::Serving | Stage::Draining => {}
                    Stage::Closing => closing.store(true, Relaxed),
                    Stage::Cut => return,
                }
            }
            // The listener is gone without a word, which it never is: nothing changes any more.
            std::future::pending().await
        });
        let draining = self.listener.draining();
        let mut heard = false;
        let end = poll_fn(|cx| {
            // Looked at once, to be woken, and then only when there is news: this runs several times a request.
            let look = !std::mem::replace(&mut heard, true) || draining.load(Relaxed);
            if look && cut.as_mut().poll(cx).is_ready() {
                return Poll::Ready(None);
            }
            watched.as_mut().poll(cx).map(Some)
        })
        .await;
        let error = match end {
            Some(End::Cut(Phase::Head)) => Some(ConnectionError::HeaderTimeout),
            Some(End::Done(Served::End(error))) => error,
            Some(End::Done(Served::Http2(io))) => return Some(io),
            Some(End::Cut(_)) | None => None,
        };
        if let Some(error) = error {
            self.listener.metrics.connection_error(self.worker, error);
        }
        None
    }

    /// Stages of the listener; one that came before this connection listened is heard as well.
    fn stages(&self) -> tokio::sync::watch::Receiver<Stage> {
        let mut stages = self.listener.stages();
        if self.listener.draining().load(Relaxed) {
            stages.mark_changed();
        }
        stages
    }

    /// `max_header_size` and `max_headers` of this moment.
    pub(super) fn head_limits(&self) -> (usize, usize) {
        let (size, fields) = &self.state.head_limits;
        (size.load(Relaxed), fields.load(Relaxed))
    }

    /// The configuration of this moment.
    pub(super) fn snapshot(&self) -> arc_swap::Guard<Arc<Snapshot>> {
        self.state.snapshot.load()
    }

    /// How often an HTTP/2 client is pinged.
    pub(super) fn ping(&self) -> Duration {
        self.state.shared.http2_ping
    }

    async fn run_h2(&self, io: ClientIo, state: &Arc<ConnectionState>, timeouts: ConnectionTimeouts) {
        let flood = Arc::new(Notify::new());
        let io = io.h2(Arc::clone(&flood));
        let streams = Streams::of(&state.clock);
        let mut watched = pin!(Watched::new(Http2::new(self, io, state, &streams, timeouts), Arc::clone(&state.clock)));
        let (mut stages, mut identity) = (self.stages(), self.identity.clone());
        let end = loop {
            tokio::select! {
                biased;
                end = &mut watched => break Some(end),
                () = flood.notified() => break None,
                // Who stays for weeks would never see a renewed certificate. Streams finish; those that cross the GOAWAY are still taken.
                Ok(()) = identity.changed() => watched.as_mut().inner().leave(),
                stage = next_stage(&mut stages) => match stage {
                    Stage::Serving => {}
                    Stage::Draining | Stage::Closing => watched.as_mut().inner().leave(),
                    Stage::Cut => {
                        if streams.has_tunnels() {
                            // Tunnels say goodbye to both sides through this connection.
                            let _ = tokio::time::timeout(GOODBYE, watched.as_mut().inner()).await;
                        }
                        return;
                    }
                },
            }
        };
        match end {
            Some(End::Cut(Phase::Head)) => self.listener.metrics.connection_error(self.worker, ConnectionError::HeaderTimeout),
            Some(End::Cut(_)) => {
                // GOAWAY, so that the client knows that nothing it sends now is taken.
                watched.as_mut().inner().leave();
                let _ = tokio::time::timeout(GOODBYE, watched.as_mut().inner()).await;
            }
            Some(End::Done(Err(error))) => {
                tracing::debug!(%error, "HTTP/2 connection failed");
                // Who only went away has done nothing wrong.
                if !(error.is_io() || error.is_remote()) {
                    self.listener.metrics.connection_error(self.worker, ConnectionError::BadRequest);
                }
            }
            Some(End::Done(Ok(()))) => {}
            None => {
                tracing::debug!(peer = %self.connection.peer, "an HTTP/2 client floods");
                self.listener.metrics.connection_error(self.worker, ConnectionError::BadRequest);
                watched.as_mut().inner().leave();
                let _ = tokio::time::timeout(DISMISSAL, watched.as_mut().inner()).await;
            }
        }
    }
}

/// The stage that the listener enters next. Never ends when the listener is gone: then nothing changes any more.
async fn next_stage(stages: &mut watch::Receiver<Stage>) -> Stage {
    match stages.changed().await {
        Ok(()) => *stages.borrow_and_update(),
        Err(_) => std::future::pending().await,
    }
}
