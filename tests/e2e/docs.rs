//! The documentation cannot rot: every configuration that README.md, docs/ and examples/ show loads.
//!
//! A ```` ```yaml ```` block is a whole file. A ```` ```yaml fragment ```` block is the part that matters: keys of the top level, or one
//! route, upstream or authenticator; upstreams and authenticators that it names but does not define are added here. A
//! ```` ```yaml wrong ```` block shows a mistake and must not load. Other YAML (Kubernetes, Compose) is marked ```` ```yaml other ````.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use tollgate::config::load::{Loaded, Source, load, load_with};
use tollgate::config::problem::Report;
use tollgate::config::route::Route;
use tollgate::gateway::{Shared, compile};

/// A YAML block of a Markdown file.
struct Block {
    place: String,
    info: String,
    text: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(dir: &str, extension: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(root().join(dir))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect();
    files.sort();
    files
}

fn documents() -> Vec<PathBuf> {
    let mut documents: Vec<PathBuf> = ["README.md", "CONTRIBUTING.md", "ARCHITECTURE.md"].map(|name| root().join(name)).to_vec();
    documents.extend(files("docs", "md"));
    documents.extend(files("examples", "md"));
    documents
}

/// The fenced blocks of `path` whose info string begins with `yaml`.
fn blocks(path: &Path) -> Vec<Block> {
    let text = fs::read_to_string(path).unwrap();
    let mut blocks = Vec::new();
    let mut open: Option<(Block, usize)> = None;
    for (index, line) in text.lines().enumerate() {
        let bare = line.trim_start();
        open = match open {
            Some((block, _)) if bare == "```" => {
                if block.info == "yaml" || block.info.starts_with("yaml ") {
                    blocks.push(block);
                }
                None
            }
            Some((mut block, indent)) => {
                block.text.push_str(line.get(indent..).unwrap_or_default());
                block.text.push('\n');
                Some((block, indent))
            }
            None => bare.strip_prefix("```").map(|info| {
                let place = format!("{}:{}", path.strip_prefix(root()).unwrap_or(path).display(), index + 1);
                (Block { place, info: info.trim().to_owned(), text: String::new() }, line.len() - bare.len())
            }),
        };
    }
    assert!(open.is_none(), "{}: a block is not closed", path.display());
    blocks
}

/// Where the documentation puts what only its reader has.
const ABSENT: [&str; 4] = ["certs/", "keys", "secrets/", "/var/log/tollgate/"];

/// Loads and compiles `source`, as `tollgate check` does. Files that are not there, as in a fresh clone, are no problem here.
fn problems(source: &Source) -> Vec<String> {
    checked(load(source))
}

fn checked(loaded: Loaded) -> Vec<String> {
    let Err(reports) = compile(&Shared::new(1, None), loaded, None, 1) else { return Vec::new() };
    let absent = |report: &Report| {
        let line = report.source_line.as_deref().unwrap_or_default();
        report.message.contains("No such file") && ABSENT.iter().any(|dir| line.contains(dir))
    };
    reports.iter().filter(|report| !report.warning && !absent(report)).map(ToString::to_string).collect()
}

fn text(yaml: String) -> Source {
    Source::Text { yaml, dir: root().join("examples") }
}

/// Puts a fragment where it belongs and adds what it only names.
fn whole(fragment: &str) -> String {
    let first = fragment.lines().find(|line| !line.trim().is_empty() && !line.starts_with('#')).unwrap_or_default();
    let mut yaml = if first.starts_with("- ") { format!("routes:\n{}", indented(fragment)) } else { fragment.to_owned() };
    let loaded = load(&text(yaml.clone()));
    let config = &loaded.config;
    let mut upstreams = BTreeSet::new();
    let mut authenticators = BTreeSet::new();
    config.routes.iter().for_each(|route| names(route, &mut upstreams, &mut authenticators));
    if let Some(tollgate::units::Setting::On(rule)) = &config.defaults.auth {
        authenticators.extend(rule.any.iter().cloned());
    }
    upstreams.retain(|name| !config.upstreams.contains_key(name));
    authenticators.retain(|name| !config.authenticators.contains_key(name));
    add(&mut yaml, "upstreams", &upstreams, "{ endpoints: [\"http://127.0.0.1:9081\"] }");
    add(&mut yaml, "authenticators", &authenticators, "{ api_key: { keys_file: keys.yaml } }");
    let limits = config.routes.iter().filter_map(|route| route.rate_limit.as_ref()).chain(config.defaults.rate_limit.as_ref());
    let shared = limits.filter_map(|limits| if let tollgate::units::Setting::On(limits) = limits { Some(limits) } else { None });
    if config.redis.is_empty() && shared.flatten().any(|limit| limit.store.is_some()) {
        yaml.push_str("redis: { main: { url: \"redis://127.0.0.1:6379\" } }\n");
    }
    yaml
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}

/// Defines `names` in the section `key` of `yaml`.
fn add(yaml: &mut String, key: &str, names: &BTreeSet<String>, value: &str) {
    let entries: String = names.iter().map(|name| format!("  {name}: {value}\n")).collect();
    let section = format!("{key}:\n");
    match yaml.find(&section) {
        Some(at) if at == 0 || yaml[..at].ends_with('\n') => yaml.insert_str(at + section.len(), &entries),
        Some(_) | None if entries.is_empty() => {}
        Some(_) | None => yaml.push_str(&format!("{section}{entries}")),
    }
}

fn names(route: &Route, upstreams: &mut BTreeSet<String>, authenticators: &mut BTreeSet<String>) {
    use tollgate::units::Setting;
    upstreams.extend(route.upstream.clone());
    upstreams.extend(route.split.iter().flat_map(|split| &split.to).map(|branch| branch.upstream.clone()));
    upstreams.extend(route.aggregate.iter().flat_map(|aggregate| &aggregate.parts).map(|part| part.upstream.clone()));
    if let Some(Setting::On(mirror)) = &route.mirror {
        upstreams.insert(mirror.upstream.clone());
    }
    if let Some(Setting::On(rule)) = &route.auth {
        authenticators.extend(rule.any.iter().cloned());
    }
    route.routes.iter().flatten().for_each(|child| names(child, upstreams, authenticators));
}

#[test]
fn every_configuration_in_the_documentation_loads() {
    let mut wrong = Vec::new();
    let mut seen = 0;
    for block in documents().iter().flat_map(|path| blocks(path)) {
        let found = match block.info.as_str() {
            "yaml other" => continue,
            "yaml" => problems(&text(block.text)),
            "yaml fragment" => problems(&text(whole(&block.text))),
            "yaml wrong" => {
                let none = problems(&text(block.text)).is_empty();
                none.then(|| "it should show a mistake, and loads".to_owned()).into_iter().collect()
            }
            other => vec![format!("`{other}`: write yaml, yaml fragment, yaml wrong or yaml other")],
        };
        seen += 1;
        wrong.extend(found.iter().map(|problem| format!("{}: {problem}", block.place)));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 10, "only {seen} blocks found: is the search broken?");
}

#[test]
fn every_example_loads_and_says_what_to_try() {
    let mut wrong = Vec::new();
    let examples = files("examples", "yaml");
    for path in &examples {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let text = fs::read_to_string(path).unwrap();
        if !text.starts_with("# ") || !text.contains("# Try") {
            wrong.push(format!("{name}: its head must say what it shows and what to try"));
        }
        wrong.extend(problems(&Source::File(path.clone())));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(examples.len() > 20, "only {} examples found", examples.len());
}

#[test]
fn the_list_of_examples_is_complete_and_its_links_lead_somewhere() {
    let list = fs::read_to_string(root().join("examples/README.md")).unwrap();
    for path in files("examples", "yaml") {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        assert!(list.contains(&format!("({name})")), "examples/README.md does not list {name}");
    }
    let mut dead = Vec::new();
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        for target in links(&text) {
            let file = target.split('#').next().unwrap_or_default();
            let at = document.parent().unwrap_or(root()).join(file);
            if !file.is_empty() && !at.exists() {
                dead.push(format!("{}: {target}", document.strip_prefix(root()).unwrap_or(&document).display()));
            }
        }
    }
    assert!(dead.is_empty(), "links that lead nowhere:\n{}", dead.join("\n"));
}

/// Targets of Markdown links that are not on the web.
fn links(text: &str) -> Vec<&str> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.filter(|target| !target.contains("://") && !target.contains(' ')).collect()
}

#[test]
fn the_repositorys_own_configuration_loads_anywhere() {
    let yaml = fs::read_to_string(root().join("gateway.yaml")).unwrap();
    let found = problems(&Source::Text { yaml, dir: PathBuf::from("/nowhere") });
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// The names of all options below `schema` that are supported.
fn options(schema: &serde_json::Value, all: &serde_json::Value, seen: &mut BTreeSet<String>, names: &mut BTreeSet<String>) {
    if schema["description"].as_str().is_some_and(|text| text.contains("Not supported yet")) {
        return;
    }
    if let Some(name) = schema["$ref"].as_str().and_then(|path| path.strip_prefix("#/$defs/"))
        && seen.insert(name.to_owned())
    {
        options(&all["$defs"][name], all, seen, names);
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        if !property["description"].as_str().is_some_and(|text| text.contains("Not supported yet")) {
            names.insert(name.clone());
            options(property, all, seen, names);
        }
    }
    for list in ["anyOf", "oneOf", "allOf", "prefixItems"] {
        schema[list].as_array().into_iter().flatten().for_each(|part| options(part, all, seen, names));
    }
    for part in ["items", "additionalProperties"].map(|key| &schema[key]).into_iter().filter(|part| part.is_object()) {
        options(part, all, seen, names);
    }
}

#[test]
fn the_tour_of_every_option_names_every_option() {
    let schema = serde_json::to_value(tollgate::config::schema::json_schema()).unwrap();
    let mut names = BTreeSet::new();
    options(&schema, &schema, &mut BTreeSet::new(), &mut names);
    assert!(names.len() > 120 && names.contains("max_idle") && !names.contains("otlp"), "is the search broken? {names:?}");
    let tour = fs::read_to_string(root().join("gateway.yaml")).unwrap();
    let words: BTreeSet<&str> = tour.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    let missing: Vec<&String> = names.iter().filter(|name| !words.contains(name.as_str())).collect();
    assert!(missing.is_empty(), "gateway.yaml says that it is a tour of everything, but does not name {missing:?}");
}

#[test]
fn the_configuration_in_the_kubernetes_manifests_loads() {
    let manifests = fs::read_to_string(root().join("deploy/kubernetes/tollgate.yaml")).unwrap();
    let (_, rest) = manifests.split_once("  gateway.yaml: |\n").unwrap();
    let (block, _) = rest.split_once("\n---\n").unwrap();
    let yaml = block.lines().map(|line| format!("{}\n", line.strip_prefix("    ").unwrap_or_default())).collect();
    let secret = |name: &str| (name == "ADMIN_TOKEN").then(|| "a-token".to_owned());
    let found = checked(load_with(&Source::Text { yaml, dir: PathBuf::from("/nowhere") }, &secret));
    assert!(found.is_empty(), "{}", found.join("\n"));
}
