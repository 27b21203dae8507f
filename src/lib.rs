//! Tollgate: a reverse-proxy API gateway.

pub mod balance;
pub mod config;
pub mod discovery;
pub mod error;
pub mod health;
pub mod http;
pub mod units;
pub mod upstream;
