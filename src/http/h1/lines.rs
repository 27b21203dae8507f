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
use super::made::{self, Made, Names};
use super::plain::{self, Key, Next};
use crate::http::headers::{FieldValue, Fields, Ready};

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
    /// What the name of `len` bytes that `line` begins with makes it. By length first: nearly every name is told apart by it.
    #[inline]
    fn of(line: &[u8], len: usize) -> Self {
        let is = |known: Key| known.is(line, len);
        match len {
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
    /// The field lines at the beginning of `fields`, and how long they are with the empty line; `None` if they are not plain, more than `most`,
    /// or for a map.
    #[inline]
    pub(super) fn read(fields: &[u8], most: usize) -> Option<(Box<Self>, usize)> {
        let mut lines = SPARE.take().unwrap_or_default();
        let Some(len) = lines.fill(fields, most) else {
            lines.recycle();
            return None;
        };
        Some((lines, len))
    }

    #[inline]
    fn fill(&mut self, fields: &[u8], most: usize) -> Option<usize> {
        // What is passed on stands in runs between lines that are not.
        let (mut run, mut rest) = (fields, fields);
        for _ in 0..=most {
            match plain::line(rest) {
                Next::Line { name, value, behind } => {
                    if self.passes(rest, name.len(), value)? {
                        self.lines.note(name);
                    } else {
                        self.lines.take_over(run.get(..run.len() - rest.len())?);
                        run = behind;
                    }
                    rest = behind;
                }
                Next::End => {
                    self.lines.take_over(run.get(..run.len() - rest.len())?);
                    return Some(fields.len() - rest.len() + 2);
                }
                Next::Other => return None,
            }
        }
        None
    }

    /// Those of a head whose names and values are at `spans`. `None` if they are for a map.
    pub(super) fn of(head: &[u8], spans: &[(Span, Span)]) -> Option<Box<Self>> {
        let mut lines = Box::<Self>::default();
        for &(name, value) in spans {
            let (line, end) = (head.get(name.start as usize..)?, value.end as usize + 2);
            if head.get(name.end as usize..value.start as usize) != Some(b": ") || head.get(value.end as usize..end) != Some(b"\r\n") {
                return None;
            }
            if lines.passes(line, name.len(), value.bytes(head))? {
                lines.lines.note(name.bytes(head));
                lines.lines.take_over(head.get(name.start as usize..end)?);
            }
        }
        Some(lines)
    }

    /// Whether a line is passed on, whose name is the first `len` bytes of it; `None` if it is for the map.
    #[inline]
    fn passes(&mut self, line: &[u8], len: usize, value: &[u8]) -> Option<bool> {
        match Kind::of(line, len) {
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
                // Nearly all write it in lower case, which is compared at once.
                if !self.close && value != b"keep-alive" && !value.eq_ignore_ascii_case(b"keep-alive") {
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
    fn may_have(&self, names: Names) -> bool {
        self.lines.may_have(names)
    }

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

    fn append_written(&mut self, name: &HeaderName, write: impl FnOnce(&mut Vec<u8>)) {
        self.dated |= *name == DATE;
        self.lines.append_written(name, write);
    }

    fn append_all(&mut self, ready: &Ready) {
        self.dated |= ready.iter().any(|(name, _)| *name == DATE);
        self.lines.append_all(ready);
    }
}

/// `timeout` in the value of a `Keep-Alive`.
pub fn idle_limit(value: &[u8]) -> Option<Duration> {
    let text = std::str::from_utf8(value).ok()?;
    text.split(',').find_map(|parameter| parameter.trim().strip_prefix("timeout=")?.parse().ok()).map(Duration::from_secs)
}
