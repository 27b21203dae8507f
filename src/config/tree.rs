//! A YAML text as a tree in which every key and every value knows its line and column.
//!
//! The YAML reader tells places only in errors. So every scalar is handed over and then refused on purpose: the refusal carries its
//! place, and reading goes on behind it. Places of lists and mappings follow from their first element.

mod variables;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;

use serde::de::{DeserializeSeed, EnumAccess, Error as _, MapAccess, SeqAccess, VariantAccess, Visitor};

use super::problem::Seg;

/// Most nodes of one file, aliases expanded: stops an alias bomb long before memory ends.
const MAX_NODES: usize = 2_000_000;
/// Message of the refusal that only asks for a place.
const PLACE: &str = "\u{1}place";

/// Line and column, from 1, the column in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub line: usize,
    pub column: usize,
}

/// A value and where it starts.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub place: Place,
    pub kind: Kind,
}

/// What a value is.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    Null,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(String),
    /// Text with something substituted in it: read as whatever is expected, quoted nowhere.
    Expanded(String),
    /// A value whose substitution failed, which is reported: read as absent.
    Lost,
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// One entry of a mapping.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub key: String,
    pub place: Place,
    pub value: Node,
}

/// Something wrong that the tree itself shows.
#[derive(Debug)]
pub(super) struct Fault {
    pub place: Place,
    pub message: String,
    pub help: Option<String>,
}

impl Fault {
    fn new(place: Place, message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { place, message: message.into(), help: Some(help.into()) }
    }
}

/// Reads `text`. The error is a syntax error as the YAML reader puts it.
pub(super) fn parse(text: &str) -> Result<(Node, Vec<Fault>), (Option<Place>, String)> {
    let build = Rc::new(Build { lines: split_lines(text), nodes: Cell::new(0), faults: Cell::default() });
    let slot = Slot::default();
    let held = variables::hold(text);
    let result = Seed { slot: slot.clone(), build: build.clone() }.deserialize(serde_yaml::Deserializer::from_str(&held));
    let mut node = match (result, slot.take()) {
        (Ok(()), Some(node)) => node,
        (Err(error), Some(mut node)) if node.is_scalar() && error.to_string().contains(PLACE) => {
            node.place = place_in(&error.to_string());
            node
        }
        (Err(error), _) => return Err((error.location().map(|l| Place { line: l.line(), column: l.column() }), error.to_string())),
        (Ok(()), None) => Node { place: Place { line: 1, column: 1 }, kind: Kind::Null },
    };
    let mut faults = build.faults.take();
    merge(&mut node, &mut faults);
    if held != text {
        variables::release(&mut node);
        faults.iter_mut().for_each(|fault| variables::restore(&mut fault.message));
    }
    Ok((node, faults))
}

/// The lines of `text`, as the YAML reader counts them.
pub(super) fn split_lines(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\r' | '\n' | '\u{85}' | '\u{2028}' | '\u{2029}' => {
                if c == '\r' && chars.peek() == Some(&'\n') {
                    chars.next();
                }
                lines.push(String::new());
            }
            _ => {
                if let Some(line) = lines.last_mut() {
                    line.push(c);
                }
            }
        }
    }
    lines
}

impl Node {
    /// Whether it is neither a list nor a mapping.
    pub fn is_scalar(&self) -> bool {
        !matches!(self.kind, Kind::List(_) | Kind::Map(_))
    }
    /// The value under `key`.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|entry| &entry.value)
    }
    fn entry(&self, key: &str) -> Option<&Entry> {
        match &self.kind {
            Kind::Map(entries) => entries.iter().find(|entry| entry.key == key),
            _ => None,
        }
    }
    /// The node at `path`.
    pub fn find(&self, path: &[Seg]) -> Option<&Node> {
        let mut node = self;
        for (at, seg) in path.iter().enumerate() {
            node = match (seg, &node.kind) {
                // `auth.any[0]` of the short form `auth: [main]`, `split.to[0]` of `split: [...]`.
                (Seg::Key(key), Kind::List(_)) if matches!(key.as_str(), "any" | "to") && at + 1 < path.len() => node,
                (Seg::Key(key), _) => node.get(key)?,
                (Seg::Index(index), Kind::List(list)) => list.get(*index)?,
                (Seg::Index(0), _) if at > 0 && matches!(path.get(at - 1), Some(Seg::Key(key)) if key == "by" || key == "key") => node,
                (Seg::Index(_), _) => return None,
            };
        }
        Some(node)
    }
    /// The place of `path`, or of the nearest thing around it that is written.
    pub fn place_of(&self, path: &[Seg], on_key: bool) -> Place {
        let Some((last, parent)) = path.split_last() else { return self.place };
        match self.find(path) {
            Some(node) => match (on_key, last) {
                (true, Seg::Key(key)) => self.find(parent).and_then(|p| p.entry(key)).map_or(node.place, |entry| entry.place),
                _ => node.place,
            },
            None => self.place_of(parent, on_key),
        }
    }
}

struct Build {
    lines: Vec<String>,
    nodes: Cell<usize>,
    faults: Cell<Vec<Fault>>,
}

impl Build {
    fn fault(&self, fault: Fault) {
        let mut faults = self.faults.take();
        faults.push(fault);
        self.faults.set(faults);
    }

    /// The place of an opening mark in front of `first`, or of `first` itself.
    fn opening(&self, first: Place, marks: &[char]) -> Place {
        let mut end = first.column.saturating_sub(1);
        for line in (0..first.line).rev() {
            let Some(text) = self.lines.get(line) else { return first };
            let before: Vec<char> = text.chars().take(end).collect();
            if let Some(at) = before.iter().rposition(|c| !c.is_whitespace()) {
                let found = before.get(at).is_some_and(|c| marks.contains(c));
                return if found { Place { line: line + 1, column: at + 1 } } else { first };
            }
            end = usize::MAX;
        }
        first
    }

    /// Where an empty list or mapping under the key at `key` starts.
    fn behind_colon(&self, key: Place) -> Place {
        let Some(line) = self.lines.get(key.line.saturating_sub(1)) else { return key };
        let column = line.chars().enumerate().skip(key.column).find(|(_, c)| matches!(c, '{' | '[')).map_or(key.column, |(at, _)| at + 1);
        Place { line: key.line, column }
    }
}

type Slot = Rc<Cell<Option<Node>>>;

struct Seed {
    slot: Slot,
    build: Rc<Build>,
}

impl Seed {
    fn scalar<E: serde::de::Error>(self, kind: Kind) -> Result<(), E> {
        self.put(kind, Place { line: 1, column: 1 })?;
        Err(E::custom(PLACE))
    }
    fn put<E: serde::de::Error>(&self, kind: Kind, place: Place) -> Result<(), E> {
        let nodes = self.build.nodes.get() + 1;
        self.build.nodes.set(nodes);
        if nodes > MAX_NODES {
            return Err(E::custom("this file has too many values"));
        }
        self.slot.set(Some(Node { place, kind }));
        Ok(())
    }
}

/// Reads one child with `read`; `None` at the end of the collection.
fn child<E: serde::de::Error>(build: &Rc<Build>, read: impl FnOnce(Seed) -> Result<bool, E>) -> Result<Option<Node>, E> {
    let slot = Slot::default();
    let result = read(Seed { slot: slot.clone(), build: build.clone() });
    match (result, slot.take()) {
        (Ok(true), node) => Ok(node),
        (Ok(false), _) => Ok(None),
        (Err(error), Some(mut node)) if node.is_scalar() => {
            let text = error.to_string();
            if !text.contains(PLACE) {
                return Err(error);
            }
            node.place = place_in(&text);
            Ok(Some(node))
        }
        (Err(error), _) => Err(error),
    }
}

/// Reads `… at line 3 column 5`; the reader leaves it out for the very first character.
fn place_in(message: &str) -> Place {
    let numbers = message.rsplit_once(" at line ").and_then(|(_, rest)| rest.split_once(" column "));
    let parsed = numbers.and_then(|(line, column)| Some(Place { line: line.parse().ok()?, column: column.parse().ok()? }));
    parsed.unwrap_or(Place { line: 1, column: 1 })
}

impl<'de> DeserializeSeed<'de> for Seed {
    type Value = ();
    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any YAML")
    }
    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        self.scalar(Kind::Null)
    }
    fn visit_none<E: serde::de::Error>(self) -> Result<(), E> {
        self.put(Kind::Null, Place { line: 1, column: 1 })
    }
    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<(), E> {
        self.scalar(Kind::Bool(value))
    }
    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        self.scalar(Kind::Unsigned(value))
    }
    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        self.scalar(Kind::Signed(value))
    }
    fn visit_u128<E: serde::de::Error>(self, value: u128) -> Result<(), E> {
        self.scalar(Kind::Float(value as f64))
    }
    fn visit_i128<E: serde::de::Error>(self, value: i128) -> Result<(), E> {
        self.scalar(Kind::Float(value as f64))
    }
    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        self.scalar(Kind::Float(value))
    }
    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<(), E> {
        self.scalar(Kind::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let mut list = Vec::new();
        while let Some(node) = child(&self.build, |seed| Ok(seq.next_element_seed(seed)?.is_some()))? {
            list.push(node);
        }
        let place = list.first().map_or(Place { line: 0, column: 0 }, |first| self.build.opening(first.place, &['[', '-']));
        self.put(Kind::List(list), place)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut lines: BTreeMap<String, usize> = BTreeMap::new();
        let mut first = None;
        while let Some(key) = child(&self.build, |seed| Ok(map.next_key_seed(seed)?.is_some()))? {
            first.get_or_insert(key.place);
            let value = child(&self.build, |seed| map.next_value_seed(seed).map(|()| true))?;
            let mut value = value.ok_or_else(|| A::Error::custom("a value is missing"))?;
            if value.place.line == 0 {
                value.place = self.build.behind_colon(key.place);
            }
            let Some(name) = key_text(&key.kind) else {
                let help = "a value that starts with { or [ must be quoted";
                self.build.fault(Fault::new(key.place, "a list or a mapping stands where a key is expected", help));
                continue;
            };
            match lines.get(&name) {
                Some(line) if name != "<<" => {
                    let message = format!("duplicate key \"{name}\": it is already set in line {line}");
                    self.build.fault(Fault::new(key.place, message, "remove one of the two"));
                }
                _ => {
                    lines.insert(name.clone(), key.place.line);
                    entries.push(Entry { key: name, place: key.place, value });
                }
            }
        }
        let place = first.map_or(Place { line: 0, column: 0 }, |first| self.build.opening(first, &['{']));
        self.put(Kind::Map(entries), place)
    }

    fn visit_enum<A: EnumAccess<'de>>(self, data: A) -> Result<(), A::Error> {
        let (tag, variant) = data.variant::<String>()?;
        let build = self.build.clone();
        let node = child(&build, |seed| variant.newtype_variant_seed(seed).map(|()| true))?;
        let node = node.ok_or_else(|| A::Error::custom("a value is missing"))?;
        build.fault(Fault::new(
            node.place,
            format!("the YAML tag `!{tag}` is not known"),
            "remove it, or quote the value if it starts with !",
        ));
        self.slot.set(Some(Node { place: node.place, kind: Kind::List(vec![node]) }));
        Ok(())
    }
}

fn key_text(kind: &Kind) -> Option<String> {
    match kind {
        Kind::Null => Some("null".to_owned()),
        Kind::Bool(value) => Some(value.to_string()),
        Kind::Unsigned(value) => Some(value.to_string()),
        Kind::Signed(value) => Some(value.to_string()),
        Kind::Float(value) => Some(value.to_string()),
        Kind::Text(text) | Kind::Expanded(text) => Some(text.clone()),
        Kind::Lost | Kind::List(_) | Kind::Map(_) => None,
    }
}

/// Gives empty collections in lists a place, and puts what `<<` names into the mappings that have it; their own keys win.
fn merge(node: &mut Node, faults: &mut Vec<Fault>) {
    let place = node.place;
    match &mut node.kind {
        Kind::List(list) => {
            for element in list {
                if element.place.line == 0 {
                    element.place = place;
                }
                merge(element, faults);
            }
        }
        Kind::Map(entries) => {
            for entry in entries.iter_mut() {
                merge(&mut entry.value, faults);
            }
            let (merged, own): (Vec<_>, Vec<_>) = std::mem::take(entries).into_iter().partition(|entry| entry.key == "<<");
            *entries = own;
            for entry in merged {
                merge_into(entries, entry.value, faults);
            }
        }
        _ => {}
    }
    if node.place.line == 0 {
        node.place = Place { line: 1, column: 1 };
    }
}

fn merge_into(entries: &mut Vec<Entry>, from: Node, faults: &mut Vec<Fault>) {
    match from.kind {
        Kind::Map(others) => {
            for other in others {
                if !entries.iter().any(|entry| entry.key == other.key) {
                    entries.push(other);
                }
            }
        }
        Kind::List(list) if list.iter().all(|node| matches!(node.kind, Kind::Map(_))) => {
            for node in list {
                merge_into(entries, node, faults);
            }
        }
        _ => faults.push(Fault::new(from.place, "`<<` merges mappings, and this is none", "write an alias of a mapping, like `<<: *name`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(text: &str, path: &[&str], on_key: bool) -> (usize, usize) {
        let (node, faults) = parse(text).unwrap();
        assert!(faults.is_empty(), "{faults:?}");
        let path: Vec<Seg> = path.iter().map(|s| s.parse().map_or_else(|_| Seg::Key((*s).to_owned()), Seg::Index)).collect();
        let place = node.place_of(&path, on_key);
        (place.line, place.column)
    }

    #[test]
    fn keys_values_lists_and_mappings_know_their_place() {
        let text = "a: 1\nb:\n  - x: é\n    y: [ü, { z: 2 }]\n  - {}\nc: []\n";
        assert_eq!(place(text, &["a"], false), (1, 4));
        assert_eq!(place(text, &["a"], true), (1, 1));
        assert_eq!(place(text, &["b"], false), (3, 3));
        assert_eq!(place(text, &["b", "0"], false), (3, 5));
        assert_eq!(place(text, &["b", "0", "y"], false), (4, 8));
        assert_eq!(place(text, &["b", "0", "y", "1"], false), (4, 12));
        assert_eq!(place(text, &["b", "0", "y", "1", "z"], false), (4, 17));
        assert_eq!(place(text, &["c"], false), (6, 4));
    }

    #[test]
    fn what_is_not_written_has_the_place_of_what_is_around_it() {
        assert_eq!(place("a:\n  b: 1\n", &["a", "x", "y"], false), (2, 3));
    }

    #[test]
    fn lines_end_as_the_yaml_reader_says() {
        assert_eq!(split_lines("a\r\nb\rc\nd"), ["a", "b", "c", "d"]);
        assert_eq!(place("a: 1\r\nb: 2\r\n", &["b"], false), (2, 4));
    }

    #[test]
    fn duplicate_keys_are_found_at_the_second_and_reading_goes_on() {
        let (node, faults) = parse("a: 1\nb: 2\na: 3\nb: 4\n").unwrap();
        let found: Vec<_> = faults.iter().map(|f| (f.place.line, f.place.column)).collect();
        assert_eq!(found, [(3, 1), (4, 1)]);
        assert!(faults[0].message.contains("line 1"), "{}", faults[0].message);
        assert!(matches!(node.get("a").unwrap().kind, Kind::Unsigned(1)));
    }

    #[test]
    fn merge_keys_fill_in_what_is_missing() {
        let (node, _) = parse("base: &b { x: 1, y: 2 }\nuse:\n  <<: *b\n  x: 3\n").unwrap();
        let merged = node.get("use").unwrap();
        assert!(matches!(merged.get("x").unwrap().kind, Kind::Unsigned(3)));
        assert!(matches!(merged.get("y").unwrap().kind, Kind::Unsigned(2)));
    }

    #[test]
    fn empty_text_is_nothing_and_an_alias_bomb_is_refused() {
        assert!(matches!(parse("").unwrap().0.kind, Kind::Null));
        assert!(matches!(parse("# only a comment\n").unwrap().0.kind, Kind::Null));
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for n in 1..9 {
            let refs = vec![format!("*a{}", n - 1); 10].join(", ");
            bomb.push_str(&format!("a{n}: &a{n} [{refs}]\n"));
        }
        assert!(parse(&bomb).is_err());
    }
}
