//! Rewriting of path and Host before a request goes to its target.

use http::HeaderValue;
use http::uri::{Authority, PathAndQuery};
use regex::Regex;

use crate::config::resolve;
use crate::config::route::{self, Match};
use crate::config::{At, Problems};
use crate::error::{Reason, Refusal};
use crate::http::Exchange;
use crate::http::template::{self, Allowed, TemplateError, UrlTemplate};

/// Which Host the upstream gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HostMode {
    /// The client's.
    #[default]
    Preserve,
    /// The endpoint's, per attempt.
    Upstream,
    /// This one.
    Fixed(HeaderValue),
}

/// A route's rewrite.
#[derive(Clone, Debug, Default)]
pub struct Rewrite {
    path: Option<PathRule>,
    host: HostMode,
}

#[derive(Clone, Debug)]
enum PathRule {
    Template(UrlTemplate),
    /// Literal segments to cut. They are compared again because a regex route may match paths without them.
    Strip(Vec<String>),
    Replace(Regex, Replacement),
}

impl Rewrite {
    /// Compiles `written`, the rewrite of `route`.
    pub fn compile(written: &route::Rewrite, route: &resolve::Route, problems: &mut Problems) -> Option<Self> {
        let at = route.at.key("rewrite");
        let before = problems.list().len();
        let rules = [written.path.is_some(), written.strip_prefix.is_some(), written.regex.is_some() || written.to.is_some()];
        if rules.iter().filter(|given| **given).count() > 1 {
            problems.error(at.clone(), "`rewrite` has more than one of `path`, `strip_prefix` and `regex`").help("keep one of them");
        }
        let path = written.path.as_deref().and_then(|text| path_template(text, &route.matcher, &at.key("path"), problems));
        let strip = written.strip_prefix.as_deref().and_then(|text| strip(text, &route.matcher, &at.key("strip_prefix"), problems));
        let replace = replace(written, &at, problems);
        let host = written.host.as_deref().map_or(Some(HostMode::Preserve), |text| host_mode(text, &at.key("host"), problems));
        if problems.list().len() > before {
            return None;
        }
        Some(Self { path: path.or(strip).or(replace), host: host? })
    }

    /// Which Host the upstream gets.
    pub fn host(&self) -> &HostMode {
        &self.host
    }

    /// The path and query to send; `None` is unchanged. A result that is no path, or that would climb, is a 400.
    pub fn apply(&self, exchange: &Exchange) -> Result<Option<PathAndQuery>, Box<Refusal>> {
        let query = exchange.query();
        let target = match &self.path {
            None => return Ok(None),
            Some(PathRule::Template(template)) => template.render(exchange.into(), query)?,
            Some(PathRule::Strip(segments)) => match cut(exchange.path(), segments) {
                None => return Ok(None),
                Some(path) => checked(path.to_owned(), None, query)?,
            },
            Some(PathRule::Replace(regex, replacement)) => match replacement.apply(regex, exchange.path()) {
                None => return Ok(None),
                Some((path, own)) => checked(path, own, query)?,
            },
        };
        PathAndQuery::from_maybe_shared(bytes::Bytes::from(target)).map(Some).map_err(|_| refused())
    }
}

fn refused() -> Box<Refusal> {
    Refusal::new(Reason::BadRequest, "The path that results from the request is not allowed.")
}

/// Checks `path` and puts the own query and the client's behind it.
fn checked(mut path: String, own: Option<String>, query: Option<&str>) -> Result<String, Box<Refusal>> {
    if !template::check_path(&mut path) {
        return Err(refused());
    }
    let own = own.filter(|own| !own.is_empty());
    let mut mark = '?';
    for part in [own.as_deref(), query].into_iter().flatten() {
        path.push(mark);
        path.push_str(part);
        mark = '&';
    }
    Ok(path)
}

fn record(problems: &mut Problems, at: &At, error: TemplateError) {
    problems.error(at.clone(), error.message).help = error.help;
}

fn path_template(text: &str, matcher: &Match, at: &At, problems: &mut Problems) -> Option<PathRule> {
    let params = template::params_of(matcher);
    match UrlTemplate::parse(text, Allowed { params: &params, parts: None }) {
        Ok(parsed) if parsed.fragment().is_some() => {
            problems.error(at.clone(), format!("`{text}` has a `#`, which is never sent")).help("write `%23` for the character itself");
            None
        }
        Ok(parsed) => Some(PathRule::Template(parsed)),
        Err(error) => {
            record(problems, at, error);
            None
        }
    }
}

/// Segments of a written prefix in canonical form; a final `/` changes nothing.
fn segments(written: &str) -> Result<Vec<String>, &'static str> {
    let normal = template::normalise_literal(written)?;
    Ok(normal.split('/').filter(|segment| !segment.is_empty()).map(str::to_owned).collect())
}

fn strip(text: &str, matcher: &Match, at: &At, problems: &mut Problems) -> Option<PathRule> {
    if !text.starts_with('/') {
        problems.error(at.clone(), format!("`{text}` is not a path prefix")).help("a prefix starts with `/`");
        return None;
    }
    let stripped = match segments(text) {
        Ok(segments) => segments,
        Err(why) => {
            problems.error(at.clone(), format!("`{text}` {why}"));
            return None;
        }
    };
    let literal = literal_segments(matcher);
    if stripped.len() > literal.len() || stripped.iter().zip(&literal).any(|(a, b)| a != b) {
        let help = match literal.as_slice() {
            [] => "this route's path has no literal segment at its start".to_owned(),
            known => format!("all paths of this route start with `/{}`", known.join("/")),
        };
        problems.error(at.clone(), format!("`{text}` is not a prefix of the route's path")).help(help);
        return None;
    }
    Some(PathRule::Strip(stripped))
}

/// The literal segments that all paths of the match start with.
fn literal_segments(matcher: &Match) -> Vec<String> {
    let literal = match (&matcher.regex, matcher.path.as_deref().or(matcher.prefix.as_deref())) {
        (Some(pattern), _) => {
            let pattern = pattern.strip_prefix('^').unwrap_or(pattern);
            let end = pattern.find(['.', '*', '+', '?', '(', ')', '[', ']', '{', '}', '|', '\\', '^', '$']);
            match end {
                // Only what stands before the last slash is a whole segment.
                Some(end) => pattern[..end].rfind('/').map_or("", |slash| &pattern[..slash]),
                None => pattern,
            }
        }
        (None, Some(path)) => path.find('{').map_or(path, |brace| &path[..brace]),
        (None, None) => "",
    };
    segments(literal).unwrap_or_default()
}

/// `path` without its first segments, if these are `segments` (up to a `;`, as in matching).
fn cut<'p>(path: &'p str, segments: &[String]) -> Option<&'p str> {
    let mut rest = path;
    for wanted in segments {
        let inner = rest.strip_prefix('/')?;
        let (segment, tail) = inner.split_at(inner.find('/').unwrap_or(inner.len()));
        let name = if wanted.contains(';') { segment } else { segment.split(';').next().unwrap_or_default() };
        if name != wanted {
            return None;
        }
        rest = tail;
    }
    Some(if rest.is_empty() { "/" } else { rest })
}

fn replace(written: &route::Rewrite, at: &At, problems: &mut Problems) -> Option<PathRule> {
    let (pattern, to) = match (&written.regex, &written.to) {
        (None, None) => return None,
        (Some(_), None) => {
            problems.error(at.key("regex").its_key(), "`regex` needs `to`").help("`to` is what the match is replaced by, like `/new/$1`");
            return None;
        }
        (None, Some(_)) => {
            problems.error(at.key("to").its_key(), "`to` needs `regex`").help("`regex` is what is replaced, like `^/old/(.*)`");
            return None;
        }
        (Some(pattern), Some(to)) => (pattern, to),
    };
    let regex = match Regex::new(pattern) {
        Ok(regex) => regex,
        Err(error) => {
            let reason = error.to_string();
            let last = reason.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
            problems.error(at.key("regex"), format!("`{pattern}` is not a regular expression: {last}"));
            return None;
        }
    };
    match Replacement::parse(to, &regex) {
        Ok(replacement) => Some(PathRule::Replace(regex, replacement)),
        Err((message, help)) => {
            problems.error(at.key("to"), message).help(help);
            None
        }
    }
}

fn host_mode(text: &str, at: &At, problems: &mut Problems) -> Option<HostMode> {
    match text {
        "preserve" => return Some(HostMode::Preserve),
        "upstream" => return Some(HostMode::Upstream),
        _ => {}
    }
    let authority = text.parse::<Authority>().ok().filter(|authority| !authority.as_str().contains('@') && !authority.host().is_empty());
    let Some(value) = authority.and_then(|authority| HeaderValue::from_str(authority.as_str()).ok()) else {
        problems
            .error(at.clone(), format!("`{text}` is not a host name"))
            .help("write `preserve`, `upstream` or a name like `api.internal`");
        return None;
    };
    Some(HostMode::Fixed(value))
}

/// What a match is replaced by: text, and groups of the match.
#[derive(Clone, Debug)]
struct Replacement {
    path: Vec<Piece>,
    query: Option<Vec<Piece>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Group(usize),
}

impl Replacement {
    /// Parses `$1`, `$name` and `$$`. Unlike the regex crate, `$1x` is group 1 and an `x`: an index ends where its digits end.
    fn parse(text: &str, regex: &Regex) -> Result<Self, (String, String)> {
        let mut pieces = vec![Vec::new()];
        let mut literal = String::new();
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            rest = &rest[first.len_utf8()..];
            match first {
                '$' if rest.starts_with('$') => {
                    literal.push('$');
                    rest = &rest[1..];
                }
                '$' => {
                    let (group, after) = group(rest, regex, text)?;
                    flush(&mut pieces, &mut literal);
                    pieces.last_mut().into_iter().for_each(|list| list.push(Piece::Group(group)));
                    rest = after;
                }
                '?' if pieces.len() == 1 => {
                    flush(&mut pieces, &mut literal);
                    pieces.push(Vec::new());
                }
                '#' => return Err((format!("`{text}` has a `#`, which is never sent"), "write `%23` for the character itself".to_owned())),
                c if c.is_ascii_control() || c == '\\' => {
                    return Err((format!("`{text}` has a control character or a backslash"), "write a path".to_owned()));
                }
                c => push_char(&mut literal, c),
            }
        }
        flush(&mut pieces, &mut literal);
        let query = (pieces.len() > 1).then(|| pieces.pop()).flatten();
        Ok(Self { path: pieces.pop().unwrap_or_default(), query })
    }

    /// The path with its first match replaced, and the query that `to` has. `None` without a match.
    fn apply(&self, regex: &Regex, path: &str) -> Option<(String, Option<String>)> {
        let found = regex.captures(path)?;
        let whole = found.get(0)?;
        let group = |index: usize| found.get(index).map_or("", |group| group.as_str());
        let mut out = String::with_capacity(path.len() + 32);
        out.push_str(&path[..whole.start()]);
        for piece in &self.path {
            match piece {
                Piece::Text(text) => out.push_str(text),
                Piece::Group(index) => out.push_str(group(*index)),
            }
        }
        out.push_str(&path[whole.end()..]);
        let query = self.query.as_ref().map(|pieces| {
            let mut query = String::new();
            for piece in pieces {
                match piece {
                    Piece::Text(text) => query.push_str(text),
                    Piece::Group(index) => template::push_raw_component(&mut query, group(*index)),
                }
            }
            query
        });
        Some((out, query))
    }
}

fn flush(pieces: &mut [Vec<Piece>], literal: &mut String) {
    if let Some(list) = pieces.last_mut().filter(|_| !literal.is_empty()) {
        list.push(Piece::Text(std::mem::take(literal)));
    }
}

/// Appends a written character; what a URL cannot hold is encoded.
fn push_char(out: &mut String, c: char) {
    if c.is_ascii_graphic() && !matches!(c, '"' | '<' | '>' | '^' | '`' | '{' | '|' | '}') {
        out.push(c);
    } else {
        template::push_component(out, c.encode_utf8(&mut [0; 4]).as_bytes());
    }
}

/// The group that the text after a `$` names, and what follows.
fn group<'t>(rest: &'t str, regex: &Regex, whole: &str) -> Result<(usize, &'t str), (String, String)> {
    let braced = rest.strip_prefix('{').and_then(|inner| inner.split_once('}'));
    let (name, after) = match braced {
        Some(found) => found,
        None => {
            let digits = rest.starts_with(|c: char| c.is_ascii_digit());
            let belongs = |c: char| if digits { c.is_ascii_digit() } else { c.is_ascii_alphanumeric() || c == '_' };
            rest.split_at(rest.find(|c| !belongs(c)).unwrap_or(rest.len()))
        }
    };
    let index = match name.parse::<usize>() {
        Ok(index) => Some(index).filter(|index| *index < regex.captures_len()),
        Err(_) => regex.capture_names().position(|known| known == Some(name)),
    };
    index.map(|index| (index, after)).ok_or_else(|| {
        let names: Vec<String> =
            regex.capture_names().enumerate().skip(1).map(|(i, n)| format!("${}", n.map_or(i.to_string(), str::to_owned))).collect();
        let help = if names.is_empty() {
            "the regex has no groups; write `$$` for a dollar".to_owned()
        } else {
            format!("its groups are {}; write `$$` for a dollar", names.join(" "))
        };
        (format!("`${name}` in `{whole}` is not a group of the regex"), help)
    })
}

#[cfg(test)]
mod tests;
