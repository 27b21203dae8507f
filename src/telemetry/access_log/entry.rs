//! What the access log says of one request.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, Version};

use crate::error::Reason;
use crate::http::exchange::{Exchange, Scheme};
use crate::http::text::Text;
use crate::telemetry::time::since_1970;

/// One request, when it has ended. All clones into it are cheap; what is `None` is left out of the line.
#[derive(Clone, Debug)]
pub struct Entry {
    /// When it began, since 1970.
    pub time: Duration,
    /// Its id.
    pub request_id: Text,
    /// The client address, after trusted proxies.
    pub client_ip: IpAddr,
    /// The connection's remote address.
    pub peer: SocketAddr,
    /// Method as received.
    pub method: Method,
    /// Scheme in effect.
    pub scheme: Scheme,
    /// `Host` or `:authority` as received.
    pub host: Option<Text>,
    /// Path and query as received.
    pub target: Text,
    /// Protocol of the client's request.
    pub protocol: Version,
    /// The status sent.
    pub status: u16,
    /// Why, if the gateway answered itself or cut the response.
    pub reason: Option<Reason>,
    /// The route's name.
    pub route: Option<Text>,
    /// The authenticated subject.
    pub user: Option<Text>,
    /// Exact cause of an authentication failure.
    pub auth_error: Option<&'static str>,
    /// Name of the limit that refused.
    pub rate_limit: Option<Arc<str>>,
    /// The upstream's name.
    pub upstream: Option<Text>,
    /// Id of the endpoint of the last attempt.
    pub endpoint: Option<Text>,
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
    pub user_agent: Option<Text>,
    /// `Referer`.
    pub referer: Option<Text>,
    /// Names of query parameters that carry credentials (decoded); their values are logged as `***`.
    pub secret_query: Option<Arc<[String]>>,
}

impl Entry {
    /// What is known when the head of a request is there.
    pub fn begin(ex: &Exchange, headers: &HeaderMap, secret_query: Option<Arc<[String]>>) -> Self {
        let [host, user_agent, referer] = logged(headers);
        Self {
            time: since_1970(ex.started),
            request_id: Text::from(&ex.request_id),
            client_ip: ex.client_ip,
            peer: ex.connection.peer,
            method: ex.method.clone(),
            scheme: ex.scheme,
            host,
            target: Text::from(&ex.target),
            protocol: ex.version,
            status: 0,
            reason: None,
            route: None,
            user: None,
            auth_error: None,
            rate_limit: None,
            upstream: None,
            endpoint: None,
            attempts: 0,
            duration: Duration::ZERO,
            upstream_time: None,
            bytes_in: 0,
            bytes_out: 0,
            complete: false,
            parts: None,
            grpc_status: None,
            tls: ex.connection.tls_version,
            user_agent,
            referer,
            secret_query,
        }
    }
}

/// `Host`, `User-Agent` and `Referer`, the first of each, in one pass: each look-up would hash.
fn logged(headers: &HeaderMap) -> [Option<Text>; 3] {
    let mut found = [None, None, None];
    let [host, user_agent, referer] = &mut found;
    for (name, value) in headers {
        // As text, since its length tells most names apart.
        let place = match name.as_str() {
            "host" => &mut *host,
            "user-agent" => &mut *user_agent,
            "referer" => &mut *referer,
            _ => continue,
        };
        if place.is_none() {
            *place = Some(Text::from(value));
        }
    }
    found
}
