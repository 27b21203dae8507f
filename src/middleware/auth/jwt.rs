//! JSON Web Tokens: every check in the order that decides which failure is reported, and a memory of tokens already verified.
//!
//! The library verifies signatures; the claims are checked here, because it would skip `iss` and `aud` where they are absent
//! and report failures in another order.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use quick_cache::sync::Cache;
use serde_json::{Map, Value};

use super::claims::{self, Forward};
use super::failure::AuthError;
use super::jwks::Jwks;
use super::keys::{KeySet, Verdict};
use super::memo::Owner;
use super::strict_json;
use crate::http::Identity;

/// Verified tokens that are remembered, per authenticator.
const REMEMBERED: usize = 10_000;
/// Longest time one is remembered: a bound on how long a revoked key's tokens still pass.
const REMEMBERED_FOR: Duration = Duration::from_secs(300);

/// SHA-256 of a credential: what caches are keyed by, so that they hold no credentials.
pub(super) type Digest = [u8; 32];

/// SHA-256.
pub(super) fn digest(bytes: &[u8]) -> Digest {
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    // SHA-256 has 32 bytes, so it cannot fail.
    Digest::try_from(hash.as_ref()).unwrap_or_default()
}

/// The time, on both clocks: the monotonic one for what is remembered, the calendar for what tokens say.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    /// Monotonic.
    pub(super) instant: Instant,
    /// Seconds since 1970.
    pub(super) unix: f64,
}

impl Now {
    /// The present.
    pub(super) fn read() -> Self {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        Self { instant: Instant::now(), unix }
    }
}

/// A compiled `jwt` authenticator with its memory.
#[derive(Debug)]
pub(super) struct Jwt {
    pub(super) issuer: String,
    pub(super) audience: Vec<String>,
    pub(super) algorithms: Vec<Algorithm>,
    /// Seconds.
    pub(super) leeway: f64,
    pub(super) forward: Forward,
    pub(super) keys: Keys,
    verified: Cache<Digest, Verified>,
    owner: Owner,
}

/// Where keys come from.
#[derive(Debug)]
pub(super) enum Keys {
    /// From the config or a file: another key is another authenticator.
    Fixed(KeySet),
    /// Fetched, and fetched again.
    Fetched(Arc<Jwks>),
}

/// What a token that was verified says, and how long that holds.
#[derive(Clone, Debug)]
pub(super) struct Verified {
    pub(super) identity: Arc<Identity>,
    pub(super) until: Instant,
    /// Of the keys that verified it.
    pub(super) generation: u64,
}

/// Why a token was not accepted, where more than one answer is possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rejection {
    /// For good.
    Final(AuthError),
    /// The issuer may have a new key.
    UnknownKid,
    /// There are no keys (any more).
    NoKeys,
}

impl Jwt {
    /// An authenticator that has seen no token yet.
    pub(super) fn new(config: &crate::config::auth::Jwt, algorithms: Vec<Algorithm>, forward: Forward, keys: Keys) -> Self {
        Self {
            issuer: config.issuer.clone(),
            audience: config.audience.clone(),
            algorithms,
            leeway: config.leeway.get().as_secs_f64(),
            forward,
            keys,
            verified: Cache::new(REMEMBERED),
            owner: Owner::new(),
        }
    }

    /// What is remembered about a token.
    pub(super) fn remembered(&self, digest: &Digest, now: Instant) -> Option<Arc<Identity>> {
        let generation = self.generation();
        let holds = |verified: &Verified| now < verified.until && verified.generation == generation;
        self.owner.find(digest, holds).or_else(|| Some(self.owner.keep(digest, &self.verified.get(digest).filter(holds)?)))
    }

    /// Changes whenever other keys arrive.
    fn generation(&self) -> u64 {
        match &self.keys {
            Keys::Fixed(_) => 0,
            Keys::Fetched(jwks) => jwks.generation(),
        }
    }

    /// All checks, from the first to the audience; a good token is remembered.
    pub(super) fn verify(&self, token: &str, digest: &Digest, now: &Now) -> Result<Arc<Identity>, Rejection> {
        let parts = Parts::split(token).map_err(Rejection::Final)?;
        let algorithm = self.algorithm(&parts.header).map_err(Rejection::Final)?;
        let generation = self.check_signature(&parts, algorithm, now)?;
        let claims = strict_json::object(&parts.payload).ok_or(Rejection::Final(AuthError::Malformed))?;
        let expires = self.check_claims(&claims, now.unix).map_err(Rejection::Final)?;
        let identity = Arc::new(Identity {
            user: claims.get("sub").and_then(Value::as_str).unwrap_or_default().into(),
            scopes: claims::scopes(&claims),
            forward: self.forward.fields(&claims),
            claims,
        });
        let left = Duration::try_from_secs_f64((expires - now.unix).max(0.0)).unwrap_or(REMEMBERED_FOR).min(REMEMBERED_FOR);
        if !left.is_zero() {
            self.verified.insert(*digest, Verified { identity: identity.clone(), until: now.instant + left, generation });
        }
        Ok(identity)
    }

    fn algorithm(&self, header: &Map<String, Value>) -> Result<Algorithm, AuthError> {
        // RFC 7515, 4.1.11: extensions that are not understood must be refused, and none is.
        if header.contains_key("crit") {
            return Err(AuthError::Malformed);
        }
        let word = header.get("alg").and_then(Value::as_str).ok_or(AuthError::Algorithm)?;
        word.parse().ok().filter(|a| self.algorithms.contains(a)).ok_or(AuthError::Algorithm)
    }

    /// Checks the signature; tells which generation of keys it was checked with.
    fn check_signature(&self, parts: &Parts<'_>, algorithm: Algorithm, now: &Now) -> Result<u64, Rejection> {
        let kid = match parts.header.get("kid") {
            None | Some(Value::Null) => None,
            Some(Value::String(kid)) => Some(kid.as_str()),
            Some(Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
                return Err(Rejection::Final(AuthError::Malformed));
            }
        };
        let check = |keys: &KeySet| keys.verify(kid, algorithm, parts.message.as_bytes(), parts.signature);
        let (verdict, generation) = match &self.keys {
            Keys::Fixed(keys) => (check(keys), 0),
            Keys::Fetched(jwks) => {
                let current = jwks.current(now.instant).ok_or(Rejection::NoKeys)?;
                (check(&current.keys), current.generation)
            }
        };
        match verdict {
            Verdict::Good => Ok(generation),
            Verdict::BadSignature => Err(Rejection::Final(AuthError::Signature)),
            Verdict::NoFittingKey => Err(Rejection::Final(AuthError::Key)),
            Verdict::UnknownKid => Err(Rejection::UnknownKid),
        }
    }

    /// `exp`, `nbf`, `iss`, `aud`. The expiry, in seconds since 1970.
    fn check_claims(&self, claims: &Map<String, Value>, now: f64) -> Result<f64, AuthError> {
        let expires = claims.get("exp").and_then(Value::as_f64).ok_or(AuthError::Expired)?;
        if now >= expires + self.leeway {
            return Err(AuthError::Expired);
        }
        if let Some(from) = claims.get("nbf")
            && from.as_f64().is_none_or(|from| from > now + self.leeway)
        {
            return Err(AuthError::NotYetValid);
        }
        if claims.get("iss").and_then(Value::as_str) != Some(self.issuer.as_str()) {
            return Err(AuthError::Issuer);
        }
        let is_ours = |audience: &Value| audience.as_str().is_some_and(|text| self.audience.iter().any(|own| own == text));
        let fits = match claims.get("aud") {
            Some(Value::Array(list)) => list.iter().any(is_ours),
            Some(one) => is_ours(one),
            None => false,
        };
        if fits { Ok(expires) } else { Err(AuthError::Audience) }
    }
}

/// A token taken apart.
struct Parts<'a> {
    header: Map<String, Value>,
    payload: Vec<u8>,
    /// What is signed.
    message: &'a str,
    signature: &'a str,
}

impl<'a> Parts<'a> {
    fn split(token: &'a str) -> Result<Self, AuthError> {
        let (message, signature) = token.rsplit_once('.').ok_or(AuthError::Malformed)?;
        let (header, payload) = message.split_once('.').filter(|(_, payload)| !payload.contains('.')).ok_or(AuthError::Malformed)?;
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| AuthError::Malformed);
        decode(signature)?;
        let header = strict_json::object(&decode(header)?).ok_or(AuthError::Malformed)?;
        Ok(Self { header, payload: decode(payload)?, message, signature })
    }
}

/// The `iss` a token claims, unverified; `None` if it has not the shape of a JWT.
pub(super) fn unverified_issuer(token: &str) -> Option<String> {
    let parts = Parts::split(token).ok()?;
    let mut claims = strict_json::object(&parts.payload)?;
    match claims.remove("iss") {
        Some(Value::String(issuer)) => Some(issuer),
        Some(Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) | None => Some(String::new()),
    }
}
