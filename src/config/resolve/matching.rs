//! Conditions of groups and routes put together.

use std::collections::BTreeMap;

use crate::config::route::{self, Match};
use crate::config::{At, Config, Problems};

/// What holds for everything inside a group; at the end, for one route.
#[derive(Clone, Debug, Default)]
pub(super) struct Conditions {
    pub matcher: Match,
    pub priority: i32,
    nested: bool,
}

impl Conditions {
    /// These conditions with those of `route` added.
    pub fn with(&self, route: &route::Route, problems: &mut Problems) -> Self {
        let at = route.at.key("match");
        let (outer, own) = (&self.matcher, &route.matcher);
        let prefix = outer.prefix.as_deref().unwrap_or_default().trim_end_matches('/');
        if let (Some(group), Some(host)) = (&outer.host, &own.host)
            && !host_inside(host, group)
        {
            problems
                .error(at.key("host"), format!("the host \"{host}\" is outside the group's host \"{group}\""))
                .help("a route in a group can only narrow the group's host");
        }
        if self.nested && own.regex.is_some() {
            problems
                .error(at.key("regex"), "a route in a group cannot have a regex")
                .help("use path or prefix, or move the route out of the group");
        }
        let methods = own.methods.clone().or_else(|| outer.methods.clone());
        if let (Some(group), Some(scheme)) = (outer.scheme, own.scheme)
            && group != scheme
        {
            problems
                .error(at.key("scheme"), "the group has the other scheme: this route can never match")
                .help("leave `scheme` out here, or move the route out of the group");
        }
        let matcher = Match {
            scheme: own.scheme.or(outer.scheme),
            host: own.host.clone().or_else(|| outer.host.clone()),
            methods,
            path: own.path.as_ref().map(|path| format!("{prefix}{path}")),
            prefix: own.prefix.as_ref().map(|own| join_prefix(prefix, own)),
            regex: own.regex.clone(),
            headers: add_up(&outer.headers, &own.headers, true, &at.key("headers"), problems),
            query: add_up(&outer.query, &own.query, false, &at.key("query"), problems),
            short: own.short.clone(),
        };
        check_methods(own, &at, problems);
        Self { matcher, priority: route.priority.unwrap_or(self.priority), nested: true }
    }

    /// A group's match must be a prefix.
    pub fn check_group(&self, route: &route::Route, problems: &mut Problems) {
        let own = &route.matcher;
        if own.prefix.is_none() || own.path.is_some() || own.regex.is_some() {
            problems
                .error(route.at.key("match"), "the match of a group must be a prefix")
                .help("write it as PATH/*, or as { prefix: PATH }");
        }
    }

    /// A route has exactly one of path, prefix and regex.
    pub fn check_route(&self, route: &route::Route, config: &Config, problems: &mut Problems) {
        let own = &route.matcher;
        let kinds = [&own.path, &own.prefix, &own.regex].into_iter().flatten().count();
        let at = route.at.key("match");
        warn_of_colons(own, &at, problems);
        if kinds > 1 {
            problems.error(at, "exactly one of path, prefix and regex is allowed").help("keep one of them");
        } else if kinds == 0 && !config.has_lost(&at, &["path", "prefix", "regex"]) {
            problems.error(at, "this route matches no path: one of path, prefix or regex is needed").help("prefix: / takes every path");
        }
    }
}

/// `:id` is how other routers write a parameter; here it would match nothing but itself.
fn warn_of_colons(own: &Match, at: &At, problems: &mut Problems) {
    for (key, text) in [("path", &own.path), ("prefix", &own.prefix)] {
        let Some(name) = text.iter().flat_map(|text| text.split('/')).find_map(|segment| segment.strip_prefix(':')) else { continue };
        if !name.is_empty() {
            let at = if own.short.is_some() { at.clone() } else { at.key(key) };
            problems.warn(at, format!("`:{name}` takes only itself")).help(format!("write {{{name}}} for a segment of any value"));
        }
    }
}

fn join_prefix(group: &str, own: &str) -> String {
    let joined = format!("{group}{own}");
    // A written final slash changes nothing, and below a group it would only be doubled.
    let trimmed = joined.trim_end_matches('/');
    if trimmed.is_empty() { "/".to_owned() } else { trimmed.to_owned() }
}

/// Whether every host that `host` takes is also taken by `group`.
fn host_inside(host: &str, group: &str) -> bool {
    let plain = |name: &str| name.trim_end_matches('.').to_ascii_lowercase();
    let (host, group) = (plain(host), plain(group));
    host == group || group.strip_prefix('*').is_some_and(|suffix| host.len() > suffix.len() && host.ends_with(suffix))
}

/// Both sets of conditions; a name in both keeps the narrower one.
fn add_up(
    outer: &BTreeMap<String, String>,
    own: &BTreeMap<String, String>,
    any_case: bool,
    at: &At,
    problems: &mut Problems,
) -> BTreeMap<String, String> {
    let mut all = outer.clone();
    for (name, value) in own {
        let same = |other: &&String| if any_case { other.eq_ignore_ascii_case(name) } else { *other == name };
        let known = outer.keys().find(same).cloned();
        match known.as_ref().and_then(|known| outer.get(known)) {
            Some(wanted) if wanted != "*" && value != "*" && wanted != value => {
                problems.error(at.key(name), format!("the group wants another value of \"{name}\": this route can never match"));
            }
            Some(wanted) if wanted != "*" => {}
            Some(_) | None => {
                known.map(|known| all.remove(&known));
                all.insert(name.clone(), value.clone());
            }
        }
    }
    all
}

fn check_methods(own: &Match, at: &At, problems: &mut Problems) {
    let Some(methods) = &own.methods else { return };
    let place = |index: usize| if own.short.is_some() { at.clone() } else { at.key("methods").index(index) };
    if methods.is_empty() {
        problems.error(at.key("methods"), "an empty list of methods matches nothing").help("leave `methods` out for any method");
    }
    for (index, method) in methods.iter().enumerate() {
        if matches!(method.as_str(), "TRACE" | "CONNECT") {
            problems.error(place(index), format!("{method} cannot be routed")).help("the gateway answers TRACE and CONNECT with 405");
        } else if http::Method::from_bytes(method.as_bytes()).is_err() {
            problems.error(place(index), format!("\"{method}\" is not a method"));
        } else if method.bytes().any(|b| b.is_ascii_lowercase()) && http::Method::from_bytes(method.to_ascii_uppercase().as_bytes()).is_ok()
        {
            let upper = method.to_ascii_uppercase();
            if STANDARD.contains(&upper.as_str()) {
                problems
                    .warn(place(index), format!("methods are case-sensitive: \"{method}\" is not {upper}"))
                    .help(format!("write {upper}"));
            }
        }
        if methods.iter().take(index).any(|other| other == method) {
            problems.error(place(index), format!("{method} is listed twice"));
        }
    }
}

const STANDARD: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

/// Methods joined by `,` and the whole path.
pub(super) fn default_name(matcher: &Match) -> String {
    let path = match (&matcher.path, &matcher.prefix, &matcher.regex) {
        (Some(path), _, _) => path.clone(),
        (None, Some(prefix), _) => format!("{}/*", prefix.trim_end_matches('/')),
        (None, None, Some(regex)) => regex.clone(),
        (None, None, None) => String::new(),
    };
    match &matcher.methods {
        Some(methods) => format!("{} {path}", methods.join(",")),
        None => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_inside_its_wildcard_but_not_beside_it() {
        assert!(host_inside("a.x.com", "*.x.com"));
        assert!(host_inside("*.a.X.com", "*.x.com."));
        assert!(host_inside("x.com", "x.com"));
        assert!(!host_inside("x.com", "*.x.com"));
        assert!(!host_inside("axx.com", "*.x.com"));
        assert!(!host_inside("*.x.com", "a.x.com"));
    }

    #[test]
    fn prefixes_join_without_doubled_or_final_slashes() {
        assert_eq!(join_prefix("/admin", "/"), "/admin");
        assert_eq!(join_prefix("/admin", "/users/"), "/admin/users");
        assert_eq!(join_prefix("", "/"), "/");
    }
}
