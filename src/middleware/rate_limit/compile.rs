//! From limits as written to limits that run.

use std::sync::Arc;

use super::fields::{policies, quoted};
use super::gcra::Quota;
use super::homes::Homes;
use super::key::{LocalKey, SharedKey};
use super::registry::{Registry, Stores};
use super::store::Store;
use super::{Inner, Limit, Local, RateLimits};
use crate::config::route::RateLimit;
use crate::config::{At, Problems};
use crate::units::Selector;

/// Longest name of a limit, quoted: the field is written into a buffer on the stack.
const LONGEST_NAME: usize = 256;

impl RateLimits {
    /// Compiles a route's limits, given in written order: defaults, groups from the outside, the route's own.
    ///
    /// `None` if there are none, or if one of them is wrong; each problem is reported once, however many routes inherit it.
    pub fn compile(
        limits: &[(RateLimit, At)],
        homes: &Homes,
        stores: &Stores,
        registry: &Arc<Registry>,
        problems: &mut Problems,
    ) -> Option<Self> {
        let names = names(limits);
        let compiled: Vec<Option<(Step, Limit)>> = limits
            .iter()
            .zip(names)
            .map(|((limit, at), name)| {
                let limit = Limit::compile(limit, at, name, homes, stores, registry, problems);
                limit.map(|limit| (Step::of(&limit.by), limit))
            })
            .collect();
        let mut compiled: Vec<(Step, Limit)> = compiled.into_iter().collect::<Option<_>>()?;
        if compiled.is_empty() {
            return None;
        }
        // Stable: inside a step the written order stays.
        compiled.sort_by_key(|(step, _)| *step);
        let by_address = compiled.iter().take_while(|(step, _)| *step == Step::Address).count();
        let limits: Vec<Limit> = compiled.into_iter().map(|(_, limit)| limit).collect();
        let policies = policies(&limits);
        Some(Self(Arc::new(Inner { limits, by_address, policies, registry: registry.clone() })))
    }
}

/// When a limit is evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Before authentication.
    Address,
    /// After it: names `user`.
    User,
    /// Last, so that refused requests do not eat the shared quota.
    Global,
}

impl Step {
    /// That of a limit by these selectors.
    pub fn of(by: &[Selector]) -> Self {
        if by.contains(&Selector::User) {
            Self::User
        } else if by.contains(&Selector::Global) {
            Self::Global
        } else {
            Self::Address
        }
    }
}

/// Names in written order; a name that is there already gets `-2`, `-3`, ….
fn names(limits: &[(RateLimit, At)]) -> Vec<String> {
    let mut names: Vec<String> = Vec::with_capacity(limits.len());
    for (limit, _) in limits {
        let name = limit.name.clone().unwrap_or_else(|| selectors(&limit.by.0, "|"));
        let free = std::iter::once(name.clone()).chain((2..).map(|n| format!("{name}-{n}"))).find(|name| !names.contains(name));
        names.extend(free);
    }
    names
}

fn selectors(by: &[Selector], between: &str) -> String {
    by.iter().map(Selector::to_string).collect::<Vec<_>>().join(between)
}

impl Limit {
    fn compile(
        limit: &RateLimit,
        at: &At,
        name: String,
        homes: &Homes,
        stores: &Stores,
        registry: &Registry,
        problems: &mut Problems,
    ) -> Option<Self> {
        let before = problems.list().len();
        let burst = limit.burst.unwrap_or(limit.rate.count);
        let quota = Quota::new(limit.rate, burst);
        if let Err(wrong) = &quota {
            let key = if limit.burst.is_some() { "burst" } else { "rate" };
            once(problems, at.key(key), wrong, "leave `burst` out for the rate's number");
        }
        if limit.by.0.is_empty() {
            once(problems, at.key("by"), "no selector: what should be counted?", "write one, like `ip`, or a list of them");
        }
        if limit.by.0.len() >= usize::from(u8::MAX) {
            once(problems, at.key("by"), "more than 254 selectors", "name the few that identify a caller");
        }
        if limit.name.as_ref().is_some_and(|name| name.is_empty() || !name.bytes().all(|b| (b' '..=b'~').contains(&b))) {
            let wrong = "a limit's name goes into a header field: it must be printable ASCII and not empty";
            once(problems, at.key("name"), wrong, "write a short word like `per-user`");
        }
        let too_long = quoted(&name).len() > LONGEST_NAME;
        if too_long {
            let wrong = format!("the name of this limit is longer than {LONGEST_NAME} characters");
            once(problems, at.key("name"), &wrong, "write a short `name`; without one it is the selectors joined by `|`");
        }
        let store = match &limit.store {
            Some(store) => stores.find(store, at, problems),
            None => None,
        };
        let identity = format!(
            "{} by {} rate {} burst {burst} store {}",
            homes.identity(at),
            selectors(&limit.by.0, " "),
            limit.rate,
            limit.store.as_deref().unwrap_or("-")
        );
        // An unknown or broken store was reported, here or where it is defined.
        if problems.list().iter().skip(before).any(|p| p.severity == crate::config::problem::Severity::Error)
            || (limit.store.is_some() && store.is_none())
            || limit.by.0.is_empty()
            || too_long
        {
            return None;
        }
        Some(Self::new(name, limit, quota.ok()?, &identity, store, registry))
    }

    fn new(name: String, limit: &RateLimit, quota: Quota, identity: &str, store: Option<Arc<Store>>, registry: &Registry) -> Self {
        let burst = quota.burst();
        let window = (u128::from(burst) * limit.rate.per.as_nanos()).div_ceil(u128::from(limit.rate.count.max(1)) * 1_000_000_000);
        let quoted = quoted(&name);
        // `global` is always there: what stands behind it is never read.
        let local = match limit.by.0.first() {
            Some(Selector::Global) => Local::Single(registry.singles.of(identity)),
            _ => Local::Keyed(LocalKey::new(&registry.hash_keys, identity)),
        };
        Self {
            label: format!("{quoted};r=").into(),
            policy: format!("{quoted};q={burst};w={window}").into(),
            name: name.into(),
            by: limit.by.0.clone(),
            quota,
            local,
            shared: store.map(|store| (store, SharedKey::new(identity))),
        }
    }
}

/// Reports an error unless the same one is there: a limit is compiled once for each route that inherits it.
pub(super) fn once(problems: &mut Problems, at: At, message: &str, help: &str) {
    if !problems.list().iter().any(|problem| problem.at == at && problem.message == message) {
        problems.error(at, message).help(help);
    }
}
