//! Forms of upstreams and of the server: [`Endpoint`], [`Balance`], [`Workers`], [`Place`].

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::de::{Error, MapAccess, SeqAccess};
use serde::{Deserialize, Serialize, Serializer};

use super::{Form, deserialize_form, form_schema, mapping};
use crate::config::auth::Place;
use crate::config::route::Selectors;
use crate::config::server::Workers;
use crate::config::suggest::did_you_mean;
use crate::config::upstream::{Balance, Endpoint};
use crate::units::Setting;

deserialize_form!(Endpoint Balance Workers Place);

#[derive(Deserialize, JsonSchema)]
#[serde(rename = "Endpoint", deny_unknown_fields)]
struct LongEndpoint {
    /// `http://HOST[:PORT]`, `https://…` or `unix:/path`.
    url: String,
    /// Share of the requests, 0–1000; 0 gets no new ones. Other than 1 needs `balance: weighted`, `consistent_hash` or `least_requests`.
    #[serde(default = "one")]
    weight: u32,
}

fn one() -> u32 {
    1
}

impl<'de> Form<'de> for Endpoint {
    const EXPECTED: &'static str = "a URL such as http://127.0.0.1:8081, or { url, weight }";
    fn text<E: Error>(text: &str) -> Option<Result<Self, E>> {
        Some(Ok(Self { url: text.to_owned(), weight: 1 }))
    }
    fn map<A: MapAccess<'de>>(map: A) -> Option<Result<Self, A::Error>> {
        Some(mapping::<LongEndpoint, A>(map).map(|long| Self { url: long.url, weight: long.weight }))
    }
}
form_schema!(Endpoint, "Endpoint", |generator| {
    "anyOf": [{ "type": "string", "description": "http://HOST[:PORT], https://… or unix:/path" }, generator.subschema_for::<LongEndpoint>()]
});

const STRATEGIES: [(&str, Balance); 5] = [
    ("round_robin", Balance::RoundRobin),
    ("weighted", Balance::Weighted),
    ("least_requests", Balance::LeastRequests),
    ("p2c", Balance::P2c),
    ("random", Balance::Random),
];

#[derive(Deserialize, JsonSchema)]
#[serde(rename = "Balance", deny_unknown_fields)]
struct LongBalance {
    /// The same key goes to the same endpoint.
    consistent_hash: ConsistentHash,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ConsistentHash {
    /// The first selector present is hashed.
    key: Selectors,
    /// Most load of one endpoint relative to the mean, > 1; `off` by default.
    #[serde(default = "no_bound")]
    bounded_load: Setting<f64>,
}

fn no_bound() -> Setting<f64> {
    Setting::Off
}

impl<'de> Form<'de> for Balance {
    const EXPECTED: &'static str = "round_robin, weighted, least_requests, p2c, random or { consistent_hash: { key: [SELECTOR] } }";
    fn text<E: Error>(text: &str) -> Option<Result<Self, E>> {
        if text == "consistent_hash" {
            return Some(Err(E::custom("consistent_hash needs a key: write { consistent_hash: { key: [ip] } }")));
        }
        let found = STRATEGIES.into_iter().find(|(name, _)| *name == text).map(|(_, balance)| balance);
        Some(found.ok_or_else(|| {
            let hint = did_you_mean(text, STRATEGIES.iter().map(|(name, _)| *name));
            E::custom(format_args!("unknown value \"{text}\"{hint}: expected {}", Self::EXPECTED))
        }))
    }
    fn map<A: MapAccess<'de>>(map: A) -> Option<Result<Self, A::Error>> {
        Some(mapping::<LongBalance, A>(map).map(|long| {
            let hash = long.consistent_hash;
            Self::ConsistentHash { key: hash.key.0, bounded_load: hash.bounded_load.on().copied() }
        }))
    }
}

impl Serialize for Balance {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if let Self::ConsistentHash { key, bounded_load } = self {
            let bounded_load = bounded_load.map_or(Setting::Off, Setting::On);
            return serde_json::json!({ "consistent_hash": { "key": key, "bounded_load": bounded_load } }).serialize(serializer);
        }
        let name = STRATEGIES.iter().find(|(_, balance)| balance == self).map_or("consistent_hash", |(name, _)| name);
        serializer.serialize_str(name)
    }
}
form_schema!(Balance, "Balance", |generator| {
    "anyOf": [{ "enum": STRATEGIES.map(|(name, _)| name) }, generator.subschema_for::<LongBalance>()]
});

impl<'de> Form<'de> for Workers {
    const EXPECTED: &'static str = "auto or a number of threads";
    fn text<E: Error>(text: &str) -> Option<Result<Self, E>> {
        match (text, text.parse()) {
            ("auto", _) => Some(Ok(Self::Auto)),
            // Only substitution gives a number as text.
            (_, Ok(count)) => Some(Ok(Self::Count(count))),
            _ => None,
        }
    }
    fn number<E: Error>(number: u64) -> Option<Result<Self, E>> {
        usize::try_from(number).ok().map(|count| Ok(Self::Count(count)))
    }
}

impl Serialize for Workers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Count(count) => serializer.serialize_u64(*count as u64),
        }
    }
}
form_schema!(Workers, "Workers", |_generator| { "anyOf": [{ "enum": ["auto"] }, { "type": "integer", "minimum": 1 }] });

impl FromStr for Place {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a place of a credential: write bearer, header:NAME, cookie:NAME or query:NAME");
        if text == "bearer" {
            return Ok(Self::Bearer);
        }
        let (kind, name) = text.split_once(':').filter(|(_, name)| !name.is_empty()).ok_or_else(wrong)?;
        match kind {
            "header" => name.parse().map(Self::Header).map_err(|_| format!("`{name}` in `{text}` is not a header name")),
            "cookie" => Ok(Self::Cookie(name.to_owned())),
            "query" => Ok(Self::Query(name.to_owned())),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bearer => f.write_str("bearer"),
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Cookie(name) => write!(f, "cookie:{name}"),
            Self::Query(name) => write!(f, "query:{name}"),
        }
    }
}

impl<'de> Form<'de> for Place {
    const EXPECTED: &'static str = "bearer, header:NAME, cookie:NAME or query:NAME";
    fn text<E: Error>(text: &str) -> Option<Result<Self, E>> {
        Some(text.parse().map_err(E::custom))
    }
    fn list<A: SeqAccess<'de>>(_: A) -> Option<Result<Self, A::Error>> {
        None
    }
}

impl Serialize for Place {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
form_schema!(Place, "Place", |_generator| {
    "type": "string", "pattern": "^(bearer|(header|cookie|query):.+)$", "description": "bearer, header:NAME, cookie:NAME or query:NAME"
});
