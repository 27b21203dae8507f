//! Instants as numbers, so that they fit into atomics.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// The zero of [`nanos`]: a little before the first use, so that instants shortly before it still order rightly.
static EPOCH: LazyLock<Instant> = LazyLock::new(|| {
    let now = Instant::now();
    now.checked_sub(Duration::from_secs(60)).unwrap_or(now)
});

/// Nanoseconds since a fixed moment of this process, at least 1: 0 is free to mean "never".
pub fn nanos(at: Instant) -> u64 {
    u64::try_from(at.saturating_duration_since(*EPOCH).as_nanos()).unwrap_or(u64::MAX).max(1)
}

/// The instant [`nanos`] was made from.
pub fn instant(nanos: u64) -> Instant {
    *EPOCH + Duration::from_nanos(nanos)
}
