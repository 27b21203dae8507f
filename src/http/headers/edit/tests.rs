//! All holders of fields say the same after the same edits.

use bytes::BytesMut;
use http::Version;
use proptest::prelude::*;

use super::*;
use crate::http::h1::{Limits, Lines, encode, parse_response};

const LIMITS: Limits = Limits { max_head: 64 << 10, max_fields: 256 };

/// Some are each other's twins, some begin alike, some differ in the last letter, some have the same bit.
const NAMES: [&str; 16] = [
    "server",
    "servex",
    "date",
    "vary",
    "x-a",
    "x_a",
    "x-b",
    "x-a-b",
    "x_a-b",
    "x-a_b",
    "set-cookie",
    "access-control-allow-origin",
    "access-control-x",
    "access-contro",
    "-x",
    "_x",
];

/// An edit; names are places in [`NAMES`].
#[derive(Clone, Debug)]
enum Edit {
    Remove(usize),
    Replace(usize, Option<String>),
    Append(usize, String),
    Set(usize, String),
    Prefixed(usize),
}

fn name(at: usize) -> HeaderName {
    HeaderName::from_static(NAMES[at])
}

fn edit(fields: &mut impl Fields, edit: &Edit) {
    let text = |value: &String| HeaderValue::from_str(value).unwrap();
    match edit {
        Edit::Remove(at) => fields.remove(&name(*at)),
        Edit::Replace(at, value) => fields.replace(&name(*at), value.as_ref().map(|value| FieldValue::text(value.as_bytes()).unwrap())),
        Edit::Append(at, value) => fields.append(&name(*at), (&text(value)).into()),
        Edit::Set(at, value) => fields.set(&name(*at), (&text(value)).into()),
        Edit::Prefixed(at) => fields.remove_prefixed(["access-control-", "x-a", "zz"][at % 3]),
    }
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let (at, value) = (0..NAMES.len(), "[!-~]{0,6}");
    let edit = prop_oneof![
        at.clone().prop_map(Edit::Remove),
        (at.clone(), proptest::option::of(value)).prop_map(|(at, value)| Edit::Replace(at, value)),
        (at.clone(), value).prop_map(|(at, value)| Edit::Append(at, value)),
        (at.clone(), value).prop_map(|(at, value)| Edit::Set(at, value)),
        at.prop_map(Edit::Prefixed),
    ];
    proptest::collection::vec(edit, 0..12)
}

/// A message: names, whether in capitals, values.
fn message() -> impl Strategy<Value = Vec<(usize, bool, String)>> {
    proptest::collection::vec((0..NAMES.len(), any::<bool>(), "[!-~]{1,8}"), 0..9)
}

fn wire(message: &[(usize, bool, String)]) -> Vec<u8> {
    let mut wire = b"HTTP/1.1 200 OK\r\n".to_vec();
    for (at, capitals, value) in message {
        let name = if *capitals { NAMES[*at].to_ascii_uppercase() } else { NAMES[*at].to_owned() };
        encode::field(&mut wire, &name, value.as_bytes());
    }
    wire.extend_from_slice(b"\r\n");
    wire
}

fn parsed(wire: &[u8], as_lines: bool) -> (HeaderMap, Option<Box<Lines>>) {
    let head = parse_response(&mut BytesMut::from(wire), &mut 0, LIMITS, as_lines).unwrap().unwrap();
    assert_eq!(head.version, Version::HTTP_11);
    (head.headers, head.lines)
}

fn assert_same(fields: &impl Fields, map: &HeaderMap) {
    for at in 0..NAMES.len() {
        let name = name(at);
        assert_eq!(fields.has(&name), map.contains_key(&name), "{name}");
        assert!(fields.values_of(&name).eq(map.get_all(&name).iter().map(HeaderValue::as_bytes)), "{name}");
    }
}

/// What is read of the lines that `write` writes.
fn read_back(write: impl FnOnce(&mut Vec<u8>)) -> HeaderMap {
    let mut out = b"HTTP/1.1 200 OK\r\n".to_vec();
    write(&mut out);
    out.extend_from_slice(b"\r\n");
    parsed(&out, false).0
}

proptest! {
    #[test]
    fn edits_of_lines_are_those_of_a_map(message in message(), edits in edits()) {
        let wire = wire(&message);
        let (mut map, _) = parsed(&wire, false);
        let mut lines = parsed(&wire, true).1.unwrap();
        for step in &edits {
            edit(&mut map, step);
            edit(&mut *lines, step);
            assert_same(&*lines, &map);
        }
        prop_assert_eq!(lines.dated(), map.contains_key("date"));
        prop_assert_eq!(&read_back(|out| lines.write(out)), &map);
        prop_assert_eq!(lines.into_map(), map);
    }

    #[test]
    fn edits_beside_a_map_are_those_of_a_map(message in message(), edits in edits()) {
        let (mut map, _) = parsed(&wire(&message), false);
        let mut headers = map.clone();
        let mut beside = Beside::new(&mut headers, Made::default());
        for step in &edits {
            edit(&mut map, step);
            edit(&mut beside, step);
            assert_same(&beside, &map);
        }
        let made = beside.made();
        let written = read_back(|out| {
            headers.iter().for_each(|(name, value)| encode::field(out, name.as_str(), value.as_bytes()));
            out.extend_from_slice(made.as_bytes());
        });
        prop_assert_eq!(written, map);
    }
}

#[test]
fn text_that_would_end_its_line_is_no_value() {
    for bad in ["a\nb", "a\r", "\0", "\x7f", "\x1b[m"] {
        assert!(FieldValue::text(bad.as_bytes()).is_none(), "{bad:?}");
    }
    for good in ["", "a b", "\t", "grüße"] {
        assert_eq!(FieldValue::text(good.as_bytes()).unwrap().as_bytes(), good.as_bytes());
    }
}
