//! Steps of a route's chain between the client and the target.

pub mod auth;
