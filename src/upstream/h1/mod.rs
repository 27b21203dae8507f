//! An HTTP/1.1 connection to an endpoint, driven by the request that uses it, on that request's task: nothing is spawned, and no
//! channel stands between the request and its bytes. What a request needs is kept in the connection, which lives on the heap and
//! longer than it, so a request on a kept connection allocates nothing here.
//!
//! While a response comes in, a request body that has not ended goes on being sent. An idle connection owns no buffer; whether its
//! peer has closed it is looked at when it is taken out of the pool.

mod input;
mod output;
#[cfg(test)]
mod tests;
mod tunnel;

use std::fmt;
use std::io;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONNECTION;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version};
use http_body::{Frame, SizeHint};

use crate::http::body::{BodyFailure, RequestBody};
use crate::http::h1::decode::DecodeError;
use crate::http::h1::framing::{FramingError, of_declared, of_response};
use crate::http::h1::lines::idle_limit;
use crate::http::h1::{Decoded, Decoder, Limits, ParseError, ResponseHead, parse_response};
use crate::http::headers::Added;
use crate::upstream::pool::OpenConnection;
use crate::upstream::wire::Wire;
use input::Input;
use output::Output;
pub use tunnel::TunnelIo;

/// Longest response head (64 KiB), and most fields in one. A backend with many cookies must not turn into a 502.
const LIMITS: Limits = Limits { max_head: 64 << 10, max_fields: 256 };
/// Most interim (1xx) responses before the final one.
const MAX_INTERIM: u32 = 16;

/// What a request sends before its body.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// Method.
    pub method: &'a Method,
    /// Path and query.
    pub target: &'a str,
    /// `Host`; one in `headers` is not sent.
    pub host: &'a HeaderValue,
    /// Other fields. What they say about framing is not sent but made from the body.
    pub headers: &'a HeaderMap,
    /// Fields that are in no map.
    pub added: Option<&'a Added<'a>>,
}

/// Why there is no response, or no more of it.
#[derive(Debug)]
pub enum Error {
    /// The request cannot be written.
    Request,
    /// The request's body ended early.
    Body(BodyFailure),
    /// The connection broke, or ended too early.
    Closed(Option<io::Error>),
    /// What came is no response head.
    Parse(ParseError),
    /// Nobody can tell where the response ends.
    Framing(FramingError),
    /// More interim responses than anybody needs.
    Interim,
    /// The response's body is broken or cut.
    Decode(DecodeError),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Request => f.write_str("the request cannot be written"),
            Self::Body(failure) => failure.fmt(f),
            Self::Closed(Some(error)) => write!(f, "the connection broke: {error}"),
            Self::Closed(None) => f.write_str("the connection ended"),
            Self::Parse(error) => write!(f, "the response has a {error}"),
            Self::Framing(error) => write!(f, "the response has {error}"),
            Self::Interim => f.write_str("too many interim responses"),
            Self::Decode(error) => write!(f, "the response's body: {error}"),
        }
    }
}

impl std::error::Error for Error {}

/// An HTTP/1.1 connection.
pub struct H1(Box<Inner>);

struct Inner {
    wire: Wire,
    open: OpenConnection,
    output: Output,
    input: Input,
    decoder: Decoder,
    /// How much of the head was there at the last look.
    seen: usize,
    interim: u32,
    method: Method,
    /// Whether the response lets the connection live on.
    keep_alive: bool,
    /// `timeout` of the response's `Keep-Alive`.
    idle_limit: Option<Duration>,
    /// Whether the response's fields may stay lines.
    as_lines: bool,
}

impl fmt::Debug for H1 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("H1").finish_non_exhaustive()
    }
}

impl H1 {
    /// A connection over a stream that nothing was sent on.
    pub fn new(wire: Wire, open: OpenConnection) -> Self {
        Self(Box::new(Inner {
            wire,
            open,
            output: Output::default(),
            input: Input::default(),
            decoder: Decoder::Done,
            seen: 0,
            interim: 0,
            method: Method::GET,
            keep_alive: true,
            idle_limit: None,
            as_lines: false,
        }))
    }

    /// Whether it goes to an address that the endpoint still has.
    pub fn is_wanted(&self) -> bool {
        self.0.open.is_wanted()
    }

    /// Begins a request; [`H1::poll_head`] sends it. For a connection that is new or was found [`H1::is_ready`]. `as_lines`: the fields of the
    /// response may stay lines.
    ///
    /// # Errors
    /// [`Error::Request`] if the head cannot be written.
    pub fn start(&mut self, head: &Head<'_>, body: RequestBody, as_lines: bool) -> Result<(), Error> {
        let inner = &mut *self.0;
        inner.seen = 0;
        inner.interim = 0;
        inner.method.clone_from(head.method);
        inner.keep_alive = false;
        inner.idle_limit = None;
        inner.as_lines = as_lines;
        inner.input.count = 0;
        inner.output.start(head, body).then_some(()).ok_or(Error::Request)
    }

    /// Sends the request and waits for the head of its final response. One with 101 makes the connection a tunnel.
    ///
    /// # Errors
    /// [`Error`]; the connection is of no use then.
    pub fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<ResponseHead, Error>> {
        let inner = &mut *self.0;
        inner.pump(cx)?;
        loop {
            let parsed = parse_response(&mut inner.input.buffer, &mut inner.seen, LIMITS, inner.as_lines);
            inner.input.settle();
            if let Some(mut head) = parsed.map_err(Error::Parse)? {
                if head.status.is_informational() && head.status != StatusCode::SWITCHING_PROTOCOLS {
                    inner.interim += 1;
                    if inner.interim > MAX_INTERIM {
                        return Poll::Ready(Err(Error::Interim));
                    }
                    continue;
                }
                inner.begin_response(&mut head)?;
                return Poll::Ready(Ok(head));
            }
            if ready!(inner.input.poll_read_head(&mut inner.wire, cx)).map_err(|error| Error::Closed(Some(error)))? == 0 {
                return Poll::Ready(Err(Error::Closed(inner.output.take_error())));
            }
        }
    }

    /// The next frame of the response's body.
    pub fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let inner = &mut *self.0;
        if let Err(error) = inner.pump(cx) {
            return Poll::Ready(Some(Err(error)));
        }
        loop {
            match inner.decoder.decode(&mut inner.input.buffer) {
                Ok(Decoded::Data(data)) => {
                    // Hearing of the end with the last bytes saves whoever asks another turn.
                    inner.decoder.end_if_here(&mut inner.input.buffer);
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Ok(Decoded::Trailers(trailers)) => return Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
                Ok(Decoded::End) => return Poll::Ready(None),
                Ok(Decoded::NeedMore) => {}
                Err(error) => return Poll::Ready(Some(Err(Error::Decode(error)))),
            }
            match ready!(inner.input.poll_read(&mut inner.wire, cx, inner.decoder.remaining())) {
                Ok(0) => {
                    inner.keep_alive = false;
                    // Whoever takes no more of the request may have been cut off: then this is no end.
                    if let Some(error) = inner.output.take_error() {
                        return Poll::Ready(Some(Err(Error::Closed(Some(error)))));
                    }
                    return Poll::Ready(inner.decoder.eof().err().map(|error| Err(Error::Decode(error))));
                }
                Ok(_) => {}
                Err(error) => return Poll::Ready(Some(Err(Error::Closed(Some(error))))),
            }
        }
    }

    /// The whole of the response's body, if it came with the head.
    pub fn take_whole_body(&mut self) -> Option<Bytes> {
        let Inner { decoder, input, .. } = &mut *self.0;
        match decoder {
            Decoder::Length(length) if *length <= input.buffer.len() as u64 => match decoder.decode(&mut input.buffer) {
                Ok(Decoded::Data(data)) => Some(data),
                Ok(Decoded::Trailers(_) | Decoded::End | Decoded::NeedMore) | Err(_) => None,
            },
            Decoder::Length(_) | Decoder::Chunked(_) | Decoder::UntilClose | Decoder::Done => None,
        }
    }

    /// Sends what can be sent of the request.
    pub fn poll_upload(&mut self, cx: &mut Context<'_>) {
        // A body that has failed says so again when the response is read.
        let _ = self.0.pump(cx);
    }

    /// Whether the response's body has ended.
    pub fn is_body_ended(&self) -> bool {
        self.0.decoder.is_done()
    }

    /// How long what is left of the response's body is.
    pub fn size_hint(&self) -> SizeHint {
        self.0.decoder.remaining().map_or_else(SizeHint::default, SizeHint::with_exact)
    }

    /// Whether any byte of the request may have left.
    pub fn has_sent(&self) -> bool {
        self.0.output.written > self.0.wire.lost()
    }

    /// Whether all of the request has left.
    pub fn is_sent(&self) -> bool {
        self.0.output.is_done()
    }

    /// Whether any byte of a response has come.
    pub fn has_received(&self) -> bool {
        self.0.input.count > 0
    }

    /// The request's body, if nothing was taken out of it.
    pub fn take_untouched_body(&mut self) -> Option<RequestBody> {
        self.0.output.take_untouched_body()
    }

    /// How long the upstream said that it keeps idle connections.
    pub fn idle_limit(&self) -> Option<Duration> {
        self.0.idle_limit
    }

    /// Whether the exchange has ended on both sides and left the connection fit for another; its buffers are let go.
    pub fn finish(&mut self) -> bool {
        let inner = &mut *self.0;
        let clean = inner.keep_alive && inner.decoder.is_done() && inner.input.buffer.is_empty() && inner.output.is_done();
        inner.input.release();
        inner.output.release();
        clean
    }

    /// Whether it can take a request: the upstream has neither closed it nor sent anything unasked, as far as the runtime has heard.
    pub fn is_ready(&mut self) -> bool {
        self.0.wire.is_quiet()
    }

    /// The stream after a 101, with what came behind its head.
    pub fn into_tunnel(self) -> TunnelIo {
        let Inner { wire, open, input, .. } = *self.0;
        TunnelIo::new(wire, input.buffer.freeze(), open)
    }
}

impl Inner {
    /// Sends what can be sent of the request. A connection that takes no more may still hold a response: reading tells.
    fn pump(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        if self.output.is_done() {
            return Ok(());
        }
        self.output.poll(&mut self.wire, cx).map_err(Error::Body)
    }

    fn begin_response(&mut self, head: &mut ResponseHead) -> Result<(), Error> {
        if let Some(lines) = &head.lines {
            self.decoder = Decoder::new(of_declared(&self.method, head.status, lines.declared()), LIMITS);
            self.keep_alive = !lines.close();
            self.idle_limit = lines.idle_limit();
            return Ok(());
        }
        let length = of_response(&self.method, head.status, head.version, &mut head.headers, head.survey).map_err(Error::Framing)?;
        self.decoder = Decoder::new(length, LIMITS);
        self.keep_alive = head.version == Version::HTTP_11
            && head.status != StatusCode::SWITCHING_PROTOCOLS
            && !(head.survey.connection() && says_close(&head.headers));
        if head.survey.keep_alive() {
            self.idle_limit = head.headers.get("keep-alive").and_then(|value| idle_limit(value.as_bytes()));
        }
        Ok(())
    }
}

fn says_close(headers: &HeaderMap) -> bool {
    let options = headers.get_all(CONNECTION).iter().flat_map(|line| line.as_bytes().split(|&byte| byte == b','));
    options.map(<[u8]>::trim_ascii).any(|option| option.eq_ignore_ascii_case(b"close"))
}
