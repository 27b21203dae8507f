//! WebSocket tunnels: the handshake through the route's chain, then raw bytes until one side ends it.

use std::any::Any;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::coop;

use crate::error::{Reason, Refusal};
use crate::gateway::answer::{Finish, Source};
use crate::gateway::handle::Context;
use crate::gateway::reply::Answer;
use crate::gateway::route::Route;
use crate::gateway::target::{Outgoing, UpstreamHandle, answer_with, note, refusal_of};
use crate::gateway::tunnel_side::{LINGER, Sides};
use crate::gateway::view::{RouteHandle, View};
use crate::http::Exchange;
use crate::http::headers::{Survey, remove_hop_by_hop};
use crate::http::upgrade::Upgrading;
use crate::reactor;
use crate::telemetry::access_log::Entry;
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
    hold: Arc<dyn Any + Send + Sync>,
}

/// What accounts for a tunnel. It outlives what its request was lent.
pub(super) struct Account {
    worker: usize,
    snapshot: Arc<View>,
    route: Option<RouteHandle>,
    started: Instant,
    method: http::Method,
    status: u16,
    entry: Option<Box<Entry>>,
}

/// Sends the handshake upstream, and puts the answer into `answer`.
///
/// # Errors
/// The refusal to answer with, when there is no response.
pub(super) async fn open(
    route: &Route,
    handle: &UpstreamHandle,
    ex: &mut Exchange,
    cx: &mut Context<'_>,
    outgoing: Outgoing<'_>,
    answer: &mut Answer,
) -> Result<(), Box<Refusal>> {
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
        Opened::Response(response) => {
            let (parts, body) = response.into_parts();
            answer.parts = parts;
            answer_with(answer, body, cx, None);
        }
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
                hold: Arc::clone(&cx.link.connection().hold),
            };
            *answer = Answer::new(parts, Source::Tunnel(Box::new(opening)));
        }
    }
    Ok(())
}

impl From<Finish<'_>> for Account {
    fn from(finish: Finish<'_>) -> Self {
        Self {
            worker: finish.worker,
            snapshot: Arc::clone(finish.snapshot),
            route: finish.route.map(Arc::clone),
            started: finish.started,
            method: finish.method,
            status: finish.status,
            entry: finish.entry,
        }
    }
}

impl Account {
    /// The tunnel has ended: its log line, and a request without a duration.
    fn ended(mut self, from_client: u64, from_upstream: u64, reason: Option<Reason>) {
        let metrics = self.route.as_ref().map_or(&self.snapshot.no_route, |route| &route.metrics);
        metrics.request(self.worker, &self.method, self.status, None);
        if let Some(reason) = reason {
            metrics.error(self.worker, reason);
        }
        self.snapshot.metrics.request_ended(self.worker);
        if let Some(mut entry) = self.entry.take() {
            entry.status = self.status;
            entry.reason = reason;
            entry.duration = Instant::now().saturating_duration_since(self.started);
            entry.bytes_in = from_client;
            entry.bytes_out = from_upstream;
            entry.complete = reason.is_none();
            self.snapshot.access_log.write(self.worker, &entry);
        }
    }
}

impl Opening {
    /// Starts the tunnel as a task of this worker; it accounts for its request when it ends.
    pub(super) fn start(self, account: Account) {
        reactor::spawn(Box::pin(async move {
            // The connection counts until all of the rest is done.
            let Self { client, upstream, attempt, idle_timeout, cut, hold: _hold } = self;
            let Ok(Some(client)) = tokio::time::timeout(SWITCH, client.switched()).await else {
                account.ended(0, 0, Some(Reason::ClientClosed));
                return;
            };
            let worker = account.worker;
            if let Some(route) = &account.route {
                route.metrics.tunnel_opened(worker);
            }
            let (sides, client, upstream) = Sides::of(client, upstream);
            let options = TunnelOptions { idle_timeout, drain: drained(cut), websocket: true, meter: |way, bytes| sides.moved(way, bytes) };
            let end = sides.until_silent(LINGER, run(client, upstream, options)).await;
            drop(attempt);
            if let Some(route) = &account.route {
                route.metrics.tunnel_closed(worker);
            }
            let reason = match end.cause {
                Cause::Closed | Cause::Drained => None,
                Cause::Idle => Some(Reason::IdleTimeout),
                Cause::ClientReset => Some(Reason::ClientClosed),
                Cause::UpstreamReset => Some(Reason::UpstreamTruncated),
            };
            account.ended(end.from_client, end.from_upstream, reason);
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
