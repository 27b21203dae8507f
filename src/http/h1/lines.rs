//! Field lines of a response that are passed on as they came.
//!
//! Most responses go through a gateway without anybody looking at their fields. To parse each into a map and to write each out of it
//! again is then the largest part of the gateway's work. So the lines stay what they are, bytes that were checked once, without those that
//! this hop makes anew. Whoever wants to look or to change something gets the map all the same, and pays for it.

use std::cell::Cell;
use std::time::Duration;

use bytes::{BufMut, Bytes};
use http::header::{CONTENT_LENGTH, DATE};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::fields::Span;
use super::framing::{BodyLength, number};
use super::made::{self, Made};
use super::plain::{self, Key, Next};
use crate::http::headers::{FieldValue, Fields};

thread_local! {
    /// What the next response of the worker stays lines in, with the memory that an earlier one had.
    static SPARE: Cell<Option<Box<Lines>>> = const { Cell::new(None) };
}

/// See module. Only what is beyond doubt is kept like this: each line written as `name: value` with CR LF behind it, no field of framing or
/// connection twice, and none of those that are rare.
#[derive(Clone, Debug, Default)]
pub struct Lines {
    /// Those that came, without those that this hop makes anew, and behind them those that the gateway adds.
    lines: Made,
    /// What `Content-Length` or `Transfer-Encoding` said.
    declared: Option<BodyLength>,
    /// There was a `Connection`.
    connected: bool,
    /// `Connection: close`.
    close: bool,
    /// There was a `Keep-Alive`.
    kept_alive: bool,
    /// `timeout` of `Keep-Alive`.
    idle_limit: Option<Duration>,
    /// There is a `Date`.
    dated: bool,
}

/// What a line is to the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    #[inline]
    fn of(name: Key) -> Self {
        let is = |known: Key| name == known;
        match name.len() {
            4 if is(const { Key::new(b"date") }) => Self::Date,
            10 if is(const { Key::new(b"connection") }) => Self::Connection,
            10 if is(const { Key::new(b"keep-alive") }) => Self::KeepAlive,
            14 if is(const { Key::new(b"content-length") }) => Self::Length,
            17 if is(const { Key::new(b"transfer-encoding") }) => Self::Coding,
            2 if is(const { Key::new(b"te") }) => Self::Rare,
            7 if is(const { Key::new(b"upgrade") }) || is(const { Key::new(b"trailer") }) => Self::Rare,
            14 if is(const { Key::new(b"http2-settings") }) => Self::Rare,
            16 if is(const { Key::new(b"proxy-connection") }) => Self::Rare,
            18 if is(const { Key::new(b"proxy-authenticate") }) => Self::Rare,
            19 if is(const { Key::new(b"proxy-authorization") }) => Self::Rare,
            _ => Self::PassedOn,
        }
    }
}

impl Lines {
    /// The field lines of `head`, which begin at `from`, and the length of the head; `None` if they are not plain, more than `most`, or for a
    /// map.
    #[inline]
    pub(super) fn read(head: &[u8], from: usize, most: usize) -> Option<(Box<Self>, usize)> {
        let mut at = from;
        let lines = Self::collect(
            head,
            from,
            || {
                let next = plain::line(head, at);
                if let Next::Line(_, value) = next {
                    at = value.end as usize + 2;
                }
                next
            },
            most,
        )?;
        Some((lines, at + 2))
    }

    /// Those of a head whose names and values are at `spans`. `None` if they are for a map.
    pub(super) fn of(head: &[u8], spans: &[(Span, Span)]) -> Option<Box<Self>> {
        let from = spans.first().map_or(0, |(name, _)| name.start as usize);
        let mut at = from;
        let mut spans = spans.iter();
        Self::collect(
            head,
            from,
            || {
                let Some(&(name, value)) = spans.next() else { return Next::End };
                let begin = std::mem::replace(&mut at, value.end as usize + 2);
                let plain = name.start as usize == begin
                    && head.get(name.end as usize..value.start as usize) == Some(b": ")
                    && head.get(value.end as usize..at) == Some(b"\r\n");
                if plain { Next::Line(name, value) } else { Next::Other }
            },
            usize::MAX,
        )
    }

    /// Lines that begin at `from` and follow each other as `next` says.
    #[inline]
    fn collect(head: &[u8], from: usize, next: impl FnMut() -> Next, most: usize) -> Option<Box<Self>> {
        let mut lines = SPARE.take().unwrap_or_default();
        if lines.fill(head, from, next, most).is_none() {
            lines.recycle();
            return None;
        }
        Some(lines)
    }

    #[inline]
    fn fill(&mut self, head: &[u8], from: usize, mut next: impl FnMut() -> Next, most: usize) -> Option<()> {
        // What is passed on stands between those that are not.
        let (mut run, mut end) = (from, from);
        for _ in 0..=most {
            match next() {
                Next::Line(name, value) => {
                    if self.passes(Key::at(head, name), value.bytes(head))? {
                        self.lines.note(name.bytes(head));
                    } else {
                        self.lines.take_over(head.get(run..end)?);
                        run = value.end as usize + 2;
                    }
                    end = value.end as usize + 2;
                }
                Next::End => {
                    self.lines.take_over(head.get(run..end)?);
                    return Some(());
                }
                Next::Other => return None,
            }
        }
        None
    }

    /// Whether a line is passed on; `None` if it is for the map.
    #[inline]
    fn passes(&mut self, name: Key, value: &[u8]) -> Option<bool> {
        match Kind::of(name) {
            Kind::PassedOn => return Some(true),
            Kind::Date => {
                self.dated = true;
                return Some(true);
            }
            Kind::Length if self.declared.is_none() => self.declared = Some(BodyLength::Known(number(value)?)),
            Kind::Coding if self.declared.is_none() && value.eq_ignore_ascii_case(b"chunked") => self.declared = Some(BodyLength::Chunked),
            Kind::KeepAlive if !self.kept_alive => (self.kept_alive, self.idle_limit) = (true, idle_limit(value)),
            Kind::Connection if !self.connected => {
                self.connected = true;
                self.close = value.eq_ignore_ascii_case(b"close");
                if !self.close && !value.eq_ignore_ascii_case(b"keep-alive") {
                    return None;
                }
            }
            Kind::Rare | Kind::Length | Kind::Coding | Kind::KeepAlive | Kind::Connection => return None,
        }
        Some(false)
    }

    /// Leaves its memory to the next response of the worker.
    pub fn recycle(mut self: Box<Self>) {
        let mut lines = std::mem::take(&mut self.lines);
        if lines.clear() {
            *self = Self { lines, ..Self::default() };
            SPARE.set(Some(self));
        }
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
        self.idle_limit
    }

    /// Whether there is a `Date`.
    pub fn dated(&self) -> bool {
        self.dated
    }

    /// Writes the lines.
    pub fn write(&self, out: &mut impl BufMut) {
        out.put_slice(self.lines.as_bytes());
    }

    /// The same as a map, `Content-Length` included.
    pub fn into_map(self) -> HeaderMap {
        let bytes = Bytes::from(self.lines.into_bytes());
        let mut map = HeaderMap::with_capacity(made::lines(&bytes).count() + super::fields::RESPONSE_SPARE);
        for line in made::lines(&bytes) {
            let Some(colon) = line.iter().position(|&byte| byte == b':') else { continue };
            let name = HeaderName::from_bytes(line.get(..colon).unwrap_or_default());
            let value = line.get(colon + 2..line.len().saturating_sub(2)).unwrap_or_default();
            // Checked when the head was parsed or the line was made: neither can fail.
            if let (Ok(name), Ok(value)) = (name, HeaderValue::from_maybe_shared(bytes.slice_ref(value))) {
                map.append(name, value);
            }
        }
        if let Some(BodyLength::Known(length)) = self.declared {
            map.insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
        map
    }
}

impl Fields for Lines {
    fn has(&self, name: &HeaderName) -> bool {
        self.lines.has(name)
    }

    fn values_of<'s>(&'s self, name: &HeaderName) -> impl Iterator<Item = &'s [u8]> {
        self.lines.values_of(name)
    }

    fn remove(&mut self, name: &HeaderName) {
        self.dated &= *name != DATE;
        self.lines.remove(name);
    }

    fn replace(&mut self, name: &HeaderName, value: Option<FieldValue<'_>>) {
        if *name == DATE {
            self.dated = value.is_some();
        }
        self.lines.replace(name, value);
    }

    fn remove_prefixed(&mut self, prefix: &str) {
        self.dated &= !DATE.as_str().starts_with(prefix);
        self.lines.remove_prefixed(prefix);
    }

    fn append(&mut self, name: &HeaderName, value: FieldValue<'_>) {
        self.dated |= *name == DATE;
        self.lines.append(name, value);
    }
}

/// `timeout` in the value of a `Keep-Alive`.
pub fn idle_limit(value: &[u8]) -> Option<Duration> {
    let text = std::str::from_utf8(value).ok()?;
    text.split(',').find_map(|parameter| parameter.trim().strip_prefix("timeout=")?.parse().ok()).map(Duration::from_secs)
}
