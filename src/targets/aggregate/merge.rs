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
