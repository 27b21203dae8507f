//! Requests, tokens, and a server that answers what a test tells it to.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::WWW_AUTHENTICATE;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::super::{AuthChain, Authenticators, Observer, Registry};
use crate::config::auth::{AuthRule, Authenticator, Jwt, Place};
use crate::config::{At, Problems};
use crate::error::Refusal;
use crate::http::exchange::{ClientCertificate, Connection};
use crate::http::{Exchange, Host, Params, Scheme};
use crate::units::{Duration, Secret};

pub(super) const SECRET: &str = "0123456789abcdef0123456789abcdef";
pub(super) const ISSUER: &str = "https://id.test";

pub(super) fn jwt() -> Jwt {
    Jwt {
        issuer: ISSUER.into(),
        audience: vec!["api".into(), "other-api".into()],
        algorithms: vec!["HS256".into()],
        jwks: None,
        secret: Some(Secret::new(SECRET)),
        public_key: None,
        leeway: Duration::from_secs(30),
        from: vec![Place::Bearer],
        forward: BTreeMap::from([("sub".into(), "x-user-id".into())]),
        keep: false,
    }
}

pub(super) fn jwt_block(jwt: Jwt) -> Authenticator {
    Authenticator { jwt: Some(jwt), ..Authenticator::default() }
}

pub(super) fn compile(blocks: &[(&str, Authenticator)], registry: &Registry) -> (Authenticators, Problems) {
    let written = blocks.iter().map(|(name, block)| ((*name).to_owned(), block.clone())).collect();
    let mut problems = Problems::default();
    let compiled = Authenticators::compile(&written, registry, &|_, name| PathBuf::from(name), &mut problems);
    (compiled, problems)
}

pub(super) fn good(blocks: &[(&str, Authenticator)]) -> Authenticators {
    let (compiled, problems) = compile(blocks, &Registry::default());
    assert!(!problems.has_errors(), "{problems:?}");
    compiled
}

pub(super) fn rule(any: &[&str]) -> AuthRule {
    AuthRule { any: any.iter().map(|name| (*name).to_owned()).collect(), ..AuthRule::default() }
}

pub(super) fn chain(authenticators: &Authenticators, rule: &AuthRule) -> AuthChain {
    let mut problems = Problems::default();
    AuthChain::compile(rule, &At::default(), authenticators, &mut problems).unwrap_or_else(|| panic!("{problems:?}"))
}

/// A chain of one authenticator that needs nothing more.
pub(super) fn single(block: Authenticator) -> AuthChain {
    chain(&good(&[("a", block)]), &rule(&["a"]))
}

pub(super) fn claims() -> Value {
    json!({ "iss": ISSUER, "aud": "api", "sub": "ann", "exp": now() + 600 })
}

pub(super) fn now() -> u64 {
    jsonwebtoken::get_current_timestamp()
}

pub(super) fn sign(claims: &Value, secret: &str) -> String {
    encode(&Header::new(Algorithm::HS256), claims, &EncodingKey::from_secret(secret.as_bytes())).unwrap()
}

/// A token of these very texts, signed as HS256 whatever the header says.
pub(super) fn sign_raw(header: &str, payload: &str) -> String {
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &EncodingKey::from_secret(SECRET.as_bytes()), Algorithm::HS256).unwrap();
    format!("{message}.{signature}")
}

/// What came of a request.
pub(super) struct Asked {
    pub(super) result: Result<(), Box<Refusal>>,
    pub(super) exchange: Exchange,
    pub(super) headers: HeaderMap,
}

impl Asked {
    /// `ann`, or `401 malformed`.
    pub(super) fn summary(&self) -> String {
        match &self.result {
            Ok(()) => self.exchange.user().unwrap_or("nobody").to_owned(),
            Err(refusal) => format!("{} {}", refusal.status().as_u16(), self.exchange.auth_error.unwrap_or("-")),
        }
    }
    pub(super) fn challenges(&self) -> Vec<String> {
        let refusal = self.result.as_ref().unwrap_err();
        refusal.headers.get_all(WWW_AUTHENTICATE).iter().map(|value| value.to_str().unwrap().to_owned()).collect()
    }
    pub(super) fn detail(&self) -> &str {
        &self.result.as_ref().unwrap_err().detail
    }
}

pub(super) async fn ask_with(chain: &AuthChain, lines: &[(&str, &str)], target: &str, certificate: Option<ClientCertificate>) -> Asked {
    let mut headers: HeaderMap =
        lines.iter().map(|(name, value)| (HeaderName::try_from(*name).unwrap(), HeaderValue::try_from(*value).unwrap())).collect();
    let target: PathAndQuery = target.parse().unwrap();
    let peer = "127.0.0.1:9".parse().unwrap();
    let mut exchange = Exchange {
        worker: 0,
        connection: Connection { listener: 0, peer, tls: false, tls_version: None, client_cert: certificate.map(Arc::new) },
        started: Instant::now(),
        method: Method::GET,
        version: Version::HTTP_11,
        target,
        host: Host::new(None, None, 0..0),
        scheme: Scheme::Http,
        client_ip: peer.ip(),
        request_id: HeaderValue::from_static("id"),
        params: Params::default(),
        identity: None,
        rate_fields: None,
        auth_error: None,
        rate_limit: None,
    };
    let result = chain.check(&mut exchange, &headers).await.map(|spent| spent.remove(&mut headers, &mut exchange.target));
    Asked { result, exchange, headers }
}

pub(super) async fn ask(chain: &AuthChain, lines: &[(&str, &str)]) -> Asked {
    ask_with(chain, lines, "/", None).await
}

pub(super) async fn bearer(chain: &AuthChain, token: &str) -> Asked {
    ask(chain, &[("authorization", &format!("Bearer {token}"))]).await
}

/// Passes on what it is told.
pub(super) struct Events(mpsc::UnboundedSender<String>);

impl Events {
    pub(super) fn channel() -> (Arc<dyn Observer>, mpsc::UnboundedReceiver<String>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Arc::new(Self(sender)), receiver)
    }
}

impl Observer for Events {
    fn jwks_fetched(&self, authenticator: &str, result: &'static str, error: Option<&str>) {
        let _closed = self.0.send(format!("{authenticator} {result} {}", error.unwrap_or_default()).trim_end().to_owned());
    }
    fn introspection_failed(&self, authenticator: &str, error: &str) {
        let _closed = self.0.send(format!("{authenticator} {error}"));
    }
}

/// A server on loopback. Its answers can be changed; requests are counted and kept.
pub(super) struct Server {
    pub(super) url: String,
    answer: Arc<Mutex<(String, String)>>,
    count: Arc<AtomicUsize>,
    last: Arc<Mutex<String>>,
    /// While locked, nothing is answered.
    pub(super) gate: Arc<tokio::sync::Mutex<()>>,
}

impl Server {
    pub(super) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            url: format!("http://{}/path?q=1", listener.local_addr().unwrap()),
            answer: Arc::new(Mutex::new(("500 Broken".into(), String::new()))),
            count: Arc::default(),
            last: Arc::default(),
            gate: Arc::default(),
        };
        let (answer, count, last, gate) = (server.answer.clone(), server.count.clone(), server.last.clone(), server.gate.clone());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (answer, count, last, gate) = (answer.clone(), count.clone(), last.clone(), gate.clone());
                tokio::spawn(async move {
                    let request = read_request(&mut stream).await;
                    *last.lock().unwrap() = request;
                    count.fetch_add(1, Ordering::SeqCst);
                    let _open = gate.lock().await;
                    let (head, body) = answer.lock().unwrap().clone();
                    let text = format!("HTTP/1.1 {head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                    let _gone = stream.write_all(text.as_bytes()).await;
                });
            }
        });
        server
    }
    /// Status line after the version and more header lines; the body.
    pub(super) fn says(&self, head: &str, body: &str) {
        *self.answer.lock().unwrap() = (head.to_owned(), body.to_owned());
    }
    pub(super) fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }
    pub(super) fn last(&self) -> String {
        self.last.lock().unwrap().clone()
    }
}

async fn read_request(stream: &mut tokio::net::TcpStream) -> String {
    let mut text = String::new();
    let mut buffer = [0; 4096];
    loop {
        let read = stream.read(&mut buffer).await.unwrap_or(0);
        text.push_str(&String::from_utf8_lossy(&buffer[..read]));
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            if read == 0 {
                return text;
            }
            continue;
        };
        let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
        if read == 0 || body.len() >= length.unwrap_or(0) {
            return text;
        }
    }
}
