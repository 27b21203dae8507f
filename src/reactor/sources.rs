//! The sockets of a reactor: what is known of each, and who waits for it.

use std::io::{self, IoSlice};
use std::net::TcpStream;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use slab::Slab;
use tokio::io::{AsyncWriteExt, ReadBuf};
use tokio::runtime::Handle;

use super::TOGETHER;
use super::home::Home;
use super::poller::{READ_END, WRITE, WRITE_END};
use super::registration::Registration;
use super::source::{AHEAD, Direction, Source, Waits};

/// So much memory for writes that are held back is kept for the next ones.
const LARGEST: usize = 256 << 10;
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
            ahead: Vec::new(),
            used: 0,
            readers: Vec::new(),
        }
    }

    pub(super) fn open(&mut self, home: &Arc<Home>) {
        self.home = Some(Arc::clone(home));
    }

    /// A socket, if it is still watched.
    pub(super) fn get(&mut self, key: Key) -> Option<&mut Source> {
        self.places.get_mut(key.place as usize).filter(|source| source.round == key.round)
    }

    /// Begins to watch a socket; `None` if the thread has no reactor.
    pub(super) fn add(&mut self, socket: &Arc<TcpStream>) -> io::Result<Option<Registration>> {
        let Some(home) = &self.home else { return Ok(None) };
        let entry = self.places.vacant_entry();
        let place = u32::try_from(entry.key()).map_err(|_| io::ErrorKind::OutOfMemory)?;
        self.round = self.round.wrapping_add(1);
        let key = Key { place, round: self.round };
        home.poller().add(socket.as_fd(), key)?;
        entry.insert(Source::new(Arc::clone(socket), key.round));
        Ok(Some(Registration::of(home, key)))
    }

    /// Something has happened: tells who waited for it.
    pub(super) fn heard(&mut self, key: Key, ready: u8) -> [Option<Waits>; 2] {
        // An event may have been under way when its socket was closed.
        let Some(source) = self.get(key) else { return [None, None] };
        source.ready |= ready;
        source.send_rest();
        let ready = source.ready & (ready | READ_END | WRITE_END);
        let take = |waiting: &mut Option<Waits>, mask: u8| if ready & mask == 0 { None } else { waiting.take() };
        [take(&mut source.reader, Direction::Read.mask()), take(&mut source.writer, Direction::Write.mask())]
    }

    /// Reads what comes next from these sockets, for their tasks, which run now.
    pub(super) fn read_ahead(&mut self, keys: impl Iterator<Item = Key>) {
        let mut ahead = std::mem::take(&mut self.ahead);
        ahead.resize(TOGETHER * AHEAD, 0);
        for key in keys {
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
    pub(super) fn take_ahead(&mut self, key: Key, into: &mut ReadBuf<'_>) -> Option<Result<(), Errno>> {
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
                if source.kept.is_empty() {
                    // An idle connection has no buffer.
                    source.kept = Vec::new();
                }
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
    pub(super) fn hold(&mut self, key: Key, pieces: &[IoSlice<'_>]) -> bool {
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
        self.bytes.shrink_to(LARGEST);
    }

    /// Does the write of one socket that was held back.
    pub(super) fn settle(&mut self, key: Key) -> Settled {
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
