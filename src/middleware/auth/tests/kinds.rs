//! Chains: which authenticator decides, what callers are told, what goes upstream; and the kinds that need no server.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderName;
use serde_json::json;

use super::super::jwt::digest;
use super::super::{AuthChain, Registry};
use super::support::*;
use crate::config::auth::{ApiKey, AuthRule, Authenticator, Basic, ClientCert, Introspection, Jwt, Key, Place};
use crate::config::{At, Problems};
use crate::http::exchange::ClientCertificate;
use crate::units::{Duration, Secret};

fn hex(text: &str) -> String {
    digest(text.as_bytes()).iter().map(|b| format!("{b:02x}")).collect()
}
fn key(id: &str, secret: &str, expires: Option<&str>) -> Key {
    Key { id: id.into(), sha256: Secret::new(hex(secret)), scopes: vec!["orders:read".into()], expires: expires.map(str::to_owned) }
}
fn api_key() -> ApiKey {
    ApiKey {
        from: vec![Place::Header(HeaderName::from_static("x-api-key"))],
        keys: vec![key("acme", "tg_acme_k", None), key("old", "tg_old_k", Some("2020-01-01"))],
        keys_file: None,
        forward: BTreeMap::from([("id".into(), "X_Consumer".into())]),
        keep: false,
    }
}
fn api_block(api_key: ApiKey) -> Authenticator {
    Authenticator { api_key: Some(api_key), ..Authenticator::default() }
}
fn basic_block(file: &std::path::Path) -> Authenticator {
    let forward = BTreeMap::from([("name".into(), "x-user-id".into())]);
    let basic = Basic { users_file: file.display().to_string(), realm: "staff".into(), forward, keep: false };
    Authenticator { basic: Some(basic), ..Authenticator::default() }
}
fn introspection_block() -> Authenticator {
    let introspection = Introspection {
        url: "http://127.0.0.1:1/".into(),
        client_id: "g".into(),
        client_secret: Secret::new("s"),
        cache: Duration::from_secs(30),
        from: vec![Place::Bearer],
        forward: BTreeMap::new(),
        keep: false,
    };
    Authenticator { introspection: Some(introspection), ..Authenticator::default() }
}
fn basic_line(name: &str, password: &str) -> String {
    format!("basic {}", STANDARD.encode(format!("{name}:{password}")))
}

#[tokio::test]
async fn api_keys_give_one_answer_to_all_that_are_wrong() {
    let chain = single(api_block(api_key()));
    let good = ask(&chain, &[("x-api-key", "tg_acme_k")]).await;
    assert_eq!(good.summary(), "acme");
    assert!(good.headers.is_empty());
    let identity = good.exchange.identity.unwrap();
    assert_eq!(identity.forward, [(HeaderName::from_static("x_consumer"), http::HeaderValue::from_static("acme"))]);
    for (value, error) in [("tg_acme_x", "unknown"), ("tg_old_k", "expired"), ("zzz", "unknown")] {
        let asked = ask(&chain, &[("x-api-key", value)]).await;
        assert_eq!(asked.summary(), format!("401 {error}"));
        assert_eq!((asked.detail(), asked.challenges()), ("The credential is invalid.", vec![r#"ApiKey realm="tollgate""#.to_owned()]));
    }
    let missing = ask(&chain, &[("x-api-key", " ")]).await;
    assert_eq!((missing.summary(), missing.detail()), ("401 missing".into(), "A credential is needed and missing."));
    let doubled = ask(&chain, &[("x-api-key", "tg_acme_k"), ("x-api-key", "tg_acme_k")]).await;
    assert_eq!(doubled.summary(), "401 malformed");
}

#[tokio::test]
async fn the_first_credential_present_decides() {
    let authenticators = good(&[("keys", api_block(api_key())), ("main", jwt_block(jwt()))]);
    let token = format!("Bearer {}", sign(&claims(), SECRET));
    let key_first = chain(&authenticators, &rule(&["keys", "main"]));
    let token_first = chain(&authenticators, &rule(&["main", "keys"]));
    let both = [("authorization", token.as_str()), ("x-api-key", "wrong")];
    assert_eq!(ask(&key_first, &both).await.summary(), "401 unknown");
    assert_eq!(ask(&token_first, &both).await.summary(), "ann");
    assert_eq!(ask(&key_first, &both[..1]).await.summary(), "ann");
    let none = ask(&token_first, &[]).await;
    assert_eq!(none.challenges(), [r#"Bearer realm="tollgate""#, r#"ApiKey realm="tollgate""#]);
    let bad = ask(&token_first, &[("authorization", "bearer x.y.z")]).await;
    assert_eq!(bad.challenges(), [r#"Bearer realm="tollgate", error="invalid_token""#, r#"ApiKey realm="tollgate""#]);
    let twice = [("authorization", token.as_str()), ("authorization", token.as_str())];
    assert_eq!(ask(&token_first, &twice).await.summary(), "401 malformed");
}

#[tokio::test]
async fn several_issuers_at_one_place_take_their_own_tokens() {
    let other = Jwt { issuer: "https://other.test".into(), secret: Some(Secret::new("x".repeat(32))), ..jwt() };
    let authenticators = good(&[("one", jwt_block(jwt())), ("two", jwt_block(other)), ("opaque", introspection_block())]);
    let both = chain(&authenticators, &rule(&["one", "two"]));
    let mut theirs = claims();
    theirs["iss"] = json!("https://other.test");
    assert_eq!(bearer(&both, &sign(&claims(), SECRET)).await.summary(), "ann");
    assert_eq!(bearer(&both, &sign(&theirs, &"x".repeat(32))).await.summary(), "ann");
    assert_eq!(bearer(&both, &sign(&theirs, SECRET)).await.summary(), "401 signature");
    theirs["iss"] = json!("https://third.test");
    let third = bearer(&both, &sign(&theirs, SECRET)).await;
    assert_eq!((third.summary(), third.challenges().len()), ("401 issuer".into(), 1));
    assert_eq!(bearer(&both, "opaque").await.summary(), "401 malformed");
    // Introspection takes the rest, even listed first; it was not started, so it cannot be had.
    let rest = chain(&authenticators, &rule(&["opaque", "one"]));
    assert_eq!(bearer(&rest, &sign(&claims(), SECRET)).await.summary(), "ann");
    assert_eq!(bearer(&rest, "opaque").await.summary(), "503 unavailable");
    assert_eq!(bearer(&rest, &sign(&theirs, SECRET)).await.summary(), "503 unavailable");
}

#[tokio::test]
async fn a_credential_is_read_only_where_from_names_it_and_goes_no_further() {
    let token = sign(&claims(), SECRET);
    let everywhere = vec![
        Place::Bearer,
        Place::Header(HeaderName::from_static("x-token")),
        Place::Cookie("session".into()),
        Place::Query("access_token".into()),
    ];
    let cookie = format!("a=1; session={token}; b=2");
    let target = format!("/p?x=%2f&access_token={token}&y=");
    let requests: [(Vec<(&str, &str)>, &str); 4] = [
        (vec![("authorization", &*format!("Bearer {token}")), ("x-other", "1")], "/p"),
        (vec![("x-token", &*token)], "/p"),
        (vec![("cookie", &*cookie)], "/p"),
        (vec![], &*target),
    ]
    .map(|(lines, target)| {
        (lines.into_iter().map(|(n, v)| (n, &*String::leak(v.to_owned()))).collect(), &*String::leak(target.to_owned()))
    });
    let gone = single(jwt_block(Jwt { from: everywhere.clone(), ..jwt() }));
    let kept = single(jwt_block(Jwt { from: everywhere, keep: true, ..jwt() }));
    let default = single(jwt_block(jwt()));
    for (index, (lines, target)) in requests.iter().enumerate() {
        let asked = ask_with(&gone, lines, target, None).await;
        assert_eq!(asked.summary(), "ann");
        assert!(!format!("{:?} {}", asked.headers, asked.exchange.target).contains(&token), "{lines:?}");
        let asked = ask_with(&kept, lines, target, None).await;
        assert!(format!("{:?} {}", asked.headers, asked.exchange.target).contains(&token), "{lines:?}");
        let expected = if index == 0 { "ann" } else { "401 missing" };
        assert_eq!(ask_with(&default, lines, target, None).await.summary(), expected);
    }
    let rest = ask_with(&gone, &[], &target, None).await;
    assert_eq!(rest.exchange.target, "/p?x=%2f&y=");
    assert_eq!(ask(&gone, &[("cookie", &cookie)]).await.headers["cookie"], "a=1; b=2");
}

#[tokio::test]
async fn scopes_and_claims_are_403_and_nobody_passes_only_without_them() {
    let authenticators = good(&[("main", jwt_block(jwt())), ("keys", api_block(api_key()))]);
    let scoped = AuthRule { scopes: vec!["orders:read".into(), "x".into()], ..rule(&["main", "keys"]) };
    let mut value = claims();
    value["scope"] = json!("orders:read");
    let token = sign(&value, SECRET);
    let narrow = bearer(&chain(&authenticators, &scoped), &token).await;
    assert_eq!(narrow.summary(), "403 scope");
    assert_eq!(narrow.challenges(), [r#"Bearer realm="tollgate", error="insufficient_scope", scope="orders:read x""#]);
    assert_eq!(narrow.exchange.user(), Some("ann"));
    let by_key = ask(&chain(&authenticators, &scoped), &[("x-api-key", "tg_acme_k")]).await;
    assert_eq!((by_key.summary(), by_key.challenges().len()), ("403 scope".into(), 0));
    let enough = AuthRule { scopes: vec!["orders:read".into()], ..rule(&["main", "keys"]) };
    assert_eq!(bearer(&chain(&authenticators, &enough), &token).await.summary(), "ann");
    assert_eq!(ask(&chain(&authenticators, &enough), &[("x-api-key", "tg_acme_k")]).await.summary(), "acme");
    let claim = |value: &str| AuthRule { claims: BTreeMap::from([("sub".into(), vec![value.into()])]), ..rule(&["main"]) };
    assert_eq!(bearer(&chain(&authenticators, &claim("ann")), &token).await.summary(), "ann");
    assert_eq!(bearer(&chain(&authenticators, &claim("bob")), &token).await.summary(), "403 claims");
    let open = AuthRule { optional: true, ..rule(&["main"]) };
    assert_eq!(ask(&chain(&authenticators, &open), &[]).await.summary(), "nobody");
    assert_eq!(bearer(&chain(&authenticators, &open), "x").await.summary(), "401 malformed");
    for rule in [AuthRule { optional: true, ..claim("ann") }, AuthRule { optional: true, ..enough }] {
        assert_eq!(ask(&chain(&authenticators, &rule), &[]).await.summary(), "401 missing");
    }
}

#[tokio::test]
async fn passwords_are_checked_off_the_worker_and_unknown_names_look_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("htpasswd");
    std::fs::write(&file, format!("ann:{}\n", bcrypt::hash("p:w", 4).unwrap())).unwrap();
    let authenticators = good(&[("staff", basic_block(&file))]);
    let chain = chain(&authenticators, &rule(&["staff"]));
    let (observer, _events) = Events::channel();
    let _running = authenticators.start(&tokio::runtime::Handle::current(), &observer);
    for _ in 0..2 {
        let asked = ask(&chain, &[("authorization", &basic_line("ann", "p:w"))]).await;
        assert_eq!(asked.summary(), "ann");
        assert!(asked.headers.is_empty());
        assert_eq!(asked.exchange.identity.unwrap().forward[0].1, "ann");
    }
    for (name, password) in [("ann", "pw"), ("eve", "p:w"), ("", "")] {
        let asked = ask(&chain, &[("authorization", &basic_line(name, password))]).await;
        assert_eq!((asked.summary(), asked.detail()), ("401 unknown".into(), "The credential is invalid."));
        assert_eq!(asked.challenges(), [r#"Basic realm="staff", charset="UTF-8""#]);
    }
    assert_eq!(ask(&chain, &[("authorization", "Basic !")]).await.summary(), "401 malformed");
    assert_eq!(ask(&chain, &[("authorization", "Bearer abc")]).await.summary(), "401 missing");
    assert!(!format!("{authenticators:?}").contains("$2b$"));
}

#[tokio::test]
async fn a_certificate_names_its_holder() {
    let forward = BTreeMap::from([("san".into(), "x-san".into()), ("subject".into(), "x-subject".into())]);
    let block = Authenticator { client_cert: Some(ClientCert { forward, keep: false }), ..Authenticator::default() };
    let chain = single(block);
    let certificate = ClientCertificate {
        subject: "CN=ann".into(),
        san: vec!["spiffe://a/b".into(), "a.test".into()],
        serial: "01".into(),
        fingerprint: "f1".into(),
    };
    let bare = ClientCertificate { san: vec![], fingerprint: "f2".into(), ..certificate.clone() };
    let asked = ask_with(&chain, &[], "/", Some(certificate)).await;
    assert_eq!(asked.summary(), "spiffe://a/b");
    let identity = asked.exchange.identity.unwrap();
    let fields: Vec<_> = identity.forward.iter().map(|(n, v)| (n.as_str(), v.to_str().unwrap())).collect();
    assert_eq!(fields, [("x-san", "spiffe://a/b,a.test"), ("x-subject", "CN=ann")]);
    assert_eq!(ask_with(&chain, &[], "/", Some(bare)).await.summary(), "CN=ann");
    assert_eq!(ask(&chain, &[]).await.summary(), "401 missing");
}

#[test]
fn protected_headers_and_secret_parameters_are_listed() {
    let token = Jwt { from: vec![Place::Query("access_token".into())], ..jwt() };
    let authenticators = good(&[("keys", api_block(api_key())), ("main", jwt_block(token))]);
    assert_eq!(authenticators.protected_headers().collect::<Vec<_>>(), ["x-consumer", "x-user-id"]);
    assert_eq!(authenticators.secret_query_names().collect::<Vec<_>>(), ["access_token"]);
}

#[test]
fn rules_that_cannot_work_do_not_load() {
    let (authenticators, _) = compile(&[("a", jwt_block(jwt())), ("broken", Authenticator::default())], &Registry::default());
    for (rule, expected) in [
        (rule(&[]), Some("names no authenticator")),
        (rule(&["b"]), Some("unknown authenticator `b`")),
        (rule(&["a", "a"]), Some("listed twice")),
        (rule(&["broken"]), None),
        (AuthRule { scopes: vec!["a b".into()], ..rule(&["a"]) }, Some("cannot be a scope")),
        (AuthRule { claims: BTreeMap::from([("x".into(), vec![])]), ..rule(&["a"]) }, Some("nobody could pass")),
    ] {
        let mut problems = Problems::default();
        assert!(AuthChain::compile(&rule, &At::default(), &authenticators, &mut problems).is_none());
        assert_eq!(problems.list().first().map(|p| p.message.contains(expected.unwrap_or("?"))), expected.map(|_| true));
    }
}

#[tokio::test]
async fn a_broken_file_keeps_the_last_good_list_and_a_changed_one_counts() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("keys.yaml");
    let write = |text: &str| std::fs::write(&file, text).unwrap();
    let entry = |id: &str, secret: &str| format!("- {{ id: {id}, sha256: \"{}\" }}\n", hex(secret));
    let block = api_block(ApiKey { keys: vec![], keys_file: Some(file.display().to_string()), ..api_key() });
    let registry = Registry::default();
    let (observer, _events) = Events::channel();
    let load = |start: bool| {
        let (authenticators, problems) = compile(&[("keys", block.clone())], &registry);
        if start && !problems.has_errors() {
            drop(authenticators.start(&tokio::runtime::Handle::current(), &observer));
        }
        (authenticators, problems)
    };
    write("nonsense: [");
    assert!(load(true).1.has_errors());
    write(&entry("one", "k1"));
    let (first, _) = load(true);
    let (second, problems) = load(true);
    assert!(problems.list().is_empty() && Arc::ptr_eq(first.get("keys").unwrap(), second.get("keys").unwrap()));
    write(&entry("two", "k2"));
    // Compiled, but refused for another reason: nothing changes.
    load(false);
    for broken in ["", "- { id: x }\n", "[", &(entry("a", "same") + &entry("b", "same"))] {
        write(broken);
        let (kept, problems) = load(true);
        assert!(!problems.has_errors() && problems.list().len() == 1, "{problems:?}");
        assert!(problems.list()[0].message.contains("keeps what it had"));
        let chain = chain(&kept, &rule(&["keys"]));
        assert_eq!(ask(&chain, &[("x-api-key", "k1")]).await.summary(), "one");
    }
    write(&entry("two", "k2"));
    let changed = chain(&load(true).0, &rule(&["keys"]));
    assert_eq!(ask(&changed, &[("x-api-key", "k2")]).await.summary(), "two");
    assert_eq!(ask(&changed, &[("x-api-key", "k1")]).await.summary(), "401 unknown");
}
