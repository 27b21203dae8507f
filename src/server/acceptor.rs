//! The acceptor: one thread that takes connections from all listeners and hands each to the worker with the fewest.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use crate::server::listener::{Listener, Stage};
use crate::server::worker::{Accepted, Open, State, Worker};
use crate::telemetry::events;

/// Pause after an accept that failed for want of descriptors or memory: closing connections is what helps.
const PAUSE: Duration = Duration::from_millis(50);

/// The running acceptor.
pub struct Acceptor {
    sender: Option<mpsc::UnboundedSender<Arc<Listener>>>,
    thread: Option<JoinHandle<()>>,
}

/// Where a worker takes its connections.
struct Inbox {
    load: Arc<AtomicUsize>,
    sender: mpsc::UnboundedSender<Accepted>,
}

impl Acceptor {
    /// Starts the acceptor for `workers`.
    ///
    /// # Errors
    /// The thread or its runtime cannot be made.
    pub fn start(state: &Arc<State>, workers: &[Worker]) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (sender, mut receiver) = mpsc::unbounded_channel::<Arc<Listener>>();
        let inboxes = workers.iter().filter_map(|worker| Some(Inbox { load: Arc::clone(&worker.load), sender: worker.inbox()? })).collect();
        let (inboxes, state): (Arc<[Inbox]>, _) = (inboxes, Arc::clone(state));
        let thread = std::thread::Builder::new().name("acceptor".to_owned()).spawn(move || {
            runtime.block_on(async move {
                let mut accepting = tokio::task::JoinSet::new();
                while let Some(listener) = receiver.recv().await {
                    accepting.spawn(accept(listener, Arc::clone(&state), Arc::clone(&inboxes)));
                }
                // Each ends when its listener leaves `Serving`, and takes what the kernel has accepted before that.
                while accepting.join_next().await.is_some() {}
            });
        })?;
        Ok(Self { sender: Some(sender), thread: Some(thread) })
    }

    /// Begins to accept on `listener`, until it leaves [`Stage::Serving`].
    pub fn add(&self, listener: Arc<Listener>) {
        if let Some(sender) = &self.sender {
            // Fails only after `stop`, when nothing is accepted any more.
            let _ = sender.send(listener);
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

async fn accept(listener: Arc<Listener>, state: Arc<State>, inboxes: Arc<[Inbox]>) {
    let Some(socket) = listener.take_socket() else { return };
    let mut stages = listener.stages();
    // Sound for a std socket, which owns its descriptor; the replacement would need `unsafe` to say the same.
    #[expect(deprecated, reason = "the lint is about types that do not own their descriptor")]
    let registered = AsyncFd::new(socket);
    let mut ready = match registered {
        Ok(ready) => ready,
        Err(error) => return events::accept_failed(listener.address, &error),
    };
    loop {
        tokio::select! {
            biased;
            _ = stages.wait_for(|stage| *stage != Stage::Serving) => break,
            () = accept_one(&listener, &ready, &state, &inboxes) => {}
        }
    }
    // Clients that the kernel has connected already are served; closing the socket over them would reset them.
    while let Ok((socket, peer)) = take(ready.get_mut()) {
        hand_over(socket, peer, &listener, &state, &inboxes);
    }
    events::listener_closed(listener.address);
}

/// Accepts what there is, as soon as there is room for it.
async fn accept_one(listener: &Arc<Listener>, ready: &AsyncFd<std::net::TcpListener>, state: &Arc<State>, inboxes: &[Inbox]) {
    while state.connections.load(Relaxed) >= state.snapshot.load().max_connections {
        // Further clients wait in the kernel's backlog. The time limit is for a limit that a reload has raised.
        let _ = tokio::time::timeout(Duration::from_secs(1), state.closed.notified()).await;
    }
    let Ok(mut guard) = ready.readable().await else { return };
    match take(guard.get_inner()) {
        Ok((socket, peer)) => hand_over(socket, peer, listener, state, inboxes),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
        Err(error) if is_the_clients(&error) => {}
        Err(error) => {
            events::accept_failed(listener.address, &error);
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Accepts a connection that blocks nobody, in one system call where there is one for it.
fn take(listener: &std::net::TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
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

/// Gives a connection to the worker with the fewest.
fn hand_over(socket: TcpStream, peer: SocketAddr, listener: &Arc<Listener>, state: &Arc<State>, inboxes: &[Inbox]) {
    let Some(inbox) = inboxes.iter().min_by_key(|inbox| inbox.load.load(Relaxed)) else { return };
    let open = Open::new(state, &inbox.load);
    // Fails only when the worker has stopped, at the end of a shutdown.
    let _ = inbox.sender.send(Accepted { socket, peer, listener: Arc::clone(listener), open });
}

/// Errors of a connection that ended before it was accepted.
fn is_the_clients(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused | io::ErrorKind::Interrupted
    )
}
