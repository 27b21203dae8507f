//! JSON Web Tokens: every way to be wrong, with the word that is logged; and blocks that must not load.

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rcgen::KeyPair;
use serde_json::{Value, json};

use super::support::*;
use crate::config::auth::{Authenticator, Jwt, Place};
use crate::units::Secret;

fn with(change: impl Fn(&mut Value)) -> String {
    let mut value = claims();
    change(&mut value);
    sign(&value, SECRET)
}

#[tokio::test]
async fn the_first_failing_check_decides() {
    let chain = single(jwt_block(jwt()));
    let plain = claims().to_string();
    let hs = r#"{"alg":"HS256"}"#;
    let good = sign(&claims(), SECRET);
    let unsigned = |alg: &str| sign_raw(&format!(r#"{{"alg":"{alg}"}}"#), &plain);
    let cases = [
        (good.clone(), "ann"),
        (with(|c| c["aud"] = json!(["x", "api"])), "ann"),
        (with(|c| c["exp"] = json!(now() - 10)), "ann"),
        (with(|c| c["exp"] = json!(now() as f64 + 100.5)), "ann"),
        (with(|c| c["nbf"] = json!(now() + 10)), "ann"),
        ("x".into(), "401 malformed"),
        ("a.b".into(), "401 malformed"),
        (format!("{good}.x"), "401 malformed"),
        (format!("{good}="), "401 malformed"),
        (format!("{good}!"), "401 malformed"),
        (good.replace('.', ".."), "401 malformed"),
        (sign_raw("[]", &plain), "401 malformed"),
        (sign_raw(r#"{"alg":"HS256","alg":"HS256"}"#, &plain), "401 malformed"),
        (sign_raw(r#"{"alg":"HS256","crit":["x"],"x":1}"#, &plain), "401 malformed"),
        (sign_raw(r#"{"alg":"HS256","crit":[]}"#, &plain), "401 malformed"),
        (unsigned("none"), "401 algorithm"),
        (unsigned("None"), "401 algorithm"),
        (unsigned("nOnE"), "401 algorithm"),
        (unsigned(""), "401 algorithm"),
        (unsigned("RS256"), "401 algorithm"),
        (unsigned("HS384"), "401 algorithm"),
        (sign_raw("{}", &plain), "401 algorithm"),
        (sign(&claims(), "another secret of another issuer"), "401 signature"),
        (good.rsplit_once('.').unwrap().0.to_owned() + ".", "401 signature"),
        (sign_raw(hs, "not json"), "401 malformed"),
        (sign_raw(hs, &plain.replacen('{', r#"{"sub":"eve","#, 1)), "401 malformed"),
        (sign_raw(hs, &plain.replacen('{', r#"{"x":1e999,"#, 1)), "401 malformed"),
        (with(|c| drop(c.as_object_mut().unwrap().remove("exp"))), "401 expired"),
        (with(|c| c["exp"] = json!(now() - 40)), "401 expired"),
        (with(|c| c["exp"] = json!((now() + 600).to_string())), "401 expired"),
        (with(|c| c["exp"] = json!(null)), "401 expired"),
        (with(|c| c["nbf"] = json!(now() + 60)), "401 not_yet_valid"),
        (with(|c| c["nbf"] = json!("0")), "401 not_yet_valid"),
        (with(|c| c["iss"] = json!("https://id.test/")), "401 issuer"),
        (with(|c| c["iss"] = json!([ISSUER])), "401 issuer"),
        (with(|c| drop(c.as_object_mut().unwrap().remove("iss"))), "401 issuer"),
        (with(|c| c["aud"] = json!("apis")), "401 audience"),
        (with(|c| c["aud"] = json!([])), "401 audience"),
        (with(|c| drop(c.as_object_mut().unwrap().remove("aud"))), "401 audience"),
        (with(|c| (c["aud"], c["exp"]) = (json!("x"), json!(1))), "401 expired"),
    ];
    for (token, expected) in cases {
        let asked = bearer(&chain, &token).await;
        assert_eq!(asked.summary(), expected, "{token}");
        if let Err(refusal) = &asked.result {
            assert_eq!(asked.challenges(), [r#"Bearer realm="tollgate", error="invalid_token""#]);
            let detail = if expected == "401 expired" { "The credential is expired." } else { "The credential is invalid." };
            assert_eq!(refusal.detail, detail, "{token}");
            assert!(token.len() < 10 || !format!("{refusal:?}").contains(&token));
        }
    }
}

#[tokio::test]
async fn a_trailing_bit_in_base64_is_not_overlooked() {
    let chain = single(jwt_block(jwt()));
    let good = sign(&claims(), SECRET);
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let last = alphabet.find(good.chars().last().unwrap()).unwrap();
    // 32 bytes end in a character of which two bits are unused.
    let other = format!("{}{}", &good[..good.len() - 1], &alphabet[last + 1..last + 2]);
    assert_eq!(bearer(&chain, &good).await.summary(), "ann");
    assert_eq!(bearer(&chain, &other).await.summary(), "401 malformed");
}

#[tokio::test]
async fn nothing_in_a_token_chooses_how_a_key_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let path = dir.path().join("public.pem");
    std::fs::write(&path, pair.public_key_pem()).unwrap();
    let es = Jwt { secret: None, public_key: Some(path.display().to_string()), algorithms: vec!["ES256".into()], ..jwt() };
    let chain = single(jwt_block(es));
    let signed = |header: Header| encode(&header, &claims(), &EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).unwrap()).unwrap();
    let mut header = Header::new(Algorithm::ES256);
    for kid in ["../../dev/null", "' OR 1=1", &"k".repeat(10_000)] {
        header.kid = Some(kid.to_owned());
        header.jku = Some("http://127.0.0.1:1/jwks".into());
        header.x5u = Some("http://127.0.0.1:1/x5u".into());
        assert_eq!(bearer(&chain, &signed(header.clone())).await.summary(), "ann");
    }
    let confused = sign(&claims(), &pair.public_key_pem());
    assert_eq!(bearer(&chain, &confused).await.summary(), "401 algorithm");
    let other = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let mut embedded = Header::new(Algorithm::ES256);
    let other_key = EncodingKey::from_ec_pem(other.serialize_pem().as_bytes()).unwrap();
    embedded.jwk = Some(jsonwebtoken::jwk::Jwk::from_encoding_key(&other_key, Algorithm::ES256).unwrap());
    let token = encode(&embedded, &claims(), &other_key).unwrap();
    assert_eq!(bearer(&chain, &token).await.summary(), "401 signature");
}

#[tokio::test]
async fn a_token_that_was_verified_is_remembered_only_until_it_expires() {
    let authenticators = good(&[("a", jwt_block(jwt()))]);
    let chain = chain(&authenticators, &rule(&["a"]));
    let identity = async |token: &str| bearer(&chain, token).await.exchange.identity.unwrap();
    let token = sign(&claims(), SECRET);
    let first = identity(&token).await;
    // This thread's copy of it, made once.
    let (again, later) = (identity(&token).await, identity(&token).await);
    assert!(std::sync::Arc::ptr_eq(&again, &later) && first.claims == again.claims);
    assert_eq!(&*identity(&with(|c| c["sub"] = json!("bob"))).await.user, "bob");
    assert!(std::sync::Arc::ptr_eq(&again, &identity(&token).await));
    // Inside the leeway it is good, and not remembered: it is verified each time.
    let old = with(|c| c["exp"] = json!(now() - 5));
    let each = [identity(&old).await, identity(&old).await, identity(&old).await];
    assert!(!std::sync::Arc::ptr_eq(&each[0], &each[1]) && !std::sync::Arc::ptr_eq(&each[1], &each[2]));
}

#[test]
fn blocks_that_cannot_be_safe_do_not_load() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        Some(path.display().to_string())
    };
    let p256 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let algorithms = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
    let pem = |file: Option<String>, words: &[&str]| Jwt { secret: None, public_key: file, algorithms: algorithms(words), ..jwt() };
    let cases: Vec<(Jwt, &str)> = vec![
        (Jwt { algorithms: algorithms(&["none"]), ..jwt() }, "never accepted"),
        (Jwt { algorithms: algorithms(&["ES512"]), ..jwt() }, "ES512 cannot be verified by this build"),
        (Jwt { algorithms: algorithms(&["hs256"]), ..jwt() }, "is not a signature algorithm"),
        (Jwt { algorithms: vec![], ..jwt() }, "no algorithm"),
        (Jwt { algorithms: algorithms(&["HS256", "RS256"]), ..jwt() }, "cannot be verified with `secret`"),
        (Jwt { secret: None, jwks: Some("https://id.test/jwks".into()), ..jwt() }, "without `secret`"),
        (Jwt { secret: None, ..jwt() }, "exactly one of"),
        (Jwt { jwks: Some("https://id.test/jwks".into()), ..jwt() }, "exactly one of"),
        (Jwt { secret: Some(Secret::new("")), ..jwt() }, "empty"),
        (Jwt { issuer: String::new(), ..jwt() }, "`issuer` is empty"),
        (Jwt { audience: vec![], ..jwt() }, "`audience` is empty"),
        (Jwt { from: vec![], ..jwt() }, "no place"),
        (Jwt { from: vec![Place::Bearer, Place::Bearer], ..jwt() }, "listed twice"),
        (Jwt { secret: None, jwks: Some("https:///x".into()), algorithms: algorithms(&["RS256"]), ..jwt() }, "not a http or https URL"),
        (pem(file("a", &p256.public_key_pem()), &["RS256"]), "does not fit RS256"),
        (pem(file("b", &p384.public_key_pem()), &["ES256"]), "does not fit ES256"),
        (pem(file("c", &p256.public_key_pem()), &["ES256", "EdDSA"]), "does not fit EdDSA"),
        (pem(file("d", &p256.serialize_pem()), &["ES256"]), "private key"),
        (pem(file("e", "hello"), &["ES256"]), "no `PUBLIC KEY`"),
        (pem(Some(dir.path().join("absent").display().to_string()), &["ES256"]), "cannot read"),
    ];
    for (block, expected) in cases {
        let (_, problems) = compile(&[("a", jwt_block(block))], &crate::middleware::auth::Registry::default());
        assert!(problems.has_errors(), "{expected}");
        assert!(problems.list().iter().any(|p| p.message.contains(expected)), "{expected}: {problems:?}");
    }
    let (_, problems) = compile(&[("a", Authenticator::default())], &crate::middleware::auth::Registry::default());
    assert!(problems.list()[0].message.contains("no kind"));
}

#[test]
fn debug_output_shows_no_secret() {
    let (compiled, _) = compile(&[("a", jwt_block(jwt()))], &crate::middleware::auth::Registry::default());
    let text = format!("{compiled:?}");
    assert!(text.contains("issuer") && !text.contains(&SECRET[..8]), "{text}");
    let bytes = format!("{:?}", &SECRET.as_bytes()[..4]);
    assert!(!text.contains(bytes.trim_matches(['[', ']'])), "{text}");
}
