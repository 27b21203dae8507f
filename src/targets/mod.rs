//! What answers a route's requests.

pub mod aggregate;
pub mod mirror;
pub mod redirect;
pub mod respond;
pub mod split;
