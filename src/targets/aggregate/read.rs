//! Reads one part's answer: bounded, gzip decoded, checked to be JSON.

use std::io::{self, Write};
use std::ops::Range;
use std::pin::pin;

use bytes::Bytes;
use flate2::write::MultiGzDecoder;
use http::header::{CONTENT_ENCODING, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body::Body;
use http_body_util::BodyExt;

use super::call::{CallFailure, Failure, PartResponse};
use super::json;

/// A part that answered with JSON.
#[derive(Clone, Debug)]
pub(super) struct Document {
    /// Status of the answer.
    pub status: StatusCode,
    /// Its fields, for `Cache-Control`.
    pub headers: HeaderMap,
    body: Bytes,
    place: Range<usize>,
}

impl Document {
    /// The JSON text, without white space around it.
    pub(super) fn text(&self) -> &str {
        // It was checked to be UTF-8 when it was read.
        std::str::from_utf8(&self.body).ok().and_then(|text| text.get(self.place.clone())).unwrap_or("null")
    }
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

/// Reads an answer whose body may have `limit` bytes when decoded.
pub(super) async fn document<B>(response: PartResponse<B>, limit: u64) -> Result<Document, Failed>
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
    let place = json::validate(&body).ok_or(Failure::NotJson)?;
    Ok(Document { status, headers, body, place })
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
    let mut sink = if gzip { Sink::Gzip(Box::new(Gunzip::new(limit)), false) } else { Sink::Plain(Plain::new(limit)) };
    let mut body = pin!(body);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Failure::Call(error.into()))?;
        if let Ok(data) = frame.into_data() {
            sink.push(data)?;
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
    fn push(&mut self, data: Bytes) -> Result<(), Failure> {
        match self {
            Self::Plain(plain) => plain.push(data),
            Self::Gzip(gunzip, any) => {
                *any |= !data.is_empty();
                gunzip.push(&data)
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
}

impl Plain {
    fn new(limit: usize) -> Self {
        Self { first: Bytes::new(), all: Vec::new(), limit }
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
}

impl Gunzip {
    fn new(limit: usize) -> Self {
        // A stored block costs 5 bytes in 64 KiB, the frame 18 and its optional names some more.
        let left = limit.saturating_add(limit / 1024).saturating_add(4096);
        Self { decoder: MultiGzDecoder::new(Bounded { bytes: Vec::new(), limit, full: false }), left }
    }
    fn push(&mut self, data: &[u8]) -> Result<(), Failure> {
        self.left = self.left.checked_sub(data.len()).ok_or(Failure::TooLarge)?;
        self.decoder.write_all(data).map_err(|_| self.failure())
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
