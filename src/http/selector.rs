//! Selectors evaluated: the one property of a request that a limit counts by, a hash picks by or a split sticks to.

use std::borrow::Cow;
use std::net::IpAddr;

use http::{HeaderMap, HeaderName, header};

use crate::http::exchange::Exchange;
use crate::units::Selector;

/// The selector's value for a request; `None` if it is absent or empty.
///
/// `headers` are the fields as they stand at the calling step: the client's for limits, the outgoing ones for hashing.
/// Addresses count by their bytes, IPv6 by its /64; `global` has one value for all requests.
pub fn selector_value<'a>(selector: &Selector, ex: &'a Exchange, headers: &'a HeaderMap) -> Option<Cow<'a, [u8]>> {
    let value = match selector {
        Selector::Ip => Cow::Owned(IpKey::of(ex.client_ip).as_bytes().to_vec()),
        Selector::User => Cow::Borrowed(ex.user()?.as_bytes()),
        Selector::Global => Cow::Borrowed(b"*".as_slice()),
        Selector::Header(name) => field(headers, name)?,
        Selector::Cookie(name) => cookie(headers, name)?,
        Selector::Query(name) => query(ex.query()?, name)?,
        Selector::Param(name) => decode(ex.params.raw(name, ex.path())?.as_bytes(), false),
        Selector::Path => Cow::Borrowed(ex.path().as_bytes()),
        Selector::Host => Cow::Borrowed(ex.host.name().as_bytes()),
    };
    if value.is_empty() { None } else { Some(value) }
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

/// The first cookie of that name, over all `cookie` lines (HTTP/2 may send one line per cookie).
fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<Cow<'a, [u8]>> {
    headers.get_all(header::COOKIE).iter().flat_map(|line| line.as_bytes().split(|b| *b == b';')).find_map(|pair| {
        let (key, value) = split_once(pair.trim_ascii(), b'=')?;
        (key.trim_ascii() == name.as_bytes()).then(|| decode(value.trim_ascii(), false))
    })
}

/// The first value of that name; `+` is a space.
fn query<'a>(query: &'a str, name: &str) -> Option<Cow<'a, [u8]>> {
    query.as_bytes().split(|b| *b == b'&').find_map(|pair| {
        let (key, value) = split_once(pair, b'=').unwrap_or((pair, b""));
        (*decode(key, true) == *name.as_bytes()).then(|| decode(value, true))
    })
}

fn split_once(bytes: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let index = bytes.iter().position(|b| *b == at)?;
    Some((&bytes[..index], &bytes[index + 1..]))
}

/// Percent escapes decoded; broken ones stay as they are. Copies only if there is something to decode.
fn decode(bytes: &[u8], plus_is_space: bool) -> Cow<'_, [u8]> {
    if !bytes.iter().any(|b| *b == b'%' || (plus_is_space && *b == b'+')) {
        return Cow::Borrowed(bytes);
    }
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    loop {
        rest = match rest {
            [] => return Cow::Owned(out),
            [b'%', high, low, tail @ ..] if hex(*high).is_some() && hex(*low).is_some() => {
                out.push(hex(*high).unwrap_or(0) << 4 | hex(*low).unwrap_or(0));
                tail
            }
            [b'+', tail @ ..] if plus_is_space => {
                out.push(b' ');
                tail
            }
            [byte, tail @ ..] => {
                out.push(*byte);
                tail
            }
        };
    }
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}
