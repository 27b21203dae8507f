//! Fields that concern one connection only, and must not reach the next one (RFC 9110 section 7.6.1).

use http::header::{CONNECTION, Entry, TE, UPGRADE};
use http::{HeaderMap, HeaderValue};

use super::Survey;

/// What the removed fields said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HopByHop {
    /// `TE` held `trailers`: the sender takes trailers.
    pub te_trailers: bool,
    /// `Upgrade`, if there was exactly one line.
    pub upgrade: Option<HeaderValue>,
    /// `Connection` held `upgrade`, without which `Upgrade` means nothing.
    pub connection_upgrade: bool,
    /// `Connection` held `close`.
    pub close: bool,
    /// `Connection` held `keep-alive`, which HTTP/1.0 peers need.
    pub keep_alive: bool,
}

/// The names, each with a bit. `te` and others are compared by length first: a look-up of each by name would hash nine times.
const NAMES: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
];

/// Whether a lower-case name is hop-by-hop whatever `Connection` says.
pub fn is_hop_by_hop(name: &str) -> bool {
    index(name).is_some()
}

/// Whether the gateway alone makes the field (lower case): connection, framing and `Host`.
pub fn is_reserved(name: &str) -> bool {
    matches!(name, "host" | "content-length" | "trailer") || (is_hop_by_hop(name) && !name.starts_with("proxy-auth"))
}

fn index(name: &str) -> Option<usize> {
    match name.len() {
        2 | 7 | 10 | 14 | 16..=19 => NAMES.iter().position(|known| *known == name),
        _ => None,
    }
}

/// Removes them, in requests and responses alike: the nine known ones, and each one named in any `Connection` line. `survey` is that
/// of `headers`: most messages have none, or a `Connection` that says what goes without saying.
pub fn remove_hop_by_hop(headers: &mut HeaderMap, survey: Survey) -> HopByHop {
    if !survey.hop_by_hop() {
        return HopByHop::default();
    }
    if survey.only_connection()
        && let Entry::Occupied(connection) = headers.entry(CONNECTION)
        && connection.iter().nth(1).is_none()
    {
        let close = connection.get() == "close";
        let keep_alive = connection.get() == "keep-alive";
        if close || keep_alive {
            connection.remove();
            return HopByHop { close, keep_alive, ..HopByHop::default() };
        }
    }
    remove_any(headers)
}

fn remove_any(headers: &mut HeaderMap) -> HopByHop {
    let mut found = [false; NAMES.len()];
    let mut any = false;
    for name in headers.keys() {
        if let Some(index) = index(name.as_str())
            && let Some(flag) = found.get_mut(index)
        {
            *flag = true;
            any = true;
        }
    }
    let mut seen = HopByHop::default();
    if !any {
        return seen;
    }
    seen.te_trailers = headers.get_all(TE).iter().flat_map(tokens).any(|token| token.eq_ignore_ascii_case("trailers"));
    let mut upgrades = headers.get_all(UPGRADE).iter();
    seen.upgrade = upgrades.next().filter(|_| upgrades.next().is_none()).cloned();
    // Cloned values share their bytes; only a second line costs an allocation.
    let first = headers.get(CONNECTION).cloned();
    let more: Vec<HeaderValue> = headers.get_all(CONNECTION).iter().skip(1).cloned().collect();
    for (name, _) in NAMES.iter().zip(found).filter(|(_, found)| *found) {
        headers.remove(*name);
    }
    for token in first.iter().chain(&more).flat_map(tokens) {
        if token.eq_ignore_ascii_case("close") {
            seen.close = true;
        } else if token.eq_ignore_ascii_case("keep-alive") {
            seen.keep_alive = true;
        } else if token.eq_ignore_ascii_case("upgrade") {
            seen.connection_upgrade = true;
        } else {
            headers.remove(token);
        }
    }
    seen
}

/// The elements of a list. A line that is not ASCII has none that could be a field name, but its other elements still count.
fn tokens(line: &HeaderValue) -> impl Iterator<Item = &str> {
    line.as_bytes()
        .split(|&byte| byte == b',')
        .filter_map(|token| std::str::from_utf8(token.trim_ascii()).ok())
        .map(|token| token.split(';').next().unwrap_or_default().trim_ascii_end())
        .filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;

    fn remove(headers: &mut HeaderMap) -> HopByHop {
        let survey = Survey::of(headers);
        remove_hop_by_hop(headers, survey)
    }

    fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn all_known_fields_go_and_others_stay() {
        let mut headers: HeaderMap = NAMES.iter().map(|name| (HeaderName::from_static(name), HeaderValue::from_static("x"))).collect();
        headers.insert("trailer", HeaderValue::from_static("x"));
        headers.insert("accept", HeaderValue::from_static("x"));
        remove(&mut headers);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>().len(), 2);
        assert!(headers.contains_key("trailer") && headers.contains_key("accept"));
    }

    #[test]
    fn every_connection_line_is_read() {
        let mut headers = map(&[
            ("connection", "close, X-Forwarded-For"),
            ("connection", ",, \tX-User-Id ,"),
            ("connection", "Upgrade"),
            ("x-forwarded-for", "1"),
            ("x-user-id", "1"),
            ("x-user-id", "2"),
            ("accept", "x"),
        ]);
        let seen = remove(&mut headers);
        assert!(seen.close && seen.connection_upgrade && !seen.keep_alive);
        assert_eq!(headers.len(), 1);
    }

    #[test]
    fn te_and_upgrade_are_reported() {
        let mut headers = map(&[("te", "gzip"), ("te", "deflate, Trailers;q=1"), ("upgrade", "h2c"), ("http2-settings", "x")]);
        let seen = remove(&mut headers);
        assert!(seen.te_trailers && headers.is_empty());
        assert_eq!(seen.upgrade, Some(HeaderValue::from_static("h2c")));
        let seen = remove(&mut map(&[("te", "gzip"), ("upgrade", "a"), ("upgrade", "b")]));
        assert_eq!(seen, HopByHop::default());
    }

    #[test]
    fn bytes_that_are_no_name_do_not_hide_the_others() {
        let mut headers = map(&[("x-a", "1")]);
        headers.append(CONNECTION, HeaderValue::from_bytes(b"\xff, x-a, b d").unwrap());
        remove(&mut headers);
        assert!(headers.is_empty());
    }
}
