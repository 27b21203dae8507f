//! The sockets of a reactor: what is known of each, and who waits for it.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::TcpStream;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvFlags, SendFlags};
use slab::Slab;
use tokio::io::{AsyncWriteExt, ReadBuf};
use tokio::runtime::Handle;

use super::home::Home;
use super::poller::{READ, READ_END, WRITE, WRITE_END};
use super::{HERE, Here, TOGETHER, tasks};

/// Most bytes that are read for a task before it asks: room for most requests and many answers.
const AHEAD: usize = 2 << 10;

/// How long the other side of a closed socket has to take the rest of the last write.
const LINGER: Duration = Duration::from_secs(10);

/// A socket's place among those of its reactor. The same place is never the same key again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    place: u32,
    round: u32,
}

impl Key {
    pub(super) fn to_word(self) -> u64 {
        u64::from(self.round) << 32 | u64::from(self.place)
    }

    #[expect(clippy::cast_possible_truncation, reason = "the two halves of the word")]
    pub(super) fn from_word(word: u64) -> Self {
        Self { place: word as u32, round: (word >> 32) as u32 }
    }
}

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Something to read, or an end.
    Read,
    /// Room to write.
    Write,
}

impl Direction {
    fn mask(self) -> u8 {
        match self {
            Self::Read => READ | READ_END,
            Self::Write => WRITE | WRITE_END,
        }
    }
}

/// Who waits.
pub(super) enum Waits {
    /// A task of this reactor.
    Task(tasks::Id),
    /// Anybody else.
    Other(Waker),
}

struct Source {
    socket: Arc<TcpStream>,
    round: u32,
    /// What there is as far as was heard; see [`super::poller`].
    ready: u8,
    reader: Option<Waits>,
    writer: Option<Waits>,
    /// What was read for its task before that asked, in the batch's memory.
    ahead: Range<usize>,
    /// The same, when its task has not asked in its turn.
    kept: Vec<u8>,
    /// Why nothing could be read ahead.
    broken: Option<Errno>,
    /// Whether what comes is short, as far as the last read tells.
    short: bool,
    /// Which of the batch's writes is its own.
    held: Option<usize>,
    /// What is left of a write that the system took only a part of.
    rest: Vec<u8>,
    /// Why a write that was held could not be done.
    failed: Option<Errno>,
    /// Bytes of such writes.
    lost: u64,
}

impl Source {
    fn waiting(&mut self, direction: Direction) -> &mut Option<Waits> {
        match direction {
            Direction::Read => &mut self.reader,
            Direction::Write => &mut self.writer,
        }
    }

    /// Whether there is what `direction` says, as far as was heard.
    fn is_ready(&self, direction: Direction) -> bool {
        self.ready & direction.mask() != 0
            || direction == Direction::Read && (!self.ahead.is_empty() || !self.kept.is_empty() || self.broken.is_some())
    }

    /// Reads for the task, if what comes is short. Gives how many bytes it read into `room`.
    fn read_ahead(&mut self, start: usize, room: &mut [u8]) -> usize {
        if !self.short || !self.ahead.is_empty() || !self.kept.is_empty() || self.ready & READ == 0 {
            return 0;
        }
        match retry_on_intr(|| rustix::net::recv(&*self.socket, &mut *room, RecvFlags::empty())) {
            // An end stays where it is.
            Ok((0, _)) => 0,
            Ok((count, _)) => {
                self.ahead = start..start + count;
                self.short = count < room.len();
                if self.short {
                    self.ready &= !READ;
                }
                count
            }
            Err(Errno::AGAIN) => {
                self.ready &= !Direction::Read.mask();
                0
            }
            Err(error) => {
                self.broken = Some(error);
                0
            }
        }
    }

    /// Sends as much of `bytes` as the system takes, and keeps the rest.
    fn send(&mut self, bytes: &[u8]) {
        match retry_on_intr(|| rustix::net::send(&*self.socket, bytes, SendFlags::NOSIGNAL)) {
            Ok(count) if count >= bytes.len() => {}
            Ok(count) => self.keep(bytes.get(count..).unwrap_or_default()),
            Err(Errno::AGAIN) => self.keep(bytes),
            Err(error) => {
                self.failed = Some(error);
                self.lost += bytes.len() as u64;
                // Whoever reads or writes next is told; what has come before can still be read.
                self.ready |= READ | READ_END | WRITE | WRITE_END;
            }
        }
    }

    fn keep(&mut self, rest: &[u8]) {
        self.rest = rest.to_vec();
        self.ready &= !WRITE;
    }

    /// Sends what is left, if there is room by now.
    fn send_rest(&mut self) {
        if !self.rest.is_empty() && self.ready & (WRITE | WRITE_END) != 0 {
            let rest = std::mem::take(&mut self.rest);
            self.send(&rest);
        }
    }
}

/// A write that is held back until others of its batch are done.
struct Held {
    key: Key,
    /// Where its bytes are.
    bytes: Range<usize>,
}

/// What became of the writes that were held back.
pub(super) enum Settled {
    /// The system has taken them.
    Done,
    /// It has no room for all of them.
    Blocked,
    /// It refused them.
    Failed(Errno),
}

/// All sockets of a reactor.
pub(super) struct Sources {
    /// `None`: the thread has no reactor.
    home: Option<Arc<Home>>,
    places: Slab<Source>,
    round: u32,
    /// Writes that are held back, and their bytes.
    held: Vec<Held>,
    bytes: Vec<u8>,
    /// Sockets of whose tasks something was heard that they wait for, in the order in which they will run.
    heard: VecDeque<Key>,
    /// What was read for the tasks that run, and how much of it is in use.
    ahead: Vec<u8>,
    used: usize,
    /// Whose.
    readers: Vec<Key>,
}

impl Sources {
    pub(super) const fn new() -> Self {
        Self {
            home: None,
            places: Slab::new(),
            round: 0,
            held: Vec::new(),
            bytes: Vec::new(),
            heard: VecDeque::new(),
            ahead: Vec::new(),
            used: 0,
            readers: Vec::new(),
        }
    }

    pub(super) fn open(&mut self, home: &Arc<Home>) {
        self.home = Some(Arc::clone(home));
    }

    fn get(&mut self, key: Key) -> Option<&mut Source> {
        self.places.get_mut(key.place as usize).filter(|source| source.round == key.round)
    }

    /// Begins to watch a socket; `None` if the thread has no reactor.
    fn add(&mut self, socket: &Arc<TcpStream>) -> io::Result<Option<Registration>> {
        let Some(home) = &self.home else { return Ok(None) };
        let entry = self.places.vacant_entry();
        let place = u32::try_from(entry.key()).map_err(|_| io::ErrorKind::OutOfMemory)?;
        self.round = self.round.wrapping_add(1);
        let key = Key { place, round: self.round };
        home.poller().add(socket.as_fd(), key)?;
        entry.insert(Source {
            socket: Arc::clone(socket),
            round: key.round,
            // Room to write is there until an attempt finds none.
            ready: WRITE,
            reader: None,
            writer: None,
            ahead: 0..0,
            kept: Vec::new(),
            broken: None,
            short: true,
            held: None,
            rest: Vec::new(),
            failed: None,
            lost: 0,
        });
        Ok(Some(Registration { home: Arc::clone(home), key }))
    }

    /// Something has happened: tells who waited for it.
    pub(super) fn heard(&mut self, key: Key, ready: u8) -> [Option<Waits>; 2] {
        // An event may have been under way when its socket was closed.
        let Some(source) = self.get(key) else { return [None, None] };
        source.ready |= ready;
        source.send_rest();
        let ready = source.ready & (ready | READ_END | WRITE_END);
        let take = |waiting: &mut Option<Waits>, mask: u8| if ready & mask == 0 { None } else { waiting.take() };
        let woken = [take(&mut source.reader, Direction::Read.mask()), take(&mut source.writer, Direction::Write.mask())];
        if matches!(woken, [Some(Waits::Task(_)), _]) {
            self.heard.push_back(key);
        }
        woken
    }

    /// Reads for the next `count` tasks what they wait for.
    pub(super) fn read_ahead(&mut self, count: usize) {
        let mut ahead = std::mem::take(&mut self.ahead);
        ahead.resize(TOGETHER * AHEAD, 0);
        for _ in 0..count {
            let Some(key) = self.heard.pop_front() else { break };
            let start = self.used;
            let Some(room) = ahead.get_mut(start..start + AHEAD) else { break };
            let Some(source) = self.get(key) else { continue };
            let read = source.read_ahead(start, room);
            if read > 0 {
                self.used += read;
                self.readers.push(key);
            }
        }
        self.ahead = ahead;
    }

    /// Gives what was read ahead of a socket's task; `None` if nothing was.
    fn take_ahead(&mut self, key: Key, into: &mut ReadBuf<'_>) -> Option<Result<(), Errno>> {
        let ahead = std::mem::take(&mut self.ahead);
        let taken = self.get(key).and_then(|source| {
            if !source.ahead.is_empty() {
                let bytes = ahead.get(source.ahead.clone()).unwrap_or_default();
                let count = bytes.len().min(into.remaining());
                into.put_slice(bytes.get(..count).unwrap_or_default());
                source.ahead.start += count;
                Some(Ok(()))
            } else if !source.kept.is_empty() {
                let count = source.kept.len().min(into.remaining());
                into.put_slice(source.kept.get(..count).unwrap_or_default());
                source.kept.drain(..count);
                Some(Ok(()))
            } else {
                source.broken.take().map(Err)
            }
        });
        self.ahead = ahead;
        taken
    }

    /// The tasks for which something was read have run: what they have not asked for is kept.
    fn keep_ahead(&mut self) {
        let (readers, ahead) = (std::mem::take(&mut self.readers), std::mem::take(&mut self.ahead));
        for &key in &readers {
            if let Some(source) = self.get(key).filter(|source| !source.ahead.is_empty()) {
                source.kept = ahead.get(std::mem::take(&mut source.ahead)).unwrap_or_default().to_vec();
            }
        }
        (self.readers, self.ahead, self.used) = (readers, ahead, 0);
        self.readers.clear();
    }

    /// Holds a write back until [`Self::flush`]. `false`: it is to be done at once, after what is held.
    fn hold(&mut self, key: Key, pieces: &[IoSlice<'_>]) -> bool {
        let (place, start) = (self.held.len(), self.bytes.len());
        let Some(source) = self.get(key) else { return false };
        if source.held.is_some() || !source.rest.is_empty() || source.ready & (WRITE | WRITE_END) != WRITE {
            return false;
        }
        source.held = Some(place);
        pieces.iter().for_each(|piece| self.bytes.extend_from_slice(piece));
        self.held.push(Held { key, bytes: start..self.bytes.len() });
        true
    }

    /// Does the writes that were held back. Who is to hear that one could not be done is woken by `tell`.
    pub(super) fn flush(&mut self, mut tell: impl FnMut(Waits)) {
        self.keep_ahead();
        let (held, bytes) = (std::mem::take(&mut self.held), std::mem::take(&mut self.bytes));
        for (place, write) in held.iter().enumerate() {
            let Some(source) = self.get(write.key).filter(|source| source.held == Some(place)) else { continue };
            source.held = None;
            source.send(bytes.get(write.bytes.clone()).unwrap_or_default());
            if source.failed.is_some() {
                source.reader.take().into_iter().chain(source.writer.take()).for_each(&mut tell);
            }
        }
        // Their memory is used again.
        (self.held, self.bytes) = (held, bytes);
        self.held.clear();
        self.bytes.clear();
    }

    /// Does the write of one socket that was held back.
    fn settle(&mut self, key: Key) -> Settled {
        let bytes = std::mem::take(&mut self.bytes);
        let held =
            self.get(key).and_then(|source| source.held.take()).and_then(|place| self.held.get(place)).map(|held| held.bytes.clone());
        let settled = self.get(key).map_or(Settled::Done, |source| {
            match held {
                Some(range) => source.send(bytes.get(range).unwrap_or_default()),
                None => source.send_rest(),
            }
            match source.failed {
                Some(error) => Settled::Failed(error),
                None if source.rest.is_empty() => Settled::Done,
                None => Settled::Blocked,
            }
        });
        self.bytes = bytes;
        settled
    }

    /// Forgets a socket; what it held is to be dropped where nothing is borrowed. With what the system has not taken yet.
    pub(super) fn remove(&mut self, key: Key) -> Option<Removed> {
        self.get(key)?;
        self.settle(key);
        let Source { socket, reader, writer, rest, .. } = self.places.remove(key.place as usize);
        Some(Removed { rest: (!rest.is_empty()).then_some((socket, rest)), _waiting: [reader, writer] })
    }
}

/// What is left of a socket that is watched no more.
pub(super) struct Removed {
    rest: Option<(Arc<TcpStream>, Vec<u8>)>,
    _waiting: [Option<Waits>; 2],
}

impl Removed {
    /// Sends what the other side has not taken yet, if it takes it in time: its own task, since nobody else waits for it.
    pub(super) fn linger(self) {
        let Some((socket, rest)) = self.rest else { return };
        let Ok(runtime) = Handle::try_current() else { return };
        runtime.spawn(async move {
            let send = async {
                let mut socket = tokio::net::TcpStream::from_std(socket.try_clone()?)?;
                socket.write_all(&rest).await
            };
            // Who has gone, or takes nothing, misses it.
            drop(tokio::time::timeout(LINGER, send).await);
        });
    }
}

/// A socket watched by a reactor, as long as this lives.
#[derive(Debug)]
pub struct Registration {
    home: Arc<Home>,
    key: Key,
}

impl Registration {
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
        let failed = self.with(None, |_, sources| {
            let source = sources.get(self.key)?;
            source.ready &= !direction.mask();
            source.failed
        });
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
