//! The output of the access log, and what happens when it fails.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::queue::Block;
use super::{Options, Output};
use crate::telemetry::events;

/// How long an output that does not take bytes is left alone (only one that somebody made non-blocking answers so).
const PAUSE: Duration = Duration::from_millis(10);
/// Pauses in a row after which a closing log gives up on such an output.
const LAST_PAUSES: u32 = 100;
/// A full disk would warn at every block.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// Where lines go.
#[derive(Debug)]
pub struct Sink {
    file: File,
    path: Option<PathBuf>,
    dropped: Arc<AtomicU64>,
    /// Whether the last write ended inside of a line.
    torn: bool,
    warned: Option<Instant>,
}

impl Sink {
    /// Opens the output.
    pub fn open(options: &Options) -> io::Result<Self> {
        let (file, path) = match &options.output {
            Output::Stdout => (File::from(io::stdout().as_fd().try_clone_to_owned()?), None),
            Output::Stderr => (File::from(io::stderr().as_fd().try_clone_to_owned()?), None),
            Output::File(path) => (append_to(path)?, Some(path.clone())),
        };
        Ok(Self { path, ..Self::new(file, Arc::clone(&options.dropped)) })
    }

    /// An output that is open already.
    pub fn new(file: File, dropped: Arc<AtomicU64>) -> Self {
        Self { file, path: None, dropped, torn: false, warned: None }
    }

    /// Opens the file anew. If that fails, the old one is kept: lines in a rotated file are better than no lines.
    pub fn reopen(&mut self) {
        let Some(path) = &self.path else { return };
        match append_to(path) {
            Ok(file) => {
                self.file = file;
                self.torn = false;
            }
            Err(error) => events::access_log_not_reopened(path, &error),
        }
    }

    /// Writes a block. What cannot be written is counted as dropped.
    pub fn write(&mut self, block: &Block, closing: impl Fn() -> bool) {
        let Block(bytes) = block;
        if self.torn {
            match self.file.write(b"\n") {
                Ok(1) => self.torn = false,
                Ok(_) => {}
                Err(error) => return self.failed(bytes, &error),
            }
        }
        let (mut rest, mut pauses) = (bytes.as_slice(), 0);
        while !rest.is_empty() {
            match self.file.write(rest) {
                Ok(0) => return self.failed(rest, &ErrorKind::WriteZero.into()),
                Ok(written) => {
                    self.torn = rest.get(written - 1) != Some(&b'\n');
                    rest = rest.get(written..).unwrap_or_default();
                    pauses = 0;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock && !(closing() && pauses >= LAST_PAUSES) => {
                    pauses += 1;
                    std::thread::sleep(PAUSE);
                }
                Err(error) => return self.failed(rest, &error),
            }
        }
    }

    fn failed(&mut self, lost: &[u8], error: &io::Error) {
        self.dropped.fetch_add(Block::lines(lost), Relaxed);
        if self.warned.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
            self.warned = Some(Instant::now());
            events::access_log_failed(error);
        }
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

/// Whether [`append_to`] would succeed, as far as that can be told without making the file.
pub(super) fn try_append(path: &Path) -> io::Result<()> {
    match path.metadata() {
        // A pipe without a reader would make it wait.
        Ok(file) if file.is_file() || file.is_dir() => OpenOptions::new().append(true).open(path).map(drop),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            match directory.metadata()?.is_dir() {
                true => Ok(()),
                false => Err(ErrorKind::NotADirectory.into()),
            }
        }
        Err(error) => Err(error),
    }
}
