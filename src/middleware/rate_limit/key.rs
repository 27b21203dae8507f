//! From a request to its bucket: which limit, which selector, which value, as one 128-bit hash.

use std::hash::{BuildHasher, Hasher, RandomState};

use aws_lc_rs::digest;

/// Hash keys of this process. Nobody outside can look for values that share a bucket.
#[derive(Clone, Debug, Default)]
pub(crate) struct HashKeys([RandomState; 2]);

/// Makes the keys of one limit's buckets; the limit's identity is already in it.
#[derive(Clone, Debug)]
pub(crate) struct LocalKey([std::hash::DefaultHasher; 2]);

impl LocalKey {
    /// For the limit with this identity.
    pub(crate) fn new(keys: &HashKeys, identity: &str) -> Self {
        Self([0, 1].map(|half: usize| {
            let mut hasher = keys.0[half].build_hasher();
            hasher.write(identity.as_bytes());
            hasher.write_u8(0xff);
            hasher
        }))
    }

    /// The bucket of `value`, found by the selector at `selector`.
    pub(crate) fn of(&self, selector: u8, value: &[u8]) -> u128 {
        let half = |hasher: &std::hash::DefaultHasher| {
            let mut hasher = hasher.clone();
            hasher.write_u8(selector);
            hasher.write(value);
            u128::from(hasher.finish())
        };
        let [low, high] = &self.0;
        half(high) << 64 | half(low)
    }
}

/// The same for buckets in a store: a hash that all gateways agree on, and that nobody can find collisions of.
#[derive(Clone)]
pub(crate) struct SharedKey(digest::Context);

impl std::fmt::Debug for SharedKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SharedKey")
    }
}

impl SharedKey {
    /// For the limit with this identity.
    pub(crate) fn new(identity: &str) -> Self {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(identity.as_bytes());
        context.update(&[0xff]);
        Self(context)
    }

    /// The bucket of `value`, found by the selector at `selector`.
    pub(crate) fn of(&self, selector: u8, value: &[u8]) -> u128 {
        let mut context = self.0.clone();
        context.update(&[selector]);
        context.update(value);
        let hash = context.finish();
        hash.as_ref().iter().take(16).fold(0, |key, byte| key << 8 | u128::from(*byte))
    }
}
