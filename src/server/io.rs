//! The client's socket: counts bytes, replays what was read to tell HTTP/1 from HTTP/2, watches the frames of HTTP/2, and resets
//! instead of closing where a plain close would look like an end.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio_rustls::server::TlsStream;

use crate::http::clock::Phase;
use crate::http::connection::ConnectionState;
use crate::http::socket;
use crate::server::frames::Frames;
use crate::server::socket::Socket;
use crate::telemetry::metrics::ListenerMetrics;

/// Up to this many bytes are joined into one write.
const SMALL_WRITE: usize = 1024;
/// Most bytes of an unread request body that are dropped before the connection is closed under the client.
const LINGER_BYTES: usize = 64 << 10;

/// A client's byte stream, in clear or decrypted.
#[derive(Debug)]
pub enum Transport {
    /// Clear text.
    Plain(Socket),
    /// TLS.
    Tls(Box<TlsStream<socket::Socket>>),
}

impl Transport {
    /// Makes closing it a reset.
    fn reset_on_close(&self) -> io::Result<()> {
        match self {
            Self::Plain(tcp) => tcp.reset_on_close(),
            Self::Tls(tls) => socket2::SockRef::from(tls.get_ref().0).set_linger(Some(Duration::ZERO)),
        }
    }
}

/// A client's byte stream with what the gateway needs to know about it.
#[derive(Debug)]
pub struct ClientIo {
    transport: Transport,
    prefix: Vec<u8>,
    replayed: usize,
    state: Arc<ConnectionState>,
    metrics: Arc<ListenerMetrics>,
    worker: usize,
    lingered: usize,
    write_shut: bool,
    /// Whether the last write found the client slow.
    blocked: bool,
    /// For HTTP/2.
    guard: Option<Guard>,
}

/// Watches the frames of an HTTP/2 client.
#[derive(Debug)]
struct Guard {
    frames: Frames,
    /// Rings when the client floods; from then on nothing it sends is read.
    flood: Arc<Notify>,
    deaf: bool,
    /// Counts what the client sends, all of it: signs of life.
    heard: Arc<AtomicU64>,
    /// Whether the client was heard of.
    begun: bool,
}

impl Guard {
    /// Bytes came in: minds `timeouts.header` while the client owes the rest of a head.
    fn received(&mut self, bytes: &[u8], state: &ConnectionState) {
        self.begun = true;
        self.heard.store(self.heard.load(Relaxed).wrapping_add(bytes.len() as u64), Relaxed);
        if !self.frames.advance(bytes) {
            self.deaf = true;
            self.flood.notify_one();
        }
        match (state.clock.phase(), self.frames.owes()) {
            (Phase::Idle, true) => state.clock.enter(Phase::Head, Instant::now()),
            (Phase::Head, false) => state.clock.enter(Phase::Idle, Instant::now()),
            _ => {}
        }
    }
}

impl ClientIo {
    /// Wraps `transport`.
    pub fn new(transport: Transport, state: Arc<ConnectionState>, metrics: Arc<ListenerMetrics>, worker: usize) -> Self {
        Self {
            transport,
            prefix: Vec::new(),
            replayed: 0,
            state,
            metrics,
            worker,
            lingered: 0,
            write_shut: false,
            blocked: false,
            guard: None,
        }
    }

    /// The same for a client that speaks HTTP/2; `flood` rings when it sends more than it may.
    pub fn h2(mut self, flood: Arc<Notify>) -> Self {
        self.guard = Some(Guard { frames: Frames::new(Instant::now()), flood, deaf: false, heard: Arc::default(), begun: false });
        self
    }

    /// Grows as an HTTP/2 client sends.
    pub fn heard(&self) -> Arc<AtomicU64> {
        self.guard.as_ref().map(|guard| Arc::clone(&guard.heard)).unwrap_or_default()
    }

    /// Gives back what was read too far: it is read again first.
    pub fn unread(&mut self, bytes: Vec<u8>) {
        self.prefix = bytes;
        self.replayed = 0;
    }

    /// Whether more must be done than to close the socket, which by itself ends the stream after all that was written: TLS has an end
    /// of its own, and a client that still sends must not be met with a reset.
    pub fn must_say_goodbye(&self) -> bool {
        matches!(self.transport, Transport::Tls(_)) || self.state.linger.load(Relaxed)
    }

    /// An answer can be out of our hands while much of it waits to be written: a slow client that takes it is not idle.
    fn note_block(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if written.is_pending() {
            self.blocked = true;
        } else if std::mem::take(&mut self.blocked) && self.state.clock.phase() == Phase::Idle {
            self.state.clock.enter(Phase::Idle, Instant::now());
        }
        written
    }

    fn poll_transport_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Transport::Tls(tls) => Pin::new(tls.as_mut()).poll_read(cx, buf),
        }
    }
}

impl AsyncRead for ClientIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.guard.as_ref().is_some_and(|guard| guard.deaf) {
            // The connection's task has been woken and ends it.
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let replayed = this.replayed < this.prefix.len();
        if replayed {
            let rest = &this.prefix[this.replayed..];
            let count = rest.len().min(buf.remaining());
            buf.put_slice(&rest[..count]);
            this.replayed += count;
            if this.replayed == this.prefix.len() {
                this.prefix = Vec::new();
                this.replayed = 0;
            }
        } else {
            ready!(this.poll_transport_read(cx, buf))?;
        }
        let bytes = &buf.filled()[before..];
        if !bytes.is_empty() {
            if !replayed {
                this.metrics.bytes_received(this.worker, bytes.len() as u64);
            }
            match &mut this.guard {
                None => this.state.clock.moved(bytes.len()),
                Some(guard) => guard.received(bytes, &this.state),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ClientIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = match &mut this.transport {
            Transport::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Transport::Tls(tls) => Pin::new(tls.as_mut()).poll_write(cx, buf),
        };
        let count = ready!(this.note_block(written))?;
        this.state.clock.moved(count);
        this.metrics.bytes_sent(this.worker, count as u64);
        Poll::Ready(Ok(count))
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let total: usize = bufs.iter().map(|buf| buf.len()).sum();
        if total <= SMALL_WRITE {
            // One plain write of a few hundred bytes costs the kernel less than gathering them.
            let mut joined = [0_u8; SMALL_WRITE];
            let mut filled = 0;
            for buf in bufs {
                joined[filled..filled + buf.len()].copy_from_slice(buf);
                filled += buf.len();
            }
            return Pin::new(this).poll_write(cx, &joined[..filled]);
        }
        let written = match &mut this.transport {
            Transport::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Transport::Tls(tls) => Pin::new(tls.as_mut()).poll_write_vectored(cx, bufs),
        };
        let count = ready!(this.note_block(written))?;
        this.state.clock.moved(count);
        this.metrics.bytes_sent(this.worker, count as u64);
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        // h2 asks once before it begins, to know up to which size it is to put a piece of a body into its buffer, where others follow it
        // (1 KiB without vectored writes, 256 bytes with them), and again at each write. A write per answer of 300 bytes costs more than
        // the copy.
        self.guard.as_ref().is_none_or(|guard| guard.begun)
            && match &self.transport {
                Transport::Plain(tcp) => tcp.is_write_vectored(),
                Transport::Tls(tls) => tls.is_write_vectored(),
            }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().transport {
            Transport::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Transport::Tls(tls) => Pin::new(tls.as_mut()).poll_flush(cx),
        }
    }

    /// Shuts the write side; where the client may still be sending, reads on for a moment, since closing a socket with unread
    /// bytes resets it and the client could lose the answer (RFC 9112, 9.6).
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.write_shut {
            ready!(match &mut this.transport {
                Transport::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
                Transport::Tls(tls) => Pin::new(tls.as_mut()).poll_shutdown(cx),
            })?;
            this.write_shut = true;
            if this.state.linger.load(Relaxed) {
                this.state.clock.enter(Phase::Linger, Instant::now());
            }
        }
        if !this.state.linger.load(Relaxed) {
            return Poll::Ready(Ok(()));
        }
        let mut sink = [0_u8; 4096];
        while this.lingered < LINGER_BYTES {
            let mut buf = ReadBuf::new(&mut sink);
            match ready!(this.poll_transport_read(cx, &mut buf)) {
                Ok(()) if buf.filled().is_empty() => break,
                Ok(()) => this.lingered += buf.filled().len(),
                // The client is gone; there is nobody left to lose the answer.
                Err(_) => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for ClientIo {
    fn drop(&mut self) {
        if self.state.abort.load(Relaxed) {
            // Failing to arm the reset leaves an ordinary close, which HTTP/1.1 clients see as incomplete too.
            let _ = self.transport.reset_on_close();
        }
    }
}
