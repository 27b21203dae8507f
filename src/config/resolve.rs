//! Groups and inheritance flattened: one [`Route`] with everything that applies to it, in written order.

mod checks;
mod matching;
mod policy;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::config::auth::AuthRule;
use crate::config::route::{self, Aggregate, Cors, Headers, IpRules, Match, Mirror, RateLimit, Redirect, Respond, Retry, Rewrite, Split};
use crate::config::{At, Config, Problems};

pub(super) use checks::later;
use matching::Conditions;
use policy::Inherited;

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
    let mut inherited = Inherited::default();
    inherited.apply(&config.defaults, &At::main("defaults"), config, problems);
    let mut walk = Walk { config, problems, found: Vec::new(), groups: Vec::new() };
    walk.list(&config.routes, &inherited, &Conditions::default());
    let Walk { mut found, groups, problems, .. } = walk;
    name(&mut found, groups, problems);
    found.into_iter().map(|found| found.route).collect()
}

#[allow(clippy::type_complexity)] // two lists of what routes have too: no type of its own would say more
/// What 404 and 405 answers get: `headers` and `cors` of `defaults`.
pub fn fallback_policy(config: &Config) -> (Vec<(Headers, At)>, Option<(Cors, At)>) {
    let mut inherited = Inherited::default();
    inherited.apply(&config.defaults, &At::main("defaults"), config, &mut Problems::default());
    (inherited.headers, inherited.cors)
}

/// What a route that sets nothing itself would have.
pub(super) fn defaults_of(config: &Config) -> Route {
    let mut inherited = Inherited::default();
    inherited.apply(&config.defaults, &At::main("defaults"), config, &mut Problems::default());
    inherited.into_route(&route::Route::default(), Match::default(), 0, Target::Respond(Respond::default()))
}

/// A flattened route whose name may still be missing.
struct Unnamed {
    route: Route,
    written: bool,
}

struct Walk<'a> {
    config: &'a Config,
    problems: &'a mut Problems,
    found: Vec<Unnamed>,
    /// Names of groups, which only problems show, and where they are written.
    groups: Vec<(String, At)>,
}

impl Walk<'_> {
    fn list(&mut self, routes: &[route::Route], inherited: &Inherited, outer: &Conditions) {
        for route in routes {
            self.one(route, inherited, outer);
        }
    }

    fn one(&mut self, route: &route::Route, inherited: &Inherited, outer: &Conditions) {
        let mut inherited = inherited.clone();
        inherited.apply(&policy::of(route), &route.at, self.config, self.problems);
        inherited.apply_route(route, self.config, self.problems);
        let conditions = outer.with(route, self.problems);
        checks::not_supported(route, self.problems);
        let targets = checks::targets(route);
        if targets.len() != 1 {
            self.report_targets(route, &targets);
        }
        if let Some(children) = &route.routes {
            conditions.check_group(route, self.problems);
            self.groups.extend(route.name.clone().map(|name| (name, route.at.clone())));
            return self.list(children, &inherited, &conditions);
        }
        conditions.check_route(route, self.config, self.problems);
        checks::rewrite(route, &conditions.matcher, self.problems);
        if let Some(target) = checks::target(route, self.config, self.problems) {
            let matcher = Match { short: route.matcher.short.clone(), ..conditions.matcher };
            let flat = inherited.into_route(route, matcher, conditions.priority, target);
            self.found.push(Unnamed { route: flat, written: route.name.is_some() });
        }
    }

    fn report_targets(&mut self, route: &route::Route, targets: &[&str]) {
        if !targets.is_empty() {
            self.problems
                .error(
                    route.at.clone(),
                    format!("a route has exactly one target, and this one has {}: {}", targets.len(), targets.join(", ")),
                )
                .help("keep one of them");
        } else if !self.config.has_lost(&route.at, &checks::TARGETS) {
            self.problems
                .error(route.at.clone(), "this route has no target")
                .help("add one of upstream, split, aggregate, respond, redirect or routes");
        }
    }
}

/// Gives every route without a name its default one, and refuses equal written ones.
fn name(found: &mut [Unnamed], groups: Vec<(String, At)>, problems: &mut Problems) {
    let mut taken: BTreeMap<String, At> = BTreeMap::new();
    let routes = found.iter().filter(|one| one.written).map(|one| (one.route.name.clone(), one.route.at.clone()));
    for (name, at) in groups.into_iter().chain(routes) {
        if let Some(first) = taken.get(&name) {
            let message = format!("the route name \"{name}\" is used twice");
            problems.error(first.key("name"), message.clone());
            problems.error(at.key("name"), message).help("every route needs a name of its own");
            continue;
        }
        taken.insert(name, at);
    }
    let mut uses: BTreeMap<String, usize> = BTreeMap::new();
    for one in found.iter().filter(|one| !one.written) {
        *uses.entry(one.route.name.clone()).or_default() += 1;
    }
    for one in found.iter_mut().filter(|one| !one.written) {
        let route = &mut one.route;
        if uses.get(&route.name).is_some_and(|uses| *uses > 1)
            && let Some(host) = &route.matcher.host
        {
            route.name = format!("{} {host}", route.name);
        }
        let base = route.name.clone();
        let mut number = 2;
        while taken.contains_key(&route.name) {
            route.name = format!("{base} #{number}");
            number += 1;
        }
        taken.insert(route.name.clone(), route.at.clone());
    }
}
