//! Application events: one function each, so that every line has the same words and fields wherever it comes from.
//!
//! No event carries a secret, a substituted value or the text of a request.

use std::fmt;
use std::io::{self, IsTerminal};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::OnceLock;

use tracing::{error, info, warn};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Layered, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer, Registry, fmt as lines, reload};

use crate::config::problem::Report;
use crate::config::server::{LogFormat, LogLevel};

type Filtered = Layered<reload::Layer<LevelFilter, Registry>, Registry>;
type Lines = Box<dyn Layer<Filtered> + Send + Sync>;

/// Level and form in force, changeable while the process runs.
static LOG: OnceLock<(reload::Handle<LevelFilter, Registry>, reload::Handle<Lines, Filtered>)> = OnceLock::new();

/// Starts the application log on standard error; later calls change level and form. False if another subscriber is installed, as in a
/// program that embeds the gateway: then that one decides.
pub fn init(level: LogLevel, format: LogFormat) -> bool {
    if let Some((filtering, writing)) = LOG.get() {
        return filtering.reload(filter(level)).is_ok() && writing.reload(form(format)).is_ok();
    }
    let (filtering, level) = reload::Layer::new(filter(level));
    let (writing, format) = reload::Layer::new(form(format));
    let installed = tracing_subscriber::registry().with(filtering).with(writing).try_init().is_ok();
    installed && LOG.set((level, format)).is_ok()
}

fn form(format: LogFormat) -> Lines {
    let terminal = io::stderr().is_terminal();
    let text = match format {
        LogFormat::Auto => terminal,
        LogFormat::Text => true,
        LogFormat::Json => false,
    };
    // Every event comes from this file, so its target says nothing.
    let layer = lines::layer().with_writer(io::stderr).with_target(false);
    if text { layer.with_ansi(terminal).boxed() } else { layer.json().flatten_event(true).with_current_span(false).boxed() }
}

const fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

/// The process begins.
pub fn starting(version: &str, commit: &str, workers: usize) {
    info!(version, commit, workers, "starting");
}

/// A listener takes connections.
pub fn listener_bound(address: SocketAddr, tls: bool) {
    info!(%address, tls, "listening");
}

/// The service manager has passed a socket that no listener asks for: its clients wait for nobody.
pub fn passed_socket_unused(address: SocketAddr) {
    warn!(%address, "the service manager passed a socket for this address, but no listener has it");
}

/// A listener that left the configuration takes no more connections.
pub fn listener_closed(address: SocketAddr) {
    info!(%address, "listener closed, its connections drain");
}

/// The admin listener takes connections.
pub fn admin_bound(address: SocketAddr) {
    info!(%address, "admin listening");
}

/// Accepting failed, as with no file descriptor left. The acceptor pauses.
pub fn accept_failed(address: SocketAddr, error: &io::Error) {
    warn!(%address, %error, "cannot accept connections");
}

/// A worker could not have an epoll instance of its own, as with no file descriptor left: its sockets are the runtime's.
pub fn no_reactor(worker: usize, error: &io::Error) {
    warn!(worker, %error, "a worker runs its connections without an epoll instance of its own, and slower");
}

/// A configuration serves.
pub fn config_loaded(path: &Path, generation: u64, routes: usize, millis: u64) {
    info!(path = %path.display(), generation, routes, duration_ms = millis, "configuration loaded");
}

/// A reload found what serves already.
pub fn config_unchanged(path: &Path) {
    info!(path = %path.display(), "configuration unchanged");
}

/// A reload failed; the last good configuration serves. One line for each problem.
pub fn reload_failed(path: &Path, problems: &[Report]) {
    error!(path = %path.display(), problems = problems.len(), "reload failed, the last good configuration serves");
    for problem in problems {
        config_problem(problem);
    }
}

/// A problem of the configuration.
pub fn config_problem(problem: &Report) {
    let at = format_args!("{}:{}:{}", problem.file, problem.line, problem.column);
    let help = problem.help.as_deref();
    if problem.warning {
        warn!(%at, help, "{}", problem.message);
    } else {
        error!(%at, help, "{}", problem.message);
    }
}

/// Settings changed that only a restart applies.
pub fn restart_needed(settings: &[String]) {
    warn!(settings = settings.join(", "), "a restart is needed for these settings to apply");
}

/// Health checks took an endpoint out, or brought it back.
pub fn endpoint_health(upstream: &str, endpoint: &str, healthy: bool, error: Option<&str>) {
    if healthy {
        info!(upstream, endpoint, "endpoint is healthy");
    } else {
        warn!(upstream, endpoint, error, "endpoint is unhealthy");
    }
}

/// Requests cannot connect to an endpoint. Told now and then, not for each.
pub fn endpoint_unreached(upstream: &str, endpoint: &str, error: &str) {
    warn!(upstream, endpoint, error, "cannot connect to this endpoint");
}

/// Outlier detection took an endpoint out.
pub fn endpoint_ejected(upstream: &str, endpoint: &str, duration: std::time::Duration) {
    warn!(upstream, endpoint, duration_ms = millis(duration), "endpoint ejected");
}

/// So few endpoints are available that all are used, or no longer.
pub fn upstream_panic(upstream: &str, panic: bool) {
    if panic {
        warn!(upstream, "too few endpoints are available, all are used");
    } else {
        info!(upstream, "enough endpoints are available again");
    }
}

/// Endpoints of an upstream changed by discovery.
pub fn endpoints_changed(upstream: &str, endpoints: usize) {
    info!(upstream, endpoints, "endpoints changed");
}

/// A name could not be resolved; the last addresses are used.
pub fn discovery_failed(upstream: &str, error: &dyn fmt::Display) {
    warn!(upstream, %error, "name cannot be resolved, the last addresses are used");
}

/// A certificate serves.
pub fn certificate_loaded(listener: &str, certificate: &str, expires: &str) {
    info!(listener, certificate, expires, "certificate loaded");
}

/// A changed certificate is broken; the old one serves.
pub fn certificate_refused(listener: &str, certificate: &str, error: &dyn fmt::Display) {
    error!(listener, certificate, %error, "certificate refused, the old one serves");
}

/// Another watched file changed and is broken; its last good content is used.
pub fn file_refused(path: &Path, error: &dyn fmt::Display) {
    error!(path = %path.display(), %error, "file refused, its last good content is used");
}

/// A key set was fetched.
pub fn jwks_fetched(authenticator: &str, keys: usize) {
    info!(authenticator, keys, "key set fetched");
}

/// A key set could not be fetched; old keys serve as long as they may.
pub fn jwks_failed(authenticator: &str, error: &dyn fmt::Display) {
    warn!(authenticator, %error, "key set cannot be fetched");
}

/// A key set is fetched in clear text.
pub fn jwks_insecure(authenticator: &str) {
    warn!(authenticator, "key set is fetched over http, anyone on the way can replace it");
}

/// A store answers, for the first time or again.
pub fn store_up(store: &str, gateways: u32) {
    info!(store, gateways, "store is up");
}

/// A store answers no more.
pub fn store_down(store: &str, error: &str) {
    warn!(store, error, "store is down, limits are decided locally");
}

/// An attempt to reach a store has failed, for another reason than the last one.
pub fn store_unreachable(store: &str, error: &str) {
    warn!(store, error, "store cannot be reached, limits are decided locally; it is tried on");
}

/// A store answers, but takes no connection of a worker.
pub fn store_refuses_worker(store: &str, error: &dyn std::fmt::Display) {
    warn!(store, %error, "a worker cannot connect to the store, it decides limits locally; it tries on");
}

/// An upstream's certificates are not verified.
pub fn upstream_not_verified(upstream: &str) {
    warn!(upstream, "tls.verify is false: anyone on the way can read and change what is sent to this upstream");
}

/// A shutdown began.
pub fn draining(requests: u64, limit: Option<std::time::Duration>) {
    info!(requests, limit_ms = limit.map(millis), "draining");
}

/// A shutdown ended; `cut` requests were not finished in time.
pub fn drained(cut: u64) {
    if cut == 0 { info!("stopped") } else { warn!(cut, "stopped, some requests were cut") }
}

/// A request panicked: a defect. The panic's text stays out, for it may hold anything.
pub fn request_panicked(request_id: &str) {
    error!(request_id, "a request panicked, which is a defect; it was answered with 500");
}

/// The access log cannot be written; lines are dropped and counted.
pub fn access_log_failed(error: &io::Error) {
    warn!(%error, "access log cannot be written, lines are dropped");
}

/// The access log's file cannot be opened anew; the old one is written.
pub fn access_log_not_reopened(path: &Path, error: &io::Error) {
    error!(path = %path.display(), %error, "access log cannot be reopened, the old file is written");
}

/// The service manager cannot be told of a change.
pub fn notify_failed(error: &io::Error) {
    warn!(%error, "service manager cannot be notified");
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(event: impl FnOnce()) -> String {
        let memory = Memory::default();
        let writer = memory.clone();
        let layer = lines::layer().with_writer(move || writer.clone()).json().flatten_event(true).with_current_span(false);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), event);
        String::from_utf8(memory.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn an_event_is_one_json_object_with_its_fields() {
        let text = logged(|| endpoint_health("users", "http://a:80", false, Some("status 503, expected 200-399\nx")));
        assert_eq!(text.lines().count(), 1);
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["level"], "WARN");
        assert_eq!(line["message"], "endpoint is unhealthy");
        assert_eq!(line["upstream"], "users");
        assert_eq!(line["error"], "status 503, expected 200-399\nx");
    }

    #[test]
    fn a_failed_reload_logs_every_problem_with_its_place() {
        let problem = |line, warning| Report {
            file: "gateway.yaml".to_owned(),
            line,
            column: 7,
            message: "unknown field `timout`".to_owned(),
            help: Some("did you mean `timeout`?".to_owned()),
            source_line: None,
            warning,
        };
        let text = logged(|| reload_failed(Path::new("gateway.yaml"), &[problem(42, false), problem(43, true)]));
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0]["problems"], 2);
        assert_eq!((&lines[1]["at"], &lines[1]["level"]), (&"gateway.yaml:42:7".into(), &"ERROR".into()));
        assert_eq!((&lines[2]["at"], &lines[2]["level"]), (&"gateway.yaml:43:7".into(), &"WARN".into()));
        assert_eq!(lines[1]["help"], "did you mean `timeout`?");
    }
}
