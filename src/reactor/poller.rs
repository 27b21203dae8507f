//! The system's list of sockets about which there is something to tell: epoll, edge-triggered.

use std::os::fd::BorrowedFd;

use super::sources::Key;

pub use self::imp::Poller;

/// Most events that are heard of at once.
pub(super) const BATCH: usize = 128;

/// There is something to read, or an end.
pub(super) const READ: u8 = 1;
/// There is room to write.
pub(super) const WRITE: u8 = 2;
/// The other side sends no more, or the connection is over: what was read last is no sign that nothing follows.
pub(super) const READ_END: u8 = 4;
/// Nothing can be written any more: an attempt says why.
pub(super) const WRITE_END: u8 = 8;

#[cfg(target_os = "linux")]
mod imp {
    use std::io;
    use std::mem::MaybeUninit;
    use std::os::fd::{AsRawFd, OwnedFd, RawFd};

    use rustix::event::Timespec;
    use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
    use rustix::io::Errno;

    use super::{BATCH, BorrowedFd, Key, READ, READ_END, WRITE, WRITE_END};

    /// An epoll instance.
    #[derive(Debug)]
    pub struct Poller(OwnedFd);

    impl Poller {
        pub(in super::super) fn new() -> io::Result<Self> {
            Ok(Self(epoll::create(CreateFlags::CLOEXEC)?))
        }

        /// Begins to watch a socket, for everything, once for each change, until it is closed.
        pub(in super::super) fn add(&self, socket: BorrowedFd<'_>, key: Key) -> io::Result<()> {
            let all = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
            Ok(epoll::add(&self.0, socket, EventData::new_u64(key.to_word()), all)?)
        }

        /// Tells of what has happened, without waiting, at most [`BATCH`] events.
        pub(in super::super) fn take(&self, mut tell: impl FnMut(Key, u8)) -> usize {
            let mut events = [const { MaybeUninit::uninit() }; BATCH];
            let none = Timespec { tv_sec: 0, tv_nsec: 0 };
            let heard = match epoll::wait(&self.0, &mut events[..], Some(&none)) {
                Ok((heard, _)) => heard,
                // It never waits, so it is not interrupted; should it be, the next look finds what there is.
                Err(Errno::INTR) => return BATCH,
                // The descriptor is an epoll instance and the memory is ours.
                Err(error) => {
                    tracing::error!(%error, "epoll_wait failed");
                    return 0;
                }
            };
            for event in heard.iter() {
                let (flags, data) = (event.flags, event.data);
                tell(Key::from_word(data.u64()), ready(flags));
            }
            heard.len()
        }
    }

    fn ready(flags: EventFlags) -> u8 {
        let over = flags.intersects(EventFlags::HUP | EventFlags::ERR);
        let mut ready = 0;
        if flags.contains(EventFlags::IN) {
            ready |= READ;
        }
        if flags.contains(EventFlags::OUT) {
            ready |= WRITE;
        }
        if over || flags.contains(EventFlags::RDHUP) {
            ready |= READ | READ_END;
        }
        if over {
            ready |= WRITE | WRITE_END;
        }
        ready
    }

    impl AsRawFd for Poller {
        fn as_raw_fd(&self) -> RawFd {
            self.0.as_raw_fd()
        }
    }
}

/// Other systems have no epoll: there, sockets are tokio's.
#[cfg(not(target_os = "linux"))]
mod imp {
    use std::convert::Infallible;
    use std::io;
    use std::os::fd::{AsRawFd, RawFd};

    use super::{BorrowedFd, Key};

    /// There is none.
    #[derive(Debug)]
    pub struct Poller(Infallible);

    impl Poller {
        pub(in super::super) fn new() -> io::Result<Self> {
            Err(io::ErrorKind::Unsupported.into())
        }

        pub(in super::super) fn add(&self, _: BorrowedFd<'_>, _: Key) -> io::Result<()> {
            match self.0 {}
        }

        pub(in super::super) fn take(&self, _: impl FnMut(Key, u8)) -> usize {
            match self.0 {}
        }
    }

    impl AsRawFd for Poller {
        fn as_raw_fd(&self) -> RawFd {
            match self.0 {}
        }
    }
}
