//! Message heads and chunks as bytes. Names out of a map are written in lower case, as HTTP/2 wants them and HTTP/1.1 does not care.

use bytes::BufMut;
use http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HOST, MAX_FORWARDS, SET_COOKIE, TE,
    TRAILER, TRANSFER_ENCODING,
};
use http::{HeaderMap, HeaderName, StatusCode, Version};

/// The end of a chunked body without trailers.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// Whether `target` can stand in a request line: not empty, no space, no control character.
pub fn is_target(target: &[u8]) -> bool {
    !target.is_empty() && target.iter().all(|&byte| byte > b' ' && byte != 0x7F)
}

/// Writes the first line of a response; anything but HTTP/1.0 is written as HTTP/1.1. Without `reason` the status has its usual phrase,
/// or none.
pub fn status_line(out: &mut impl BufMut, version: Version, status: StatusCode, reason: Option<&[u8]>) {
    if reason.is_none() && status == StatusCode::OK && version != Version::HTTP_10 {
        return out.put_slice(b"HTTP/1.1 200 OK\r\n");
    }
    out.put_slice(if version == Version::HTTP_10 { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
    out.put_slice(status.as_str().as_bytes());
    out.put_slice(b" ");
    let safe = reason.filter(|reason| reason.iter().all(|&byte| byte == b'\t' || byte >= b' ' && byte != 0x7F));
    out.put_slice(safe.unwrap_or_else(|| status.canonical_reason().unwrap_or_default().as_bytes()));
    out.put_slice(b"\r\n");
}

/// Writes a field line.
#[inline]
pub fn field(out: &mut impl BufMut, name: &str, value: &[u8]) {
    out.put_slice(name.as_bytes());
    out.put_slice(b": ");
    out.put_slice(value);
    out.put_slice(b"\r\n");
}

/// Writes a number.
pub fn decimal(out: &mut impl BufMut, number: u64) {
    let mut digits = [0_u8; 20];
    let mut rest = number;
    let mut first = digits.len();
    for (at, digit) in digits.iter_mut().enumerate().rev() {
        *digit = b'0' + u8::try_from(rest % 10).unwrap_or_default();
        rest /= 10;
        first = at;
        if rest == 0 {
            break;
        }
    }
    out.put_slice(digits.get(first..).unwrap_or_default());
}

/// Writes the line before `len` bytes of a chunk; a chunk of 0 bytes would end the body, so none is written for it.
pub fn chunk_size(out: &mut impl BufMut, len: usize) {
    if len == 0 {
        return;
    }
    let digits = (usize::BITS - len.leading_zeros()).div_ceil(4);
    for place in (0..digits).rev() {
        let digit = (len >> (place * 4)) & 0xF;
        out.put_u8(b"0123456789ABCDEF".get(digit).copied().unwrap_or(b'0'));
    }
    out.put_slice(b"\r\n");
}

/// Writes the end of a chunked body: of `trailers` those that may be ones (RFC 9110 section 6.5.1), announced or not.
pub fn last_chunk(out: &mut impl BufMut, trailers: &HeaderMap) {
    out.put_slice(b"0\r\n");
    for (name, value) in trailers.iter().filter(|(name, _)| may_be_trailer(name)) {
        field(out, name.as_str(), value.as_bytes());
    }
    out.put_slice(b"\r\n");
}

/// Framing, routing, credentials and what the body means must be known before the body.
fn may_be_trailer(name: &HeaderName) -> bool {
    !matches!(
        *name,
        AUTHORIZATION
            | CACHE_CONTROL
            | CONTENT_ENCODING
            | CONTENT_LENGTH
            | CONTENT_RANGE
            | CONTENT_TYPE
            | HOST
            | MAX_FORWARDS
            | SET_COOKIE
            | TE
            | TRAILER
            | TRANSFER_ENCODING
    )
}
