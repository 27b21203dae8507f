//! Answers that the gateway makes itself when it refuses: problem details of RFC 9457.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, Response, response};
use serde_json::Value;

use crate::error::Refusal;

/// The media type.
pub const CONTENT: HeaderValue = HeaderValue::from_static("application/problem+json");

/// The answer for `refusal`: `application/problem+json`, never stored. For a HEAD request (`head`) the body is empty and the length that of GET.
pub fn response(refusal: &Refusal, request_id: &HeaderValue, head: bool) -> (response::Parts, Bytes) {
    let body = body(refusal, request_id);
    let (mut parts, ()) = Response::new(()).into_parts();
    parts.status = refusal.status();
    parts.headers = refusal.headers.clone();
    parts.headers.insert(CONTENT_TYPE, CONTENT);
    parts.headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    (parts, if head { Bytes::new() } else { Bytes::from(body) })
}

/// The members in the order of the documentation's sample, then the extra ones.
fn body(refusal: &Refusal, request_id: &HeaderValue) -> Vec<u8> {
    let status = refusal.status();
    let mut out = Vec::with_capacity(256);
    out.extend_from_slice(b"{\"type\":");
    push_text(&mut out, refusal.problem_type.unwrap_or("about:blank"));
    out.extend_from_slice(b",\"title\":");
    push_text(&mut out, status.canonical_reason().unwrap_or("Error"));
    out.extend_from_slice(b",\"status\":");
    out.extend_from_slice(status.as_str().as_bytes());
    out.extend_from_slice(b",\"detail\":");
    push_text(&mut out, &refusal.detail);
    out.extend_from_slice(b",\"reason\":");
    push_text(&mut out, refusal.reason.as_str());
    out.extend_from_slice(b",\"request_id\":");
    push_text(&mut out, &String::from_utf8_lossy(request_id.as_bytes()));
    for (name, value) in &refusal.extra {
        out.push(b',');
        push_text(&mut out, name);
        out.push(b':');
        push_value(&mut out, value);
    }
    out.push(b'}');
    out
}

fn push_text(out: &mut Vec<u8>, text: &str) {
    push_value(out, &text);
}

fn push_value<T: serde::Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    // Neither text nor a JSON value can fail to be written into memory; should it ever, the body stays valid JSON.
    let start = out.len();
    if serde_json::to_writer(&mut *out, value).is_err() {
        out.truncate(start);
        out.extend_from_slice(Value::Null.to_string().as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Reason;

    const ID: HeaderValue = HeaderValue::from_static("0198c9");

    #[test]
    fn a_problem_reads_exactly_as_documented() {
        let refusal = Refusal::new(Reason::UpstreamConnectFailed, "The upstream refused the connection.");
        let (parts, body) = response(&refusal, &ID, false);
        let expected = r#"{"type":"about:blank","title":"Bad Gateway","status":502,"detail":"The upstream refused the connection.","reason":"upstream_connect_failed","request_id":"0198c9"}"#;
        assert_eq!(std::str::from_utf8(&body).unwrap(), expected);
        assert_eq!(parts.status, 502);
        assert_eq!(parts.headers[CONTENT_TYPE], "application/problem+json");
        assert_eq!(parts.headers[CACHE_CONTROL], "no-store");
        assert_eq!(parts.headers[CONTENT_LENGTH], expected.len().to_string());
    }

    #[test]
    fn head_has_the_length_of_get_and_no_body() {
        let refusal = Refusal::new(Reason::NoRoute, "No route.");
        let (get, body) = response(&refusal, &ID, false);
        let (head, empty) = response(&refusal, &ID, true);
        assert!(empty.is_empty());
        assert_eq!(head.headers[CONTENT_LENGTH], body.len().to_string());
        assert_eq!(get.headers, head.headers);
    }

    #[test]
    fn extra_members_type_and_headers_are_kept() {
        let mut refusal = Refusal::new(Reason::RateLimited, "Too \"many\".");
        refusal.problem_type = Some("https://iana.org/assignments/http-problem-types#quota-exceeded");
        refusal.extra.push(("violated-policies", serde_json::json!(["user"])));
        let refusal = refusal.header(http::header::RETRY_AFTER, HeaderValue::from_static("2"));
        let (parts, body) = response(&refusal, &ID, false);
        let value: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(value["type"], "https://iana.org/assignments/http-problem-types#quota-exceeded");
        assert_eq!(value["title"], "Too Many Requests");
        assert_eq!(value["detail"], "Too \"many\".");
        assert_eq!(value["violated-policies"], serde_json::json!(["user"]));
        assert_eq!(parts.headers["retry-after"], "2");
    }
}
