//! `listeners`, `server`, `admin`, `log`, `tracing`, `redis`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::{ByteRate, Duration, Percent, Secret, Setting, Size};

/// A listening address.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// IP address and port, such as `0.0.0.0:8080` or `[::]:8080`. In clear text it speaks HTTP/1.1, and HTTP/2 by prior knowledge (h2c).
    pub address: String,
    /// Expect PROXY protocol v1 or v2 from `server.trusted_proxies`.
    #[serde(default)]
    pub proxy_protocol: bool,
    /// Terminate TLS; HTTP/2 and HTTP/1.1 by ALPN.
    #[serde(default)]
    pub tls: Option<ListenerTls>,
}

/// TLS on a listener. Files are watched and swapped without a restart.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListenerTls {
    /// Certificates, chosen by SNI from the names in each; the first is the fallback.
    pub certificates: Vec<Certificate>,
    /// PEM file of the authorities that client certificates are verified against.
    #[serde(default)]
    pub client_ca: Option<String>,
    /// Whether clients must present a certificate; only with `client_ca`.
    #[serde(default)]
    pub client_auth: Option<ClientAuth>,
    /// Lowest TLS version accepted.
    #[serde(default)]
    pub min_version: TlsVersion,
}

/// A certificate chain and its key.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// PEM file with the certificate, then its chain.
    pub cert: String,
    /// PEM file with the private key.
    pub key: String,
}

/// What is asked of clients' certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClientAuth {
    /// No valid certificate, no connection.
    #[default]
    Required,
    /// None is fine; an invalid one still fails.
    Optional,
}

/// A TLS version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
pub enum TlsVersion {
    /// TLS 1.2 and 1.3.
    #[default]
    #[serde(rename = "1.2")]
    V1_2,
    /// TLS 1.3 only.
    #[serde(rename = "1.3")]
    V1_3,
}

/// Limits and timeouts of the server side.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Server {
    /// Worker threads; `auto` is one per CPU the process may use. A change needs a restart.
    pub workers: Workers,
    /// CIDRs whose `X-Forwarded-*`, `Forwarded` and PROXY headers are believed.
    pub trusted_proxies: Vec<String>,
    /// Open client connections, all listeners together; beyond it new ones wait in the kernel's backlog.
    pub max_connections: usize,
    /// Longest request head (431) and request target (414).
    pub max_header_size: Size,
    /// Most header fields in a request (431).
    pub max_headers: usize,
    /// Most connections from one client address (IPv6 by /64); further ones are closed at once.
    pub max_connections_per_ip: Setting<usize>,
    /// HTTP/2 limits.
    pub http2: Http2,
    /// `%2F` in a path: `reject` (400) or `keep` (matched and forwarded as part of its segment).
    pub encoded_slash: EncodedSlash,
    /// Header that carries the request id; made if absent, sent upstream and back.
    pub request_id: Setting<String>,
    /// Timeouts of client connections.
    pub timeouts: Timeouts,
    /// How long `/ready` says 503 before listeners close on shutdown.
    pub drain_delay: Duration,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            workers: Workers::Auto,
            trusted_proxies: Vec::new(),
            max_connections: 65_536,
            max_header_size: Size(32 << 10),
            max_headers: 100,
            max_connections_per_ip: Setting::Off,
            http2: Http2::default(),
            encoded_slash: EncodedSlash::Reject,
            request_id: Setting::On("x-request-id".to_owned()),
            timeouts: Timeouts::default(),
            drain_delay: Duration::from_secs(0),
        }
    }
}

/// Number of worker threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workers {
    /// One per CPU the process may use.
    Auto,
    /// Exactly this many.
    Count(usize),
}

/// HTTP/2 limits.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Http2 {
    /// Streams one connection may have open at a time.
    pub max_streams: u32,
}

impl Default for Http2 {
    fn default() -> Self {
        Self { max_streams: 128 }
    }
}

/// What to do with `%2F` in a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EncodedSlash {
    /// Answer 400.
    #[default]
    Reject,
    /// Match and forward it as part of its segment.
    Keep,
}

/// Timeouts of client connections; `off` is no limit.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// PROXY header and TLS handshake.
    pub handshake: Setting<Duration>,
    /// From a request's first byte (or the connection's start) to its last header byte.
    pub header: Setting<Duration>,
    /// Keep-alive connection without a request.
    pub idle: Setting<Duration>,
    /// How long a shutdown waits for requests in flight.
    pub drain: Setting<Duration>,
    /// Slowest request body, over any 10 s in which the gateway was ready to read; slower is cut with 408.
    pub min_body_rate: Setting<ByteRate>,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            handshake: Setting::On(Duration::from_secs(10)),
            header: Setting::On(Duration::from_secs(10)),
            idle: Setting::On(Duration::from_secs(75)),
            drain: Setting::On(Duration::from_secs(30)),
            min_body_rate: Setting::Off,
        }
    }
}

/// The admin listener: `/metrics /health /ready /info /routes /upstreams /config`, `POST /reload`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// IP address and port.
    pub address: String,
    /// Bearer token; required when the address is not loopback. `/health` and `/ready` never need it.
    pub token: Secret,
}

impl Default for Admin {
    fn default() -> Self {
        Self { address: "127.0.0.1:9901".to_owned(), token: Secret::default() }
    }
}

/// Application and access logs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// Least severe level written.
    pub level: LogLevel,
    /// `auto` is text on a terminal, else JSON.
    pub format: LogFormat,
    /// One line per request.
    pub access: AccessLog,
}

/// Severity of application log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogLevel {
    /// Failures that need an operator.
    Error,
    /// What may become one.
    Warn,
    /// Starts, reloads, health changes.
    #[default]
    Info,
    /// Details for debugging.
    Debug,
    /// Everything.
    Trace,
}

/// Form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// Text on a terminal, else JSON.
    #[default]
    Auto,
    /// `key=value` text.
    Text,
    /// One JSON object per line.
    Json,
}

/// The access log: one line per request when it ends.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AccessLog {
    /// Whether it is written.
    pub enabled: bool,
    /// `stdout`, `stderr`, or a file's path (reopened on SIGHUP).
    pub output: String,
}

impl Default for AccessLog {
    fn default() -> Self {
        Self { enabled: true, output: "stdout".to_owned() }
    }
}

/// Trace export. Not supported yet.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tracing {
    /// OTLP over HTTP.
    pub otlp: Otlp,
}

/// OTLP export. Not supported yet.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Otlp {
    /// The collector.
    pub endpoint: String,
    /// Share of requests traced.
    #[serde(default)]
    pub sample: Option<Percent>,
    /// Name in the traces.
    #[serde(default)]
    pub service_name: Option<String>,
}

/// A Redis store for shared rate limits.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Redis {
    /// `redis://` or `rediss://`, the password in the URL.
    pub url: Secret,
    /// Longest wait for a decision; after it the request is decided locally.
    #[serde(default = "Redis::default_timeout")]
    pub timeout: Duration,
}

impl Redis {
    fn default_timeout() -> Duration {
        Duration::from_millis(50)
    }
}
