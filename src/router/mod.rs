//! Which route a request belongs to.
//!
//! Routes are compiled once: by priority, then by host, then into a tree of path segments whose branches are walked in the order of
//! precedence. The first route that fits is the winner, so nothing is compared or allocated per request, and the number of routes hardly
//! matters.

mod explain;
mod methods;
mod path;
mod rule;
#[cfg(test)]
mod tests;
mod ties;
mod tree;

use http::{HeaderMap, HeaderValue, Method};

pub use explain::Verdict;
pub use path::BUILT_IN_NAMES;

use crate::config::{Problems, resolve};
use crate::http::{Params, Scheme};
use methods::Allow;
use rule::{Host, Rule};
use tree::{Map, Node};

/// What of a request decides its route.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// `http` or `https`, as the client sees it.
    pub scheme: Scheme,
    /// [`crate::http::Host::name`]; empty if the client named none.
    pub host: &'a str,
    /// The canonical path.
    pub path: &'a str,
    /// The query as received, without `?`.
    pub query: Option<&'a str>,
    /// The method; for a CORS preflight the one it asks for.
    pub method: &'a Method,
    /// The header fields.
    pub headers: &'a HeaderMap,
}

/// Where a request goes.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// To this route.
    Found {
        /// Index of the route in the list the router was compiled from.
        route: usize,
        /// Values of its path parameters.
        params: Params,
    },
    /// Some route fits in all but the method: 405.
    MethodNotAllowed {
        /// `Allow` of the answer.
        allow: HeaderValue,
    },
    /// No route: 404.
    NotFound,
}

/// All routes, ready for look-ups.
#[derive(Debug, Default)]
pub struct Router {
    /// By index of the route; `None` where compiling found a problem.
    rules: Vec<Option<Rule>>,
    /// Highest priority first.
    layers: Vec<Layer>,
    precedence: Vec<usize>,
}

/// The routes of one priority.
#[derive(Debug, Default)]
struct Layer {
    exact: Map<Node>,
    /// By what follows `*.`.
    suffix: Map<Node>,
    any: Option<Node>,
}

impl Router {
    /// Compiles all routes; route numbers are positions in `routes`. Bad patterns and ties are problems at their place.
    pub fn compile(routes: &[resolve::Route], problems: &mut Problems) -> Self {
        let rules: Vec<Option<Rule>> = routes.iter().map(|route| Rule::compile(route, problems)).collect();
        ties::report(routes, &rules, problems);
        let mut precedence: Vec<usize> = (0..rules.len()).collect();
        precedence.sort_by(|&a, &b| match (rule_at(&rules, a), rule_at(&rules, b)) {
            (Some(first), Some(second)) => first.static_order(second).then(a.cmp(&b)),
            (first, second) => second.is_some().cmp(&first.is_some()).then(a.cmp(&b)),
        });
        let layers = layers(&rules, &precedence);
        Self { rules, layers, precedence }
    }

    /// Number of routes.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether there is no route.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The route of a request. Allocates only for path parameters and for 405.
    pub fn find(&self, query: &Query<'_>) -> Outcome {
        if let Some(route) = self.winner(query) {
            let params = self.rule(route).map(|rule| rule.params(query.path)).unwrap_or_default();
            return Outcome::Found { route, params };
        }
        let mut allow = Allow::default();
        self.visit::<()>(query, &mut |candidates| {
            for rule in candidates.iter().filter_map(|&index| self.rule(index as usize)) {
                if rule.fits_conditions(query) && rule.fits_regex(query.path) {
                    allow.add(rule);
                }
            }
            None
        });
        allow.into_value().map_or(Outcome::NotFound, |allow| Outcome::MethodNotAllowed { allow })
    }

    /// Every route with its verdict, in order of precedence.
    pub fn explain(&self, query: &Query<'_>) -> Vec<(usize, Verdict)> {
        let winner = self.winner(query).and_then(|index| Some((index, self.rule(index)?)));
        let verdict = |&index: &usize| (index, explain::verdict(index, self.rule(index), winner, query));
        self.precedence.iter().map(verdict).collect()
    }

    /// All routes, those that beat others first.
    pub fn precedence(&self) -> Vec<usize> {
        self.precedence.clone()
    }

    fn rule(&self, index: usize) -> Option<&Rule> {
        rule_at(&self.rules, index)
    }

    fn winner(&self, query: &Query<'_>) -> Option<usize> {
        self.visit(query, &mut |candidates| self.best(candidates, query))
    }

    /// The best of routes that differ only in method and conditions; they are sorted by their conditions.
    fn best(&self, candidates: &[u32], query: &Query<'_>) -> Option<usize> {
        let mut best = None;
        for &index in candidates {
            let Some(rule) = self.rule(index as usize) else { continue };
            let Some(class) = rule.methods.class(query.method) else { continue };
            if best.is_some_and(|(known, _)| known <= class) || !rule.fits_conditions(query) || !rule.fits_regex(query.path) {
                continue;
            }
            if class == methods::Class::Named {
                return Some(index as usize);
            }
            best = Some((class, index));
        }
        best.map(|(_, index)| index as usize)
    }

    /// Hands over all candidates by host and path in the order of precedence, until there is a result.
    fn visit<'r, R>(&'r self, query: &Query<'_>, visit: &mut impl FnMut(&'r [u32]) -> Option<R>) -> Option<R> {
        let rest = query.path.strip_prefix('/')?;
        for layer in &self.layers {
            if !layer.exact.is_empty()
                && let Some(result) = layer.exact.get(query.host).and_then(|node| node.walk(Some(rest), visit))
            {
                return Some(result);
            }
            if !layer.suffix.is_empty() {
                let mut host = query.host;
                while let Some((_, suffix)) = host.split_once('.') {
                    if let Some(result) = layer.suffix.get(suffix).and_then(|node| node.walk(Some(rest), visit)) {
                        return Some(result);
                    }
                    host = suffix;
                }
            }
            if let Some(result) = layer.any.as_ref().and_then(|node| node.walk(Some(rest), visit)) {
                return Some(result);
            }
        }
        None
    }
}

fn rule_at(rules: &[Option<Rule>], index: usize) -> Option<&Rule> {
    rules.get(index).and_then(Option::as_ref)
}

/// Groups the rules, which come in order of precedence, by priority and host, and makes a tree of each group.
fn layers(rules: &[Option<Rule>], precedence: &[usize]) -> Vec<Layer> {
    let sorted: Vec<(u32, &Rule)> =
        precedence.iter().filter_map(|&index| Some((u32::try_from(index).ok()?, rule_at(rules, index)?))).collect();
    sorted
        .chunk_by(|a, b| a.1.priority == b.1.priority)
        .map(|same| {
            let mut groups: std::collections::HashMap<&Host, Vec<(u32, &Rule)>> = std::collections::HashMap::new();
            for &(index, rule) in same {
                groups.entry(&rule.host).or_default().push((index, rule));
            }
            let mut layer = Layer::default();
            for (host, rules) in groups {
                let node = Node::build(&rules, 0);
                match host {
                    Host::Exact(name) => {
                        layer.exact.insert(name.as_str().into(), node);
                    }
                    Host::Suffix(name) => {
                        layer.suffix.insert(name.as_str().into(), node);
                    }
                    Host::Any => layer.any = Some(node),
                }
            }
            layer
        })
        .collect()
}
