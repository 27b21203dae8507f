//! From a request head to a response: the checks that come before any route is known, the route's chain, and the way back.

use std::future::Future;
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::Instant;

use bytes::Bytes;
use http::header::{ALLOW, CONNECTION, ORIGIN, TRAILER};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, StatusCode, request, response};
use http_body::Body;

use crate::error::{Reason, Refusal};
use crate::gateway::answer::{Finish, Panicked, Pending, ResponseBody, Source};
use crate::gateway::check::check;
use crate::gateway::ending::Ending;
use crate::gateway::inbound::{Client, Inbound};
use crate::gateway::reply::{Answer, Answered};
use crate::gateway::route::Route;
use crate::gateway::snapshot::Snapshot;
use crate::gateway::view::{RouteHandle, View};
use crate::http::body::ClientBody;
use crate::http::client_addr::{client_address, unmap};
use crate::http::connection::Link;
use crate::http::headers::{Survey, effective_scheme, make_request_id, request_id};
use crate::http::incoming::Incoming;
use crate::http::text::Text;
use crate::http::upgrade::Upgrading;
use crate::http::websocket::WebSocket;
use crate::http::{Exchange, Host, Params, Scheme, grpc, grpc_web, problem};
use crate::middleware::cors::preflight_method;
use crate::router::{Outcome, Query};
use crate::telemetry::access_log::Entry;
use crate::telemetry::events;
use crate::telemetry::time::since_1970;

/// Methods that `Allow` names where CONNECT or TRACE was asked for.
pub(super) const ALL_METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");

/// What travels beside the [`Exchange`].
pub struct Context<'a> {
    /// The configuration.
    pub snapshot: &'a Arc<View>,
    /// What the answer goes back on.
    pub link: &'a Link,
    /// The client's body, until someone takes it.
    pub incoming: Option<Incoming>,
    /// The client's body, once someone reads it.
    pub body: Option<Arc<ClientBody>>,
    /// A WebSocket handshake.
    pub websocket: Option<(WebSocket, Upgrading)>,
    /// The byte stream behind the request, for one that asks for an upgrade.
    pub upgrading: Option<Upgrading>,
    /// Whether that handshake is an extended CONNECT.
    pub extended: bool,
    /// A gRPC-Web call.
    pub grpc_web: Option<grpc_web::Call>,
    /// A gRPC call.
    pub grpc: bool,
    /// Whether the peer is a trusted proxy.
    pub trusted: bool,
    /// Which special fields the request has.
    pub seen: Survey,
    /// `Trailer` of the request, to be sent on.
    pub trailer: Option<HeaderValue>,
    /// Whether the client takes trailers.
    pub te_trailers: bool,
    /// Whether the client waits for a 100 before it sends its body.
    pub expects_continue: bool,
    /// `Origin` of the request, for CORS.
    pub origin: Option<Text>,
    /// Which CORS fields the answer gets.
    pub cors: CorsFields,
    /// Accounts for the request.
    pub pending: Pending<'a>,
    /// What the connection's listener says of its end.
    pub ending: &'a Ending,
}

/// Which CORS fields an answer of a route with `cors` gets.
#[derive(Debug, Default)]
pub enum CorsFields {
    /// Those for its `Origin`.
    #[default]
    Ordinary,
    /// These: it answers a preflight.
    Preflight(HeaderMap),
    /// None: a denied address learns nothing about the route.
    Withheld,
}

/// Which rules a response gets.
enum Scope<'a> {
    /// None but the request id: the request was never understood.
    Bare,
    /// `headers` and `cors` of `defaults`: no route.
    Fallback,
    /// The route's.
    Route(&'a RouteHandle),
}

type Outcomes<'a> = (Result<(), Box<Refusal>>, Scope<'a>);

/// Answers a request, of which `head` is used up. A panic on the way costs this request only: a 500. The answer is put into `answered`, where
/// it stays: it is large, and every step on its way would move it.
pub async fn handle<'a>(inbound: Inbound<'a>, head: &mut request::Parts, body: Incoming, answered: &mut Option<Answered<'a>>) {
    let snapshot = inbound.snapshot;
    {
        // Pinned as it is made: it is large.
        let mut answering = pin!(answer(inbound, head, body, answered));
        std::future::poll_fn(|cx| std::panic::catch_unwind(AssertUnwindSafe(|| answering.as_mut().poll(cx))).unwrap_or(Poll::Ready(())))
            .await;
    }
    answered.get_or_insert_with(|| internal_error(snapshot));
}

/// The answer to bytes that are no request, of which there is nothing to route, to log or to count.
pub fn refuse_unread(snapshot: &Snapshot, refusal: &Refusal) -> (response::Parts, Bytes) {
    let id = make_request_id(unix_ms(Instant::now()));
    let (mut parts, bytes) = problem::response(refusal, &id, false);
    if let Some(name) = &snapshot.request_id {
        parts.headers.insert(name.clone(), id);
    }
    (parts, bytes)
}

fn internal_error(snapshot: &Snapshot) -> Answered<'static> {
    let request = Panicked::take();
    let id = request.request_id.unwrap_or_else(|| make_request_id(unix_ms(Instant::now())));
    events::request_panicked(&String::from_utf8_lossy(id.as_bytes()));
    let refusal = Refusal::new(Reason::Internal, "The gateway failed to handle this request.");
    let (mut parts, bytes) =
        if request.grpc { (grpc::refusal(&refusal).into_parts().0, Bytes::new()) } else { problem::response(&refusal, &id, false) };
    if let Some(name) = &snapshot.request_id {
        parts.headers.insert(name.clone(), id);
    }
    Answered::unaccounted(parts, bytes)
}

/// Milliseconds since 1970.
fn unix_ms(now: Instant) -> u64 {
    let unix = since_1970(now);
    unix.as_secs().saturating_mul(1000).saturating_add(u64::from(unix.subsec_millis()))
}

async fn answer<'a>(inbound: Inbound<'a>, head: &mut request::Parts, incoming: Incoming, answered: &mut Option<Answered<'a>>) {
    let now = Instant::now();
    let has_body = !incoming.is_end_stream();
    inbound.link.clock().request_started(now, has_body);
    let Inbound { client, snapshot, link, upgrading, survey } = inbound;
    let trusted = !snapshot.trusted.is_empty() && snapshot.trusted.contains(unmap(client.connection.peer.ip()));
    let mut ex = exchange(client, snapshot, head, now, trusted);
    let pending = Pending::new(finish(snapshot, link, &ex, head));
    let seen = survey.unwrap_or_else(|| Survey::of(&head.headers));
    let mut cx = Context {
        snapshot,
        link,
        incoming: has_body.then_some(incoming),
        body: None,
        websocket: None,
        upgrading,
        extended: false,
        grpc_web: None,
        grpc: false,
        trusted,
        seen,
        trailer: if seen.trailer() { head.headers.get(TRAILER).cloned() } else { None },
        te_trailers: false,
        expects_continue: seen.expect(),
        origin: None,
        cors: CorsFields::default(),
        pending,
        ending: &client.ending,
    };
    let mut answer = Answer::none();
    let (outcome, scope) = route(&mut ex, &mut cx, head, &mut answer).await;
    let status = complete(&mut ex, &mut cx, &mut answer, outcome, scope).await;
    let bodiless =
        ex.method == Method::HEAD || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED || status.is_informational();
    let Answer { parts, lines, id, source } = answer;
    *answered = Some(match cx.pending.take() {
        Some(finish) => Answered { parts, lines, id, body: ResponseBody::new(source, finish, bodiless) },
        None => Answered::unaccounted(parts, Bytes::new()),
    });
}

/// What is known of a request before anything is checked.
fn exchange(client: &Client, snapshot: &Snapshot, head: &request::Parts, now: Instant, trusted: bool) -> Exchange {
    let connection = client.connection.clone();
    let connection_scheme = if connection.tls { Scheme::Https } else { Scheme::Http };
    let target = head.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let id = match &snapshot.request_id {
        Some(name) => request_id(&head.headers, name, || unix_ms(now)),
        None => make_request_id(unix_ms(now)),
    };
    let client_ip: IpAddr =
        if trusted { client_address(connection.peer, &snapshot.trusted, &head.headers) } else { unmap(connection.peer.ip()) };
    Exchange {
        worker: client.worker,
        connection,
        started: now,
        method: head.method.clone(),
        version: head.version,
        target,
        host: Host::new(None, None, 0..0),
        scheme: effective_scheme(&head.headers, trusted, connection_scheme),
        client_ip,
        request_id: id,
        params: Params::default(),
        identity: None,
        rate_fields: None,
        auth_error: None,
        rate_limit: None,
    }
}

/// What accounts for the request from now on.
fn finish<'a>(snapshot: &'a Arc<View>, link: &'a Link, ex: &Exchange, head: &request::Parts) -> Finish<'a> {
    let entry = snapshot.access_log.enabled().then(|| Box::new(Entry::begin(ex, &head.headers, snapshot.secret_query.clone())));
    Finish {
        worker: ex.worker,
        snapshot,
        route: None,
        started: ex.started,
        whole_at: None,
        version: ex.version,
        method: ex.method.clone(),
        status: 0,
        reason: None,
        link,
        body: None,
        entry,
        grpc: false,
        grpc_status: None,
        original: None,
    }
}

/// Checks the head, finds the route, and takes the request through its chain.
async fn route<'a>(ex: &mut Exchange, cx: &mut Context<'a>, head: &mut request::Parts, answer: &mut Answer) -> Outcomes<'a> {
    if let Err(refusal) = check(ex, cx, head) {
        return (Err(refusal), Scope::Bare);
    }
    // HTTP/2 has no `Host` field.
    if let Some(entry) = cx.pending.get().and_then(|finish| finish.entry.as_mut())
        && entry.host.is_none()
    {
        entry.host = ex.host.authority.as_ref().map(Text::from);
    }
    if ex.method == Method::OPTIONS && head.uri.path() == "*" {
        *answer = Answer::no_content();
        answer.parts.headers.insert(ALLOW, ALL_METHODS);
        return (Ok(()), Scope::Bare);
    }
    let preflight = preflight_method(&ex.method, &head.headers).and_then(|asked| Method::from_bytes(asked.as_bytes()).ok());
    // Sent twice it is nobody's.
    if cx.seen.origin() {
        let mut lines = head.headers.get_all(ORIGIN).iter();
        cx.origin = match (lines.next(), lines.next()) {
            (Some(origin), None) => Some(Text::from(origin)),
            _ => None,
        };
    }
    // An extended CONNECT for a WebSocket is routed as the GET it stands for.
    let method = if cx.websocket.is_some() { Method::GET } else { ex.method.clone() };
    let found = find(ex, cx, &head.headers, &method, preflight.as_ref());
    let route = match found {
        Ok(route) => route,
        Err(refusal) => return (Err(refusal), Scope::Fallback),
    };
    if cx.websocket.is_some() {
        ex.method = method;
    }
    cx.link.clock().route_chosen(ex.started, route.timeout, route.idle_timeout, cx.snapshot.min_body_rate);
    if let Some(finish) = cx.pending.get() {
        finish.route = Some(route);
        if let Some(entry) = &mut finish.entry {
            entry.route = Some(Text::from(&route.name));
        }
    }
    let outcome = Route::run(route, ex, cx, &mut head.headers, answer).await;
    (outcome, Scope::Route(route))
}

/// The route of a request. A preflight is routed by the method it asks for, where that route has `cors`.
fn find<'a>(
    ex: &mut Exchange,
    cx: &Context<'a>,
    headers: &HeaderMap,
    method: &Method,
    preflight: Option<&Method>,
) -> Result<&'a RouteHandle, Box<Refusal>> {
    let snapshot = cx.snapshot;
    let (host, path, query) = (ex.host.name(), ex.target.path(), ex.target.query());
    let query = |method| Query { scheme: ex.scheme, host, path, query, method, headers };
    if let Some(asked) = preflight
        && let Outcome::Found { route, params } = snapshot.router.find(&query(asked))
        && let Some(found) = snapshot.routes.get(route).filter(|route| route.cors.is_some())
    {
        ex.params = params;
        return Ok(found);
    }
    match snapshot.router.find(&query(method)) {
        Outcome::Found { route, params } => {
            ex.params = params;
            snapshot.routes.get(route).ok_or_else(|| Refusal::new(Reason::Internal, "The route is gone."))
        }
        Outcome::MethodNotAllowed { allow } => {
            Err(Refusal::new(Reason::MethodNotAllowed, "No route takes this method on this path.").header(ALLOW, allow))
        }
        Outcome::NotFound => Err(Refusal::new(Reason::NoRoute, "No route matches this request.")),
    }
}

/// The way back: every response, whoever made it, gets the same fields, and what accounts for it is told. Returns its status.
async fn complete(
    ex: &mut Exchange,
    cx: &mut Context<'_>,
    answer: &mut Answer,
    outcome: Result<(), Box<Refusal>>,
    scope: Scope<'_>,
) -> StatusCode {
    let outcome = if cx.extended { outcome.and_then(|()| opens_or_fails(answer)) } else { outcome };
    let mut close = cx.ending.draining.load(Relaxed);
    let reason = outcome.as_ref().err().map(|refusal| refusal.reason);
    if let Err(refusal) = outcome {
        close |= refusal.close;
        *answer = refused(ex, cx, &refusal, ex.method == Method::HEAD);
    }
    match &scope {
        Scope::Bare => {}
        Scope::Fallback => cx.snapshot.fallback.finish_response(ex, cx.origin.as_ref().map(Text::as_bytes), answer.headers()),
        Scope::Route(route) => route.finish_response(ex, cx, answer),
    }
    if let Some(name) = &cx.snapshot.request_id {
        answer.set_id(name, std::mem::replace(&mut ex.request_id, HeaderValue::from_static("")));
    }
    if cx.link.http1().is_some() {
        close |= !matches!(answer.source, Source::Upstream(_) | Source::Adapted(_) | Source::Web(..)) && !body_is_dropped(cx).await;
        // The 101 of a tunnel needs its own `Connection` field.
        if close && !matches!(answer.source, Source::Tunnel(_)) {
            headers_close(&mut answer.parts.headers);
        }
    }
    cx.link.clock().response_started();
    let status = answer.parts.status;
    let body = cx.body.take();
    let Some(finish) = cx.pending.get() else { return status };
    finish.status = status.as_u16();
    finish.reason = reason;
    finish.body = body;
    if finish.grpc && finish.grpc_status.is_none() {
        finish.grpc_status = grpc::status_in(answer.headers()).and_then(|status| u8::try_from(status).ok());
    }
    if let Some(route) = &finish.route {
        if reason == Some(Reason::RateLimited) {
            route.metrics.rate_limited(ex.worker);
        }
        if let Some(error) = ex.auth_error {
            route.metrics.auth_failure(ex.worker, error);
        }
    }
    if let Some(entry) = &mut finish.entry {
        entry.user = ex.identity.as_ref().map(|identity| Text::from(&identity.user));
        entry.auth_error = ex.auth_error;
        entry.rate_limit = ex.rate_limit.take();
    }
    if let Some(call) = cx.grpc_web.filter(|_| answer.source.ended())
        && let Some(shown) = call.show_status(answer.headers())
    {
        answer.source = Source::Full(shown);
    }
    status
}

/// Any 2xx would open a tunnel for the client of an extended CONNECT (RFC 8441): one that nobody else opened.
fn opens_or_fails(answer: &Answer) -> Result<(), Box<Refusal>> {
    match &answer.source {
        Source::Tunnel(_) => Ok(()),
        _ if !answer.parts.status.is_success() => Ok(()),
        Source::Upstream(_) | Source::Adapted(_) | Source::Web(..) => {
            Err(Refusal::new(Reason::UpstreamProtocolError, "The upstream answered the WebSocket handshake without opening one."))
        }
        Source::Empty | Source::Full(_) => Err(Refusal::new(Reason::BadRequest, "This route opens no WebSockets.")),
    }
}

fn headers_close(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
}

/// The answer for a refusal, in the form the client understands.
fn refused(ex: &Exchange, cx: &Context<'_>, refusal: &Refusal, is_head: bool) -> Answer {
    if let Some(call) = cx.grpc_web {
        return Answer::new(call.refusal(refusal).into_parts().0, Source::Empty);
    }
    if cx.grpc {
        return Answer::new(grpc::refusal(refusal).into_parts().0, Source::Empty);
    }
    Answer::full(problem::response(refusal, &ex.request_id, is_head))
}

/// Whether the connection can go on after an answer that did not read the request body: only if the rest of it has arrived and
/// was dropped. A client that waits for a 100 must not be asked for its body now.
async fn body_is_dropped(cx: &mut Context<'_>) -> bool {
    let body = match (cx.body.take(), cx.incoming.take()) {
        (Some(body), _) => body,
        (None, Some(incoming)) => ClientBody::new(incoming, None, false, None, Arc::clone(cx.link.clock())),
        (None, None) => return true,
    };
    let dropped = body.ended() || (!cx.expects_continue && body.drop_arrived().await);
    if !dropped && let Some(state) = cx.link.http1() {
        state.linger.store(true, Relaxed);
    }
    cx.body = Some(body);
    dropped
}
