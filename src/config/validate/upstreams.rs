//! One upstream.

use super::endpoints::{endpoint_id, host_port, is_listener};
use super::{not_zero, sticky_selectors};
use crate::config::resolve::later;
use crate::config::upstream::{Balance, Discover, Health, Protocol, Upstream, is_service};
use crate::config::{At, Config, Problems};
use crate::units::Setting;

/// Highest weight of an endpoint.
const MAX_WEIGHT: u32 = 1000;

/// Checks `upstream`.
pub(super) fn check(name: &str, upstream: &Upstream, config: &Config, problems: &mut Problems) {
    let at = &upstream.at;
    match (&upstream.discover, upstream.endpoints.is_empty()) {
        (Some(_), false) => {
            problems.error(at.key("discover").its_key(), "`endpoints` and `discover` exclude each other").help("keep one of them");
        }
        (None, true) if !config.has_lost(at, &["endpoints", "discover"]) => {
            problems.error(at.clone(), format!("the upstream \"{name}\" has no endpoints")).help("add `endpoints: [URL]` or `discover`");
        }
        _ => {}
    }
    if let Some(discover) = &upstream.discover {
        check_discover(discover, &at.key("discover"), config, problems);
    }
    endpoints(upstream, config, problems);
    weights(upstream, problems);
    balance(&upstream.balance, &at.key("balance"), problems);
    not_zero(upstream.connect_timeout, &at.key("connect_timeout"), "write at least 1ms", problems);
    if upstream.pool.max_connections == 0 {
        problems.error(at.key("pool").key("max_connections"), "with 0 connections nothing could be sent").help("write at least 1");
    }
    if upstream.tls.cert.is_some() != upstream.tls.key.is_some() {
        let (there, missing) = if upstream.tls.cert.is_some() { ("cert", "key") } else { ("key", "cert") };
        problems
            .error(at.key("tls").key(there), format!("`{there}` needs `{missing}`"))
            .help("a client certificate is a pair of both files");
    }
    if !upstream.tls.verify {
        problems.warn(
            at.key("tls").key("verify"),
            format!("the upstream \"{name}\" accepts any certificate: anyone on the way can read and change the traffic"),
        );
    }
    if let Some(health) = &upstream.health {
        check_health(health, upstream, &at.key("health"), config, problems);
    }
    if let Setting::On(outlier) = &upstream.outlier {
        if outlier.errors == 0 {
            problems
                .error(at.key("outlier").key("errors"), "0 errors would eject every endpoint at once")
                .help("write at least 1, or `outlier: off`");
        }
        not_zero(outlier.eject_for, &at.key("outlier").key("eject_for"), "write at least 1ms, or `outlier: off`", problems);
    }
}

fn endpoints(upstream: &Upstream, config: &Config, problems: &mut Problems) {
    let list = upstream.at.key("endpoints");
    let admin = config.admin.as_ref().and_then(|admin| admin.address.parse().ok());
    let mut known: Vec<String> = Vec::new();
    for (index, endpoint) in upstream.endpoints.iter().enumerate() {
        let at = list.index(index);
        match endpoint_id(&endpoint.url) {
            Err(why) => {
                problems.error(at, format!("\"{}\" is not an endpoint", without_password(&endpoint.url))).help(why);
            }
            Ok(id) => {
                if known.contains(&id) {
                    problems.error(at.clone(), format!("the endpoint {id} is listed twice")).help("give it a weight instead");
                }
                if admin.is_some_and(|admin| is_listener(&id, admin)) {
                    problems
                        .error(at, format!("the endpoint {id} is the admin listener"))
                        .help("the admin API must not be reachable through a route");
                }
                known.push(id);
            }
        }
    }
}

/// The URL without what stands before an `@`.
fn without_password(url: &str) -> String {
    match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) if at > scheme => format!("{}***{}", &url[..scheme + 3], &url[at..]),
        _ => url.to_owned(),
    }
}

fn weights(upstream: &Upstream, problems: &mut Problems) {
    let at = upstream.at.key("endpoints");
    let weighted = match upstream.balance {
        Balance::Weighted | Balance::LeastRequests | Balance::ConsistentHash { .. } => true,
        Balance::RoundRobin | Balance::P2c | Balance::Random => false,
    };
    for (index, endpoint) in upstream.endpoints.iter().enumerate() {
        let at = at.index(index).key("weight");
        if endpoint.weight > MAX_WEIGHT {
            problems.error(at, format!("the weight {} is above {MAX_WEIGHT}", endpoint.weight)).help("weights are relative: 0 to 1000");
        } else if endpoint.weight != 1 && !weighted {
            problems
                .error(at, "this upstream's `balance` has no weights")
                .help("use balance: weighted, least_requests or consistent_hash, or remove the weight");
        }
    }
    if !upstream.endpoints.is_empty() && upstream.endpoints.iter().all(|endpoint| endpoint.weight == 0) {
        problems.error(at, "all weights are 0: no endpoint would get a request").help("give one endpoint a weight of at least 1");
    }
}

fn balance(balance: &Balance, at: &At, problems: &mut Problems) {
    let Balance::ConsistentHash { key, bounded_load } = balance else { return };
    let at = at.key("consistent_hash");
    if key.is_empty() {
        problems.error(at.key("key"), "`key` names nothing to hash").help("write a selector such as ip or header:x-user-id");
    }
    sticky_selectors(key, &at.key("key"), problems);
    if bounded_load.is_some_and(|load| !load.is_finite() || load <= 1.0) {
        problems.error(at.key("bounded_load"), "a bounded load must be above 1").help("write a factor like 1.25, or off");
    }
}

fn check_discover(discover: &Discover, at: &At, config: &Config, problems: &mut Problems) {
    let others = [
        ("consul", discover.consul.is_some()),
        ("etcd", discover.etcd.is_some()),
        ("kubernetes", discover.kubernetes.is_some()),
        ("registry", discover.registry.is_some()),
    ];
    let mut refused = false;
    for (name, _) in others.into_iter().filter(|(_, is)| *is) {
        refused = true;
        later(problems, &at.key(name), name);
    }
    match &discover.dns {
        Some(name) => {
            let authority = name.strip_prefix("https://").unwrap_or(name);
            match host_port(authority) {
                Ok((name, Some(_))) if is_service(&name) => {
                    problems
                        .error(at.key("dns"), format!("\"{name}\" is a service, whose SRV records have the ports"))
                        .help("leave the port out");
                }
                Ok((_, Some(_))) => {}
                Ok((name, None)) if is_service(&name) => {}
                Ok((_, None)) | Err(_) => {
                    problems
                        .error(at.key("dns"), format!("\"{name}\" is not a name with a port"))
                        .help("write NAME:PORT, https://NAME:PORT, or _SERVICE._tcp.NAME for SRV records");
                }
            }
        }
        None if !refused && !config.has_lost(at, &["dns"]) => {
            problems.error(at.clone(), "`discover` needs `dns`").help("write { dns: \"NAME:PORT\" }");
        }
        None => {}
    }
    not_zero(discover.refresh, &at.key("refresh"), "write at least 1s", problems);
}

fn check_health(health: &Health, upstream: &Upstream, at: &At, config: &Config, problems: &mut Problems) {
    let kinds = [health.path.is_some(), health.tcp, health.grpc.is_some()].into_iter().filter(|is| *is).count();
    if kinds != 1 && !config.has_lost(at, &["path", "tcp", "grpc"]) {
        problems
            .error(at.clone(), "a health check is exactly one of path, tcp and grpc")
            .help("write one of path: /health, tcp: true or grpc: SERVICE");
    }
    if health.path.as_ref().is_some_and(|path| !path.starts_with('/') || path.contains(char::is_whitespace)) {
        problems.error(at.key("path"), "the path of a health check starts with / and has no spaces");
    }
    if health.grpc.is_some() && upstream.protocol == Protocol::Http1 {
        problems.error(at.key("grpc"), "a gRPC health check needs HTTP/2").help("set protocol: h2");
    }
    for (name, count) in [("healthy", health.healthy), ("unhealthy", health.unhealthy)] {
        if count == 0 {
            problems.error(at.key(name), format!("`{name}` counts checks in a row")).help("write at least 1");
        }
    }
    if health.expect.is_empty() && !config.is_damaged(&at.key("expect")) {
        problems.error(at.key("expect"), "no status would pass").help("write ranges such as [200-399]");
    }
    not_zero(health.interval, &at.key("interval"), "write at least 1s", problems);
    not_zero(health.timeout, &at.key("timeout"), "write at least 1ms", problems);
}
