//! Tollgate: a reverse-proxy API gateway.

pub mod admin;
pub mod balance;
pub mod config;
pub mod demo;
pub mod discovery;
pub mod error;
pub mod gateway;
pub mod health;
pub mod http;
pub mod kept;
pub mod middleware;
pub mod random;
pub mod reactor;
pub mod router;
pub mod server;
pub mod targets;
pub mod telemetry;
pub mod tls;
pub mod units;
pub mod upstream;

/// The commit this program was built from, as far as `build.rs` knows it.
pub const COMMIT: &str = match option_env!("TOLLGATE_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};
