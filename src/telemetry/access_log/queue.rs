//! Blocks of lines on their way from workers to the writer thread, and what the writer is asked to do.
//!
//! The lock is held for moments only and never during output, so a worker that has a block to hand over does not wait for a slow disk.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Bytes that may wait for the output, beside the workers' own buffers; beyond it lines are dropped.
pub const MAX_QUEUED: usize = 4 << 20;
/// How long a line may stay in its worker's buffer when little is written.
const COLLECT_AFTER: Duration = Duration::from_millis(50);
/// Empty buffers kept for reuse, and the largest worth keeping (one long line can make a large one).
const MAX_SPARE: usize = 16;
const MAX_SPARE_SIZE: usize = 256 << 10;

/// Some lines.
#[derive(Debug, Default)]
pub struct Block(pub Vec<u8>);

impl Block {
    /// Lines in it.
    pub fn lines(bytes: &[u8]) -> u64 {
        bytes.iter().filter(|byte| **byte == b'\n').count() as u64
    }
}

/// What the writer is to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    /// Take what is in the workers' buffers too.
    pub collect: bool,
    /// Open the file anew first.
    pub reopen: bool,
    /// End when all is written.
    pub close: bool,
    flush: u64,
}

/// The queue.
#[derive(Debug, Default)]
pub struct Queue {
    state: Mutex<State>,
    /// For the writer: there is something to do.
    work: Condvar,
    /// For those who flush: something was done.
    done: Condvar,
    /// Bytes handed over and not yet written.
    queued: AtomicUsize,
    /// Whether the writer knows that there are lines in the workers' buffers.
    noticed: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    blocks: VecDeque<Block>,
    spare: Vec<Vec<u8>>,
    collect_at: Option<Instant>,
    flush_asked: u64,
    flush_done: u64,
    reopen: bool,
    closed: bool,
}

impl Queue {
    /// Hands a buffer over and leaves an empty one in its place. False, and nothing happened, if the queue is full.
    pub fn push(&self, buffer: &mut Vec<u8>) -> bool {
        if self.queued.load(Relaxed) >= MAX_QUEUED {
            return false;
        }
        let mut state = self.lock();
        self.queued.fetch_add(buffer.len(), Relaxed);
        let empty = state.spare.pop().unwrap_or_default();
        state.blocks.push_back(Block(std::mem::replace(buffer, empty)));
        drop(state);
        self.work.notify_one();
        true
    }

    /// There are lines in a worker's buffer. Costs one load unless it is the first line since the last collection.
    pub fn notice(&self) {
        if self.noticed.load(Relaxed) || self.noticed.swap(true, Relaxed) {
            return;
        }
        self.lock().collect_at.get_or_insert_with(|| Instant::now() + COLLECT_AFTER);
        self.work.notify_one();
    }

    /// For the writer: moves waiting blocks to `batch`, then the rest of one worker's buffer. The caller holds that buffer's lock, so blocks
    /// of this worker that are older are in the queue already and newer ones cannot be.
    pub fn take(&self, batch: &mut Vec<Block>, rest: Option<&mut Vec<u8>>) {
        let mut state = self.lock();
        batch.extend(state.blocks.drain(..));
        if let Some(rest) = rest.filter(|rest| !rest.is_empty()) {
            self.queued.fetch_add(rest.len(), Relaxed);
            let empty = state.spare.pop().unwrap_or_default();
            batch.push(Block(std::mem::replace(rest, empty)));
        }
    }

    /// For the writer: a block is in the output, or lost. Its memory is used again.
    pub fn written(&self, block: Block) {
        let Block(mut buffer) = block;
        self.queued.fetch_sub(buffer.len(), Relaxed);
        let mut state = self.lock();
        if state.spare.len() < MAX_SPARE && buffer.capacity() <= MAX_SPARE_SIZE {
            buffer.clear();
            state.spare.push(buffer);
        }
    }

    /// For the writer: waits until there is something to do.
    pub fn wait(&self) -> Task {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            let flush = state.flush_asked > state.flush_done;
            let due = state.collect_at.is_some_and(|at| at <= now);
            if state.closed || state.reopen || flush || due || !state.blocks.is_empty() {
                let collect = state.closed || flush || due;
                if collect {
                    state.collect_at = None;
                    // Before the buffers are looked at: a line that comes later is noticed anew.
                    self.noticed.store(false, Relaxed);
                }
                return Task { collect, reopen: std::mem::take(&mut state.reopen), close: state.closed, flush: state.flush_asked };
            }
            state = match state.collect_at {
                Some(at) => self.work.wait_timeout(state, at - now).unwrap_or_else(PoisonError::into_inner).0,
                None => self.work.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// For the writer: what it was asked for is done.
    pub fn finish(&self, task: Task) {
        let mut state = self.lock();
        let flushed = task.collect && state.flush_done < task.flush;
        if flushed {
            state.flush_done = task.flush;
        }
        drop(state);
        // A system call, also where nobody waits.
        if flushed {
            self.done.notify_all();
        }
    }

    /// Asks for the file to be opened anew.
    pub fn reopen(&self) {
        self.lock().reopen = true;
        self.work.notify_one();
    }

    /// Asks the writer to write what there is, and end.
    pub fn close(&self) {
        self.lock().closed = true;
        self.work.notify_one();
    }

    /// Whether the writer was asked to end.
    pub fn closed(&self) -> bool {
        self.lock().closed
    }

    /// Waits until all lines so far are written, at most for `timeout`.
    pub fn flush(&self, timeout: Duration) -> bool {
        let mut state = self.lock();
        state.flush_asked += 1;
        let mine = state.flush_asked;
        self.work.notify_one();
        let (state, _) =
            self.done.wait_timeout_while(state, timeout, |state| state.flush_done < mine).unwrap_or_else(PoisonError::into_inner);
        state.flush_done >= mine
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
