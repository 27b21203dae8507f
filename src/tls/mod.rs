//! TLS to clients and to upstreams, on rustls with aws-lc-rs.
//!
//! [`ServerTls`] is one listener's side, [`ClientTls`] one upstream's; both are compiled at load from files that are read then and only then.
//! A changed file is a reload: the whole `rustls` configuration is built anew and swapped for new handshakes, open connections keep theirs.

pub mod certs;
pub mod client;
pub mod resolver;
pub mod server;
#[cfg(test)]
mod testing;
pub mod x509;

use std::sync::{Arc, LazyLock};

use rustls::crypto::CryptoProvider;
use rustls::{CommonState, ProtocolVersion};

use crate::config::{At, Problems};

pub use client::ClientTls;
pub use server::{CertificateInfo, ServerTls, client_certificate};

/// The one crypto provider, given to every builder: with two providers in the dependency graph rustls' process default is ambiguous.
static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));

/// The negotiated version as the access log writes it: `TLSv1.3`; `None` before the handshake is done.
pub fn tls_version_word(connection: &CommonState) -> Option<&'static str> {
    match connection.protocol_version()? {
        ProtocolVersion::TLSv1_3 => Some("TLSv1.3"),
        ProtocolVersion::TLSv1_2 => Some("TLSv1.2"),
        _ => None,
    }
}

/// A protocol chosen by ALPN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alpn {
    /// `h2`.
    H2,
    /// `http/1.1`, or nothing negotiated.
    Http1,
}

/// What ALPN chose on an established connection, of either side.
pub fn negotiated(connection: &CommonState) -> Alpn {
    if connection.alpn_protocol() == Some(b"h2") { Alpn::H2 } else { Alpn::Http1 }
}

/// The value, or `None` with an error at `at`.
fn or_report<T, E: std::fmt::Display>(result: Result<T, E>, at: &At, words: &str, problems: &mut Problems) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            problems.error(at.clone(), format!("{words}: {error}"));
            None
        }
    }
}
