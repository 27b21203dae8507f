//! `upstreams`.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use crate::config::At;
use crate::units::{Duration, Percent, Selector, Setting, StatusRange};

/// A group of endpoints that serve the same.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Upstream {
    /// The endpoints: this list, or `discover`.
    pub endpoints: Vec<Endpoint>,
    /// Where endpoints come from instead of `endpoints`.
    pub discover: Option<Discover>,
    /// How an endpoint is chosen for each attempt.
    pub balance: Balance,
    /// `auto`: HTTP/1.1 in clear, ALPN over TLS; `http1`; `h2`: h2c in clear, needed for gRPC.
    pub protocol: Protocol,
    /// TLS of `https://` endpoints.
    pub tls: UpstreamTls,
    /// TCP and TLS of one attempt.
    pub connect_timeout: Duration,
    /// Connections, per endpoint.
    pub pool: Pool,
    /// Active checks; omit for none.
    #[serde(deserialize_with = "checked")]
    pub health: Option<Health>,
    /// Ejection of endpoints that fail live traffic.
    pub outlier: Setting<Outlier>,
    /// An endpoint that is added or comes back gets its share gradually over this time.
    pub slow_start: Duration,
    /// With a smaller share of endpoints available than this, all are used; `0%` answers 503 instead.
    pub panic_threshold: Percent,
    /// `adaptive`: client-side throttling by failure ratio.
    pub breaker: Setting<Breaker>,
    /// Where it is written.
    #[serde(skip)]
    pub at: At,
}

impl Default for Upstream {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            discover: None,
            balance: Balance::RoundRobin,
            protocol: Protocol::Auto,
            tls: UpstreamTls::default(),
            connect_timeout: Duration::from_secs(2),
            pool: Pool::default(),
            health: None,
            outlier: Setting::On(Outlier::default()),
            slow_start: Duration::from_secs(0),
            panic_threshold: Percent(50.0),
            breaker: Setting::Off,
            at: At::default(),
        }
    }
}

/// One endpoint: a URL, or a URL with a weight.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Endpoint {
    /// `http://HOST[:PORT]`, `https://…` or `unix:/path`.
    pub url: String,
    /// Share of the requests, 0–1000; 0 gets no new ones. Other than 1 needs `balance: weighted`, `consistent_hash` or `least_requests`.
    pub weight: u32,
}

/// Where endpoints come from.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Discover {
    /// `[https://]NAME:PORT`: every A/AAAA address is an endpoint. Or a service, `[https://]_SERVICE._tcp.NAME`: every address of its SRV
    /// records is one, with the records' ports, weights and priorities.
    #[serde(default)]
    pub dns: Option<String>,
    /// Longest time between two look-ups (±10 %); a shorter TTL is followed, down to 1 s.
    #[serde(default = "Discover::default_refresh")]
    pub refresh: Duration,
    /// Not supported yet.
    #[serde(default)]
    pub consul: Option<serde_json::Value>,
    /// Not supported yet.
    #[serde(default)]
    pub etcd: Option<serde_json::Value>,
    /// Not supported yet.
    #[serde(default)]
    pub kubernetes: Option<serde_json::Value>,
    /// Not supported yet.
    #[serde(default)]
    pub registry: Option<serde_json::Value>,
}

/// Whether a name is one of a service that has SRV records (RFC 2782): `_SERVICE._tcp.NAME`.
pub fn is_service(name: &str) -> bool {
    let mut labels = name.splitn(3, '.');
    labels.next().is_some_and(|service| service.len() > 1 && service.starts_with('_'))
        && labels.next().is_some_and(|protocol| protocol.eq_ignore_ascii_case("_tcp"))
        && labels.next().is_some_and(|name| !name.is_empty())
}

impl Discover {
    fn default_refresh() -> Duration {
        Duration::from_secs(30)
    }
}

/// How an endpoint is chosen.
#[derive(Clone, Debug, PartialEq)]
pub enum Balance {
    /// One after the other.
    RoundRobin,
    /// Smooth weighted round robin.
    Weighted,
    /// Fewest requests in flight per weight.
    LeastRequests,
    /// The cheaper of two random ones, by peak EWMA latency and requests in flight.
    P2c,
    /// Uniform.
    Random,
    /// The same key on the same endpoint.
    ConsistentHash {
        /// The first selector present is hashed.
        key: Vec<Selector>,
        /// Most load of one endpoint relative to the mean, > 1; `None` is off.
        bounded_load: Option<f64>,
    },
}

/// Protocol towards endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// HTTP/1.1 in clear, ALPN over TLS.
    #[default]
    Auto,
    /// HTTP/1.1 only.
    Http1,
    /// HTTP/2 only; prior knowledge in clear.
    H2,
}

/// TLS towards `https://` endpoints.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UpstreamTls {
    /// PEM file of authorities; replaces the system's.
    pub ca: Option<String>,
    /// Name to verify and to send as SNI; default is the endpoint's host.
    pub server_name: Option<String>,
    /// PEM file of a client certificate.
    pub cert: Option<String>,
    /// PEM file of its key.
    pub key: Option<String>,
    /// `false` accepts any certificate; warned of at each load.
    pub verify: bool,
}

impl Default for UpstreamTls {
    fn default() -> Self {
        Self { ca: None, server_name: None, cert: None, key: None, verify: true }
    }
}

/// Connections per endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Pool {
    /// Most idle connections kept, all workers together.
    pub max_idle: usize,
    /// Idle connections are closed after this.
    pub idle_timeout: Duration,
    /// Most connections, all workers together; requests beyond it wait up to `connect_timeout`.
    pub max_connections: usize,
}

impl Default for Pool {
    fn default() -> Self {
        Self { max_idle: 128, idle_timeout: Duration::from_secs(60), max_connections: 1024 }
    }
}

/// Active health checks: one of `path`, `tcp: true`, `grpc`, and `path: /health` if none is written.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Health {
    /// GET this path and compare the status with `expect`.
    pub path: Option<String>,
    /// Only connect.
    pub tcp: bool,
    /// `grpc.health.v1` check of this service; `""` is the whole server.
    pub grpc: Option<String>,
    /// Time between checks (±10 %), 2 s while unhealthy if that is shorter.
    pub interval: Duration,
    /// Connect and answer.
    pub timeout: Duration,
    /// Passes in a row that bring an endpoint back.
    pub healthy: u32,
    /// Failures in a row that take it out.
    pub unhealthy: u32,
    /// Statuses that pass.
    pub expect: Vec<StatusRange>,
}

/// A check of what nobody named asks for `/health`.
fn checked<'de, D: Deserializer<'de>>(written: D) -> Result<Option<Health>, D::Error> {
    let mut health = Option::<Health>::deserialize(written)?;
    if let Some(health) = &mut health
        && !health.tcp
        && health.grpc.is_none()
    {
        health.path.get_or_insert_with(|| "/health".to_owned());
    }
    Ok(health)
}

impl Default for Health {
    fn default() -> Self {
        Self {
            path: None,
            tcp: false,
            grpc: None,
            interval: Duration::from_secs(10),
            timeout: Duration::from_secs(2),
            healthy: 2,
            unhealthy: 3,
            expect: vec![StatusRange { from: 200, to: 399 }],
        }
    }
}

/// Ejection of endpoints that fail live traffic.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Outlier {
    /// Failed attempts in a row that eject.
    pub errors: u32,
    /// For how long, times the number of ejections so far (at most 10).
    pub eject_for: Duration,
    /// Most endpoints out at a time; never the last available one.
    pub max_ejected: Percent,
}

impl Default for Outlier {
    fn default() -> Self {
        Self { errors: 5, eject_for: Duration::from_secs(30), max_ejected: Percent(50.0) }
    }
}

/// The circuit breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Breaker {
    /// Client-side throttling by failure ratio.
    Adaptive,
}
