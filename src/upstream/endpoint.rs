//! One endpoint of an upstream: its identity, its address, and its live state.
//!
//! [`EndpointSpec`] is what the configuration or discovery says, [`EndpointState`] is what was learned about it and
//! survives reloads, [`Endpoint`] is both together in one snapshot.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use http::HeaderValue;

use super::pool::EndpointPool;
use super::restart::Reach;
use super::state::UpstreamState;
use super::unreached::Unreached;
use super::{Links, Upstream};
use crate::balance::clock;
use crate::balance::ewma::Ewma;
use crate::config::{At, Problems};
use crate::discovery::Found;
use crate::health::active::{Counts, Verdict};
use crate::health::outlier::Row;
use crate::upstream::in_flight::InFlight;

/// How an endpoint is reached.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// A TCP host and port; the host may be a name that is resolved in the background.
    Tcp {
        /// Host name or IP literal, lower case, without brackets.
        host: String,
        /// Port, always known.
        port: u16,
    },
    /// A Unix socket.
    Unix(PathBuf),
}

/// What is known about an endpoint before it is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSpec {
    /// `scheme://host:port`, lower case, port always written; for a Unix socket its path.
    pub id: Arc<str>,
    /// How it is reached.
    pub address: Address,
    /// Whether the connection is TLS.
    pub tls: bool,
    /// `Host` for `rewrite: { host: upstream }` and health checks: a default port is left out.
    pub authority: HeaderValue,
    /// Name to verify and to send as SNI unless `tls.server_name` says another: host name or IP literal without brackets.
    pub tls_name: Arc<str>,
    /// Share of the requests; 0 gets no new ones.
    pub weight: u32,
    /// Endpoints of a higher number get requests only when all of the lower ones are out; 0 unless an SRV record says another.
    pub priority: u16,
}

impl EndpointSpec {
    /// Reads `http(s)://HOST[:PORT]` or `unix:/path` as written at `at`; reports what is wrong with it.
    pub fn parse(url: &str, weight: u32, at: &At, problems: &mut Problems) -> Option<Self> {
        match parse_url(url) {
            Ok(parsed) => Some(parsed.spec(weight)),
            Err((message, help)) => {
                problems.error(at.clone(), message).help(help);
                None
            }
        }
    }

    /// One address that a name was resolved to: the name stays TLS name and authority.
    pub fn discovered(tls: bool, name: &str, found: &Found) -> Self {
        let host = Host::of_ip(found.address.ip());
        let port = found.address.port();
        let named = Parsed::Tcp { tls, host: Host { bracketed: false, text: name.to_owned() }, port }.spec(found.weight);
        let Self { id, address, .. } = Parsed::Tcp { tls, host, port }.spec(found.weight);
        Self { id, address, priority: found.priority, ..named }
    }

    /// The socket address, if the host is an IP literal.
    pub fn literal_address(&self) -> Option<SocketAddr> {
        match &self.address {
            Address::Tcp { host, port } => host.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, *port)),
            Address::Unix(_) => None,
        }
    }
}

/// A host as it stands in URLs.
pub(super) struct Host {
    bracketed: bool,
    pub text: String,
}

impl Host {
    fn of_ip(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => Self { bracketed: false, text: ip.to_string() },
            IpAddr::V6(ip) => Self { bracketed: true, text: ip.to_string() },
        }
    }
    fn written(&self) -> String {
        if self.bracketed { format!("[{}]", self.text) } else { self.text.clone() }
    }
}

enum Parsed {
    Tcp { tls: bool, host: Host, port: u16 },
    Unix(String),
}

impl Parsed {
    fn spec(self, weight: u32) -> EndpointSpec {
        match self {
            Self::Unix(path) => EndpointSpec {
                id: path.as_str().into(),
                address: Address::Unix(path.into()),
                tls: false,
                authority: HeaderValue::from_static("localhost"),
                tls_name: "localhost".into(),
                weight,
                priority: 0,
            },
            Self::Tcp { tls, host, port } => {
                let (scheme, default_port) = if tls { ("https", 443) } else { ("http", 80) };
                let written = host.written();
                let authority = if port == default_port { written.clone() } else { format!("{written}:{port}") };
                EndpointSpec {
                    id: format!("{scheme}://{written}:{port}").into(),
                    // Hosts were checked to be plain ASCII, so this conversion holds; the fallback is unreachable.
                    authority: HeaderValue::try_from(authority).unwrap_or(HeaderValue::from_static("localhost")),
                    tls_name: host.text.as_str().into(),
                    address: Address::Tcp { host: host.text, port },
                    tls,
                    weight,
                    priority: 0,
                }
            }
        }
    }
}

pub(super) type Complaint = (String, String);

fn parse_url(url: &str) -> Result<Parsed, Complaint> {
    const FORMS: &str = "write http://HOST:PORT, https://HOST:PORT or unix:/path/to.sock";
    if let Some(path) = url.strip_prefix("unix:") {
        if !path.starts_with('/') || path.len() < 2 || path.contains('\0') {
            return Err((format!("`{url}` is not a Unix socket"), "write an absolute path, like unix:/run/app.sock".to_owned()));
        }
        return Ok(Parsed::Unix(path.to_owned()));
    }
    let (scheme, rest) = url.split_once("://").ok_or_else(|| (format!("`{url}` is not an endpoint"), FORMS.to_owned()))?;
    let tls = match scheme.to_ascii_lowercase().as_str() {
        "http" => false,
        "https" => true,
        _ => return Err((format!("endpoints have no scheme `{scheme}`"), FORMS.to_owned())),
    };
    if let Some(end) = rest.find(['/', '?', '#']) {
        let host = &rest[..end];
        return Err((
            format!("an endpoint has no path, but `{url}` has one"),
            format!("write {scheme}://{host} and put the path into the route's `rewrite`"),
        ));
    }
    let (host, port) = parse_authority(rest, url)?;
    Ok(Parsed::Tcp { tls, host, port: port.unwrap_or(if tls { 443 } else { 80 }) })
}

pub(super) fn parse_authority(text: &str, whole: &str) -> Result<(Host, Option<u16>), Complaint> {
    let wrong = |what: &str, help: &str| (format!("`{whole}` {what}"), help.to_owned());
    if text.contains('@') {
        return Err(wrong("has a user in it", "credentials for upstreams go into `headers.request`"));
    }
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (inside, after) = rest.split_once(']').ok_or_else(|| wrong("has no `]`", "write IPv6 like http://[::1]:8080"))?;
            let ip: Ipv6Addr =
                inside.parse().map_err(|_| wrong("has no IPv6 address in its brackets", "write IPv6 like http://[::1]:8080"))?;
            let port = match after {
                "" => None,
                _ => Some(after.strip_prefix(':').ok_or_else(|| wrong("has text after `]`", "write IPv6 like http://[::1]:8080"))?),
            };
            (Host::of_ip(IpAddr::V6(ip)), port)
        }
        None => {
            let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
            (parse_name(host).map_err(|(what, help)| wrong(what, help))?, port)
        }
    };
    let port = match port {
        None => None,
        Some(port) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => {
            let number = port.parse::<u16>().ok().filter(|port| *port > 0);
            Some(number.ok_or_else(|| wrong("has a port out of range", "ports are 1 to 65535"))?)
        }
        Some(_) => {
            return Err(wrong("has a bad port", "write a number after `:`; IPv6 addresses stand in brackets, like http://[::1]:8080"));
        }
    };
    Ok((host, port))
}

fn parse_name(text: &str) -> Result<Host, (&'static str, &'static str)> {
    let name = text.to_ascii_lowercase();
    if name.is_empty() {
        return Err(("names no host", "write a host name or an address"));
    }
    if name.bytes().all(|b| b.is_ascii_digit() || b == b'.') && name.parse::<Ipv4Addr>().is_err() {
        return Err(("has a bad IPv4 address", "write four numbers, like 10.0.0.7"));
    }
    let label =
        |label: &str| !label.is_empty() && label.len() <= 63 && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if name.len() > 253 || !name.strip_suffix('.').unwrap_or(&name).split('.').all(label) {
        return Err(("has a bad host name", "use letters, digits, `-`, `_` and `.`; other letters in their xn-- form"));
    }
    Ok(Host { bracketed: false, text: name })
}

/// The outcome of the last active check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastCheck {
    /// When it ended.
    pub at: SystemTime,
    /// Whether it passed.
    pub ok: bool,
    /// Why it did not.
    pub error: Option<Arc<str>>,
}

/// What was learned about an endpoint. It survives reloads; its key is the upstream's name and the endpoint's id.
#[derive(Debug)]
pub struct EndpointState {
    /// The endpoint's id.
    pub id: Arc<str>,
    /// Attempts from pick to the end of the response body, all workers and snapshots together.
    pub(super) in_flight: InFlight,
    /// Peak EWMA of the time to response heads.
    pub ewma: Ewma,
    /// Row of failed attempts and ejection.
    pub(super) row: Row,
    /// Whether it takes connections.
    pub(super) reach: Reach,
    /// Why it last took none.
    pub(super) unreached: Unreached,
    verdict: AtomicU8,
    /// Whether observers were last told that it is available: 0 never told, 1 no, 2 yes.
    pub(super) told: AtomicU8,
    /// When it was added or came back by a check, for `slow_start`; 0 is "was there at the start".
    since: AtomicU64,
    addresses: ArcSwap<Vec<SocketAddr>>,
    checks: Mutex<Checks>,
}

#[derive(Debug, Default)]
struct Checks {
    counts: Counts,
    last: Option<LastCheck>,
}

impl EndpointState {
    pub(super) fn new(spec: &EndpointSpec, ewma: Duration, added: Option<Instant>, now: Instant) -> Self {
        Self {
            id: spec.id.clone(),
            in_flight: InFlight::default(),
            ewma: Ewma::starting_at(ewma, now),
            row: Row::default(),
            reach: Reach::default(),
            unreached: Unreached::default(),
            verdict: AtomicU8::new(Verdict::Unchecked as u8),
            told: AtomicU8::new(0),
            since: AtomicU64::new(added.map_or(0, clock::nanos)),
            addresses: ArcSwap::from_pointee(spec.literal_address().into_iter().collect()),
            checks: Mutex::default(),
        }
    }

    /// Attempts from pick to the end of the response body.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.all()
    }

    /// Socket addresses from the last look-up that succeeded, or the literal one. Empty before, and for Unix sockets.
    pub fn addresses(&self) -> Arc<Vec<SocketAddr>> {
        self.addresses.load_full()
    }

    pub(super) fn has_addresses(&self) -> bool {
        !self.addresses.load().is_empty()
    }

    /// Stores what a look-up found; returns whether that differs from before.
    pub(super) fn set_addresses(&self, found: Vec<SocketAddr>) -> bool {
        let changed = **self.addresses.load() != found;
        if changed {
            self.addresses.store(Arc::new(found));
        }
        changed
    }

    /// What active checks found so far.
    pub fn verdict(&self) -> Verdict {
        Verdict::from_code(self.verdict.load(Ordering::Acquire))
    }

    /// The last active check.
    pub fn last_check(&self) -> Option<LastCheck> {
        self.lock_checks().last.clone()
    }

    /// Until when it is ejected, if it is at `now`.
    pub fn ejected_until(&self, now: Instant) -> Option<Instant> {
        self.row.ejected_until(now)
    }

    /// Failed attempts in a row.
    pub fn consecutive_errors(&self, now: Instant) -> u32 {
        self.row.errors(now)
    }

    /// When its slow start began: it was added, or came back. `None` if it was there at the start.
    pub(super) fn slow_since(&self, now: Instant) -> Option<Instant> {
        let by_check = Some(self.since.load(Ordering::Relaxed)).filter(|since| *since != 0).map(clock::instant);
        by_check.max(self.row.returned_at(now))
    }

    fn lock_checks(&self) -> MutexGuard<'_, Checks> {
        self.checks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over a `health` block: with another one than before counts restart, the verdict stays.
    pub(super) fn adopt_health(&self, fingerprint: u64) {
        self.lock_checks().counts.adopt(fingerprint);
    }

    /// Forgets all checks, for an upstream that no longer has any.
    pub(super) fn forget_health(&self) {
        *self.lock_checks() = Checks::default();
        self.verdict.store(Verdict::Unchecked as u8, Ordering::Release);
    }

    /// Counts one check; returns the verdict before and after.
    pub(super) fn checked(&self, error: Option<&str>, healthy: u32, unhealthy: u32, now: Instant) -> (Verdict, Verdict) {
        let mut checks = self.lock_checks();
        let before = self.verdict();
        let after = checks.counts.count(before, error.is_none(), healthy, unhealthy);
        checks.last = Some(LastCheck { at: SystemTime::now(), ok: error.is_none(), error: error.map(Into::into) });
        if before != after && after == Verdict::Healthy {
            let was_there_at_the_start = before == Verdict::Unchecked && self.since.load(Ordering::Relaxed) == 0;
            if !was_there_at_the_start {
                self.since.store(clock::nanos(now), Ordering::Relaxed);
            }
        }
        self.verdict.store(after as u8, Ordering::Release);
        (before, after)
    }
}

/// An endpoint in one snapshot.
#[derive(Debug)]
pub struct Endpoint {
    /// `scheme://host:port`, or a socket's path.
    pub id: Arc<str>,
    /// How it is reached; socket addresses of names are in [`EndpointState::addresses`].
    pub address: Address,
    /// Whether the connection is TLS.
    pub tls: bool,
    /// Name to verify and to send as SNI unless `tls.server_name` says another.
    pub tls_name: Arc<str>,
    /// `Host` for `rewrite: { host: upstream }`.
    pub authority: HeaderValue,
    /// Share of the requests.
    pub weight: u32,
    /// See [`EndpointSpec::priority`].
    pub priority: u16,
    /// What was learned about it.
    pub state: Arc<EndpointState>,
    /// Place in written order.
    pub index: usize,
    /// Its connections.
    pub pool: Arc<EndpointPool>,
    pub(super) links: Links,
    /// Whether it no longer needs its pool.
    left: AtomicBool,
}

impl Endpoint {
    pub(super) fn new(spec: EndpointSpec, index: usize, state: Arc<EndpointState>, pool: Arc<EndpointPool>, links: Links) -> Self {
        let EndpointSpec { id, address, tls, authority, tls_name, weight, priority } = spec;
        pool.acquired();
        Self { id, address, tls, tls_name, authority, weight, priority, state, index, pool, links, left: AtomicBool::new(false) }
    }

    /// It is no member of its upstream any more: its pool keeps no connections for it.
    pub(super) fn leave(&self) {
        if !self.left.swap(true, Ordering::AcqRel) {
            self.pool.released();
        }
    }

    /// Whether there is an address to connect to.
    pub(super) fn is_resolved(&self) -> bool {
        matches!(self.address, Address::Unix(_)) || self.state.has_addresses()
    }

    /// The upstream's shared state.
    pub(super) fn upstream_state(&self) -> &Arc<UpstreamState> {
        &self.links.state
    }

    /// The upstream, unless its snapshot is gone.
    pub(super) fn upstream(&self) -> Option<Arc<Upstream>> {
        Weak::upgrade(&self.links.upstream)
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(url: &str) -> EndpointSpec {
        let mut problems = Problems::default();
        EndpointSpec::parse(url, 1, &At::default(), &mut problems).unwrap_or_else(|| panic!("{:?}", problems.list()))
    }

    #[test]
    fn ids_are_canonical_and_authorities_are_as_a_browser_writes_them() {
        for (url, id, authority, tls) in [
            ("http://127.0.0.1:8081", "http://127.0.0.1:8081", "127.0.0.1:8081", false),
            ("HTTP://Users.Internal", "http://users.internal:80", "users.internal", false),
            ("https://users.internal:443", "https://users.internal:443", "users.internal", true),
            ("https://users.internal:80", "https://users.internal:80", "users.internal:80", true),
            ("http://[0:0:0:0:0:0:0:1]:8080", "http://[::1]:8080", "[::1]:8080", false),
            ("unix:/run/App.sock", "/run/App.sock", "localhost", false),
        ] {
            let spec = spec(url);
            assert_eq!((&*spec.id, spec.authority.as_bytes(), spec.tls), (id, authority.as_bytes(), tls));
        }
        assert_eq!(&*spec("https://[::1]:8443").tls_name, "::1");
        assert_eq!(spec("http://[::1]:8080").literal_address(), "[::1]:8080".parse().ok());
    }

    #[test]
    fn anything_else_is_refused() {
        for url in [
            "",
            "users:8080",
            "http://",
            "http://:80",
            "http://a:",
            "http://a:0",
            "http://a:65536",
            "http://a:8o",
            "http://a/",
            "http://a/x",
            "http://a?x",
            "http://u:p@a",
            "http://::1:80",
            "http://[::1",
            "http://[::1]x",
            "http://[x]",
            "http://a b",
            "http://1.2.3",
            "http://a..b",
            "http://\u{e9}.de",
            "unix:app.sock",
            "unix:/",
            "ftp://a",
        ] {
            let mut problems = Problems::default();
            assert!(EndpointSpec::parse(url, 1, &At::default(), &mut problems).is_none(), "{url}");
            assert!(problems.list().len() == 1 && problems.list()[0].help.is_some(), "{url}");
        }
    }
}
