//! Header fields a proxy must not just pass on: hop-by-hop fields, fields that only the gateway may set, forwarded fields, request ids.

mod edit;
mod forwarded;
mod hop_by_hop;
mod protected;
mod request_id;
mod survey;

use http::header::COOKIE;
use http::{HeaderMap, HeaderName, HeaderValue};

pub use edit::{Beside, FieldValue, Fields, Ready};
pub use forwarded::{Added, Forwarding, Usual, effective_scheme, set_forwarded};
pub use hop_by_hop::{HopByHop, is_hop_by_hop, is_reserved, remove_hop_by_hop};
pub use protected::ProtectedNames;
pub use request_id::{make_request_id, new_request_id, request_id, valid_request_id};
pub use survey::Survey;

/// Makes several `cookie` lines one, as HTTP/1 servers expect (RFC 9113 section 8.2.3).
pub fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let joined = joined(headers, &COOKIE, b"; ");
    if let Ok(value) = HeaderValue::from_bytes(&joined) {
        headers.insert(COOKIE, value);
    }
}

/// Keeps a value that hardly comes again out of the tables of HTTP/2's field compression ("never indexed", RFC 7541 section 6.2.3). There it
/// would push out values that do come again, and h2 compares a new value with every one of that name in the table: of 7,800 instructions that
/// it took to encode the head of a small answer, a request id alone was 2,900. HTTP/1 knows no difference.
pub fn unindexed(mut value: HeaderValue) -> HeaderValue {
    value.set_sensitive(true);
    value
}

/// All lines of a field as one.
fn joined(headers: &HeaderMap, name: &HeaderName, separator: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for line in headers.get_all(name) {
        if !out.is_empty() {
            out.extend_from_slice(separator);
        }
        out.extend_from_slice(line.as_bytes());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_cookie_lines_become_one() {
        let mut headers = HeaderMap::new();
        headers.append(COOKIE, HeaderValue::from_static("a=1"));
        join_cookies(&mut headers);
        assert_eq!(headers[COOKIE], "a=1");
        headers.append(COOKIE, HeaderValue::from_static("b=2; c=3"));
        join_cookies(&mut headers);
        assert_eq!(headers.get_all(COOKIE).iter().collect::<Vec<_>>(), ["a=1; b=2; c=3"]);
    }
}
