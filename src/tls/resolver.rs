//! Which certificate a handshake gets: exact name, then wildcard name, then the first one listed.

use std::collections::HashMap;
use std::sync::Arc;

use rustls::SignatureScheme;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::certs::Pair;

/// Certificates by the names written in them.
#[derive(Debug)]
pub struct Resolver {
    /// Lower-case names; several certificates of one name differ in their key's kind.
    exact: HashMap<Box<str>, Vec<Arc<CertifiedKey>>>,
    /// `example.org` for `*.example.org`.
    wildcard: HashMap<Box<str>, Vec<Arc<CertifiedKey>>>,
    /// The first one listed first.
    all: Vec<Arc<CertifiedKey>>,
}

impl Resolver {
    /// A resolver over `pairs`, in written order.
    pub fn new<'a>(pairs: impl IntoIterator<Item = &'a Pair>) -> Self {
        let mut this = Self { exact: HashMap::new(), wildcard: HashMap::new(), all: Vec::new() };
        for pair in pairs {
            for name in names(pair) {
                let (map, name) = match name.strip_prefix("*.") {
                    Some(parent) => (&mut this.wildcard, parent),
                    None => (&mut this.exact, &*name),
                };
                map.entry(name.into()).or_default().push(Arc::clone(&pair.key));
            }
            this.all.push(Arc::clone(&pair.key));
        }
        this
    }

    /// The certificate for a server name (lower case) and what the client can verify.
    pub fn choose(&self, name: Option<&str>, schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let name = name.map(|name| name.strip_suffix('.').unwrap_or(name));
        let exact = name.and_then(|name| self.exact.get(name));
        let wildcard = || name.and_then(|name| name.split_once('.')).and_then(|(_, parent)| self.wildcard.get(parent));
        let named = exact.or_else(wildcard);
        match named {
            Some(keys) => fitting(keys, schemes),
            None => self.all.first().cloned(),
        }
    }
}

/// The first whose key can make a signature that the client verifies; else the first, whose handshake then fails with the right alert.
fn fitting(keys: &[Arc<CertifiedKey>], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
    keys.iter().find(|key| key.key.choose_scheme(schemes).is_some()).or_else(|| keys.first()).cloned()
}

/// DNS names of the certificate in lower case; the common name only if there are none (RFC 6125, 6.4.4).
fn names(pair: &Pair) -> Vec<String> {
    let summary = &pair.summary;
    let written: Vec<&String> =
        if summary.dns_names.is_empty() { summary.common_name.iter().collect() } else { summary.dns_names.iter().collect() };
    written.into_iter().map(|name| name.trim_end_matches('.').to_ascii_lowercase()).collect()
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.choose(hello.server_name(), hello.signature_schemes())
    }
}
