//! `rate_limit`: how much a caller may ask for.
//!
//! Each limit counts requests by the first of its selectors that a request has, in buckets that live in this process
//! ([`Buckets`]) or in a Redis store that several gateways share ([`Store`]). Local decisions never wait; shared ones are
//! one round trip per step and store, and become local ones when the store does not answer.

mod buckets;
mod compile;
mod fields;
mod gcra;
mod homes;
mod key;
#[cfg(feature = "redis")]
mod lane;
mod pending;
#[cfg(feature = "redis")]
mod redis;
mod registry;
mod single;
#[cfg(feature = "redis")]
mod store;
#[cfg(not(feature = "redis"))]
#[path = "store_off.rs"]
mod store;

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use http::HeaderMap;

pub use buckets::{Buckets, MAX_KEYS};
pub use compile::Step;
pub use homes::Homes;
pub use pending::PendingCheck;
pub use registry::{Registry, Stores};
pub use store::{Store, StoreObserver};

use crate::error::Refusal;
use crate::http::exchange::Exchange;
use crate::http::headers::Ready;
use crate::http::selector::{IpKey, selector_value};
use crate::units::Selector;
use fields::Tally;
use gcra::{Quota, Standing};
use key::{LocalKey, SharedKey};
use single::Single;

/// The limits of one route, in order of evaluation.
#[derive(Clone, Debug)]
pub struct RateLimits(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Those of the first step, then those that name `user`, then those by `global`.
    limits: Vec<Limit>,
    /// How many of them belong to the first step.
    by_address: usize,
    /// `policies[n]`: the field when n + 1 limits were evaluated.
    policies: Vec<Ready>,
    registry: Arc<Registry>,
}

/// One limit, compiled.
#[derive(Debug)]
struct Limit {
    name: Arc<str>,
    /// `"name";r=`
    label: Box<str>,
    /// `"name";q=…;w=…`
    policy: Box<str>,
    by: Vec<Selector>,
    quota: Quota,
    local: Local,
    shared: Option<(Arc<Store>, SharedKey)>,
}

/// Where a limit has its buckets in this process.
#[derive(Clone, Debug)]
enum Local {
    /// In the table that all limits share.
    Keyed(LocalKey),
    /// By `global`: here.
    Single(Arc<Single>),
}

/// What a step of limits says about a request.
#[derive(Debug)]
pub enum Decision {
    /// Allowed, and charged.
    Pass,
    /// 429.
    Refused(Box<Refusal>),
    /// A store has to be asked: await [`PendingCheck::finish`].
    Remote(Box<PendingCheck>),
}

/// A request's bucket under one limit.
#[derive(Clone, Copy, Debug)]
struct Key {
    local: u128,
    shared: u128,
}

impl RateLimits {
    /// The limits that name neither `user` nor `global`; before authentication.
    pub fn check_address(&self, ex: &mut Exchange, headers: &HeaderMap, now: Instant) -> Decision {
        self.check(0..self.0.by_address, ex, headers, now)
    }

    /// The limits that name `user`, then those by `global`; after authentication.
    pub fn check_identity(&self, ex: &mut Exchange, headers: &HeaderMap, now: Instant) -> Decision {
        self.check(self.0.by_address..self.0.limits.len(), ex, headers, now)
    }

    fn check(&self, step: Range<usize>, ex: &mut Exchange, headers: &HeaderMap, now: Instant) -> Decision {
        let inner = &self.0;
        if step.is_empty() {
            return Decision::Pass;
        }
        let nanos = inner.registry.buckets.nanos(now);
        let mut tally = Tally::resume(step.start, ex.rate_fields.as_ref());
        for index in step.clone() {
            let Some(limit) = inner.limits.get(index) else { break };
            let key = limit.key(ex, headers);
            let outcome = match limit.store_to_ask(&tally) {
                Some(store) => match store.denied(key.shared, nanos) {
                    Some(used) => Err(limit.quota.standing(used)),
                    None => {
                        let pending = PendingCheck::new(inner.clone(), index..step.end, tally, ex, headers, nanos);
                        return Decision::Remote(Box::new(pending));
                    }
                },
                None => limit.decide_locally(&inner.registry.buckets, key, nanos),
            };
            match outcome {
                Ok(standing) => tally.add(index, standing),
                Err(standing) => return Decision::Refused(tally.refuse(index, standing, &inner.limits, ex)),
            }
        }
        tally.note(ex);
        Decision::Pass
    }
}

impl Limit {
    /// The request's bucket: the first selector present, and which one it was; none present: its address.
    fn key(&self, ex: &Exchange, headers: &HeaderMap) -> Key {
        if let (Local::Single(_), None) = (&self.local, &self.shared) {
            return Key { local: 0, shared: 0 };
        }
        for (index, selector) in (0_u8..).zip(&self.by) {
            if let Some(value) = selector_value(selector, ex, headers) {
                return self.key_of(index, &value);
            }
        }
        self.key_of(u8::MAX, IpKey::of(ex.client_ip).as_bytes())
    }

    fn key_of(&self, selector: u8, value: &[u8]) -> Key {
        let shared = self.shared.as_ref().map_or(0, |(_, key)| key.of(selector, value));
        let local = match &self.local {
            Local::Keyed(key) => key.of(selector, value),
            Local::Single(_) => 0,
        };
        Key { local, shared }
    }

    /// The store to ask, unless it is down or one has kept this request waiting already.
    fn store_to_ask(&self, tally: &Tally) -> Option<&Arc<Store>> {
        self.shared.as_ref().map(|(store, _)| store).filter(|store| !tally.unanswered && store.is_up())
    }

    /// The quota of a decision in this process: all of it, or this gateway's part of a shared one.
    fn local_quota(&self) -> Quota {
        match &self.shared {
            Some((store, _)) => self.quota.share(store.gateways()),
            None => self.quota,
        }
    }

    /// Decides in this process; `Err` is a refusal.
    fn decide_locally(&self, buckets: &Buckets, key: Key, now: u64) -> Result<Standing, Standing> {
        let quota = self.local_quota();
        let outcome = match &self.local {
            Local::Keyed(_) => quota.decide(buckets, key.local, now),
            Local::Single(bucket) => quota.decide_single(bucket, now),
        };
        // The fields speak about the limit as it is written.
        let written = |standing| Standing { burst: self.quota.burst(), ..standing };
        outcome.map(written).map_err(written)
    }

    /// Whether [`Self::decide_locally`] would refuse; charges nothing.
    fn would_refuse_locally(&self, buckets: &Buckets, key: Key, now: u64) -> bool {
        let tat = match &self.local {
            Local::Keyed(_) => buckets.get(key.local).unwrap_or(0),
            Local::Single(bucket) => bucket.get(),
        };
        self.local_quota().would_refuse(tat, now)
    }
}

#[cfg(test)]
mod tests;
