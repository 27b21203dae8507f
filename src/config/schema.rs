//! JSON Schema of `gateway.yaml` and the option reference `docs/config.md`, both generated from the config types.
