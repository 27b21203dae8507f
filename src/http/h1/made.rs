//! Field lines that the gateway makes, as the bytes that they go out as.

use std::cell::RefCell;

use http::HeaderName;

use super::encode::field;

/// Room for the lines of the usual rules, so that the buffer need not grow.
const ROOM: usize = 512;
/// Longest memory that is kept for another message.
const KEPT: usize = 16 << 10;

/// Buffers that a thread keeps for the next messages, and the largest one that it keeps.
const SPARES: usize = 16;
const LARGEST_SPARE: usize = 4 << 10;

thread_local! {
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Whole lines, each written as `name: value` with CR LF behind it.
#[derive(Clone, Debug, Default)]
pub struct Made {
    bytes: Vec<u8>,
    names: Names,
}

/// Which names there may be: those whose bit is missing need not be looked for. What was removed leaves its bit.
#[derive(Clone, Copy, Debug, Default)]
pub struct Names {
    /// A bit for each name.
    whole: u64,
    /// Another: in one such word alone, every sixth name would be taken for one of an ordinary message's.
    again: u32,
    /// A bit for each first letter.
    first: u32,
}

impl Names {
    /// One name, in any case; the same for one that has `_` for `-`.
    pub const fn of(name: &[u8]) -> Self {
        let (first, last) = (alike(name.first()), alike(name.last()));
        let middle = if name.is_empty() { 0 } else { alike(Some(&name[name.len() / 2])) };
        // Multiplied so that all of them show in the upper bits (Knuth's multiplicative hashing).
        let hash = ((name.len() as u32) | first << 8 | last << 16 | middle << 24).wrapping_mul(0x9E37_79B1);
        Self { whole: 1 << (hash >> 26), again: 1 << (hash >> 21 & 31), first: 1 << (first & 31) }
    }

    /// These and the others.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self { whole: self.whole | other.whole, again: self.again | other.again, first: self.first | other.first }
    }

    /// Notes a name, in any case.
    pub fn add(&mut self, name: &[u8]) {
        *self = self.and(Self::of(name));
    }

    /// Whether `name` may be there.
    pub fn may_have(self, name: &[u8]) -> bool {
        self.may_share(Self::of(name))
    }

    /// Whether a name of the others may be there.
    pub fn may_share(self, other: Self) -> bool {
        self.whole & other.whole != 0 && self.again & other.again != 0
    }

    /// Whether a name that begins with `prefix` may be there.
    pub fn may_begin(self, prefix: &[u8]) -> bool {
        self.first & Self::of(prefix).first != 0
    }
}

/// A letter, alike in either case, and for `-` and `_`.
const fn alike(letter: Option<&u8>) -> u32 {
    match letter {
        Some(b'_') => b'-' as u32,
        Some(letter) => (*letter | 0x20) as u32,
        None => 0,
    }
}

impl Made {
    /// Writes a line behind the others.
    pub fn push(&mut self, name: &HeaderName, value: &[u8]) {
        let name = name.as_str();
        let out = self.room(Names::of(name.as_bytes()));
        field(out, name, value);
    }

    /// The same, whose value `write` writes: nothing that a field value may not hold.
    pub fn push_written(&mut self, name: &HeaderName, write: impl FnOnce(&mut Vec<u8>)) {
        let name = name.as_str();
        let out = self.room(Names::of(name.as_bytes()));
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b": ");
        write(out);
        out.extend_from_slice(b"\r\n");
    }

    /// Where whole lines of these names are to be written.
    #[inline]
    pub fn room(&mut self, names: Names) -> &mut Vec<u8> {
        self.names = self.names.and(names);
        if self.bytes.capacity() == 0 {
            self.bytes = spare();
        }
        &mut self.bytes
    }

    /// The names that there may be.
    pub fn names(&self) -> Names {
        self.names
    }

    /// Takes over whole lines as they came, behind the others; their names are noted with [`Made::note`].
    pub(super) fn take_over(&mut self, lines: &[u8]) {
        if lines.is_empty() {
            return;
        }
        if self.bytes.capacity() == 0 {
            self.bytes.reserve(lines.len().max(ROOM));
        }
        self.bytes.extend_from_slice(lines);
    }

    /// Notes the name of a line that is taken over.
    #[inline]
    pub(super) fn note(&mut self, name: &[u8]) {
        self.names.add(name);
    }

    /// Forgets all lines. `false` if so much memory is left that it should not be kept for others.
    pub(super) fn clear(&mut self) -> bool {
        self.bytes.clear();
        self.names = Names::default();
        self.bytes.capacity() <= KEPT
    }

    /// The lines, as their memory.
    pub(super) fn into_bytes(mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }

    /// The lines.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether a line whose name begins with `prefix` may be there.
    pub fn may_begin(&self, prefix: &[u8]) -> bool {
        self.names.may_begin(prefix)
    }

    /// Whether a line of this name may be there.
    pub fn may_have_name(&self, name: &HeaderName) -> bool {
        self.names.may_have(name.as_str().as_bytes())
    }

    /// The lines one by one, line ends included.
    pub fn each(&self) -> impl Iterator<Item = &[u8]> {
        lines(&self.bytes)
    }

    /// Removes the lines that `fits` is true for.
    pub fn drop_lines(&mut self, fits: impl Fn(&[u8]) -> bool) {
        let (mut at, mut kept) = (0, 0);
        while let Some(line) = self.bytes.get(at..).and_then(|rest| rest.get(..=memchr::memchr(b'\n', rest)?)) {
            let (len, keeps) = (line.len(), !fits(line));
            if keeps {
                self.bytes.copy_within(at..at + len, kept);
                kept += len;
            }
            at += len;
        }
        self.bytes.truncate(kept);
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if (ROOM..=LARGEST_SPARE).contains(&self.bytes.capacity()) {
            give_back(std::mem::take(&mut self.bytes));
        }
    }
}

/// An empty buffer.
fn spare() -> Vec<u8> {
    // No spares are left at a thread's end.
    let spare = SPARE.try_with(|spares| spares.borrow_mut().pop()).ok().flatten();
    spare.unwrap_or_else(|| Vec::with_capacity(ROOM))
}

fn give_back(mut buffer: Vec<u8>) {
    buffer.clear();
    let keep = |spares: &RefCell<Vec<Vec<u8>>>| {
        let mut spares = spares.borrow_mut();
        if spares.len() < SPARES {
            spares.push(buffer);
        }
    };
    // At a thread's end it is dropped like any other.
    SPARE.try_with(keep).unwrap_or_default();
}

/// Whole lines one by one, line ends included.
pub(super) fn lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut start = 0;
    memchr::memchr_iter(b'\n', bytes).map_while(move |at| bytes.get(std::mem::replace(&mut start, at + 1)..=at))
}

/// What stands behind the name, if that is `name` (in lower case) as `same` compares the letters of both; those of the line are given as
/// lower case.
fn behind<'l>(line: &'l [u8], name: &[u8], same: impl Fn(u8, u8) -> bool) -> Option<&'l [u8]> {
    let (own, rest) = line.split_at_checked(name.len())?;
    let fits = rest.first() == Some(&b':') && own.iter().zip(name).all(|(&own, &other)| same(own.to_ascii_lowercase(), other));
    fits.then_some(rest)
}

/// The value of a line, if its name is `name`.
pub fn value<'l>(line: &'l [u8], name: &[u8]) -> Option<&'l [u8]> {
    let rest = behind(line, name, |own, other| own == other)?;
    rest.get(2..rest.len().saturating_sub(2))
}

/// Whether a line's name is `name`, or the same but for `-` and `_`.
pub fn is_like(line: &[u8], name: &[u8]) -> bool {
    let dashed = |byte| if byte == b'_' { b'-' } else { byte };
    behind(line, name, |own, other| dashed(own) == dashed(other)).is_some()
}

/// Whether a line's name begins with `prefix`, which is in lower case.
pub fn begins(line: &[u8], prefix: &[u8]) -> bool {
    line.get(..prefix.len()).is_some_and(|own| own.eq_ignore_ascii_case(prefix))
}
