//! What a socket holds of its reactor.

use std::io::{self, IoSlice};
use std::net::TcpStream;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::ReadBuf;

use super::home::Home;
use super::poller::{READ, WRITE};
use super::source::{AHEAD, Direction, Waits};
use super::sources::{Key, Settled, Sources};
use super::{HERE, Here};

/// A socket watched by a reactor, as long as this lives.
#[derive(Debug)]
pub struct Registration {
    home: Arc<Home>,
    key: Key,
}

impl Registration {
    pub(super) fn of(home: &Arc<Home>, key: Key) -> Self {
        Self { home: Arc::clone(home), key }
    }

    /// Watches `socket` by the reactor of this thread; `None` if there is none.
    ///
    /// # Errors
    /// The system cannot watch it.
    pub fn new(socket: &Arc<TcpStream>) -> io::Result<Option<Self>> {
        HERE.with(|here| here.sources.borrow_mut().add(socket))
    }

    /// Whether this thread's reactor watches it. No other may be asked about it.
    pub fn is_here(&self) -> bool {
        HERE.with(|here| here.tag.get() == self.home.tag())
    }

    /// Does something with the sockets of this thread, if this is one of them.
    fn with<T>(&self, elsewhere: T, act: impl FnOnce(&Here, &mut Sources) -> T) -> T {
        HERE.with(|here| if here.tag.get() == self.home.tag() { act(here, &mut here.sources.borrow_mut()) } else { elsewhere })
    }

    /// Takes a short write, to be done with those of other sockets before the reactor looks for new events: the system's code for
    /// writing, and the worker's own, then stay in the processor's caches. `false`: it is not taken, and [`Self::poll_settled`] comes first.
    pub fn hold(&self, pieces: &[IoSlice<'_>]) -> bool {
        self.with(false, |here, sources| here.running.get() && sources.hold(self.key, pieces))
    }

    /// Ready when writes that were held back are done.
    ///
    /// # Errors
    /// The system refused one.
    pub fn poll_settled(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match self.with(Settled::Done, |_, sources| sources.settle(self.key)) {
                Settled::Done => return Poll::Ready(Ok(())),
                Settled::Failed(error) => return Poll::Ready(Err(error.into())),
                Settled::Blocked => ready!(self.poll_ready(Direction::Write, cx)),
            }
        }
    }

    /// Bytes of writes that were held back and which the system then refused, all of them.
    pub fn lost(&self) -> u64 {
        self.with(0, |_, sources| sources.get(self.key).map_or(0, |source| source.lost))
    }

    /// Whether there is what `direction` says, as far as was heard.
    pub fn is_ready(&self, direction: Direction) -> bool {
        self.with(false, |_, sources| sources.get(self.key).is_some_and(|source| source.is_ready(direction)))
    }

    /// What was read before it was asked for, if anything was.
    pub fn take_ahead(&self, into: &mut ReadBuf<'_>) -> Option<io::Result<()>> {
        self.with(None, |_, sources| sources.take_ahead(self.key, into)).map(|taken| taken.map_err(Into::into))
    }

    /// Ready if there is what `direction` says, as far as was heard; else the task is woken when it comes. Only the last one to ask is.
    pub fn poll_ready(&self, direction: Direction, cx: &mut Context<'_>) -> Poll<()> {
        let (ready, before) = self.with((Poll::Ready(()), None), |here, sources| {
            let Some(source) = sources.get(self.key) else { return (Poll::Ready(()), None) };
            if source.is_ready(direction) {
                return (Poll::Ready(()), None);
            }
            let waits = match here.tasks.current(cx.waker()) {
                Some(task) => Waits::Task(task),
                None => Waits::Other(cx.waker().clone()),
            };
            (Poll::Pending, source.waiting(direction).replace(waits))
        });
        // Where nothing is borrowed: it may be the last that holds a task.
        drop(before);
        ready
    }

    /// The last attempt moved `count` bytes of the `of` that it could have: if fewer, nothing is left of what `direction` says, unless an
    /// end was heard.
    pub fn has_moved(&self, direction: Direction, count: usize, of: usize) {
        self.with((), |_, sources| {
            let Some(source) = sources.get(self.key) else { return };
            match direction {
                Direction::Read => {
                    source.short = count < AHEAD;
                    if count > 0 && count < of {
                        source.ready &= !READ;
                    }
                }
                Direction::Write if count > 0 && count < of => source.ready &= !WRITE,
                Direction::Write => {}
            }
        });
    }

    /// The last attempt found nothing.
    ///
    /// # Errors
    /// And nothing is to come, since a write could not be done.
    pub fn found_nothing(&self, direction: Direction) -> io::Result<()> {
        self.with((), |_, sources| {
            if let Some(source) = sources.get(self.key) {
                source.ready &= !direction.mask();
            }
        });
        self.found_end()
    }

    /// The last read found an end.
    ///
    /// # Errors
    /// It is none: a write that was held back has met what broke the connection, and the system tells that only once.
    pub fn found_end(&self) -> io::Result<()> {
        let failed = self.with(None, |_, sources| sources.get(self.key).and_then(|source| source.failed));
        failed.map_or(Ok(()), |error| Err(error.into()))
    }

    /// For tests: as if there were room to write.
    #[cfg(test)]
    pub(crate) fn believe_writable(&self) {
        self.with((), |_, sources| sources.get(self.key).unwrap().ready |= WRITE);
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let removed = HERE.try_with(|here| {
            let ours = here.tag.get() == self.home.tag();
            ours.then(|| here.sources.borrow_mut().remove(self.key))
        });
        match removed {
            Ok(Some(removed)) => {
                if let Some(removed) = removed {
                    removed.linger();
                }
            }
            // Only the reactor's own thread can do it.
            Ok(None) | Err(_) => self.home.leave(self.key),
        }
    }
}
