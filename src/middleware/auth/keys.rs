//! Keys that verify signatures: from a secret, from a PEM file, from a JWK set. Each knows the algorithms it may be used with,
//! so the token's `alg` can never choose how a key is read.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey};
use serde_json::Value;

/// One key and what it may verify.
#[derive(Debug)]
pub(super) struct Key {
    kid: Option<String>,
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

/// Keys of one issuer.
#[derive(Debug, Default)]
pub(super) struct KeySet {
    keys: Vec<Key>,
    /// A single configured key: a token's `kid` means nothing.
    single: bool,
}

/// Whether keys for a token were found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The signature fits one of them.
    Good,
    /// It fits none.
    BadSignature,
    /// The named key exists, but not for this algorithm; or there is no name and nothing fits.
    NoFittingKey,
    /// No key has this `kid`.
    UnknownKid,
}

impl KeySet {
    /// The shared secret of HS* tokens.
    pub(super) fn secret(secret: &[u8], algorithms: &[Algorithm]) -> Self {
        Self { keys: vec![Key { kid: None, algorithms: algorithms.to_vec(), key: DecodingKey::from_secret(secret) }], single: true }
    }

    /// The public key in a PEM file. The error says what is wrong with it, or which algorithms do not fit.
    pub(super) fn pem(pem: &[u8], algorithms: &[Algorithm]) -> Result<Self, String> {
        let (key, fits) = read_pem(pem)?;
        if let Some(other) = algorithms.iter().find(|a| !fits.contains(a)) {
            let words: Vec<String> = fits.iter().map(|a| format!("{a:?}")).collect();
            return Err(format!("the key does not fit {other:?}: it is for {}", words.join(", ")));
        }
        Ok(Self { keys: vec![Key { kid: None, algorithms: algorithms.to_vec(), key }], single: true })
    }

    /// The keys of a JWK set that can verify one of `algorithms`. Others (symmetric, for encryption, of unknown types) are ignored.
    pub(super) fn jwks(bytes: &[u8], algorithms: &[Algorithm]) -> Result<Self, String> {
        let value: Value = serde_json::from_slice(bytes).map_err(|_| "not JSON".to_owned())?;
        let list = value.get("keys").and_then(Value::as_array).ok_or("not a JWK set: no list `keys`")?;
        Ok(Self { keys: list.iter().filter_map(|jwk| read_jwk(jwk, algorithms)).collect(), single: false })
    }

    /// How many keys are usable.
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// Checks `signature` (base64url) over `message`, with the key named `kid`, or without a name with every fitting one.
    pub(super) fn verify(&self, kid: Option<&str>, algorithm: Algorithm, message: &[u8], signature: &str) -> Verdict {
        let kid = kid.filter(|_| !self.single);
        let mut named = self.keys.iter().filter(|key| kid.is_none() || key.kid.as_deref() == kid).peekable();
        if named.peek().is_none() && kid.is_some() {
            return Verdict::UnknownKid;
        }
        let mut verdict = Verdict::NoFittingKey;
        for key in named.filter(|key| key.algorithms.contains(&algorithm)) {
            if jsonwebtoken::crypto::verify(signature, message, &key.key, algorithm).unwrap_or(false) {
                return Verdict::Good;
            }
            verdict = Verdict::BadSignature;
        }
        verdict
    }
}

const P256: [Algorithm; 1] = [Algorithm::ES256];
const P384: [Algorithm; 1] = [Algorithm::ES384];

fn read_pem(pem: &[u8]) -> Result<(DecodingKey, &'static [Algorithm]), String> {
    let text = String::from_utf8_lossy(pem);
    // The library would also take the key out of these; a private key has no business on a gateway.
    if text.contains("PRIVATE KEY-----") {
        return Err("this is a private key: write the issuer's public key".to_owned());
    }
    if !text.contains("-----BEGIN PUBLIC KEY-----") && !text.contains("-----BEGIN RSA PUBLIC KEY-----") {
        return Err("no `PUBLIC KEY` in PEM form found".to_owned());
    }
    if let Ok(key) = DecodingKey::from_ed_pem(pem) {
        return Ok((key, &[Algorithm::EdDSA]));
    }
    if let Ok(key) = DecodingKey::from_ec_pem(pem) {
        // An uncompressed point: one byte and two coordinates.
        return match key.try_get_as_bytes().map(<[u8]>::len).unwrap_or_default() {
            65 => Ok((key, &P256)),
            97 => Ok((key, &P384)),
            _ => Err("only the curves P-256 and P-384 are supported".to_owned()),
        };
    }
    // Last, because the library takes any PEM with a bit string for an RSA key in PKCS#1 form.
    match DecodingKey::from_rsa_pem(pem) {
        Ok(key) => Ok((key, RSA)),
        Err(_) => Err("not a public key of the kinds RSA, EC and Ed25519".to_owned()),
    }
}

const RSA: &[Algorithm] = &[Algorithm::RS256, Algorithm::RS384, Algorithm::RS512, Algorithm::PS256, Algorithm::PS384, Algorithm::PS512];

fn read_jwk(jwk: &Value, allowed: &[Algorithm]) -> Option<Key> {
    let text = |name: &str| jwk.get(name).and_then(Value::as_str);
    if jwk.get("use").is_some_and(|usage| usage == "enc") {
        return None;
    }
    if let Some(operations) = jwk.get("key_ops").and_then(Value::as_array)
        && !operations.iter().any(|operation| operation == "verify")
    {
        return None;
    }
    let (fits, key): (&[Algorithm], _) = match (text("kty")?, text("crv")) {
        ("RSA", _) => (RSA, DecodingKey::from_rsa_components(text("n")?, text("e")?)),
        ("EC", Some("P-256")) => (&P256, coordinates(text("x")?, text("y")?, 32)?),
        ("EC", Some("P-384")) => (&P384, coordinates(text("x")?, text("y")?, 48)?),
        ("OKP", Some("Ed25519")) => (&[Algorithm::EdDSA], DecodingKey::from_ed_components(text("x")?)),
        _ => return None,
    };
    let own = match jwk.get("alg") {
        None | Some(Value::Null) => None,
        Some(Value::String(alg)) if alg == "Ed25519" => Some(Algorithm::EdDSA),
        Some(Value::String(alg)) => Some(alg.parse::<Algorithm>().ok()?),
        Some(Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => return None,
    };
    let algorithms: Vec<Algorithm> = fits.iter().copied().filter(|a| allowed.contains(a) && own.is_none_or(|own| own == *a)).collect();
    let key = key.ok().filter(|_| !algorithms.is_empty())?;
    Some(Key { kid: text("kid").map(str::to_owned), algorithms, key })
}

/// An EC key, if both coordinates have the curve's length.
fn coordinates(x: &str, y: &str, length: usize) -> Option<jsonwebtoken::errors::Result<DecodingKey>> {
    let fits = |part: &str| URL_SAFE_NO_PAD.decode(part).is_ok_and(|bytes| bytes.len() == length);
    (fits(x) && fits(y)).then(|| DecodingKey::from_ec_components(x, y))
}

/// An algorithm from the config; the error says why it cannot be used.
pub(super) fn algorithm(word: &str) -> Result<Algorithm, String> {
    match word {
        "none" | "None" | "NONE" => Err("`none` is no signature and never accepted".to_owned()),
        "ES512" | "ES256K" | "Ed448" => Err(format!("{word} cannot be verified by this build")),
        _ => word.parse().map_err(|_| format!("`{word}` is not a signature algorithm")),
    }
}

/// Whether an algorithm needs a shared secret.
pub(super) fn is_symmetric(algorithm: Algorithm) -> bool {
    algorithm.family() == AlgorithmFamily::Hmac
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::EncodingKey;
    use jsonwebtoken::jwk::Jwk;
    use rcgen::KeyPair;
    use serde_json::json;

    use super::*;

    /// A key of each family, with an algorithm of it.
    fn signers() -> Vec<(Algorithm, KeyPair, EncodingKey)> {
        let rsa = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
        let p256 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let ed = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let from_rsa = EncodingKey::from_rsa_pem(rsa.serialize_pem().as_bytes()).unwrap();
        let from_p256 = EncodingKey::from_ec_pem(p256.serialize_pem().as_bytes()).unwrap();
        let from_p384 = EncodingKey::from_ec_pem(p384.serialize_pem().as_bytes()).unwrap();
        let from_ed = EncodingKey::from_ed_pem(ed.serialize_pem().as_bytes()).unwrap();
        vec![
            (Algorithm::RS256, rsa, from_rsa),
            (Algorithm::ES256, p256, from_p256),
            (Algorithm::ES384, p384, from_p384),
            (Algorithm::EdDSA, ed, from_ed),
        ]
    }

    #[test]
    fn every_family_is_read_from_pem_and_from_a_jwk() {
        let signers = signers();
        let all: Vec<Algorithm> = signers.iter().map(|(algorithm, ..)| *algorithm).collect();
        for (algorithm, pair, signer) in &signers {
            let signature = jsonwebtoken::crypto::sign(b"message", signer, *algorithm).unwrap();
            let pem = KeySet::pem(pair.public_key_pem().as_bytes(), &[*algorithm]).unwrap();
            assert_eq!(pem.verify(Some("any"), *algorithm, b"message", &signature), Verdict::Good, "{algorithm:?}");
            assert_eq!(pem.verify(None, *algorithm, b"massage", &signature), Verdict::BadSignature, "{algorithm:?}");
            assert!(KeySet::pem(pair.serialize_pem().as_bytes(), &[*algorithm]).is_err());

            let mut jwk = if *algorithm == Algorithm::EdDSA {
                json!({ "kty": "OKP", "crv": "Ed25519", "x": URL_SAFE_NO_PAD.encode(pair.public_key_raw()) })
            } else {
                serde_json::to_value(Jwk::from_encoding_key(signer, *algorithm).unwrap()).unwrap()
            };
            jwk["kid"] = json!("k");
            let read = |jwk: &Value| KeySet::jwks(json!({ "keys": [jwk] }).to_string().as_bytes(), &all).unwrap();
            let keys = read(&jwk);
            assert_eq!(keys.verify(Some("k"), *algorithm, b"message", &signature), Verdict::Good, "{algorithm:?}");
            assert_eq!(keys.verify(None, *algorithm, b"message", &signature), Verdict::Good, "{algorithm:?}");
            assert_eq!(keys.verify(Some("x"), *algorithm, b"message", &signature), Verdict::UnknownKid);
            for other in all.iter().filter(|other| *other != algorithm) {
                assert_eq!(keys.verify(Some("k"), *other, b"message", &signature), Verdict::NoFittingKey, "{other:?}");
            }
            for (member, value) in
                [("use", json!("enc")), ("alg", json!("PS512")), ("alg", json!("HS256")), ("key_ops", json!(["encrypt"]))]
            {
                let mut changed = jwk.clone();
                changed[member] = value;
                assert_eq!(read(&changed).len(), 0, "{changed}");
            }
        }
    }
}
