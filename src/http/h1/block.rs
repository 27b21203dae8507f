//! Reading without a buffer of one's own: all connections of a thread read into one block, which is cut into slices.
//!
//! Waiting for bytes takes no memory then, and a small message is read without an allocation.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt};

/// The block. A slice that is kept keeps all of it, so it is not larger.
pub const BLOCK: usize = 16 << 10;
/// Least room for a read.
pub const LEAST: usize = 4 << 10;

thread_local! {
    static SHARED: Cell<BytesMut> = Cell::new(BytesMut::new());
}

/// What a read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read {
    /// Bytes; 0 at the end of the stream.
    pub bytes: usize,
    /// They filled all the room there was: more may be there.
    pub full: bool,
}

/// Reads once from `io`, behind what is in `buffer`.
///
/// # Errors
/// Those of `io`.
pub fn poll_read(io: &mut (impl AsyncRead + Unpin), buffer: &mut BytesMut, cx: &mut Context<'_>) -> Poll<io::Result<Read>> {
    let mut block = SHARED.take();
    if block.capacity() < LEAST {
        block = BytesMut::with_capacity(BLOCK);
    }
    let room = block.capacity();
    let read = pin!(io.read_buf(&mut block)).poll(cx);
    if let Poll::Ready(Ok(_)) = &read {
        let news = block.split();
        if buffer.is_empty() {
            *buffer = news;
        } else {
            buffer.unsplit(news);
        }
    }
    SHARED.set(block);
    read.map_ok(|bytes| Read { bytes, full: bytes == room })
}
