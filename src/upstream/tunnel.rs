//! Tunnels: bytes both ways between a client and an upstream after a WebSocket handshake.
//!
//! Bytes are copied as they are; frames are only followed by their lengths, so that a drain can say goodbye between two of them.
//! All tunnels of a thread share one read buffer: what it held is written on at once, and only what the other side does not take is kept, so
//! an idle tunnel owns no buffer and a stuck one at most one buffer's worth per direction.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::coop;
use tokio::time::{Instant, Sleep};

use super::flow::Flow;

/// Bytes read at a time.
const BUFFER: usize = 64 << 10;
/// How long a drained tunnel may take to reach a frame's end and to see the other sides close.
const GOODBYE: Duration = Duration::from_secs(1);

thread_local! {
    static SCRATCH: Cell<Option<Box<[u8]>>> = const { Cell::new(None) };
}

/// How a tunnel runs.
#[derive(Debug)]
pub struct TunnelOptions<D, M> {
    /// Ends the tunnel when no byte moved either way for this long; `None` is never.
    pub idle_timeout: Option<Duration>,
    /// Ready when tunnels must end: each side then gets a close frame 1001 at the next frame boundary.
    pub drain: D,
    /// Whether WebSocket frames flow; else a drain only closes.
    pub websocket: bool,
    /// Called with every count of bytes written on.
    pub meter: M,
}

/// A direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the client to the upstream.
    Up,
    /// From the upstream to the client.
    Down,
}

/// Why a tunnel ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Both sides closed.
    Closed,
    /// `idle_timeout`.
    Idle,
    /// The drain.
    Drained,
    /// The client's connection broke.
    ClientReset,
    /// The upstream's connection broke.
    UpstreamReset,
}

/// How a tunnel ended, and the bytes that were delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunnelEnd {
    /// Why.
    pub cause: Cause,
    /// Bytes from the client delivered to the upstream.
    pub from_client: u64,
    /// Bytes from the upstream delivered to the client.
    pub from_upstream: u64,
}

/// Runs a tunnel to its end; both connections are closed when it returns. Bytes that came with the handshake must be in the streams.
pub async fn run<A, B, D, M>(mut client: A, mut upstream: B, options: TunnelOptions<D, M>) -> TunnelEnd
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
    D: Future<Output = ()>,
    M: FnMut(Way, usize),
{
    let TunnelOptions { idle_timeout, drain, websocket, mut meter } = options;
    let mut drain = pin!(drain);
    let mut clock = Clock::new(idle_timeout);
    let mut pair = Pair { up: Flow::new(websocket), down: Flow::new(websocket), failed: None, draining: false };
    let cause = poll_fn(|cx| {
        if !pair.draining && drain.as_mut().poll(cx).is_ready() {
            pair.leave();
            clock.last_word();
        }
        let cause = pair.poll(cx, &mut client, &mut upstream);
        let (up, down) = (pair.up.news(), pair.down.news());
        for (way, bytes) in [(Way::Up, up), (Way::Down, down)] {
            if bytes > 0 {
                meter(way, bytes);
            }
        }
        if let Some(cause) = cause {
            return Poll::Ready(cause);
        }
        if clock.poll(cx, up + down > 0).is_ready() {
            return Poll::Ready(if pair.draining { Cause::Drained } else { Cause::Idle });
        }
        Poll::Pending
    })
    .await;
    TunnelEnd { cause, from_client: pair.up.delivered(), from_upstream: pair.down.delivered() }
}

/// The one timer of a tunnel. It is not moved at each byte: when it fires it looks when the last one was.
struct Clock {
    timer: Option<Pin<Box<Sleep>>>,
    /// Whether the timer knows whom to wake.
    armed: bool,
    idle: Option<Duration>,
    last: Instant,
}

impl Clock {
    fn new(idle: Option<Duration>) -> Self {
        Self { timer: idle.map(|idle| Box::pin(tokio::time::sleep(idle))), armed: false, idle, last: Instant::now() }
    }
    /// From now on the timer is the deadline of the goodbye.
    fn last_word(&mut self) {
        self.idle = None;
        self.timer = Some(Box::pin(tokio::time::sleep(GOODBYE)));
        self.armed = false;
    }
    fn poll(&mut self, cx: &mut Context<'_>, moved: bool) -> Poll<()> {
        if moved {
            self.last = Instant::now();
        }
        let Some(timer) = &mut self.timer else { return Poll::Pending };
        // A tunnel is one task to its end: the timer need not be told at every byte whom to wake.
        if self.armed && !timer.is_elapsed() {
            return Poll::Pending;
        }
        while timer.as_mut().poll(cx).is_ready() {
            match self.idle.and_then(|idle| later(self.last, idle, Instant::now())) {
                Some(deadline) => timer.as_mut().reset(deadline),
                None => return Poll::Ready(()),
            }
        }
        // A task whose turn is over is woken for another one, but the timer has not heard of it.
        self.armed = coop::has_budget_remaining();
        Poll::Pending
    }
}

/// When a tunnel that moved `last` is idle; `None` if it already is.
fn later(last: Instant, idle: Duration, now: Instant) -> Option<Instant> {
    last.checked_add(idle).filter(|deadline| now < *deadline)
}

/// Both directions.
struct Pair {
    up: Flow,
    down: Flow,
    failed: Option<Cause>,
    draining: bool,
}

impl Pair {
    fn leave(&mut self) {
        self.draining = true;
        self.up.leave(true);
        self.down.leave(false);
    }

    /// Moves what can be moved; a cause when the tunnel is over.
    fn poll<A, B>(&mut self, cx: &mut Context<'_>, client: &mut A, upstream: &mut B) -> Option<Cause>
    where
        A: AsyncRead + AsyncWrite + Unpin,
        B: AsyncRead + AsyncWrite + Unpin,
    {
        let mut scratch = SCRATCH.take().unwrap_or_else(|| vec![0; BUFFER].into_boxed_slice());
        if let Err(broken) = self.up.poll(cx, client, upstream, &mut scratch) {
            self.failed.get_or_insert(broken.choose(Cause::ClientReset, Cause::UpstreamReset));
        }
        if let Err(broken) = self.down.poll(cx, upstream, client, &mut scratch) {
            self.failed.get_or_insert(broken.choose(Cause::UpstreamReset, Cause::ClientReset));
        }
        SCRATCH.set(Some(scratch));
        let over = match self.failed {
            // What the broken side had sent before it broke still reaches the other one, nothing more is waited for.
            Some(_) => self.up.is_exhausted() && self.down.is_exhausted(),
            None => self.up.is_done() && self.down.is_done(),
        };
        let cause = if self.draining { Cause::Drained } else { self.failed.unwrap_or(Cause::Closed) };
        over.then_some(cause)
    }
}

#[cfg(test)]
#[path = "tunnel_tests.rs"]
mod tests;
