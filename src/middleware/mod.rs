//! The steps of a route's chain around its target.

pub mod auth;
pub mod headers;
pub mod rewrite;
