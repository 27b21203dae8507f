//! Peak EWMA of a latency: jumps up at once, comes down slowly, fades while nothing is measured.
//!
//! After the peak EWMA of Twitter's Finagle: a slow answer must count immediately, a fast one may be luck.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::clock;

/// Time constant of the decay.
const TAU_NANOS: f32 = 10e9;
/// Resolution of the stored time. 2^32 ticks are 49 days, long after which everything has decayed anyway.
const TICK_NANOS: u64 = 1_000_000;

/// A peak EWMA that many threads update without a lock: seconds as `f32` in the high half, time in milliseconds in the low half.
#[derive(Debug)]
pub struct Ewma(AtomicU64);

impl Ewma {
    /// An average that was `value` at `now`.
    pub fn starting_at(value: Duration, now: Instant) -> Self {
        Self(AtomicU64::new(pack(value.as_secs_f32(), tick(now))))
    }

    /// Takes in one sample: above the average it replaces it, below it `avg = s + (avg − s)·e^(−Δt/10s)`.
    pub fn observe(&self, sample: Duration, now: Instant) {
        let (sample, now) = (sample.as_secs_f32(), tick(now));
        // Nothing new is not written: all workers read this line.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |old| {
            let (average, at) = unpack(old);
            if sample >= average {
                return Some(pack(sample, now));
            }
            // Samples within one tick leave the time as it is, so that their time is not lost to rounding.
            (elapsed(at, now) != 0).then(|| pack(sample + (average - sample) * decay(at, now), now))
        });
    }

    /// The average in seconds, decayed towards zero for the time since the last sample, so that a slow endpoint is tried again.
    pub fn read(&self, now: Instant) -> f32 {
        let (average, at) = unpack(self.0.load(Ordering::Relaxed));
        average * decay(at, tick(now))
    }
}

fn tick(at: Instant) -> u32 {
    // Wraps on purpose: only differences are used.
    (clock::nanos(at) / TICK_NANOS) as u32
}

/// Ticks from `at` to `now`; 0 if another thread's clock reading was a little later.
fn elapsed(at: u32, now: u32) -> u32 {
    let ticks = now.wrapping_sub(at);
    if ticks > u32::MAX / 2 { 0 } else { ticks }
}

fn decay(at: u32, now: u32) -> f32 {
    match elapsed(at, now) {
        0 => 1.0,
        ticks => (-(ticks as f32 * TICK_NANOS as f32) / TAU_NANOS).exp(),
    }
}

fn pack(seconds: f32, tick: u32) -> u64 {
    u64::from(seconds.to_bits()) << 32 | u64::from(tick)
}

fn unpack(packed: u64) -> (f32, u32) {
    (f32::from_bits((packed >> 32) as u32), packed as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f32, b: f32) -> bool {
        (a - b).abs() < 1e-4
    }

    #[test]
    fn a_slower_sample_replaces_the_average_at_once() {
        let now = Instant::now();
        let ewma = Ewma::starting_at(Duration::from_millis(30), now);
        ewma.observe(Duration::from_millis(400), now);
        assert!(close(ewma.read(now), 0.4));
    }

    #[test]
    fn a_faster_sample_moves_it_by_the_time_since_the_last_one() {
        let now = Instant::now();
        let ewma = Ewma::starting_at(Duration::from_secs(1), now);
        let later = now + Duration::from_secs(10);
        ewma.observe(Duration::from_millis(100), later);
        assert!(close(ewma.read(later), 0.1 + 0.9 * (-1.0f32).exp()));
    }

    #[test]
    fn reading_decays_without_samples() {
        let now = Instant::now();
        let ewma = Ewma::starting_at(Duration::from_secs(1), now);
        assert!(close(ewma.read(now + Duration::from_secs(10)), (-1.0f32).exp()));
        assert!(close(ewma.read(now), 1.0), "reading changes nothing");
    }

    #[test]
    fn many_fast_samples_within_one_tick_do_not_stop_time() {
        let now = Instant::now();
        let ewma = Ewma::starting_at(Duration::from_secs(1), now);
        for step in 0..100_000u64 {
            ewma.observe(Duration::ZERO, now + Duration::from_micros(step * 100));
        }
        assert!((ewma.read(now + Duration::from_secs(10)) - (-1.0f32).exp()).abs() < 0.01);
    }
}
