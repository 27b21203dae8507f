//! Upstreams: which endpoint gets an attempt, and the state that decides it.

pub mod endpoint;
pub mod pool;

pub use endpoint::{Address, Endpoint};
