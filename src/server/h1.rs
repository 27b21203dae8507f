//! HTTP/1 clients: one request after another, each read, answered and written by the connection's own task.

mod outbox;
mod response;
mod wire;

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONNECTION, EXPECT, TE};
use http::{HeaderMap, Request, StatusCode, Uri, Version, request};
use http_body::Body;
use tokio::sync::oneshot;

use crate::error::{Reason, Refusal};
use crate::gateway::answer::ResponseBody;
use crate::gateway::handle::refuse_unread;
use crate::gateway::{Answered, Inbound, handle};
use crate::http::clock::Phase;
use crate::http::connection::{ConnectionState, Link};
use crate::http::h1::{BodyLength, Limits, ParseError, RequestHead, framing};
use crate::http::upgrade::{BoxedStream, Upgrading};
use crate::server::connection::Session;
use crate::server::h1::outbox::Outbox;
use crate::server::h1::response::{Asked, Ending, Head, begin, refuse};
use crate::server::h1::wire::{Heard, Wire};
use crate::server::io::ClientIo;
use crate::telemetry::metrics::ConnectionError;

/// The codec's own limits are the backstop behind ours, whose refusals have a log line.
const BACKSTOP: usize = 2;
/// Up to here a head that is too large is read to its end, so that the refusal has a log line.
const LEAST_HEAD: usize = 64 << 10;
/// How long the answer that opens a tunnel may take to leave.
const SWITCH: Duration = Duration::from_secs(10);
/// So much may wait to be written before more of a body is asked for.
const FULL: usize = 32 << 10;

/// One HTTP/1 connection.
pub(super) struct Http1<'a> {
    session: &'a Session,
    /// What answers go back on, and the state in it.
    link: &'a Link,
    state: &'a ConnectionState,
    wire: Wire,
    /// Set when a connection that waits for a request must close.
    closing: &'a AtomicBool,
    /// Set when the connection is no longer new: the client's leaving is looked for only then.
    settled: &'a AtomicBool,
}

/// How a connection ended.
pub(super) enum Served {
    /// With what was wrong with the client, if it was.
    End(Option<ConnectionError>),
    /// Its client speaks HTTP/2. Boxed, since every connection has room for this word.
    Http2(Box<ClientIo>),
}

/// Why there is no request.
enum NoHead {
    /// The preface of HTTP/2 stands there.
    Http2,
    /// The client has closed between two requests, or the connection is to be closed.
    End,
    /// It ended within a head.
    Cut,
    /// Bytes that are no head. `tls`: they look like the start of a TLS handshake.
    Bad { error: ParseError, tls: bool },
}

/// What is left to do when a request is over.
enum Next {
    /// Another request may come.
    Request,
    /// The answer said that the connection ends, or it must.
    Close,
    /// Nothing: the client is gone, or must see that the answer was cut.
    Drop,
}

impl<'a> Http1<'a> {
    /// Nothing was read from `io`. `sniffing`: its client may turn out to speak HTTP/2.
    pub(super) fn new(
        session: &'a Session,
        io: ClientIo,
        sniffing: bool,
        link: &'a Link,
        closing: &'a AtomicBool,
        settled: &'a AtomicBool,
    ) -> Self {
        Self { session, link, state: link.connection(), wire: Wire::new(io, sniffing), closing, settled }
    }

    /// Serves the connection to its end, or until its client turns out to speak HTTP/2.
    pub(super) async fn run(mut self) -> Served {
        // Put where it stays: it is large, and every step would move it.
        let mut head = None;
        loop {
            match self.head(&mut head).await {
                None => {}
                Some(NoHead::Http2) => return self.wire.take_stream().map_or(Served::End(None), |io| Served::Http2(Box::new(io))),
                Some(NoHead::End) => {
                    let _ = poll_fn(|cx| self.wire.poll_goodbye(cx)).await;
                    return Served::End(None);
                }
                Some(NoHead::Cut) => return Served::End(None),
                Some(NoHead::Bad { error, tls }) => return Served::End(Some(self.refuse(error, tls).await)),
            }
            let Some(head) = &mut head else { return Served::End(None) };
            match self.request(head).await {
                Next::Request => self.wire.rest(),
                Next::Close => {
                    // Whatever goes wrong now, the answer is out of our hands.
                    let _ = poll_fn(|cx| self.wire.poll_goodbye(cx)).await;
                    return Served::End(None);
                }
                Next::Drop => return Served::End(None),
            }
        }
    }

    fn limits(&self) -> Limits {
        let (max_header_size, max_headers) = self.session.head_limits();
        Limits { max_head: max_header_size.saturating_mul(BACKSTOP).max(LEAST_HEAD), max_fields: max_headers.saturating_mul(BACKSTOP) }
    }

    /// Waits for the next request, whose head is put into `head`.
    async fn head(&mut self, head: &mut Option<RequestHead>) -> Option<NoHead> {
        let limits = self.limits();
        poll_fn(|cx| {
            let begun = || {
                if self.state.clock.phase() == Phase::Idle {
                    self.state.clock.enter(Phase::Head, Instant::now());
                }
            };
            match self.wire.poll_head(cx, limits, begun) {
                Poll::Ready(Heard::Head(heard)) => {
                    *head = Some(heard);
                    Poll::Ready(None)
                }
                Poll::Ready(Heard::Http2) => Poll::Ready(Some(NoHead::Http2)),
                Poll::Ready(Heard::End) => Poll::Ready(Some(NoHead::End)),
                Poll::Ready(Heard::Cut) => Poll::Ready(Some(NoHead::Cut)),
                Poll::Ready(Heard::Bad { error, tls }) => Poll::Ready(Some(NoHead::Bad { error, tls })),
                Poll::Pending if self.closing.load(Relaxed) && !self.wire.has_bytes() => Poll::Ready(Some(NoHead::End)),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }

    /// Answers bytes that are no request.
    async fn refuse(&mut self, error: ParseError, tls: bool) -> ConnectionError {
        let (reason, kind) = match error {
            ParseError::TooManyFields | ParseError::HeadTooLarge => (Reason::HeadersTooLarge, ConnectionError::TooLarge),
            ParseError::TargetTooLong => (Reason::UriTooLong, ConnectionError::TooLarge),
            ParseError::BadMethod
            | ParseError::BadTarget
            | ParseError::BadVersion
            | ParseError::BadStatus
            | ParseError::BadField
            | ParseError::BadLine => (Reason::BadRequest, ConnectionError::BadRequest),
        };
        let detail = if tls {
            "The client speaks TLS to a port that expects clear text.".to_owned()
        } else {
            format!("The request head cannot be read: {error}.")
        };
        let (parts, bytes) = refuse_unread(&self.session.snapshot(), &Refusal::new(reason, detail));
        let mut out = Outbox::new();
        refuse(&parts, &bytes, &mut out);
        self.state.linger.store(true, Relaxed);
        // The client may be gone already, which is fine with us.
        let _ = poll_fn(|cx| self.wire.poll_write(cx, &mut out)).await;
        let _ = poll_fn(|cx| self.wire.poll_goodbye(cx)).await;
        kind
    }

    /// Takes one request through the gateway and its answer to the client. Its head is used up.
    async fn request(&mut self, head: &mut RequestHead) -> Next {
        let limits = Limits { max_head: LEAST_HEAD, max_fields: 128 };
        // A request whose end nobody can tell is refused by the gateway's own check, with all that belongs to a refusal.
        let framing = framing::of_request(head.version, &mut head.headers, head.survey);
        let length = framing.unwrap_or(BodyLength::Known(0));
        let asked = Asked::new(head.version, &head.method, framing.is_ok() && wants_more(head), takes_trailers(head));
        let expects = head.survey.expect() && head.version == Version::HTTP_11 && expects_continue(head);
        let body = self.wire.begin(length, limits, expects);
        let snapshot = self.session.view();
        // A reload may have changed them.
        self.state.clock.set_timeouts(snapshot.timeouts);
        let (upgrading, tunnel) = offer_tunnel(head).unzip();
        let client = &*self.session.client;
        let inbound = Inbound { client, snapshot: &snapshot, link: self.link, upgrading, survey: Some(head.survey) };
        if framing.is_err() {
            // Nobody can tell what still comes: it must not turn the answer into a reset.
            self.state.linger.store(true, Relaxed);
        }
        let mut answered = None;
        {
            let (mut request, ()) = Request::new(()).into_parts();
            if !fill(&mut request, head) {
                let kind = self.refuse(ParseError::BadTarget, false).await;
                self.session.listener().metrics.connection_error(self.session.worker, kind);
                return Next::Drop;
            }
            let mut answering = pin!(handle(inbound, &mut request, body, &mut answered));
            poll_fn(|cx| match answering.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(()),
                Poll::Pending if self.settled.load(Relaxed) && self.wire.poll_gone(cx) => Poll::Ready(()),
                Poll::Pending => Poll::Pending,
            })
            .await;
        }
        match &answered {
            // That status is for the log: whoever left has nobody to read it.
            Some(answer) if answer.parts.status.as_u16() == Reason::ClientClosed.status() && self.wire.is_cut() => Next::Drop,
            Some(_) => self.respond(&mut answered, &asked, tunnel).await,
            None => Next::Drop,
        }
    }

    /// Writes an answer, of which nothing is left then.
    async fn respond(&mut self, answered: &mut Option<Answered<'_>>, asked: &Asked, tunnel: Option<oneshot::Sender<BoxedStream>>) -> Next {
        let Some(Answered { parts, lines, id, body }) = answered else { return Next::Drop };
        let mut out = Outbox::new();
        out.front.extend_from_slice(self.wire.answer_begins());
        let head = Head { parts, lines: lines.as_deref(), id: body.id_name().zip(id.as_ref()) };
        let (mut ending, keep_alive) = begin(&head, body, asked, &mut out);
        let switching = parts.status == StatusCode::SWITCHING_PROTOCOLS;
        if let Some(lines) = lines.take() {
            lines.recycle();
        }
        // A body may take its time.
        drop(id.take());
        if !parts.headers.is_empty() {
            parts.headers = HeaderMap::new();
        }
        let mut body = Writing { body, ended: false, cut: false };
        let writing = poll_fn(|cx| {
            let mut body = Pin::new(&mut body);
            loop {
                let waiting = body.fill(cx, &mut ending, &mut out);
                if self.wire.poll_write(cx, &mut out)?.is_pending() {
                    // The client may take nothing before it has sent all of its body.
                    body.body.poll_upload(cx);
                    return Poll::Pending;
                }
                if !waiting && !body.ended {
                    continue;
                }
                std::task::ready!(self.wire.poll_flush(cx))?;
                if body.ended {
                    return Poll::Ready(Ok::<(), std::io::Error>(()));
                }
                if self.settled.load(Relaxed) && self.wire.poll_gone(cx) {
                    return Poll::Ready(Err(std::io::ErrorKind::ConnectionAborted.into()));
                }
                return Poll::Pending;
            }
        });
        // No timeout of HTTP runs any more once a tunnel is agreed on.
        let written = if switching {
            Box::pin(tokio::time::timeout(SWITCH, writing)).await.unwrap_or_else(|over| Err(over.into()))
        } else {
            writing.await
        };
        if written.is_err() || body.cut {
            return Next::Drop;
        }
        *answered = None;
        if switching {
            self.state.linger.store(false, Relaxed);
            if let (Some(tunnel), Some(stream)) = (tunnel, self.wire.take_stream()) {
                // Nobody there: the tunnel has given up, and the stream closes with this.
                let _ = tunnel.send(Box::new(stream));
            }
            return Next::Drop;
        }
        let over = self.wire.request_is_over();
        if over && keep_alive && !self.closing.load(Relaxed) {
            self.state.linger.store(false, Relaxed);
            return Next::Request;
        }
        // Closing a socket under a client that still sends would reset it, and the answer with it.
        if !over || self.wire.has_bytes() {
            self.state.linger.store(true, Relaxed);
        }
        Next::Close
    }
}

/// A body on its way out.
struct Writing<'a, 'b> {
    body: &'a mut ResponseBody<'b>,
    ended: bool,
    cut: bool,
}

impl Writing<'_, '_> {
    /// Moves frames into `out` until it is full, the body ends or has nothing now; `true` in the last case.
    fn fill(self: &mut Pin<&mut Self>, cx: &mut std::task::Context<'_>, ending: &mut Ending, out: &mut Outbox) -> bool {
        let this = self.as_mut().get_mut();
        while !this.ended && out.piece.is_empty() && out.back.is_empty() && out.front.len() < FULL {
            // A body that the client does not get is not waited for.
            if matches!(ending, Ending::None) || this.body.is_end_stream() {
                this.ended = true;
                this.cut |= !ending.end(out);
                break;
            }
            match Pin::new(&mut *this.body).poll_frame(cx) {
                Poll::Pending => return true,
                Poll::Ready(Some(Ok(frame))) => {
                    if ending.frame(frame, out).is_err() {
                        (this.ended, this.cut) = (true, true);
                    }
                }
                Poll::Ready(Some(Err(_))) => (this.ended, this.cut) = (true, true),
                Poll::Ready(None) => {
                    this.ended = true;
                    this.cut |= !ending.end(out);
                }
            }
        }
        // The end of a body whose last piece is in hand goes with it.
        if !this.ended && !out.piece.is_empty() && this.body.is_end_stream() {
            this.ended = true;
            this.cut |= !ending.end(out);
        }
        false
    }
}

/// Both ends of a stream that a tunnel could take.
fn offer_tunnel(head: &RequestHead) -> Option<(Upgrading, oneshot::Sender<BoxedStream>)> {
    head.survey.upgrade().then(oneshot::channel).map(|(sender, receiver)| (Upgrading(receiver), sender))
}

/// Moves a head to where the gateway takes it; `false` if its target is none.
fn fill(request: &mut request::Parts, head: &mut RequestHead) -> bool {
    let target = std::mem::take(&mut head.target);
    let raw = target.iter().any(|byte| matches!(byte, b'<' | b'>' | b'`' | b'"'));
    let Some(uri) = (if raw { encoded(&target) } else { Uri::from_maybe_shared(target).ok() }) else { return false };
    request.uri = uri;
    request.method = std::mem::take(&mut head.method);
    request.version = head.version;
    std::mem::swap(&mut request.headers, &mut head.headers);
    true
}

/// Some clients send raw what RFC 3986 wants encoded; nobody can take these bytes for anything else.
fn encoded(target: &Bytes) -> Option<Uri> {
    let mut out = Vec::with_capacity(target.len() + 16);
    for &byte in target {
        match byte {
            b'<' => out.extend_from_slice(b"%3C"),
            b'>' => out.extend_from_slice(b"%3E"),
            b'`' => out.extend_from_slice(b"%60"),
            b'"' => out.extend_from_slice(b"%22"),
            _ => out.push(byte),
        }
    }
    Uri::from_maybe_shared(Bytes::from(out)).ok()
}

/// Whether the client wants to send more requests on its connection.
fn wants_more(head: &RequestHead) -> bool {
    let has = |option: &str| {
        let fields = head.headers.get_all(CONNECTION).iter().filter_map(|field| field.to_str().ok());
        fields.flat_map(|field| field.split(',')).any(|word| word.trim().eq_ignore_ascii_case(option))
    };
    if head.version == Version::HTTP_11 { !head.survey.connection() || !has("close") } else { has("keep-alive") && !has("close") }
}

fn takes_trailers(head: &RequestHead) -> bool {
    let fields = || head.headers.get_all(TE).iter().filter_map(|field| field.to_str().ok());
    head.survey.hop_by_hop() && fields().flat_map(|field| field.split(',')).any(|word| word.trim().eq_ignore_ascii_case("trailers"))
}

fn expects_continue(head: &RequestHead) -> bool {
    head.headers.get(EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}
