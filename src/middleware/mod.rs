//! The steps of a route's chain around its target.

pub mod auth;
pub mod headers;
pub mod rewrite;
//! The steps of a route's chain before its target: who may call, how much, from where.

pub mod cors;
pub mod ip_rules;
pub mod rate_limit;
