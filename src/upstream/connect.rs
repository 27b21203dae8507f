//! Opening a connection to an endpoint: TCP with happy eyeballs or a Unix socket, then TLS, then the HTTP handshake.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

use crate::config::upstream::Protocol;
use crate::http::body::RequestBody;
use crate::tls::{Alpn, ClientTls};
use crate::upstream::endpoint::{Address, EndpointSpec};
use crate::upstream::pool::OpenConnection;

/// Longest response head taken from an upstream.
const MAX_HEAD: usize = 64 << 10;
/// Most fields in a response head.
const MAX_FIELDS: usize = 256;
/// Wait before the next address is tried beside the ones under way (RFC 8305, 5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// HTTP/2 windows towards upstreams: small, so that a slow client cannot park megabytes in the gateway.
const H2_STREAM_WINDOW: u32 = 256 << 10;
const H2_CONNECTION_WINDOW: u32 = 2 << 20;
/// HTTP/2 pings find dead peers.
const H2_PING: Duration = Duration::from_secs(30);

/// Why there is no connection.
#[derive(Debug)]
pub enum ConnectError {
    /// Refused or unreachable.
    Io(io::Error),
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
            Self::Io(error) => write!(f, "connect: {error}"),
            Self::Tls(error) => write!(f, "TLS: {error}"),
            Self::Protocol(what) => f.write_str(what),
            Self::Timeout => f.write_str("connect: timeout"),
        }
    }
}

impl std::error::Error for ConnectError {}

impl ConnectError {
    /// The same error for another request that waited for the same connection.
    pub fn again(&self) -> Self {
        match self {
            Self::Io(error) => Self::Io(io::Error::new(error.kind(), error.to_string())),
            Self::Tls(error) => Self::Tls(io::Error::new(error.kind(), error.to_string())),
            Self::Protocol(what) => Self::Protocol(what),
            Self::Timeout => Self::Timeout,
        }
    }
}

/// The sending half of a connection.
#[derive(Debug)]
pub enum Sender {
    /// HTTP/1.1: one request at a time.
    H1(http1::SendRequest<RequestBody>),
    /// HTTP/2: many.
    H2(http2::SendRequest<RequestBody>),
}

/// A byte stream to an endpoint.
#[derive(Debug)]
pub enum UpstreamIo {
    /// TCP in clear.
    Tcp(TcpStream),
    /// TLS over TCP.
    Tls(Box<TlsStream<TcpStream>>),
    /// A Unix socket.
    Unix(UnixStream),
}

macro_rules! each {
    ($self:expr, $io:ident => $call:expr) => {
        match $self.get_mut() {
            UpstreamIo::Tcp(io) => {
                let $io = Pin::new(io);
                $call
            }
            UpstreamIo::Tls(io) => {
                let $io = Pin::new(io.as_mut());
                $call
            }
            UpstreamIo::Unix(io) => {
                let $io = Pin::new(io);
                $call
            }
        }
    };
}

impl AsyncRead for UpstreamIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, io => io.poll_read(cx, buf))
    }
}

impl AsyncWrite for UpstreamIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, io => io.poll_write(cx, buf))
    }
    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        each!(self, io => io.poll_write_vectored(cx, bufs))
    }
    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(io) => io.is_write_vectored(),
            Self::Tls(io) => io.is_write_vectored(),
            Self::Unix(io) => io.is_write_vectored(),
        }
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, io => io.poll_flush(cx))
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, io => io.poll_shutdown(cx))
    }
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
}

impl Destination {
    /// The destination of an endpoint.
    pub fn new(spec: &EndpointSpec, tls: Option<Arc<ClientTls>>, protocol: Protocol) -> Self {
        Self { address: spec.address.clone(), tls_name: Arc::clone(&spec.tls_name), tls: tls.filter(|_| spec.tls), protocol }
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
    pub async fn open(&self, addresses: &[SocketAddr], http1_only: bool) -> Result<UpstreamIo, ConnectError> {
        if let Address::Unix(path) = &self.address {
            return UnixStream::connect(path).await.map(UpstreamIo::Unix).map_err(ConnectError::Io);
        }
        let tcp = happy_eyeballs(addresses).await.map_err(ConnectError::Io)?;
        // Latency beats packing: heads and chunks are written whole.
        tcp.set_nodelay(true).map_err(ConnectError::Io)?;
        match &self.tls {
            None => Ok(UpstreamIo::Tcp(tcp)),
            Some(tls) => match tls.connect(tcp, &self.tls_name, http1_only).await {
                Ok((stream, _)) => Ok(UpstreamIo::Tls(Box::new(stream))),
                Err(error) => Err(ConnectError::Tls(error)),
            },
        }
    }

    /// Opens a connection that can take requests; its driver runs as a task of the current runtime until it ends.
    ///
    /// # Errors
    /// [`ConnectError`]; the caller adds the timeout.
    pub async fn connect(&self, addresses: &[SocketAddr], open: OpenConnection, http1_only: bool) -> Result<Sender, ConnectError> {
        let io = self.open(addresses, http1_only).await?;
        let h2 = match (&io, self.protocol) {
            (UpstreamIo::Tls(tls), Protocol::Auto) => !http1_only && crate::tls::negotiated(tls.get_ref().1) == Alpn::H2,
            (UpstreamIo::Tls(tls), Protocol::H2) => {
                if crate::tls::negotiated(tls.get_ref().1) != Alpn::H2 {
                    return Err(ConnectError::Protocol("the endpoint does not offer HTTP/2"));
                }
                true
            }
            (_, Protocol::H2) => true,
            (_, Protocol::Auto | Protocol::Http1) => false,
        };
        if h2 { handshake_h2(io, open).await } else { handshake_h1(io, open, http1_only).await }
    }
}

async fn handshake_h1(io: UpstreamIo, open: OpenConnection, upgrades: bool) -> Result<Sender, ConnectError> {
    let (sender, connection) = http1::Builder::new()
        .max_headers(MAX_FIELDS)
        .max_header_size(MAX_HEAD)
        .handshake(TokioIo::new(io))
        .await
        .map_err(|error| ConnectError::Io(io::Error::other(error)))?;
    if upgrades {
        tokio::spawn(async move {
            let _open = open;
            // Errors reach the request that is using the connection; an idle one just ends.
            let _ = connection.with_upgrades().await;
        });
    } else {
        tokio::spawn(async move {
            let _open = open;
            let _ = connection.await;
        });
    }
    Ok(Sender::H1(sender))
}

async fn handshake_h2(io: UpstreamIo, open: OpenConnection) -> Result<Sender, ConnectError> {
    let news = Arc::new(News::default());
    let (sender, connection) = http2::Builder::new(H2Executor(Arc::clone(&news)))
        .timer(TokioTimer::new())
        .initial_stream_window_size(H2_STREAM_WINDOW)
        .initial_connection_window_size(H2_CONNECTION_WINDOW)
        .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX))
        // None until the peer's settings say how many: a request above its limit would be refused or wait in the wrong queue.
        .initial_max_send_streams(0)
        .keep_alive_interval(H2_PING)
        .keep_alive_timeout(H2_PING / 2)
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
    tokio::spawn(std::future::poll_fn(move |cx| {
        let ended = connection.as_mut().poll(cx);
        open.allows_streams(connection.current_max_send_streams());
        // Errors reach the requests that are using the connection.
        ended.map(|_| ())
    }));
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
            tokio::spawn(async move {
                future.await;
            });
            return;
        }
        let news = Arc::clone(&self.0);
        let mut future = Box::pin(future);
        tokio::spawn(std::future::poll_fn(move |cx| {
            let step = future.as_mut().poll(cx);
            if !news.settled.load(Relaxed)
                && let Some(waker) = news.waker.lock().unwrap_or_else(PoisonError::into_inner).take()
            {
                waker.wake();
            }
            step.map(|_| ())
        }));
    }
}

type Attempts = Vec<Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>>>;

/// Tries addresses in order, the next one after 250 ms or a failure, and takes the first that connects (RFC 8305).
async fn happy_eyeballs(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    match addresses {
        [] => return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address")),
        [only] => return TcpStream::connect(*only).await,
        _ => {}
    }
    let mut waiting = addresses.iter();
    let mut attempts: Attempts = Vec::new();
    let mut last = None;
    loop {
        let more = match waiting.next() {
            Some(address) => {
                attempts.push(Box::pin(TcpStream::connect(*address)));
                waiting.len() > 0
            }
            None => false,
        };
        if attempts.is_empty() {
            return Err(last.unwrap_or_else(|| io::ErrorKind::NotConnected.into()));
        }
        let raced = first_of(&mut attempts);
        let result = if more {
            match tokio::time::timeout(ATTEMPT_DELAY, raced).await {
                Ok(result) => result,
                Err(_) => continue,
            }
        } else {
            raced.await
        };
        match result {
            Ok(tcp) => return Ok(tcp),
            Err(error) => last = Some(error),
        }
    }
}

/// The first attempt to end; it is taken out.
async fn first_of(attempts: &mut Attempts) -> io::Result<TcpStream> {
    std::future::poll_fn(|cx| {
        for index in 0..attempts.len() {
            if let Poll::Ready(result) = attempts[index].as_mut().poll(cx) {
                drop(attempts.swap_remove(index));
                return Poll::Ready(result);
            }
        }
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    #[test]
    fn a_refusing_address_does_not_hide_a_good_one() {
        run(async {
            let dead = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let refusing = dead.local_addr().unwrap();
            drop(dead);
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let good = listener.local_addr().unwrap();
            let tcp = happy_eyeballs(&[refusing, good]).await.unwrap();
            assert_eq!(tcp.peer_addr().unwrap(), good);
        });
    }

    #[test]
    fn all_refusing_is_an_error() {
        run(async {
            let dead = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let refusing = dead.local_addr().unwrap();
            drop(dead);
            let error = happy_eyeballs(&[refusing, refusing]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        });
    }
}
