//! `authenticators`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::At;
use crate::units::{Duration, Secret, Setting};

/// One way to tell who a caller is. Exactly one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Authenticator {
    /// Signed tokens.
    pub jwt: Option<Jwt>,
    /// API keys, known by their SHA-256.
    pub api_key: Option<ApiKey>,
    /// OAuth 2 token introspection (RFC 7662).
    pub introspection: Option<Introspection>,
    /// HTTP Basic with a bcrypt htpasswd file.
    pub basic: Option<Basic>,
    /// A client certificate verified by the listener's `client_ca`.
    pub client_cert: Option<ClientCert>,
    /// Where it is written.
    #[serde(skip)]
    pub at: At,
}

/// Where a credential is read: `bearer`, `header:NAME`, `cookie:NAME`, `query:NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// `Authorization: Bearer …`.
    Bearer,
    /// A header's value.
    Header(http::HeaderName),
    /// A cookie's value.
    Cookie(String),
    /// A query parameter's value.
    Query(String),
}

/// JWT verification.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Jwt {
    /// The `iss` that tokens must have.
    pub issuer: String,
    /// One of these must be in `aud`.
    pub audience: Vec<String>,
    /// Signature algorithms accepted: HS*, RS*, PS*, ES*, EdDSA. HS* only with `secret`.
    pub algorithms: Vec<String>,
    /// URL or file of a JWK set. Exactly one of `jwks`, `secret`, `public_key`.
    #[serde(default)]
    pub jwks: Option<String>,
    /// Shared secret for HS*.
    #[serde(default)]
    pub secret: Option<Secret>,
    /// PEM file of the issuer's public key.
    #[serde(default)]
    pub public_key: Option<String>,
    /// Clock difference forgiven in `exp` and `nbf`.
    #[serde(default = "Jwt::default_leeway")]
    pub leeway: Duration,
    /// Where the token is read, tried in order.
    #[serde(default = "Jwt::default_from")]
    pub from: Vec<Place>,
    /// Claims put on the upstream request: claim to header. The same headers from a client are dropped.
    #[serde(default)]
    pub forward: BTreeMap<String, String>,
    /// `true`: the credential itself also goes upstream.
    #[serde(default)]
    pub keep: bool,
}

impl Jwt {
    fn default_leeway() -> Duration {
        Duration::from_secs(30)
    }
    fn default_from() -> Vec<Place> {
        vec![Place::Bearer]
    }
}

/// API keys.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ApiKey {
    /// Where the key is read, tried in order.
    #[serde(default = "ApiKey::default_from")]
    pub from: Vec<Place>,
    /// The keys' hashes; `tollgate key new ID` prints a key and its entry.
    #[serde(default)]
    pub keys: Vec<Key>,
    /// A watched YAML file with the same list.
    #[serde(default)]
    pub keys_file: Option<String>,
    /// `id` put on the upstream request.
    #[serde(default)]
    pub forward: BTreeMap<String, String>,
    /// `true`: the credential itself also goes upstream.
    #[serde(default)]
    pub keep: bool,
}

impl ApiKey {
    fn default_from() -> Vec<Place> {
        vec![Place::Header(http::HeaderName::from_static("x-api-key"))]
    }
}

/// One API key.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// Who holds it; several keys may share an id (rotation).
    pub id: String,
    /// SHA-256 of the key, 64 hex digits.
    pub sha256: Secret,
    /// What it may do.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// Last day it is valid (UTC), as `2027-12-31`.
    #[serde(default)]
    pub expires: Option<String>,
}

/// OAuth 2 token introspection.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Introspection {
    /// The introspection endpoint.
    pub url: String,
    /// The gateway's own client id there.
    pub client_id: String,
    /// And its secret.
    pub client_secret: Secret,
    /// How long a result, negative too, is remembered.
    #[serde(default = "Introspection::default_cache")]
    pub cache: Duration,
    /// Where the token is read, tried in order.
    #[serde(default = "Jwt::default_from")]
    pub from: Vec<Place>,
    /// Members of the answer put on the upstream request.
    #[serde(default)]
    pub forward: BTreeMap<String, String>,
    /// `true`: the credential itself also goes upstream.
    #[serde(default)]
    pub keep: bool,
}

impl Introspection {
    fn default_cache() -> Duration {
        Duration::from_secs(30)
    }
}

/// HTTP Basic.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Basic {
    /// htpasswd file with bcrypt entries; watched.
    pub users_file: String,
    /// Realm in the challenge.
    #[serde(default = "Basic::default_realm")]
    pub realm: String,
    /// `name` put on the upstream request.
    #[serde(default)]
    pub forward: BTreeMap<String, String>,
    /// `true`: the credential itself also goes upstream.
    #[serde(default)]
    pub keep: bool,
}

impl Basic {
    fn default_realm() -> String {
        "tollgate".to_owned()
    }
}

/// A verified client certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ClientCert {
    /// `subject`, `san`, `serial`, `fingerprint` put on the upstream request.
    pub forward: BTreeMap<String, String>,
    /// Accepted for symmetry; a certificate never travels upstream.
    pub keep: bool,
}

/// A route's `auth`: `NAME`, `[NAME, …]`, or the whole rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuthRule {
    /// Authenticators, in order; the first whose credential is present decides.
    pub any: Vec<String>,
    /// Scopes, all needed.
    pub scopes: Vec<String>,
    /// Claims that must hold, each with one of its values; `"*"` is present and not empty.
    pub claims: BTreeMap<String, Vec<String>>,
    /// `true` lets a request without any credential pass as nobody; a bad one is still 401.
    pub optional: bool,
}

/// `auth` as written, or `off`.
pub type Auth = Setting<AuthRule>;
