//! Upstreams: which endpoint gets an attempt, and the state that decides it.

pub mod endpoint;
mod flow;
mod frames;
pub mod pool;
pub mod tunnel;

pub use endpoint::{Address, Endpoint};
