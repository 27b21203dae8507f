//! A TCP connection on the data path.
//!
//! It does what tokio's stream does, in fewer steps. Reads and writes are system calls with no libc between: there they are points where
//! a thread may be cancelled, each of which costs two locked instructions. And a task that asks again before anything has come is not
//! registered again: its waker is where it was.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvFlags, SendFlags};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::coop;

/// A TCP connection.
#[derive(Debug)]
pub struct Socket {
    tcp: TcpStream,
    /// The task that was registered to hear of something to read, if nothing was read since: the address of what its waker stands for. No
    /// other task can have that address as long as the runtime holds the waker, which it does until something comes.
    reader: Option<usize>,
}

impl Socket {
    /// Wraps a connection that nobody reads from.
    pub fn new(tcp: TcpStream) -> Self {
        Self { tcp, reader: None }
    }

    /// The connection, for its addresses and options.
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// Whether there is nothing to read, not even an end, as far as the runtime has heard. What it reads is lost.
    pub fn is_quiet(&mut self) -> bool {
        // It may find that the runtime has heard wrong, and then nobody is registered any more.
        self.reader = None;
        self.tcp.try_read(&mut [0]).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Writes once with `write`, which is to write `length` bytes.
    fn poll_write_once(
        &self,
        cx: &mut Context<'_>,
        length: usize,
        write: impl Fn(&TcpStream) -> Result<usize, Errno>,
    ) -> Poll<io::Result<usize>> {
        let turn = ready!(coop::poll_proceed(cx));
        loop {
            let mut written = None;
            let outcome = self.tcp.try_io(Interest::WRITABLE, || {
                let count = retry_on_intr(|| write(&self.tcp))?;
                written = Some(count);
                // By this word the runtime learns that there is no more room.
                if count > 0 && count < length { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
            });
            match (written, outcome) {
                (Some(count), _) => {
                    turn.made_progress();
                    return Poll::Ready(Ok(count));
                }
                (None, Err(error)) if error.kind() != io::ErrorKind::WouldBlock => {
                    turn.made_progress();
                    return Poll::Ready(Err(error));
                }
                (None, _) => ready!(self.tcp.poll_write_ready(cx))?,
            }
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // Who always finds something leaves others their turn.
        let turn = ready!(coop::poll_proceed(cx));
        loop {
            let (mut looked, mut read) = (false, false);
            let outcome = this.tcp.try_io(Interest::READABLE, || {
                looked = true;
                let room = buf.remaining();
                let count = receive(&this.tcp, buf)?;
                read = true;
                // By this word the runtime learns that there is no more.
                if count > 0 && count < room { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
            });
            if looked {
                this.reader = None;
            }
            match outcome {
                _ if read => {
                    turn.made_progress();
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                    turn.made_progress();
                    return Poll::Ready(Err(error));
                }
                Ok(()) | Err(_) => {}
            }
            let task = cx.waker().data().addr();
            if this.reader == Some(task) {
                return Poll::Pending;
            }
            this.reader = None;
            if this.tcp.poll_read_ready(cx)?.is_pending() {
                // A task whose turn is over is woken for another one, but not registered.
                this.reader = coop::has_budget_remaining().then_some(task);
                return Poll::Pending;
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_once(cx, bytes.len(), |tcp| rustix::net::send(tcp, bytes, SendFlags::NOSIGNAL))
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, pieces: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let length = pieces.iter().map(|piece| piece.len()).sum();
        self.poll_write_once(cx, length, |tcp| rustix::io::writev(tcp, pieces))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_shutdown(cx)
    }
}

/// Receives into the room that `buf` has; 0 at the end of the stream.
#[expect(
    unsafe_code,
    reason = "reading into memory that nobody has written has no safe form, and writing zeros first costs as much as a read"
)]
fn receive(tcp: &TcpStream, buf: &mut ReadBuf<'_>) -> io::Result<usize> {
    // SAFETY: the room is only written to, by the kernel.
    let room = unsafe { buf.unfilled_mut() };
    let (_, count) = retry_on_intr(|| rustix::net::recv(tcp, &mut *room, RecvFlags::empty()).map(|((_, _), count)| ((), count)))?;
    // SAFETY: so many bytes were written from the beginning of the room.
    unsafe { buf.assume_init(count) };
    buf.advance(count);
    Ok(count)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    use std::task::{Wake, Waker};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (Socket, Socket) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (Socket::new(near.unwrap()), Socket::new(far.unwrap().0))
    }

    #[derive(Default)]
    struct Rings(AtomicUsize);

    impl Wake for Rings {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    /// One look with a task's waker.
    fn look(socket: &mut Socket, task: &Arc<Rings>) -> Poll<usize> {
        let waker = Waker::from(Arc::clone(task));
        let (mut bytes, mut cx) = ([0; 8], Context::from_waker(&waker));
        let mut buf = ReadBuf::new(&mut bytes);
        Pin::new(socket).poll_read(&mut cx, &mut buf).map(|read| read.map(|()| buf.filled().len()).unwrap())
    }

    /// Waits until the runtime has heard of something to read.
    async fn heard(task: &Rings, times: usize) {
        while task.0.load(Relaxed) < times {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn everything_arrives_and_the_end_is_an_end() {
        let (mut near, mut far) = pair().await;
        let sent: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
        let sending = async {
            let (half, rest) = sent.split_at(sent.len() / 2);
            near.write_all(half).await.unwrap();
            let mut pieces = [IoSlice::new(&rest[..7]), IoSlice::new(&rest[7..])];
            let first = near.write_vectored(&pieces).await.unwrap();
            IoSlice::advance_slices(&mut &mut pieces[..], first);
            near.write_all(&rest[first..]).await.unwrap();
            near.shutdown().await.unwrap();
        };
        let mut got = Vec::new();
        let (read, ()) = tokio::join!(far.read_to_end(&mut got), sending);
        assert_eq!(read.unwrap(), sent.len());
        assert!(got == sent);
        assert_eq!(far.read(&mut [0; 4]).await.unwrap(), 0, "it stays an end");
    }

    #[tokio::test]
    async fn who_looks_again_before_anything_has_come_is_still_woken_once() {
        let (mut near, mut far) = pair().await;
        let task = Arc::new(Rings::default());
        for round in 1..=3 {
            for _ in 0..3 {
                assert!(look(&mut near, &task).is_pending());
            }
            far.write_all(b"x").await.unwrap();
            heard(&task, round).await;
            assert_eq!(look(&mut near, &task), Poll::Ready(1));
        }
        assert_eq!(task.0.load(Relaxed), 3);
    }

    #[tokio::test]
    async fn the_last_task_that_looked_is_woken() {
        let (mut near, mut far) = pair().await;
        let (first, last) = (Arc::new(Rings::default()), Arc::new(Rings::default()));
        for task in [&first, &last, &first, &last] {
            assert!(look(&mut near, task).is_pending());
        }
        far.write_all(b"x").await.unwrap();
        heard(&last, 1).await;
        assert_eq!((look(&mut near, &last), first.0.load(Relaxed)), (Poll::Ready(1), 0));
    }

    #[tokio::test]
    async fn a_look_whether_it_is_quiet_forgets_who_waited() {
        let (mut near, mut far) = pair().await;
        let task = Arc::new(Rings::default());
        assert!(look(&mut near, &task).is_pending() && near.is_quiet());
        assert!(look(&mut near, &task).is_pending());
        far.write_all(b"xy").await.unwrap();
        heard(&task, 1).await;
        assert!(!near.is_quiet());
    }

    #[tokio::test]
    async fn writing_to_who_has_closed_is_an_error_and_no_signal() {
        let (mut near, far) = pair().await;
        drop(far);
        let error = loop {
            if let Err(error) = near.write_all(&[0; 1024]).await {
                break error;
            }
        };
        assert!(matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset), "{error}");
    }
}
