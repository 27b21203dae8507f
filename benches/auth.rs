//! What a request with a remembered token costs in `auth`: to reach is at most 1 µs.
#![allow(clippy::print_stdout, clippy::panic, clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use http::header::AUTHORIZATION;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Version};
use jsonwebtoken::{EncodingKey, Header, encode};
use tollgate::config::auth::{AuthRule, Authenticator, Jwt, Place};
use tollgate::config::{At, Problems};
use tollgate::http::{Connection, Exchange, Host, Params, Scheme};
use tollgate::middleware::auth::{AuthChain, Authenticators, Registry};
use tollgate::units::Secret;

const SECRET: &str = "0123456789abcdef0123456789abcdef";

fn chain() -> AuthChain {
    let jwt = Jwt {
        issuer: "https://id.test".into(),
        audience: vec!["api".into()],
        algorithms: vec!["HS256".into()],
        jwks: None,
        secret: Some(Secret::new(SECRET)),
        public_key: None,
        leeway: tollgate::units::Duration::from_secs(30),
        from: vec![Place::Bearer],
        forward: BTreeMap::from([("sub".into(), "x-user-id".into())]),
        keep: false,
    };
    let written = BTreeMap::from([("main".to_owned(), Authenticator { jwt: Some(jwt), ..Authenticator::default() })]);
    let mut problems = Problems::default();
    let authenticators = Authenticators::compile(&written, &Registry::default(), &|_, name| PathBuf::from(name), &mut problems);
    let rule = AuthRule { any: vec!["main".into()], ..AuthRule::default() };
    AuthChain::compile(&rule, &At::default(), &authenticators, &mut problems).unwrap()
}

fn exchange() -> Exchange {
    let peer = "127.0.0.1:9".parse().unwrap();
    Exchange {
        worker: 0,
        connection: Connection { listener: 0, peer, tls: false, tls_version: None, client_cert: None },
        started: Instant::now(),
        method: Method::GET,
        version: Version::HTTP_11,
        target: PathAndQuery::from_static("/"),
        host: Host::new(None, None, 0..0),
        scheme: Scheme::Http,
        client_ip: peer.ip(),
        request_id: HeaderValue::from_static("id"),
        params: Params::default(),
        identity: None,
        rate_fields: None,
        auth_error: None,
        rate_limit: None,
    }
}

fn main() {
    let chain = chain();
    let claims = serde_json::json!({
        "iss": "https://id.test", "aud": "api", "sub": "0198c9f0-5b1e-7c3a-9f52-6f1d2a3b4c5d", "scope": "orders:read orders:write",
        "exp": jsonwebtoken::get_current_timestamp() + 3600, "padding": "x".repeat(300)
    });
    let token = encode(&Header::default(), &claims, &EncodingKey::from_secret(SECRET.as_bytes())).unwrap();
    let value = HeaderValue::try_from(format!("Bearer {token}")).unwrap();
    let mut ex = exchange();
    let mut headers = HeaderMap::new();
    let mut target = PathAndQuery::from_static("/");
    let (rounds, mut spent) = (200_000, Duration::ZERO);
    for _ in 0..rounds {
        headers.insert(AUTHORIZATION, value.clone());
        let start = Instant::now();
        let outcome = pin!(chain.check(&mut ex, &headers)).poll(&mut Context::from_waker(Waker::noop()));
        let Poll::Ready(Ok(credential)) = outcome else { panic!("a remembered token must not wait") };
        credential.remove(&mut headers, &mut target);
        spent += start.elapsed();
    }
    println!("remembered token of {} bytes: {:.0} ns", token.len(), spent.as_secs_f64() * 1e9 / f64::from(rounds));
}
