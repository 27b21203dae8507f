//! The names of an upstream: what is asked for, and what becomes of the answers. A look-up that fails changes nothing but what is shown.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::endpoint::{Complaint, LastCheck, parse_authority};
use super::{Address, Endpoint, EndpointSpec, Upstream};
use crate::config::upstream::is_service;
use crate::discovery::{self, Answer, Found, Question, Resolver};

/// `discover.dns`: a name whose addresses are endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Discover {
    /// Whether endpoints are spoken to over TLS.
    pub tls: bool,
    /// Name for TLS and authority of the endpoints: of a service, the name it belongs to.
    pub host: String,
    /// What is asked for.
    pub question: Question,
    /// Longest time between two look-ups.
    pub refresh: Duration,
}

impl Discover {
    /// Reads `[https://]NAME:PORT` or `[https://]_SERVICE._tcp.NAME`.
    pub fn parse(text: &str, refresh: Duration) -> Result<Self, Complaint> {
        let (tls, rest) = match text.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (true, rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (false, rest),
            Some((scheme, _)) => {
                return Err((format!("endpoints have no scheme `{scheme}`"), "write NAME:PORT or https://NAME:PORT".to_owned()));
            }
            None => (false, text),
        };
        let (host, port) = parse_authority(rest, text)?;
        let name = host.text;
        if name.parse::<IpAddr>().is_ok() {
            return Err((format!("`{text}` is an address, not a name"), "list addresses under `endpoints`".to_owned()));
        }
        match (is_service(&name), port) {
            (false, Some(port)) => Ok(Self { tls, host: name.clone(), question: Question::Host { name, port }, refresh }),
            (false, None) => Err((format!("`{text}` names no port"), "write NAME:PORT, like users.internal:8080".to_owned())),
            (true, Some(_)) => Err((format!("`{text}` is a service, whose SRV records have the ports"), "leave the port out".to_owned())),
            (true, None) => {
                let host = name.splitn(3, '.').nth(2).unwrap_or(&name).to_owned();
                Ok(Self { tls, host, question: Question::Service { name }, refresh })
            }
        }
    }

    /// Whether answers for `other` are answers for this one.
    pub fn is_same_source(&self, other: &Self) -> bool {
        (self.tls, &self.host, &self.question) == (other.tls, &other.host, &other.question)
    }

    /// What was found, as endpoints. Weights are kept only where they are used.
    pub fn specs(&self, found: &[Found], has_weights: bool) -> Vec<EndpointSpec> {
        let spec = |found| EndpointSpec::discovered(self.tls, &self.host, found);
        let weight = |spec: EndpointSpec| EndpointSpec { weight: if has_weights { spec.weight } else { 1 }, ..spec };
        found.iter().map(spec).map(weight).collect()
    }
}

/// Something whose addresses are looked up.
#[derive(Debug)]
pub(super) enum Subject {
    /// All endpoints of the upstream.
    Members(Discover),
    /// The addresses of one endpoint.
    Endpoint(Arc<Endpoint>, Question),
}

impl Subject {
    /// What there is to look up for `upstream`.
    pub fn all(upstream: &Upstream) -> Vec<Self> {
        if let Some(discover) = &upstream.discover {
            return vec![Self::Members(discover.clone())];
        }
        let endpoints = upstream.endpoints();
        let named = |endpoint: &Arc<Endpoint>| match &endpoint.address {
            Address::Tcp { host, port } if host.parse::<IpAddr>().is_err() => {
                Some(Self::Endpoint(endpoint.clone(), Question::Host { name: host.clone(), port: *port }))
            }
            Address::Tcp { .. } | Address::Unix(_) => None,
        };
        endpoints.iter().filter_map(named).collect()
    }

    fn question(&self) -> &Question {
        match self {
            Self::Members(discover) => &discover.question,
            Self::Endpoint(_, question) => question,
        }
    }

    fn refresh(&self) -> Duration {
        match self {
            Self::Members(discover) => discover.refresh,
            Self::Endpoint(..) => discovery::REFRESH,
        }
    }

    /// Looks it up once and takes over what was found; returns how long to wait before the next time. `failures` counts those in a row.
    pub async fn look_up(&self, upstream: &Upstream, resolver: &dyn Resolver, failures: &mut u32) -> Duration {
        let answer = discovery::resolve(resolver, self.question()).await;
        let name = self.question().name();
        let error = match &answer {
            Ok(answer) => answer.error(),
            Err(error) => Some(error.clone()),
        };
        upstream.looked_up(name, error.as_deref());
        *failures = if error.is_some() { failures.saturating_add(1) } else { 0 };
        let Ok(answer) = answer else { return discovery::pause_after(*failures, self.refresh()) };
        let pause = discovery::pause(answer.ttl, self.refresh());
        match self {
            Self::Members(discover) => upstream.found_members(discover, answer, Instant::now()),
            Self::Endpoint(endpoint, _) => upstream.found_addresses(endpoint, &answer),
        }
        if *failures == 0 { pause } else { pause.min(discovery::pause_after(*failures, self.refresh())) }
    }
}

impl Upstream {
    /// Tells of a look-up.
    fn looked_up(&self, name: &str, error: Option<&str>) {
        let last = LastCheck { at: SystemTime::now(), ok: error.is_none(), error: error.map(Into::into) };
        self.lock_lookups().insert(name.to_owned(), last);
        if let Some(error) = error {
            self.state.observer.lookup_failed(&self.name, name, error);
        }
    }

    /// Takes over what was found as endpoints. Those of a target that could not be looked up stay.
    fn found_members(&self, discover: &Discover, answer: Answer, now: Instant) {
        let Answer { mut found, missing, .. } = answer;
        if !missing.is_empty() {
            let mut before = self.state.remembered(discover);
            before.retain(|before| missing.iter().any(|(target, _)| *target == before.target));
            before.retain(|before| found.iter().all(|found| found.address != before.address));
            found.append(&mut before);
        }
        let specs = discover.specs(&found, self.strategy.has_weights());
        self.state.remember(discover, found);
        self.discovered(specs, now);
    }

    /// Takes over what was found as the addresses of one endpoint.
    fn found_addresses(&self, endpoint: &Endpoint, answer: &Answer) {
        let addresses: Vec<SocketAddr> = answer.found.iter().map(|found| found.address).collect();
        let first = !endpoint.state.has_addresses();
        if !endpoint.state.set_addresses(addresses) {
            return;
        }
        if first {
            self.state.changed();
        } else {
            endpoint.pool.keep_only(&endpoint.state.addresses());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Discover, Complaint> {
        Discover::parse(text, Duration::from_secs(30))
    }

    #[test]
    fn a_host_needs_a_port() {
        let found = parse("Users.internal:8080").unwrap();
        assert_eq!((found.tls, &*found.host), (false, "users.internal"));
        assert_eq!(found.question, Question::Host { name: "users.internal".to_owned(), port: 8080 });
        assert!(parse("https://users.internal:8443").unwrap().tls);
        for text in ["users.internal", "10.0.0.1:80", "[::1]:80", "tcp://a:1", "https://a:1/x"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_service_has_its_ports_in_its_records_and_its_name_in_its_certificates() {
        let found = parse("https://_http._tcp.Users.internal").unwrap();
        assert_eq!((found.tls, &*found.host), (true, "users.internal"));
        assert_eq!(found.question, Question::Service { name: "_http._tcp.users.internal".to_owned() });
        assert!(parse("_http._tcp.users.internal:80").unwrap_err().0.contains("SRV"));
        assert!(parse("_http._udp.users.internal").unwrap_err().0.contains("no port"));
    }

    #[test]
    fn weights_are_kept_where_they_are_used() {
        let found = [Found { address: "10.0.0.1:80".parse().unwrap(), weight: 7, priority: 3, target: "".into() }];
        let discover = parse("_http._tcp.users.internal").unwrap();
        let described = |has_weights| discover.specs(&found, has_weights).iter().map(|spec| (spec.weight, spec.priority)).next();
        assert_eq!((described(true), described(false)), (Some((7, 3)), Some((1, 3))));
    }
}
