//! What can be checked of listeners, server, upstreams and authenticators from the configuration alone.

mod endpoints;
mod network;
mod upstreams;

use std::net::SocketAddr;

pub use endpoints::endpoint_id;
pub(super) use network::networks;

use super::resolve::later;
use super::server::{Listener, Server, Workers};
use super::{At, Config, Problems};
use crate::units::{Duration, Selector, Setting};

/// Checks everything but the routes, which [`super::resolve::routes`] checks.
pub fn validate(config: &Config, problems: &mut Problems) {
    if config.tracing.is_some() || config.is_damaged(&At::main("tracing")) {
        later(problems, &At::main("tracing"), "tracing");
    }
    listeners(config, problems);
    server(&config.server, &At::main("server"), problems);
    admin(config, problems);
    if config.log.access.enabled && config.log.access.output.is_empty() {
        let at = At::main("log").key("access").key("output");
        problems.error(at, "the access log needs an output").help("write stdout, stderr, or a file's path");
    }
    redis(config, problems);
    for (name, upstream) in &config.upstreams {
        upstreams::check(name, upstream, config, problems);
    }
    authenticators(config, problems);
}

fn listeners(config: &Config, problems: &mut Problems) {
    let at = At::main("listeners");
    let Some(listeners) = &config.listeners else { return };
    if listeners.is_empty() && !config.is_damaged(&at) {
        problems.error(at.clone(), "no listener: nobody could connect").help("leave `listeners` out for one on 0.0.0.0:8080");
    }
    let mut known: Vec<SocketAddr> = Vec::new();
    for (index, listener) in listeners.iter().enumerate() {
        let at = at.index(index);
        if let Some(address) = socket_address(&listener.address, &at.key("address"), problems) {
            if address.port() != 0 && known.contains(&address) {
                problems.error(at.key("address"), format!("two listeners have the address {address}")).help("remove one of them");
            } else if let Some(other) = known.iter().find(|other| overlap(**other, address)) {
                let (all, one) = if address.ip().is_unspecified() { (address, *other) } else { (*other, address) };
                problems
                    .error(at.key("address"), format!("{all} listens on every address, so {one} would be in use already"))
                    .help("remove the narrower one, or give one of them another port");
            }
            known.push(address);
        }
        one_listener(listener, &at, config, problems);
    }
}

fn one_listener(listener: &Listener, at: &At, config: &Config, problems: &mut Problems) {
    if listener.proxy_protocol && config.server.trusted_proxies.is_empty() && !config.is_damaged(&At::main("server")) {
        problems
            .error(at.key("proxy_protocol"), "`proxy_protocol` needs `server.trusted_proxies`: nobody's PROXY header would be believed")
            .help("list the load balancer's addresses in server.trusted_proxies");
    }
    let Some(tls) = &listener.tls else { return };
    let at = at.key("tls");
    if tls.certificates.is_empty() && !config.has_lost(&at, &["certificates"]) {
        problems.error(at.key("certificates"), "TLS needs at least one certificate");
    }
    if tls.client_auth.is_some() && tls.client_ca.is_none() {
        problems
            .error(at.key("client_auth"), "`client_auth` is only possible with `client_ca`")
            .help("add client_ca, or remove client_auth");
    }
}

/// Whether one of them is every address of the machine, and the other one of these at the same port.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let (any, same_family) = (a.ip().is_unspecified() || b.ip().is_unspecified(), a.is_ipv4() == b.is_ipv4());
    a != b && a.port() == b.port() && a.port() != 0 && any && same_family
}

/// Reads `IP:PORT`.
fn socket_address(text: &str, at: &At, problems: &mut Problems) -> Option<SocketAddr> {
    let parsed = text.parse().ok();
    if parsed.is_none() {
        problems
            .error(at.clone(), format!("\"{text}\" is not an address to listen on"))
            .help("write an IP address and a port, like 0.0.0.0:8080 or [::]:8080");
    }
    parsed
}

fn server(server: &Server, at: &At, problems: &mut Problems) {
    networks(&server.trusted_proxies, &at.key("trusted_proxies"), problems);
    if server.workers == Workers::Count(0) {
        problems.error(at.key("workers"), "with 0 workers nothing would be served").help("write auto, or at least 1");
    } else if matches!(server.workers, Workers::Count(count) if count > 1024) {
        problems.error(at.key("workers"), "more than 1024 workers are not supported").help("write auto for one per CPU");
    }
    let zero = [
        ("max_connections", server.max_connections == 0),
        ("max_header_size", server.max_header_size.0 == 0),
        ("max_headers", server.max_headers == 0),
    ];
    for (name, is) in zero {
        if is {
            problems.error(at.key(name), format!("with a `{name}` of 0 no request could be served")).help("write at least 1");
        }
    }
    if server.max_connections_per_ip == Setting::On(0) {
        problems
            .error(at.key("max_connections_per_ip"), "with 0 connections per address nobody could connect")
            .help("write a number, or off");
    }
    if server.http2.max_streams == 0 {
        problems.error(at.key("http2").key("max_streams"), "with 0 streams no HTTP/2 request could be served").help("write at least 1");
    }
    if let Setting::On(name) = &server.request_id
        && http::HeaderName::from_bytes(name.as_bytes()).is_err()
    {
        problems.error(at.key("request_id"), format!("\"{name}\" is not a header name")).help("write a name such as x-request-id, or off");
    }
    let at = at.key("timeouts");
    let timeouts = &server.timeouts;
    for (name, value) in [("handshake", &timeouts.handshake), ("header", &timeouts.header), ("idle", &timeouts.idle)] {
        if let Setting::On(value) = value {
            not_zero(*value, &at.key(name), "write `off` for no limit", problems);
        }
    }
}

/// Refuses a time in which nothing can happen.
pub(super) fn not_zero(value: Duration, at: &At, help: &str, problems: &mut Problems) {
    if value.get().is_zero() {
        problems.error(at.clone(), "in 0 seconds nothing can happen").help(help);
    }
}

fn admin(config: &Config, problems: &mut Problems) {
    let Some(admin) = &config.admin else { return };
    let at = At::main("admin");
    let Some(address) = socket_address(&admin.address, &at.key("address"), problems) else { return };
    if !address.ip().to_canonical().is_loopback() && admin.token.expose().is_empty() && !config.is_damaged(&at) {
        problems
            .error(at.key("address"), format!("the admin address {address} is not loopback, so it needs a `token`"))
            .help("set admin.token, for example to ${ADMIN_TOKEN}, or listen on 127.0.0.1");
    }
    let taken = |listener: &Listener| listener.address.parse() == Ok(address) && address.port() != 0;
    if config.listeners.iter().flatten().any(taken) {
        problems
            .error(at.key("address"), format!("a listener has the address {address} too"))
            .help("the admin listener needs an address of its own");
    }
}

fn redis(config: &Config, problems: &mut Problems) {
    for (name, store) in &config.redis {
        let at = At::main("redis").key(name);
        let url = store.url.expose();
        if !(url.starts_with("redis://") || url.starts_with("rediss://")) {
            problems.error(at.key("url"), "this is not the URL of a Redis server").help("write redis://HOST:PORT or rediss://HOST:PORT");
        }
        not_zero(store.timeout, &at.key("timeout"), "write at least 1ms", problems);
    }
}

fn authenticators(config: &Config, problems: &mut Problems) {
    for authenticator in config.authenticators.values() {
        let kinds = [
            ("jwt", authenticator.jwt.is_some()),
            ("api_key", authenticator.api_key.is_some()),
            ("introspection", authenticator.introspection.is_some()),
            ("basic", authenticator.basic.is_some()),
            ("client_cert", authenticator.client_cert.is_some()),
        ];
        let written: Vec<&str> = kinds.into_iter().filter(|(_, is)| *is).map(|(name, _)| name).collect();
        let at = &authenticator.at;
        if written.len() > 1 {
            problems
                .error(at.clone(), format!("an authenticator has exactly one kind, and this one has {}", written.join(", ")))
                .help("give each an entry of its own; a route's `auth` can list several");
        } else if written.is_empty() && !config.has_lost(at, &kinds.map(|(name, _)| name)) {
            problems
                .error(at.clone(), "this authenticator has no kind")
                .help("add one of jwt, api_key, introspection, basic or client_cert");
        }
    }
}

/// Checks the selectors of a hash or a sticky split.
pub(super) fn sticky_selectors(list: &[Selector], at: &At, problems: &mut Problems) {
    for (index, selector) in list.iter().enumerate() {
        if *selector == Selector::Global {
            problems
                .error(at.index(index), "`global` is for rate limits only: here everything would go to one place")
                .help("write ip, user, header:NAME or another selector");
        }
    }
}
