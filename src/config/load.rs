//! Files into [`Config`]: reading, `include`, substitution, and every problem with its line and column.

use std::collections::BTreeMap;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::string::FromUtf8Error;

use serde::Deserialize;

use super::problem::{Report, Seg, Severity, unreadable};
use super::substitute::{Found, substitute};
use super::tree::{self, Kind, Node, Place};
use super::{At, Config, Problems, auth, read, route, syntax, upstream};

/// Longest configuration file: more is a mistake, such as a log file's name.
const MAX_FILE: u64 = 16 << 20;
/// The lists an included file may have.
const INCLUDABLE: [&str; 3] = ["upstreams", "authenticators", "routes"];

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
    /// What the files say, with places; index as in `files`.
    trees: Vec<Node>,
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
    load_with(source, &|name| std::env::var(name).ok())
}

/// [`load`] with `lookup` in place of the environment.
pub fn load_with(source: &Source, lookup: &dyn Fn(&str) -> Option<String>) -> Loaded {
    let mut loader = Loader { lookup, ..Loader::new() };
    let (name, dir, text) = match source {
        Source::File(path) => {
            let short = path.strip_prefix("./").ok().filter(|rest| !rest.as_os_str().is_empty());
            let name = short.unwrap_or(path).display().to_string();
            loader.watch.push(path.clone());
            (name, path.parent().map_or_else(PathBuf::new, Path::to_owned), read_file(path))
        }
        Source::Text { yaml, dir } => ("gateway.yaml".to_owned(), dir.clone(), Ok(yaml.clone())),
    };
    let mut config = Config::default();
    if loader.add(name, &dir, text) {
        if matches!((source, &loader.trees[0].kind), (Source::File(_), Kind::Null)) {
            let help = "a file that is being written, or a full disk? It needs at least `routes`".to_owned();
            loader.problem(0, Place { line: 1, column: 1 }, "there is no configuration in this file", Some(help));
        }
        config = read::read(&loader.trees[0], 0, &mut loader.problems, &mut loader.dropped);
        place(&mut config.upstreams, &mut config.authenticators, &mut config.routes, 0, &loader.dropped);
    }
    loader.includes(&mut config);
    config.dropped = std::mem::take(&mut loader.dropped);
    loader.finish(config)
}

/// An included file.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Included {
    upstreams: BTreeMap<String, upstream::Upstream>,
    authenticators: BTreeMap<String, auth::Authenticator>,
    routes: Vec<route::Route>,
}

struct Loader<'a> {
    lookup: &'a dyn Fn(&str) -> Option<String>,
    files: Vec<SourceFile>,
    trees: Vec<Node>,
    watch: Vec<PathBuf>,
    found: Found,
    problems: Problems,
    dropped: Vec<At>,
}

impl Loader<'_> {
    fn new() -> Self {
        Self {
            lookup: &|_| None,
            files: Vec::new(),
            trees: Vec::new(),
            watch: Vec::new(),
            found: Found::default(),
            problems: Problems::default(),
            dropped: Vec::new(),
        }
    }

    fn problem(&mut self, file: usize, place: Place, message: impl Into<String>, help: Option<String>) {
        let problem = self.problems.error(At { file, ..At::default() }, message);
        problem.help = help;
        problem.position = Some((place.line, place.column));
    }

    /// Adds a file; `false` if nothing in it can be read.
    fn add(&mut self, name: String, dir: &Path, text: io::Result<String>) -> bool {
        let file = self.files.len();
        let top = Place { line: 1, column: 1 };
        let (text, failure) = match text {
            Ok(text) => (text.strip_prefix('\u{feff}').map_or(text.clone(), str::to_owned), None),
            Err(why) => (String::new(), Some(why)),
        };
        let main = file == 0;
        let parsed = tree::parse(&text);
        self.files.push(SourceFile { name, dir: dir.to_owned(), text });
        self.trees.push(Node { place: top, kind: Kind::Null });
        if let Some(why) = failure {
            let help = match why.kind() {
                io::ErrorKind::NotFound if main => Some("--config FILE names another one; `tollgate demo` runs without any".to_owned()),
                _ => unreadable(&why).map(str::to_owned),
            };
            self.problem(file, top, format!("cannot read this file: {why}"), help);
            return false;
        }
        let (mut node, faults) = match parsed {
            Ok(parsed) => parsed,
            Err((place, message)) => {
                let mistake = syntax::explain(&self.files[file].text, place, &message);
                self.problem(file, mistake.place, mistake.message, mistake.help);
                return false;
            }
        };
        for fault in faults {
            self.problem(file, fault.place, fault.message, fault.help);
        }
        substitute(&mut node, dir, self.lookup, &mut self.found);
        for (place, message, help) in std::mem::take(&mut self.found.faults) {
            self.problem(file, place, message, Some(help));
        }
        self.trees[file] = node;
        true
    }

    fn includes(&mut self, config: &mut Config) {
        let mut paths: Vec<PathBuf> = Vec::new();
        for (index, pattern) in config.include.clone().iter().enumerate() {
            paths.extend(self.matching(pattern, &At::main("include").index(index)));
        }
        // In the order of their paths, whatever lists them: it decides between regexes that are otherwise equal.
        let plain = |path: &PathBuf| path.components().filter(|part| *part != Component::CurDir).collect::<PathBuf>();
        paths.sort_by_cached_key(plain);
        paths.dedup_by_key(|path| plain(path));
        for path in paths {
            self.include(&path, config);
        }
    }

    /// The files `pattern` names.
    fn matching(&mut self, pattern: &str, at: &At) -> Vec<PathBuf> {
        let dir = self.files[0].dir.clone();
        let full = dir.join(pattern);
        if !pattern.contains(['*', '?', '[']) {
            self.watch.push(full.clone());
            if !full.is_file() {
                self.problems
                    .error(at.clone(), format!("there is no file \"{pattern}\""))
                    .help("paths in `include` are relative to the main file");
                return Vec::new();
            }
            return vec![full];
        }
        self.watch.extend(glob_directories(&dir, pattern));
        let escaped = Path::new(&glob::Pattern::escape(&dir.to_string_lossy())).join(pattern);
        match glob::glob(&escaped.to_string_lossy()) {
            Ok(paths) => paths.filter_map(Result::ok).filter(|path| path.is_file()).collect(),
            Err(error) => {
                self.problems.error(at.clone(), format!("\"{pattern}\" is not a pattern: {}", error.msg));
                Vec::new()
            }
        }
    }

    fn include(&mut self, path: &Path, config: &mut Config) {
        let file = self.files.len();
        let name = path.strip_prefix("./").unwrap_or(path).display().to_string();
        let name = match self.files[0].dir.as_os_str().is_empty() {
            true => name,
            // Named as the main file is: with the directory its user wrote.
            false if Path::new(&self.files[0].name).parent().is_some_and(|p| !p.as_os_str().is_empty()) => name,
            false => path.strip_prefix(&self.files[0].dir).unwrap_or(path).display().to_string(),
        };
        self.watch.push(path.to_owned());
        let dir = path.parent().map_or_else(PathBuf::new, Path::to_owned);
        if !self.add(name, &dir, read_file(path)) {
            return;
        }
        self.refuse_others(file);
        let mut included: Included = read::read(&self.trees[file], file, &mut self.problems, &mut self.dropped);
        place(&mut included.upstreams, &mut included.authenticators, &mut included.routes, file, &self.dropped);
        config.routes.append(&mut included.routes);
        self.unite("upstream", &mut config.upstreams, included.upstreams, |upstream| &upstream.at);
        self.unite("authenticator", &mut config.authenticators, included.authenticators, |authenticator| &authenticator.at);
    }

    /// Takes what only the main file may have out of an included one.
    fn refuse_others(&mut self, file: usize) {
        let fields = main_fields();
        let Kind::Map(entries) = &mut self.trees[file].kind else { return };
        let (refused, kept): (Vec<_>, Vec<_>) =
            std::mem::take(entries).into_iter().partition(|e| fields.contains(&e.key) && !INCLUDABLE.contains(&e.key.as_str()));
        *entries = kept;
        for entry in refused {
            let help = "included files may have upstreams, authenticators and routes".to_owned();
            self.problem(file, entry.place, format!("`{}` can stand in the main file only", entry.key), Some(help));
        }
    }

    /// Adds `more` to `all`; a name in both is an error at both places.
    fn unite<T>(&mut self, what: &str, all: &mut BTreeMap<String, T>, more: BTreeMap<String, T>, at: impl Fn(&T) -> &At) {
        for (name, value) in more {
            if let Some(first) = all.get(&name) {
                let (here, there) = (at(&value).its_key(), at(first).its_key());
                for (place, other) in [(there.clone(), here.clone()), (here, there)] {
                    let spot = self.spot(&other);
                    self.problems
                        .error(place, format!("{what} \"{name}\" is defined twice, also in {spot}"))
                        .help("rename or remove one of the two");
                }
                continue;
            }
            all.insert(name, value);
        }
    }

    fn spot(&self, at: &At) -> String {
        spot(&self.files, &self.trees, at)
    }

    fn finish(mut self, config: Config) -> Loaded {
        let mut hash = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
        let texts = self.files.iter().flat_map(|file| [&file.name, &file.text]);
        for text in texts.chain(&self.found.secrets) {
            hash.update(&text.len().to_le_bytes());
            hash.update(text.as_bytes());
        }
        let hash = hash.finish().as_ref().iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
        self.watch.append(&mut self.found.files);
        self.watch.sort();
        self.watch.dedup();
        let mut substituted: Vec<String> = self.found.secrets.into_iter().filter(|secret| !secret.is_empty()).collect();
        substituted.sort();
        substituted.dedup();
        let Self { files, trees, watch, problems, .. } = self;
        Loaded { config, files, watch, hash, substituted, problems, trees }
    }
}

/// The names of all top-level options.
fn main_fields() -> Vec<String> {
    match serde_json::to_value(Config::default()) {
        Ok(serde_json::Value::Object(fields)) => fields.into_iter().map(|(name, _)| name).collect(),
        _ => Vec::new(),
    }
}

fn read_file(path: &Path) -> io::Result<String> {
    if std::fs::metadata(path)?.len() > MAX_FILE {
        return Err(io::Error::other("it is larger than 16 MiB"));
    }
    let not_text = |error: FromUtf8Error| io::Error::other(format!("it is not UTF-8 (byte {})", error.utf8_error().valid_up_to() + 1));
    String::from_utf8(std::fs::read(path)?).map_err(not_text)
}

/// The directories whose entries decide what `pattern` matches.
fn glob_directories(dir: &Path, pattern: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut prefix = PathBuf::from(pattern);
    while prefix.pop() {
        let escaped = Path::new(&glob::Pattern::escape(&dir.to_string_lossy())).join(&prefix);
        match glob::glob(&escaped.to_string_lossy()) {
            Ok(paths) if prefix.to_string_lossy().contains(['*', '?', '[']) => {
                found.extend(paths.filter_map(Result::ok).filter(|path| path.is_dir()));
            }
            _ => {
                found.push(dir.join(&prefix));
                break;
            }
        }
    }
    found
}

/// Fills in where everything is written.
fn place(
    upstreams: &mut BTreeMap<String, upstream::Upstream>,
    authenticators: &mut BTreeMap<String, auth::Authenticator>,
    routes: &mut [route::Route],
    file: usize,
    dropped: &[At],
) {
    let top = At { file, ..At::default() };
    for (name, upstream) in upstreams {
        upstream.at = top.key("upstreams").key(name);
    }
    for (name, authenticator) in authenticators {
        authenticator.at = top.key("authenticators").key(name);
    }
    place_routes(routes, &top.key("routes"), dropped);
}

fn place_routes(routes: &mut [route::Route], list: &At, dropped: &[At]) {
    // Elements that could not be read are missing here, but not in the file.
    let mut written = (0..).map(|index| list.index(index)).filter(|at| !dropped.contains(at));
    for route in routes {
        route.at = written.next().unwrap_or_default();
        if let Some(children) = &mut route.routes {
            place_routes(children, &route.at.key("routes"), dropped);
        }
    }
}

fn find_place(trees: &[Node], at: &At) -> Place {
    trees.get(at.file).map_or(Place { line: 1, column: 1 }, |tree| tree.place_of(&at.path, at.on_key))
}

fn spot(files: &[SourceFile], trees: &[Node], at: &At) -> String {
    let place = find_place(trees, at);
    format!("{}:{}:{}", files.get(at.file).map_or("", |file| file.name.as_str()), place.line, place.column)
}

impl Loaded {
    /// All problems with file, line, column and source line, in file order.
    pub fn reports(&self) -> Vec<Report> {
        let mut lines: BTreeMap<usize, Vec<String>> = BTreeMap::new();
        let mut found: Vec<(usize, Report)> = Vec::new();
        for problem in self.problems.list() {
            let at = &problem.at;
            let place = problem.position.map_or_else(|| find_place(&self.trees, at), |(line, column)| Place { line, column });
            let text =
                lines.entry(at.file).or_insert_with(|| self.files.get(at.file).map_or_else(Vec::new, |f| tree::split_lines(&f.text)));
            let context = self.context(at).map_or_else(String::new, |context| format!(" ({context})"));
            let report = Report {
                file: self.files.get(at.file).map_or_else(String::new, |file| file.name.clone()),
                line: place.line,
                column: place.column,
                message: self.hide(at, &problem.message) + &context,
                help: problem.help.as_ref().map(|help| self.hide(at, help)),
                source_line: text.get(place.line.saturating_sub(1)).filter(|line| !line.trim().is_empty()).cloned(),
                warning: problem.severity == Severity::Warning,
            };
            if !found.iter().any(|(file, known)| *file == at.file && *known == report) {
                found.push((at.file, report));
            }
        }
        found.sort_by_key(|(file, report)| (*file, report.line, report.column));
        found.into_iter().map(|(_, report)| report).collect()
    }

    /// `gateway.yaml:97:5`: where `at` is written.
    pub fn spot(&self, at: &At) -> String {
        spot(&self.files, &self.trees, at)
    }

    /// `path` as written at `at`, relative to the file that has it.
    pub fn resolve_path(&self, at: &At, path: &str) -> PathBuf {
        self.files.get(at.file).map_or_else(|| Path::new(path).to_owned(), |f| f.dir.join(path))
    }

    /// `route get-user`: what the place belongs to.
    fn context(&self, at: &At) -> Option<String> {
        let [Seg::Key(section), rest @ ..] = at.path.as_slice() else { return None };
        match (section.as_str(), rest) {
            ("upstreams", [Seg::Key(name), _, ..]) => Some(format!("upstream {name}")),
            ("authenticators", [Seg::Key(name), _, ..]) => Some(format!("authenticator {name}")),
            ("routes", [Seg::Index(_), ..]) => {
                let tree = self.trees.get(at.file)?;
                let mut end = 2;
                let mut prefix = String::new();
                while matches!(at.path.get(end..), Some([Seg::Key(key), Seg::Index(_), ..]) if key == "routes") {
                    let group = tree.find(at.path.get(..end)?).and_then(written_match).map(|(_, path)| path);
                    prefix.push_str(group.as_deref().unwrap_or_default().trim_end_matches('*').trim_end_matches('/'));
                    end += 2;
                }
                let route = tree.find(at.path.get(..end)?)?;
                let name = route.get("name").and_then(text_of).or_else(|| {
                    let (methods, path) = written_match(route)?;
                    Some(format!("{methods}{prefix}{path}"))
                });
                name.map(|name| format!("route {name}"))
            }
            _ => None,
        }
    }

    /// `message` without what was substituted.
    fn hide(&self, at: &At, message: &str) -> String {
        let here = self.trees.get(at.file).and_then(|tree| tree.find(&at.path)).map(|node| &node.kind);
        let mut message = message.to_owned();
        if let Some(Kind::Expanded(text)) = here
            && !text.is_empty()
        {
            message = message.replace(text.as_str(), "***");
        }
        super::dump::hide(&message, &self.substituted)
    }
}

fn text_of(node: &Node) -> Option<String> {
    match &node.kind {
        Kind::Text(text) => Some(text.clone()),
        _ => None,
    }
}

/// What stands in a route's `match`: methods with a space behind them, and the path.
fn written_match(route: &Node) -> Option<(String, String)> {
    let matcher = route.get("match")?;
    if let Some(short) = text_of(matcher) {
        return Some(
            short
                .rsplit_once(' ')
                .map_or((String::new(), short.clone()), |(methods, path)| (format!("{} ", methods.trim_end()), path.to_owned())),
        );
    }
    let field = |name: &str| matcher.get(name).and_then(text_of);
    let prefix = || field("prefix").map(|prefix| format!("{}/*", prefix.trim_end_matches('/')));
    let path = field("path").or_else(prefix).or_else(|| field("regex"))?;
    let methods = match matcher.get("methods").map(|node| &node.kind) {
        Some(Kind::List(list)) => format!("{} ", list.iter().filter_map(text_of).collect::<Vec<_>>().join(",")),
        _ => String::new(),
    };
    Some((methods, path))
}
