//! How long a copy of a request may take: as long as the request that it is a copy of.
//!
//! Once that has its answer, a copy that was not sent whole is given up. Of one that was, nobody waits for the answer, but its connection
//! lingers for a moment: a mirror that is a little slower than the real upstream should not have each of its connections reset.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::oneshot;

use crate::http::body::{BodyFailure, BoxedBody, RequestBody};
use crate::upstream::call::{Limit, Over};
use crate::upstream::failure::Failure;

/// What the request holds until it is over.
pub type Original = oneshot::Receiver<()>;

/// The time of one copy.
#[derive(Debug)]
pub struct CopyTime {
    /// Closed when the request is over.
    original: Mutex<oneshot::Sender<()>>,
    /// The end in any case.
    until: Instant,
    linger: Duration,
    /// Whether the copy was sent whole when the request was over.
    sent: AtomicBool,
    /// When the connection has lingered long enough, once the request is over.
    lingers: OnceLock<Instant>,
}

impl CopyTime {
    /// A copy may take until the other side of `original` is dropped, and never longer than `until`; after the first of them its connection
    /// lingers for `linger`.
    pub fn new(original: oneshot::Sender<()>, until: Instant, linger: Duration) -> Self {
        Self { original: Mutex::new(original), until, linger, sent: AtomicBool::new(false), lingers: OnceLock::new() }
    }

    /// Whether the copy had been sent whole when the request was over.
    pub fn was_sent(&self) -> bool {
        self.sent.load(Relaxed)
    }

    /// The end in any case.
    pub(super) fn until(&self) -> Instant {
        self.until
    }

    /// Whether the request is over.
    pub(super) fn poll_over(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.original.lock().unwrap_or_else(PoisonError::into_inner).poll_closed(cx)
    }

    /// Runs `future` until the request is over, and as long as the connection lingers after that. `None` if it took longer.
    pub async fn stay<F: Future>(&self, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        match Limit::Copy(self).run(None, future.as_mut()).await {
            Ok(output) => Some(output),
            Err(Over::Answered) => self.linger(future).await,
            Err(Over::Total(_) | Over::PerTry) => None,
        }
    }

    async fn linger<F: Future>(&self, future: F) -> Option<F::Output> {
        // For the head and the body together.
        let end = *self.lingers.get_or_init(|| self.until.min(Instant::now() + self.linger));
        tokio::time::timeout_at(end.into(), future).await.ok()
    }
}

impl Limit<'_> {
    /// What follows when `over` ended the wait for an answer: if it was that of a copy, `sent` whole, its connection lingers.
    pub(super) async fn linger<T, E>(self, over: Over, sent: bool, future: impl Future<Output = Result<T, E>>) -> Result<T, Failure> {
        if let (Self::Copy(copy), Over::Answered, true) = (self, over, sent) {
            copy.sent.store(true, Relaxed);
            if let Some(Ok(output)) = copy.linger(future).await {
                return Ok(output);
            }
        }
        Err(over.failure())
    }
}

/// Longest piece of a body that HTTP/2 is given at once: it may have to keep one until its window opens.
const PIECE: usize = 16 << 10;

/// A body of which it is known whether HTTP/2 has sent all of it, but for what its window holds back of the last piece. The last one is not
/// said to be the last: hyper takes one before it may send it, and asks for more when it has.
struct Watched {
    body: RequestBody,
    /// What was not yet given of a frame.
    rest: Bytes,
    taken: Arc<AtomicBool>,
}

/// Makes it known whether the body of `request` was taken whole.
pub(super) fn watch(request: Request<RequestBody>) -> (Request<RequestBody>, Arc<AtomicBool>) {
    let taken = Arc::new(AtomicBool::new(request.body().is_end_stream()));
    let its = Arc::clone(&taken);
    (request.map(|body| RequestBody::Boxed(BoxedBody(Box::pin(Watched { body, rest: Bytes::new(), taken: its })))), taken)
}

impl Body for Watched {
    type Data = Bytes;
    type Error = BodyFailure;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyFailure>>> {
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)).map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => self.rest = data,
                Some(Err(failure)) => return Poll::Ready(Some(Err(failure))),
                Some(Ok(Err(trailers))) => {
                    self.taken.store(true, Relaxed);
                    return Poll::Ready(Some(Ok(trailers)));
                }
                None => {
                    self.taken.store(true, Relaxed);
                    return Poll::Ready(None);
                }
            }
        }
        let piece = self.rest.len().min(PIECE);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.taken.load(Relaxed)
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.rest.len() as u64;
        self.body.size_hint().exact().map_or_else(SizeHint::default, |exact| SizeHint::with_exact(exact + rest))
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn a_body_is_taken_when_it_is_asked_for_more_than_there_is() {
        let bytes = Bytes::from(vec![b'x'; PIECE + 1]);
        let (mut request, taken) = watch(Request::new(RequestBody::Full(bytes)));
        for length in [PIECE, 1] {
            let left = request.body().size_hint().exact();
            let data = request.body_mut().frame().await.unwrap().unwrap().into_data().unwrap();
            assert_eq!((data.len(), left), (length, Some(if length == 1 { 1 } else { PIECE as u64 + 1 })));
            assert!(!taken.load(Relaxed) && !request.body().is_end_stream());
        }
        assert!(request.body_mut().frame().await.is_none());
        assert!(taken.load(Relaxed) && request.body().is_end_stream());
        assert!(watch(Request::new(RequestBody::Empty)).1.load(Relaxed), "nothing is taken at once");
    }
}
