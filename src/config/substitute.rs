//! `${VAR}`, `${VAR:-default}`, `${file:PATH}` and `$${` in scalars.

use std::path::{Path, PathBuf};

use super::tree::{Kind, Node, Place};

/// Longest file that `${file:…}` reads: secrets are short.
const MAX_FILE: u64 = 1 << 20;

/// What substitution found besides the values it put in.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Values from outside, and the scalars that hold one: to be hidden.
    pub secrets: Vec<String>,
    /// Files that were read.
    pub files: Vec<PathBuf>,
    /// What is wrong: place, message, help.
    pub faults: Vec<(Place, String, String)>,
}

/// Replaces the variables in every scalar under `node`. `lookup` gives environment variables; files are relative to `dir`.
pub(super) fn substitute(node: &mut Node, dir: &Path, lookup: &dyn Fn(&str) -> Option<String>, found: &mut Found) {
    match &mut node.kind {
        Kind::List(list) => list.iter_mut().for_each(|node| substitute(node, dir, lookup, found)),
        Kind::Map(entries) => entries.iter_mut().for_each(|entry| substitute(&mut entry.value, dir, lookup, found)),
        Kind::Text(text) if text.contains("${") => match expand(text, dir, lookup, found) {
            Ok((expanded, true)) => {
                found.secrets.push(expanded.clone());
                node.kind = Kind::Expanded(expanded);
            }
            Ok((literal, false)) => *text = literal,
            Err((message, help)) => {
                found.faults.push((node.place, message, help));
                node.kind = Kind::Lost;
            }
        },
        Kind::Null
        | Kind::Lost
        | Kind::Bool(_)
        | Kind::Unsigned(_)
        | Kind::Signed(_)
        | Kind::Float(_)
        | Kind::Text(_)
        | Kind::Expanded(_) => {}
    }
}

type Wrong = (String, String);

/// The text with its variables replaced, and whether there was any.
fn expand(text: &str, dir: &Path, lookup: &dyn Fn(&str) -> Option<String>, found: &mut Found) -> Result<(String, bool), Wrong> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut any = false;
    while let Some(at) = rest.find("${") {
        let before = &rest[..at];
        let behind = &rest[at + 2..];
        if let Some(before) = before.strip_suffix('$') {
            out.push_str(before);
            out.push_str("${");
            rest = behind;
            continue;
        }
        out.push_str(before);
        let (variable, behind) =
            behind.split_once('}').ok_or_else(|| ("`${` without `}`".to_owned(), "write ${NAME}, or $${ for a literal ${".to_owned()))?;
        out.push_str(&value_of(variable, dir, lookup, found)?);
        any = true;
        rest = behind;
    }
    out.push_str(rest);
    Ok((out, any))
}

fn value_of(variable: &str, dir: &Path, lookup: &dyn Fn(&str) -> Option<String>, found: &mut Found) -> Result<String, Wrong> {
    if let Some(path) = variable.strip_prefix("file:") {
        let path = dir.join(path);
        found.files.push(path.clone());
        let text = read_file(&path)
            .map_err(|why| (format!("cannot read `${{{variable}}}`: {why}"), "create the file, or correct its path".to_owned()))?;
        let value = text.strip_suffix('\n').map_or(text.as_str(), |t| t.strip_suffix('\r').unwrap_or(t)).to_owned();
        found.secrets.push(value.clone());
        return Ok(value);
    }
    let (name, default) = variable.split_once(":-").map_or((variable, None), |(name, default)| (name, Some(default)));
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) || !name.chars().all(plain) {
        let help = "write ${NAME}, ${NAME:-default} or ${file:PATH}, and $${ for a literal ${".to_owned();
        return Err((format!("`${{{variable}}}` does not name a variable"), help));
    }
    match (lookup(name), default) {
        (Some(value), None) => {
            found.secrets.push(value.clone());
            Ok(value)
        }
        (Some(value), Some(_)) if !value.is_empty() => {
            found.secrets.push(value.clone());
            Ok(value)
        }
        (_, Some(default)) => Ok(default.to_owned()),
        (None, None) => {
            Err((format!("the environment variable `{name}` is not set"), format!("set it, or give a default: ${{{name}:-default}}")))
        }
    }
}

fn read_file(path: &Path) -> Result<String, String> {
    let length = std::fs::metadata(path).map_err(|error| error.to_string())?.len();
    if length > MAX_FILE {
        return Err("it is larger than 1 MiB".to_owned());
    }
    std::fs::read_to_string(path).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(text: &str) -> Result<(String, bool), Wrong> {
        let lookup = |name: &str| match name {
            "A" => Some("x: [y]".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        expand(text, Path::new("/nowhere"), &lookup, &mut Found::default())
    }

    #[test]
    fn variables_defaults_and_escapes() {
        assert_eq!(run("a ${A} b").unwrap(), ("a x: [y] b".to_owned(), true));
        assert_eq!(run("${EMPTY}").unwrap(), (String::new(), true));
        assert_eq!(run("${EMPTY:-d}").unwrap(), ("d".to_owned(), true));
        assert_eq!(run("${NONE:-}").unwrap(), (String::new(), true));
        assert_eq!(run("$${A} $x").unwrap(), ("${A} $x".to_owned(), false));
    }

    #[test]
    fn missing_unclosed_and_unnamed_are_errors() {
        assert!(run("${NONE}").unwrap_err().0.contains("`NONE` is not set"));
        assert!(run("${A").is_err());
        assert!(run("${1}").is_err());
        assert!(run("${file:none}").unwrap_err().0.contains("cannot read"));
    }

    #[test]
    fn a_file_loses_one_final_newline() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("secret"), "s3cret\n\n").unwrap();
        let mut found = Found::default();
        let (text, _) = expand("${file:secret}", dir.path(), &|_| None, &mut found).unwrap();
        assert_eq!(text, "s3cret\n");
        assert_eq!(found.files, [dir.path().join("secret")]);
    }
}
