//! The house stays tidy: imports point one way, files stay small, nothing is left half done.

use std::fs;
use std::path::{Path, PathBuf};

/// Modules by layer, lowest first. A module may use those below its own layer, and those of it. ARCHITECTURE.md has the same list.
const LAYERS: [&[&str]; 9] = [
    &["units", "error", "random", "kept", "reactor"],
    &["config"],
    &["http", "tls", "telemetry", "router"],
    &["balance", "health", "discovery"],
    &["upstream"],
    &["targets", "middleware"],
    &["gateway"],
    &["server", "admin"],
    &["demo"],
];
/// Siblings that must not know each other: they meet one layer up.
const STRANGERS: [(&str, &str); 2] = [("targets", "middleware"), ("middleware", "targets")];
/// Longest file: more is usually two nouns.
const MAX_LINES: usize = 500;

fn sources() -> Vec<PathBuf> {
    fn collect(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    collect(&src(), &mut found);
    found.sort();
    found
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn shown(path: &Path) -> String {
    path.strip_prefix(src()).unwrap_or(path).display().to_string()
}

/// The top module a file belongs to.
fn module(path: &Path) -> String {
    let inside = path.strip_prefix(src()).unwrap_or(path);
    let first = inside.components().next().map(|part| part.as_os_str().to_string_lossy().into_owned()).unwrap_or_default();
    first.trim_end_matches(".rs").to_owned()
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// Whether the file holds only tests.
fn is_test(path: &Path) -> bool {
    let name = shown(path);
    name.ends_with("tests.rs") || name.ends_with("testing.rs") || name.contains("/tests/")
}

/// The text without its test modules, and without comments.
fn code(text: &str) -> String {
    let running = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    running.lines().filter(|line| !line.trim_start().starts_with("//")).map(|line| format!("{line}\n")).collect()
}

/// The modules named after `crate::`, in `use` lines and in paths alike.
fn used(code: &str) -> Vec<String> {
    let mut modules = Vec::new();
    for rest in code.split("crate::").skip(1) {
        let word = |text: &str| text.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_' || c.is_ascii_digit()).collect::<String>();
        match rest.strip_prefix('{') {
            Some(list) => {
                let list = list.split('}').next().unwrap_or_default();
                modules.extend(list.split(',').map(|item| word(item.trim())));
            }
            None => modules.push(word(rest)),
        }
    }
    modules.retain(|module| !module.is_empty());
    modules
}

#[test]
fn imports_point_downward() {
    let mut wrong = Vec::new();
    for path in sources().iter().filter(|path| !is_test(path)) {
        let own = module(path);
        // The program may use everything.
        if ["main", "cli", "activation", "lib"].contains(&own.as_str()) {
            continue;
        }
        let Some(level) = layer(&own) else {
            wrong.push(format!("{}: the module `{own}` has no layer yet: give it one in tests/e2e/tidy.rs", shown(path)));
            continue;
        };
        for used in used(&code(&fs::read_to_string(path).unwrap())) {
            let upward = layer(&used).is_some_and(|other| other > level);
            let stranger = STRANGERS.contains(&(own.as_str(), used.as_str()));
            if upward || stranger {
                wrong.push(format!("{}: `{own}` uses `{used}`", shown(path)));
            }
        }
    }
    wrong.dedup();
    assert!(wrong.is_empty(), "imports against the direction of ARCHITECTURE.md:\n{}", wrong.join("\n"));
}

#[test]
fn every_module_of_the_library_has_a_layer() {
    let lib = fs::read_to_string(src().join("lib.rs")).unwrap();
    let modules: Vec<&str> = lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    assert!(modules.len() > 10, "only {} modules found", modules.len());
    let homeless: Vec<&&str> = modules.iter().filter(|module| layer(module).is_none()).collect();
    assert!(homeless.is_empty(), "{homeless:?}");
}

#[test]
fn files_stay_small() {
    let long: Vec<String> = sources()
        .iter()
        .map(|path| (shown(path), fs::read_to_string(path).unwrap().lines().count()))
        .filter(|(_, lines)| *lines > MAX_LINES)
        .map(|(name, lines)| format!("{name}: {lines} lines"))
        .collect();
    assert!(long.is_empty(), "over {MAX_LINES} lines, so usually two nouns in one file:\n{}", long.join("\n"));
}

#[test]
fn nothing_is_left_half_done() {
    // In pieces, so that this file does not find itself.
    let words = [["TO", "DO"].concat(), ["FIX", "ME"].concat(), ["to", "do!("].concat(), ["unimple", "mented!("].concat()];
    let mut found = Vec::new();
    for path in sources() {
        let text = fs::read_to_string(&path).unwrap();
        for (index, line) in text.lines().enumerate() {
            if words.iter().any(|word| line.contains(word.as_str())) {
                found.push(format!("{}:{}: {}", shown(&path), index + 1, line.trim()));
            }
        }
    }
    assert!(found.is_empty(), "left half done:\n{}", found.join("\n"));
}

#[test]
fn every_file_says_what_it_is() {
    let silent: Vec<String> = sources()
        .iter()
        .filter(|path| !is_test(path) && !fs::read_to_string(path).unwrap().starts_with("//!"))
        .map(|path| shown(path))
        .collect();
    assert!(silent.is_empty(), "without a `//!` head: {}", silent.join(", "));
}

#[test]
fn imports_are_read_in_all_forms() {
    let text = "use crate::http::{a, b};\nuse crate::{units, config::At};\nlet x = crate::gateway::handle();\n// crate::nothing\n";
    assert_eq!(used(&code(text)), ["http", "units", "config", "gateway"]);
}
