//! From a tree into the configuration's types, collecting every problem.
//!
//! A value that does not fit is recorded, and the whole is read again as if it were absent; so one pass per wrong value, and a
//! search that ends only when everything fits. Unknown fields are recorded in passing.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{Deserialize, DeserializeSeed, Deserializer, Expected, IntoDeserializer, MapAccess, SeqAccess, Unexpected, Visitor};

use super::problem::{At, Problems, Seg};
use super::schema::required_fields;
use super::suggest::{did_you_mean, suggest};
use super::tree::{Entry, Kind, Node};

/// Name under which [`crate::units::Setting`] asks for a value that may be `off`.
pub(super) const SETTING: &str = "$tollgate::Setting";
/// Most wrong values searched for: each costs one more pass.
const MAX_FAILURES: usize = 100;

/// Reads `root`, all of it that can be read. `dropped` gets what could not.
pub(super) fn read<T: for<'de> Deserialize<'de> + Default>(root: &Node, file: usize, problems: &mut Problems, dropped: &mut Vec<At>) -> T {
    let state = State::default();
    let at = |path: Vec<Seg>, on_key| At { file, path, on_key };
    for _ in 0..MAX_FAILURES {
        let failure = match T::deserialize(Reader { node: root, path: Vec::new(), state: &state }) {
            Ok(value) => {
                finish(state, file, problems, dropped);
                return value;
            }
            Err(failure) => failure,
        };
        let path = failure.path.clone().unwrap_or_default();
        if failure.missing.is_some() {
            for field in failure.all_missing(root.find(&path)).into_iter().filter(|field| !state.follows(&path, field)) {
                problems.error(at(path.clone(), failure.on_key), format!("missing field \"{field}\""));
            }
        } else {
            let problem = problems.error(at(path.clone(), failure.on_key), failure.message);
            problem.help = failure.help;
        }
        if path.is_empty() || !state.dropped.borrow_mut().insert(path) {
            break;
        }
    }
    finish(state, file, problems, dropped);
    dropped.push(at(Vec::new(), false));
    T::default()
}

fn finish(state: State, file: usize, problems: &mut Problems, dropped: &mut Vec<At>) {
    for Unknown { path, message, help, meant } in state.unknown.into_inner() {
        if let (Some(meant), Some((_, parent))) = (meant, path.split_last()) {
            dropped.push(At { file, path: parent.to_vec(), on_key: false }.key(meant).its_key());
        }
        problems.error(At { file, path, on_key: true }, message).help = help;
    }
    dropped.extend(state.dropped.into_inner().into_iter().map(|path| At { file, path, on_key: false }));
}

/// A field that nobody knows.
struct Unknown {
    path: Vec<Seg>,
    message: String,
    help: Option<String>,
    /// The field it seems to be meant as.
    meant: Option<&'static str>,
}

#[derive(Default)]
struct State {
    /// Values that do not fit: read as absent.
    dropped: RefCell<HashSet<Vec<Seg>>>,
    /// Unknown fields, each recorded once however often the tree is read.
    unknown: RefCell<Vec<Unknown>>,
}

impl State {
    /// Whether the field under `path` was dropped for a problem of its own, or is there under a wrong name.
    fn follows(&self, path: &[Seg], field: &str) -> bool {
        let mut child = path.to_vec();
        child.push(Seg::Key(field.to_owned()));
        let misspelt = |unknown: &Unknown| {
            unknown.meant == Some(field) && unknown.path.split_last().is_some_and(|(_, parent)| parent == path)
        };
        self.dropped.borrow().contains(&child) || self.unknown.borrow().iter().any(misspelt)
    }

    fn unknown(&self, path: Vec<Seg>, key: &str, fields: &[&'static str]) {
        let mut unknown = self.unknown.borrow_mut();
        if !unknown.iter().any(|known| known.path == path) {
            let (message, help) = unknown_field(key, fields);
            unknown.push(Unknown { path, message, help, meant: suggest(key, fields.iter().copied()) });
        }
    }
}

/// What is wrong, and what is known instead where no name is near.
fn unknown_field(key: &str, fields: &[&str]) -> (String, Option<String>) {
    let hint = did_you_mean(key, fields.iter().copied());
    let known = (hint.is_empty() && !fields.is_empty()).then(|| format!("known here are {}", fields.join(", ")));
    (format!("unknown field \"{key}\"{hint}"), known)
}

/// A field that has to be there.
#[derive(Debug)]
struct Missing {
    field: &'static str,
    /// Name of the type that it is a field of, once that is known.
    of: Option<&'static str>,
}

/// Why a value does not fit.
#[derive(Debug)]
pub(super) struct Failure {
    message: String,
    help: Option<String>,
    path: Option<Vec<Seg>>,
    on_key: bool,
    missing: Option<Box<Missing>>,
    /// Type that was expected, while it is not yet known what was found.
    expected: Option<String>,
}

impl Failure {
    fn new(message: impl fmt::Display) -> Self {
        Self { message: message.to_string(), help: None, path: None, on_key: false, missing: None, expected: None }
    }

    /// The missing field, and the others that `node` lacks: serde stops at the first.
    fn all_missing(&self, node: Option<&Node>) -> Vec<String> {
        let Some(missing) = &self.missing else { return Vec::new() };
        let mut fields = vec![missing.field.to_owned()];
        if let (Some(name), Some(node)) = (missing.of, node) {
            fields.extend(required_fields(name).into_iter().filter(|field| field != missing.field && node.get(field).is_none()));
        }
        fields
    }

    /// Fills in what only the place of the value tells.
    fn at(mut self, path: &[Seg], node: &Node) -> Self {
        if self.path.is_some() {
            return self;
        }
        self.path = Some(path.to_vec());
        if let Kind::Expanded(_) = node.kind {
            self.message = match self.expected.take() {
                Some(expected) => format!("expected {expected}, and the substituted value is none"),
                None => "the substituted value does not fit here".to_owned(),
            };
            return self;
        }
        let Some(expected) = self.expected.take() else { return self };
        self.message = format!("expected {expected}, found {}", describe(node));
        match &node.kind {
            Kind::Unsigned(_) | Kind::Signed(_) | Kind::Float(_) | Kind::Bool(_) if expected.contains("text") || expected.contains('"') => {
                self.message.push_str(": quote it");
                self.help = Some("a value that looks like a number or true/false is text only in quotes".to_owned());
            }
            Kind::Map(_) if expected.contains("text") || expected.contains("such as") => {
                self.help = Some("quote the value if its braces or its `: ` belong to it".to_owned());
            }
            Kind::Text(text) if text.contains(':') && !text.contains("://") && expected.contains("mapping") => {
                self.help = Some("a key needs a space after its colon".to_owned());
            }
            Kind::Text(text) if expected == "a list" && !text.contains(['{', '}', '[', ']', '"', '\n']) => {
                self.help = Some(format!("write [{text}], or each on a line of its own behind `- `"));
            }
            Kind::Map(_) if expected == "a list" => {
                self.help = Some("write [{ … }], or each behind `- ` on a line of its own".to_owned());
            }
            Kind::Text(text) if expected == "true or false" && matches!(text.as_str(), "on" | "yes" | "off" | "no") => {
                let right = matches!(text.as_str(), "on" | "yes");
                self.help = Some(format!("write `{right}`"));
            }
            _ => {}
        }
        self
    }
}

fn describe(node: &Node) -> String {
    match &node.kind {
        Kind::Null | Kind::Lost => "nothing".to_owned(),
        Kind::Bool(value) => format!("`{value}`"),
        Kind::Unsigned(value) => format!("the number {value}"),
        Kind::Signed(value) => format!("the number {value}"),
        Kind::Float(value) => format!("the number {value}"),
        Kind::Text(text) if text.chars().count() > 60 => "a long text".to_owned(),
        Kind::Text(text) => format!("\"{text}\""),
        Kind::Expanded(_) => "a substituted value".to_owned(),
        Kind::List(_) => "a list".to_owned(),
        Kind::Map(_) => "a mapping".to_owned(),
    }
}

/// Serde's words for types, in plain ones.
fn plain_type(expected: &str) -> String {
    let range = |low: &str, high: &dyn fmt::Display| format!("a whole number from {low} to {high}");
    match expected {
        "a string" | "string" => "text".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a sequence" => "a list".to_owned(),
        "a map" => "a mapping".to_owned(),
        "u16" => range("0", &u16::MAX),
        "u32" => range("0", &u32::MAX),
        "i32" => range(&i32::MIN.to_string(), &i32::MAX),
        "u8" | "u64" | "usize" => "a whole number".to_owned(),
        "f64" | "f32" => "a number".to_owned(),
        other if other.starts_with("struct ") => "a mapping".to_owned(),
        other => other.to_owned(),
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl serde::de::Error for Failure {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(message)
    }
    fn invalid_type(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let expected = plain_type(&expected.to_string());
        Self { expected: Some(expected.clone()), ..Self::new(format!("expected {expected}")) }
    }
    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_type(found, expected)
    }
    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        let hint = did_you_mean(variant, expected.iter().copied());
        let mut failure = Self::new(format!("unknown value \"{variant}\"{hint}"));
        failure.help = Some(format!("write {}", one_of(expected)));
        failure
    }
    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        let (message, help) = unknown_field(field, expected);
        Self { on_key: true, help, ..Self::new(message) }
    }
    fn missing_field(field: &'static str) -> Self {
        Self { missing: Some(Box::new(Missing { field, of: None })), ..Self::new(format!("missing field \"{field}\"")) }
    }
}

fn one_of(words: &[&str]) -> String {
    match words {
        [] => "nothing".to_owned(),
        [one] => (*one).to_owned(),
        [all @ .., last] => format!("{} or {last}", all.join(", ")),
    }
}

/// Hands one node to serde.
#[derive(Clone)]
struct Reader<'t> {
    node: &'t Node,
    path: Vec<Seg>,
    state: &'t State,
}

impl<'t> Reader<'t> {
    fn child(&self, seg: Seg, node: &'t Node) -> Self {
        let mut path = self.path.clone();
        path.push(seg);
        Reader { node, path, state: self.state }
    }
    fn is_dropped(&self) -> bool {
        if matches!(self.node.kind, Kind::Lost) {
            self.state.dropped.borrow_mut().insert(self.path.clone());
            return true;
        }
        let dropped = self.state.dropped.borrow();
        !dropped.is_empty() && dropped.contains(&self.path)
    }
    fn any<'de, V: Visitor<'de>>(&self, visitor: V, fields: Option<&'static [&'static str]>) -> Result<V::Value, Failure> {
        let node = self.node;
        let result = match &node.kind {
            Kind::Null | Kind::Lost => visitor.visit_unit(),
            Kind::Bool(value) => visitor.visit_bool(*value),
            Kind::Unsigned(value) => visitor.visit_u64(*value),
            Kind::Signed(value) => visitor.visit_i64(*value),
            Kind::Float(value) => visitor.visit_f64(*value),
            Kind::Text(text) => visitor.visit_str(text),
            Kind::Expanded(text) => {
                let expected = plain_type(&(&visitor as &dyn Expected).to_string());
                visitor.visit_str(text).map_err(|mut failure: Failure| {
                    failure.expected.get_or_insert(expected);
                    failure
                })
            }
            Kind::List(list) => visitor.visit_seq(List { of: self, list: list.iter().enumerate() }),
            Kind::Map(entries) => visitor.visit_map(Map { of: self, entries: entries.iter(), value: None, fields }),
        };
        result.map_err(|failure| failure.at(&self.path, node))
    }
    /// Substituted text read as the number or truth value that is asked for.
    fn expanded<N: std::str::FromStr>(&self) -> Option<N> {
        match &self.node.kind {
            Kind::Expanded(text) => text.trim().parse().ok(),
            _ => None,
        }
    }
}

macro_rules! numbers {
    ($($method:ident $visit:ident $type:ty;)*) => { $(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
            match self.expanded::<$type>() {
                Some(value) => visitor.$visit(value).map_err(|failure: Failure| failure.at(&self.path, self.node)),
                None => self.any(visitor, None),
            }
        }
    )* };
}

impl<'de> Deserializer<'de> for Reader<'_> {
    type Error = Failure;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.any(visitor, None)
    }
    numbers! {
        deserialize_bool visit_bool bool;
        deserialize_i8 visit_i64 i64;
        deserialize_i16 visit_i64 i64;
        deserialize_i32 visit_i64 i64;
        deserialize_i64 visit_i64 i64;
        deserialize_u8 visit_u64 u64;
        deserialize_u16 visit_u64 u64;
        deserialize_u32 visit_u64 u64;
        deserialize_u64 visit_u64 u64;
        deserialize_f32 visit_f64 f64;
        deserialize_f64 visit_f64 f64;
    }
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        match self.node.kind {
            Kind::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }
    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, Failure> {
        if name != SETTING {
            return visitor.visit_newtype_struct(self);
        }
        match &self.node.kind {
            Kind::Bool(false) => visitor.visit_none(),
            Kind::Text(text) | Kind::Expanded(text) if text == "off" || text == "false" => visitor.visit_none(),
            Kind::Text(text) if matches!(text.as_str(), "no" | "none" | "disabled" | "never") => {
                let path = self.path.clone();
                visitor.visit_some(self).map_err(|mut failure: Failure| {
                    if failure.path.as_ref().is_none_or(|place| *place == path) {
                        failure.help = Some("write `off` to switch it off".to_owned());
                    }
                    failure
                })
            }
            _ => visitor.visit_some(self),
        }
    }
    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        match self.node.kind {
            Kind::Null => visitor.visit_seq(List { of: &self, list: [].iter().enumerate() }),
            _ => self.any(visitor, None),
        }
    }
    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        match self.node.kind {
            Kind::Null => visitor.visit_map(Map { of: &self, entries: [].iter(), value: None, fields: None }),
            _ => self.any(visitor, None),
        }
    }
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        let result = match self.node.kind {
            Kind::Null => {
                let map = Map { of: &self, entries: [].iter(), value: None, fields: Some(fields) };
                visitor.visit_map(map).map_err(|failure| failure.at(&self.path, self.node))
            }
            // A derived struct would also take a list, its fields in order: no one means that.
            Kind::List(_) => Err(<Failure as serde::de::Error>::invalid_type(Unexpected::Seq, &"a mapping").at(&self.path, self.node)),
            _ => self.any(visitor, Some(fields)),
        };
        result.map_err(|mut failure| {
            if let Some(missing) = &mut failure.missing {
                missing.of.get_or_insert(name);
            }
            failure
        })
    }
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        let result = match &self.node.kind {
            Kind::Text(text) | Kind::Expanded(text) => visitor.visit_enum(IntoDeserializer::<Failure>::into_deserializer(text.as_str())),
            _ => {
                let quoted: Vec<String> =
                    variants.iter().map(|v| if v.parse::<f64>().is_ok() { format!("\"{v}\"") } else { (*v).to_owned() }).collect();
                let words: Vec<&str> = quoted.iter().map(String::as_str).collect();
                Err(<Failure as serde::de::Error>::invalid_type(Unexpected::Unit, &one_of(&words).as_str()))
            }
        };
        result.map_err(|failure| failure.at(&self.path, self.node))
    }
    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_unit()
    }
    serde::forward_to_deserialize_any! {
        i128 u128 char str string bytes byte_buf unit unit_struct tuple tuple_struct identifier
    }
}

struct List<'a, 't> {
    of: &'a Reader<'t>,
    list: std::iter::Enumerate<std::slice::Iter<'t, Node>>,
}

impl<'de> SeqAccess<'de> for List<'_, '_> {
    type Error = Failure;
    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Failure> {
        for (index, node) in self.list.by_ref() {
            let reader = self.of.child(Seg::Index(index), node);
            if !reader.is_dropped() {
                let path = reader.path.clone();
                return seed.deserialize(reader).map(Some).map_err(|failure| failure.at(&path, node));
            }
        }
        Ok(None)
    }
}

struct Map<'a, 't> {
    of: &'a Reader<'t>,
    entries: std::slice::Iter<'t, Entry>,
    value: Option<Reader<'t>>,
    fields: Option<&'static [&'static str]>,
}

impl<'de> MapAccess<'de> for Map<'_, '_> {
    type Error = Failure;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Failure> {
        for entry in self.entries.by_ref() {
            let reader = self.of.child(Seg::Key(entry.key.clone()), &entry.value);
            if reader.is_dropped() {
                continue;
            }
            if let Some(fields) = self.fields.filter(|fields| !fields.contains(&entry.key.as_str())) {
                self.of.state.unknown(reader.path, &entry.key, fields);
                continue;
            }
            let path = reader.path.clone();
            self.value = Some(reader);
            let key = StrDeserializer::<Failure>::new(&entry.key);
            return seed.deserialize(key).map(Some).map_err(|mut failure| {
                failure.on_key = true;
                failure.at(&path, &entry.value)
            });
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Failure> {
        let Some(reader) = self.value.take() else { return Err(Failure::new("a value without a key")) };
        let (path, node) = (reader.path.clone(), reader.node);
        seed.deserialize(reader).map_err(|failure| failure.at(&path, node))
    }
}
