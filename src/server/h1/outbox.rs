//! What an HTTP/1 connection has to write to its client.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncWrite;

use crate::server::io::ClientIo;

/// Longest buffer that is kept for the next answer of the worker.
const KEPT: usize = 16 << 10;

/// What waits to be written: encoded bytes, then a piece of the body that is not copied, then what follows it.
#[derive(Debug)]
pub(super) struct Outbox {
    /// Heads, chunk sizes, small pieces.
    pub(super) front: BytesMut,
    /// A large piece.
    pub(super) piece: Bytes,
    /// The line end behind a chunk.
    pub(super) back: &'static [u8],
}

thread_local! {
    /// A buffer for the next answer of the worker: a connection has one only while it writes.
    static FRONT: Cell<BytesMut> = Cell::new(BytesMut::new());
}

impl Drop for Outbox {
    fn drop(&mut self) {
        if self.front.is_empty() && self.front.capacity() <= KEPT {
            FRONT.set(std::mem::take(&mut self.front));
        }
    }
}

impl Outbox {
    /// An empty one.
    pub(super) fn new() -> Self {
        Self { front: FRONT.take(), piece: Bytes::new(), back: b"" }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.front.is_empty() && self.piece.is_empty() && self.back.is_empty()
    }

    /// Writes once.
    pub(super) fn poll_write(&self, io: Pin<&mut ClientIo>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.piece.is_empty() && self.back.is_empty() {
            io.poll_write(cx, &self.front)
        } else {
            io.poll_write_vectored(cx, &[IoSlice::new(&self.front), IoSlice::new(&self.piece), IoSlice::new(self.back)])
        }
    }

    /// So many bytes were written.
    pub(super) fn advance(&mut self, written: usize) {
        let of_front = written.min(self.front.len());
        if of_front == self.front.len() {
            // All of its memory is there for the next answer, as it would not be behind a mere step over what was written.
            self.front.clear();
        } else {
            self.front.advance(of_front);
        }
        let of_piece = (written - of_front).min(self.piece.len());
        self.piece.advance(of_piece);
        self.back = self.back.get(written - of_front - of_piece..).unwrap_or_default();
        if self.piece.is_empty() {
            // An empty slice would still hold the memory it came from, and whoever reads there could not use it again.
            self.piece = Bytes::new();
        }
    }
}
