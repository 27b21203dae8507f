//! Checks of one route: its target, its names, its combinations.

use super::Target;
use crate::config::auth::AuthRule;
use crate::config::route::{self, Aggregate, Match, RateLimit, Redirect, Respond, Split};
use crate::config::suggest::did_you_mean;
use crate::config::validate::{not_zero, sticky_selectors};
use crate::config::{At, Config, Problems};
use crate::units::Setting;

/// Refuses an option that a later version builds.
pub(in crate::config) fn later(problems: &mut Problems, at: &At, what: &str) {
    problems.error(at.its_key(), format!("`{what}` is not supported yet")).help("remove it");
}

pub(super) fn not_supported(route: &route::Route, problems: &mut Problems) {
    for (name, written) in [("files", &route.files), ("grpc", &route.grpc)] {
        if written.is_some() {
            later(problems, &route.at.key(name), name);
        }
    }
}

/// What a route can have as its target.
pub(super) const TARGETS: [&str; 8] = ["upstream", "split", "aggregate", "respond", "redirect", "files", "grpc", "routes"];

/// The targets a route has.
pub(super) fn targets(route: &route::Route) -> Vec<&'static str> {
    let written = [
        route.upstream.is_some(),
        route.split.is_some(),
        route.aggregate.is_some(),
        route.respond.is_some(),
        route.redirect.is_some(),
        route.files.is_some(),
        route.grpc.is_some(),
        route.routes.is_some(),
    ];
    TARGETS.into_iter().zip(written).filter(|(_, is)| *is).map(|(name, _)| name).collect()
}

/// The route's target, checked.
pub(super) fn target(route: &route::Route, config: &Config, problems: &mut Problems) -> Option<Target> {
    let at = &route.at;
    if let Some(name) = &route.upstream {
        upstream_exists(name, &at.key("upstream"), config, problems);
        return Some(Target::Upstream(name.clone()));
    }
    if let Some(split) = &route.split {
        check_split(split, &at.key("split"), config, problems);
        return Some(Target::Split(split.clone()));
    }
    if let Some(aggregate) = &route.aggregate {
        check_aggregate(aggregate, &at.key("aggregate"), config, problems);
        return Some(Target::Aggregate(aggregate.clone()));
    }
    if let Some(respond) = &route.respond {
        check_respond(respond, &at.key("respond"), problems);
        return Some(Target::Respond(respond.clone()));
    }
    let redirect = route.redirect.as_ref()?;
    check_redirect(redirect, &at.key("redirect"), problems);
    Some(Target::Redirect(redirect.clone()))
}

/// Reports a name that is not among `known`.
fn exists<'a>(
    what: &str,
    name: &str,
    section: &str,
    known: impl Iterator<Item = &'a String> + Clone,
    at: &At,
    config: &Config,
    problems: &mut Problems,
) {
    // A definition that could not be read may be the one that is meant.
    let lost = config.dropped.iter().any(|dropped| {
        let path: Vec<_> = At::main(section).key(name).path;
        path.starts_with(&dropped.path)
    });
    if lost || known.clone().any(|other| other == name) {
        return;
    }
    let hint = did_you_mean(name, known.clone().map(String::as_str));
    let names: Vec<&str> = known.map(String::as_str).collect();
    let help = match names.len() {
        0 => format!("define it under `{section}`"),
        1..=12 => format!("`{section}` has {}", names.join(", ")),
        _ => format!("it is not among the {} names under `{section}`", names.len()),
    };
    problems.error(at.clone(), format!("unknown {what} \"{name}\"{hint}")).help(help);
}

pub(super) fn upstream_exists(name: &str, at: &At, config: &Config, problems: &mut Problems) {
    exists("upstream", name, "upstreams", config.upstreams.keys(), at, config, problems);
}

pub(super) fn auth(rule: &AuthRule, at: &At, config: &Config, problems: &mut Problems) {
    if rule.any.is_empty() && !config.has_lost(at, &["any"]) {
        problems.error(at.clone(), "no authenticator is named, so nobody could call").help("name one in `any`, or write `auth: off`");
    }
    for (index, name) in rule.any.iter().enumerate() {
        // The place of the short forms is the nearest thing that is written.
        let long = at.key("any").index(index);
        let place =
            if rule.any.len() > 1 || !rule.scopes.is_empty() || !rule.claims.is_empty() || rule.optional { long } else { at.clone() };
        exists("authenticator", name, "authenticators", config.authenticators.keys(), &place, config, problems);
        if rule.any.iter().take(index).any(|other| other == name) {
            problems.error(at.clone(), format!("the authenticator \"{name}\" is listed twice"));
        }
    }
}

pub(super) fn rate_limit(limit: &RateLimit, at: &At, config: &Config, problems: &mut Problems) {
    if limit.by.0.is_empty() && !config.has_lost(at, &["by"]) {
        problems.error(at.key("by"), "`by` names nothing to count by").help("write a selector such as ip, user or global");
    }
    if limit.burst == Some(0) {
        problems.error(at.key("burst"), "a burst of 0 would refuse every request").help("write at least 1, or leave it out");
    }
    if let Some(store) = &limit.store {
        exists("redis store", store, "redis", config.redis.keys(), &at.key("store"), config, problems);
    }
}

fn check_split(split: &Split, at: &At, config: &Config, problems: &mut Problems) {
    // Only the long form has `by`; without it the list may stand directly under `split`.
    let list = if split.by.is_empty() { at.clone() } else { at.key("to") };
    sticky_selectors(&split.by, &at.key("by"), problems);
    for (index, branch) in split.to.iter().enumerate() {
        upstream_exists(&branch.upstream, &list.index(index).key("upstream"), config, problems);
    }
    if config.is_damaged(at) {
        return;
    }
    if split.to.is_empty() {
        problems.error(at.clone(), "a split needs at least one upstream");
    } else if split.to.iter().all(|branch| branch.weight == 0) {
        problems.error(at.clone(), "all weights are 0: nobody would get a request").help("give one upstream a weight of at least 1");
    }
}

fn check_aggregate(aggregate: &Aggregate, at: &At, config: &Config, problems: &mut Problems) {
    let parts = at.key("parts");
    if aggregate.parts.is_empty() && !config.is_damaged(&parts) {
        problems.error(parts.clone(), "an aggregate needs at least one part");
    }
    if aggregate.concurrency == 0 {
        problems.error(at.key("concurrency"), "with a concurrency of 0 no part could ever run").help("write at least 1");
    }
    if aggregate.max_part_size.0 == 0 {
        problems.error(at.key("max_part_size"), "no part would fit into 0 bytes");
    }
    for (index, part) in aggregate.parts.iter().enumerate() {
        let at = parts.index(index);
        upstream_exists(&part.upstream, &at.key("upstream"), config, problems);
        if let Some(Setting::On(timeout)) = part.timeout {
            not_zero(timeout, &at.key("timeout"), "write at least 1ms, or off for no limit", problems);
        }
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if part.name.is_empty() || !part.name.chars().all(word) {
            problems.error(at.key("name"), format!("\"{}\" is not a plain word", part.name)).help("use letters, digits, _ and -");
        }
        if aggregate.parts.iter().take(index).any(|other| other.name == part.name) {
            problems.error(at.key("name"), format!("two parts have the name \"{}\"", part.name));
        }
        if part.allow.is_some() && part.deny.is_some() {
            problems.error(at.key("deny"), "`allow` and `deny` exclude each other").help("keep one of them");
        }
    }
}

fn check_respond(respond: &Respond, at: &At, problems: &mut Problems) {
    if !(200..=599).contains(&respond.status) {
        problems.error(at.key("status"), format!("{} is not a status to answer with", respond.status)).help("write one from 200 to 599");
    }
    if matches!(respond.status, 204 | 304) && !respond.body.is_empty() {
        problems.error(at.key("body"), format!("a response with status {} has no body", respond.status)).help("remove `body`, or use 200");
    }
}

fn check_redirect(redirect: &Redirect, at: &At, problems: &mut Problems) {
    if !matches!(redirect.status, 301 | 302 | 303 | 307 | 308) {
        problems.error(at.key("status"), format!("{} is not a redirect", redirect.status)).help("write 301, 302, 303, 307 or 308");
    }
}

/// A route's own rewrite against its target and its path.
pub(super) fn rewrite(route: &route::Route, matcher: &Match, problems: &mut Problems) {
    let Some(rewrite) = &route.rewrite else { return };
    let at = route.at.key("rewrite");
    let ways = [("path", &rewrite.path), ("strip_prefix", &rewrite.strip_prefix), ("regex", &rewrite.regex)];
    let written: Vec<&str> = ways.iter().filter(|(_, way)| way.is_some()).map(|(name, _)| *name).collect();
    if written.len() > 1 {
        problems
            .error(at.clone(), format!("{} exclude each other", written.join(" and ")))
            .help("keep one of path, strip_prefix and regex");
    }
    if rewrite.regex.is_some() != rewrite.to.is_some() {
        let (there, missing) = if rewrite.regex.is_some() { ("regex", "to") } else { ("to", "regex") };
        problems.error(at.key(there), format!("`{there}` needs `{missing}`")).help("write both: { regex: PATTERN, to: TEXT }");
    }
    for (target, is) in [("redirect", route.redirect.is_some()), ("respond", route.respond.is_some())] {
        if is {
            problems.error(at.its_key(), format!("`rewrite` has no effect with `{target}`")).help("remove it");
        }
    }
    if route.aggregate.is_some() && (!written.is_empty() || rewrite.to.is_some()) {
        problems.error(at.clone(), "with `aggregate` only `host` can be rewritten").help("each part has a `path` of its own");
    }
    if let Some(strip) = &rewrite.strip_prefix {
        check_strip(strip, matcher, &at, problems);
    }
}

fn check_strip(strip: &str, matcher: &Match, at: &At, problems: &mut Problems) {
    let Some(path) = matcher.path.as_ref().or(matcher.prefix.as_ref()) else { return };
    let segments = |text: &str| text.trim_matches('/').split('/').filter(|s| !s.is_empty()).map(str::to_owned).collect::<Vec<_>>();
    let (path_segments, strip_segments) = (segments(path), segments(strip));
    let literal = !strip.contains(['{', '}']) && strip.starts_with('/');
    if !literal || !path_segments.starts_with(&strip_segments) {
        problems
            .error(at.key("strip_prefix"), format!("\"{strip}\" is not a prefix of the route's path \"{path}\""))
            .help("it cuts whole segments that every request of the route has");
    }
}
