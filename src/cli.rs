//! The command line: `tollgate [OPTIONS] [COMMAND]`. Flags beat environment variables, these beat the file, the file beats defaults.

pub mod explain;
pub mod serve;

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use tollgate::config::problem::Report;
use tollgate::config::server::{Admin, Listener, LogLevel};
use tollgate::config::{Config, load};
use tollgate::gateway::{Shared, Snapshot, compile};

/// Done; for `explain`: a route matched.
pub const DONE: u8 = 0;
/// A failure at run time: an address that cannot be bound, I/O.
pub const FAILED: u8 = 1;
/// A bad configuration, or bad usage.
pub const BAD_CONFIG: u8 = 2;
/// `explain` found no route.
pub const NO_ROUTE: u8 = 3;
/// Longest wait of `health`.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(3);

/// A fast reverse-proxy API gateway: one binary, one YAML file.
#[derive(Debug, Parser)]
#[command(name = "tollgate", version = version_text(), max_term_width = 100, subcommand_required = false)]
pub struct Cli {
    /// What applies to every command.
    #[command(flatten)]
    pub options: Options,
    /// What to do; `serve` if left out.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Options of every command.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// The configuration file
    #[arg(
        short,
        long,
        global = true,
        value_name = "FILE",
        env = "GATEWAY_CONFIG",
        default_value = "./gateway.yaml",
        hide_env_values = true
    )]
    pub config: PathBuf,
    /// Least severe level written: error, warn, info, debug or trace
    #[arg(long, global = true, value_name = "LEVEL", env = "GATEWAY_LOG_LEVEL", hide_env_values = true, value_parser = log_level)]
    pub log_level: Option<LogLevel>,
    /// Listen here in clear text instead of on the file's listeners (repeatable)
    #[arg(long, global = true, value_name = "ADDRESS", env = "GATEWAY_LISTEN", value_delimiter = ',', hide_env_values = true, value_parser = address)]
    pub listen: Vec<String>,
    /// Address of the admin listener
    #[arg(long, global = true, value_name = "ADDRESS", env = "GATEWAY_ADMIN", hide_env_values = true, value_parser = address)]
    pub admin: Option<String>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the gateway (the default)
    Serve,
    /// Try it: start three built-in backends and serve the example configuration
    Demo,
    /// Ask a running gateway's admin address for /ready: exit 0 or 1, for container health checks
    Health,
    /// Check the configuration and print all problems
    Check {
        /// The file, as with --config
        file: Option<PathBuf>,
    },
    /// Show which route a request takes, and why
    Explain(Explain),
    /// Print the JSON Schema of gateway.yaml
    Schema,
    /// API keys
    #[command(subcommand)]
    Key(Key),
    /// Print version and commit
    Version,
}

/// A request to explain.
#[derive(Debug, Args)]
pub struct Explain {
    /// Its method
    pub method: String,
    /// Its URL, with scheme and host, or only a path
    pub url: String,
    /// A header of it, as 'name: value' (repeatable)
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    pub headers: Vec<String>,
}

/// What to do with API keys.
#[derive(Debug, Subcommand)]
pub enum Key {
    /// Make a key: prints it, once, and the entry for the configuration
    New(NewKey),
}

/// A key to make.
#[derive(Debug, Args)]
pub struct NewKey {
    /// Who will hold it: letters, digits, `.`, `_` and `-`
    #[arg(value_parser = key_id)]
    pub id: String,
    /// A scope it gets (repeatable)
    #[arg(long = "scope", value_name = "SCOPE")]
    pub scopes: Vec<String>,
    /// Last day it is valid (UTC), like 2027-12-31
    #[arg(long, value_name = "DATE", value_parser = date)]
    pub expires: Option<String>,
}

impl Options {
    /// Puts flags and environment over what the file says.
    pub fn apply(&self, config: &mut Config) {
        if let Some(level) = self.log_level {
            config.log.level = level;
        }
        if !self.listen.is_empty() {
            let listener = |address: &String| Listener { address: address.clone(), proxy_protocol: false, tls: None };
            config.listeners = Some(self.listen.iter().map(listener).collect());
        }
        if let Some(address) = &self.admin {
            config.admin.get_or_insert_with(Admin::default).address.clone_from(address);
        }
    }
}

/// `0.1.0 (COMMIT)`.
pub fn version_text() -> &'static str {
    static TEXT: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| format!("{} ({})", env!("CARGO_PKG_VERSION"), tollgate::COMMIT));
    &TEXT
}

fn log_level(text: &str) -> Result<LogLevel, String> {
    let levels = [
        ("error", LogLevel::Error),
        ("warn", LogLevel::Warn),
        ("info", LogLevel::Info),
        ("debug", LogLevel::Debug),
        ("trace", LogLevel::Trace),
    ];
    let found = levels.into_iter().find(|(name, _)| *name == text).map(|(_, level)| level);
    found.ok_or_else(|| "write error, warn, info, debug or trace".to_owned())
}

fn address(text: &str) -> Result<String, String> {
    let parsed: Result<SocketAddr, _> = text.trim().parse();
    parsed.map(|address| address.to_string()).map_err(|_| "write an IP address and a port, like 0.0.0.0:8080 or [::]:8080".to_owned())
}

fn key_id(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if text.is_empty() || text.len() > 64 || !text.chars().all(plain) {
        return Err("write up to 64 letters, digits, `.`, `_` and `-`".to_owned());
    }
    Ok(text.to_owned())
}

/// A calendar date that exists.
fn date(text: &str) -> Result<String, String> {
    let wrong = || "write a date like 2027-12-31".to_owned();
    let numbers: Vec<&str> = text.split('-').collect();
    let [year, month, day] = numbers.as_slice() else { return Err(wrong()) };
    let digits = |s: &str, len: usize| (s.len() == len && s.bytes().all(|b| b.is_ascii_digit())).then(|| s.parse::<u32>().ok()).flatten();
    let (Some(year), Some(month), Some(day)) = (digits(year, 4), digits(month, 2), digits(day, 2)) else { return Err(wrong()) };
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        4 | 6 | 9 | 11 => 30,
        2 if leap => 29,
        2 => 28,
        1..=12 => 31,
        _ => return Err(wrong()),
    };
    if (1..=days).contains(&day) { Ok(text.to_owned()) } else { Err(format!("{text} is not a day of the calendar")) }
}

/// Loads and compiles the configuration without starting anything: what a load does except network and binding.
pub(crate) fn compiled(options: &Options) -> Result<Snapshot, Vec<Report>> {
    let mut loaded = load::load(&load::Source::File(options.config.clone()));
    options.apply(&mut loaded.config);
    compile(&Shared::new(1, None), loaded, None, 1)
}

/// `check`: prints all problems of the configuration.
pub fn check(options: &Options, file: Option<&PathBuf>) -> io::Result<ExitCode> {
    let mut options = options.clone();
    options.config = file.cloned().unwrap_or(options.config);
    match compiled(&options) {
        Ok(snapshot) => {
            print_reports(&snapshot.source.warnings)?;
            let files = snapshot.source.files.join(", ");
            writeln!(io::stdout(), "{files}: ok ({} routes, {} upstreams)", snapshot.routes.len(), snapshot.upstreams.len())?;
            Ok(ExitCode::from(DONE))
        }
        Err(reports) => {
            print_reports(&reports)?;
            let errors = reports.iter().filter(|report| !report.warning).count();
            writeln!(io::stderr(), "{errors} problem{}", if errors == 1 { "" } else { "s" })?;
            Ok(ExitCode::from(BAD_CONFIG))
        }
    }
}

/// Prints problems, each with its place, line and help.
pub(crate) fn print_reports(reports: &[Report]) -> io::Result<()> {
    let mut err = io::stderr().lock();
    reports.iter().try_for_each(|report| writeln!(err, "{report}\n"))
}

/// `health`: asks the admin listener of the configuration for `/ready`.
pub fn health(options: &Options) -> io::Result<ExitCode> {
    let (status, body) = tollgate::admin::client::ready(asked(options)?, PATIENCE)?;
    writeln!(io::stdout(), "{}", body.trim_end())?;
    Ok(ExitCode::from(if status == 200 { DONE } else { FAILED }))
}

/// Where `health` asks. Of a file with mistakes what can be read counts, and else the default: the gateway serves on with the last good
/// configuration, and must not look sick because of a typo.
fn asked(options: &Options) -> io::Result<SocketAddr> {
    let mut loaded = load::load(&load::Source::File(options.config.clone()));
    options.apply(&mut loaded.config);
    let broken = loaded.problems.has_errors();
    let admin = match loaded.config.admin {
        Some(admin) => admin,
        None if broken => Admin::default(),
        None => return Err(io::Error::other(format!("{} has no `admin` to ask", options.config.display()))),
    };
    match admin.address.parse() {
        Ok(address) => Ok(address),
        Err(_) if broken => Admin::default().address.parse().map_err(io::Error::other),
        Err(_) => Err(io::Error::other(format!("`{}` is not an address", admin.address))),
    }
}

/// `schema`: prints the JSON Schema of `gateway.yaml`.
pub fn schema() -> io::Result<ExitCode> {
    let schema = serde_json::to_string_pretty(&tollgate::config::schema::json_schema())?;
    writeln!(io::stdout(), "{schema}")?;
    Ok(ExitCode::from(DONE))
}

/// `version`: prints version and commit.
pub fn version() -> io::Result<ExitCode> {
    writeln!(io::stdout(), "tollgate {}", version_text())?;
    Ok(ExitCode::from(DONE))
}

/// `key new`: prints a key and its entry.
pub fn key_new(new: &NewKey) -> io::Result<ExitCode> {
    let (key, entry) = tollgate::middleware::auth::new_key(&new.id, &new.scopes, new.expires.as_deref()).map_err(io::Error::other)?;
    let mut out = io::stdout().lock();
    writeln!(out, "key (shown only now; give it to {}):\n  {key}\n\nentry for `api_key.keys`:\n  {entry}", new.id)?;
    Ok(ExitCode::from(DONE))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn serve_is_the_default_and_options_stand_before_or_behind_the_command() {
        let cli = Cli::try_parse_from(["tollgate", "-c", "a.yaml", "--listen", "127.0.0.1:1", "--listen", "[::1]:2"]).unwrap();
        assert!(cli.command.is_none());
        assert_eq!(cli.options.config, PathBuf::from("a.yaml"));
        assert_eq!(cli.options.listen, ["127.0.0.1:1", "[::1]:2"]);
        let cli = Cli::try_parse_from(["tollgate", "check", "--config", "b.yaml", "--log-level", "debug"]).unwrap();
        assert!(matches!(cli.command, Some(Command::Check { file: None })));
        assert_eq!(cli.options.log_level, Some(LogLevel::Debug));
        let cli = Cli::try_parse_from(["tollgate", "check", "c.yaml"]).unwrap();
        assert!(matches!(cli.command, Some(Command::Check { file: Some(file) }) if file.ends_with("c.yaml")));
    }

    #[test]
    fn explain_takes_headers() {
        let cli = Cli::try_parse_from(["tollgate", "explain", "GET", "http://a/x", "-H", "a: b", "-H", "c: d"]).unwrap();
        let Some(Command::Explain(explain)) = cli.command else { panic!("not explain") };
        assert_eq!((explain.method.as_str(), explain.headers.len()), ("GET", 2));
    }

    #[test]
    fn wrong_usage_exits_2() {
        for wrong in [&["tollgate", "--listen", "localhost"][..], &["tollgate", "nonsense"], &["tollgate", "key", "new", "a b"]] {
            assert_eq!(Cli::try_parse_from(wrong.iter()).unwrap_err().exit_code(), 2, "{wrong:?}");
        }
    }

    #[test]
    fn flags_replace_what_the_file_says() {
        let cli = Cli::try_parse_from(["tollgate", "--listen", "127.0.0.1:1", "--admin", "127.0.0.1:2"]).unwrap();
        let mut config = Config::default();
        cli.options.apply(&mut config);
        assert_eq!(config.listeners.unwrap()[0].address, "127.0.0.1:1");
        assert_eq!(config.admin.unwrap().address, "127.0.0.1:2");
    }

    #[test]
    fn health_asks_the_running_gateway_whatever_was_saved_meanwhile() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gateway.yaml");
        let asks = |yaml: &str, flags: &[&str]| {
            std::fs::write(&path, yaml).unwrap();
            let cli = Cli::try_parse_from(["tollgate", "-c", &path.display().to_string()].iter().chain(flags)).unwrap();
            asked(&cli.options).map(|address| address.to_string()).map_err(|error| error.to_string())
        };
        let here = "admin: { address: 127.0.0.1:1234 }\n";
        for (yaml, flags, wanted) in [
            (format!("{here}routes: []\n"), &[][..], "127.0.0.1:1234"),
            (format!("{here}routes: [{{ match: /*, respnd: {{}} }}]\n"), &[], "127.0.0.1:1234"),
            (format!("{here}routes: [\n"), &[], "127.0.0.1:9901"),
            (format!("{here}routes: [\n"), &["--admin", "127.0.0.1:4321"], "127.0.0.1:4321"),
            ("admin: { address: nowhere, x: y }\n".to_owned(), &[], "127.0.0.1:9901"),
        ] {
            assert_eq!(asks(&yaml, flags).as_deref(), Ok(wanted), "{yaml}");
        }
        let none = asks("routes: []\n", &[]).unwrap_err();
        assert!(none.ends_with("has no `admin` to ask"), "{none}");
    }

    #[test]
    fn dates_must_exist() {
        assert!(date("2028-02-29").is_ok());
        for wrong in ["2027-02-29", "2027-13-01", "2027-1-1", "tomorrow", "2027-12-31-1"] {
            assert!(date(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_key_and_its_entry_fit_and_no_two_keys_are_equal() {
        let new = NewKey { id: "acme".to_owned(), scopes: vec!["orders:read".to_owned()], expires: Some("2027-12-31".to_owned()) };
        let (key, entry) = tollgate::middleware::auth::new_key(&new.id, &new.scopes, new.expires.as_deref()).unwrap();
        assert!(key.starts_with("tg_acme_") && key.len() == 8 + 43, "{key}");
        assert_ne!(tollgate::middleware::auth::new_key(&new.id, &new.scopes, new.expires.as_deref()).unwrap().0, key);
        let yaml = format!("authenticators:\n  a:\n    api_key:\n      keys:\n        {entry}\n");
        let loaded = tollgate::config::load::load(&tollgate::config::load::Source::Text { yaml, dir: PathBuf::new() });
        assert!(loaded.reports().is_empty(), "{:?}", loaded.reports());
        let keys = &loaded.config.authenticators["a"].api_key.as_ref().unwrap().keys;
        assert_eq!((keys[0].id.as_str(), keys[0].scopes.len(), keys[0].expires.as_deref()), ("acme", 1, Some("2027-12-31")));
    }
}
