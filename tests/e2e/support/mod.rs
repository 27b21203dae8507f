//! What the tests of a running gateway are made of: scriptable upstreams, raw clients, a gateway on free ports, and waiting for conditions.

pub mod certs;
pub mod client;
pub mod dns;
pub mod example;
pub mod frames;
pub mod gateway;
pub mod h2;
pub mod process;
pub mod upstream;
pub mod wire;

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

pub use client::Raw;
pub use gateway::Gateway;
pub use upstream::{Conn, Refused, Then, Upstream};
pub use wire::{Answer, End, Request};

/// Longest wait for anything that is expected to happen: generous, since it is only used up by a failing test.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Waits until `condition` gives a value; panics with `what` when it never does.
#[track_caller]
pub fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < end, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Something that upstreams wait at until the test lets them go on.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    /// A closed gate.
    pub fn new() -> Self {
        Self::default()
    }
    /// Lets everybody through, now and later.
    pub fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }
    /// Waits until the gate is open.
    pub fn pass(&self) {
        let open = self.0.0.lock().unwrap();
        let (open, _) = self.0.1.wait_timeout_while(open, PATIENCE, |open| !*open).unwrap();
        assert!(*open, "the gate stayed closed");
    }
    /// Whether somebody opened it.
    pub fn is_open(&self) -> bool {
        *self.0.0.lock().unwrap()
    }
}

/// Runs a future on a runtime of its own.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE * 3, future).await.expect("the test took too long") })
}
