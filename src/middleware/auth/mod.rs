//! Authentication: who the caller is, and whether the route is for them.
//!
//! [`Authenticators`] are compiled from `authenticators`, [`AuthChain`]s from the routes' `auth`. What must outlive a reload
//! (fetched keys, verified tokens, results of introspection and bcrypt) lives in the authenticator itself: one whose block and
//! files did not change is taken over as it is from the [`Registry`].

mod api_key;
mod basic;
mod chain;
mod claims;
mod client_cert;
mod compile;
mod errands;
mod failure;
mod introspection;
mod jwks;
mod jwt;
mod keys;
mod memo;
mod new_key;
mod place;
mod strict_json;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use http::HeaderName;

pub use chain::{AuthChain, Spent};
pub use failure::AuthError;
pub use new_key::new_key;

use crate::config::auth as config;
use crate::http::exchange::ClientCertificate;
use api_key::ApiKeys;
use basic::Basic;
use chain::{Answer, AwaitKeys, with_keys_of_now};
use claims::Forward;
use client_cert::ClientCert;
use errands::Errands;
use introspection::Introspection;
use jwt::{Digest, Jwt, Keys, Now, Rejection};
use place::{Place, text};

/// What happens in the background, for logs and metrics.
pub trait Observer: Send + Sync {
    /// Keys were fetched: `result` is `ok` or `failed`, then with the error.
    fn jwks_fetched(&self, authenticator: &str, result: &'static str, error: Option<&str>);
    /// A call of the introspection endpoint gave no answer.
    fn introspection_failed(&self, authenticator: &str, error: &str);
}

/// One compiled authenticator with its memory.
#[derive(Debug)]
pub struct Authenticator {
    name: String,
    /// The block it was made from, without its place.
    block: config::Authenticator,
    /// SHA-256 of the files it was made from.
    files: Digest,
    kind: Kind,
    places: Vec<Place>,
    keep: bool,
    challenge: String,
}

#[derive(Debug)]
enum Kind {
    Jwt(Arc<Jwt>),
    ApiKey(ApiKeys),
    Introspection(Introspection),
    Basic(Box<Basic>),
    ClientCert(ClientCert),
}

/// All authenticators of one configuration.
#[derive(Clone, Debug, Default)]
pub struct Authenticators {
    by_name: BTreeMap<String, Option<Arc<Authenticator>>>,
    registry: Registry,
}

/// Authenticators that serve now; the next configuration takes over those that did not change. One per process.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    serving: Arc<Mutex<BTreeMap<String, Arc<Authenticator>>>>,
    errands: Arc<Errands>,
}

impl Registry {
    fn get(&self, name: &str) -> Option<Arc<Authenticator>> {
        self.serving.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }
    fn replace(&self, all: BTreeMap<String, Arc<Authenticator>>) {
        *self.serving.lock().unwrap_or_else(PoisonError::into_inner) = all;
    }
}

/// Background work of a configuration; dropping it stops the work.
#[derive(Debug, Default)]
pub struct Handle(Vec<tokio::task::JoinHandle<()>>);

impl Drop for Handle {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}

impl Authenticators {
    fn get(&self, name: &str) -> Option<&Arc<Authenticator>> {
        self.by_name.get(name)?.as_ref()
    }
    fn is_defined(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }
    fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.keys().map(String::as_str)
    }
    fn all(&self) -> impl Iterator<Item = &Arc<Authenticator>> {
        self.by_name.values().flatten()
    }

    /// Headers that only the gateway may set: every target of a `forward`, lower case, with `_` as `-`.
    pub fn protected_headers(&self) -> impl Iterator<Item = HeaderName> + '_ {
        self.all().flat_map(|authenticator| authenticator.forward().protected())
    }

    /// Headers that carry credentials: trailers must not.
    pub fn credential_headers(&self) -> impl Iterator<Item = &HeaderName> {
        self.all().flat_map(|authenticator| &authenticator.places).filter_map(|place| match place {
            Place::Header(name) => Some(name),
            Place::Scheme(_) | Place::Query(_) | Place::Cookie(_) | Place::Certificate => None,
        })
    }

    /// Query parameters that carry credentials: `***` in logs. Names as they are when decoded.
    pub fn secret_query_names(&self) -> impl Iterator<Item = &str> {
        self.all().flat_map(|authenticator| &authenticator.places).filter_map(|place| match place {
            Place::Query(name) => Some(name.as_str()),
            Place::Scheme(_) | Place::Header(_) | Place::Cookie(_) | Place::Certificate => None,
        })
    }

    /// The same for the access log, if there are any.
    pub fn secret_query(&self) -> Option<Arc<[String]>> {
        let names: Arc<[String]> = self.secret_query_names().map(str::to_owned).collect();
        (!names.is_empty()).then_some(names)
    }

    /// Begins to serve: call it when the configuration is accepted. Starts the background work on the control runtime and
    /// makes these the authenticators that the next configuration takes over from.
    pub fn start(&self, control: &tokio::runtime::Handle, observer: &Arc<dyn Observer>) -> Handle {
        self.registry.errands.start(control, observer);
        let mut tasks = Vec::new();
        let mut serving = BTreeMap::new();
        for authenticator in self.all() {
            serving.insert(authenticator.name.clone(), authenticator.clone());
            tasks.extend(authenticator.start(control, observer, &self.registry.errands));
        }
        self.registry.replace(serving);
        Handle(tasks)
    }
}

impl Authenticator {
    fn jwt(&self) -> Option<&Arc<Jwt>> {
        match &self.kind {
            Kind::Jwt(jwt) => Some(jwt),
            Kind::ApiKey(_) | Kind::Introspection(_) | Kind::Basic(_) | Kind::ClientCert(_) => None,
        }
    }

    /// Whether its credentials are bearer tokens, for challenges.
    fn is_bearer(&self) -> bool {
        match &self.kind {
            Kind::Jwt(_) | Kind::Introspection(_) => true,
            Kind::ApiKey(_) | Kind::Basic(_) | Kind::ClientCert(_) => false,
        }
    }

    fn forward(&self) -> &Forward {
        match &self.kind {
            Kind::Jwt(jwt) => &jwt.forward,
            Kind::ApiKey(keys) => &keys.forward,
            Kind::Introspection(introspection) => introspection.forward(),
            Kind::Basic(basic) => &basic.forward,
            Kind::ClientCert(client_cert) => &client_cert.forward,
        }
    }

    /// Judges a credential that was read from one of its places, of a request that came at `now`.
    fn verify(&self, credential: &[u8], digest: &Digest, now: Instant) -> Answer {
        match &self.kind {
            Kind::Jwt(jwt) => verify_token(jwt, credential, digest, now),
            Kind::ApiKey(keys) => Answer::Now(keys.verify(digest, Now::read().unix)),
            Kind::Introspection(introspection) => introspection.verify(text(credential), digest),
            Kind::Basic(basic) => basic.verify(text(credential)),
            Kind::ClientCert(_) => Answer::Now(Err(AuthError::Missing)),
        }
    }

    /// Judges a certificate that the listener verified.
    fn certificate(&self, certificate: &ClientCertificate) -> Answer {
        match &self.kind {
            Kind::ClientCert(client_cert) => Answer::Now(Ok(client_cert.identity(certificate))),
            Kind::Jwt(_) | Kind::ApiKey(_) | Kind::Introspection(_) | Kind::Basic(_) => Answer::Now(Err(AuthError::Missing)),
        }
    }

    /// Starts what it does in the background, if anything.
    fn start(
        &self,
        control: &tokio::runtime::Handle,
        observer: &Arc<dyn Observer>,
        errands: &Arc<Errands>,
    ) -> Option<tokio::task::JoinHandle<()>> {
        let Keys::Fetched(jwks) = &self.jwt()?.keys else { return None };
        let (jwks, observer, errands, name) = (jwks.clone(), observer.clone(), errands.clone(), self.name.clone());
        Some(control.spawn(async move {
            match errands.tls(jwks.url()).await {
                Ok(tls) => jwks.run(&name, &tls, &*observer).await,
                Err(error) => observer.jwks_fetched(&name, "failed", Some(&error)),
            }
        }))
    }
}

fn verify_token(jwt: &Arc<Jwt>, token: &[u8], digest: &Digest, now: Instant) -> Answer {
    if let Some(identity) = jwt.remembered(digest, now) {
        return Answer::Remembered(identity);
    }
    let token = text(token);
    let now = Now::read();
    let rejection = match jwt.verify(token, digest, &now) {
        Ok(identity) => return Answer::Now(Ok(identity)),
        Err(rejection) => rejection,
    };
    let ended = match (rejection, &jwt.keys) {
        (Rejection::Final(error), _) => return Answer::Now(Err(error)),
        (Rejection::UnknownKid | Rejection::NoKeys, Keys::Fixed(_)) => return Answer::Now(Err(AuthError::Key)),
        (Rejection::UnknownKid, Keys::Fetched(jwks)) => jwks.refetch(now.instant),
        (Rejection::NoKeys, Keys::Fetched(jwks)) => jwks.join(),
    };
    match ended {
        Some(ended) => Answer::Keys(Box::new(AwaitKeys { jwt: jwt.clone(), token: token.to_owned(), digest: *digest, ended })),
        // A fetch may have ended since the token was looked at: the keys that are there now decide.
        None => Answer::Now(with_keys_of_now(jwt, token, digest)),
    }
}
