//! Groups and inheritance flattened: one [`Route`] with everything that applies to it, in written order.

use std::time::Duration;

use crate::config::auth::AuthRule;
use crate::config::route::{Aggregate, Cors, Headers, IpRules, Match, Mirror, RateLimit, Redirect, Respond, Retry, Rewrite, Split};
use crate::config::{At, Config, Problems};

/// One route with inheritance applied.
#[derive(Clone, Debug)]
pub struct Route {
    /// Unique name, as written or by default.
    pub name: String,
    /// Where it is written.
    pub at: At,
    /// All conditions, group prefixes included. `short` is what the route itself wrote.
    pub matcher: Match,
    /// Higher wins.
    pub priority: i32,
    /// Changes to path and Host.
    pub rewrite: Option<Rewrite>,
    /// `None` is off.
    pub timeout: Option<Duration>,
    /// `None` is off.
    pub idle_timeout: Option<Duration>,
    /// `None` is off.
    pub retry: Option<Retry>,
    /// Bytes; `None` is off.
    pub body_limit: Option<u64>,
    /// `None` is off. With the place where it is written.
    pub ip: Option<(IpRules, At)>,
    /// `None` is off. With the place where it is written.
    pub cors: Option<(Cors, At)>,
    /// `None` is off. With the place where it is written.
    pub auth: Option<(AuthRule, At)>,
    /// Defaults first, then groups from the outside, then the route's own. The place is the bucket's home: equal places share a bucket.
    pub rate_limits: Vec<(RateLimit, At)>,
    /// Defaults first, then groups from the outside, then the route's own.
    pub headers: Vec<(Headers, At)>,
    /// Copies of requests.
    pub mirror: Option<(Mirror, At)>,
    /// What answers.
    pub target: Target,
}

/// What answers a route's requests.
#[derive(Clone, Debug)]
pub enum Target {
    /// An upstream by name.
    Upstream(String),
    /// One of several upstreams.
    Split(Split),
    /// Several calls merged.
    Aggregate(Aggregate),
    /// A fixed answer.
    Respond(Respond),
    /// A redirect.
    Redirect(Redirect),
}

/// Flattens `config.routes`. Everything that needs only the config itself is checked here: names, targets, "not supported yet", combinations.
pub fn routes(config: &Config, problems: &mut Problems) -> Vec<Route> {
    let _ = (config, problems);
    todo!()
}

/// What 404 and 405 answers get: `headers` and `cors` of `defaults`.
pub fn fallback_policy(config: &Config) -> (Vec<(Headers, At)>, Option<(Cors, At)>) {
    let _ = config;
    todo!()
}
