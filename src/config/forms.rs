//! Short and long forms: options that are written in more than one shape.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::auth::{AuthRule, Place};
use super::route::{Match, RetryOn, Selectors, Split};
use super::server::Workers;
use super::upstream::{Balance, Endpoint};
use crate::units::Setting;

macro_rules! pending {
    ($($t:ident)*) => { $(
        impl<'de> Deserialize<'de> for $t { fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> { todo!() } }
        pending!(@rest $t);
    )* };
    (@rest Endpoint) => { pending!(@schema Endpoint); };
    (@rest $t:ident) => {
        impl Serialize for $t { fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> { todo!() } }
        pending!(@schema $t);
    };
    (@schema $t:ident) => {
        impl JsonSchema for $t {
            fn schema_name() -> std::borrow::Cow<'static, str> { stringify!($t).into() }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema { todo!() }
        }
    };
}
pending!(AuthRule Place Match RetryOn Selectors Split Workers Balance);
impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        todo!()
    }
}
impl JsonSchema for Endpoint {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Endpoint".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        todo!()
    }
}
impl<'de, T: Deserialize<'de>> Deserialize<'de> for Setting<T> {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        todo!()
    }
}
impl<T: JsonSchema> JsonSchema for Setting<T> {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        format!("Setting_{}", T::schema_name()).into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        todo!()
    }
}
