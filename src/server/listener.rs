//! A listening socket and how far its life has gone.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::watch;

use crate::gateway::Ending;
use crate::gateway::snapshot::ListenerSpec;
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
    /// Its socket, while it accepts. A socket that stays open after that would let clients connect and wait for nobody.
    socket: Mutex<Option<TcpListener>>,
    draining: Arc<AtomicBool>,
    stages: watch::Sender<Stage>,
    /// How often its TLS was superseded.
    identity: watch::Sender<u64>,
    cut: watch::Sender<bool>,
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Opens a listening socket.
///
/// # Errors
/// The address is taken or not this machine's.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restart must not wait for the last run's connections in TIME_WAIT.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // `[::]` takes IPv4 as well, whatever the system's default.
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
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
    /// A listener over `socket`.
    ///
    /// # Errors
    /// The socket has no address, or is none of TCP.
    pub fn new(socket: TcpListener, spec: ListenerSpec, metrics: impl FnOnce(&str) -> Arc<ListenerMetrics>) -> io::Result<Arc<Self>> {
        let address = socket.local_addr()?;
        // Connections inherit it, also from a socket that was passed in: without it a small answer could wait for the client's delayed ACK.
        socket2::SockRef::from(&socket).set_tcp_nodelay(true)?;
        Ok(Arc::new(Self {
            configured: spec.address,
            address,
            metrics: metrics(&address.to_string()),
            spec: ArcSwap::from_pointee(spec),
            socket: Mutex::new(Some(socket)),
            draining: Arc::default(),
            stages: watch::Sender::new(Stage::Serving),
            identity: watch::Sender::new(0),
            cut: watch::Sender::new(false),
        }))
    }

    /// The socket, for the acceptor alone: it closes it when it is done.
    pub fn take_socket(&self) -> Option<TcpListener> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner).take()
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
            self.identity.send_modify(|times| *times += 1);
        }
    }

    /// How often its TLS was superseded. A connection reads it before it reads `spec`, so that it never misses a change.
    pub fn identity(&self) -> watch::Receiver<u64> {
        self.identity.subscribe()
    }

    /// Moves on to `stage`.
    pub fn enter(&self, stage: Stage) {
        self.draining.store(stage != Stage::Serving, Relaxed);
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
    }

    /// Whether it has stopped accepting.
    pub fn draining(&self) -> &AtomicBool {
        &self.draining
    }

    /// Hears of every stage.
    pub fn stages(&self) -> watch::Receiver<Stage> {
        self.stages.subscribe()
    }

    /// What the requests of a connection hear of its end.
    pub fn ending(&self) -> Ending {
        Ending { draining: Arc::clone(&self.draining), cut: self.cut.subscribe() }
    }

    /// Ends when connections without a request are to be closed.
    pub async fn closing(&self) {
        let mut stages = self.stages();
        // The sender is `self`, so that this cannot fail.
        let _ = stages.wait_for(|stage| matches!(stage, Stage::Closing | Stage::Cut)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_inherit_that_small_answers_do_not_wait() {
        let socket = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        socket2::SockRef::from(&socket).set_tcp_nodelay(true).unwrap();
        let _client = std::net::TcpStream::connect(socket.local_addr().unwrap()).unwrap();
        socket.set_nonblocking(false).unwrap();
        assert!(socket.accept().unwrap().0.nodelay().unwrap());
    }
}
