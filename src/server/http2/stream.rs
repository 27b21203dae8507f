//! One stream of HTTP/2: the gateway's answer to its request, sent as its window allows, until it ends, is reset, or its clock cuts it.

use std::cell::RefCell;
use std::error::Error;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::header::{CONNECTION, CONTENT_LENGTH, DATE, TE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body::Body;
use tokio::sync::oneshot;

use crate::gateway::answer::{Cut, ResponseBody};
use crate::gateway::{Answered, Client, Inbound, View, handle};
use crate::http::clock::{Clock, Phase};
use crate::http::connection::Link;
use crate::http::headers::Survey;
use crate::http::incoming::Incoming;
use crate::http::upgrade::{BoxedStream, Upgrading};
use crate::http::watched::{Alarm, Ring};
use crate::server::http2::tunnel::Tunnel;
use crate::server::streams::StreamGuard;

/// The last piece of a body is handed over without a look at the window if it is no longer than this. It may wait there for as long as the
/// connection is kept, but so may longer ones, once their window has room for a byte.
const AT_ONCE: usize = 2 << 10;

/// A request, and all that its answer needs.
pub(super) struct Job {
    pub(super) client: Arc<Client>,
    pub(super) snapshot: Arc<View>,
    pub(super) link: Link,
    /// For an extended CONNECT: the byte stream behind it.
    pub(super) upgrading: Option<Upgrading>,
    pub(super) request: Request<Incoming>,
    pub(super) reply: Reply,
    pub(super) guard: StreamGuard,
}

/// Where the answer goes.
pub(super) struct Reply {
    pub(super) respond: SendResponse<Bytes>,
    /// For an extended CONNECT: what the client sends, and who waits for the tunnel.
    pub(super) tunnel: Option<(RecvStream, oneshot::Sender<BoxedStream>)>,
}

/// Serves a stream to its end. One that is given up is reset when its parts are dropped.
pub(super) async fn serve(job: Box<Job>, mut alarm: Pin<&mut Alarm>) {
    let Job { client, snapshot, link, upgrading, request, mut reply, guard } = *job;
    let inbound = Inbound { client: &client, snapshot: &snapshot, link: &link, upgrading, survey: None };
    let clock = link.clock();
    let mut answered = None;
    {
        let (mut head, body) = request.into_parts();
        // Pinned as it is made: it is large.
        let mut answering = pin!(handle(inbound, &mut head, body, &mut answered));
        poll_fn(|cx| {
            loop {
                if answering.as_mut().poll(cx).is_ready() || reply.respond.poll_reset(cx).is_ready() {
                    return Poll::Ready(());
                }
                match ready!(alarm.as_mut().poll(clock, cx)) {
                    Ring::Expired => {}
                    Ring::Cut(_) => return Poll::Ready(()),
                }
            }
        })
        .await;
    }
    let Some(answered) = answered else { return };
    let Some(mut sending) = reply.begin(answered, clock, guard) else { return };
    poll_fn(|cx| {
        loop {
            if sending.poll(cx).is_ready() {
                return Poll::Ready(());
            }
            match ready!(alarm.as_mut().poll(clock, cx)) {
                Ring::Expired => {}
                Ring::Cut(_) => return Poll::Ready(()),
            }
        }
    })
    .await;
}

impl Reply {
    /// Sends the head. `None` if that was all.
    fn begin<'a>(mut self, answered: Answered<'a>, clock: &'a Clock, guard: StreamGuard) -> Option<Sending<'a>> {
        let (mut head, body) = answered.into_response().into_parts();
        clean(&mut head.headers);
        if let Some((received, tunnel)) = self.tunnel
            && head.status.is_success()
        {
            head.headers.remove(CONTENT_LENGTH);
            if let Ok(stream) = self.respond.send_response(Response::from_parts(head, ()), false) {
                // Nobody there: the tunnel has given up, and the stream ends with this.
                let _ = tunnel.send(Box::new(Tunnel::new(stream, received, guard)));
            }
            return None;
        }
        let ended = body.is_end_stream();
        if !ended
            && let Some(length) = body.size_hint().exact()
            && !head.headers.contains_key(CONTENT_LENGTH)
        {
            head.headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
        match self.respond.send_response(Response::from_parts(head, ()), ended) {
            Ok(stream) if !ended => Some(Sending { body, stream, waiting: None, clock, guard }),
            Ok(_) => None,
            Err(error) => {
                // Fields that HTTP/2 does not know, or a stream that was reset meanwhile.
                tracing::debug!(%error, "a response cannot be sent");
                self.respond.send_reset(Reason::INTERNAL_ERROR);
                None
            }
        }
    }
}

/// A body on its way out.
struct Sending<'a> {
    body: ResponseBody<'a>,
    stream: SendStream<Bytes>,
    /// A piece that waits for the window, and whether it is the last one.
    waiting: Option<(Bytes, bool)>,
    clock: &'a Clock,
    #[expect(dead_code, reason = "held for its drop, after that of the others")]
    guard: StreamGuard,
}

impl Sending<'_> {
    /// Ready when the body is sent, or when the client takes no more of it.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if let Some((piece, last)) = self.waiting.take() {
                if !piece.is_empty() {
                    match self.poll_room(cx) {
                        Poll::Ready(true) => {}
                        Poll::Ready(false) => return Poll::Ready(()),
                        Poll::Pending => {
                            self.waiting = Some((piece, last));
                            if self.clock.phase() == Phase::Tunnel {
                                // The request is accounted for, but its stall is still one.
                                self.clock.response_started();
                            }
                            // The client may open no window before it has sent all of its body.
                            self.body.poll_upload(cx);
                            return Poll::Pending;
                        }
                    }
                }
                if self.stream.send_data(piece, last).is_err() || last {
                    return Poll::Ready(());
                }
            }
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(piece) => {
                        let last = self.body.is_end_stream();
                        if last && piece.len() <= AT_ONCE {
                            // A stream that was reset needs none.
                            let _ = self.stream.send_data(piece, true);
                            return Poll::Ready(());
                        }
                        // Room is asked for only when there is something to send, and little of it: what is held back from the window of
                        // the connection is missing to the other streams.
                        self.stream.reserve_capacity(usize::from(!piece.is_empty()));
                        self.waiting = Some((piece, last));
                    }
                    Err(frame) => {
                        if let Ok(trailers) = frame.into_trailers() {
                            // A stream that was reset needs none.
                            let _ = self.stream.send_trailers(trailers);
                            return Poll::Ready(());
                        }
                    }
                },
                Poll::Ready(Some(Err(cut))) => {
                    self.stream.send_reset(reason(&cut));
                    return Poll::Ready(());
                }
                Poll::Ready(None) => {
                    // A stream that was reset needs no end.
                    let _ = self.stream.send_data(Bytes::new(), true);
                    return Poll::Ready(());
                }
                Poll::Pending => return self.stream.poll_reset(cx).map(drop),
            }
        }
    }

    /// Whether the window has room; `false` when the stream is over.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        while self.stream.capacity() == 0 {
            match ready!(self.stream.poll_capacity(cx)) {
                Some(Ok(0)) => {}
                Some(Ok(_)) => break,
                Some(Err(_)) | None => return Poll::Ready(false),
            }
        }
        Poll::Ready(true)
    }
}

/// The code that a cut body resets its stream with: the upstream's, if it gave one.
fn reason(cut: &Cut) -> Reason {
    let error = cut.source().and_then(|error| error.downcast_ref::<h2::Error>());
    error.and_then(h2::Error::reason).unwrap_or(Reason::INTERNAL_ERROR)
}

/// Takes away what HTTP/2 forbids, and adds the `Date` that every answer has.
fn clean(headers: &mut HeaderMap) {
    if Survey::of(headers).hop_by_hop() {
        let named: Vec<HeaderName> = {
            let lines = headers.get_all(CONNECTION).iter().filter_map(|line| line.to_str().ok());
            lines.flat_map(|line| line.split(',')).filter_map(|name| name.trim().parse().ok()).collect()
        };
        for name in named {
            headers.remove(name);
        }
        for name in [CONNECTION, TE, TRANSFER_ENCODING, UPGRADE] {
            headers.remove(name);
        }
        headers.remove("keep-alive");
        headers.remove("proxy-connection");
    }
    if !headers.keys().any(|name| *name == DATE) {
        headers.insert(DATE, date());
    }
}

thread_local! {
    static NOW: RefCell<(u64, HeaderValue)> = const { RefCell::new((0, HeaderValue::from_static(""))) };
}

/// The `Date` of a response that has none; written anew once a second.
fn date() -> HeaderValue {
    let second = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    NOW.with_borrow_mut(|(at, value)| {
        if *at != second {
            let text = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(second));
            // Letters, digits and spaces: it cannot fail.
            (*at, *value) = (second, HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("")));
        }
        value.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cleaned(fields: &[(&'static str, &'static str)]) -> Vec<(String, String)> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        clean(&mut headers);
        headers.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect()
    }

    #[test]
    fn fields_of_http1_connections_go() {
        let forbidden = [
            ("connection", "x-hop, close"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "close"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("x-hop", "1"),
            ("date", "then"),
            ("x-kept", "1"),
        ];
        let kept = [("date".to_owned(), "then".to_owned()), ("x-kept".to_owned(), "1".to_owned())];
        assert_eq!(cleaned(&forbidden), kept);
    }

    #[test]
    fn every_answer_has_a_date() {
        let fields = cleaned(&[]);
        assert!(matches!(&fields[..], [(name, value)] if name == "date" && httpdate::parse_http_date(value).is_ok()), "{fields:?}");
    }
}
