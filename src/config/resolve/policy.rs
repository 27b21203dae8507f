//! Inheritance: from the built-in defaults through `defaults` and groups down to one route.

use std::time::Duration;

use super::{Route, Target, checks, matching};
use crate::config::auth::AuthRule;
use crate::config::route::{self, Cors, Headers, IpRules, Match, Mirror, Policy, RateLimit, Retry, RetryOn, Rewrite};
use crate::config::validate::not_zero;
use crate::config::{At, Config, Problems};
use crate::units::{self, Setting};

/// What applies at one level.
#[derive(Clone)]
pub(super) struct Inherited {
    pub timeout: Option<Duration>,
    pub idle_timeout: Option<Duration>,
    pub retry: Option<Retry>,
    pub body_limit: Option<u64>,
    pub ip: Option<(IpRules, At)>,
    pub cors: Option<(Cors, At)>,
    pub auth: Option<(AuthRule, At)>,
    pub rate_limits: Vec<(RateLimit, At)>,
    pub headers: Vec<(Headers, At)>,
    pub mirror: Option<(Mirror, At)>,
    pub rewrite: Option<Rewrite>,
}

impl Default for Inherited {
    fn default() -> Self {
        Self {
            timeout: Some(Duration::from_secs(30)),
            idle_timeout: Some(Duration::from_secs(300)),
            retry: Some(Retry::default()),
            body_limit: None,
            ip: None,
            cors: None,
            auth: None,
            rate_limits: Vec::new(),
            headers: Vec::new(),
            mirror: None,
            rewrite: None,
        }
    }
}

/// The inheritable part of a route or group.
pub(super) fn of(route: &route::Route) -> Policy {
    Policy {
        timeout: route.timeout.clone(),
        idle_timeout: route.idle_timeout.clone(),
        retry: route.retry.clone(),
        body_limit: route.body_limit.clone(),
        ip: route.ip.clone(),
        cors: route.cors.clone(),
        auth: route.auth.clone(),
        rate_limit: route.rate_limit.clone(),
        compress: route.compress.clone(),
        cache: route.cache.clone(),
        headers: route.headers.clone(),
    }
}

/// Replaces `value` by what a level says, if it says anything.
fn replace<T: Clone, U>(value: &mut Option<U>, written: Option<&Setting<T>>, to: impl FnOnce(T) -> U) {
    if let Some(setting) = written {
        *value = setting.on().cloned().map(to);
    }
}

impl Inherited {
    /// Applies what is written at one level, and checks it there, once.
    pub fn apply(&mut self, policy: &Policy, at: &At, config: &Config, problems: &mut Problems) {
        replace(&mut self.timeout, policy.timeout.as_ref(), units::Duration::get);
        replace(&mut self.idle_timeout, policy.idle_timeout.as_ref(), units::Duration::get);
        replace(&mut self.retry, policy.retry.as_ref(), |retry| retry);
        replace(&mut self.body_limit, policy.body_limit.as_ref(), |size| size.0);
        replace(&mut self.ip, policy.ip.as_ref(), |ip| (ip, at.key("ip")));
        replace(&mut self.cors, policy.cors.as_ref(), |cors| (cors, at.key("cors")));
        replace(&mut self.auth, policy.auth.as_ref(), |auth| (auth, at.key("auth")));
        match &policy.rate_limit {
            Some(Setting::On(limits)) => {
                let at = at.key("rate_limit");
                self.rate_limits.extend(limits.iter().enumerate().map(|(index, limit)| (limit.clone(), at.index(index))));
            }
            Some(Setting::Off) => self.rate_limits.clear(),
            None => {}
        }
        match &policy.headers {
            Some(Setting::On(headers)) => self.headers.push((headers.clone(), at.key("headers"))),
            Some(Setting::Off) => self.headers.clear(),
            None => {}
        }
        for (name, written) in [("compress", &policy.compress), ("cache", &policy.cache)] {
            if let Some(Setting::On(_)) = written {
                checks::later(problems, &at.key(name), name);
            }
        }
        check(policy, at, config, problems);
    }

    /// Applies what only routes and groups have.
    pub fn apply_route(&mut self, route: &route::Route, config: &Config, problems: &mut Problems) {
        let at = route.at.key("mirror");
        if let Some(Setting::On(mirror)) = &route.mirror {
            checks::upstream_exists(&mirror.upstream, &at.key("upstream"), config, problems);
        }
        replace(&mut self.mirror, route.mirror.as_ref(), |mirror| (mirror, at));
        replace(&mut self.rewrite, route.rewrite.as_ref(), |rewrite| rewrite);
    }

    pub fn into_route(self, route: &route::Route, matcher: Match, priority: i32, target: Target) -> Route {
        Route {
            name: route.name.clone().unwrap_or_else(|| matching::default_name(&matcher)),
            at: route.at.clone(),
            priority,
            rewrite: self.rewrite.and_then(|rewrite| fitting(rewrite, &target)),
            timeout: self.timeout,
            idle_timeout: self.idle_timeout,
            retry: self.retry,
            body_limit: self.body_limit,
            ip: self.ip,
            cors: self.cors,
            auth: self.auth,
            rate_limits: self.rate_limits,
            headers: self.headers,
            mirror: self.mirror,
            matcher,
            target,
        }
    }
}

/// The part of a group's rewrite that a target has use for. (A route's own rewrite that does not fit is an error.)
fn fitting(rewrite: Rewrite, target: &Target) -> Option<Rewrite> {
    match target {
        Target::Upstream(_) | Target::Split(_) => Some(rewrite),
        Target::Aggregate(_) => rewrite.host.map(|host| Rewrite { host: Some(host), ..Rewrite::default() }),
        Target::Respond(_) | Target::Redirect(_) => None,
    }
}

fn check(policy: &Policy, at: &At, config: &Config, problems: &mut Problems) {
    if let Some(retry) = policy.retry.as_ref().and_then(Setting::on) {
        let retry_at = at.key("retry");
        if retry.when.contains(&RetryOn::Timeout) && retry.per_try_timeout.is_none() && !config.is_damaged(&retry_at) {
            problems
                .error(retry_at.key("when"), "`timeout` needs `per_try_timeout`: without it no time would be left for another try")
                .help("add per_try_timeout, shorter than the route's timeout");
        }
    }
    let times = [
        (at.key("timeout"), policy.timeout.as_ref().and_then(Setting::on).copied()),
        (at.key("idle_timeout"), policy.idle_timeout.as_ref().and_then(Setting::on).copied()),
        (at.key("retry").key("per_try_timeout"), policy.retry.as_ref().and_then(Setting::on).and_then(|retry| retry.per_try_timeout)),
    ];
    for (at, time) in times.into_iter().filter_map(|(at, time)| Some((at, time?))) {
        not_zero(time, &at, "write at least 1ms, or off for no limit", problems);
    }
    if let Some(rules) = policy.ip.as_ref().and_then(Setting::on) {
        for (name, list) in [("allow", &rules.allow), ("deny", &rules.deny)] {
            crate::config::validate::networks(list, &at.key("ip").key(name), problems);
        }
    }
    if let Some(rule) = policy.auth.as_ref().and_then(Setting::on) {
        checks::auth(rule, &at.key("auth"), config, problems);
    }
    for (index, limit) in policy.rate_limit.iter().filter_map(Setting::on).flatten().enumerate() {
        checks::rate_limit(limit, &at.key("rate_limit").index(index), config, problems);
    }
}
