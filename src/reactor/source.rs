//! One socket of a reactor.

use std::net::TcpStream;
use std::ops::Range;
use std::sync::Arc;
use std::task::Waker;

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvFlags, SendFlags};

use super::poller::{READ, READ_END, WRITE, WRITE_END};
use super::tasks;

/// Most bytes that are read for a task before it asks: room for most requests and many answers.
pub(super) const AHEAD: usize = 2 << 10;

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Something to read, or an end.
    Read,
    /// Room to write.
    Write,
}

impl Direction {
    pub(super) fn mask(self) -> u8 {
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

/// See module.
pub(super) struct Source {
    pub(super) socket: Arc<TcpStream>,
    pub(super) round: u32,
    /// What there is as far as was heard; see [`super::poller`].
    pub(super) ready: u8,
    pub(super) reader: Option<Waits>,
    pub(super) writer: Option<Waits>,
    /// What was read for its task before that asked, in the batch's memory.
    pub(super) ahead: Range<usize>,
    /// The same, when its task has not asked in its turn.
    pub(super) kept: Vec<u8>,
    /// Why nothing could be read ahead.
    pub(super) broken: Option<Errno>,
    /// Whether what comes is short, as far as the last read tells.
    pub(super) short: bool,
    /// Which of the batch's writes is its own.
    pub(super) held: Option<usize>,
    /// What is left of a write that the system took only a part of.
    pub(super) rest: Vec<u8>,
    /// Why a write that was held could not be done.
    pub(super) failed: Option<Errno>,
    /// Bytes of such writes.
    pub(super) lost: u64,
}

impl Source {
    /// A socket of which nothing was heard yet.
    pub(super) fn new(socket: Arc<TcpStream>, round: u32) -> Self {
        Self {
            socket,
            round,
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
        }
    }

    /// Who waits for what `direction` says.
    pub(super) fn waiting(&mut self, direction: Direction) -> &mut Option<Waits> {
        match direction {
            Direction::Read => &mut self.reader,
            Direction::Write => &mut self.writer,
        }
    }

    /// Whether there is what `direction` says, as far as was heard.
    pub(super) fn is_ready(&self, direction: Direction) -> bool {
        self.ready & direction.mask() != 0
            || direction == Direction::Read && (!self.ahead.is_empty() || !self.kept.is_empty() || self.broken.is_some())
    }

    /// Reads for the task, if what comes is short. Gives how many bytes it read into `room`.
    pub(super) fn read_ahead(&mut self, start: usize, room: &mut [u8]) -> usize {
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
                self.broken = self.failed;
                0
            }
            Err(error) => {
                self.broken = Some(error);
                0
            }
        }
    }

    /// Sends as much of `bytes` as the system takes, and keeps the rest.
    pub(super) fn send(&mut self, bytes: &[u8]) {
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
        self.ready &= !(WRITE | WRITE_END);
    }

    /// Sends what is left, if there is room by now.
    pub(super) fn send_rest(&mut self) {
        if !self.rest.is_empty() && self.ready & (WRITE | WRITE_END) != 0 {
            let rest = std::mem::take(&mut self.rest);
            self.send(&rest);
        }
    }
}
