//! A client's TCP socket, which the runtime watches only from the moment that it has to wait.
//!
//! A client that connects mostly sends its request with the next packet: by the time its connection has a turn, the request is there. So
//! the first read does not wait to be told, and a connection that is answered at once is never watched at all.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream as Unwatched};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::http::socket::Socket as Watched;

/// Most bytes of the first read: room for a request.
const FIRST: usize = 2 << 10;

/// A client's socket.
#[derive(Debug)]
pub struct Socket(State);

#[derive(Debug)]
enum State {
    /// Not watched; `read`: whether something was read, or could not be.
    New { socket: Unwatched, read: bool },
    /// Watched.
    Watched(Watched),
    /// It could not be watched.
    Lost,
}

impl From<Unwatched> for Socket {
    /// A socket that blocks nobody.
    fn from(socket: Unwatched) -> Self {
        Self(State::New { socket, read: false })
    }
}

impl From<Watched> for Socket {
    fn from(socket: Watched) -> Self {
        Self(State::Watched(socket))
    }
}

impl Socket {
    /// The socket, watched from now on.
    ///
    /// # Errors
    /// The system cannot watch it.
    fn watched(&mut self) -> io::Result<Pin<&mut Watched>> {
        if let State::New { .. } = self.0
            && let State::New { socket, .. } = std::mem::replace(&mut self.0, State::Lost)
        {
            self.0 = State::Watched(Watched::new(socket)?);
        }
        match &mut self.0 {
            State::Watched(socket) => Ok(Pin::new(socket)),
            State::New { .. } | State::Lost => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Does something at once if the socket is not watched; `None` if it is, or if it would have to wait.
    fn at_once<T>(&self, mut act: impl FnMut(&Unwatched) -> io::Result<T>) -> Option<io::Result<T>> {
        let State::New { socket, .. } = &self.0 else { return None };
        loop {
            match act(socket) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                done => return Some(done),
            }
        }
    }

    /// Makes closing it a reset.
    ///
    /// # Errors
    /// The system refuses; what is left is an ordinary close.
    pub fn reset_on_close(&self) -> io::Result<()> {
        match &self.0 {
            State::New { socket, .. } => SockRef::from(socket).set_linger(Some(Duration::ZERO)),
            State::Watched(socket) => SockRef::from(socket).set_linger(Some(Duration::ZERO)),
            State::Lost => Ok(()),
        }
    }

    /// The first read, if this is it.
    fn read_first(&mut self, buf: &mut ReadBuf<'_>) -> Option<io::Result<()>> {
        match &mut self.0 {
            State::New { read, .. } if !*read => *read = true,
            State::New { .. } | State::Watched(_) | State::Lost => return None,
        }
        let mut first = [0; FIRST];
        let room = first.get_mut(..buf.remaining().min(FIRST))?;
        let read = self.at_once(|mut socket| socket.read(room))?;
        Some(read.map(|count| buf.put_slice(room.get(..count).unwrap_or_default())))
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match this.read_first(buf) {
            Some(read) => Poll::Ready(read),
            None => this.watched()?.poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        match this.at_once(|mut socket| socket.write(buf)) {
            Some(written) => Poll::Ready(written),
            None => this.watched()?.poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        match this.at_once(|mut socket| socket.write_vectored(bufs)) {
            Some(written) => Poll::Ready(written),
            None => this.watched()?.poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Nothing is held back.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match this.at_once(|socket| socket.shutdown(Shutdown::Write)) {
            Some(shut) => Poll::Ready(shut),
            None => this.watched()?.poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{Future, poll_fn};
    use std::net::TcpListener;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// A client and the accepted socket.
    fn pair() -> (Unwatched, Socket) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = Unwatched::connect(listener.local_addr().unwrap()).unwrap();
        let accepted = listener.accept().unwrap().0;
        accepted.set_nonblocking(true).unwrap();
        (client, accepted.into())
    }

    fn is_watched(socket: &Socket) -> bool {
        matches!(socket.0, State::Watched(_))
    }

    #[tokio::test]
    async fn who_has_sent_a_request_is_answered_without_being_watched() {
        let (mut client, mut socket) = pair();
        client.write_all(b"request").unwrap();
        let mut buf = [0; 64];
        // On the loopback what was written can be read.
        assert_eq!(socket.read(&mut buf).await.unwrap(), 7);
        socket.write_all(b"answer").await.unwrap();
        socket.shutdown().await.unwrap();
        assert!(!is_watched(&socket));
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "answer");
    }

    #[tokio::test]
    async fn who_has_sent_nothing_yet_is_waited_for() {
        let (mut client, mut socket) = pair();
        let mut buf = [0; 64];
        {
            let mut reading = std::pin::pin!(socket.read(&mut buf));
            let pending = poll_fn(|cx| Poll::Ready(reading.as_mut().poll(cx).is_pending())).await;
            assert!(pending);
            client.write_all(b"late").unwrap();
            assert_eq!(reading.await.unwrap(), 4);
        }
        assert!(is_watched(&socket));
    }

    #[tokio::test]
    async fn a_second_read_waits_and_loses_nothing_of_a_request_that_is_longer_than_the_first() {
        let (mut client, mut socket) = pair();
        let long = vec![b'x'; 3 * FIRST];
        client.write_all(&long).unwrap();
        let mut read = vec![0; long.len()];
        socket.read_exact(&mut read).await.unwrap();
        assert!(read == long && is_watched(&socket));
    }

    #[tokio::test]
    async fn a_client_that_takes_nothing_is_waited_for_and_gets_all_of_it() {
        let (mut client, mut socket) = pair();
        let much = vec![b'x'; 16 << 20];
        let reader = std::thread::spawn(move || {
            let mut read = Vec::new();
            client.read_to_end(&mut read).unwrap();
            read.len()
        });
        socket.write_all(&much).await.unwrap();
        assert!(is_watched(&socket));
        drop(socket);
        assert_eq!(reader.join().unwrap(), much.len());
    }
}
