//! One request to an upstream: what is sent, and how long it is waited for.

use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::HOST;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, Uri, Version};

use crate::error::Reason;
use crate::http::body::{BoxedBody, ClientBody, RequestBody};
use crate::http::clock::{Clock, Expired};
use crate::http::headers::Added;
use crate::http::text::Text;
use crate::upstream::copy::CopyTime;
use crate::upstream::failure::Failure;
use crate::upstream::h1;
use crate::upstream::retry::{Retriable, RetryPolicy};
use crate::upstream::{Endpoint, FailKind};

/// What a call waits for at most.
#[derive(Clone, Copy, Debug)]
pub enum Limit<'a> {
    /// Until the clock of the client's request says so.
    Clock(&'a Clock),
    /// Until this time.
    Until(Option<Instant>),
    /// As long as a copy of a request may take.
    Copy(&'a CopyTime),
}

/// The body of a call.
#[derive(Debug)]
pub enum CallBody {
    /// None.
    Empty,
    /// In memory: can be sent as often as needed.
    Full(Bytes),
    /// The client's, streamed.
    Client(Arc<ClientBody>),
    /// The client's through an adapter: can be sent once.
    Once(std::sync::Mutex<Option<BoxedBody>>),
}

impl CallBody {
    /// A body that can be sent once.
    pub fn once(body: BoxedBody) -> Self {
        Self::Once(std::sync::Mutex::new(Some(body)))
    }
}

/// One request to an upstream.
pub struct Call<'a> {
    /// The worker it runs on.
    pub worker: usize,
    /// When it begins.
    pub begun: Instant,
    /// Its method.
    pub method: &'a Method,
    /// Path and query to send.
    pub target: &'a PathAndQuery,
    /// Header fields to send; hop-by-hop ones are gone. `Host` is taken from `host`.
    pub headers: &'a HeaderMap,
    /// Host to send; `None` is the endpoint's own.
    pub host: Option<&'a HeaderValue>,
    /// Body to send.
    pub body: CallBody,
    /// `retry` of the route.
    pub retry: Option<&'a RetryPolicy>,
    /// Whether sending it twice is as good as once.
    pub idempotent: bool,
    /// Hash of the key for `consistent_hash`.
    pub hash: &'a (dyn Fn() -> Option<u64> + Sync),
    /// What the call waits for at most.
    pub limit: Limit<'a>,
    /// Whether it needs HTTP/2 (gRPC).
    pub needs_h2: bool,
    /// Fields to send beside `headers`, to an HTTP/1.1 endpoint.
    pub added: Option<Added<'a>>,
    /// Whether the fields of the response may stay lines: nobody on the way looks at them.
    pub as_lines: bool,
}

/// What is known of a call for the access log, also when it fails.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// Whether anybody wants to know the endpoint.
    pub wanted: bool,
    /// Attempts made.
    pub attempts: u32,
    /// Endpoint of the last attempt.
    pub endpoint: Option<Text>,
    /// From the last pick to the response head.
    pub upstream_time: Option<Duration>,
}

/// When one step of a call is over, before the whole call is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Deadline {
    /// At this time.
    At(Instant),
    /// So long after the pick of an attempt, or after the end of the request body if that is later: an upload is the client's time, not
    /// the upstream's.
    Attempt { picked: Instant, span: Duration },
}

/// What was over first.
#[derive(Clone, Copy)]
pub(super) enum Over {
    Total(Expired),
    PerTry,
    /// The request of which this is a copy.
    Answered,
}

impl Limit<'_> {
    /// When `deadline` is over, as far as it is known: `None` while the request body is open.
    pub(super) fn end_of(self, deadline: Deadline, now: Instant) -> Option<Instant> {
        match (deadline, self) {
            (Deadline::At(at), _) => Some(at),
            (Deadline::Attempt { picked, span }, Self::Clock(clock)) => clock.after_body(picked, span, now),
            (Deadline::Attempt { picked, span }, Self::Until(_) | Self::Copy(_)) => Some(picked + span),
        }
    }

    /// When something could be over at the earliest, but for what the clock tells by itself.
    fn next_look(self, deadline: Option<Deadline>, now: Instant) -> Option<Instant> {
        let step = deadline.map(|deadline| match (self.end_of(deadline, now), deadline) {
            (Some(end), _) | (None, Deadline::At(end)) => end,
            // The body could end at any moment from now on.
            (None, Deadline::Attempt { span, .. }) => now + span,
        });
        let total = match self {
            Self::Clock(_) => None,
            Self::Until(total) => total,
            Self::Copy(copy) => Some(copy.until()),
        };
        total.into_iter().chain(step).min()
    }

    fn over(self, deadline: Option<Deadline>, now: Instant) -> Option<Over> {
        let is_past = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        match self {
            Self::Until(total) if is_past(total) => Some(Over::Total(Expired::Timeout)),
            Self::Copy(copy) if is_past(Some(copy.until())) => Some(Over::Total(Expired::Timeout)),
            Self::Until(_) | Self::Copy(_) | Self::Clock(_) => {
                is_past(deadline.and_then(|deadline| self.end_of(deadline, now))).then_some(Over::PerTry)
            }
        }
    }

    fn expired(self) -> Option<Over> {
        match self {
            Self::Clock(clock) => clock.expired().map(Over::Total),
            Self::Until(_) | Self::Copy(_) => None,
        }
    }

    /// Runs `future` until it ends, the limit is reached, or `deadline` has come.
    pub(super) async fn run<F: Future>(self, deadline: Option<Deadline>, future: F) -> Result<F::Output, Over> {
        let mut future = pin!(future);
        let look = if deadline.is_none() && matches!(self, Self::Clock(_)) { None } else { self.next_look(deadline, Instant::now()) };
        let Some(look) = look else {
            return std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
                Poll::Ready(output) => Poll::Ready(Ok(output)),
                Poll::Pending => self.expired().map_or(Poll::Pending, |over| Poll::Ready(Err(over))),
            })
            .await;
        };
        let mut sleep = pin!(tokio::time::sleep_until(look.into()));
        std::future::poll_fn(|cx| {
            // Asked first: after its end nothing of a copy is sent any more.
            if let Self::Copy(copy) = self
                && copy.poll_over(cx).is_ready()
            {
                return Poll::Ready(Err(Over::Answered));
            }
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(Ok(output));
            }
            if let Some(over) = self.expired() {
                return Poll::Ready(Err(over));
            }
            while sleep.as_mut().poll(cx).is_ready() {
                let now = Instant::now();
                if let Some(over) = self.over(deadline, now) {
                    return Poll::Ready(Err(over));
                }
                // The body was open when the sleep began. Never at once again, lest a clock that stands still keeps the thread here.
                let look = self.next_look(deadline, now).unwrap_or(now).max(now + Duration::from_millis(1));
                sleep.as_mut().reset(look.into());
            }
            Poll::Pending
        })
        .await
    }
}

impl Over {
    pub(super) const fn failure(self) -> Failure {
        match self {
            Self::Total(expired) => Failure::of_expiry(expired),
            Self::PerTry => Failure::attempt(
                Reason::UpstreamTimeout,
                "The upstream did not answer in time.",
                Some(Retriable::Timeout),
                FailKind::Timeout,
            ),
            Self::Answered => Failure::ANSWERED,
        }
    }
}

impl Call<'_> {
    pub(super) fn replayable(&self) -> bool {
        match &self.body {
            CallBody::Empty | CallBody::Full(_) => true,
            CallBody::Client(body) => body.replayable(),
            CallBody::Once(body) => body.lock().unwrap_or_else(PoisonError::into_inner).is_some(),
        }
    }

    /// Whether the bytes that were sent may be sent again without knowing what became of them.
    pub(super) fn repeatable(&self) -> bool {
        self.idempotent && self.replayable()
    }

    /// The body for one more attempt.
    pub(super) fn body(&self) -> RequestBody {
        match &self.body {
            CallBody::Empty => RequestBody::Empty,
            CallBody::Full(bytes) => RequestBody::Full(bytes.clone()),
            CallBody::Client(body) => body.attempt(),
            CallBody::Once(body) => {
                body.lock().unwrap_or_else(PoisonError::into_inner).take().map_or(RequestBody::Empty, RequestBody::Boxed)
            }
        }
    }

    /// The request's head for an HTTP/1.1 endpoint.
    pub(super) fn head<'c>(&'c self, endpoint: &'c Endpoint) -> h1::Head<'c> {
        h1::Head {
            method: self.method,
            target: self.target.as_str(),
            host: self.host.unwrap_or(&endpoint.authority),
            headers: self.headers,
            added: self.added.as_ref(),
        }
    }

    /// The request for an HTTP/2 endpoint. The header fields stay behind for another attempt: the upstream may say of any request that it
    /// did not take it.
    pub(super) fn request(&self, endpoint: &Endpoint) -> Request<RequestBody> {
        let host = self.host.unwrap_or(&endpoint.authority);
        let mut request = Request::new(self.body());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = absolute(self.target, host, endpoint.tls);
        *request.version_mut() = Version::HTTP_2;
        let mut headers = self.headers.clone();
        headers.remove(HOST);
        *request.headers_mut() = headers;
        request
    }

    /// Takes back a body that was not sent.
    pub(super) fn restore(&self, body: RequestBody) {
        if let (CallBody::Once(slot), RequestBody::Boxed(body)) = (&self.body, body) {
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(body);
        }
    }

    /// A failure in the light of what the client's body went through.
    pub(super) fn failure_of(&self, failure: Failure) -> Failure {
        match &self.body {
            CallBody::Client(body) => body.failure().map_or(failure, Failure::of_body),
            CallBody::Empty | CallBody::Full(_) | CallBody::Once(_) => failure,
        }
    }

    /// Whether the limit leaves time for waiting `wait` and then some.
    pub(super) fn has_time_for(&self, wait: Duration) -> bool {
        let now = Instant::now();
        let until = match self.limit {
            Limit::Clock(clock) => clock.deadline(now),
            Limit::Until(until) => until,
            Limit::Copy(copy) => Some(copy.until()),
        };
        until.is_none_or(|until| now + wait < until)
    }
}

/// HTTP/2 wants scheme and authority in the URI.
fn absolute(target: &PathAndQuery, host: &HeaderValue, tls: bool) -> Uri {
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(if tls { http::uri::Scheme::HTTPS } else { http::uri::Scheme::HTTP });
    parts.authority = http::uri::Authority::try_from(host.as_bytes()).ok();
    parts.path_and_query = Some(target.clone());
    // Fails only without an authority, which the check of the Host excludes.
    Uri::from_parts(parts).unwrap_or_default()
}
