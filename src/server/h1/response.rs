//! Responses as HTTP/1 clients get them: how the end of the body is told, what the head says of the connection, and the bytes.

use std::cell::RefCell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{BufMut, Bytes};
use http::header::{CONNECTION, CONTENT_LENGTH, DATE, TRANSFER_ENCODING};
use http::{HeaderName, HeaderValue, Method, StatusCode, Version, response};
use http_body::{Body, Frame};

use crate::http::h1::{BodyLength, Lines, encode};
use crate::server::h1::outbox::Outbox;

/// Pieces up to this size are copied behind what waits to be written; larger ones are written from where they are.
const COPIED: usize = 8 << 10;
/// Room for a head with a small body.
const HEAD_ROOM: usize = 1 << 10;

/// How the client learns where the body ends.
#[derive(Debug)]
pub(super) enum Ending {
    /// There is no body, whatever the source gives.
    None,
    /// The client has been told of the end.
    Told,
    /// Its length stands in the head; so much is left.
    Length(u64),
    /// Chunks.
    Chunked {
        /// Whether the client takes trailers.
        trailers: bool,
    },
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
    /// Whether it takes trailers.
    pub(super) trailers: bool,
}

impl Asked {
    pub(super) fn new(version: Version, method: &Method, keep_alive: bool, trailers: bool) -> Self {
        Self { version, head: *method == Method::HEAD, keep_alive, trailers }
    }
}

/// A response's head: what it says stands in three places.
#[derive(Clone, Copy)]
pub(super) struct Head<'a> {
    pub(super) parts: &'a response::Parts,
    /// Fields that are not in the map of `parts`.
    pub(super) lines: Option<&'a Lines>,
    /// The request id, where it is in neither.
    pub(super) id: Option<(&'a HeaderName, &'a HeaderValue)>,
}

/// Writes a response's head into `out`; says how its body ends and whether the connection goes on. What says so in the head is made
/// here, in the one pass over the fields that writes them.
pub(super) fn begin(head: &Head<'_>, body: &impl Body, asked: &Asked, out: &mut Outbox) -> (Ending, bool) {
    let Head { parts, lines, id } = *head;
    let ending = Ending::of(parts, body, asked);
    let switching = parts.status == StatusCode::SWITCHING_PROTOCOLS;
    // Of a body that is not sent, the length stays that of the answer to a GET.
    let keep_length = matches!(ending, Ending::None) && parts.status != StatusCode::NO_CONTENT && !parts.status.is_informational();
    let (mut close, mut dated) = (!asked.keep_alive || switching || matches!(ending, Ending::Close), parts.status.is_informational());
    let out = &mut out.front;
    out.reserve(HEAD_ROOM);
    let reason = parts.extensions.get::<hyper::ext::ReasonPhrase>().map(hyper::ext::ReasonPhrase::as_bytes);
    encode::status_line(out, asked.version, parts.status, reason);
    if let Some(lines) = lines {
        lines.write(out);
        dated |= lines.dated();
        if let (true, Some(BodyLength::Known(length))) = (keep_length, lines.declared()) {
            content_length(out, length);
        }
    }
    if let Some((name, id)) = id {
        encode::field(out, name.as_str(), id.as_bytes());
    }
    for (name, value) in &parts.headers {
        if *name == CONTENT_LENGTH && !keep_length || *name == TRANSFER_ENCODING {
            continue;
        }
        if *name == CONNECTION && !switching {
            close |= value.as_bytes().eq_ignore_ascii_case(b"close");
            continue;
        }
        dated |= *name == DATE;
        encode::field(out, name.as_str(), value.as_bytes());
    }
    match &ending {
        Ending::Length(length) => content_length(out, *length),
        Ending::Chunked { .. } => out.put_slice(b"transfer-encoding: chunked\r\n"),
        Ending::None | Ending::Told | Ending::Close => {}
    }
    if !dated {
        date(|date| encode::field(out, "date", date));
    }
    if !switching {
        match (close, asked.version) {
            (true, _) => out.put_slice(b"connection: close\r\n"),
            (false, Version::HTTP_10) => out.put_slice(b"connection: keep-alive\r\n"),
            (false, _) => {}
        }
    }
    out.put_slice(b"\r\n");
    (ending, !close)
}

fn content_length(out: &mut impl BufMut, length: u64) {
    out.put_slice(b"content-length: ");
    encode::decimal(out, length);
    out.put_slice(b"\r\n");
}

impl Ending {
    fn of(parts: &response::Parts, body: &impl Body, asked: &Asked) -> Self {
        let bodiless = matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) || parts.status.is_informational();
        if bodiless || asked.head {
            return Self::None;
        }
        match body.size_hint().exact() {
            Some(length) => Self::Length(length),
            None if asked.version == Version::HTTP_10 => Self::Close,
            None => Self::Chunked { trailers: asked.trailers },
        }
    }

    /// Puts a frame of the body into `out`.
    ///
    /// # Errors
    /// The body is longer than the head said.
    pub(super) fn frame(&mut self, frame: Frame<Bytes>, out: &mut Outbox) -> Result<(), TooLong> {
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => {
                if let (Self::Chunked { trailers: true }, Ok(trailers)) = (&*self, frame.into_trailers()) {
                    encode::last_chunk(&mut out.front, &trailers);
                    *self = Self::Told;
                }
                return Ok(());
            }
        };
        if data.is_empty() {
            return Ok(());
        }
        match self {
            Self::None | Self::Told => return Ok(()),
            Self::Length(left) => *left = left.checked_sub(data.len() as u64).ok_or(TooLong)?,
            Self::Chunked { .. } => encode::chunk_size(&mut out.front, data.len()),
            Self::Close => {}
        }
        let chunked = matches!(self, Self::Chunked { .. });
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
        match std::mem::replace(self, Self::Told) {
            Self::None | Self::Told | Self::Close => true,
            Self::Length(left) => left == 0,
            Self::Chunked { .. } => {
                // What follows a large piece must not overtake it, nor the line end behind it, of which some may be written.
                match out.back.len() {
                    0 if out.piece.is_empty() => out.front.put_slice(encode::LAST_CHUNK),
                    1 => out.back = b"\n0\r\n\r\n",
                    _ => out.back = b"\r\n0\r\n\r\n",
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
    static NOW: RefCell<(u64, String)> = const { RefCell::new((0, String::new())) };
}

/// Gives the `Date` of a response that has none; written anew once a second.
fn date(write: impl FnOnce(&[u8])) {
    let second = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    NOW.with_borrow_mut(|(at, text)| {
        if *at != second {
            (*at, *text) = (second, httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(second)));
        }
        write(text.as_bytes());
    });
}

/// An answer to bytes that are no request: there is nobody else to make one.
pub(super) fn refuse(parts: &response::Parts, bytes: &Bytes, out: &mut Outbox) {
    let asked = Asked { version: Version::HTTP_11, head: false, keep_alive: false, trailers: false };
    begin(&Head { parts, lines: None, id: None }, &http_body_util::Full::new(bytes.clone()), &asked, out);
    out.front.put_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_body_never_overtakes_a_chunk() {
        let piece = Bytes::from(vec![b'x'; COPIED + 1]);
        // However much of the chunk is still to be written, the last one comes behind it.
        for (left, back) in [(piece.clone(), &b"\r\n"[..]), (Bytes::new(), b"\r\n"), (Bytes::new(), b"\n")] {
            let mut out = Outbox::new();
            (out.piece, out.back) = (left, back);
            assert!(Ending::Chunked { trailers: false }.end(&mut out));
            assert!(out.front.is_empty() && out.back == [back, b"0\r\n\r\n"].concat(), "{out:?}");
        }
        let mut out = Outbox::new();
        Ending::Chunked { trailers: false }.frame(Frame::data(piece), &mut out).unwrap();
        assert_eq!((&out.front[..], out.back), (&b"2001\r\n"[..], &b"\r\n"[..]));
    }

    #[test]
    fn a_body_that_is_not_as_long_as_its_head_says_is_cut() {
        let mut out = Outbox::new();
        assert!(!Ending::Length(1).end(&mut out), "too short");
        assert!(Ending::Length(1).frame(Frame::data(Bytes::from_static(b"ab")), &mut out).is_err(), "too long");
    }
}
