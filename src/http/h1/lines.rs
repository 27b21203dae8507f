//! Field lines of a response that are passed on as they came.
//!
//! Most responses go through a gateway without anybody looking at their fields. To parse each into a map and to write each out of it
//! again is then the largest part of the gateway's work. So the lines stay what they are, bytes that were checked once, without those that
//! this hop makes anew. Whoever wants to look or to change something gets the map all the same, and pays for it.

use std::ops::Range;
use std::time::Duration;

use bytes::{BufMut, Bytes};
use http::header::{CONTENT_LENGTH, DATE};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::fields::Span;
use super::framing::{BodyLength, number};
use super::made::{self, Made, Names};
use crate::http::headers::{FieldValue, Fields, Ready};

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
    /// Names in the runs.
    names: Names,
    /// Lines behind those of the runs: what the gateway adds, and all of the runs where too many would be left.
    made: Made,
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
            names: Names::default(),
            made: Made::default(),
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
                    lines.names.add(name);
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
        self.dated || self.made.has(&DATE)
    }

    /// Writes the lines.
    pub fn write(&self, out: &mut impl BufMut) {
        for run in self.runs() {
            out.put_slice(run);
        }
        out.put_slice(self.made.as_bytes());
    }

    /// The same as a map, `Content-Length` included.
    pub fn into_map(self) -> HeaderMap {
        let mut map = HeaderMap::with_capacity(self.each().count() + super::fields::RESPONSE_SPARE);
        let came = self.runs().flat_map(made::lines).map(|line| (line, true));
        for (line, came) in came.chain(self.made.each().map(|line| (line, false))) {
            let Some(colon) = line.iter().position(|&byte| byte == b':') else { continue };
            let name = HeaderName::from_bytes(line.get(..colon).unwrap_or_default());
            let value = line.get(colon + 2..line.len().saturating_sub(2)).unwrap_or_default();
            let value = if came { HeaderValue::from_maybe_shared(self.head.slice_ref(value)) } else { HeaderValue::from_bytes(value) };
            // Checked when the head was parsed or the line was made: neither can fail.
            if let (Ok(name), Ok(value)) = (name, value) {
                map.append(name, value);
            }
        }
        if let Some(BodyLength::Known(length)) = self.declared {
            map.insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
        map
    }

    fn runs(&self) -> impl Iterator<Item = &[u8]> {
        self.runs.iter().take_while(|run| !run.is_empty()).map(|run| self.bytes(run))
    }

    /// The lines one by one, line ends included.
    fn each(&self) -> impl Iterator<Item = &[u8]> {
        self.runs().flat_map(made::lines).chain(self.made.each())
    }

    fn may_have_name(&self, name: &HeaderName) -> bool {
        self.names.may_have(name.as_str().as_bytes())
    }

    /// Removes the lines of the runs that `fits` is true for, which depends on their names alone.
    fn drop_lines(&mut self, fits: impl Fn(&[u8]) -> bool) {
        let (mut left, mut used, mut crowded) = ([const { 0..0 }; RUNS], 0, false);
        let mut keep = |run: Range<u32>| {
            if !run.is_empty() {
                left.get_mut(used).map_or_else(|| crowded = true, |place| *place = run);
                used += 1;
            }
        };
        let mut dated = self.dated;
        for run in &self.runs {
            let (mut start, mut at) = (run.start, run.start);
            for line in made::lines(self.bytes(run)) {
                let end = at + u32::try_from(line.len()).unwrap_or(u32::MAX);
                if fits(line) {
                    dated &= made::value(line, b"date").is_none();
                    keep(start..at);
                    start = end;
                }
                at = end;
            }
            keep(start..at);
        }
        if crowded {
            return self.move_lines(fits);
        }
        (self.runs, self.dated) = (left, dated);
    }

    /// The same where more runs would be left than there is room for: the lines move.
    #[cold]
    fn move_lines(&mut self, fits: impl Fn(&[u8]) -> bool) {
        let mut made = std::mem::take(&mut self.made);
        made.put_in_front(self.names, self.runs().flat_map(made::lines).filter(|line| !fits(line)));
        (self.made, self.runs, self.dated) = (made, [const { 0..0 }; RUNS], false);
    }

    fn bytes(&self, run: &Range<u32>) -> &[u8] {
        self.head.get(run.start as usize..run.end as usize).unwrap_or_default()
    }
}

impl Fields for Lines {
    fn may_have(&self, names: Names) -> bool {
        self.names.and(self.made.names()).may_share(names)
    }

    fn has(&self, name: &HeaderName) -> bool {
        let is_it = |line: &[u8]| made::value(line, name.as_str().as_bytes()).is_some();
        self.may_have_name(name) && self.runs().flat_map(made::lines).any(is_it) || self.made.has(name)
    }

    fn values_of<'s>(&'s self, name: &HeaderName) -> impl Iterator<Item = &'s [u8]> {
        let runs = self.may_have_name(name).then(|| self.runs().flat_map(made::lines));
        let values = runs.into_iter().flatten().filter_map(|line| made::value(line, name.as_str().as_bytes()));
        values.chain(self.made.values_of(name))
    }

    fn remove(&mut self, name: &HeaderName) {
        self.made.remove(name);
        if self.may_have_name(name) {
            self.drop_lines(|line| made::value(line, name.as_str().as_bytes()).is_some());
        }
    }

    fn replace(&mut self, name: &HeaderName, value: Option<FieldValue<'_>>) {
        self.made.replace(name, None);
        if self.may_have_name(name) {
            self.drop_lines(|line| made::is_like(line, name.as_str().as_bytes()));
        }
        if let Some(value) = value {
            self.append(name, value);
        }
    }

    fn remove_prefixed(&mut self, prefix: &str) {
        self.made.remove_prefixed(prefix);
        if self.names.may_begin(prefix.as_bytes()) {
            self.drop_lines(|line| made::begins(line, prefix.as_bytes()));
        }
    }

    fn append(&mut self, name: &HeaderName, value: FieldValue<'_>) {
        self.made.append(name, value);
    }

    fn append_written(&mut self, name: &HeaderName, write: impl FnOnce(&mut Vec<u8>)) {
        self.made.append_written(name, write);
    }

    fn append_all(&mut self, ready: &Ready) {
        self.made.append_all(ready);
    }
}

/// `timeout` in the value of a `Keep-Alive`.
pub fn idle_limit(value: &[u8]) -> Option<Duration> {
    let text = std::str::from_utf8(value).ok()?;
    text.split(',').find_map(|parameter| parameter.trim().strip_prefix("timeout=")?.parse().ok()).map(Duration::from_secs)
}
