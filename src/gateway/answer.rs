//! The response on its way to the client, and the one place where a request ends: its log line and its metrics.

use std::cell::Cell;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Version};
use http_body::{Body, Frame, SizeHint};

use crate::error::Reason;
use crate::gateway::view::{RouteHandle, View};
use crate::http::body::ClientBody;
use crate::http::clock::Phase;
use crate::http::connection::Link;
use crate::http::grpc_web;
use crate::telemetry::access_log::Entry;
use crate::upstream::body::{BodyError, UpstreamBody};
use crate::upstream::copy::Original;

/// Pieces below this are copied where they may have to wait.
const SMALL: usize = 2 << 10;

/// Why a response body was cut; hyper closes the connection over it, or resets the stream with the code found here.
#[derive(Debug)]
pub struct Cut(Option<h2::Error>);

impl Cut {
    /// What an upstream's error means to the client: a reset passes on with its code.
    pub fn by_upstream(error: &BodyError) -> Self {
        let mut cause = std::error::Error::source(error);
        while let Some(error) = cause {
            if let Some(reason) = error.downcast_ref::<h2::Error>().filter(|error| error.is_reset()).and_then(h2::Error::reason) {
                return Self(Some(reason.into()));
            }
            cause = error.source();
        }
        Self(None)
    }
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the response was cut")
    }
}

impl std::error::Error for Cut {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.as_ref().map(|error| error as _)
    }
}

/// A body behind a pointer, for the rare adapters (gRPC, gRPC-Web).
pub type Adapted = Pin<Box<dyn Body<Data = Bytes, Error = Cut> + Send>>;

/// Where a response's bytes come from.
pub enum Source {
    /// None.
    Empty,
    /// Memory.
    Full(Bytes),
    /// An upstream, as they come.
    Upstream(UpstreamBody),
    /// An upstream, through an adapter.
    Adapted(Adapted),
    /// The same for a gRPC-Web client, who gets the trailers in the body.
    Web(Adapted, grpc_web::Call),
    /// None: the connection becomes a tunnel once the head is out.
    Tunnel(Box<crate::gateway::tunnel::Opening>),
}

impl Source {
    /// Whether nothing comes any more.
    pub(super) fn ended(&self) -> bool {
        match self {
            Self::Empty | Self::Tunnel(_) => true,
            Self::Full(bytes) => bytes.is_empty(),
            Self::Upstream(body) => body.is_end_stream(),
            Self::Adapted(body) | Self::Web(body, _) => body.is_end_stream(),
        }
    }
}

/// A response body that knows what to do when it ends.
pub struct ResponseBody<'a> {
    source: Source,
    finish: Option<Box<Finish<'a>>>,
    bytes: u64,
    complete: bool,
    /// The source was cut; told to hyper only when it has flushed what came before.
    cutting: Option<Cut>,
}

impl fmt::Debug for ResponseBody<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl<'a> ResponseBody<'a> {
    /// A body that is accounted for by `finish` when it ends. `bodiless`: the client gets no body (HEAD, 204, 304).
    pub fn new(source: Source, finish: Box<Finish<'a>>, bodiless: bool) -> Self {
        let source = match source {
            Source::Tunnel(opening) => {
                finish.link.clock().enter(Phase::Tunnel, Instant::now());
                opening.start((*finish).into());
                return Self { source: Source::Empty, finish: None, bytes: 0, complete: true, cutting: None };
            }
            // Whatever the upstream sends all the same, the client does not wait for it.
            _ if bodiless => Source::Empty,
            other => other,
        };
        let complete = bodiless || matches!(source, Source::Empty);
        Self { source, finish: Some(finish), bytes: 0, complete, cutting: None }
    }

    /// A body that nobody accounts for.
    pub fn unaccounted(bytes: Bytes) -> Self {
        Self { source: Source::Full(bytes), finish: None, bytes: 0, complete: true, cutting: None }
    }

    /// The field that the request id goes in.
    pub fn id_name(&self) -> Option<&HeaderName> {
        self.finish.as_ref()?.snapshot.request_id.as_ref()
    }

    /// Sends on what the client sends of its body meanwhile: for when the client takes nothing of this one.
    pub fn poll_upload(&mut self, cx: &mut Context<'_>) {
        if let Source::Upstream(body) = &mut self.source {
            body.poll_upload(cx);
        }
    }

    fn end(&mut self, cut: Option<Reason>) {
        if let Some(mut finish) = self.finish.take() {
            finish.run(self.bytes, self.complete, cut);
        }
    }
}

impl Body for ResponseBody<'_> {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let this = self.get_mut();
        if let Some(cut) = this.cutting.take() {
            return Poll::Ready(Some(Err(cut)));
        }
        let frame = match &mut this.source {
            Source::Empty | Source::Tunnel(_) => None,
            Source::Full(bytes) if bytes.is_empty() => None,
            Source::Full(bytes) => Some(Ok(Frame::data(std::mem::take(bytes)))),
            Source::Upstream(body) => {
                std::task::ready!(Pin::new(body).poll_frame(cx)).map(|frame| frame.map_err(|error| Cut::by_upstream(&error)))
            }
            Source::Adapted(body) | Source::Web(body, _) => std::task::ready!(body.as_mut().poll_frame(cx)),
        };
        match frame {
            None => {
                this.complete = true;
                this.end(None);
                Poll::Ready(None)
            }
            Some(Err(cut)) => {
                this.end(Some(Reason::UpstreamTruncated));
                // An error makes hyper drop what it has buffered, and that may be the head.
                this.cutting = Some(cut);
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Some(Ok(mut frame)) => {
                if let (Some(trailers), Some(finish)) = (frame.trailers_mut(), &mut this.finish) {
                    finish.trailers(trailers);
                }
                if let Source::Web(_, call) = &this.source {
                    frame = call.response_frame(frame);
                }
                if let Some(data) = frame.data_ref() {
                    this.bytes += data.len() as u64;
                    if let Some(Link::Http2(clock, _)) = this.finish.as_ref().map(|finish| finish.link) {
                        // An HTTP/2 stream has no socket of its own that would tell its clock.
                        clock.moved(data.len());
                        if data.len() < SMALL
                            && let Some(data) = frame.data_mut()
                        {
                            // Its bytes may wait long, and a slice would keep all of the block that it was read into.
                            *data = Bytes::copy_from_slice(data);
                        }
                    }
                }
                if this.source.ended() {
                    // hyper does not ask again once it knows that this was the last frame.
                    this.complete = true;
                    this.end(None);
                }
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.cutting.is_none() && self.source.ended()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Empty | Source::Tunnel(_) => SizeHint::with_exact(0),
            Source::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Source::Upstream(body) => body.size_hint(),
            Source::Adapted(body) => body.size_hint(),
            // Unknown: trailers add to it.
            Source::Web(..) => SizeHint::new(),
        }
    }
}

impl Drop for ResponseBody<'_> {
    fn drop(&mut self) {
        // An upstream body that has ended without hyper asking for its end is complete all the same.
        self.complete |= self.source.ended() && !matches!(&self.source, Source::Upstream(body) if body.cut());
        self.end(None);
    }
}

/// What is done once when a request ends.
pub struct Finish<'a> {
    /// The worker it ran on.
    pub worker: usize,
    /// The snapshot it ran on.
    pub snapshot: &'a Arc<View>,
    /// Its route.
    pub route: Option<&'a RouteHandle>,
    /// When its head was complete.
    pub started: Instant,
    /// When all of the answer was there, if that was before its first byte was sent.
    pub whole_at: Option<Instant>,
    /// Protocol version of the request.
    pub version: Version,
    /// Method, for the metrics.
    pub method: http::Method,
    /// Status sent.
    pub status: u16,
    /// Reason of a gateway-made answer.
    pub reason: Option<Reason>,
    /// What the answer goes back on.
    pub link: &'a Link,
    /// Its request body.
    pub body: Option<Arc<ClientBody>>,
    /// The log line, but for what is known only at the end. `None` if no log is written.
    pub entry: Option<Box<Entry>>,
    /// Whether the request is a gRPC call; then with the status of its head, if it came there.
    pub grpc: bool,
    /// `grpc-status`, once it is known.
    pub grpc_status: Option<u8>,
    /// What its copy for a mirror waits for: that this is dropped.
    pub original: Option<Original>,
}

impl Finish<'_> {
    /// Response trailers pass without what must not, and tell the gRPC status.
    fn trailers(&mut self, trailers: &mut HeaderMap) {
        if self.grpc
            && let Some(status) = trailers.get("grpc-status")
        {
            self.grpc_status = status.to_str().ok().and_then(|status| status.parse().ok());
        }
        self.snapshot.protected.filter_trailers(trailers);
    }

    /// Done once, before it is dropped.
    fn run(&mut self, bytes: u64, complete: bool, cut: Option<Reason>) {
        // An answer that was there with its head is handed over at once: no other look at the clock is needed.
        let now = self.whole_at.filter(|_| complete).unwrap_or_else(Instant::now);
        let mut reason = self.reason;
        if !complete {
            // The clock cut it, the upstream did, or else the client is gone.
            let stalled = self.link.clock().stalled_now();
            reason = reason.or(cut).or(Some(if stalled { Reason::IdleTimeout } else { Reason::ClientClosed }));
        }
        let unread = self.body.as_ref().is_some_and(|body| !body.ended());
        if let Some(connection) = self.link.http1() {
            // An HTTP/1.0 body may end with the connection: only a reset shows that it was cut.
            connection.abort.store(!complete && self.version == Version::HTTP_10, Relaxed);
            if unread {
                connection.linger.store(true, Relaxed);
            }
            self.link.clock().enter(Phase::Idle, now);
        } else {
            self.link.clock().enter(Phase::Tunnel, now);
        }
        let metrics = self.route.map_or(&self.snapshot.no_route, |route| &route.metrics);
        let status = if complete || reason != Some(Reason::ClientClosed) { self.status } else { Reason::ClientClosed.status() };
        let duration = now.saturating_duration_since(self.started);
        metrics.request(self.worker, &self.method, status, Some(duration));
        if let Some(reason) = reason {
            metrics.error(self.worker, reason);
        }
        if self.grpc {
            if !complete && reason == Some(Reason::ClientClosed) {
                self.grpc_status = Some(Reason::ClientClosed.grpc_status());
            }
            if let Some(status) = self.grpc_status {
                metrics.grpc(self.worker, status);
            }
        }
        self.snapshot.metrics.request_ended(self.worker);
        if let Some(mut entry) = self.entry.take() {
            entry.status = status;
            entry.reason = reason;
            entry.duration = duration;
            entry.bytes_out = bytes;
            entry.bytes_in = self.body.as_ref().map_or(0, |body| body.bytes_read());
            entry.complete = complete;
            entry.grpc_status = self.grpc_status;
            self.snapshot.access_log.write(self.worker, &entry);
        }
    }
}

thread_local! {
    /// The request whose panic this thread is about to answer: what knew of it is gone by then.
    static PANICKED: Cell<Option<Panicked>> = const { Cell::new(None) };
}

/// What is left of a request that panicked.
#[derive(Default)]
pub struct Panicked {
    /// Its id, as it was logged; `None` without an access log.
    pub request_id: Option<HeaderValue>,
    /// Whether it was a gRPC call.
    pub grpc: bool,
}

impl Panicked {
    /// The request that has just panicked on this thread.
    pub fn take() -> Self {
        PANICKED.take().unwrap_or_default()
    }
}

/// A request that has no response yet. Dropped with it when the client leaves, it accounts for the request all the same.
#[must_use]
pub struct Pending<'a>(Option<Box<Finish<'a>>>);

impl<'a> Pending<'a> {
    /// Begins to account for a request.
    pub fn new(finish: Finish<'a>) -> Self {
        finish.snapshot.metrics.request_started(finish.worker);
        Self(Some(Box::new(finish)))
    }

    /// Hands over to the response.
    pub fn take(&mut self) -> Option<Box<Finish<'a>>> {
        self.0.take()
    }

    /// What is known so far.
    pub fn get(&mut self) -> Option<&mut Finish<'a>> {
        self.0.as_deref_mut()
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if let Some(mut finish) = self.0.take() {
            let reason = if std::thread::panicking() { Reason::Internal } else { Reason::ClientClosed };
            finish.status = reason.status();
            finish.reason = Some(reason);
            if reason == Reason::Internal {
                if finish.grpc {
                    (finish.status, finish.grpc_status) = (200, Some(reason.grpc_status()));
                }
                let id = finish.entry.as_ref().map(|entry| entry.request_id.as_bytes());
                let request_id = id.and_then(|id| HeaderValue::from_bytes(id).ok());
                PANICKED.set(Some(Panicked { request_id, grpc: finish.grpc }));
            }
            finish.run(0, reason == Reason::Internal, None);
        }
    }
}
