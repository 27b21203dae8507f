//! The body of an upstream's response, which keeps the connection it comes on.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::upstream::Attempt;
use crate::upstream::h1::{self, H1};
use crate::upstream::pool::Lease;

/// Where a response's body comes from.
#[derive(Debug)]
pub enum Source {
    /// Nowhere any more.
    Ended,
    /// Memory: all of it came with the head, and the connection is free again.
    Full(Bytes),
    /// Its HTTP/1.1 connection.
    H1(H1),
    /// A stream of HTTP/2.
    H2(Incoming),
}

impl Source {
    fn is_ended(&self) -> bool {
        match self {
            Self::Ended => true,
            Self::Full(_) => false,
            Self::H1(connection) => connection.is_body_ended(),
            Self::H2(incoming) => incoming.is_end_stream(),
        }
    }
}

/// The body of an upstream's response. Its end gives the connection back; dropping it earlier closes the connection, or the stream.
#[derive(Debug)]
pub struct UpstreamBody {
    source: Source,
    /// Behind a pointer, since most bodies came with their head and hold on to nothing.
    held: Option<Box<Held>>,
    /// When the head came.
    since: Instant,
    cut: bool,
}

/// What a body that is not complete holds on to.
#[derive(Debug)]
struct Held {
    lease: Option<Lease>,
    attempt: Attempt,
}

impl Held {
    /// The body has ended. The connection counts as idle `since` the head came, which saves a look at the clock.
    fn give_back(&self, source: Source, since: Instant) {
        if let (Source::H1(mut connection), Some(lease)) = (source, &self.lease)
            && connection.finish()
        {
            self.attempt.endpoint().pool.give_back(connection, lease.worker, since);
        }
    }
}

/// Why a body was cut.
#[derive(Debug)]
pub enum BodyError {
    /// Over HTTP/1.1.
    H1(h1::Error),
    /// Over HTTP/2.
    H2(hyper::Error),
    /// The HTTP/2 stream or its connection ended with NO_ERROR, but before the body did. hyper takes that for an end.
    Unfinished,
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::H1(error) => error.fmt(f),
            Self::H2(error) => error.fmt(f),
            Self::Unfinished => f.write_str("the stream was reset before its end"),
        }
    }
}

impl std::error::Error for BodyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::H1(error) => std::error::Error::source(error),
            Self::H2(error) => std::error::Error::source(error),
            Self::Unfinished => None,
        }
    }
}

impl UpstreamBody {
    /// The body of the response that came on `lease`; without one its connection is not kept.
    pub(super) fn wrap(mut source: Source, lease: Option<Lease>, attempt: Attempt, since: Instant) -> Self {
        let held = Held { lease, attempt };
        let mut whole = None;
        if let (Source::H1(connection), Some(_)) = (&mut source, &held.lease) {
            if let Some(limit) = connection.idle_limit() {
                held.attempt.endpoint().pool.learn_idle_timeout(limit);
            }
            whole = connection.take_whole_body();
        }
        if source.is_ended() {
            held.give_back(source, since);
            return Self { source: whole.map_or(Source::Ended, Source::Full), held: None, since, cut: false };
        }
        let mut held = Box::new(held);
        held.attempt.settle();
        Self { source, held: Some(held), since, cut: false }
    }

    /// Sends on what has come of the request's body. What goes wrong is heard of where this body is read.
    pub fn poll_upload(&mut self, cx: &mut Context<'_>) {
        if let Source::H1(connection) = &mut self.source {
            connection.poll_upload(cx);
        }
    }

    /// When all of it was there, if it came with its head.
    pub fn whole_at(&self) -> Option<Instant> {
        self.held.is_none().then_some(self.since)
    }

    /// Whether the upstream ended it early.
    pub fn cut(&self) -> bool {
        self.cut
    }

    fn ended(&mut self) {
        let source = std::mem::replace(&mut self.source, Source::Ended);
        if let Some(held) = self.held.take() {
            held.give_back(source, self.since);
        }
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let frame = match &mut this.source {
            Source::Ended => return Poll::Ready(None),
            Source::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                this.source = Source::Ended;
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            Source::H1(connection) => ready!(connection.poll_body(cx)).map(|frame| frame.map_err(BodyError::H1)),
            Source::H2(incoming) => match ready!(Pin::new(&mut *incoming).poll_frame(cx)) {
                None if !incoming.is_end_stream() => Some(Err(BodyError::Unfinished)),
                frame => frame.map(|frame| frame.map_err(BodyError::H2)),
            },
        };
        match &frame {
            Some(Ok(_)) if this.is_end_stream() => this.ended(),
            Some(Ok(_)) => {}
            None => this.ended(),
            Some(Err(error)) => {
                tracing::debug!(%error, "response cut");
                this.cut = true;
                this.source = Source::Ended;
                this.held = None;
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        // A body that was cut never looks complete.
        self.source.is_ended() && !self.cut
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Ended => SizeHint::with_exact(0),
            Source::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Source::H1(connection) => connection.size_hint(),
            Source::H2(incoming) => incoming.size_hint(),
        }
    }
}
