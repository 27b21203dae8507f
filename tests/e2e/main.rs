//! Tollgate from outside: each test runs a gateway of its own on free loopback ports, with upstreams and clients that behave as badly as
//! the real ones do.
// A test that fails says so by a panic, wherever the failing line is.
#![allow(clippy::unwrap_used, clippy::panic, clippy::too_many_lines, clippy::large_futures, missing_docs)]

mod support;

mod aggregate;
mod balancing;
mod body_limit;
mod breaker;
mod config_reference;
mod discovery;
mod faults;
mod forwarded;
mod framing;
mod header_rules;
mod health;
mod ip_rules;
mod limits;
mod mirror;
mod normalisation;
mod pools;
mod proxying;
mod retries;
mod rewrite;
mod routing;
mod split;
mod streaming;
mod timeouts;
mod upstream_responses;
