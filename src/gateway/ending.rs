//! How requests learn that the listener they came through is coming to its end.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tokio::sync::watch;

/// What a connection hears of the end of its listener. One per connection: a count that all workers change would cost every request.
#[derive(Clone, Debug)]
pub struct Ending {
    /// Whether answers end their connections. Looked at when the answer is ready: a drain may begin while a request is upstream.
    pub draining: Arc<AtomicBool>,
    /// Ends tunnels when the drain is over.
    pub cut: watch::Receiver<bool>,
}
