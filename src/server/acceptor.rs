//! Who takes connections: each worker from a socket of its own, as long as it has not more than its share of them. Else, and where a
//! listener has a single socket, they go to the worker with the fewest.
//!
//! The sockets of a listener share its address (`SO_REUSEPORT`): the kernel spreads clients over them, and no worker wakes another for
//! a new one. A socket from the service manager cannot be made many: it is the acceptor's, a thread that does nothing else. That
//! thread also looks after the workers' sockets, so that the clients of a worker that is stuck are taken by the others.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use crate::server::connection;
use crate::server::listener::{Accepting, Listener, Stage};
use crate::server::seats::{Accepted, Order, Taker};
use crate::server::worker::{Open, State};
use crate::telemetry::events;

/// Pause after an accept that failed for want of descriptors or memory: closing connections is what helps.
const PAUSE: Duration = Duration::from_millis(50);
/// How often the acceptor looks for clients that a stuck worker does not take.
const RESCUE: Duration = Duration::from_millis(250);
/// Most connections that are accepted before those that are open have their turn.
const BATCH: usize = 32;

/// A socket that accepts, of a listener.
pub struct Door {
    socket: Arc<TcpListener>,
    accepting: Accepting,
}

/// What the acceptor's thread is told to do.
enum Task {
    /// Accept here.
    Accept(Door),
    /// Take what the workers leave.
    Rescue(Arc<Listener>, Vec<Weak<TcpListener>>),
}

/// The running acceptor.
pub struct Acceptor {
    state: Arc<State>,
    sender: Option<mpsc::UnboundedSender<Task>>,
    thread: Option<JoinHandle<()>>,
}

impl Acceptor {
    /// Starts the acceptor.
    ///
    /// # Errors
    /// The thread or its runtime cannot be made.
    pub fn start(state: &Arc<State>) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (sender, mut receiver) = mpsc::unbounded_channel::<Task>();
        let given = Arc::clone(state);
        let thread = std::thread::Builder::new().name("acceptor".to_owned()).spawn(move || {
            runtime.block_on(async move {
                let mut accepting = tokio::task::JoinSet::new();
                while let Some(task) = receiver.recv().await {
                    let state = Arc::clone(&given);
                    match task {
                        Task::Accept(door) => accepting.spawn(accept(door, state, Taker::Acceptor)),
                        Task::Rescue(listener, sockets) => accepting.spawn(rescue(listener, sockets, state)),
                    };
                }
                // Each ends when its listener leaves `Serving`, and takes what the kernel has accepted before that.
                while accepting.join_next().await.is_some() {}
            });
        })?;
        Ok(Self { state: Arc::clone(state), sender: Some(sender), thread: Some(thread) })
    }

    /// Begins to accept on `listener`, until it leaves [`Stage::Serving`].
    pub fn add(&self, listener: &Arc<Listener>) {
        let doors: Vec<Door> = listener.take_sockets().into_iter().map(|socket| Door::new(listener, socket)).collect();
        let Some(sender) = &self.sender else { return };
        let workers = self.state.seats.count();
        // Sending fails only after `stop`, when nothing is accepted any more.
        if doors.len() != workers {
            doors.into_iter().for_each(|door| drop(sender.send(Task::Accept(door))));
            return;
        }
        if workers > 1 {
            let _ = sender.send(Task::Rescue(Arc::clone(listener), doors.iter().map(|door| Arc::downgrade(&door.socket)).collect()));
        }
        for (worker, door) in doors.into_iter().enumerate() {
            self.state.seats.order(worker, Order::Accept(door));
        }
    }

    /// Ends the acceptor.
    pub fn stop(&mut self) {
        self.sender = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the acceptor thread has panicked");
        }
    }
}

impl Door {
    fn new(listener: &Arc<Listener>, socket: TcpListener) -> Self {
        Self { socket: Arc::new(socket), accepting: Accepting::new(listener) }
    }
}

/// Takes connections until the listener leaves [`Stage::Serving`].
pub async fn accept(door: Door, state: Arc<State>, taker: Taker) {
    let Door { socket, accepting } = door;
    let listener = accepting.listener();
    let mut stages = listener.stages();
    // Sound for a std socket, which owns its descriptor; the replacement would need `unsafe` to say the same.
    #[expect(deprecated, reason = "the lint is about types that do not own their descriptor")]
    let registered = AsyncFd::with_interest(socket, Interest::READABLE);
    let ready = match registered {
        Ok(ready) => ready,
        Err(error) => return events::accept_failed(listener.address, &error),
    };
    let mut leaving = std::pin::pin!(stages.wait_for(|stage| *stage != Stage::Serving));
    loop {
        tokio::select! {
            biased;
            _ = &mut leaving => break,
            () = accept_some(listener, &ready, &state, taker) => {}
        }
    }
    // Clients that the kernel has connected already are served; closing the socket over them would reset them.
    loop {
        match take(ready.get_ref()) {
            Ok((socket, peer)) => hand_over(socket, peer, listener, Open::new(&state), taker),
            Err(error) if is_the_clients(&error) => {}
            Err(_) => return,
        }
    }
}

/// Accepts what there is, as soon as there is room for it.
async fn accept_some(listener: &Arc<Listener>, ready: &AsyncFd<Arc<TcpListener>>, state: &Arc<State>, taker: Taker) {
    let Ok(mut guard) = ready.readable().await else { return };
    for _ in 0..BATCH {
        let Some(open) = Open::within_limit(state) else {
            // Further clients wait in the kernel's backlog. The time limit is for a limit that a reload has raised.
            let _ = tokio::time::timeout(Duration::from_secs(1), state.closed.notified()).await;
            return;
        };
        match take(guard.get_inner()) {
            Ok((socket, peer)) => hand_over(socket, peer, listener, open, taker),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return guard.clear_ready(),
            Err(error) if is_the_clients(&error) => {}
            Err(error) => {
                drop(open);
                // What one socket lacks, all lack: one of them says so.
                let first = state.short.try_lock();
                if first.is_ok() {
                    events::accept_failed(listener.address, &error);
                }
                return tokio::time::sleep(PAUSE).await;
            }
        }
    }
    tokio::task::yield_now().await;
}

/// Takes, now and then, the clients that wait at sockets whose workers do not come to it. There are none, unless a worker is stuck.
async fn rescue(listener: Arc<Listener>, sockets: Vec<Weak<TcpListener>>, state: Arc<State>) {
    let mut stages = listener.stages();
    let mut leaving = std::pin::pin!(stages.wait_for(|stage| *stage != Stage::Serving));
    loop {
        let left = tokio::select! {
            biased;
            _ = &mut leaving => true,
            () = tokio::time::sleep(RESCUE) => false,
        };
        if left && all_closed(&sockets).await {
            return;
        }
        for (worker, socket) in sockets.iter().enumerate().filter_map(|(worker, socket)| Some((worker, socket.upgrade()?))) {
            while let Some(open) = Open::within_limit(&state)
                // Whatever else goes wrong here goes wrong for the worker, too, who says so.
                && let Ok((socket, peer)) = take(&socket)
            {
                hand_over(socket, peer, &listener, open, Taker::InsteadOf(worker));
            }
            if left {
                // Else clients would go on to connect there, and the address would stay taken, until its worker comes to it. Failing to do it
                // leaves just that.
                let _ = socket2::SockRef::from(&*socket).shutdown(Shutdown::Both);
            }
        }
        if left {
            return;
        }
    }
}

/// Whether the workers have closed their sockets, which takes them a moment unless they are stuck.
async fn all_closed(sockets: &[Weak<TcpListener>]) -> bool {
    let end = Instant::now() + RESCUE;
    loop {
        if sockets.iter().all(|socket| socket.strong_count() == 0) {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        tokio::time::sleep(RESCUE / 50).await;
    }
}

/// Accepts a connection that blocks nobody, in one system call where there is one for it.
fn take(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    #[cfg(target_os = "linux")]
    {
        let (socket, peer) = socket2::SockRef::from(listener).accept4(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK)?;
        let peer = peer.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok((socket.into(), peer))
    }
    #[cfg(not(target_os = "linux"))]
    {
        let (socket, peer) = listener.accept()?;
        socket.set_nonblocking(true)?;
        Ok((socket, peer))
    }
}

/// Gives a connection to a worker: see [`Seats::choose`](crate::server::seats::Seats::choose).
fn hand_over(socket: TcpStream, peer: SocketAddr, listener: &Arc<Listener>, mut open: Open, taker: Taker) {
    let worker = open.seat(taker);
    let state = Arc::clone(open.state());
    let accepted = Accepted { socket, peer, listener: Arc::clone(listener), open };
    if matches!(taker, Taker::Worker(home) if home == worker) {
        connection::spawn(worker, state, accepted);
    } else {
        state.seats.order(worker, Order::Serve(accepted));
    }
}

/// Errors of a connection that ended before it was accepted.
fn is_the_clients(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused | io::ErrorKind::Interrupted
    )
}
