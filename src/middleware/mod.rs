//! Steps of a route's chain that stand before and after its target.

pub mod headers;
pub mod rewrite;
//! Steps of a route's chain between the client and the target.

pub mod auth;
