//! A TCP connection on the data path.
//!
//! It does what tokio's stream does, in fewer steps. Reads and writes are system calls with no libc between: there they are points where
//! a thread may be cancelled, each of which costs two locked instructions. And the worker's own [`reactor`](crate::reactor) watches it, if
//! the thread has one.

use std::io::{self, IoSlice};
use std::net::{Shutdown, SocketAddr, TcpStream as Unwatched};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvFlags, SendFlags};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use crate::reactor::{self, Direction, Registration};

/// A TCP connection.
#[derive(Debug)]
pub struct Socket(Watch);

#[derive(Debug)]
enum Watch {
    /// Watched by the reactor of the thread that it was made on, where it stays.
    Reactor { registration: Registration, tcp: Arc<Unwatched> },
    /// Watched by the runtime.
    Runtime(TcpStream),
}

/// Longest write that may be held back for those of others: copying it is little beside sending it.
const SHORT: usize = 4 << 10;

impl Socket {
    /// Begins to watch a connection that blocks nobody.
    ///
    /// # Errors
    /// The system cannot watch it.
    pub fn new(tcp: Unwatched) -> io::Result<Self> {
        let tcp = Arc::new(tcp);
        let registration = Registration::new(&tcp)?;
        Ok(Self(match (registration, Arc::try_unwrap(tcp)) {
            (Some(registration), Err(tcp)) => Watch::Reactor { registration, tcp },
            (None, Ok(tcp)) => Watch::Runtime(TcpStream::from_std(tcp)?),
            (Some(_), Ok(_)) | (None, Err(_)) => return Err(io::Error::other("a socket is held by its reactor, and only then")),
        }))
    }

    /// Takes a connection that the runtime watches.
    ///
    /// # Errors
    /// The system cannot watch it otherwise.
    pub fn taken(tcp: TcpStream) -> io::Result<Self> {
        Self::new(tcp.into_std()?)
    }

    /// The address at the other end.
    ///
    /// # Errors
    /// There is none any more.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        match &self.0 {
            Watch::Reactor { tcp, .. } => tcp.peer_addr(),
            Watch::Runtime(tcp) => tcp.peer_addr(),
        }
    }

    /// Bytes that were written and which the system then refused, with everything else of their write.
    pub fn lost(&self) -> u64 {
        match &self.0 {
            Watch::Reactor { registration, .. } => registration.lost(),
            Watch::Runtime(_) => 0,
        }
    }

    /// Whether there is nothing to read, not even an end, as far as the runtime has heard. What it reads is lost.
    pub fn is_quiet(&mut self) -> bool {
        let mut byte = [0];
        match &self.0 {
            Watch::Reactor { registration, tcp } if registration.is_here() => {
                !registration.is_ready(Direction::Read)
                    || (registration.take_ahead(&mut ReadBuf::new(&mut byte)).is_none()
                        && retry_on_intr(|| rustix::net::recv(tcp, &mut byte, RecvFlags::empty())) == Err(Errno::AGAIN)
                        && registration.found_nothing(Direction::Read).is_ok())
            }
            Watch::Reactor { .. } => false,
            Watch::Runtime(tcp) => tcp.try_read(&mut byte).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock),
        }
    }

    /// Does one read or write, `act`, as soon as it can be done: it is to tell how many bytes it took of how many it could have.
    fn poll_once(
        &self,
        cx: &mut Context<'_>,
        direction: Direction,
        mut act: impl FnMut(BorrowedFd<'_>) -> Result<(usize, usize), Errno>,
    ) -> Poll<io::Result<usize>> {
        let (registration, tcp) = match &self.0 {
            Watch::Reactor { registration, tcp } => (registration, tcp),
            Watch::Runtime(tcp) => return poll_by_runtime(tcp, cx, direction, act),
        };
        if !registration.is_here() {
            return Poll::Ready(Err(io::Error::other("a connection stays with its worker")));
        }
        loop {
            ready!(registration.poll_ready(direction, cx));
            match retry_on_intr(|| act(tcp.as_fd())) {
                Ok((count, of)) => {
                    registration.has_moved(direction, count, of);
                    if count == 0 && of > 0 && direction == Direction::Read {
                        registration.found_end()?;
                    }
                    return Poll::Ready(Ok(count));
                }
                Err(Errno::AGAIN) => registration.found_nothing(direction)?,
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    /// For tests: the next write may be held back, whatever was heard.
    #[cfg(test)]
    pub(crate) fn believe_writable(&self) {
        if let Watch::Reactor { registration, .. } = &self.0 {
            registration.believe_writable();
        }
    }

    /// Has `pieces`, of `length` bytes, written soon if they are short, or else by `write`.
    fn poll_send(
        &self,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
        length: usize,
        write: impl Fn(BorrowedFd<'_>) -> Result<usize, Errno>,
    ) -> Poll<io::Result<usize>> {
        // Who always finds room leaves others their turn.
        ready!(reactor::poll_turn(cx));
        if let Watch::Reactor { registration, .. } = &self.0 {
            if length <= SHORT && registration.hold(pieces) {
                return Poll::Ready(Ok(length));
            }
            ready!(registration.poll_settled(cx))?;
        }
        self.poll_once(cx, Direction::Write, |tcp| Ok((write(tcp)?, length)))
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.0 {
            Watch::Reactor { tcp, .. } => tcp.as_fd(),
            Watch::Runtime(tcp) => tcp.as_fd(),
        }
    }
}

/// [`Socket::poll_once`] where the runtime watches.
fn poll_by_runtime(
    tcp: &TcpStream,
    cx: &mut Context<'_>,
    direction: Direction,
    mut act: impl FnMut(BorrowedFd<'_>) -> Result<(usize, usize), Errno>,
) -> Poll<io::Result<usize>> {
    let interest = match direction {
        Direction::Read => Interest::READABLE,
        Direction::Write => Interest::WRITABLE,
    };
    loop {
        let mut done = None;
        let outcome = tcp.try_io(interest, || {
            let (count, of) = retry_on_intr(|| act(tcp.as_fd()))?;
            done = Some(count);
            // By this word the runtime learns that it was used up.
            if count > 0 && count < of { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
        });
        match (done, outcome) {
            (Some(count), _) => return Poll::Ready(Ok(count)),
            (None, Err(error)) if error.kind() != io::ErrorKind::WouldBlock => return Poll::Ready(Err(error)),
            (None, _) => ready!(match direction {
                Direction::Read => tcp.poll_read_ready(cx),
                Direction::Write => tcp.poll_write_ready(cx),
            })?,
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // Who always finds something leaves others their turn.
        ready!(reactor::poll_turn(cx));
        if let Watch::Reactor { registration, .. } = &self.0
            && let Some(read) = registration.take_ahead(buf)
        {
            return Poll::Ready(read);
        }
        self.poll_once(cx, Direction::Read, |tcp| {
            let room = buf.remaining();
            Ok((receive(tcp, buf)?, room))
        })
        .map_ok(drop)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_send(cx, &[IoSlice::new(bytes)], bytes.len(), |tcp| rustix::net::send(tcp, bytes, SendFlags::NOSIGNAL))
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, pieces: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let length = pieces.iter().map(|piece| piece.len()).sum();
        self.poll_send(cx, pieces, length, |tcp| rustix::io::writev(tcp, pieces))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What is held back is sent before anything new is waited for.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.0 {
            Watch::Reactor { registration, tcp } => {
                ready!(registration.poll_settled(cx))?;
                Poll::Ready(tcp.shutdown(Shutdown::Write))
            }
            Watch::Runtime(tcp) => Poll::Ready(rustix::net::shutdown(tcp, rustix::net::Shutdown::Write).map_err(Into::into)),
        }
    }
}

/// Receives into the room that `buf` has; 0 at the end of the stream.
#[expect(
    unsafe_code,
    reason = "reading into memory that nobody has written has no safe form, and writing zeros first costs as much as a read"
)]
fn receive(tcp: BorrowedFd<'_>, buf: &mut ReadBuf<'_>) -> Result<usize, Errno> {
    // SAFETY: the room is only written to, by the kernel.
    let room = unsafe { buf.unfilled_mut() };
    let (_, count) = rustix::net::recv(tcp, &mut *room, RecvFlags::empty())?;
    // SAFETY: so many bytes were written from the beginning of the room.
    unsafe { buf.assume_init(count) };
    buf.advance(count);
    Ok(count)
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    use std::task::{Wake, Waker};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::reactor::Reactor;

    async fn pair() -> (Socket, Socket) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (Socket::taken(near.unwrap()).unwrap(), Socket::taken(far.unwrap().0).unwrap())
    }

    /// Runs `test` where the runtime watches sockets, and where a reactor does.
    fn both<F: Future<Output = ()> + Send + 'static>(test: impl Fn() -> F) {
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime().block_on(test());
        let test = test();
        runtime().block_on(async {
            let Ok(reactor) = Reactor::start() else { return };
            tokio::spawn(tokio::task::coop::unconstrained(reactor));
            let (done, waits) = tokio::sync::oneshot::channel();
            reactor::spawn(Box::pin(async move {
                test.await;
                done.send(()).unwrap();
            }));
            waits.await.unwrap();
        });
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

    #[test]
    fn everything_arrives_and_the_end_is_an_end() {
        both(|| async {
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
        });
    }

    #[test]
    fn who_looks_again_before_anything_has_come_is_still_woken_once() {
        both(|| async {
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
        });
    }

    #[test]
    fn the_last_task_that_looked_is_woken() {
        both(|| async {
            let (mut near, mut far) = pair().await;
            let (first, last) = (Arc::new(Rings::default()), Arc::new(Rings::default()));
            for task in [&first, &last, &first, &last] {
                assert!(look(&mut near, task).is_pending());
            }
            far.write_all(b"x").await.unwrap();
            heard(&last, 1).await;
            assert_eq!((look(&mut near, &last), first.0.load(Relaxed)), (Poll::Ready(1), 0));
        });
    }

    #[test]
    fn a_look_whether_it_is_quiet_forgets_who_waited() {
        both(|| async {
            let (mut near, mut far) = pair().await;
            let task = Arc::new(Rings::default());
            assert!(look(&mut near, &task).is_pending() && near.is_quiet());
            assert!(look(&mut near, &task).is_pending());
            far.write_all(b"xy").await.unwrap();
            heard(&task, 1).await;
            assert!(!near.is_quiet());
        });
    }

    #[test]
    fn writing_to_who_has_closed_is_an_error_and_no_signal() {
        both(|| async {
            let (mut near, far) = pair().await;
            drop(far);
            let error = loop {
                if let Err(error) = near.write_all(&[0; 1024]).await {
                    break error;
                }
            };
            assert!(matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset), "{error}");
        });
    }
}
