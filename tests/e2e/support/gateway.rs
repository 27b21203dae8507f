//! A gateway of one test, on free ports.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tollgate::config::load::Source;
use tollgate::gateway::status::ReloadOutcome;
use tollgate::server::{Options, Server};

use super::client::{self, Raw};
use super::dns::Dns;
use super::eventually;
use super::wire::Answer;

/// A running gateway, with its access log in a file.
pub struct Gateway {
    server: Option<Server>,
    dir: tempfile::TempDir,
}

/// Fills in upstream addresses for `@0`, `@1`, …, `@DIR` for the test's directory, and adds what every test needs but does not write:
/// a listener and an admin listener on free ports, an access log in a file, two workers, and a short drain.
fn complete(yaml: &str, upstreams: &[SocketAddr], dir: &Path) -> String {
    let mut text = yaml.to_owned();
    for (index, address) in upstreams.iter().enumerate().rev() {
        text = text.replace(&format!("@{index}"), &address.to_string());
    }
    text = text.replace("@DIR", &dir.display().to_string());
    let margin = text.lines().find(|line| !line.trim().is_empty()).map_or(0, |line| line.len() - line.trim_start().len());
    text = text.lines().map(|line| line.get(margin..).unwrap_or("")).collect::<Vec<_>>().join("\n") + "\n";
    for (key, block) in [
        ("listeners", "listeners: [{ address: '127.0.0.1:0' }]\n".to_owned()),
        ("admin", "admin: { address: '127.0.0.1:0' }\n".to_owned()),
        ("server", "server: { workers: 2, timeouts: { drain: 200ms } }\n".to_owned()),
        ("log", format!("log: {{ level: error, access: {{ output: '{}' }}, format: json }}\n", dir.join("access.log").display())),
    ] {
        if !text.lines().any(|line| line.starts_with(&format!("{key}:"))) {
            text.push_str(&block);
        }
    }
    text
}

impl Gateway {
    /// Starts a gateway; see [`complete`] for what `yaml` may leave out.
    #[track_caller]
    pub fn new(yaml: &str, upstreams: &[SocketAddr]) -> Self {
        Self::in_dir(tempfile::tempdir().unwrap(), yaml, upstreams)
    }

    /// The same with files that the configuration names, relative to the directory.
    #[track_caller]
    pub fn in_dir(dir: tempfile::TempDir, yaml: &str, upstreams: &[SocketAddr]) -> Self {
        Self::with(Options::default(), dir, yaml, upstreams)
    }

    /// The same where names are looked up with `dns`, and in a hosts file with these lines.
    #[track_caller]
    pub fn with_dns(dns: &Dns, hosts: &str, yaml: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let resolver = Some(dns.resolver(dir.path(), hosts));
        Self::with(Options { resolver, ..Options::default() }, dir, yaml, &[])
    }

    /// The same as a library user starts it.
    #[track_caller]
    pub fn with(options: Options, dir: tempfile::TempDir, yaml: &str, upstreams: &[SocketAddr]) -> Self {
        let yaml = complete(yaml, upstreams, dir.path());
        match Self::try_start(&yaml, dir.path(), options) {
            Ok(server) => Self { server: Some(server), dir },
            Err(error) => panic!("{error}\n{yaml}"),
        }
    }

    fn try_start(yaml: &str, dir: &Path, options: Options) -> Result<Server, String> {
        let source = Source::Text { yaml: yaml.to_owned(), dir: dir.to_owned() };
        Server::start(source, options).map_err(|error| error.to_string())
    }

    /// One route for everything to one upstream, with these lines in the route.
    #[track_caller]
    pub fn to(upstream: SocketAddr, route: &str) -> Self {
        Self::new(&Self::simple(route), &[upstream])
    }

    /// The configuration of [`Self::to`].
    pub fn simple(route: &str) -> String {
        let lines: String = route.lines().map(|line| format!("    {}\n", line)).collect();
        format!("upstreams:\n  up: {{ endpoints: [http://@0] }}\nroutes:\n  - name: all\n    match: /*\n    upstream: up\n{lines}")
    }

    /// Why a configuration does not start.
    pub fn start_error(yaml: &str, upstreams: &[SocketAddr]) -> Option<String> {
        let dir = tempfile::tempdir().unwrap();
        let yaml = complete(yaml, upstreams, dir.path());
        match Self::try_start(&yaml, dir.path(), Options::default()) {
            Ok(server) => {
                server.shutdown();
                None
            }
            Err(error) => Some(error),
        }
    }

    fn server(&self) -> &Server {
        self.server.as_ref().unwrap()
    }
    pub fn dir(&self) -> PathBuf {
        self.dir.path().to_owned()
    }
    /// The first listener.
    pub fn address(&self) -> SocketAddr {
        self.addresses()[0]
    }
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.server().addresses()
    }
    pub fn admin(&self) -> SocketAddr {
        self.server().admin_address().unwrap()
    }
    pub fn connect(&self) -> Raw {
        Raw::connect(self.address())
    }

    /// One GET on a connection of its own.
    #[track_caller]
    pub fn get(&self, path: &str) -> Answer {
        self.connect().ask(client::get(path))
    }
    /// One request on a connection of its own.
    #[track_caller]
    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let mut raw = self.connect();
        raw.send(client::request(method, path, headers, body));
        if method == "HEAD" { raw.read_to_head() } else { raw.read() }
    }
    /// These bytes on a connection of their own; the first answer.
    #[track_caller]
    pub fn ask(&self, bytes: impl AsRef<[u8]>) -> Answer {
        self.connect().ask(bytes)
    }

    /// A page of the admin listener.
    #[track_caller]
    pub fn admin_get(&self, path: &str) -> Answer {
        Raw::connect(self.admin()).ask(client::request("GET", path, &[("host", "localhost"), ("connection", "close")], ""))
    }
    /// The value of a series of `/metrics`, written as there; 0 where there is none.
    #[track_caller]
    pub fn metric(&self, series: &str) -> f64 {
        let text = self.admin_get("/metrics").text();
        let line = text.lines().find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')));
        line.map_or(0.0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
    }
    /// Waits until a series has this value.
    #[track_caller]
    pub fn metric_becomes(&self, series: &str, value: f64) {
        let mut last = 0.0;
        let end = std::time::Instant::now() + super::PATIENCE;
        while std::time::Instant::now() < end {
            last = self.metric(series);
            if (last - value).abs() < 1e-9 {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let name = series.split('{').next().unwrap();
        let all = self.admin_get("/metrics").text();
        let near: Vec<&str> = all.lines().filter(|line| line.starts_with(name)).collect();
        panic!("{series} is {last}, not {value}; there is {near:#?}");
    }

    /// What SIGHUP does to logs, after a rotation.
    pub fn reopen_logs(&self) {
        self.server().reopen_logs();
    }
    pub fn log_path(&self) -> PathBuf {
        self.dir.path().join("access.log")
    }
    /// The lines of the access log so far.
    pub fn log_text(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }
    pub fn log(&self) -> Vec<Value> {
        let text = self.log_text();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
    }
    /// Waits for a line whose path is this.
    #[track_caller]
    pub fn logged(&self, path: &str) -> Value {
        eventually(&format!("a log line of {path}"), || self.log().into_iter().find(|line| line["path"] == path))
    }

    /// Reloads with another configuration.
    pub fn reload(&self, yaml: &str, upstreams: &[SocketAddr]) -> ReloadOutcome {
        self.server().replace(complete(yaml, upstreams, self.dir.path()));
        self.server().reload()
    }
    /// The same, where it has to succeed.
    #[track_caller]
    pub fn reload_ok(&self, yaml: &str, upstreams: &[SocketAddr]) {
        match self.reload(yaml, upstreams) {
            ReloadOutcome::Ok { .. } => {}
            outcome => panic!("{outcome:?}"),
        }
    }

    /// Begins a shutdown in the background.
    pub fn begin_shutdown(mut self) -> Stopping {
        let server = self.server.take().unwrap();
        let (address, admin) = (server.addresses()[0], server.admin_address());
        Stopping { address, admin, thread: std::thread::spawn(move || server.shutdown()), gateway: self }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.shutdown();
        }
    }
}

/// A gateway on its way out.
pub struct Stopping {
    pub address: SocketAddr,
    pub admin: Option<SocketAddr>,
    thread: std::thread::JoinHandle<()>,
    pub gateway: Gateway,
}

impl Stopping {
    pub fn is_over(&self) -> bool {
        self.thread.is_finished()
    }
    /// Waits for its end.
    pub fn join(self) -> Gateway {
        eventually("the shutdown ends", || self.is_over().then_some(()));
        self.thread.join().unwrap();
        self.gateway
    }
}
