//! What upstreams are told about the client's side: `X-Forwarded-*` and `Forwarded`.

use std::io::Write;
use std::net::IpAddr;

use bytes::BufMut;
use http::header::FORWARDED;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::protected::remove_if;
use super::{joined, unindexed};
use crate::http::Scheme;
use crate::http::client_addr::{ipv4_text, unmap};
use crate::http::h1::Made;
use crate::http::h1::encode::field;
use crate::http::h1::made::Names;

static FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
static HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
static PORT: HeaderName = HeaderName::from_static("x-forwarded-port");

/// All of them.
const NAMES: Names = Names::of(b"x-forwarded-for")
    .and(Names::of(b"x-forwarded-proto"))
    .and(Names::of(b"x-forwarded-host"))
    .and(Names::of(b"x-forwarded-port"));

/// What [`set_forwarded`] needs to know.
#[derive(Clone, Copy, Debug)]
pub struct Forwarding<'a> {
    /// The peer's address.
    pub peer: IpAddr,
    /// Whether the peer is in `trusted_proxies`.
    pub trusted: bool,
    /// The scheme in effect, from [`effective_scheme`].
    pub scheme: Scheme,
    /// The client's host as it was sent, port included.
    pub host: Option<&'a HeaderValue>,
}

/// The scheme as the client sees it: what a trusted peer says in one `X-Forwarded-Proto` line, else the connection's own.
pub fn effective_scheme(headers: &HeaderMap, trusted: bool, connection: Scheme) -> Scheme {
    if !trusted {
        return connection;
    }
    let mut lines = headers.get_all(&PROTO).iter();
    match (lines.next().map(HeaderValue::as_bytes), lines.next()) {
        (Some(b"http"), None) => Scheme::Http,
        (Some(b"https"), None) => Scheme::Https,
        _ => connection,
    }
}

/// Sets the forwarded fields, and removes those that an untrusted peer may not send. Underscore twins always go.
pub fn set_forwarded(headers: &mut HeaderMap, forwarding: &Forwarding<'_>) {
    let trusted = forwarding.trusted;
    remove_if(headers, |name| is_proxy_field(name) && (name.contains('_') || !(trusted || is_set_below(name))));
    if trusted {
        if headers.contains_key(FORWARDED) {
            append_peer(headers, &FORWARDED, forwarding.peer, true);
        }
        append_peer(headers, &FOR, forwarding.peer, false);
    } else {
        let (buffer, length) = address(forwarding.peer);
        insert_bytes(headers, &FOR, buffer.get(..length).unwrap_or_default());
    }
    headers.insert(&PROTO, HeaderValue::from_static(forwarding.scheme.as_str()));
    if !(trusted && headers.get(&HOST).is_some_and(|host| !host.is_empty())) {
        match forwarding.host {
            Some(host) => headers.insert(&HOST, host.clone()),
            None => headers.remove(&HOST),
        };
    }
    if !(trusted && headers.get(&PORT).is_some_and(is_number)) {
        headers.insert(&PORT, forwarding.port_value());
    }
}

/// What the gateway adds to a request whose fields nobody looks at any more: written as it is made, instead of through a map.
#[derive(Debug)]
pub enum Added<'a> {
    /// What every request gets.
    Usual(Usual<'a>),
    /// All of it, identity and rules included, as lines.
    Made(Made),
}

/// What every request gets from a peer that is not trusted.
#[derive(Clone, Copy, Debug)]
pub struct Usual<'a> {
    /// The forwarded fields.
    pub forwarding: Forwarding<'a>,
    /// The request id, and the field that it goes in.
    pub id: Option<(&'a HeaderName, &'a HeaderValue)>,
}

impl Added<'_> {
    /// Writes the field lines.
    pub fn write(&self, out: &mut impl BufMut) {
        match self {
            Self::Usual(usual) => usual.write(out),
            Self::Made(made) => out.put_slice(made.as_bytes()),
        }
    }
}

impl Usual<'_> {
    /// Removes what is to be written from `headers`, and what an untrusted peer may not send.
    pub fn make_room(&self, headers: &mut HeaderMap) {
        let id = self.id.map(|(name, _)| name.as_str());
        remove_if(headers, |name| is_proxy_field(name) || Some(name) == id);
    }

    /// Puts the fields into lines, which have none of them yet.
    pub fn put(&self, made: &mut Made) {
        let id = self.id.map(|(name, _)| Names::of(name.as_str().as_bytes()));
        self.write(made.room(id.map_or(NAMES, |id| NAMES.and(id))));
    }

    #[inline]
    fn write(&self, out: &mut impl BufMut) {
        let (address, length) = address(self.forwarding.peer);
        out.put_slice(b"x-forwarded-for: ");
        out.put_slice(address.get(..length).unwrap_or_default());
        match self.forwarding.scheme {
            Scheme::Http => out.put_slice(b"\r\nx-forwarded-proto: http\r\n"),
            Scheme::Https => out.put_slice(b"\r\nx-forwarded-proto: https\r\n"),
        }
        if let Some(host) = self.forwarding.host {
            out.put_slice(b"x-forwarded-host: ");
            out.put_slice(host.as_bytes());
            out.put_slice(b"\r\n");
        }
        out.put_slice(b"x-forwarded-port: ");
        out.put_slice(self.forwarding.port());
        out.put_slice(b"\r\n");
        if let Some((name, id)) = self.id {
            field(out, name.as_str(), id.as_bytes());
        }
    }
}

/// Whether upstreams take the field for a proxy's word; underscores count as dashes.
fn is_proxy_field(name: &str) -> bool {
    let bytes = name.as_bytes();
    let starts_with = |prefix: &str| {
        bytes.len() >= prefix.len() && bytes.iter().zip(prefix.as_bytes()).all(|(&a, &b)| a == b || (a == b'_' && b == b'-'))
    };
    match bytes.first() {
        Some(b'f') => name == "forwarded",
        Some(b'x') => match bytes.len() {
            9 if starts_with("x-real-ip") => true,
            13 if starts_with("x-rewrite-url") => true,
            14 if starts_with("x-original-url") => true,
            _ => starts_with("x-forwarded-"),
        },
        _ => false,
    }
}

/// Those that are overwritten anyway.
fn is_set_below(name: &str) -> bool {
    matches!(name, "x-forwarded-for" | "x-forwarded-proto" | "x-forwarded-host" | "x-forwarded-port")
}

/// Several lines become one, with the peer at its end.
fn append_peer(headers: &mut HeaderMap, name: &HeaderName, peer: IpAddr, node: bool) {
    let mut list = joined(headers, name, b", ");
    if !list.is_empty() {
        list.extend_from_slice(b", ");
    }
    let (buffer, length) = address(peer);
    let address = buffer.get(..length).unwrap_or_default();
    match (node, unmap(peer).is_ipv6()) {
        (false, _) => list.extend_from_slice(address),
        (true, false) => list.extend([b"for=", address].concat()),
        (true, true) => list.extend([b"for=\"[", address, b"]\""].concat()),
    }
    insert_bytes(headers, name, &list);
}

fn insert_bytes(headers: &mut HeaderMap, name: &HeaderName, value: &[u8]) {
    match HeaderValue::from_bytes(value) {
        Ok(value) => headers.insert(name, unindexed(value)),
        // Cannot be: an address, or values that came in header fields. If it were, no field is better than the client's.
        Err(_) => headers.remove(name),
    };
}

/// The address as text, on the stack.
fn address(ip: IpAddr) -> ([u8; 48], usize) {
    let mut buffer = [0; 48];
    if let IpAddr::V4(ip) = unmap(ip) {
        let (text, length) = ipv4_text(ip);
        buffer[..16].copy_from_slice(&text);
        return (buffer, length);
    }
    let mut rest = &mut buffer[..];
    let fits = write!(rest, "{}", unmap(ip)).is_ok();
    let length = if fits { 48 - rest.len() } else { 0 };
    (buffer, length)
}

fn is_number(value: &HeaderValue) -> bool {
    !value.is_empty() && value.as_bytes().iter().all(u8::is_ascii_digit)
}

impl Forwarding<'_> {
    /// The port in the client's host, else the scheme's.
    fn port(&self) -> &[u8] {
        let written = self.host.and_then(|host| {
            let bytes = host.as_bytes();
            let colon = bytes.iter().rposition(|&byte| byte == b':')?;
            let port = bytes.get(colon + 1..)?;
            // In `[::1]` the last colon is not a port's.
            (!port.is_empty() && port.iter().all(u8::is_ascii_digit)).then_some(port)
        });
        written.unwrap_or(match self.scheme {
            Scheme::Http => b"80",
            Scheme::Https => b"443",
        })
    }

    fn port_value(&self) -> HeaderValue {
        match self.port() {
            b"80" => HeaderValue::from_static("80"),
            b"443" => HeaderValue::from_static("443"),
            // Digits: it cannot fail.
            port => HeaderValue::from_bytes(port).unwrap_or_else(|_| HeaderValue::from_static("80")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(trusted: bool, host: Option<&'static str>, fields: &[(&'static str, &'static str)]) -> Vec<String> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let host = host.map(HeaderValue::from_static);
        let scheme = effective_scheme(&headers, trusted, Scheme::Http);
        set_forwarded(&mut headers, &Forwarding { peer: "::ffff:10.0.0.1".parse().unwrap(), trusted, scheme, host: host.as_ref() });
        let mut out: Vec<String> = headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        out.sort();
        out
    }

    const LIES: &[(&str, &str)] = &[
        ("x-forwarded-for", "1.1.1.1"),
        ("x-forwarded-for", "2.2.2.2, 3.3.3.3"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "evil"),
        ("x-forwarded-port", "1"),
        ("x-forwarded-prefix", "/x"),
        ("forwarded", "for=1.1.1.1"),
        ("x-real-ip", "1.1.1.1"),
        ("x-original-url", "/admin"),
        ("x-rewrite-url", "/admin"),
        ("x_forwarded_for", "1.1.1.1"),
        ("x_real_ip", "1.1.1.1"),
        ("x-real-ips", "other"),
    ];

    #[test]
    fn fields_that_are_written_are_those_that_would_be_set() {
        let id = (HeaderName::from_static("x-id"), HeaderValue::from_static("7"));
        for host in [None, Some("site:8080"), Some("[::1]"), Some("site")] {
            let mut headers = HeaderMap::new();
            for (name, value) in LIES.iter().chain(&[("x-id", "mine")]) {
                headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
            }
            let value = host.map(HeaderValue::from_static);
            let forwarding =
                Forwarding { peer: "::ffff:10.0.0.1".parse().unwrap(), trusted: false, scheme: Scheme::Http, host: value.as_ref() };
            let usual = Usual { forwarding, id: Some((&id.0, &id.1)) };
            usual.make_room(&mut headers);
            let (mut text, mut made) = (Vec::new(), Made::default());
            usual.put(&mut made);
            Added::Usual(usual).write(&mut text);
            assert_eq!(text, made.as_bytes());
            headers.iter().for_each(|(name, value)| field(&mut text, name.as_str(), value.as_bytes()));
            let mut lines: Vec<String> = String::from_utf8(text).unwrap().lines().map(str::to_owned).collect();
            lines.sort();
            let mut expected = sent(false, host, LIES);
            expected.push("x-id: 7".to_owned());
            expected.sort();
            assert_eq!(lines, expected);
        }
    }

    #[test]
    fn an_untrusted_peer_is_overruled() {
        assert_eq!(
            sent(false, Some("site:8080"), LIES),
            [
                "x-forwarded-for: 10.0.0.1",
                "x-forwarded-host: site:8080",
                "x-forwarded-port: 8080",
                "x-forwarded-proto: http",
                "x-real-ips: other"
            ]
        );
    }

    #[test]
    fn a_trusted_peer_is_believed_and_added() {
        assert_eq!(
            sent(true, Some("site:8080"), LIES),
            [
                "forwarded: for=1.1.1.1, for=10.0.0.1",
                "x-forwarded-for: 1.1.1.1, 2.2.2.2, 3.3.3.3, 10.0.0.1",
                "x-forwarded-host: evil",
                "x-forwarded-port: 1",
                "x-forwarded-prefix: /x",
                "x-forwarded-proto: https",
                "x-original-url: /admin",
                "x-real-ip: 1.1.1.1",
                "x-real-ips: other",
                "x-rewrite-url: /admin",
            ]
        );
    }

    #[test]
    fn what_a_trusted_peer_leaves_out_or_gets_wrong_is_as_from_anybody() {
        assert_eq!(
            sent(true, Some("[::1]"), &[("x-forwarded-proto", "wss"), ("x-forwarded-port", "x")]),
            ["x-forwarded-for: 10.0.0.1", "x-forwarded-host: [::1]", "x-forwarded-port: 80", "x-forwarded-proto: http"]
        );
        assert_eq!(
            sent(true, None, &[("x-forwarded-proto", "https")]),
            ["x-forwarded-for: 10.0.0.1", "x-forwarded-port: 443", "x-forwarded-proto: https"]
        );
        assert_eq!(
            sent(true, None, &[("x-forwarded-proto", "https"), ("x-forwarded-proto", "http")]),
            ["x-forwarded-for: 10.0.0.1", "x-forwarded-port: 80", "x-forwarded-proto: http"]
        );
    }

    #[test]
    fn addresses_fit_their_buffer_and_nodes_are_quoted() {
        let longest: IpAddr = "1111:2222:3333:4444:5555:6666:7777:8888".parse().unwrap();
        let (buffer, length) = address(longest);
        assert_eq!(&buffer[..length], longest.to_string().as_bytes());
        for v4 in ["0.0.0.0", "9.10.99.100", "101.110.200.255", "127.0.0.1"] {
            let ip: IpAddr = v4.parse().unwrap();
            let (buffer, length) = address(ip);
            assert_eq!(&buffer[..length], v4.as_bytes());
        }
        let mut headers = HeaderMap::new();
        append_peer(&mut headers, &FORWARDED, longest, true);
        assert_eq!(headers[FORWARDED], "for=\"[1111:2222:3333:4444:5555:6666:7777:8888]\"");
    }
}
