//! A step of limits that a store has to be asked about: awaited by the request that waits for it.

use std::ops::Range;
use std::sync::Arc;

use http::HeaderMap;

use super::fields::Tally;
use super::gcra::Standing;
use super::store::{Answer, Call, Store};
use super::{Inner, Key, Limit};
use crate::error::Refusal;
use crate::http::exchange::Exchange;

/// The rest of a step, from the first limit whose store is asked.
#[derive(Debug)]
pub struct PendingCheck {
    inner: Arc<Inner>,
    step: Range<usize>,
    /// Buckets of the limits in `step`.
    keys: Vec<Key>,
    tally: Tally,
    now: u64,
    /// The worker that asks.
    worker: usize,
}

/// Limits that are decided together: those of one store in one round trip, and the local ones between them.
struct Batch {
    calls: Vec<Call>,
    /// The limits that `calls` stand for.
    asked: Vec<usize>,
    /// The limit after the last one that belongs to it.
    end: usize,
}

impl PendingCheck {
    pub(super) fn new(inner: Arc<Inner>, step: Range<usize>, tally: Tally, ex: &Exchange, headers: &HeaderMap, now: u64) -> Self {
        let keys = inner.limits.iter().take(step.end).skip(step.start).map(|limit| limit.key(ex, headers)).collect();
        Self { inner, step, keys, tally, now, worker: ex.worker }
    }

    /// Asks, charges, and notes the fields; `Err` is the answer to send.
    pub async fn finish(mut self, ex: &mut Exchange) -> Result<(), Box<Refusal>> {
        let inner = self.inner.clone();
        let mut next = self.step.start;
        while next < self.step.end {
            let outcome = match self.ask(next).await {
                Ok(end) => {
                    next = end;
                    continue;
                }
                Err(refused) => refused,
            };
            let (index, standing) = outcome;
            return Err(self.tally.refuse(index, standing, &inner.limits, ex));
        }
        self.tally.note(ex);
        Ok(())
    }

    /// Decides the limits from `first` on, as far as one round trip goes. `Err` is the limit that refuses.
    async fn ask(&mut self, first: usize) -> Result<usize, (usize, Standing)> {
        let inner = self.inner.clone();
        let Some(limit) = inner.limits.get(first) else { return Ok(self.step.end) };
        let Some(store) = limit.store_to_ask(&self.tally) else {
            self.count(first, limit.decide_locally(&inner.registry.buckets, self.key(first), self.now))?;
            return Ok(first + 1);
        };
        if let Some(used) = store.denied(self.key(first).shared, self.now) {
            return Err((first, limit.quota.standing(used)));
        }
        let batch = self.batch(first, store);
        let answers = store.check(self.worker, &batch.calls).await;
        self.tally.unanswered = answers.is_none();
        let mut answers = answers.unwrap_or_default().into_iter();
        let mut asked = batch.asked.into_iter().peekable();
        for index in first..batch.end {
            let Some(limit) = inner.limits.get(index) else { break };
            let answer = asked.next_if_eq(&index).and_then(|_| answers.next());
            let outcome = match answer {
                Some(answer) => self.outcome(limit, store, index, answer),
                // A limit of this process, or one whose store did not answer.
                None => limit.decide_locally(&inner.registry.buckets, self.key(index), self.now),
            };
            self.count(index, outcome)?;
        }
        Ok(batch.end)
    }

    /// As many limits as can be decided without charging one that stands behind a refusal: up to the first that is
    /// known to refuse, or that asks another store.
    fn batch(&self, first: usize, store: &Arc<Store>) -> Batch {
        let mut batch = Batch {
            calls: Vec::with_capacity(self.step.end - first),
            asked: Vec::with_capacity(self.step.end - first),
            end: self.step.end,
        };
        for index in first..self.step.end {
            let Some(limit) = self.inner.limits.get(index) else { break };
            let key = self.key(index);
            let ends = match limit.store_to_ask(&self.tally) {
                Some(own) if Arc::ptr_eq(own, store) => {
                    let denied = store.denied(key.shared, self.now).is_some();
                    if !denied {
                        batch.calls.push(Call { key: key.shared, quota: limit.quota });
                        batch.asked.push(index);
                    }
                    denied
                }
                Some(_) => true,
                None => limit.would_refuse_locally(&self.inner.registry.buckets, key, self.now),
            };
            if ends {
                batch.end = index;
                break;
            }
        }
        batch
    }

    fn outcome(&self, limit: &Limit, store: &Store, index: usize, answer: Answer) -> Result<Standing, Standing> {
        let standing = limit.quota.standing(answer.used);
        if answer.allowed {
            return Ok(standing);
        }
        store.deny(self.key(index).shared, self.now, answer.used, standing.wait);
        Err(standing)
    }

    fn count(&mut self, index: usize, outcome: Result<Standing, Standing>) -> Result<(), (usize, Standing)> {
        match outcome {
            Ok(standing) => {
                self.tally.add(index, standing);
                Ok(())
            }
            Err(standing) => Err((index, standing)),
        }
    }

    fn key(&self, index: usize) -> Key {
        self.keys.get(index - self.step.start).copied().unwrap_or(Key { local: 0, shared: 0 })
    }
}
