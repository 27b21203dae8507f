//! Tollgate: a reverse-proxy API gateway.

pub mod config;
pub mod error;
pub mod http;
pub mod router;
pub mod units;
pub mod upstream;
