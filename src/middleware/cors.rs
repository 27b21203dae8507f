//! `cors`: which other origins' scripts may read this route's answers.
//!
//! It protects the users of browsers and is no access control: a request from an origin that is not listed is served,
//! only without the fields that would let a script read the answer. WebSockets have no such fields, so there a foreign
//! origin is refused.

use std::sync::LazyLock;

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use crate::config::route::Cors as Config;
use crate::config::{At, Problems};
use crate::error::{Reason, Refusal};
use crate::http::h1::made::Names;
use crate::http::headers::{FieldValue, Fields, Ready};

static ANY: HeaderValue = HeaderValue::from_static("*");
static TRUE: HeaderValue = HeaderValue::from_static("true");
static BY_ORIGIN: HeaderValue = HeaderValue::from_static("Origin");
static VARY_BY_ORIGIN: LazyLock<Ready> = LazyLock::new(|| Ready::from_iter([(VARY, BY_ORIGIN.clone())]));
const VARIES: Names = Names::of(b"vary");

/// The method that a CORS preflight asks about, if the request is one: OPTIONS with `Origin` and
/// `Access-Control-Request-Method`. Routing uses this method instead of OPTIONS.
pub fn preflight_method<'h>(method: &Method, headers: &'h HeaderMap) -> Option<&'h HeaderValue> {
    if method != Method::OPTIONS || !headers.contains_key(ORIGIN) {
        return None;
    }
    headers.get(ACCESS_CONTROL_REQUEST_METHOD)
}

/// Cross-origin rules of a route, with the values of the fields prepared.
#[derive(Clone, Debug)]
pub struct Cors {
    origins: Origins,
    methods: Option<HeaderValue>,
    headers: AllowHeaders,
    credentials: bool,
    max_age: HeaderValue,
    answers: Answers,
}

/// What answers to allowed origins get, but for preflights.
#[derive(Clone, Debug)]
struct Answers {
    /// For origins that are sent as browsers write them: all of it.
    exact: Vec<(Box<str>, Ready)>,
    /// Where any origin is allowed: all of it.
    any: Ready,
    /// What stands beside `Access-Control-Allow-Origin`.
    beside: Ready,
}

impl Answers {
    fn new(origins: &Origins, credentials: bool, expose: Option<&HeaderValue>) -> Self {
        let credentials = credentials.then(|| (ACCESS_CONTROL_ALLOW_CREDENTIALS, TRUE.clone()));
        let expose = expose.map(|expose| (ACCESS_CONTROL_EXPOSE_HEADERS, expose.clone()));
        let beside: Vec<_> = credentials.into_iter().chain(expose).collect();
        let whole = |origin: &HeaderValue| {
            let origin = (ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            Ready::from_iter([origin].into_iter().chain(beside.iter().cloned()))
        };
        let exact = |pattern: &Pattern| match pattern {
            Pattern::Exact(origin) => Some((origin.as_str().into(), whole(&HeaderValue::from_str(origin).ok()?))),
            Pattern::Below { .. } => None,
        };
        let exact = match origins {
            Origins::Any => Vec::new(),
            Origins::Listed(patterns) => patterns.iter().filter_map(exact).collect(),
        };
        Self { exact, any: whole(&ANY), beside: Ready::from_iter(beside) }
    }
}

#[derive(Clone, Debug)]
enum Origins {
    Any,
    Listed(Vec<Pattern>),
}

#[derive(Clone, Debug)]
enum AllowHeaders {
    AsRequested,
    Listed(Option<HeaderValue>),
}

/// An allowed origin, in lower case and without a default port.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Pattern {
    Exact(String),
    /// `scheme://`, then labels, then `.suffix[:port]`.
    Below {
        scheme: String,
        suffix: String,
    },
}

impl Cors {
    /// Compiles the block at `at`; `None` if something in it is wrong.
    pub fn compile(config: &Config, at: &At, problems: &mut Problems) -> Option<Self> {
        let origins = compile_origins(config, at, problems);
        let methods = compile_list(&config.methods, &at.key("methods"), problems, "a method", |m| m.parse::<Method>().is_ok());
        let headers = match &config.headers {
            None => Some(AllowHeaders::AsRequested),
            Some(names) => compile_list(names, &at.key("headers"), problems, "a header name", is_field).map(AllowHeaders::Listed),
        };
        let expose = compile_list(&config.expose, &at.key("expose"), problems, "a header name", is_field);
        let (origins, expose) = (origins?, expose?);
        Some(Self {
            methods: methods?,
            headers: headers?,
            credentials: config.credentials,
            max_age: HeaderValue::from(config.max_age.get().as_secs()),
            answers: Answers::new(&origins, config.credentials, expose.as_ref()),
            origins,
        })
    }

    /// The fields of the 204 that answers a preflight; `None` if the request is not one. They go into the answer by
    /// [`Cors::apply_preflight`], not by [`Cors::apply`].
    pub fn preflight(&self, method: &Method, headers: &HeaderMap) -> Option<HeaderMap> {
        preflight_method(method, headers)?;
        let mut answer = HeaderMap::with_capacity(8);
        let vary = match self.origins {
            Origins::Any => "Access-Control-Request-Method, Access-Control-Request-Headers",
            Origins::Listed(_) => "Origin, Access-Control-Request-Method, Access-Control-Request-Headers",
        };
        answer.insert(VARY, HeaderValue::from_static(vary));
        let Some(allowed) = self.allowed(single(headers, &ORIGIN)) else { return Some(answer) };
        answer.insert(ACCESS_CONTROL_ALLOW_ORIGIN, allowed.clone());
        if self.credentials {
            answer.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, TRUE.clone());
        }
        if let Some(methods) = &self.methods {
            answer.insert(ACCESS_CONTROL_ALLOW_METHODS, methods.clone());
        }
        match &self.headers {
            AllowHeaders::Listed(Some(list)) => {
                answer.insert(ACCESS_CONTROL_ALLOW_HEADERS, list.clone());
            }
            AllowHeaders::Listed(None) => {}
            AllowHeaders::AsRequested => {
                for line in headers.get_all(ACCESS_CONTROL_REQUEST_HEADERS) {
                    answer.append(ACCESS_CONTROL_ALLOW_HEADERS, line.clone());
                }
            }
        }
        answer.insert(ACCESS_CONTROL_MAX_AGE, self.max_age.clone());
        Some(answer)
    }

    /// Puts the fields of [`Cors::preflight`] on the answer, over what rules for responses have put there.
    pub fn apply_preflight(fields: HeaderMap, response: &mut HeaderMap) {
        remove_cors_fields(response);
        for (name, value) in fields {
            // A map names a field once and then goes on with its further values: only requested headers have those.
            if let Some(name) = name {
                if name == VARY {
                    response.append(name, value)
                } else {
                    response.insert(name, value).is_some()
                };
            } else {
                response.append(ACCESS_CONTROL_ALLOW_HEADERS, value);
            }
        }
    }

    /// Refuses a WebSocket handshake from an origin that is not listed; one without `Origin` is not a browser's.
    pub fn check_websocket_origin(&self, headers: &HeaderMap) -> Result<(), Box<Refusal>> {
        if !headers.contains_key(ORIGIN) || self.allowed(single(headers, &ORIGIN)).is_some() {
            return Ok(());
        }
        Err(Refusal::new(Reason::OriginDenied, "The origin is not allowed to open a WebSocket here."))
    }

    /// Puts the fields of any other answer of the route, errors included, in place of what the upstream sent.
    /// `origin` is the request's `Origin`, kept from before the request went upstream.
    pub fn apply(&self, origin: Option<&[u8]>, response: &mut impl Fields) {
        remove_cors_fields(response);
        match &self.origins {
            Origins::Any => origin.into_iter().for_each(|_| response.append_all(&self.answers.any)),
            Origins::Listed(_) => {
                if let Some(origin) = origin {
                    self.allow(origin, response);
                }
                vary_by_origin(response);
            }
        }
    }

    /// Adds what lets a listed origin read the answer.
    fn allow(&self, origin: &[u8], response: &mut impl Fields) {
        if let Some((_, ready)) = self.answers.exact.iter().find(|(exact, _)| exact.as_bytes() == origin) {
            return response.append_all(ready);
        }
        let Ok(origin) = HeaderValue::from_bytes(origin) else { return };
        if let Some(allowed) = self.allowed(Some(&origin)) {
            response.append(&ACCESS_CONTROL_ALLOW_ORIGIN, allowed.into());
            response.append_all(&self.answers.beside);
        }
    }

    /// The value of `Access-Control-Allow-Origin` for an allowed origin.
    fn allowed<'h>(&self, origin: Option<&'h HeaderValue>) -> Option<&'h HeaderValue> {
        let origin = origin?;
        match &self.origins {
            Origins::Any => Some(&ANY),
            Origins::Listed(patterns) => {
                let text = without_default_port(origin.to_str().ok()?);
                patterns.iter().any(|pattern| pattern.matches(text)).then_some(origin)
            }
        }
    }
}

fn remove_cors_fields(response: &mut impl Fields) {
    response.remove_prefixed("access-control-");
}

/// The field's value if it was sent once. Browsers send one `Origin`; of two, neither is believed.
fn single<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h HeaderValue> {
    let mut lines = headers.get_all(name).iter();
    lines.next().filter(|_| lines.next().is_none())
}

/// Adds `Origin` to `Vary`, unless it is there or says `*`.
fn vary_by_origin(response: &mut impl Fields) {
    let covers =
        |line: &[u8]| line.split(|b| *b == b',').map(<[u8]>::trim_ascii).any(|name| name == b"*" || name.eq_ignore_ascii_case(b"origin"));
    if !response.may_have(VARIES) || !response.has(&VARY) {
        return response.append_all(&VARY_BY_ORIGIN);
    }
    let mut merged: Vec<u8> = Vec::new();
    for line in response.values_of(&VARY) {
        if covers(line) {
            return;
        }
        let line = line.trim_ascii();
        if !line.is_empty() {
            merged.extend_from_slice(line);
            merged.extend_from_slice(b", ");
        }
    }
    merged.extend_from_slice(b"Origin");
    response.set(&VARY, FieldValue::text(&merged).unwrap_or_else(|| (&BY_ORIGIN).into()));
}

impl Pattern {
    /// `text` without a default port.
    fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(exact) => exact.eq_ignore_ascii_case(text),
            Self::Below { scheme, suffix } => {
                let Some((front, rest)) = text.split_at_checked(scheme.len()) else { return false };
                let Some((labels, end)) = rest.len().checked_sub(suffix.len()).and_then(|at| rest.split_at_checked(at)) else {
                    return false;
                };
                front.eq_ignore_ascii_case(scheme) && end.eq_ignore_ascii_case(suffix) && labels.split('.').all(is_label)
            }
        }
    }
}

fn is_label(label: &str) -> bool {
    !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// An origin has no port where it is the scheme's own (RFC 6454); some clients write it.
fn without_default_port(origin: &str) -> &str {
    let has_scheme = |scheme: &str| origin.get(..scheme.len()).is_some_and(|front| front.eq_ignore_ascii_case(scheme));
    let cut = if has_scheme("https://") {
        origin.strip_suffix(":443")
    } else if has_scheme("http://") {
        origin.strip_suffix(":80")
    } else {
        None
    };
    cut.unwrap_or(origin)
}

fn compile_origins(config: &Config, at: &At, problems: &mut Problems) -> Option<Origins> {
    let at = at.key("origins");
    if config.origins.iter().any(|origin| origin == "*") {
        let mut ok = true;
        if config.credentials {
            let help = "list the origins; browsers send cookies only to answers that name one";
            once(problems, at.clone(), "`credentials: true` with origins `*` would let every site act as its visitors".to_owned(), help);
            ok = false;
        }
        if config.origins.len() > 1 {
            once(
                problems,
                at,
                "`*` allows every origin, so it stands alone".to_owned(),
                "write [\"*\"], or only the origins that are meant",
            );
            ok = false;
        }
        return ok.then_some(Origins::Any);
    }
    let mut patterns = Some(Vec::with_capacity(config.origins.len()));
    for (index, origin) in config.origins.iter().enumerate() {
        match parse_origin(origin) {
            Some(pattern) => patterns.iter_mut().for_each(|patterns| patterns.push(pattern.clone())),
            None => {
                let help =
                    "write scheme://host[:port] without a path, like https://app.example.com, https://*.example.com, null or [\"*\"]";
                once(problems, at.index(index), format!("`{origin}` is not an origin"), help);
                patterns = None;
            }
        }
    }
    patterns.map(Origins::Listed)
}

fn parse_origin(text: &str) -> Option<Pattern> {
    if text == "null" {
        return Some(Pattern::Exact(text.to_owned()));
    }
    let text = without_default_port(text).to_ascii_lowercase();
    let (scheme, authority) = text.split_once("://")?;
    let scheme_ok = scheme.starts_with(|c: char| c.is_ascii_lowercase())
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'));
    let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((v6, port)) => {
            v6.parse::<std::net::Ipv6Addr>().ok()?;
            (None, port)
        }
        None => {
            let end = authority.find(':').unwrap_or(authority.len());
            (Some(&authority[..end]), &authority[end..])
        }
    };
    let port_ok = port.is_empty()
        || port.strip_prefix(':').is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()) && n.parse::<u16>().is_ok_and(|n| n != 0));
    let below = host.and_then(|host| host.strip_prefix("*."));
    let host_ok = below.or(host).is_none_or(|host| host.split('.').all(is_label));
    if !(scheme_ok && port_ok && host_ok) {
        return None;
    }
    Some(match below {
        Some(parent) => Pattern::Below { scheme: format!("{scheme}://"), suffix: format!(".{parent}{port}") },
        None => Pattern::Exact(text),
    })
}

fn is_field(name: &str) -> bool {
    name.parse::<HeaderName>().is_ok()
}

/// A list as one field value; `Some(None)` if it is empty, `None` if an entry is wrong.
fn compile_list(
    list: &[String],
    at: &At,
    problems: &mut Problems,
    what: &str,
    is_valid: impl Fn(&str) -> bool,
) -> Option<Option<HeaderValue>> {
    let mut ok = true;
    for (index, entry) in list.iter().enumerate() {
        if !is_valid(entry) {
            once(problems, at.index(index), format!("`{entry}` is not {what}"), "write names without spaces or punctuation");
            ok = false;
        }
    }
    if !ok {
        return None;
    }
    if list.is_empty() {
        return Some(None);
    }
    HeaderValue::from_str(&list.join(", ")).ok().map(Some)
}

/// Reports an error unless the same one is there: a block is compiled once for each route that inherits it.
fn once(problems: &mut Problems, at: At, message: String, help: &str) {
    if !problems.list().iter().any(|problem| problem.at == at && problem.message == message) {
        problems.error(at, message).help(help);
    }
}

#[cfg(test)]
#[path = "cors_tests.rs"]
mod tests;
