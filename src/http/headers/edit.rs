//! What rules do to the fields of a message, whatever holds these: a map, the lines of a response, or a map with lines beside it.
//!
//! Rules are written once, over [`Fields`]. A map is dear to make and to write out again, so most messages never become one only because a
//! field is added. That all holders end up with the same fields is held by a property test.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::unindexed;
use crate::http::h1::encode::field;
use crate::http::h1::made::{Made, Names, begins, is_like, value};

/// A value that was checked: it has no control character but tabs, so it cannot end its line.
#[derive(Clone, Copy, Debug)]
pub enum FieldValue<'a> {
    /// In memory of its own, to be shared.
    Ready(&'a HeaderValue),
    /// In somebody else's.
    Text(&'a [u8]),
}

impl<'a> FieldValue<'a> {
    /// `text` as a value; `None` if it cannot be one.
    pub fn text(text: &'a [u8]) -> Option<Self> {
        text.iter().all(|&byte| byte == b'\t' || byte >= b' ' && byte != 0x7F).then_some(Self::Text(text))
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &'a [u8] {
        match self {
            Self::Ready(value) => value.as_bytes(),
            Self::Text(text) => text,
        }
    }

    fn to_value(self) -> Option<HeaderValue> {
        match self {
            Self::Ready(value) => Some(value.clone()),
            // Written for this message.
            Self::Text(text) => HeaderValue::from_bytes(text).ok().map(unindexed),
        }
    }
}

impl<'a> From<&'a HeaderValue> for FieldValue<'a> {
    fn from(value: &'a HeaderValue) -> Self {
        Self::Ready(value)
    }
}

/// Fields that are made once and put on many messages: for maps as they are, for lines as the bytes that they go out as.
#[derive(Clone, Debug, Default)]
pub struct Ready {
    fields: Vec<(HeaderName, HeaderValue)>,
    names: Names,
    lines: Vec<u8>,
}

impl Ready {
    /// The names that there may be.
    pub fn names(&self) -> Names {
        self.names
    }

    /// The fields.
    pub fn iter(&self) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
        self.fields.iter().map(|(name, value)| (name, value))
    }

    /// Adds a field.
    pub fn push(&mut self, name: HeaderName, value: HeaderValue) {
        self.names.add(name.as_str().as_bytes());
        field(&mut self.lines, name.as_str(), value.as_bytes());
        self.fields.push((name, value));
    }
}

impl FromIterator<(HeaderName, HeaderValue)> for Ready {
    fn from_iter<I: IntoIterator<Item = (HeaderName, HeaderValue)>>(fields: I) -> Self {
        let mut ready = Self::default();
        fields.into_iter().for_each(|(name, value)| ready.push(name, value));
        ready
    }
}

/// The fields of a message. Names are in lower case, those of the lines in any.
pub trait Fields {
    /// Whether there may be a field of one of these names, or of the same but for `-` and `_`. "No" is certain; "yes" is a guess, so that this
    /// costs next to nothing.
    fn may_have(&self, names: Names) -> bool;

    /// Whether there is a line of this name.
    fn has(&self, name: &HeaderName) -> bool;

    /// The values of a field, in the order of its lines.
    fn values_of<'s>(&'s self, name: &HeaderName) -> impl Iterator<Item = &'s [u8]>;

    /// Removes all lines of a field.
    fn remove(&mut self, name: &HeaderName);

    /// Makes `value` the only line of a field, or takes the field away, and with it those that servers of the CGI kind take for it: the
    /// same but for `_` and `-`.
    fn replace(&mut self, name: &HeaderName, value: Option<FieldValue<'_>>);

    /// Removes all fields whose names begin with `prefix`.
    fn remove_prefixed(&mut self, prefix: &str);

    /// Adds a line.
    fn append(&mut self, name: &HeaderName, value: FieldValue<'_>);

    /// Adds a line whose value is written by `write`: nothing that a field value may not hold.
    fn append_written(&mut self, name: &HeaderName, write: impl FnOnce(&mut Vec<u8>));

    /// Adds lines.
    fn append_all(&mut self, ready: &Ready);

    /// Makes `value` the only line of a field.
    fn set(&mut self, name: &HeaderName, value: FieldValue<'_>) {
        self.remove(name);
        self.append(name, value);
    }
}

impl Fields for HeaderMap {
    fn may_have(&self, _names: Names) -> bool {
        // A map tells exactly, if it is asked for one name.
        true
    }

    fn has(&self, name: &HeaderName) -> bool {
        self.contains_key(name)
    }

    fn values_of<'s>(&'s self, name: &HeaderName) -> impl Iterator<Item = &'s [u8]> {
        self.get_all(name).into_iter().map(HeaderValue::as_bytes)
    }

    fn remove(&mut self, name: &HeaderName) {
        HeaderMap::remove(self, name);
    }

    fn replace(&mut self, name: &HeaderName, value: Option<FieldValue<'_>>) {
        remove_twins(name, self);
        match value {
            Some(value) => Fields::set(self, name, value),
            None => Fields::remove(self, name),
        }
    }

    fn remove_prefixed(&mut self, prefix: &str) {
        while let Some(name) = self.keys().find(|name| name.as_str().starts_with(prefix)).cloned() {
            HeaderMap::remove(self, name);
        }
    }

    fn append(&mut self, name: &HeaderName, value: FieldValue<'_>) {
        if let Some(value) = value.to_value() {
            HeaderMap::append(self, name, value);
        }
    }

    fn append_written(&mut self, name: &HeaderName, write: impl FnOnce(&mut Vec<u8>)) {
        let mut text = Vec::new();
        write(&mut text);
        Fields::append(self, name, FieldValue::Text(&text));
    }

    fn append_all(&mut self, ready: &Ready) {
        for (name, value) in &ready.fields {
            HeaderMap::append(self, name, value.clone());
        }
    }

    fn set(&mut self, name: &HeaderName, value: FieldValue<'_>) {
        match value.to_value() {
            Some(value) => drop(self.insert(name, value)),
            None => Fields::remove(self, name),
        }
    }
}

impl Fields for Made {
    fn may_have(&self, names: Names) -> bool {
        self.names().may_share(names)
    }

    fn has(&self, name: &HeaderName) -> bool {
        self.may_have_name(name) && self.each().any(|line| value(line, name.as_str().as_bytes()).is_some())
    }

    fn values_of<'s>(&'s self, name: &HeaderName) -> impl Iterator<Item = &'s [u8]> {
        let lines = self.may_have_name(name).then(|| self.each());
        lines.into_iter().flatten().filter_map(|line| value(line, name.as_str().as_bytes()))
    }

    fn remove(&mut self, name: &HeaderName) {
        if self.may_have_name(name) {
            self.drop_lines(|line| value(line, name.as_str().as_bytes()).is_some());
        }
    }

    fn replace(&mut self, name: &HeaderName, value: Option<FieldValue<'_>>) {
        if self.may_have_name(name) {
            self.drop_lines(|line| is_like(line, name.as_str().as_bytes()));
        }
        if let Some(value) = value {
            self.append(name, value);
        }
    }

    fn remove_prefixed(&mut self, prefix: &str) {
        if self.may_begin(prefix.as_bytes()) {
            self.drop_lines(|line| begins(line, prefix.as_bytes()));
        }
    }

    fn append(&mut self, name: &HeaderName, value: FieldValue<'_>) {
        self.push(name, value.as_bytes());
    }

    fn append_written(&mut self, name: &HeaderName, write: impl FnOnce(&mut Vec<u8>)) {
        self.push_written(name, write);
    }

    fn append_all(&mut self, ready: &Ready) {
        self.room(ready.names).extend_from_slice(&ready.lines);
    }
}

/// Removes fields that differ from `name` in `_` and `-` alone.
fn remove_twins(name: &HeaderName, headers: &mut HeaderMap) {
    let name = name.as_str().as_bytes();
    if !name.iter().any(|b| matches!(b, b'-' | b'_')) {
        return;
    }
    let plain = |byte: &u8| if *byte == b'_' { b'-' } else { *byte };
    let twin = |other: &HeaderName| {
        let other = other.as_str().as_bytes();
        other.len() == name.len() && other != name && other.iter().map(plain).eq(name.iter().map(plain))
    };
    while let Some(found) = headers.keys().find(|other| twin(other)).cloned() {
        headers.remove(found);
    }
}

/// A request's map, and what the gateway adds to it as the lines that are written behind it.
#[derive(Debug)]
pub struct Beside<'a> {
    headers: &'a mut HeaderMap,
    names: Names,
    made: Made,
}

impl<'a> Beside<'a> {
    /// `made` beside `headers`, which has none of its names.
    pub fn new(headers: &'a mut HeaderMap, made: Made) -> Self {
        let mut names = Names::default();
        headers.keys().for_each(|name| names.add(name.as_str().as_bytes()));
        Self { headers, names, made }
    }

    /// The lines, to be written behind the map.
    pub fn made(self) -> Made {
        self.made
    }

    /// Whether a name may be in the map, and whether it may be beside it.
    fn may_be(&self, name: &HeaderName) -> [bool; 2] {
        let names = Names::of(name.as_str().as_bytes());
        [self.names, self.made.names()].map(|own| own.may_share(names))
    }
}

impl Fields for Beside<'_> {
    fn may_have(&self, names: Names) -> bool {
        self.names.and(self.made.names()).may_share(names)
    }

    fn has(&self, name: &HeaderName) -> bool {
        let [in_map, beside] = self.may_be(name);
        in_map && self.headers.has(name) || beside && self.made.has(name)
    }

    fn values_of<'s>(&'s self, name: &HeaderName) -> impl Iterator<Item = &'s [u8]> {
        self.headers.values_of(name).chain(self.made.values_of(name))
    }

    fn remove(&mut self, name: &HeaderName) {
        let [in_map, beside] = self.may_be(name);
        if in_map {
            Fields::remove(self.headers, name);
        }
        if beside {
            self.made.remove(name);
        }
    }

    fn replace(&mut self, name: &HeaderName, value: Option<FieldValue<'_>>) {
        let [in_map, beside] = self.may_be(name);
        if in_map {
            self.headers.replace(name, None);
        }
        if beside {
            self.made.replace(name, None);
        }
        if let Some(value) = value {
            self.append(name, value);
        }
    }

    fn remove_prefixed(&mut self, prefix: &str) {
        self.headers.remove_prefixed(prefix);
        self.made.remove_prefixed(prefix);
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

#[cfg(test)]
mod tests;
