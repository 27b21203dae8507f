//! What is known about one request while it passes through the chain.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, Method, Version};

/// Facts about the client's connection. Each request has a copy: that costs less than to count who has the one.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Index of the listener in the snapshot the connection was accepted under.
    pub listener: usize,
    /// The socket's remote address, or the source in a PROXY header that was believed.
    pub peer: SocketAddr,
    /// Whether it is TLS.
    pub tls: bool,
    /// TLS version as `TLSv1.3`, for the access log.
    pub tls_version: Option<&'static str>,
    /// The verified client certificate.
    pub client_cert: Option<Arc<ClientCertificate>>,
}

/// What a verified client certificate says, prepared once per connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientCertificate {
    /// Subject, as RFC 4514 writes it.
    pub subject: String,
    /// Subject alternative names of the kinds URI, DNS and e-mail, in the order URI, DNS, e-mail.
    pub san: Vec<String>,
    /// Serial number, lower-case hex.
    pub serial: String,
    /// SHA-256 of the certificate, lower-case hex.
    pub fingerprint: String,
}

/// `http` or `https`, as the client sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Clear text.
    Http,
    /// TLS.
    Https,
}

impl Scheme {
    /// The word in URLs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// The request's host: what the client wrote, and the canonical form for matching.
#[derive(Clone, Debug)]
pub struct Host {
    /// `Host` or `:authority` as the client sent it, port included. Absent for an HTTP/1.0 request without one.
    pub authority: Option<HeaderValue>,
    /// Same bytes in lower case if they were not, of which `range` is the host.
    lower: Option<HeaderValue>,
    range: Range<usize>,
}

impl Host {
    /// A host from its authority, its lower-case form if that differs, and where in that the host without port and final dot stands.
    pub fn new(authority: Option<HeaderValue>, lower: Option<HeaderValue>, range: Range<usize>) -> Self {
        Self { authority, lower, range }
    }
    /// The same in memory of its own, to be kept for longer than the request it came with.
    #[must_use]
    pub fn detached(&self) -> Self {
        let own = |value: &HeaderValue| HeaderValue::from_bytes(value.as_bytes()).unwrap_or_else(|_| value.clone());
        Self { authority: self.authority.as_ref().map(own), lower: self.lower.as_ref().map(own), range: self.range.clone() }
    }
    /// Lower case, without port and final dot; empty if the client named none.
    pub fn name(&self) -> &str {
        let bytes = self.lower.as_ref().or(self.authority.as_ref()).map_or(&b""[..], HeaderValue::as_bytes);
        bytes.get(self.range.clone()).and_then(|name| std::str::from_utf8(name).ok()).unwrap_or_default()
    }
}

/// Values of path parameters and named groups: places in the canonical path.
#[derive(Clone, Debug, Default)]
pub struct Params {
    entries: Vec<(Arc<str>, Range<u32>)>,
}

impl Params {
    /// Adds a parameter that stands at `range` of the canonical path.
    pub fn push(&mut self, name: Arc<str>, range: Range<u32>) {
        self.entries.push((name, range));
    }
    /// The parameter's bytes as they stand in `path`, still percent-encoded.
    pub fn raw<'p>(&self, name: &str, path: &'p str) -> Option<&'p str> {
        let (_, range) = self.entries.iter().find(|(n, _)| &**n == name)?;
        path.get(range.start as usize..range.end as usize)
    }
    /// The parameter, percent-decoded.
    pub fn get<'p>(&self, name: &str, path: &'p str) -> Option<Cow<'p, str>> {
        self.raw(name, path).map(crate::http::target::percent_decode)
    }
    /// Names in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|(name, _)| &**name)
    }
}

/// Who the caller is, as an authenticator found out. Cached and shared between requests with the same credential.
#[derive(Debug)]
pub struct Identity {
    /// The subject.
    pub user: Arc<str>,
    /// Claims, for `{claim:NAME}` and `claims` rules.
    pub claims: serde_json::Map<String, serde_json::Value>,
    /// Scopes.
    pub scopes: Vec<String>,
    /// Header fields made from `forward`, ready to be put on the upstream request.
    pub forward: Vec<(HeaderName, HeaderValue)>,
}

impl Identity {
    /// The same in memory of its own, which shares no reference count with this one.
    #[must_use]
    pub fn detached(&self) -> Self {
        let field = |(name, value): &(HeaderName, HeaderValue)| {
            let own = HeaderName::from_bytes(name.as_str().as_bytes()).unwrap_or_else(|_| name.clone());
            (own, HeaderValue::from_bytes(value.as_bytes()).unwrap_or_else(|_| value.clone()))
        };
        Self {
            user: Arc::from(&*self.user),
            claims: self.claims.clone(),
            scopes: self.scopes.clone(),
            forward: self.forward.iter().map(field).collect(),
        }
    }
}

/// A claim's value as text for a field: strings as they are, numbers and booleans as JSON, arrays joined by `,`, objects as JSON. `None` for
/// null.
pub fn claim_text(value: &serde_json::Value) -> Option<Cow<'_, str>> {
    use serde_json::Value;
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.into()),
        Value::Array(items) => Some(items.iter().filter_map(claim_text).collect::<Vec<_>>().join(",").into()),
        other => Some(other.to_string().into()),
    }
}

/// One request on its way through the chain. The header map and the body travel beside it.
#[derive(Debug)]
pub struct Exchange {
    /// Index of the worker thread it runs on.
    pub worker: usize,
    /// The client's connection.
    pub connection: Connection,
    /// When its head was complete.
    pub started: Instant,
    /// Method as received.
    pub method: Method,
    /// Protocol version of the client's request.
    pub version: Version,
    /// Canonical path, with the query as received: what policy matches is what is forwarded.
    pub target: PathAndQuery,
    /// The host.
    pub host: Host,
    /// The scheme in effect, after trusted proxies.
    pub scheme: Scheme,
    /// The client address, after trusted proxies.
    pub client_ip: IpAddr,
    /// The request id.
    pub request_id: HeaderValue,
    /// Path parameters of the route.
    pub params: Params,
    /// The caller, once `auth` has passed.
    pub identity: Option<Arc<Identity>>,
    /// What `RateLimit-Policy` and `RateLimit` of the answer say, once limits were evaluated.
    pub rate_fields: Option<RateFields>,
    /// Exact cause of an authentication failure, for log and metrics.
    pub auth_error: Option<&'static str>,
    /// Name of the limit that refused, for the log.
    pub rate_limit: Option<Arc<str>>,
}

/// What the limits that were evaluated have left, for the fields of draft-ietf-httpapi-ratelimit-headers. The route's limits write them.
#[derive(Clone, Copy, Debug)]
pub struct RateFields {
    /// How many limits of the route were evaluated, in their order.
    pub evaluated: usize,
    /// Index of the one among them that has relatively the least left; all below is about it.
    pub scarcest: usize,
    /// Requests that it allows at once from now.
    pub left: u64,
    /// Requests that it allows at once at most.
    pub burst: u64,
    /// Time until it allows one more.
    pub wait: Duration,
    /// A store did not answer this request: its other limits are decided in this process as well, so that it waits once.
    pub unanswered: bool,
}

impl Exchange {
    /// Canonical path.
    pub fn path(&self) -> &str {
        self.target.path()
    }
    /// Query as received, without `?`.
    pub fn query(&self) -> Option<&str> {
        self.target.query()
    }
    /// The authenticated subject.
    pub fn user(&self) -> Option<&str> {
        self.identity.as_ref().map(|identity| &*identity.user)
    }
}
