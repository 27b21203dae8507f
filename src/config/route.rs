//! `defaults` and `routes`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::At;
use crate::config::auth::Auth;
use crate::units::{Duration, Percent, Rate, Selector, Setting, Size};

/// What routes inherit: from `defaults`, then from groups, each level replacing the one outside it. What is left out is inherited.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Until the response headers arrive, all attempts together; 504. Default `30s`.
    pub timeout: Option<Setting<Duration>>,
    /// No byte moved either way while a body or a tunnel is open. Default `5m`.
    pub idle_timeout: Option<Setting<Duration>>,
    /// Tries after the first.
    pub retry: Option<Setting<Retry>>,
    /// Longest request body; 413.
    pub body_limit: Option<Setting<Size>>,
    /// Client addresses allowed and denied; 403.
    pub ip: Option<Setting<IpRules>>,
    /// Cross-origin rules for browsers.
    pub cors: Option<Setting<Cors>>,
    /// Who may call.
    pub auth: Option<Auth>,
    /// How much; inherited and own limits both count.
    pub rate_limit: Option<Setting<Vec<RateLimit>>>,
    /// Compression of responses. Not supported yet.
    pub compress: Option<Setting<serde_json::Value>>,
    /// Response cache. Not supported yet.
    pub cache: Option<Setting<serde_json::Value>>,
    /// Changes to header fields; inherited and own apply one after the other.
    pub headers: Option<Setting<Headers>>,
}

/// A route, or a group of routes.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Route {
    /// Unique; used in logs, metrics and `/routes`, a group's only in problems. Default: methods and path.
    pub name: Option<String>,
    /// Which requests: `[METHOD[,METHOD]] PATH`, or the conditions one by one.
    #[serde(rename = "match")]
    pub matcher: Match,
    /// Beats every other rule of precedence; higher first.
    pub priority: Option<i32>,
    /// Changes the path or the Host sent upstream.
    pub rewrite: Option<Setting<Rewrite>>,
    /// Until the response headers arrive, all attempts together; 504.
    pub timeout: Option<Setting<Duration>>,
    /// No byte moved either way while a body or a tunnel is open.
    pub idle_timeout: Option<Setting<Duration>>,
    /// Tries after the first.
    pub retry: Option<Setting<Retry>>,
    /// Longest request body; 413.
    pub body_limit: Option<Setting<Size>>,
    /// Client addresses allowed and denied; 403.
    pub ip: Option<Setting<IpRules>>,
    /// Cross-origin rules for browsers.
    pub cors: Option<Setting<Cors>>,
    /// Who may call: a name, a list of names, or a rule.
    pub auth: Option<Auth>,
    /// How much; inherited and own limits both count.
    pub rate_limit: Option<Setting<Vec<RateLimit>>>,
    /// Compression of responses. Not supported yet.
    pub compress: Option<Setting<serde_json::Value>>,
    /// Response cache. Not supported yet.
    pub cache: Option<Setting<serde_json::Value>>,
    /// Changes to header fields.
    pub headers: Option<Setting<Headers>>,
    /// A copy of each request is sent to another upstream, without effect on the answer.
    pub mirror: Option<Setting<Mirror>>,
    /// Target: one upstream.
    pub upstream: Option<String>,
    /// Target: one of several upstreams, by weight.
    pub split: Option<Split>,
    /// Target: one answer from several calls.
    pub aggregate: Option<Aggregate>,
    /// Target: a fixed answer.
    pub respond: Option<Respond>,
    /// Target: a redirect.
    pub redirect: Option<Redirect>,
    /// Target: files. Not supported yet.
    pub files: Option<serde_json::Value>,
    /// Target: gRPC transcoding. Not supported yet.
    pub grpc: Option<serde_json::Value>,
    /// A group: these routes are under its prefix and inherit what it sets.
    pub routes: Option<Vec<Route>>,
    /// Where it is written.
    #[serde(skip)]
    pub at: At,
}

/// Which requests a route takes; all given conditions must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Match {
    /// `http` or `https`, as the client sees it.
    pub scheme: Option<Scheme>,
    /// Exact, or `*.example.com` (any depth).
    pub host: Option<String>,
    /// Methods; omitted is any.
    pub methods: Option<Vec<String>>,
    /// Whole path with `{param}`s and a last `{*rest}`. At most one of `path`, `prefix`, `regex`.
    pub path: Option<String>,
    /// Path prefix by whole segments; may hold `{param}`s.
    pub prefix: Option<String>,
    /// Anchored regular expression; named groups become parameters.
    pub regex: Option<String>,
    /// Header conditions: exact value, or `"*"` for present.
    pub headers: BTreeMap<String, String>,
    /// Query conditions: exact value, or `"*"` for present.
    pub query: BTreeMap<String, String>,
    /// The short form as written, if it was used: keys then do not exist in the file.
    pub short: Option<String>,
}

/// How the client came: in clear text or over TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// Clear text.
    Http,
    /// TLS.
    Https,
}

/// Changes to what is sent upstream. At most one of `path`, `strip_prefix`, `regex`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Rewrite {
    /// Template of the new path.
    pub path: Option<String>,
    /// Whole segments cut from the front.
    pub strip_prefix: Option<String>,
    /// Pattern whose first match in the path is replaced by `to`.
    pub regex: Option<String>,
    /// Replacement for `regex`: `$1`, `$name`.
    pub to: Option<String>,
    /// Host sent upstream: `preserve` (the client's, default), `upstream` (the endpoint's), or a name.
    pub host: Option<String>,
}

/// Tries after the first.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Retry {
    /// Tries after the first.
    pub attempts: u32,
    /// What is retried: `connect`, `reset`, `timeout`, or a status such as `503`.
    pub when: Vec<RetryOn>,
    /// Longest single attempt, not counting the upload of the request.
    pub per_try_timeout: Option<Duration>,
    /// Base of the jittered wait between tries.
    pub backoff: Duration,
    /// Most retries relative to first attempts, over 10 s and per upstream (at least 30).
    pub budget: Percent,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 1,
            when: vec![RetryOn::Connect, RetryOn::Reset],
            per_try_timeout: None,
            backoff: Duration::from_millis(25),
            budget: Percent(20.0),
        }
    }
}

/// A failure that is retried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RetryOn {
    /// No connection was made.
    Connect,
    /// Closed or reset before the response head.
    Reset,
    /// `per_try_timeout` over.
    Timeout,
    /// This status (400–599).
    Status(u16),
}

/// Client addresses allowed and denied.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct IpRules {
    /// CIDRs; not empty: all others are refused.
    pub allow: Vec<String>,
    /// CIDRs that are refused.
    pub deny: Vec<String>,
}

/// Cross-origin rules.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cors {
    /// Origins allowed: exact, `https://*.example.org`, or `["*"]`.
    pub origins: Vec<String>,
    /// Methods a preflight allows.
    #[serde(default = "Cors::default_methods")]
    pub methods: Vec<String>,
    /// Headers a preflight allows; omitted: what it asks for.
    #[serde(default)]
    pub headers: Option<Vec<String>>,
    /// Response headers scripts may read.
    #[serde(default = "Cors::default_expose")]
    pub expose: Vec<String>,
    /// Cookies and HTTP authentication are allowed; refused with `origins: ["*"]`.
    #[serde(default)]
    pub credentials: bool,
    /// How long browsers remember a preflight.
    #[serde(default = "Cors::default_max_age")]
    pub max_age: Duration,
}

impl Cors {
    fn default_methods() -> Vec<String> {
        ["GET", "POST", "PUT", "PATCH", "DELETE"].map(str::to_owned).to_vec()
    }
    fn default_expose() -> Vec<String> {
        vec!["x-request-id".to_owned()]
    }
    fn default_max_age() -> Duration {
        Duration::from_secs(600)
    }
}

/// One limit.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// What is counted: a selector, or a list of which the first present counts.
    pub by: Selectors,
    /// Requests per time.
    pub rate: Rate,
    /// Requests at once; default is the rate's number.
    #[serde(default)]
    pub burst: Option<u64>,
    /// Name in the answer's `RateLimit` fields and the access log; default is the selectors joined by `|`.
    #[serde(default)]
    pub name: Option<String>,
    /// A store of `redis`; default is this process.
    #[serde(default)]
    pub store: Option<String>,
}

/// One selector or a list of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selectors(pub Vec<Selector>);

/// Changes to header fields. Per level `remove`, then `set`, then `add`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Headers {
    /// On the request that goes upstream.
    pub request: HeaderOps,
    /// On the response that goes to the client, gateway-made ones included.
    pub response: HeaderOps,
    /// nosniff, frame DENY, referrer policy, HSTS over TLS, unless the response has them.
    pub security: bool,
}

/// `remove`, then `set`, then `add`; values are templates.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HeaderOps {
    /// Fields that get one value, replacing what is there.
    pub set: BTreeMap<String, String>,
    /// Fields that get one more value.
    pub add: BTreeMap<String, String>,
    /// Fields taken away.
    pub remove: Vec<String>,
}

/// A copy of each request to another upstream.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mirror {
    /// Where the copies go.
    pub upstream: String,
    /// Share of the requests copied.
    #[serde(default = "Mirror::default_percent")]
    pub percent: Percent,
    /// How long the mirror's answer is still read, and thrown away, once the request is over; then the copy's connection is closed.
    #[serde(default = "Mirror::default_linger")]
    pub linger: Duration,
}

impl Mirror {
    fn default_percent() -> Percent {
        Percent(100.0)
    }

    fn default_linger() -> Duration {
        Duration::from_secs(1)
    }
}

/// Weighted upstreams: a list, or `{ by: SELECTORS, to: LIST }`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Split {
    /// Sticky by the first selector present; empty is at random.
    pub by: Vec<Selector>,
    /// The branches.
    pub to: Vec<Branch>,
}

/// One branch of a split.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Branch {
    /// Where its share goes.
    pub upstream: String,
    /// Its share.
    #[serde(default = "Branch::default_weight")]
    pub weight: u32,
}

impl Branch {
    fn default_weight() -> u32 {
        1
    }
}

/// One answer from several calls.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Aggregate {
    /// The calls, made at the same time.
    pub parts: Vec<Part>,
    /// Two merged parts set one key: `last`, `first` or `error`.
    #[serde(default)]
    pub on_conflict: OnConflict,
    /// Calls at a time.
    #[serde(default = "Aggregate::default_concurrency")]
    pub concurrency: usize,
    /// Longest part, decoded.
    #[serde(default = "Aggregate::default_max_part_size")]
    pub max_part_size: Size,
    /// Client headers the parts get.
    #[serde(default)]
    pub forward_headers: Vec<String>,
}

impl Aggregate {
    fn default_concurrency() -> usize {
        16
    }
    fn default_max_part_size() -> Size {
        Size(4 << 20)
    }
}

/// What happens when two merged parts set one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnConflict {
    /// The later one in written order wins.
    #[default]
    Last,
    /// The earlier one wins.
    First,
    /// 502.
    Error,
}

/// One call of an aggregate.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// A plain word, unique in the aggregate; the key its value gets.
    pub name: String,
    /// Where it is sent.
    pub upstream: String,
    /// Method of the call.
    #[serde(default = "Part::default_method")]
    pub method: String,
    /// Template of path and query; `{parts.NAME.key}` is a value out of another part, for which it waits.
    pub path: String,
    /// Longest wait for it; default is the route's.
    #[serde(default)]
    pub timeout: Option<Setting<Duration>>,
    /// Without it the whole answer fails.
    #[serde(default)]
    pub required: bool,
    /// Dotted path of the value to take; numbers index arrays.
    #[serde(default)]
    pub select: Option<String>,
    /// Keys to keep. Not with `deny`.
    #[serde(default)]
    pub allow: Option<Vec<String>>,
    /// Keys to drop.
    #[serde(default)]
    pub deny: Option<Vec<String>>,
    /// Keys to rename.
    #[serde(default)]
    pub rename: BTreeMap<String, String>,
    /// `false`: merged into the top level.
    #[serde(default = "Part::default_group")]
    pub group: bool,
}

impl Part {
    fn default_method() -> String {
        "GET".to_owned()
    }
    fn default_group() -> bool {
        true
    }
}

/// A fixed answer.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Respond {
    /// Its status.
    pub status: u16,
    /// Its headers.
    pub headers: BTreeMap<String, String>,
    /// Its body.
    pub body: String,
}

impl Default for Respond {
    fn default() -> Self {
        Self { status: 200, headers: BTreeMap::new(), body: String::new() }
    }
}

/// A redirect.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Redirect {
    /// Template of the `Location`; the client's query is appended unless it has one.
    pub to: String,
    /// 301, 302, 303, 307 or 308.
    #[serde(default = "Redirect::default_status")]
    pub status: u16,
}

impl Redirect {
    fn default_status() -> u16 {
        302
    }
}
