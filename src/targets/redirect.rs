//! Redirects. Where they lead is written in the config: of the authority only `{host}` can come from the request, for else
//! anybody could make links on this host that lead to their own (open redirect).

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, LOCATION};
use http::uri::Authority;
use http::{HeaderValue, Response, StatusCode, response};

use crate::config::{At, Problems, route};
use crate::error::{Reason, Refusal};
use crate::http::Exchange;
use crate::http::template::{Allowed, Param, TemplateError, UrlTemplate};

/// A compiled redirect.
#[derive(Clone, Debug)]
pub struct Redirect {
    status: StatusCode,
    origin: Option<Origin>,
    /// Absent: only the origin is written.
    url: Option<UrlTemplate>,
}

/// `scheme://authority`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Origin {
    /// `http` or `https`; absent is the request's own.
    scheme: Option<&'static str>,
    /// What stands between the places of `{host}`: one more than there are places.
    authority: Vec<String>,
}

impl Redirect {
    /// Compiles what is written at `at` (the route's `redirect`). `params` are those of the route.
    pub fn compile(written: &route::Redirect, at: &At, params: &[Param], problems: &mut Problems) -> Option<Self> {
        let status = match written.status {
            301 | 302 | 303 | 307 | 308 => StatusCode::from_u16(written.status).ok(),
            other => {
                problems.error(at.key("status"), format!("`{other}` is not a redirect")).help("write 301, 302, 303, 307 or 308");
                None
            }
        };
        match parse(&written.to, Allowed { params, parts: None }) {
            Ok((origin, url)) => Some(Self { status: status?, origin, url }),
            Err(error) => {
                problems.error(at.key("to"), error.message).help = error.help;
                None
            }
        }
    }

    /// The answer: `Location` and an empty body. A template value that is missing is a 400.
    pub fn respond(&self, exchange: &Exchange) -> Result<(response::Parts, Bytes), Box<Refusal>> {
        let mut location = String::with_capacity(96);
        if let Some(origin) = &self.origin {
            origin.push(&mut location, exchange)?;
        }
        if let Some(url) = &self.url {
            url.push_path(&mut location, exchange.into())?;
        }
        match &self.url {
            Some(url) if url.has_query() => {
                let end = location.len();
                location.push('?');
                url.push_query(&mut location, exchange.into());
                if location.len() == end + 1 {
                    location.truncate(end);
                }
            }
            Some(_) | None => {
                if let Some(query) = exchange.query() {
                    location.push('?');
                    location.push_str(query);
                }
            }
        }
        if let Some(fragment) = self.url.as_ref().and_then(UrlTemplate::fragment) {
            location.push('#');
            location.push_str(fragment);
        }
        let location = HeaderValue::from_maybe_shared(Bytes::from(location)).map_err(|_| refused())?;
        let (mut parts, ()) = Response::new(()).into_parts();
        parts.status = self.status;
        parts.headers.insert(LOCATION, location);
        parts.headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        Ok((parts, Bytes::new()))
    }
}

impl Origin {
    fn push(&self, out: &mut String, exchange: &Exchange) -> Result<(), Box<Refusal>> {
        out.push_str(self.scheme.unwrap_or(exchange.scheme.as_str()));
        out.push_str("://");
        let host = exchange.host.name();
        for (index, text) in self.authority.iter().enumerate() {
            if index > 0 {
                let clean = !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._[]:".contains(&b));
                if !clean {
                    return Err(refused());
                }
                out.push_str(host);
            }
            out.push_str(text);
        }
        Ok(())
    }
}

fn refused() -> Box<Refusal> {
    Refusal::new(Reason::BadRequest, "The redirect cannot be made from this request.")
}

fn parse(to: &str, allowed: Allowed<'_>) -> Result<(Option<Origin>, Option<UrlTemplate>), TemplateError> {
    let wrong = |message: String, help: &str| TemplateError { message, help: Some(help.to_owned()), offset: 0 };
    if to.starts_with("//") {
        return Err(wrong(format!("`{to}` leads to another host without saying so"), "write `https://…`, or one `/`"));
    }
    if to.starts_with('/') {
        return Ok((None, Some(UrlTemplate::parse(to, allowed)?)));
    }
    let schemes = [("http://", Some("http")), ("https://", Some("https")), ("{scheme}://", None)];
    let found = schemes.into_iter().find_map(|(mark, scheme)| Some((scheme, to.strip_prefix(mark)?)));
    let Some((scheme, rest)) = found else {
        return Err(wrong(format!("`{to}` is not a place to redirect to"), "start with `/`, `http://`, `https://` or `{scheme}://`"));
    };
    let (authority, rest) = authority(rest);
    if rest.starts_with('{') && !rest.starts_with("{path}") {
        let message = format!("the host in `{to}` has a template value: anybody could redirect to anywhere");
        return Err(wrong(message, "only `{host}` can stand there, and `{path}` or `/` after it"));
    }
    let sample = authority.replace("{host}", "host");
    if authority.contains('@') || sample.parse::<Authority>().is_ok_and(|a| a.host().is_empty()) || sample.parse::<Authority>().is_err() {
        return Err(wrong(format!("`{to}` has no valid host"), "write one like `https://www.example.com{path}`"));
    }
    let origin = Origin { scheme, authority: authority.split("{host}").map(str::to_owned).collect() };
    let url = match rest.chars().next() {
        None => None,
        Some('/' | '{') => Some(UrlTemplate::parse(rest, allowed)?),
        Some(_) => Some(UrlTemplate::parse(&format!("/{rest}"), allowed)?),
    };
    Ok((Some(origin), url))
}

/// Splits behind the authority: at a `/`, `?`, `#`, or a template value other than `{host}`.
fn authority(text: &str) -> (&str, &str) {
    let mut end = 0;
    while let Some(found) = text[end..].find(['/', '?', '#', '{']) {
        end += found;
        match text[end..].strip_prefix("{host}") {
            Some(_) => end += "{host}".len(),
            None => return text.split_at(end),
        }
    }
    (text, "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::template::sample::{exchange, params, with_claims, with_param};

    fn compile(to: &str, status: u16) -> Result<Redirect, String> {
        let mut problems = Problems::default();
        let written = route::Redirect { to: to.to_owned(), status };
        let compiled = Redirect::compile(&written, &At::main("redirect"), &params(&["id", "*rest"]), &mut problems);
        compiled.ok_or_else(|| problems.list().iter().map(|p| p.message.clone()).collect())
    }

    fn location(to: &str, exchange: &Exchange) -> Result<String, u16> {
        let answer = compile(to, 308).unwrap().respond(exchange).map_err(|refusal| refusal.status().as_u16())?;
        assert!(answer.1.is_empty());
        assert_eq!((answer.0.status.as_u16(), &answer.0.headers[CONTENT_LENGTH]), (308, &HeaderValue::from_static("0")));
        Ok(answer.0.headers[LOCATION].to_str().unwrap().to_owned())
    }

    #[test]
    fn the_clients_query_is_kept_unless_there_is_an_own_one() {
        let ex = exchange("/a/b?x=1&y=%20");
        assert_eq!(location("https://new.example.com{path}", &ex).unwrap(), "https://new.example.com/a/b?x=1&y=%20");
        assert_eq!(location("https://new.example.com", &ex).unwrap(), "https://new.example.com?x=1&y=%20");
        assert_eq!(location("/login?next={path}", &ex).unwrap(), "/login?next=%2Fa%2Fb");
        assert_eq!(location("/x?", &ex).unwrap(), "/x");
        assert_eq!(location("/x?{query}&z", &ex).unwrap(), "/x?x=1&y=%20&z");
        assert_eq!(location("/x#top", &ex).unwrap(), "/x?x=1&y=%20#top");
        assert_eq!(location("https://a.example?b=1", &exchange("/")).unwrap(), "https://a.example/?b=1");
    }

    #[test]
    fn scheme_and_host_can_be_the_requests() {
        let ex = exchange("/a");
        assert_eq!(location("{scheme}://www.{host}{path}", &ex).unwrap(), "https://www.shop.example.com/a");
        assert_eq!(location("https://{host}:8443{path}", &ex).unwrap(), "https://shop.example.com:8443/a");
    }

    #[test]
    fn a_redirect_never_leads_where_the_request_says() {
        for to in [
            "https://{id}/",
            "https://{id}.example.com/",
            "https://example.com{rest}",
            "https://example.com{id}",
            "https://{claim:x}{path}",
            "https://{host}{id}",
            "//example.com/",
            "{path}",
            "{id}",
            "javascript:alert(1)",
            "https://u@{host}/",
            "https:///x",
            "https://a b/",
            "x",
        ] {
            assert!(compile(to, 302).is_err(), "{to}");
        }
        let ex = with_param(exchange("/x/evil.example.com/y"), "rest", "evil.example.com/y");
        assert_eq!(location("/{path}", &ex).unwrap(), "/x/evil.example.com/y", "`//host` would be another host");
        assert_eq!(location("/{rest}", &ex).unwrap(), "/evil.example.com/y");
        let ex = with_claims(exchange("/"), "u", &serde_json::json!({"c": "/evil.example.com"}));
        assert_eq!(location("/{claim:c}", &ex).unwrap(), "/%2Fevil.example.com");
    }

    #[test]
    fn a_host_that_is_none_is_a_bad_request() {
        let mut ex = exchange("/a");
        for (text, range) in [("", 0..0), ("evil.com/x", 0..10), ("a b", 0..3)] {
            ex.host = crate::http::Host::new(None, Some(HeaderValue::from_static(text)), range);
            assert_eq!(location("https://{host}{path}", &ex), Err(400), "{text}");
        }
    }

    #[test]
    fn missing_values_are_bad_requests_and_other_statuses_refused() {
        assert_eq!(location("/u/{id}", &exchange("/")), Err(400));
        for status in [200, 300, 304, 305, 306, 309] {
            assert!(compile("/x", status).is_err(), "{status}");
        }
        for status in [301, 302, 303, 307, 308] {
            assert!(compile("/x", status).is_ok(), "{status}");
        }
    }
}
