//! One strict pass over a JSON text (RFC 8259, UTF-8, nesting bounded), in slices.
//!
//! The scanner builds nothing. It checks every byte once and tells a [`Sink`] where the values stand that the sink asked for; whatever lies
//! in other values costs only the check. Strings are skipped eight bytes at a time. What has been read so far is all in [`Scanner`], so a
//! long text can be read in slices with other requests between them.

use std::ops::Range;

use super::tokens::{Invalid, escape, is_utf8, next, number, plain, utf8_until, white, word};

/// Deepest nesting accepted; deeper documents break recursive parsers of clients. As many bits as a `u128` has.
const MAX_DEPTH: u32 = 128;

/// Kinds of values, as far as a sink needs them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `{…}`
    Object,
    /// `[…]`
    Array,
    /// Anything else.
    Scalar,
}

/// Hears where values stand: the document itself, and the children of every array and object that it wants to look into.
pub(super) trait Sink {
    /// The key of the member whose value comes next, without its quotes.
    fn key(&mut self, place: Range<usize>, escaped: bool);
    /// A value begins. Whether its children are of interest, too.
    fn begin(&mut self, at: usize, kind: Kind) -> bool;
    /// The value that began last and has not ended ends before `at`.
    fn end(&mut self, at: usize);
}

/// What has been read of a text.
#[derive(Clone, Debug)]
pub(super) struct Scanner {
    at: usize,
    state: State,
    /// Arrays and objects that are open.
    depth: u32,
    /// Which of them are objects, the innermost in the lowest bit.
    objects: u128,
    /// Which of them the sink looks into.
    watched: u128,
    string: Open,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A value must come.
    Value,
    /// A key must come.
    Key,
    /// Inside a key.
    InKey,
    /// Inside a string that is a value.
    InString,
    /// A value has ended.
    After,
}

/// The string that is being read.
#[derive(Clone, Copy, Debug, Default)]
struct Open {
    start: usize,
    /// Up to here it is known to be UTF-8.
    checked: usize,
    ascii: bool,
    escaped: bool,
}

impl Scanner {
    pub(super) fn new() -> Self {
        Self { at: 0, state: State::Value, depth: 0, objects: 0, watched: 0, string: Open::default() }
    }

    /// Reads about `slice` bytes more of `text`, always the same one. True when it has been read to its end.
    pub(super) fn advance(&mut self, text: &[u8], sink: &mut impl Sink, slice: usize) -> Result<bool, Invalid> {
        // A copy that no pointer leads to stays in registers.
        let mut now = self.clone();
        let ended = now.read(text, sink, now.at.saturating_add(slice))?;
        *self = now;
        Ok(ended)
    }

    /// Each turn reads a key, if one comes here, a value's begin, and all that ends behind it.
    #[inline(always)]
    fn read(&mut self, text: &[u8], sink: &mut impl Sink, until: usize) -> Result<bool, Invalid> {
        while self.at < until {
            if self.state == State::Key {
                if next(text, &mut self.at)? != b'"' {
                    return Err(Invalid);
                }
                self.enter_string(State::InKey);
            }
            if self.state == State::InKey {
                if !self.string(text, until)? {
                    return Ok(false);
                }
                if self.told() {
                    sink.key(self.string.start..self.at - 1, self.string.escaped);
                }
                if next(text, &mut self.at)? != b':' {
                    return Err(Invalid);
                }
                self.at += 1;
                self.state = State::Value;
            }
            if self.state == State::Value {
                self.value(text, sink)?;
            }
            if self.state == State::InString {
                if !self.string(text, until)? {
                    return Ok(false);
                }
                self.ended(sink);
            }
            while self.state == State::After {
                if self.depth == 0 {
                    return if white(text, self.at) == text.len() { Ok(true) } else { Err(Invalid) };
                }
                self.after(text, sink)?;
            }
        }
        Ok(false)
    }

    /// Whether the sink hears of what is here.
    #[inline(always)]
    fn told(&self) -> bool {
        self.depth == 0 || self.watched & 1 == 1
    }

    #[inline(always)]
    fn value(&mut self, text: &[u8], sink: &mut impl Sink) -> Result<(), Invalid> {
        let byte = next(text, &mut self.at)?;
        let end = match byte {
            b'{' | b'[' => return self.open(text, sink, byte == b'{'),
            b'"' => {
                self.begins(sink);
                self.enter_string(State::InString);
                return Ok(());
            }
            b'-' | b'0'..=b'9' => number(text, self.at),
            b't' => word(text, self.at, b"true"),
            b'f' => word(text, self.at, b"false"),
            b'n' => word(text, self.at, b"null"),
            _ => None,
        };
        self.begins(sink);
        self.at = end.ok_or(Invalid)?;
        self.ended(sink);
        Ok(())
    }

    #[inline(always)]
    fn begins(&self, sink: &mut impl Sink) {
        if self.told() {
            sink.begin(self.at, Kind::Scalar);
        }
    }

    #[inline(always)]
    fn ended(&mut self, sink: &mut impl Sink) {
        self.state = State::After;
        if self.told() {
            sink.end(self.at);
        }
    }

    #[inline(always)]
    fn open(&mut self, text: &[u8], sink: &mut impl Sink, object: bool) -> Result<(), Invalid> {
        if self.depth == MAX_DEPTH {
            return Err(Invalid);
        }
        let watch = self.told() && sink.begin(self.at, if object { Kind::Object } else { Kind::Array });
        self.depth += 1;
        self.objects = self.objects << 1 | u128::from(object);
        self.watched = self.watched << 1 | u128::from(watch);
        self.at += 1;
        match (next(text, &mut self.at)?, object) {
            (b'}', true) | (b']', false) => self.close(sink),
            (_, true) => self.state = State::Key,
            (_, false) => self.state = State::Value,
        }
        Ok(())
    }

    #[inline(always)]
    fn close(&mut self, sink: &mut impl Sink) {
        self.at += 1;
        self.depth -= 1;
        self.objects >>= 1;
        self.watched >>= 1;
        self.ended(sink);
    }

    /// What follows a value: a comma, or the end of what it is in.
    #[inline(always)]
    fn after(&mut self, text: &[u8], sink: &mut impl Sink) -> Result<(), Invalid> {
        match (next(text, &mut self.at)?, self.objects & 1 == 1) {
            (b',', object) => {
                self.at += 1;
                self.state = if object { State::Key } else { State::Value };
            }
            (b'}', true) | (b']', false) => self.close(sink),
            _ => return Err(Invalid),
        }
        Ok(())
    }

    #[inline(always)]
    fn enter_string(&mut self, state: State) {
        self.at += 1;
        self.state = state;
        self.string = Open { start: self.at, checked: self.at, ascii: true, escaped: false };
    }

    /// Reads on in a string. True at its end, behind the quote; false at the slice's.
    #[inline(always)]
    fn string(&mut self, text: &[u8], until: usize) -> Result<bool, Invalid> {
        loop {
            if self.at >= until {
                let Open { checked, ascii, .. } = self.string;
                self.string.checked = if ascii { self.at } else { utf8_until(text, checked..self.at)? };
                return Ok(false);
            }
            let (at, ascii) = plain(text, self.at, until);
            self.at = at;
            self.string.ascii &= ascii;
            match text.get(at) {
                Some(b'"') => {
                    if !self.string.ascii {
                        is_utf8(text, self.string.checked..at)?;
                    }
                    self.at += 1;
                    return Ok(true);
                }
                Some(b'\\') => {
                    self.string.escaped = true;
                    self.at = escape(text, at).ok_or(Invalid)?;
                }
                Some(0x20..) if at >= until => {}
                Some(_) | None => return Err(Invalid),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::value::RawValue;

    use super::super::tests::texts::document;
    use super::*;

    /// Looks into everything, and writes it down.
    #[derive(Default)]
    struct Notes(Vec<(char, usize)>);

    impl Sink for Notes {
        fn key(&mut self, place: Range<usize>, _: bool) {
            self.0.push(('k', place.start));
        }
        fn begin(&mut self, at: usize, _: Kind) -> bool {
            self.0.push(('b', at));
            true
        }
        fn end(&mut self, at: usize) {
            self.0.push(('e', at));
        }
    }

    fn scan(text: &[u8], slice: usize) -> Result<Vec<(char, usize)>, Invalid> {
        let (mut scanner, mut notes) = (Scanner::new(), Notes::default());
        while !scanner.advance(text, &mut notes, slice)? {}
        Ok(notes.0)
    }

    fn valid(text: &[u8]) -> bool {
        scan(text, usize::MAX).is_ok()
    }

    #[test]
    fn only_whole_documents_of_bearable_depth_are_valid() {
        for good in [
            " \n{\"a\": 1} \t",
            "1e999",
            "-0.10",
            "0",
            "null",
            "[]",
            "\"\\ud800\"",
            "{\"\":{}}",
            "[ ]",
            "{\r}",
            "\"\u{7f}é\u{10ffff}\"",
            "\"\\/\\b\\\"\"",
        ] {
            assert!(valid(good.as_bytes()), "{good}");
        }
        for bad in [
            "",
            " ",
            "{",
            "{}x",
            "{} {}",
            "01",
            "'a'",
            "{a:1}",
            "[1,]",
            "[,1]",
            "[1 2]",
            "{\"a\":1,}",
            "{\"a\"}",
            "{\"a\":}",
            "[}",
            "{]",
            "]",
            "nul",
            "NaN",
            "\"\n\"",
            "\"\\x\"",
            "\"\\u12g4\"",
            "\"\\u12",
            "\"\\",
            "\"",
            "-",
            "1.",
            ".5",
            "1e",
            "+1",
            "1e+",
            "0x1",
            "\u{feff}{}",
            "<html>",
            "tru",
            "\0",
        ] {
            assert!(!valid(bad.as_bytes()), "{bad:?}");
        }
        assert!(!valid(b"\"\xff\"") && !valid(b"\"\xed\xa0\x80\"") && !valid(b"\"\xc3\""), "not UTF-8");
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(valid(nested(128).as_bytes()) && valid(nested(127).replace("[]", "[{}]").as_bytes()));
        assert!(!valid(nested(129).as_bytes()));
        assert!(!valid("[".repeat(4 << 20).as_bytes()));
        assert!(valid(format!("{{\"{}\\\"[\": 1}}", "[".repeat(500)).as_bytes()), "brackets in strings are no nesting");
    }

    #[test]
    fn the_outermost_value_ends_in_every_depth() {
        let text = format!("{}{}", "[".repeat(128), "]".repeat(128));
        let notes = scan(text.as_bytes(), 7).unwrap();
        assert_eq!((notes.len(), notes.first(), notes.last()), (256, Some(&('b', 0)), Some(&('e', 256))));
    }

    #[test]
    fn a_long_string_is_read_in_slices() {
        let text = format!("\"{}\"", "ü\\n€".repeat(1000));
        let (mut scanner, mut slices) = (Scanner::new(), 1);
        while !scanner.advance(text.as_bytes(), &mut Notes::default(), 100).unwrap() {
            slices += 1;
        }
        assert!((text.len() / 110..=text.len() / 100 + 1).contains(&slices), "{slices}");
    }

    proptest! {
        #[test]
        fn it_accepts_what_serde_json_does(mut text in document().prop_map(String::into_bytes), flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3)) {
            for (place, byte) in flips {
                let place = place.index(text.len());
                text[place] = byte;
            }
            prop_assert_eq!(valid(&text), serde_json::from_slice::<&RawValue>(&text).is_ok(), "{}", String::from_utf8_lossy(&text));
        }

        #[test]
        fn strings_of_any_bytes_are_judged_alike(bytes: Vec<u8>, slice in 1_usize..20) {
            let text = [b"\"", bytes.as_slice(), b"\""].concat();
            prop_assert_eq!(scan(&text, slice).is_ok(), serde_json::from_slice::<&RawValue>(&text).is_ok());
        }

        #[test]
        fn slices_make_no_difference(text in document(), slice in 1_usize..20) {
            prop_assert_eq!(scan(text.as_bytes(), slice), scan(text.as_bytes(), usize::MAX));
        }
    }
}
