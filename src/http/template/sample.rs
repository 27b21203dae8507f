//! Requests to fill templates from, for the tests of all that uses templates.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use http::{HeaderValue, Method, Version};

use super::Param;
use crate::http::{Connection, Exchange, Host, Identity, Params, Scheme};

/// A GET of `target` at `shop.example.com:8443` from 192.0.2.7, without parameters and identity.
pub(crate) fn exchange(target: &str) -> Exchange {
    let peer = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7)), 4711);
    let authority = HeaderValue::from_static("shop.example.com:8443");
    Exchange {
        worker: 0,
        connection: Connection { listener: 0, peer, tls: true, tls_version: None, client_cert: None },
        started: Instant::now(),
        method: Method::GET,
        version: Version::HTTP_11,
        target: target.parse().unwrap(),
        host: Host::new(Some(authority), None, 0..16),
        scheme: Scheme::Https,
        client_ip: peer.ip(),
        request_id: HeaderValue::from_static("req-1"),
        params: Params::default(),
        identity: None,
        rate_fields: None,
        auth_error: None,
        rate_limit: None,
    }
}

/// The same with a parameter that stands where `value` first stands in the path.
pub(crate) fn with_param(mut exchange: Exchange, name: &str, value: &str) -> Exchange {
    let start = exchange.path().find(value).unwrap();
    let range = u32::try_from(start).unwrap()..u32::try_from(start + value.len()).unwrap();
    exchange.params.push(name.into(), range);
    exchange
}

/// The same with a caller who has `claims`.
pub(crate) fn with_claims(mut exchange: Exchange, user: &str, claims: &serde_json::Value) -> Exchange {
    let claims = claims.as_object().unwrap().clone();
    exchange.identity = Some(Arc::new(Identity { user: user.into(), claims, scopes: Vec::new(), forward: Vec::new() }));
    exchange
}

/// Parameters by name; a `*` before it makes it a rest.
pub(crate) fn params(names: &[&str]) -> Vec<Param> {
    let param = |name: &&str| Param { name: name.trim_start_matches('*').into(), rest: name.starts_with('*') };
    names.iter().map(param).collect()
}
