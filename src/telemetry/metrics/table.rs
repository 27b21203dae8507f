//! The closed list of metrics: name, kind, labels, meaning. Scrapes and `docs/metrics.md` are both made from it.

use std::fmt::Write as _;

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Durations in buckets.
    Histogram,
}

impl Kind {
    /// The word in the text format.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

macro_rules! table {
    ($($variant:ident = $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        /// One metric of the closed list.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Family { $(#[doc = $help] $variant,)* }

        impl Family {
            /// All metrics, in the order of their declaration: `Family::ALL[family as usize] == family`.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Its name.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
            /// What it is.
            pub const fn kind(self) -> Kind {
                match self { $(Self::$variant => Kind::$kind,)* }
            }
            /// Names of its labels, in the order in which values are given.
            pub const fn labels(self) -> &'static [&'static str] {
                match self { $(Self::$variant => &[$($label,)*],)* }
            }
            /// Its meaning, in a sentence.
            pub const fn help(self) -> &'static str {
                match self { $(Self::$variant => $help,)* }
            }
        }
    };
}

table! {
    Requests = Counter "gateway_requests_total" ["route", "method", "status"]
        "Requests that ended, by the status sent.";
    RequestDuration = Histogram "gateway_request_duration_seconds" ["route"]
        "Time from a request's head to its last response byte; tunnels are not observed.";
    UpstreamRequests = Counter "gateway_upstream_requests_total" ["upstream", "endpoint", "status"]
        "Attempts, by the upstream's status, or the reason if there was no response.";
    UpstreamRequestDuration = Histogram "gateway_upstream_request_duration_seconds" ["upstream"]
        "Time of attempts from the pick of an endpoint to the response head.";
    Errors = Counter "gateway_errors_total" ["route", "reason"]
        "Requests that the gateway answered itself or cut, by reason.";
    GrpcResponses = Counter "gateway_grpc_responses_total" ["route", "grpc_status"]
        "gRPC calls that ended, by grpc-status.";
    RateLimited = Counter "gateway_rate_limited_total" ["route"]
        "Requests refused by a rate limit.";
    AuthFailures = Counter "gateway_auth_failures_total" ["route", "reason"]
        "Requests refused by authentication, by exact cause.";
    Retries = Counter "gateway_retries_total" ["upstream"]
        "Attempts after the first.";
    RetriesDenied = Counter "gateway_retries_denied_total" ["upstream"]
        "Retries that the retry budget did not allow.";
    Mirrored = Counter "gateway_mirrored_total" ["route", "result"]
        "Requests chosen for a copy: sent (the mirror got all of it), failed, dropped (too many under way), skipped (body too long or incomplete), late (the request was over before its copy was sent).";
    LookupFailures = Counter "gateway_upstream_lookup_failures_total" ["upstream"]
        "Look-ups of an endpoint's name that failed; the last addresses stay in use.";
    Ejections = Counter "gateway_upstream_ejections_total" ["upstream", "endpoint"]
        "Ejections of an endpoint by outlier detection.";
    BreakerDropped = Counter "gateway_breaker_dropped_total" ["upstream"]
        "Attempts that the breaker did not let through.";
    JwksFetches = Counter "gateway_jwks_fetches_total" ["authenticator", "result"]
        "Fetches of a key set (ok, failed).";
    ConfigReloads = Counter "gateway_config_reloads_total" ["result"]
        "Reloads of the configuration (ok, failed, unchanged); the start is none.";
    ConnectionErrors = Counter "gateway_connection_errors_total" ["listener", "kind"]
        "Client connections that ended before a request was read (tls, proxy, header_timeout, bad_request, too_large).";
    BytesReceived = Counter "gateway_bytes_received_total" ["listener"]
        "Bytes from clients, after TLS; heads and tunnels included.";
    BytesSent = Counter "gateway_bytes_sent_total" ["listener"]
        "Bytes to clients, before TLS; heads and tunnels included.";
    AccessLogDropped = Counter "gateway_access_log_dropped_total" []
        "Access log lines dropped because the output was full or failed.";
    RequestsInFlight = Gauge "gateway_requests_in_flight" []
        "Requests that have begun and not ended.";
    Connections = Gauge "gateway_connections" ["listener"]
        "Open client connections.";
    Tunnels = Gauge "gateway_tunnels" ["route"]
        "Open tunnels (WebSocket).";
    EndpointHealthy = Gauge "gateway_endpoint_healthy" ["upstream", "endpoint"]
        "1 if the endpoint is available: not unhealthy, not ejected, weight above 0.";
    UpstreamConnections = Gauge "gateway_upstream_connections" ["upstream", "endpoint"]
        "Open connections to the endpoint, idle ones included.";
    UpstreamPanic = Gauge "gateway_upstream_panic" ["upstream"]
        "1 while so few endpoints are available that all of them are used.";
    StoreUp = Gauge "gateway_store_up" ["store"]
        "1 while the store answers.";
    CertificateExpiry = Gauge "gateway_certificate_expiry_timestamp_seconds" ["listener", "certificate"]
        "When the certificate expires, in Unix time.";
    LastReloadSuccessful = Gauge "gateway_config_last_reload_successful" []
        "1 if the last load of the configuration succeeded.";
    LastReloadTimestamp = Gauge "gateway_config_last_reload_timestamp_seconds" []
        "When the configuration was last loaded, whatever the result, in Unix time.";
    BuildInfo = Gauge "gateway_build_info" ["version", "commit"]
        "Always 1; the labels say what runs.";
}

/// Names of the `prometheus` crate's process collector. They are the usual ones, so dashboards for other programs fit.
const PROCESS: [(&str, &str, &str); 7] = [
    ("process_cpu_seconds_total", "counter", "User and system CPU time, in whole seconds."),
    ("process_max_fds", "gauge", "Most file descriptors the process may open."),
    ("process_open_fds", "gauge", "Open file descriptors."),
    ("process_resident_memory_bytes", "gauge", "Resident memory."),
    ("process_start_time_seconds", "gauge", "Start of the process, in Unix time."),
    ("process_threads", "gauge", "Threads."),
    ("process_virtual_memory_bytes", "gauge", "Virtual memory."),
];

/// The text of `docs/metrics.md`.
pub fn markdown() -> String {
    let mut text = String::from(
        "# Metrics\n\n\
         `GET /metrics` on the admin address answers in the Prometheus text format, version 0.0.4. The list is closed: label values come from\n\
         the configuration, from current endpoints, or from closed lists, so no request can make a series of its own.\n\n",
    );
    for kind in [Kind::Counter, Kind::Gauge, Kind::Histogram] {
        let title = match kind {
            Kind::Counter => "Counters",
            Kind::Gauge => "Gauges",
            Kind::Histogram => "Histograms",
        };
        let _ = write!(text, "## {title}\n\n| Name | Labels | Meaning |\n|---|---|---|\n");
        for family in Family::ALL.iter().filter(|family| family.kind() == kind) {
            let labels = family.labels().iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
            let _ = writeln!(text, "| `{}` | {labels} | {} |", family.name(), family.help());
        }
        text.push('\n');
    }
    let bounds = super::shard::BUCKETS.map(|bound| bound.to_string()).join(", ");
    let _ = write!(text, "Upper bounds of the buckets, in seconds: {bounds}.\n\n## Process\n\n| Name | Kind | Meaning |\n|---|---|---|\n");
    for (name, kind, meaning) in PROCESS {
        let _ = writeln!(text, "| `{name}` | {kind} | {meaning} |");
    }
    text.push_str(LABELS);
    text
}

const LABELS: &str = "
## Labels

| Label | Values |
|---|---|
| `route` | the route's name; `-` for requests without a route |
| `method` | GET HEAD POST PUT PATCH DELETE OPTIONS CONNECT TRACE, or `other` |
| `status` | the code sent; for attempts without a response the reason |
| `reason` | the reason in the error body and the access log; for `gateway_auth_failures_total` the access log's `auth_error` |
| `grpc_status` | 0 to 16, or `other` |
| `upstream`, `endpoint` | the upstream's name; `scheme://host:port` |
| `listener`, `certificate` | the listener's address; the certificate's file |

A series with only a `route` label starts with the route's first request. Series of upstreams, endpoints and listeners start at 0 when they
are configured. Counters keep their values over a reload by name; series of names that left the configuration end.
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_stand_at_their_own_index_and_have_distinct_names() {
        for (index, family) in Family::ALL.iter().enumerate() {
            assert_eq!(*family as usize, index);
        }
        let mut names: Vec<_> = Family::ALL.iter().map(|family| family.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Family::ALL.len());
    }

    #[test]
    fn the_manual_lists_what_is_exposed() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(path, markdown()).unwrap();
        }
        let written = std::fs::read_to_string(path).unwrap();
        assert!(written == markdown(), "docs/metrics.md is out of date: run the tests once with BLESS=1");
    }
}
