//! Path conditions of routes: `path`, `prefix` and `regex`, read into segments.

use std::borrow::Cow;
use std::sync::Arc;

use regex::{Regex, RegexBuilder};

use crate::config::server::EncodedSlash;
use crate::http::Params;
use crate::http::target::canonical_path;

/// Template values that exist without a parameter: no parameter may have these names.
pub const BUILT_IN_NAMES: [&str; 7] = ["host", "path", "query", "scheme", "client_ip", "request_id", "user"];

/// Most memory a compiled pattern may take.
const REGEX_SIZE: usize = 10 << 20;

/// What is wrong, and what would be right.
pub(super) type Wrong = (String, Cow<'static, str>);

/// One step of a path, from the left. The order of the variants is not the precedence: that is [`Step::rank`].
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// A segment in canonical form.
    Literal(Box<str>),
    /// One non-empty segment.
    Param(Arc<str>),
    /// The path ends here.
    End,
    /// The rest is up to the regex.
    Regex,
    /// All that is left, after a slash.
    Rest(Arc<str>),
    /// Whatever follows.
    PrefixEnd,
}

impl Step {
    /// Lower wins.
    pub(super) const fn rank(&self) -> u8 {
        match self {
            Self::Literal(_) | Self::End => 0,
            Self::Param(_) => 1,
            Self::Regex => 2,
            Self::Rest(_) => 3,
            Self::PrefixEnd => 4,
        }
    }
}

/// A route's path condition.
#[derive(Clone, Debug)]
pub(super) struct Path {
    /// Its steps; the last one is an end of some kind, and only the last one.
    pub(super) steps: Vec<Step>,
    pub(super) regex: Option<Pattern>,
}

/// A compiled `regex`.
#[derive(Clone, Debug)]
pub(super) struct Pattern {
    regex: Regex,
    /// Named groups.
    groups: Vec<Arc<str>>,
    /// Without the anchors that are there anyway.
    pub(super) source: String,
}

impl Path {
    /// From `path`.
    pub(super) fn exact(text: &str) -> Result<Self, Wrong> {
        let mut steps = segments(text, true)?;
        if !matches!(steps.last(), Some(Step::Rest(_))) {
            steps.push(Step::End);
        }
        Self { steps, regex: None }.checked()
    }

    /// From `prefix`.
    pub(super) fn prefix(text: &str) -> Result<Self, Wrong> {
        let mut steps = segments(text, false)?;
        if matches!(steps.last(), Some(Step::Literal(last)) if last.is_empty()) {
            steps.pop();
        }
        steps.push(Step::PrefixEnd);
        Self { steps, regex: None }.checked()
    }

    /// From `regex`.
    pub(super) fn regex(text: &str) -> Result<Self, Wrong> {
        let wrong = |error: &regex::Error| {
            let cause = error.to_string();
            let cause = cause.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
            (
                format!("`{text}` is not a regular expression that can be used: {cause}"),
                Cow::Borrowed("the syntax is that of the Rust regex crate"),
            )
        };
        if may_leave_group(text) {
            Regex::new(text).map_err(|error| wrong(&error))?;
        }
        let regex = RegexBuilder::new(&format!("^(?:{text})$")).size_limit(REGEX_SIZE).build().map_err(|error| wrong(&error))?;
        let groups = regex.capture_names().flatten().map(Arc::from).collect();
        let source = text.strip_prefix('^').unwrap_or(text);
        let literal = leading_literal(source);
        let source = if source.ends_with("\\$") { source } else { source.strip_suffix('$').unwrap_or(source) }.to_owned();
        let mut steps = Vec::new();
        for segment in literal.split('/').skip(1) {
            match canonical_segment(segment) {
                Ok(segment) => steps.push(Step::Literal(segment)),
                // A pattern for paths that cannot be: it matches nothing, wherever it stands.
                Err(_) => break,
            }
        }
        steps.push(Step::Regex);
        Self { steps, regex: Some(Pattern { regex, groups, source }) }.checked()
    }

    /// All names of parameters and groups.
    fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        let steps = self.steps.iter().filter_map(|step| match step {
            Step::Param(name) | Step::Rest(name) => Some(name),
            Step::Literal(_) | Step::End | Step::Regex | Step::PrefixEnd => None,
        });
        steps.chain(self.regex.iter().flat_map(|pattern| &pattern.groups))
    }

    fn checked(self) -> Result<Self, Wrong> {
        let names: Vec<&Arc<str>> = self.names().collect();
        for (index, name) in names.iter().enumerate() {
            if BUILT_IN_NAMES.contains(&&***name) {
                return Err((format!("`{name}` is a built-in template value"), "give the parameter another name".into()));
            }
            if names.iter().take(index).any(|other| other == name) {
                return Err((format!("there are two parameters called `{name}`"), "give one of them another name".into()));
            }
        }
        Ok(self)
    }

    /// Whether a canonical path fits, step by step: for explanations, where speed does not count.
    pub(super) fn fits(&self, path: &str) -> bool {
        if let Some(pattern) = &self.regex {
            return pattern.fits(path);
        }
        let mut rest = path.strip_prefix('/');
        for step in &self.steps {
            match step {
                Step::End => return rest.is_none(),
                Step::PrefixEnd => return true,
                Step::Rest(_) => return rest.is_some(),
                Step::Regex => return false,
                Step::Literal(_) | Step::Param(_) => {}
            }
            let Some(text) = rest else { return false };
            let (segment, after) = split_segment(text);
            let fits = match step {
                Step::Literal(literal) => **literal == *segment || **literal == *without_parameter(segment),
                _ => !segment.is_empty(),
            };
            if !fits {
                return false;
            }
            rest = after;
        }
        false
    }

    /// Places of the parameters in a path that fits.
    pub(super) fn params(&self, path: &str) -> Params {
        let mut params = Params::default();
        if let Some(pattern) = &self.regex {
            pattern.captures(path, &mut params);
            return params;
        }
        let mut start = 1;
        for step in &self.steps {
            let end = path.get(start..).and_then(|rest| rest.find('/')).map_or(path.len(), |length| start + length);
            match step {
                Step::Param(name) => push(&mut params, name, start, end),
                Step::Rest(name) => push(&mut params, name, start, path.len()),
                Step::Literal(_) | Step::End | Step::Regex | Step::PrefixEnd => {}
            }
            start = end + 1;
        }
        params
    }
}

fn push(params: &mut Params, name: &Arc<str>, start: usize, end: usize) {
    if let (Ok(start), Ok(end)) = (u32::try_from(start), u32::try_from(end)) {
        params.push(Arc::clone(name), start..end);
    }
}

impl Pattern {
    /// Whether it matches the whole path: as it is, or with everything from each `;` on cut from its segment, as literal segments do it;
    /// otherwise `/admin;x` would slip past the pattern that protects `/admin`.
    pub(super) fn fits(&self, path: &str) -> bool {
        self.regex.is_match(path) || (path.contains(';') && self.regex.is_match(&cut(path).0))
    }

    fn captures(&self, path: &str, params: &mut Params) {
        if self.groups.is_empty() {
            return;
        }
        let short;
        let (captures, places) = if let Some(captures) = self.regex.captures(path) {
            (captures, None)
        } else {
            short = cut(path);
            let Some(captures) = self.regex.captures(&short.0) else { return };
            (captures, Some(&short.1))
        };
        let original = |place: usize| places.map_or(place, |places| places.get(place).copied().unwrap_or(path.len()));
        for name in &self.groups {
            if let Some(group) = captures.name(name) {
                push(params, name, original(group.start()), original(group.end()));
            }
        }
    }
}

/// The path without the `;…` of its segments, and for each of its bytes the place in `path`.
fn cut(path: &str) -> (String, Vec<usize>) {
    let (mut text, mut places, mut skipping) = (String::with_capacity(path.len()), Vec::with_capacity(path.len()), false);
    for (place, character) in path.char_indices() {
        skipping = character != '/' && (skipping || character == ';');
        if !skipping {
            text.push(character);
            places.resize(text.len(), place);
        }
    }
    (text, places)
}

/// The first segment, and what follows the slash after it.
pub(super) fn split_segment(rest: &str) -> (&str, Option<&str>) {
    match rest.split_once('/') {
        Some((segment, after)) => (segment, Some(after)),
        None => (rest, None),
    }
}

/// The segment up to its `;`.
pub(super) fn without_parameter(segment: &str) -> &str {
    segment.split_once(';').map_or(segment, |(name, _)| name)
}

/// The literal text every match of a pattern starts with, cut back to before its last `/`: `/api/users/[0-9]+` gives `/api/users`.
fn leading_literal(pattern: &str) -> &str {
    if has_alternatives(pattern) {
        return "";
    }
    let metacharacter = |c: char| matches!(c, '\\' | '.' | '+' | '*' | '?' | '(' | ')' | '|' | '[' | ']' | '{' | '}' | '^' | '$');
    let mut end = pattern.find(metacharacter).unwrap_or(pattern.len());
    if pattern.get(end..).is_some_and(|rest| rest.starts_with(['?', '*', '{', '+'])) {
        // It says how often the character before it comes: that one is no literal.
        end = pattern.get(..end).and_then(|text| text.char_indices().next_back()).map_or(0, |(index, _)| index);
    }
    let literal = pattern.get(..end).unwrap_or_default();
    literal.rfind('/').and_then(|slash| literal.get(..slash)).unwrap_or_default()
}

/// Whether there is a `|` outside of all groups and classes.
fn has_alternatives(pattern: &str) -> bool {
    outside(pattern, '|')
}

/// Whether the pattern might close the group that is put around it, so that it must be compiled alone first: `a)|(b`, or a comment that
/// hides brackets from [`outside`].
fn may_leave_group(pattern: &str) -> bool {
    pattern.contains('#') || outside(pattern, ')')
}

/// Whether `wanted` stands outside of all groups and classes.
fn outside(pattern: &str, wanted: char) -> bool {
    let (mut depth, mut class, mut escaped) = (0_usize, 0_usize, false);
    for character in pattern.chars() {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if character == wanted && class == 0 && depth == 0 => return true,
            '[' => class += 1,
            ']' => class = class.saturating_sub(1),
            '(' if class == 0 => depth += 1,
            ')' if class == 0 => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

fn segments(text: &str, with_rest: bool) -> Result<Vec<Step>, Wrong> {
    let Some(rest) = text.strip_prefix('/') else {
        return Err((format!("`{text}` does not start with `/`"), "a path starts with `/`".into()));
    };
    if text.contains(['?', '#']) {
        return Err((format!("`{text}` has a `?` or `#`"), "write conditions on the query under `query`".into()));
    }
    let count = rest.split('/').count();
    rest.split('/').enumerate().map(|(index, segment)| step(text, segment, index + 1 == count, with_rest)).collect()
}

fn step(text: &str, segment: &str, last: bool, with_rest: bool) -> Result<Step, Wrong> {
    if segment.is_empty() && !last {
        return Err((format!("`{text}` has an empty segment"), "requests never do: `//` becomes `/` before routing".into()));
    }
    if segment == "*" {
        return Err((
            format!("`{text}` has a `*`"),
            "write a `prefix`, `{name}` for one segment, or `{*rest}` for all that are left".into(),
        ));
    }
    let Some(inner) = segment.strip_prefix('{').and_then(|inner| inner.strip_suffix('}')) else {
        if segment.contains(['{', '}']) {
            return Err((format!("`{segment}` is not a whole parameter"), "a parameter is a whole segment: `/{name}/`".into()));
        }
        return canonical_segment(segment)
            .map(Step::Literal)
            .map_err(|cause| (format!("no request has a segment `{segment}`: {cause}"), "write it as requests have it".into()));
    };
    let name = inner.strip_prefix('*').unwrap_or(inner);
    let plain = name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
    if !plain {
        return Err((
            format!("`{segment}` is not a parameter"),
            "a name has letters, digits, `_` and `-`, and starts with a letter".into(),
        ));
    }
    if name.len() == inner.len() {
        return Ok(Step::Param(name.into()));
    }
    match (last, with_rest) {
        (true, true) => Ok(Step::Rest(name.into())),
        (false, _) => Err((format!("`{segment}` is not the last segment"), "it takes all that is left, so nothing can follow".into())),
        (true, false) => {
            Err((format!("`{segment}` stands in a prefix"), "a prefix takes all that is left anyway; use `path` to name it".into()))
        }
    }
}

fn canonical_segment(segment: &str) -> Result<Box<str>, &'static str> {
    let path = format!("/{segment}");
    let canonical = canonical_path(&path, EncodedSlash::Keep)?.unwrap_or(path);
    match canonical.strip_prefix('/') {
        Some("") if !segment.is_empty() => Err("It is a dot segment."),
        Some(canonical) => Ok(canonical.into()),
        None => Err("It has no place in a path."),
    }
}
