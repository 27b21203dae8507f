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
    /// Its method.
    pub method: &'a Method,
    /// Path and query to send.
    pub target: PathAndQuery,
    /// Header fields to send; hop-by-hop ones are gone. `Host` is taken from `host`.
    pub headers: HeaderMap,
    /// Host to send; `None` is the endpoint's own.
    pub host: Option<HeaderValue>,
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
}

/// What is known of a call for the access log, also when it fails.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// Attempts made.
    pub attempts: u32,
    /// Endpoint of the last attempt.
    pub endpoint: Option<Arc<str>>,
    /// From the last pick to the response head.
    pub upstream_time: Option<Duration>,
}

/// What was over first.
pub(super) enum Over {
    Total(Expired),
    PerTry,
}

impl Limit<'_> {
    /// Runs `future` until it ends, the limit is reached, or `per_try` has come.
    pub(super) async fn run<F: Future>(self, per_try: Option<Instant>, future: F) -> Result<F::Output, Over> {
        let mut future = pin!(future);
        let (clock, total) = match self {
            Self::Clock(clock) => (Some(clock), None),
            Self::Until(total) => (None, total),
        };
        let until = match (total, per_try) {
            (Some(total), Some(per_try)) => Some(total.min(per_try)),
            (total, per_try) => total.or(per_try),
        };
        let Some(until) = until else {
            return std::future::poll_fn(|cx| {
                if let Poll::Ready(output) = future.as_mut().poll(cx) {
                    return Poll::Ready(Ok(output));
                }
                match clock.and_then(Clock::expired) {
                    Some(expired) => Poll::Ready(Err(Over::Total(expired))),
                    None => Poll::Pending,
                }
            })
            .await;
        };
        let mut sleep = pin!(tokio::time::sleep_until(until.into()));
        std::future::poll_fn(|cx| {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(Ok(output));
            }
            if let Some(expired) = clock.and_then(Clock::expired) {
                return Poll::Ready(Err(Over::Total(expired)));
            }
            if sleep.as_mut().poll(cx).is_ready() {
                let total_over = total.is_some_and(|total| per_try.is_none_or(|per_try| total <= per_try));
                return Poll::Ready(Err(if total_over { Over::Total(Expired::Timeout) } else { Over::PerTry }));
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
            host: self.host.as_ref().unwrap_or(&endpoint.authority),
            headers: &self.headers,
        }
    }

    /// The request for an HTTP/2 endpoint. The header fields stay behind for another attempt: the upstream may say of any request that it
    /// did not take it.
    pub(super) fn request(&self, endpoint: &Endpoint) -> Request<RequestBody> {
        let host = self.host.as_ref().unwrap_or(&endpoint.authority);
        let mut request = Request::new(self.body());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = absolute(&self.target, host, endpoint.tls);
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
