//! One object of the parts' values, in the written order. Pure text work.

use std::collections::HashMap;

use bytes::Bytes;

use super::chunks::Chunks;
use super::object::{Entry, Members};
use super::pick::Value;
use super::shape::Shape;
use crate::config::route::OnConflict;

/// Keys that are merged before other requests of the worker get their turn: below a millisecond.
const TURN: usize = 4096;

/// One good part, ready to be merged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Input<'a> {
    /// Its name: a plain word, and the key of its value unless its members are merged into the top level.
    pub name: &'a str,
    /// Its value.
    pub value: &'a Value,
    /// Where its new names are.
    pub shape: &'a Shape,
}

/// Two parts set one key, and `on_conflict` is `error`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Conflict;

/// What the top level has under a key.
enum Slot<'a> {
    Group(&'a str, Option<&'a Bytes>),
    Member(Entry<'a>),
}

impl<'a> Slot<'a> {
    fn key(&self) -> &'a [u8] {
        match self {
            Self::Group(name, _) => name.as_bytes(),
            Self::Member(entry) => entry.name,
        }
    }

    fn write(self, out: &mut Chunks) {
        match self {
            Self::Group(name, text) => {
                out.copy(b"\"");
                out.copy(name.as_bytes());
                out.copy(b"\":");
                match text {
                    Some(text) => out.push(text.clone()),
                    None => out.copy(b"null"),
                }
            }
            Self::Member(entry) => {
                out.copy(entry.quoted);
                out.copy(b":");
                out.push(entry.value);
            }
        }
    }
}

/// The slots of a part.
fn slots<'a>(input: &Input<'a>) -> impl Iterator<Item = Slot<'a>> + use<'a> {
    let Input { name, value, shape } = *input;
    let (group, members) = match value {
        Value::Text(text) => (Some(Slot::Group(name, Some(text))), None),
        Value::Absent => (Some(Slot::Group(name, None)), None),
        Value::Members(members) => (None, Some(members)),
        Value::NotObject => (None, None),
    };
    let entries = move |members: &'a Members| (0..members.len()).filter_map(move |number| members.entry(number, shape)).map(Slot::Member);
    group.into_iter().chain(members.into_iter().flat_map(entries))
}

/// Merges the good parts, in written order, into one object.
pub(super) async fn merge(inputs: &[Input<'_>], on_conflict: OnConflict) -> Result<Chunks, Conflict> {
    let mut places: HashMap<&[u8], usize> = HashMap::new();
    let mut all: Vec<Slot<'_>> = Vec::with_capacity(inputs.len());
    for (done, slot) in inputs.iter().flat_map(slots).enumerate() {
        if done % TURN == TURN - 1 {
            tokio::task::yield_now().await;
        }
        let place = *places.entry(slot.key()).or_insert(all.len());
        match (all.get_mut(place), on_conflict) {
            (None, _) => all.push(slot),
            (Some(_), OnConflict::First) => {}
            (Some(old), OnConflict::Last) => *old = slot,
            (Some(_), OnConflict::Error) => return Err(Conflict),
        }
    }
    let mut out = Chunks::default();
    let count = all.len();
    for (done, slot) in all.into_iter().enumerate() {
        if done % TURN == TURN - 1 {
            tokio::task::yield_now().await;
        }
        out.copy(if done == 0 { b"{" } else { b"," });
        slot.write(&mut out);
    }
    out.copy(if count == 0 { b"{}" } else { b"}" });
    Ok(out.finish())
}

#[cfg(test)]
mod tests {
    use super::super::pick::{Plan, Reader};
    use super::super::tests::{bytes_of, now, plan};
    use super::*;

    /// Parts by their settings and documents, merged.
    fn all(parts: &[(&str, serde_json::Value, &str)], on_conflict: OnConflict) -> Result<String, Conflict> {
        let plans: Vec<Plan> = parts.iter().map(|(_, part, _)| plan(part.clone())).collect();
        let texts: Vec<Bytes> = parts.iter().map(|(_, _, text)| Bytes::copy_from_slice(text.as_bytes())).collect();
        let values: Vec<Value> = plans
            .iter()
            .zip(&texts)
            .map(|(plan, text)| {
                let mut reader = Reader::new(plan, text);
                assert_eq!(reader.advance(usize::MAX), Ok(true));
                reader.finish().value
            })
            .collect();
        let inputs: Vec<Input<'_>> =
            parts.iter().zip(&plans).zip(&values).map(|(((name, ..), plan), value)| Input { name, value, shape: &plan.shape }).collect();
        now(merge(&inputs, on_conflict)).map(|chunks| String::from_utf8(bytes_of(chunks)).unwrap())
    }

    #[test]
    fn a_value_without_changes_passes_byte_for_byte() {
        let value = r#"{ "n" : 123456789012345678901234567890 , "e":1E+400,"z":-0.0, "u":"\u00e9\/" }"#;
        assert_eq!(all(&[("p", serde_json::json!({}), value)], OnConflict::Last).unwrap(), format!("{{\"p\":{value}}}"));
    }

    #[test]
    fn absent_values_are_null_in_a_group_and_nothing_without() {
        let absent = |group: bool| serde_json::json!({"select": "x", "group": group});
        assert_eq!(all(&[("a", absent(true), "{}"), ("b", absent(false), "{}")], OnConflict::Error).unwrap(), r#"{"a":null}"#);
        assert_eq!(all(&[], OnConflict::Last).unwrap(), "{}");
    }

    #[test]
    fn conflicts_are_settled_as_configured() {
        let flat = || serde_json::json!({"group": false});
        let parts =
            [("user", serde_json::json!({}), "1"), ("b", flat(), r#"{"user":2,"x":[1]}"#), ("c", flat(), r#"{"\u0078":[2],"y":3}"#)];
        assert_eq!(all(&parts, OnConflict::Last).unwrap(), r#"{"user":2,"\u0078":[2],"y":3}"#);
        assert_eq!(all(&parts, OnConflict::First).unwrap(), r#"{"user":1,"x":[1],"y":3}"#);
        assert_eq!(all(&parts, OnConflict::Error), Err(Conflict));
        assert!(all(&[("a", flat(), r#"{"a":1,"a":2}"#)], OnConflict::Error).is_ok(), "one part does not conflict with itself");
    }

    #[test]
    fn much_to_merge_lets_others_have_their_turn() {
        let members: Vec<String> = (0..TURN).map(|n| format!("\"{n}\":1")).collect();
        let text = Bytes::from(format!("{{{}}}", members.join(",")));
        let plan = plan(serde_json::json!({"group": false}));
        let mut reader = Reader::new(&plan, &text);
        assert_eq!(reader.advance(usize::MAX), Ok(true));
        let value = reader.finish().value;
        let inputs = [Input { name: "p", value: &value, shape: &plan.shape }];
        let mut merging = std::pin::pin!(merge(&inputs, OnConflict::Last));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(merging.as_mut().poll(&mut context).is_pending());
        let merged = loop {
            if let std::task::Poll::Ready(merged) = merging.as_mut().poll(&mut context) {
                break merged.unwrap();
            }
        };
        assert_eq!(bytes_of(merged), text);
    }
}
