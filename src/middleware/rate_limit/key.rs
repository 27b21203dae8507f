//! From a request to its bucket: which limit, which selector, which value, as one 128-bit hash.
//!
//! Local keys are XXH3 with 192 secret bytes of this process: 3 ns for an address and 7 for a user's id, where two SipHash-1-3 take 16
//! and 43, and ten times that for a long header.
//! XXH3 is no pseudo-random function, and nobody has shown that one without the secret cannot find two values that collide. What
//! that would buy is little: hashes never leave the process, so all there is to go by is how much a bucket has left; who finds a
//! value that shares a bucket with somebody else's can use up that one bucket, once for each key they guess in a space of 2^128. A
//! crowded part of the map is bounded, and what it then forgets are buckets that are nearly full. Keys in a store are SHA-256, since
//! all gateways must agree on them and so they cannot be secret.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use aws_lc_rs::digest;
use xxhash_rust::xxh3::xxh3_128_with_secret;

/// The secret of this process.
#[derive(Clone)]
pub(crate) struct HashKeys(Arc<[u8; 192]>);

impl Default for HashKeys {
    fn default() -> Self {
        // SipHash under a random key of 128 bits, as a stream.
        let random = RandomState::new();
        let mut secret = [0; 192];
        for (index, bytes) in secret.chunks_exact_mut(8).enumerate() {
            bytes.copy_from_slice(&random.hash_one(index).to_le_bytes());
        }
        Self(Arc::new(secret))
    }
}

impl std::fmt::Debug for HashKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HashKeys")
    }
}

/// Makes the keys of one limit's buckets.
#[derive(Clone, Debug)]
pub(crate) struct LocalKey {
    secret: HashKeys,
    /// Hash of the limit's identity.
    limit: u128,
}

/// Odd, so that each selector of a limit has its own multiple: the fraction of the golden ratio in 128 bits.
const STEP: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835;

impl LocalKey {
    /// For the limit with this identity.
    pub(crate) fn new(keys: &HashKeys, identity: &str) -> Self {
        Self { secret: keys.clone(), limit: xxh3_128_with_secret(identity.as_bytes(), &*keys.0) }
    }

    /// The bucket of `value`, found by the selector at `selector`.
    pub(crate) fn of(&self, selector: u8, value: &[u8]) -> u128 {
        let place = self.limit.wrapping_add(STEP.wrapping_mul(u128::from(selector)));
        xxh3_128_with_secret(value, &*self.secret.0) ^ place
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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn limits_selectors_and_values_have_buckets_of_their_own() {
        let keys = HashKeys::default();
        let limits: Vec<LocalKey> =
            ["a", "b", "", "a much longer identity of a limit"].iter().map(|name| LocalKey::new(&keys, name)).collect();
        let mut seen = HashSet::new();
        for limit in &limits {
            for selector in [0, 1, 2, u8::MAX] {
                for n in 0..1_000_u32 {
                    assert!(seen.insert(limit.of(selector, &n.to_le_bytes())));
                }
                assert!(seen.insert(limit.of(selector, b"")) && seen.insert(limit.of(selector, &[0; 300])));
            }
        }
    }

    #[test]
    fn a_process_has_its_own_keys_and_keeps_them() {
        let (keys, other) = (HashKeys::default(), HashKeys::default());
        let of = |keys| LocalKey::new(keys, "limit").of(0, b"value");
        let same = keys.clone();
        assert_eq!(of(&keys), of(&same));
        assert_ne!(of(&keys), of(&other));
    }

    #[test]
    fn keys_spread_evenly_over_the_partitions() {
        let limit = LocalKey::new(&HashKeys::default(), "limit");
        let mut counts = [0_u32; 64];
        for n in 0..64_000_u32 {
            counts[(limit.of(0, &n.to_be_bytes()) >> 64) as usize % 64] += 1;
        }
        assert!(counts.iter().all(|count| (800..1_200).contains(count)), "{counts:?}");
    }
}
