//! The gateway: a configuration applied, and requests handled by it.

pub mod status;
