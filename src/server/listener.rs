//! A listening socket and how far its life has gone.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::watch;

use crate::gateway::Ending;
use crate::gateway::snapshot::ListenerSpec;
use crate::server::roster::Roster;
use crate::telemetry::events;
use crate::telemetry::metrics::ListenerMetrics;

/// Connections the kernel keeps for us while we are busy; it takes less if `net.core.somaxconn` is lower.
const BACKLOG: i32 = 4096;

/// How far the life of a listener has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Stage {
    /// Accepts.
    Serving = 0,
    /// Accepts no more; answers end their connections.
    Draining = 1,
    /// Idle connections are closed, too: a request that was on the wire had a second to arrive.
    Closing = 2,
    /// Everything that is left is cut.
    Cut = 3,
}

/// A bound listener.
pub struct Listener {
    /// Address as configured; port 0 stands for any free one.
    pub configured: SocketAddr,
    /// Address it is bound to.
    pub address: SocketAddr,
    /// Its settings; a reload changes them for new connections.
    pub spec: ArcSwap<ListenerSpec>,
    /// Its metrics.
    pub metrics: Arc<ListenerMetrics>,
    /// Its sockets, until somebody accepts on them.
    sockets: Mutex<Vec<TcpListener>>,
    /// How many of them are open. A socket that stays open while nobody accepts would let clients connect and wait for nobody.
    accepting: AtomicUsize,
    draining: Arc<AtomicBool>,
    stages: watch::Sender<Stage>,
    /// How often its TLS was superseded.
    superseded: AtomicU64,
    /// Rings when that changes.
    identity: watch::Sender<u64>,
    cut: watch::Sender<bool>,
    /// What each worker's connections hear of the end.
    endings: Box<[Arc<Ending>]>,
    /// Each worker's connections, which are woken at every stage.
    rosters: Arc<[Roster]>,
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Opens listening sockets: `count` of them that share the address, or a single one where the system does not spread clients.
///
/// # Errors
/// The address is taken or not this machine's.
pub fn bind(address: SocketAddr, count: usize) -> io::Result<Vec<TcpListener>> {
    // Does not share: an address that somebody else listens on is taken, also if that is another gateway.
    let first = socket(address)?;
    first.bind(&address.into())?;
    let mut sockets = Vec::new();
    if cfg!(target_os = "linux") && count > 1 {
        match share(&first, count - 1) {
            Ok(others) => sockets.extend(others),
            Err(error) => {
                // One is enough, and that shares with nobody.
                first.set_reuse_port(false)?;
                tracing::debug!(%address, %error, "the address cannot be shared by several sockets");
            }
        }
    }
    sockets.insert(0, first);
    sockets.into_iter().map(|socket| socket.listen(BACKLOG).map(|()| socket.into())).collect()
}

/// So many sockets more with the address of one that is bound and does not listen yet.
fn share(first: &Socket, count: usize) -> io::Result<Vec<Socket>> {
    let bound = first.local_addr()?;
    let address = bound.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
    first.set_reuse_port(true)?;
    let other = || {
        let socket = socket(address)?;
        socket.set_reuse_port(true)?;
        socket.bind(&bound).map(|()| socket)
    };
    (0..count).map(|_| other()).collect()
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restart must not wait for the last run's connections in TIME_WAIT.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // `[::]` takes IPv4 as well, whatever the system's default.
        socket.set_only_v6(false)?;
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// What to tell the user when an address cannot be bound.
pub fn bind_error(address: SocketAddr, error: &io::Error) -> (String, String) {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            let help =
                format!("another process listens there: `ss -ltnp 'sport = :{}'` shows which, or choose another port", address.port());
            (format!("the address {address} is already in use"), help)
        }
        io::ErrorKind::AddrNotAvailable => {
            (format!("{address} is not an address of this machine"), "0.0.0.0 or [::] listens on all of its addresses".to_owned())
        }
        io::ErrorKind::PermissionDenied => {
            let help = "ports below 1024 need a privilege: setcap cap_net_bind_service=+ep, systemd's AmbientCapabilities or socket activation, or a higher port";
            (format!("no permission to listen on {address}"), help.to_owned())
        }
        _ => (format!("cannot listen on {address}: {error}"), "see the address in `listeners`".to_owned()),
    }
}

impl Listener {
    /// A listener over `sockets`, which have one address. `rosters`: one for each worker.
    ///
    /// # Errors
    /// A socket has no address, or is none of TCP.
    pub fn new(
        sockets: Vec<TcpListener>,
        spec: ListenerSpec,
        rosters: &Arc<[Roster]>,
        metrics: impl FnOnce(&str) -> Arc<ListenerMetrics>,
    ) -> io::Result<Arc<Self>> {
        let address = sockets.first().ok_or(io::ErrorKind::AddrNotAvailable)?.local_addr()?;
        // Connections inherit it, also from a socket that was passed in: without it a small answer could wait for the client's delayed ACK.
        sockets.iter().try_for_each(|socket| socket2::SockRef::from(socket).set_tcp_nodelay(true))?;
        let (draining, cut) = (Arc::new(AtomicBool::new(false)), watch::Sender::new(false));
        let ending = || Arc::new(Ending { draining: Arc::clone(&draining), cut: cut.subscribe() });
        Ok(Arc::new(Self {
            endings: rosters.iter().map(|_| ending()).collect(),
            rosters: Arc::clone(rosters),
            configured: spec.address,
            address,
            metrics: metrics(&address.to_string()),
            spec: ArcSwap::from_pointee(spec),
            sockets: Mutex::new(sockets),
            accepting: AtomicUsize::new(0),
            draining,
            stages: watch::Sender::new(Stage::Serving),
            superseded: AtomicU64::new(0),
            identity: watch::Sender::new(0),
            cut,
        }))
    }

    /// The sockets, for whoever accepts and then closes them.
    pub fn take_sockets(&self) -> Vec<TcpListener> {
        std::mem::take(&mut self.sockets.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether somebody still accepts. Connections that were accepted are counted before this ends.
    pub fn is_accepting(&self) -> bool {
        self.accepting.load(Ordering::Acquire) > 0
    }

    /// Takes new settings, for new connections. Those that are open hear of it if their TLS is superseded.
    pub fn renew(&self, spec: ListenerSpec) {
        let new = Arc::new(spec);
        let old = self.spec.swap(Arc::clone(&new));
        let superseded = match (&old.tls, &new.tls) {
            (Some(old), Some(new)) => new.supersedes(old),
            (None, None) => false,
            (Some(_), None) | (None, Some(_)) => true,
        };
        if superseded {
            let times = self.superseded.fetch_add(1, Ordering::AcqRel) + 1;
            self.identity.send_replace(times);
        }
    }

    /// How often its TLS was superseded. A connection reads it before it reads `spec`, so that it never misses a change.
    pub fn superseded(&self) -> u64 {
        self.superseded.load(Ordering::Acquire)
    }

    /// Hears when its TLS is superseded, also if it was since it had been so often.
    pub fn identity(&self, times: u64) -> watch::Receiver<u64> {
        let mut identity = self.identity.subscribe();
        if self.superseded() != times {
            identity.mark_changed();
        }
        identity
    }

    /// Moves on to `stage`.
    pub fn enter(&self, stage: Stage) {
        self.draining.store(stage != Stage::Serving, Ordering::Relaxed);
        // Never back: a shutdown and a removal may overlap.
        self.stages.send_if_modified(|now| {
            let later = stage > *now;
            if later {
                *now = stage;
            }
            later
        });
        if stage == Stage::Cut {
            self.cut.send_replace(true);
        }
        self.rosters.iter().for_each(Roster::wake);
    }

    /// How far its life has gone.
    pub fn stage(&self) -> Stage {
        *self.stages.borrow()
    }

    /// Whether it has stopped accepting.
    pub fn draining(&self) -> &AtomicBool {
        &self.draining
    }

    /// Hears of every stage.
    pub fn stages(&self) -> watch::Receiver<Stage> {
        self.stages.subscribe()
    }

    /// What the requests of a worker hear of its end.
    pub fn ending(&self, worker: usize) -> Arc<Ending> {
        let new = || Arc::new(Ending { draining: Arc::clone(&self.draining), cut: self.cut.subscribe() });
        self.endings.get(worker).map_or_else(new, Arc::clone)
    }

    /// Ends when connections without a request are to be closed.
    pub async fn closing(&self) {
        let mut stages = self.stages();
        // The sender is `self`, so that this cannot fail.
        let _ = stages.wait_for(|stage| matches!(stage, Stage::Closing | Stage::Cut)).await;
    }
}

/// A socket of a listener is open and accepts.
#[derive(Debug)]
pub struct Accepting(Arc<Listener>);

impl Accepting {
    /// From now until this is dropped, which is after the socket is.
    pub fn new(listener: &Arc<Listener>) -> Self {
        listener.accepting.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(listener))
    }

    /// Whose it is.
    pub fn listener(&self) -> &Arc<Listener> {
        &self.0
    }
}

impl Drop for Accepting {
    fn drop(&mut self) {
        if self.0.accepting.fetch_sub(1, Ordering::AcqRel) == 1 {
            events::listener_closed(self.0.address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any() -> SocketAddr {
        "127.0.0.1:0".parse().unwrap()
    }

    #[test]
    fn an_address_is_shared_by_the_sockets_of_one_listener_and_by_nobody_else() {
        let sockets = bind(any(), 3).unwrap();
        let address = sockets[0].local_addr().unwrap();
        assert!(sockets.iter().all(|socket| socket.local_addr().unwrap() == address));
        for count in [1, 3] {
            assert_eq!(bind(address, count).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        }
    }

    #[test]
    fn connections_inherit_that_small_answers_do_not_wait() {
        let socket = bind(any(), 1).unwrap().remove(0);
        socket2::SockRef::from(&socket).set_tcp_nodelay(true).unwrap();
        let _client = std::net::TcpStream::connect(socket.local_addr().unwrap()).unwrap();
        socket.set_nonblocking(false).unwrap();
        assert!(socket.accept().unwrap().0.nodelay().unwrap());
    }
}
