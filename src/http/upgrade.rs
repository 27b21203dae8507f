//! A connection that stops speaking HTTP: the byte stream that a tunnel goes on with.

use std::fmt;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;

/// A byte stream.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A byte stream of any kind.
pub type BoxedStream = Box<dyn Stream>;

/// The stream of a connection once its last HTTP message is out.
pub enum Upgrading {
    /// Of an HTTP/1 connection: it comes with whatever was read behind the request.
    Http1(oneshot::Receiver<BoxedStream>),
    /// Of an HTTP/2 stream (RFC 8441).
    Http2(OnUpgrade),
}

impl fmt::Debug for Upgrading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Upgrading")
    }
}

impl Upgrading {
    /// Waits for it; `None` if the client went away first.
    pub async fn switched(self) -> Option<BoxedStream> {
        match self {
            Self::Http1(stream) => stream.await.ok(),
            Self::Http2(upgrade) => upgrade.await.ok().map(|upgraded| Box::new(TokioIo::new(upgraded)) as BoxedStream),
        }
    }
}
