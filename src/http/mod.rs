//! What HTTP itself asks of a proxy: bodies, header fields, client address, target normalisation, templates, problem answers.

pub mod body;
pub mod client_addr;
pub mod clock;
pub mod connection;
pub mod copied;
pub mod exchange;
pub mod fetch;
pub mod grpc;
pub mod grpc_web;
pub mod h1;
pub mod headers;
pub mod incoming;
pub mod problem;
pub mod selector;
pub mod socket;
pub mod target;
pub mod template;
pub mod text;
pub mod upgrade;
pub mod watched;
pub mod websocket;

pub use exchange::{Connection, Exchange, Host, Identity, Params, Scheme};
