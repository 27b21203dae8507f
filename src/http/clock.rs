//! Deadlines of a connection or an HTTP/2 stream without a timer per request.
//!
//! hyper arms a boxed timer for every request head, which costs 3–10 % of a proxied request. Here one [`tokio::time::Sleep`]
//! per connection is armed for the earliest thing that could expire, and moved only when something expires earlier than it:
//! with usual timeouts that is once in seconds, not once a request. When it fires, the [`Clock`] says what, if anything, is over.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// How long the rest of a client's body is read and dropped before an HTTP/1 connection is closed under it.
const LINGER: Duration = Duration::from_secs(1);
/// Slowest bodies are judged over this window (`min_body_rate`).
const RATE_WINDOW: Duration = Duration::from_secs(10);
/// No deadline: beyond the life of any process.
const NEVER: u64 = u64::MAX;

/// Nanoseconds since the process took its first look at the clock.
pub(super) fn nanos(at: Instant) -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    u64::try_from(at.saturating_duration_since(*START.get_or_init(|| at)).as_nanos()).unwrap_or(NEVER - 1)
}

fn span(duration: Option<Duration>) -> u64 {
    duration.map_or(NEVER, |d| u64::try_from(d.as_nanos()).unwrap_or(NEVER))
}

/// What a connection or stream is doing; decides which timeout runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Nothing: waits for a request. `timeouts.idle`.
    Idle = 0,
    /// A request head has begun (or the connection has). `timeouts.header`.
    Head = 1,
    /// A request is being answered and no response head is sent. `timeout`, and `idle_timeout` while the client sends.
    Request = 2,
    /// A response body is on its way. `idle_timeout`.
    Response = 3,
    /// The answer is out and the rest of the client's body is dropped before closing.
    Linger = 4,
    /// A tunnel has taken over; it has timers of its own.
    Tunnel = 5,
}

/// What is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Expired {
    /// The route's `timeout`: the response head did not come.
    Timeout = 1,
    /// The client's body stalled (`idle_timeout`) or is too slow (`min_body_rate`).
    Client = 2,
    /// The upstream did not take the client's body (`idle_timeout`).
    Upstream = 3,
}

/// Timeouts of a connection between requests.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionTimeouts {
    /// `timeouts.header`.
    pub header: Option<Duration>,
    /// `timeouts.idle`.
    pub idle: Option<Duration>,
}

/// The clock of one connection (HTTP/1) or one stream (HTTP/2). All that write it run on one thread, so no addition has to be atomic.
#[derive(Debug)]
pub struct Clock {
    phase: AtomicU8,
    /// When the phase began.
    since: AtomicU64,
    header: AtomicU64,
    idle: AtomicU64,
    /// The route's `timeout`, from the end of the request body.
    timeout: AtomicU64,
    /// The route's `idle_timeout`.
    stall: AtomicU64,
    /// When the request body ended; `NEVER` while it is open.
    body_ended: AtomicU64,
    /// Bytes moved either way. Compared instead of stamped, so that moving bytes reads no clock.
    moved: AtomicU64,
    /// `moved` and the time when it was last seen changed.
    seen: AtomicU64,
    seen_at: AtomicU64,
    /// Whether the gateway waits for the client's body bytes rather than for the upstream to take them.
    awaiting_client: AtomicBool,
    /// `min_body_rate`, 0 = off; with the body bytes and the time at the start of the window.
    min_rate: AtomicU64,
    body_bytes: AtomicU64,
    window_bytes: AtomicU64,
    window_at: AtomicU64,
    expired: AtomicU8,
    cut_for_stall: AtomicBool,
}

/// What the watcher does now.
pub(super) enum Verdict {
    /// Nothing is over before this (nanoseconds).
    Wait(u64),
    /// The request in progress is over; its handler must be told.
    Expire,
    /// The connection or stream is over.
    Close,
}

impl Clock {
    /// A clock that starts in `phase`.
    pub fn new(phase: Phase, now: Instant, timeouts: ConnectionTimeouts) -> Self {
        let now = nanos(now);
        Self {
            phase: AtomicU8::new(phase as u8),
            since: AtomicU64::new(now),
            header: AtomicU64::new(span(timeouts.header)),
            idle: AtomicU64::new(span(timeouts.idle)),
            timeout: AtomicU64::new(NEVER),
            stall: AtomicU64::new(NEVER),
            body_ended: AtomicU64::new(now),
            moved: AtomicU64::new(0),
            seen: AtomicU64::new(0),
            seen_at: AtomicU64::new(now),
            awaiting_client: AtomicBool::new(false),
            min_rate: AtomicU64::new(0),
            body_bytes: AtomicU64::new(0),
            window_bytes: AtomicU64::new(0),
            window_at: AtomicU64::new(now),
            expired: AtomicU8::new(0),
            cut_for_stall: AtomicBool::new(false),
        }
    }

    /// What the connection is doing.
    pub fn phase(&self) -> Phase {
        match self.phase.load(Relaxed) {
            0 => Phase::Idle,
            1 => Phase::Head,
            2 => Phase::Request,
            3 => Phase::Response,
            4 => Phase::Linger,
            _ => Phase::Tunnel,
        }
    }

    /// Enters `phase` at `now`.
    pub fn enter(&self, phase: Phase, now: Instant) {
        self.enter_at(phase, nanos(now));
    }

    fn enter_at(&self, phase: Phase, now: u64) {
        self.phase.store(phase as u8, Relaxed);
        self.since.store(now, Relaxed);
    }

    /// New timeouts from a reload hold from the next wait on.
    pub fn set_timeouts(&self, timeouts: ConnectionTimeouts) {
        self.header.store(span(timeouts.header), Relaxed);
        self.idle.store(span(timeouts.idle), Relaxed);
    }

    /// A request head is complete. `has_body`: the client may still send.
    pub fn request_started(&self, now: Instant, has_body: bool) {
        let now = nanos(now);
        self.enter_at(Phase::Request, now);
        self.timeout.store(NEVER, Relaxed);
        self.stall.store(NEVER, Relaxed);
        self.body_ended.store(if has_body { NEVER } else { now }, Relaxed);
        self.expired.store(0, Relaxed);
        self.min_rate.store(0, Relaxed);
        if has_body {
            self.awaiting_client.store(false, Relaxed);
            self.seen.store(self.moved.load(Relaxed), Relaxed);
            self.seen_at.store(now, Relaxed);
        }
    }

    /// The route is known: its timeouts run. `timeout` counts from `now`, or from the end of the body if that is later.
    pub fn route_chosen(&self, now: Instant, timeout: Option<Duration>, idle_timeout: Option<Duration>, min_body_rate: Option<u64>) {
        self.timeout.store(span(timeout), Relaxed);
        self.stall.store(span(idle_timeout), Relaxed);
        if let Some(rate) = min_body_rate {
            self.min_rate.store(rate, Relaxed);
            self.body_bytes.store(0, Relaxed);
            self.window_bytes.store(0, Relaxed);
            self.window_at.store(nanos(now), Relaxed);
        }
    }

    /// The request body has ended; `timeout` runs from here.
    pub fn request_body_ended(&self, now: Instant) {
        self.body_ended.store(nanos(now), Relaxed);
        self.awaiting_client.store(false, Relaxed);
    }

    /// Whether the next move is the client's: its body bytes are awaited.
    pub fn await_client(&self, awaiting: bool) {
        self.awaiting_client.store(awaiting, Relaxed);
    }

    /// Body bytes of the client arrived at the gateway.
    pub fn body_bytes(&self, bytes: usize) {
        self.body_bytes.store(self.body_bytes.load(Relaxed).wrapping_add(bytes as u64), Relaxed);
    }

    /// Bytes moved either way.
    pub fn moved(&self, bytes: usize) {
        self.moved.store(self.moved.load(Relaxed).wrapping_add(bytes as u64), Relaxed);
    }

    /// The response head goes out. Reads no clock: the first look at the stream takes it for moving.
    pub fn response_started(&self) {
        self.phase.store(Phase::Response as u8, Relaxed);
        self.seen.store(self.moved.load(Relaxed).wrapping_sub(1), Relaxed);
    }

    /// Why the request in progress is over, if it is.
    pub fn expired(&self) -> Option<Expired> {
        match self.expired.load(Relaxed) {
            1 => Some(Expired::Timeout),
            2 => Some(Expired::Client),
            3 => Some(Expired::Upstream),
            _ => None,
        }
    }

    /// Whether a response is being cut because no byte moved for `idle_timeout`.
    pub fn stalled_now(&self) -> bool {
        self.cut_for_stall.load(Relaxed)
    }

    /// When the route's `timeout` is over, as far as it is known: `None` while the body is open or without a timeout.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        let ended = self.body_ended.load(Relaxed);
        let timeout = self.timeout.load(Relaxed);
        if ended == NEVER || timeout == NEVER {
            return None;
        }
        Some(now + Duration::from_nanos(ended.saturating_add(timeout).saturating_sub(nanos(now))))
    }

    /// `span` after `from`, or after the end of the request body if that was later; `None` while the body is open.
    pub fn after_body(&self, from: Instant, span: Duration, now: Instant) -> Option<Instant> {
        let ended = self.body_ended.load(Relaxed);
        // Instants cannot be made of numbers, only moved.
        let since_end = Duration::from_nanos(nanos(now).saturating_sub(ended));
        (ended != NEVER).then(|| from.max(now.checked_sub(since_end).unwrap_or(from)) + span)
    }

    /// Earliest time at which anything could be over, from what is known without reading the clock.
    pub(super) fn earliest(&self) -> u64 {
        let since = self.since.load(Relaxed);
        match self.phase() {
            Phase::Idle => since.saturating_add(self.idle.load(Relaxed)),
            Phase::Head => since.saturating_add(self.header.load(Relaxed)),
            Phase::Request => {
                let ended = self.body_ended.load(Relaxed);
                if ended == NEVER { self.next_stall_check() } else { ended.max(since).saturating_add(self.timeout.load(Relaxed)) }
            }
            Phase::Response => self.next_stall_check(),
            Phase::Linger => since.saturating_add(u64::try_from(LINGER.as_nanos()).unwrap_or(NEVER)),
            Phase::Tunnel => NEVER,
        }
    }

    /// Stalls are looked for four times per `idle_timeout`, so one is found within 1.25 of it.
    fn next_stall_check(&self) -> u64 {
        let mut every = self.stall.load(Relaxed);
        if every != NEVER {
            every /= 4;
        }
        // While a body is open, `timeout` may begin to run at any moment: the check must not come later than it could end.
        if self.phase() == Phase::Request {
            every = every.min(self.timeout.load(Relaxed));
            if self.min_rate.load(Relaxed) != 0 {
                every = every.min(u64::try_from(RATE_WINDOW.as_nanos() / 4).unwrap_or(NEVER));
            }
        }
        self.seen_at.load(Relaxed).max(self.since.load(Relaxed)).saturating_add(every)
    }

    pub(super) fn judge(&self, now: Instant) -> Verdict {
        let now = nanos(now);
        let over = |at: u64| at <= now;
        match self.phase() {
            Phase::Tunnel => Verdict::Wait(NEVER),
            Phase::Idle | Phase::Head | Phase::Linger => {
                let at = self.earliest();
                if over(at) { Verdict::Close } else { Verdict::Wait(at) }
            }
            Phase::Request => self.judge_request(now),
            Phase::Response => match self.stalled(now) {
                Ok(at) => Verdict::Wait(at),
                Err(()) => {
                    self.cut_for_stall.store(true, Relaxed);
                    Verdict::Close
                }
            },
        }
    }

    fn judge_request(&self, now: u64) -> Verdict {
        if self.expired.load(Relaxed) != 0 {
            // Told already: the handler is about to answer. Look again, in case it cannot.
            return Verdict::Wait(now.saturating_add(1_000_000_000));
        }
        let ended = self.body_ended.load(Relaxed);
        if ended != NEVER {
            let at = ended.max(self.since.load(Relaxed)).saturating_add(self.timeout.load(Relaxed));
            return if at <= now { self.expire(Expired::Timeout) } else { Verdict::Wait(at) };
        }
        if self.too_slow(now) {
            return self.expire(Expired::Client);
        }
        match self.stalled(now) {
            // `timeout` could run from any moment on.
            Ok(at) => Verdict::Wait(at.min(now.saturating_add(self.timeout.load(Relaxed))).max(now + 1_000_000)),
            Err(()) if self.awaiting_client.load(Relaxed) => self.expire(Expired::Client),
            Err(()) => self.expire(Expired::Upstream),
        }
    }

    fn expire(&self, why: Expired) -> Verdict {
        self.expired.store(why as u8, Relaxed);
        Verdict::Expire
    }

    /// `Err` when no byte has moved for `idle_timeout`, else the time of the next look.
    fn stalled(&self, now: u64) -> Result<u64, ()> {
        let stall = self.stall.load(Relaxed);
        let moved = self.moved.load(Relaxed);
        if self.seen.swap(moved, Relaxed) != moved {
            self.seen_at.store(now, Relaxed);
        } else if stall != NEVER && self.seen_at.load(Relaxed).saturating_add(stall) <= now {
            return Err(());
        }
        if stall == NEVER {
            let rate = if self.min_rate.load(Relaxed) == 0 { NEVER } else { 2_500_000_000 };
            return Ok(now.saturating_add(rate));
        }
        Ok(now.saturating_add(stall / 4).min(self.seen_at.load(Relaxed).saturating_add(stall)).max(now + 1_000_000))
    }

    /// Whether the client's body came slower than `min_body_rate` over a whole window in which the gateway waited for it.
    fn too_slow(&self, now: u64) -> bool {
        let rate = self.min_rate.load(Relaxed);
        if rate == 0 {
            return false;
        }
        let window = u64::try_from(RATE_WINDOW.as_nanos()).unwrap_or(NEVER);
        let bytes = self.body_bytes.load(Relaxed);
        if !self.awaiting_client.load(Relaxed) {
            // The upstream is the slow one: the client's window begins anew.
            self.window_at.store(now, Relaxed);
            self.window_bytes.store(bytes, Relaxed);
            return false;
        }
        let elapsed = now.saturating_sub(self.window_at.load(Relaxed));
        if elapsed < window {
            return false;
        }
        let came = bytes - self.window_bytes.load(Relaxed).min(bytes);
        self.window_at.store(now, Relaxed);
        self.window_bytes.store(bytes, Relaxed);
        (came as f64) < rate as f64 * elapsed as f64 / 1e9
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn clock(phase: Phase, now: Instant) -> Clock {
        Clock::new(phase, now, ConnectionTimeouts { header: Some(10 * SECOND), idle: Some(75 * SECOND) })
    }

    fn closes(clock: &Clock, at: Instant) -> bool {
        matches!(clock.judge(at), Verdict::Close)
    }

    #[test]
    fn a_connection_that_never_sends_a_byte_ends_with_the_header_timeout() {
        let now = Instant::now();
        let clock = clock(Phase::Head, now);
        assert!(!closes(&clock, now + 9 * SECOND));
        assert!(closes(&clock, now + 10 * SECOND));
    }

    #[test]
    fn an_idle_connection_ends_with_the_idle_timeout() {
        let now = Instant::now();
        let clock = clock(Phase::Idle, now);
        assert!(!closes(&clock, now + 74 * SECOND));
        assert!(closes(&clock, now + 75 * SECOND));
    }

    #[test]
    fn the_timeout_runs_from_the_end_of_the_body() {
        let now = Instant::now();
        let clock = clock(Phase::Head, now);
        clock.request_started(now, true);
        clock.route_chosen(now, Some(5 * SECOND), Some(300 * SECOND), None);
        clock.moved(1);
        assert!(matches!(clock.judge(now + 60 * SECOND), Verdict::Wait(_)));
        clock.request_body_ended(now + 60 * SECOND);
        assert!(matches!(clock.judge(now + 64 * SECOND), Verdict::Wait(_)));
        assert!(matches!(clock.judge(now + 65 * SECOND), Verdict::Expire));
        assert_eq!(clock.expired(), Some(Expired::Timeout));
    }

    #[test]
    fn a_span_counts_from_the_end_of_the_body_or_from_its_own_start_whichever_is_later() {
        let now = Instant::now();
        let clock = clock(Phase::Head, now);
        clock.request_started(now, true);
        assert_eq!(clock.after_body(now, SECOND, now + 60 * SECOND), None, "still open");
        clock.request_body_ended(now + 60 * SECOND);
        for later in [60, 61, 600] {
            assert_eq!(clock.after_body(now, SECOND, now + later * SECOND), Some(now + 61 * SECOND));
            assert_eq!(clock.after_body(now + 70 * SECOND, SECOND, now + later * SECOND), Some(now + 71 * SECOND));
        }
    }

    #[test]
    fn a_stalled_body_is_the_clients_fault_only_while_its_bytes_are_awaited() {
        for (awaiting, expected) in [(true, Expired::Client), (false, Expired::Upstream)] {
            let now = Instant::now();
            let clock = clock(Phase::Head, now);
            clock.request_started(now, true);
            clock.route_chosen(now, Some(5 * SECOND), Some(10 * SECOND), None);
            clock.await_client(awaiting);
            clock.moved(10);
            assert!(matches!(clock.judge(now + 5 * SECOND), Verdict::Wait(_)), "bytes moved since");
            assert!(matches!(clock.judge(now + 14 * SECOND), Verdict::Wait(_)));
            assert!(matches!(clock.judge(now + 15 * SECOND), Verdict::Expire));
            assert_eq!(clock.expired(), Some(expected));
        }
    }

    #[test]
    fn a_moving_response_is_never_cut_and_a_still_one_is() {
        let now = Instant::now();
        let clock = clock(Phase::Head, now);
        clock.request_started(now, false);
        clock.route_chosen(now, Some(5 * SECOND), Some(8 * SECOND), None);
        clock.response_started();
        for step in 1..100 {
            clock.moved(1);
            assert!(!closes(&clock, now + step * 7 * SECOND));
        }
        assert!(!closes(&clock, now + (99 * 7 + 7) * SECOND));
        assert!(closes(&clock, now + (99 * 7 + 8) * SECOND));
    }

    #[test]
    fn a_dribbled_body_falls_below_the_least_rate() {
        let now = Instant::now();
        let clock = clock(Phase::Head, now);
        clock.request_started(now, true);
        clock.route_chosen(now, None, Some(300 * SECOND), Some(1024));
        clock.await_client(true);
        clock.body_bytes(20_000);
        clock.moved(20_000);
        assert!(matches!(clock.judge(now + 10 * SECOND), Verdict::Wait(_)), "fast enough so far");
        clock.body_bytes(100);
        clock.moved(100);
        assert!(matches!(clock.judge(now + 20 * SECOND), Verdict::Expire));
        assert_eq!(clock.expired(), Some(Expired::Client));
    }
}
