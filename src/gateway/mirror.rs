//! Sending copies of requests to a mirror: beside the request, never in its way.
//!
//! A copy has a task of its own from the start. It shares nothing with the request but the bytes of the body, which it gets when the
//! client has sent the last of them, and it ends with the request ([`CopyTime`]): at the latest at the route's `timeout`, whatever the
//! shadow does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Response};
use http_body_util::BodyExt;
use tokio::sync::oneshot;

use crate::config::{self, At, Problems, resolve};
use crate::gateway::handle::Context;
use crate::gateway::route::Route;
use crate::gateway::target::{UpstreamHandle, hash_of};
use crate::http::body::{BodyFailure, BoxedBody, RequestBody};
use crate::http::copied::Copied;
use crate::http::{Exchange, grpc_web};
use crate::reactor;
use crate::targets::mirror::{Mirror, Place, Room};
use crate::telemetry::metrics::{Mirrored, RouteMetrics};
use crate::upstream::call::{Call, CallBody, Limit, Trace};
use crate::upstream::client::{ReplyHead, send};
use crate::upstream::copy::CopyTime;
use crate::upstream::failure::Failure;
use crate::upstream::retry::idempotent;

/// Longest answer of a shadow that is read so that its connection can be kept; a longer one closes it.
const DRAIN: usize = 64 << 10;
/// How long a copy may take on a route without any timeout.
const LONGEST: Duration = Duration::from_secs(30);

/// `mirror` with its upstream.
pub struct MirrorTarget {
    /// What is copied.
    pub mirror: Mirror,
    /// Where copies go.
    pub handle: UpstreamHandle,
}

impl MirrorTarget {
    /// Compiles what is written at `at` for `route`. `None` when it is wrong, or goes to an upstream that is; `None` inside when there is
    /// nothing to copy.
    pub fn compile(
        written: &config::route::Mirror,
        at: &At,
        route: &resolve::Route,
        upstreams: &BTreeMap<String, UpstreamHandle>,
        room: &Arc<Room>,
        problems: &mut Problems,
    ) -> Option<Option<Self>> {
        let mirror = Mirror::compile(written, at, &route.at.key("mirror"), &route.target, room, problems)?;
        let Some(mirror) = mirror else { return Some(None) };
        // An unknown name was reported by `resolve`.
        let handle = upstreams.get(&written.upstream)?.clone();
        Some(Some(Self { mirror, handle }))
    }
}

/// A copy about to be sent.
struct Copy {
    worker: usize,
    handle: UpstreamHandle,
    method: Method,
    target: PathAndQuery,
    headers: HeaderMap,
    host: Option<HeaderValue>,
    body: Option<oneshot::Receiver<Copied>>,
    grpc_web: Option<grpc_web::Call>,
    hash: Option<u64>,
    needs_h2: bool,
    original: oneshot::Sender<()>,
    /// Longest time from the end of the client's body.
    time: Duration,
    linger: Duration,
    _place: Place,
}

impl Route {
    /// Copies a request to the route's mirror, if it is chosen. `headers` and `target` are what goes upstream.
    pub(super) fn copy(&self, ex: &Exchange, cx: &mut Context<'_>, target: &PathAndQuery, headers: &HeaderMap, host: Option<&HeaderValue>) {
        let Some(mirror) = self.mirror.as_ref().filter(|mirror| mirror.mirror.chooses(crate::random::next())) else { return };
        let Some(place) = mirror.mirror.enter(ex.worker) else {
            return self.metrics.mirrored(ex.worker, Mirrored::Dropped);
        };
        let body = match &cx.body {
            None => None,
            Some(body) => match body.copy() {
                Some(copied) => Some(copied),
                None => return self.metrics.mirrored(ex.worker, Mirrored::Skipped),
            },
        };
        let Some(finish) = cx.pending.get() else { return };
        let (original, held) = oneshot::channel();
        finish.original = Some(held);
        let copy = Copy {
            worker: ex.worker,
            handle: mirror.handle.clone(),
            method: ex.method.clone(),
            target: target.clone(),
            headers: headers.clone(),
            host: host.cloned(),
            body,
            grpc_web: cx.grpc_web,
            hash: hash_of(&mirror.handle.upstream, ex, headers),
            needs_h2: cx.grpc || cx.grpc_web.is_some(),
            original,
            time: self.timeout.or(self.idle_timeout).unwrap_or(LONGEST),
            linger: mirror.mirror.linger(),
            _place: place,
        };
        reactor::spawn(Box::pin(account(copy, Arc::clone(&self.metrics))));
    }
}

async fn account(copy: Copy, metrics: Arc<RouteMetrics>) {
    let worker = copy.worker;
    metrics.mirrored(worker, copy.run().await);
}

impl Copy {
    async fn run(mut self) -> Mirrored {
        let body = match self.body {
            None => CallBody::Empty,
            Some(body) => {
                let copied = tokio::select! {
                    biased;
                    copied = body => copied.ok(),
                    () = self.original.closed() => None,
                };
                match copied {
                    Some(copied) => call_body(copied, self.grpc_web),
                    // It was too long, or not complete when the request was over.
                    None => return Mirrored::Skipped,
                }
            }
        };
        let time = CopyTime::new(self.original, Instant::now() + self.time, self.linger);
        let mut call = Call {
            worker: self.worker,
            begun: Instant::now(),
            method: &self.method,
            target: &self.target,
            idempotent: idempotent(&self.method, &self.headers),
            headers: &self.headers,
            host: self.host.as_ref(),
            body,
            retry: None,
            hash: &move || self.hash,
            limit: Limit::Copy(&time),
            needs_h2: self.needs_h2,
            added: None,
            as_lines: false,
        };
        let (mut parts, ()) = Response::new(()).into_parts();
        let mut head = ReplyHead { parts: &mut parts, lines: &mut None };
        let sent = send(&self.handle.upstream, &self.handle.metrics, &mut call, &mut Trace::default(), &mut head).await;
        let mut answer = match sent {
            Ok(body) => body,
            Err(_) if time.was_sent() => return Mirrored::Sent,
            Err(failure) if failure == Failure::ANSWERED => return Mirrored::Late,
            Err(failure) => {
                tracing::debug!(upstream = &*self.handle.upstream.name, reason = failure.reason.as_str(), "a mirrored request failed");
                return Mirrored::Failed;
            }
        };
        let drain = async {
            let mut left = DRAIN;
            while let Some(Ok(frame)) = answer.frame().await {
                match left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) {
                    Some(rest) => left = rest,
                    None => return,
                }
            }
        };
        // Whether it ends in time makes no difference: nobody reads it.
        let _ = time.stay(drain).await;
        Mirrored::Sent
    }
}

fn call_body(copied: Copied, grpc_web: Option<grpc_web::Call>) -> CallBody {
    let Some(call) = grpc_web else {
        return match copied {
            Copied { bytes, trailers: None } if bytes.is_empty() => CallBody::Empty,
            Copied { bytes, trailers: None } => CallBody::Full(bytes),
            Copied { trailers: Some(_), .. } => CallBody::once(BoxedBody(Box::pin(copied))),
        };
    };
    let adapted = grpc_web::RequestBody::new(call, RequestBody::Full(copied.bytes)).map_err(|error| match error {
        grpc_web::Error::Body(failure) => failure,
        grpc_web::Error::Base64 => BodyFailure::Unreadable,
    });
    CallBody::once(BoxedBody(Box::pin(adapted)))
}
