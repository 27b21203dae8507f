//! Why a credential was not accepted, and what the client is told: missing, expired or invalid, never more.

use http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue};

use crate::error::{Reason, Refusal};

/// The exact cause; its word goes to the log and the metrics, never to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AuthError {
    /// No credential was sent.
    Missing,
    /// It cannot be read.
    Malformed,
    /// The token's `alg` is not allowed.
    Algorithm,
    /// No key fits the token.
    Key,
    /// The signature is wrong.
    Signature,
    /// It was valid until some time ago, or says no time.
    Expired,
    /// It will be valid later.
    NotYetValid,
    /// Someone else issued it.
    Issuer,
    /// It is for someone else.
    Audience,
    /// The authorization server says it is not active.
    Inactive,
    /// Nobody has this key, or this name with this password.
    Unknown,
    /// A scope is missing.
    Scope,
    /// A claim does not hold.
    Claims,
    /// Keys or introspection cannot be had.
    Unavailable,
}

impl AuthError {
    /// The word in `auth_error`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Malformed => "malformed",
            Self::Algorithm => "algorithm",
            Self::Key => "key",
            Self::Signature => "signature",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::Issuer => "issuer",
            Self::Audience => "audience",
            Self::Inactive => "inactive",
            Self::Unknown => "unknown",
            Self::Scope => "scope",
            Self::Claims => "claims",
            Self::Unavailable => "unavailable",
        }
    }
}

/// `WWW-Authenticate` values of one chain, made at load.
#[derive(Debug, Default)]
pub(super) struct Challenges {
    /// Without a word about the token.
    plain: Vec<HeaderValue>,
    /// The same, with `error="invalid_token"` on `Bearer`.
    invalid_token: Vec<HeaderValue>,
    /// For a bearer token without the needed scopes.
    insufficient_scope: Option<HeaderValue>,
}

impl Challenges {
    /// Challenges for `schemes` (each as it stands in the header) and the scopes of the rule.
    pub(super) fn new(schemes: impl Iterator<Item = HeaderValue>, scopes: &[String]) -> Self {
        let mut plain: Vec<HeaderValue> = Vec::new();
        for scheme in schemes {
            if !plain.contains(&scheme) {
                plain.push(scheme);
            }
        }
        let invalid = HeaderValue::from_static(r#"Bearer realm="tollgate", error="invalid_token""#);
        let invalid_token = plain.iter().map(|scheme| if scheme == BEARER { invalid.clone() } else { scheme.clone() }).collect();
        let insufficient = format!(r#"Bearer realm="tollgate", error="insufficient_scope", scope="{}""#, scopes.join(" "));
        Self { plain, invalid_token, insufficient_scope: HeaderValue::try_from(insufficient).ok() }
    }

    /// The answer for `error`; `bearer`: the credential that decided is a token; `told`: its expiry may be told.
    pub(super) fn refuse(&self, error: AuthError, bearer: bool, told: bool) -> Box<Refusal> {
        match error {
            AuthError::Unavailable => Refusal::new(Reason::AuthUnavailable, "Credentials cannot be checked at the moment.")
                .header(RETRY_AFTER, HeaderValue::from_static("5")),
            AuthError::Scope => {
                let refusal = Refusal::new(Reason::Forbidden, "The credential does not have the scopes that are needed.");
                match &self.insufficient_scope {
                    Some(value) if bearer => refusal.header(WWW_AUTHENTICATE, value.clone()),
                    Some(_) | None => refusal,
                }
            }
            AuthError::Claims => Refusal::new(Reason::Forbidden, "The credential does not have the claims that are needed."),
            AuthError::Missing => self.unauthenticated("A credential is needed and missing.", &self.plain),
            AuthError::Expired if told => self.unauthenticated("The credential is expired.", self.list(bearer)),
            AuthError::Malformed
            | AuthError::Algorithm
            | AuthError::Key
            | AuthError::Signature
            | AuthError::Expired
            | AuthError::NotYetValid
            | AuthError::Issuer
            | AuthError::Audience
            | AuthError::Inactive
            | AuthError::Unknown => self.unauthenticated("The credential is invalid.", self.list(bearer)),
        }
    }

    fn list(&self, bearer: bool) -> &[HeaderValue] {
        if bearer { &self.invalid_token } else { &self.plain }
    }

    fn unauthenticated(&self, detail: &'static str, challenges: &[HeaderValue]) -> Box<Refusal> {
        let mut refusal = Refusal::new(Reason::Unauthenticated, detail);
        refusal.headers = HeaderMap::with_capacity(challenges.len());
        for challenge in challenges {
            refusal.headers.append(WWW_AUTHENTICATE, challenge.clone());
        }
        refusal
    }
}

/// The challenge of tokens.
pub(super) const BEARER: &str = r#"Bearer realm="tollgate""#;
