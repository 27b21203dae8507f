//! Sending one request to an upstream: pick an endpoint, get a connection, send, and try again where that is safe.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONNECTION, HOST, TRANSFER_ENCODING};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::error::Reason;
use crate::health::breaker::Verdict;
use crate::http::body::{BodyFailure, BoxedBody, ClientBody, RequestBody};
use crate::http::clock::{Clock, Expired};
use crate::http::headers::Survey;
use crate::http::websocket::{Answer, WebSocket};
use crate::telemetry::metrics::UpstreamMetrics;
use crate::upstream::attempt::{Attempt, FailKind};
use crate::upstream::connect::{ConnectError, Sender, TooManyInterim};
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
            // Accepted and reset before this side looked. Nothing was sent, so that it may be tried again like any failed connection.
            ConnectError::Io(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {
                Self::attempt(Reason::UpstreamReset, "The upstream closed the connection before it answered.", again, FailKind::Reset)
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
        if error.is_parse() || error.is_parse_status() || is_interim_flood(error) {
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

/// Whether the connection was ended because the upstream sent too many interim responses.
fn is_interim_flood(error: &hyper::Error) -> bool {
    source::<std::io::Error>(error).and_then(std::io::Error::get_ref).is_some_and(|inner| inner.is::<TooManyInterim>())
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

    /// Whether the header fields must stay behind for another attempt. Over HTTP/1.1 nothing that may have been acted on is sent again,
    /// and what was not sent comes back; over HTTP/2 the upstream may say of any request that it did not take it.
    fn keeps_headers(&self, sender: &Sender) -> bool {
        self.idempotent || matches!(sender, Sender::H2(_))
    }

    /// The request as `sender` wants it.
    fn request(&mut self, sender: &Sender, endpoint: &Endpoint) -> Request<RequestBody> {
        let body = self.body();
        let mut headers = if self.keeps_headers(sender) { self.headers.clone() } else { std::mem::take(&mut self.headers) };
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
            self.headers.remove(TRANSFER_ENCODING);
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
        let (outcome, endpoint) = attempt(upstream, metrics, &mut call, &tried, trace).await;
        let Some(policy) = policy else { return outcome };
        let (retriable, after) = match &outcome {
            Ok(response) if !policy.any_status() || response.status().is_success() => return outcome,
            Ok(response) => (Retriable::Status(response.status()), retry_after(response.headers())),
            Err(Failure { retriable: Some(retriable), .. }) => (*retriable, RetryAfter::None),
            Err(_) => return outcome,
        };
        let wait = match after {
            RetryAfter::None => policy.wait(retries + 1, crate::random::next()),
            RetryAfter::Wait(wait) => wait,
            RetryAfter::TooLong => return outcome,
        };
        if retries >= policy.attempts || !policy.allows(retriable, call.idempotent) || !call.replayable() || !call.has_time_for(wait) {
            return outcome;
        }
        if !may_retry(upstream, metrics, policy, call.worker) {
            return outcome;
        }
        // The response in hand, if there is one, is dropped only now: its connection closes.
        drop(outcome);
        tried.extend(endpoint);
        retries += 1;
        if !wait.is_zero()
            && let Err(over) = Box::pin(call.limit.run(None, tokio::time::sleep(wait))).await
        {
            return Err(over.failure());
        }
    }
}

/// Whether budget and breaker let another attempt through; it is counted if they do.
fn may_retry(upstream: &Upstream, metrics: &UpstreamMetrics, policy: &RetryPolicy, worker: usize) -> bool {
    let now = Instant::now();
    if !upstream.budget().try_retry(now, policy.budget) {
        metrics.retry_denied(worker);
        return false;
    }
    if upstream.admit(now, crate::random::next()) == Verdict::Drop {
        metrics.breaker_dropped(worker);
        return false;
    }
    metrics.retry(worker);
    true
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

/// What an attempt came to, and where it went. (A response may not know any more: one without a body has let go of its endpoint.)
type Attempted = (Result<Response<UpstreamBody>, Failure>, Option<Arc<Endpoint>>);

/// What a dropped attempt is told.
const DROPPED: Failure = Failure::new(Reason::Overloaded, "The upstream is failing; this request was not sent to it.");

/// One attempt, on the endpoint that the balancer picks.
async fn attempt(
    upstream: &Arc<Upstream>,
    metrics: &UpstreamMetrics,
    call: &mut Call<'_>,
    tried: &[Arc<Endpoint>],
    trace: &mut Trace,
) -> Attempted {
    if tried.is_empty() && upstream.has_breaker() && upstream.admit(Instant::now(), crate::random::next()) == Verdict::Drop {
        metrics.breaker_dropped(call.worker);
        return (Err(DROPPED), None);
    }
    let (attempt, picked) = match pick(upstream, call, tried).await {
        Ok(picked) => picked,
        Err(failure) => return (Err(failure), None),
    };
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
            (Ok(UpstreamBody::wrap(response, lease, attempt, now)), Some(endpoint))
        }
        Err(failure) => {
            counts.attempt_failed(call.worker, failure.reason);
            match failure.kind {
                Some(kind) => attempt.failed(now, elapsed, kind),
                None => attempt.cancelled(),
            }
            (Err(failure), Some(endpoint))
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
        Box::pin(wait_for(wait_for_room(upstream), call, until)).await?;
    }
}

/// Waits until any endpoint may have room; `false` when too many requests wait already.
async fn wait_for_room(upstream: &Arc<Upstream>) -> bool {
    let endpoints = upstream.endpoints();
    let mut waits: Vec<_> = endpoints.iter().map(|endpoint| Box::pin(endpoint.pool.wait_for_room())).collect();
    std::future::poll_fn(|cx| {
        let mut room = false;
        // Once there is room the others are not asked: each could take a turn that another request waits for.
        waits.retain_mut(|wait| {
            if room {
                return true;
            }
            match wait.as_mut().poll(cx) {
                Poll::Ready(freed) => {
                    room = freed;
                    false
                }
                Poll::Pending => true,
            }
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
        let mut leased = match lease.take() {
            Some(lease) => lease,
            // Rare paths are boxed: the future of a request is moved once, as large as its largest branch.
            None => Box::pin(connect(endpoint, call, connect_timeout, per_try)).await?,
        };
        let Some(sender) = leased.sender.as_mut() else {
            return Err(Failure::new(Reason::Internal, "A connection without a sender."));
        };
        if call.needs_h2 && matches!(sender, Sender::H1(_)) {
            leased.give_back(true, picked);
            return Err(Failure::of_connect(&ConnectError::Protocol("gRPC needs an HTTP/2 endpoint")));
        }
        let request = call.request(sender, endpoint);
        let sent = match sender {
            Sender::H1(connection) => call.limit.run(per_try, connection.send(request)).await,
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
        let closed = leased.reused && was_closed(&failure, error.error());
        if !closed || !(never_sent && call.replayable() || call.repeatable()) {
            return Err(failure);
        }
    }
}

/// Whether the error says that the connection had ended, not that the upstream refused this one request on a connection that lives on.
fn was_closed(failure: &Failure, error: &hyper::Error) -> bool {
    match failure.retriable {
        Some(Retriable::Connect | Retriable::Reset) => source::<h2::Error>(error).is_none_or(|h2| !h2.is_reset()),
        Some(Retriable::Timeout | Retriable::Status(_)) | None => false,
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

/// What a request is told for which no connection became free.
const NO_ROOM: Failure = Failure::new(Reason::Overloaded, "All connections to the upstream are in use.");

/// Opens a connection; where no more may be open, waits for one up to `timeout`.
async fn connect(endpoint: &Arc<Endpoint>, call: &Call<'_>, timeout: Duration, per_try: Option<Instant>) -> Result<Lease, Failure> {
    let addresses = endpoint.state.addresses();
    let pool = &endpoint.pool;
    let give_up = Instant::now() + timeout;
    loop {
        match call.limit.run(per_try, pool.connect(call.worker, &addresses, timeout)).await {
            Err(over) => return Err(over.failure()),
            Ok(Some(Ok(lease))) => return Ok(lease),
            Ok(Some(Err(error))) => {
                tracing::debug!(endpoint = &*endpoint.id, %error, "no connection");
                return Err(Failure::of_connect(&error));
            }
            // Another request was faster to the last free place.
            Ok(None) => {}
        }
        if let Some(lease) = pool.borrow(call.worker) {
            return Ok(lease);
        }
        wait_for(pool.wait_for_room(), call, give_up).await?;
        if let Some(lease) = pool.checkout(call.worker, Instant::now()) {
            return Ok(lease);
        }
    }
}

/// Waits for room until `give_up`.
async fn wait_for(room: impl Future<Output = bool>, call: &Call<'_>, give_up: Instant) -> Result<(), Failure> {
    // What is free at once is looked at again and again only while there is time: another request may always be faster.
    if Instant::now() >= give_up {
        return Err(NO_ROOM);
    }
    match call.limit.run(Some(give_up), room).await {
        Ok(true) => Ok(()),
        Err(Over::Total(expired)) => Err(Failure::of_expiry(expired)),
        Ok(false) | Err(Over::PerTry) => Err(NO_ROOM),
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
    let policy = call.retry.filter(|policy| policy.attempts > 0 && policy.allows(Retriable::Connect, true));
    if policy.is_some() {
        upstream.budget().first_attempt(Instant::now());
    }
    if upstream.admit(Instant::now(), crate::random::next()) == Verdict::Drop {
        metrics.breaker_dropped(call.worker);
        return Err(DROPPED);
    }
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
        let number = u32::try_from(tried.len()).unwrap_or(u32::MAX);
        let Some(policy) = policy.filter(|policy| failure.retriable == Some(Retriable::Connect) && number <= policy.attempts) else {
            return Err(failure);
        };
        let wait = policy.wait(number, crate::random::next());
        if !call.has_time_for(wait) || !may_retry(upstream, metrics, policy, call.worker) {
            return Err(failure);
        }
        call.limit.run(None, tokio::time::sleep(wait)).await.map_err(Over::failure)?;
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
            Ok(None) => return Err(NO_ROOM),
        }
        wait_for(endpoint.pool.wait_for_place(), call, give_up).await?;
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

const fn wrong(detail: &'static str) -> Failure {
    Failure::attempt(Reason::UpstreamProtocolError, detail, None, FailKind::Protocol)
}

/// What hyper lets pass in a response head but a gateway must not.
fn check(response: Response<Incoming>) -> Result<Response<Incoming>, Failure> {
    if response.status().is_informational() {
        return Err(wrong("The upstream switched protocols without being asked."));
    }
    let seen = Survey::of(response.headers());
    if seen.transfer_encoding() && response.version() != Version::HTTP_2 {
        let headers = response.headers();
        if let Some(coding) = headers.get(TRANSFER_ENCODING) {
            if seen.content_length() {
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
    /// When the head came: from then on the connection counts as idle, which saves a look at the clock at the end.
    since: Instant,
    cut: bool,
}

impl UpstreamBody {
    fn wrap(response: Response<Incoming>, lease: Lease, attempt: Attempt, since: Instant) -> Response<Self> {
        let reusable = response.version() != Version::HTTP_10 && may_keep_alive(&response, &lease);
        let (parts, incoming) = response.into_parts();
        let mut body = Self { incoming, lease: Some(lease), attempt: Some(attempt), reusable, since, cut: false };
        if body.incoming.is_end_stream() {
            body.ended();
        }
        Response::from_parts(parts, body)
    }

    /// The body of a response on a connection that is not kept.
    fn unpooled(response: Response<Incoming>, attempt: Attempt) -> Response<Self> {
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
