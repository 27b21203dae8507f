//! Forms of routes: [`Match`], [`AuthRule`], [`Split`], [`Selectors`], [`RetryOn`].

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::de::{Error, MapAccess, SeqAccess};
use serde::{Deserialize, Serialize, Serializer};

use super::{Form, deserialize_form, elements, form_schema, mapping};
use crate::config::auth::AuthRule;
use crate::config::route::{Branch, Match, RetryOn, Scheme, Selectors, Split};
use crate::units::Selector;

deserialize_form!(Match AuthRule Split Selectors RetryOn Words);

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename = "Match", deny_unknown_fields)]
struct LongMatch {
    /// `http` or `https`: how the client came, to the gateway or to a trusted proxy before it. Omitted is both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scheme: Option<Scheme>,
    /// Exact, or `*.example.com` (any depth); omitted is any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    host: Option<String>,
    /// Methods; omitted is any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    methods: Option<Vec<String>>,
    /// Whole path with `{param}`s and a last `{*rest}`. Exactly one of `path`, `prefix`, `regex`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    /// Path prefix by whole segments; may hold `{param}`s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    prefix: Option<String>,
    /// Anchored regular expression; named groups become parameters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    regex: Option<String>,
    /// Header conditions: exact value, or `"*"` for present.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    headers: BTreeMap<String, String>,
    /// Query conditions: exact value, or `"*"` for present.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    query: BTreeMap<String, String>,
}

/// Reads `[METHOD[,METHOD]] PATH`.
fn short_match(text: &str) -> Result<Match, String> {
    let wrong = || format!("`{text}` is not a match: write `[METHOD[,METHOD]] PATH`, like GET /users/{{id}} or /api/*");
    let words: Vec<&str> = text.split_whitespace().collect();
    let (methods, path) = match words.as_slice() {
        [path] => (None, *path),
        [methods, path] => (Some(*methods), *path),
        _ => return Err(wrong()),
    };
    if !path.starts_with('/') {
        return Err(wrong());
    }
    let methods = methods.map(|list| list.split(',').map(str::to_owned).collect::<Vec<_>>());
    if methods.iter().flatten().any(|method| method.is_empty() || method.contains('/')) {
        return Err(wrong());
    }
    let mut found = Match { methods, short: Some(text.to_owned()), ..Match::default() };
    match path.strip_suffix("/*") {
        Some("") => found.prefix = Some("/".to_owned()),
        Some(prefix) => found.prefix = Some(prefix.to_owned()),
        None => found.path = Some(path.to_owned()),
    }
    Ok(found)
}

impl<'de> Form<'de> for Match {
    const EXPECTED: &'static str = "text such as GET /users/{id}, or a mapping of conditions";
    fn text<E: Error>(text: &str) -> Option<Result<Self, E>> {
        Some(short_match(text).map_err(E::custom))
    }
    fn map<A: MapAccess<'de>>(map: A) -> Option<Result<Self, A::Error>> {
        Some(mapping::<LongMatch, A>(map).map(|long| {
            let LongMatch { scheme, host, methods, path, prefix, regex, headers, query } = long;
            Self { scheme, host, methods, path, prefix, regex, headers, query, short: None }
        }))
    }
}

impl Serialize for Match {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { scheme, host, methods, path, prefix, regex, headers, query, short: _ } = self.clone();
        LongMatch { scheme, host, methods, path, prefix, regex, headers, query }.serialize(serializer)
    }
}
form_schema!(Match, "Match", |generator| {
    "anyOf": [
        { "type": "string", "pattern": "^([^ ]+ +)?/[^ ]*$", "description": "[METHOD[,METHOD]] PATH; a PATH ending in /* is a prefix" },
        generator.subschema_for::<LongMatch>()
    ]
});

/// One word or a list of them.
struct Words(Vec<String>);

impl<'de> Form<'de> for Words {
    const EXPECTED: &'static str = "text or a list of texts";
    fn text<E: Error>(text: &str) -> Option<Result<Self, E>> {
        Some(Ok(Self(vec![text.to_owned()])))
    }
    fn list<A: SeqAccess<'de>>(seq: A) -> Option<Result<Self, A::Error>> {
        Some(elements(seq).map(Self))
    }
}
form_schema!(Words, "Words", |_generator| {
    "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }]
});

#[derive(Deserialize, JsonSchema)]
#[serde(rename = "AuthRule", deny_unknown_fields)]
struct LongAuth {
    /// Authenticators, in order; the first whose credential is present decides.
    any: Vec<String>,
    /// Scopes, all needed.
    #[serde(default)]
    scopes: Vec<String>,
    /// Claims that must hold, each with one of its values; `"*"` is present and not empty.
    #[serde(default)]
    claims: BTreeMap<String, Words>,
    /// `true` lets a request without any credential pass as nobody; a bad one is still 401.
    #[serde(default)]
    optional: bool,
}

impl<'de> Form<'de> for AuthRule {
    const EXPECTED: &'static str = "text: the name of an authenticator, a list of names, { any: [NAME] }, or off";
    fn text<E: Error>(text: &str) -> Option<Result<Self, E>> {
        Some(Ok(Self { any: vec![text.to_owned()], ..Self::default() }))
    }
    fn list<A: SeqAccess<'de>>(seq: A) -> Option<Result<Self, A::Error>> {
        Some(elements(seq).map(|any| Self { any, ..Self::default() }))
    }
    fn map<A: MapAccess<'de>>(map: A) -> Option<Result<Self, A::Error>> {
        Some(mapping::<LongAuth, A>(map).map(|long| {
            let claims = long.claims.into_iter().map(|(name, values)| (name, values.0)).collect();
            Self { any: long.any, scopes: long.scopes, claims, optional: long.optional }
        }))
    }
}

impl Serialize for AuthRule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { any, scopes, claims, optional } = self;
        serde_json::json!({ "any": any, "scopes": scopes, "claims": claims, "optional": optional }).serialize(serializer)
    }
}
form_schema!(AuthRule, "AuthRule", |generator| {
    "anyOf": [
        { "type": "string", "description": "the name of an authenticator" },
        { "type": "array", "items": { "type": "string" }, "description": "any of these authenticators" },
        generator.subschema_for::<LongAuth>()
    ]
});

#[derive(Deserialize, JsonSchema)]
#[serde(rename = "Split", deny_unknown_fields)]
struct LongSplit {
    /// Sticky by the first selector present; without it each request is drawn.
    #[serde(default)]
    by: Option<Selectors>,
    /// The branches.
    to: Vec<Branch>,
}

impl<'de> Form<'de> for Split {
    const EXPECTED: &'static str = "a list of { upstream, weight }, or { by: SELECTORS, to: LIST }";
    fn list<A: SeqAccess<'de>>(seq: A) -> Option<Result<Self, A::Error>> {
        Some(elements(seq).map(|to| Self { by: Vec::new(), to }))
    }
    fn map<A: MapAccess<'de>>(map: A) -> Option<Result<Self, A::Error>> {
        Some(mapping::<LongSplit, A>(map).map(|long| Self { by: long.by.map_or_else(Vec::new, |by| by.0), to: long.to }))
    }
}

impl Serialize for Split {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.by.is_empty() {
            return self.to.serialize(serializer);
        }
        serde_json::json!({ "by": self.by, "to": self.to }).serialize(serializer)
    }
}
form_schema!(Split, "Split", |generator| {
    "anyOf": [generator.subschema_for::<Vec<Branch>>(), generator.subschema_for::<LongSplit>()]
});

impl<'de> Form<'de> for Selectors {
    const EXPECTED: &'static str = "a selector such as ip or header:NAME, or a list of selectors";
    fn text<E: Error>(text: &str) -> Option<Result<Self, E>> {
        Some(text.parse().map(|selector| Self(vec![selector])).map_err(E::custom))
    }
    fn list<A: SeqAccess<'de>>(seq: A) -> Option<Result<Self, A::Error>> {
        Some(elements(seq).map(Self))
    }
}

impl Serialize for Selectors {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}
form_schema!(Selectors, "Selectors", |generator| {
    "anyOf": [generator.subschema_for::<Selector>(), generator.subschema_for::<Vec<Selector>>()]
});

impl<'de> Form<'de> for RetryOn {
    const EXPECTED: &'static str = "connect, reset, timeout or a status from 400 to 599";
    fn text<E: Error>(text: &str) -> Option<Result<Self, E>> {
        match text {
            "connect" => Some(Ok(Self::Connect)),
            "reset" => Some(Ok(Self::Reset)),
            "timeout" => Some(Ok(Self::Timeout)),
            _ => text.parse().ok().and_then(Self::number),
        }
    }
    fn number<E: Error>(number: u64) -> Option<Result<Self, E>> {
        u16::try_from(number).ok().filter(|status| (400..=599).contains(status)).map(|status| Ok(Self::Status(status)))
    }
}

impl fmt::Display for RetryOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect => f.write_str("connect"),
            Self::Reset => f.write_str("reset"),
            Self::Timeout => f.write_str("timeout"),
            Self::Status(status) => status.fmt(f),
        }
    }
}
impl Serialize for RetryOn {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Connect | Self::Reset | Self::Timeout => serializer.collect_str(self),
            Self::Status(status) => serializer.serialize_u16(*status),
        }
    }
}
form_schema!(RetryOn, "RetryOn", |_generator| {
    "anyOf": [{ "enum": ["connect", "reset", "timeout"] }, { "type": "integer", "minimum": 400, "maximum": 599 }]
});
