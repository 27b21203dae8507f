//! Framing, as far as it is visible after the parser: what could make one request look like two is refused.

use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, Version};

const BAD_LENGTH: &str = "The request has a bad Content-Length.";
const LENGTHS_DIFFER: &str = "The request has different Content-Lengths.";
const BAD_CODING: &str = "The request has a transfer coding that is not exactly one chunked.";
const BOTH: &str = "The request has both a Content-Length and a Transfer-Encoding.";

/// Checks `Content-Length` and `Transfer-Encoding`. The connection must be closed after the 400.
///
/// The parser hides a length that stood beside `chunked`: see [`head_has_length_and_chunked`].
///
/// # Errors
/// One fixed sentence for the 400.
pub fn check_framing(version: Version, headers: &HeaderMap) -> Result<(), &'static str> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let coding = codings.next();
    if let Some(coding) = coding
        && (version != Version::HTTP_11 || codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
    {
        return Err(BAD_CODING);
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let Some(first) = lengths.next() else { return Ok(()) };
    if coding.is_some() {
        return Err(BOTH);
    }
    let digits = first.as_bytes();
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) || !first.to_str().is_ok_and(|text| text.parse::<u64>().is_ok()) {
        return Err(BAD_LENGTH);
    }
    if lengths.any(|other| other != first) { Err(LENGTHS_DIFFER) } else { Ok(()) }
}

/// Whether a raw HTTP/1 request head (all bytes up to its empty line; lines end in CRLF or LF) has both a `Content-Length` and a
/// `Transfer-Encoding`. Bytes after the empty line are not looked at.
pub fn head_has_length_and_chunked(raw_head: &[u8]) -> bool {
    let (mut length, mut coding, mut in_head) = (false, false, false);
    for line in raw_head.split(|&byte| byte == b'\n') {
        match line.first() {
            None | Some(b'\r') if in_head => break,
            // Empty lines before the request line are skipped by the parser, too.
            None | Some(b'\r') => continue,
            Some(b'c' | b'C') if in_head => length |= is_field(line, b"content-length"),
            Some(b't' | b'T') if in_head => coding |= is_field(line, b"transfer-encoding"),
            Some(_) => in_head = true,
        }
    }
    length && coding
}

fn is_field(line: &[u8], name: &[u8]) -> bool {
    line.split_at_checked(name.len())
        .is_some_and(|(start, rest)| start.eq_ignore_ascii_case(name) && matches!(rest.trim_ascii_start().first(), Some(b':')))
}

/// Whether a field came twice: of two credentials nobody can say which one counts.
pub fn sent_twice(headers: &HeaderMap, name: &HeaderName) -> bool {
    headers.get_all(name).iter().nth(1).is_some()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn check(version: Version, fields: &[(&'static str, &'static str)]) -> bool {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        check_framing(version, &headers).is_ok()
    }

    #[test]
    fn only_one_exact_chunked_passes() {
        const TE: &str = "transfer-encoding";
        assert!(check(Version::HTTP_11, &[]));
        assert!(check(Version::HTTP_11, &[(TE, "Chunked")]));
        assert!(!check(Version::HTTP_10, &[(TE, "chunked")]));
        assert!(!check(Version::HTTP_2, &[(TE, "chunked")]));
        assert!(!check(Version::HTTP_11, &[(TE, "identity"), (TE, "chunked")]));
        assert!(!check(Version::HTTP_11, &[(TE, "chunked"), ("content-length", "5")]));
        for coding in ["xchunked", "chunked;q=1", ",chunked", "chunked, chunked", "gzip, chunked", "identity", ""] {
            assert!(!check(Version::HTTP_11, &[(TE, coding)]), "{coding}");
        }
    }

    #[test]
    fn lengths_must_be_numbers_and_agree() {
        const CL: &str = "content-length";
        assert!(check(Version::HTTP_11, &[(CL, "5"), (CL, "5")]));
        for lengths in [&[(CL, "5"), (CL, "6")][..], &[(CL, "5,5")], &[(CL, "+5")], &[(CL, "")], &[(CL, "18446744073709551616")]] {
            assert!(!check(Version::HTTP_11, lengths), "{lengths:?}");
        }
    }

    #[test]
    fn a_raw_head_with_length_and_coding_is_found() {
        let both = |head: &str| head_has_length_and_chunked(head.as_bytes());
        assert!(both("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n"));
        assert!(both("POST / HTTP/1.1\ntransfer-ENCODING:chunked\ncontent-length:6\n\n"));
        assert!(both("\r\n\r\nPOST / HTTP/1.1\r\nContent-Length: 6\r\nTransfer-Encoding : chunked"));
        assert!(!both("POST / HTTP/1.1\r\nContent-Length: 6\r\n\r\nTransfer-Encoding: chunked\r\n"));
        assert!(!both("Content-Length: / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"));
        assert!(!both("POST / HTTP/1.1\r\nContent-Length-X: 6\r\nTransfer-Encoding: chunked\r\n\r\n"));
        assert!(!both(""));
    }
}
