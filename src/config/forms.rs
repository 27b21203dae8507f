//! Short and long forms: options that are written in more than one shape.
//!
//! Each is a visitor: serde's untagged enums would buffer what they read and lose its place.

mod addresses;
mod routing;
mod setting;

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Visitor};

/// A visitor's shape: which of text, number, list and mapping a form takes, and what each means.
trait Form<'de>: Sized {
    /// What would be right, for messages.
    const EXPECTED: &'static str;
    fn text<E: serde::de::Error>(_: &str) -> Option<Result<Self, E>> {
        None
    }
    fn number<E: serde::de::Error>(_: u64) -> Option<Result<Self, E>> {
        None
    }
    fn list<A: serde::de::SeqAccess<'de>>(_: A) -> Option<Result<Self, A::Error>> {
        None
    }
    fn map<A: serde::de::MapAccess<'de>>(_: A) -> Option<Result<Self, A::Error>> {
        None
    }
}

/// Reads a form from whatever is written.
fn read<'de, F: Form<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<F, D::Error> {
    deserializer.deserialize_any(Any(PhantomData))
}

struct Any<F>(PhantomData<F>);

impl<'de, F: Form<'de>> Visitor<'de> for Any<F> {
    type Value = F;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(F::EXPECTED)
    }
    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<F, E> {
        F::text(text).unwrap_or_else(|| Err(E::invalid_type(serde::de::Unexpected::Str(text), &self)))
    }
    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<F, E> {
        F::number(number).unwrap_or_else(|| Err(E::invalid_type(serde::de::Unexpected::Unsigned(number), &self)))
    }
    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, seq: A) -> Result<F, A::Error> {
        F::list(seq).unwrap_or_else(|| Err(serde::de::Error::invalid_type(serde::de::Unexpected::Seq, &self)))
    }
    fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<F, A::Error> {
        F::map(map).unwrap_or_else(|| Err(serde::de::Error::invalid_type(serde::de::Unexpected::Map, &self)))
    }
}

/// The elements of a list.
fn elements<'de, T: Deserialize<'de>, A: serde::de::SeqAccess<'de>>(seq: A) -> Result<Vec<T>, A::Error> {
    Vec::deserialize(serde::de::value::SeqAccessDeserializer::new(seq))
}

/// A mapping read as `T`.
fn mapping<'de, T: Deserialize<'de>, A: serde::de::MapAccess<'de>>(map: A) -> Result<T, A::Error> {
    T::deserialize(serde::de::value::MapAccessDeserializer::new(map))
}

/// Implements `Deserialize` through [`Form`].
macro_rules! deserialize_form {
    ($($t:ty)*) => { $(
        impl<'de> serde::Deserialize<'de> for $t {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                super::read(deserializer)
            }
        }
    )* };
}
use deserialize_form;

/// Implements `JsonSchema` inline from a `json_schema!` body that may use the generator.
macro_rules! form_schema {
    ($t:ty, $name:literal, |$generator:ident| $schema:tt) => {
        impl schemars::JsonSchema for $t {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> std::borrow::Cow<'static, str> {
                $name.into()
            }
            fn json_schema($generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!($schema)
            }
        }
    };
}
use form_schema;
