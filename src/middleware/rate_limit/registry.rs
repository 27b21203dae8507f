//! What limits keep over a reload: the buckets, the keys of their hashes, and the connections to stores.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::runtime::Handle;

use super::buckets::Buckets;
use super::compile::once;
use super::key::HashKeys;
use super::single::Singles;
use super::store::{Store, StoreObserver};
use crate::config::server::Redis;
use crate::config::{At, Problems};

/// One per process; every snapshot holds it.
#[derive(Debug, Default)]
pub struct Registry {
    pub(super) buckets: Buckets,
    pub(super) hash_keys: HashKeys,
    pub(super) singles: Singles,
    /// Each has its own connection to a store.
    #[cfg_attr(not(feature = "redis"), expect(dead_code, reason = "no store in this build"))]
    pub(super) workers: usize,
    /// This process among those that share a store.
    #[cfg_attr(not(feature = "redis"), expect(dead_code, reason = "no store in this build"))]
    pub(super) gateway: GatewayId,
    /// Stores that a snapshot holds, by all that identifies them.
    stores: Mutex<Vec<(String, Redis, Weak<Store>)>>,
}

impl Registry {
    /// An empty registry for a gateway with this many workers.
    pub fn new(workers: usize) -> Arc<Self> {
        Arc::new(Self { workers, ..Self::default() })
    }

    /// The table of local buckets.
    pub fn buckets(&self) -> &Buckets {
        &self.buckets
    }
}

/// A random name.
#[derive(Debug)]
pub(super) struct GatewayId(u128);

impl Default for GatewayId {
    fn default() -> Self {
        let random = || u128::from(RandomState::new().hash_one(std::process::id()));
        Self(random() << 64 | random())
    }
}

impl std::fmt::Display for GatewayId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// The stores of one configuration, by name. Holding it keeps their connections.
#[derive(Clone, Debug, Default)]
pub struct Stores {
    /// `None`: defined, but broken; reported at its definition.
    named: BTreeMap<String, Option<Arc<Store>>>,
}

impl Stores {
    /// The stores of `config`: those that run unchanged are taken over, others begin to connect on `control`.
    ///
    /// It never waits and never fails because of a store that cannot be reached; only a wrong URL is a problem.
    /// With `control: None` (checking a file) nothing is started. The control runtime has to stay responsive: a pause
    /// longer than the store's `timeout` counts as a failure of the store.
    pub fn start(
        config: &BTreeMap<String, Redis>,
        registry: &Registry,
        control: Option<&Handle>,
        observer: &StoreObserver,
        problems: &mut Problems,
    ) -> Self {
        let mut running = registry.stores.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|(_, _, store)| store.strong_count() > 0);
        let mut named = BTreeMap::new();
        for (name, redis) in config {
            let same = |old: &Redis| old.url == redis.url && old.timeout == redis.timeout;
            let kept = running.iter().filter(|(old_name, old, _)| old_name == name && same(old)).find_map(|(_, _, store)| store.upgrade());
            let store = match kept {
                Some(store) => Some(store),
                None => {
                    let opened = open(name, redis, registry, control, observer, problems);
                    if let (Some(store), Some(_)) = (&opened, control) {
                        running.push((name.clone(), redis.clone(), Arc::downgrade(store)));
                    }
                    opened
                }
            };
            named.insert(name.clone(), store);
        }
        Self { named }
    }

    /// The store that the limit at `at` names.
    pub(super) fn find(&self, name: &str, at: &At, problems: &mut Problems) -> Option<Arc<Store>> {
        if !cfg!(feature = "redis") {
            once(
                problems,
                at.key("store"),
                "this program was built without redis",
                "leave `store` out: the limit then holds for this process",
            );
            return None;
        }
        match self.named.get(name) {
            Some(store) => store.clone(),
            None => {
                let known: Vec<&str> = self.named.keys().map(String::as_str).collect();
                let help = match known.as_slice() {
                    [] => "define it under `redis:`, like `main: { url: \"redis://127.0.0.1:6379\" }`".to_owned(),
                    known => format!("known under `redis:`: {}", known.join(", ")),
                };
                once(problems, at.key("store"), &format!("no redis store `{name}`"), &help);
                None
            }
        }
    }

    /// Names, and whether each store answers.
    pub fn states(&self) -> impl Iterator<Item = (&str, bool)> {
        self.named.iter().map(|(name, store)| (name.as_str(), store.as_ref().is_some_and(|store| store.is_up())))
    }
}

#[cfg(feature = "redis")]
fn open(
    name: &str,
    redis: &Redis,
    registry: &Registry,
    control: Option<&Handle>,
    observer: &StoreObserver,
    problems: &mut Problems,
) -> Option<Arc<Store>> {
    match Store::open(name, redis, registry, control, observer) {
        Ok(store) => Some(store),
        Err(wrong) => {
            let help = "write redis://HOST:PORT, or rediss:// for TLS; a password goes before the host: redis://:PASSWORD@HOST:PORT";
            once(problems, At::main("redis").key(name).key("url"), wrong, help);
            None
        }
    }
}

#[cfg(not(feature = "redis"))]
fn open(_: &str, _: &Redis, _: &Registry, _: Option<&Handle>, _: &StoreObserver, _: &mut Problems) -> Option<Arc<Store>> {
    // A store that no limit uses does no harm; one that is used is refused in `find`.
    None
}
