//! Reading without a buffer of one's own: all connections of a thread read into one block, which is cut into slices.
//!
//! Waiting for bytes takes no memory then, and a small message is read without an allocation. Every slice costs two changes of a count that
//! is shared, when it is cut and when it is dropped, so what is looked at and done with is not cut off: who reads a head is lent the block.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt};

/// The block. A slice that is kept keeps all of it, so it is not larger.
pub const BLOCK: usize = 16 << 10;
/// Least room for a read.
pub const LEAST: usize = 4 << 10;
/// Up to here what is left over is copied into memory of its own: that costs less than to share the block, and does not keep it.
const COPIED: usize = 1 << 10;

thread_local! {
    /// `None` before the first read, and while it is lent.
    static SHARED: Cell<Option<BytesMut>> = const { Cell::new(None) };
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
    let mut block = take();
    let read = poll_into(io, &mut block, cx);
    if let Poll::Ready(Ok(_)) = &read {
        let news = block.split();
        if buffer.is_empty() {
            *buffer = news;
        } else {
            buffer.unsplit(news);
        }
    }
    put_back(block);
    read
}

/// Reads once from `io` into an empty `buffer`, and lends it the block: if bytes were read, [`give_back`] is called before the task rests.
///
/// # Errors
/// Those of `io`; nothing is lent then.
pub fn poll_lend(io: &mut (impl AsyncRead + Unpin), buffer: &mut BytesMut, cx: &mut Context<'_>) -> Poll<io::Result<Read>> {
    debug_assert!(buffer.is_empty());
    let mut block = take();
    let read = poll_into(io, &mut block, cx);
    match &read {
        Poll::Ready(Ok(Read { bytes: 1.., .. })) => *buffer = block,
        Poll::Ready(Ok(_) | Err(_)) | Poll::Pending => put_back(block),
    }
    read
}

/// Takes back the block that `buffer` was lent; what was not taken off its front stays.
pub fn give_back(buffer: &mut BytesMut) {
    let mut block = std::mem::take(buffer);
    match block.len() {
        0 => {}
        1..=COPIED => {
            *buffer = BytesMut::from(&block[..]);
            block.clear();
        }
        _ => *buffer = block.split(),
    }
    put_back(block);
}

/// The block, with room in it. Where nobody has any slice of it, it is used again.
fn take() -> BytesMut {
    let mut block = SHARED.take().unwrap_or_default();
    if block.capacity() < LEAST {
        block.reserve(BLOCK);
    }
    block
}

fn put_back(block: BytesMut) {
    SHARED.with(|shared| shared.set(Some(block)));
}

fn poll_into(io: &mut (impl AsyncRead + Unpin), block: &mut BytesMut, cx: &mut Context<'_>) -> Poll<io::Result<Read>> {
    let room = block.capacity();
    let bytes = ready!(pin!(io.read_buf(block)).poll(cx))?;
    Poll::Ready(Ok(Read { bytes, full: bytes == room }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A read of `bytes` into the block, `used` of which are taken off the front.
    fn read(bytes: &[u8], used: usize) -> BytesMut {
        let (mut buffer, mut cx) = (BytesMut::new(), Context::from_waker(std::task::Waker::noop()));
        let Poll::Ready(Ok(read)) = poll_lend(&mut &*bytes, &mut buffer, &mut cx) else { panic!("nothing was read") };
        assert_eq!((read.bytes, &buffer[..]), (bytes.len(), bytes));
        let _used = buffer.split_to(used);
        give_back(&mut buffer);
        buffer
    }

    #[test]
    fn what_is_not_used_of_a_lent_block_stays_whole_while_others_read() {
        for len in [0, 1, COPIED, COPIED + 1, LEAST] {
            let bytes: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
            for used in [0, len / 2, len] {
                let left = read(&bytes, used);
                let others = read(&vec![b'x'; LEAST], 7);
                assert_eq!(&left[..], &bytes[used..], "{len} {used}");
                assert!(others.iter().all(|&byte| byte == b'x'));
                assert!(left.len() > COPIED || left.capacity() == left.len(), "it keeps no block");
            }
        }
    }
}
