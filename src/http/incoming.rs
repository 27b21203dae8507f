//! The client's body as its connection gives it: HTTP/1 from our own codec, HTTP/2 from hyper.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

/// An HTTP/1 connection, as the body of one of its requests is read from it.
pub trait BodySource: Send + Sync {
    /// The next frame of the body; an error if the client ended it early, sent unreadable framing, or if the request is over.
    fn poll_frame(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>>;
    /// Whether the body has been read to its end.
    fn ended(&self) -> bool;
}

/// The rest of a body will not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// The client left, or another request has taken its place.
    Cut,
    /// Its framing cannot be read.
    Unreadable,
}

/// A client's body on its way in.
pub enum Incoming {
    /// There is none.
    Empty,
    /// From an HTTP/1 connection.
    Http1 {
        /// The connection.
        source: Arc<dyn BodySource>,
        /// Length of the whole body, if the client declared it.
        length: Option<u64>,
    },
    /// From an HTTP/2 stream.
    Http2(hyper::body::Incoming),
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "Empty",
            Self::Http1 { .. } => "Http1",
            Self::Http2(_) => "Http2",
        })
    }
}

impl Incoming {
    /// Length of the whole body, if the client declared it.
    pub fn length(&self) -> Option<u64> {
        match self {
            Self::Empty => Some(0),
            Self::Http1 { length, .. } => *length,
            Self::Http2(body) => body.size_hint().exact(),
        }
    }
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Http1 { source, .. } => source.poll_frame(cx),
            Self::Http2(body) => {
                let frame = ready!(Pin::new(&mut *body).poll_frame(cx));
                // hyper takes a reset with NO_ERROR for an end. Only END_STREAM is one.
                Poll::Ready(match frame {
                    None if !body.is_end_stream() => Some(Err(Broken::Cut)),
                    frame => frame.map(|frame| frame.map_err(|_| Broken::Cut)),
                })
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Http1 { source, .. } => source.ended(),
            Self::Http2(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.length().map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
