//! Shared stores in a build without the feature `redis`: there is none, and the configuration may name none.

use std::sync::Arc;
use std::time::Duration;

use super::gcra::Quota;

/// Told a store's name and whether it answers, at each change.
pub type StoreObserver = Arc<dyn Fn(&str, bool) + Send + Sync>;

/// A store that several gateways share; none in this build.
#[derive(Debug)]
pub enum Store {}

/// One bucket to decide.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    #[expect(dead_code, reason = "no store in this build")]
    pub(super) key: u128,
    #[expect(dead_code, reason = "no store in this build")]
    pub(super) quota: Quota,
}

/// What the store said.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer {
    pub(super) allowed: bool,
    pub(super) used: u64,
}

impl Store {
    pub(super) fn is_up(&self) -> bool {
        match *self {}
    }
    pub(super) fn gateways(&self) -> u32 {
        match *self {}
    }
    pub(super) fn denied(&self, _: u128, _: u64) -> Option<u64> {
        match *self {}
    }
    pub(super) fn deny(&self, _: u128, _: u64, _: u64, _: Duration) {
        match *self {}
    }
    pub(super) async fn check(&self, _: usize, _: &[Call]) -> Option<Vec<Answer>> {
        match *self {}
    }
}
