//! Problems of a configuration: what is wrong, where it is written, what would be right. All are collected, none stops the search.

use std::fmt;
use std::io;

use super::Config;

/// A place in the configuration: a file and a path of keys and indices in it. Line and column are found only when a problem is reported.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct At {
    /// Index into the list of files that were read; 0 is the main file.
    pub file: usize,
    /// Keys and indices from the top of that file.
    pub path: Vec<Seg>,
    /// Whether the key itself is meant rather than its value.
    pub on_key: bool,
}

/// One step of a path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Seg {
    /// A mapping's key.
    Key(String),
    /// A list's index.
    Index(usize),
}

impl At {
    /// The value under `key` of the main file's top level.
    pub fn main(key: &str) -> Self {
        Self::default().key(key)
    }
    /// The value under `key`.
    pub fn key(&self, key: &str) -> Self {
        let mut at = self.clone();
        at.path.push(Seg::Key(key.to_owned()));
        at
    }
    /// The element at `index`.
    pub fn index(&self, index: usize) -> Self {
        let mut at = self.clone();
        at.path.push(Seg::Index(index));
        at
    }
    /// The key of this value instead of the value.
    pub fn its_key(&self) -> Self {
        let mut at = self.clone();
        at.on_key = true;
        at
    }
}

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The configuration is refused.
    Error,
    /// It loads, and the operator is told.
    Warning,
}

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where it is written.
    pub at: At,
    /// What is wrong. Never holds a substituted value.
    pub message: String,
    /// What would be right.
    pub help: Option<String>,
    /// How bad it is.
    pub severity: Severity,
    /// Line and column (from 1) where the parser itself knew them.
    pub position: Option<(usize, usize)>,
}

/// A growing list of problems.
#[derive(Clone, Debug, Default)]
pub struct Problems {
    list: Vec<Problem>,
}

impl Problems {
    /// Records an error at `at`; add `.help` to the returned problem.
    pub fn error(&mut self, at: At, message: impl Into<String>) -> &mut Problem {
        self.push(at, message.into(), Severity::Error)
    }
    /// Records a warning.
    pub fn warn(&mut self, at: At, message: impl Into<String>) -> &mut Problem {
        self.push(at, message.into(), Severity::Warning)
    }
    fn push(&mut self, at: At, message: String, severity: Severity) -> &mut Problem {
        self.list.push(Problem { at, message, help: None, severity, position: None });
        let last = self.list.len() - 1;
        &mut self.list[last]
    }
    /// Whether any of them is an error.
    pub fn has_errors(&self) -> bool {
        self.list.iter().any(|p| p.severity == Severity::Error)
    }
    /// All of them, in the order found.
    pub fn list(&self) -> &[Problem] {
        &self.list
    }
    /// Adds those of `other` at places that have no error yet, neither there nor inside: a second look at the same mistake helps nobody.
    pub fn extend_new(&mut self, other: Problems) {
        for problem in other.list {
            let covers = |old: &Problem| old.at.file == problem.at.file && old.at.path.starts_with(&problem.at.path);
            let known = self.list.iter().any(|old| old.severity == Severity::Error && covers(old) || *old == problem);
            if !known {
                self.list.push(problem);
            }
        }
    }
    /// Drops what is said of the block at `at` as a whole, if something in it could not be read: it only seems to be missing.
    pub fn forget_damaged(&mut self, config: &Config, at: &At) {
        if config.is_damaged(at) {
            self.list.retain(|problem| problem.at != *at);
        }
    }
    /// Adds all of `other`.
    pub fn extend(&mut self, other: Problems) {
        self.list.extend(other.list);
    }
}

impl Problem {
    /// Says what would be right.
    pub fn help(&mut self, help: impl Into<String>) -> &mut Self {
        self.help = Some(help.into());
        self
    }
}

/// What to do about a file that is not there, or that the gateway may not read.
pub fn unreadable(error: &io::Error) -> Option<&'static str> {
    match error.kind() {
        io::ErrorKind::NotFound => Some("a relative path starts at the file of the configuration that it stands in"),
        io::ErrorKind::PermissionDenied => {
            Some("the user that the gateway runs as must be allowed to read it, and to enter its directories")
        }
        _ => None,
    }
}

/// A problem with its place found: what users, logs and the admin API see.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// The file, as the user named it.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// What would be right.
    pub help: Option<String>,
    /// The line itself, with substitutions left as written.
    #[serde(skip)]
    pub source_line: Option<String>,
    /// Whether it is only a warning.
    #[serde(skip)]
    pub warning: bool,
}

impl fmt::Display for Report {
    /// `gateway.yaml:42:7: unknown field "timout"…`, then the source line with a caret, then the help.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.warning { "warning: " } else { "" };
        write!(f, "{}:{}:{}: {kind}{}", self.file, self.line, self.column, self.message)?;
        if let Some(line) = &self.source_line {
            let number = self.line.to_string();
            let indent: String = line.chars().take(self.column.saturating_sub(1)).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
            write!(f, "\n  {number} | {line}\n  {:width$} | {indent}^", "", width = number.len())?;
        }
        if let Some(help) = &self.help {
            write!(f, "\n  help: {help}")?;
        }
        Ok(())
    }
}
