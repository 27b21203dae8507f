//! Client certificates: verified by the listener, turned into an identity here.

use std::sync::Arc;

use quick_cache::sync::Cache;
use serde_json::{Map, Value};

use super::claims::Forward;
use crate::http::Identity;
use crate::http::exchange::ClientCertificate;

/// Certificates whose identity is remembered.
const REMEMBERED: usize = 10_000;

/// What `forward` may name.
pub(super) const CLAIMS: [&str; 4] = ["subject", "san", "serial", "fingerprint"];

/// A compiled `client_cert` authenticator.
#[derive(Debug)]
pub(super) struct ClientCert {
    pub(super) forward: Forward,
    /// By fingerprint.
    identities: Cache<String, Arc<Identity>>,
}

impl ClientCert {
    /// An authenticator that has seen no certificate yet.
    pub(super) fn new(forward: Forward) -> Self {
        Self { forward, identities: Cache::new(REMEMBERED) }
    }

    /// Who holds a verified certificate: its first SAN, else its subject.
    pub(super) fn identity(&self, certificate: &ClientCertificate) -> Arc<Identity> {
        if let Some(known) = self.identities.get(certificate.fingerprint.as_str()) {
            return known;
        }
        let claims: Map<String, Value> = Map::from_iter([
            ("subject".to_owned(), certificate.subject.clone().into()),
            ("san".to_owned(), certificate.san.clone().into()),
            ("serial".to_owned(), certificate.serial.clone().into()),
            ("fingerprint".to_owned(), certificate.fingerprint.clone().into()),
        ]);
        let user = certificate.san.first().unwrap_or(&certificate.subject).as_str().into();
        let identity = Arc::new(Identity { user, scopes: Vec::new(), forward: self.forward.fields(&claims), claims });
        self.identities.insert(certificate.fingerprint.clone(), identity.clone());
        identity
    }
}
