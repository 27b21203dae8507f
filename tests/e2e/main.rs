//! Tollgate from outside: each test runs a gateway of its own on free loopback ports, with upstreams and clients that behave as badly as
//! the real ones do.
// A test that fails says so by a panic, wherever the failing line is.
#![allow(clippy::unwrap_used, clippy::panic, clippy::too_many_lines, clippy::large_futures, missing_docs)]

mod support;

mod accept;
mod access_log;
mod admin;
mod aggregate;
mod allocations;
mod auth;
mod balancing;
mod body_limit;
mod breaker;
mod browser;
mod chain;
mod config_problems;
mod config_reference;
mod cors;
mod credentials;
mod discovery;
mod docs;
mod drain;
mod errors;
mod examples;
mod faults;
mod floods;
mod forwarded;
mod framing;
mod grpc;
mod header_rules;
mod health;
mod http2;
mod ip_rules;
mod keep_alive;
mod limits;
mod metrics;
mod mirror;
mod normalisation;
mod outside;
mod panics;
mod pools;
mod profile;
mod proxy_protocol;
mod proxying;
mod rate_limit;
mod reload;
mod retries;
mod rewrite;
mod routing;
mod split;
mod sse;
mod streaming;
mod tidy;
mod timeouts;
mod tls;
mod tokens;
mod upstream_responses;
mod websocket;
