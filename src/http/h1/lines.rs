//! Field lines of a response that are passed on as they came.
//!
//! Most responses go through a gateway without anybody looking at their fields. To parse each into a map and to write each out of it
//! again is then the largest part of the gateway's work. So the lines stay what they are, bytes that were checked once, without those that
//! this hop makes anew. Whoever wants to look or to change something gets the map all the same, and pays for it.

use std::ops::Range;
use std::time::Duration;

use bytes::{BufMut, Bytes};
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::fields::Span;
use super::framing::{BodyLength, number};

/// Most runs of lines that are passed on together. A head has one more than it has lines between them that are left out.
const RUNS: usize = 5;

/// See module. Only what is beyond doubt is kept like this: each line written as `name: value` with CR LF behind it, no field of framing or
/// connection twice, and none of those that are rare.
#[derive(Clone, Debug)]
pub struct Lines {
    head: Bytes,
    /// Runs of whole lines; the unused are empty.
    runs: [Range<u32>; RUNS],
    /// What `Content-Length` or `Transfer-Encoding` said.
    declared: Option<BodyLength>,
    /// `Connection: close`.
    close: bool,
    /// Value of `Keep-Alive`.
    keep_alive: Span,
    /// There is a `Date`.
    dated: bool,
    /// Bits of the names: one whose bit is missing need not be looked for.
    names: u64,
}

/// What a line is to the gateway.
enum Kind {
    PassedOn,
    Date,
    Connection,
    KeepAlive,
    Length,
    Coding,
    /// For the map.
    Rare,
}

impl Kind {
    /// By length first: nearly every name is told apart by it.
    fn of(name: &[u8]) -> Self {
        let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
        match name.len() {
            4 if is(b"date") => Self::Date,
            10 if is(b"connection") => Self::Connection,
            10 if is(b"keep-alive") => Self::KeepAlive,
            14 if is(b"content-length") => Self::Length,
            17 if is(b"transfer-encoding") => Self::Coding,
            2 if is(b"te") => Self::Rare,
            7 if is(b"upgrade") || is(b"trailer") => Self::Rare,
            14 if is(b"http2-settings") => Self::Rare,
            16 if is(b"proxy-connection") => Self::Rare,
            18 if is(b"proxy-authenticate") => Self::Rare,
            19 if is(b"proxy-authorization") => Self::Rare,
            _ => Self::PassedOn,
        }
    }
}

impl Lines {
    /// The lines of `head`, which is to be given to [`Lines::of`]; names and values are at `spans`. `None` if they are for a map.
    pub(super) fn new(head: &[u8], spans: &[(Span, Span)]) -> Option<Self> {
        let mut lines = Self {
            head: Bytes::new(),
            runs: [const { 0..0 }; RUNS],
            declared: None,
            close: false,
            keep_alive: Span::NONE,
            dated: false,
            names: 0,
        };
        let mut connected = false;
        let mut runs = lines.runs.iter_mut();
        let mut run: Option<&mut Range<u32>> = None;
        for &(name, value) in spans {
            let (at, end) = (name.start, value.end.checked_add(2)?);
            if head.get(name.end as usize..value.start as usize) != Some(b": ")
                || head.get(value.end as usize..end as usize) != Some(b"\r\n")
            {
                return None;
            }
            let (name, text) = (name.bytes(head), value.bytes(head));
            match Kind::of(name) {
                Kind::Rare => return None,
                kind @ (Kind::PassedOn | Kind::Date) => {
                    lines.dated |= matches!(kind, Kind::Date);
                    lines.names |= bit(name);
                    match &mut run {
                        Some(run) => run.end = end,
                        None => {
                            let new = runs.next()?;
                            *new = at..end;
                            run = Some(new);
                        }
                    }
                    continue;
                }
                Kind::Length if lines.declared.is_none() => lines.declared = Some(BodyLength::Known(number(text)?)),
                Kind::Coding if lines.declared.is_none() && text.eq_ignore_ascii_case(b"chunked") => {
                    lines.declared = Some(BodyLength::Chunked)
                }
                Kind::KeepAlive if lines.keep_alive.is_empty() => lines.keep_alive = value,
                Kind::Connection if !connected => {
                    connected = true;
                    lines.close = text.eq_ignore_ascii_case(b"close");
                    if !lines.close && !text.eq_ignore_ascii_case(b"keep-alive") {
                        return None;
                    }
                }
                Kind::Length | Kind::Coding | Kind::KeepAlive | Kind::Connection => return None,
            }
            run = None;
        }
        Some(lines)
    }

    /// Takes the head that it was made for.
    pub(super) fn of(self, head: Bytes) -> Self {
        Self { head, ..self }
    }

    /// The length of the body, as far as the head tells.
    pub fn declared(&self) -> Option<BodyLength> {
        self.declared
    }

    /// Whether the sender closes the connection.
    pub fn close(&self) -> bool {
        self.close
    }

    /// `timeout` of `Keep-Alive`.
    pub fn idle_limit(&self) -> Option<Duration> {
        idle_limit(self.keep_alive.bytes(&self.head))
    }

    /// Whether there is a `Date`.
    pub fn dated(&self) -> bool {
        self.dated
    }

    /// Whether a field is there, named in lower case.
    pub fn contains(&self, name: &str) -> bool {
        self.names & bit(name.as_bytes()) != 0
            && self.each().any(|line| {
                let (head, rest) = line.split_at_checked(name.len()).unwrap_or_default();
                rest.first() == Some(&b':') && head.eq_ignore_ascii_case(name.as_bytes())
            })
    }

    /// Writes the lines.
    pub fn write(&self, out: &mut impl BufMut) {
        for run in self.runs() {
            out.put_slice(run);
        }
    }

    /// The same as a map, `Content-Length` included.
    pub fn into_map(self) -> HeaderMap {
        let mut map = HeaderMap::with_capacity(self.each().count() + super::fields::RESPONSE_SPARE);
        for line in self.each() {
            let Some(colon) = line.iter().position(|&byte| byte == b':') else { continue };
            let name = HeaderName::from_bytes(line.get(..colon).unwrap_or_default());
            let value = line.get(colon + 2..line.len().saturating_sub(2)).unwrap_or_default();
            // Checked when the head was parsed: neither can fail.
            if let (Ok(name), Ok(value)) = (name, HeaderValue::from_maybe_shared(self.head.slice_ref(value))) {
                map.append(name, value);
            }
        }
        if let Some(BodyLength::Known(length)) = self.declared {
            map.insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
        map
    }

    fn runs(&self) -> impl Iterator<Item = &[u8]> {
        let runs = self.runs.iter().take_while(|run| !run.is_empty());
        runs.map(|run| self.head.get(run.start as usize..run.end as usize).unwrap_or_default())
    }

    /// The lines one by one, line ends included.
    fn each(&self) -> impl Iterator<Item = &[u8]> {
        self.runs().flat_map(|run| run.split_inclusive(|&byte| byte == b'\n'))
    }
}

/// `timeout` in the value of a `Keep-Alive`.
pub fn idle_limit(value: &[u8]) -> Option<Duration> {
    let text = std::str::from_utf8(value).ok()?;
    text.split(',').find_map(|parameter| parameter.trim().strip_prefix("timeout=")?.parse().ok()).map(Duration::from_secs)
}

/// By length and first letter, in either case.
fn bit(name: &[u8]) -> u64 {
    1 << ((name.len() ^ usize::from(name.first().unwrap_or(&0) | 0x20)) % 64)
}
