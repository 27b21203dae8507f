//! The client's body as its connection gives it: HTTP/1 from our own codec, HTTP/2 from h2.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http_body::{Body, Frame, SizeHint};

use crate::http::h1::framing::number;

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
    Http2 {
        /// The stream.
        stream: RecvStream,
        /// Length of the whole body, if the client declared it.
        length: Option<u64>,
        /// All data has come: what may follow are trailers.
        whole: bool,
    },
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "Empty",
            Self::Http1 { .. } => "Http1",
            Self::Http2 { .. } => "Http2",
        })
    }
}

impl Incoming {
    /// The body of a request that came in an HTTP/2 stream with these fields.
    pub fn of_stream(stream: RecvStream, headers: &HeaderMap) -> Self {
        if stream.is_end_stream() {
            return Self::Empty;
        }
        Self::Http2 { stream, length: declared(headers), whole: false }
    }

    /// Length of the whole body, if the client declared it.
    pub fn length(&self) -> Option<u64> {
        match self {
            Self::Empty => Some(0),
            Self::Http1 { length, .. } | Self::Http2 { length, .. } => *length,
        }
    }
}

/// The next frame. That of a stream that was reset, for whatever reason, is an error: only END_STREAM is an end.
fn poll_stream(stream: &mut RecvStream, whole: &mut bool, cx: &mut Context<'_>) -> Poll<Result<Option<Frame<Bytes>>, h2::Error>> {
    if !*whole {
        if let Some(data) = ready!(stream.poll_data(cx)) {
            let data = data?;
            // What is read is passed on before more is read: the window opens again.
            stream.flow_control().release_capacity(data.len())?;
            return Poll::Ready(Ok(Some(Frame::data(data))));
        }
        *whole = true;
    }
    stream.poll_trailers(cx).map(|trailers| Ok(trailers?.map(Frame::trailers)))
}

/// `Content-Length`, where every line says the same.
fn declared(headers: &HeaderMap) -> Option<u64> {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter().map(|line| number(line.as_bytes()));
    let first = lengths.next()?;
    if lengths.all(|length| length == first) { first } else { None }
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Http1 { source, .. } => source.poll_frame(cx),
            Self::Http2 { stream, whole, .. } => poll_stream(stream, whole, cx).map(|frame| frame.map_err(|_| Broken::Cut).transpose()),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Http1 { source, .. } => source.ended(),
            Self::Http2 { stream, .. } => stream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.length().map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_length_is_known_if_every_line_says_the_same_number() {
        let length = |lines: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(CONTENT_LENGTH, HeaderValue::from_static(line));
            }
            declared(&headers)
        };
        assert_eq!(length(&["7"]), Some(7));
        assert_eq!(length(&["7", "7"]), Some(7));
        for lines in [&[][..], &["7", "8"], &["+7"], &["7, 7"], &["7", "x"]] {
            assert_eq!(length(lines), None, "{lines:?}");
        }
    }
}
