//! Templates: text with `{name}` places that a request fills.
//!
//! A template is parsed once at load, where an unknown name is an error, and knows three ways to put a value in:
//! as a header field's value ([`HeaderTemplate`]), and as a segment of a path or a component of a query ([`UrlTemplate`]).
//! The encoding depends on the place, never on the value, so a value cannot add a segment, a parameter or a field.

mod encode;
#[cfg(test)]
pub(crate) mod sample;
#[cfg(test)]
mod tests;
mod url;

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::Arc;

use http::HeaderValue;

pub use encode::{check_path, normalise_literal, push_component, push_raw_component};
pub use url::UrlTemplate;

use crate::config::route::Match;
use crate::http::Exchange;
use crate::http::exchange::claim_text;
use crate::http::headers::FieldValue;

/// Names that every template knows.
const BUILT_IN: [&str; 7] = ["host", "path", "query", "scheme", "client_ip", "request_id", "user"];

/// Whether `name` is a built-in template value, and so no name for a parameter.
pub fn is_built_in(name: &str) -> bool {
    BUILT_IN.contains(&name) || name == "claim" || name == "parts"
}

/// A path parameter or named group of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    /// Its name.
    pub name: Arc<str>,
    /// Whether it is a `{*rest}`, which keeps its slashes in a path.
    pub rest: bool,
}

/// The parameters that a route's match has. A regex that does not compile has none; the router reports it.
pub fn params_of(matcher: &Match) -> Vec<Param> {
    if let Some(pattern) = &matcher.regex {
        let Ok(regex) = regex::Regex::new(pattern) else { return Vec::new() };
        return regex.capture_names().flatten().map(|name| Param { name: name.into(), rest: false }).collect();
    }
    let written = matcher.path.as_deref().or(matcher.prefix.as_deref()).unwrap_or_default();
    let inner = |segment: &str| segment.strip_prefix('{').and_then(|s| s.strip_suffix('}')).map(str::to_owned);
    let param = |text: String| match text.strip_prefix('*') {
        Some(name) => Param { name: name.into(), rest: true },
        None => Param { name: text.as_str().into(), rest: false },
    };
    written.split('/').filter_map(inner).map(param).collect()
}

/// The names a template may use beside the built-in ones.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allowed<'a> {
    /// Parameters of the route.
    pub params: &'a [Param],
    /// Names of the aggregate's parts, where `{parts.NAME.path}` is possible.
    pub parts: Option<&'a [String]>,
}

/// Why a text is no template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemplateError {
    /// What is wrong.
    pub message: String,
    /// What would be right.
    pub help: Option<String>,
    /// Where in the text, in bytes.
    pub offset: usize,
}

impl TemplateError {
    fn new(offset: usize, message: impl Into<String>) -> Self {
        Self { message: message.into(), help: None, offset }
    }
    fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// A value out of another part's answer: `{parts.NAME.dotted.path}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartRef {
    /// The part's name.
    pub part: String,
    /// Keys and array indices from the top of its body.
    pub path: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Value(Value),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    Param(Param),
    Host,
    Path,
    Query,
    Scheme,
    ClientIp,
    RequestId,
    User,
    Claim(String),
    /// Index into [`Template::part_refs`].
    Part(usize),
}

/// What a template is filled from.
#[derive(Clone, Copy, Debug)]
pub struct Scope<'a> {
    /// The request.
    pub exchange: &'a Exchange,
    /// Values of the template's [`Template::part_refs`], in their order.
    pub parts: &'a [String],
}

impl<'a> From<&'a Exchange> for Scope<'a> {
    fn from(exchange: &'a Exchange) -> Self {
        Self { exchange, parts: &[] }
    }
}

/// A value as it was found.
enum Found<'a> {
    /// Bytes of the canonical path, still percent-encoded.
    Encoded(&'a str),
    /// Plain text.
    Plain(Cow<'a, str>),
}

/// A parsed template.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Template {
    pieces: Vec<Piece>,
    part_refs: Vec<PartRef>,
}

impl Template {
    /// Parses `text`; a name that `allowed` does not have is an error.
    pub fn parse(text: &str, allowed: Allowed<'_>) -> Result<Self, TemplateError> {
        let mut template = Self::default();
        let mut rest = text;
        while let Some(start) = rest.find(['{', '}']) {
            let offset = text.len() - rest.len() + start;
            template.push_text(&rest[..start]);
            let tail = &rest[start..];
            if let Some(after) = tail.strip_prefix("{{").or_else(|| tail.strip_prefix("}}")) {
                template.push_text(&tail[..1]);
                rest = after;
            } else if let Some(inner) = tail.strip_prefix('{') {
                let Some(end) = inner.find('}') else {
                    return Err(
                        TemplateError::new(offset, format!("`{{` in `{text}` is never closed")).help("write `{{` for a brace itself")
                    );
                };
                let value = template.value(&inner[..end], offset, allowed)?;
                template.pieces.push(Piece::Value(value));
                rest = &inner[end + 1..];
            } else {
                return Err(TemplateError::new(offset, format!("`}}` in `{text}` closes nothing")).help("write `}}` for a brace itself"));
            }
        }
        template.push_text(rest);
        Ok(template)
    }

    fn push_text(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        match self.pieces.last_mut() {
            Some(Piece::Text(last)) => last.push_str(text),
            Some(Piece::Value(_)) | None => self.pieces.push(Piece::Text(text.to_owned())),
        }
    }

    fn value(&mut self, name: &str, offset: usize, allowed: Allowed<'_>) -> Result<Value, TemplateError> {
        if let Some(param) = allowed.params.iter().find(|p| &*p.name == name) {
            return Ok(Value::Param(param.clone()));
        }
        Ok(match name {
            "host" => Value::Host,
            "path" => Value::Path,
            "query" => Value::Query,
            "scheme" => Value::Scheme,
            "client_ip" => Value::ClientIp,
            "request_id" => Value::RequestId,
            "user" => Value::User,
            _ => {
                if let Some(claim) = name.strip_prefix("claim:").filter(|claim| !claim.is_empty()) {
                    return Ok(Value::Claim(claim.to_owned()));
                }
                if let (Some(reference), Some(names)) = (name.strip_prefix("parts."), allowed.parts) {
                    return self.part(reference, name, offset, names);
                }
                return Err(unknown(name, offset, allowed));
            }
        })
    }

    fn part(&mut self, reference: &str, whole: &str, offset: usize, names: &[String]) -> Result<Value, TemplateError> {
        let (part, path) = reference.split_once('.').unwrap_or((reference, ""));
        if !names.iter().any(|name| name == part) {
            let error = TemplateError::new(offset, format!("`{{{whole}}}` refers to a part `{part}` that this aggregate does not have"));
            return Err(match nearest(part, names.iter().map(String::as_str)) {
                Some(near) => error.help(format!("did you mean `{near}`?")),
                None => error,
            });
        }
        if path.split('.').any(str::is_empty) {
            let error = TemplateError::new(offset, format!("`{{{whole}}}` does not say which value of the part"));
            return Err(error.help(format!("write the way to one value, like `{{parts.{part}.id}}`")));
        }
        self.part_refs.push(PartRef { part: part.to_owned(), path: path.split('.').map(str::to_owned).collect() });
        Ok(Value::Part(self.part_refs.len() - 1))
    }

    /// The values out of other parts that it needs, in the order of [`Scope::parts`].
    pub fn part_refs(&self) -> &[PartRef] {
        &self.part_refs
    }

    /// The text, if there is nothing to fill in.
    pub fn literal(&self) -> Option<&str> {
        match self.pieces.as_slice() {
            [] => Some(""),
            [Piece::Text(text)] => Some(text),
            [Piece::Value(_)] | [_, _, ..] => None,
        }
    }
}

impl Value {
    /// The value for this request; `None` is missing or empty.
    fn find<'a>(&self, scope: Scope<'a>) -> Option<Found<'a>> {
        let ex = scope.exchange;
        let found = match self {
            Self::Param(param) => Found::Encoded(ex.params.raw(&param.name, ex.path())?),
            Self::Host => Found::Plain(ex.host.name().into()),
            Self::Path => Found::Plain(ex.path().into()),
            Self::Query => Found::Plain(ex.query()?.into()),
            Self::Scheme => Found::Plain(ex.scheme.as_str().into()),
            Self::ClientIp => Found::Plain(ex.client_ip.to_string().into()),
            Self::RequestId => Found::Plain(ex.request_id.to_str().ok()?.into()),
            Self::User => Found::Plain(ex.user()?.into()),
            Self::Claim(name) => Found::Plain(claim(ex, name)?),
            Self::Part(index) => Found::Plain(scope.parts.get(*index)?.as_str().into()),
        };
        let empty = match &found {
            Found::Encoded(text) => text.is_empty(),
            Found::Plain(text) => text.is_empty(),
        };
        (!empty).then_some(found)
    }
}

/// A claim by its name, tried literally and then as a dotted path, as `claims` rules do.
fn claim<'a>(ex: &'a Exchange, name: &str) -> Option<Cow<'a, str>> {
    let identity = ex.identity.as_ref()?;
    if let Some(found) = identity.claims.get(name) {
        return claim_text(found);
    }
    let (first, rest) = name.split_once('.')?;
    let found = rest.split('.').try_fold(identity.claims.get(first)?, |value, key| value.get(key))?;
    claim_text(found)
}

/// A header field's value: a constant, made once, or a template.
#[derive(Clone, Debug)]
pub struct HeaderTemplate(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Fixed(Option<HeaderValue>),
    Filled(Template),
}

impl HeaderTemplate {
    /// Parses `text`; literal text that no header field can hold is an error.
    pub fn parse(text: &str, allowed: Allowed<'_>) -> Result<Self, TemplateError> {
        let template = Template::parse(text, allowed)?;
        for piece in &template.pieces {
            if let Piece::Text(part) = piece
                && HeaderValue::from_str(part).is_err()
            {
                return Err(TemplateError::new(0, "a header field cannot hold line breaks or other control characters"));
            }
        }
        Ok(Self(match template.literal() {
            Some("") => Kind::Fixed(None),
            Some(literal) => Kind::Fixed(HeaderValue::from_str(literal).ok()),
            None => Kind::Filled(template),
        }))
    }

    /// The value, if it is the same for all requests and not empty.
    pub fn constant(&self) -> Option<&HeaderValue> {
        match &self.0 {
            Kind::Fixed(value) => value.as_ref(),
            Kind::Filled(_) => None,
        }
    }

    /// The value for this request, if need be in the memory of `text`. `None` where a value is missing or empty or has control characters:
    /// the field is not sent.
    pub fn render<'v>(&'v self, exchange: &'v Exchange, text: &'v mut Vec<u8>) -> Option<FieldValue<'v>> {
        match &self.0 {
            Kind::Fixed(value) => value.as_ref().map(FieldValue::from),
            Kind::Filled(template) => template.render_header(exchange, text),
        }
    }
}

impl Template {
    fn render_header<'v>(&'v self, exchange: &'v Exchange, out: &'v mut Vec<u8>) -> Option<FieldValue<'v>> {
        // Most have one value that stands somewhere as it is.
        if let [Piece::Value(value)] = self.pieces.as_slice() {
            match value {
                Value::RequestId => return Some((&exchange.request_id).into()),
                Value::Claim(name) => {
                    // Most claims are text.
                    if let Some(serde_json::Value::String(text)) = exchange.identity.as_ref()?.claims.get(name) {
                        let text = without_tab(text.as_bytes()).filter(|text| !text.is_empty())?;
                        return FieldValue::text(text);
                    }
                }
                Value::Param(_)
                | Value::Host
                | Value::Path
                | Value::Query
                | Value::Scheme
                | Value::ClientIp
                | Value::User
                | Value::Part(_) => {}
            }
            if let Found::Plain(Cow::Borrowed(text)) = value.find(exchange.into())? {
                return without_tab(text.as_bytes()).and_then(FieldValue::text);
            }
        }
        out.clear();
        for piece in &self.pieces {
            let start = out.len();
            match piece {
                Piece::Text(text) => {
                    out.extend_from_slice(text.as_bytes());
                    continue;
                }
                Piece::Value(value) => match value.find(exchange.into())? {
                    Found::Encoded(text) => encode::push_decoded(out, text),
                    Found::Plain(text) => out.extend_from_slice(text.as_bytes()),
                },
            }
            without_tab(out.get(start..).unwrap_or_default())?;
        }
        FieldValue::text(out)
    }
}

/// A request's value that may stand in a field as far as tabs go: they are the one control character that [`FieldValue`] takes.
fn without_tab(value: &[u8]) -> Option<&[u8]> {
    (!value.contains(&b'\t')).then_some(value)
}

fn unknown(name: &str, offset: usize, allowed: Allowed<'_>) -> TemplateError {
    let error = TemplateError::new(offset, format!("unknown template value `{{{name}}}`"));
    let names = allowed.params.iter().map(|p| &*p.name).chain(BUILT_IN);
    if let Some(near) = nearest(name, names.clone()) {
        return error.help(format!("did you mean `{{{near}}}`?"));
    }
    let mut known = String::from("known here are");
    for name in names {
        let _ = write!(known, " {{{name}}}");
    }
    known.push_str(" {claim:NAME}");
    if allowed.parts.is_some() {
        known.push_str(" {parts.NAME.path}");
    }
    error.help(known)
}

/// The candidate within edit distance 2, the nearest first.
fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let scored = candidates.map(|candidate| (distance(word, candidate), candidate));
    scored.filter(|(d, candidate)| *d <= 2 && *d < candidate.chars().count()).min_by_key(|(d, _)| *d).map(|(_, candidate)| candidate)
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, y) in row.iter_mut().skip(1).zip(&b) {
            let next = (diagonal + usize::from(x != *y)).min(left + 1).min(*cell + 1);
            diagonal = *cell;
            *cell = next;
            left = next;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}
