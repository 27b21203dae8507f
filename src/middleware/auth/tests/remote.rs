//! Issuers that are down, slow, moved or flooded.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};

use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rcgen::KeyPair;
use serde_json::{Value, json};

use super::super::{AuthChain, Handle, Registry};
use super::support::*;
use crate::config::auth::{Authenticator, Introspection, Jwt, Place};
use crate::units::{Duration, Secret};

struct Signer(EncodingKey, &'static str);

impl Signer {
    fn new(kid: &'static str) -> Self {
        let pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        Self(EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).unwrap(), kid)
    }
    fn jwk(&self) -> Value {
        let mut jwk = serde_json::to_value(Jwk::from_encoding_key(&self.0, Algorithm::ES256).unwrap()).unwrap();
        jwk["kid"] = json!(self.1);
        jwk
    }
    fn token(&self, kid: Option<&str>) -> String {
        // Each token is another one, so that none is remembered.
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let mut claims = claims();
        claims["jti"] = json!(COUNT.fetch_add(1, Ordering::Relaxed));
        encode(&Header { kid: kid.map(str::to_owned), ..Header::new(Algorithm::ES256) }, &claims, &self.0).unwrap()
    }
    fn good(&self) -> String {
        self.token(Some(self.1))
    }
}

fn set(keys: &[Value]) -> String {
    json!({ "keys": keys }).to_string()
}

fn jwks_block(url: &str) -> Authenticator {
    jwt_block(Jwt { secret: None, jwks: Some(url.into()), algorithms: vec!["ES256".into()], ..jwt() })
}

/// A chain that fetches from `server`, after its first fetch ended.
async fn fetching(server: &Server) -> (AuthChain, Handle, tokio::sync::mpsc::UnboundedReceiver<String>, String) {
    let (authenticators, problems) = compile(&[("main", jwks_block(&server.url))], &Registry::default());
    assert!(!problems.has_errors() && problems.list().iter().any(|p| p.message.contains("http://")), "{problems:?}");
    let (observer, mut events) = Events::channel();
    let handle = authenticators.start(&tokio::runtime::Handle::current(), &observer);
    let event = events.recv().await.unwrap();
    (chain(&authenticators, &rule(&["main"])), handle, events, event)
}

#[tokio::test]
async fn an_issuer_that_is_down_is_503_until_it_is_back() {
    let (server, signer) = (Server::start().await, Signer::new("k1"));
    let (chain, _running, mut events, event) = fetching(&server).await;
    assert_eq!(event, "main failed status 500");
    let down = bearer(&chain, &signer.good()).await;
    assert_eq!(down.summary(), "503 unavailable");
    assert_eq!(down.result.unwrap_err().headers["retry-after"], "5");
    assert_eq!(bearer(&chain, "x").await.summary(), "401 malformed");
    server.says("200 OK", &set(&[signer.jwk()]));
    while events.recv().await.unwrap() != "main ok" {}
    assert_eq!(bearer(&chain, &signer.good()).await.summary(), "ann");
    assert!(server.last().starts_with("GET /path?q=1 HTTP/1.1\r\n") && server.last().contains("host: 127.0.0.1:"), "{}", server.last());
}

#[tokio::test]
async fn a_request_that_comes_during_the_first_fetch_waits_for_it() {
    let (server, signer) = (Server::start().await, Signer::new("k1"));
    server.says("200 OK", &set(&[signer.jwk()]));
    let closed = server.gate.clone().lock_owned().await;
    let (authenticators, _) = compile(&[("main", jwks_block(&server.url))], &Registry::default());
    let (observer, _events) = Events::channel();
    let _running = authenticators.start(&tokio::runtime::Handle::current(), &observer);
    while server.count() == 0 {
        tokio::task::yield_now().await;
    }
    let chain = chain(&authenticators, &rule(&["main"]));
    let (asked, ()) = tokio::join!(async { bearer(&chain, &signer.good()).await }, async { drop(closed) });
    assert_eq!(asked.summary(), "ann");
}

#[tokio::test]
async fn a_new_key_is_fetched_once_however_many_unknown_names_come() {
    let (server, old, new) = (Server::start().await, Signer::new("old"), Signer::new("new"));
    server.says("200 OK\r\ncache-control: public, max-age=300", &set(&[old.jwk()]));
    let (chain, _running, _events, event) = fetching(&server).await;
    assert_eq!(event, "main ok");
    let remembered = old.good();
    assert_eq!(bearer(&chain, &remembered).await.summary(), "ann");
    server.says("200 OK", &set(&[new.jwk()]));
    let closed = server.gate.clone().lock_owned().await;
    let (one, two, ()) = tokio::join!(
        async { bearer(&chain, &new.good()).await.summary() },
        async { bearer(&chain, &old.token(Some("random"))).await.summary() },
        async {
            while server.count() < 2 {
                tokio::task::yield_now().await;
            }
            drop(closed);
        }
    );
    assert_eq!((one.as_str(), two.as_str()), ("ann", "401 key"));
    for index in 0..1000 {
        assert_eq!(bearer(&chain, &old.token(Some(&format!("k{index}")))).await.summary(), "401 key");
    }
    assert_eq!(server.count(), 2);
    // The key that is gone takes what was remembered with it.
    assert_eq!(bearer(&chain, &remembered).await.summary(), "401 key");
    assert_eq!(bearer(&chain, &new.good()).await.summary(), "ann");
}

#[tokio::test]
async fn unusable_keys_are_ignored_and_old_ones_outlive_a_failed_refetch() {
    let (server, good, enc, other) = (Server::start().await, Signer::new("good"), Signer::new("enc"), Signer::new("rs"));
    let mut encryption = enc.jwk();
    encryption["use"] = json!("enc");
    let mut mismatch = other.jwk();
    mismatch["alg"] = json!("ES384");
    let symmetric = json!({ "kty": "oct", "kid": "oct", "k": "c2VjcmV0" });
    let strange = json!({ "kty": "XYZ", "kid": "xyz" });
    server.says("200 OK", &set(&[encryption, mismatch, symmetric, strange, good.jwk()]));
    let (chain, _running, mut events, _) = fetching(&server).await;
    assert_eq!(bearer(&chain, &good.token(None)).await.summary(), "ann");
    assert_eq!(bearer(&chain, &enc.token(None)).await.summary(), "401 signature");
    server.says("503 Down", "");
    assert_eq!(bearer(&chain, &enc.good()).await.summary(), "401 key");
    assert_eq!(events.recv().await.unwrap(), "main failed status 503");
    assert_eq!(bearer(&chain, &other.good()).await.summary(), "401 key");
    assert_eq!(bearer(&chain, &good.good()).await.summary(), "ann");
}

#[tokio::test]
async fn redirects_floods_and_nonsense_are_no_keys() {
    let (target, signer) = (Server::start().await, Signer::new("k"));
    target.says("200 OK", &set(&[signer.jwk()]));
    let huge = format!("{{\"keys\":[],\"x\":\"{}\"}}", "x".repeat(1 << 20));
    for (head, body, expected) in [
        (format!("302 Found\r\nlocation: {}", target.url), String::new(), "main failed status 302"),
        ("200 OK".to_owned(), huge, "main failed the answer is longer than 1048576 bytes"),
        ("200 OK".to_owned(), "<html>".to_owned(), "main failed not JSON"),
        ("200 OK".to_owned(), "{}".to_owned(), "main failed not a JWK set: no list `keys`"),
    ] {
        let server = Server::start().await;
        server.says(&head, &body);
        let (chain, _running, _events, event) = fetching(&server).await;
        assert_eq!(event, expected);
        assert_eq!(bearer(&chain, &signer.good()).await.summary(), "503 unavailable");
    }
    assert_eq!(target.count(), 0);
}

#[tokio::test]
async fn an_unchanged_issuer_is_not_fetched_again_by_a_reload() {
    let (server, signer, registry) = (Server::start().await, Signer::new("k"), Registry::default());
    server.says("200 OK", &set(&[signer.jwk()]));
    let (observer, mut events) = Events::channel();
    let runtime = tokio::runtime::Handle::current();
    let (first, _) = compile(&[("main", jwks_block(&server.url))], &registry);
    let old = first.start(&runtime, &observer);
    events.recv().await.unwrap();
    let (second, _) = compile(&[("main", jwks_block(&server.url))], &registry);
    let _new = second.start(&runtime, &observer);
    drop(old);
    assert_eq!(bearer(&chain(&second, &rule(&["main"])), &signer.good()).await.summary(), "ann");
    // The new task still answers to unknown names.
    assert_eq!(bearer(&chain(&second, &rule(&["main"])), &signer.token(Some("x"))).await.summary(), "401 key");
    assert_eq!(server.count(), 2);
}

fn introspection(url: &str) -> Authenticator {
    let introspection = Introspection {
        url: url.into(),
        client_id: "gate way".into(),
        client_secret: Secret::new("s/crt"),
        cache: Duration::from_secs(30),
        from: vec![Place::Bearer],
        forward: BTreeMap::from([("sub".into(), "x-user-id".into())]),
        keep: false,
    };
    Authenticator { introspection: Some(introspection), ..Authenticator::default() }
}

#[tokio::test]
async fn introspection_asks_once_per_token_and_remembers_both_answers() {
    let server = Server::start().await;
    let (authenticators, _) = compile(&[("opaque", introspection(&server.url))], &Registry::default());
    let (observer, mut events) = Events::channel();
    let _running = authenticators.start(&tokio::runtime::Handle::current(), &observer);
    let chain = chain(&authenticators, &rule(&["opaque"]));

    server.says("200 OK", r#"{"active":true,"sub":"ann","scope":"a b"}"#);
    let closed = server.gate.clone().lock_owned().await;
    let (one, two, ()) = tokio::join!(bearer(&chain, "tok en+1"), bearer(&chain, "tok en+1"), async {
        while server.count() == 0 {
            tokio::task::yield_now().await;
        }
        drop(closed);
    });
    assert_eq!((one.summary(), two.summary(), server.count()), ("ann".into(), "ann".into(), 1));
    let request = server.last();
    assert!(request.starts_with("POST /path?q=1 HTTP/1.1\r\n"), "{request}");
    assert!(request.contains("authorization: Basic Z2F0ZSt3YXk6cyUyRmNydA==\r\n"), "{request}");
    assert!(request.ends_with("\r\n\r\ntoken=tok+en%2B1&token_type_hint=access_token"), "{request}");

    server.says("200 OK", r#"{"active":false}"#);
    for _ in 0..2 {
        assert_eq!(bearer(&chain, "gone").await.summary(), "401 inactive");
    }
    server.says("200 OK", &json!({ "active": true, "sub": "ann", "exp": now() - 1 }).to_string());
    let expired = bearer(&chain, "late").await;
    assert_eq!((expired.summary(), expired.detail()), ("401 expired".into(), "The credential is expired."));
    assert_eq!(server.count(), 3);

    for (head, body) in [("302 Found\r\nlocation: /", ""), ("500 Broken", ""), ("200 OK", "[]"), ("200 OK", r#"{"active":"yes"}"#)] {
        server.says(head, body);
        assert_eq!(bearer(&chain, "other").await.summary(), "503 unavailable");
        assert!(events.recv().await.unwrap().starts_with("opaque "));
        assert_eq!(bearer(&chain, "tok en+1").await.summary(), "ann");
    }
    assert!(!format!("{authenticators:?}").contains("Z2F0"));
}
