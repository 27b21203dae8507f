//! Reads one part's answer: bounded, gzip decoded, checked to be JSON.

use std::io::{self, Write};
use std::pin::pin;

use bytes::Bytes;
use flate2::write::MultiGzDecoder;
use http::header::{CONTENT_ENCODING, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body::Body;
use http_body_util::BodyExt;

use super::call::{CallFailure, Failure, PartResponse};
use super::pick::{Content, Plan, Reader, Value};
use super::tokens::Invalid;

/// Bytes of an answer that are decoded or checked before other requests of the worker get their turn: well below a millisecond.
///
/// The work stays on the worker, in slices, and does not go to the blocking pool: a client that leaves or a part that fails ends it at once,
/// nothing queues behind other requests' answers, and 128 KiB cost less than half of what a change of threads and back does.
const SLICE: usize = 128 << 10;

/// A part that answered with JSON.
#[derive(Debug)]
pub(super) struct Document {
    /// Status of the answer.
    pub status: StatusCode,
    /// Its fields, for `Cache-Control`.
    pub headers: HeaderMap,
    /// What was wanted of its body.
    pub content: Content,
}

/// A part that failed.
#[derive(Clone, Debug)]
pub(super) struct Failed {
    /// Why.
    pub failure: Failure,
    /// The challenges of a 401.
    pub challenges: Vec<HeaderValue>,
}

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Self {
        Self { failure, challenges: Vec::new() }
    }
}

/// Reads what `plan` wants of an answer whose body may have `limit` bytes when decoded.
pub(super) async fn document<B>(response: PartResponse<B>, plan: &Plan, limit: u64) -> Result<Document, Failed>
where
    B: Body<Data = Bytes, Error: Into<CallFailure>>,
{
    let PartResponse { status, headers, body } = response;
    if !status.is_success() {
        let challenged = status == StatusCode::UNAUTHORIZED;
        let challenges = headers.get_all(WWW_AUTHENTICATE).iter().filter(|_| challenged).cloned().collect();
        return Err(Failed { failure: Failure::Status(status), challenges });
    }
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let body = if status == StatusCode::NO_CONTENT { Bytes::new() } else { read(body, coding(&headers)?, limit).await? };
    let body = if body.is_empty() { Bytes::from_static(b"{}") } else { body };
    let content = content(&body, plan).await?;
    Ok(Document { status, headers, content })
}

/// Checks a body and takes out of it what is wanted.
async fn content(body: &Bytes, plan: &Plan) -> Result<Content, Failure> {
    let mut reader = Reader::new(plan, body);
    while !reader.advance(SLICE).map_err(|Invalid| Failure::NotJson)? {
        tokio::task::yield_now().await;
    }
    let content = reader.finish();
    if matches!(content.value, Value::NotObject) { Err(Failure::NotObject) } else { Ok(content) }
}

/// Whether the body is gzip-encoded; any other coding than none was not asked for.
fn coding(headers: &HeaderMap) -> Result<bool, Failure> {
    let mut gzip = false;
    for value in headers.get_all(CONTENT_ENCODING) {
        for coding in value.to_str().map_err(|_| Failure::NotJson)?.split(',').map(str::trim) {
            match coding.to_ascii_lowercase().as_str() {
                "" | "identity" => {}
                "gzip" | "x-gzip" if !gzip => gzip = true,
                _ => return Err(Failure::NotJson),
            }
        }
    }
    Ok(gzip)
}

async fn read<B>(body: B, gzip: bool, limit: usize) -> Result<Bytes, Failure>
where
    B: Body<Data = Bytes, Error: Into<CallFailure>>,
{
    let expected = body.size_hint().lower();
    if !gzip && expected > u64::try_from(limit).unwrap_or(u64::MAX) {
        return Err(Failure::TooLarge);
    }
    let mut sink = if gzip { Sink::Gzip(Box::new(Gunzip::new(limit)), false) } else { Sink::Plain(Plain::new(limit, expected)) };
    let mut body = pin!(body);
    while let Some(frame) = body.frame().await.map(|frame| frame.map_err(|error| Failure::Call(error.into()))) {
        if let Ok(data) = frame?.into_data() {
            sink.push(data).await?;
        }
    }
    sink.finish()
}

/// Where a body goes while it is read.
enum Sink {
    Plain(Plain),
    /// And whether anything came at all: no bytes are an empty body, not a broken gzip stream.
    Gzip(Box<Gunzip>, bool),
}

impl Sink {
    async fn push(&mut self, data: Bytes) -> Result<(), Failure> {
        match self {
            Self::Plain(plain) => plain.push(data),
            Self::Gzip(gunzip, any) => {
                *any |= !data.is_empty();
                gunzip.push(&data).await
            }
        }
    }
    fn finish(self) -> Result<Bytes, Failure> {
        match self {
            Self::Plain(plain) => Ok(plain.finish()),
            Self::Gzip(_, false) => Ok(Bytes::new()),
            Self::Gzip(gunzip, true) => gunzip.finish(),
        }
    }
}

/// An unencoded body; one that comes in one piece is not copied.
struct Plain {
    first: Bytes,
    all: Vec<u8>,
    limit: usize,
    /// Bytes that are announced, within the limit.
    expected: usize,
}

impl Plain {
    fn new(limit: usize, expected: u64) -> Self {
        Self { first: Bytes::new(), all: Vec::new(), limit, expected: usize::try_from(expected).unwrap_or(limit).min(limit) }
    }
    fn push(&mut self, data: Bytes) -> Result<(), Failure> {
        if self.first.len() + self.all.len() + data.len() > self.limit {
            return Err(Failure::TooLarge);
        }
        if self.first.is_empty() && self.all.is_empty() {
            self.first = data;
            return Ok(());
        }
        if !self.first.is_empty() {
            self.all.reserve_exact(self.expected.max(self.first.len() + data.len()));
            self.all.extend_from_slice(&std::mem::take(&mut self.first));
        }
        self.all.extend_from_slice(&data);
        Ok(())
    }
    fn finish(self) -> Bytes {
        if self.all.is_empty() { self.first } else { Bytes::from(self.all) }
    }
}

/// A gzip body, decoded as it comes.
struct Gunzip {
    decoder: MultiGzDecoder<Bounded>,
    /// Encoded bytes that may still come: a stream that decodes to nothing must end, too.
    left: usize,
    /// Bytes of this turn, encoded and decoded.
    turn: usize,
}

impl Gunzip {
    fn new(limit: usize) -> Self {
        // A stored block costs 5 bytes in 64 KiB, the frame 18 and its optional names some more.
        let left = limit.saturating_add(limit / 1024).saturating_add(4096);
        Self { decoder: MultiGzDecoder::new(Bounded { bytes: Vec::new(), limit, full: false }), left, turn: 0 }
    }
    /// A few encoded bytes may be a thousand times as many, so it is what comes out that counts for a turn.
    async fn push(&mut self, mut data: &[u8]) -> Result<(), Failure> {
        self.left = self.left.checked_sub(data.len()).ok_or(Failure::TooLarge)?;
        while !data.is_empty() {
            let before = self.decoder.get_ref().bytes.len();
            let taken = self.decoder.write(data).map_err(|_| self.failure())?;
            data = data.get(taken..).filter(|_| taken > 0).ok_or(Failure::NotJson)?;
            self.turn += taken + self.decoder.get_ref().bytes.len().saturating_sub(before);
            if self.turn >= SLICE {
                self.turn = 0;
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    }
    fn failure(&self) -> Failure {
        if self.decoder.get_ref().full { Failure::TooLarge } else { Failure::NotJson }
    }
    fn finish(mut self) -> Result<Bytes, Failure> {
        self.decoder.try_finish().map_err(|_| self.failure())?;
        Ok(Bytes::from(std::mem::take(&mut self.decoder.get_mut().bytes)))
    }
}

/// Memory that refuses to grow beyond a limit.
struct Bounded {
    bytes: Vec<u8>,
    limit: usize,
    full: bool,
}

impl Write for Bounded {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if data.len() > self.limit - self.bytes.len() {
            self.full = true;
            return Err(io::Error::from(io::ErrorKind::FileTooLarge));
        }
        self.bytes.extend_from_slice(data);
        Ok(data.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use http_body::Frame;
    use http_body_util::Full;

    use super::super::tests::{now, plan};
    use super::*;

    /// A body that comes in these pieces.
    struct Frames(VecDeque<Result<Bytes, CallFailure>>);

    impl Body for Frames {
        type Data = Bytes;
        type Error = CallFailure;
        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, CallFailure>>> {
            Poll::Ready(self.0.pop_front().map(|piece| piece.map(Frame::data)))
        }
    }

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn answer<B>(status: u16, coding: Option<&'static str>, body: B) -> PartResponse<B> {
        let headers = coding.map(|coding| (CONTENT_ENCODING, HeaderValue::from_static(coding))).into_iter().collect();
        PartResponse { status: StatusCode::from_u16(status).unwrap(), headers, body }
    }

    fn read(status: u16, coding: Option<&'static str>, body: &[u8], limit: u64) -> Result<String, Failure> {
        let body = Full::new(Bytes::copy_from_slice(body));
        now(document(answer(status, coding, body), &plan(serde_json::json!({})), limit)).map(text).map_err(|f| f.failure)
    }

    fn text(document: Document) -> String {
        match document.content.value {
            Value::Text(text) => String::from_utf8(text.to_vec()).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn any_success_with_json_is_good_and_nothing_is_an_empty_object() {
        assert_eq!(read(200, None, b" {\"a\":1}\n", 100).unwrap(), "{\"a\":1}");
        assert_eq!(read(299, None, b"[1]", 3).unwrap(), "[1]", "the limit is included");
        assert_eq!(read(200, None, b"", 100).unwrap(), "{}");
        assert_eq!(read(200, Some("gzip"), b"", 100).unwrap(), "{}");
        assert_eq!(read(204, None, b"", 100).unwrap(), "{}");
    }

    #[test]
    fn what_is_not_json_is_a_failed_part() {
        for body in [&b"<html>"[..], b"{\"a\":", b"{}{}", b"\xff", b" "] {
            assert_eq!(read(200, None, body, 100), Err(Failure::NotJson));
        }
        assert_eq!(read(200, Some("br"), b"{}", 100), Err(Failure::NotJson));
        assert_eq!(read(200, Some("gzip, gzip"), &gzip(&gzip(b"{}")), 100), Err(Failure::NotJson));
    }

    #[test]
    fn other_statuses_fail_with_their_number_and_a_401_keeps_its_challenge() {
        assert_eq!(read(302, None, b"{}", 100).unwrap_err().to_string(), "302");
        let mut response = answer(401, None, Full::new(Bytes::new()));
        response.headers.append(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        assert_eq!(now(document(response, &plan(serde_json::json!({})), 100)).unwrap_err().challenges, ["Bearer"]);
    }

    #[test]
    fn gzip_is_decoded_and_counted_decoded() {
        let text = format!("{{\"a\":\"{}\"}}", "x".repeat(1000));
        let coded = gzip(text.as_bytes());
        assert!(coded.len() < 100);
        for coding in ["gzip", "x-gzip", "GZIP", "identity, gzip"] {
            assert_eq!(read(200, Some(coding), &coded, text.len() as u64).as_deref(), Ok(text.as_str()));
        }
        assert_eq!(read(200, Some("gzip"), &coded, text.len() as u64 - 1), Err(Failure::TooLarge));
        assert_eq!(read(200, Some("gzip"), &gzip(&vec![b' '; 1 << 20]), 1 << 14), Err(Failure::TooLarge), "a bomb");
        assert_eq!(read(200, Some("gzip"), &gzip(b"").repeat(1000), 1000), Err(Failure::TooLarge), "much that is nothing");
    }

    #[test]
    fn gzip_that_is_cut_or_broken_is_a_failed_part() {
        let coded = gzip(b"{\"a\":12345}");
        for end in 1..coded.len() {
            assert_eq!(read(200, Some("gzip"), &coded[..end], 100), Err(Failure::NotJson), "cut at {end}");
        }
        assert_eq!(read(200, Some("gzip"), b"{}", 100), Err(Failure::NotJson));
        let mut wrong = coded;
        let crc = wrong.len() - 8;
        wrong[crc] ^= 1;
        assert_eq!(read(200, Some("gzip"), &wrong, 100), Err(Failure::NotJson), "checksum");
    }

    #[test]
    fn pieces_are_put_together_within_the_limit_and_cut_bodies_fail() {
        let frames = |texts: &[Result<&'static str, CallFailure>]| {
            Frames(texts.iter().map(|t| t.map(|t| Bytes::from_static(t.as_bytes()))).collect())
        };
        let read = |texts: &[Result<&'static str, CallFailure>], limit| {
            now(document(answer(200, None, frames(texts)), &plan(serde_json::json!({})), limit)).map(text).map_err(|f| f.failure)
        };
        assert_eq!(read(&[Ok(""), Ok("[1,"), Ok("2"), Ok("]")], 5).unwrap(), "[1,2]");
        assert_eq!(read(&[Ok("[1,"), Ok("2"), Ok("]")], 4), Err(Failure::TooLarge));
        assert_eq!(read(&[Ok("[1]"), Err(CallFailure::Reset)], 100), Err(Failure::Call(CallFailure::Reset)));
    }
    #[test]
    fn a_large_answer_is_checked_in_slices() {
        let body = format!("[{}1]", "1,".repeat(SLICE));
        let plan = plan(serde_json::json!({}));
        let response = answer(200, None, Full::new(Bytes::from(body)));
        let mut reading = pin!(document(response, &plan, 1 << 20));
        let mut context = Context::from_waker(std::task::Waker::noop());
        let waits = (0..10).take_while(|_| reading.as_mut().poll(&mut context).is_pending()).count();
        assert_eq!(waits, 2);
    }
    #[test]
    fn what_is_small_and_decodes_to_much_is_decoded_in_slices() {
        let text = format!("\"{}\"", "x".repeat(8 * SLICE));
        let coded = gzip(text.as_bytes());
        assert!(coded.len() < 16 << 10, "it comes in one piece");
        let plan = plan(serde_json::json!({}));
        for (limit, least) in [(2 * text.len(), 14), (4 * SLICE, 3)] {
            let response = answer(200, Some("gzip"), Full::new(Bytes::from(coded.clone())));
            let mut reading = pin!(document(response, &plan, limit as u64));
            let mut context = Context::from_waker(std::task::Waker::noop());
            let waits = (0..100).take_while(|_| reading.as_mut().poll(&mut context).is_pending()).count();
            // Decoded and then checked, or refused where it does not fit.
            assert!((least..least + 4).contains(&waits), "{waits}");
        }
    }
}
