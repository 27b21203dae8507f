//! How requests learn that the listener they came through is coming to its end.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tokio::sync::watch;

/// What a worker's connections hear of the end of their listener. One per worker, on cache lines of its own: a count that all workers
/// change would cost every request.
#[derive(Clone, Debug)]
#[repr(align(128))]
pub struct Ending {
    /// Whether answers end their connections. Looked at when the answer is ready: a drain may begin while a request is upstream.
    pub draining: Arc<AtomicBool>,
    /// Ends tunnels when the drain is over.
    pub cut: watch::Receiver<bool>,
}
