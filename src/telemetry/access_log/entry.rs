//! What the access log says of one request.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Version};

use crate::error::Reason;
use crate::http::exchange::Scheme;

/// One request, when it has ended. All clones into it are cheap; what is `None` is left out of the line.
#[derive(Clone, Debug)]
pub struct Entry {
    /// When it ended.
    pub time: SystemTime,
    /// Its id.
    pub request_id: HeaderValue,
    /// The client address, after trusted proxies.
    pub client_ip: IpAddr,
    /// The connection's remote address.
    pub peer: SocketAddr,
    /// Method as received.
    pub method: Method,
    /// Scheme in effect.
    pub scheme: Scheme,
    /// `Host` or `:authority` as received.
    pub host: Option<HeaderValue>,
    /// Path and query as received.
    pub target: PathAndQuery,
    /// Protocol of the client's request.
    pub protocol: Version,
    /// The status sent.
    pub status: u16,
    /// Why, if the gateway answered itself or cut the response.
    pub reason: Option<Reason>,
    /// The route's name.
    pub route: Option<Arc<str>>,
    /// The authenticated subject.
    pub user: Option<Arc<str>>,
    /// Exact cause of an authentication failure.
    pub auth_error: Option<&'static str>,
    /// Name of the limit that refused.
    pub rate_limit: Option<Arc<str>>,
    /// The upstream's name.
    pub upstream: Option<Arc<str>>,
    /// Id of the endpoint of the last attempt.
    pub endpoint: Option<Arc<str>>,
    /// Attempts made.
    pub attempts: u32,
    /// From its head to its last response byte.
    pub duration: Duration,
    /// From the pick of the last attempt's endpoint to the response head.
    pub upstream_time: Option<Duration>,
    /// Bytes of the request body.
    pub bytes_in: u64,
    /// Bytes of the response body.
    pub bytes_out: u64,
    /// Whether the whole response was sent.
    pub complete: bool,
    /// `x-tollgate-parts` of an aggregate.
    pub parts: Option<HeaderValue>,
    /// grpc-status of the call.
    pub grpc_status: Option<u8>,
    /// TLS version as `TLSv1.3`.
    pub tls: Option<&'static str>,
    /// `User-Agent`.
    pub user_agent: Option<HeaderValue>,
    /// `Referer`.
    pub referer: Option<HeaderValue>,
    /// Names of query parameters that carry credentials (decoded); their values are logged as `***`.
    pub secret_query: Arc<[String]>,
}
