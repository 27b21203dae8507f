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

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

use crate::config::upstream::Protocol;
use crate::http::body::RequestBody;
use crate::tls::{Alpn, ClientTls};
use crate::upstream::endpoint::{Address, EndpointSpec};
use crate::upstream::eyeballs::happy_eyeballs;
use crate::upstream::pool::OpenConnection;

/// Longest response head taken from an upstream.
const MAX_HEAD: usize = 64 << 10;
/// Most fields in a response head.
const MAX_FIELDS: usize = 256;
/// Most interim (1xx) responses before the final one.
const MAX_INTERIM: u32 = 16;
/// HTTP/2 windows towards upstreams: small, so that a slow client cannot park megabytes in the gateway.
const H2_STREAM_WINDOW: u32 = 256 << 10;
const H2_CONNECTION_WINDOW: u32 = 2 << 20;
/// How often peers on HTTP/2 connections with open streams are pinged, on both sides. One that does not answer within half of it is gone.
pub const H2_PING: Duration = Duration::from_secs(30);

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

/// A connection that takes requests.
#[derive(Debug)]
pub enum Sender {
    /// HTTP/1.1: one request at a time.
    H1(H1),
    /// HTTP/2: many.
    H2(http2::SendRequest<RequestBody>),
}

/// An HTTP/1.1 connection that is driven by the request that uses it, on that request's task: as a task of its own it would be
/// woken and scheduled twice per request. An idle one is looked at when it is taken out of the pool.
pub struct H1 {
    sender: http1::SendRequest<RequestBody>,
    /// The driver with its count; gone when the connection is over.
    driver: Option<Box<Driver>>,
}

/// What moves the bytes of a connection, and what counts it.
type Driver = (http1::Connection<TokioIo<UpstreamIo>, RequestBody>, OpenConnection);

impl fmt::Debug for H1 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("H1").finish_non_exhaustive()
    }
}

/// The answer to a request, or why there is none, with the request if not one byte of it was written.
pub type Sent = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>;

impl H1 {
    /// Sends a request and waits for the head of its response.
    pub async fn send(&mut self, request: Request<RequestBody>) -> Sent {
        let response = self.sender.try_send_request(request);
        let mut response = std::pin::pin!(response);
        std::future::poll_fn(|cx| {
            self.drive(cx);
            response.as_mut().poll(cx)
        })
        .await
    }

    /// Reads and writes what can be read and written. Errors reach the request through its response or body.
    pub fn drive(&mut self, cx: &mut Context<'_>) {
        if let Some(driver) = &mut self.driver
            && Pin::new(&mut driver.0).poll(cx).is_ready()
        {
            self.driver = None;
        }
    }

    /// Whether it can take a request now. Notices that the upstream has closed it, as far as the runtime has heard of it.
    pub fn is_ready(&mut self) -> bool {
        self.drive(&mut Context::from_waker(std::task::Waker::noop()));
        self.driver.is_some() && self.sender.is_ready()
    }

    /// Whether it is over.
    pub fn is_closed(&self) -> bool {
        self.driver.is_none() || self.sender.is_closed()
    }

    /// Waits until it can take a request; `false` if it never will.
    pub async fn ready(&mut self) -> bool {
        std::future::poll_fn(|cx| {
            self.drive(cx);
            self.sender.poll_ready(cx).map(|ready| ready.is_ok())
        })
        .await
    }
}

/// A byte stream to an endpoint.
#[derive(Debug)]
pub enum Wire {
    /// TCP in clear.
    Tcp(TcpStream),
    /// TLS over TCP.
    Tls(Box<TlsStream<TcpStream>>),
    /// A Unix socket.
    Unix(UnixStream),
}

/// A byte stream to an endpoint that ends the connection when interim (1xx) responses do not end: hyper reads over any number of
/// them, and tells of each only at the price of allocations for every request.
#[derive(Debug)]
pub struct UpstreamIo {
    wire: Wire,
    interim: u32,
    /// Whether what is read belongs to a final response.
    in_final: bool,
    /// Counts the connection of a tunnel.
    open: Option<OpenConnection>,
}

/// The upstream sent more than [`MAX_INTERIM`] interim responses.
#[derive(Debug)]
pub struct TooManyInterim;

impl fmt::Display for TooManyInterim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("too many interim responses")
    }
}

impl std::error::Error for TooManyInterim {}

impl UpstreamIo {
    fn new(wire: Wire) -> Self {
        Self { wire, interim: 0, in_final: false, open: None }
    }

    /// Counts the interim heads at the start of what was read. Heads that are cut by the end of a read count once more or not at
    /// all; the bound is for floods.
    fn count_interim(&mut self, bytes: &[u8]) -> io::Result<()> {
        const HEAD: &[u8] = b"HTTP/1.";
        let is_interim = |bytes: &[u8]| bytes.len() > 9 && bytes.starts_with(HEAD) && bytes.get(8..10) == Some(b" 1");
        let mut rest = bytes;
        while is_interim(rest) {
            self.interim += 1;
            if self.interim > MAX_INTERIM {
                return Err(io::Error::other(TooManyInterim));
            }
            match rest.windows(4).position(|end| end == b"\r\n\r\n") {
                Some(end) => rest = rest.get(end + 4..).unwrap_or_default(),
                None => return Ok(()),
            }
        }
        self.in_final = !rest.is_empty();
        Ok(())
    }
}

macro_rules! each {
    ($self:expr, $io:ident => $call:expr) => {
        match &mut $self.get_mut().wire {
            Wire::Tcp(io) => {
                let $io = Pin::new(io);
                $call
            }
            Wire::Tls(io) => {
                let $io = Pin::new(io.as_mut());
                $call
            }
            Wire::Unix(io) => {
                let $io = Pin::new(io);
                $call
            }
        }
    };
}

impl AsyncRead for UpstreamIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        std::task::ready!(each!(self.as_mut(), io => io.poll_read(cx, buf)))?;
        if !self.in_final {
            self.count_interim(buf.filled().get(before..).unwrap_or_default())?;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for UpstreamIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.as_mut().get_mut().request_written();
        each!(self, io => io.poll_write(cx, buf))
    }
    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.as_mut().get_mut().request_written();
        each!(self, io => io.poll_write_vectored(cx, bufs))
    }
    fn is_write_vectored(&self) -> bool {
        match &self.wire {
            Wire::Tcp(io) => io.is_write_vectored(),
            Wire::Tls(io) => io.is_write_vectored(),
            Wire::Unix(io) => io.is_write_vectored(),
        }
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, io => io.poll_flush(cx))
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, io => io.poll_shutdown(cx))
    }
}

impl UpstreamIo {
    /// A request, or more of one, goes out: the next head is that of its response.
    fn request_written(&mut self) {
        if self.in_final {
            self.in_final = false;
            self.interim = 0;
        }
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
    pub async fn open(&self, addresses: &[SocketAddr], http1_only: bool) -> Result<UpstreamIo, ConnectError> {
        if let Address::Unix(path) = &self.address {
            return UnixStream::connect(path).await.map(|io| UpstreamIo::new(Wire::Unix(io))).map_err(ConnectError::Io);
        }
        let tcp = happy_eyeballs(addresses).await.map_err(ConnectError::Io)?;
        // Latency beats packing: heads and chunks are written whole.
        tcp.set_nodelay(true).map_err(ConnectError::Io)?;
        match &self.tls {
            None => Ok(UpstreamIo::new(Wire::Tcp(tcp))),
            Some(tls) => match tls.connect(tcp, &self.tls_name, http1_only).await {
                Ok((stream, _)) => Ok(UpstreamIo::new(Wire::Tls(Box::new(stream)))),
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
        let h2 = match (&io.wire, self.protocol) {
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
        if h2 { handshake_h2(io, open, self.ping).await } else { handshake_h1(io, open).await }
    }

    /// Opens an HTTP/1.1 connection that can become a tunnel; its driver runs as a task of the current runtime until it ends.
    ///
    /// # Errors
    /// [`ConnectError`]; the caller adds the timeout.
    pub async fn connect_for_tunnel(
        &self,
        addresses: &[SocketAddr],
        open: OpenConnection,
    ) -> Result<http1::SendRequest<RequestBody>, ConnectError> {
        let mut io = self.open(addresses, true).await?;
        // hyper's driver ends when it hands the stream over; what counts must live as long as the tunnel that has it then.
        io.open = Some(open);
        let (sender, connection) =
            http1_builder().handshake(TokioIo::new(io)).await.map_err(|error| ConnectError::Io(io::Error::other(error)))?;
        tokio::spawn(async move {
            // Errors reach the request.
            let _ = connection.with_upgrades().await;
        });
        Ok(sender)
    }
}

/// hyper's own limit is 100 fields. Ours moves the parser's arrays to the heap, which costs a response about 2 %, but a backend
/// with many cookies must not turn into a 502.
fn http1_builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.max_header_size(MAX_HEAD).max_headers(MAX_FIELDS);
    builder
}

async fn handshake_h1(io: UpstreamIo, open: OpenConnection) -> Result<Sender, ConnectError> {
    let (sender, connection) =
        http1_builder().handshake(TokioIo::new(io)).await.map_err(|error| ConnectError::Io(io::Error::other(error)))?;
    Ok(Sender::H1(H1 { sender, driver: Some(Box::new((connection, open))) }))
}

async fn handshake_h2(io: UpstreamIo, open: OpenConnection, ping: Duration) -> Result<Sender, ConnectError> {
    let news = Arc::new(News::default());
    let (sender, connection) = http2::Builder::new(H2Executor(Arc::clone(&news)))
        .timer(TokioTimer::new())
        .initial_stream_window_size(H2_STREAM_WINDOW)
        .initial_connection_window_size(H2_CONNECTION_WINDOW)
        .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    #[test]
    fn interim_responses_are_counted_per_request_and_bodies_are_not_looked_at() {
        run(async {
            let (socket, _peer) = tokio::net::UnixStream::pair().unwrap();
            let mut io = UpstreamIo::new(Wire::Unix(socket));
            let interim = b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n";
            for _ in 0..MAX_INTERIM {
                io.count_interim(interim).unwrap();
            }
            assert!(!io.in_final);
            assert!(io.count_interim(interim).unwrap_err().get_ref().unwrap().is::<TooManyInterim>());
            let mut io = UpstreamIo::new(Wire::Unix(tokio::net::UnixStream::pair().unwrap().0));
            io.count_interim(&[interim.as_slice(), interim, b"HTTP/1.1 200 OK\r\n\r\n"].concat()).unwrap();
            assert_eq!((io.interim, io.in_final), (2, true));
            io.request_written();
            assert_eq!((io.interim, io.in_final), (0, false));
            assert!(io.count_interim(&interim.repeat(17)).is_err());
        });
    }
}
