//! The server side: listeners, connections, and what comes before HTTP on them.

pub mod io;
pub mod proxy_protocol;
