//! One client connection from its first byte to its last: PROXY header, TLS, HTTP version, then requests.

use std::future::{Future, poll_fn};
use std::net::{IpAddr, SocketAddr, TcpStream as Unwatched};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::Poll;
use std::time::{Duration, Instant};

use arc_swap::Guard;
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio_rustls::TlsAcceptor;

use crate::gateway::snapshot::ListenerSpec;
use crate::gateway::{Client, Snapshot, View};
use crate::http::Connection;
use crate::http::clock::{Clock, ConnectionTimeouts, Phase};
use crate::http::connection::{ConnectionState, Link};
use crate::http::socket::Socket;
use crate::http::watched::{End, Watched};
use crate::reactor;
use crate::server::h1::{Http1, Served};
use crate::server::http2::Http2;
use crate::server::io::{ClientIo, Transport};
use crate::server::listener::{Listener, Stage};
use crate::server::per_ip::{Counted, PerIp};
use crate::server::proxy_protocol;
use crate::server::roster::SETTLED;
use crate::server::seats::Accepted;
use crate::server::streams::Streams;
use crate::server::worker::{Open, State};
use crate::telemetry::metrics::ConnectionError;
use crate::tls::{Alpn, client_certificate, negotiated, tls_version_word};

/// How long an HTTP/2 connection may take to end after GOAWAY when it was idle.
const GOODBYE: Duration = Duration::from_secs(1);
/// The same for one that floods: just long enough to write it.
const DISMISSAL: Duration = Duration::from_millis(50);

/// Serves a connection on the worker that calls this.
pub fn spawn(worker: usize, state: Arc<State>, accepted: Accepted) {
    reactor::spawn(boxed(|| serve(worker, state, accepted)));
}

/// Boxes a future where it is made: the runtime moves what it is given more than once, `Box::pin` moves it as well, and this one is many
/// kilobytes of which hardly any are in use yet.
fn boxed<F>(make: impl FnOnce() -> F) -> Pin<Box<F>> {
    Box::into_pin(Box::write(Box::new_uninit(), make()))
}

/// Serves a connection to its end.
async fn serve(worker: usize, state: Arc<State>, accepted: Accepted) {
    let Accepted { socket, peer, listener, open } = accepted;
    listener.metrics.connection_opened(worker);
    let mut held = Held { open, per_ip: None, listener, worker };
    let listener = &held.listener;
    // Before the settings, so that no change of them is missed.
    let superseded = listener.superseded();
    let (timeouts, limit, handshake) = settings(&state, listener);
    let established = match handshake {
        None => in_clear(socket, peer, limit, &state.per_ip),
        Some(handshake) => tokio::select! {
            biased;
            // Boxed: connections in clear text would carry room for it.
            established = Box::pin(establish(socket, peer, handshake, &state.per_ip)) => established,
            // Who is still at the handshake has no request that could be lost.
            () = listener.closing() => return,
        },
    };
    let established = match established {
        Ok(established) => established,
        Err(Some(kind)) => return listener.metrics.connection_error(worker, kind),
        // One too many from its address: closed without a word.
        Err(None) => return,
    };
    let ending = listener.ending(worker);
    held.per_ip = established.counted;
    let client = Arc::new(Client { worker, connection: established.connection, ending });
    let session = Session { worker, state, client, held: Arc::new(held), superseded };
    session.run(established.transport, established.h2, timeouts).await;
}

/// What a handshake depends on.
struct Handshake {
    spec: Arc<ListenerSpec>,
    snapshot: Arc<Snapshot>,
}

/// The settings of this moment: timeouts, connections of one address, and what a handshake needs. None of it: the client speaks HTTP in
/// clear text at once.
fn settings(state: &State, listener: &Listener) -> (ConnectionTimeouts, Option<usize>, Option<Handshake>) {
    // Borrowed where that is enough: counts of who holds them would be written by all workers.
    let (spec, snapshot) = (listener.spec.load(), state.snapshot.load());
    let (timeouts, limit) = (snapshot.timeouts, snapshot.max_connections_per_ip);
    let shakes = spec.tls.is_some() || spec.proxy_protocol;
    (timeouts, limit, shakes.then(|| Handshake { spec: Guard::into_inner(spec), snapshot: Guard::into_inner(snapshot) }))
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

/// A connection without a handshake.
fn in_clear(socket: Unwatched, peer: SocketAddr, limit: Option<usize>, per_ip: &PerIp) -> Result<Established, Option<ConnectionError>> {
    let counted = count(peer.ip(), limit, per_ip)?;
    let connection = Connection { listener: 0, peer, tls: false, tls_version: None, client_cert: None };
    Ok(Established { transport: Transport::Plain(socket.into()), connection, h2: None, counted })
}

/// A connection's place among those of its address, if there is a limit on these.
fn count(ip: IpAddr, limit: Option<usize>, per_ip: &PerIp) -> Result<Option<Counted>, Option<ConnectionError>> {
    limit.map(|limit| per_ip.count(ip, limit).ok_or(None)).transpose()
}

/// PROXY header and TLS.
async fn establish(
    socket: Unwatched,
    peer: SocketAddr,
    handshake: Handshake,
    per_ip: &PerIp,
) -> Result<Established, Option<ConnectionError>> {
    let Handshake { spec, snapshot } = handshake;
    let deadline = snapshot.handshake.map(|limit| Instant::now() + limit);
    let mut connection = Connection { listener: 0, peer, tls: false, tls_version: None, client_cert: None };
    // Where the system cannot watch it nothing can be read.
    let socket = if spec.proxy_protocol && snapshot.trusted.contains(crate::http::client_addr::unmap(peer.ip())) {
        let mut tcp = TcpStream::from_std(socket).map_err(|_| None)?;
        match within(deadline, proxy_protocol::read(&mut tcp)).await {
            Some(Ok(Some(source))) => connection.peer = source,
            Some(Ok(None)) => {}
            Some(Err(_)) | None => return Err(Some(ConnectionError::Proxy)),
        }
        Socket::taken(tcp)
    } else {
        Socket::new(socket)
    }
    .map_err(|_| None)?;
    // Before TLS, so that half-open handshakes count, too.
    let counted = count(connection.peer.ip(), snapshot.max_connections_per_ip, per_ip)?;
    let Some(tls) = &spec.tls else {
        return Ok(Established { transport: Transport::Plain(socket.into()), connection, h2: None, counted });
    };
    let accepted = within(deadline, TlsAcceptor::from(Arc::clone(tls.config())).accept(socket)).await;
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
    pub(super) client: Arc<Client>,
    held: Arc<Held>,
    /// How often the listener's TLS was superseded when this connection began.
    superseded: u64,
}

impl Session {
    async fn run(self, transport: Transport, h2: Option<bool>, timeouts: ConnectionTimeouts) {
        let clock = Arc::new(Clock::new(Phase::Head, Instant::now(), timeouts));
        let state = Arc::new(ConnectionState::new(clock, Arc::clone(&self.held) as _));
        let io = ClientIo::new(transport, Arc::clone(&state), Arc::clone(&self.listener().metrics), self.worker);
        let io = if h2 == Some(true) { Some(Box::new(io)) } else { self.run_h1(io, h2.is_none(), Arc::clone(&state)).await };
        if let Some(io) = io {
            // Boxed: what HTTP/2 needs is much, and connections of HTTP/1 would carry room for it.
            Box::pin(self.run_h2(*io, &state, timeouts)).await;
        }
    }

    /// Where the connection came in.
    pub(super) fn listener(&self) -> &Listener {
        &self.held.listener
    }

    /// The configuration of this moment, as a request has it.
    pub(super) fn view(&self) -> Arc<View> {
        self.state.view(self.worker)
    }

    /// Serves HTTP/1. Gives the stream back if its client speaks HTTP/2, which is looked for if `sniffing`.
    async fn run_h1(&self, io: ClientIo, sniffing: bool, state: Arc<ConnectionState>) -> Option<Box<ClientIo>> {
        let clock = Arc::clone(&state.clock);
        let closing = AtomicBool::new(false);
        // Pinned by itself, for it is large and the watch over it would move it.
        let settled = AtomicBool::new(false);
        let link = Link::Http1(state);
        let serving = pin!(Http1::new(self, io, sniffing, &link, &closing, &settled).run());
        let mut watched = pin!(Watched::new(serving, clock).put_off(SETTLED));
        let listener = self.listener();
        let (roster, draining) = (self.state.rosters.get(self.worker), listener.draining());
        let mut entry = None;
        let end = poll_fn(|cx| {
            if entry.is_none() {
                entry = roster.map(|roster| roster.enter(cx.waker()));
            }
            if !settled.load(Relaxed) && entry.as_ref().is_none_or(|entry| !entry.is_new()) {
                settled.store(true, Relaxed);
                watched.as_mut().settle();
            }
            // Looked at closely only when there is news: this runs several times a request.
            if draining.load(Relaxed) {
                match listener.stage() {
                    Stage::Serving | Stage::Draining => {}
                    Stage::Closing => closing.store(true, Relaxed),
                    Stage::Cut => return Poll::Ready(None),
                }
            }
            watched.as_mut().poll(cx).map(Some)
        })
        .await;
        drop(entry);
        let error = match end {
            Some(End::Cut(Phase::Head)) => Some(ConnectionError::HeaderTimeout),
            Some(End::Done(Served::End(error))) => error,
            Some(End::Done(Served::Http2(io))) => return Some(io),
            Some(End::Cut(_)) | None => None,
        };
        if let Some(error) = error {
            self.listener().metrics.connection_error(self.worker, error);
        }
        None
    }

    /// Stages of the listener; one that came before this connection listened is heard as well.
    fn stages(&self) -> tokio::sync::watch::Receiver<Stage> {
        let mut stages = self.listener().stages();
        if self.listener().draining().load(Relaxed) {
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
        let (mut stages, mut identity) = (self.stages(), self.listener().identity(self.superseded));
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
            Some(End::Cut(Phase::Head)) => self.listener().metrics.connection_error(self.worker, ConnectionError::HeaderTimeout),
            Some(End::Cut(_)) => {
                // GOAWAY, so that the client knows that nothing it sends now is taken.
                watched.as_mut().inner().leave();
                let _ = tokio::time::timeout(GOODBYE, watched.as_mut().inner()).await;
            }
            Some(End::Done(Err(error))) => {
                tracing::debug!(%error, "HTTP/2 connection failed");
                // Who only went away has done nothing wrong.
                if !(error.is_io() || error.is_remote()) {
                    self.listener().metrics.connection_error(self.worker, ConnectionError::BadRequest);
                }
            }
            Some(End::Done(Ok(()))) => {}
            None => {
                tracing::debug!(peer = %self.client.connection.peer, "an HTTP/2 client floods");
                self.listener().metrics.connection_error(self.worker, ConnectionError::BadRequest);
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
