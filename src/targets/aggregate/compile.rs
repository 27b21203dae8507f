//! From what is written to an [`Aggregate`]: every check that can be made at load is made here.

use http::{HeaderName, Method};

use super::pick::Plan;
use super::shape::Shape;
use super::{Aggregate, Dependency, Part};
use crate::config::problem::Severity;
use crate::config::{At, Problems, route};
use crate::http::headers::is_hop_by_hop;
use crate::http::template::{Allowed, Param, UrlTemplate};
use crate::units::Setting;

/// Compiles what is written at `at` (the route's `aggregate`).
pub(super) fn aggregate(written: &route::Aggregate, at: &At, params: &[Param], problems: &mut Problems) -> Option<Aggregate> {
    let before = errors(problems);
    if written.parts.is_empty() {
        problems.error(at.key("parts"), "an aggregate needs parts").help("write at least one `{ name: …, upstream: …, path: … }`");
    }
    if written.concurrency == 0 {
        problems.error(at.key("concurrency"), "with `concurrency: 0` no part would ever be called").help("write at least 1");
    }
    if written.max_part_size.0 == 0 {
        problems.error(at.key("max_part_size"), "no part fits in 0 bytes").help("write a size like 4MiB");
    }
    let forward_headers = forward_headers(&written.forward_headers, &at.key("forward_headers"), problems);
    let names: Vec<String> = written.parts.iter().map(|part| part.name.clone()).collect();
    let mut upstreams: Vec<String> = Vec::new();
    let mut parts = Vec::with_capacity(written.parts.len());
    for (index, part) in written.parts.iter().enumerate() {
        let at = at.key("parts").index(index);
        name(&names, index, &at.key("name"), problems);
        let upstream = upstreams.iter().position(|known| *known == part.upstream).unwrap_or_else(|| {
            upstreams.push(part.upstream.clone());
            upstreams.len() - 1
        });
        parts.extend(self::part(part, upstream, &names, &at, params, problems));
    }
    if errors(problems) == before {
        dependencies(&mut parts);
        cycles(&parts, &at.key("parts"), problems);
    }
    (errors(problems) == before).then(|| Aggregate {
        parts,
        upstreams,
        forward_headers,
        on_conflict: written.on_conflict,
        concurrency: written.concurrency,
        max_part_size: written.max_part_size.0,
    })
}

/// How many of the problems refuse the configuration.
fn errors(problems: &Problems) -> usize {
    problems.list().iter().filter(|problem| problem.severity == Severity::Error).count()
}

/// Checks the name of part `index`: a plain word, and the first of its kind.
fn name(names: &[String], index: usize, at: &At, problems: &mut Problems) {
    let Some(name) = names.get(index) else { return };
    let plain = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
    if !plain {
        problems.error(at.clone(), format!("`{name}` is not a plain word")).help("use letters, digits, `_` and `-`");
    }
    if names.iter().take(index).any(|other| other == name) {
        problems.error(at.clone(), format!("two parts are named `{name}`")).help("the name is the key of the part's value");
    }
}

fn part(written: &route::Part, upstream: usize, names: &[String], at: &At, params: &[Param], problems: &mut Problems) -> Option<Part> {
    let method = method(&written.method, &at.key("method"), problems);
    let template = path(&written.path, names, &at.key("path"), params, problems);
    let select = written.select.as_deref().map(|text| select(text, &at.key("select"), problems));
    if written.allow.is_some() && written.deny.is_some() {
        problems.error(at.key("deny").its_key(), "`allow` and `deny` exclude each other").help("`allow` alone drops every other key");
    }
    Some(Part {
        name: written.name.clone(),
        upstream,
        method: method?,
        template: template?,
        dependencies: Vec::new(),
        timeout: written.timeout.as_ref().and_then(Setting::on).map(|timeout| timeout.get()),
        required: written.required,
        plan: Plan { paths: vec![select.unwrap_or_default()], shape: Shape::new(written), group: written.group },
    })
}

/// Notes for each part which values it needs of others, and for these that they are needed.
fn dependencies(parts: &mut [Part]) {
    let names: Vec<String> = parts.iter().map(|part| part.name.clone()).collect();
    for index in 0..parts.len() {
        // In the order of the template's references; that the parts exist was checked by `UrlTemplate::parse`.
        let references = parts.get(index).map(|part| part.template.part_refs().to_vec()).unwrap_or_default();
        for reference in references {
            let needed = names.iter().position(|name| *name == reference.part);
            let Some((needed, plan)) = needed.and_then(|needed| Some((needed, &mut parts.get_mut(needed)?.plan))) else { continue };
            let value = plan.paths.iter().skip(1).position(|path| *path == reference.path).unwrap_or_else(|| {
                plan.paths.push(reference.path);
                plan.paths.len() - 2
            });
            if let Some(part) = parts.get_mut(index) {
                part.dependencies.push(Dependency { part: needed, value });
            }
        }
    }
}

fn method(text: &str, at: &At, problems: &mut Problems) -> Option<Method> {
    match Method::from_bytes(text.as_bytes()) {
        Ok(Method::CONNECT | Method::TRACE) => {
            problems.error(at.clone(), format!("a part cannot be called with {text}"));
            None
        }
        Ok(method) => {
            if text.bytes().any(|b| b.is_ascii_lowercase()) {
                problems.warn(at.clone(), format!("methods are case-sensitive: `{text}` is not `{}`", text.to_ascii_uppercase()));
            }
            Some(method)
        }
        Err(_) => {
            problems.error(at.clone(), format!("`{text}` is not a method"));
            None
        }
    }
}

fn path(text: &str, names: &[String], at: &At, params: &[Param], problems: &mut Problems) -> Option<UrlTemplate> {
    match UrlTemplate::parse(text, Allowed { params, parts: Some(names) }) {
        Ok(template) if template.fragment().is_some() => {
            problems.error(at.clone(), format!("`{text}` has a `#`, which is never sent")).help("write `%23` for the character itself");
            None
        }
        Ok(template) => Some(template),
        Err(error) => {
            problems.error(at.clone(), error.message).help = error.help;
            None
        }
    }
}

fn select(text: &str, at: &At, problems: &mut Problems) -> Vec<String> {
    let path: Vec<String> = text.split('.').map(str::to_owned).collect();
    if path.iter().any(String::is_empty) {
        problems
            .error(at.clone(), format!("`{text}` is not a path to a value"))
            .help("write keys and array indices with dots between, like `data.items.0`");
    }
    path
}

/// Client fields the parts get. Those that describe the client's own message would lie about a part's.
fn forward_headers(written: &[String], at: &At, problems: &mut Problems) -> Vec<HeaderName> {
    let mut names = Vec::new();
    for (index, text) in written.iter().enumerate() {
        let at = at.index(index);
        let Ok(name) = HeaderName::from_bytes(text.as_bytes()) else {
            problems.error(at, format!("`{text}` is not a header name"));
            continue;
        };
        let word = name.as_str();
        if matches!(word, "host" | "range" | "trailer") || word.starts_with("content-") || word.starts_with("if-") || is_hop_by_hop(word) {
            problems
                .error(at, format!("the header `{word}` cannot be forwarded to parts"))
                .help("it speaks about the client's own message");
        } else if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// Refuses parts that wait for each other in a circle.
fn cycles(parts: &[Part], at: &At, problems: &mut Problems) {
    let mut settled = vec![false; parts.len()];
    // Whatever can run is taken away until nothing changes; what is left waits for itself.
    loop {
        let ready = |part: &Part| part.dependencies.iter().all(|d| settled.get(d.part).copied().unwrap_or(true));
        let Some(index) = parts.iter().enumerate().position(|(i, part)| !settled[i] && ready(part)) else { break };
        settled[index] = true;
    }
    let stuck: Vec<usize> = (0..parts.len()).filter(|i| !settled[*i]).collect();
    if let Some(first) = stuck.iter().find(|index| reaches_itself(parts, **index)) {
        let circle: Vec<&str> = stuck.iter().filter(|i| reaches_itself(parts, **i)).map(|i| parts[*i].name.as_str()).collect();
        let message = match circle.as_slice() {
            [one] => format!("the part `{one}` waits for itself"),
            several => format!("the parts {} wait for each other", several.join(", ")),
        };
        problems.error(at.index(*first).key("path"), message).help("one of them must do without `{parts.…}`");
    }
}

/// Whether part `start` needs its own answer, directly or through others.
fn reaches_itself(parts: &[Part], start: usize) -> bool {
    let mut seen = vec![false; parts.len()];
    let mut todo = vec![start];
    while let Some(index) = todo.pop() {
        for next in parts.get(index).map_or(&[][..], |part| &part.dependencies).iter().map(|needed| needed.part) {
            if next == start {
                return true;
            }
            if let Some(flag) = seen.get_mut(next).filter(|flag| !**flag) {
                *flag = true;
                todo.push(next);
            }
        }
    }
    false
}
