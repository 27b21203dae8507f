//! The effective configuration for people: defaults and inheritance filled in, secrets hidden.

use serde_json::{Map, Value, json};

use super::{Config, auth, resolve, server};

/// What stands in place of a secret.
const HIDDEN: &str = "***";
/// Shortest substituted value that is also hidden inside longer text: shorter ones would hit by accident.
const MIN_INSIDE: usize = 4;

/// `text` with every substituted value in it replaced.
pub fn hide(text: &str, substituted: &[String]) -> String {
    if substituted.iter().any(|secret| secret == text) {
        return HIDDEN.to_owned();
    }
    // The longest first: one may be part of another.
    let mut secrets: Vec<&String> =
        substituted.iter().filter(|secret| secret.len() >= MIN_INSIDE && text.contains(secret.as_str())).collect();
    secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    secrets.into_iter().fold(text.to_owned(), |text, secret| text.replace(secret.as_str(), HIDDEN))
}

/// The configuration as it takes effect, as JSON: defaults and inheritance filled in; substituted values, secrets, tokens, key hashes and
/// passwords in URLs are `"***"`.
pub fn effective_json(config: &Config, routes: &[resolve::Route], substituted: &[String]) -> Value {
    let mut config = config.clone();
    let default = || vec![server::Listener { address: "0.0.0.0:8080".to_owned(), proxy_protocol: false, tls: None }];
    config.listeners.get_or_insert_with(default);
    let mut value = serde_json::to_value(&config).unwrap_or_default();
    if let Value::Object(fields) = &mut value {
        let defaults = resolve::defaults_of(&config);
        fields.insert("defaults".to_owned(), policy(&defaults).into());
        fields.insert("routes".to_owned(), routes.iter().map(route).collect());
    }
    clean(&mut value, substituted);
    value
}

fn or_off<T: serde::Serialize>(value: Option<T>) -> Value {
    value.and_then(|value| serde_json::to_value(value).ok()).unwrap_or_else(|| "off".into())
}

/// What routes inherit or have.
fn policy(route: &resolve::Route) -> Map<String, Value> {
    let duration = |value: Option<std::time::Duration>| or_off(value.map(crate::units::Duration));
    let limits: Vec<Value> = route
        .rate_limits
        .iter()
        .map(|(limit, _)| {
            let mut limit = limit.clone();
            limit.burst.get_or_insert(limit.rate.count);
            let selectors: Vec<String> = limit.by.0.iter().map(ToString::to_string).collect();
            limit.name.get_or_insert_with(|| selectors.join("|"));
            serde_json::to_value(limit).unwrap_or_default()
        })
        .collect();
    let mut fields = Map::new();
    let mut put = |name: &str, value: Value| fields.insert(name.to_owned(), value);
    put("timeout", duration(route.timeout));
    put("idle_timeout", duration(route.idle_timeout));
    put("retry", or_off(route.retry.as_ref()));
    put("body_limit", or_off(route.body_limit.map(crate::units::Size)));
    put("ip", or_off(route.ip.as_ref().map(|(ip, _)| ip)));
    put("cors", or_off(route.cors.as_ref().map(|(cors, _)| cors)));
    put("auth", or_off(route.auth.as_ref().map(|(auth, _): &(auth::AuthRule, _)| auth)));
    put("rate_limit", limits.into());
    put("headers", route.headers.iter().map(|(headers, _)| serde_json::to_value(headers).unwrap_or_default()).collect());
    fields
}

fn route(route: &resolve::Route) -> Value {
    let mut fields = Map::new();
    fields.insert("name".to_owned(), route.name.clone().into());
    fields.insert("match".to_owned(), json!(route.matcher));
    fields.insert("priority".to_owned(), route.priority.into());
    if let Some(rewrite) = &route.rewrite {
        fields.insert("rewrite".to_owned(), json!(rewrite));
    }
    fields.extend(policy(route));
    if let Some((mirror, _)) = &route.mirror {
        fields.insert("mirror".to_owned(), json!(mirror));
    }
    let (kind, target) = match &route.target {
        resolve::Target::Upstream(name) => ("upstream", json!(name)),
        resolve::Target::Split(split) => ("split", json!(split)),
        resolve::Target::Aggregate(aggregate) => ("aggregate", json!(aggregate)),
        resolve::Target::Respond(respond) => ("respond", json!(respond)),
        resolve::Target::Redirect(redirect) => ("redirect", json!(redirect)),
    };
    fields.insert(kind.to_owned(), target);
    fields.into()
}

/// Hides substituted values and passwords in URLs everywhere, and leaves out what is not set.
fn clean(value: &mut Value, substituted: &[String]) {
    match value {
        Value::String(text) => *text = without_password(&hide(text, substituted)),
        Value::Array(list) => list.iter_mut().for_each(|value| clean(value, substituted)),
        Value::Object(fields) => fields.values_mut().for_each(|value| clean(value, substituted)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// A URL's password hidden.
fn without_password(text: &str) -> String {
    let Some(start) = text.find("://").map(|at| at + 3) else { return text.to_owned() };
    let rest = text.get(start..).unwrap_or_default();
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    match authority.rsplit_once('@').map(|(user, _)| user).and_then(|user| user.split_once(':').map(|(name, _)| (name.len(), user.len()))) {
        Some((name, user)) => format!("{}:{HIDDEN}{}", &text[..start + name], &text[start + user..]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Problems;
    use crate::config::load::{Source, load_with};

    #[test]
    fn secrets_are_hidden_and_defaults_filled_in() {
        let yaml = "
admin: { token: \"t0ken-in-file\" }
redis: { main: { url: \"redis://:pa55@h:1\" } }
log: { access: { output: \"/var/${NAME}/log\" } }
upstreams:
  a: { endpoints: [http://a] }
authenticators:
  k: { api_key: { keys: [{ id: x, sha256: abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789 }] } }
  j: { jwt: { issuer: i, audience: [a], algorithms: [RS256], jwks: \"https://u:pa55@id/x\" } }
routes:
  - { match: /x, upstream: a, auth: k, rate_limit: [{ by: ip, rate: 5/s }], headers: { request: { set: { x-y: \"${NAME}\" } } } }
";
        let loaded = load_with(&Source::Text { yaml: yaml.to_owned(), dir: "/nowhere".into() }, &|_| Some("outside-value".to_owned()));
        let mut problems = Problems::default();
        let routes = resolve::routes(&loaded.config, &mut problems);
        assert!(loaded.reports().is_empty() && problems.list().is_empty(), "{:?} {problems:?}", loaded.reports());
        let dump = effective_json(&loaded.config, &routes, &loaded.substituted);
        let text = dump.to_string();
        for secret in ["t0ken", "pa55", "outside-value", "abcdef0123456789"] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
        assert_eq!(dump["admin"]["token"], "***");
        assert_eq!(dump["log"]["access"]["output"], "***");
        assert_eq!(dump["authenticators"]["j"]["jwt"]["jwks"], "https://u:***@id/x");
        assert_eq!(dump["routes"][0]["timeout"], "30s");
        assert_eq!(dump["routes"][0]["rate_limit"][0]["burst"], 5);
        assert_eq!(dump["routes"][0]["auth"]["any"][0], "k");
        assert_eq!(dump["defaults"]["retry"]["attempts"], 1);
        assert_eq!(dump["listeners"][0]["address"], "0.0.0.0:8080");
        assert_eq!(dump["upstreams"]["a"]["connect_timeout"], "2s");
    }
}
