//! gRPC-Web for browsers: calls in `application/grpc-web` and `application/grpc-web-text` become gRPC calls, and their answers go back with the
//! trailers as a last message of the body.
//!
//! Everything streams: of a request at most three characters are held back, of a response nothing.
//! Source: "gRPC Web" (PROTOCOL-WEB.md).

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use http::header::{ACCEPT, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, CONTENT_LENGTH, CONTENT_TYPE, TE, TRAILER};
use http::{HeaderMap, HeaderValue, Response};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::grpc;
use crate::error::Refusal;

const BINARY: &[u8] = b"application/grpc-web";
const TEXT: &[u8] = b"application/grpc-web-text";
/// First byte of the message that holds the trailers.
const TRAILERS: u8 = 0x80;

/// How bodies are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Bytes as they are.
    Binary,
    /// Base64.
    Text,
}

/// A gRPC-Web call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Of the request.
    pub request: Encoding,
    /// Of the response: what `Accept` names, else that of the request.
    pub response: Encoding,
}

impl Call {
    /// Whether a request is gRPC-Web.
    pub fn recognise(headers: &HeaderMap) -> Option<Self> {
        let request = encoding(headers.get(CONTENT_TYPE)?.as_bytes())?;
        let accepted = headers.get_all(ACCEPT).iter().flat_map(|line| line.as_bytes().split(|&byte| byte == b','));
        let response = accepted.map(<[u8]>::trim_ascii).find_map(encoding).unwrap_or(request);
        Some(Self { request, response })
    }

    /// Makes the head that of a gRPC call.
    pub fn prepare_request(self, headers: &mut HeaderMap) {
        let format = headers.get(CONTENT_TYPE).map(|value| value.as_bytes()).and_then(format).unwrap_or_default();
        let content_type = joined(b"application/grpc", format);
        headers.insert(CONTENT_TYPE, content_type);
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.remove(CONTENT_LENGTH);
        headers.remove(ACCEPT);
    }

    /// Makes the head of a gRPC response that of a gRPC-Web one; heads that are not gRPC stay. Whether the body is to be wrapped too.
    pub fn prepare_response(self, headers: &mut HeaderMap) -> bool {
        let Some(rest) = headers.get(CONTENT_TYPE).and_then(|value| grpc::subtype(value.as_bytes(), b"application/grpc")) else {
            return false;
        };
        let content_type = joined(self.response.content_type(), if rest.is_empty() { b"+proto" } else { rest });
        headers.insert(CONTENT_TYPE, content_type);
        headers.remove(CONTENT_LENGTH);
        headers.remove(TRAILER);
        true
    }

    /// A frame of the response as it goes to the client: data as it is or in base64, trailers as a last message. A body without trailers stays
    /// without; wrap it in [`grpc::EnsureStatus`] first, so that there always are some.
    pub fn response_frame(self, frame: Frame<Bytes>) -> Frame<Bytes> {
        let bytes = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => match frame.into_trailers() {
                Ok(trailers) => trailers_message(&trailers),
                Err(frame) => return frame,
            },
        };
        Frame::data(self.encode(bytes))
    }

    fn encode(self, bytes: Bytes) -> Bytes {
        match self.response {
            Encoding::Binary => bytes,
            // Each piece is padded: bytes held back for a whole group would be a message that arrives late.
            Encoding::Text => Bytes::from(STANDARD.encode(&bytes)),
        }
    }

    /// Of an answer without a body, whose status is in the head: a body with the status, where a script of another origin may read the answer
    /// but not that field of its head. A browser shows only what CORS exposes, and a call without a status is a riddle.
    pub fn show_status(self, headers: &mut HeaderMap) -> Option<Bytes> {
        let listed = |name: &[u8]| name.trim_ascii().eq_ignore_ascii_case(grpc::GRPC_STATUS.as_str().as_bytes());
        let exposed =
            headers.get(ACCESS_CONTROL_EXPOSE_HEADERS).is_some_and(|list| list.as_bytes().split(|&byte| byte == b',').any(listed));
        if exposed || !headers.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN) || !headers.contains_key(grpc::GRPC_STATUS) {
            return None;
        }
        let mut trailers = HeaderMap::with_capacity(3);
        for name in [grpc::GRPC_STATUS, grpc::GRPC_MESSAGE, grpc::GRPC_DETAILS] {
            if let Some(value) = headers.remove(&name) {
                trailers.insert(name, value);
            }
        }
        headers.remove(CONTENT_LENGTH);
        Some(self.encode(trailers_message(&trailers)))
    }

    /// A gateway-made answer: HTTP 200 with the status in the head. The caller adds the request id and an empty body.
    pub fn refusal(self, refusal: &Refusal) -> Response<()> {
        grpc::respond(refusal, joined(self.response.content_type(), b"+proto"))
    }
}

impl Encoding {
    fn content_type(self) -> &'static [u8] {
        match self {
            Self::Binary => BINARY,
            Self::Text => TEXT,
        }
    }
}

fn encoding(content_type: &[u8]) -> Option<Encoding> {
    let text = grpc::subtype(content_type, TEXT).map(|_| Encoding::Text);
    text.or_else(|| grpc::subtype(content_type, BINARY).map(|_| Encoding::Binary))
}

/// `+proto` and what else follows the kind of message.
fn format(content_type: &[u8]) -> Option<&[u8]> {
    grpc::subtype(content_type, TEXT).or_else(|| grpc::subtype(content_type, BINARY))
}

fn joined(start: &[u8], end: &[u8]) -> HeaderValue {
    HeaderValue::from_bytes(&[start, end].concat()).unwrap_or(HeaderValue::from_static("application/grpc"))
}

/// Why a request body failed.
#[derive(Debug, thiserror::Error)]
pub enum Error<E> {
    /// The client's connection did.
    #[error(transparent)]
    Body(E),
    /// It is not base64: `bad_request`.
    #[error("the body of a gRPC-Web call in text form is not base64")]
    Base64,
}

pin_project! {
    /// A request body: passed on, or decoded from base64.
    #[derive(Debug)]
    pub struct RequestBody<B> {
        #[pin]
        inner: B,
        decoder: Option<Decoder>,
        ended: bool,
    }
}

impl<B> RequestBody<B> {
    /// Wraps the body of a request.
    pub fn new(call: Call, inner: B) -> Self {
        let decoder = match call.request {
            Encoding::Binary => None,
            Encoding::Text => Some(Decoder::default()),
        };
        Self { inner, decoder, ended: false }
    }
}

impl<B: Body<Data = Bytes>> Body for RequestBody<B> {
    type Data = Bytes;
    type Error = Error<B::Error>;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let mut this = self.project();
        while !*this.ended {
            let frame = ready!(this.inner.as_mut().poll_frame(cx)).transpose().map_err(Error::Body);
            let Some(decoder) = this.decoder else {
                *this.ended = !matches!(frame, Ok(Some(_)));
                return Poll::Ready(frame.transpose());
            };
            let decoded = match frame.map(|frame| frame.map(Frame::into_data)) {
                Ok(Some(Ok(data))) => decoder.decode(&data).map_err(|NotBase64| Error::Base64),
                // A browser cannot send trailers; none are passed on.
                Ok(Some(Err(_))) => continue,
                Ok(None) if decoder.is_whole() => {
                    *this.ended = true;
                    break;
                }
                Ok(None) => Err(Error::Base64),
                Err(error) => Err(error),
            };
            match decoded {
                Ok(bytes) if bytes.is_empty() => {}
                Ok(bytes) => return Poll::Ready(Some(Ok(Frame::data(bytes)))),
                Err(error) => {
                    *this.ended = true;
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
        Poll::Ready(None)
    }
    fn is_end_stream(&self) -> bool {
        self.ended || (self.decoder.as_ref().is_none_or(Decoder::is_whole) && self.inner.is_end_stream())
    }
    fn size_hint(&self) -> SizeHint {
        if self.decoder.is_none() { self.inner.size_hint() } else { SizeHint::new() }
    }
}

/// Base64 in pieces of any size. Padding may stand at the end of every group of four: senders encode message by message.
#[derive(Debug, Default)]
struct Decoder {
    group: [u8; 4],
    have: usize,
}

#[derive(Debug)]
struct NotBase64;

impl Decoder {
    fn is_whole(&self) -> bool {
        self.have == 0
    }

    fn decode(&mut self, mut text: &[u8]) -> Result<Bytes, NotBase64> {
        let mut out = BytesMut::with_capacity((self.have + text.len()) / 4 * 3);
        if self.have > 0 {
            while self.have < 4 {
                let Some((&first, rest)) = text.split_first() else { return Ok(out.freeze()) };
                self.group[self.have] = first;
                self.have += 1;
                text = rest;
            }
            self.have = 0;
            append(&mut out, &self.group)?;
        }
        let (groups, rest) = text.split_at(text.len() / 4 * 4);
        append(&mut out, groups)?;
        for (slot, &byte) in self.group.iter_mut().zip(rest) {
            *slot = byte;
            self.have += 1;
        }
        Ok(out.freeze())
    }
}

/// Decodes whole groups, run by run up to each padded one.
fn append(out: &mut BytesMut, mut groups: &[u8]) -> Result<(), NotBase64> {
    while !groups.is_empty() {
        let end = groups.iter().position(|&byte| byte == b'=').map_or(groups.len(), |at| (at / 4 + 1) * 4);
        let (run, rest) = groups.split_at_checked(end).ok_or(NotBase64)?;
        let start = out.len();
        out.resize(start + run.len() / 4 * 3, 0);
        let space = out.get_mut(start..).ok_or(NotBase64)?;
        let written = STANDARD.decode_slice(run, space).map_err(|_| NotBase64)?;
        out.truncate(start + written);
        groups = rest;
    }
    Ok(())
}

/// Trailers as a message: the flag, the length, then `name: value` lines.
fn trailers_message(trailers: &HeaderMap) -> Bytes {
    let lines: usize = trailers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    let mut message = BytesMut::with_capacity(5 + lines);
    message.put_u8(TRAILERS);
    message.put_u32(u32::try_from(lines).unwrap_or(u32::MAX));
    for (name, value) in trailers {
        message.put_slice(name.as_str().as_bytes());
        message.put_slice(b": ");
        message.put_slice(value.as_bytes());
        message.put_slice(b"\r\n");
    }
    message.freeze()
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::{BodyExt, StreamBody};

    use super::*;
    use crate::error::Reason;

    const TEXT_CALL: Call = Call { request: Encoding::Text, response: Encoding::Text };
    const BINARY_CALL: Call = Call { request: Encoding::Binary, response: Encoding::Binary };

    fn head(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }
    fn pieces(data: &[&[u8]], trailers: Option<HeaderMap>) -> impl Body<Data = Bytes, Error = Infallible> + Unpin + use<> {
        let data: Vec<_> = data.iter().map(|piece| Frame::data(Bytes::copy_from_slice(piece))).collect();
        let frames = data.into_iter().chain(trailers.map(Frame::trailers)).map(Ok);
        StreamBody::new(tonic::codegen::tokio_stream::iter(frames))
    }
    async fn decode(data: &[&[u8]]) -> Result<Bytes, Error<Infallible>> {
        RequestBody::new(TEXT_CALL, pieces(data, None)).collect().await.map(http_body_util::Collected::to_bytes)
    }

    #[test]
    fn calls_are_told_by_content_type_and_accept() {
        let call = |content_type, accept| Call::recognise(&head(&[("content-type", content_type), ("accept", accept)]));
        assert_eq!(call("application/grpc-web", "*/*"), Some(BINARY_CALL));
        assert_eq!(call("application/grpc-web+proto", ""), Some(BINARY_CALL));
        assert_eq!(call("application/grpc-web-text+proto", "x"), Some(TEXT_CALL));
        let mixed = Some(Call { request: Encoding::Binary, response: Encoding::Text });
        assert_eq!(call("application/grpc-web+proto", "text/html, application/grpc-web-text"), mixed);
        assert_eq!(call("application/grpc", "*/*"), None);
        assert_eq!(call("application/grpc-web-texts", "*/*"), None);
    }

    #[test]
    fn heads_change_both_ways() {
        let mut request = head(&[("content-type", "application/grpc-web-text+proto"), ("content-length", "8"), ("x-grpc-web", "1")]);
        TEXT_CALL.prepare_request(&mut request);
        assert_eq!(request, head(&[("content-type", "application/grpc+proto"), ("te", "trailers"), ("x-grpc-web", "1")]));
        for (theirs, ours) in
            [("application/grpc", "application/grpc-web-text+proto"), ("application/grpc+json", "application/grpc-web-text+json")]
        {
            let mut response = head(&[("content-type", theirs), ("trailer", "grpc-status")]);
            assert!(TEXT_CALL.prepare_response(&mut response));
            assert_eq!(response, head(&[("content-type", ours)]));
        }
        let mut page = head(&[("content-type", "text/html"), ("content-length", "7")]);
        let before = page.clone();
        assert!(!BINARY_CALL.prepare_response(&mut page));
        assert_eq!(page, before);
    }

    #[test]
    fn a_refusal_has_its_status_in_the_head() {
        let response = BINARY_CALL.refusal(&Refusal::new(Reason::Forbidden, "no"));
        let expected = head(&[("content-type", "application/grpc-web+proto"), ("grpc-status", "7"), ("grpc-message", "no")]);
        assert_eq!((response.status().as_u16(), response.headers()), (200, &expected));
    }

    #[test]
    fn a_status_that_no_script_could_read_moves_into_the_body() {
        let refused = || head(&[("grpc-status", "7"), ("grpc-message", "no"), ("access-control-allow-origin", "https://a.test")]);
        let mut headers = refused();
        let body = BINARY_CALL.show_status(&mut headers).unwrap();
        assert_eq!(body, b"\x80\0\0\0\x22grpc-status: 7\r\ngrpc-message: no\r\n".as_slice());
        assert_eq!(headers, head(&[("access-control-allow-origin", "https://a.test")]));
        assert_eq!(STANDARD.decode(TEXT_CALL.show_status(&mut refused()).unwrap()).unwrap(), body);
        let mut exposed = refused();
        exposed.insert("access-control-expose-headers", HeaderValue::from_static("x-request-id, Grpc-Status,grpc-message"));
        for mut readable in [exposed, head(&[("grpc-status", "7")]), head(&[("access-control-allow-origin", "*")])] {
            let before = readable.clone();
            assert_eq!((BINARY_CALL.show_status(&mut readable), &readable), (None, &before));
        }
    }

    #[tokio::test]
    async fn text_is_decoded_wherever_it_is_split_and_padded() {
        let message = [0, 0, 0, 0, 4, 0xde, 0xad, 0xbe, 0xef];
        let text = [STANDARD.encode(&message[..5]), STANDARD.encode(&message[5..])].concat();
        assert!(text[..text.len() - 4].contains('='), "padding in the middle");
        let text = text.as_bytes();
        for first in 0..=text.len() {
            for second in first..=text.len() {
                let body = decode(&[&text[..first], &text[first..second], &text[second..]]).await.unwrap();
                assert_eq!(body, message.as_slice(), "{first} {second}");
            }
        }
    }

    #[tokio::test]
    async fn text_that_is_not_base64_is_an_error() {
        for text in ["AAA", "AAAA=", "A===", "=AAA", "AA=A", "AAA!", "AAAA\r\n", "AB==AAA"] {
            assert!(matches!(decode(&[text.as_bytes()]).await, Err(Error::Base64)), "{text:?}");
        }
        assert_eq!(decode(&[]).await.unwrap(), "");
    }

    #[tokio::test]
    async fn binary_requests_pass_unchanged() {
        let body = RequestBody::new(BINARY_CALL, pieces(&[b"AA", b"!"], None));
        assert_eq!(body.collect().await.unwrap().to_bytes(), "AA!");
    }

    #[test]
    fn trailers_become_the_last_message() {
        let trailers = head(&[("grpc-status", "0"), ("grpc-message", "")]);
        let expected = b"\x80\0\0\0\x20grpc-status: 0\r\ngrpc-message: \r\n";
        let frames = || [Frame::data(Bytes::from_static(b"m1")), Frame::data(Bytes::from_static(b"m2")), Frame::trailers(trailers.clone())];
        for (frame, piece) in frames().into_iter().zip([b"m1".as_slice(), b"m2", expected]) {
            assert_eq!(BINARY_CALL.response_frame(frame).into_data().unwrap(), piece);
        }
        for (frame, piece) in frames().into_iter().zip([b"m1".as_slice(), b"m2", expected]) {
            assert_eq!(STANDARD.decode(TEXT_CALL.response_frame(frame).into_data().unwrap()).unwrap(), piece);
        }
    }
}
