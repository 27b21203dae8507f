//! Escapes, queries and cookies: how values are read out of a request and put into a new target.

use std::borrow::Cow;

use http::HeaderMap;
use http::header::COOKIE;

use super::path::{hex_value, is_unreserved, push_escape};

/// Decodes percent escapes; bytes that are not UTF-8 become U+FFFD, a `%` without two hex digits stays.
pub fn percent_decode(text: &str) -> Cow<'_, str> {
    lossy(percent_decode_bytes(text))
}

/// [`percent_decode`], with bytes that are not UTF-8 as they are.
pub fn percent_decode_bytes(text: &str) -> Cow<'_, [u8]> {
    decode(text.as_bytes(), false)
}

/// Decodes a name or value of a query or form: percent escapes, and `+` is a space.
pub fn form_decode_bytes(text: &str) -> Cow<'_, [u8]> {
    decode(text.as_bytes(), true)
}

/// The first value of `name` in a query, decoded (`+` is a space); empty if the name stands there without a value.
pub fn query_value<'q>(query: &'q str, name: &str) -> Option<Cow<'q, str>> {
    query_bytes(query, name).map(lossy)
}

/// [`query_value`], with bytes that are not UTF-8 as they are.
pub fn query_bytes<'q>(query: &'q str, name: &str) -> Option<Cow<'q, [u8]>> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        // Most names are written plainly: they are compared without a copy.
        (*form_decode_bytes(key) == *name.as_bytes()).then(|| form_decode_bytes(value))
    })
}

/// The value of the first cookie called `name`, over all `Cookie` lines (HTTP/2 may send one line per cookie), percent-decoded.
pub fn cookie_value<'h>(headers: &'h HeaderMap, name: &str) -> Option<Cow<'h, str>> {
    cookie_bytes(headers, name).map(lossy)
}

/// [`cookie_value`], with bytes that are not UTF-8 as they are.
pub fn cookie_bytes<'h>(headers: &'h HeaderMap, name: &str) -> Option<Cow<'h, [u8]>> {
    headers.get_all(COOKIE).iter().flat_map(|line| line.as_bytes().split(|&byte| byte == b';')).find_map(|pair| {
        let equals = pair.iter().position(|&byte| byte == b'=')?;
        let (key, value) = pair.split_at(equals);
        (key.trim_ascii() == name.as_bytes()).then(|| decode(value.get(1..).unwrap_or_default().trim_ascii(), false))
    })
}

fn lossy(bytes: Cow<'_, [u8]>) -> Cow<'_, str> {
    match bytes {
        Cow::Borrowed(bytes) => String::from_utf8_lossy(bytes),
        Cow::Owned(bytes) => {
            Cow::Owned(String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
        }
    }
}

/// Copies only if there is something to decode.
fn decode(text: &[u8], plus_is_space: bool) -> Cow<'_, [u8]> {
    if !text.iter().any(|&byte| byte == b'%' || (plus_is_space && byte == b'+')) {
        return Cow::Borrowed(text);
    }
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match (byte, after) {
            (b'%', [high, low, after @ ..]) if let (Some(high), Some(low)) = (hex_value(*high), hex_value(*low)) => {
                out.push(high * 16 + low);
                rest = after;
            }
            (b'+', _) if plus_is_space => out.push(b' '),
            _ => out.push(byte),
        }
    }
    Cow::Owned(out)
}

/// Appends `value` as one path segment: it can add no `/`, `?` or `#`, and no `;` that would make `..;x` of `..`.
pub fn encode_segment(value: &str, out: &mut String) {
    for byte in value.bytes() {
        // RFC 3986 `pchar`, but for `;`.
        if is_unreserved(byte) || matches!(byte, b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b'=' | b':' | b'@') {
            out.push(char::from(byte));
        } else {
            push_escape(out, byte);
        }
    }
}

/// Appends `value` as one name or value of a query: it can add no `&`, `=`, `+` or `#`.
pub fn encode_query_component(value: &str, out: &mut String) {
    for byte in value.bytes() {
        if is_unreserved(byte) { out.push(char::from(byte)) } else { push_escape(out, byte) }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn escapes_are_decoded_and_broken_ones_stay() {
        assert!(matches!(percent_decode("plain+text"), Cow::Borrowed("plain+text")));
        assert_eq!(percent_decode("a%20b%c3%A9"), "a bé");
        assert_eq!(percent_decode("%zz%4%"), "%zz%4%");
        assert_eq!(percent_decode("%ff"), "\u{FFFD}");
    }

    #[test]
    fn the_first_value_of_a_query_name_counts() {
        assert_eq!(query_value("a=1&v=2&v=3", "v").as_deref(), Some("2"));
        assert_eq!(query_value("v=a+b%2Bc", "v").as_deref(), Some("a b+c"));
        assert_eq!(query_value("x+y=1", "x y").as_deref(), Some("1"));
        assert_eq!(query_value("%76=1&v=2", "v").as_deref(), Some("1"));
        assert_eq!(query_value("v", "v").as_deref(), Some(""));
        assert_eq!(query_value("a=1;v=2", "v"), None);
        assert_eq!(query_value("v=a=b", "v").as_deref(), Some("a=b"));
        assert_eq!(query_value("", "v"), None);
    }

    #[test]
    fn the_first_cookie_of_a_name_counts_over_all_lines() {
        let mut headers = HeaderMap::new();
        headers.append(COOKIE, HeaderValue::from_static("xid=1; a=2"));
        headers.append(COOKIE, HeaderValue::from_static("id=a%20b+c;id=4"));
        assert_eq!(cookie_value(&headers, "id").as_deref(), Some("a b+c"));
        assert_eq!(cookie_value(&headers, "a").as_deref(), Some("2"));
        assert_eq!(cookie_value(&headers, "A"), None);
    }

    #[test]
    fn values_cannot_leave_their_place() {
        let mut out = String::new();
        encode_segment("../a?b#c%d;e f@g&h", &mut out);
        assert_eq!(out, "..%2Fa%3Fb%23c%25d%3Be%20f@g&h");
        out.clear();
        encode_query_component("a&b=c+d#é", &mut out);
        assert_eq!(out, "a%26b%3Dc%2Bd%23%C3%A9");
    }

    proptest! {
        #[test]
        fn encoded_values_decode_to_themselves(value in any::<String>()) {
            let (mut segment, mut component) = (String::new(), String::new());
            encode_segment(&value, &mut segment);
            encode_query_component(&value, &mut component);
            prop_assert_eq!(percent_decode(&segment), value.as_str());
            let query = format!("k={component}");
            prop_assert_eq!(query_value(&query, "k").unwrap(), value.as_str());
        }
    }
}
