//! A route's `auth`: which authenticator decides about a request, and what the caller must be allowed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue};
use tokio::sync::{oneshot, watch};

use super::claims::holds;
use super::failure::{AuthError, Challenges};
use super::jwt::{Digest, Jwt, Now, Rejection, digest, unverified_issuer};
use super::place::{Found, Place, text};
use super::{Authenticator, Authenticators};
use crate::config::auth::AuthRule;
use crate::config::{At, Problems};
use crate::error::Refusal;
use crate::http::{Exchange, Identity};

/// Longest wait for an answer from the control runtime. Everything it does there has a shorter limit of its own.
const PATIENCE: Duration = Duration::from_secs(10);

/// What an authenticator says about a credential.
pub(super) type Outcome = Result<Arc<Identity>, AuthError>;

/// The answer, or where it will come from.
pub(super) enum Answer {
    /// A token that was verified before: nothing was computed.
    Remembered(Arc<Identity>),
    /// Decided.
    Now(Outcome),
    /// Decided elsewhere.
    Later(oneshot::Receiver<Outcome>),
    /// A fetch of keys is awaited, then the token is looked at again.
    Keys(Box<AwaitKeys>),
}

/// A token that waits for keys.
pub(super) struct AwaitKeys {
    pub(super) jwt: Arc<Jwt>,
    pub(super) token: String,
    pub(super) digest: Digest,
    pub(super) ended: watch::Receiver<u64>,
}

impl AwaitKeys {
    async fn outcome(mut self) -> Outcome {
        // Whether the fetch ended, its task ended or patience did: the keys that are there now decide.
        let _ended = tokio::time::timeout(PATIENCE, self.ended.changed()).await;
        with_keys_of_now(&self.jwt, &self.token, &self.digest)
    }
}

/// Judges a token by the keys that are there, for good or bad.
pub(super) fn with_keys_of_now(jwt: &Jwt, token: &str, digest: &Digest) -> Outcome {
    jwt.verify(token, digest, &Now::read()).map_err(|rejection| match rejection {
        Rejection::Final(error) => error,
        Rejection::UnknownKid => AuthError::Key,
        Rejection::NoKeys => AuthError::Unavailable,
    })
}

/// A route's `auth`, compiled.
#[derive(Debug)]
pub struct AuthChain {
    links: Vec<Link>,
    scopes: Vec<String>,
    claims: Vec<(String, Vec<String>)>,
    optional: bool,
    challenges: Challenges,
}

#[derive(Debug)]
struct Link {
    authenticator: Arc<Authenticator>,
    places: Vec<Spot>,
}

/// A place, and who else among the listed reads it.
#[derive(Debug)]
struct Spot {
    place: Place,
    /// Another one reads it as well.
    shared: bool,
    /// The `jwt`s among those, which take their own issuer's tokens.
    rivals: Vec<Arc<Jwt>>,
}

/// Where a credential that has done its work stands.
#[derive(Debug)]
#[must_use = "a credential must not travel upstream"]
pub struct Spent<'c> {
    place: Option<&'c Place>,
    took_time: bool,
}

impl Spent<'_> {
    /// Whether it took time to decide about it: anything but a look at what is remembered.
    pub fn took_time(&self) -> bool {
        self.took_time
    }

    /// Takes the credential out of the request, unless it is to be kept.
    pub fn remove(self, headers: &mut HeaderMap, target: &mut PathAndQuery) {
        if let Some(place) = self.place {
            place.remove(headers, target);
        }
    }
}

/// Who decides about a request.
enum Decision<'c> {
    /// Nothing was sent.
    Nobody,
    /// Something was sent that none takes, or that cannot be read.
    Refused { error: AuthError, bearer: bool },
    /// This authenticator, by what stands at this place.
    By { authenticator: &'c Authenticator, place: &'c Place, answer: Answer },
}

impl AuthChain {
    /// Compiles `rule`, written at `at`.
    pub fn compile(rule: &AuthRule, at: &At, authenticators: &Authenticators, problems: &mut Problems) -> Option<Self> {
        let mut listed: Vec<Arc<Authenticator>> = Vec::with_capacity(rule.any.len());
        let mut good = true;
        if rule.any.is_empty() {
            problems.error(at.clone(), "`auth` names no authenticator").help("write the name of one, or `off`");
            good = false;
        }
        for name in &rule.any {
            match authenticators.get(name) {
                Some(found) if listed.iter().any(|other| Arc::ptr_eq(other, found)) => {
                    problems.error(at.clone(), format!("`{name}` is listed twice"));
                    good = false;
                }
                Some(found) => listed.push(found.clone()),
                // One that is defined and broken was reported there.
                None if authenticators.is_defined(name) => good = false,
                None => {
                    let known: Vec<&str> = authenticators.names().collect();
                    let help = if known.is_empty() { "none are defined".to_owned() } else { format!("defined are: {}", known.join(", ")) };
                    problems.error(at.clone(), format!("unknown authenticator `{name}`")).help(help);
                    good = false;
                }
            }
        }
        good &= check_rule(rule, at, problems);
        if !good {
            return None;
        }
        let links = (0..listed.len()).map(|index| link(&listed, index)).collect();
        let schemes = listed.iter().filter_map(|a| HeaderValue::try_from(a.challenge.as_str()).ok());
        Some(Self {
            links,
            scopes: rule.scopes.clone(),
            claims: rule.claims.iter().map(|(name, values)| (name.clone(), values.clone())).collect(),
            optional: rule.optional,
            challenges: Challenges::new(schemes, &rule.scopes),
        })
    }

    /// Decides about a request: sets `identity` or `auth_error`. The credential is still in `headers` and `target`, for limits
    /// that count by it; [`Spent::remove`] takes it out before anything goes upstream.
    ///
    /// Does not wait when the answer is at hand: a remembered credential, a token whose key is there, an API key, a certificate.
    ///
    /// # Errors
    /// 401, 403 or 503, ready to be answered.
    pub async fn check(&self, ex: &mut Exchange, headers: &HeaderMap) -> Result<Spent<'_>, Box<Refusal>> {
        let (authenticator, place, answer) = match self.decide(ex, headers) {
            Decision::Nobody if self.optional && self.scopes.is_empty() && self.claims.is_empty() => {
                return Ok(Spent { place: None, took_time: false });
            }
            Decision::Nobody => return Err(self.refuse(ex, AuthError::Missing, false, false)),
            Decision::Refused { error, bearer } => return Err(self.refuse(ex, error, bearer, false)),
            Decision::By { authenticator, place, answer } => (authenticator, place, answer),
        };
        let took_time = !matches!(answer, Answer::Remembered(_));
        let outcome = match answer {
            Answer::Remembered(identity) => Ok(identity),
            Answer::Now(outcome) => outcome,
            Answer::Later(receiver) => match tokio::time::timeout(PATIENCE, receiver).await {
                Ok(Ok(outcome)) => outcome,
                Ok(Err(_)) | Err(_) => Err(AuthError::Unavailable),
            },
            Answer::Keys(wait) => wait.outcome().await,
        };
        let bearer = authenticator.is_bearer();
        let identity = outcome.map_err(|error| self.refuse(ex, error, bearer, bearer))?;
        let allowed = self.allows(&identity);
        ex.identity = Some(identity);
        match allowed {
            Ok(()) => Ok(Spent { place: (!authenticator.keep).then_some(place), took_time }),
            Err(error) => Err(self.refuse(ex, error, bearer, false)),
        }
    }

    fn refuse(&self, ex: &mut Exchange, error: AuthError, bearer: bool, told: bool) -> Box<Refusal> {
        ex.auth_error = Some(error.as_str());
        self.challenges.refuse(error, bearer, told)
    }

    fn allows(&self, identity: &Identity) -> Result<(), AuthError> {
        if !self.scopes.iter().all(|needed| identity.scopes.contains(needed)) {
            return Err(AuthError::Scope);
        }
        if !self.claims.iter().all(|(name, values)| holds(&identity.claims, name, values)) {
            return Err(AuthError::Claims);
        }
        Ok(())
    }

    /// The first authenticator whose credential is present decides, and its answer is final.
    fn decide(&self, ex: &Exchange, headers: &HeaderMap) -> Decision<'_> {
        let mut untaken = None;
        for link in &self.links {
            let authenticator = &*link.authenticator;
            for spot in &link.places {
                if spot.place == Place::Certificate {
                    if let Some(certificate) = &ex.connection.client_cert {
                        return Decision::By { authenticator, place: &spot.place, answer: authenticator.certificate(certificate) };
                    }
                    continue;
                }
                let bearer = authenticator.is_bearer();
                let credential = match spot.place.read(headers, ex.query()) {
                    Found::Absent => continue,
                    Found::Malformed => return Decision::Refused { error: AuthError::Malformed, bearer },
                    Found::Value(credential) => credential,
                };
                let digest = digest(&credential);
                if spot.shared && !spot.takes(authenticator, &credential, &digest, ex.started) {
                    let error = if unverified_issuer(text(&credential)).is_some() { AuthError::Issuer } else { AuthError::Malformed };
                    untaken.get_or_insert(Decision::Refused { error, bearer });
                    continue;
                }
                return Decision::By { authenticator, place: &spot.place, answer: authenticator.verify(&credential, &digest, ex.started) };
            }
        }
        untaken.unwrap_or(Decision::Nobody)
    }
}

impl Spot {
    /// Of several that read this place, a `jwt` takes its own issuer's tokens, and any other kind what no `jwt` takes.
    fn takes(&self, authenticator: &Authenticator, credential: &[u8], digest: &Digest, now: Instant) -> bool {
        let issuer = || unverified_issuer(text(credential));
        match authenticator.jwt() {
            Some(jwt) => jwt.remembered(digest, now).is_some() || issuer().is_some_and(|issuer| issuer == jwt.issuer),
            None if self.rivals.is_empty() => true,
            None => issuer().is_none_or(|issuer| self.rivals.iter().all(|jwt| jwt.issuer != issuer)),
        }
    }
}

fn link(listed: &[Arc<Authenticator>], index: usize) -> Link {
    let others = |place: &Place| {
        let place = place.clone();
        listed.iter().enumerate().filter(move |(other, a)| *other != index && a.places.contains(&place)).map(|(_, a)| a)
    };
    let authenticator = listed[index].clone();
    let spot = |place: &Place| Spot {
        place: place.clone(),
        shared: others(place).next().is_some(),
        rivals: others(place).filter_map(|other| other.jwt().cloned()).collect(),
    };
    let places = authenticator.places.iter().map(spot).collect();
    Link { authenticator, places }
}

fn check_rule(rule: &AuthRule, at: &At, problems: &mut Problems) -> bool {
    let mut good = true;
    for (name, values) in &rule.claims {
        if values.is_empty() {
            problems
                .error(at.key("claims").key(name), format!("no value is allowed for `{name}`, so nobody could pass"))
                .help("list the values that may pass, or write \"*\" for any");
            good = false;
        }
    }
    // RFC 6749, 3.3: what a scope may hold. It is written into a quoted string of a header.
    let token = |scope: &String| !scope.is_empty() && scope.bytes().all(|b| (0x21..0x7f).contains(&b) && b != b'"' && b != b'\\');
    if let Some(wrong) = rule.scopes.iter().find(|scope| !token(scope)) {
        problems.error(at.key("scopes"), format!("`{wrong}` cannot be a scope")).help("a scope has no spaces, quotes or backslashes");
        good = false;
    }
    good
}
