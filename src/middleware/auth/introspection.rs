//! OAuth 2 token introspection (RFC 7662): the authorization server says who a token belongs to.

use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Request, StatusCode, Uri};
use http_body_util::Full;
use quick_cache::sync::Cache;
use serde_json::{Map, Value};

use super::chain::{Answer, Outcome};
use super::claims::{self, Forward};
use super::errands::{Errands, Flights};
use super::failure::AuthError;
use super::jwt::{Digest, Now};
use super::strict_json;
use crate::http::Identity;
use crate::http::fetch::{Limits, fetch};

/// Results that are remembered.
const REMEMBERED: usize = 10_000;
/// Calls at a time, so that a flood of tokens does not become a flood of connections.
const CALLS: usize = 64;
/// A call may take 5 s; an answer is small.
const LIMITS: Limits = Limits { timeout: Duration::from_secs(5), max_body: 1 << 20 };

/// A compiled `introspection` authenticator with its memory.
#[derive(Debug)]
pub(super) struct Introspection {
    server: Arc<Server>,
    results: Arc<Cache<Digest, Remembered>>,
    flights: Arc<Flights>,
}

/// The endpoint and how to read its answers.
struct Server {
    name: String,
    url: Uri,
    /// The gateway's own credentials.
    authorization: HeaderValue,
    cache: Duration,
    forward: Forward,
    errands: Arc<Errands>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("name", &self.name).finish_non_exhaustive()
    }
}

#[derive(Clone, Debug)]
struct Remembered {
    outcome: Outcome,
    until: Instant,
}

impl Introspection {
    /// An authenticator that remembers nothing yet. `None`: the credentials cannot stand in a header.
    pub(super) fn new(
        name: &str,
        config: &crate::config::auth::Introspection,
        url: Uri,
        forward: Forward,
        errands: Arc<Errands>,
    ) -> Option<Self> {
        // RFC 6749, 2.3.1: both are form-encoded first.
        let pair = format!("{}:{}", form_encode(&config.client_id), form_encode(config.client_secret.expose()));
        let mut authorization = HeaderValue::try_from(format!("Basic {}", STANDARD.encode(pair))).ok()?;
        authorization.set_sensitive(true);
        let server = Server { name: name.to_owned(), url, authorization, cache: config.cache.get(), forward, errands };
        Some(Self { server: Arc::new(server), results: Arc::new(Cache::new(REMEMBERED)), flights: Flights::new(CALLS) })
    }

    /// What `forward` writes.
    pub(super) fn forward(&self) -> &Forward {
        &self.server.forward
    }

    /// Whose token it is.
    pub(super) fn verify(&self, token: &str, digest: &Digest) -> Answer {
        let known = || self.results.get(digest).filter(|known| Instant::now() < known.until).map(|known| known.outcome);
        if let Some(outcome) = known() {
            return Answer::Now(outcome);
        }
        let (server, results, digest, token) = (self.server.clone(), self.results.clone(), *digest, token.to_owned());
        self.flights.join(digest, &self.server.errands, known, async move {
            match server.ask(&token).await {
                Ok(answer) => {
                    let (outcome, left) = server.judge(answer, Now::read().unix);
                    if !left.is_zero() {
                        results.insert(digest, Remembered { outcome: outcome.clone(), until: Instant::now() + left });
                    }
                    outcome
                }
                Err(error) => {
                    server.errands.introspection_failed(&server.name, &error);
                    Err(AuthError::Unavailable)
                }
            }
        })
    }
}

impl Server {
    async fn ask(&self, token: &str) -> Result<Map<String, Value>, String> {
        let body = format!("token={}&token_type_hint=access_token", form_encode(token));
        let request = Request::post(self.url.clone())
            .header(AUTHORIZATION, self.authorization.clone())
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(ACCEPT, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| error.to_string())?;
        let tls = self.errands.tls(&self.url).await?;
        let response = fetch(request, &tls, LIMITS).await.map_err(|error| error.to_string())?;
        if response.status() != StatusCode::OK {
            return Err(format!("status {}", response.status().as_u16()));
        }
        let answer = strict_json::object(response.body()).filter(|answer| answer.get("active").is_some_and(Value::is_boolean));
        answer.ok_or_else(|| "the answer is not an object with `active`".to_owned())
    }

    /// What an answer means at `now` (seconds since 1970), and how long that is remembered.
    fn judge(&self, answer: Map<String, Value>, now: f64) -> (Outcome, Duration) {
        if answer.get("active") != Some(&Value::Bool(true)) {
            return (Err(AuthError::Inactive), self.cache);
        }
        let mut left = self.cache;
        if let Some(expires) = answer.get("exp").filter(|value| !value.is_null()) {
            let Some(expires) = expires.as_f64().filter(|expires| now < *expires) else {
                return (Err(AuthError::Expired), self.cache);
            };
            left = left.min(Duration::try_from_secs_f64(expires - now).unwrap_or(left));
        }
        let user = ["sub", "username", "client_id"].iter().find_map(|name| answer.get(*name)?.as_str()).unwrap_or_default().into();
        let identity = Identity { user, scopes: claims::scopes(&answer), forward: self.forward.fields(&answer), claims: answer };
        (Ok(Arc::new(identity)), left)
    }
}

/// Encodes a form component.
fn form_encode(text: &str) -> String {
    use std::fmt::Write;
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'*' => out.push(char::from(byte)),
            b' ' => out.push('+'),
            // Writing to a string cannot fail.
            _ => drop(write!(out, "%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn server(cache: u64) -> Server {
        Server {
            name: "t".into(),
            url: Uri::from_static("http://127.0.0.1/"),
            authorization: HeaderValue::from_static("x"),
            cache: Duration::from_secs(cache),
            forward: Forward::default(),
            errands: Arc::default(),
        }
    }

    #[test]
    fn answers_are_judged_and_kept_no_longer_than_the_token_lives() {
        let judge = |answer: Value| {
            let (outcome, left) = server(30).judge(answer.as_object().unwrap().clone(), 1000.0);
            (outcome.map(|identity| identity.user.to_string()), left.as_secs())
        };
        assert_eq!(judge(json!({"active": true, "sub": "s", "username": "u"})), (Ok("s".into()), 30));
        assert_eq!(judge(json!({"active": true, "username": "u", "client_id": "c"})), (Ok("u".into()), 30));
        assert_eq!(judge(json!({"active": true, "client_id": "c", "exp": 1010})), (Ok("c".into()), 10));
        assert_eq!(judge(json!({"active": true, "sub": "s", "exp": 5000})), (Ok("s".into()), 30));
        assert_eq!(judge(json!({"active": true, "sub": "s", "exp": 1000})), (Err(AuthError::Expired), 30));
        assert_eq!(judge(json!({"active": true, "sub": "s", "exp": "5000"})), (Err(AuthError::Expired), 30));
        assert_eq!(judge(json!({"active": false, "sub": "s"})), (Err(AuthError::Inactive), 30));
    }

    #[test]
    fn forms_are_encoded() {
        assert_eq!(form_encode("a b&c=é/+*-._~"), "a+b%26c%3D%C3%A9%2F%2B*-._%7E");
    }
}
