//! Notices changes of the files a configuration was read from: configuration, includes, secrets, certificates, keys, users, JWK sets.
//!
//! The system's notifications tell when to look, contents tell whether something changed. Parent directories are watched, since
//! editors replace files and Kubernetes swaps a `..data` link. A look every 5 s covers file systems without notifications.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

/// A change is reported after this long without another one,
const QUIET: Duration = Duration::from_millis(200);
/// but not later than this after the first.
const AT_MOST: Duration = Duration::from_secs(1);
/// How often contents are compared without any notification.
const POLL: Duration = Duration::from_secs(5);
/// Longer files are known by length and time of change: no configuration or key is that long.
const MAX_HASHED: u64 = 64 << 20;

/// Watches files until it is dropped.
#[derive(Debug)]
pub struct Watcher {
    shared: Arc<Shared>,
    task: tokio::task::AbortHandle,
}

impl Watcher {
    /// Watches `paths` (files, which need not exist, and directories, whose entries count) and sends on `tx` after a change of any.
    /// Must be called inside the control runtime.
    pub fn new(paths: Vec<PathBuf>, tx: mpsc::Sender<()>) -> Self {
        let shared = Arc::new(Shared::default());
        // One waiting event is as good as many: each only means "look again".
        let (events, inbox) = mpsc::channel(1);
        let seen = Arc::downgrade(&shared);
        let handler = move |event: notify::Result<notify::Event>| {
            if seen.upgrade().is_some_and(|shared| shared.concerns(&event)) {
                // Full: an event is waiting already. Closed: nobody watches any more.
                events.try_send(()).ok();
            }
        };
        match notify::recommended_watcher(handler) {
            Ok(watcher) => shared.lock().system = Some(watcher),
            Err(error) => tracing::warn!(%error, "no file notifications: files are compared every 5 s only"),
        }
        shared.set_paths(paths);
        let task = tokio::spawn(run(shared.clone(), inbox, tx)).abort_handle();
        Self { shared, task }
    }

    /// Watches these paths instead. A path that was watched before keeps its last known contents, so no change in between is lost.
    pub fn set_paths(&self, paths: Vec<PathBuf>) {
        self.shared.set_paths(paths);
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Watched paths, absolute, and what was in them.
    contents: BTreeMap<PathBuf, Content>,
    /// Where watched paths lead if they are links.
    targets: BTreeSet<PathBuf>,
    directories: BTreeSet<PathBuf>,
    system: Option<RecommendedWatcher>,
}

/// What a path had: nothing readable, or a hash.
type Content = Option<u128>;

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_paths(&self, paths: Vec<PathBuf>) {
        let paths: BTreeSet<PathBuf> = paths.into_iter().map(|path| std::path::absolute(&path).unwrap_or(path)).collect();
        let known = self.lock().contents.clone();
        let contents = paths.iter().map(|path| (path.clone(), known.get(path).copied().unwrap_or_else(|| content(path)))).collect();
        let targets: BTreeSet<PathBuf> = paths.iter().filter_map(|path| path.canonicalize().ok()).collect();
        let mut directories: BTreeSet<PathBuf> =
            paths.iter().chain(&targets).filter_map(|path| path.parent()).map(Path::to_owned).collect();
        directories.extend(paths.iter().filter(|path| path.is_dir()).cloned());
        let mut state = self.lock();
        state.contents = contents;
        state.targets = targets;
        let State { system, directories: watched, .. } = &mut *state;
        let Some(system) = system else { return };
        for gone in watched.difference(&directories) {
            // A directory that was removed is no longer watched anyway.
            drop(system.unwatch(gone));
        }
        let mut now = BTreeSet::new();
        for directory in directories {
            if watched.contains(&directory) || system.watch(&directory, RecursiveMode::NonRecursive).is_ok() {
                now.insert(directory);
            } else {
                tracing::debug!(directory = %directory.display(), "no notifications from this directory: it is compared every 5 s");
            }
        }
        *watched = now;
    }

    /// Whether an event may be about a watched path.
    fn concerns(&self, event: &notify::Result<notify::Event>) -> bool {
        let Ok(event) = event else { return true };
        // Our own reading would otherwise wake us up for ever.
        if matches!(event.kind, EventKind::Access(_)) {
            return false;
        }
        let state = self.lock();
        let known = |path: &PathBuf| {
            let link = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".."));
            let in_list = |path: &Path| state.contents.contains_key(path) || state.targets.contains(path);
            link || in_list(path) || path.parent().is_some_and(in_list)
        };
        event.paths.is_empty() || event.paths.iter().any(known)
    }

    /// Compares and remembers; whether anything differs.
    fn changed(&self) -> bool {
        let paths: Vec<PathBuf> = self.lock().contents.keys().cloned().collect();
        let now: Vec<(PathBuf, Content)> = paths.into_iter().map(|path| (path.clone(), content(&path))).collect();
        let mut state = self.lock();
        let mut changed = false;
        for (path, content) in now {
            if let Some(known) = state.contents.get_mut(&path) {
                changed |= *known != content;
                *known = content;
            }
        }
        changed
    }
}

/// A hash of a file's contents or of a directory's names.
fn content(path: &Path) -> Content {
    let meta = std::fs::metadata(path).ok()?;
    if meta.is_dir() {
        let mut names: Vec<_> = std::fs::read_dir(path).ok()?.filter_map(|entry| Some(entry.ok()?.file_name())).collect();
        names.sort();
        let joined: Vec<u8> = names.iter().flat_map(|name| [name.as_encoded_bytes(), b"/"].concat()).collect();
        return Some(xxhash_rust::xxh3::xxh3_128(&joined));
    }
    if !meta.is_file() || meta.len() > MAX_HASHED {
        let stamp = format!("{} {:?}", meta.len(), meta.modified().ok());
        return Some(xxhash_rust::xxh3::xxh3_128(stamp.as_bytes()));
    }
    Some(xxhash_rust::xxh3::xxh3_128(&std::fs::read(path).ok()?))
}

/// When to look after a row of events.
#[derive(Debug, Default)]
struct Quiet {
    first: Option<Instant>,
    due: Option<Instant>,
}

impl Quiet {
    fn event(&mut self, now: Instant) {
        let first = *self.first.get_or_insert(now);
        self.due = Some((now + QUIET).min(first + AT_MOST));
    }
    fn clear(&mut self) {
        *self = Self::default();
    }
}

async fn run(shared: Arc<Shared>, mut inbox: mpsc::Receiver<()>, tx: mpsc::Sender<()>) {
    let mut quiet = Quiet::default();
    let mut poll = tokio::time::interval_at(tokio::time::Instant::now() + POLL, POLL);
    poll.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut notified = true;
    loop {
        let due = quiet.due;
        let wait = async {
            match due {
                Some(due) => tokio::time::sleep_until(due.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            event = inbox.recv(), if notified => match event {
                Some(()) => { quiet.event(Instant::now()); continue; }
                // There are no notifications here; contents are still compared.
                None => { notified = false; continue; }
            },
            () = wait => {}
            _ = poll.tick() => {}
        }
        quiet.clear();
        let look = shared.clone();
        // Disks may be slow, and this runtime also answers health checks.
        match tokio::task::spawn_blocking(move || look.changed()).await {
            Ok(true) => match tx.try_send(()) {
                Ok(()) | Err(mpsc::error::TrySendError::Full(())) => {}
                Err(mpsc::error::TrySendError::Closed(())) => return,
            },
            Ok(false) => {}
            Err(error) => tracing::error!(%error, "comparing the configuration's files failed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_events_is_due_after_200_ms_of_quiet_but_at_most_1_s_after_the_first() {
        let start = Instant::now();
        let mut quiet = Quiet::default();
        quiet.event(start);
        assert_eq!(quiet.due, Some(start + Duration::from_millis(200)));
        quiet.event(start + Duration::from_millis(150));
        assert_eq!(quiet.due, Some(start + Duration::from_millis(350)));
        quiet.event(start + Duration::from_millis(950));
        assert_eq!(quiet.due, Some(start + Duration::from_millis(1000)));
        quiet.clear();
        assert_eq!(quiet.due, None);
    }

    #[test]
    fn contents_are_compared_and_not_times() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a");
        std::fs::write(&file, "1").unwrap();
        let shared = Shared::default();
        shared.set_paths(vec![file.clone(), dir.path().to_owned(), dir.path().join("missing")]);
        std::fs::write(&file, "1").unwrap();
        assert!(!shared.changed());
        std::fs::write(&file, "2").unwrap();
        assert!(shared.changed());
        assert!(!shared.changed());
        std::fs::write(dir.path().join("missing"), "").unwrap();
        assert!(shared.changed());
        std::fs::remove_file(&file).unwrap();
        assert!(shared.changed());
    }

    #[test]
    fn a_change_between_reading_and_new_paths_is_not_lost() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a");
        std::fs::write(&file, "1").unwrap();
        let shared = Shared::default();
        shared.set_paths(vec![file.clone()]);
        std::fs::write(&file, "2").unwrap();
        shared.set_paths(vec![file, dir.path().join("b")]);
        assert!(shared.changed());
    }

    #[test]
    fn reading_and_strangers_in_the_directory_are_no_events() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a");
        let shared = Shared::default();
        shared.set_paths(vec![file.clone()]);
        let event = |kind, path: PathBuf| Ok(notify::Event::new(kind).add_path(path));
        let modified = EventKind::Modify(notify::event::ModifyKind::Any);
        assert!(shared.concerns(&event(modified, file.clone())));
        assert!(shared.concerns(&event(EventKind::Create(notify::event::CreateKind::Any), dir.path().join("..data"))));
        assert!(!shared.concerns(&event(EventKind::Access(notify::event::AccessKind::Any), file)));
        assert!(!shared.concerns(&event(modified, dir.path().join("access.log"))));
    }

    async fn next(rx: &mut mpsc::Receiver<()>) {
        tokio::time::timeout(Duration::from_secs(20), rx.recv()).await.expect("no change was reported").unwrap();
    }

    #[test]
    fn replaced_files_and_swapped_links_are_reported() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let at = |name: &str| dir.path().join(name);
            std::fs::write(at("plain.yaml"), "1").unwrap();
            for version in ["v1", "v2"] {
                std::fs::create_dir(at(version)).unwrap();
                std::fs::write(at(version).join("mounted.yaml"), version).unwrap();
            }
            std::os::unix::fs::symlink("v1", at("..data")).unwrap();
            std::os::unix::fs::symlink("..data/mounted.yaml", at("mounted.yaml")).unwrap();
            let (tx, mut rx) = mpsc::channel(1);
            let watcher = Watcher::new(vec![at("plain.yaml"), at("mounted.yaml")], tx);

            std::fs::write(at("plain.new"), "2").unwrap();
            std::fs::rename(at("plain.new"), at("plain.yaml")).unwrap();
            next(&mut rx).await;

            std::os::unix::fs::symlink("v2", at("..tmp")).unwrap();
            std::fs::rename(at("..tmp"), at("..data")).unwrap();
            next(&mut rx).await;

            watcher.set_paths(vec![at("later.yaml")]);
            std::fs::write(at("later.yaml"), "1").unwrap();
            next(&mut rx).await;
        });
    }
}
