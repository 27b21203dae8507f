//! The request's host: where it comes from, which ones are refused, and its one canonical form.

use std::net::Ipv6Addr;
use std::ops::Range;

use http::header::HOST;
use http::{HeaderMap, HeaderValue, Uri, Version};

use crate::http::Host;

const MISSING: &str = "The request has no Host.";
const SEVERAL: &str = "The request has more than one Host.";
const DIFFER: &str = "The request names two different hosts.";
const BAD_HOST: &str = "The Host is not a valid host name.";
const BAD_PORT: &str = "The Host has a bad port.";

/// The host of a request. An authority in the target (absolute form, `:authority`) replaces `Host`.
///
/// # Errors
/// One fixed sentence for the 400: no, several or empty hosts, userinfo, commas, spaces, bad ports, `:authority` and `host` that differ.
pub fn host(version: Version, headers: &HeaderMap, uri: &Uri) -> Result<Host, &'static str> {
    let mut lines = headers.get_all(HOST).iter();
    let line = lines.next();
    if lines.next().is_some() {
        return Err(SEVERAL);
    }
    let old = version < Version::HTTP_11;
    match (uri.authority(), line) {
        (Some(authority), line) => {
            match line {
                Some(line) if version >= Version::HTTP_2 => {
                    let same = trim(line.as_bytes()).eq_ignore_ascii_case(authority.as_str().as_bytes());
                    same.then_some(()).ok_or(DIFFER)?;
                }
                Some(line) => {
                    parse(line.as_bytes())?;
                }
                // HTTP/1.1 demands a `Host` even beside an absolute form (RFC 9112 section 3.2).
                None if version == Version::HTTP_11 => return Err(MISSING),
                None => {}
            }
            from_value(&HeaderValue::from_str(authority.as_str()).map_err(|_| BAD_HOST)?)
        }
        (None, Some(line)) => {
            let trimmed = trim(line.as_bytes());
            if trimmed.len() == line.len() {
                from_value(line)
            } else {
                from_value(&HeaderValue::from_bytes(trimmed).map_err(|_| BAD_HOST)?)
            }
        }
        (None, None) if old => Ok(Host::new(None, None, 0..0)),
        (None, None) => Err(MISSING),
    }
}

/// A host as routes write it, in the form [`Host::name`] has: lower case, no final dot. `None` if it is no host, or has a port.
pub fn canonical_host(text: &str) -> Option<String> {
    match parse(text.as_bytes()) {
        Ok(Parsed { port: false, address: Some(address), .. }) => Some(format!("[{address}]")),
        Ok(Parsed { port: false, name, .. }) => text.get(name).map(str::to_ascii_lowercase),
        Ok(Parsed { port: true, .. }) | Err(_) => None,
    }
}

fn from_value(value: &HeaderValue) -> Result<Host, &'static str> {
    let parsed = parse(value.as_bytes())?;
    if let Some(address) = parsed.address {
        // An IPv6 address has many spellings.
        let text = format!("[{address}]");
        if value.as_bytes().get(parsed.name.clone()) != Some(text.as_bytes()) {
            let range = 0..text.len();
            return Ok(Host::new(Some(value.clone()), Some(HeaderValue::try_from(text).map_err(|_| BAD_HOST)?), range));
        }
    }
    let lower = if value.as_bytes().iter().any(u8::is_ascii_uppercase) {
        Some(HeaderValue::from_bytes(&value.as_bytes().to_ascii_lowercase()).map_err(|_| BAD_HOST)?)
    } else {
        None
    };
    Ok(Host::new(Some(value.clone()), lower, parsed.name))
}

struct Parsed {
    /// Where the host stands, without port and final dot.
    name: Range<usize>,
    /// Whether a port follows.
    port: bool,
    /// The address, if the host is an IPv6 literal.
    address: Option<Ipv6Addr>,
}

/// Deliberately stricter than RFC 3986: registered names are letters, digits and `-._~` only, since nobody has other ones and servers differ
/// about them. International names come as `xn--…`.
fn parse(authority: &[u8]) -> Result<Parsed, &'static str> {
    if authority.is_empty() {
        return Err("The Host is empty.");
    }
    let (end, address) = if authority.first() == Some(&b'[') {
        let close = authority.iter().position(|&byte| byte == b']').ok_or(BAD_HOST)?;
        let inner = authority.get(1..close).and_then(|inner| std::str::from_utf8(inner).ok()).ok_or(BAD_HOST)?;
        (close + 1, Some(inner.parse().map_err(|_| BAD_HOST)?))
    } else {
        (authority.iter().position(|&byte| byte == b':').unwrap_or(authority.len()), None)
    };
    let (name, rest) = authority.split_at(end);
    match rest.split_first() {
        None => {}
        Some((b':', port)) if is_port(port) => {}
        Some((b':', _)) => return Err(BAD_PORT),
        Some(_) => return Err(BAD_HOST),
    }
    let mut end = end;
    if address.is_none() {
        if !name.iter().all(|&byte| super::path::is_unreserved(byte)) {
            return Err(BAD_HOST);
        }
        let name = name.strip_suffix(b".").unwrap_or(name);
        if name.split(|&byte| byte == b'.').any(<[u8]>::is_empty) {
            return Err(BAD_HOST);
        }
        end = name.len();
    }
    Ok(Parsed { name: 0..end, port: !rest.is_empty(), address })
}

fn is_port(text: &[u8]) -> bool {
    (1..=5).contains(&text.len())
        && text.iter().all(u8::is_ascii_digit)
        && (1..=65535).contains(&text.iter().fold(0_u32, |number, digit| number * 10 + u32::from(digit - b'0')))
}

/// Without spaces and tabs at the ends: HTTP/2 keeps them.
fn trim(value: &[u8]) -> &[u8] {
    value.trim_ascii()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(version: Version, lines: &[&str], target: &str) -> Result<(String, String), &'static str> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(HOST, HeaderValue::from_str(line).unwrap());
        }
        let host = host(version, &headers, &target.parse().unwrap())?;
        let authority = host.authority.as_ref().map_or("-", |value| value.to_str().unwrap()).to_owned();
        Ok((authority, host.name().to_owned()))
    }

    fn name(line: &str) -> Result<String, &'static str> {
        run(Version::HTTP_11, &[line], "/").map(|(_, name)| name)
    }

    #[test]
    fn one_host_has_one_form() {
        for line in ["a.example.com", "A.Example.com.", "a.example.com:80", "A.EXAMPLE.COM.:8080"] {
            assert_eq!(name(line).as_deref(), Ok("a.example.com"), "{line}");
        }
        assert_eq!(name("XN--BCHER-KVA.example").as_deref(), Ok("xn--bcher-kva.example"));
        for line in ["[::1]", "[0:0::1]:80", "[::0001]"] {
            assert_eq!(name(line).as_deref(), Ok("[::1]"), "{line}");
        }
        assert_eq!(name("[2001:DB8::A]:1").as_deref(), Ok("[2001:db8::a]"));
        assert_eq!(run(Version::HTTP_11, &["Site:81"], "/").unwrap().0, "Site:81");
    }

    #[test]
    fn bad_hosts_are_refused() {
        let bad = [
            "",
            "a b",
            "a,b",
            "a@b",
            "u:p@b",
            "a:99999",
            "a:",
            "a:8x",
            "a:+80",
            "a:0",
            "a:80:80",
            ":80",
            ".",
            "a..b",
            ".a",
            "[::1",
            "[::1]x",
            "[x]",
            "::1",
            "a/b",
            "a%41",
            "*",
            "[fe80::1%25eth0]",
        ];
        for line in bad {
            assert!(name(line).is_err(), "{line:?}");
        }
    }

    #[test]
    fn exactly_one_host_is_needed() {
        assert_eq!(run(Version::HTTP_11, &[], "/"), Err(MISSING));
        assert_eq!(run(Version::HTTP_11, &["a", "a"], "/"), Err(SEVERAL));
        assert_eq!(run(Version::HTTP_10, &["a", "b"], "/"), Err(SEVERAL));
        assert_eq!(run(Version::HTTP_10, &[], "/"), Ok(("-".into(), String::new())));
        assert_eq!(run(Version::HTTP_2, &[], "/"), Err(MISSING));
    }

    #[test]
    fn the_authority_of_the_target_replaces_host() {
        assert_eq!(run(Version::HTTP_11, &["site"], "http://Other:81/"), Ok(("Other:81".into(), "other".into())));
        assert_eq!(run(Version::HTTP_10, &[], "http://other/"), Ok(("other".into(), "other".into())));
        assert!(run(Version::HTTP_11, &[], "http://other/").is_err());
        assert!(run(Version::HTTP_11, &["a,b"], "http://other/").is_err());
        assert!(run(Version::HTTP_11, &["site"], "http://user@other/").is_err());
    }

    #[test]
    fn over_http2_authority_and_host_must_agree() {
        assert_eq!(run(Version::HTTP_2, &["b"], "http://a/"), Err(DIFFER));
        assert_eq!(run(Version::HTTP_2, &["A "], "http://a/"), Ok(("a".into(), "a".into())));
        assert_eq!(run(Version::HTTP_2, &[" a "], "/"), Ok(("a".into(), "a".into())));
        assert!(run(Version::HTTP_2, &["a b"], "/").is_err());
        assert!(run(Version::HTTP_2, &[], "http://u@a/").is_err());
    }

    #[test]
    fn a_lower_case_authority_is_shared_not_copied() {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_maybe_shared(bytes::Bytes::from("a.example.com:80".to_owned())).unwrap());
        let host = host(Version::HTTP_11, &headers, &Uri::from_static("/")).unwrap();
        assert_eq!(host.name().as_ptr(), headers[HOST].as_bytes().as_ptr());
    }

    #[test]
    fn hosts_of_routes_have_no_port() {
        assert_eq!(canonical_host("API.example.com.").as_deref(), Some("api.example.com"));
        assert_eq!(canonical_host("[0::1]").as_deref(), Some("[::1]"));
        assert_eq!(canonical_host("a:80"), None);
        assert_eq!(canonical_host("a b"), None);
    }
}
