//! What becomes of the parts' values: `allow` or `deny`, `rename`, then group or merge in the written order. Pure text work.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::json::{self, Members};
use crate::config::route::OnConflict;

/// Changes to the keys of one part's value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Shape {
    /// Keys to keep; `None` keeps all.
    pub allow: Option<BTreeSet<String>>,
    /// Keys to drop.
    pub deny: BTreeSet<String>,
    /// Old name to new.
    pub rename: BTreeMap<String, String>,
}

/// One good part, ready to be merged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Input<'a> {
    /// Key of its group; `None` merges its members into the top level.
    pub group: Option<&'a str>,
    /// The selected value; `None` is absent.
    pub value: Option<&'a str>,
    /// What is changed in it.
    pub shape: &'a Shape,
}

/// Two parts set one key, and `on_conflict` is `error`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Conflict;

impl Shape {
    fn is_empty(&self) -> bool {
        self.allow.is_none() && self.deny.is_empty() && self.rename.is_empty()
    }

    /// The members that stay, under their new names. All are renamed at once; a renamed key wins over one that had the name before.
    fn members<'a>(&'a self, members: Members<'a>) -> Members<'a> {
        let kept = |key: &str| self.allow.as_ref().is_none_or(|allow| allow.contains(key)) && !self.deny.contains(key);
        let members = members.into_iter().filter(|(key, _)| kept(key));
        if self.rename.is_empty() {
            return members.collect();
        }
        let mut places: HashMap<Cow<'a, str>, (usize, bool)> = HashMap::new();
        let mut out = Members::new();
        for (key, value) in members {
            let (key, renamed) = self.rename.get(key.as_ref()).map_or((key, false), |new| (Cow::Borrowed(new.as_str()), true));
            match places.get_mut(&key) {
                Some((_, was_renamed)) if *was_renamed && !renamed => {}
                Some((place, was_renamed)) => {
                    *was_renamed = renamed;
                    if let Some((_, old)) = out.get_mut(*place) {
                        *old = value;
                    }
                }
                None => {
                    places.insert(key.clone(), (out.len(), renamed));
                    out.push((key, value));
                }
            }
        }
        out
    }

    /// Appends `value` with the changes made: in an object, or in each object of an array.
    fn push(&self, out: &mut Vec<u8>, value: &str) {
        if self.is_empty() {
            out.extend_from_slice(value.as_bytes());
        } else if let Some(members) = json::members(value) {
            push_object(out, &self.members(members));
        } else if let Some(elements) = json::elements(value) {
            push_list(out, b'[', b']', &elements, |out, element| match json::members(element) {
                Some(members) => push_object(out, &self.members(members)),
                None => out.extend_from_slice(element.as_bytes()),
            });
        } else {
            out.extend_from_slice(value.as_bytes());
        }
    }
}

fn push_list<T>(out: &mut Vec<u8>, open: u8, close: u8, items: &[T], mut push: impl FnMut(&mut Vec<u8>, &T)) {
    out.push(open);
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        push(out, item);
    }
    out.push(close);
}

fn push_object(out: &mut Vec<u8>, members: &Members<'_>) {
    push_list(out, b'{', b'}', members, |out, (key, value)| {
        json::push_string(out, key);
        out.push(b':');
        out.extend_from_slice(value.as_bytes());
    });
}

/// What the top level has under a key.
enum Slot<'a> {
    Group(&'a Input<'a>),
    Member(&'a str),
}

/// Merges the good parts, in written order, into one object.
pub(super) fn merge(inputs: &[Input<'_>], on_conflict: OnConflict) -> Result<Vec<u8>, Conflict> {
    let mut places: HashMap<Cow<'_, str>, usize> = HashMap::new();
    let mut slots: Vec<(Cow<'_, str>, Slot<'_>)> = Vec::new();
    for input in inputs {
        let entries = match input.group {
            Some(name) => vec![(Cow::Borrowed(name), Slot::Group(input))],
            None => {
                let members = input.shape.members(input.value.and_then(json::members).unwrap_or_default());
                members.into_iter().map(|(key, value)| (key, Slot::Member(value))).collect()
            }
        };
        for (key, slot) in entries {
            match (places.get(&key), on_conflict) {
                (None, _) => {
                    places.insert(key.clone(), slots.len());
                    slots.push((key, slot));
                }
                (Some(_), OnConflict::First) => {}
                (Some(place), OnConflict::Last) => {
                    if let Some((_, old)) = slots.get_mut(*place) {
                        *old = slot;
                    }
                }
                (Some(_), OnConflict::Error) => return Err(Conflict),
            }
        }
    }
    let size = inputs.iter().map(|input| input.value.map_or(4, str::len) + input.group.map_or(0, str::len) + 8).sum::<usize>();
    let mut out = Vec::with_capacity(size + 2);
    push_list(&mut out, b'{', b'}', &slots, |out, (key, slot)| {
        json::push_string(out, key);
        out.push(b':');
        match slot {
            Slot::Group(input) => input.shape.push(out, input.value.unwrap_or("null")),
            Slot::Member(value) => out.extend_from_slice(value.as_bytes()),
        }
    });
    Ok(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;
    use serde_json::value::RawValue;

    use super::*;

    fn shape(allow: &[&str], deny: &[&str], rename: &[(&str, &str)]) -> Shape {
        let set = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect::<BTreeSet<_>>();
        Shape {
            allow: (!allow.is_empty()).then(|| set(allow)),
            deny: set(deny),
            rename: rename.iter().map(|(old, new)| ((*old).to_owned(), (*new).to_owned())).collect(),
        }
    }

    fn one(shape: &Shape, value: &str) -> String {
        let merged = merge(&[Input { group: Some("p"), value: Some(value), shape }], OnConflict::Last).unwrap();
        let text = String::from_utf8(merged).unwrap();
        text.strip_prefix(r#"{"p":"#).unwrap().strip_suffix('}').unwrap().to_owned()
    }

    fn all(parts: &[(Option<&str>, Option<&str>)], on_conflict: OnConflict) -> Result<String, Conflict> {
        let shape = Shape::default();
        let inputs: Vec<Input<'_>> = parts.iter().map(|(group, value)| Input { group: *group, value: *value, shape: &shape }).collect();
        merge(&inputs, on_conflict).map(|bytes| String::from_utf8(bytes).unwrap())
    }

    #[test]
    fn allow_deny_and_rename_act_in_that_order() {
        let value = r#"{"id": 1, "total": 10.50, "secret": {"id": 2}}"#;
        assert_eq!(one(&shape(&["id", "total"], &[], &[("total", "amount")]), value), r#"{"id":1,"amount":10.50}"#);
        assert_eq!(one(&shape(&[], &["secret"], &[]), value), r#"{"id":1,"total":10.50}"#);
        assert_eq!(one(&shape(&["amount"], &[], &[("total", "amount")]), value), "{}", "`allow` speaks of the old names");
    }

    #[test]
    fn keys_are_changed_in_objects_and_in_each_object_of_an_array_only() {
        let shape = shape(&[], &["x"], &[("a", "b")]);
        assert_eq!(one(&shape, r#"[{"a":1,"x":2}, 7, [{"x":1}], {"x":1}]"#), r#"[{"b":1},7,[{"x":1}],{}]"#);
        for scalar in ["7", "\"x\"", "null", "true"] {
            assert_eq!(one(&shape, scalar), scalar);
        }
    }

    #[test]
    fn all_keys_are_renamed_at_once() {
        let swap = shape(&[], &[], &[("a", "b"), ("b", "a")]);
        assert_eq!(one(&swap, r#"{"a":1,"b":2}"#), r#"{"b":1,"a":2}"#);
        let onto = shape(&[], &[], &[("a", "b")]);
        assert_eq!(one(&onto, r#"{"b":2,"a":1}"#), r#"{"b":1}"#, "the renamed key wins");
        assert_eq!(one(&onto, r#"{"a":1,"b":2}"#), r#"{"b":1}"#);
    }

    #[test]
    fn a_denied_key_is_found_in_every_spelling() {
        assert_eq!(one(&shape(&[], &["secret"], &[]), r#"{"\u0073ecret":1,"\ud800":2,"secret":3}"#), "{\"\u{fffd}\u{fffd}\u{fffd}\":2}");
    }

    #[test]
    fn a_value_without_changes_passes_byte_for_byte() {
        let value = r#"{ "n" : 123456789012345678901234567890 , "e":1E+400,"z":-0.0, "u":"\u00e9\/" }"#;
        assert_eq!(one(&Shape::default(), value), value);
    }

    #[test]
    fn absent_values_are_null_in_a_group_and_nothing_without() {
        assert_eq!(all(&[(Some("a"), None), (None, None)], OnConflict::Error).unwrap(), r#"{"a":null}"#);
        assert_eq!(all(&[], OnConflict::Last).unwrap(), "{}");
    }

    #[test]
    fn conflicts_are_settled_as_configured() {
        let parts = [(Some("user"), Some("1")), (None, Some(r#"{"user":2,"x":[1]}"#)), (None, Some(r#"{"x":[2],"y":3}"#))];
        assert_eq!(all(&parts, OnConflict::Last).unwrap(), r#"{"user":2,"x":[2],"y":3}"#);
        assert_eq!(all(&parts, OnConflict::First).unwrap(), r#"{"user":1,"x":[1],"y":3}"#);
        assert_eq!(all(&parts, OnConflict::Error), Err(Conflict));
        assert!(all(&[(None, Some(r#"{"a":1,"a":2}"#))], OnConflict::Error).is_ok(), "one part does not conflict with itself");
    }

    fn number() -> impl Strategy<Value = String> {
        "-?(0|[1-9][0-9]{0,40})(\\.[0-9]{1,30})?([eE][+-]?[0-9]{1,4})?"
    }

    fn document() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![number(), Just("null".to_owned()), Just("true".to_owned()), "[a-z]{0,4}".prop_map(|s| format!("\"{s}\""))];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(|items| format!("[{}]", items.join(" , "))),
                prop::collection::vec(("[a-e]", inner), 0..4).prop_map(|members| {
                    let members: Vec<String> = members.into_iter().map(|(key, value)| format!("\"{key}\" : {value}")).collect();
                    format!("{{{}}}", members.join(","))
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn numbers_survive_byte_for_byte(number in number(), key in "[a-z]{1,5}") {
            let value = format!(r#"[{{"{key}": {number}}}]"#);
            let renamed = one(&shape(&[], &["nothing"], &[(&key, "new")]), &value);
            prop_assert_eq!(renamed, format!(r#"[{{"new":{number}}}]"#));
        }

        #[test]
        fn grouped_parts_keep_their_text_in_the_written_order(documents in prop::collection::vec(document(), 1..5)) {
            let names = ["p0", "p1", "p2", "p3"];
            let parts: Vec<_> = names.into_iter().map(Some).zip(documents.iter().map(|d| Some(d.as_str()))).collect();
            let merged = all(&parts, OnConflict::Error).unwrap();
            let expected: Vec<String> = names.iter().zip(&documents).map(|(name, d)| format!("\"{name}\":{d}")).collect();
            prop_assert_eq!(merged, format!("{{{}}}", expected.join(",")));
        }

        #[test]
        fn merging_does_what_a_plain_map_does(documents in prop::collection::vec(document(), 0..5), last: bool) {
            let parts: Vec<_> = documents.iter().map(|d| (None, Some(d.as_str()))).collect();
            let merged = all(&parts, if last { OnConflict::Last } else { OnConflict::First }).unwrap();
            let merged: BTreeMap<String, Box<RawValue>> = serde_json::from_str(&merged).unwrap();
            let mut model: BTreeMap<String, String> = BTreeMap::new();
            for document in &documents {
                let Ok(members) = serde_json::from_str::<BTreeMap<String, Box<RawValue>>>(document) else { continue };
                for (key, value) in members {
                    if last || !model.contains_key(&key) {
                        model.insert(key, value.get().to_owned());
                    }
                }
            }
            prop_assert_eq!(merged.into_iter().map(|(k, v)| (k, v.get().to_owned())).collect::<BTreeMap<_, _>>(), model);
        }

        #[test]
        fn what_comes_out_is_always_json(documents in prop::collection::vec((document(), any::<bool>()), 0..5)) {
            let shape = shape(&[], &["a"], &[("b", "c"), ("c", "d")]);
            let names = ["p0", "p1", "p2", "p3", "p4"];
            let inputs: Vec<Input<'_>> = names.iter().zip(&documents)
                .map(|(name, (d, group))| Input { group: group.then_some(*name), value: Some(d), shape: &shape }).collect();
            let merged = merge(&inputs, OnConflict::Last).unwrap();
            prop_assert!(super::json::validate(&merged).is_some());
            if let Ok(value) = serde_json::from_slice::<Value>(&merged) {
                prop_assert!(value.get("a").is_none());
            }
        }
    }
}
