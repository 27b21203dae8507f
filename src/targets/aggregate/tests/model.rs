//! Random parts with random settings against the plainest way to do the same: trees, built anew at each step.

use super::super::merge::{Input, merge};
use super::super::pick::{Content, Reader};
use proptest::prelude::*;

use super::texts::number;
use super::*;

/// A value that knows how it was written.
#[derive(Clone, Debug)]
struct Node {
    text: String,
    inner: Inner,
}

#[derive(Clone, Debug)]
enum Inner {
    Scalar,
    List(Vec<Node>),
    /// What a key says, how it is written, and its value.
    Object(Vec<(String, String, Node)>),
}

impl Node {
    /// With every member and element on the outside, and nothing between them, as changed objects are written.
    fn object(members: Vec<(String, String, Node)>) -> Self {
        let texts: Vec<String> = members.iter().map(|(_, key, value)| format!("{key}:{}", value.text)).collect();
        Self { text: format!("{{{}}}", texts.join(",")), inner: Inner::Object(members) }
    }

    fn list(items: Vec<Node>) -> Self {
        let texts: Vec<&str> = items.iter().map(|item| item.text.as_str()).collect();
        Self { text: format!("[{}]", texts.join(",")), inner: Inner::List(items) }
    }
}

fn select<'a>(node: &'a Node, path: &[&str]) -> Option<&'a Node> {
    let Some((step, rest)) = path.split_first() else { return Some(node) };
    let child = match &node.inner {
        Inner::Scalar => None,
        Inner::List(items) => items.get(step.parse::<usize>().ok()?),
        Inner::Object(members) => members.iter().rev().find(|(key, ..)| key == step).map(|(.., value)| value),
    };
    select(child?, rest)
}

/// `allow`, `deny` and `rename` of one object. Of the members that end with one name the last renamed one stays, or the last if none was
/// renamed; it stands where the first stood.
fn change_object(part: &Value, members: &[(String, String, Node)]) -> Vec<(String, String, Node)> {
    let lists = |list: &str, key: &str| part.get(list).map(|keys| keys.as_array().unwrap().iter().any(|k| k == key));
    let kept = members.iter().filter(|(key, ..)| lists("allow", key) != Some(false) && lists("deny", key) != Some(true));
    let named: Vec<(String, bool, &(String, String, Node))> = kept
        .map(|member| match part.get("rename").and_then(|rename| rename.get(&member.0)) {
            Some(new) => (new.as_str().unwrap().to_owned(), true, member),
            None => (member.0.clone(), false, member),
        })
        .collect();
    let mut out: Vec<(String, String, Node)> = Vec::new();
    for (name, ..) in &named {
        if out.iter().all(|(key, ..)| key != name) {
            let same = || named.iter().rev().filter(|(other, ..)| other == name);
            let (_, renamed, (_, text, value)) = same().find(|(_, renamed, _)| *renamed).or_else(|| same().next()).unwrap();
            out.push((name.clone(), if *renamed { format!("\"{name}\"") } else { text.clone() }, value.clone()));
        }
    }
    out
}

fn change(part: &Value, node: &Node) -> Node {
    let says = |key: &str| part.get(key).is_some_and(|value| *value != json!([]) && *value != json!({}));
    if part.get("allow").is_none() && !says("deny") && !says("rename") {
        return node.clone();
    }
    match &node.inner {
        Inner::Scalar => node.clone(),
        Inner::Object(members) => Node::object(change_object(part, members)),
        Inner::List(items) => {
            let changed = items.iter().map(|item| match &item.inner {
                Inner::Object(members) => Node::object(change_object(part, members)),
                Inner::Scalar | Inner::List(_) => item.clone(),
            });
            Node::list(changed.collect())
        }
    }
}

/// The whole answer. `None`: a part is no object where it must be.
fn model(parts: &[(Value, Node)], last: bool) -> Option<String> {
    let mut top: Vec<(String, String, Node)> = Vec::new();
    for (part, node) in parts {
        let path: Vec<&str> = part.get("select").map(|path| path.as_str().unwrap().split('.').collect()).unwrap_or_default();
        let selected = select(node, &path);
        let name = part["name"].as_str().unwrap();
        let members = if part["group"] == true {
            let null = Node { text: "null".to_owned(), inner: Inner::Scalar };
            vec![(name.to_owned(), format!("\"{name}\""), selected.map_or(null, |node| change(part, node)))]
        } else {
            match selected.map(|node| &node.inner) {
                None => Vec::new(),
                Some(Inner::Object(members)) => change_object(part, members),
                Some(Inner::Scalar | Inner::List(_)) => return None,
            }
        };
        for member in members {
            match top.iter_mut().find(|other| other.0 == member.0) {
                Some(other) if last => *other = member,
                Some(_) => {}
                None => top.push(member),
            }
        }
    }
    Some(Node::object(top).text)
}

fn node() -> impl Strategy<Value = Node> {
    let scalar = prop_oneof![number(), Just("null".to_owned()), Just("false".to_owned()), Just("\"\\u00e9{]\\\"€\"".to_owned())];
    let white = || prop_oneof![Just(""), Just(" "), Just("\r\n\t")];
    let key = prop_oneof![
        "[a-d]".prop_map(|key| (key.clone(), format!("\"{key}\""))),
        Just(("a".to_owned(), "\"\\u0061\"".to_owned())),
        Just(("p1".to_owned(), "\"p1\"".to_owned())),
    ];
    scalar.prop_map(|text| Node { text, inner: Inner::Scalar }).prop_recursive(4, 64, 8, move |inner| {
        let items = (prop::collection::vec(inner.clone(), 0..5), white()).prop_map(|(items, white)| {
            let texts: Vec<String> = items.iter().map(|item| format!("{white}{}{white}", item.text)).collect();
            Node { text: format!("[{white}{}]", texts.join(",")), inner: Inner::List(items) }
        });
        let members = (prop::collection::vec((key.clone(), inner), 0..24), white()).prop_map(|(members, white)| {
            let texts: Vec<String> =
                members.iter().map(|((_, key), value)| format!("{white}{key}{white}:{white}{}{white}", value.text)).collect();
            let members = members.into_iter().map(|((key, text), value)| (key, text, value)).collect();
            Node { text: format!("{{{white}{}}}", texts.join(",")), inner: Inner::Object(members) }
        });
        prop_oneof![items, members]
    })
}

fn settings() -> impl Strategy<Value = Value> {
    let keys = || prop::collection::vec(prop_oneof!["[a-d]", Just("p1".to_owned())], 0..3);
    let select = prop::option::of(prop::collection::vec("[a-d0-2]", 1..3).prop_map(|steps| steps.join(".")));
    let rename = prop::option::of(prop::collection::btree_map("[a-d]", "[a-f]", 0..3));
    (any::<bool>(), select, prop::option::of(keys()), prop::option::of(keys()), rename).prop_map(|(group, select, allow, deny, rename)| {
        let mut part = json!({ "group": group });
        let deny = deny.filter(|_| allow.is_none());
        let settings = [("select", select.map(Value::from)), ("allow", allow.map(Value::from)), ("deny", deny.map(Value::from))];
        for (key, value) in settings.into_iter().chain([("rename", rename.map(|rename| json!(rename)))]) {
            part.as_object_mut().unwrap().extend(value.map(|value| (key.to_owned(), value)));
        }
        part
    })
}

fn read(plan: &Plan, text: &str, slice: usize) -> Content {
    let text = Bytes::copy_from_slice(text.as_bytes());
    let mut reader = Reader::new(plan, &text);
    while !reader.advance(slice).unwrap() {}
    reader.finish()
}

proptest! {
    #[test]
    fn parts_are_picked_and_merged_as_the_model_does(
        parts in prop::collection::vec((settings(), node()), 0..4), last: bool, slice in prop_oneof![1_usize..50, Just(usize::MAX)],
    ) {
        let parts: Vec<(Value, Node)> = parts.into_iter().enumerate().map(|(index, (mut part, node))| {
            part["name"] = json!(format!("p{index}"));
            (part, node)
        }).collect();
        let plans: Vec<Plan> = parts.iter().map(|(part, _)| plan(part.clone())).collect();
        let contents: Vec<Content> = plans.iter().zip(&parts).map(|(plan, (_, node))| read(plan, &node.text, slice)).collect();
        let expected = model(&parts, last);
        let fits = contents.iter().all(|content| !matches!(content.value, super::super::pick::Value::NotObject));
        prop_assert_eq!(fits, expected.is_some());
        if let Some(expected) = expected {
            let inputs: Vec<Input<'_>> = parts.iter().zip(&plans).zip(&contents).map(|(((part, _), plan), content)| {
                Input { name: part["name"].as_str().unwrap(), value: &content.value, shape: &plan.shape }
            }).collect();
            let rule = if last { OnConflict::Last } else { OnConflict::First };
            prop_assert_eq!(String::from_utf8(bytes_of(now(merge(&inputs, rule)).unwrap())).unwrap(), expected);
        }
    }
}
