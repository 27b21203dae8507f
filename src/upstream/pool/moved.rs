//! Connections of an endpoint whose name has moved: those to addresses that it no longer has take no further request.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use super::{EndpointPool, OpenConnection, Streams};

/// Where a name has moved to.
#[derive(Debug, Default)]
pub(super) struct Moved {
    /// Names rarely move: requests of the others look at this alone.
    ever: AtomicBool,
    addresses: Mutex<Vec<SocketAddr>>,
}

impl EndpointPool {
    /// The endpoint's name has moved to these addresses.
    pub fn keep_only(&self, addresses: &[SocketAddr]) {
        self.moved.addresses.lock().unwrap_or_else(PoisonError::into_inner).splice(.., addresses.iter().copied());
        self.moved.ever.store(true, Ordering::Release);
        for worker in 0..self.shards.len() {
            let mut kept = self.shard(worker);
            let closed: Vec<_> = kept.idle.extract_if(.., |idle| !idle.connection.is_wanted()).collect();
            kept.h2.retain(|shared| self.wants(&shared.streams));
            drop(kept);
            drop(closed);
        }
    }

    fn wants(&self, connection: &Streams) -> bool {
        let has = |peer| self.moved.addresses.lock().unwrap_or_else(PoisonError::into_inner).contains(peer);
        !self.moved.ever.load(Ordering::Acquire) || connection.peer.get().is_none_or(has)
    }
}

impl OpenConnection {
    /// The connection is one to this address.
    pub fn reached(&self, peer: Option<SocketAddr>) {
        // Told once, before anybody else has it.
        let _ = peer.map(|peer| self.streams.peer.set(peer));
    }

    /// Whether the connection is one to an address that the endpoint still has.
    pub fn is_wanted(&self) -> bool {
        self.pool.wants(&self.streams)
    }
}
