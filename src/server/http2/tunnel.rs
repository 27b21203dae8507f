//! The byte stream of an extended CONNECT (RFC 8441): DATA frames both ways.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::server::streams::StreamGuard;

/// The client's side of a tunnel. Dropped, it ends what is sent to the client.
pub(super) struct Tunnel {
    send: SendStream<Bytes>,
    received: RecvStream,
    /// What was received and is not read yet.
    rest: Bytes,
    ended: bool,
    #[expect(dead_code, reason = "held for its drop, after that of the others")]
    guard: StreamGuard,
}

impl Tunnel {
    /// The tunnel in a stream whose head is sent.
    pub(super) fn new(send: SendStream<Bytes>, received: RecvStream, mut guard: StreamGuard) -> Self {
        guard.tunnel();
        Self { send, received, rest: Bytes::new(), ended: false, guard }
    }

    fn end(&mut self) -> Result<(), h2::Error> {
        if std::mem::replace(&mut self.ended, true) { Ok(()) } else { self.send.send_data(Bytes::new(), true) }
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        // One that was reset has ended.
        let _ = self.end();
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            match ready!(self.received.poll_data(cx)) {
                Some(Ok(data)) => self.rest = data,
                // A client that needs no more of the tunnel has ended it.
                Some(Err(error)) if matches!(error.reason(), Some(Reason::NO_ERROR | Reason::CANCEL)) => return Poll::Ready(Ok(())),
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = self.rest.len().min(buf.remaining());
        buf.put_slice(self.rest.get(..count).unwrap_or_default());
        self.rest.advance(count);
        Poll::Ready(self.received.flow_control().release_capacity(count).map_err(broken))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if self.ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        // As for bodies: little is held back from the connection's window, and once there is room the piece waits in h2.
        self.send.reserve_capacity(1);
        while self.send.capacity() == 0 {
            match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(0)) => {}
                Some(Ok(_)) => break,
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
        self.send.send_data(Bytes::copy_from_slice(buf), false).map_err(broken)?;
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.end().map_err(broken))
    }
}

fn broken(error: h2::Error) -> io::Error {
    if error.is_io() { error.into_io().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into()) } else { io::Error::other(error) }
}
