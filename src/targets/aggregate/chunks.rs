//! A body made of pieces, of which the large ones are not copied.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

/// Pieces from here on stay where they are. Smaller ones are copied together: writing each would cost more, and one of them could keep
/// all of a large answer in memory.
const LARGE: usize = 16 << 10;

/// A body in memory, in chunks.
#[derive(Clone, Debug, Default)]
pub struct Chunks {
    chunks: VecDeque<Bytes>,
    last: Vec<u8>,
    len: usize,
}

impl Chunks {
    /// Appends a copy of `bytes`.
    pub(super) fn copy(&mut self, bytes: &[u8]) {
        self.last.extend_from_slice(bytes);
        self.len += bytes.len();
    }

    /// Appends `bytes`.
    pub(super) fn push(&mut self, bytes: Bytes) {
        if bytes.len() < LARGE {
            return self.copy(&bytes);
        }
        self.len += bytes.len();
        self.flush();
        self.chunks.push_back(bytes);
    }

    /// Ends it.
    pub(super) fn finish(mut self) -> Self {
        self.flush();
        self
    }

    fn flush(&mut self) {
        if !self.last.is_empty() {
            self.chunks.push_back(std::mem::take(&mut self.last).into());
        }
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The whole, if it is one chunk at most; itself otherwise.
    ///
    /// # Errors
    /// When it is several chunks.
    pub fn whole(mut self) -> Result<Bytes, Self> {
        match self.chunks.len() {
            0 | 1 => Ok(self.chunks.pop_front().unwrap_or_default()),
            _ => Err(self),
        }
    }
}

impl Body for Chunks {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let chunk = self.chunks.pop_front();
        self.len -= chunk.as_ref().map_or(0, Bytes::len);
        Poll::Ready(chunk.map(|chunk| Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.chunks.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.len as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_pieces_are_put_together_and_large_ones_stay_where_they_are() {
        let large = Bytes::from(vec![b'x'; LARGE]);
        let mut chunks = Chunks::default();
        chunks.copy(b"a");
        chunks.push(Bytes::from_static(b"b"));
        chunks.push(large.clone());
        chunks.copy(b"c");
        let mut chunks = chunks.finish().whole().unwrap_err();
        assert_eq!((chunks.len(), chunks.size_hint().exact()), (LARGE + 3, Some(LARGE as u64 + 3)));
        let mut seen = Vec::new();
        let mut context = Context::from_waker(std::task::Waker::noop());
        while let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut chunks).poll_frame(&mut context) {
            seen.push(frame.into_data().unwrap());
        }
        assert_eq!(seen, [&b"ab"[..], &large, b"c"]);
        assert_eq!(seen[1].as_ptr(), large.as_ptr(), "it was copied");
        assert!(chunks.is_end_stream() && chunks.is_empty());
    }

    #[test]
    fn one_chunk_is_a_whole() {
        assert_eq!(Chunks::default().whole().unwrap(), "");
        let mut chunks = Chunks::default();
        chunks.copy(b"{}");
        assert_eq!(chunks.finish().whole().unwrap(), "{}");
    }
}
