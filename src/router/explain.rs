//! Why a route won or lost, for `tollgate explain`.

use std::cmp::Ordering;
use std::fmt;

use super::Query;
use super::rule::{Miss, Rule, header_miss, query_miss};

/// What became of one route in the choice for one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is the route.
    Won,
    /// It fits, but another one is preferred; what decided.
    LessSpecific(&'static str),
    /// The host differs.
    Host,
    /// The path differs.
    Path,
    /// It does not take the method.
    Method,
    /// The scheme differs.
    Scheme,
    /// A header field is missing.
    HeaderMissing(String),
    /// A header field has another value.
    HeaderDiffers(String),
    /// A query parameter is missing.
    QueryMissing(String),
    /// A query parameter has another value.
    QueryDiffers(String),
    /// Its conditions could not be read.
    Broken,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Won => f.write_str("wins"),
            Self::LessSpecific(criterion) => write!(f, "fits, but the winner comes first by {criterion}"),
            Self::Host => f.write_str("the host differs"),
            Self::Path => f.write_str("the path differs"),
            Self::Method => f.write_str("does not take the method"),
            Self::Scheme => f.write_str("the scheme differs"),
            Self::HeaderMissing(name) => write!(f, "header `{name}` is missing"),
            Self::HeaderDiffers(name) => write!(f, "header `{name}` has another value"),
            Self::QueryMissing(name) => write!(f, "query parameter `{name}` is missing"),
            Self::QueryDiffers(name) => write!(f, "query parameter `{name}` has another value"),
            Self::Broken => f.write_str("its match has errors"),
        }
    }
}

/// The verdict on one rule, given the winner's number and rule.
pub(super) fn verdict(index: usize, rule: Option<&Rule>, winner: Option<(usize, &Rule)>, query: &Query<'_>) -> Verdict {
    let Some(rule) = rule else { return Verdict::Broken };
    if !rule.host.fits(query.host) {
        return Verdict::Host;
    }
    if !rule.path.fits(query.path) {
        return Verdict::Path;
    }
    if rule.methods.class(query.method).is_none() {
        return Verdict::Method;
    }
    if rule.scheme.is_some_and(|scheme| scheme != query.scheme) {
        return Verdict::Scheme;
    }
    let headers = rule.headers.iter().find_map(|condition| {
        let name = condition.name.to_string();
        header_miss(condition, query.headers).map(|miss| match miss {
            Miss::Absent => Verdict::HeaderMissing(name),
            Miss::Differs => Verdict::HeaderDiffers(name),
        })
    });
    let missed = headers.or_else(|| {
        rule.query.iter().find_map(|condition| {
            let name = condition.name.clone();
            query_miss(condition, query.query).map(|miss| match miss {
                Miss::Absent => Verdict::QueryMissing(name),
                Miss::Differs => Verdict::QueryDiffers(name),
            })
        })
    });
    match (missed, winner) {
        (Some(missed), _) => missed,
        (None, Some((won, winner))) if won != index => Verdict::LessSpecific(criterion(winner, rule, query)),
        (None, _) => Verdict::Won,
    }
}

/// The first criterion in which two rules that both fit differ.
fn criterion(winner: &Rule, other: &Rule, query: &Query<'_>) -> &'static str {
    let ([winner_scheme, winner_headers, winner_query], [scheme, headers, query_conditions]) =
        (winner.condition_counts(), other.condition_counts());
    if winner.priority != other.priority {
        "priority"
    } else if winner.host.rank() != other.host.rank() {
        "host"
    } else if winner.path_order(other) != Ordering::Equal {
        "path"
    } else if winner.methods.class(query.method) != other.methods.class(query.method) {
        "method"
    } else if winner_scheme != scheme {
        "scheme"
    } else if winner_headers != headers {
        "header conditions"
    } else if winner_query != query_conditions {
        "query conditions"
    } else {
        "written order"
    }
}
