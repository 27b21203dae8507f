//! What is taken out of a part's answer while it is checked: the selected value with its keys changed, and what other parts need of it.
//!
//! One pass does everything. Values that stay as they are are ranges of the answer; only an object whose keys change is written anew, from
//! ranges. Later members of the same key replace earlier ones, in paths as in objects.

use std::ops::Range;

use bytes::Bytes;

use super::json;
use super::object::{Key, Members, Object, Runs};
use super::scan::{Kind, Scanner, Sink};
use super::shape::Shape;
use super::tokens::Invalid;

/// What is wanted of one part's answers.
#[derive(Debug)]
pub(super) struct Plan {
    /// Ways to values, of keys and indices: the part's own `select`, then what other parts need, before `select` and changes.
    pub paths: Vec<Vec<String>>,
    /// Changes to the selected value's keys.
    pub shape: Shape,
    /// `false`: its members are merged into the top level, one by one.
    pub group: bool,
}

/// What an answer gave.
#[derive(Debug)]
pub(super) struct Content {
    /// The selected value.
    pub value: Value,
    /// What other parts need, in the order of [`Plan::paths`] behind the first; `None` is missing, empty or no scalar.
    pub needed: Vec<Option<String>>,
}

/// A selected value.
#[derive(Debug)]
pub(super) enum Value {
    /// There is none.
    Absent,
    /// JSON text.
    Text(Bytes),
    /// The members of an object, each key once.
    Members(Members),
    /// It should be an object, and is none.
    NotObject,
}

/// Reads one answer.
pub(super) struct Reader<'a> {
    scanner: Scanner,
    finds: Finds<'a>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(plan: &'a Plan, text: &'a Bytes) -> Self {
        Self { scanner: Scanner::new(), finds: Finds::new(plan, text) }
    }

    /// Reads about `slice` bytes more. True at the end.
    pub(super) fn advance(&mut self, slice: usize) -> Result<bool, Invalid> {
        self.scanner.advance(self.finds.text, &mut self.finds, slice)
    }

    /// What was found, after the end.
    pub(super) fn finish(self) -> Content {
        self.finds.finish()
    }
}

/// What was found so far.
struct Finds<'a> {
    plan: &'a Plan,
    text: &'a Bytes,
    /// Values that have begun and not ended, the outermost first.
    open: Vec<Open>,
    /// One for each of the plan's paths.
    trails: Vec<Trail>,
    /// The key of the next value.
    key: Option<Key>,
    /// Where a member of a changed object began in which no path goes on. It is not in `open`: most members are such.
    member: Option<usize>,
    object: Object<'a>,
    /// The selected value, written anew.
    runs: Runs<'a>,
    selected: Kind,
}

#[derive(Clone, Copy)]
struct Open {
    at: usize,
    children: usize,
    role: Role,
}

#[derive(Clone, Copy)]
enum Role {
    /// Nothing changes in it.
    Other,
    /// The list whose objects are changed.
    List,
    /// Another element of it.
    Element,
    /// An object that is changed.
    Object,
    /// A member of that object in which a path goes on.
    Member(Key),
}

/// How far a path has been followed.
#[derive(Default)]
struct Trail {
    /// So many of the open values are on it.
    on: usize,
    found: Option<Range<usize>>,
}

impl<'a> Finds<'a> {
    fn new(plan: &'a Plan, text: &'a Bytes) -> Self {
        Self {
            plan,
            text,
            open: Vec::with_capacity(8),
            trails: plan.paths.iter().map(|_| Trail::default()).collect(),
            key: None,
            member: None,
            object: Object::new(&plan.shape, text),
            runs: Runs::new(text),
            selected: Kind::Scalar,
        }
    }

    fn finish(self) -> Content {
        let scalar = |trail: &Trail| json::scalar(self.text.get(trail.found.clone()?)?).filter(|text| !text.is_empty());
        let needed = self.trails.iter().skip(1).map(scalar).collect();
        let found = self.trails.into_iter().next().and_then(|trail| trail.found);
        let changed = self.selected != Kind::Scalar && !self.plan.shape.is_empty();
        let value = match found {
            None if self.plan.group => Value::Absent,
            None => Value::Members(Members::default()),
            Some(_) if !self.plan.group && self.selected != Kind::Object => Value::NotObject,
            Some(_) if !self.plan.group => Value::Members(self.object.members(self.text)),
            Some(_) if changed => Value::Text(self.runs.finish(self.text)),
            Some(place) => Value::Text(self.text.slice(place)),
        };
        Content { value, needed }
    }

    /// Follows the paths into a value at this depth. Whether it is the selected one, and whether a path goes on inside.
    fn follow(&mut self, depth: usize) -> (bool, bool) {
        let (mut selected, mut inside) = (false, false);
        let child = self.open.last().map_or(0, |parent| parent.children);
        for (number, (trail, path)) in self.trails.iter_mut().zip(&self.plan.paths).enumerate() {
            let on = depth == 0
                || trail.on == depth
                    && path.get(depth - 1).is_some_and(|step| match self.key {
                        Some(key) => key.is(step.as_bytes(), self.text),
                        None => json::index(step) == Some(child),
                    });
            if on {
                trail.on = depth + 1;
                // What an earlier member of the same key had does not count.
                trail.found = None;
                selected |= number == 0 && path.len() == depth;
                inside |= path.len() > depth;
            }
        }
        (selected, inside)
    }

    /// The role of a value that begins.
    fn role(&mut self, selected: bool, at: usize, kind: Kind, key: Option<Key>) -> Role {
        if selected {
            self.runs.clear();
            self.selected = kind;
            return match kind {
                Kind::Object if !self.plan.group || !self.plan.shape.is_empty() => {
                    self.object.begin(false);
                    Role::Object
                }
                Kind::Array if self.plan.group && !self.plan.shape.is_empty() => {
                    self.runs.punctuation(at, b'[');
                    Role::List
                }
                Kind::Object | Kind::Array | Kind::Scalar => Role::Other,
            };
        }
        match (self.open.last().map(|parent| parent.role), kind, key) {
            (Some(Role::List), Kind::Object, _) => {
                self.object.begin(true);
                Role::Object
            }
            (Some(Role::List), Kind::Array | Kind::Scalar, _) => Role::Element,
            (Some(Role::Object), _, Some(key)) => Role::Member(key),
            (Some(Role::Object | Role::Other | Role::Element | Role::Member(_)) | None, _, _) => Role::Other,
        }
    }
}

impl Sink for Finds<'_> {
    #[inline]
    fn key(&mut self, place: Range<usize>, escaped: bool) {
        self.key = Some(Key { start: place.start, end: place.end, escaped });
    }

    #[inline]
    fn begin(&mut self, at: usize, kind: Kind) -> bool {
        let depth = self.open.len();
        let in_object = self.open.last().is_some_and(|parent| matches!(parent.role, Role::Object));
        if in_object && self.trails.iter().all(|trail| trail.on != depth) {
            self.member = Some(at);
            return false;
        }
        let (selected, inside) = self.follow(depth);
        let key = self.key.take();
        let role = self.role(selected, at, kind, key);
        self.open.push(Open { at, children: 0, role });
        inside || matches!(role, Role::List | Role::Object)
    }

    #[inline]
    fn end(&mut self, at: usize) {
        if let Some(start) = self.member.take() {
            if let Some(key) = self.key.take() {
                self.object.member(key, start..at);
            }
            return;
        }
        let Some(ended) = self.open.pop() else { return };
        let depth = self.open.len();
        let place = ended.at..at;
        for (trail, path) in self.trails.iter_mut().zip(&self.plan.paths).filter(|(trail, _)| trail.on == depth + 1) {
            trail.on = depth;
            if path.len() == depth {
                trail.found = Some(place.clone());
            }
        }
        if let Some(parent) = self.open.last_mut() {
            parent.children += 1;
            if matches!(parent.role, Role::List) && parent.children > 1 {
                self.runs.byte(b',');
            }
        }
        match ended.role {
            Role::Member(key) => self.object.member(key, place),
            Role::Object if self.plan.group => self.object.write(place, &mut self.runs),
            Role::Element => self.runs.source(place),
            Role::List => self.runs.byte(b']'),
            Role::Object | Role::Other => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::plan;
    use super::super::tests::texts::number;
    use super::*;

    /// What the plan made of these keys of a part takes out of a document.
    fn pick(part: serde_json::Value, needed: &[&str], text: &str) -> Content {
        let mut plan = plan(part);
        plan.paths.extend(needed.iter().map(|path| path.split('.').map(str::to_owned).collect()));
        let text = Bytes::copy_from_slice(text.as_bytes());
        let mut reader = Reader::new(&plan, &text);
        assert_eq!(reader.advance(usize::MAX), Ok(true));
        reader.finish()
    }

    fn text(part: serde_json::Value, document: &str) -> Option<String> {
        match pick(part, &[], document).value {
            Value::Text(text) => Some(String::from_utf8(text.to_vec()).unwrap()),
            Value::Absent => None,
            other => panic!("{other:?}"),
        }
    }

    fn at(document: &str, path: &str) -> Option<String> {
        text(serde_json::json!({ "select": path }), document)
    }

    #[test]
    fn values_are_found_by_keys_and_indices() {
        let document = r#"{"data": {"items": [ 10 , {"id" : 12345678901234567890.10} ], "": 5}, "n": 1e999}"#;
        assert_eq!(at(document, "data.items.0").as_deref(), Some("10"));
        assert_eq!(at(document, "data.items.1.id").as_deref(), Some("12345678901234567890.10"));
        assert_eq!(at(document, "n").as_deref(), Some("1e999"));
        for absent in
            ["data.items.2", "data.items.-1", "data.items.x", "data.items.0.x", "nope", "n.x", "0", "data.items.18446744073709551616"]
        {
            assert_eq!(at(document, absent), None, "{absent}");
        }
        assert_eq!(text(serde_json::json!({}), document).as_deref(), Some(document));
    }

    #[test]
    fn keys_are_compared_decoded_and_the_last_of_equal_ones_counts() {
        assert_eq!(at(r#"{"\u0061": 1, "a": 2}"#, "a").as_deref(), Some("2"));
        assert_eq!(at(r#"{"a": {"b": 1}, "a": {"c": 2}}"#, "a.b"), None);
        assert_eq!(at(r#"{"a": {"b": 1}, "a": 7}"#, "a").as_deref(), Some("7"));
        let renamed = serde_json::json!({"rename": {"x": "y"}});
        assert_eq!(text(renamed.clone(), r#"{"a":1,"b":2,"\u0061":3}"#).as_deref(), Some(r#"{"\u0061":3,"b":2}"#));
        assert_eq!(text(renamed, r#"{"\ud800":1,"x":2}"#).as_deref(), Some(r#"{"\ud800":1,"y":2}"#), "half a surrogate pair hides nothing");
    }

    #[test]
    fn allow_deny_and_rename_act_in_that_order() {
        let value = r#"{"id": 1, "total": 10.50, "secret": {"id": 2}}"#;
        let changed = |part| text(part, value).unwrap();
        assert_eq!(changed(serde_json::json!({"allow": ["id", "total"], "rename": {"total": "amount"}})), r#"{"id":1,"amount":10.50}"#);
        assert_eq!(changed(serde_json::json!({"deny": ["secret"]})), r#"{"id":1,"total":10.50}"#);
        assert_eq!(changed(serde_json::json!({"deny": ["secret", "id"], "rename": {"id": "x"}})), r#"{"total":10.50}"#);
        assert_eq!(
            changed(serde_json::json!({"allow": ["amount"], "rename": {"total": "amount"}})),
            "{}",
            "`allow` speaks of the old names"
        );
        assert_eq!(changed(serde_json::json!({"allow": []})), "{}");
    }

    #[test]
    fn keys_are_changed_in_objects_and_in_each_object_of_an_array_only() {
        let shape = serde_json::json!({"deny": ["x"], "rename": {"a": "b"}});
        assert_eq!(text(shape.clone(), r#"[{"a":1,"x":2}, 7, [{"x":1}], {"x":1}]"#).unwrap(), r#"[{"b":1},7,[{"x":1}],{}]"#);
        for scalar in ["7", "\"x\"", "null", "true", "[]"] {
            assert_eq!(text(shape.clone(), scalar).unwrap(), scalar);
        }
    }

    #[test]
    fn all_keys_are_renamed_at_once() {
        let swap = serde_json::json!({"rename": {"a": "b", "b": "a"}});
        assert_eq!(text(swap, r#"{"a":1,"b":2}"#).unwrap(), r#"{"b":1,"a":2}"#);
        let onto = serde_json::json!({"rename": {"a": "b"}});
        assert_eq!(text(onto.clone(), r#"{"b":2,"a":1}"#).unwrap(), r#"{"b":1}"#, "the renamed key wins");
        assert_eq!(text(onto, r#"{"a":1,"b":2}"#).unwrap(), r#"{"b":1}"#);
    }

    #[test]
    fn a_denied_key_is_found_in_every_spelling() {
        let deny = serde_json::json!({"deny": ["secret"]});
        assert_eq!(text(deny, r#"{"\u0073ecret":1,"\ud800":2,"secret":3}"#).unwrap(), r#"{"\ud800":2}"#);
    }

    #[test]
    fn what_others_need_is_taken_before_select_and_changes() {
        let part = serde_json::json!({"select": "b", "deny": ["id"]});
        let content = pick(part, &["b.id", "a.0", "b", "b.none"], r#"{"b":{"id":"x\/y","k":1},"a":[9007199254740993]}"#);
        assert!(matches!(content.value, Value::Text(text) if text == r#"{"k":1}"#));
        assert_eq!(content.needed, [Some("x/y".to_owned()), Some("9007199254740993".to_owned()), None, None]);
    }

    #[test]
    fn an_untouched_value_is_not_copied() {
        let text = Bytes::from_static(br#"{"a":{"b":[1,2]}}"#);
        let plan = plan(serde_json::json!({"select": "a.b"}));
        let mut reader = Reader::new(&plan, &text);
        assert_eq!(reader.advance(usize::MAX), Ok(true));
        let Value::Text(value) = reader.finish().value else { panic!("no text") };
        assert_eq!(value.as_ptr(), text[10..].as_ptr());
    }

    #[test]
    fn objects_with_many_members_find_equal_keys_too() {
        let members: Vec<String> = (0..100).map(|n| format!("\"k{}\":{n}", n % 60)).collect();
        let changed = text(serde_json::json!({"rename": {"k7": "k8"}}), &format!("{{{}}}", members.join(","))).unwrap();
        let value: serde_json::Value = serde_json::from_str(&changed).unwrap();
        assert_eq!(changed.matches(':').count(), 59);
        assert_eq!((&value["k3"], &value["k8"], &value["k59"]), (&63.into(), &67.into(), &59.into()));
    }

    proptest! {
        #[test]
        fn numbers_survive_byte_for_byte(number in number(), key in "[a-z]{1,5}") {
            let renamed = text(serde_json::json!({"rename": {key.clone(): "new"}}), &format!(r#"[{{"{key}": {number}}}]"#));
            prop_assert_eq!(renamed.unwrap(), format!(r#"[{{"new":{number}}}]"#));
        }
    }
}
