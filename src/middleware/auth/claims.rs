//! Claims: which a rule demands, which become header fields, which are scopes.

use std::collections::BTreeMap;

use http::{HeaderName, HeaderValue};
use serde_json::{Map, Value};

use crate::config::{At, Problems};
use crate::http::exchange::claim_text;

/// Names that `forward` must not write: connection, framing, routing and the places credentials travel in.
const FORBIDDEN: [&str; 14] = [
    "authorization",
    "connection",
    "content-length",
    "cookie",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "upgrade",
];

/// `forward`, compiled: claim to header.
#[derive(Debug, Default)]
pub(super) struct Forward(Vec<(String, HeaderName)>);

impl Forward {
    /// Checks names. `known`: the only claims there are, if the kind has a fixed list. `at` is the `forward` mapping.
    pub(super) fn compile(map: &BTreeMap<String, String>, known: Option<&[&str]>, at: &At, problems: &mut Problems) -> Self {
        let mut list: Vec<(String, HeaderName)> = Vec::with_capacity(map.len());
        for (claim, header) in map {
            let place = at.key(claim);
            if let Some(known) = known.filter(|known| !known.contains(&claim.as_str())) {
                problems.error(place.its_key(), format!("`{claim}` is not known here")).help(format!("known are: {}", known.join(", ")));
                continue;
            }
            let Ok(name) = HeaderName::try_from(header.as_str()) else {
                problems.error(place, format!("`{header}` is not a header name")).help("write a name such as x-user-id");
                continue;
            };
            let plain = name.as_str().replace('_', "-");
            if FORBIDDEN.contains(&plain.as_str()) || plain == "transfer-encoding" {
                problems.error(place, format!("`{header}` cannot carry a claim")).help("write a name of your own, such as x-user-id");
                continue;
            }
            if list.iter().any(|(_, other)| other.as_str().replace('_', "-") == plain) {
                problems.error(place, format!("two claims are put in `{header}`")).help("give each claim a header of its own");
                continue;
            }
            list.push((claim.clone(), name));
        }
        Self(list)
    }

    /// The header names, with `_` as `-`: the form fields of clients are compared in.
    pub(super) fn protected(&self) -> impl Iterator<Item = HeaderName> + '_ {
        self.0.iter().filter_map(|(_, name)| HeaderName::try_from(name.as_str().replace('_', "-")).ok())
    }

    /// The fields for these claims. Absent and empty values, and those with control characters, make no field.
    pub(super) fn fields(&self, claims: &Map<String, Value>) -> Vec<(HeaderName, HeaderValue)> {
        let field = |(claim, name): &(String, HeaderName)| {
            let text = claim_text(lookup(claims, claim)?).filter(|text| !text.is_empty() && !text.chars().any(char::is_control))?;
            HeaderValue::from_bytes(text.as_bytes()).ok().map(|value| (name.clone(), value))
        };
        self.0.iter().filter_map(field).collect()
    }
}

/// A claim by its name, tried literally, then as a dotted path.
pub(super) fn lookup<'a>(claims: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    if let Some(value) = claims.get(name) {
        return Some(value);
    }
    let (first, rest) = name.split_once('.')?;
    rest.split('.').try_fold(claims.get(first)?, |value, key| value.as_object()?.get(key))
}

/// Scopes in `scope` or `scp`: a string split at spaces, or an array.
pub(super) fn scopes(claims: &Map<String, Value>) -> Vec<String> {
    let mut list = Vec::new();
    for name in ["scope", "scp"] {
        match claims.get(name) {
            Some(Value::String(text)) => list.extend(text.split_ascii_whitespace().map(str::to_owned)),
            Some(Value::Array(items)) => list.extend(items.iter().filter_map(Value::as_str).map(str::to_owned)),
            Some(Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_)) | None => {}
        }
    }
    list
}

/// Whether a claim holds one of the `wanted` values; `*` is any that is present and not empty.
pub(super) fn holds(claims: &Map<String, Value>, name: &str, wanted: &[String]) -> bool {
    let Some(value) = lookup(claims, name) else { return false };
    if wanted.iter().any(|text| text == "*") && !is_empty(value) {
        return true;
    }
    match value {
        Value::Array(items) => items.iter().any(|item| is_one_of(item, wanted)),
        Value::String(text) if name == "scope" || name == "scp" => {
            text.split_ascii_whitespace().any(|part| wanted.iter().any(|w| w == part))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => is_one_of(value, wanted),
    }
}

fn is_one_of(value: &Value, wanted: &[String]) -> bool {
    match value {
        Value::String(text) => wanted.iter().any(|w| w == text),
        Value::Number(_) | Value::Bool(_) => {
            let text = value.to_string();
            wanted.contains(&text)
        }
        Value::Null | Value::Array(_) | Value::Object(_) => false,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn claims(value: &Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn a_claim_holds_with_one_of_its_values() {
        let c = claims(&json!({
            "role": "admin", "level": 3, "ok": true, "groups": ["a", 7, "b"], "scope": "x:read y:write", "none": null, "empty": "", "list": [],
            "realm": { "roles": ["r1"], "deep": { "n": 1 } }, "a.b": "literal", "a": { "b": "nested" }
        }));
        for (name, wanted, expected) in [
            ("role", "admin", true),
            ("role", "adm", false),
            ("level", "3", true),
            ("level", "3.0", false),
            ("ok", "true", true),
            ("groups", "b", true),
            ("groups", "7", true),
            ("groups", "c", false),
            ("scope", "y:write", true),
            ("scope", "x", false),
            ("realm.roles", "r1", true),
            ("realm.deep.n", "1", true),
            ("realm.deep.m", "*", false),
            ("a.b", "literal", true),
            ("a.b", "nested", false),
            ("role", "*", true),
            ("level", "*", true),
            ("none", "*", false),
            ("empty", "*", false),
            ("list", "*", false),
            ("absent", "*", false),
        ] {
            assert_eq!(holds(&c, name, &[wanted.to_owned()]), expected, "{name}={wanted}");
        }
        assert!(holds(&c, "role", &["x".into(), "admin".into()]));
    }

    #[test]
    fn forward_makes_fields_by_type_and_leaves_out_what_cannot_be_one() {
        let map: BTreeMap<String, String> =
            ["sub", "n", "b", "list", "obj", "evil", "absent", "utf"].iter().map(|c| ((*c).to_owned(), format!("x-{c}"))).collect();
        let mut problems = Problems::default();
        let forward = Forward::compile(&map, None, &At::default(), &mut problems);
        assert!(!problems.has_errors());
        let c = claims(
            &json!({"sub": "u", "n": 1.5, "b": true, "list": ["a", 1, null], "obj": {"k": 1}, "evil": "a\r\nx-admin: 1", "utf": "Žofie"}),
        );
        let fields: BTreeMap<String, Vec<u8>> =
            forward.fields(&c).into_iter().map(|(n, v)| (n.to_string(), v.as_bytes().to_vec())).collect();
        let expected = [("x-sub", "u"), ("x-n", "1.5"), ("x-b", "true"), ("x-list", "a,1"), ("x-obj", r#"{"k":1}"#), ("x-utf", "Žofie")];
        assert_eq!(fields, expected.iter().map(|(n, v)| ((*n).to_owned(), v.as_bytes().to_vec())).collect());
    }

    #[test]
    fn names_that_would_change_framing_or_credentials_are_load_errors() {
        for header in
            ["Host", "authorization", "Cookie", "content-length", "transfer-encoding", "connection", "TE", "content_length", "bad name"]
        {
            let map = BTreeMap::from([("sub".to_owned(), header.to_owned())]);
            let mut problems = Problems::default();
            Forward::compile(&map, None, &At::default(), &mut problems);
            assert!(problems.has_errors(), "{header}");
        }
        let twice = BTreeMap::from([("a".to_owned(), "x_u".to_owned()), ("b".to_owned(), "X-U".to_owned())]);
        let mut problems = Problems::default();
        let forward = Forward::compile(&twice, None, &At::default(), &mut problems);
        assert_eq!(problems.list().len(), 1);
        assert_eq!(forward.protected().collect::<Vec<_>>(), ["x-u"]);
    }

    #[test]
    fn scopes_come_from_strings_and_arrays() {
        assert_eq!(scopes(&claims(&json!({"scope": "a  b", "scp": ["c", 1]}))), ["a", "b", "c"]);
        assert!(scopes(&claims(&json!({"scope": 1}))).is_empty());
    }
}
