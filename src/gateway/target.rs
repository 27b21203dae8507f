//! What answers a route's requests, and how it is asked.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, TE, TRAILER};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Response, StatusCode, Version, response};
use http_body_util::BodyExt;

use crate::config::upstream::Protocol;
use crate::error::{Reason, Refusal};
use crate::gateway::answer::{Adapted, Cut, Source};
use crate::gateway::deadline::DeadlineBody;
use crate::gateway::handle::Context;
use crate::gateway::reply::Answer;
use crate::gateway::route::{Apart, Route};
use crate::gateway::tunnel;
use crate::http::body::{BodyFailure, BoxedBody, ClientBody};
use crate::http::headers::{Fields, Survey, join_cookies, remove_hop_by_hop};
use crate::http::selector::selector_value;
use crate::http::text::Text;
use crate::http::{Exchange, grpc, grpc_web};
use crate::targets::aggregate::{Aggregate, CallFailure, Caller, PartRequest, PartResponse};
use crate::targets::redirect::Redirect;
use crate::targets::respond::Respond;
use crate::targets::split::Split;
use crate::telemetry::metrics::UpstreamMetrics;
use crate::tls::ClientTls;
use crate::units::Selector;
use crate::upstream::Upstream;
use crate::upstream::body::UpstreamBody;
use crate::upstream::call::{Call, CallBody, Limit, Trace};
use crate::upstream::client::{ReplyHead, send};
use crate::upstream::failure::Failure;
use crate::upstream::retry::{IDEMPOTENCY_KEY, RetryPolicy, idempotent};

/// An upstream with its metrics.
#[derive(Clone, Debug)]
pub struct UpstreamHandle {
    /// The upstream.
    pub upstream: Arc<Upstream>,
    /// Its metrics.
    pub metrics: Arc<UpstreamMetrics>,
    /// TLS towards its endpoints.
    pub tls: Option<Arc<ClientTls>>,
}

impl UpstreamHandle {
    /// Whether its endpoints speak HTTP/2, or may: TLS tells only when there is a connection.
    pub(super) fn may_speak_h2(&self) -> bool {
        match self.upstream.protocol {
            Protocol::H2 => true,
            Protocol::Http1 => false,
            Protocol::Auto => self.tls.is_some(),
        }
    }
}

/// What answers.
pub enum Target {
    /// One upstream.
    Proxy(UpstreamHandle),
    /// One of several.
    Split(SplitTarget),
    /// Several, merged.
    Aggregate(AggregateTarget),
    /// A fixed answer.
    Respond(Respond),
    /// A redirect.
    Redirect(Redirect),
}

/// `split` with its upstreams.
pub struct SplitTarget {
    /// Who gets which share.
    pub split: Split,
    /// The branches' upstreams.
    pub branches: Vec<UpstreamHandle>,
}

/// `aggregate` with its upstreams.
pub struct AggregateTarget {
    /// What is called and merged.
    pub aggregate: Aggregate,
    /// The parts' upstreams.
    pub upstreams: Vec<UpstreamHandle>,
}

impl AggregateTarget {
    /// The client's fields that parts get.
    pub fn pick(&self, headers: &HeaderMap) -> HeaderMap {
        self.aggregate.pick_headers(headers)
    }
}

/// A request as it is about to go to an upstream.
pub struct Outgoing<'a> {
    /// Path and query, if they are not those that came.
    pub target: Option<PathAndQuery>,
    /// Header fields, not yet prepared.
    pub headers: &'a mut HeaderMap,
    /// When the steps before were done: the time of the request, unless one of them took some.
    pub begun: Instant,
}

impl Route {
    /// Asks the target, and puts what it answers into `answer`.
    ///
    /// # Errors
    /// The refusal to answer with, when there is no response.
    pub(super) async fn send(
        &self,
        ex: &mut Exchange,
        cx: &mut Context<'_>,
        outgoing: Outgoing<'_>,
        answer: &mut Answer,
    ) -> Result<(), Box<Refusal>> {
        if cx.seen.cookie() {
            join_cookies(outgoing.headers);
        }
        let handle = match &self.target {
            Target::Proxy(handle) => Some(handle),
            Target::Split(_) | Target::Aggregate(_) | Target::Respond(_) | Target::Redirect(_) => None,
        };
        let apart = self.prepare(ex, cx, handle, outgoing.headers);
        match &self.target {
            Target::Proxy(handle) => self.proxy(handle, ex, cx, outgoing, apart, answer).await,
            Target::Split(split) => {
                let key = split.split.by().iter().find_map(|by| selector_value(by, ex, outgoing.headers));
                let branch = split.split.choose(crate::random::next(), key.as_deref());
                drop(key);
                match split.branches.get(branch) {
                    Some(handle) => self.proxy(handle, ex, cx, outgoing, Apart::Nothing, answer).await,
                    None => Err(Refusal::new(Reason::Internal, "The split has no such branch.")),
                }
            }
            Target::Aggregate(target) => Box::pin(self.aggregate(target, ex, cx, outgoing, answer)).await,
            Target::Respond(_) | Target::Redirect(_) => Err(Refusal::new(Reason::Internal, "This target is answered at once.")),
        }
    }

    async fn proxy(
        &self,
        handle: &UpstreamHandle,
        ex: &mut Exchange,
        cx: &mut Context<'_>,
        outgoing: Outgoing<'_>,
        apart: Apart,
        answer: &mut Answer,
    ) -> Result<(), Box<Refusal>> {
        if let Some(entry) = cx.pending.get().and_then(|finish| finish.entry.as_mut()) {
            entry.upstream = Some(Text::from(&handle.upstream.name));
        }
        if cx.websocket.is_some() {
            // Rare paths are boxed, here and below: each future on the way is moved once per request, as large as its largest branch.
            return Box::pin(tunnel::open(self, handle, ex, cx, outgoing, answer)).await;
        }
        let Outgoing { target, headers, begun } = outgoing;
        let speaks_h2 = handle.may_speak_h2();
        if !speaks_h2 {
            // Whatever speaks gRPC-Web in HTTP/1.1 is asked as it is.
            cx.grpc_web = None;
        }
        let deadline = grpc_headers(cx, ex, self.timeout, headers)?;
        let is_grpc = cx.grpc || cx.grpc_web.is_some();
        let keyed = matches!(&apart, Apart::Made(made) if made.has(&IDEMPOTENCY_KEY));
        let may_repeat = !is_grpc && (keyed || idempotent(&ex.method, headers));
        // Over HTTP/2 an upstream may say of any request that it did not take it, also when part of the body is gone.
        let may_be_refused = self.retry.is_some() && speaks_h2;
        let body = self.call_body(cx, may_repeat || may_be_refused);
        // Lengths are made anew from the body; `0` on a request without one says so to servers that insist on a length.
        if cx.seen.content_length() && cx.body.is_some() {
            headers.remove(CONTENT_LENGTH);
        }
        let target = target.as_ref().unwrap_or(&ex.target);
        let host = self.host(ex);
        self.copy(ex, cx, target, headers, host);
        let hash = hash_of(&handle.upstream, ex, headers);
        let mut call = Call {
            worker: ex.worker,
            begun,
            method: &ex.method,
            target,
            host,
            headers,
            body,
            retry: self.retry.as_ref(),
            idempotent: may_repeat,
            hash: &|| hash,
            limit: Limit::Clock(cx.link.clock()),
            needs_h2: is_grpc,
            added: self.added(apart, ex, cx),
            as_lines: !is_grpc && self.takes_lines(cx),
        };
        let mut trace = Trace { wanted: cx.snapshot.access_log.enabled(), ..Trace::default() };
        let mut head = ReplyHead { parts: &mut answer.parts, lines: &mut answer.lines };
        let outcome = match deadline {
            None => send(&handle.upstream, &handle.metrics, &mut call, &mut trace, &mut head).await,
            Some(deadline) => {
                let sending = send(&handle.upstream, &handle.metrics, &mut call, &mut trace, &mut head);
                Box::pin(tokio::time::timeout_at(deadline.into(), sending)).await.unwrap_or(Err(Failure::deadline()))
            }
        };
        note(cx, trace);
        let body = outcome.map_err(|failure| refusal_of(&failure))?;
        if let Some(finish) = cx.pending.get() {
            // A stream of HTTP/2 may have to wait for its window.
            finish.whole_at = body.whole_at().filter(|_| finish.link.http1().is_some());
        }
        answer_with(answer, body, cx, deadline);
        Ok(())
    }

    /// The client's body, if there is one, with the route's limit.
    fn call_body(&self, cx: &mut Context<'_>, replay: bool) -> CallBody {
        let Some(body) = self.client_body(cx, replay) else { return CallBody::Empty };
        match cx.grpc_web {
            None => CallBody::Client(body),
            Some(call) => {
                let adapted = grpc_web::RequestBody::new(call, body.attempt()).map_err(|error| match error {
                    grpc_web::Error::Body(failure) => failure,
                    grpc_web::Error::Base64 => BodyFailure::Unreadable,
                });
                CallBody::once(BoxedBody(Box::pin(adapted)))
            }
        }
    }

    fn client_body(&self, cx: &mut Context<'_>, replay: bool) -> Option<Arc<ClientBody>> {
        let incoming = cx.incoming.take()?;
        let filter = Some(Arc::clone(&cx.snapshot.trailer_filter));
        let body = ClientBody::new(incoming, self.body_limit, replay, filter, Arc::clone(cx.link.clock()));
        cx.body = Some(Arc::clone(&body));
        if let Some(finish) = cx.pending.get() {
            finish.body = Some(Arc::clone(&body));
        }
        Some(body)
    }

    async fn aggregate(
        &self,
        target: &AggregateTarget,
        ex: &mut Exchange,
        cx: &mut Context<'_>,
        outgoing: Outgoing<'_>,
        answer: &mut Answer,
    ) -> Result<(), Box<Refusal>> {
        let body = match self.client_body(cx, false) {
            Some(body) if target.aggregate.needs_body() => {
                let limit = self.body_limit.unwrap_or_else(|| target.aggregate.max_body());
                let collected = until_expired(cx, body.collect(limit)).await;
                match collected {
                    Some(Ok(bytes)) => bytes,
                    Some(Err(failure)) => return Err(refusal_of(&Failure::of_body(failure))),
                    None => return Err(refusal_of(&Failure::of_body(BodyFailure::Stalled))),
                }
            }
            Some(_) | None => Bytes::new(),
        };
        let calls =
            Calls { route: self, target, host: self.host(ex).cloned(), worker: ex.worker, hash: hash_inputs(target, ex, outgoing.headers) };
        let deadline = self.timeout.map(|timeout| Instant::now() + timeout);
        let outcome = target.aggregate.run(&calls, ex, outgoing.headers, body, deadline).await;
        if let Some(entry) = cx.pending.get().and_then(|finish| finish.entry.as_mut()) {
            entry.parts = outcome.parts;
        }
        let (head, body) = outcome.answer?;
        *answer = match body.whole() {
            Ok(bytes) => Answer::full((head, bytes)),
            Err(chunks) => Answer::new(head, Source::Adapted(Box::pin(chunks.map_err(|never| match never {})))),
        };
        Ok(())
    }
}

/// Waits for a body; `None` when the clock says that it came too slowly.
async fn until_expired<F: Future>(cx: &Context<'_>, future: F) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|task| match future.as_mut().poll(task) {
        std::task::Poll::Ready(output) => std::task::Poll::Ready(Some(output)),
        std::task::Poll::Pending if cx.link.clock().expired().is_some() => std::task::Poll::Ready(None),
        std::task::Poll::Pending => std::task::Poll::Pending,
    })
    .await
}

/// The hash of the first key present, for `consistent_hash`; nothing is looked at otherwise.
pub(super) fn hash_of(upstream: &Upstream, ex: &Exchange, headers: &HeaderMap) -> Option<u64> {
    key_hash(upstream.hash_selectors(), ex, headers)
}

fn key_hash(selectors: &[Selector], ex: &Exchange, headers: &HeaderMap) -> Option<u64> {
    selectors.iter().find_map(|selector| selector_value(selector, ex, headers)).map(|key| crate::balance::hash_key(&key))
}

fn hash_inputs(target: &AggregateTarget, ex: &Exchange, headers: &HeaderMap) -> Vec<Option<u64>> {
    target.upstreams.iter().map(|handle| hash_of(&handle.upstream, ex, headers)).collect()
}

/// gRPC needs `te: trailers`, and gets the time left instead of the time the client started with. Returns the call's own deadline.
fn grpc_headers(
    cx: &Context<'_>,
    ex: &Exchange,
    timeout: Option<Duration>,
    headers: &mut HeaderMap,
) -> Result<Option<Instant>, Box<Refusal>> {
    if let Some(call) = cx.grpc_web {
        call.prepare_request(headers);
    }
    if !cx.grpc && cx.grpc_web.is_none() {
        return Ok(None);
    }
    headers.insert(TE, HeaderValue::from_static("trailers"));
    let asked = grpc::timeout(headers).map_err(|_| Refusal::new(Reason::BadRequest, "grpc-timeout cannot be read."))?;
    let Some(asked) = asked else { return Ok(None) };
    let now = Instant::now();
    let deadline = ex.started + asked;
    let left = deadline.saturating_duration_since(now).min(timeout.unwrap_or(Duration::MAX));
    headers.insert(grpc::GRPC_TIMEOUT, grpc::format_timeout(left));
    Ok(Some(deadline))
}

/// Notes what became of the call, for the access log.
pub(super) fn note(cx: &mut Context<'_>, trace: Trace) {
    if let Some(entry) = cx.pending.get().and_then(|finish| finish.entry.as_mut()) {
        entry.endpoint = trace.endpoint;
        entry.attempts = trace.attempts;
        entry.upstream_time = trace.upstream_time;
    }
}

/// The refusal for a call that failed.
pub(super) fn refusal_of(failure: &Failure) -> Box<Refusal> {
    let refusal = Refusal::new(failure.reason, failure.detail);
    if failure.reason == Reason::Overloaded { refusal.header(http::header::RETRY_AFTER, HeaderValue::from_static("1")) } else { refusal }
}

/// Makes of an upstream's response, whose head is in `answer`, what the client gets.
pub(super) fn answer_with(answer: &mut Answer, body: UpstreamBody, cx: &Context<'_>, deadline: Option<Instant>) {
    clean_head(&mut answer.parts, cx);
    answer.source =
        if cx.grpc || cx.grpc_web.is_some() { grpc_source(&mut answer.parts, body, cx.grpc_web, deadline) } else { Source::Upstream(body) };
}

/// Framing and hop-by-hop fields are this hop's to make.
fn clean_head(parts: &mut response::Parts, cx: &Context<'_>) {
    let seen = Survey::of(&parts.headers);
    if !cx.te_trailers && seen.trailer() {
        parts.headers.remove(TRAILER);
    }
    remove_hop_by_hop(&mut parts.headers, seen);
    if parts.status == StatusCode::NO_CONTENT && seen.content_length() {
        parts.headers.remove(CONTENT_LENGTH);
    }
    parts.version = Version::HTTP_11;
    if !parts.extensions.is_empty() {
        // Only the reason phrase may cross; hyper keeps upgrades and callbacks in there, too.
        let phrase = parts.extensions.remove::<hyper::ext::ReasonPhrase>();
        parts.extensions.clear();
        if let Some(phrase) = phrase {
            parts.extensions.insert(phrase);
        }
    }
}

fn grpc_source(parts: &mut response::Parts, body: UpstreamBody, web: Option<grpc_web::Call>, deadline: Option<Instant>) -> Source {
    let body = body.map_err(|error| Cut::by_upstream(&error));
    // Boxed once, whatever is put around it.
    let adapted: Adapted = match (grpc::EnsureStatus::wrap(parts.status, &parts.headers, body), deadline) {
        (Ok(ensured), None) => Box::pin(ensured),
        (Ok(ensured), Some(deadline)) => Box::pin(DeadlineBody::new(ensured, deadline)),
        (Err(body), None) => Box::pin(body),
        (Err(body), Some(deadline)) => Box::pin(DeadlineBody::new(body, deadline)),
    };
    match web {
        Some(call) if call.prepare_response(&mut parts.headers) => Source::Web(adapted, call),
        Some(_) | None => Source::Adapted(adapted),
    }
}

/// Calls the parts of an aggregate over the real upstreams.
struct Calls<'a> {
    route: &'a Route,
    target: &'a AggregateTarget,
    host: Option<HeaderValue>,
    worker: usize,
    hash: Vec<Option<u64>>,
}

/// The body of a part's answer.
pub struct PartBody(UpstreamBody);

/// Why a part's body ended early.
#[derive(Debug)]
pub struct PartCut;

impl From<PartCut> for CallFailure {
    fn from(_: PartCut) -> Self {
        Self::Reset
    }
}

impl http_body::Body for PartBody {
    type Data = Bytes;
    type Error = PartCut;
    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, PartCut>>> {
        std::pin::Pin::new(&mut self.0).poll_frame(cx).map_err(|_| PartCut)
    }
}

impl Caller for Calls<'_> {
    type Body = PartBody;

    async fn call(&self, upstream: usize, request: PartRequest, deadline: Option<Instant>) -> Result<PartResponse<PartBody>, CallFailure> {
        let Some(handle) = self.target.upstreams.get(upstream) else { return Err(CallFailure::NoEndpoint) };
        let hash = self.hash.get(upstream).copied().flatten();
        let mut call = Call {
            worker: self.worker,
            begun: Instant::now(),
            method: &request.method,
            target: &request.target,
            idempotent: idempotent(&request.method, &request.headers),
            headers: &request.headers,
            host: self.host.as_ref(),
            body: if request.body.is_empty() { CallBody::Empty } else { CallBody::Full(request.body) },
            retry: self.route.retry.as_ref().filter(|policy: &&RetryPolicy| policy.attempts > 0),
            hash: &move || hash,
            limit: Limit::Until(deadline),
            needs_h2: false,
            added: None,
            as_lines: false,
        };
        let (mut parts, ()) = Response::new(()).into_parts();
        let mut head = ReplyHead { parts: &mut parts, lines: &mut None };
        let body = send(&handle.upstream, &handle.metrics, &mut call, &mut Trace::default(), &mut head)
            .await
            .map_err(|failure| call_failure(failure.reason))?;
        Ok(PartResponse { status: parts.status, headers: parts.headers, body: PartBody(body) })
    }
}

fn call_failure(reason: Reason) -> CallFailure {
    match reason {
        Reason::UpstreamTimeout | Reason::UpstreamConnectTimeout | Reason::RequestTimeout | Reason::IdleTimeout => CallFailure::Timeout,
        Reason::UpstreamConnectFailed | Reason::UpstreamTlsFailed => CallFailure::ConnectFailed,
        Reason::NoHealthyEndpoint => CallFailure::NoEndpoint,
        Reason::Overloaded => CallFailure::Overloaded,
        Reason::UpstreamProtocolError => CallFailure::ProtocolError,
        Reason::UpstreamReset
        | Reason::UpstreamTruncated
        | Reason::BadRequest
        | Reason::Unauthenticated
        | Reason::Forbidden
        | Reason::IpDenied
        | Reason::OriginDenied
        | Reason::NoRoute
        | Reason::MethodNotAllowed
        | Reason::BodyTooLarge
        | Reason::UriTooLong
        | Reason::RateLimited
        | Reason::HeadersTooLarge
        | Reason::ClientClosed
        | Reason::Internal
        | Reason::AggregateFailed
        | Reason::AuthUnavailable => CallFailure::Reset,
    }
}
