//! Responses as HTTP/1 clients get them: how the end of the body is told, what the head says of the connection, and the bytes.

use std::cell::RefCell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, DATE, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, response};
use http_body::{Body, Frame};

use crate::http::h1::encode;
use crate::server::h1::wire::Outbox;

/// Pieces up to this size are copied behind what waits to be written; larger ones are written from where they are.
const COPIED: usize = 8 << 10;
/// Room for a head with a small body.
const HEAD_ROOM: usize = 1 << 10;

/// How the client learns where the body ends.
#[derive(Debug)]
pub(super) enum Ending {
    /// There is no body, whatever the source gives.
    None,
    /// Its length stands in the head; so much is left.
    Length(u64),
    /// Chunks; these trailers were announced.
    Chunked(Vec<HeaderName>),
    /// The connection ends with it.
    Close,
}

/// What a response depends on in its request.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) version: Version,
    pub(super) head: bool,
    /// Whether the client wants to go on with the connection.
    pub(super) keep_alive: bool,
}

impl Asked {
    pub(super) fn new(version: Version, method: &Method, keep_alive: bool) -> Self {
        Self { version, head: *method == Method::HEAD, keep_alive }
    }
}

/// Writes a response's head into `out`; says how its body ends and whether the connection goes on.
pub(super) fn begin(parts: &mut response::Parts, body: &impl Body, asked: &Asked, out: &mut Outbox) -> (Ending, bool) {
    let headers = &mut parts.headers;
    let ending = ending(parts.status, headers, body, asked);
    let switching = parts.status == StatusCode::SWITCHING_PROTOCOLS;
    let mut keep_alive = asked.keep_alive && !matches!(ending, Ending::Close);
    if switching {
        keep_alive = false;
    } else if headers.get(CONNECTION).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"close")) {
        keep_alive = false;
    } else if !keep_alive {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    } else if asked.version == Version::HTTP_10 {
        headers.insert(CONNECTION, HeaderValue::from_static("keep-alive"));
    }
    if !headers.contains_key(DATE) && !parts.status.is_informational() {
        headers.insert(DATE, date());
    }
    let reason = parts.extensions.get::<hyper::ext::ReasonPhrase>().map(hyper::ext::ReasonPhrase::as_bytes);
    out.front.reserve(HEAD_ROOM);
    encode::response_head(&mut out.front, asked.version, parts.status, reason, headers);
    (ending, keep_alive)
}

fn ending(status: StatusCode, headers: &mut HeaderMap, body: &impl Body, asked: &Asked) -> Ending {
    if status == StatusCode::NO_CONTENT || status.is_informational() {
        headers.remove(CONTENT_LENGTH);
        return Ending::None;
    }
    if asked.head || status == StatusCode::NOT_MODIFIED {
        // The length is that of the answer to a GET, as whoever made the response has it.
        return Ending::None;
    }
    match body.size_hint().exact() {
        Some(length) => {
            let said = headers.get(CONTENT_LENGTH).and_then(|said| said.to_str().ok()?.parse::<u64>().ok());
            if said != Some(length) {
                headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
            }
            Ending::Length(length)
        }
        None => {
            headers.remove(CONTENT_LENGTH);
            if asked.version == Version::HTTP_10 {
                return Ending::Close;
            }
            headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
            Ending::Chunked(encode::announced(headers))
        }
    }
}

impl Ending {
    /// Puts a frame of the body into `out`.
    ///
    /// # Errors
    /// The body is longer than the head said.
    pub(super) fn frame(&mut self, frame: Frame<Bytes>, out: &mut Outbox) -> Result<(), TooLong> {
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => {
                if let (Self::Chunked(announced), Ok(trailers)) = (&*self, frame.into_trailers()) {
                    encode::last_chunk(&mut out.front, &trailers, announced);
                    *self = Self::None;
                }
                return Ok(());
            }
        };
        if data.is_empty() {
            return Ok(());
        }
        match self {
            Self::None => return Ok(()),
            Self::Length(left) => *left = left.checked_sub(data.len() as u64).ok_or(TooLong)?,
            Self::Chunked(_) => encode::chunk_size(&mut out.front, data.len()),
            Self::Close => {}
        }
        let chunked = matches!(self, Self::Chunked(_));
        if data.len() <= COPIED {
            out.front.put_slice(&data);
            out.front.put_slice(if chunked { b"\r\n" } else { b"" });
        } else {
            out.piece = data;
            out.back = if chunked { b"\r\n" } else { b"" };
        }
        Ok(())
    }

    /// The body has ended: puts what tells the client so into `out`. `false` if it ended before its length.
    pub(super) fn end(&mut self, out: &mut Outbox) -> bool {
        match std::mem::replace(self, Self::None) {
            Self::None | Self::Close => true,
            Self::Length(left) => left == 0,
            Self::Chunked(_) => {
                // What follows a large piece must not overtake it.
                if out.piece.is_empty() {
                    out.front.put_slice(encode::LAST_CHUNK);
                } else {
                    out.back = b"\r\n0\r\n\r\n";
                }
                true
            }
        }
    }
}

/// A body is longer than its head said.
#[derive(Debug)]
pub(super) struct TooLong;

thread_local! {
    static NOW: RefCell<(u64, HeaderValue)> = const { RefCell::new((0, HeaderValue::from_static(""))) };
}

/// The `Date` of a response that has none; written anew once a second.
fn date() -> HeaderValue {
    let second = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    NOW.with_borrow_mut(|(at, value)| {
        if *at != second {
            let text = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(second));
            if let Ok(new) = HeaderValue::from_str(&text) {
                (*at, *value) = (second, new);
            }
        }
        value.clone()
    })
}

/// An answer to bytes that are no request: there is nobody else to make one.
pub(super) fn refuse(parts: &mut response::Parts, bytes: &Bytes, out: &mut BytesMut) {
    parts.headers.insert(CONNECTION, HeaderValue::from_static("close"));
    parts.headers.insert(DATE, date());
    encode::response_head(out, Version::HTTP_11, parts.status, None, &parts.headers);
    out.put_slice(bytes);
}
