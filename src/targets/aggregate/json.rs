//! JSON as text: values are found and cut out, never rebuilt, so numbers keep their digits and strings their escapes.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// Deepest nesting accepted; deeper documents break recursive parsers of clients.
const MAX_DEPTH: usize = 128;

/// The members of an object, in order; later ones of the same key replace earlier ones.
pub(super) type Members<'a> = Vec<(Cow<'a, str>, &'a str)>;

/// Checks that `body` is one JSON document, UTF-8 and not nested too deeply, and gives its place without the white space around it.
pub(super) fn validate(body: &[u8]) -> Option<Range<usize>> {
    if depth(body) > MAX_DEPTH {
        return None;
    }
    let raw: &RawValue = serde_json::from_slice(body).ok()?;
    Some(place(std::str::from_utf8(body).ok()?, raw.get()))
}

/// Where `inner`, a part of `outer`, stands in it.
fn place(outer: &str, inner: &str) -> Range<usize> {
    let start = inner.as_ptr().addr().saturating_sub(outer.as_ptr().addr());
    start..start + inner.len()
}

/// Deepest nesting of arrays and objects.
fn depth(body: &[u8]) -> usize {
    let (mut open, mut deepest, mut in_string, mut escaped) = (0_usize, 0, false, false);
    for byte in body {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                open += 1;
                deepest = deepest.max(open);
            }
            b']' | b'}' if !in_string => open = open.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// Whether a value (without white space before it) is an object.
pub(super) fn is_object(value: &str) -> bool {
    value.starts_with('{')
}

/// The members of an object; `None` if `value` is none.
pub(super) fn members(value: &str) -> Option<Members<'_>> {
    if !is_object(value) {
        return None;
    }
    let mut parser = serde_json::Deserializer::from_str(value);
    parser.deserialize_map(MembersVisitor(PhantomData)).ok()
}

/// The elements of an array; `None` if `value` is none.
pub(super) fn elements(value: &str) -> Option<Vec<&str>> {
    if !value.starts_with('[') {
        return None;
    }
    let mut parser = serde_json::Deserializer::from_str(value);
    parser.deserialize_seq(ElementsVisitor(PhantomData)).ok()
}

/// The place in `document` of the value at `path`: keys of objects, indices of arrays. `None` is absent.
pub(super) fn select(document: &str, path: &[String]) -> Option<Range<usize>> {
    let found = path.iter().try_fold(document, |value, step| match value.as_bytes().first() {
        Some(b'{') => members(value)?.into_iter().find(|(key, _)| key == step).map(|(_, member)| member),
        Some(b'[') => elements(value)?.get(index(step)?).copied(),
        Some(_) | None => None,
    })?;
    Some(place(document, found))
}

/// An array index: decimal digits.
fn index(step: &str) -> Option<usize> {
    step.bytes().all(|b| b.is_ascii_digit()).then(|| step.parse().ok())?
}

/// The text of a scalar: a string without its quotes, a number as it is written, `true`, `false`. `None` for null, arrays and objects.
pub(super) fn scalar(value: &str) -> Option<String> {
    match value.as_bytes().first()? {
        b'"' => serde_json::from_str(value).ok(),
        b'{' | b'[' | b'n' => None,
        _ => Some(value.to_owned()),
    }
}

/// Appends `text` as a JSON string.
pub(super) fn push_string(out: &mut Vec<u8>, text: &str) {
    let start = out.len();
    // Writing text into memory cannot fail; an empty string is what remains if it ever does.
    if serde_json::to_writer(&mut *out, text).is_err() {
        out.truncate(start);
        out.extend_from_slice(b"\"\"");
    }
}

/// A key. It is read as bytes, because half a surrogate pair in it is legal JSON and must not hide an object's other keys.
struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = Cow<'de, str>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_bytes(self)
    }
}

impl<'de> Visitor<'de> for Key {
    type Value = Cow<'de, str>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }
    fn visit_borrowed_bytes<E>(self, bytes: &'de [u8]) -> Result<Self::Value, E> {
        Ok(String::from_utf8_lossy(bytes))
    }
    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Self::Value, E> {
        Ok(Cow::Owned(String::from_utf8_lossy(bytes).into_owned()))
    }
}

struct MembersVisitor<'de>(PhantomData<&'de ()>);

impl<'de> Visitor<'de> for MembersVisitor<'de> {
    type Value = Members<'de>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut places = std::collections::HashMap::new();
        let mut members = Members::new();
        while let Some(key) = map.next_key_seed(Key)? {
            let value = map.next_value::<&'de RawValue>()?.get();
            match places.entry(key.clone()) {
                std::collections::hash_map::Entry::Occupied(place) => {
                    if let Some((_, old)) = members.get_mut(*place.get()) {
                        *old = value;
                    }
                }
                std::collections::hash_map::Entry::Vacant(place) => {
                    place.insert(members.len());
                    members.push((key, value));
                }
            }
        }
        Ok(members)
    }
}

struct ElementsVisitor<'de>(PhantomData<&'de ()>);

impl<'de> Visitor<'de> for ElementsVisitor<'de> {
    type Value = Vec<&'de str>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut elements = Vec::new();
        while let Some(raw) = seq.next_element::<&'de RawValue>()? {
            elements.push(raw.get());
        }
        Ok(elements)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at<'a>(document: &'a str, path: &str) -> Option<&'a str> {
        let path: Vec<String> = path.split('.').map(str::to_owned).collect();
        Some(&document[select(document, &path)?])
    }

    #[test]
    fn only_whole_documents_of_bearable_depth_are_valid() {
        assert_eq!(validate(b" \n{\"a\": 1} \t"), Some(2..10));
        for good in ["1e999", "-0.10", "null", "[]", "\"\\ud800\"", "{\"\":{}}"] {
            assert_eq!(validate(good.as_bytes()), Some(0..good.len()), "{good}");
        }
        for bad in ["", " ", "{", "{}x", "{} {}", "01", "'a'", "{a:1}", "[1,]", "nul", "NaN", "\"\n\"", "\u{feff}{}", "<html>"] {
            assert_eq!(validate(bad.as_bytes()), None, "{bad:?}");
        }
        assert_eq!(validate(b"\"\xff\""), None, "not UTF-8");
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(validate(nested(128).as_bytes()).is_some());
        assert!(validate(nested(129).as_bytes()).is_none());
        assert!(validate("[".repeat(4 << 20).as_bytes()).is_none());
        assert!(validate(format!("{{\"{}\\\"[\": 1}}", "[".repeat(500)).as_bytes()).is_some(), "brackets in strings are no nesting");
    }

    #[test]
    fn values_are_found_by_keys_and_indices() {
        let document = r#"{"data": {"items": [ 10 , {"id" : 12345678901234567890.10} ], "": 5}, "n": 1e999}"#;
        assert_eq!(at(document, "data.items.0"), Some("10"));
        assert_eq!(at(document, "data.items.1.id"), Some("12345678901234567890.10"));
        assert_eq!(at(document, "n"), Some("1e999"));
        for absent in [
            "data.items.2",
            "data.items.-1",
            "data.items.+1",
            "data.items.x",
            "data.items.0.x",
            "nope",
            "n.x",
            "data.items.18446744073709551616",
        ] {
            assert_eq!(at(document, absent), None, "{absent}");
        }
        assert_eq!(select(document, &[]).map(|place| place.len()), Some(document.len()));
    }

    #[test]
    fn keys_are_compared_decoded_and_the_last_of_equal_ones_counts() {
        assert_eq!(at(r#"{"\u0061": 1, "a": 2}"#, "a"), Some("2"));
        assert_eq!(members(r#"{"a":1,"b":2,"\u0061":3}"#).unwrap(), [("a".into(), "3"), ("b".into(), "2")]);
        assert_eq!(members(r#"{"\ud800":1,"secret":2}"#).unwrap().len(), 2, "half a surrogate pair hides nothing");
    }

    #[test]
    fn scalars_are_text_and_nothing_else_is() {
        let cases = [("\"a\\n\\u00e9\"", "a\né"), ("1.50", "1.50"), ("true", "true"), ("false", "false")];
        for (value, text) in cases {
            assert_eq!(scalar(value).as_deref(), Some(text));
        }
        for value in ["null", "{}", "[1]", "\"\\ud800\""] {
            assert_eq!(scalar(value), None, "{value}");
        }
    }
}
