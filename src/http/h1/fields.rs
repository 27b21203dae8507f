//! Message heads: from the bytes of a head to a [`HeaderMap`] whose values are slices of these bytes.

use std::fmt;
use std::mem::MaybeUninit;

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};
use httparse::Status;

use super::lines::Lines;
use super::plain::{self, Next};
use crate::http::headers::Survey;

/// Fields that are parsed into an array on the stack; heads with more are parsed once more, into one on the heap.
const ON_STACK: usize = 64;
/// Fields whose places are noted on the stack.
const FEW: usize = 32;
/// Longest slice that is handed over whole.
const SLICE: usize = 4 << 10;
/// Most bytes of empty lines before a request line (RFC 9112 section 2.2 wants a recipient to bear "at least one").
const MAX_EMPTY: usize = 16;
/// Room for fields that the gateway adds to a request, so that the map need not grow and hash all of them anew.
const REQUEST_SPARE: usize = 5;
/// The same for a response: CORS, limits and security fields are a dozen.
pub(super) const RESPONSE_SPARE: usize = 12;

/// What a head may be at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes, from the first of the start line to the empty line.
    pub max_head: usize,
    /// Field lines.
    pub max_fields: usize,
}

/// Why bytes are no head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParseError {
    /// More than [`Limits::max_fields`].
    TooManyFields,
    /// More than [`Limits::max_head`], with a complete start line.
    HeadTooLarge,
    /// More than [`Limits::max_head`] already in the start line.
    TargetTooLong,
    /// The method is no token, or too many empty lines stand where it should be.
    BadMethod,
    /// The request-target is empty or holds a control character.
    BadTarget,
    /// Neither HTTP/1.1 nor HTTP/1.0.
    BadVersion,
    /// The status is not three digits from 100 on.
    BadStatus,
    /// A name or a value holds what it must not, or a line is folded.
    BadField,
    /// A line does not end as it must.
    BadLine,
}

impl ParseError {
    /// What is wrong, as a noun phrase.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TooManyFields => "too many header fields",
            Self::HeadTooLarge => "header fields too large",
            Self::TargetTooLong => "request target too long",
            Self::BadMethod => "bad method",
            Self::BadTarget => "bad request target",
            Self::BadVersion => "bad HTTP version",
            Self::BadStatus => "bad status",
            Self::BadField => "bad header field",
            Self::BadLine => "bad line end",
        }
    }

    fn new(error: httparse::Error, start: Self) -> Self {
        match error {
            httparse::Error::HeaderName | httparse::Error::HeaderValue => Self::BadField,
            httparse::Error::NewLine => Self::BadLine,
            httparse::Error::Status => Self::BadStatus,
            httparse::Error::Token => start,
            httparse::Error::TooManyHeaders => Self::TooManyFields,
            httparse::Error::Version => Self::BadVersion,
        }
    }
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::error::Error for ParseError {}

/// The head of a request.
#[derive(Clone, Debug)]
pub struct RequestHead {
    /// Method.
    pub method: Method,
    /// The request-target as received: no spaces, no control characters, perhaps bytes above 0x7F.
    pub target: Bytes,
    /// 1.0 or 1.1.
    pub version: Version,
    /// Fields in the order in which they came.
    pub headers: HeaderMap,
    /// Which of the fields that matter to framing and forwarding are among them.
    pub survey: Survey,
    /// Length in bytes, empty lines before it included.
    pub head_len: usize,
}

/// The head of a response.
#[derive(Clone, Debug)]
pub struct ResponseHead {
    /// Status, 100 to 999.
    pub status: StatusCode,
    /// 1.0 or 1.1.
    pub version: Version,
    /// The reason phrase if it is not the usual one of the status.
    pub reason: Option<Bytes>,
    /// Fields in the order in which they came, without `Connection: keep-alive`; empty if they are `lines`.
    pub headers: HeaderMap,
    /// Which of the fields that matter to framing and forwarding are among them.
    pub survey: Survey,
    /// The fields as they came, if that was asked for and they are plain.
    pub lines: Option<Box<Lines>>,
}

/// Takes the head of a request off the front of `buf`; `None` while it is incomplete.
///
/// `seen` belongs to the caller: 0 before the first byte of a head, then left alone. It keeps a head that arrives byte by byte from
/// being parsed as often as there are bytes.
///
/// # Errors
/// [`ParseError`]; the connection cannot be read any further then.
pub fn parse_request(buf: &mut BytesMut, seen: &mut usize, limits: Limits) -> Result<Option<RequestHead>, ParseError> {
    if buf.first().is_some_and(|byte| matches!(byte, b'\r' | b'\n')) && empty_bytes(buf) > MAX_EMPTY {
        return Err(ParseError::BadMethod);
    }
    if !may_be_complete(buf, seen) {
        return incomplete(buf, limits);
    }
    let mut spans = Spans::default();
    let line = match plain_request(buf, limits, &mut spans) {
        Some(line) => line,
        None => match parse(buf, limits, &mut spans, request_line)? {
            Some(line) => line,
            None => return incomplete(buf, limits),
        },
    };
    *seen = 0;
    let head = front(buf, line.len);
    let (method, target) = line.start;
    let target = if target.bytes(&head) == b"/" { Bytes::from_static(b"/") } else { target.of(&head) };
    let (headers, survey) = spans.fields(head, REQUEST_SPARE, |_, _| false)?;
    Ok(Some(RequestHead { method, target, version: line.version, headers, survey, head_len: line.len }))
}

/// Takes the head of a response off the front of `buf`; `None` while it is incomplete. For `seen` see [`parse_request`]. With `as_lines`
/// the fields of a final response stay lines, if they are plain.
///
/// # Errors
/// [`ParseError`]; the connection cannot be read any further then.
pub fn parse_response(buf: &mut BytesMut, seen: &mut usize, limits: Limits, as_lines: bool) -> Result<Option<ResponseHead>, ParseError> {
    if !may_be_complete(buf, seen) {
        return incomplete(buf, limits);
    }
    if as_lines && let Some((status, lines, len)) = plain_response(buf, limits) {
        *seen = 0;
        // Nothing of the buffer is kept.
        buf.advance(len);
        let (headers, survey) = (HeaderMap::new(), Survey::default());
        return Ok(Some(ResponseHead { status, version: Version::HTTP_11, reason: None, headers, survey, lines: Some(lines) }));
    }
    let mut spans = Spans::default();
    let Some(line) = parse(buf, limits, &mut spans, status_line)? else { return incomplete(buf, limits) };
    *seen = 0;
    let head = front(buf, line.len);
    let (status, reason) = line.start;
    let reason = reason.map(|reason| reason.of(&head));
    let plain = as_lines && !status.is_informational() && line.version == Version::HTTP_11;
    let lines = if plain { Lines::of(&head, spans.all()) } else { None };
    let (headers, survey) = match &lines {
        Some(_) => (HeaderMap::new(), Survey::default()),
        None => spans.fields(head, RESPONSE_SPARE, says_nothing)?,
    };
    Ok(Some(ResponseHead { status, version: line.version, reason, headers, survey, lines }))
}

/// A plain head of a request, with the places of its fields.
#[inline]
fn plain_request(buf: &[u8], limits: Limits, spans: &mut Spans) -> Option<Line<(Method, Span)>> {
    let (method, target, from) = plain::request_line(buf)?;
    let len = spans.fill_plain(buf, from, limits.max_fields)?;
    (len <= limits.max_head).then_some(Line { start: (method, target), version: Version::HTTP_11, len })
}

/// A plain head of a final response: its status, its fields, its length.
#[inline]
fn plain_response(buf: &[u8], limits: Limits) -> Option<(StatusCode, Box<Lines>, usize)> {
    let (status, from) = plain::status_line(buf).filter(|(status, _)| !status.is_informational())?;
    let (lines, len) = Lines::read(buf.get(from..)?, limits.max_fields)?;
    (from + len <= limits.max_head).then_some((status, lines, from + len))
}

/// Field lines alone, as trailers: all of `section`, which ends with an empty line.
pub(super) fn parse_trailers(section: Bytes, max_fields: usize) -> Result<HeaderMap, ParseError> {
    let mut fields = vec![httparse::EMPTY_HEADER; max_fields];
    let mut spans = Spans::default();
    match httparse::parse_headers(&section, &mut fields) {
        Ok(Status::Complete((len, fields))) if len == section.len() => spans.fill(&section, fields),
        Ok(_) => return Err(ParseError::BadLine),
        Err(error) => return Err(ParseError::new(error, ParseError::BadField)),
    }
    Ok(spans.fields(section, 0, |_, _| false)?.0)
}

/// The first `len` bytes of `buf`. Where that is all of a slice they are handed over instead of shared. A buffer that is read into again and
/// again must keep its memory: those are larger.
pub(super) fn front(buf: &mut BytesMut, len: usize) -> Bytes {
    let all = len == buf.len() && len == buf.capacity() && len <= SLICE;
    if all { std::mem::take(buf) } else { buf.split_to(len) }.freeze()
}

/// A head that is not complete must not be too long already.
fn incomplete<T>(buf: &[u8], limits: Limits) -> Result<Option<T>, ParseError> {
    if buf.len() <= limits.max_head {
        return Ok(None);
    }
    let begun = buf.get(empty_bytes(buf)..).unwrap_or_default();
    Err(if begun.contains(&b'\n') { ParseError::HeadTooLarge } else { ParseError::TargetTooLong })
}

/// Whether a field of a response goes without saying and ends at this hop: most servers send it with each answer, and whoever passes
/// the answer on would have to find it and take it out again.
fn says_nothing(name: &[u8], value: &[u8]) -> bool {
    name.len() == 10 && value == b"keep-alive" && name.eq_ignore_ascii_case(b"connection")
}

/// Bytes of empty lines in front.
fn empty_bytes(buf: &[u8]) -> usize {
    buf.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count()
}

/// Whether an empty line can have come with the bytes behind the first `seen`; the first look at a head always parses.
fn may_be_complete(buf: &[u8], seen: &mut usize) -> bool {
    let earlier = std::mem::replace(seen, buf.len());
    if earlier == 0 || buf.is_empty() {
        return !buf.is_empty();
    }
    let news = buf.get(earlier.saturating_sub(3)..).unwrap_or(buf);
    news.windows(2).enumerate().any(|(at, pair)| pair == b"\n\n" || pair == b"\n\r" && news.get(at + 2) == Some(&b'\n'))
}

/// A part of a head.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) start: u32,
    pub(super) end: u32,
}

impl Span {
    const NONE: Self = Self { start: 0, end: 0 };

    /// From `start` to before `end`. A head is never as long as 4 GiB.
    #[inline]
    pub(super) fn between(start: usize, end: usize) -> Self {
        Self { start: u32::try_from(start).unwrap_or(u32::MAX), end: u32::try_from(end).unwrap_or(u32::MAX) }
    }
    /// Where `part`, a part of `whole`, is.
    fn new(whole: &[u8], part: &[u8]) -> Self {
        let start = part.as_ptr() as usize - whole.as_ptr() as usize;
        Self::between(start, start + part.len())
    }
    #[inline]
    pub(super) fn len(self) -> usize {
        (self.end - self.start) as usize
    }
    fn of(self, head: &Bytes) -> Bytes {
        head.slice(self.start as usize..self.end as usize)
    }
    /// The same of a head that is not needed any more: its share of the memory goes over.
    fn rest_of(self, mut head: Bytes) -> Bytes {
        head.truncate(self.end as usize);
        head.advance((self.start as usize).min(head.len()));
        head
    }
    #[inline]
    pub(super) fn bytes(self, head: &[u8]) -> &[u8] {
        head.get(self.start as usize..self.end as usize).unwrap_or_default()
    }
}

/// Where names and values are: the parser's own slices cannot outlive the buffer's becoming shareable.
struct Spans {
    few: [(Span, Span); FEW],
    many: Vec<(Span, Span)>,
    len: usize,
}

impl Default for Spans {
    #[inline]
    fn default() -> Self {
        Self { few: [(Span::NONE, Span::NONE); FEW], many: Vec::new(), len: 0 }
    }
}

impl Spans {
    /// Notes plain lines from `at` on; the length of the head, or `None` if there are others or too many.
    #[inline]
    fn fill_plain(&mut self, head: &[u8], from: usize, most: usize) -> Option<usize> {
        self.len = 0;
        let mut rest = head.get(from..)?;
        loop {
            let at = head.len() - rest.len();
            match plain::line(rest) {
                Next::Line { .. } if self.len >= most => return None,
                Next::Line { name, behind, .. } => {
                    let (colon, end) = (at + name.len(), head.len() - behind.len() - 2);
                    *self.few.get_mut(self.len)? = (Span::between(at, colon), Span::between(colon + 2, end));
                    self.len += 1;
                    rest = behind;
                }
                Next::End => return Some(at + 2),
                Next::Other => return None,
            }
        }
    }

    fn fill(&mut self, head: &[u8], fields: &[httparse::Header<'_>]) {
        let spans = |field: &httparse::Header<'_>| (Span::new(head, field.name.as_bytes()), Span::new(head, field.value));
        self.len = fields.len();
        if fields.len() <= FEW {
            for (place, field) in self.few.iter_mut().zip(fields) {
                *place = spans(field);
            }
        } else {
            self.many = fields.iter().map(spans).collect();
        }
    }

    #[inline]
    fn all(&self) -> &[(Span, Span)] {
        self.few.get(..self.len).unwrap_or(&self.many)
    }

    #[inline]
    fn fields(&self, mut head: Bytes, spare: usize, skip: impl Fn(&[u8], &[u8]) -> bool) -> Result<(HeaderMap, Survey), ParseError> {
        let mut headers = HeaderMap::try_with_capacity(self.len + spare).map_err(|_| ParseError::TooManyFields)?;
        let mut survey = Survey::default();
        for (at, &(name, value)) in self.all().iter().enumerate() {
            if skip(name.bytes(&head), value.bytes(&head)) {
                continue;
            }
            let name = match plain::usual(head.get(name.start as usize..).unwrap_or_default(), name.len()) {
                Some(name) => name,
                None => HeaderName::from_bytes(name.bytes(&head)).map_err(|_| ParseError::BadField)?,
            };
            let value = if at + 1 == self.len { value.rest_of(std::mem::take(&mut head)) } else { value.of(&head) };
            let value = HeaderValue::from_maybe_shared(value).map_err(|_| ParseError::BadField)?;
            survey.add(&name);
            headers.try_append(name, value).map_err(|_| ParseError::TooManyFields)?;
        }
        Ok((headers, survey))
    }
}

/// A parsed start line and how long the head is.
struct Line<T> {
    start: T,
    version: Version,
    len: usize,
}

type Fields<'a, 'b> = &'a mut [MaybeUninit<httparse::Header<'b>>];
type Parsed<T> = Result<Option<Line<T>>, ParseError>;

/// Parses with room for the usual number of fields, and once more where there are more and that is allowed.
#[inline]
fn parse<T>(
    buf: &[u8],
    limits: Limits,
    spans: &mut Spans,
    start: impl for<'b> Fn(&'b [u8], Fields<'_, 'b>, &mut Spans) -> Parsed<T>,
) -> Parsed<T> {
    let mut few = [const { MaybeUninit::uninit() }; ON_STACK];
    let room = few.get_mut(..limits.max_fields.min(ON_STACK)).unwrap_or_default();
    let parsed = match start(buf, room, spans) {
        Err(ParseError::TooManyFields) if limits.max_fields > ON_STACK => {
            start(buf, &mut vec![MaybeUninit::uninit(); limits.max_fields], spans)
        }
        parsed => parsed,
    };
    match parsed {
        Ok(Some(line)) if line.len > limits.max_head => Err(ParseError::HeadTooLarge),
        parsed => parsed,
    }
}

#[inline]
fn request_line<'b>(buf: &'b [u8], fields: Fields<'_, 'b>, spans: &mut Spans) -> Parsed<(Method, Span)> {
    let mut request = httparse::Request::new(&mut []);
    let len = match request.parse_with_uninit_headers(buf, fields) {
        Ok(Status::Complete(len)) => len,
        Ok(Status::Partial) => return Ok(None),
        Err(error) => {
            let start = if request.method.is_none() { ParseError::BadMethod } else { ParseError::BadTarget };
            return Err(ParseError::new(error, start));
        }
    };
    let method = request.method.and_then(|method| Method::from_bytes(method.as_bytes()).ok()).ok_or(ParseError::BadMethod)?;
    let target = request.path.filter(|path| !path.is_empty()).ok_or(ParseError::BadTarget)?;
    spans.fill(buf, request.headers);
    Ok(Some(Line { start: (method, Span::new(buf, target.as_bytes())), version: version(request.version)?, len }))
}

#[inline]
fn status_line<'b>(buf: &'b [u8], fields: Fields<'_, 'b>, spans: &mut Spans) -> Parsed<(StatusCode, Option<Span>)> {
    let mut response = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let len = match config.parse_response_with_uninit_headers(&mut response, buf, fields) {
        Ok(Status::Complete(len)) => len,
        Ok(Status::Partial) => return Ok(None),
        Err(error) => return Err(ParseError::new(error, ParseError::BadStatus)),
    };
    // RFC 9110 section 15 knows no class above 5xx.
    let code = response.code.filter(|code| *code < 600);
    let status = code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or(ParseError::BadStatus)?;
    // A phrase with bytes above 0x7F is given as "", which is no part of the buffer.
    let reason = response.reason.filter(|reason| !reason.is_empty() && Some(*reason) != status.canonical_reason());
    let reason = reason.map(|reason| Span::new(buf, reason.as_bytes()));
    spans.fill(buf, response.headers);
    Ok(Some(Line { start: (status, reason), version: version(response.version)?, len }))
}

fn version(minor: Option<u8>) -> Result<Version, ParseError> {
    match minor {
        Some(1) => Ok(Version::HTTP_11),
        Some(0) => Ok(Version::HTTP_10),
        Some(_) | None => Err(ParseError::BadVersion),
    }
}
