//! The tasks of a reactor: a place for each, and a queue of those that were woken.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};

use slab::Slab;

use super::home::Home;
use super::sources::Key;
use super::{HERE, TURN};

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A task's place among those of its reactor. The same place is never the same task again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Id {
    place: u32,
    round: u32,
}

/// A task at rest.
struct Task {
    work: Work,
    waker: Waker,
}

struct Place {
    round: u32,
    /// Whether it is in the queue.
    queued: bool,
    /// `None` while it runs.
    task: Option<Task>,
}

/// All tasks of a reactor.
pub(super) struct Tasks {
    /// `None`: the thread has no reactor.
    home: RefCell<Option<Arc<Home>>>,
    places: RefCell<Slab<Place>>,
    /// Those that were woken, and by which socket that has something to read.
    queue: RefCell<VecDeque<(Id, Option<Key>)>>,
    round: Cell<u32>,
    /// The task that runs, and what its waker refers to.
    current: Cell<Option<(Id, usize)>>,
    /// How often it may still read or write.
    turn: Cell<u32>,
}

impl Tasks {
    pub(super) const fn new() -> Self {
        Self {
            home: RefCell::new(None),
            places: RefCell::new(Slab::new()),
            queue: RefCell::new(VecDeque::new()),
            round: Cell::new(0),
            current: Cell::new(None),
            turn: Cell::new(0),
        }
    }

    pub(super) fn open(&self, home: &Arc<Home>) {
        self.home.replace(Some(Arc::clone(home)));
    }

    /// Drops all tasks; there are none from now on.
    pub(super) fn close(&self) {
        drop(self.home.take());
        let places = self.places.take();
        self.queue.borrow_mut().clear();
        for (_, place) in places {
            if let Some(task) = place.task {
                contain(|| drop(task));
            }
        }
    }

    /// Takes a task, or gives it back if the thread has no reactor. It does not run yet.
    pub(super) fn spawn(&self, work: Work) -> Result<Id, Work> {
        let Some(home) = self.home.borrow().clone() else { return Err(work) };
        let mut places = self.places.borrow_mut();
        let entry = places.vacant_entry();
        let Ok(place) = u32::try_from(entry.key()) else { return Err(work) };
        let id = Id { place, round: self.round.get().wrapping_add(1) };
        self.round.set(id.round);
        let waker = Waker::from(Arc::new(Bell { home, id }));
        entry.insert(Place { round: id.round, queued: false, task: Some(Task { work, waker }) });
        Ok(id)
    }

    /// Puts a task that was woken into the queue, maybe by something to read; whether it is new there.
    pub(super) fn enqueue(&self, id: Id, reads: Option<Key>) -> bool {
        let mut places = self.places.borrow_mut();
        let Some(place) = places.get_mut(id.place as usize).filter(|place| place.round == id.round && !place.queued) else {
            return false;
        };
        place.queued = true;
        self.queue.borrow_mut().push_back((id, reads));
        true
    }

    /// How many are in the queue.
    pub(super) fn queued(&self) -> usize {
        self.queue.borrow().len()
    }

    /// Tells `tell` which sockets have something to read for the first `count` of the queue.
    pub(super) fn reads(&self, count: usize, tell: impl FnOnce(&mut dyn Iterator<Item = Key>)) {
        tell(&mut self.queue.borrow().iter().take(count).filter_map(|(_, reads)| *reads));
    }

    /// Runs the first `count` tasks of the queue, each once.
    pub(super) fn run(&self, count: usize) {
        for _ in 0..count {
            let Some((id, _)) = self.queue.borrow_mut().pop_front() else { return };
            let task = self.places.borrow_mut().get_mut(id.place as usize).filter(|place| place.round == id.round).and_then(|place| {
                place.queued = false;
                place.task.take()
            });
            let Some(mut task) = task else { continue };
            self.current.set(Some((id, task.waker.data().addr())));
            self.turn.set(TURN);
            let mut cx = Context::from_waker(&task.waker);
            let done = contain(|| task.work.as_mut().poll(&mut cx)).is_none_or(|polled| polled.is_ready());
            self.current.set(None);
            if done {
                // Its place first: as it is dropped it may wake itself or make others.
                let place = self.places.borrow_mut().try_remove(id.place as usize);
                drop(place);
                contain(|| drop(task));
            } else if let Some(place) = self.places.borrow_mut().get_mut(id.place as usize) {
                place.task = Some(task);
            }
        }
    }

    /// The task that runs, if `waker` is its own.
    pub(super) fn current(&self, waker: &Waker) -> Option<Id> {
        self.current.get().filter(|(_, data)| *data == waker.data().addr()).map(|(id, _)| id)
    }

    /// Whether one of them runs and may not read or write any more.
    pub(super) fn is_turn_over(&self) -> bool {
        self.current.get().is_some() && self.turn.get() == 0
    }

    /// Counts one read or write of the task that runs: whether it may. `None`: none of them runs.
    pub(super) fn turn(&self) -> Option<bool> {
        self.current.get()?;
        let left = self.turn.get();
        self.turn.set(left.saturating_sub(1));
        Some(left > 0)
    }
}

/// Runs a task's code. A panic is the task's own end; the hook has reported it.
fn contain<T>(run: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(run)).ok()
}

/// Wakes a task.
struct Bell {
    home: Arc<Home>,
    id: Id,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let here = HERE.try_with(|here| {
            let ours = here.tag.get() == self.home.tag();
            if ours {
                here.wake(self.id);
            }
            ours
        });
        if here != Ok(true) {
            self.home.wake(self.id);
        }
    }
}
