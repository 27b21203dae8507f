//! What a connection has read. Small answers are read into a block that all connections of a worker share and that is cut into
//! slices, so waiting for one takes no memory and reading it no allocation; a long body gets a buffer of its own.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::AsyncReadExt;

use crate::http::h1::block::{self, BLOCK, LEAST};
use crate::upstream::wire::Wire;

/// Bytes read at a time where many come.
const LARGE: usize = 128 << 10;
/// Room behind the end of a body.
const SLACK: usize = 64;

/// What was read and not yet taken.
#[derive(Debug, Default)]
pub(super) struct Input {
    pub(super) buffer: BytesMut,
    /// Bytes read since the request began.
    pub(super) count: u64,
    /// Whether `buffer` is the block that all connections of the worker share: only while a head is looked for, never while the task rests.
    lent: bool,
    /// The last read filled all the room it had: more is there.
    full: bool,
}

impl Input {
    /// Reads once; 0 at the end of the stream. `left` is how much is still to come, if that is known.
    pub(super) fn poll_read(&mut self, wire: &mut Wire, cx: &mut Context<'_>, left: Option<u64>) -> Poll<io::Result<usize>> {
        let own = self.full || left.is_some_and(|left| left > BLOCK as u64 / 2);
        let read = ready!(if own { self.read_own(wire, cx, left) } else { self.read_shared(wire, cx) })?;
        self.count += read as u64;
        Poll::Ready(Ok(read))
    }

    /// Reads once for a head: mostly it comes as a whole, and with nothing before it the block itself is looked at. [`Input::settle`] is called
    /// when that is done.
    #[inline]
    pub(super) fn poll_read_head(&mut self, wire: &mut Wire, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.full || !self.buffer.is_empty() {
            return self.poll_read(wire, cx, None);
        }
        let read = ready!(block::poll_lend(wire, &mut self.buffer, cx))?;
        (self.lent, self.full) = (read.bytes > 0, read.full);
        self.count += read.bytes as u64;
        Poll::Ready(Ok(read.bytes))
    }

    /// The block is left to the other connections; what was not used stays here.
    #[inline]
    pub(super) fn settle(&mut self) {
        if std::mem::take(&mut self.lent) {
            block::give_back(&mut self.buffer);
        }
    }

    fn read_own(&mut self, wire: &mut Wire, cx: &mut Context<'_>, left: Option<u64>) -> Poll<io::Result<usize>> {
        // A little more than is left: a read that fills its buffer costs another one, which finds nothing.
        let wanted = left.and_then(|left| usize::try_from(left).ok()).map_or(LARGE, |left| left.saturating_add(SLACK).clamp(LEAST, LARGE));
        if self.buffer.capacity() - self.buffer.len() < wanted / 2 {
            self.buffer.reserve(wanted);
        }
        let Poll::Ready(read) = pin!(wire.read_buf(&mut self.buffer)).poll(cx) else {
            // Nothing came: a body that stalls takes no memory.
            if self.buffer.is_empty() {
                self.buffer = BytesMut::new();
            }
            return Poll::Pending;
        };
        self.full = matches!(read, Ok(read) if read >= BLOCK);
        Poll::Ready(read)
    }

    fn read_shared(&mut self, wire: &mut Wire, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let read = ready!(block::poll_read(wire, &mut self.buffer, cx))?;
        self.full = read.full;
        Poll::Ready(Ok(read.bytes))
    }

    /// An idle connection has no buffer.
    pub(super) fn release(&mut self) {
        self.buffer = BytesMut::new();
        self.full = false;
    }
}
