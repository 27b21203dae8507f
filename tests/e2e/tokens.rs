//! Tokens and keys for tests of authentication.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};

pub const ISSUER: &str = "https://id.test";
pub const SECRET: &str = "0123456789abcdef-hs256-secret-for-tests";

/// Claims that are in order.
pub fn claims() -> Value {
    json!({ "iss": ISSUER, "aud": "api", "sub": "ann", "exp": now() + 600, "scope": "orders:read", "role": "admin" })
}
/// Claims of another subject.
pub fn claims_of(sub: &str) -> Value {
    with(claims(), json!({ "sub": sub }))
}
/// Claims with some replaced; `null` takes one away.
pub fn with(mut claims: Value, other: Value) -> Value {
    let all = claims.as_object_mut().unwrap();
    let Value::Object(other) = other else { panic!("not an object: {other}") };
    for (name, value) in other {
        if value.is_null() {
            all.remove(&name);
        } else {
            all.insert(name, value);
        }
    }
    claims
}
pub fn now() -> u64 {
    jsonwebtoken::get_current_timestamp()
}

/// An HS256 token.
pub fn hs256(claims: &Value) -> String {
    encode(&Header::new(Algorithm::HS256), claims, &EncodingKey::from_secret(SECRET.as_bytes())).unwrap()
}
/// A token of these very texts, signed as HS256 with `secret` whatever the header says.
pub fn raw(header: &str, payload: &str, secret: &[u8]) -> String {
    let message = format!("{}.{}", b64(header), b64(payload));
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &EncodingKey::from_secret(secret), Algorithm::HS256).unwrap();
    format!("{message}.{signature}")
}
pub fn b64(text: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(text)
}
pub fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}
pub fn basic(name: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{name}:{password}")))
}
/// SHA-256 as it is written in `keys`.
pub fn sha256(text: &str) -> String {
    aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes()).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A key pair of an issuer.
pub struct Key {
    pub kid: String,
    algorithm: Algorithm,
    private: EncodingKey,
    /// The public key as it stands in a JWK set.
    pub jwk: Value,
    /// The public key in PEM.
    pub pem: String,
}

impl Key {
    /// ES256.
    pub fn ec(kid: &str) -> Self {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let point = pair.public_key_raw();
        let jwk = json!({ "kty": "EC", "crv": "P-256", "kid": kid, "x": b64(&point[1..33]), "y": b64(&point[33..65]) });
        let private = EncodingKey::from_ec_der(&pair.serialize_der());
        Self { kid: kid.into(), algorithm: Algorithm::ES256, private, jwk, pem: pair.public_key_pem() }
    }
    /// `EdDSA`.
    pub fn ed(kid: &str) -> Self {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let jwk = json!({ "kty": "OKP", "crv": "Ed25519", "kid": kid, "x": b64(pair.public_key_raw()) });
        let private = EncodingKey::from_ed_der(&pair.serialize_der());
        Self { kid: kid.into(), algorithm: Algorithm::EdDSA, private, jwk, pem: pair.public_key_pem() }
    }
    /// RS256 and PS256.
    pub fn rsa(kid: &str, algorithm: Algorithm) -> Self {
        use aws_lc_rs::encoding::AsDer;
        use aws_lc_rs::signature::KeyPair as _;
        let pair = aws_lc_rs::rsa::KeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
        let public = pair.public_key();
        let (n, e) = (public.modulus().big_endian_without_leading_zero(), public.exponent().big_endian_without_leading_zero());
        let jwk = json!({ "kty": "RSA", "kid": kid, "n": b64(n), "e": b64(e) });
        let spki: aws_lc_rs::encoding::PublicKeyX509Der<'_> = public.as_der().unwrap();
        let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(spki.as_ref()));
        let der: aws_lc_rs::encoding::Pkcs8V1Der<'_> = pair.as_der().unwrap();
        // The library wants the RSA key inside of PKCS#8 as PEM.
        let private = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", STANDARD.encode(der.as_ref()));
        Self { kid: kid.into(), algorithm, private: EncodingKey::from_rsa_pem(private.as_bytes()).unwrap(), jwk, pem }
    }
    pub fn sign(&self, claims: &Value) -> String {
        let header = Header { kid: Some(self.kid.clone()), ..Header::new(self.algorithm) };
        encode(&header, claims, &self.private).unwrap()
    }
}

/// A JWK set.
pub fn jwks(keys: &[&Key]) -> String {
    json!({ "keys": keys.iter().map(|key| key.jwk.clone()).collect::<Vec<_>>() }).to_string()
}
