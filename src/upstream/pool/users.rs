//! Who needs the pool: the endpoints of snapshots. Kept connections hold on to their pool, so it would not end with the last of them.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::EndpointPool;

/// How many endpoints have the pool.
#[derive(Debug, Default)]
pub(super) struct Users(AtomicUsize);

impl Users {
    /// Whether a connection that is given back may still be of use.
    pub fn any(&self) -> bool {
        self.0.load(Ordering::Acquire) > 0
    }
}

impl EndpointPool {
    /// Whether any endpoint has the pool.
    #[cfg(test)]
    pub fn has_users(&self) -> bool {
        self.users.any()
    }

    /// One more endpoint has the pool.
    pub fn acquired(&self) {
        self.users.0.fetch_add(1, Ordering::AcqRel);
    }

    /// An endpoint is gone. With the last one go the connections that nobody uses now, and each of the others with its last request.
    pub fn released(&self) {
        if self.users.0.fetch_sub(1, Ordering::AcqRel) == 1 {
            for worker in 0..self.shards.len() {
                let mut kept = self.shard(worker);
                let closed = (std::mem::take(&mut kept.idle), std::mem::take(&mut kept.h2));
                drop(kept);
                drop(closed);
            }
        }
    }
}
