//! Names that only the gateway may set towards upstreams: an identity field that arrives there is always the gateway's own.

use http::{HeaderMap, HeaderName};

use super::is_hop_by_hop;

const PREFIX: &[u8] = b"x-tollgate-";

/// Every header named in any `forward`, and `x-tollgate-*`. `_` counts as `-`, since many servers cannot tell them apart.
#[derive(Clone, Debug, Default)]
pub struct ProtectedNames {
    /// Names with `-`, by their length.
    by_length: Vec<Vec<Box<[u8]>>>,
    /// Headers that credentials are read from, the same way: dropped in trailers only.
    credentials: Vec<Vec<Box<[u8]>>>,
}

impl ProtectedNames {
    /// From the names in all `forward` options.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a HeaderName>) -> Self {
        Self { by_length: by_length(names), credentials: Vec::new() }
    }

    /// Adds the headers that credentials are read from (`from: [header:NAME]`), which trailers must not carry.
    #[must_use]
    pub fn with_credentials<'a>(mut self, names: impl IntoIterator<Item = &'a HeaderName>) -> Self {
        self.credentials = by_length(names);
        self
    }

    /// Whether `name` (lower case) is protected.
    pub fn contains(&self, name: &str) -> bool {
        let name = name.as_bytes();
        (name.len() >= PREFIX.len() && name.iter().zip(PREFIX).all(|(a, b)| dashed(*a) == *b)) || holds(&self.by_length, name)
    }

    /// Removes the client's copies. Nothing is allocated when there are none.
    pub fn remove(&self, headers: &mut HeaderMap) {
        remove_if(headers, |name| self.contains(name));
    }

    /// Drops trailer fields that would be taken for framing, routing, credentials, connection control or the gateway's own word.
    pub fn filter_trailers(&self, trailers: &mut HeaderMap) {
        remove_if(trailers, |name| self.contains(name) || holds(&self.credentials, name.as_bytes()) || is_forbidden_trailer(name));
    }
}

/// RFC 9110 section 6.5.1, and what proxies and servers route by.
fn is_forbidden_trailer(name: &str) -> bool {
    let dashed_name;
    let name = if name.contains('_') {
        dashed_name = name.replace('_', "-");
        dashed_name.as_str()
    } else {
        name
    };
    is_hop_by_hop(name)
        || name.starts_with("x-forwarded-")
        || matches!(
            name,
            "content-length"
                | "content-encoding"
                | "content-type"
                | "content-range"
                | "trailer"
                | "host"
                | "expect"
                | "max-forwards"
                | "range"
                | "cache-control"
                | "forwarded"
                | "x-real-ip"
                | "x-original-url"
                | "x-rewrite-url"
                | "x-http-method-override"
                | "authorization"
                | "www-authenticate"
                | "proxy-authentication-info"
                | "authentication-info"
                | "cookie"
                | "set-cookie"
        )
}

/// Removes every field whose name fits; names are collected only if there is one.
pub(super) fn remove_if(headers: &mut HeaderMap, fits: impl Fn(&str) -> bool) {
    let names: Vec<HeaderName> = headers.keys().filter(|name| fits(name.as_str())).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

fn by_length<'a>(names: impl IntoIterator<Item = &'a HeaderName>) -> Vec<Vec<Box<[u8]>>> {
    let mut table: Vec<Vec<Box<[u8]>>> = Vec::new();
    for name in names {
        let name: Box<[u8]> = name.as_str().bytes().map(dashed).collect();
        if table.len() <= name.len() {
            table.resize(name.len() + 1, Vec::new());
        }
        if let Some(names) = table.get_mut(name.len())
            && !names.contains(&name)
        {
            names.push(name);
        }
    }
    table
}

fn holds(table: &[Vec<Box<[u8]>>], name: &[u8]) -> bool {
    table.get(name.len()).is_some_and(|names| names.iter().any(|known| known.iter().zip(name).all(|(a, b)| *a == dashed(*b))))
}

const fn dashed(byte: u8) -> u8 {
    if byte == b'_' { b'-' } else { byte }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn left(filter: impl Fn(&mut HeaderMap), names: &[&'static str]) -> Vec<String> {
        let mut headers = HeaderMap::new();
        for name in names {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static("1"));
        }
        filter(&mut headers);
        let mut names: Vec<String> = headers.keys().map(ToString::to_string).collect();
        names.sort();
        names
    }

    #[test]
    fn protected_names_go_with_dashes_and_underscores() {
        let protected = ProtectedNames::new(&[HeaderName::from_static("x-user-id"), HeaderName::from_static("x_tenant")]);
        let names = [
            "x-user-id",
            "x_user_id",
            "x-user_id",
            "x-tenant",
            "x_tenant",
            "x-tollgate-parts",
            "x_tollgate-a",
            "x-tollgate-",
            "x-user-i",
            "x-userxid",
        ];
        assert_eq!(left(|headers| protected.remove(headers), &names), ["x-user-i", "x-userxid"]);
    }

    #[test]
    fn all_lines_of_a_protected_name_go() {
        let protected = ProtectedNames::new(&[HeaderName::from_static("x-user-id")]);
        assert!(left(|headers| protected.remove(headers), &["x-user-id", "x-user-id", "x_user_id"]).is_empty());
    }

    #[test]
    fn trailers_cannot_carry_framing_routing_credentials_or_identity() {
        let protected =
            ProtectedNames::new(&[HeaderName::from_static("x-user-id")]).with_credentials(&[HeaderName::from_static("x-api-key")]);
        let names = [
            "content-length",
            "transfer-encoding",
            "host",
            "authorization",
            "cookie",
            "x_user_id",
            "x-api-key",
            "x_api_key",
            "te",
            "connection",
            "trailer",
            "x-forwarded-for",
            "x_forwarded_host",
            "forwarded",
            "grpc-status",
            "grpc-message",
            "x-checksum",
        ];
        assert_eq!(left(|trailers| protected.filter_trailers(trailers), &names), ["grpc-message", "grpc-status", "x-checksum"]);
        assert_eq!(left(|headers| protected.remove(headers), &["x-api-key"]), ["x-api-key"]);
    }
}
