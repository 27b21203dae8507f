//! Where a credential stands in a request: reading it there, and taking it away so that it does not travel upstream.

use std::borrow::Cow;

use bytes::Bytes;
use http::header::{AUTHORIZATION, COOKIE};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::config::auth;
use crate::http::target::form_decode_bytes;

/// A place that credentials are read from. In `Authorization` the scheme is part of the place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// `Authorization: SCHEME …`.
    Scheme(&'static str),
    /// A header's value.
    Header(HeaderName),
    /// A cookie's value.
    Cookie(String),
    /// A query parameter's value.
    Query(String),
    /// The connection's client certificate.
    Certificate,
}

/// What stands at a place.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found<'a> {
    /// Nothing, or an empty value.
    Absent,
    /// A value: UTF-8, of which [`text`] makes a `str`.
    Value(Cow<'a, [u8]>),
    /// The field was sent twice, or is not text.
    Malformed,
}

impl From<&auth::Place> for Place {
    fn from(place: &auth::Place) -> Self {
        match place {
            auth::Place::Bearer => Self::Scheme("bearer"),
            auth::Place::Header(name) => Self::Header(name.clone()),
            auth::Place::Cookie(name) => Self::Cookie(name.clone()),
            auth::Place::Query(name) => Self::Query(name.clone()),
        }
    }
}

impl Place {
    /// Reads the credential. A certificate is not read here.
    pub(super) fn read<'a>(&self, headers: &'a HeaderMap, query: Option<&'a str>) -> Found<'a> {
        match self {
            Self::Scheme(scheme) => match single(headers, &AUTHORIZATION) {
                Ok(line) => found(line.and_then(|line| after_scheme(line, scheme))),
                Err(Unreadable) => Found::Malformed,
            },
            Self::Header(name) => match single(headers, name) {
                Ok(line) => found(line),
                Err(Unreadable) => Found::Malformed,
            },
            Self::Cookie(name) => cookie(headers, name),
            Self::Query(name) => parameter(query, name),
            Self::Certificate => Found::Absent,
        }
    }

    /// Takes the credential out of the request: this header, only this cookie, only this parameter.
    pub(super) fn remove(&self, headers: &mut HeaderMap, target: &mut PathAndQuery) {
        match self {
            Self::Scheme(_) => drop(headers.remove(AUTHORIZATION)),
            Self::Header(name) => drop(headers.remove(name)),
            Self::Cookie(name) => remove_cookie(headers, name),
            Self::Query(name) => remove_parameter(target, name),
            Self::Certificate => {}
        }
    }
}

/// A field that was sent twice, or is not text.
struct Unreadable;

/// A value that was found as text. Not made one at once: a credential that is remembered is only hashed.
pub(super) fn text(value: &[u8]) -> &str {
    // It was checked when it was found, so it cannot fail; and nobody takes an empty credential.
    std::str::from_utf8(value).unwrap_or_default()
}

fn found(value: Option<&[u8]>) -> Found<'_> {
    value.filter(|value| !value.is_empty()).map_or(Found::Absent, |value| Found::Value(Cow::Borrowed(value)))
}

/// The only line of a field.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a [u8]>, Unreadable> {
    let mut lines = headers.get_all(name).iter();
    let Some(line) = lines.next() else { return Ok(None) };
    if lines.next().is_some() {
        return Err(Unreadable);
    }
    let line = line.as_bytes();
    // `is_ascii` of the standard library ends at the first that is not, so it is slower over the many that are.
    let is_ascii = line.iter().fold(0, |all, byte| all | byte).is_ascii();
    if is_ascii { Ok(Some(line.trim_ascii())) } else { Err(Unreadable) }
}

fn after_scheme<'a>(value: &'a [u8], scheme: &str) -> Option<&'a [u8]> {
    let (word, rest) = value.split_at_checked(scheme.len())?;
    let rest = rest.strip_prefix(b" ")?.trim_ascii();
    // Schemes are lower-case letters, which are the only bytes that differ from another in this bit and are in no other case.
    let difference = word.iter().zip(scheme.as_bytes()).fold(0, |all, (own, other)| all | (own | 0x20) ^ other);
    (difference == 0 && !rest.is_empty()).then_some(rest)
}

/// The first cookie of the name.
fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Found<'a> {
    for line in headers.get_all(COOKIE) {
        for pair in line.as_bytes().split(|b| *b == b';') {
            let pair = pair.trim_ascii();
            if !is_cookie(pair, name) {
                continue;
            }
            let value = pair.get(name.len() + 1..).unwrap_or_default();
            let value = value.strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\"")).unwrap_or(value);
            return match std::str::from_utf8(value) {
                Ok("") => Found::Absent,
                Ok(_) => Found::Value(Cow::Borrowed(value)),
                Err(_) => Found::Malformed,
            };
        }
    }
    Found::Absent
}

fn is_cookie(pair: &[u8], name: &str) -> bool {
    pair.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&b'='))
}

fn remove_cookie(headers: &mut HeaderMap, name: &str) {
    let kept: Vec<HeaderValue> = headers
        .get_all(COOKIE)
        .iter()
        .filter_map(|line| {
            if !line.as_bytes().split(|b| *b == b';').any(|pair| is_cookie(pair.trim_ascii(), name)) {
                return Some(line.clone());
            }
            let rest: Vec<&[u8]> = line.as_bytes().split(|b| *b == b';').filter(|pair| !is_cookie(pair.trim_ascii(), name)).collect();
            let rest = rest.join(&b';');
            let rest = rest.trim_ascii();
            if rest.is_empty() { None } else { HeaderValue::from_bytes(rest).ok() }
        })
        .collect();
    headers.remove(COOKIE);
    for line in kept {
        headers.append(COOKIE, line);
    }
}

/// The first parameter of the name, decoded.
fn parameter<'a>(query: Option<&'a str>, name: &str) -> Found<'a> {
    for pair in query.unwrap_or_default().split('&') {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        if form_decode(key).as_deref() != Some(name) {
            continue;
        }
        return match form_decode(value) {
            Some(text) if text.is_empty() => Found::Absent,
            Some(Cow::Borrowed(text)) => Found::Value(Cow::Borrowed(text.as_bytes())),
            Some(Cow::Owned(text)) => Found::Value(Cow::Owned(text.into_bytes())),
            None => Found::Malformed,
        };
    }
    Found::Absent
}

fn remove_parameter(target: &mut PathAndQuery, name: &str) {
    let Some(query) = target.query() else { return };
    let is_it = |pair: &&str| form_decode(pair.split_once('=').map_or(*pair, |(key, _)| key)).as_deref() == Some(name);
    let mut text = String::with_capacity(target.as_str().len());
    text.push_str(target.path());
    let mut separator = '?';
    for pair in query.split('&').filter(|pair| !is_it(pair)) {
        text.push(separator);
        text.push_str(pair);
        separator = '&';
    }
    // A subset of a valid target is valid.
    if let Ok(new) = PathAndQuery::from_maybe_shared(Bytes::from(text)) {
        *target = new;
    }
}

/// Decodes a form component: `+` is a space. `None` if it is not UTF-8 after decoding; a broken escape stands for itself.
pub(super) fn form_decode(text: &str) -> Option<Cow<'_, str>> {
    match form_decode_bytes(text) {
        Cow::Borrowed(_) => Some(Cow::Borrowed(text)),
        Cow::Owned(bytes) => String::from_utf8(bytes).ok().map(Cow::Owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (HeaderName::try_from(*name).unwrap(), HeaderValue::try_from(*value).unwrap())).collect()
    }
    fn value(text: &str) -> Found<'_> {
        Found::Value(Cow::Borrowed(text.as_bytes()))
    }

    #[test]
    fn the_scheme_is_part_of_the_place_and_ignores_case() {
        let bearer = Place::Scheme("bearer");
        for (line, expected) in [
            ("Bearer abc", value("abc")),
            ("bearer abc", value("abc")),
            ("BEARER   abc ", value("abc")),
            ("Basic abc", Found::Absent),
            ("Bearer", Found::Absent),
            ("Bearer ", Found::Absent),
            ("Bearerabc", Found::Absent),
            ("Bearer\tabc", Found::Absent),
            (" Bearer abc", value("abc")),
            ("bear er abc", Found::Absent),
        ] {
            assert_eq!(bearer.read(&headers(&[("authorization", line)]), None), expected, "{line}");
        }
    }

    #[test]
    fn a_doubled_field_is_malformed() {
        let two = headers(&[("authorization", "Basic x"), ("authorization", "Bearer y"), ("x-api-key", "a"), ("x-api-key", "a")]);
        assert_eq!(Place::Scheme("bearer").read(&two, None), Found::Malformed);
        assert_eq!(Place::Header(HeaderName::from_static("x-api-key")).read(&two, None), Found::Malformed);
    }

    #[test]
    fn only_the_named_cookie_goes() {
        let place = Place::Cookie("session".into());
        for (lines, found, left) in [
            (vec!["a=1; session=tok; b=2"], value("tok"), vec!["a=1; b=2"]),
            (vec!["session=tok"], value("tok"), vec![]),
            (vec!["session=tok; a=\"x y\""], value("tok"), vec!["a=\"x y\""]),
            (vec!["a=1", "session=\"tok\"", "session=2;b=2"], value("tok"), vec!["a=1", "b=2"]),
            (vec!["xsession=1; session2=2"], Found::Absent, vec!["xsession=1; session2=2"]),
            (vec!["session=; a=1"], Found::Absent, vec!["a=1"]),
        ] {
            let mut map: HeaderMap = lines.iter().map(|l| (COOKIE, HeaderValue::from_static(l))).collect();
            assert_eq!(place.read(&map, None), found, "{lines:?}");
            place.remove(&mut map, &mut PathAndQuery::from_static("/"));
            assert_eq!(map.get_all(COOKIE).iter().collect::<Vec<_>>(), left, "{lines:?}");
        }
    }

    #[test]
    fn only_the_named_parameter_goes_and_the_rest_stays_byte_for_byte() {
        let place = Place::Query("key".into());
        for (target, found, left) in [
            ("/a?key=x", value("x"), "/a"),
            ("/a?b=%2f&key=x%20y+z&&c", value("x y z"), "/a?b=%2f&&c"),
            ("/a?%6Bey=x&key=y", value("x"), "/a"),
            ("/a?keys=1&akey=2", Found::Absent, "/a?keys=1&akey=2"),
            ("/a?key=&x=1", Found::Absent, "/a?x=1"),
            ("/a?key=%ff", Found::Malformed, "/a"),
        ] {
            let mut path = PathAndQuery::from_static(target);
            assert_eq!(place.read(&HeaderMap::new(), path.query()), found, "{target}");
            place.remove(&mut HeaderMap::new(), &mut path);
            assert_eq!(path.as_str(), left, "{target}");
        }
    }
}
