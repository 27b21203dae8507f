//! What becomes of a tunnel when one side has ended: the end is passed on, and the other side has a little time left.
//!
//! A half-close passes like any byte, and what the other side still has to say is delivered. But one that says nothing more would hold the
//! tunnel until `idle_timeout`, where nobody is left to listen.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::upstream::tunnel::{Cause, TunnelEnd, Way};

/// How long a tunnel may go without a byte once one side has ended.
pub(super) const LINGER: Duration = Duration::from_secs(2);

/// What is known of both sides.
#[derive(Debug, Default)]
pub(super) struct Sides {
    /// The end of one side, and all before it, was passed on to the other.
    half: AtomicBool,
    up: AtomicU64,
    down: AtomicU64,
}

impl Sides {
    /// Both sides of a tunnel between `client` and `upstream`.
    pub(super) fn of<A, B>(client: A, upstream: B) -> (Arc<Self>, Side<A>, Side<B>) {
        let sides = Arc::new(Self::default());
        let (client, upstream) = (Side { io: client, sides: Arc::clone(&sides) }, Side { io: upstream, sides: Arc::clone(&sides) });
        (sides, client, upstream)
    }

    /// Bytes were delivered.
    pub(super) fn moved(&self, way: Way, bytes: usize) {
        let count = match way {
            Way::Up => &self.up,
            Way::Down => &self.down,
        };
        // The tunnel's task alone writes it.
        count.store(count.load(Relaxed).wrapping_add(bytes as u64), Relaxed);
    }

    /// Runs `tunnel`, which is over as well when no byte moved for `linger` after one side has ended.
    pub(super) async fn until_silent(&self, linger: Duration, tunnel: impl Future<Output = TunnelEnd>) -> TunnelEnd {
        let (mut tunnel, mut silence) = (pin!(tunnel), pin!(self.silence(linger)));
        poll_fn(|cx| {
            if let Poll::Ready(end) = tunnel.as_mut().poll(cx) {
                return Poll::Ready(end);
            }
            // It is set by the tunnel, just now or earlier.
            if !self.half.load(Relaxed) {
                return Poll::Pending;
            }
            let closed = || TunnelEnd { cause: Cause::Closed, from_client: self.up.load(Relaxed), from_upstream: self.down.load(Relaxed) };
            silence.as_mut().poll(cx).map(|()| closed())
        })
        .await
    }

    async fn silence(&self, linger: Duration) {
        let delivered = || self.up.load(Relaxed).wrapping_add(self.down.load(Relaxed));
        let mut before = None;
        while before != Some(delivered()) {
            before = Some(delivered());
            tokio::time::sleep(linger).await;
        }
    }
}

/// A side's stream of bytes.
#[derive(Debug)]
pub(super) struct Side<T> {
    io: T,
    sides: Arc<Sides>,
}

impl<T: AsyncRead + Unpin> AsyncRead for Side<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Side<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.io).poll_shutdown(cx);
        if shut.is_ready() {
            self.sides.half.store(true, Relaxed);
        }
        shut
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::time::Instant;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::sleep;

    use super::*;
    use crate::upstream::tunnel::{TunnelOptions, run};

    const SHORT: Duration = Duration::from_millis(50);

    async fn tunnel(client: DuplexStream, upstream: DuplexStream, linger: Duration) -> TunnelEnd {
        let (sides, client, upstream) = Sides::of(client, upstream);
        let meter = |way, bytes| sides.moved(way, bytes);
        sides
            .until_silent(linger, run(client, upstream, TunnelOptions { idle_timeout: None, drain: pending(), websocket: true, meter }))
            .await
    }

    #[tokio::test]
    async fn a_side_that_says_nothing_after_the_other_has_ended_is_closed() {
        for client_ends in [true, false] {
            let ((near, client), (far, upstream)) = (duplex(64), duplex(64));
            let running = tokio::spawn(tunnel(client, upstream, SHORT));
            let (mut ends, mut stays) = if client_ends { (near, far) } else { (far, near) };
            stays.write_all(b"early").await.unwrap();
            // Silence alone is no end.
            sleep(SHORT * 2).await;
            assert!(!running.is_finished());
            let begun = Instant::now();
            ends.write_all(b"last").await.unwrap();
            ends.shutdown().await.unwrap();
            let mut got = Vec::new();
            stays.read_to_end(&mut got).await.unwrap();
            assert_eq!(got, b"last");
            let end = running.await.unwrap();
            assert!(begun.elapsed() >= SHORT);
            let (from_client, from_upstream) = if client_ends { (4, 5) } else { (5, 4) };
            assert_eq!(end, TunnelEnd { cause: Cause::Closed, from_client, from_upstream });
        }
    }

    #[tokio::test]
    async fn what_is_left_is_delivered_however_slowly_it_is_taken() {
        let ((mut near, client), (mut far, upstream)) = (duplex(4), duplex(64));
        let running = tokio::spawn(tunnel(client, upstream, SHORT));
        far.write_all(b"more than fits").await.unwrap();
        drop(far);
        sleep(SHORT * 3).await;
        let mut got = Vec::new();
        near.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"more than fits");
        drop(near);
        assert_eq!(running.await.unwrap(), TunnelEnd { cause: Cause::Closed, from_client: 0, from_upstream: 14 });
    }

    #[tokio::test]
    async fn a_side_that_goes_on_talking_is_heard() {
        let ((mut near, client), (mut far, upstream)) = (duplex(64), duplex(64));
        let running = tokio::spawn(tunnel(client, upstream, SHORT * 10));
        near.shutdown().await.unwrap();
        let begun = Instant::now();
        while begun.elapsed() < SHORT * 15 {
            far.write_all(b"more").await.unwrap();
            near.read_exact(&mut [0; 4]).await.unwrap();
            sleep(SHORT).await;
        }
        drop(far);
        assert_eq!(running.await.unwrap().cause, Cause::Closed);
    }
}
