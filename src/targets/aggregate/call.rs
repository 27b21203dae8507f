//! The seam to the upstreams: what an aggregate asks for, and what it gets back.

use std::fmt;
use std::future::Future;
use std::time::Instant;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, StatusCode};

/// One call of a part.
#[derive(Clone, Debug)]
pub struct PartRequest {
    /// Its method.
    pub method: Method,
    /// Path and query; host and upstream are never a request's to choose.
    pub target: PathAndQuery,
    /// All fields but `Host` and the framing.
    pub headers: HeaderMap,
    /// Its body, whole.
    pub body: Bytes,
}

/// The head of a part's answer, with its body to come.
#[derive(Debug)]
pub struct PartResponse<B> {
    /// Its status.
    pub status: StatusCode,
    /// Its fields.
    pub headers: HeaderMap,
    /// Its body.
    pub body: B,
}

/// Why a call has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CallFailure {
    /// Not in time.
    Timeout,
    /// No connection, TLS included.
    ConnectFailed,
    /// Closed before the answer's head, or in its body.
    Reset,
    /// No endpoint can be used.
    NoEndpoint,
    /// Breaker open, or pools full.
    Overloaded,
    /// An unreadable answer.
    ProtocolError,
}

impl From<std::convert::Infallible> for CallFailure {
    /// For bodies that are whole already.
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}

/// Makes calls: over the real upstreams in the gateway, scripted in tests.
pub trait Caller: Send + Sync {
    /// Body of an answer. Its error says whether it was cut (`Reset`) or late (`Timeout`).
    type Body: http_body::Body<Data = Bytes, Error: Into<CallFailure>> + Send;

    /// Makes one call to upstream `upstream`, an index into [`Aggregate::upstreams`](super::Aggregate::upstreams), with that upstream's
    /// balancing, health, breaker and retries. Whoever drops the future or the body cancels the call. `deadline` is for the head.
    fn call(
        &self,
        upstream: usize,
        request: PartRequest,
        deadline: Option<Instant>,
    ) -> impl Future<Output = Result<PartResponse<Self::Body>, CallFailure>> + Send;
}

/// Why a part gave no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Failure {
    /// Answered with a status other than 2xx.
    Status(StatusCode),
    /// The call itself failed.
    Call(CallFailure),
    /// Not JSON, not UTF-8, an unknown content coding, or nested too deeply.
    NotJson,
    /// Not an object where its keys are needed at the top level.
    NotObject,
    /// Longer than `max_part_size`, decoded.
    TooLarge,
    /// Another part that is required failed first.
    Cancelled,
    /// A value it needs out of another part is missing, empty, not a scalar or cannot stand in a path.
    NoValue,
}

impl fmt::Display for Failure {
    /// The word in `x-tollgate-parts`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Status(status) => status.as_str(),
            Self::Call(CallFailure::Timeout) => "timeout",
            Self::Call(CallFailure::ConnectFailed) => "connect_failed",
            Self::Call(CallFailure::Reset) => "reset",
            Self::Call(CallFailure::NoEndpoint) => "no_endpoint",
            Self::Call(CallFailure::Overloaded) => "overloaded",
            Self::Call(CallFailure::ProtocolError) => "protocol_error",
            Self::NotJson => "not_json",
            Self::NotObject => "not_object",
            Self::TooLarge => "too_large",
            Self::Cancelled => "cancelled",
            Self::NoValue => "no_value",
        })
    }
}

impl Failure {
    /// The status of the whole answer when this part is required.
    pub(super) fn status(self) -> StatusCode {
        match self {
            // These speak about the request, so the client can do something about them.
            Self::Status(status) if matches!(status.as_u16(), 400 | 401 | 403 | 404 | 409 | 410 | 422 | 429) => status,
            Self::Call(CallFailure::Timeout) => StatusCode::GATEWAY_TIMEOUT,
            Self::Call(CallFailure::NoEndpoint | CallFailure::Overloaded) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Status(_)
            | Self::Call(CallFailure::ConnectFailed | CallFailure::Reset | CallFailure::ProtocolError)
            | Self::NotJson
            | Self::NotObject
            | Self::TooLarge
            | Self::Cancelled
            | Self::NoValue => StatusCode::BAD_GATEWAY,
        }
    }
}
