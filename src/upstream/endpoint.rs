//! One endpoint of an upstream: its identity, its address, and its live state.

use std::net::SocketAddr;
use std::path::PathBuf;

/// How an endpoint is reached.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// A TCP host and port; the host may be a name that is resolved in the background.
    Tcp {
        /// Host name or IP literal, lower case, without brackets.
        host: String,
        /// Port, always known.
        port: u16,
    },
    /// A Unix socket.
    Unix(PathBuf),
}

/// Placeholder for `SocketAddr` users.
pub type Resolved = Vec<SocketAddr>;

/// See module.
pub struct Endpoint;
