//! The access log: one line per request, formatted into the worker's own buffer and written by one thread.
//!
//! A request never waits for the output. Its worker appends the line to a buffer that only the writer thread ever shares, for the moment
//! it takes to swap it out. Blocks of 64 KiB and more go to the writer through a bounded queue; if the output cannot keep up and the queue
//! is full, lines are dropped and counted. When there is little to write, the writer collects the buffers 50 ms after a line.

mod entry;
mod escape;
mod line;
mod queue;
mod sink;

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use self::entry::Entry;
use self::queue::Queue;
use self::sink::Sink;
use super::time::Stamp;
use crate::config::server::{Log, LogFormat};

/// Form of the lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON object.
    Json,
    /// `time METHOD path status key=value …`.
    Text,
}

/// Where the lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// A file, appended to.
    File(PathBuf),
}

/// What an access log is made from.
#[derive(Clone, Debug)]
pub struct Options {
    /// Form of the lines.
    pub format: Format,
    /// Where they go.
    pub output: Output,
    /// Where dropped lines are counted: [`Metrics::access_log_dropped`](super::metrics::Metrics::access_log_dropped).
    pub dropped: Arc<AtomicU64>,
}

impl Options {
    /// Options from the config; `None` if the log is disabled. A relative path is relative to `directory`.
    pub fn compile(log: &Log, directory: &Path, dropped: Arc<AtomicU64>) -> Option<Self> {
        if !log.access.enabled {
            return None;
        }
        let output = match log.access.output.as_str() {
            "stdout" => Output::Stdout,
            "stderr" => Output::Stderr,
            path => Output::File(directory.join(path)),
        };
        let terminal = || match output {
            Output::Stdout => io::stdout().is_terminal(),
            Output::Stderr => io::stderr().is_terminal(),
            Output::File(_) => false,
        };
        let text = match log.format {
            LogFormat::Auto => terminal(),
            LogFormat::Text => true,
            LogFormat::Json => false,
        };
        Some(Self { format: if text { Format::Text } else { Format::Json }, output, dropped })
    }

    /// Finds out whether the output could be opened, and leaves everything as it is: no file is made.
    ///
    /// # Errors
    /// It is a directory or not writable, or there is no directory to make it in.
    pub fn try_output(&self) -> io::Result<()> {
        match &self.output {
            Output::Stdout | Output::Stderr => Ok(()),
            Output::File(path) => sink::try_append(path),
        }
    }

    /// Whether a log with `other` would write the same lines to the same place: then a reload keeps it.
    pub fn same(&self, other: &Self) -> bool {
        self.format == other.format && self.output == other.output
    }
}

/// A buffer is handed to the writer once it has this many bytes.
const BLOCK: usize = 64 << 10;
/// Room for the line that makes a buffer full, so that it need not grow.
const ROOM: usize = BLOCK + (4 << 10);

/// An access log. Dropping the last handle makes its thread write what is left, and end; nobody waits for it, so call
/// [`flush`](Self::flush) before the process ends.
#[derive(Debug)]
pub struct AccessLog {
    open: Option<(Options, Arc<Shared>)>,
}

/// What workers and writer share.
#[derive(Debug)]
struct Shared {
    format: Format,
    dropped: Arc<AtomicU64>,
    workers: Box<[Buffer]>,
    /// For threads that are no workers.
    others: Buffer,
    queue: Queue,
}

/// Lines of one worker that were not handed over yet. On cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Buffer(Mutex<Lines>);

#[derive(Debug, Default)]
struct Lines {
    bytes: Vec<u8>,
    stamp: Stamp,
}

impl AccessLog {
    /// Opens the output and starts the writer thread.
    ///
    /// # Errors
    /// The file cannot be opened, or no thread can be started.
    pub fn new(workers: usize, options: Options) -> io::Result<Arc<Self>> {
        let sink = Sink::open(&options)?;
        Self::start(workers, options, sink)
    }

    /// A log that writes nothing.
    pub fn disabled() -> Arc<Self> {
        Arc::new(Self { open: None })
    }

    fn start(workers: usize, options: Options, mut sink: Sink) -> io::Result<Arc<Self>> {
        let shared = Arc::new(Shared {
            format: options.format,
            dropped: Arc::clone(&options.dropped),
            workers: (0..workers).map(|_| Buffer::default()).collect(),
            others: Buffer::default(),
            queue: Queue::default(),
        });
        let its = Arc::clone(&shared);
        std::thread::Builder::new().name("access-log".to_owned()).spawn(move || its.run(&mut sink))?;
        Ok(Arc::new(Self { open: Some((options, shared)) }))
    }

    /// Writes a line. Never waits for the output.
    pub fn write(&self, worker: usize, entry: &Entry) {
        if let Some((_, shared)) = &self.open {
            shared.write(worker, entry);
        }
    }

    /// Whether lines are written at all: a caller may save itself making an [`Entry`].
    pub fn enabled(&self) -> bool {
        self.open.is_some()
    }

    /// What it was made from; `None` if it is disabled.
    pub fn options(&self) -> Option<&Options> {
        self.open.as_ref().map(|(options, _)| options)
    }

    /// Opens the file anew before the next line is written (after a rotation).
    pub fn reopen(&self) {
        if let Some((_, shared)) = &self.open {
            shared.queue.reopen();
        }
    }

    /// Waits until every line written so far is in the output, at most for `timeout`. False if it was not enough. Blocks the thread.
    pub fn flush(&self, timeout: Duration) -> bool {
        self.open.as_ref().is_none_or(|(_, shared)| shared.queue.flush(timeout))
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        if let Some((_, shared)) = &self.open {
            shared.queue.close();
        }
    }
}

impl Buffer {
    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn write(&self, worker: usize, entry: &Entry) {
        let mut lines = self.workers.get(worker).unwrap_or(&self.others).lock();
        let Lines { bytes, stamp } = &mut *lines;
        if bytes.len() >= BLOCK && !self.queue.push(bytes) {
            self.dropped.fetch_add(1, Relaxed);
            return;
        }
        if bytes.capacity() == 0 {
            bytes.reserve(ROOM);
        }
        line::write(entry, self.format, stamp, bytes);
        // If the queue is full, the block stays here and the next line tries again.
        let handed_over = bytes.len() >= BLOCK && self.queue.push(bytes);
        drop(lines);
        if !handed_over {
            self.queue.notice();
        }
    }

    /// The writer thread.
    fn run(&self, sink: &mut Sink) {
        let mut batch = Vec::new();
        loop {
            let task = self.queue.wait();
            if task.reopen {
                sink.reopen();
            }
            self.queue.take(&mut batch, None);
            if task.collect {
                for buffer in self.workers.iter().chain([&self.others]) {
                    let mut lines = buffer.lock();
                    self.queue.take(&mut batch, Some(&mut lines.bytes));
                }
            }
            for block in batch.drain(..) {
                sink.write(&block, || self.queue.closed());
                self.queue.written(block);
            }
            self.queue.finish(task);
            if task.close {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests;
