//! Ties: two routes that one request can match, and no criterion separates them.

use std::collections::HashMap;

use http::HeaderName;

use super::path::{Step, without_parameter};
use super::rule::{Condition, Host, Rule};
use crate::config::{Problems, resolve};

/// Priority, host and [`shape`]: only routes that agree in these can tie.
type Meeting<'r> = (i32, &'r Host, String);

/// Reports every tie at both routes, so that both lines are shown.
pub(super) fn report(routes: &[resolve::Route], rules: &[Option<Rule>], problems: &mut Problems) {
    let mut groups: HashMap<Meeting<'_>, Vec<(usize, &Rule)>> = HashMap::new();
    for (index, rule) in rules.iter().enumerate() {
        let Some(rule) = rule else { continue };
        let earlier = groups.entry((rule.priority, &rule.host, shape(rule))).or_default();
        let tied = earlier.iter().find(|(_, other)| is_tie(rule, other));
        if let Some((first, second)) = tied.and_then(|(first, _)| Some((routes.get(*first)?, routes.get(index)?))) {
            let help = "change one of them, or give one a higher `priority`";
            problems
                .error(
                    second.at.clone(),
                    format!(
                        "route `{}` can match the same requests as route `{}`, and nothing decides between them",
                        second.name, first.name
                    ),
                )
                .help(help);
            problems
                .error(
                    first.at.clone(),
                    format!("route `{}` can match the same requests as route `{}`, which stands later", first.name, second.name),
                )
                .help(help);
        }
        earlier.push((index, rule));
    }
}

/// The steps without names of parameters and without `;…`: routes of different shape are separated by their paths, or cannot meet.
fn shape(rule: &Rule) -> String {
    let mut shape = String::new();
    for step in &rule.path.steps {
        match step {
            Step::Literal(text) => {
                shape.push('/');
                shape.push_str(without_parameter(text));
            }
            Step::Param(_) => shape.push_str("/{}"),
            Step::End => shape.push('$'),
            Step::Regex => shape.push_str("{~}"),
            Step::Rest(_) => shape.push_str("{*}"),
            Step::PrefixEnd => shape.push_str("{+}"),
        }
    }
    shape
}

/// For two rules of one priority, host and shape.
fn is_tie(a: &Rule, b: &Rule) -> bool {
    literals_meet(a, b)
        && a.methods.tie_with(&b.methods)
        && a.condition_counts() == b.condition_counts()
        && a.scheme == b.scheme
        && !exclude::<HeaderName>(&a.headers, &b.headers)
        && !exclude::<String>(&a.query, &b.query)
        && match (&a.path.regex, &b.path.regex) {
            // Whether different patterns overlap cannot be decided: the written order does it.
            (Some(a), Some(b)) => a.source == b.source,
            _ => true,
        }
}

/// Whether one path can fit all literals of both: `a;x` meets `a` and `a;x`, but not `a;y`.
fn literals_meet(a: &Rule, b: &Rule) -> bool {
    a.path.steps.iter().zip(&b.path.steps).all(|steps| match steps {
        (Step::Literal(a), Step::Literal(b)) => a == b || !(a.contains(';') && b.contains(';')),
        _ => true,
    })
}

/// Whether some name must have two different values.
fn exclude<N: PartialEq>(a: &[Condition<N>], b: &[Condition<N>]) -> bool {
    a.iter().any(|a| b.iter().any(|b| a.name == b.name && matches!((&a.value, &b.value), (Some(a), Some(b)) if a != b)))
}
