//! One client connection from its first byte to its last: PROXY header, TLS, HTTP version, then requests.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio_rustls::TlsAcceptor;

use crate::gateway::answer::ResponseBody;
use crate::gateway::{Ending, Inbound, Snapshot, handle};
use crate::http::Connection;
use crate::http::clock::{Clock, ConnectionTimeouts, Phase};
use crate::http::connection::ConnectionState;
use crate::http::watched::{End, Watched};
use crate::server::io::{ClientIo, Transport};
use crate::server::listener::{Listener, Stage};
use crate::server::per_ip::{Counted, PerIp};
use crate::server::proxy_protocol;
use crate::server::worker::{Accepted, Open, State};
use crate::telemetry::metrics::ConnectionError;
use crate::tls::{Alpn, client_certificate, negotiated, tls_version_word};

/// What HTTP/2 clients send first (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// First read of a connection in clear text: enough for most request heads.
const FIRST_READ: usize = 2048;
/// HTTP/2 windows: a slow reader stops the upstream at about this much.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
/// Bytes of one stream that wait to be written.
const SEND_BUFFER: usize = 64 << 10;
/// hyper's own limit on heads is the backstop behind ours, which answers with a body.
const BACKSTOP: usize = 2;
/// hyper's own limit on the number of fields.
const HYPERS_FIELDS: usize = 100;
/// Up to here a head that is too large is answered by us, with a body that says why.
const LEAST_HEAD: usize = 64 << 10;
/// hyper takes no smaller limit.
const LEAST_BUFFER: usize = 16 << 10;
/// How long an HTTP/2 connection may take to end after GOAWAY when it was idle.
const GOODBYE: Duration = Duration::from_secs(1);
/// The same for one that floods: just long enough to write it.
const DISMISSAL: Duration = Duration::from_millis(50);

/// Serves a connection to its end.
pub async fn serve(worker: usize, state: Arc<State>, accepted: Accepted) {
    let Accepted { socket, peer, listener, open } = accepted;
    let Ok(tcp) = TcpStream::from_std(socket) else { return };
    // Without it a small answer could wait for the client's delayed ACK.
    let _ = tcp.set_nodelay(true);
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
struct Session {
    worker: usize,
    state: Arc<State>,
    listener: Arc<Listener>,
    connection: Arc<Connection>,
    held: Arc<Held>,
    ending: Arc<Ending>,
    /// Whether the listener's TLS is still the one that this connection began with.
    identity: watch::Receiver<u64>,
}

impl Session {
    async fn run(self, mut transport: Transport, h2: Option<bool>, timeouts: ConnectionTimeouts) {
        let clock = Arc::new(Clock::new(Phase::Head, Instant::now(), timeouts));
        let (h2, prefix) = match h2 {
            Some(h2) => (h2, Vec::new()),
            None => match self.first_bytes(&mut transport, &clock).await {
                End::Done(Ok(Some((h2, prefix)))) => (h2, prefix),
                End::Done(Ok(None) | Err(_)) => return,
                End::Cut(_) => return self.listener.metrics.connection_error(self.worker, ConnectionError::HeaderTimeout),
            },
        };
        if h2 { self.run_h2(transport, prefix, timeouts).await } else { self.run_h1(transport, prefix, clock).await }
    }

    /// [`sniff`] within the time a head may take; a drain does not wait for a client that never sent a byte.
    async fn first_bytes(&self, transport: &mut Transport, clock: &Arc<Clock>) -> End<io::Result<Option<(bool, Vec<u8>)>>> {
        let sniffing = pin!(sniff(transport));
        tokio::select! {
            biased;
            end = Watched::new(sniffing, Arc::clone(clock)) => end,
            () = self.listener.closing() => End::Done(Ok(None)),
        }
    }

    fn inbound(&self, clock: Arc<Clock>, state: Option<Arc<ConnectionState>>) -> Inbound {
        Inbound {
            worker: self.worker,
            snapshot: self.state.snapshot.load_full(),
            connection: Arc::clone(&self.connection),
            clock,
            state,
            ending: Arc::clone(&self.ending),
        }
    }

    async fn run_h1(&self, transport: Transport, prefix: Vec<u8>, clock: Arc<Clock>) {
        let state = Arc::new(ConnectionState::new(Arc::clone(&clock)));
        // Set once, here.
        let _ = state.hold.set(Arc::clone(&self.held) as _);
        let io = ClientIo::new(transport, prefix, Arc::clone(&state), Arc::clone(&self.listener.metrics), self.worker);
        let service = service_fn(|request: Request<Incoming>| {
            let inbound = self.inbound(Arc::clone(&state.clock), Some(Arc::clone(&state)));
            // A reload may have changed them.
            state.clock.set_timeouts(inbound.snapshot.timeouts);
            async move { Ok::<Response<ResponseBody>, Infallible>(handle(inbound, request).await) }
        });
        let (max_headers, max_size) = self.limits();
        let mut builder = http1::Builder::new();
        if let Some(max_headers) = max_headers {
            builder.max_headers(max_headers);
        }
        let connection = builder
            .header_read_timeout(None)
            .max_header_size(max_size)
            .max_buf_size(max_size.max(LEAST_BUFFER))
            .serve_connection(TokioIo::new(io), service)
            .with_upgrades();
        let mut watched = pin!(Watched::new(connection, Arc::clone(&clock)));
        let mut stages = self.stages();
        let end = loop {
            tokio::select! {
                biased;
                end = &mut watched => break end,
                Ok(()) = stages.changed() => match *stages.borrow_and_update() {
                    Stage::Serving | Stage::Draining => {}
                    Stage::Closing => watched.as_mut().inner().graceful_shutdown(),
                    Stage::Cut => return,
                },
            }
        };
        match end {
            End::Cut(Phase::Head) => self.listener.metrics.connection_error(self.worker, ConnectionError::HeaderTimeout),
            End::Done(Err(error)) if error.is_parse_too_large() => {
                self.listener.metrics.connection_error(self.worker, ConnectionError::TooLarge)
            }
            End::Done(Err(error)) if error.is_parse() => self.listener.metrics.connection_error(self.worker, ConnectionError::BadRequest),
            // Clients leave as they please; what that meant for a request is in its log line.
            End::Done(Ok(()) | Err(_)) | End::Cut(_) => {}
        }
    }

    /// Stages of the listener; one that came before this connection listened is heard as well.
    fn stages(&self) -> tokio::sync::watch::Receiver<Stage> {
        let mut stages = self.listener.stages();
        if self.listener.draining().load(Relaxed) {
            stages.mark_changed();
        }
        stages
    }

    /// hyper's limits on the number of fields and the size of a head.
    ///
    /// The default number of fields is hyper's as well, and is left to it: any explicit number moves the parser's arrays to the heap,
    /// 13 KiB per request.
    fn limits(&self) -> (Option<usize>, usize) {
        let snapshot = self.state.snapshot.load();
        let max_headers = (snapshot.max_headers != HYPERS_FIELDS).then_some(snapshot.max_headers.saturating_mul(BACKSTOP).min(4096));
        (max_headers, snapshot.max_header_size.saturating_mul(BACKSTOP).max(LEAST_HEAD))
    }

    async fn run_h2(&self, transport: Transport, prefix: Vec<u8>, timeouts: ConnectionTimeouts) {
        let clock = Arc::new(Clock::new(Phase::Head, Instant::now(), timeouts));
        let state = Arc::new(ConnectionState::new(Arc::clone(&clock)));
        let flood = Arc::new(Notify::new());
        let io = ClientIo::new(transport, prefix, state, Arc::clone(&self.listener.metrics), self.worker).h2(Arc::clone(&flood));
        let streams =
            StreamExecutor { connection: Arc::clone(&clock), next: Arc::default(), open: Arc::default(), tunnels: Arc::default() };
        let (next, tunnels) = (Arc::clone(&streams.next), Arc::clone(&streams.tunnels));
        let connection_clock = Arc::clone(&clock);
        let service = service_fn(|request: Request<Incoming>| {
            let clock = Arc::new(Clock::new(Phase::Request, Instant::now(), timeouts));
            *next.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&clock));
            let inbound = self.inbound(clock, None);
            connection_clock.set_timeouts(inbound.snapshot.timeouts);
            async move { Ok::<Response<ResponseBody>, Infallible>(handle(inbound, request).await) }
        });
        let snapshot = self.state.snapshot.load_full();
        let mut builder = http2::Builder::new(streams);
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(snapshot.max_streams)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(SEND_BUFFER)
            .max_header_list_size(u32::try_from(snapshot.max_header_size.saturating_mul(BACKSTOP)).unwrap_or(u32::MAX))
            .keep_alive_interval(self.state.shared.http2_ping)
            .keep_alive_timeout(self.state.shared.http2_ping / 2)
            .enable_connect_protocol();
        drop(snapshot);
        let mut watched = pin!(Watched::new(builder.serve_connection(TokioIo::new(io), service), Arc::clone(&clock)));
        let (mut stages, mut identity) = (self.stages(), self.identity.clone());
        let end = loop {
            tokio::select! {
                biased;
                end = &mut watched => break Some(end),
                () = flood.notified() => break None,
                // Who stays for weeks would never see a renewed certificate. Streams finish; those that cross the GOAWAY are still taken.
                Ok(()) = identity.changed() => watched.as_mut().inner().graceful_shutdown(),
                stage = next_stage(&mut stages) => match stage {
                    Stage::Serving => {}
                    Stage::Draining | Stage::Closing => watched.as_mut().inner().graceful_shutdown(),
                    Stage::Cut => {
                        if tunnels.load(Relaxed) > 0 {
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
                watched.as_mut().inner().graceful_shutdown();
                let _ = tokio::time::timeout(GOODBYE, watched.as_mut().inner()).await;
            }
            Some(End::Done(Err(error))) => {
                tracing::debug!(%error, "HTTP/2 connection failed");
                // A client that answers no ping is gone, not wrong.
                if !closed_by_peer(&error) && !error.is_timeout() {
                    self.listener.metrics.connection_error(self.worker, ConnectionError::BadRequest);
                }
            }
            Some(End::Done(Ok(()))) => {}
            None => {
                tracing::debug!(peer = %self.connection.peer, "an HTTP/2 client floods");
                self.listener.metrics.connection_error(self.worker, ConnectionError::BadRequest);
                watched.as_mut().inner().graceful_shutdown();
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

/// Whether an HTTP/2 connection ended because the client went away, which is no error of anyone.
fn closed_by_peer(error: &hyper::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(h2) = error.downcast_ref::<h2::Error>() {
            return h2.is_io() || h2.is_remote();
        }
        if error.downcast_ref::<io::Error>().is_some() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Reads until it is clear whether the client speaks HTTP/2 by prior knowledge; `None` if it closed without a byte.
async fn sniff(transport: &mut Transport) -> io::Result<Option<(bool, Vec<u8>)>> {
    let Transport::Plain(tcp) = transport else { return Ok(Some((false, Vec::new()))) };
    let mut bytes = Vec::with_capacity(FIRST_READ);
    loop {
        if tcp.read_buf(&mut bytes).await? == 0 {
            return Ok((!bytes.is_empty()).then_some((false, bytes)));
        }
        let common = bytes.len().min(PREFACE.len());
        if bytes.get(..common) != PREFACE.get(..common) {
            return Ok(Some((false, bytes)));
        }
        if common == PREFACE.len() {
            return Ok(Some((true, bytes)));
        }
    }
}

/// Runs the streams of an HTTP/2 connection, each beside its own clock, and keeps the connection's clock: idle without streams.
#[derive(Clone)]
struct StreamExecutor {
    connection: Arc<Clock>,
    /// The clock of the request whose stream is about to be run: hyper calls the service and this executor one after the other.
    next: Arc<Mutex<Option<Arc<Clock>>>>,
    open: Arc<AtomicUsize>,
    /// Of these, the tunnels.
    tunnels: Arc<AtomicUsize>,
}

impl<F> hyper::rt::Executor<F> for StreamExecutor
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, future: F) {
        let clock = self.next.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.open.fetch_add(1, Relaxed);
        self.connection.enter(Phase::Tunnel, Instant::now());
        let guard = StreamGuard { connection: Arc::clone(&self.connection), open: Arc::clone(&self.open) };
        let Some(clock) = clock else {
            // The driver of an upgraded stream (WebSocket): it has timers of its own, but the connection is in use.
            let tunnels = Arc::clone(&self.tunnels);
            tunnels.fetch_add(1, Relaxed);
            tokio::spawn(async move {
                let _guard = guard;
                future.await;
                tunnels.fetch_sub(1, Relaxed);
            });
            return;
        };
        let watched: Watched<Pin<Box<F>>, _> = Watched::new(Box::pin(future), clock);
        tokio::spawn(async move {
            let _guard = guard;
            // A stream that is cut is reset when its future is dropped.
            watched.await;
        });
    }
}

/// Notes the end of a stream.
struct StreamGuard {
    connection: Arc<Clock>,
    open: Arc<AtomicUsize>,
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        if self.open.fetch_sub(1, Relaxed) == 1 {
            self.connection.enter(Phase::Idle, Instant::now());
        }
    }
}
