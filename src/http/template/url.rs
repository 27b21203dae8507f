//! Templates of a path with an optional query and fragment.

use super::encode::{check_path, climbs, normalise_literal, push_component, push_raw_component, push_raw_segments};
use super::{Allowed, Found, PartRef, Piece, Scope, Template, TemplateError, Value};
use crate::error::{Reason, Refusal};

/// A template of `/path?query#fragment`. Values are encoded for the place they are put in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UrlTemplate {
    path: Template,
    query: Option<Template>,
    fragment: Option<String>,
}

impl UrlTemplate {
    /// Parses `text`, which starts with `/` or `{path}`.
    pub fn parse(text: &str, allowed: Allowed<'_>) -> Result<Self, TemplateError> {
        let whole = Template::parse(text, allowed)?;
        let refs = whole.part_refs.clone();
        let (before, fragment) = split(whole.pieces, '#');
        let (path, query) = split(before, '?');
        let with_refs = |pieces| Template { pieces, part_refs: refs.clone() };
        let template = Self {
            path: with_refs(path),
            query: query.map(with_refs),
            fragment: fragment.map(|pieces| literal_fragment(&pieces)).transpose()?,
        };
        template.checked(text)
    }

    fn checked(mut self, text: &str) -> Result<Self, TemplateError> {
        let rooted = match self.path.pieces.first() {
            Some(Piece::Text(text)) => text.starts_with('/'),
            Some(Piece::Value(value)) => *value == Value::Path,
            None => false,
        };
        if !rooted {
            return Err(TemplateError::new(0, format!("`{text}` is not a path")).help("a path starts with `/`"));
        }
        for piece in &mut self.path.pieces {
            if let Piece::Text(part) = piece {
                *part = normalise_literal(part).map_err(|why| TemplateError::new(0, format!("`{text}` {why}")))?;
            }
        }
        if self.literal_segments().any(|segment| climbs(&segment)) {
            return Err(TemplateError::new(0, format!("`{text}` has a `.`, `..` or empty `;` segment")).help("write the path without it"));
        }
        if let Some(query) = &mut self.query {
            for piece in &mut query.pieces {
                if let Piece::Text(part) = piece {
                    *part = query_literal(part, text)?;
                }
            }
        }
        Ok(self)
    }

    /// Segments without a template value in them.
    fn literal_segments(&self) -> impl Iterator<Item = String> {
        let mark = |piece: &Piece| match piece {
            Piece::Text(text) => text.clone(),
            Piece::Value(_) => "{".to_owned(),
        };
        let whole: String = self.path.pieces.iter().map(mark).collect();
        whole.split('/').filter(|segment| !segment.contains('{')).map(str::to_owned).collect::<Vec<_>>().into_iter()
    }

    /// The values out of other parts that it needs, in the order of [`Scope::parts`].
    pub fn part_refs(&self) -> &[PartRef] {
        self.path.part_refs()
    }

    /// Whether it has a query of its own.
    pub fn has_query(&self) -> bool {
        self.query.is_some()
    }

    /// Whether its query already takes in the client's.
    pub fn uses_query(&self) -> bool {
        self.query.as_ref().is_some_and(|query| query.pieces.contains(&Piece::Value(Value::Query)))
    }

    /// Appends the path. A value that is missing or empty, or that makes a segment `.` or `..`, is a 400.
    pub fn push_path(&self, out: &mut String, scope: Scope<'_>) -> Result<(), Box<Refusal>> {
        let mut path = String::with_capacity(64);
        for piece in &self.path.pieces {
            match piece {
                Piece::Text(text) => path.push_str(text),
                Piece::Value(value) => push_in_path(&mut path, value, value.find(scope).ok_or_else(missing)?),
            }
        }
        if !check_path(&mut path) {
            return Err(unsafe_path());
        }
        out.push_str(&path);
        Ok(())
    }

    /// Appends the query, without `?`. A missing value is nothing.
    pub fn push_query(&self, out: &mut String, scope: Scope<'_>) {
        for piece in self.query.iter().flat_map(|query| &query.pieces) {
            match piece {
                Piece::Text(text) => out.push_str(text),
                Piece::Value(value) => match value.find(scope) {
                    Some(Found::Encoded(raw)) => push_raw_component(out, raw),
                    Some(Found::Plain(text)) if *value == Value::Query => out.push_str(&text),
                    Some(Found::Plain(text)) => push_component(out, text.as_bytes()),
                    None => {}
                },
            }
        }
    }

    /// Path and own query, with the client's `query` after them.
    pub fn render(&self, scope: Scope<'_>, query: Option<&str>) -> Result<String, Box<Refusal>> {
        let mut out = String::with_capacity(96);
        self.push_path(&mut out, scope)?;
        let end = out.len();
        out.push('?');
        self.push_query(&mut out, scope);
        if let Some(query) = query.filter(|_| !self.uses_query()) {
            if out.len() > end + 1 {
                out.push('&');
            }
            out.push_str(query);
        }
        if out.len() == end + 1 && query.is_none() && self.query.is_none() {
            out.truncate(end);
        }
        Ok(out)
    }

    /// The fragment, without `#`.
    pub fn fragment(&self) -> Option<&str> {
        self.fragment.as_deref()
    }
}

fn push_in_path(path: &mut String, value: &Value, found: Found<'_>) {
    let keep_slash = match value {
        Value::Param(param) => param.rest,
        Value::Path => true,
        Value::Host
        | Value::Query
        | Value::Scheme
        | Value::ClientIp
        | Value::RequestId
        | Value::User
        | Value::Claim(_)
        | Value::Part(_) => false,
    };
    match found {
        Found::Encoded(raw) => push_raw_segments(path, raw, keep_slash),
        Found::Plain(text) if keep_slash => push_raw_segments(path, &text, true),
        Found::Plain(text) => push_component(path, text.as_bytes()),
    }
}

/// Cuts at the first `mark` in literal text.
fn split(pieces: Vec<Piece>, mark: char) -> (Vec<Piece>, Option<Vec<Piece>>) {
    let mut before = Vec::new();
    let mut after: Option<Vec<Piece>> = None;
    for piece in pieces {
        match (&mut after, piece) {
            (Some(after), piece) => after.push(piece),
            (None, Piece::Text(text)) => match text.split_once(mark) {
                Some((head, tail)) => {
                    before.extend((!head.is_empty()).then(|| Piece::Text(head.to_owned())));
                    after = Some((!tail.is_empty()).then(|| Piece::Text(tail.to_owned())).into_iter().collect());
                }
                None => before.push(Piece::Text(text)),
            },
            (None, piece @ Piece::Value(_)) => before.push(piece),
        }
    }
    (before, after)
}

fn literal_fragment(pieces: &[Piece]) -> Result<String, TemplateError> {
    let mut out = String::new();
    for piece in pieces {
        match piece {
            Piece::Text(text) => out.push_str(&query_literal(text, text)?),
            Piece::Value(_) => return Err(TemplateError::new(0, "what follows `#` cannot have template values")),
        }
    }
    Ok(out)
}

/// Literal text of a query or fragment: what a URL cannot hold is encoded.
fn query_literal(text: &str, whole: &str) -> Result<String, TemplateError> {
    if text.bytes().any(|byte| byte.is_ascii_control()) {
        return Err(TemplateError::new(0, format!("`{whole}` has a control character")));
    }
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'!'..=b'~' if !matches!(byte, b'"' | b'<' | b'>' | b'#' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}') => {
                out.push(char::from(byte))
            }
            _ => push_component(&mut out, &[byte]),
        }
    }
    Ok(out)
}

fn missing() -> Box<Refusal> {
    Refusal::new(Reason::BadRequest, "A value that the path needs is missing or empty.")
}

pub(super) fn unsafe_path() -> Box<Refusal> {
    Refusal::new(Reason::BadRequest, "The path that results from the request is not allowed.")
}
