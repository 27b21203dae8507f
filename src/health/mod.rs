//! Whether an endpoint can be used: active checks, ejection by live traffic, and the breaker of a whole upstream.

pub mod active;
pub mod breaker;
pub mod outlier;
pub mod probe;
pub mod window;
