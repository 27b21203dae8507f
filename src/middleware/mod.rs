//! The steps of a route's chain around its target.

pub mod auth;
pub mod cors;
pub mod headers;
pub mod ip_rules;
pub mod rate_limit;
pub mod rewrite;
