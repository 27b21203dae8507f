//! A client's whole body, copied while it was sent on.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

use super::body::BodyFailure;

/// A copied body. As a body it can be sent once.
#[derive(Clone, Debug, Default)]
pub struct Copied {
    /// Its bytes.
    pub bytes: Bytes,
    /// Its trailers, without those that must not pass.
    pub trailers: Option<HeaderMap>,
}

impl Body for Copied {
    type Data = Bytes;
    type Error = BodyFailure;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyFailure>>> {
        if !self.bytes.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.bytes)))));
        }
        Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_empty() && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        // In HTTP/1.1 only a body without a declared length can have trailers.
        if self.trailers.is_none() { SizeHint::with_exact(self.bytes.len() as u64) } else { SizeHint::default() }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn bytes_come_before_trailers_which_have_no_length() {
        let trailers = HeaderMap::from_iter([(http::HeaderName::from_static("x-sum"), http::HeaderValue::from_static("1"))]);
        let copied = Copied { bytes: Bytes::from_static(b"ab"), trailers: Some(trailers.clone()) };
        assert_eq!(copied.size_hint().exact(), None);
        let collected = copied.collect().await.unwrap();
        assert_eq!(collected.trailers(), Some(&trailers));
        assert_eq!(collected.to_bytes(), "ab");
        let plain = Copied { bytes: Bytes::from_static(b"ab"), trailers: None };
        assert_eq!((plain.size_hint().exact(), plain.is_end_stream(), Copied::default().is_end_stream()), (Some(2), false, true));
    }
}
