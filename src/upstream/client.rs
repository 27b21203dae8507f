//! Sending one request to an upstream: pick an endpoint, get a connection, send, and try again where that is safe.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use http::{Request, Response, StatusCode, Version, response};
use hyper::client::conn::http2::SendRequest;

use crate::error::Reason;
use crate::health::breaker::Verdict;
use crate::http::body::RequestBody;
use crate::http::h1::{Lines, ResponseHead};
use crate::http::text::Text;
use crate::telemetry::events;
use crate::telemetry::metrics::UpstreamMetrics;
use crate::upstream::attempt::{Attempt, FailKind};
use crate::upstream::body::{Source, UpstreamBody};
use crate::upstream::call::{Call, Deadline, Limit, Over, Trace};
use crate::upstream::connect::{ConnectError, Sender};
use crate::upstream::copy::watch;
use crate::upstream::failure::{Failure, source, wrong};
use crate::upstream::h1::{Error as H1Error, H1};
use crate::upstream::pool::{Apart, Lease};
use crate::upstream::restart::Comeback;
use crate::upstream::retry::{Retriable, RetryAfter, RetryPolicy, retry_after};
use crate::upstream::{Endpoint, PickArgs, PickError, Upstream};

/// Where the head of a response is put: it is large, and every step on the way back would move it.
pub struct ReplyHead<'a> {
    /// The head.
    pub parts: &'a mut response::Parts,
    /// Its fields, if they are still [`Lines`]: then the head's map is empty.
    pub lines: &'a mut Option<Box<Lines>>,
}

impl ReplyHead<'_> {
    /// Puts in what came over HTTP/1.1.
    fn put(&mut self, head: ResponseHead) {
        *self.lines = head.lines;
        self.parts.status = head.status;
        self.parts.version = head.version;
        self.parts.headers = head.headers;
        self.parts.extensions.clear();
        if let Some(reason) = head.reason
            && let Ok(reason) = hyper::ext::ReasonPhrase::try_from(reason)
        {
            self.parts.extensions.insert(reason);
        }
    }

    /// Puts in what came over HTTP/2.
    fn put_parts(&mut self, parts: response::Parts) {
        *self.lines = None;
        *self.parts = parts;
    }

    fn retry_after(&self) -> RetryAfter {
        match &self.lines {
            Some(lines) => retry_after(&Lines::clone(lines).into_map(), SystemTime::now()),
            None => retry_after(&self.parts.headers, SystemTime::now()),
        }
    }
}

/// Sends `call` to `upstream` and returns the body of the response as soon as its head is there, which is put into `head`.
///
/// # Errors
/// [`Failure`] when no endpoint answers, after the retries that the policy, the budget and the limit allow.
pub async fn send(
    upstream: &Arc<Upstream>,
    metrics: &UpstreamMetrics,
    call: &mut Call<'_>,
    trace: &mut Trace,
    head: &mut ReplyHead<'_>,
) -> Result<UpstreamBody, Failure> {
    let policy = call.retry.filter(|policy| policy.attempts > 0);
    if policy.is_some() {
        upstream.budget().first_attempt(call.worker, call.begun);
    }
    let mut tried: Vec<Arc<Endpoint>> = Vec::new();
    let mut retries = 0;
    loop {
        let (outcome, endpoint) = attempt(upstream, metrics, call, &tried, trace, head).await;
        let Some(policy) = policy else { return outcome };
        let (retriable, after) = match &outcome {
            Ok(_) if !policy.any_status() || head.parts.status.is_success() => return outcome,
            Ok(_) => (Retriable::Status(head.parts.status), head.retry_after()),
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
pub(super) fn may_retry(upstream: &Upstream, metrics: &UpstreamMetrics, policy: &RetryPolicy, worker: usize) -> bool {
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

/// What an attempt came to, and where it went. (A response may not know any more: one without a body has let go of its endpoint.)
type Attempted = (Result<UpstreamBody, Failure>, Option<Arc<Endpoint>>);

/// What a dropped attempt is told.
pub(super) const DROPPED: Failure = Failure::new(Reason::Overloaded, "The upstream is failing; this request was not sent to it.");

/// One attempt, on the endpoint that the balancer picks.
async fn attempt(
    upstream: &Arc<Upstream>,
    metrics: &UpstreamMetrics,
    call: &mut Call<'_>,
    tried: &[Arc<Endpoint>],
    trace: &mut Trace,
    head: &mut ReplyHead<'_>,
) -> Attempted {
    if tried.is_empty() && upstream.has_breaker() && upstream.admit(call.begun, crate::random::next()) == Verdict::Drop {
        metrics.breaker_dropped(call.worker);
        return (Err(DROPPED), None);
    }
    let (attempt, picked) = match pick(upstream, call, tried).await {
        Ok(picked) => picked,
        Err(failure) => return (Err(failure), None),
    };
    let endpoint = attempt.endpoint();
    trace.attempts += 1;
    trace.endpoint = trace.wanted.then(|| Text::from(&endpoint.id));
    let per_try = call.retry.and_then(|policy| policy.per_try_timeout).map(|span| Deadline::Attempt { picked, span });
    let mut outcome = on_endpoint(endpoint, call, upstream.connect_timeout, picked, per_try, head).await;
    if let Err(failure) = &outcome
        && let Some(mut comeback) = Comeback::of(upstream, endpoint, call, failure)
    {
        while Box::pin(comeback.wait(call, per_try)).await {
            outcome = Box::pin(on_endpoint(endpoint, call, upstream.connect_timeout, picked, per_try, head)).await;
            if !comeback.goes_on(outcome.as_ref().err()) {
                break;
            }
        }
    }
    let now = Instant::now();
    let elapsed = now.saturating_duration_since(picked);
    trace.upstream_time = Some(elapsed);
    let counts = endpoint.pool.metrics();
    match outcome {
        Ok((source, lease)) => {
            let status = head.parts.status;
            counts.attempt_status(call.worker, status.as_u16());
            metrics.attempt_duration(call.worker, elapsed);
            match failed_status(head.parts) {
                Some(kind) => attempt.failed(now, elapsed, kind),
                None => attempt.succeeded(now, elapsed),
            }
            // Only a response that may be answered by another attempt is asked where it came from.
            let again = (!status.is_success()).then(|| Arc::clone(endpoint));
            (Ok(UpstreamBody::wrap(source, Some(lease), attempt, now)), again)
        }
        Err(failure) => {
            counts.attempt_failed(call.worker, failure.reason);
            match failure.kind {
                Some(kind) => attempt.failed(now, elapsed, kind),
                None => attempt.cancelled(),
            }
            (Err(failure), Some(Arc::clone(endpoint)))
        }
    }
}

/// Statuses by which an endpoint says that it cannot serve; a 500 is none, since one bad request must not take endpoints out.
pub(super) fn failed_status(head: &response::Parts) -> Option<FailKind> {
    match head.status {
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
            Some(FailKind::Status(head.status.as_u16()))
        }
        StatusCode::OK if head.version == Version::HTTP_2 => {
            head.headers.get("grpc-status").is_some_and(|status| status == "14").then_some(FailKind::GrpcUnavailable)
        }
        _ => None,
    }
}

/// Picks an endpoint; waits up to `connect_timeout` for room where all are full.
pub(super) async fn pick(upstream: &Arc<Upstream>, call: &Call<'_>, tried: &[Arc<Endpoint>]) -> Result<(Attempt, Instant), Failure> {
    let mut give_up = None;
    // A look at the clock costs as much as the pick.
    let mut begun = tried.is_empty().then_some(call.begun);
    loop {
        let now = begun.take().unwrap_or_else(Instant::now);
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
    // Only those that a pick would choose: an endpoint that is out has room, but none that could be had.
    let endpoints = upstream.usable(Instant::now());
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
    per_try: Option<Deadline>,
    head: &mut ReplyHead<'_>,
) -> Result<(Source, Lease), Failure> {
    let mut lease = endpoint.pool.checkout(call.worker, picked);
    let mut replaced = false;
    loop {
        let mut leased = match lease.take() {
            Some(lease) => lease,
            // Rare paths are boxed: the future of a request is moved once, as large as its largest branch.
            None => Box::pin(connect(endpoint, call, connect_timeout, per_try)).await?,
        };
        let unanswered = match leased.sender.take() {
            None => return Err(Failure::new(Reason::Internal, "A connection without a sender.")),
            Some(Sender::H1(connection)) if call.needs_h2 => {
                endpoint.pool.give_back(connection, call.worker, picked);
                return Err(Failure::of_connect(&ConnectError::Protocol("gRPC needs an HTTP/2 endpoint")));
            }
            Some(Sender::H1(mut connection)) => {
                let started = connection.start(&call.head(endpoint), call.body(), call.as_lines);
                let answered = match started {
                    Ok(()) => call.limit.run(per_try, read_head(&mut connection, head)).await,
                    Err(error) => Ok(Err(error)),
                };
                match answered {
                    Err(over) => {
                        let sent = connection.is_sent();
                        Box::pin(call.limit.linger(over, sent, read_head(&mut connection, head))).await?;
                        return answer(head, connection).map(|source| (source, leased));
                    }
                    Ok(Ok(())) => return answer(head, connection).map(|source| (source, leased)),
                    Ok(Err(error)) => unanswered(call, &mut connection, &error),
                }
            }
            Some(Sender::H2(sender)) => match Box::pin(over_h2(call, endpoint, sender, per_try)).await? {
                Ok(response) => {
                    let (parts, source) = response.into_parts();
                    head.put_parts(parts);
                    return Ok((source, leased));
                }
                Err(unanswered) => unanswered,
            },
        };
        // Once: an upstream that ends every connection over this request must not be asked for ever.
        let closed = leased.reused && unanswered.closed && !std::mem::replace(&mut replaced, true);
        if !closed || !(unanswered.never_sent && call.replayable() || call.repeatable()) {
            return Err(unanswered.failure);
        }
    }
}

/// A connection that brought no answer.
struct Unanswered {
    failure: Failure,
    /// Not one byte of the request was written.
    never_sent: bool,
    /// The connection had ended, as a kept one may: it is not that this one request was refused or answered badly.
    closed: bool,
}

impl Unanswered {
    fn new(mut failure: Failure, never_sent: bool, closed: bool) -> Self {
        if never_sent && failure.retriable == Some(Retriable::Reset) {
            // As safe as a connection that was refused.
            failure.retriable = Some(Retriable::Connect);
        }
        let ended = matches!(failure.retriable, Some(Retriable::Connect | Retriable::Reset));
        Self { failure, never_sent, closed: closed && ended }
    }
}

/// Reads the head of a response, and puts it where it stays.
fn read_head(connection: &mut H1, head: &mut ReplyHead<'_>) -> impl Future<Output = Result<(), H1Error>> {
    std::future::poll_fn(|cx| connection.poll_head(cx).map_ok(|read| head.put(read)))
}

/// The body of the final response that came over HTTP/1.1.
fn answer(head: &ReplyHead<'_>, connection: H1) -> Result<Source, Failure> {
    if head.parts.status.is_informational() {
        return Err(wrong("The upstream switched protocols without being asked."));
    }
    Ok(Source::H1(connection))
}

#[cold]
fn unanswered(call: &Call<'_>, connection: &mut H1, error: &H1Error) -> Unanswered {
    tracing::debug!(%error, "no response");
    let never_sent = !connection.has_sent();
    if never_sent && let Some(body) = connection.take_untouched_body() {
        call.restore(body);
    }
    Unanswered::new(call.failure_of(Failure::of_h1(error)), never_sent, !connection.has_received())
}

/// Sends over HTTP/2, and says what came of it.
async fn over_h2(
    call: &mut Call<'_>,
    endpoint: &Endpoint,
    mut sender: SendRequest<RequestBody>,
    per_try: Option<Deadline>,
) -> Result<Result<Response<Source>, Unanswered>, Failure> {
    let request: Request<RequestBody> = call.request(endpoint);
    let (request, taken) = match call.limit {
        Limit::Clock(_) | Limit::Until(_) => (request, None),
        Limit::Copy(_) => {
            let (request, taken) = watch(request);
            (request, Some(taken))
        }
    };
    let mut sending = pin!(sender.try_send_request(request));
    let mut error = match call.limit.run(per_try, sending.as_mut()).await {
        Err(over) => {
            // What the connection has taken, it sends as soon as it can.
            let sent = taken.is_some_and(|taken| taken.load(Relaxed));
            return call.limit.linger(over, sent, sending).await.map(|response| Ok(response.map(Source::H2)));
        }
        Ok(Ok(response)) if response.status().is_informational() => {
            return Err(wrong("The upstream switched protocols without being asked."));
        }
        // RFC 9110 section 15 knows no class above 5xx.
        Ok(Ok(response)) if response.status().as_u16() >= 600 => return Err(wrong("The upstream's response cannot be read.")),
        Ok(Ok(response)) => return Ok(Ok(response.map(Source::H2))),
        Ok(Err(error)) => error,
    };
    let unsent = error.take_message();
    let never_sent = unsent.is_some();
    if let Some(request) = unsent {
        call.restore(request.into_body());
    }
    // A stream that was reset says nothing about its connection.
    let closed = source::<h2::Error>(error.error()).is_none_or(|error| !error.is_reset());
    Ok(Err(Unanswered::new(call.failure_of(Failure::of_h2(error.error())), never_sent, closed)))
}

/// What a request is told for which no connection became free.
pub(super) const NO_ROOM: Failure = Failure::new(Reason::Overloaded, "All connections to the upstream are in use.");

/// Opens a connection; where no more may be open, waits for one up to `timeout`.
async fn connect(endpoint: &Arc<Endpoint>, call: &Call<'_>, timeout: Duration, per_try: Option<Deadline>) -> Result<Lease, Failure> {
    let addresses = endpoint.state.addresses();
    let pool = &endpoint.pool;
    let give_up = Instant::now() + timeout;
    loop {
        let apart = matches!(call.limit, Limit::Copy(_)).then(|| noting(endpoint));
        match call.limit.run(per_try, pool.connect(call.worker, &addresses, timeout, apart)).await {
            Err(over) => return Err(over.failure()),
            Ok(Some(Ok(lease))) => {
                endpoint.state.reach.took();
                return Ok(lease);
            }
            Ok(Some(Err(error))) => {
                note_unreached(endpoint, &error);
                return Err(Failure::of_connect(&error));
            }
            // Another request was faster to the last free place.
            Ok(None) => {}
        }
        if let Some(lease) = pool.borrow(call.worker) {
            return Ok(lease);
        }
        let per_try_end = per_try.and_then(|per_try| call.limit.end_of(per_try, Instant::now()));
        let until = per_try_end.map_or(give_up, |end| end.min(give_up));
        match wait_for(pool.wait_for_room(), call, until).await {
            Err(failure) if failure == NO_ROOM && per_try_end.is_some_and(|end| Instant::now() >= end) => {
                return Err(Over::PerTry.failure());
            }
            waited => waited?,
        }
        if let Some(lease) = pool.checkout(call.worker, Instant::now()) {
            return Ok(lease);
        }
    }
}

/// Notes why `endpoint` could not be connected to.
fn note_unreached(endpoint: &Endpoint, error: &ConnectError) {
    if let Some(error) = endpoint.state.unreached.note(error, Instant::now()) {
        events::endpoint_unreached(&endpoint.upstream_state().name, &endpoint.id, &error);
    }
}

/// The same for a copy, which may be gone when the error is known.
fn noting(endpoint: &Arc<Endpoint>) -> Apart {
    let endpoint = Arc::clone(endpoint);
    Box::new(move |error| note_unreached(&endpoint, error))
}

/// Waits for room until `give_up`.
pub(super) async fn wait_for(room: impl Future<Output = bool>, call: &Call<'_>, give_up: Instant) -> Result<(), Failure> {
    // What is free at once is looked at again and again only while there is time: another request may always be faster.
    if Instant::now() >= give_up {
        return Err(NO_ROOM);
    }
    match call.limit.run(Some(Deadline::At(give_up)), room).await {
        Ok(true) => {
            // Whoever is about to free a connection may be on this very thread.
            tokio::task::yield_now().await;
            Ok(())
        }
        Err(over @ (Over::Total(_) | Over::Answered)) => Err(over.failure()),
        Ok(false) | Err(Over::PerTry) => Err(NO_ROOM),
    }
}
