//! `authenticators` and `auth`: who gets in, what the others are told, and what goes upstream.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;

use jsonwebtoken::Algorithm;
use serde_json::json;

use crate::support::certs::{self, Authority};
use crate::support::client::request;
use crate::support::{Answer, Gateway, Upstream, eventually};
use crate::tokens::{self, Key, SECRET, basic, bearer, claims, claims_of, hs256, jwks, sha256, with};

const API_KEY: &str = "tg_acme_0123456789abcdef";
const OLD_KEY: &str = "tg_old_0123456789abcdef";

/// Authenticators that need no server. `@SECRET` and hashes are filled in by [`yaml`].
const KINDS: &str = "
    upstreams: { up: { endpoints: [http://@0] } }
    authenticators:
      main: { jwt: { issuer: 'https://id.test', audience: [api, other], algorithms: [HS256], secret: '@SECRET', forward: { sub: x-user-id, role: X_Role } } }
      partners: { api_key: { keys: [{ id: acme, sha256: @ACME, scopes: ['orders:read'] }, { id: old, sha256: @OLD, expires: 2020-01-01 }], forward: { id: x-consumer-id } } }
      staff: { basic: { users_file: users, realm: staff, forward: { name: x-user-id } } }
      session: { jwt: { issuer: 'https://id.test', audience: [api], algorithms: [HS256], secret: '@SECRET', from: ['cookie:session', 'query:token', 'header:x-token'] } }
      kept: { api_key: { keep: true, keys: [{ id: acme, sha256: @ACME }] } }
";

fn yaml(routes: &str) -> String {
    let all = format!("{KINDS}    routes:\n{routes}");
    all.replace("@SECRET", SECRET).replace("@ACME", &sha256(API_KEY)).replace("@OLD", &sha256(OLD_KEY))
}

/// A gateway with [`KINDS`] and these routes.
fn kinds(upstream: &Upstream, routes: &str) -> Gateway {
    let dir = tempfile::tempdir().unwrap();
    // The lowest cost there is: 4. `ada` with `lovelace`.
    std::fs::write(dir.path().join("users"), format!("ada:{}\n", bcrypt::hash("lovelace", 4).unwrap())).unwrap();
    Gateway::in_dir(dir, &yaml(routes), &[upstream.address])
}

/// A request with these fields.
fn with_fields(gateway: &Gateway, path: &str, fields: &[(&str, &str)]) -> Answer {
    gateway.request("GET", path, fields, "")
}

/// Asserts a 401 with these challenges and this `detail`.
#[track_caller]
fn assert_unauthenticated(answer: &Answer, challenges: &[&str], detail: &str) {
    answer.refused(401, "unauthenticated");
    assert_eq!(answer.all("www-authenticate"), challenges);
    assert_eq!(answer.json()["detail"], detail);
    assert_eq!(answer.header("cache-control"), Some("no-store"));
}

const BEARER: &str = r#"Bearer realm="tollgate""#;
const INVALID_TOKEN: &str = r#"Bearer realm="tollgate", error="invalid_token""#;
const API: &str = r#"ApiKey realm="tollgate""#;
const STAFF: &str = r#"Basic realm="staff", charset="UTF-8""#;

#[test]
fn each_kind_lets_its_caller_in_and_forwards_who_it_is_without_the_credential() {
    let upstream = Upstream::echo();
    let gateway = kinds(
        &upstream,
        "
      - { match: /jwt, auth: main, upstream: up }
      - { match: /key, auth: partners, upstream: up }
      - { match: /staff, auth: staff, upstream: up }
",
    );
    let ada = basic("ada", "lovelace");
    let ann = bearer(&hs256(&claims()));
    for (path, field, value, user, identity) in [
        ("/jwt", "Authorization", ann.as_str(), "ann", ("x-user-id", "ann")),
        ("/key", "X-Api-Key", API_KEY, "acme", ("x-consumer-id", "acme")),
        ("/staff", "Authorization", ada.as_str(), "ada", ("x-user-id", "ada")),
    ] {
        let answer = with_fields(&gateway, path, &[(field, value)]);
        assert_eq!(answer.status, 200, "{answer:?}");
        let seen = upstream.last();
        assert_eq!(seen.all(identity.0), [identity.1]);
        assert!(!seen.has(field), "the credential went upstream: {seen:?}");
        assert_eq!(gateway.logged(path)["user"], user);
    }
    assert_eq!(upstream.requests()[0].header("x_role"), Some("admin"), "every claim of `forward` goes upstream");
    let count = upstream.count();
    for (path, field, wrong) in [
        ("/jwt", "Authorization", "Bearer a.b.c"),
        ("/key", "X-Api-Key", "tg_acme_wrong"),
        ("/staff", "Authorization", "Basic YWRhOndyb25n"),
    ] {
        with_fields(&gateway, path, &[]).refused(401, "unauthenticated");
        with_fields(&gateway, path, &[(field, wrong)]).refused(401, "unauthenticated");
    }
    assert_eq!(upstream.count(), count, "nothing that was refused reached the upstream");
}

#[test]
fn tokens_of_every_key_family_are_verified_from_files_and_pem() {
    let upstream = Upstream::echo();
    let keys = [Key::ec("e"), Key::ed("d"), Key::rsa("r", Algorithm::RS256), Key::rsa("p", Algorithm::PS256)];
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("keys.json"), jwks(&keys.iter().collect::<Vec<_>>())).unwrap();
    let mut authenticators =
        "  file: { jwt: { issuer: 'https://id.test', audience: [api], algorithms: [ES256, EdDSA, RS256, PS256], jwks: keys.json } }\n"
            .to_owned();
    let mut routes = "  - { match: /file, auth: file, upstream: up }\n".to_owned();
    for (key, algorithm) in keys.iter().zip(["ES256", "EdDSA", "RS256", "PS256"]) {
        std::fs::write(dir.path().join(format!("{}.pem", key.kid)), &key.pem).unwrap();
        authenticators.push_str(&format!(
            "  {0}: {{ jwt: {{ issuer: 'https://id.test', audience: [api], algorithms: [{algorithm}], public_key: {0}.pem }} }}\n",
            key.kid
        ));
        routes.push_str(&format!("  - {{ match: /{0}, auth: {0}, upstream: up }}\n", key.kid));
    }
    let yaml = format!("upstreams: {{ up: {{ endpoints: [http://@0] }} }}\nauthenticators:\n{authenticators}routes:\n{routes}");
    let gateway = Gateway::in_dir(dir, &yaml, &[upstream.address]);
    for key in &keys {
        let token = bearer(&key.sign(&claims()));
        assert_eq!(with_fields(&gateway, "/file", &[("Authorization", &token)]).status, 200, "{} from the set", key.kid);
        assert_eq!(with_fields(&gateway, &format!("/{}", key.kid), &[("Authorization", &token)]).status, 200, "{} from PEM", key.kid);
        let other = if key.kid == "e" { "/d" } else { "/e" };
        with_fields(&gateway, other, &[("Authorization", &token)]).refused(401, "unauthenticated");
    }
}

#[test]
fn callers_are_told_missing_expired_or_invalid_and_no_more() {
    let upstream = Upstream::echo();
    let gateway = kinds(
        &upstream,
        "
      - { name: one, match: /one, auth: main, upstream: up }
      - { name: many, match: /many, auth: [main, partners, staff], upstream: up }
",
    );
    assert_unauthenticated(&with_fields(&gateway, "/one", &[]), &[BEARER], "A credential is needed and missing.");
    assert_unauthenticated(&with_fields(&gateway, "/many", &[]), &[BEARER, API, STAFF], "A credential is needed and missing.");
    let ask = |token: &str| with_fields(&gateway, "/one", &[("Authorization", &bearer(token))]);
    let expired = hs256(&with(claims(), json!({ "exp": tokens::now() - 31 })));
    assert_unauthenticated(&ask(&expired), &[INVALID_TOKEN], "The credential is expired.");
    assert_unauthenticated(&ask("x.y.z"), &[INVALID_TOKEN], "The credential is invalid.");
    let many = with_fields(&gateway, "/many", &[("X-Api-Key", "nobody's")]);
    assert_unauthenticated(&many, &[BEARER, API, STAFF], "The credential is invalid.");
    let head = gateway.request("HEAD", "/one", &[], "");
    assert_eq!((head.status, head.header("www-authenticate"), head.body.len()), (401, Some(BEARER), 0));
}

#[test]
fn log_and_metrics_have_the_exact_cause() {
    let upstream = Upstream::echo();
    let gateway = kinds(
        &upstream,
        "
      - { name: r, match: '/t/*', auth: main, upstream: up }
      - { name: k, match: '/k/*', auth: partners, upstream: up }
      - { name: s, match: '/s/*', auth: { any: [main], scopes: ['orders:write'] }, upstream: up }
      - { name: c, match: '/c/*', auth: { any: [main], claims: { role: [owner] } }, upstream: up }
",
    );
    let changed = |other| bearer(&hs256(&with(claims(), other)));
    let now = tokens::now();
    let none = bearer(&tokens::raw(r#"{"alg":"none"}"#, &claims().to_string(), b""));
    let forged = bearer(
        &jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims(), &jsonwebtoken::EncodingKey::from_secret(b"other")).unwrap(),
    );
    for (path, field, value, route, cause, status) in [
        ("/t/missing", "X-None", "1".to_owned(), "r", "missing", 401),
        ("/t/malformed", "Authorization", "Bearer abc".to_owned(), "r", "malformed", 401),
        ("/t/algorithm", "Authorization", none, "r", "algorithm", 401),
        ("/t/signature", "Authorization", forged, "r", "signature", 401),
        ("/t/expired", "Authorization", changed(json!({ "exp": now - 31 })), "r", "expired", 401),
        ("/t/not_yet_valid", "Authorization", changed(json!({ "nbf": now + 60 })), "r", "not_yet_valid", 401),
        ("/t/issuer", "Authorization", changed(json!({ "iss": "https://id.test/" })), "r", "issuer", 401),
        ("/t/audience", "Authorization", changed(json!({ "aud": "elsewhere" })), "r", "audience", 401),
        ("/k/unknown", "X-Api-Key", "tg_nobody".to_owned(), "k", "unknown", 401),
        ("/k/expired", "X-Api-Key", OLD_KEY.to_owned(), "k", "expired", 401),
        ("/s/scope", "Authorization", bearer(&hs256(&claims())), "s", "scope", 403),
        ("/c/claims", "Authorization", bearer(&hs256(&claims())), "c", "claims", 403),
    ] {
        let answer = with_fields(&gateway, path, &[(field, &value)]);
        answer.refused(status, if status == 401 { "unauthenticated" } else { "forbidden" });
        let line = gateway.logged(path);
        assert_eq!((&line["auth_error"], &line["route"], &line["status"]), (&json!(cause), &json!(route), &json!(status)), "{line}");
        assert_eq!(line["reason"], answer.reason());
        gateway.metric_becomes(&format!("gateway_auth_failures_total{{route=\"{route}\",reason=\"{cause}\"}}"), 1.0);
        let detail = answer.json()["detail"].as_str().unwrap().to_owned();
        let said = ["missing", "expired", "scope", "claims"].contains(&cause);
        assert!(said || !detail.contains(cause), "the cause is not for the client: {detail}");
    }
    assert_eq!(upstream.count(), 0);
    // A token that does not say whose it is.
    assert_eq!(with_fields(&gateway, "/t/nobody", &[("Authorization", &changed(json!({ "sub": null })))]).status, 200);
    assert_eq!(gateway.logged("/t/nobody").get("user"), None, "absent values are left out");
}

#[test]
fn the_first_credential_present_decides_and_its_failure_is_final() {
    let upstream = Upstream::echo();
    let gateway = kinds(&upstream, "      - { match: /a, auth: [main, partners], upstream: up }\n");
    let good = bearer(&hs256(&claims()));
    for (fields, status, user) in [
        (vec![("Authorization", good.as_str()), ("X-Api-Key", "wrong")], 200, "ann"),
        (vec![("Authorization", "Bearer wrong"), ("X-Api-Key", API_KEY)], 401, ""),
        (vec![("Authorization", "Basic eA=="), ("X-Api-Key", API_KEY)], 200, "acme"),
        (vec![("Authorization", ""), ("X-Api-Key", API_KEY)], 200, "acme"),
        (vec![("X-Api-Key", "wrong")], 401, ""),
    ] {
        let answer = with_fields(&gateway, "/a", &fields);
        assert_eq!(answer.status, status, "{fields:?}: {answer:?}");
        if status == 200 {
            let seen = upstream.last();
            assert_eq!(seen.header("x-user-id").or(seen.header("x-consumer-id")), Some(user));
        }
    }
}

#[test]
fn scopes_and_claims_must_hold() {
    let upstream = Upstream::echo();
    let gateway = kinds(
        &upstream,
        "
      - { match: /read, auth: { any: [main, partners], scopes: ['orders:read'] }, upstream: up }
      - { match: /both, auth: { any: [main, partners], scopes: ['orders:read', 'orders:write'] }, upstream: up }
      - { match: /role, auth: { any: [main], claims: { role: [admin, owner] } }, upstream: up }
      - { match: /deep, auth: { any: [main], claims: { a.b: ['7'] } }, upstream: up }
      - { match: /any, auth: { any: [main], claims: { tenant: '*' } }, upstream: up }
",
    );
    let ask =
        |path: &str, other: serde_json::Value| with_fields(&gateway, path, &[("Authorization", &bearer(&hs256(&with(claims(), other))))]);
    assert_eq!(ask("/read", json!({})).status, 200);
    assert_eq!(ask("/read", json!({ "scope": null, "scp": ["a", "orders:read"] })).status, 200);
    let both = ask("/both", json!({}));
    both.refused(403, "forbidden");
    let challenge = r#"Bearer realm="tollgate", error="insufficient_scope", scope="orders:read orders:write""#;
    assert_eq!(both.all("www-authenticate"), [challenge]);
    let key = with_fields(&gateway, "/both", &[("X-Api-Key", API_KEY)]);
    key.refused(403, "forbidden");
    assert!(!key.has("www-authenticate"), "scopes of a key are no bearer token's");
    assert_eq!(with_fields(&gateway, "/read", &[("X-Api-Key", API_KEY)]).status, 200);
    for (path, other, status) in [
        ("/role", json!({}), 200),
        ("/role", json!({ "role": ["guest", "owner"] }), 200),
        ("/role", json!({ "role": "guest" }), 403),
        ("/role", json!({ "role": null }), 403),
        ("/deep", json!({ "a": { "b": 7 } }), 200),
        ("/deep", json!({ "a.b": "7" }), 200),
        ("/deep", json!({ "a": { "b": 8 } }), 403),
        ("/any", json!({ "tenant": "t" }), 200),
        ("/any", json!({ "tenant": "" }), 403),
        ("/any", json!({}), 403),
    ] {
        let answer = ask(path, other.clone());
        assert_eq!(answer.status, status, "{path} {other}: {answer:?}");
        assert!(!answer.has("www-authenticate"));
    }
}

#[test]
fn optional_lets_nobody_in_but_no_bad_credential() {
    let upstream = Upstream::echo();
    let gateway = kinds(
        &upstream,
        "
      - { match: /may, auth: { any: [main], optional: true }, upstream: up }
      - { match: /scoped, auth: { any: [main], optional: true, scopes: ['orders:read'] }, upstream: up }
",
    );
    assert_eq!(with_fields(&gateway, "/may", &[("X-User-Id", "root")]).status, 200);
    assert!(!upstream.last().has("x-user-id"));
    assert_eq!(gateway.logged("/may")["user"], json!(null));
    let good = bearer(&hs256(&claims()));
    assert_eq!(with_fields(&gateway, "/may", &[("Authorization", &good)]).status, 200);
    assert_eq!(upstream.last().header("x-user-id"), Some("ann"));
    with_fields(&gateway, "/may", &[("Authorization", "Bearer x")]).refused(401, "unauthenticated");
    with_fields(&gateway, "/scoped", &[]).refused(401, "unauthenticated");
    assert_eq!(with_fields(&gateway, "/scoped", &[("Authorization", &good)]).status, 200);
}

#[test]
fn nobody_can_send_an_identity_header_on_any_route() {
    let upstream = Upstream::echo();
    let gateway = kinds(
        &upstream,
        "
      - { match: /open, upstream: up }
      - { match: /auth, auth: main, upstream: up }
      - { match: /other, auth: partners, upstream: up }
",
    );
    let good = bearer(&hs256(&with(claims(), json!({ "role": null }))));
    for path in ["/open", "/auth", "/other"] {
        let fake = [
            ("X-User-Id", "root"),
            ("x_user_id", "root"),
            ("X-User_Id", "root"),
            ("X-Role", "root"),
            ("x_role", "root"),
            ("X-Consumer-Id", "root"),
            ("X_CONSUMER_ID", "root"),
            ("X-Tollgate-Anything", "root"),
            ("x_tollgate_anything", "root"),
        ];
        let mut fields = vec![("Authorization", good.as_str()), ("X-Api-Key", API_KEY), ("Connection", "x-user-id, x-consumer-id")];
        fields.extend(fake);
        let answer = with_fields(&gateway, path, &fields);
        assert_eq!(answer.status, 200, "{answer:?}");
        let seen = upstream.last();
        assert!(seen.headers.iter().all(|(_, value)| value != "root"), "{path}: {seen:?}");
        match path {
            // What the gateway itself adds is not touched by the client's `Connection`.
            "/auth" => assert_eq!((seen.header("x-user-id"), seen.has("x_role")), (Some("ann"), false)),
            "/other" => assert_eq!(seen.header("x-consumer-id"), Some("acme")),
            _ => {}
        }
    }
}

#[test]
fn trailers_carry_neither_identity_nor_credentials() {
    let upstream = Upstream::echo();
    let gateway = kinds(&upstream, "      - { match: /open, upstream: up }\n");
    let answer = gateway.ask(
        "POST /open HTTP/1.1\r\nHost: site\r\nTransfer-Encoding: chunked\r\n\
         Trailer: x-user-id, x_user_id, x-tollgate-a, authorization, cookie, x-api-key, x_api_key, x-token, x-checksum\r\n\r\n\
         2\r\nhi\r\n0\r\nx-user-id: root\r\nx_user_id: root\r\nx-tollgate-a: root\r\nauthorization: root\r\ncookie: root\r\n\
         x-api-key: root\r\nx_api_key: root\r\nx-token: root\r\nx-checksum: 1\r\n\r\n",
    );
    assert_eq!(answer.status, 200, "{answer:?}");
    let seen = upstream.last();
    assert_eq!(seen.trailers, [("x-checksum".to_owned(), "1".to_owned())]);
    assert!(seen.headers.iter().all(|(_, value)| value != "root"));
}

#[test]
fn credentials_stop_here_wherever_they_stand() {
    let upstream = Upstream::echo();
    let gateway = kinds(
        &upstream,
        "
      - { match: /s, auth: session, upstream: up }
      - { match: /kept, auth: kept, upstream: up }
      - { match: /move, auth: session, redirect: { to: '/moved', status: 302 } }
      - { match: /parts, auth: main, aggregate: { parts: [{ name: p, upstream: up, path: '/part?{query}' }] } }
      - { match: /purpose, auth: main, aggregate: { parts: [{ name: p, upstream: up, path: /part }], forward_headers: [authorization] } }
",
    );
    let token = hs256(&claims());
    with_fields(&gateway, "/s?a=1", &[("Cookie", &format!("a=1; session={token}; b=2"))]);
    assert_eq!((upstream.last().all("cookie"), upstream.last().target.as_str()), (vec!["a=1; b=2"], "/s?a=1"));
    with_fields(&gateway, &format!("/s?a=%2F&token={token}&b=2"), &[]);
    assert_eq!(upstream.last().target, "/s?a=%2F&b=2");
    with_fields(&gateway, "/s", &[("X-Token", &token)]);
    assert!(!upstream.last().has("x-token"));
    with_fields(&gateway, "/kept", &[("X-Api-Key", API_KEY)]);
    assert_eq!(upstream.last().header("x-api-key"), Some(API_KEY), "`keep: true` sends it on");
    let moved = with_fields(&gateway, &format!("/move?token={token}&b=2"), &[]);
    assert_eq!((moved.status, moved.header("location")), (302, Some("/moved?b=2")));
    let parts = with_fields(&gateway, "/parts?x=1", &[("Authorization", &bearer(&token))]);
    assert_eq!(parts.status, 200, "{parts:?}");
    assert!(!upstream.last().has("authorization"), "{:?}", upstream.last());
    with_fields(&gateway, "/purpose", &[("Authorization", &bearer(&token))]);
    assert_eq!(upstream.last().header("authorization"), Some(bearer(&token).as_str()));
    for seen in upstream.requests().iter().filter(|seen| seen.target != "/part" && !seen.has("x-api-key")) {
        assert!(!format!("{seen:?}").contains(&token), "{seen:?}");
    }
    assert!(!gateway.log_text().contains(&token));
    let logged = eventually("the query is logged", || {
        gateway.log().into_iter().find(|line| line["path"] == "/s" && line["query"].as_str().is_some_and(|query| query.contains("token")))
    });
    assert_eq!(logged["query"], "a=%2F&token=***&b=2");
}

#[test]
fn hostile_tokens_are_refused() {
    let upstream = Upstream::echo();
    let lure = Upstream::serve(|_, conn| conn.ok(jwks(&[&Key::ec("lure")])));
    let rsa = Key::rsa("r", Algorithm::RS256);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("rsa.pem"), &rsa.pem).unwrap();
    std::fs::write(dir.path().join("keys.json"), jwks(&[&rsa])).unwrap();
    let yaml = format!(
        "
        upstreams: {{ up: {{ endpoints: [http://@0] }} }}
        authenticators:
          hs: {{ jwt: {{ issuer: 'https://id.test', audience: [api, other], algorithms: [HS256], secret: '{SECRET}' }} }}
          rs: {{ jwt: {{ issuer: 'https://id.test', audience: [api], algorithms: [RS256], public_key: rsa.pem }} }}
          set: {{ jwt: {{ issuer: 'https://id.test', audience: [api], algorithms: [RS256], jwks: keys.json }} }}
        routes:
          - {{ match: /hs, auth: hs, upstream: up }}
          - {{ match: /rs, auth: rs, upstream: up }}
          - {{ match: /set, auth: set, upstream: up }}
    "
    );
    let gateway = Gateway::in_dir(dir, &yaml, &[upstream.address]);
    let good = claims().to_string();
    let hs = |header: &str| tokens::raw(header, &good, SECRET.as_bytes());
    let changed = |other| hs256(&with(claims(), other));
    let text = |payload: String| tokens::raw(r#"{"alg":"HS256"}"#, &payload, SECRET.as_bytes());
    let mut bad: Vec<(&str, String)> = Vec::new();
    for alg in ["none", "None", "nOnE", "", "HS384", "hs256"] {
        bad.push(("/hs", hs(&format!(r#"{{"alg":"{alg}"}}"#))));
        bad.push(("/rs", format!("{}.{}.", tokens::b64(format!(r#"{{"alg":"{alg}"}}"#)), tokens::b64(&good))));
    }
    // The public key as a shared secret.
    for path in ["/rs", "/set"] {
        bad.push((path, tokens::raw(r#"{"alg":"HS256","kid":"r"}"#, &good, rsa.pem.as_bytes())));
        bad.push((path, Key::ec("r").sign(&claims())));
        bad.push((path, Key::rsa("r", Algorithm::RS256).sign(&claims())));
    }
    let ec = Key::ec("lure");
    let (lure_at, jwk) = (lure.address, &ec.jwk);
    for extra in [format!(r#""jwk":{jwk}"#), format!(r#""jku":"http://{lure_at}/""#), format!(r#""x5u":"http://{lure_at}/""#)] {
        let message = format!("{}.{}", tokens::b64(format!(r#"{{"alg":"RS256","kid":"lure",{extra}}}"#)), tokens::b64(&good));
        bad.push(("/set", format!("{message}.{}", rsa.sign(&claims()).rsplit('.').next().unwrap())));
    }
    for kid in ["../../dev/null", "' OR 1=1", &"k".repeat(10_000)] {
        bad.push(("/set", tokens::raw(&json!({ "alg": "RS256", "kid": kid }).to_string(), &good, SECRET.as_bytes())));
    }
    bad.push(("/hs", hs(r#"{"alg":"HS256","crit":["exp"]}"#)));
    for other in [
        json!({ "exp": null }),
        json!({ "exp": tokens::now() - 31 }),
        json!({ "exp": "9999999999" }),
        json!({ "nbf": tokens::now() + 60 }),
        json!({ "aud": null }),
        json!({ "aud": "elsewhere" }),
        json!({ "aud": [] }),
        json!({ "iss": "https://id.test/" }),
        json!({ "iss": null }),
    ] {
        bad.push(("/hs", changed(other)));
    }
    bad.push(("/hs", text(good.replacen("\"exp\":", "\"exp\":1e999,\"x\":", 1))));
    bad.push(("/hs", text(format!("{},\"sub\":\"root\"}}", &good[..good.len() - 1]))));
    let token = hs256(&claims());
    bad.push(("/hs", format!("{token}.x")));
    bad.push(("/hs", format!("{token}=")));
    bad.push(("/hs", token.rsplit_once('.').unwrap().0.to_owned()));
    bad.push(("/hs", non_canonical(&token)));
    for (path, token) in &bad {
        let answer = with_fields(&gateway, path, &[("Authorization", &bearer(token))]);
        assert_eq!(answer.status, 401, "{path} {}: {answer:?}", &token[..token.len().min(200)]);
    }
    assert_eq!((upstream.count(), lure.connections()), (0, 0), "nothing upstream, and no URL of a token was called");
    // What is in order passes: a list of audiences, any case of the scheme.
    assert_eq!(with_fields(&gateway, "/hs", &[("Authorization", &bearer(&changed(json!({ "aud": ["x", "other"] }))))]).status, 200);
    assert_eq!(with_fields(&gateway, "/hs", &[("Authorization", &format!("bEARER {token}"))]).status, 200);
    assert_eq!(with_fields(&gateway, "/set", &[("Authorization", &bearer(&rsa.sign(&claims())))]).status, 200);
    // Only where `from` says.
    with_fields(&gateway, &format!("/hs?access_token={token}"), &[("Cookie", &format!("token={token}"))]).refused(401, "unauthenticated");
    let twice = [("Authorization", bearer(&token)), ("Authorization", bearer(&token))];
    let fields: Vec<_> = twice.iter().map(|(name, value)| (*name, value.as_str())).collect();
    with_fields(&gateway, "/hs?twice", &fields).refused(401, "unauthenticated");
    let line = eventually("it is logged", || gateway.log().into_iter().find(|line| line["query"] == "twice"));
    assert_eq!(line["auth_error"], "malformed");
    let huge = gateway.ask(request("GET", "/hs", &[("Authorization", &bearer(&"a".repeat(1 << 20)))], ""));
    assert_eq!(huge.status, 431);
}

/// The same bytes with other unused bits at the end of the signature.
fn non_canonical(token: &str) -> String {
    const ALPHABET: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let last = token.chars().last().unwrap();
    let at = ALPHABET.find(last).unwrap();
    format!("{}{}", &token[..token.len() - 1], ALPHABET.as_bytes()[at ^ 1] as char)
}

#[test]
fn other_methods_do_not_get_around_auth() {
    let upstream = Upstream::echo();
    let gateway = kinds(&upstream, "      - { match: /a, auth: main, cors: { origins: ['https://app.test'] }, upstream: up }\n");
    for (method, fields) in [
        ("HEAD", vec![]),
        ("OPTIONS", vec![]),
        ("OPTIONS", vec![("Origin", "https://app.test")]),
        ("OPTIONS", vec![("Access-Control-Request-Method", "GET")]),
        ("POST", vec![("X-HTTP-Method-Override", "OPTIONS")]),
        ("DELETE", vec![]),
    ] {
        assert_eq!(gateway.request(method, "/a", &fields, "").status, 401, "{method} {fields:?}");
    }
    assert_eq!(upstream.count(), 0);
    let preflight = [("Origin", "https://app.test"), ("Access-Control-Request-Method", "GET")];
    assert_eq!(gateway.request("OPTIONS", "/a", &preflight, "").status, 204);
}

/// An issuer whose keys can be changed, and a gateway that asks it.
fn with_issuer(issuer: SocketAddr, upstream: &Upstream) -> Gateway {
    let yaml = "
        upstreams: { up: { endpoints: [http://@0] } }
        authenticators:
          main: { jwt: { issuer: 'https://id.test', audience: [api], algorithms: [ES256], jwks: 'http://@1/keys' } }
        routes: [{ name: all, match: /*, auth: main, upstream: up }]
    ";
    Gateway::new(yaml, &[upstream.address, issuer])
}

#[test]
fn a_rotated_key_is_picked_up_by_one_fetch_and_random_names_do_not_flood_the_issuer() {
    let (old, new) = (Key::ec("old"), Key::ec("new"));
    let set = Arc::new(Mutex::new(jwks(&[&old])));
    let served = Arc::clone(&set);
    let issuer = Upstream::serve(move |_, conn| conn.ok(served.lock().unwrap().clone()));
    let upstream = Upstream::text("hi");
    let gateway = with_issuer(issuer.address, &upstream);
    let ask = |token: &str| with_fields(&gateway, "/", &[("Authorization", &bearer(token))]).status;
    assert_eq!(ask(&old.sign(&claims())), 200, "the first request waits for the first fetch");
    assert_eq!(issuer.count(), 1);
    *set.lock().unwrap() = jwks(&[&new]);
    // Many at once: they join one fetch.
    std::thread::scope(|scope| {
        let asked: Vec<_> = (0..8)
            .map(|n| {
                let token = new.sign(&claims_of(&format!("user-{n}")));
                let ask = &ask;
                scope.spawn(move || ask(&token))
            })
            .collect();
        for one in asked {
            assert_eq!(one.join().unwrap(), 200);
        }
    });
    assert_eq!(issuer.count(), 2);
    for n in 0..50 {
        assert_eq!(ask(&Key::ec(&format!("random-{n}")).sign(&claims())), 401);
    }
    // A thousand more from several clients at once.
    std::thread::scope(|scope| {
        for client in 0..4 {
            let mut raw = gateway.connect();
            scope.spawn(move || {
                for n in 0..250 {
                    let header = format!(r#"{{"alg":"ES256","kid":"{client}-{n}"}}"#);
                    let token = bearer(&tokens::raw(&header, &claims().to_string(), b"0123456789abcdef0123456789abcdef"));
                    assert_eq!(raw.ask(request("GET", "/", &[("Authorization", &token)], "")).status, 401);
                }
            });
        }
    });
    assert_eq!(issuer.count(), 2, "at most one refetch in 30 s");
    assert_eq!(ask(&old.sign(&claims_of("left"))), 401, "a key that is gone is gone");
    assert_eq!(ask(&old.sign(&claims())), 401, "also for tokens that were remembered");
    gateway.metric_becomes("gateway_jwks_fetches_total{authenticator=\"main\",result=\"ok\"}", 2.0);
}

#[test]
fn keys_that_were_never_there_are_503_and_come_back_by_themselves() {
    let key = Key::ec("k");
    let refused = crate::support::Refused::new();
    let address = refused.address;
    let upstream = Upstream::text("hi");
    let gateway = with_issuer(address, &upstream);
    let token = bearer(&key.sign(&claims()));
    let answer = with_fields(&gateway, "/down", &[("Authorization", &token)]);
    answer.refused(503, "auth_unavailable");
    assert_eq!(answer.header("retry-after"), Some("5"));
    assert!(!answer.has("www-authenticate"));
    assert_eq!(gateway.logged("/down")["auth_error"], "unavailable");
    drop(refused);
    let set = jwks(&[&key]);
    let mut issuer = Upstream::serve_on(address, move |_, conn| conn.ok(&set));
    eventually("the keys are there", || (with_fields(&gateway, "/", &[("Authorization", &token)]).status == 200).then_some(()));
    issuer.stop();
    // Old keys go on serving while the issuer is away; a name that is not among them is a bad token all the same.
    let other = bearer(&key.sign(&claims_of("someone else")));
    assert_eq!(with_fields(&gateway, "/", &[("Authorization", &other)]).status, 200);
    with_fields(&gateway, "/", &[("Authorization", &bearer(&Key::ec("x").sign(&claims())))]).refused(401, "unauthenticated");
    assert!(gateway.metric("gateway_jwks_fetches_total{authenticator=\"main\",result=\"failed\"}") >= 1.0);
}

#[test]
fn key_sets_that_redirect_or_are_huge_are_not_taken() {
    let key = Key::ec("k");
    let set = jwks(&[&key]);
    let inner = Upstream::serve(move |_, conn| conn.ok(&set));
    let to = format!("location: http://{}/\r\n", inner.address);
    let redirecting = Upstream::serve(move |_, conn| conn.answer(302, &to, ""));
    let padded = format!("{}{}", jwks(&[&key]), " ".repeat(2 << 20));
    let huge = Upstream::serve(move |_, conn| conn.ok(&padded));
    let oct = json!({ "keys": [{ "kty": "oct", "kid": "k", "k": tokens::b64("0123456789abcdef0123456789abcdef") }] }).to_string();
    let symmetric = Upstream::serve(move |_, conn| conn.ok(&oct));
    let upstream = Upstream::text("hi");
    let token = bearer(&key.sign(&claims()));
    for (issuer, status) in [(&redirecting, 503), (&huge, 503)] {
        let gateway = with_issuer(issuer.address, &upstream);
        assert_eq!(with_fields(&gateway, "/", &[("Authorization", &token)]).status, status);
    }
    assert_eq!(inner.connections(), 0, "a redirect is not followed");
    let gateway = with_issuer(symmetric.address, &upstream);
    let forged = tokens::raw(r#"{"alg":"HS256","kid":"k"}"#, &claims().to_string(), b"0123456789abcdef0123456789abcdef");
    assert!([401, 503].contains(&with_fields(&gateway, "/", &[("Authorization", &bearer(&forged))]).status));
    // The key that has signed the token, but not for this: for encryption, for another algorithm, of another type or purpose.
    for (member, value) in [("use", json!("enc")), ("alg", json!("ES384")), ("kty", json!("RSA")), ("key_ops", json!(["encrypt"]))] {
        let mut jwk = key.jwk.clone();
        jwk[member] = value;
        let set = json!({ "keys": [jwk] }).to_string();
        let unsuitable = Upstream::serve(move |_, conn| conn.ok(&set));
        let gateway = with_issuer(unsuitable.address, &upstream);
        with_fields(&gateway, "/", &[("Authorization", &token)]).refused(401, "unauthenticated");
        assert_eq!(gateway.logged("/")["auth_error"], "key", "{member}");
    }
    assert_eq!(upstream.count(), 0);
}

#[test]
fn introspection_asks_once_a_token_and_serves_what_it_knows_while_the_server_is_away() {
    let mut server = Upstream::serve(|request, conn| {
        let text = request.text();
        let answer = if text.contains("token=good") {
            json!({ "active": true, "sub": "ann", "scope": "orders:read", "client_id": "c" })
        } else if text.contains("token=moved") {
            return conn.answer(302, "location: /elsewhere\r\n", "");
        } else {
            json!({ "active": false })
        };
        conn.answer(200, "content-type: application/json\r\n", answer.to_string())
    });
    let upstream = Upstream::echo();
    let yaml = "
        upstreams: { up: { endpoints: [http://@0] } }
        authenticators:
          opaque: { introspection: { url: 'http://@1/introspect', client_id: gateway, client_secret: introspection-secret, cache: 1m, forward: { sub: x-user-id } } }
        routes: [{ name: all, match: /*, auth: { any: [opaque], scopes: ['orders:read'] }, upstream: up }]
    ";
    let gateway = Gateway::new(yaml, &[upstream.address, server.address]);
    let ask = |path: &str, token: &str| with_fields(&gateway, path, &[("Authorization", &bearer(token))]);
    for _ in 0..3 {
        assert_eq!(ask("/", "good").status, 200);
        ask("/inactive", "bad").refused(401, "unauthenticated");
    }
    assert_eq!(server.count(), 2, "one call for each token; a negative answer is remembered, too");
    assert_eq!((upstream.last().header("x-user-id"), upstream.last().has("authorization")), (Some("ann"), false));
    let called = &server.requests()[0];
    assert_eq!((called.method.as_str(), called.target.as_str()), ("POST", "/introspect"));
    assert_eq!(called.header("authorization"), Some(basic("gateway", "introspection-secret").as_str()));
    assert_eq!(gateway.logged("/inactive")["auth_error"], "inactive");
    ask("/", "moved").refused(503, "auth_unavailable");
    assert!(server.requests().iter().all(|request| request.target == "/introspect"), "a redirect is not followed");
    server.stop();
    assert_eq!(ask("/", "good").status, 200, "what is remembered still serves");
    let answer = ask("/away", "unknown");
    answer.refused(503, "auth_unavailable");
    assert_eq!(answer.header("retry-after"), Some("5"));
    assert_eq!(gateway.logged("/away")["auth_error"], "unavailable");
}

#[test]
fn of_several_that_read_the_same_place_a_jwt_takes_its_own_issuers_tokens() {
    let server = Upstream::serve(|_, conn| conn.ok(r#"{"active":true,"sub":"opaque-user"}"#));
    let upstream = Upstream::echo();
    let yaml = format!(
        "
        upstreams: {{ up: {{ endpoints: [http://@0] }} }}
        authenticators:
          one: {{ jwt: {{ issuer: 'https://id.test', audience: [api], algorithms: [HS256], secret: '{SECRET}', forward: {{ iss: x-iss }} }} }}
          two: {{ jwt: {{ issuer: 'https://two.test', audience: [api], algorithms: [HS256], secret: '{SECRET}', forward: {{ iss: x-iss }} }} }}
          opaque: {{ introspection: {{ url: 'http://@1/', client_id: g, client_secret: s, forward: {{ sub: x-iss }} }} }}
        routes: [{{ match: /two, auth: [one, two], upstream: up }}, {{ match: /all, auth: [one, two, opaque], upstream: up }}]
    "
    );
    let gateway = Gateway::new(&yaml, &[upstream.address, server.address]);
    let of = |issuer: &str| hs256(&with(claims(), json!({ "iss": issuer })));
    for (path, token, who) in [
        ("/two", of("https://id.test"), Some("https://id.test")),
        ("/two", of("https://two.test"), Some("https://two.test")),
        ("/two", of("https://three.test"), None),
        ("/two", "opaque".to_owned(), None),
        ("/all", of("https://two.test"), Some("https://two.test")),
        ("/all", "opaque".to_owned(), Some("opaque-user")),
    ] {
        let answer = with_fields(&gateway, path, &[("Authorization", &bearer(&token))]);
        match who {
            Some(who) => assert_eq!((answer.status, upstream.last().header("x-iss")), (200, Some(who))),
            None => answer.refused(401, "unauthenticated"),
        }
    }
}

#[test]
fn client_certificates_say_who_the_caller_is() {
    let upstream = Upstream::echo();
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    authority.issue(dir.path(), "site", &["site.test"]);
    authority.issue(dir.path(), "caller", &["caller.test"]);
    std::fs::write(dir.path().join("ca.pem"), authority.pem()).unwrap();
    let yaml = "
        listeners:
          - { address: '127.0.0.1:0', tls: { certificates: [{ cert: site.pem, key: site.key }], client_ca: ca.pem, client_auth: optional } }
        upstreams: { up: { endpoints: [http://@0] } }
        authenticators: { mesh: { client_cert: { forward: { subject: x-client-subject, san: x-client-san } } } }
        routes: [{ name: all, match: /*, auth: mesh, upstream: up }]
    ";
    let gateway = Gateway::in_dir(dir, yaml, &[upstream.address]);
    let ask = |identity: Option<&str>, path: &str| {
        let dir = gateway.dir();
        let config = authority.client(&["http/1.1"], identity.map(|name| (dir.as_path(), name)));
        let (mut raw, _) = certs::connect(gateway.address(), &config, "site.test").unwrap();
        raw.ask(request("GET", path, &[("X-Client-San", "root"), ("x_client_subject", "root")], ""))
    };
    assert_eq!(ask(Some("caller"), "/in").status, 200);
    let seen = upstream.last();
    assert_eq!(seen.all("x-client-san"), ["caller.test"]);
    assert!(seen.header("x-client-subject").unwrap().contains("CN=caller") && !seen.has("x_client_subject"), "{seen:?}");
    assert_eq!(gateway.logged("/in")["user"], "caller.test");
    ask(None, "/out").refused(401, "unauthenticated");
    assert_eq!(gateway.logged("/out")["auth_error"], "missing");
}

#[test]
fn bcrypt_does_not_stall_other_requests() {
    let upstream = Upstream::echo();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("users"), format!("ada:{}\n", bcrypt::hash("lovelace", 12).unwrap())).unwrap();
    let yaml = "
        server: { workers: 1, timeouts: { drain: 200ms } }
        upstreams: { up: { endpoints: [http://@0] } }
        authenticators: { staff: { basic: { users_file: users, realm: staff } } }
        routes: [{ match: /staff, auth: staff, upstream: up }, { match: /open, upstream: up }]
    ";
    let gateway = Gateway::in_dir(dir, yaml, &[upstream.address]);
    // Unknown names cost as much as known ones; different ones, so that nothing is shared.
    let mut waiting: Vec<_> = (0..6)
        .map(|n| {
            let mut raw = gateway.connect();
            raw.send(request("GET", "/staff", &[("Authorization", &basic(&format!("nobody-{n}"), "x"))], ""));
            raw
        })
        .collect();
    assert_eq!(gateway.get("/open").status, 200);
    // The plain request was answered while they were still waited for: the last of them has no answer yet.
    let last = waiting.last_mut().unwrap();
    last.socket.set_nonblocking(true).unwrap();
    let early = std::io::Read::read(&mut &last.socket, &mut [0]);
    assert!(matches!(&early, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock), "{early:?}");
    last.socket.set_nonblocking(false).unwrap();
    for raw in &mut waiting {
        raw.read().refused(401, "unauthenticated");
    }
    // A password that was right once is remembered, and any other is not.
    let ada = basic("ada", "lovelace");
    for _ in 0..20 {
        assert_eq!(with_fields(&gateway, "/staff", &[("Authorization", &ada)]).status, 200);
    }
    with_fields(&gateway, "/staff", &[("Authorization", &basic("ada", "lovelac"))]).refused(401, "unauthenticated");
}

#[test]
fn a_keys_file_is_read_again_and_a_broken_one_keeps_the_last_good_list() {
    let upstream = Upstream::echo();
    let dir = tempfile::tempdir().unwrap();
    let list = |id: &str, key: &str| format!("- {{ id: {id}, sha256: {} }}\n", sha256(key));
    std::fs::write(dir.path().join("keys.yaml"), list("acme", "first")).unwrap();
    let yaml = "
        upstreams: { up: { endpoints: [http://@0] } }
        authenticators: { partners: { api_key: { keys_file: keys.yaml, forward: { id: x-consumer-id } } } }
        routes: [{ match: /*, auth: partners, upstream: up }]
    ";
    let gateway = Gateway::in_dir(dir, yaml, &[upstream.address]);
    let ask = |key: &str| with_fields(&gateway, "/", &[("X-Api-Key", key)]).status;
    assert_eq!((ask("first"), ask("second")), (200, 401));
    std::fs::write(gateway.dir().join("keys.yaml"), list("acme", "second")).unwrap();
    gateway.reload_ok(yaml, &[upstream.address]);
    assert_eq!((ask("first"), ask("second")), (401, 200));
    std::fs::write(gateway.dir().join("keys.yaml"), "- { id: acme, sha256: nonsense }\n").unwrap();
    let _outcome = gateway.reload(yaml, &[upstream.address]);
    assert_eq!((ask("first"), ask("second")), (401, 200));
}

#[test]
fn grpc_calls_are_refused_in_their_own_form() {
    use crate::support::h2::{Client, grpc, message};
    let upstream = Upstream::echo();
    let gateway = kinds(&upstream, "      - { match: /*, auth: main, upstream: up }\n");
    crate::support::block_on(async {
        let mut client = Client::connect(gateway.address()).await;
        let reply = client.ask(grpc("/greeter/Hello", &[]), &message(b"hi")).await.unwrap();
        assert_eq!((reply.status, reply.grpc_status()), (200, Some("16")));
    });
}

#[test]
fn unknown_wrong_and_expired_keys_get_the_same_answer() {
    let upstream = Upstream::echo();
    let gateway = kinds(&upstream, "      - { match: /*, auth: partners, upstream: up }\n");
    let answer = |key: &str| {
        let answer = with_fields(&gateway, "/", &[("X-Api-Key", key), ("X-Request-Id", "same")]);
        let headers: Vec<_> = answer.headers.into_iter().filter(|(name, _)| name != "date").collect();
        (answer.status, headers, answer.body)
    };
    assert_eq!(answer("tg_acme_0123456789abcdeX"), answer("nothing like it"));
    assert_eq!(answer(OLD_KEY), answer("nothing like it"), "an expired key is not told from a wrong one");
}
