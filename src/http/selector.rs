//! Selectors evaluated: the one property of a request that a limit counts by, a hash picks by or a split sticks to.

use std::borrow::Cow;
use std::net::IpAddr;

use http::{HeaderMap, HeaderName};

use crate::http::exchange::Exchange;
use crate::http::target::{cookie_bytes, percent_decode_bytes, query_bytes};
use crate::units::Selector;

/// The selector's value for a request; `None` if it is absent or empty.
///
/// `headers` are the fields as they stand at the calling step: the client's for limits, the outgoing ones for hashing.
/// Addresses count by their bytes, IPv6 by its /64; `global` has one value for all requests.
pub fn selector_value<'a>(selector: &Selector, ex: &'a Exchange, headers: &'a HeaderMap) -> Option<Value<'a>> {
    let value = match selector {
        Selector::Ip => return Some(Value::Ip(IpKey::of(ex.client_ip))),
        Selector::User => Cow::Borrowed(ex.user()?.as_bytes()),
        Selector::Global => Cow::Borrowed(b"*".as_slice()),
        Selector::Header(name) => field(headers, name)?,
        Selector::Cookie(name) => cookie_bytes(headers, name)?,
        Selector::Query(name) => query_bytes(ex.query()?, name)?,
        Selector::Param(name) => percent_decode_bytes(ex.params.raw(name, ex.path())?),
        Selector::Path => Cow::Borrowed(ex.path().as_bytes()),
        Selector::Host => Cow::Borrowed(ex.host.name().as_bytes()),
    };
    if value.is_empty() { None } else { Some(Value::Bytes(value)) }
}

/// What a selector has found, as bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// Bytes of the request, decoded.
    Bytes(Cow<'a, [u8]>),
    /// Its address.
    Ip(IpKey),
}

impl std::ops::Deref for Value<'_> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Ip(ip) => ip.as_bytes(),
        }
    }
}

/// An address as it is counted: four bytes of IPv4 (mapped IPv6 included), or the eight of an IPv6 /64, since one
/// customer usually has a whole /64 to take addresses from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpKey {
    /// A whole IPv4 address.
    V4([u8; 4]),
    /// The network of an IPv6 address.
    V6([u8; 8]),
}

impl IpKey {
    /// How `ip` is counted.
    pub fn of(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(v4) => Self::V4(v4.octets()),
            IpAddr::V6(v6) => {
                let [a, b, c, d, e, f, g, h, ..] = v6.octets();
                Self::V6([a, b, c, d, e, f, g, h])
            }
        }
    }
    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::V4(bytes) => bytes,
            Self::V6(bytes) => bytes,
        }
    }
}

/// The field's value as it stands; several lines count as one, joined by `, `.
fn field<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<Cow<'a, [u8]>> {
    let mut lines = headers.get_all(name).iter();
    let first = lines.next()?.as_bytes();
    let Some(second) = lines.next() else { return Some(Cow::Borrowed(first)) };
    let mut joined = first.to_vec();
    for line in std::iter::once(second).chain(lines) {
        joined.extend_from_slice(b", ");
        joined.extend_from_slice(line.as_bytes());
    }
    Some(Cow::Owned(joined))
}

/// Requests for tests of what depends on selectors.
#[cfg(test)]
pub(crate) mod testing {
    use std::sync::Arc;
    use std::time::Instant;

    use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};

    use crate::http::exchange::{Connection, Exchange, Host, Identity, Params, Scheme};

    /// A GET from `ip` for `target`.
    pub(crate) fn request(ip: &str, target: &str) -> Exchange {
        let client_ip = ip.parse().unwrap();
        let lower = HeaderValue::from_static("api.example.com:8080");
        Exchange {
            worker: 0,
            connection: Connection {
                listener: 0,
                peer: std::net::SocketAddr::new(client_ip, 40_000),
                tls: false,
                tls_version: None,
                client_cert: None,
            },
            started: Instant::now(),
            method: Method::GET,
            version: Version::HTTP_11,
            target: target.parse().unwrap(),
            host: Host::new(Some(HeaderValue::from_static("API.example.com.:8080")), Some(lower), 0..15),
            scheme: Scheme::Http,
            client_ip,
            request_id: HeaderValue::from_static("id"),
            params: Params::default(),
            identity: None,
            rate_fields: None,
            auth_error: None,
            rate_limit: None,
        }
    }

    /// The same caller, once authentication has passed.
    pub(crate) fn as_user(mut ex: Exchange, user: &str) -> Exchange {
        let identity = Identity { user: user.into(), claims: serde_json::Map::new(), scopes: Vec::new(), forward: Vec::new() };
        ex.identity = Some(Arc::new(identity));
        ex
    }

    /// Header fields in order, repeated names included.
    pub(crate) fn fields(list: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in list {
            headers.append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap());
        }
        headers
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{as_user, fields, request};
    use super::*;

    fn value(selector: &str, ex: &Exchange, headers: &HeaderMap) -> Option<String> {
        let value = selector_value(&selector.parse().unwrap(), ex, headers)?;
        Some(String::from_utf8(value.to_vec()).unwrap())
    }

    #[test]
    fn a_header_counts_as_it_stands_and_several_lines_as_one() {
        let ex = request("192.0.2.1", "/");
        let headers = fields(&[("x-tenant", "A%20b"), ("x-tenant", "c"), ("x-empty", "")]);
        assert_eq!(value("header:X-Tenant", &ex, &headers).as_deref(), Some("A%20b, c"));
        assert_eq!(value("header:x-empty", &ex, &headers), None);
        assert_eq!(value("header:x-none", &ex, &headers), None);
    }

    #[test]
    fn the_first_cookie_of_a_name_counts_decoded_over_all_lines() {
        let ex = request("192.0.2.1", "/");
        let headers = fields(&[("cookie", "xsid=no; a=1;sid=a%2Fb+c"), ("cookie", "sid=later; tail=2; nothing=")]);
        assert_eq!(value("cookie:sid", &ex, &headers).as_deref(), Some("a/b+c"));
        assert_eq!(value("cookie:tail", &ex, &headers).as_deref(), Some("2"));
        assert_eq!(value("cookie:nothing", &ex, &headers), None);
        assert_eq!(value("cookie:SID", &ex, &headers), None);
    }

    #[test]
    fn the_first_query_value_of_a_name_counts_decoded() {
        let ex = request("192.0.2.1", "/p?ke%79=a+b%2B%zz&key=second&flag&e=&x=a=b");
        let headers = HeaderMap::new();
        assert_eq!(value("query:key", &ex, &headers).as_deref(), Some("a b+%zz"));
        assert_eq!(value("query:x", &ex, &headers).as_deref(), Some("a=b"));
        for absent in ["query:flag", "query:e", "query:none"] {
            assert_eq!(value(absent, &ex, &headers), None, "{absent}");
        }
        assert_eq!(value("query:key", &request("192.0.2.1", "/p?key=&key=b"), &headers), None);
    }

    #[test]
    fn path_and_host_are_the_canonical_ones_and_params_are_decoded() {
        let mut ex = request("192.0.2.1", "/users/a%2Fb?x=1");
        ex.params.push("id".into(), 7..12);
        let headers = HeaderMap::new();
        assert_eq!(value("path", &ex, &headers).as_deref(), Some("/users/a%2Fb"));
        assert_eq!(value("host", &ex, &headers).as_deref(), Some("api.example.com"));
        assert_eq!(value("param:id", &ex, &headers).as_deref(), Some("a/b"));
        assert_eq!(value("param:other", &ex, &headers), None);
    }

    #[test]
    fn an_absent_or_empty_user_is_absent() {
        let headers = HeaderMap::new();
        assert_eq!(value("user", &request("192.0.2.1", "/"), &headers), None);
        assert_eq!(value("user", &as_user(request("192.0.2.1", "/"), ""), &headers), None);
        assert_eq!(value("user", &as_user(request("192.0.2.1", "/"), "ada"), &headers).as_deref(), Some("ada"));
    }

    #[test]
    fn addresses_count_whole_in_ipv4_and_by_their_64_in_ipv6() {
        let key = |ip: &str| IpKey::of(ip.parse().unwrap());
        assert_eq!(key("::ffff:192.0.2.1"), key("192.0.2.1"));
        assert_ne!(key("192.0.2.1"), key("192.0.2.2"));
        assert_eq!(key("2001:db8:1:2::1"), key("2001:db8:1:2:ffff::9"));
        assert_ne!(key("2001:db8:1:2::1"), key("2001:db8:1:3::1"));
        let ex = request("2001:db8:1:2::1", "/");
        let bytes = selector_value(&Selector::Ip, &ex, &HeaderMap::new()).unwrap().to_vec();
        assert_eq!(bytes, [0x20, 1, 0xd, 0xb8, 0, 1, 0, 2]);
    }
}
