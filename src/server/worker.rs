//! Worker threads: each runs its connections on a runtime of its own and shares nothing with the others that is written per request.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::{Notify, mpsc};

use crate::gateway::{Shared, Snapshot, View};
use crate::server::connection;
use crate::server::listener::Listener;
use crate::server::per_ip::PerIp;

/// How often idle upstream connections are looked through.
const SWEEP: Duration = Duration::from_secs(1);

/// What all threads of a server know.
pub struct State {
    /// The configuration that serves.
    pub snapshot: ArcSwap<Snapshot>,
    /// Its `max_header_size` and `max_headers`, which are looked at whenever bytes come.
    pub head_limits: (AtomicUsize, AtomicUsize),
    /// The same, for each worker's requests.
    pub views: Box<[Seen]>,
    /// State that outlives it.
    pub shared: Arc<Shared>,
    /// Open client connections.
    pub connections: AtomicUsize,
    /// Rings when one closes.
    pub closed: Notify,
    /// Connections by client address.
    pub per_ip: PerIp,
}

impl State {
    /// Makes `snapshot` the one that serves.
    pub fn serve(&self, snapshot: &Arc<Snapshot>) {
        self.head_limits.0.store(snapshot.max_header_size, Relaxed);
        self.head_limits.1.store(snapshot.max_headers, Relaxed);
        self.snapshot.store(Arc::clone(snapshot));
        for view in &self.views {
            view.0.store(View::new(snapshot));
        }
    }

    /// What the requests of a worker see of the configuration.
    pub fn view(&self, worker: usize) -> Arc<View> {
        match self.views.get(worker) {
            Some(view) => view.0.load_full(),
            // Workers are numbered from 0 to their count.
            None => View::new(&self.snapshot.load()),
        }
    }
}

/// One worker's view, on cache lines of its own.
#[repr(align(128))]
pub struct Seen(ArcSwap<View>);

impl Seen {
    /// The view of a worker that starts with `snapshot`.
    pub fn new(snapshot: &Arc<Snapshot>) -> Self {
        Self(ArcSwap::new(View::new(snapshot)))
    }
}

/// A connection on its way to a worker.
pub struct Accepted {
    /// The socket, non-blocking.
    pub socket: TcpStream,
    /// Where it comes from.
    pub peer: SocketAddr,
    /// Where it came in.
    pub listener: Arc<Listener>,
    /// Counts it.
    pub open: Open,
}

/// Counts a connection as long as it lives.
pub struct Open {
    state: Arc<State>,
    load: Arc<AtomicUsize>,
}

impl Open {
    /// Counts a connection of a worker whose connections are counted by `load`.
    pub fn new(state: &Arc<State>, load: &Arc<AtomicUsize>) -> Self {
        state.connections.fetch_add(1, Relaxed);
        load.fetch_add(1, Relaxed);
        Self { state: Arc::clone(state), load: Arc::clone(load) }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.load.fetch_sub(1, Relaxed);
        self.state.connections.fetch_sub(1, Relaxed);
        self.state.closed.notify_one();
    }
}

/// A running worker.
pub struct Worker {
    /// Its open connections.
    pub load: Arc<AtomicUsize>,
    sender: Option<mpsc::UnboundedSender<Accepted>>,
    stop: Arc<Notify>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts a worker.
    ///
    /// # Errors
    /// The thread or its runtime cannot be made.
    pub fn start(index: usize, state: &Arc<State>) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (sender, receiver) = mpsc::unbounded_channel();
        let stop = Arc::new(Notify::new());
        let (state, stopped) = (Arc::clone(state), Arc::clone(&stop));
        let thread = std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
            runtime.block_on(run(index, state, receiver, stopped));
            // Dropping the runtime cuts what is left, and so accounts for it.
        })?;
        Ok(Self { load: Arc::new(AtomicUsize::new(0)), sender: Some(sender), stop, thread: Some(thread) })
    }

    /// Where connections are handed in.
    pub fn inbox(&self) -> Option<mpsc::UnboundedSender<Accepted>> {
        self.sender.clone()
    }

    /// Ends the worker at once, and with it every connection that is left.
    pub fn stop(&mut self) {
        self.sender = None;
        self.stop.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a worker thread has panicked");
        }
    }
}

async fn run(index: usize, state: Arc<State>, mut receiver: mpsc::UnboundedReceiver<Accepted>, stop: Arc<Notify>) {
    tokio::spawn(sweep(index, Arc::clone(&state)));
    loop {
        tokio::select! {
            biased;
            () = stop.notified() => return,
            accepted = receiver.recv() => match accepted {
                Some(accepted) => {
                    // Boxed, since the runtime moves what it is given more than once, and this is many kilobytes.
                    tokio::spawn(Box::pin(connection::serve(index, Arc::clone(&state), accepted)));
                }
                // Nobody will send any more. The stop that ends the wait is used up by it, so the loop must not wait for another.
                None => {
                    stop.notified().await;
                    return;
                }
            },
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
