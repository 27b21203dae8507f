//! Opening a connection to an endpoint: TCP with happy eyeballs or a Unix socket, then TLS, then the handshake of HTTP/2.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::UnixStream;

use crate::config::upstream::Protocol;
use crate::http::body::RequestBody;
use crate::http::socket::Socket;
use crate::reactor;
use crate::tls::{Alpn, ClientTls};
use crate::upstream::endpoint::{Address, EndpointSpec};
use crate::upstream::eyeballs::happy_eyeballs;
use crate::upstream::h1::H1;
use crate::upstream::pool::OpenConnection;
use crate::upstream::wire::Wire;

/// Longest header list taken over HTTP/2.
const H2_MAX_HEAD: u32 = 64 << 10;
/// HTTP/2 windows towards upstreams: small, so that a slow client cannot park megabytes in the gateway.
const H2_STREAM_WINDOW: u32 = 256 << 10;
/// The largest there is: streams have a limit each, and one together would let a few slow clients stop all others on the connection.
const H2_CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// How often peers on HTTP/2 connections with open streams are pinged, on both sides. One that does not answer within half of it is gone.
pub const H2_PING: Duration = Duration::from_secs(30);

/// Why there is no connection.
#[derive(Debug)]
pub enum ConnectError {
    /// Refused or unreachable.
    Io(io::Error),
    /// This process has no descriptor left, of which the endpoint knows nothing.
    Exhausted(io::Error),
    /// TLS handshake or certificate.
    Tls(io::Error),
    /// The endpoint does not speak the protocol that is asked for.
    Protocol(&'static str),
    /// `connect_timeout` is over.
    Timeout,
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) | Self::Exhausted(error) => write!(f, "connect: {error}"),
            Self::Tls(error) => write!(f, "TLS: {error}"),
            Self::Protocol(what) => f.write_str(what),
            Self::Timeout => f.write_str("connect: timeout"),
        }
    }
}

impl std::error::Error for ConnectError {}

impl ConnectError {
    /// Tells a failure of the endpoint from one of this side.
    fn of_socket(error: io::Error) -> Self {
        // EMFILE and ENFILE: descriptors of the process and of the system. They have these numbers on every Unix.
        if matches!(error.raw_os_error(), Some(24 | 23)) { Self::Exhausted(error) } else { Self::Io(error) }
    }

    /// The same error for another request that waited for the same connection.
    pub fn again(&self) -> Self {
        match self {
            Self::Io(error) => Self::Io(io::Error::new(error.kind(), error.to_string())),
            Self::Exhausted(error) => Self::Exhausted(io::Error::new(error.kind(), error.to_string())),
            Self::Tls(error) => Self::Tls(io::Error::new(error.kind(), error.to_string())),
            Self::Protocol(what) => Self::Protocol(what),
            Self::Timeout => Self::Timeout,
        }
    }
}

/// A connection that takes requests.
#[derive(Debug)]
pub enum Sender {
    /// HTTP/1.1: one request at a time.
    H1(H1),
    /// HTTP/2: many.
    H2(http2::SendRequest<RequestBody>),
}

/// What a connection is made to.
#[derive(Debug)]
pub struct Destination {
    /// How the endpoint is reached.
    pub address: Address,
    /// Its host name, for TLS.
    pub tls_name: Arc<str>,
    /// TLS, for `https://` endpoints.
    pub tls: Option<Arc<ClientTls>>,
    /// Protocol asked for.
    pub protocol: Protocol,
    /// How often it is pinged over HTTP/2.
    pub ping: Duration,
}

impl Destination {
    /// The destination of an endpoint.
    pub fn new(spec: &EndpointSpec, tls: Option<Arc<ClientTls>>, protocol: Protocol) -> Self {
        let tls = tls.filter(|_| spec.tls);
        Self { address: spec.address.clone(), tls_name: Arc::clone(&spec.tls_name), tls, protocol, ping: H2_PING }
    }

    /// Whether connections speak HTTP/2; `None` where TLS will tell.
    pub fn speaks_h2(&self) -> Option<bool> {
        match (self.protocol, &self.tls) {
            (Protocol::H2, _) => Some(true),
            (Protocol::Http1, _) | (Protocol::Auto, None) => Some(false),
            (Protocol::Auto, Some(_)) => None,
        }
    }

    /// Opens a byte stream.
    ///
    /// # Errors
    /// [`ConnectError`]; the caller adds the timeout.
    pub async fn open(&self, addresses: &[SocketAddr], http1_only: bool) -> Result<Wire, ConnectError> {
        if let Address::Unix(path) = &self.address {
            return UnixStream::connect(path).await.map(Wire::Unix).map_err(ConnectError::of_socket);
        }
        let tcp = happy_eyeballs(addresses).await.map_err(ConnectError::of_socket)?;
        // Latency beats packing: heads and chunks are written whole.
        tcp.set_nodelay(true).map_err(ConnectError::Io)?;
        let socket = Socket::taken(tcp).map_err(ConnectError::Io)?;
        match &self.tls {
            None => Ok(Wire::Tcp(socket)),
            Some(tls) => match tls.connect(socket, &self.tls_name, http1_only).await {
                Ok((stream, _)) => Ok(Wire::Tls(Box::new(stream))),
                Err(error) => Err(ConnectError::Tls(error)),
            },
        }
    }

    /// Opens a connection that can take requests.
    ///
    /// # Errors
    /// [`ConnectError`]; the caller adds the timeout.
    pub async fn connect(&self, addresses: &[SocketAddr], open: OpenConnection) -> Result<Sender, ConnectError> {
        let io = self.open(addresses, false).await?;
        open.reached(io.peer());
        let h2 = match (&io, self.protocol) {
            (Wire::Tls(tls), Protocol::Auto) => crate::tls::negotiated(tls.get_ref().1) == Alpn::H2,
            (Wire::Tls(tls), Protocol::H2) => {
                if crate::tls::negotiated(tls.get_ref().1) != Alpn::H2 {
                    return Err(ConnectError::Protocol("the endpoint does not offer HTTP/2"));
                }
                true
            }
            (_, Protocol::H2) => true,
            (_, Protocol::Auto | Protocol::Http1) => false,
        };
        if h2 { handshake_h2(io, open, self.ping).await } else { Ok(Sender::H1(H1::new(io, open))) }
    }

    /// Opens an HTTP/1.1 connection that can become a tunnel.
    ///
    /// # Errors
    /// [`ConnectError`]; the caller adds the timeout.
    pub async fn connect_for_tunnel(&self, addresses: &[SocketAddr], open: OpenConnection) -> Result<H1, ConnectError> {
        Ok(H1::new(self.open(addresses, true).await?, open))
    }
}

async fn handshake_h2(io: Wire, open: OpenConnection, ping: Duration) -> Result<Sender, ConnectError> {
    let news = Arc::new(News::default());
    let (sender, connection) = http2::Builder::new(H2Executor(Arc::clone(&news)))
        .timer(TokioTimer::new())
        .initial_stream_window_size(H2_STREAM_WINDOW)
        .initial_connection_window_size(H2_CONNECTION_WINDOW)
        .max_header_list_size(H2_MAX_HEAD)
        // None until the peer's settings say how many: a request above its limit would be refused or wait in the wrong queue.
        .initial_max_send_streams(0)
        .keep_alive_interval(ping)
        .keep_alive_timeout(ping / 2)
        .handshake(TokioIo::new(io))
        .await
        .map_err(|error| ConnectError::Io(io::Error::other(error)))?;
    let mut connection = Box::pin(connection);
    std::future::poll_fn(|cx| {
        news.waker.lock().unwrap_or_else(PoisonError::into_inner).replace(cx.waker().clone());
        let streams = connection.current_max_send_streams();
        if streams > 0 {
            open.allows_streams(streams);
            return Poll::Ready(Ok(()));
        }
        match connection.as_mut().poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(())) => Poll::Ready(Err(ConnectError::Protocol("the endpoint does not speak HTTP/2"))),
            Poll::Ready(Err(error)) => {
                tracing::debug!(%error, "no HTTP/2 settings");
                Poll::Ready(Err(ConnectError::Protocol("the endpoint does not speak HTTP/2")))
            }
        }
    })
    .await?;
    news.settled.store(true, Relaxed);
    reactor::spawn(Box::pin(std::future::poll_fn(move |cx| {
        let ended = connection.as_mut().poll(cx);
        open.allows_streams(connection.current_max_send_streams());
        // Errors reach the requests that are using the connection.
        ended.map(|_| ())
    })));
    Ok(Sender::H2(sender))
}

/// How the one who opens a connection hears of the peer's settings: they are read by a task of the protocol's library, which tells nobody.
#[derive(Debug, Default)]
struct News {
    settled: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

/// Runs the tasks of a connection; until its settings have come, each step of them wakes the one who waits.
#[derive(Clone)]
struct H2Executor(Arc<News>);

impl<F> hyper::rt::Executor<F> for H2Executor
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, future: F) {
        if self.0.settled.load(Relaxed) {
            reactor::spawn(Box::pin(async move { drop(future.await) }));
            return;
        }
        let news = Arc::clone(&self.0);
        let mut future = Box::pin(future);
        reactor::spawn(Box::pin(std::future::poll_fn(move |cx| {
            let step = future.as_mut().poll(cx);
            if !news.settled.load(Relaxed)
                && let Some(waker) = news.waker.lock().unwrap_or_else(PoisonError::into_inner).take()
            {
                waker.wake();
            }
            step.map(|_| ())
        })));
    }
}
