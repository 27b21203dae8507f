//! A future beside a [`Clock`]: one sleep, armed for the earliest thing that could be over. Who is likely to be gone before anything is
//! may put it off.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use pin_project_lite::pin_project;
use tokio::task::coop;
use tokio::time::Sleep;

use super::clock::{Clock, Phase, Verdict, nanos};

pin_project! {
    /// One sleep for a clock, or for several of which one comes after the other: it is moved only when something is over earlier.
    pub struct Alarm {
        // Made when there is something to wait for.
        #[pin]
        sleep: Option<Sleep>,
        armed: u64,
        // No sleep is armed for what is over after this.
        put_off: u64,
        // Whom the sleep wakes.
        waker: Option<Waker>,
    }
}

/// What is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ring {
    /// The request in progress: its handler has been told, and is to be asked again.
    Expired,
    /// The connection or stream, in this phase.
    Cut(Phase),
}

impl Default for Alarm {
    fn default() -> Self {
        Self { sleep: None, armed: 0, put_off: u64::MAX, waker: None }
    }
}

impl Alarm {
    /// Ready when something is over. To be asked after each look at what it watches.
    pub fn poll(self: Pin<&mut Self>, clock: &Clock, cx: &mut Context<'_>) -> Poll<Ring> {
        let mut this = self.project();
        let earliest = clock.earliest();
        if this.sleep.is_none() {
            if earliest > *this.put_off {
                return Poll::Pending;
            }
            *this.armed = earliest;
            this.sleep.set(Some(tokio::time::sleep_until(instant(earliest).into())));
        }
        let Some(mut sleep) = this.sleep.as_mut().as_pin_mut() else { return Poll::Pending };
        if earliest < *this.armed {
            *this.armed = earliest;
            sleep.as_mut().reset(instant(earliest).into());
        } else if !sleep.is_elapsed() && this.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            // It would only be told once more whom to wake, several times a request.
            return Poll::Pending;
        }
        loop {
            if sleep.as_mut().poll(cx).is_pending() {
                // A task whose turn is over is woken for another one, but the sleep has not heard of it.
                *this.waker = coop::has_budget_remaining().then(|| cx.waker().clone());
                return Poll::Pending;
            }
            let now = Instant::now();
            let (wait, expired) = match clock.judge(now) {
                Verdict::Wait(at) => (at, false),
                Verdict::Expire => (nanos(now).saturating_add(1_000_000_000), true),
                Verdict::Close => return Poll::Ready(Ring::Cut(clock.phase())),
            };
            *this.armed = wait;
            sleep.as_mut().reset(instant(wait).into());
            // It has woken its waker, and does so only once.
            *this.waker = None;
            if expired {
                return Poll::Ready(Ring::Expired);
            }
        }
    }
}

pin_project! {
    /// Runs a future beside a [`Clock`] and ends it when the clock says so.
    pub struct Watched<F, C> {
        #[pin]
        future: F,
        clock: C,
        #[pin]
        alarm: Alarm,
    }
}

/// How a watched future ended.
#[derive(Debug)]
pub enum End<T> {
    /// By itself.
    Done(T),
    /// Cut in this phase, because its timeout was over.
    Cut(Phase),
}

impl<F, C: AsRef<Clock>> Watched<F, C> {
    /// Watches `future`.
    pub fn new(future: F, clock: C) -> Self {
        Self { future, clock, alarm: Alarm::default() }
    }
    /// Puts off to arm a sleep for what is over later than `span` from now, until [`Self::settle`].
    #[must_use]
    pub fn put_off(mut self, span: Duration) -> Self {
        self.alarm.put_off = nanos(Instant::now() + span);
        self
    }
    /// Puts nothing off any more, from the next poll on.
    pub fn settle(self: Pin<&mut Self>) {
        *self.project().alarm.project().put_off = u64::MAX;
    }
    /// The future itself.
    pub fn inner(self: Pin<&mut Self>) -> Pin<&mut F> {
        self.project().future
    }
}

/// The instant of a time in nanoseconds; at most a year ahead, which timers take.
fn instant(at: u64) -> Instant {
    let now = Instant::now();
    now + Duration::from_nanos(at.saturating_sub(nanos(now))).min(Duration::from_secs(365 * 86_400))
}

impl<F: Future, C: AsRef<Clock>> Future for Watched<F, C> {
    type Output = End<F::Output>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            if let Poll::Ready(output) = this.future.as_mut().poll(cx) {
                return Poll::Ready(End::Done(output));
            }
            match std::task::ready!(this.alarm.as_mut().poll(this.clock.as_ref(), cx)) {
                Ring::Expired => {}
                Ring::Cut(phase) => return Poll::Ready(End::Cut(phase)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;

    use super::super::clock::ConnectionTimeouts;
    use super::*;

    const FOREVER: Duration = Duration::from_secs(60);

    fn clock(phase: Phase, idle: Duration) -> Clock {
        Clock::new(phase, Instant::now(), ConnectionTimeouts { header: Some(FOREVER), idle: Some(idle) })
    }

    #[tokio::test]
    async fn an_alarm_that_is_first_asked_when_its_task_is_out_of_turns_still_rings() {
        let clock = clock(Phase::Idle, Duration::from_millis(20));
        let mut alarm = pin!(Alarm::default());
        poll_fn(|cx| {
            while let Poll::Ready(turn) = coop::poll_proceed(cx) {
                turn.made_progress();
            }
            assert!(alarm.as_mut().poll(&clock, cx).is_pending());
            Poll::Ready(())
        })
        .await;
        let ring = tokio::time::timeout(FOREVER, poll_fn(|cx| alarm.as_mut().poll(&clock, cx))).await;
        assert_eq!(ring, Ok(Ring::Cut(Phase::Idle)));
    }
}
