//! What a worker's connections run on: an epoll instance and tasks of their own, on the thread of the worker's tokio runtime.
//!
//! A task of tokio's may be woken by any thread at any time, so each wait for a socket costs eleven locked instructions: the socket's
//! readiness, a lock around who waits, the states of the task, the count of its wakers. But what a connection waits for mostly happens
//! on its own thread: here an event is looked up in one table, its task in another, and nothing is locked. Whoever wakes a task from
//! elsewhere (a timer, a channel, another thread) does it by an ordinary [`Waker`].
//!
//! It is one task of tokio's ([`Reactor`]), which watches the epoll instance like any other file: timers, channels and other tasks go
//! on beside it, and a thread sleeps in one place. On a thread without a reactor, sockets and tasks are tokio's.
//!
//! Method: the reactor pattern (Schmidt 1995), as event loops of nginx, HAProxy and Envoy have it; one thread, edge-triggered.

mod home;
mod poller;
mod registration;
mod source;
mod sources;
mod tasks;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::coop;

pub use self::registration::Registration;
pub use self::source::Direction;

use self::home::Home;
use self::poller::BATCH;
use self::source::Waits;
use self::sources::{Key, Removed, Sources};
use self::tasks::Tasks;

/// So often a task may read or write until others have their turn.
const TURN: u32 = 128;
/// So many tasks run until what they wrote is sent: enough that their code stays in the processor's caches, few enough that others need not
/// wait for it.
const TOGETHER: usize = 16;
/// So many tasks are run, of so many batches of events and wake-ups, until tokio's tasks and timers have their turn: nothing new is heard before.
const MOST: usize = 256;
const ROUNDS: usize = 8;

thread_local! {
    static HERE: Here = const { Here::new() };
}

/// The reactor of this thread, if it has one.
struct Here {
    /// Identifies it; 0: there is none.
    tag: Cell<u64>,
    sources: RefCell<Sources>,
    tasks: Tasks,
    /// Whether the reactor runs tasks, and will come to those that are woken.
    running: Cell<bool>,
    /// Whether it was woken to come to them.
    rung: Cell<bool>,
    /// Its own waker.
    waker: RefCell<Option<Waker>>,
}

impl Here {
    const fn new() -> Self {
        Self {
            tag: Cell::new(0),
            sources: RefCell::new(Sources::new()),
            tasks: Tasks::new(),
            running: Cell::new(false),
            rung: Cell::new(false),
            waker: RefCell::new(None),
        }
    }

    /// Runs once what is in the queue now, at most `most` tasks, and does what they write. Gives how many they were.
    fn run(&self, most: usize) -> usize {
        let count = self.tasks.queued().min(most);
        let mut left = count;
        let mut waiting = Vec::new();
        while left > 0 {
            let some = left.min(TOGETHER);
            left -= some;
            self.tasks.reads(some, |keys| self.sources.borrow_mut().read_ahead(keys));
            self.tasks.run(some);
            self.sources.borrow_mut().flush(|waits| waiting.push(waits));
        }
        waiting.into_iter().for_each(|waits| self.tell(waits, None));
        count
    }

    /// Wakes who waited, maybe because `reads` has something to read. Not while anything of this thread is borrowed: it may be anybody's
    /// waker.
    fn tell(&self, waits: Waits, reads: Option<Key>) {
        match waits {
            Waits::Task(task) => {
                self.tasks.enqueue(task, reads);
            }
            Waits::Other(waker) => waker.wake(),
        }
    }

    /// A task has been woken by this thread.
    fn wake(&self, task: tasks::Id) {
        if self.tasks.enqueue(task, None) && !self.running.get() && !self.rung.replace(true) {
            // Cloned, since it may be anybody's waker, and whoever is woken may come back here.
            let waker = self.waker.borrow().clone();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

/// The reactor of a thread: to be polled by a task of the runtime that the thread runs, with a budget that does not end. All tasks end
/// with it.
pub struct Reactor {
    home: Arc<Home>,
    epoll: AsyncFd<Arc<Home>>,
}

impl Reactor {
    /// Makes the reactor of this thread. From now on sockets and tasks that are made here are its own.
    ///
    /// # Errors
    /// The system has no epoll or refuses one, or the thread has a reactor already.
    pub fn start() -> io::Result<Self> {
        let home = Arc::new(Home::new()?);
        // Sound for a type that owns its descriptor; the replacement would need `unsafe` to say the same.
        #[expect(deprecated, reason = "the lint is about types that do not own their descriptor")]
        let epoll = AsyncFd::with_interest(Arc::clone(&home), Interest::READABLE)?;
        HERE.with(|here| {
            if here.tag.get() != 0 {
                return Err(io::Error::other("this thread has a reactor already"));
            }
            here.tag.set(home.tag());
            here.sources.borrow_mut().open(&home);
            here.tasks.open(&home);
            Ok(Self { home, epoll })
        })
    }

    /// Hears of a batch of events, if there are any. Whether there may be more; else the reactor is woken when more comes.
    fn hear(&self, cx: &mut Context<'_>, here: &Here) -> bool {
        // The runtime is ending, and this with it, if it is an error.
        let Poll::Ready(Ok(mut guard)) = self.epoll.poll_read_ready(cx) else { return false };
        if self.take(here) == BATCH {
            return true;
        }
        guard.clear_ready();
        // It is woken only if it was told to wait.
        self.epoll.poll_read_ready(cx).is_ready()
    }

    fn take(&self, here: &Here) -> usize {
        let mut others = Vec::new();
        let count = self.home.poller().take(|key, ready| {
            let woken = here.sources.borrow_mut().heard(key, ready);
            for (waits, reads) in woken.into_iter().zip([Some(key), None]) {
                match waits {
                    Some(Waits::Task(task)) => here.tell(Waits::Task(task), reads),
                    Some(Waits::Other(waker)) => others.push(waker),
                    None => {}
                }
            }
        });
        others.into_iter().for_each(Waker::wake);
        count
    }
}

impl Future for Reactor {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        HERE.with(|here| {
            here.running.set(true);
            here.rung.set(false);
            if !here.waker.borrow().as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                this.home.hear_from(cx.waker());
                let before = here.waker.replace(Some(cx.waker().clone()));
                drop(before);
            }
            let mut turns = MOST;
            for _ in 0..ROUNDS {
                let (woken, left) = this.home.news();
                for task in woken {
                    here.tasks.enqueue(task, None);
                }
                for key in left {
                    let removed = here.sources.borrow_mut().remove(key);
                    removed.into_iter().for_each(Removed::linger);
                }
                let more = this.hear(cx, here);
                turns -= here.run(turns);
                if !more && here.tasks.queued() == 0 {
                    here.running.set(false);
                    return Poll::Pending;
                }
                if turns == 0 {
                    break;
                }
            }
            here.running.set(false);
            // Others have their turn, and the runtime looks after timers, before this goes on.
            pin!(tokio::task::yield_now()).poll(cx)
        })
    }
}

impl Drop for Reactor {
    fn drop(&mut self) {
        self.home.close();
        // Whatever a task does as it is dropped, nothing of this thread is borrowed meanwhile.
        let end = |here: &Here| {
            here.tasks.close();
            here.tag.set(0);
            drop(here.sources.replace(Sources::new()));
            drop(here.waker.take());
        };
        // Without the thread's own memory there is nothing left to end.
        let _ = HERE.try_with(end);
    }
}

/// Runs `task` on this thread: on its reactor, or else on the runtime. A panic ends the task alone.
pub fn spawn(task: Pin<Box<dyn Future<Output = ()> + Send>>) {
    let left = HERE.with(|here| match here.tasks.spawn(task) {
        Ok(id) => {
            here.wake(id);
            None
        }
        Err(task) => Some(task),
    });
    if let Some(task) = left {
        drop(tokio::spawn(task));
    }
}

/// Whether the task that runs has read and written so much that it will be told to wait until others have had their turn.
pub fn is_turn_over() -> bool {
    HERE.with(|here| here.tasks.is_turn_over())
}

/// Ready unless the task that runs has read and written so much that others are to have their turn; then it comes again after them.
pub fn poll_turn(cx: &mut Context<'_>) -> Poll<()> {
    match HERE.with(|here| here.tasks.turn()) {
        Some(true) => Poll::Ready(()),
        Some(false) => {
            cx.waker().wake_by_ref();
            Poll::Pending
        }
        None => coop::poll_proceed(cx).map(|turn| turn.made_progress()),
    }
}

#[cfg(test)]
mod tests;
