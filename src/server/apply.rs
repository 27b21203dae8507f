//! A configuration put into effect: at the start, and at every reload. All of it or nothing.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, watch};

use crate::admin;
use crate::config::load::{self, Loaded, Source};
use crate::config::problem::Report;
use crate::config::watch::Watcher;
use crate::config::{At, Problems};
use crate::discovery::Dns;
use crate::gateway::shared::contents;
use crate::gateway::snapshot::ListenerSpec;
use crate::gateway::status::ReloadOutcome;
use crate::gateway::target::UpstreamHandle;
use crate::gateway::{Snapshot, compile_and};
use crate::health::probe::TlsConnect;
use crate::middleware::auth;
use crate::server::Options;
use crate::server::acceptor::Acceptor;
use crate::server::listener::{Listener, Stage, bind, bind_error};
use crate::server::worker::State;
use crate::telemetry::metrics::{Metrics, Reload};
use crate::telemetry::{events, sd_notify};
use crate::upstream::{Background, Endpoint};

/// How long a request that was on the wire when draining began has to arrive.
pub(super) const GRACE: Duration = Duration::from_secs(1);

/// The part of a server that reloads change and the admin listener shows.
pub struct Core {
    /// What all threads know.
    pub(super) state: Arc<State>,
    /// Where the configuration comes from.
    pub(super) source: Mutex<Source>,
    /// How the server was started.
    pub(super) options: Options,
    /// Runtime of background work.
    pub(super) control: tokio::runtime::Handle,
    /// Whether a shutdown has begun.
    pub(super) draining: AtomicBool,
    /// When the server started.
    pub(super) started: (SystemTime, Instant),
    pub(super) applied: Mutex<Applied>,
    pub(super) last: Mutex<LastLoad>,
    pub(super) acceptor: Mutex<Acceptor>,
    /// One reload at a time.
    pub(super) reloading: Mutex<()>,
    changed: mpsc::Sender<()>,
}

/// What the last configuration put into effect.
#[derive(Default)]
pub(super) struct Applied {
    pub(super) listeners: Vec<Arc<Listener>>,
    pub(super) admin: Option<AdminListener>,
    pub(super) background: Vec<Background>,
    auth: Option<auth::Handle>,
    watcher: Option<Watcher>,
    /// Hash over the contents of all watched files.
    contents: u64,
}

/// How the last load ended.
#[derive(Clone, Debug, Default)]
pub(super) struct LastLoad {
    pub(super) at: Option<SystemTime>,
    pub(super) result: Option<&'static str>,
    pub(super) errors: Vec<Report>,
    pub(super) restart_needed: Vec<String>,
}

/// A running admin listener.
pub(super) struct AdminListener {
    configured: SocketAddr,
    pub(super) address: SocketAddr,
    settings: Arc<ArcSwap<admin::Settings>>,
    pub(super) stop: watch::Sender<bool>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sockets bound for a configuration that is about to serve.
#[derive(Default)]
pub(super) struct Sockets {
    listeners: Vec<(SocketAddr, Vec<std::net::TcpListener>)>,
    admin: Option<std::net::TcpListener>,
}

/// Binds what `snapshot` needs beside what is bound already, with a socket for each of `workers`; an address that the service manager
/// has passed a socket for is not bound anew.
///
/// # Errors
/// All addresses that cannot be bound.
pub(super) fn bind_new(
    snapshot: &Snapshot,
    applied: &Applied,
    inherited: &[std::net::TcpListener],
    workers: usize,
) -> Result<Sockets, Vec<(At, String, String)>> {
    let mut sockets = Sockets::default();
    let mut problems = Vec::new();
    let mut get = |address: SocketAddr, count: usize, at: At| {
        // A copy: the service manager holds the socket on, so a listener that leaves and comes back, or fails to, needs it again.
        let passed = inherited.iter().find(|socket| socket.local_addr().is_ok_and(|bound| bound == address));
        passed
            .map_or_else(|| bind(address, count), |socket| Ok(vec![socket.try_clone()?]))
            .map_err(|error| {
                let (message, help) = bind_error(address, &error);
                problems.push((at, message, help));
            })
            .ok()
    };
    for (index, spec) in snapshot.listeners.iter().enumerate() {
        if !applied.listeners.iter().any(|listener| listener.configured == spec.address) {
            let bound = get(spec.address, workers, At::main("listeners").index(index).key("address"));
            sockets.listeners.extend(bound.map(|bound| (spec.address, bound)));
        }
    }
    if let Some(address) = admin_address(snapshot)
        && applied.admin.as_ref().is_none_or(|admin| admin.configured != address)
    {
        sockets.admin = get(address, 1, At::main("admin").key("address")).and_then(|mut bound| bound.pop());
    }
    if problems.is_empty() { Ok(sockets) } else { Err(problems) }
}

pub(super) fn admin_address(snapshot: &Snapshot) -> Option<SocketAddr> {
    snapshot.config.admin.as_ref().and_then(|admin| admin.address.parse().ok())
}

impl Core {
    pub(super) fn new(
        state: Arc<State>,
        source: Source,
        options: Options,
        control: tokio::runtime::Handle,
        acceptor: Acceptor,
        changed: mpsc::Sender<()>,
    ) -> Arc<Self> {
        Arc::new(Self {
            state,
            source: Mutex::new(source),
            options,
            control,
            draining: AtomicBool::new(false),
            started: (SystemTime::now(), Instant::now()),
            applied: Mutex::default(),
            last: Mutex::default(),
            acceptor: Mutex::new(acceptor),
            reloading: Mutex::new(()),
            changed,
        })
    }

    fn metrics(&self) -> &Arc<Metrics> {
        &self.state.shared.metrics
    }

    /// The configuration that serves.
    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        self.state.snapshot.load_full()
    }

    fn source_path(&self) -> PathBuf {
        match &*lock(&self.source) {
            Source::File(path) => path.clone(),
            Source::Text { .. } => PathBuf::from("(text)"),
        }
    }

    /// Reads the configuration again and puts it into effect, unless nothing changed. Blocks; not for runtimes' threads.
    pub(super) fn reload(self: &Arc<Self>) -> ReloadOutcome {
        let _one_at_a_time = lock(&self.reloading);
        let begun = Instant::now();
        let path = self.source_path();
        // systemd wants to hear of both; whoever runs without it hears nothing.
        notify(sd_notify::State::Reloading);
        let outcome = self.reload_inner(&path, begun);
        notify(sd_notify::State::Ready);
        let (word, result, errors) = match &outcome {
            ReloadOutcome::Ok { .. } => ("ok", Reload::Ok, Vec::new()),
            ReloadOutcome::Unchanged => ("unchanged", Reload::Unchanged, Vec::new()),
            ReloadOutcome::Failed { errors } => ("failed", Reload::Failed, errors.clone()),
        };
        self.metrics().reload(result);
        let mut last = lock(&self.last);
        last.at = Some(SystemTime::now());
        last.result = Some(word);
        last.errors = errors;
        outcome
    }

    fn reload_inner(self: &Arc<Self>, path: &Path, begun: Instant) -> ReloadOutcome {
        let current = self.snapshot();
        // Before anything is read: a file that changes while it is read is then seen as changed again, not as applied.
        let watched = contents(&current.source.watch);
        let loaded = load_source(&lock(&self.source).clone(), &self.options);
        if loaded.hash == current.source.hash && watched == lock(&self.applied).contents && !loaded.problems.has_errors() {
            events::config_unchanged(path);
            return ReloadOutcome::Unchanged;
        }
        let generation = current.generation + 1;
        let (inherited, workers) = (&self.options.inherited, self.state.seats.count());
        let bind = |snapshot: &Snapshot, problems: &mut Problems| match bind_new(snapshot, &lock(&self.applied), inherited, workers) {
            Ok(sockets) => sockets,
            Err(found) => {
                for (at, message, help) in found {
                    problems.error(at, message).help(help);
                }
                Sockets::default()
            }
        };
        let outcome = compile_and(&self.state.shared, loaded, Some(&current), generation, bind);
        match outcome {
            Err(reports) => {
                let errors: Vec<Report> = reports.into_iter().filter(|report| !report.warning).collect();
                events::reload_failed(path, &errors);
                ReloadOutcome::Failed { errors }
            }
            Ok((snapshot, sockets)) => {
                self.commit(&Arc::new(snapshot), sockets, Some((&current, watched)));
                let duration_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
                events::config_loaded(path, generation, self.snapshot().routes.len(), duration_ms);
                ReloadOutcome::Ok { generation, duration_ms }
            }
        }
    }

    /// Makes `snapshot` the one that serves. Nothing in here can fail. `before`: what served, and the hash of its files before they were read.
    pub(super) fn commit(self: &Arc<Self>, snapshot: &Arc<Snapshot>, sockets: Sockets, before: Option<(&Snapshot, u64)>) {
        for warning in &snapshot.source.warnings {
            events::config_problem(warning);
        }
        events::init(snapshot.config.log.level, snapshot.config.log.format);
        let restart_needed = self.restart_needed(snapshot);
        if !restart_needed.is_empty() {
            events::restart_needed(&restart_needed);
        }
        lock(&self.last).restart_needed = restart_needed;
        let mut applied = lock(&self.applied);
        self.state.serve(snapshot);
        self.state.shared.serve_log(&snapshot.config.log, &snapshot.access_log);
        self.state.closed.notify_one();
        self.apply_listeners(snapshot, &mut applied, sockets.listeners);
        self.apply_admin(snapshot, &mut applied, sockets.admin);
        self.apply_background(snapshot, &mut applied);
        applied.contents = match before {
            Some((old, hash)) if old.source.watch == snapshot.source.watch => hash,
            Some(_) | None => contents(&snapshot.source.watch),
        };
        if self.options.watch {
            let files = snapshot.source.watch.clone();
            match &applied.watcher {
                Some(watcher) => watcher.set_paths(files),
                None => {
                    let _control = self.control.enter();
                    applied.watcher = Some(Watcher::new(files, self.changed.clone()));
                }
            }
        }
        drop(applied);
        self.metrics().retain();
        if self.options.watch && before.is_none_or(|(old, _)| old.source.watch != snapshot.source.watch) {
            self.look_again(snapshot);
        }
    }

    /// Files are watched from now on: whoever saved one after it was read, and before, would wait for ever.
    fn look_again(&self, snapshot: &Snapshot) {
        if load_source(&lock(&self.source).clone(), &self.options).hash != snapshot.source.hash {
            // Full: somebody is about to look.
            self.changed.try_send(()).ok();
        }
    }

    fn restart_needed(&self, snapshot: &Snapshot) -> Vec<String> {
        let wanted = super::worker_count(snapshot.config.server.workers);
        if wanted == self.state.shared.workers { Vec::new() } else { vec!["server.workers".to_owned()] }
    }

    fn apply_listeners(
        self: &Arc<Self>,
        snapshot: &Snapshot,
        applied: &mut Applied,
        sockets: Vec<(SocketAddr, Vec<std::net::TcpListener>)>,
    ) {
        let (kept, removed): (Vec<_>, Vec<_>) = std::mem::take(&mut applied.listeners)
            .into_iter()
            .partition(|listener| snapshot.listeners.iter().any(|spec| spec.address == listener.configured));
        for listener in removed {
            self.metrics().set_certificates(&listener.address.to_string(), Vec::new());
            let drain = snapshot.drain;
            self.control.spawn(retire(listener, drain));
        }
        let mut sockets = sockets;
        for spec in &snapshot.listeners {
            let listener = match kept.iter().find(|listener| listener.configured == spec.address) {
                Some(listener) => {
                    listener.renew(spec.clone());
                    Arc::clone(listener)
                }
                None => match self.open(spec, &mut sockets) {
                    Some(listener) => listener,
                    None => continue,
                },
            };
            let certificates =
                spec.tls.iter().flat_map(|tls| tls.certificates()).map(|certificate| (certificate.label, certificate.not_after));
            self.metrics().set_certificates(&listener.address.to_string(), certificates.collect());
            applied.listeners.push(listener);
        }
    }

    fn open(&self, spec: &ListenerSpec, sockets: &mut Vec<(SocketAddr, Vec<std::net::TcpListener>)>) -> Option<Arc<Listener>> {
        let index = sockets.iter().position(|(address, _)| *address == spec.address)?;
        let (_, bound) = sockets.swap_remove(index);
        match Listener::new(bound, spec.clone(), &self.state.rosters, |address| self.metrics().listener(address)) {
            Ok(listener) => {
                events::listener_bound(listener.address, spec.tls.is_some());
                lock(&self.acceptor).add(&listener);
                Some(listener)
            }
            Err(error) => {
                events::accept_failed(spec.address, &error);
                None
            }
        }
    }

    fn apply_admin(self: &Arc<Self>, snapshot: &Snapshot, applied: &mut Applied, socket: Option<std::net::TcpListener>) {
        let Some(written) = &snapshot.config.admin else {
            if let Some(old) = applied.admin.take() {
                old.stop.send_replace(true);
            }
            return;
        };
        let Some(configured) = admin_address(snapshot) else { return };
        if let Some(admin) = &applied.admin
            && admin.configured == configured
        {
            admin.settings.store(Arc::new(admin::Settings { token: written.token.clone(), address: admin.address }));
            return;
        }
        let Some(socket) = socket else { return };
        let address = socket.local_addr().unwrap_or(configured);
        let settings = Arc::new(ArcSwap::from_pointee(admin::Settings { token: written.token.clone(), address }));
        let (stop, stopped) = watch::channel(false);
        let serving = admin::serve(socket, Arc::clone(&settings), Arc::new(super::control::Status(Arc::clone(self))), stopped);
        self.control.spawn(async move {
            if let Err(error) = serving.await {
                events::accept_failed(address, &error);
            }
        });
        events::admin_bound(address);
        if let Some(old) = applied.admin.replace(AdminListener { configured, address, settings, stop }) {
            old.stop.send_replace(true);
        }
    }

    /// Checks, look-ups and key fetches of the new configuration replace those of the old one.
    fn apply_background(&self, snapshot: &Snapshot, applied: &mut Applied) {
        let _control = self.control.enter();
        let resolver = self.options.resolver.clone().unwrap_or_else(|| Arc::new(Dns::default()));
        let started = snapshot.upstreams.values().map(|handle| handle.upstream.start(tls_for(handle), Arc::clone(&resolver))).collect();
        applied.background = started;
        let observer: Arc<dyn auth::Observer> = Arc::new(AuthWatcher { metrics: Arc::clone(self.metrics()) });
        applied.auth = Some(snapshot.authenticators.start(&self.control, &observer));
    }
}

/// Loads `source` with the overrides of the command line.
pub(super) fn load_source(source: &Source, options: &Options) -> Loaded {
    let mut loaded = load::load(source);
    if let Some(overrides) = &options.overrides {
        overrides(&mut loaded.config);
    }
    loaded
}

pub(super) fn notify(state: sd_notify::State) {
    if let Err(error) = sd_notify::notify(state) {
        events::notify_failed(&error);
    }
}

fn tls_for(handle: &UpstreamHandle) -> crate::upstream::TlsFor {
    let tls = handle.tls.clone();
    Arc::new(move |endpoint: &Endpoint| {
        let tls = tls.as_ref().filter(|_| endpoint.tls)?;
        let server_name = tls.server_name(&endpoint.tls_name).ok()?;
        Some(TlsConnect { config: Arc::clone(tls.client_config()), server_name })
    })
}

/// A removed listener: its connections end after their answers, the rest is cut when the drain is over.
async fn retire(listener: Arc<Listener>, drain: Option<Duration>) {
    listener.enter(Stage::Draining);
    tokio::time::sleep(GRACE).await;
    listener.enter(Stage::Closing);
    if let Some(drain) = drain {
        tokio::time::sleep(drain.saturating_sub(GRACE)).await;
        listener.enter(Stage::Cut);
    }
}

/// Turns what authenticators tell into events and metrics.
struct AuthWatcher {
    metrics: Arc<Metrics>,
}

impl auth::Observer for AuthWatcher {
    fn jwks_fetched(&self, authenticator: &str, result: &'static str, error: Option<&str>) {
        self.metrics.authenticator(authenticator).jwks_fetch(error.is_none());
        match error {
            None => tracing::info!(authenticator, result, "keys fetched"),
            Some(error) => events::jwks_failed(authenticator, &error),
        }
    }
    fn introspection_failed(&self, authenticator: &str, error: &str) {
        tracing::warn!(authenticator, error, "introspection failed");
    }
}

/// Whether a shutdown has begun.
pub(super) fn is_draining(core: &Core) -> bool {
    core.draining.load(Relaxed)
}
