//! Files into [`Config`]: reading, `include`, substitution, and every problem with its line and column.

use std::path::{Path, PathBuf};

use super::problem::Report;
use super::{Config, Problems};

/// Where a configuration comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A file, read again at each reload.
    File(PathBuf),
    /// Text, for tests and for embedding; relative paths are relative to `dir`.
    Text {
        /// The YAML.
        yaml: String,
        /// Base of relative paths and of `include`.
        dir: PathBuf,
    },
}

/// What was read: the configuration and what is needed to explain problems in it and to notice changes.
#[derive(Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Texts of the files, for line and column; index is [`At::file`](super::At::file).
    pub files: Vec<SourceFile>,
    /// Every path whose change must cause a reload: config files, include globs' directories, `${file:…}`.
    pub watch: Vec<PathBuf>,
    /// Hash over all contents and substituted values, as hex: equal means unchanged.
    pub hash: String,
    /// Substituted values, to be hidden in dumps.
    pub substituted: Vec<String>,
    /// Problems so far; compiling adds to them.
    pub problems: Problems,
}

/// One file that was read.
#[derive(Clone, Debug)]
pub struct SourceFile {
    /// Its name as users see it.
    pub name: String,
    /// Its directory: relative paths written in it are relative to this.
    pub dir: PathBuf,
    /// Its text.
    pub text: String,
}

/// Reads `source` and everything it includes. Never stops at the first problem; what cannot be read at all is a problem too.
pub fn load(source: &Source) -> Loaded {
    let _ = source;
    todo!()
}

impl Loaded {
    /// All problems with file, line, column and source line, in file order.
    pub fn reports(&self) -> Vec<Report> {
        todo!()
    }
    /// `path` as written at `at`, relative to the file that has it.
    pub fn resolve_path(&self, at: &super::At, path: &str) -> PathBuf {
        self.files.get(at.file).map_or_else(|| Path::new(path).to_owned(), |f| f.dir.join(path))
    }
}
