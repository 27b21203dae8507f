//! Who may ask: the token, and without one the checks that keep web pages out.

use std::net::{IpAddr, SocketAddr};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use http::header::{AUTHORIZATION, HOST, HeaderMap, ORIGIN};
use http::request::Parts;
use http::{HeaderValue, Method, Version};

use crate::units::Secret;

/// What the checks need to know; it may change while the listener runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The token; empty is none.
    pub token: Secret,
    /// The address listened on.
    pub address: SocketAddr,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// No token, or a wrong one: 401.
    Token,
    /// A name that is not this machine's: 403.
    Host,
    /// A request that a web page makes: 403.
    Origin,
}

impl Settings {
    /// Checks a request. `open` paths need no token.
    pub fn check(&self, head: &Parts, open: bool) -> Result<(), Refused> {
        if self.token.expose().is_empty() {
            if !self.host_allowed(head) {
                return Err(Refused::Host);
            }
        } else if !open && !self.token_matches(&head.headers) {
            return Err(Refused::Token);
        }
        if head.method == Method::POST && head.headers.contains_key(ORIGIN) {
            return Err(Refused::Origin);
        }
        Ok(())
    }

    /// Hashes are compared, so that time tells neither how much of a token is right nor how long it is.
    fn token_matches(&self, headers: &HeaderMap) -> bool {
        let Some(presented) = only(headers, AUTHORIZATION).and_then(bearer) else { return false };
        let hash = |text: &[u8]| digest(&SHA256, text);
        verify_slices_are_equal(hash(presented).as_ref(), hash(self.token.expose().as_bytes()).as_ref()).is_ok()
    }

    /// A page whose name was bound anew to 127.0.0.1 sends its own name as `Host`; no browser leaves it out.
    fn host_allowed(&self, head: &Parts) -> bool {
        let target = head.uri.authority().is_none_or(|authority| self.is_here(authority.as_str()));
        let host = match head.headers.contains_key(HOST) {
            true => only(&head.headers, HOST).and_then(|value| value.to_str().ok()).is_some_and(|host| self.is_here(host)),
            false => head.version == Version::HTTP_10,
        };
        target && host
    }

    /// Whether `host`, with or without a port, is `localhost`, a loopback address, or the address listened on.
    fn is_here(&self, host: &str) -> bool {
        let (name, port) = match host.strip_prefix('[').map(|rest| rest.split_once(']')) {
            Some(Some((name, port))) => (name, port),
            Some(None) => return false,
            None => host.find(':').map_or((host, ""), |at| host.split_at(at)),
        };
        let port = port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
        let address = name.parse::<IpAddr>().map(|address| address.to_canonical());
        let here = address.is_ok_and(|address| address.is_loopback() || address == self.address.ip().to_canonical());
        port && (name.eq_ignore_ascii_case("localhost") || here)
    }
}

fn only(headers: &HeaderMap, name: http::HeaderName) -> Option<&HeaderValue> {
    let mut all = headers.get_all(name).iter();
    all.next().filter(|_| all.next().is_none())
}

/// The token in `Bearer TOKEN`; the scheme in any case.
fn bearer(value: &HeaderValue) -> Option<&[u8]> {
    let (scheme, token) = value.as_bytes().split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(token: &str) -> Settings {
        Settings { token: Secret::new(token), address: "192.0.2.7:9901".parse().unwrap() }
    }

    fn head(method: &str, uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = http::Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn without_a_token_only_names_of_this_machine_are_served() {
        for host in [
            "localhost",
            "LOCALHOST:9901",
            "127.0.0.1",
            "127.8.8.8:1",
            "[::1]",
            "[::1]:9901",
            "[::ffff:127.0.0.1]:80",
            "192.0.2.7",
            "192.0.2.7:9901",
        ] {
            assert_eq!(settings("").check(&head("GET", "/info", &[("host", host)]), false), Ok(()), "{host}");
        }
        for host in [
            "evil",
            "evil:9901",
            "localhost.evil",
            "127.0.0.1.evil",
            "localhost:x",
            "localhost:",
            "localhost:99999",
            "[::1",
            "[::1]x",
            "192.0.2.8",
            "",
            "::1",
            "a@localhost",
        ] {
            for open in [false, true] {
                assert_eq!(settings("").check(&head("GET", "/info", &[("host", host)]), open), Err(Refused::Host), "{host}");
            }
        }
        assert_eq!(settings("").check(&head("GET", "/info", &[]), false), Err(Refused::Host));
        assert_eq!(settings("").check(&head("GET", "/info", &[("host", "localhost"), ("host", "evil")]), false), Err(Refused::Host));
        assert_eq!(settings("").check(&head("GET", "http://evil/info", &[("host", "localhost")]), false), Err(Refused::Host));
    }

    #[test]
    fn with_a_token_only_the_token_counts() {
        let check = |authorization: &[(&str, &str)], open| settings("s3cret").check(&head("GET", "/info", authorization), open);
        assert_eq!(check(&[("authorization", "Bearer s3cret")], false), Ok(()));
        assert_eq!(check(&[("authorization", "bearer  s3cret"), ("host", "evil")], false), Ok(()));
        for wrong in ["", "Bearer", "Bearer ", "Bearer s3cre", "Bearer s3crets", "Bearer S3CRET", "Basic s3cret", "s3cret"] {
            assert_eq!(check(&[("authorization", wrong)], false), Err(Refused::Token), "{wrong}");
            assert_eq!(check(&[("authorization", wrong)], true), Ok(()));
        }
        assert_eq!(check(&[], false), Err(Refused::Token));
        assert_eq!(check(&[("authorization", "Bearer s3cret"), ("authorization", "Bearer x")], false), Err(Refused::Token));
    }

    #[test]
    fn a_post_from_a_page_is_refused_even_with_the_token() {
        let with_token = head("POST", "/reload", &[("authorization", "Bearer s3cret"), ("origin", "http://localhost")]);
        assert_eq!(settings("s3cret").check(&with_token, false), Err(Refused::Origin));
        let without = head("POST", "/reload", &[("host", "localhost"), ("origin", "null")]);
        assert_eq!(settings("").check(&without, false), Err(Refused::Origin));
    }
}
