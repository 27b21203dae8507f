//! What other threads know of a reactor.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use super::poller::Poller;
use super::{sources, tasks};

/// One for each reactor, from 1.
static TAGS: AtomicU64 = AtomicU64::new(1);

/// A reactor, as other threads and its own sockets know it.
#[derive(Debug)]
pub struct Home {
    tag: u64,
    poller: Poller,
    /// Whether there is anything in `post`.
    news: AtomicBool,
    post: Mutex<Post>,
}

#[derive(Debug, Default)]
struct Post {
    /// Tasks that were woken.
    woken: Vec<tasks::Id>,
    /// Sockets that were closed or taken away.
    left: Vec<sources::Key>,
    /// The reactor.
    waker: Option<Waker>,
    /// It has ended: nobody reads this any more.
    closed: bool,
}

impl Home {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { tag: TAGS.fetch_add(1, Ordering::Relaxed), poller: Poller::new()?, news: AtomicBool::new(false), post: Mutex::default() })
    }

    /// Identifies the reactor; never 0.
    pub(super) fn tag(&self) -> u64 {
        self.tag
    }

    pub(super) fn poller(&self) -> &Poller {
        &self.poller
    }

    fn post(&self) -> MutexGuard<'_, Post> {
        self.post.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whom to wake when there is news.
    pub(super) fn hear_from(&self, waker: &Waker) {
        let mut post = self.post();
        if !post.waker.as_ref().is_some_and(|before| before.will_wake(waker)) {
            post.waker = Some(waker.clone());
        }
    }

    /// Wakes a task from another thread.
    pub(super) fn wake(&self, task: tasks::Id) {
        self.tell(|post| post.woken.push(task));
    }

    /// A socket of the reactor is used there no more.
    pub(super) fn leave(&self, key: sources::Key) {
        self.tell(|post| post.left.push(key));
    }

    fn tell(&self, add: impl FnOnce(&mut Post)) {
        let waker = {
            let mut post = self.post();
            if post.closed {
                return;
            }
            add(&mut post);
            // Whoever finds it set knows that the reactor has been woken and has not come yet.
            if self.news.swap(true, Ordering::AcqRel) {
                return;
            }
            post.waker.clone()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The reactor has ended.
    pub(super) fn close(&self) {
        *self.post() = Post { closed: true, ..Post::default() };
    }

    /// What other threads have told since the last call.
    pub(super) fn news(&self) -> (Vec<tasks::Id>, Vec<sources::Key>) {
        if !self.news.load(Ordering::Relaxed) {
            return (Vec::new(), Vec::new());
        }
        let mut post = self.post();
        self.news.store(false, Ordering::Release);
        (std::mem::take(&mut post.woken), std::mem::take(&mut post.left))
    }
}

impl AsRawFd for Home {
    fn as_raw_fd(&self) -> RawFd {
        self.poller.as_raw_fd()
    }
}
