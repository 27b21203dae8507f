//! The server: listeners, worker threads and connections around a gateway, started, reloaded and drained.

pub mod acceptor;
pub mod connection;
pub mod frames;
pub mod io;
pub mod listener;
pub mod per_ip;
pub mod proxy_protocol;
pub mod roster;
pub mod seats;
pub mod socket;
pub mod streams;
pub mod worker;

mod apply;
mod control;
mod h1;
mod http2;
use crate::config::Config;
use crate::config::load::Source;
use crate::config::problem::Report;
use crate::config::server::Workers;
use crate::discovery::Resolver;
use crate::gateway::status::ReloadOutcome;
use crate::gateway::{Middleware, Shared, compile};
use crate::server::acceptor::Acceptor;
use crate::server::apply::{Core, GRACE, bind_new, load_source, lock, notify};
use crate::server::listener::Stage;
use crate::server::per_ip::PerIp;
use crate::server::roster::Roster;
use crate::server::seats::Seats;
use crate::server::worker::{Seen, State, Worker};
use crate::telemetry::{events, sd_notify};
use arc_swap::ArcSwap;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, Notify, mpsc};
/// How often a drain looks whether it is done.
const LOOK: Duration = Duration::from_millis(10);
/// How long tunnels have to say goodbye when a drain cuts them.
const GOODBYE: Duration = Duration::from_millis(1_200);
/// Changes a configuration before it is compiled: what the command line sets.
pub type Overrides = Arc<dyn Fn(&mut Config) + Send + Sync>;
/// How a server is started.
#[derive(Clone, Default)]
pub struct Options {
    /// Put over each configuration that is loaded.
    pub overrides: Option<Overrides>,
    /// Reload when a file changes.
    pub watch: bool,
    /// Sockets passed by the service manager: used for listeners with the same address.
    pub inherited: Arc<[TcpListener]>,
    /// Own steps in every route's chain, in order; see [`Middleware`].
    pub middleware: Vec<Arc<dyn Middleware>>,
    /// Where the names of upstreams are looked up; without it as the system has it set up, see [`Dns`](crate::discovery::Dns).
    pub resolver: Option<Arc<dyn Resolver>>,
    /// How often HTTP/2 peers with open streams are pinged; `None` is every 30 s. Who does not answer within half of it is gone.
    pub http2_ping: Option<Duration>,
}
impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options").field("watch", &self.watch).finish_non_exhaustive()
    }
}
/// Why a server did not start.
#[derive(Debug)]
pub enum StartError {
    /// The configuration has these problems.
    Config(Vec<Report>),
    /// Addresses cannot be bound; what is wrong, and what would help.
    Bind(Vec<(String, String)>),
    /// Threads or runtimes cannot be made.
    Io(std::io::Error),
}
impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Config(reports) => reports.iter().try_for_each(|report| writeln!(f, "{report}\n")),
            Self::Bind(problems) => problems.iter().try_for_each(|(message, help)| writeln!(f, "error: {message}\n  help: {help}")),
            Self::Io(error) => write!(f, "error: {error}"),
        }
    }
}
impl std::error::Error for StartError {}
impl From<std::io::Error> for StartError {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}
/// A running gateway. Dropping it ends it without a drain.
pub struct Server {
    core: Arc<Core>,
    workers: Vec<Worker>,
    control: ControlThread,
}
/// The thread that runs background work.
struct ControlThread {
    handle: tokio::runtime::Handle,
    stop: Arc<Notify>,
    thread: Option<JoinHandle<()>>,
}
impl ControlThread {
    fn start() -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (handle, stop) = (runtime.handle().clone(), Arc::new(Notify::new()));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("control".to_owned()).spawn(move || {
            runtime.block_on(stopped.notified());
            // Files on blocking threads may take long; nobody waits for them any more.
            runtime.shutdown_background();
        })?;
        Ok(Self { handle, stop, thread: Some(thread) })
    }
    fn stop(&mut self) {
        self.stop.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the control thread has panicked");
        }
    }
}
/// Worker threads for `server.workers`.
pub(crate) fn worker_count(workers: Workers) -> usize {
    match workers {
        Workers::Count(count) => count.max(1),
        // What the process may use: affinity and cgroup limits are counted in.
        Workers::Auto => std::thread::available_parallelism().map_or(1, usize::from),
    }
}
impl Server {
    /// Loads a configuration and serves it.
    ///
    /// # Errors
    /// [`StartError`]: there is no last good configuration yet.
    pub fn start(source: Source, options: Options) -> Result<Self, StartError> {
        let begun = Instant::now();
        let loaded = load_source(&source, &options);
        // What begins to work while it is compiled, as connections to stores, has something to say already.
        events::init(loaded.config.log.level, loaded.config.log.format);
        let count = worker_count(loaded.config.server.workers);
        let control = ControlThread::start()?;
        let shared = Shared::with(count, Some(control.handle.clone()), options.middleware.clone(), options.http2_ping);
        let snapshot = {
            let _control = control.handle.enter();
            compile(&shared, loaded, None, 1).map_err(StartError::Config)?
        };
        let sockets = bind_new(&snapshot, &apply::Applied::default(), &options.inherited, count)
            .map_err(|problems| StartError::Bind(problems.into_iter().map(|(_, message, help)| (message, help)).collect()))?;
        events::starting(env!("CARGO_PKG_VERSION"), crate::COMMIT, count);
        for address in options.inherited.iter().filter_map(|socket| socket.local_addr().ok()) {
            let wanted = snapshot.listeners.iter().any(|listener| listener.address == address);
            if !wanted && apply::admin_address(&snapshot) != Some(address) {
                events::passed_socket_unused(address);
            }
        }
        let (files, routes) = (snapshot.source.files.clone(), snapshot.routes.len());
        let snapshot = Arc::new(snapshot);
        let (seats, orders) = Seats::new(count);
        let state = Arc::new(State {
            head_limits: (AtomicUsize::new(snapshot.max_header_size), AtomicUsize::new(snapshot.max_headers)),
            snapshot: ArcSwap::new(Arc::clone(&snapshot)),
            views: (0..count).map(|_| Seen::new(&snapshot)).collect(),
            shared,
            max_connections: AtomicUsize::new(snapshot.max_connections),
            connections: AtomicUsize::new(0),
            closed: Notify::new(),
            short: Mutex::default(),
            per_ip: PerIp::default(),
            seats,
            rosters: (0..count).map(|_| Roster::default()).collect(),
        });
        let workers =
            orders.into_iter().enumerate().map(|(index, orders)| Worker::start(index, &state, orders)).collect::<Result<Vec<_>, _>>()?;
        let acceptor = Acceptor::start(&state)?;
        let (changed, changes) = mpsc::channel(1);
        let core = Core::new(state, source, options, control.handle.clone(), acceptor, changed);
        core.commit(&snapshot, sockets, None);
        core.state.shared.metrics.loaded();
        control.handle.spawn(reload_on_change(Arc::clone(&core), changes));
        let path = files.first().cloned().unwrap_or_default();
        events::config_loaded(std::path::Path::new(&path), 1, routes, u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX));
        notify(sd_notify::State::Ready);
        Ok(Self { core, workers, control })
    }
    /// Addresses of the listeners, in written order.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        lock(&self.core.applied).listeners.iter().map(|listener| listener.address).collect()
    }
    /// Address of the admin listener.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        lock(&self.core.applied).admin.as_ref().map(|admin| admin.address)
    }
    /// The text of the next reload, for a server that was started with [`Source::Text`].
    pub fn replace(&self, yaml: String) {
        if let Source::Text { yaml: text, .. } = &mut *lock(&self.core.source) {
            *text = yaml;
        }
    }
    /// Reloads the configuration, if it changed. Blocks; do not call it on a runtime's thread.
    pub fn reload(&self) -> ReloadOutcome {
        self.core.reload()
    }
    /// Reopens the access log's file, after a rotation.
    pub fn reopen_logs(&self) {
        self.core.state.shared.reopen_logs();
    }
    /// Drains and ends: readiness off, `drain_delay`, listeners closed, requests in flight finished within `timeouts.drain`.
    pub fn shutdown(self) {
        let core = Arc::clone(&self.core);
        core.draining.store(true, Relaxed);
        notify(sd_notify::State::Stopping);
        let snapshot = core.snapshot();
        std::thread::sleep(snapshot.drain_delay);
        // A reload from here on would open listeners that nobody serves.
        let _no_more_reloads = lock(&core.reloading);
        events::draining(snapshot.metrics.requests_in_flight(), snapshot.drain);
        let listeners = lock(&core.applied).listeners.clone();
        let in_flight = || {
            // Whatever the kernel has accepted for us is taken before a listener stops to accept.
            listeners.iter().any(|listener| listener.is_accepting())
                || core.state.connections.load(Relaxed) > 0
                || snapshot.metrics.requests_in_flight() > 0
        };
        let enter = |stage| listeners.iter().for_each(|listener| listener.enter(stage));
        let begun = Instant::now();
        let limit = snapshot.drain.map(|drain| begun + drain);
        let over = || limit.is_some_and(|limit| Instant::now() >= limit);
        let wait = |until: Option<Instant>| {
            while in_flight() && !over() && until.is_none_or(|until| Instant::now() < until) {
                std::thread::sleep(LOOK);
            }
        };
        enter(Stage::Draining);
        lock(&core.acceptor).stop();
        wait(Some(begun + GRACE));
        enter(Stage::Closing);
        wait(None);
        let left = snapshot.metrics.requests_in_flight();
        enter(Stage::Cut);
        let goodbye = Instant::now() + GOODBYE;
        while in_flight() && Instant::now() < goodbye {
            std::thread::sleep(LOOK);
        }
        events::drained(left);
        drop(self);
    }
}
impl Drop for Server {
    fn drop(&mut self) {
        for listener in &lock(&self.core.applied).listeners {
            listener.enter(Stage::Cut);
        }
        lock(&self.core.acceptor).stop();
        for worker in &mut self.workers {
            worker.stop();
        }
        if let Some(admin) = &lock(&self.core.applied).admin {
            admin.stop.send_replace(true);
        }
        *lock(&self.core.applied) = apply::Applied::default();
        self.control.stop();
        self.core.state.shared.flush_logs();
    }
}
/// Reloads whenever the watcher says that a file changed.
async fn reload_on_change(core: Arc<Core>, mut changes: mpsc::Receiver<()>) {
    while changes.recv().await.is_some() {
        let core = Arc::clone(&core);
        // A panic in a reload is a defect, but not a reason to stop watching.
        if tokio::task::spawn_blocking(move || core.reload()).await.is_err() {
            tracing::error!("a reload has panicked");
        }
    }
}
