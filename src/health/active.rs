//! Active checks: what a row of results means, and how one check is made.

use std::hash::{Hash, Hasher};

/// What active checks found about an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Verdict {
    /// No check has ended yet.
    Unchecked = 0,
    /// In.
    Healthy = 1,
    /// Out.
    Unhealthy = 2,
}

impl Verdict {
    /// The inverse of `as u8`.
    pub fn from_code(code: u8) -> Self {
        match code {
            1 => Self::Healthy,
            2 => Self::Unhealthy,
            _ => Self::Unchecked,
        }
    }
}

/// Results in a row that speak against the verdict.
#[derive(Debug, Default)]
pub struct Counts {
    against: u32,
    /// Hash of the `health` block they were counted under.
    fingerprint: Option<u64>,
}

impl Counts {
    /// Starts anew if the block is another one than before.
    pub fn adopt(&mut self, fingerprint: u64) {
        if self.fingerprint != Some(fingerprint) {
            *self = Self { against: 0, fingerprint: Some(fingerprint) };
        }
    }

    /// Counts one result; returns the verdict that follows. The first result decides at once,
    /// later ones need `healthy` passes or `unhealthy` failures in a row.
    pub fn count(&mut self, verdict: Verdict, passed: bool, healthy: u32, unhealthy: u32) -> Verdict {
        let (confirms, needed, opposite) = match verdict {
            Verdict::Unchecked => (false, 1, if passed { Verdict::Healthy } else { Verdict::Unhealthy }),
            Verdict::Healthy => (passed, unhealthy, Verdict::Unhealthy),
            Verdict::Unhealthy => (!passed, healthy, Verdict::Healthy),
        };
        if confirms {
            self.against = 0;
            return verdict;
        }
        self.against = self.against.saturating_add(1);
        if self.against < needed {
            return verdict;
        }
        self.against = 0;
        opposite
    }
}

/// Hash of a `health` block, to see whether a reload changed it.
pub fn fingerprint(health: &crate::config::upstream::Health) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    format!("{health:?}").hash(&mut hasher);
    hasher.finish()
}
