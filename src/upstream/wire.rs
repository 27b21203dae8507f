//! A byte stream to an endpoint.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio_rustls::client::TlsStream;

use crate::http::socket::Socket;
use crate::reactor;

/// A byte stream to an endpoint.
#[derive(Debug)]
pub enum Wire {
    /// TCP in clear.
    Tcp(Socket),
    /// TLS over TCP.
    Tls(Box<TlsStream<Socket>>),
    /// A Unix socket.
    Unix(UnixStream),
}

impl Wire {
    /// The address at the other end.
    pub(super) fn peer(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(socket) => socket.peer_addr().ok(),
            Self::Tls(tls) => tls.get_ref().0.peer_addr().ok(),
            Self::Unix(_) => None,
        }
    }

    /// Bytes that were written and then refused by the system, with everything else of their write; as far as that can be told.
    pub(super) fn lost(&self) -> u64 {
        match self {
            Self::Tcp(socket) => socket.lost(),
            // Its bytes are not those that were written; what it may have sent counts as sent.
            Self::Tls(_) | Self::Unix(_) => 0,
        }
    }

    /// Whether there is nothing to read, not even an end, as far as the runtime has heard.
    pub(super) fn is_quiet(&mut self) -> bool {
        let mut byte = [0];
        let waits = |read: io::Result<usize>| read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        match self {
            Self::Tcp(io) => io.is_quiet(),
            Self::Unix(io) => waits(io.try_read(&mut byte)),
            // A task whose turn is over would be told that nothing came, whatever did.
            Self::Tls(_) if reactor::is_turn_over() => false,
            // Session tickets may come at any time, and are no answer.
            Self::Tls(io) => {
                let mut cx = Context::from_waker(Waker::noop());
                Pin::new(io.as_mut()).poll_read(&mut cx, &mut ReadBuf::new(&mut byte)).is_pending()
            }
        }
    }

    /// Whether it may keep bytes that were written until it is flushed.
    pub(super) fn buffers(&self) -> bool {
        match self {
            Self::Tls(_) => true,
            Self::Tcp(_) | Self::Unix(_) => false,
        }
    }
}

macro_rules! each {
    ($self:expr, $io:ident => $call:expr) => {
        match $self.get_mut() {
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

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, io => io.poll_read(cx, buf))
    }
}

impl AsyncWrite for Wire {
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
