//! The access log: one line per request, formatted into the worker's own buffer and written by one thread.
//!
//! A request never waits for the output. Its worker appends the line to a buffer that only the writer thread ever shares, for the moment
//! it takes to swap it out. Blocks of 32 KiB and more go to the writer through a bounded queue; if the output cannot keep up and the queue
//! is full, lines are dropped and counted. When there is little to write, the writer collects the buffers 50 ms after a line.

mod entry;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

pub use self::entry::Entry;
use crate::config;

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
    pub fn compile(log: &config::server::Log, directory: &Path, dropped: Arc<AtomicU64>) -> Option<Self> {
        todo!()
    }
}

/// An access log.
pub struct AccessLog {}

impl AccessLog {
    /// Opens the output and starts the writer thread.
    ///
    /// # Errors
    /// The file cannot be opened, or no thread can be started.
    pub fn new(workers: usize, options: Options) -> io::Result<Arc<Self>> {
        todo!()
    }

    /// A log that writes nothing.
    pub fn disabled() -> Arc<Self> {
        todo!()
    }

    /// Writes a line. Never waits for the output.
    pub fn write(&self, worker: usize, entry: &Entry) {
        todo!()
    }

    /// Whether lines are written at all: a caller may save itself making an [`Entry`].
    pub fn enabled(&self) -> bool {
        todo!()
    }

    /// Opens the file anew before the next line is written (after a rotation).
    pub fn reopen(&self) {
        todo!()
    }

    /// Waits until every line written so far is in the output, at most for `timeout`. False if it was not enough.
    pub fn flush(&self, timeout: Duration) -> bool {
        todo!()
    }
}
