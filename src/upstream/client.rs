//! Sending one request to an upstream: pick an endpoint, get a connection, send, and try again where that is safe.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::error::Reason;
use crate::health::breaker::Verdict;
use crate::http::body::{BodyFailure, BoxedBody, ClientBody, RequestBody};
use crate::http::clock::{Clock, Expired};
use crate::http::websocket::{Answer, WebSocket};
use crate::telemetry::metrics::UpstreamMetrics;
use crate::upstream::attempt::{Attempt, FailKind};
use crate::upstream::connect::{ConnectError, Sender};
use crate::upstream::pool::Lease;
use crate::upstream::retry::{Retriable, RetryAfter, RetryPolicy, retry_after};
use crate::upstream::{Endpoint, PickArgs, PickError, Upstream};

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

/// Why there is no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The reason that the client is told.
    pub reason: Reason,
    /// A fixed sentence for it.
    pub detail: &'static str,
    /// Whether another attempt could mend it.
    retriable: Option<Retriable>,
    /// What endpoint state learns from it; `None` when the endpoint is not to blame.
    kind: Option<FailKind>,
}

impl Failure {
    const fn new(reason: Reason, detail: &'static str) -> Self {
        Self { reason, detail, retriable: None, kind: None }
    }
    const fn attempt(reason: Reason, detail: &'static str, retriable: Option<Retriable>, kind: FailKind) -> Self {
        Self { reason, detail, retriable, kind: Some(kind) }
    }

    /// The refusal of a client's body that ended early.
    pub const fn of_body(failure: BodyFailure) -> Self {
        match failure {
            BodyFailure::Client => Self::new(Reason::ClientClosed, "The client ended its request early."),
            BodyFailure::TooLarge => Self::new(Reason::BodyTooLarge, "The request body is longer than this route allows."),
            BodyFailure::Stalled => Self::new(Reason::RequestTimeout, "The request body did not arrive in time."),
            BodyFailure::Detached => Self::new(Reason::Internal, "The request could not be sent again."),
        }
    }

    /// The call's own deadline is over.
    pub const fn deadline() -> Self {
        Self::new(Reason::UpstreamTimeout, "The deadline of the call is over.")
    }

    const fn of_expiry(expired: Expired) -> Self {
        match expired {
            Expired::Timeout => Self::attempt(Reason::UpstreamTimeout, "The upstream did not answer in time.", None, FailKind::Timeout),
            Expired::Client => Self::new(Reason::RequestTimeout, "The request body did not arrive in time."),
            Expired::Upstream => {
                Self::attempt(Reason::UpstreamTimeout, "The upstream did not take the request body in time.", None, FailKind::Timeout)
            }
        }
    }

    fn of_connect(error: &ConnectError) -> Self {
        let again = Some(Retriable::Connect);
        match error {
            ConnectError::Io(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                Self::attempt(Reason::UpstreamConnectFailed, "The upstream refused the connection.", again, FailKind::Connect)
            }
            ConnectError::Io(_) => {
                Self::attempt(Reason::UpstreamConnectFailed, "The upstream cannot be reached.", again, FailKind::Connect)
            }
            ConnectError::Tls(_) => Self::attempt(Reason::UpstreamTlsFailed, "TLS with the upstream failed.", again, FailKind::Tls),
            ConnectError::Protocol(_) => Self::attempt(
                Reason::UpstreamConnectFailed,
                "The upstream does not speak the protocol that is needed.",
                None,
                FailKind::Protocol,
            ),
            ConnectError::Timeout => {
                Self::attempt(Reason::UpstreamConnectTimeout, "No connection to the upstream was made in time.", again, FailKind::Connect)
            }
        }
    }

    fn of_send(error: &hyper::Error) -> Self {
        if let Some(failure) = source::<BodyFailure>(error) {
            return Self::of_body(*failure);
        }
        if let Some(h2) = source::<h2::Error>(error)
            && h2.is_remote()
            && (h2.reason() == Some(h2::Reason::REFUSED_STREAM) || h2.is_go_away())
        {
            return Self::attempt(
                Reason::UpstreamReset,
                "The upstream did not take the request.",
                Some(Retriable::Connect),
                FailKind::Reset,
            );
        }
        if error.is_parse() || error.is_parse_status() {
            return Self::attempt(Reason::UpstreamProtocolError, "The upstream's response cannot be read.", None, FailKind::Protocol);
        }
        Self::attempt(
            Reason::UpstreamReset,
            "The upstream closed the connection before it answered.",
            Some(Retriable::Reset),
            FailKind::Reset,
        )
    }
}

/// The first error of type `E` in the chain of causes.
fn source<E: std::error::Error + 'static>(error: &hyper::Error) -> Option<&E> {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        cause = error.source();
    }
    None
}

enum Over {
    Total(Expired),
    PerTry,
}

impl Limit<'_> {
    /// Runs `future` until it ends, the limit is reached, or `per_try` has come.
    async fn run<F: Future>(self, per_try: Option<Instant>, future: F) -> Result<F::Output, Over> {
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

impl Call<'_> {
    fn replayable(&self) -> bool {
        match &self.body {
            CallBody::Empty | CallBody::Full(_) => true,
            CallBody::Client(body) => body.replayable(),
            CallBody::Once(body) => body.lock().unwrap_or_else(PoisonError::into_inner).is_some(),
        }
    }

    /// Whether the bytes that were sent may be sent again without knowing what became of them.
    fn repeatable(&self) -> bool {
        self.idempotent && self.replayable()
    }

    fn body(&self) -> RequestBody {
        match &self.body {
            CallBody::Empty => RequestBody::Empty,
            CallBody::Full(bytes) => RequestBody::Full(bytes.clone()),
            CallBody::Client(body) => body.attempt(),
            CallBody::Once(body) => {
                body.lock().unwrap_or_else(PoisonError::into_inner).take().map_or(RequestBody::Empty, RequestBody::Boxed)
            }
        }
    }

    /// The request as `sender` wants it. The header fields stay behind for another attempt only where one is possible.
    fn request(&mut self, sender: &Sender, endpoint: &Endpoint) -> Request<RequestBody> {
        let body = self.body();
        // An HTTP/2 upstream can refuse any request untouched, which may then be sent again.
        let again = self.idempotent || (self.retry.is_some() && matches!(sender, Sender::H2(_)));
        let mut headers = if again { self.headers.clone() } else { std::mem::take(&mut self.headers) };
        let host = self.host.as_ref().unwrap_or(&endpoint.authority);
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        match sender {
            Sender::H1(_) => {
                *request.uri_mut() = Uri::from(self.target.clone());
                headers.insert(HOST, host.clone());
                // hyper drops a body of unknown length on these methods unless it is told to send chunks.
                if matches!(*self.method, Method::GET | Method::HEAD) && request.body().size_hint().exact().is_none() {
                    headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
                }
            }
            Sender::H2(_) => {
                headers.remove(HOST);
                *request.uri_mut() = absolute(&self.target, host, endpoint.tls);
                *request.version_mut() = Version::HTTP_2;
            }
        }
        *request.headers_mut() = headers;
        request
    }

    /// Takes back what was not sent.
    fn restore(&mut self, request: Request<RequestBody>) {
        let (parts, body) = request.into_parts();
        if self.headers.is_empty() {
            self.headers = parts.headers;
        }
        if let (CallBody::Once(slot), RequestBody::Boxed(body)) = (&self.body, body) {
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(body);
        }
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

/// Sends `call` to `upstream` and returns the response as soon as its head is there.
///
/// # Errors
/// [`Failure`] when no endpoint answers, after the retries that the policy, the budget and the limit allow.
pub async fn send(
    upstream: &Arc<Upstream>,
    metrics: &UpstreamMetrics,
    mut call: Call<'_>,
    trace: &mut Trace,
) -> Result<Response<UpstreamBody>, Failure> {
    let policy = call.retry.filter(|policy| policy.attempts > 0);
    if policy.is_some() {
        upstream.budget().first_attempt(Instant::now());
    }
    let mut tried: Vec<Arc<Endpoint>> = Vec::new();
    let mut retries = 0;
    loop {
        let outcome = attempt(upstream, metrics, &mut call, &tried, trace).await;
        let Some(policy) = policy else { return outcome.map_err(|(failure, _)| failure) };
        let (retriable, after, endpoint) = match &outcome {
            Ok(response) if !policy.any_status() || response.status().is_success() => return outcome.map_err(|(failure, _)| failure),
            Ok(response) => (Retriable::Status(response.status()), retry_after(response.headers()), response.body().endpoint().cloned()),
            Err((Failure { retriable: Some(retriable), .. }, endpoint)) => (*retriable, RetryAfter::None, endpoint.clone()),
            Err((failure, _)) => return Err(*failure),
        };
        let wait = match after {
            RetryAfter::None => policy.wait(retries + 1, crate::random::next()),
            RetryAfter::Wait(wait) => wait,
            RetryAfter::TooLong => return outcome.map_err(|(failure, _)| failure),
        };
        if retries >= policy.attempts || !policy.allows(retriable, call.idempotent) || !call.replayable() || !call.has_time_for(wait) {
            return outcome.map_err(|(failure, _)| failure);
        }
        if !upstream.budget().try_retry(Instant::now(), policy.budget) {
            metrics.retry_denied(call.worker);
            return outcome.map_err(|(failure, _)| failure);
        }
        if upstream.admit(Instant::now(), crate::random::next()) == Verdict::Drop {
            metrics.breaker_dropped(call.worker);
            return outcome.map_err(|(failure, _)| failure);
        }
        // The response in hand, if there is one, is dropped only now: its connection closes.
        drop(outcome);
        metrics.retry(call.worker);
        tried.extend(endpoint);
        retries += 1;
        if !wait.is_zero()
            && let Err(over) = call.limit.run(None, tokio::time::sleep(wait)).await
        {
            return Err(over.failure());
        }
    }
}

impl Over {
    const fn failure(self) -> Failure {
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

type Failed = (Failure, Option<Arc<Endpoint>>);

/// One attempt, on the endpoint that the balancer picks.
async fn attempt(
    upstream: &Arc<Upstream>,
    metrics: &UpstreamMetrics,
    call: &mut Call<'_>,
    tried: &[Arc<Endpoint>],
    trace: &mut Trace,
) -> Result<Response<UpstreamBody>, Failed> {
    if tried.is_empty() && upstream.admit(Instant::now(), crate::random::next()) == Verdict::Drop {
        metrics.breaker_dropped(call.worker);
        return Err((Failure::new(Reason::Overloaded, "The upstream is failing; this request was not sent to it."), None));
    }
    let (attempt, picked) = pick(upstream, call, tried).await.map_err(|failure| (failure, None))?;
    let endpoint = Arc::clone(attempt.endpoint());
    trace.attempts += 1;
    trace.endpoint = Some(Arc::clone(&endpoint.id));
    let per_try = call.retry.and_then(|policy| policy.per_try_timeout).map(|timeout| picked + timeout);
    let outcome = on_endpoint(&endpoint, call, upstream.connect_timeout, picked, per_try).await;
    let now = Instant::now();
    let elapsed = now.saturating_duration_since(picked);
    trace.upstream_time = Some(elapsed);
    let counts = endpoint.pool.metrics();
    match outcome {
        Ok((response, lease)) => {
            let status = response.status();
            counts.attempt_status(call.worker, status.as_u16());
            metrics.attempt_duration(call.worker, elapsed);
            match failed_status(&response) {
                Some(kind) => attempt.failed(now, elapsed, kind),
                None => attempt.succeeded(now, elapsed),
            }
            Ok(UpstreamBody::wrap(response, lease, attempt))
        }
        Err(failure) => {
            counts.attempt_failed(call.worker, failure.reason);
            match failure.kind {
                Some(kind) => attempt.failed(now, elapsed, kind),
                None => attempt.cancelled(),
            }
            Err((failure, Some(endpoint)))
        }
    }
}

/// Statuses by which an endpoint says that it cannot serve; a 500 is none, since one bad request must not take endpoints out.
fn failed_status<B>(response: &Response<B>) -> Option<FailKind> {
    match response.status() {
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
            Some(FailKind::Status(response.status().as_u16()))
        }
        StatusCode::OK if response.version() == Version::HTTP_2 => {
            response.headers().get("grpc-status").is_some_and(|status| status == "14").then_some(FailKind::GrpcUnavailable)
        }
        _ => None,
    }
}

/// Picks an endpoint; waits up to `connect_timeout` for room where all are full.
async fn pick(upstream: &Arc<Upstream>, call: &Call<'_>, tried: &[Arc<Endpoint>]) -> Result<(Attempt, Instant), Failure> {
    let mut give_up = None;
    loop {
        let now = Instant::now();
        let args = PickArgs { worker: call.worker, now, tried, hash: call.hash, random: crate::random::next() };
        match upstream.pick(&args) {
            Ok(attempt) => return Ok((attempt, now)),
            Err(PickError::NoHealthyEndpoint) => {
                return Err(Failure::new(Reason::NoHealthyEndpoint, "No endpoint of the upstream can be used at the moment."));
            }
            Err(PickError::Full) => {}
        }
        let until = *give_up.get_or_insert(now + upstream.connect_timeout);
        match call.limit.run(Some(until), wait_for_room(upstream)).await {
            Ok(true) => {}
            Err(Over::Total(expired)) => return Err(Failure::of_expiry(expired)),
            Ok(false) | Err(Over::PerTry) => return Err(Failure::new(Reason::Overloaded, "All connections to the upstream are in use.")),
        }
    }
}

/// Waits until any endpoint may have room; `false` when too many requests wait already.
async fn wait_for_room(upstream: &Arc<Upstream>) -> bool {
    let endpoints = upstream.endpoints();
    let mut waits: Vec<_> = endpoints.iter().map(|endpoint| Box::pin(endpoint.pool.wait_for_room())).collect();
    std::future::poll_fn(|cx| {
        let mut room = false;
        waits.retain_mut(|wait| match wait.as_mut().poll(cx) {
            Poll::Ready(freed) => {
                room |= freed;
                false
            }
            Poll::Pending => true,
        });
        if room || waits.is_empty() { Poll::Ready(room) } else { Poll::Pending }
    })
    .await
}

/// Gets a connection to `endpoint` and sends the request; a kept connection that turns out to be closed is replaced once.
async fn on_endpoint(
    endpoint: &Arc<Endpoint>,
    call: &mut Call<'_>,
    connect_timeout: Duration,
    picked: Instant,
    per_try: Option<Instant>,
) -> Result<(Response<Incoming>, Lease), Failure> {
    let mut lease = endpoint.pool.checkout(call.worker, picked);
    loop {
        let fresh = lease.is_none();
        let mut leased = match lease.take() {
            Some(lease) => lease,
            None => connect(endpoint, call, connect_timeout, per_try).await?,
        };
        let Some(sender) = leased.sender.as_mut() else {
            return Err(Failure::new(Reason::Internal, "A connection without a sender."));
        };
        if call.needs_h2 && matches!(sender, Sender::H1(_)) {
            leased.give_back();
            return Err(Failure::of_connect(&ConnectError::Protocol("gRPC needs an HTTP/2 endpoint")));
        }
        let request = call.request(sender, endpoint);
        let sent = match sender {
            Sender::H1(sender) => call.limit.run(per_try, sender.try_send_request(request)).await,
            Sender::H2(sender) => call.limit.run(per_try, sender.try_send_request(request)).await,
        };
        let mut error = match sent {
            Err(over) => return Err(over.failure()),
            Ok(Ok(response)) => return check(response).map(|response| (response, leased)),
            Ok(Err(error)) => error,
        };
        let unsent = error.take_message();
        let never_sent = unsent.is_some();
        if let Some(request) = unsent {
            call.restore(request);
        }
        let mut failure = call.failure_of(error.error());
        if never_sent && failure.retriable == Some(Retriable::Reset) {
            // Not one byte was written: as safe as a connection that was refused.
            failure.retriable = Some(Retriable::Connect);
        }
        let lost_race = failure.retriable.is_some_and(|retriable| retriable != Retriable::Timeout) && !fresh;
        if !lost_race || !(never_sent && call.replayable() || call.repeatable()) {
            return Err(failure);
        }
    }
}

impl Call<'_> {
    /// A send error in the light of what the client's body went through.
    fn failure_of(&self, error: &hyper::Error) -> Failure {
        match &self.body {
            CallBody::Client(body) => body.failure().map_or_else(|| Failure::of_send(error), Failure::of_body),
            CallBody::Empty | CallBody::Full(_) | CallBody::Once(_) => Failure::of_send(error),
        }
    }

    /// Whether the limit leaves time for waiting `wait` and then some.
    fn has_time_for(&self, wait: Duration) -> bool {
        let now = Instant::now();
        let until = match self.limit {
            Limit::Clock(clock) => clock.deadline(now),
            Limit::Until(until) => until,
        };
        until.is_none_or(|until| now + wait < until)
    }
}

async fn connect(endpoint: &Arc<Endpoint>, call: &Call<'_>, timeout: Duration, per_try: Option<Instant>) -> Result<Lease, Failure> {
    let addresses = endpoint.state.addresses();
    let give_up = Instant::now() + timeout;
    loop {
        match call.limit.run(per_try, endpoint.pool.connect(call.worker, &addresses, timeout)).await {
            Err(over) => return Err(over.failure()),
            Ok(Some(Ok(lease))) => return Ok(lease),
            Ok(Some(Err(error))) => {
                tracing::debug!(endpoint = &*endpoint.id, %error, "no connection");
                return Err(Failure::of_connect(&error));
            }
            // Another request was faster to the last free place.
            Ok(None) if Instant::now() < give_up => {}
            Ok(None) => return Err(Failure::new(Reason::Overloaded, "All connections to the upstream are in use.")),
        }
        match call.limit.run(Some(give_up), endpoint.pool.wait_for_room()).await {
            Ok(true) => {}
            Err(Over::Total(expired)) => return Err(Failure::of_expiry(expired)),
            Ok(false) | Err(Over::PerTry) => return Err(Failure::new(Reason::Overloaded, "All connections to the upstream are in use.")),
        }
        if let Some(lease) = endpoint.pool.checkout(call.worker, Instant::now()) {
            return Ok(lease);
        }
    }
}

/// What an upstream answered to a WebSocket handshake.
pub enum Opened {
    /// 101: bytes flow.
    Tunnel(Response<Incoming>, Attempt),
    /// Any other status: an ordinary response.
    Response(Response<UpstreamBody>),
}

/// Sends a WebSocket handshake on a connection of its own. Only a connection that cannot be made is tried again, elsewhere.
///
/// # Errors
/// [`Failure`] when no endpoint answers.
pub async fn open_tunnel(
    upstream: &Arc<Upstream>,
    metrics: &UpstreamMetrics,
    mut call: Call<'_>,
    websocket: &WebSocket,
    trace: &mut Trace,
) -> Result<Opened, Failure> {
    let mut tried: Vec<Arc<Endpoint>> = Vec::new();
    let tries = call.retry.filter(|policy| policy.allows(Retriable::Connect, true)).map_or(0, |policy| policy.attempts);
    loop {
        let (attempt, picked) = pick(upstream, &call, &tried).await?;
        let endpoint = Arc::clone(attempt.endpoint());
        trace.attempts += 1;
        trace.endpoint = Some(Arc::clone(&endpoint.id));
        let outcome = handshake(&endpoint, &mut call, websocket, upstream.connect_timeout).await;
        let now = Instant::now();
        let elapsed = now.saturating_duration_since(picked);
        trace.upstream_time = Some(elapsed);
        let failure = match outcome {
            Ok(response) => {
                endpoint.pool.metrics().attempt_status(call.worker, response.status().as_u16());
                metrics.attempt_duration(call.worker, elapsed);
                match failed_status(&response) {
                    Some(kind) => attempt.failed(now, elapsed, kind),
                    None => attempt.succeeded(now, elapsed),
                }
                return Ok(match response.status() {
                    StatusCode::SWITCHING_PROTOCOLS => Opened::Tunnel(response, attempt),
                    _ => Opened::Response(UpstreamBody::unpooled(response, attempt)),
                });
            }
            Err(failure) => failure,
        };
        endpoint.pool.metrics().attempt_failed(call.worker, failure.reason);
        match failure.kind {
            Some(kind) => attempt.failed(now, elapsed, kind),
            None => attempt.cancelled(),
        }
        tried.push(endpoint);
        if failure.retriable != Some(Retriable::Connect) || tried.len() > tries as usize {
            return Err(failure);
        }
        metrics.retry(call.worker);
    }
}

async fn handshake(
    endpoint: &Arc<Endpoint>,
    call: &mut Call<'_>,
    websocket: &WebSocket,
    timeout: Duration,
) -> Result<Response<Incoming>, Failure> {
    let addresses = endpoint.state.addresses();
    let give_up = Instant::now() + timeout;
    let mut sender = loop {
        match call.limit.run(None, endpoint.pool.connect_for_tunnel(call.worker, &addresses, timeout)).await {
            Err(over) => return Err(over.failure()),
            Ok(Some(Err(error))) => return Err(Failure::of_connect(&error)),
            Ok(Some(Ok(sender))) => break sender,
            Ok(None) if Instant::now() < give_up => {}
            Ok(None) => return Err(Failure::new(Reason::Overloaded, "All connections to the upstream are in use.")),
        }
        match call.limit.run(Some(give_up), endpoint.pool.wait_for_place()).await {
            Ok(true) => {}
            Err(Over::Total(expired)) => return Err(Failure::of_expiry(expired)),
            Ok(false) | Err(Over::PerTry) => return Err(Failure::new(Reason::Overloaded, "All connections to the upstream are in use.")),
        }
    };
    let mut headers = call.headers.clone();
    headers.insert(HOST, call.host.clone().unwrap_or_else(|| endpoint.authority.clone()));
    websocket.prepare_request(&mut headers);
    let mut request = Request::new(RequestBody::Empty);
    *request.uri_mut() = Uri::from(call.target.clone());
    *request.headers_mut() = headers;
    let response = match call.limit.run(None, sender.send_request(request)).await {
        Err(over) => return Err(over.failure()),
        Ok(Err(error)) => return Err(Failure::of_send(&error)),
        Ok(Ok(response)) => response,
    };
    match websocket.check_response(response.status(), response.headers()) {
        Answer::Tunnel => Ok(response),
        Answer::Ordinary => check(response),
        Answer::Invalid(why) => {
            tracing::debug!(endpoint = &*endpoint.id, why, "bad answer to a WebSocket handshake");
            let detail = "The upstream's answer to the WebSocket handshake is wrong.";
            Err(Failure::attempt(Reason::UpstreamProtocolError, detail, None, FailKind::Protocol))
        }
    }
}

/// What hyper lets pass in a response head but a gateway must not.
fn check(mut response: Response<Incoming>) -> Result<Response<Incoming>, Failure> {
    const fn wrong(detail: &'static str) -> Failure {
        Failure::attempt(Reason::UpstreamProtocolError, detail, None, FailKind::Protocol)
    }
    if response.status().is_informational() {
        return Err(wrong("The upstream switched protocols without being asked."));
    }
    if response.version() != Version::HTTP_2 {
        let headers = response.headers_mut();
        if let Some(coding) = headers.get(TRANSFER_ENCODING) {
            if headers.contains_key(CONTENT_LENGTH) {
                return Err(wrong("The upstream's response has both a length and a transfer coding."));
            }
            if !coding.as_bytes().eq_ignore_ascii_case(b"chunked") || headers.get_all(TRANSFER_ENCODING).iter().nth(1).is_some() {
                return Err(wrong("The upstream's response has a transfer coding that is not chunked."));
            }
        }
    }
    Ok(response)
}

/// The body of an upstream's response. Its end gives the connection back; dropping it earlier closes the connection.
#[derive(Debug)]
pub struct UpstreamBody {
    incoming: Incoming,
    lease: Option<Lease>,
    attempt: Option<Attempt>,
    /// Whether the connection can take another request once the body has ended.
    reusable: bool,
    cut: bool,
}

impl UpstreamBody {
    fn wrap(response: Response<Incoming>, lease: Lease, attempt: Attempt) -> Response<Self> {
        let reusable = response.version() != Version::HTTP_10 && may_keep_alive(&response, &lease);
        let (parts, incoming) = response.into_parts();
        let mut body = Self { incoming, lease: Some(lease), attempt: Some(attempt), reusable, cut: false };
        if body.incoming.is_end_stream() {
            body.ended();
        }
        Response::from_parts(parts, body)
    }

    /// The body of a response on a connection that is not kept.
    fn unpooled(response: Response<Incoming>, attempt: Attempt) -> Response<Self> {
        response.map(|incoming| Self { incoming, lease: None, attempt: Some(attempt), reusable: false, cut: false })
    }

    /// The endpoint it comes from, while it is open.
    pub fn endpoint(&self) -> Option<&Arc<Endpoint>> {
        self.attempt.as_ref().map(Attempt::endpoint)
    }

    /// Whether the upstream ended it early.
    pub fn cut(&self) -> bool {
        self.cut
    }

    fn ended(&mut self) {
        if let Some(lease) = self.lease.take()
            && self.reusable
        {
            lease.give_back();
        }
        self.attempt = None;
    }
}

/// Whether the connection can take another request; learns from `Keep-Alive: timeout=` how long.
fn may_keep_alive(response: &Response<Incoming>, lease: &Lease) -> bool {
    if let Some(keep_alive) = response.headers().get("keep-alive")
        && let Some(seconds) = keep_alive.to_str().ok().and_then(timeout_parameter)
    {
        lease.pool().learn_idle_timeout(Duration::from_secs(seconds));
    }
    !response.headers().get(CONNECTION).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"close"))
}

fn timeout_parameter(text: &str) -> Option<u64> {
    text.split(',').find_map(|parameter| parameter.trim().strip_prefix("timeout=")?.parse().ok())
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let frame = std::task::ready!(Pin::new(&mut this.incoming).poll_frame(cx));
        match &frame {
            Some(Ok(_)) if this.incoming.is_end_stream() => this.ended(),
            Some(Ok(_)) => {}
            None => this.ended(),
            Some(Err(_)) => {
                this.cut = true;
                this.reusable = false;
                this.ended();
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
