//! Finds out that a client is gone without a word: it is pinged after a silence, and must answer.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::task::coop;
use tokio::time::{Instant, Sleep};

/// Who listens for a sign of life.
pub(super) struct Alive {
    pings: Option<PingPong>,
    every: Duration,
    /// Counts what the client sends, of whatever kind.
    heard: Arc<AtomicU64>,
    known: u64,
    /// When it was last heard of.
    last: Instant,
    sleep: Pin<Box<Sleep>>,
    /// Whom the sleep wakes.
    waker: Option<Waker>,
    /// A ping is on its way.
    asked: bool,
}

impl Alive {
    /// A client is pinged when nothing was heard of it for `every`, and has half of that to answer.
    pub(super) fn new(every: Duration, heard: Arc<AtomicU64>) -> Self {
        let sleep = Box::pin(tokio::time::sleep(every));
        Self { pings: None, every, heard, known: 0, last: Instant::now(), sleep, waker: None, asked: false }
    }

    /// The connection is there.
    pub(super) fn begin(&mut self, pings: Option<PingPong>) {
        self.pings = pings;
    }

    /// Ready once, when the client is gone.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let heard = self.heard.load(Relaxed);
        if heard != self.known {
            (self.known, self.last) = (heard, Instant::now());
        }
        let Some(pings) = &mut self.pings else { return Poll::Pending };
        if self.asked {
            match pings.poll_pong(cx) {
                Poll::Ready(Ok(_)) => {
                    self.asked = false;
                    self.last = Instant::now();
                    self.sleep.as_mut().reset(self.last + self.every);
                }
                // The connection is over, and says so itself.
                Poll::Ready(Err(_)) => self.pings = None,
                Poll::Pending => {}
            }
        }
        if !self.sleep.is_elapsed() && self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            // It would only be told once more whom to wake.
            return Poll::Pending;
        }
        while self.sleep.as_mut().poll(cx).is_ready() {
            let Some(pings) = &mut self.pings else { return Poll::Pending };
            if self.asked {
                self.pings = None;
                return Poll::Ready(());
            }
            let due = self.last + self.every;
            if due > Instant::now() {
                self.sleep.as_mut().reset(due);
            } else if pings.send_ping(Ping::opaque()).is_ok() {
                self.asked = true;
                self.sleep.as_mut().reset(Instant::now() + self.every / 2);
            } else {
                self.pings = None;
            }
        }
        // A task whose turn is over is woken for another one, but the sleep has not heard of it.
        self.waker = coop::has_budget_remaining().then(|| cx.waker().clone());
        Poll::Pending
    }
}
