//! gRPC over HTTP/2: what the gateway must know of it to pass calls on and to answer in its place.
//!
//! Source: "gRPC over HTTP2" (PROTOCOL-HTTP2.md).

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use crate::error::Refusal;
use crate::http::headers::unindexed;

/// `grpc-status`.
pub const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// `grpc-message`.
pub const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
/// What the status is about, as a message of its own.
pub const GRPC_DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");
/// `grpc-timeout`.
pub const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// Status `INTERNAL`.
const INTERNAL: HeaderValue = HeaderValue::from_static("13");

/// Whether a request (or response) is gRPC: `application/grpc`, alone or with `+format` or parameters. gRPC-Web is not.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).and_then(|value| subtype(value.as_bytes(), b"application/grpc")).is_some()
}

/// What follows `base` in a content type, if it is `base` itself: empty, or beginning with `+`, `;` or a space.
pub(super) fn subtype<'v>(value: &'v [u8], base: &[u8]) -> Option<&'v [u8]> {
    let (start, rest) = value.split_at_checked(base.len())?;
    (start.eq_ignore_ascii_case(base) && matches!(rest.first(), None | Some(b'+' | b';' | b' '))).then_some(rest)
}

/// A `grpc-timeout` that cannot be read: the call is answered with grpc-status 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MalformedTimeout;

/// The caller's time limit for the whole call, if it sent one.
///
/// # Errors
/// If it is not one to eight digits and a unit, or is sent twice.
pub fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, MalformedTimeout> {
    let mut lines = headers.get_all(GRPC_TIMEOUT).iter();
    let Some(value) = lines.next() else { return Ok(None) };
    if lines.next().is_some() {
        return Err(MalformedTimeout);
    }
    parse_timeout(value.as_bytes()).map(Some).ok_or(MalformedTimeout)
}

fn parse_timeout(text: &[u8]) -> Option<Duration> {
    let (unit, digits) = text.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = digits.iter().fold(0u64, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    match unit {
        b'H' => Some(Duration::from_secs(number * 3_600)),
        b'M' => Some(Duration::from_secs(number * 60)),
        b'S' => Some(Duration::from_secs(number)),
        b'm' => Some(Duration::from_millis(number)),
        b'u' => Some(Duration::from_micros(number)),
        b'n' => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// The time left, for the upstream: in the finest unit that fits eight digits, never more than `left`, and never zero.
pub fn format_timeout(left: Duration) -> HeaderValue {
    const MOST: u128 = 99_999_999;
    let units = [(1, b'n'), (1_000, b'u'), (1_000_000, b'm'), (1_000_000_000, b'S'), (60_000_000_000, b'M'), (3_600_000_000_000, b'H')];
    let nanos = left.as_nanos().max(1);
    let (number, unit) =
        units.into_iter().map(|(size, unit)| (nanos / size, unit)).find(|(number, _)| *number <= MOST).unwrap_or((MOST, b'H'));
    let mut text = [0u8; 9];
    let mut start = text.len() - 1;
    let mut number = number;
    text[start] = unit;
    while start > 0 {
        start -= 1;
        text[start] = b'0' + u8::try_from(number % 10).unwrap_or_default();
        number /= 10;
        if number == 0 {
            break;
        }
    }
    unindexed(HeaderValue::from_bytes(text.get(start..).unwrap_or_default()).unwrap_or(HeaderValue::from_static("1n")))
}

/// The status in a head (trailers-only) or in trailers: `None` if there is none, 2 (`UNKNOWN`) if it is not a number.
pub fn status_in(headers: &HeaderMap) -> Option<u32> {
    let value = headers.get(GRPC_STATUS)?;
    Some(value.to_str().ok().and_then(|text| text.parse().ok()).unwrap_or(2))
}

/// A gateway-made answer to a gRPC call: HTTP 200, trailers-only. The caller adds the request id and an empty body.
pub fn refusal(refusal: &Refusal) -> Response<()> {
    respond(refusal, HeaderValue::from_static("application/grpc"))
}

pub(super) fn respond(refusal: &Refusal, content_type: HeaderValue) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    *headers = refusal.headers.clone();
    headers.insert(CONTENT_TYPE, content_type);
    headers.insert(GRPC_STATUS, HeaderValue::from(u16::from(refusal.reason.grpc_status())));
    headers.insert(GRPC_MESSAGE, encode_message(&refusal.detail));
    response
}

/// Percent-encodes a `grpc-message`: space to `~` stay, but for `%`.
pub fn encode_message(message: &str) -> HeaderValue {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut text = Vec::with_capacity(message.len());
    for byte in message.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => text.push(byte),
            _ => text.extend([b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]),
        }
    }
    HeaderValue::from_bytes(&text).unwrap_or(HeaderValue::from_static(""))
}

pin_project! {
    /// A response body that never ends cleanly without a status: a missing `grpc-status` becomes 13. Errors, and so resets, pass unchanged.
    #[derive(Debug)]
    pub struct EnsureStatus<B> {
        #[pin]
        inner: B,
        ended: bool,
    }
}

impl<B> EnsureStatus<B> {
    /// Wraps the body of a response that needs it: `None` gives the body back, if the head has a status (trailers-only) or is not a 200,
    /// which gRPC clients map to a status by themselves.
    ///
    /// # Errors
    /// The body itself, where nothing is to be done.
    pub fn wrap(status: StatusCode, head: &HeaderMap, inner: B) -> Result<Self, B> {
        let needed = status == StatusCode::OK && !head.contains_key(GRPC_STATUS);
        if needed { Ok(Self { inner, ended: false }) } else { Err(inner) }
    }
}

impl<B: Body<Data = Bytes>> Body for EnsureStatus<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.project();
        if *this.ended {
            return Poll::Ready(None);
        }
        let frame = match ready!(this.inner.poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => {
                *this.ended = true;
                return Poll::Ready(Some(Err(error)));
            }
            None => Frame::trailers(HeaderMap::new()),
        };
        let frame = match frame.into_trailers() {
            Ok(mut trailers) => {
                *this.ended = true;
                if !trailers.contains_key(GRPC_STATUS) {
                    trailers.insert(GRPC_STATUS, INTERNAL);
                    trailers.insert(GRPC_MESSAGE, HeaderValue::from_static("the upstream ended the call without a status"));
                }
                Frame::trailers(trailers)
            }
            Err(frame) => frame,
        };
        Poll::Ready(Some(Ok(frame)))
    }
    /// Never before the trailers are out, or the head would already end the stream.
    fn is_end_stream(&self) -> bool {
        self.ended
    }
    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Empty, StreamBody};

    use super::*;
    use crate::error::Reason;

    fn head(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn grpc_is_told_by_its_content_type() {
        for yes in
            ["application/grpc", "application/grpc+proto", "Application/GRPC+json", "application/grpc; charset=x", "application/grpc;x"]
        {
            assert!(is_grpc(&head(&[("content-type", yes)])), "{yes}");
        }
        for no in ["application/grpc-web", "application/grpc-web+proto", "application/grpcx", "application/json", "application/grp", ""] {
            assert!(!is_grpc(&head(&[("content-type", no)])), "{no}");
        }
        assert!(!is_grpc(&HeaderMap::new()));
    }

    #[test]
    fn timeouts_are_read_in_all_units() {
        for (text, expected) in [
            ("1H", Duration::from_secs(3_600)),
            ("2M", Duration::from_secs(120)),
            ("00000003S", Duration::from_secs(3)),
            ("250m", Duration::from_millis(250)),
            ("99999999u", Duration::from_micros(99_999_999)),
            ("0n", Duration::ZERO),
        ] {
            assert_eq!(timeout(&head(&[("grpc-timeout", text)])), Ok(Some(expected)), "{text}");
        }
        assert_eq!(timeout(&HeaderMap::new()), Ok(None));
    }

    #[test]
    fn malformed_timeouts_are_errors() {
        for text in ["", "S", "1", "1s", "1 S", "-1S", "+1S", "1.5S", "123456789m", "1SS"] {
            assert_eq!(timeout(&head(&[("grpc-timeout", text)])), Err(MalformedTimeout), "{text:?}");
        }
        assert_eq!(timeout(&head(&[("grpc-timeout", "1S"), ("grpc-timeout", "2S")])), Err(MalformedTimeout));
    }

    #[test]
    fn the_time_left_is_written_in_the_finest_unit_that_fits() {
        for (left, text) in [
            (Duration::ZERO, "1n"),
            (Duration::from_nanos(99_999_999), "99999999n"),
            (Duration::from_millis(100), "100000u"),
            (Duration::from_millis(99_999), "99999000u"),
            (Duration::from_secs(100), "100000m"),
            (Duration::from_secs(100_000), "100000S"),
            (Duration::MAX, "99999999H"),
        ] {
            assert_eq!(format_timeout(left), text);
        }
    }

    proptest::proptest! {
        #[test]
        fn a_written_timeout_is_never_longer_and_at_most_a_thousandth_shorter(nanos in 1u64..=u64::MAX / 8) {
            let left = Duration::from_nanos(nanos);
            let read = parse_timeout(format_timeout(left).as_bytes()).unwrap();
            proptest::prop_assert!(read <= left && left - read <= left / 1_000);
        }
    }

    #[test]
    fn a_refusal_is_trailers_only_with_an_encoded_message() {
        let why = Refusal::new(Reason::RateLimited, "50% über\n").header(http::header::RETRY_AFTER, HeaderValue::from_static("1"));
        let response = refusal(&why);
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()[CONTENT_TYPE], "application/grpc");
        assert_eq!(response.headers()[GRPC_STATUS], "8");
        assert_eq!(response.headers()[GRPC_MESSAGE], "50%25 %C3%BCber%0A");
        assert_eq!(response.headers()["retry-after"], "1");
        assert_eq!(status_in(response.headers()), Some(8));
    }

    #[test]
    fn a_status_that_is_no_number_counts_as_unknown() {
        assert_eq!(status_in(&head(&[("grpc-status", "x")])), Some(2));
        assert_eq!(status_in(&HeaderMap::new()), None);
    }

    fn body(frames: Vec<Result<Frame<Bytes>, &'static str>>) -> impl Body<Data = Bytes, Error = &'static str> + Unpin {
        let mut frames = frames.into_iter();
        StreamBody::new(tonic::codegen::tokio_stream::iter(std::iter::from_fn(move || frames.next())))
    }
    async fn trailers_of(frames: Vec<Result<Frame<Bytes>, &'static str>>) -> Result<(Bytes, Option<HeaderMap>), &'static str> {
        let body = EnsureStatus::wrap(StatusCode::OK, &HeaderMap::new(), body(frames)).ok().unwrap();
        assert!(!body.is_end_stream());
        let all = body.collect().await?;
        let trailers = all.trailers().cloned();
        Ok((all.to_bytes(), trailers))
    }

    #[tokio::test]
    async fn a_body_without_a_status_gets_13_and_one_with_it_is_left_alone() {
        let data = || Ok(Frame::data(Bytes::from_static(b"message")));
        let (bytes, trailers) = trailers_of(vec![data()]).await.unwrap();
        assert_eq!((bytes.as_ref(), &trailers.unwrap()[GRPC_STATUS]), (b"message".as_slice(), &INTERNAL));
        let (_, trailers) = trailers_of(vec![]).await.unwrap();
        assert_eq!(trailers.unwrap()[GRPC_STATUS], INTERNAL);
        let (_, trailers) = trailers_of(vec![data(), Ok(Frame::trailers(head(&[("x", "y")])))]).await.unwrap();
        let trailers = trailers.unwrap();
        assert_eq!((&trailers[GRPC_STATUS], &trailers["x"]), (&INTERNAL, &HeaderValue::from_static("y")));
        let (_, trailers) = trailers_of(vec![data(), Ok(Frame::trailers(head(&[("grpc-status", "0")])))]).await.unwrap();
        assert_eq!(trailers.unwrap(), head(&[("grpc-status", "0")]));
    }

    #[tokio::test]
    async fn a_reset_passes_on_without_a_status() {
        assert_eq!(trailers_of(vec![Ok(Frame::data(Bytes::from_static(b"m"))), Err("reset")]).await, Err("reset"));
    }

    #[test]
    fn heads_with_a_status_and_other_responses_need_no_wrapping() {
        assert!(EnsureStatus::wrap(StatusCode::OK, &head(&[("grpc-status", "5")]), Empty::<Bytes>::new()).is_err());
        assert!(EnsureStatus::wrap(StatusCode::BAD_GATEWAY, &HeaderMap::new(), Empty::<Bytes>::new()).is_err());
    }
}
