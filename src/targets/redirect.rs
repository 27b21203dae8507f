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
