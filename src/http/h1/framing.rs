//! How long the body of a message is (RFC 9112 section 6.3), decided once from its head. Stricter than the RFC where being lenient
//! lets two parties disagree on where a message ends: one `Transfer-Encoding` that is exactly `chunked`, one length or several equal
//! ones, never both.

use std::fmt;

use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version};

use crate::http::headers::Survey;

/// Where a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyLength {
    /// After this many bytes; 0 where there is no body.
    Known(u64),
    /// With the last chunk.
    Chunked,
    /// With the connection. Responses only.
    UntilClose,
}

/// Why nobody can tell where a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FramingError {
    /// A `Content-Length` that is no number.
    BadLength,
    /// Several that differ.
    LengthsDiffer,
    /// `Transfer-Encoding` is not exactly one `chunked`.
    BadCoding,
    /// `Transfer-Encoding` in HTTP/1.0.
    CodingInHttp10,
    /// Both a `Content-Length` and a `Transfer-Encoding`.
    LengthAndCoding,
}

impl FramingError {
    /// What is wrong, as a noun phrase.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BadLength => "a bad Content-Length",
            Self::LengthsDiffer => "different Content-Lengths",
            Self::BadCoding => "a transfer coding that is not exactly one chunked",
            Self::CodingInHttp10 => "a transfer coding in HTTP/1.0",
            Self::LengthAndCoding => "both a Content-Length and a Transfer-Encoding",
        }
    }
}

impl fmt::Display for FramingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::error::Error for FramingError {}

/// The length of a request's body. Several equal lengths become one in `headers`.
///
/// # Errors
/// [`FramingError`]: 400, and the connection must be closed.
pub fn of_request(version: Version, headers: &mut HeaderMap, survey: Survey) -> Result<BodyLength, FramingError> {
    Ok(declared(version, headers, survey)?.unwrap_or(BodyLength::Known(0)))
}

/// The length of a final response's body to a request with `method`. Several equal lengths become one in `headers`; those of a body
/// that is not sent (HEAD, 304) stay.
///
/// # Errors
/// [`FramingError`]: the response cannot be used, nor the connection, whatever its status.
pub fn of_response(
    method: &Method,
    status: StatusCode,
    version: Version,
    headers: &mut HeaderMap,
    survey: Survey,
) -> Result<BodyLength, FramingError> {
    Ok(of_declared(method, status, declared(version, headers, survey)?))
}

/// The same for a response whose head declares this.
pub fn of_declared(method: &Method, status: StatusCode, declared: Option<BodyLength>) -> BodyLength {
    let tunnel = *method == Method::CONNECT && status.is_success();
    if status.is_informational() || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) || *method == Method::HEAD || tunnel
    {
        return BodyLength::Known(0);
    }
    declared.unwrap_or(BodyLength::UntilClose)
}

/// What the fields say.
fn declared(version: Version, headers: &mut HeaderMap, survey: Survey) -> Result<Option<BodyLength>, FramingError> {
    if survey.transfer_encoding() {
        let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
        let chunked = codings.next().is_some_and(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
        return match (survey.content_length(), version) {
            (true, _) => Err(FramingError::LengthAndCoding),
            (false, Version::HTTP_11) if chunked && codings.next().is_none() => Ok(Some(BodyLength::Chunked)),
            (false, Version::HTTP_11) => Err(FramingError::BadCoding),
            (false, _) => Err(FramingError::CodingInHttp10),
        };
    }
    if !survey.content_length() {
        return Ok(None);
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let Some(first) = lengths.next() else { return Ok(None) };
    let length = number(first.as_bytes()).ok_or(FramingError::BadLength)?;
    let mut several = false;
    for other in lengths {
        several = true;
        if number(other.as_bytes()).ok_or(FramingError::BadLength)? != length {
            return Err(FramingError::LengthsDiffer);
        }
    }
    if several {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    Ok(Some(BodyLength::Known(length)))
}

/// Digits only: no sign, no list, no space.
pub(in crate::http) fn number(digits: &[u8]) -> Option<u64> {
    let step = |sum: u64, byte: &u8| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        sum.checked_mul(10)?.checked_add(digit)
    };
    if digits.is_empty() { None } else { digits.iter().try_fold(0, step) }
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;

    fn map(fields: &[(&'static str, &'static str)]) -> (HeaderMap, Survey) {
        let fields = fields.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(name, value);
        }
        let survey = Survey::of(&headers);
        (headers, survey)
    }
    fn request(version: Version, fields: &[(&'static str, &'static str)]) -> Result<BodyLength, FramingError> {
        let (mut headers, survey) = map(fields);
        of_request(version, &mut headers, survey)
    }
    fn response(method: &Method, status: u16, fields: &[(&'static str, &'static str)]) -> Result<BodyLength, FramingError> {
        let (mut headers, survey) = map(fields);
        of_response(method, StatusCode::from_u16(status).unwrap(), Version::HTTP_11, &mut headers, survey)
    }

    const CL: &str = "content-length";
    const TE: &str = "transfer-encoding";

    #[test]
    fn a_request_without_framing_has_no_body_and_a_response_ends_with_the_connection() {
        assert_eq!(request(Version::HTTP_11, &[]), Ok(BodyLength::Known(0)));
        assert_eq!(response(&Method::GET, 200, &[]), Ok(BodyLength::UntilClose));
    }

    #[test]
    fn lengths_are_digits_and_agree() {
        assert_eq!(request(Version::HTTP_10, &[(CL, "18446744073709551615")]), Ok(BodyLength::Known(u64::MAX)));
        assert_eq!(response(&Method::GET, 200, &[(CL, "05")]), Ok(BodyLength::Known(5)));
        for bad in ["", "+5", "-0", "5,5", "5 5", "0x5", "18446744073709551616", "\u{a0}5"] {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_LENGTH, HeaderValue::from_bytes(bad.as_bytes()).unwrap());
            let survey = Survey::of(&headers);
            assert_eq!(of_request(Version::HTTP_11, &mut headers, survey), Err(FramingError::BadLength), "{bad}");
        }
        assert_eq!(request(Version::HTTP_11, &[(CL, "5"), (CL, "6")]), Err(FramingError::LengthsDiffer));
        assert_eq!(request(Version::HTTP_11, &[(CL, "5"), (CL, "x")]), Err(FramingError::BadLength));
    }

    #[test]
    fn equal_lengths_become_one() {
        let (mut headers, survey) = map(&[(CL, "5"), (CL, "5"), (CL, "05")]);
        assert_eq!(of_request(Version::HTTP_11, &mut headers, survey), Ok(BodyLength::Known(5)));
        assert_eq!(headers.get_all(CL).iter().collect::<Vec<_>>(), ["5"]);
    }

    #[test]
    fn only_one_exact_chunked_passes_and_never_beside_a_length() {
        assert_eq!(request(Version::HTTP_11, &[(TE, "Chunked")]), Ok(BodyLength::Chunked));
        assert_eq!(request(Version::HTTP_10, &[(TE, "chunked")]), Err(FramingError::CodingInHttp10));
        assert_eq!(request(Version::HTTP_11, &[(TE, "identity"), (TE, "chunked")]), Err(FramingError::BadCoding));
        for coding in ["xchunked", "chunked;q=1", ",chunked", "chunked, chunked", "gzip, chunked", "chunked, gzip", "identity", ""] {
            assert_eq!(request(Version::HTTP_11, &[(TE, coding)]), Err(FramingError::BadCoding), "{coding}");
        }
        for fields in [&[(CL, "5"), (TE, "chunked")][..], &[(TE, "x"), (CL, "5")]] {
            assert_eq!(request(Version::HTTP_11, fields), Err(FramingError::LengthAndCoding));
            assert_eq!(response(&Method::HEAD, 304, fields), Err(FramingError::LengthAndCoding));
        }
    }

    #[test]
    fn some_responses_never_have_a_body() {
        let long = [(CL, "5")];
        for (method, status) in [(Method::HEAD, 200), (Method::GET, 204), (Method::GET, 304), (Method::GET, 101), (Method::CONNECT, 200)] {
            assert_eq!(response(&method, status, &long), Ok(BodyLength::Known(0)), "{method} {status}");
            assert_eq!(response(&method, status, &[]), Ok(BodyLength::Known(0)), "{method} {status}");
        }
        assert_eq!(response(&Method::CONNECT, 400, &long), Ok(BodyLength::Known(5)));
    }
}
