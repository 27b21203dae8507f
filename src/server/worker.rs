//! Worker threads: each runs its connections on a runtime of its own and shares nothing with the others that is written per request.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::{Mutex, Notify, mpsc};
use tokio::task::coop;

use crate::gateway::{Shared, Snapshot, View};
use crate::kept::{Kept, next_number};
use crate::reactor::Reactor;
use crate::server::acceptor::accept;
use crate::server::connection;
use crate::server::per_ip::PerIp;
use crate::server::roster::Roster;
use crate::server::seats::{Order, Seats, Taker};
use crate::telemetry::events;

/// How often idle upstream connections are looked through.
const SWEEP: Duration = Duration::from_secs(1);

/// What all threads of a server know.
pub struct State {
    /// The configuration that serves.
    pub snapshot: ArcSwap<Snapshot>,
    /// Its `max_header_size` and `max_headers`, which are looked at whenever bytes come.
    pub head_limits: (AtomicUsize, AtomicUsize),
    /// Its `max_connections`, which is looked at for every connection.
    pub max_connections: AtomicUsize,
    /// The same, for each worker's requests.
    pub views: Box<[Seen]>,
    /// State that outlives it.
    pub shared: Arc<Shared>,
    /// Open client connections.
    pub connections: AtomicUsize,
    /// Rings when one closes.
    pub closed: Notify,
    /// Held while nothing can be accepted for want of descriptors or memory.
    pub short: Mutex<()>,
    /// Connections by client address.
    pub per_ip: PerIp,
    /// The workers, as those see them who accept.
    pub seats: Seats,
    /// The workers' connections.
    pub rosters: Arc<[Roster]>,
}

impl State {
    /// Makes `snapshot` the one that serves.
    pub fn serve(&self, snapshot: &Arc<Snapshot>) {
        self.head_limits.0.store(snapshot.max_header_size, Ordering::Relaxed);
        self.head_limits.1.store(snapshot.max_headers, Ordering::Relaxed);
        self.max_connections.store(snapshot.max_connections, Ordering::Relaxed);
        self.snapshot.store(Arc::clone(snapshot));
        for view in &self.views {
            view.replace(View::new(snapshot));
        }
    }

    /// What the requests of a worker see of the configuration.
    pub fn view(&self, worker: usize) -> Arc<View> {
        match self.views.get(worker) {
            Some(view) => view.load(),
            // Workers are numbered from 0 to their count.
            None => View::new(&self.snapshot.load()),
        }
    }
}

thread_local! {
    /// The view that the worker of this thread has seen last.
    static LAST: RefCell<Kept<View, 1>> = const { RefCell::new(Kept::new()) };
}

/// One worker's view, on cache lines of its own.
#[repr(align(128))]
pub struct Seen {
    view: ArcSwap<View>,
    /// Another one for each view.
    number: AtomicU64,
}

impl Seen {
    /// The view of a worker that starts with `snapshot`.
    pub fn new(snapshot: &Arc<Snapshot>) -> Self {
        Self { view: ArcSwap::new(View::new(snapshot)), number: AtomicU64::new(next_number()) }
    }

    fn replace(&self, view: Arc<View>) {
        self.view.store(view);
        // After it: who sees this number sees that view.
        self.number.store(next_number(), Ordering::Release);
    }

    fn load(&self) -> Arc<View> {
        let number = self.number.load(Ordering::Acquire);
        LAST.with_borrow(|last| last.get(number)).unwrap_or_else(|| {
            let view = self.view.load_full();
            LAST.with_borrow_mut(|last| last.keep(number, &view));
            view
        })
    }
}

/// Counts a connection as long as it lives.
pub struct Open {
    state: Arc<State>,
    /// The worker that has it.
    worker: Option<usize>,
}

impl Open {
    /// Counts a connection.
    pub fn new(state: &Arc<State>) -> Self {
        state.connections.fetch_add(1, Ordering::Relaxed);
        Self { state: Arc::clone(state), worker: None }
    }

    /// The same unless `max_connections` are open.
    pub fn within_limit(state: &Arc<State>) -> Option<Self> {
        let max = state.max_connections.load(Ordering::Relaxed);
        let more = |open: usize| (open < max).then_some(open + 1);
        state.connections.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Self { state: Arc::clone(state), worker: None })
    }

    /// Chooses the worker that it is from now on counted for; see [`Seats::choose`].
    pub fn seat(&mut self, taker: Taker) -> usize {
        let others = self.state.connections.load(Ordering::Relaxed).saturating_sub(1);
        let worker = self.state.seats.choose(taker, others);
        self.state.seats.sit(worker);
        self.worker = Some(worker);
        worker
    }

    /// What all threads know.
    pub fn state(&self) -> &Arc<State> {
        &self.state
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(worker) = self.worker {
            self.state.seats.rise(worker);
        }
        self.state.connections.fetch_sub(1, Ordering::Relaxed);
        self.state.closed.notify_one();
    }
}

/// A running worker.
pub struct Worker {
    stop: Arc<Notify>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts a worker that does what comes in `orders`.
    ///
    /// # Errors
    /// The thread or its runtime cannot be made.
    pub fn start(index: usize, state: &Arc<State>, orders: mpsc::UnboundedReceiver<Order>) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let stop = Arc::new(Notify::new());
        let (state, stopped) = (Arc::clone(state), Arc::clone(&stop));
        let thread = std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
            runtime.block_on(run(index, state, orders, stopped));
            // Dropping the runtime cuts what is left, and so accounts for it.
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Ends the worker at once, and with it every connection that is left.
    pub fn stop(&mut self) {
        self.stop.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a worker thread has panicked");
        }
    }
}

async fn run(index: usize, state: Arc<State>, mut orders: mpsc::UnboundedReceiver<Order>, stop: Arc<Notify>) {
    match Reactor::start() {
        // Its tasks have turns of their own.
        Ok(reactor) => drop(tokio::spawn(coop::unconstrained(reactor))),
        // Other systems than Linux have none.
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
        Err(error) => events::no_reactor(index, &error),
    }
    tokio::spawn(sweep(index, Arc::clone(&state)));
    tokio::spawn(settle(index, Arc::clone(&state)));
    let mut stopped = std::pin::pin!(stop.notified());
    loop {
        // `state` has the other end, so that there is always one more to wait for.
        let order = tokio::select! {
            biased;
            () = &mut stopped => return,
            Some(order) = orders.recv() => order,
        };
        match order {
            Order::Serve(accepted) => connection::spawn(index, Arc::clone(&state), accepted),
            Order::Accept(door) => drop(tokio::spawn(accept(door, Arc::clone(&state), Taker::Worker(index)))),
        }
    }
}

/// Closes upstream connections that have been idle too long.
async fn sweep(index: usize, state: Arc<State>) {
    let mut tick = tokio::time::interval(SWEEP);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let now = Instant::now();
        for pool in state.shared.pools() {
            pool.sweep(index, now);
        }
    }
}

/// Settles connections that have just come.
async fn settle(index: usize, state: Arc<State>) {
    if let Some(roster) = state.rosters.get(index) {
        roster.keep().await;
    }
}
