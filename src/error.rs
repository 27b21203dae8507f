//! Why a request got an answer that no upstream gave: the closed list of reasons, and the one map from them to status codes.

use std::borrow::Cow;

use http::{HeaderMap, StatusCode};

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $word:literal, $status:literal, $grpc:literal;)*) => {
        /// Why the gateway answered itself, or why a response was cut. The word is in the error body, the access log and the metrics.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Reason { $($(#[$doc])* $variant,)* }

        impl Reason {
            /// All reasons, in the order of their declaration: `Reason::ALL[reason as usize] == reason`.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The word for it in bodies, logs and metrics.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }

            /// The HTTP status it is answered with (for `aggregate_failed` the default, for cut streams what is logged).
            pub const fn status(self) -> u16 {
                match self { $(Self::$variant => $status,)* }
            }

            /// The gRPC status it is answered with to `application/grpc` requests.
            pub const fn grpc_status(self) -> u8 {
                match self { $(Self::$variant => $grpc,)* }
            }
        }
    };
}

reasons! {
    /// The request is malformed or ambiguous.
    BadRequest = "bad_request", 400, 3;
    /// No credential, or an invalid one.
    Unauthenticated = "unauthenticated", 401, 16;
    /// Scopes or claims are not met.
    Forbidden = "forbidden", 403, 7;
    /// The client address is not allowed.
    IpDenied = "ip_denied", 403, 7;
    /// A WebSocket from an origin that is not allowed.
    OriginDenied = "origin_denied", 403, 7;
    /// No route matches.
    NoRoute = "no_route", 404, 12;
    /// A route matches in all but the method.
    MethodNotAllowed = "method_not_allowed", 405, 12;
    /// The client's body stalled.
    RequestTimeout = "request_timeout", 408, 4;
    /// The body is longer than `body_limit`.
    BodyTooLarge = "body_too_large", 413, 8;
    /// The request target is too long.
    UriTooLong = "uri_too_long", 414, 8;
    /// A rate limit is used up.
    RateLimited = "rate_limited", 429, 8;
    /// The request head is too large.
    HeadersTooLarge = "headers_too_large", 431, 8;
    /// The client left; in logs and metrics only.
    ClientClosed = "client_closed", 499, 1;
    /// A defect of the gateway.
    Internal = "internal", 500, 13;
    /// The upstream refused, or is unreachable.
    UpstreamConnectFailed = "upstream_connect_failed", 502, 14;
    /// TLS with the upstream failed.
    UpstreamTlsFailed = "upstream_tls_failed", 502, 14;
    /// The upstream closed before the response head.
    UpstreamReset = "upstream_reset", 502, 14;
    /// The upstream's response is unreadable.
    UpstreamProtocolError = "upstream_protocol_error", 502, 13;
    /// The response was cut after its head; in logs and metrics only.
    UpstreamTruncated = "upstream_truncated", 502, 14;
    /// No byte moved for `idle_timeout` after the head; in logs and metrics only.
    IdleTimeout = "idle_timeout", 504, 4;
    /// A part that an aggregate needs failed.
    AggregateFailed = "aggregate_failed", 502, 13;
    /// No endpoint can be used.
    NoHealthyEndpoint = "no_healthy_endpoint", 503, 14;
    /// Breaker open, or pools full.
    Overloaded = "overloaded", 503, 14;
    /// Keys or introspection cannot be had.
    AuthUnavailable = "auth_unavailable", 503, 14;
    /// No connection to the upstream in time.
    UpstreamConnectTimeout = "upstream_connect_timeout", 504, 14;
    /// No response from the upstream in time.
    UpstreamTimeout = "upstream_timeout", 504, 4;
}

/// A refusal: what the gateway answers instead of going on. `http::problem` makes the response from it.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
    /// Status, if it differs from the reason's own (`aggregate_failed`).
    pub status: Option<StatusCode>,
    /// One fixed sentence: no addresses, no names of upstreams, no part of a credential.
    pub detail: Cow<'static, str>,
    /// Headers of the answer: `WWW-Authenticate`, `Retry-After`, `Allow`.
    pub headers: HeaderMap,
    /// Extra members of the problem body, such as `violated-policies`.
    pub extra: Vec<(&'static str, serde_json::Value)>,
    /// `type` of the problem, if not `about:blank`.
    pub problem_type: Option<&'static str>,
    /// Whether an HTTP/1 connection must be closed after the answer.
    pub close: bool,
}

impl Refusal {
    /// A refusal without headers.
    pub fn new(reason: Reason, detail: impl Into<Cow<'static, str>>) -> Box<Self> {
        Box::new(Self {
            reason,
            status: None,
            detail: detail.into(),
            headers: HeaderMap::new(),
            extra: Vec::new(),
            problem_type: None,
            close: false,
        })
    }
    /// The HTTP status it is answered with.
    pub fn status(&self) -> StatusCode {
        self.status.unwrap_or_else(|| StatusCode::from_u16(self.reason.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR))
    }
    /// Adds a header to the answer.
    #[must_use]
    pub fn header(mut self: Box<Self>, name: http::HeaderName, value: http::HeaderValue) -> Box<Self> {
        self.headers.append(name, value);
        self
    }
    /// Closes an HTTP/1 connection after the answer.
    #[must_use]
    pub fn closing(mut self: Box<Self>) -> Box<Self> {
        self.close = true;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::Reason;

    #[test]
    fn all_reasons_stand_at_their_own_index() {
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
        }
    }
}
