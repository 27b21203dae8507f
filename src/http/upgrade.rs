//! A connection that stops speaking HTTP: the byte stream that a tunnel goes on with.

use std::fmt;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;

/// A byte stream.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A byte stream of any kind.
pub type BoxedStream = Box<dyn Stream>;

/// The stream of a connection once its last HTTP message is out: of an HTTP/1 connection with whatever was read behind the request, or of
/// an HTTP/2 stream (RFC 8441).
pub struct Upgrading(pub oneshot::Receiver<BoxedStream>);

impl fmt::Debug for Upgrading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Upgrading")
    }
}

impl Upgrading {
    /// Waits for it; `None` if the client went away first.
    pub async fn switched(self) -> Option<BoxedStream> {
        self.0.await.ok()
    }
}
