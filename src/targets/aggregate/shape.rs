//! Changes to the keys of one part's value: `allow` or `deny`, then `rename`, ready to be looked up.

use std::collections::BTreeMap;

use super::json;
use crate::config::route;

/// What becomes of each key.
#[derive(Debug, Default)]
pub(super) struct Shape {
    keys: BTreeMap<Vec<u8>, Change>,
    /// Keys that are not named are dropped, not kept.
    closed: bool,
    names: Vec<Name>,
}

/// What becomes of one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// It stays.
    Keep,
    /// It goes, with its value.
    Drop,
    /// It gets another name: [`Shape::name`] of this number.
    Rename(usize),
}

/// A new name.
#[derive(Debug)]
pub(super) struct Name {
    /// Itself.
    pub plain: Vec<u8>,
    /// As a JSON string.
    pub quoted: Vec<u8>,
}

impl Shape {
    pub(super) fn new(written: &route::Part) -> Self {
        let mut shape = Self { closed: written.allow.is_some(), ..Self::default() };
        for key in written.allow.iter().flatten() {
            shape.keys.insert(key.clone().into_bytes(), Change::Keep);
        }
        for key in written.deny.iter().flatten() {
            shape.keys.insert(key.clone().into_bytes(), Change::Drop);
        }
        for (old, new) in &written.rename {
            // `allow` and `deny` act first, on the old names.
            if shape.change(old.as_bytes()) == Change::Keep {
                shape.keys.insert(old.clone().into_bytes(), Change::Rename(shape.names.len()));
                shape.names.push(Name { plain: new.clone().into_bytes(), quoted: json::quoted(new) });
            }
        }
        shape
    }

    /// Whether nothing is changed.
    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty() && !self.closed
    }

    pub(super) fn change(&self, key: &[u8]) -> Change {
        let other = if self.closed { Change::Drop } else { Change::Keep };
        self.keys.get(key).copied().unwrap_or(other)
    }

    /// The name that [`Change::Rename`] speaks of.
    pub(super) fn name(&self, number: usize) -> Option<&Name> {
        self.names.get(number)
    }
}
