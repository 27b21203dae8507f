//! WebSocket tunnels: the handshake through the route's chain, then raw bytes until one side ends it.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::coop;

use crate::error::{Reason, Refusal};
use crate::gateway::answer::{Finish, Source};
use crate::gateway::handle::Context;
use crate::gateway::reply::Answer;
use crate::gateway::route::Route;
use crate::gateway::target::{Outgoing, UpstreamHandle, answer_of, note, refusal_of};
use crate::gateway::tunnel_side::{LINGER, Sides};
use crate::http::Exchange;
use crate::http::headers::{Survey, remove_hop_by_hop};
use crate::http::upgrade::Upgrading;
use crate::reactor;
use crate::upstream::Attempt;
use crate::upstream::call::{Call, CallBody, Limit, Trace};
use crate::upstream::h1::TunnelIo;
use crate::upstream::handshake::{Opened, open_tunnel};
use crate::upstream::tunnel::{Cause, TunnelOptions, run};

/// Longest wait for the client's side to switch: it does once the 101 is written.
const SWITCH: Duration = Duration::from_secs(10);

/// A tunnel that begins when the 101 has gone out.
pub struct Opening {
    client: Upgrading,
    upstream: TunnelIo,
    attempt: Attempt,
    idle_timeout: Option<Duration>,
    cut: watch::Receiver<bool>,
    /// Counts the client's connection for as long as the tunnel uses it.
    hold: Option<std::sync::Arc<dyn std::any::Any + Send + Sync>>,
}

/// Sends the handshake upstream.
///
/// # Errors
/// The refusal to answer with, when there is no response.
pub(super) async fn open(
    route: &Route,
    handle: &UpstreamHandle,
    ex: &mut Exchange,
    cx: &mut Context<'_>,
    outgoing: Outgoing,
) -> Result<Answer, Box<Refusal>> {
    let Some((websocket, client)) = cx.websocket.take() else {
        return Err(Refusal::new(Reason::Internal, "There is no handshake."));
    };
    let mut trace = Trace { wanted: cx.snapshot.access_log.enabled(), ..Trace::default() };
    let call = Call {
        worker: ex.worker,
        begun: Instant::now(),
        method: &http::Method::GET,
        target: outgoing.target.as_ref().unwrap_or(&ex.target),
        headers: outgoing.headers,
        host: route.host(ex),
        body: CallBody::Empty,
        retry: route.retry.as_ref(),
        idempotent: false,
        hash: &|| None,
        limit: Limit::Clock(cx.link.clock()),
        needs_h2: false,
        added: None,
        as_lines: false,
    };
    let opened = open_tunnel(&handle.upstream, &handle.metrics, call, &websocket, &mut trace).await;
    note(cx, trace);
    match opened.map_err(|failure| refusal_of(&failure))? {
        Opened::Response(response) => Ok(answer_of(response, cx, None)),
        Opened::Tunnel(response, attempt) => {
            let (mut parts, upstream) = response.into_parts();
            parts.extensions.clear();
            let survey = Survey::of(&parts.headers);
            remove_hop_by_hop(&mut parts.headers, survey);
            parts.version = http::Version::HTTP_11;
            websocket.prepare_response(&mut parts.status, &mut parts.headers);
            let opening = Opening {
                client,
                upstream,
                attempt,
                idle_timeout: route.idle_timeout,
                cut: cx.ending.cut.clone(),
                hold: cx.link.http1().map(|state| state.hold.clone()),
            };
            Ok(Answer::new(parts, Source::Tunnel(Box::new(opening))))
        }
    }
}

impl Opening {
    /// Starts the tunnel as a task of this worker; it accounts for its request when it ends.
    pub(super) fn start(self, finish: Box<Finish>) {
        reactor::spawn(Box::pin(async move {
            let Self { client, upstream, attempt, idle_timeout, cut, hold } = self;
            let Ok(Some(client)) = tokio::time::timeout(SWITCH, client.switched()).await else {
                finish.tunnel_ended(0, 0, Some(Reason::ClientClosed));
                return;
            };
            let route = finish.route.clone();
            let worker = finish.worker;
            if let Some(route) = &route {
                route.metrics.tunnel_opened(worker);
            }
            let (sides, client, upstream) = Sides::of(client, upstream);
            let options = TunnelOptions { idle_timeout, drain: drained(cut), websocket: true, meter: |way, bytes| sides.moved(way, bytes) };
            let end = sides.until_silent(LINGER, run(client, upstream, options)).await;
            drop(attempt);
            drop(hold);
            if let Some(route) = &route {
                route.metrics.tunnel_closed(worker);
            }
            let reason = match end.cause {
                Cause::Closed | Cause::Drained => None,
                Cause::Idle => Some(Reason::IdleTimeout),
                Cause::ClientReset => Some(Reason::ClientClosed),
                Cause::UpstreamReset => Some(Reason::UpstreamTruncated),
            };
            finish.tunnel_ended(end.from_client, end.from_upstream, reason);
        }));
    }
}

/// Waits until tunnels are cut. To be polled by one task only, and cheap to poll while there is no news: a tunnel does it at every byte.
async fn drained(mut cut: watch::Receiver<bool>) {
    let mut probe = cut.clone();
    probe.mark_unchanged();
    // An error means that the listener is gone: the tunnel ends with it.
    let mut waiting = pin!(cut.wait_for(|cut| *cut));
    let mut asked = false;
    poll_fn(|cx| {
        if asked && probe.has_changed().is_ok_and(|changed| !changed) {
            return Poll::Pending;
        }
        let cut = waiting.as_mut().poll(cx).map(drop);
        // A task whose turn is over is woken for another one, but nobody has heard that it waits.
        asked = coop::has_budget_remaining();
        cut
    })
    .await;
}
