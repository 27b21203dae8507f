//! What the admin API says of the gateway: plain data with exactly the keys of its answers.
//!
//! Times are RFC 3339 text, durations are as in the config, and what is unknown is `null`.

use std::collections::BTreeMap;

use serde::Serialize;

pub use crate::config::problem::Report;

/// `GET /info`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Info {
    /// `tollgate`.
    pub name: String,
    /// Version of the program.
    pub version: String,
    /// Commit it was built from.
    pub commit: String,
    /// Process id.
    pub pid: u32,
    /// When the process started.
    pub started_at: String,
    /// Whole seconds since then.
    pub uptime_seconds: u64,
    /// Worker threads.
    pub workers: usize,
    /// Requests that have begun and not ended.
    pub requests_in_flight: u64,
    /// Where clients connect.
    pub listeners: Vec<ListenerStatus>,
    /// The configuration in use.
    pub config: ConfigStatus,
    /// Settings that changed and need a restart, such as `server.workers`.
    pub restart_needed: Vec<String>,
}

/// One listener.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ListenerStatus {
    /// Its address; with port 0 in the config the port it got.
    pub address: String,
    /// Whether it terminates TLS.
    pub tls: bool,
    /// Open client connections.
    pub connections: u64,
}

/// The configuration in use.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ConfigStatus {
    /// The main file.
    pub path: String,
    /// All files that were read.
    pub files: Vec<String>,
    /// Hash of their contents.
    pub hash: String,
    /// How many configurations have served, this one included.
    pub generation: u64,
    /// When it was loaded.
    pub loaded_at: String,
    /// The last load, which may have failed.
    pub last_reload: LastReload,
}

/// How the last load of the configuration ended.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LastReload {
    /// When.
    pub at: Option<String>,
    /// `ok`, `failed` or `unchanged`.
    pub result: Option<&'static str>,
    /// The problems, if it failed.
    pub errors: Vec<Report>,
}

/// `GET /ready`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ready {
    /// Requests are welcome.
    Ready,
    /// The first round of health checks is not done.
    Starting,
    /// A shutdown has begun.
    Draining,
}

impl Ready {
    /// The word in `status`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Starting => "starting",
            Self::Draining => "draining",
        }
    }
}

/// One route, as `GET /routes` lists it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RouteStatus {
    /// Its name.
    pub name: String,
    /// Priority.
    pub priority: i64,
    /// Scheme it is limited to; left out for both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheme: Option<crate::config::route::Scheme>,
    /// Host it is limited to.
    pub host: Option<String>,
    /// Methods it is limited to.
    pub methods: Vec<String>,
    /// `path`, `prefix` or `regex`.
    pub kind: &'static str,
    /// The path, prefix or regex.
    pub path: String,
    /// Header conditions.
    pub headers: BTreeMap<String, String>,
    /// Query conditions.
    pub query: BTreeMap<String, String>,
    /// What answers.
    pub target: TargetStatus,
    /// The upstream that gets copies; left out where there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mirror: Option<String>,
    /// Authenticators.
    pub auth: Vec<String>,
    /// The timeout; `off` is `null`.
    pub timeout: Option<String>,
    /// Names of the limits that count.
    pub rate_limit: Vec<String>,
    /// Where it is written, as `gateway.yaml:97:5`.
    pub source: String,
}

/// What answers a route.
#[derive(Clone, Debug, Default, Serialize)]
pub struct TargetStatus {
    /// `upstream`, `split`, `aggregate`, `respond`, `redirect`.
    pub kind: &'static str,
    /// The upstream's name; those of a split's branches and an aggregate's parts in written order, joined by `, `; `null` if none is asked.
    pub upstream: Option<String>,
}

/// One upstream, as `GET /upstreams` lists it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct UpstreamStatus {
    /// Its name.
    pub name: String,
    /// The strategy.
    pub balance: String,
    /// Whether so few endpoints are available that all are used.
    pub panic: bool,
    /// The breaker.
    pub breaker: BreakerStatus,
    /// The endpoints, in written order.
    pub endpoints: Vec<EndpointStatus>,
    /// The last look-up of each name; left out where there is none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lookups: Vec<LookupStatus>,
}

/// The last look-up of a name.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LookupStatus {
    /// What was looked up.
    pub name: String,
    /// When.
    pub at: String,
    /// Whether all of it was found.
    pub ok: bool,
    /// Why it was not; what was found before stays in use.
    pub error: Option<String>,
}

/// State of a breaker.
#[derive(Clone, Debug, Default, Serialize)]
pub struct BreakerStatus {
    /// `off` or `adaptive`.
    pub mode: &'static str,
    /// Probability with which an attempt is dropped now.
    pub drop: f64,
}

/// One endpoint.
#[derive(Clone, Debug, Default, Serialize)]
pub struct EndpointStatus {
    /// `scheme://host:port`.
    pub id: String,
    /// Its weight.
    pub weight: u32,
    /// `healthy`, `unhealthy`, `unchecked` or `ejected`.
    pub state: &'static str,
    /// Attempts in flight.
    pub in_flight: u64,
    /// Its connections.
    pub connections: ConnectionStatus,
    /// Peak EWMA of the time to response heads, in milliseconds.
    pub ewma_ms: Option<f64>,
    /// Failed attempts in a row.
    pub consecutive_errors: u32,
    /// Why it gets no requests; `null` if it may.
    pub why: Option<String>,
    /// How often it was ejected.
    pub ejections: u64,
    /// When its ejection ends.
    pub ejected_until: Option<String>,
    /// The last health check; all `null` if there was none.
    pub last_check: CheckStatus,
    /// Why a request could last not connect to it; left out if all could.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_connect_error: Option<ConnectErrorStatus>,
}

/// A failure to connect.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ConnectErrorStatus {
    /// When.
    pub at: String,
    /// What, as `TLS: invalid peer certificate: UnknownIssuer`.
    pub error: String,
}

/// Connections to one endpoint.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct ConnectionStatus {
    /// Open, idle ones included.
    pub open: u64,
    /// Idle.
    pub idle: u64,
}

/// A health check.
#[derive(Clone, Debug, Default, Serialize)]
pub struct CheckStatus {
    /// When.
    pub at: Option<String>,
    /// Whether it passed.
    pub ok: Option<bool>,
    /// Why not, as `status 503, expected 200-399`.
    pub error: Option<String>,
}

/// How a reload that somebody asked for ended: the body of `POST /reload`.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum ReloadOutcome {
    /// The new configuration serves.
    Ok {
        /// Its generation.
        generation: u64,
        /// How long it took.
        duration_ms: u64,
    },
    /// It is what serves already.
    Unchanged,
    /// It has problems; the last good one serves.
    Failed {
        /// All of them.
        errors: Vec<Report>,
    },
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reload_outcomes_have_the_keys_of_the_table() {
        let json = |outcome: ReloadOutcome| serde_json::to_value(outcome).unwrap();
        assert_eq!(json(ReloadOutcome::Ok { generation: 4, duration_ms: 12 }), json!({"result": "ok", "generation": 4, "duration_ms": 12}));
        assert_eq!(json(ReloadOutcome::Unchanged), json!({"result": "unchanged"}));
        let report = Report {
            file: "gateway.yaml".to_owned(),
            line: 42,
            column: 7,
            message: "unknown field".to_owned(),
            help: None,
            source_line: Some("secret".to_owned()),
            warning: false,
        };
        assert_eq!(
            json(ReloadOutcome::Failed { errors: vec![report] }),
            json!({"result": "failed", "errors": [{"file": "gateway.yaml", "line": 42, "column": 7, "message": "unknown field", "help": null}]})
        );
    }

    #[test]
    fn answers_have_the_keys_of_the_table() {
        assert_eq!(
            serde_json::to_value(Info::default()).unwrap(),
            json!({"name": "", "version": "", "commit": "", "pid": 0, "started_at": "", "uptime_seconds": 0, "workers": 0,
                "requests_in_flight": 0, "listeners": [],
                "config": {"path": "", "files": [], "hash": "", "generation": 0, "loaded_at": "",
                    "last_reload": {"at": null, "result": null, "errors": []}},
                "restart_needed": []})
        );
        assert_eq!(
            serde_json::to_value(RouteStatus::default()).unwrap(),
            json!({"name": "", "priority": 0, "host": null, "methods": [], "kind": "", "path": "", "headers": {}, "query": {},
                "target": {"kind": "", "upstream": null}, "auth": [], "timeout": null, "rate_limit": [], "source": ""})
        );
        let upstream = UpstreamStatus { endpoints: vec![EndpointStatus::default()], ..UpstreamStatus::default() };
        assert_eq!(
            serde_json::to_value(upstream).unwrap(),
            json!({"name": "", "balance": "", "panic": false, "breaker": {"mode": "", "drop": 0.0},
                "endpoints": [{"id": "", "weight": 0, "state": "", "in_flight": 0, "connections": {"open": 0, "idle": 0},
                    "ewma_ms": null, "consecutive_errors": 0, "why": null, "ejections": 0, "ejected_until": null,
                    "last_check": {"at": null, "ok": null, "error": null}}]})
        );
    }
}
