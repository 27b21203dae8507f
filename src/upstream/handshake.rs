//! WebSocket handshakes with upstreams, each on a connection of its own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Method, Response, StatusCode};

use crate::health::breaker::Verdict;
use crate::http::body::RequestBody;
use crate::http::h1::ResponseHead;
use crate::http::text::Text;
use crate::http::websocket::{Answer, WebSocket};
use crate::telemetry::metrics::UpstreamMetrics;
use crate::upstream::body::{Source, UpstreamBody};
use crate::upstream::call::{Call, Over, Trace};
use crate::upstream::client::{DROPPED, NO_ROOM, failed_status, may_retry, pick, wait_for};
use crate::upstream::failure::{Failure, wrong};
use crate::upstream::h1::{H1, Head, TunnelIo};
use crate::upstream::restart::Comeback;
use crate::upstream::retry::Retriable;
use crate::upstream::{Attempt, Endpoint, Upstream};

/// What an upstream answered to a WebSocket handshake.
pub enum Opened {
    /// 101: bytes flow.
    Tunnel(Response<TunnelIo>, Attempt),
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
        upstream.budget().first_attempt(call.worker, Instant::now());
    }
    if upstream.admit(Instant::now(), crate::random::next()) == Verdict::Drop {
        metrics.breaker_dropped(call.worker);
        return Err(DROPPED);
    }
    loop {
        let (mut attempt, picked) = pick(upstream, &call, &tried).await?;
        let endpoint = Arc::clone(attempt.endpoint());
        trace.attempts += 1;
        trace.endpoint = Some(Text::from(&endpoint.id));
        let mut outcome = handshake(&endpoint, &mut call, websocket, upstream.connect_timeout).await;
        if let Err(failure) = &outcome
            && let Some(mut comeback) = Comeback::of(upstream, &endpoint, &call, failure)
        {
            while Box::pin(comeback.wait(&call, None)).await {
                outcome = Box::pin(handshake(&endpoint, &mut call, websocket, upstream.connect_timeout)).await;
                if !comeback.goes_on(outcome.as_ref().err()) {
                    break;
                }
            }
        }
        let now = Instant::now();
        let elapsed = now.saturating_duration_since(picked);
        trace.upstream_time = Some(elapsed);
        let failure = match outcome {
            Ok(response) => {
                endpoint.pool.metrics().attempt_status(call.worker, response.status().as_u16());
                metrics.attempt_duration(call.worker, elapsed);
                let (head, connection) = response.into_parts();
                match failed_status(&head) {
                    Some(kind) => attempt.failed(now, elapsed, kind),
                    None => attempt.succeeded(now, elapsed),
                }
                return Ok(match head.status {
                    StatusCode::SWITCHING_PROTOCOLS => {
                        attempt.settle();
                        Opened::Tunnel(Response::from_parts(head, connection.into_tunnel()), attempt)
                    }
                    _ => Opened::Response(Response::from_parts(head, UpstreamBody::wrap(Source::H1(connection), None, attempt, now))),
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
) -> Result<Response<H1>, Failure> {
    let addresses = endpoint.state.addresses();
    let give_up = Instant::now() + timeout;
    let mut connection = loop {
        match call.limit.run(None, endpoint.pool.connect_for_tunnel(call.worker, &addresses, timeout)).await {
            Err(over) => return Err(over.failure()),
            Ok(Some(Err(error))) => return Err(Failure::of_connect(&error)),
            Ok(Some(Ok(connection))) => {
                endpoint.state.reach.took();
                break connection;
            }
            Ok(None) if Instant::now() < give_up => {}
            Ok(None) => return Err(NO_ROOM),
        }
        wait_for(endpoint.pool.wait_for_place(), call, give_up).await?;
    };
    let mut headers = call.headers.clone();
    websocket.prepare_request(&mut headers);
    let host = call.host.unwrap_or(&endpoint.authority);
    let head = Head { method: &Method::GET, target: call.target.as_str(), host, headers: &headers, added: None };
    connection.start(&head, RequestBody::Empty, false).map_err(|error| Failure::of_h1(&error))?;
    let head = match call.limit.run(None, std::future::poll_fn(|cx| connection.poll_head(cx))).await {
        Err(over) => return Err(over.failure()),
        Ok(Err(error)) => return Err(Failure::of_h1(&error)),
        Ok(Ok(head)) => head,
    };
    match websocket.check_response(head.status, &head.headers) {
        Answer::Tunnel | Answer::Ordinary => Ok(response(head, connection)),
        Answer::Invalid(why) => {
            tracing::debug!(endpoint = &*endpoint.id, why, "bad answer to a WebSocket handshake");
            let detail = "The upstream's answer to the WebSocket handshake is wrong.";
            Err(wrong(detail))
        }
    }
}

/// A response made of what was read, but for what are lines.
fn response<B>(head: ResponseHead, body: B) -> Response<B> {
    let mut response = Response::new(body);
    *response.status_mut() = head.status;
    *response.version_mut() = head.version;
    *response.headers_mut() = head.headers;
    if let Some(reason) = head.reason
        && let Ok(reason) = hyper::ext::ReasonPhrase::try_from(reason)
    {
        response.extensions_mut().insert(reason);
    }
    response
}
