//! JSON Schema and option reference, generated from the configuration's types.

/// The JSON Schema of `gateway.yaml`.
pub fn json_schema() -> serde_json::Value {
    schemars::schema_for!(super::Config).to_value()
}
