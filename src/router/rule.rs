//! One route's conditions, compiled.

use std::cmp::{Ordering, Reverse};
use std::collections::BTreeMap;

use http::{HeaderMap, HeaderName};

use super::Query;
use super::methods::Methods;
use super::path::{Path, Wrong};
use crate::config::{At, Problems, resolve, route};
use crate::http::target::{canonical_host, query_value};
use crate::http::{Params, Scheme};

/// Which hosts a route takes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Host {
    /// This one.
    Exact(String),
    /// All that end in `.` and this.
    Suffix(String),
    /// All.
    Any,
}

impl Host {
    /// Higher wins.
    pub(super) fn rank(&self) -> usize {
        match self {
            Self::Exact(_) => usize::MAX,
            Self::Suffix(suffix) => suffix.split('.').count(),
            Self::Any => 0,
        }
    }

    pub(super) fn fits(&self, host: &str) -> bool {
        match self {
            Self::Exact(name) => name == host,
            Self::Suffix(suffix) => host.strip_suffix(suffix.as_str()).is_some_and(|front| front.len() > 1 && front.ends_with('.')),
            Self::Any => true,
        }
    }
}

/// A condition on one header field or query parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Condition<N> {
    pub(super) name: N,
    /// The exact value; `None` is presence.
    pub(super) value: Option<String>,
}

/// How a condition is missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Miss {
    Absent,
    Differs,
}

/// A route's conditions.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    pub(super) priority: i32,
    pub(super) scheme: Option<Scheme>,
    pub(super) host: Host,
    pub(super) path: Path,
    pub(super) methods: Methods,
    pub(super) headers: Vec<Condition<HeaderName>>,
    pub(super) query: Vec<Condition<String>>,
    /// Whether `cors` is on: OPTIONS is then in `Allow`.
    pub(super) cors: bool,
    has_params: bool,
}

impl Rule {
    /// `None` if something is wrong, which is then in `problems`.
    pub(super) fn compile(route: &resolve::Route, problems: &mut Problems) -> Option<Self> {
        let matcher = &route.matcher;
        let at = |key: &str| {
            let at = route.at.key("match");
            if matcher.short.is_some() { at } else { at.key(key) }
        };
        let host = matcher.host.as_ref().map_or(Some(Host::Any), |text| compile_host(text, &at("host"), problems));
        let methods = Methods::compile(matcher.methods.as_deref(), &at("methods"), problems);
        let written = [("path", &matcher.path), ("prefix", &matcher.prefix), ("regex", &matcher.regex)];
        let mut kinds = written.into_iter().filter_map(|(kind, text)| Some((kind, text.as_deref()?)));
        let path = match (kinds.next(), kinds.next()) {
            (Some((kind, text)), None) => {
                let path = match kind {
                    "path" => Path::exact(text),
                    "prefix" => Path::prefix(text),
                    _ => Path::regex(text),
                };
                path.map_err(|wrong| report(wrong, at(kind), problems)).ok()
            }
            (first, _) => {
                let place = route.at.key("match");
                // The flattening of groups may have said so already.
                let places = [at("path"), at("prefix"), at("regex"), place.clone()];
                if !problems.list().iter().any(|problem| places.contains(&problem.at)) {
                    let what = if first.is_some() { "more than one of" } else { "none of" };
                    problems.error(place, format!("the match has {what} `path`, `prefix` and `regex`")).help("write exactly one of them");
                }
                None
            }
        };
        let headers = compile_conditions(&matcher.headers, &at("headers"), problems, |name| {
            HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("`{name}` is not a header name"))
        });
        let query = compile_conditions(&matcher.query, &at("query"), problems, |name| Ok(name.to_owned()));
        let (path, host, methods, headers, query) = (path?, host?, methods?, headers?, query?);
        let has_params = path.regex.is_some() || path.steps.iter().any(|step| matches!(step.rank(), 1 | 3));
        let scheme = matcher.scheme.map(|written| match written {
            route::Scheme::Http => Scheme::Http,
            route::Scheme::Https => Scheme::Https,
        });
        Some(Self { priority: route.priority, scheme, host, path, methods, headers, query, cors: route.cors.is_some(), has_params })
    }

    /// Whether the scheme and all header and query conditions hold.
    pub(super) fn fits_conditions(&self, query: &Query<'_>) -> bool {
        self.scheme.is_none_or(|scheme| scheme == query.scheme)
            && self.headers.iter().all(|condition| header_miss(condition, query.headers).is_none())
            && self.query.iter().all(|condition| query_miss(condition, query.query).is_none())
    }

    /// Whether the pattern fits, if there is one.
    pub(super) fn fits_regex(&self, path: &str) -> bool {
        self.path.regex.as_ref().is_none_or(|pattern| pattern.fits(path))
    }

    /// Values of the parameters in a path that fits.
    pub(super) fn params(&self, path: &str) -> Params {
        if self.has_params { self.path.params(path) } else { Params::default() }
    }

    /// Numbers of conditions and of exact ones: on the scheme, then on headers, then on the query.
    pub(super) fn condition_counts(&self) -> [(usize, usize); 3] {
        let scheme = usize::from(self.scheme.is_some());
        let headers = self.headers.iter().filter(|condition| condition.value.is_some()).count();
        let query = self.query.iter().filter(|condition| condition.value.is_some()).count();
        [(scheme, scheme), (self.headers.len(), headers), (self.query.len(), query)]
    }

    /// Precedence as far as it does not depend on the request; what comes first wins.
    pub(super) fn static_order(&self, other: &Self) -> Ordering {
        let any = |rule: &Self| matches!(rule.methods, Methods::Any);
        Reverse(self.priority)
            .cmp(&Reverse(other.priority))
            .then_with(|| other.host.rank().cmp(&self.host.rank()))
            .then_with(|| self.path_order(other))
            .then_with(|| any(self).cmp(&any(other)))
            .then_with(|| other.condition_counts().cmp(&self.condition_counts()))
    }

    /// Precedence by path.
    pub(super) fn path_order(&self, other: &Self) -> Ordering {
        self.path.steps.iter().map(super::path::Step::rank).cmp(other.path.steps.iter().map(super::path::Step::rank))
    }
}

/// Why a header condition does not hold. Several lines count as one joined by `, `.
pub(super) fn header_miss(condition: &Condition<HeaderName>, headers: &HeaderMap) -> Option<Miss> {
    let mut lines = headers.get_all(&condition.name).iter();
    let Some(first) = lines.next() else { return Some(Miss::Absent) };
    let expected = condition.value.as_deref()?.as_bytes();
    let mut rest = expected.strip_prefix(first.as_bytes());
    for line in lines {
        rest = rest.and_then(|rest| rest.strip_prefix(b", ")).and_then(|rest| rest.strip_prefix(line.as_bytes()));
    }
    (rest != Some(b"")).then_some(Miss::Differs)
}

/// Why a query condition does not hold.
pub(super) fn query_miss(condition: &Condition<String>, query: Option<&str>) -> Option<Miss> {
    let Some(found) = query_value(query.unwrap_or_default(), &condition.name) else { return Some(Miss::Absent) };
    condition.value.as_deref().is_some_and(|expected| found != expected).then_some(Miss::Differs)
}

fn report((message, help): Wrong, at: At, problems: &mut Problems) {
    problems.error(at, message).help(help);
}

fn compile_host(text: &str, at: &At, problems: &mut Problems) -> Option<Host> {
    let host = match text.strip_prefix("*.") {
        Some(suffix) => canonical_host(suffix).filter(|suffix| !suffix.starts_with('[')).map(Host::Suffix),
        None => canonical_host(text).map(Host::Exact),
    };
    if host.is_none() {
        let help = "write api.example.com or *.example.com, without a port; leave it out for any host";
        problems.error(at.clone(), format!("`{text}` is not a host")).help(help);
    }
    host
}

/// `"*"` is presence, everything else an exact value.
fn compile_conditions<N: PartialEq>(
    written: &BTreeMap<String, String>,
    at: &At,
    problems: &mut Problems,
    read: impl Fn(&str) -> Result<N, String>,
) -> Option<Vec<Condition<N>>> {
    let mut conditions: Vec<Condition<N>> = Vec::new();
    for (text, value) in written {
        let name = read(text).and_then(|name| {
            if conditions.iter().any(|known| known.name == name) { Err(format!("`{text}` stands here twice")) } else { Ok(name) }
        });
        match name {
            Ok(name) => conditions.push(Condition { name, value: (value != "*").then(|| value.clone()) }),
            Err(message) => {
                problems.error(at.key(text).its_key(), message);
            }
        }
    }
    (conditions.len() == written.len()).then_some(conditions)
}
