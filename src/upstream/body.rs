//! The body of an upstream's response, which keeps the connection it comes on.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::CONNECTION;
use http::{Response, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::http::headers::Survey;
use crate::upstream::Attempt;
use crate::upstream::pool::Lease;

/// The body of an upstream's response. Its end gives the connection back; dropping it earlier closes the connection.
#[derive(Debug)]
pub struct UpstreamBody {
    incoming: Incoming,
    lease: Option<Lease>,
    attempt: Option<Attempt>,
    /// Whether the connection can take another request once the body has ended.
    reusable: bool,
    /// When the head came: from then on the connection counts as idle, which saves a look at the clock at the end.
    since: Instant,
    cut: bool,
}

impl UpstreamBody {
    pub(super) fn wrap(response: Response<Incoming>, lease: Lease, attempt: Attempt, since: Instant) -> Response<Self> {
        let reusable = response.version() != Version::HTTP_10 && may_keep_alive(&response, &lease);
        let (parts, incoming) = response.into_parts();
        let mut body = Self { incoming, lease: Some(lease), attempt: Some(attempt), reusable, since, cut: false };
        if body.incoming.is_end_stream() {
            body.ended();
        }
        Response::from_parts(parts, body)
    }

    /// The body of a response on a connection that is not kept.
    pub(super) fn unpooled(response: Response<Incoming>, attempt: Attempt) -> Response<Self> {
        response.map(|incoming| Self { incoming, lease: None, attempt: Some(attempt), reusable: false, since: Instant::now(), cut: false })
    }

    /// Whether the upstream ended it early.
    pub fn cut(&self) -> bool {
        self.cut
    }

    fn ended(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.give_back(self.reusable, self.since);
        }
        self.attempt = None;
    }
}

/// Whether the connection can take another request; learns from `Keep-Alive: timeout=` how long.
fn may_keep_alive(response: &Response<Incoming>, lease: &Lease) -> bool {
    let seen = Survey::of(response.headers());
    if seen.keep_alive()
        && let Some(keep_alive) = response.headers().get("keep-alive")
        && let Some(seconds) = keep_alive.to_str().ok().and_then(timeout_parameter)
    {
        lease.pool().learn_idle_timeout(Duration::from_secs(seconds));
    }
    !seen.connection() || !response.headers().get(CONNECTION).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"close"))
}

fn timeout_parameter(text: &str) -> Option<u64> {
    text.split(',').find_map(|parameter| parameter.trim().strip_prefix("timeout=")?.parse().ok())
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let mut frame = Pin::new(&mut this.incoming).poll_frame(cx);
        if frame.is_pending()
            && let Some(lease) = &mut this.lease
        {
            // Asking told the connection that more is wanted; now it reads.
            lease.drive(cx);
            frame = Pin::new(&mut this.incoming).poll_frame(cx);
        }
        let frame = std::task::ready!(frame);
        match &frame {
            Some(Ok(_)) if this.incoming.is_end_stream() => this.ended(),
            Some(Ok(_)) => {}
            None => this.ended(),
            Some(Err(_)) => {
                this.cut = true;
                this.lease = None;
                this.attempt = None;
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
