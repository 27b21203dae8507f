//! The tasks that serve streams. A task is used for one stream after the other, whatever connection of its worker they come from: neither is
//! one made per request, nor are the six kilobytes of a request's future moved to it, and its timer is mostly armed already.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use crate::http::watched::Alarm;
use crate::reactor;
use crate::server::http2::stream::{self, Job};

/// Most tasks that a worker keeps without work: as many as two connections with a hundred streams each need.
const KEPT: usize = 200;

thread_local! {
    /// Those of this worker that wait for work.
    static IDLE: RefCell<Vec<Arc<Runner<Box<Job>>>>> = const { RefCell::new(Vec::new()) };
}

/// Where a task finds its next stream.
struct Runner<T>(Mutex<Place<T>>);

struct Place<T> {
    job: Option<T>,
    /// The task, once it has waited.
    waker: Option<Waker>,
    /// The task is no more: its runtime has ended.
    gone: bool,
}

/// Serves a stream.
pub(super) fn run(mut job: Box<Job>) {
    while let Some(runner) = IDLE.with_borrow_mut(Vec::pop) {
        match runner.give(job) {
            Ok(()) => return,
            Err(back) => job = back,
        }
    }
    reactor::spawn(Box::pin(serve(job)));
}

impl<T> Default for Runner<T> {
    fn default() -> Self {
        Self(Mutex::new(Place { job: None, waker: None, gone: false }))
    }
}

impl<T> Runner<T> {
    fn place(&self) -> MutexGuard<'_, Place<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands `job` over, or back if nobody is there.
    fn give(&self, job: T) -> Result<(), T> {
        let mut place = self.place();
        if place.gone {
            return Err(job);
        }
        place.job = Some(job);
        if let Some(waker) = &place.waker {
            waker.wake_by_ref();
        }
        Ok(())
    }

    /// Waits for the next stream.
    async fn next(&self) -> T {
        poll_fn(|cx| {
            let mut place = self.place();
            if let Some(job) = place.job.take() {
                return Poll::Ready(job);
            }
            // It is the same task each time.
            if !place.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                place.waker = Some(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }
}

/// Marks a runner whose task is dropped.
struct Leaves<T>(Arc<Runner<T>>);

impl<T> Drop for Leaves<T> {
    fn drop(&mut self) {
        *self.0.place() = Place { job: None, waker: None, gone: true };
    }
}

/// The task: serves `job` and those that come after it.
async fn serve(mut job: Box<Job>) {
    let runner = Leaves(Arc::default());
    let mut alarm = pin!(Alarm::default());
    loop {
        // Pinned as it is made: awaited, it would be moved first.
        pin!(stream::serve(job, alarm.as_mut())).await;
        let waits = IDLE.with_borrow_mut(|idle| {
            let room = idle.len() < KEPT;
            if room {
                idle.push(Arc::clone(&runner.0));
            }
            room
        });
        if !waits {
            return;
        }
        job = runner.0.next().await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn a_runner_takes_one_job_after_the_other_until_its_task_is_dropped() {
        let runner = Arc::new(Runner::default());
        let (done, mut seen) = mpsc::unbounded_channel();
        let leaves = Leaves(Arc::clone(&runner));
        let task = tokio::spawn(async move {
            loop {
                done.send(leaves.0.next().await).unwrap();
            }
        });
        for job in 0..3 {
            runner.give(job).unwrap();
            assert_eq!(seen.recv().await, Some(job));
        }
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        assert_eq!(runner.give(3), Err(3), "a job must not get lost");
    }
}
