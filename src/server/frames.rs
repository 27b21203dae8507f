//! Follows the frames that an HTTP/2 client sends by their nine-byte heads, to see floods that the protocol's library answers one by one without end.
//!
//! Every frame that costs the gateway more than it costs the sender, or nothing but work, takes from a budget that refills with time: resets
//! (CVE-2023-44487), pings and settings (CVE-2019-9512, -9515), CONTINUATION (CVE-2024-27316), empty frames (CVE-2019-9518), priorities, and new
//! streams however they end. The clock is read only when the budget is spent, so an honest connection pays for an addition per frame.

use std::time::{Duration, Instant};

/// Bytes of the connection preface, before the first frame.
const PREFACE: u32 = 24;
/// What a connection may spend at once, and again each second.
const BUDGET: u64 = 200_000;
/// A new stream: 200,000 a second are more than one connection can carry.
const STREAM: u64 = 1;
/// Control frames: 10,000 a second. Bandwidth probes of gRPC send some thousands.
const CONTROL: u64 = 20;
/// Resets and settings: 1,000 a second.
const HEAVY: u64 = 200;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// Where the frames of a connection are.
#[derive(Debug)]
pub struct Frames {
    /// Bytes to pass before the next frame head.
    skip: u32,
    head: [u8; 9],
    have: usize,
    /// Whether a frame was seen whole: the client speaks HTTP/2 indeed.
    begun: bool,
    /// Whether a header block is unfinished.
    in_head: bool,
    spent: u64,
    since: Instant,
}

impl Frames {
    /// The frames of a connection whose preface is still to be read.
    pub fn new(now: Instant) -> Self {
        Self { skip: PREFACE, head: [0; 9], have: 0, begun: false, in_head: false, spent: 0, since: now }
    }

    /// Whether the client owes the rest of its first frame, or of a header block: then `timeouts.header` runs.
    pub fn owes(&self) -> bool {
        !self.begun || self.in_head || (self.have > 0 && self.head[3] == HEADERS)
    }

    /// Bytes came in. `false` when the connection is flooded and must end.
    pub fn advance(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let passed = bytes.len().min(self.skip as usize);
                self.skip -= u32::try_from(passed).unwrap_or(self.skip);
                bytes = bytes.get(passed..).unwrap_or_default();
                continue;
            }
            let (taken, rest) = bytes.split_at(bytes.len().min(self.head.len() - self.have));
            self.head[self.have..self.have + taken.len()].copy_from_slice(taken);
            self.have += taken.len();
            bytes = rest;
            if self.have == self.head.len() {
                self.have = 0;
                self.frame();
            }
        }
        self.spent <= BUDGET || self.still_affordable(Instant::now())
    }

    fn frame(&mut self) {
        let [a, b, c, kind, flags, ..] = self.head;
        self.skip = u32::from_be_bytes([0, a, b, c]);
        self.begun = true;
        self.spent += match kind {
            DATA if self.skip > 0 || flags & END_STREAM != 0 => 0,
            HEADERS => STREAM,
            WINDOW_UPDATE => STREAM,
            RST_STREAM | SETTINGS => HEAVY,
            _ => CONTROL,
        };
        if kind == HEADERS || kind == CONTINUATION {
            self.in_head = flags & END_HEADERS == 0;
        }
    }

    /// Refills the budget with the time that has passed.
    fn still_affordable(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.since).min(Duration::from_secs(3600));
        let refill = u64::try_from(passed.as_millis()).unwrap_or(0) * (BUDGET / 1000);
        self.spent = self.spent.saturating_sub(refill);
        self.since = now;
        self.spent <= BUDGET
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(length: usize, kind: u8, flags: u8) -> Vec<u8> {
        let mut bytes = u32::try_from(length).unwrap().to_be_bytes()[1..].to_vec();
        bytes.extend_from_slice(&[kind, flags, 0, 0, 0, 1]);
        bytes.resize(9 + length, 0);
        bytes
    }

    fn begun() -> Frames {
        let mut frames = Frames::new(Instant::now());
        assert!(frames.owes());
        assert!(frames.advance(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"));
        assert!(frames.owes());
        assert!(frames.advance(&frame(0, SETTINGS, 0)));
        assert!(!frames.owes());
        frames
    }

    /// How many such frames pass at once.
    fn pass(kind: u8, flags: u8, length: usize) -> usize {
        let (mut frames, one) = (begun(), frame(length, kind, flags));
        let started = Instant::now();
        let passed = (0..250_000).take_while(|_| frames.advance(&one)).count();
        // What refilled while this test ran is not part of the burst.
        assert!(started.elapsed() < Duration::from_secs(20));
        passed
    }

    #[test]
    fn data_and_requests_pass_floods_end() {
        assert_eq!(pass(DATA, 0, 3), 250_000);
        assert_eq!(pass(DATA, END_STREAM, 0), 250_000);
        for (kind, flags, length) in [(RST_STREAM, 0, 4), (SETTINGS, 0, 0), (6, 0, 8), (2, 0, 5), (CONTINUATION, 0, 0), (DATA, 0, 0)] {
            assert!(pass(kind, flags, length) < 250_000, "{kind}");
        }
    }

    #[test]
    fn the_budget_refills_with_time() {
        let mut frames = begun();
        frames.spent = 2 * BUDGET;
        let later = frames.since + Duration::from_millis(900);
        assert!(!frames.still_affordable(later));
        assert!(frames.still_affordable(later + Duration::from_millis(101)));
    }

    #[test]
    fn frames_are_followed_however_they_are_split() {
        let mut all = frame(5, DATA, 0);
        all.extend(frame(7, HEADERS, 0));
        all.extend(frame(3, CONTINUATION, END_HEADERS));
        all.extend(frame(0, 6, 0));
        for size in 1..all.len() {
            let mut frames = begun();
            let before = frames.spent;
            let mut owed = false;
            for piece in all.chunks(size) {
                assert!(frames.advance(piece));
                owed |= frames.owes();
            }
            assert_eq!(frames.spent - before, STREAM + 2 * CONTROL, "{size}");
            assert!(!frames.owes() && (owed || size > 20));
        }
    }
}
