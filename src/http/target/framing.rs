//! Framing, as far as it is visible after the parser: what could make one request look like two is refused.

use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, Version};

const BAD_LENGTH: &str = "The request has a bad Content-Length.";
const LENGTHS_DIFFER: &str = "The request has different Content-Lengths.";
const BAD_CODING: &str = "The request has a transfer coding that is not exactly one chunked.";
const BOTH: &str = "The request has both a Content-Length and a Transfer-Encoding.";

/// Checks `Content-Length` and `Transfer-Encoding`. The connection must be closed after the 400.
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
}
