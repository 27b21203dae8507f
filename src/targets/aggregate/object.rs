//! An object whose keys change: its members as they are found, and the object written anew out of ranges of the answer.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;

use bytes::Bytes;

use super::json;
use super::shape::{Change, Shape};

/// Objects with more members than this are searched by hash.
const FEW: usize = 16;
/// So many keys with escapes are remembered from the objects of a list that came before.
const MOST_DECODED: usize = 64;

/// A key as it stands in the answer, between its quotes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    pub start: usize,
    pub end: usize,
    pub escaped: bool,
}

impl Key {
    /// What stands between its quotes.
    fn raw(self, text: &[u8]) -> &[u8] {
        text.get(self.start..self.end).unwrap_or_default()
    }

    /// Itself with its quotes.
    fn quoted(self) -> Range<usize> {
        self.start - 1..self.end + 1
    }

    /// What it says, if that is not what is written.
    fn decoded(self, text: &[u8]) -> Option<Vec<u8>> {
        if self.escaped { text.get(self.quoted()).and_then(json::unescaped) } else { None }
    }

    /// Whether it says `name`.
    pub(super) fn is(self, name: &[u8], text: &[u8]) -> bool {
        self.decoded(text).map_or_else(|| self.raw(text) == name, |decoded| decoded == name)
    }
}

/// A member that stays.
#[derive(Clone, Copy, Debug)]
struct Member {
    key: Key,
    name: Name,
    /// Begin and end of its value.
    value: (usize, usize),
}

/// What a member's key is in the end.
#[derive(Clone, Copy, Debug)]
enum Name {
    /// As it is written.
    Plain,
    /// What is written says this entry of the decoded ones.
    Decoded(usize),
    /// This new name of the shape.
    Renamed(usize),
}

fn name<'a>(member: &Member, text: &'a [u8], shape: &'a Shape, decoded: &'a [Vec<u8>]) -> &'a [u8] {
    match member.name {
        Name::Plain => member.key.raw(text),
        Name::Decoded(number) => decoded.get(number).map(Vec::as_slice).unwrap_or_default(),
        Name::Renamed(number) => shape.name(number).map(|name| name.plain.as_slice()).unwrap_or_default(),
    }
}

/// The members of an object, each key once.
#[derive(Debug, Default)]
pub(super) struct Members {
    text: Bytes,
    list: Vec<Member>,
    decoded: Vec<Vec<u8>>,
}

/// One of them.
pub(super) struct Entry<'a> {
    /// What its key says.
    pub name: &'a [u8],
    /// Its key as JSON.
    pub quoted: &'a [u8],
    /// Its value as JSON.
    pub value: Bytes,
}

impl Members {
    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    /// The member of this number. `shape` is the one that they were found with.
    pub(super) fn entry<'a>(&'a self, number: usize, shape: &'a Shape) -> Option<Entry<'a>> {
        let member = self.list.get(number)?;
        let quoted = match member.name {
            Name::Plain | Name::Decoded(_) => self.text.get(member.key.quoted())?,
            Name::Renamed(number) => &shape.name(number)?.quoted,
        };
        Some(Entry { name: name(member, &self.text, shape, &self.decoded), quoted, value: self.text.slice(member.value.0..member.value.1) })
    }
}

/// The object that is being read.
pub(super) struct Object<'a> {
    shape: &'a Shape,
    text: &'a [u8],
    members: Vec<Member>,
    /// Keys with escapes.
    decoded: Vec<Vec<u8>>,
    /// Where the members are, by name, when there are many.
    places: HashMap<Cow<'a, [u8]>, usize>,
    /// Objects of a list mostly have the same keys in the same order: what the one before had, and what became of each.
    columns: Vec<Column>,
    /// So many keys are the same so far. `None`: no more.
    same: Option<usize>,
    in_list: bool,
    /// A key came twice: the object is no example for the next.
    repeats: bool,
}

#[derive(Clone, Copy)]
struct Column {
    key: Key,
    /// `None`: dropped.
    name: Option<Name>,
}

impl<'a> Object<'a> {
    pub(super) fn new(shape: &'a Shape, text: &'a [u8]) -> Self {
        let (members, decoded, columns) = (Vec::new(), Vec::new(), Vec::new());
        Self { shape, text, members, decoded, places: HashMap::new(), columns, same: None, in_list: false, repeats: false }
    }

    /// A new object begins, perhaps one of many in a list.
    pub(super) fn begin(&mut self, in_list: bool) {
        if !in_list || self.repeats || self.decoded.len() > MOST_DECODED {
            self.columns.clear();
            self.decoded.clear();
        }
        if !self.places.is_empty() {
            // Clearing would cost as much as the largest object so far, for each one that follows.
            self.places = HashMap::new();
        }
        self.members.clear();
        (self.same, self.in_list, self.repeats) = (Some(0), in_list, false);
    }

    /// Takes a member in.
    #[inline]
    pub(super) fn member(&mut self, key: Key, value: Range<usize>) {
        let value = (value.start, value.end);
        if let Some(count) = self.same {
            if let Some(column) = self.columns.get(count).filter(|column| column.key.raw(self.text) == key.raw(self.text)) {
                self.same = Some(count + 1);
                // The columns so far have different names, so there is nothing to look for.
                if let Some(name) = column.name {
                    self.members.push(Member { key, name, value });
                }
                return;
            }
            self.columns.truncate(count);
            self.same = None;
        }
        let name = self.name(key);
        if self.in_list {
            self.columns.push(Column { key, name });
        }
        if let Some(name) = name {
            self.add(Member { key, name, value });
        }
    }

    /// The name that a key ends with; `None`: it is dropped.
    fn name(&mut self, key: Key) -> Option<Name> {
        let decoded = key.decoded(self.text);
        match self.shape.change(decoded.as_deref().unwrap_or_else(|| key.raw(self.text))) {
            Change::Drop => None,
            Change::Rename(number) => Some(Name::Renamed(number)),
            Change::Keep => Some(decoded.map_or(Name::Plain, |decoded| {
                self.decoded.push(decoded);
                Name::Decoded(self.decoded.len() - 1)
            })),
        }
    }

    /// Adds a member, or replaces the one of its name. A renamed one wins over one that had the name before.
    fn add(&mut self, member: Member) {
        let place = self.place(&member);
        match place.and_then(|place| self.members.get_mut(place)) {
            None => return self.members.push(member),
            Some(Member { name: Name::Renamed(_), .. }) if !matches!(member.name, Name::Renamed(_)) => {}
            Some(other) => *other = member,
        }
        self.repeats = true;
    }

    /// Where a member of the same name is.
    fn place(&mut self, member: &Member) -> Option<usize> {
        let (text, shape) = (self.text, self.shape);
        if self.members.len() < FEW {
            let wanted = name(member, text, shape, &self.decoded);
            return self.members.iter().position(|other| name(other, text, shape, &self.decoded) == wanted);
        }
        let decoded = &self.decoded;
        let hashed = |member: &Member| match member.name {
            Name::Decoded(number) => Cow::Owned(decoded.get(number).cloned().unwrap_or_default()),
            Name::Plain => Cow::Borrowed(member.key.raw(text)),
            Name::Renamed(_) => Cow::Borrowed(name(member, text, shape, &[])),
        };
        if self.places.is_empty() {
            self.places = self.members.iter().enumerate().map(|(place, member)| (hashed(member), place)).collect();
        }
        let place = *self.places.entry(hashed(member)).or_insert(self.members.len());
        (place < self.members.len()).then_some(place)
    }

    /// Writes the object that stood at `place`.
    pub(super) fn write(&self, place: Range<usize>, runs: &mut Runs<'_>) {
        runs.punctuation(place.start, b'{');
        for (index, member) in self.members.iter().enumerate() {
            if index > 0 {
                runs.byte(b',');
            }
            match member.name {
                Name::Plain | Name::Decoded(_) => runs.source(member.key.quoted()),
                Name::Renamed(number) => {
                    runs.literal(self.shape.name(number).map(|name| name.quoted.as_slice()).unwrap_or_default(), member.key.end + 1);
                }
            }
            runs.byte(b':');
            runs.source(member.value.0..member.value.1);
        }
        runs.byte(b'}');
    }

    /// All members, at the end of an object that is the whole.
    pub(super) fn members(self, text: &Bytes) -> Members {
        Members { text: text.clone(), list: self.members, decoded: self.decoded }
    }
}

/// Text made of ranges of another. What stood together is copied together.
pub(super) struct Runs<'a> {
    text: &'a [u8],
    out: Vec<u8>,
    /// What is to be copied next.
    run: Range<usize>,
}

impl<'a> Runs<'a> {
    pub(super) fn new(text: &'a [u8]) -> Self {
        Self { text, out: Vec::new(), run: 0..0 }
    }

    pub(super) fn clear(&mut self) {
        self.out.clear();
        self.run = 0..0;
    }

    /// Appends a range.
    #[inline]
    pub(super) fn source(&mut self, place: Range<usize>) {
        self.go_on(place.start);
        self.run.end = place.end;
    }

    /// Appends a byte, which mostly is the next one of the text.
    #[inline]
    pub(super) fn byte(&mut self, byte: u8) {
        if self.text.get(self.run.end) == Some(&byte) {
            self.run.end += 1;
        } else {
            self.literal(&[byte], self.run.end);
        }
    }

    /// Appends the byte that stands here.
    pub(super) fn punctuation(&mut self, at: usize, byte: u8) {
        self.go_on(at);
        self.byte(byte);
    }

    /// Appends what does not stand in the text in place of what stands before `resume`.
    fn literal(&mut self, bytes: &[u8], resume: usize) {
        self.flush();
        self.out.extend_from_slice(bytes);
        self.run = resume..resume;
    }

    fn go_on(&mut self, at: usize) {
        if self.run.end != at {
            self.flush();
            self.run = at..at;
        }
    }

    fn flush(&mut self) {
        if !self.run.is_empty() {
            if self.out.is_empty() {
                self.out.reserve(self.text.len() - self.run.start);
            }
            self.out.extend_from_slice(self.text.get(self.run.clone()).unwrap_or_default());
        }
    }

    /// The whole; `text` is the same text. A single range is not copied.
    pub(super) fn finish(mut self, text: &Bytes) -> Bytes {
        if self.out.is_empty() {
            return text.slice(self.run);
        }
        self.flush();
        Bytes::from(self.out)
    }
}
