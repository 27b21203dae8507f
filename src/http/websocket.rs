//! WebSocket handshakes: what a request asks for, what goes upstream, whether the answer opens a tunnel.
//!
//! Clients come by HTTP/1.1 upgrade (RFC 6455) or by HTTP/2 extended CONNECT (RFC 8441); upstreams are always asked in HTTP/1.1.
//! Any other protocol in `Upgrade` is nothing to us: the field is dropped with the hop-by-hop ones, for `h2c` is a smuggling path.

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{GeneralPurpose, GeneralPurposeConfig};
use http::header::{
    CONNECTION, CONTENT_LENGTH, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upgrade {
    /// No upgrade that the gateway does: the request goes on as an ordinary one.
    None,
    /// A good handshake.
    WebSocket(WebSocket),
    /// A handshake with a wrong part: 400, with this sentence.
    Invalid(&'static str),
    /// Extended CONNECT for another protocol: 405.
    OtherConnect,
}

/// A handshake under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebSocket {
    /// `Sec-WebSocket-Key` towards the upstream: the client's, or a fresh one where HTTP/2 has none.
    pub key: HeaderValue,
    /// Whether the client came by extended CONNECT.
    pub extended: bool,
}

/// What an upstream answered to a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// 101 as it should be: a tunnel.
    Tunnel,
    /// Any other status: an ordinary response.
    Ordinary,
    /// 101 that does not match what was asked: `upstream_protocol_error`, with this sentence for the log.
    Invalid(&'static str),
}

/// Keys are compared by their text, so bits after the sixteenth byte may be set.
const KEY: GeneralPurpose = GeneralPurpose::new(&STANDARD, GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true));

const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");

/// Judges a request head, before hop-by-hop fields are removed. `protocol` is the `:protocol` of an extended CONNECT.
pub fn inspect_request(method: &Method, version: Version, headers: &HeaderMap, protocol: Option<&str>, has_body: bool) -> Upgrade {
    if let Some(protocol) = protocol {
        return inspect_extended(protocol, headers);
    }
    if version >= Version::HTTP_2 || !has_token(headers, &UPGRADE, "websocket") {
        return Upgrade::None;
    }
    let wrong = if version != Version::HTTP_11 {
        "a WebSocket handshake needs HTTP/1.1"
    } else if method != Method::GET {
        "a WebSocket handshake must be a GET request"
    } else if !has_token(headers, &CONNECTION, "upgrade") {
        "a WebSocket handshake needs \"Connection: upgrade\""
    } else if has_body {
        "a WebSocket handshake must not have a body"
    } else if !version_is_13(headers) {
        "only version 13 of the WebSocket protocol is supported"
    } else {
        return match single(headers, &SEC_WEBSOCKET_KEY).filter(|key| is_key(key)) {
            Some(key) => Upgrade::WebSocket(WebSocket { key: key.clone(), extended: false }),
            None => Upgrade::Invalid("Sec-WebSocket-Key must be 16 bytes in base64"),
        };
    };
    Upgrade::Invalid(wrong)
}

fn inspect_extended(protocol: &str, headers: &HeaderMap) -> Upgrade {
    if !protocol.eq_ignore_ascii_case("websocket") {
        return Upgrade::OtherConnect;
    }
    if !version_is_13(headers) {
        return Upgrade::Invalid("only version 13 of the WebSocket protocol is supported");
    }
    match HeaderValue::try_from(generate_key()) {
        Ok(key) => Upgrade::WebSocket(WebSocket { key, extended: true }),
        Err(_) => Upgrade::Invalid("no WebSocket key can be made"),
    }
}

impl WebSocket {
    /// Writes the handshake into the upstream's request head, after hop-by-hop fields are removed. The method must be GET, the version HTTP/1.1.
    pub fn prepare_request(&self, headers: &mut HeaderMap) {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, WEBSOCKET);
        headers.insert(SEC_WEBSOCKET_KEY, self.key.clone());
        headers.remove(CONTENT_LENGTH);
        headers.remove(TRANSFER_ENCODING);
    }

    /// Judges the upstream's answer, before hop-by-hop fields are removed.
    pub fn check_response(&self, status: StatusCode, headers: &HeaderMap) -> Answer {
        if status != StatusCode::SWITCHING_PROTOCOLS {
            return Answer::Ordinary;
        }
        let protocol = single(headers, &UPGRADE);
        if !protocol.is_some_and(|protocol| protocol.as_bytes().eq_ignore_ascii_case(b"websocket")) {
            return Answer::Invalid("the upstream switched to another protocol than websocket");
        }
        let expected = expected_accept(&self.key);
        if single(headers, &SEC_WEBSOCKET_ACCEPT).is_none_or(|accept| accept.as_bytes() != expected.as_bytes()) {
            return Answer::Invalid("the upstream's Sec-WebSocket-Accept does not match the key");
        }
        Answer::Tunnel
    }

    /// Turns the head of a checked 101, hop-by-hop fields removed, into what the client gets: 101, or 200 on HTTP/2.
    pub fn prepare_response(&self, status: &mut StatusCode, headers: &mut HeaderMap) {
        headers.remove(CONTENT_LENGTH);
        headers.remove(TRANSFER_ENCODING);
        if self.extended {
            *status = StatusCode::OK;
            headers.remove(SEC_WEBSOCKET_ACCEPT);
        } else {
            *status = StatusCode::SWITCHING_PROTOCOLS;
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(UPGRADE, WEBSOCKET);
        }
    }
}

/// The `Sec-WebSocket-Accept` that answers `key`.
pub fn expected_accept(key: &HeaderValue) -> String {
    derive_accept_key(key.as_bytes())
}

/// Whether any line of the field lists `token`.
fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .any(|line| line.as_bytes().split(|&byte| byte == b',').any(|item| item.trim_ascii().eq_ignore_ascii_case(token.as_bytes())))
}

/// The field's value if there is exactly one line of it.
fn single<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h HeaderValue> {
    let mut lines = headers.get_all(name).iter();
    lines.next().filter(|_| lines.next().is_none())
}

fn version_is_13(headers: &HeaderMap) -> bool {
    single(headers, &SEC_WEBSOCKET_VERSION).is_some_and(|version| version.as_bytes() == b"13")
}

fn is_key(value: &HeaderValue) -> bool {
    let mut bytes = [0; 18];
    value.len() == 24 && KEY.decode_slice(value.as_bytes(), &mut bytes) == Ok(16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &[(&str, &str)] = &[
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "WebSocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse::<HeaderValue>().unwrap())).collect()
    }
    fn without(name: &str, instead: &[(&str, &str)]) -> Vec<(&'static str, String)> {
        let kept = GOOD.iter().filter(|(n, _)| *n != name).map(|(n, v)| (*n, (*v).to_owned()));
        kept.chain(instead.iter().map(|(n, v)| (GOOD.iter().find(|(g, _)| g == n).unwrap().0, (*v).to_owned()))).collect()
    }
    fn judge(lines: &[(&'static str, String)]) -> Upgrade {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            map.append(*name, value.parse().unwrap());
        }
        inspect_request(&Method::GET, Version::HTTP_11, &map, None, false)
    }
    fn socket() -> WebSocket {
        WebSocket { key: HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ=="), extended: false }
    }

    #[test]
    fn a_good_handshake_is_recognised_in_any_case() {
        assert_eq!(inspect_request(&Method::GET, Version::HTTP_11, &headers(GOOD), None, false), Upgrade::WebSocket(socket()));
    }

    #[test]
    fn wrong_parts_of_a_handshake_are_invalid() {
        let good = headers(GOOD);
        let invalid = |upgrade: Upgrade| assert!(matches!(upgrade, Upgrade::Invalid(_)), "{upgrade:?}");
        invalid(inspect_request(&Method::POST, Version::HTTP_11, &good, None, false));
        invalid(inspect_request(&Method::GET, Version::HTTP_11, &good, None, true));
        invalid(inspect_request(&Method::GET, Version::HTTP_10, &good, None, false));
        invalid(judge(&without("connection", &[])));
        invalid(judge(&without("connection", &[("connection", "upgraded, close")])));
        invalid(judge(&without("sec-websocket-version", &[])));
        invalid(judge(&without("sec-websocket-version", &[("sec-websocket-version", "8")])));
        invalid(judge(&without("sec-websocket-version", &[("sec-websocket-version", "13"), ("sec-websocket-version", "8")])));
        invalid(judge(&without("sec-websocket-key", &[])));
        for key in
            ["", "AAAA", "dGhlIHNhbXBsZSBub25jZQ", "dGhlIHNhbXBsZSBub25jZTEyMw==", "dGhlIHNhbXBsZSBub25jZ!==", "AAAAAAAAAAAAAAAAAAAAAAAA"]
        {
            invalid(judge(&without("sec-websocket-key", &[("sec-websocket-key", key)])));
        }
        let key = "dGhlIHNhbXBsZSBub25jZQ==";
        invalid(judge(&without("sec-websocket-key", &[("sec-websocket-key", key), ("sec-websocket-key", key)])));
    }

    #[test]
    fn other_upgrades_are_ordinary_requests() {
        for value in ["h2c", "foo", "websocket2", ""] {
            assert_eq!(judge(&without("upgrade", &[("upgrade", value)])), Upgrade::None, "{value}");
        }
        assert_eq!(judge(&without("upgrade", &[])), Upgrade::None);
        assert_eq!(inspect_request(&Method::GET, Version::HTTP_2, &headers(GOOD), None, false), Upgrade::None);
    }

    #[test]
    fn extended_connect_gets_a_fresh_key_each_time() {
        let version = headers(&[("sec-websocket-version", "13")]);
        let connect = || match inspect_request(&Method::CONNECT, Version::HTTP_2, &version, Some("websocket"), false) {
            Upgrade::WebSocket(socket) => socket,
            other => panic!("{other:?}"),
        };
        let (one, two) = (connect(), connect());
        assert!(one.extended && is_key(&one.key) && one.key != two.key);
        assert_eq!(inspect_request(&Method::CONNECT, Version::HTTP_2, &version, Some("connect-udp"), false), Upgrade::OtherConnect);
        let none = inspect_request(&Method::CONNECT, Version::HTTP_2, &HeaderMap::new(), Some("websocket"), false);
        assert!(matches!(none, Upgrade::Invalid(_)));
    }

    #[test]
    fn only_a_matching_101_opens_a_tunnel() {
        let good = [("upgrade", "websocket"), ("connection", "Upgrade"), ("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")];
        assert_eq!(socket().check_response(StatusCode::SWITCHING_PROTOCOLS, &headers(&good)), Answer::Tunnel);
        for status in [StatusCode::OK, StatusCode::UNAUTHORIZED, StatusCode::UPGRADE_REQUIRED] {
            assert_eq!(socket().check_response(status, &headers(&good)), Answer::Ordinary);
        }
        for bad in [
            &good[1..],
            &good[..2],
            &[("upgrade", "h2c"), good[1], good[2]],
            &[good[0], ("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOO=")],
        ] {
            let answer = socket().check_response(StatusCode::SWITCHING_PROTOCOLS, &headers(bad));
            assert!(matches!(answer, Answer::Invalid(_)), "{bad:?}");
        }
    }

    #[test]
    fn heads_are_written_for_both_sides() {
        let mut request = headers(&[("sec-websocket-key", "client's"), ("content-length", "0")]);
        socket().prepare_request(&mut request);
        assert_eq!(request[UPGRADE], "websocket");
        assert_eq!(request[CONNECTION], "upgrade");
        assert_eq!(request[SEC_WEBSOCKET_KEY], "dGhlIHNhbXBsZSBub25jZQ==");
        assert!(!request.contains_key(CONTENT_LENGTH));

        let answer = headers(&[("sec-websocket-accept", "x"), ("sec-websocket-protocol", "chat")]);
        let (mut status, mut one) = (StatusCode::SWITCHING_PROTOCOLS, answer.clone());
        socket().prepare_response(&mut status, &mut one);
        assert_eq!((status, &one[UPGRADE], one.contains_key(SEC_WEBSOCKET_ACCEPT)), (StatusCode::SWITCHING_PROTOCOLS, &WEBSOCKET, true));
        let mut two = answer;
        WebSocket { extended: true, ..socket() }.prepare_response(&mut status, &mut two);
        assert_eq!((status, two.contains_key(UPGRADE), two.contains_key(SEC_WEBSOCKET_ACCEPT)), (StatusCode::OK, false, false));
        assert_eq!(two["sec-websocket-protocol"], "chat");
    }
}
