//! A file of `examples/` on a stage: started as a gateway on free ports in front of the demo's backends, and its commands run as printed.
//!
//! The head of an example says what to prepare and what to try. Those lines go through `bash` as they stand, only with the ports that this
//! run has, so neither the configuration nor the commands beside it can rot.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use regex::Regex;
use serde_yaml::Value;
use tollgate::demo::{Demo, start_on_free_ports};

use super::{Gateway, eventually};

/// What becomes of one command of an example's head.
pub enum Step {
    /// Its output has each of these somewhere; case does not matter, and ports are those of the file.
    Shows(&'static [&'static str]),
    /// The same of a stream that never ends: cut after two seconds.
    Streams(&'static [&'static str]),
    /// A look at its output as a whole.
    Holds(fn(&str)),
    /// It goes on beside the following ones, for three seconds.
    Beside(fn(&str)),
    /// Not run here; why, or what does its work.
    Elsewhere(&'static str),
}

/// What stands between the outputs of two commands.
const MARK: char = '\u{1e}';

/// An example that is about to start.
pub struct Stage {
    file: &'static str,
    yaml: String,
    prepare: Vec<String>,
    tries: Vec<String>,
    /// The repository as far as examples see it: a directory with `examples` in it.
    root: tempfile::TempDir,
    examples: tempfile::TempDir,
    demo: Demo,
    /// What is written, and what it is here.
    here: Vec<(String, String)>,
    /// Lines before the commands.
    before: String,
}

/// One that runs.
pub struct Example {
    pub gateway: Gateway,
    /// What the demo's backends listen on.
    pub demo: Demo,
    tries: Vec<String>,
    root: tempfile::TempDir,
    ports: Vec<(String, u16)>,
    before: String,
}

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples")
}

/// The commands of a head: what to prepare, and what to try.
fn commands(yaml: &str) -> (Vec<String>, Vec<String>) {
    let (mut prepare, mut tries) = (Vec::new(), Vec::new());
    let (mut trying, mut reading, mut open) = (false, false, false);
    for line in yaml.lines().map_while(|line| line.strip_prefix('#')) {
        let list: &mut Vec<String> = if trying { &mut tries } else { &mut prepare };
        if let Some(inline) = line.strip_prefix(" Prepare:") {
            reading = true;
            list.extend(Some(inline.trim().to_owned()).filter(|inline| !inline.is_empty()));
        } else if line.starts_with(" Try") {
            (trying, reading) = (true, true);
        } else if reading && open {
            let last = list.last_mut().unwrap();
            last.push('\n');
            last.push_str(line);
        } else if let Some(command) = line.strip_prefix("   ").filter(|rest| reading && !rest.starts_with(' ')) {
            list.push(command.to_owned());
        } else if !line.starts_with("   ") {
            reading = false;
        }
        open = reading && line.ends_with('\\');
    }
    (prepare, tries)
}

impl Stage {
    pub fn new(file: &'static str) -> Self {
        let yaml = fs::read_to_string(source().join(file)).unwrap();
        let (prepare, tries) = commands(&yaml);
        let root = tempfile::tempdir().unwrap();
        let examples = tempfile::Builder::new().prefix("examples").rand_bytes(0).tempdir_in(root.path()).unwrap();
        fs::write(examples.path().join(file), &yaml).unwrap();
        fs::create_dir(examples.path().join("scripts")).unwrap();
        for script in fs::read_dir(source().join("scripts")).unwrap() {
            let script = script.unwrap();
            fs::copy(script.path(), examples.path().join("scripts").join(script.file_name())).unwrap();
        }
        let demo = start_on_free_ports().unwrap();
        let mut here = Vec::new();
        for (written, address) in [9081, 9082, 9083].into_iter().zip(demo.addresses()) {
            here.push((format!("127.0.0.1:{written}"), address.to_string()));
            here.push((format!("localhost:{written}"), format!("localhost:{}", address.port())));
        }
        Self { file, yaml, prepare, tries, root, examples, demo, here, before: String::new() }
    }

    pub fn dir(&self) -> &Path {
        self.examples.path()
    }

    /// Whatever is not the demo's: `written` in the configuration stands for `actual`.
    pub fn here(mut self, written: &str, actual: &impl ToString) -> Self {
        assert!(self.yaml.contains(written), "{}: no `{written}`", self.file);
        self.here.push((written.to_owned(), actual.to_string()));
        self
    }

    /// Another value, where the one that is written is right for people and too fast or too slow for a busy machine.
    #[track_caller]
    pub fn with(mut self, written: &str, value: &str) -> Self {
        assert!(self.yaml.contains(written), "{}: no `{written}`", self.file);
        self.yaml = self.yaml.replace(written, value);
        self
    }

    /// A line of shell before the commands.
    pub fn before(mut self, line: &str) -> Self {
        self.before.push_str(line);
        self.before.push('\n');
        self
    }

    /// Runs what the head says to prepare.
    #[track_caller]
    pub fn prepare(mut self) -> Self {
        assert!(!self.prepare.is_empty(), "{}: nothing to prepare", self.file);
        let prepare = std::mem::take(&mut self.prepare);
        run(self.root.path(), &format!("set -e\n{}", prepare.join("\n")), true);
        self
    }

    /// What the head says to prepare is done by the test.
    pub fn prepared(mut self) -> Self {
        self.prepare.clear();
        self
    }

    /// The configuration on free ports, and the ports its listeners and admin are written with.
    fn on_free_ports(&self) -> (String, Vec<u16>) {
        let mut config: Value = serde_yaml::from_str(&self.yaml).unwrap();
        let mut ports = Vec::new();
        let mut free = |address: &mut Value| {
            let written = address.as_str().unwrap();
            ports.push(written.rsplit(':').next().unwrap().parse().unwrap());
            *address = "127.0.0.1:0".into();
        };
        for listener in config["listeners"].as_sequence_mut().unwrap() {
            free(&mut listener["address"]);
        }
        if config.get("admin").is_some() {
            free(&mut config["admin"]["address"]);
        }
        self.translate(&mut config);
        (serde_yaml::to_string(&config).unwrap(), ports)
    }

    /// Puts addresses of this run into everything that is called.
    fn translate(&self, config: &mut Value) {
        for section in ["upstreams", "authenticators", "redis"] {
            if let Some(section) = config.get_mut(section) {
                each_text(section, &mut |text| {
                    let new = self.here.iter().fold(text.clone(), |text, (written, actual)| text.replace(written, actual));
                    let foreign = ["http://", "unix:", "redis://"].iter().any(|scheme| text.contains(scheme)) && *text == new;
                    assert!(!foreign, "{}: nothing here stands for {text}", self.file);
                    *text = new;
                });
            }
        }
    }

    /// The configuration for a gateway beside the first one.
    pub fn yaml(&self) -> String {
        self.on_free_ports().0
    }

    /// Included files name upstreams, too.
    fn write_included(&self) {
        let config: Value = serde_yaml::from_str(&self.yaml).unwrap();
        for pattern in config.get("include").into_iter().flat_map(|list| list.as_sequence().unwrap()) {
            for path in glob::glob(&source().join(pattern.as_str().unwrap()).display().to_string()).unwrap() {
                let path = path.unwrap();
                let mut included: Value = serde_yaml::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
                self.translate(&mut included);
                let target = self.dir().join(path.strip_prefix(source()).unwrap());
                fs::create_dir_all(target.parent().unwrap()).unwrap();
                fs::write(target, serde_yaml::to_string(&included).unwrap()).unwrap();
            }
        }
    }

    /// Starts the gateway, and waits until it is ready where it says so.
    #[track_caller]
    pub fn start(self) -> Example {
        assert!(self.prepare.is_empty(), "{}: its head says what to prepare: {:?}", self.file, self.prepare);
        self.write_included();
        let (yaml, written) = self.on_free_ports();
        let admin = yaml.contains("\nadmin:");
        let gateway = Gateway::in_dir(self.examples, &yaml, &[]);
        if admin {
            eventually("the gateway is ready", || (gateway.admin_get("/ready").status == 200).then_some(()));
        }
        let mut bound: Vec<u16> = gateway.addresses().iter().map(std::net::SocketAddr::port).collect();
        bound.extend(admin.then(|| gateway.admin().port()));
        let demo = self.demo.addresses().iter().map(std::net::SocketAddr::port);
        let ports = written.into_iter().zip(bound).chain([9081, 9082, 9083].into_iter().zip(demo));
        let ports = ports.map(|(written, bound)| (written.to_string(), bound)).collect();
        Example { gateway, demo: self.demo, tries: self.tries, root: self.root, ports, before: self.before }
    }
}

fn each_text(value: &mut Value, act: &mut impl FnMut(&mut String)) {
    match value {
        Value::String(text) => act(text),
        Value::Sequence(items) => items.iter_mut().for_each(|item| each_text(item, act)),
        Value::Mapping(entries) => entries.iter_mut().for_each(|(_, item)| each_text(item, act)),
        Value::Tagged(_) | Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

impl Example {
    /// A port that commands name, and what it is here.
    pub fn port(mut self, written: u16, here: u16) -> Self {
        self.ports.push((written.to_string(), here));
        self
    }

    fn on_these_ports(&self, text: &str) -> String {
        let written: Vec<&str> = self.ports.iter().map(|(written, _)| written.as_str()).collect();
        let any = Regex::new(&format!(r"\b({})\b", written.join("|"))).unwrap();
        let here = |found: &regex::Captures<'_>| self.ports.iter().find(|(written, _)| *written == found[0]).unwrap().1.to_string();
        any.replace_all(text, here).into_owned()
    }

    /// Runs the commands to try, in order. There is a step for each: a part of the command, and what becomes of it.
    #[track_caller]
    pub fn tries(&self, steps: &[(&str, Step)]) {
        assert_eq!(self.tries.len(), steps.len(), "a step for each command: {:#?}", self.tries);
        let mut script = self.before.clone();
        script.push_str("curl() { command curl --max-time \"$LIMIT\" \"$@\"; }\nexport -f curl\nexport LIMIT\n");
        for (index, (command, (part, step))) in self.tries.iter().zip(steps).enumerate() {
            assert!(command.contains(part), "the step `{part}` meets the command `{command}`");
            let limit = if matches!(step, Step::Streams(_)) { 2 } else { 20 };
            let line = match step {
                Step::Shows(_) | Step::Streams(_) | Step::Holds(_) => command.clone(),
                Step::Beside(_) => format!("timeout 3 bash -c \"$(cat <<'END'\n{command}\nEND\n)\" >beside.{index} &"),
                Step::Elsewhere(_) => String::new(),
            };
            script.push_str(&format!("printf '{MARK}'; LIMIT={limit}\n{}\n", self.on_these_ports(&line)));
        }
        let output = run(self.root.path(), &(script + "wait\n"), false);
        let outputs: Vec<&str> = output.split(MARK).skip(1).collect();
        assert_eq!(outputs.len(), steps.len(), "{output}");
        for (index, ((command, (_, step)), shown)) in self.tries.iter().zip(steps).zip(outputs).enumerate() {
            match step {
                Step::Shows(parts) | Step::Streams(parts) => {
                    for part in *parts {
                        let (found, wanted) = (shown.to_lowercase(), self.on_these_ports(part).to_lowercase());
                        assert!(found.contains(&wanted), "{command}\ndoes not show `{wanted}`, but\n{shown}");
                    }
                }
                Step::Holds(look) => look(shown),
                Step::Beside(look) => look(&fs::read_to_string(self.root.path().join(format!("beside.{index}"))).unwrap()),
                Step::Elsewhere(why) => assert!(!why.is_empty()),
            }
        }
    }
}

/// Runs a script where `examples` is, with this build's `tollgate` in the path; its output. `succeeds`: it must.
#[track_caller]
fn run(dir: &Path, script: &str, succeeds: bool) -> String {
    let binary = Path::new(env!("CARGO_BIN_EXE_tollgate")).parent().unwrap();
    let path = format!("{}:{}", binary.display(), std::env::var("PATH").unwrap_or_default());
    let output = Command::new("bash").args(["-c", script]).current_dir(dir).env("PATH", path).stdin(Stdio::null()).output().unwrap();
    assert!(!succeeds || output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
