//! One entry as a line, written straight into a buffer: no allocation but the buffer's own.
//!
//! There is code for each form, so that keys and quotes are constants, which take a store or two where text of any length takes a call.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::time::Duration;

use http::Version;

use super::escape::{escape, plain};
use super::{Entry, Format};
use crate::http::client_addr::ipv4_text;
use crate::http::text::Text;
use crate::telemetry::time::Stamp;
use crate::units::push_decimal;

/// A key as it stands in front of its value.
#[derive(Clone, Copy)]
struct Key {
    json: &'static [u8],
    /// With the quote that opens a string.
    json_text: &'static [u8],
    text: &'static [u8],
}

macro_rules! key {
    ($name:literal) => {
        Key {
            json: concat!(",\"", $name, "\":").as_bytes(),
            json_text: concat!(",\"", $name, "\":\"").as_bytes(),
            text: concat!(" ", $name, "=").as_bytes(),
        }
    };
}

/// Appends the line of `entry`, its newline included.
pub fn write(entry: &Entry, format: Format, stamp: &mut Stamp, out: &mut Vec<u8>) {
    match format {
        Format::Json => Line::<true> { out }.write(entry, stamp),
        Format::Text => Line::<false> { out }.write(entry, stamp),
    }
}

/// A line in JSON or in text.
struct Line<'a, const JSON: bool> {
    out: &'a mut Vec<u8>,
}

impl<const JSON: bool> Line<'_, JSON> {
    fn write(&mut self, entry: &Entry, stamp: &mut Stamp) {
        let target = entry.target.as_bytes();
        let path = target.split(|byte| *byte == b'?').next().unwrap_or_default();
        let query = target.get(path.len() + 1..).unwrap_or_default();
        self.begin(entry, path, stamp);
        self.client(entry, path, query);
        self.outcome(entry);
        self.rest(entry);
        self.end();
    }

    /// What stands in front: the time; in text also method, path and status, without keys.
    fn begin(&mut self, entry: &Entry, path: &[u8], stamp: &mut Stamp) {
        if JSON {
            self.out.extend_from_slice(b"{\"time\":\"");
            stamp.write(entry.time, self.out);
            self.out.push(b'"');
        } else {
            stamp.write(entry.time, self.out);
            for value in [entry.method.as_str().as_bytes(), path] {
                self.out.push(b' ');
                self.quoted_if_needed(value, |out| escape(value, out));
            }
            self.out.push(b' ');
            push_decimal(entry.status.into(), self.out);
        }
    }

    fn client(&mut self, entry: &Entry, path: &[u8], query: &[u8]) {
        // What a client may send as an id needs no escapes.
        self.plain(key!("request_id"), entry.request_id.as_bytes());
        let address = self.bare(key!("client_ip"), |out| ip(entry.client_ip, out));
        let same = entry.peer.ip() == entry.client_ip;
        self.bare(key!("peer"), |out| socket(entry.peer, same.then_some(address), out));
        if JSON {
            self.plain(key!("method"), entry.method.as_str().as_bytes());
        }
        self.plain(key!("scheme"), entry.scheme.as_str().as_bytes());
        self.label(key!("host"), entry.host.as_ref());
        if JSON {
            self.bytes(key!("path"), path);
        }
        if !query.is_empty() {
            self.scrubbed(key!("query"), query, 0, entry.secret_query.as_deref().unwrap_or_default());
        }
        self.plain(key!("protocol"), protocol(entry.protocol).as_bytes());
        if JSON {
            self.number(key!("status"), entry.status.into());
        }
    }

    fn outcome(&mut self, entry: &Entry) {
        self.text(key!("reason"), entry.reason.map(crate::error::Reason::as_str));
        self.label(key!("route"), entry.route.as_ref());
        // A token need not say whose it is.
        self.label(key!("user"), entry.user.as_ref().filter(|user| !user.as_bytes().is_empty()));
        self.text(key!("auth_error"), entry.auth_error);
        self.text(key!("rate_limit"), entry.rate_limit.as_deref());
        self.label(key!("upstream"), entry.upstream.as_ref());
        self.label(key!("endpoint"), entry.endpoint.as_ref());
        self.number(key!("attempts"), entry.attempts.into());
        self.millis(key!("duration_ms"), entry.duration);
        if let Some(time) = entry.upstream_time {
            self.millis(key!("upstream_ms"), time);
        }
    }

    fn rest(&mut self, entry: &Entry) {
        self.number(key!("bytes_in"), entry.bytes_in);
        self.number(key!("bytes_out"), entry.bytes_out);
        self.key(key!("complete"));
        if entry.complete {
            self.out.extend_from_slice(b"true");
        } else {
            self.out.extend_from_slice(b"false");
        }
        if let Some(parts) = &entry.parts {
            self.bytes(key!("parts"), parts.as_bytes());
        }
        if let Some(status) = entry.grpc_status {
            self.number(key!("grpc_status"), status.into());
        }
        self.text(key!("tls"), entry.tls);
        self.label(key!("user_agent"), entry.user_agent.as_ref());
        if let Some(referer) = entry.referer.as_ref().map(Text::as_bytes) {
            // A page whose address has a credential is the referrer of what it loads.
            let query = referer.iter().position(|byte| *byte == b'?').map_or(referer.len(), |at| at + 1);
            self.scrubbed(key!("referer"), referer, query, entry.secret_query.as_deref().unwrap_or_default());
        }
    }

    fn end(&mut self) {
        self.out.extend_from_slice(if JSON { b"}\n" } else { b"\n" });
    }

    #[inline]
    fn key(&mut self, key: Key) {
        self.out.extend_from_slice(if JSON { key.json } else { key.text });
    }

    /// A value that needs no escapes and no quotes in text, as it is written by `write`; says where it stands.
    #[inline]
    fn bare(&mut self, key: Key, write: impl FnOnce(&mut Vec<u8>)) -> Range<usize> {
        let start = self.open(key);
        write(self.out);
        let end = self.out.len();
        if JSON {
            self.out.push(b'"');
        }
        start..end
    }

    /// The key, and in JSON the quote of a string; says where the value begins.
    #[inline]
    fn open(&mut self, key: Key) -> usize {
        self.out.extend_from_slice(if JSON { key.json_text } else { key.text });
        self.out.len()
    }

    /// A value that needs no escapes.
    #[inline]
    fn plain(&mut self, key: Key, value: &[u8]) {
        self.value(key, value, |out| out.extend_from_slice(value));
    }

    #[inline]
    fn number(&mut self, key: Key, value: u64) {
        self.key(key);
        push_decimal(value, self.out);
    }

    /// Milliseconds with three decimals.
    #[inline]
    fn millis(&mut self, key: Key, duration: Duration) {
        self.number(key, duration.as_secs().saturating_mul(1000).saturating_add(duration.subsec_millis().into()));
        let decimals = duration.subsec_micros() % 1000;
        let digit = |of: u32| b'0' + (of % 10) as u8;
        self.out.extend_from_slice(&[b'.', digit(decimals / 100), digit(decimals / 10), digit(decimals)]);
    }

    #[inline]
    fn label(&mut self, key: Key, value: Option<&Text>) {
        if let Some(value) = value {
            self.bytes(key, value.as_bytes());
        }
    }

    #[inline]
    fn text(&mut self, key: Key, value: Option<&str>) {
        if let Some(value) = value {
            self.bytes(key, value.as_bytes());
        }
    }

    #[inline]
    fn bytes(&mut self, key: Key, value: &[u8]) {
        self.value(key, value, |out| escape(value, out));
    }

    /// `value`, whose query begins at `query`, with `***` for the credentials in it.
    fn scrubbed(&mut self, key: Key, value: &[u8], query: usize, secrets: &[String]) {
        let (before, query) = value.split_at(query.min(value.len()));
        self.value(key, value, |out| {
            escape(before, out);
            scrub(query, secrets, |piece| escape(piece, out));
        });
    }

    #[inline]
    fn value(&mut self, key: Key, raw: &[u8], write: impl FnOnce(&mut Vec<u8>)) {
        self.open(key);
        if JSON {
            write(self.out);
            self.out.push(b'"');
        } else {
            self.quoted_if_needed(raw, write);
        }
    }

    /// Text values are bare unless a reader could mistake them.
    fn quoted_if_needed(&mut self, raw: &[u8], write: impl FnOnce(&mut Vec<u8>)) {
        let quote = raw.is_empty() || raw.iter().any(|byte| !plain(*byte) || matches!(byte, b' ' | b'='));
        if quote {
            self.out.push(b'"');
        }
        write(self.out);
        if quote {
            self.out.push(b'"');
        }
    }
}

/// Gives `f` the pieces of `query`, with `***` for the values of parameters in `secrets`. A fragment, which only a referrer that breaks
/// the rules has, counts as part of the last value.
fn scrub<'q>(query: &'q [u8], secrets: &[String], mut f: impl FnMut(&'q [u8])) {
    if secrets.is_empty() {
        return f(query);
    }
    for (index, pair) in query.split(|byte| *byte == b'&').enumerate() {
        if index > 0 {
            f(b"&");
        }
        match pair.iter().position(|byte| *byte == b'=').map(|at| pair.split_at(at)) {
            Some((name, _)) if secrets.iter().any(|secret| names(name, secret)) => {
                f(name);
                f(b"=***");
            }
            Some(_) | None => f(pair),
        }
    }
}

/// Whether the encoded `name` means the parameter `secret`. Case is ignored: a near miss is more likely a credential than not.
fn names(name: &[u8], secret: &str) -> bool {
    let mut rest = name;
    let decoded = std::iter::from_fn(|| {
        let (byte, length) = match rest {
            [b'%', high, low, ..] => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => (high << 4 | low, 3),
                (Some(_) | None, Some(_) | None) => (b'%', 1),
            },
            [b'+', ..] => (b' ', 1),
            [byte, ..] => (*byte, 1),
            [] => return None,
        };
        rest = rest.get(length..)?;
        Some(byte.to_ascii_lowercase())
    });
    decoded.eq(secret.bytes().map(|byte| byte.to_ascii_lowercase()))
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_09 => "HTTP/0.9",
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        Version::HTTP_3 => "HTTP/3",
        _ => "HTTP/1.1",
    }
}

fn ip(address: IpAddr, out: &mut Vec<u8>) {
    match address {
        IpAddr::V4(address) => {
            let (text, length) = ipv4_text(address);
            out.extend_from_slice(text.get(..length).unwrap_or_default());
        }
        IpAddr::V6(address) => {
            // Writing into memory cannot fail.
            let _ = write!(out, "{address}");
        }
    }
}

/// `known` is where the address stands in `out` already, if it does.
fn socket(address: SocketAddr, known: Option<Range<usize>>, out: &mut Vec<u8>) {
    if address.is_ipv6() {
        out.push(b'[');
    }
    match known {
        Some(place) => out.extend_from_within(place),
        None => ip(address.ip(), out),
    }
    out.extend_from_slice(if address.is_ipv6() { b"]:" } else { b":" });
    push_decimal(address.port().into(), out);
}

#[cfg(test)]
mod tests;
