//! What a worker has seen of verified tokens, in front of the memory that all workers share.
//!
//! To look there takes a lock, and who holds an identity counts a reference to it: with one busy token each request would write two or three
//! cache lines that every other worker writes as well. So a worker keeps copies of its own of the tokens it has seen last.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::jwt::{Digest, Verified};
use crate::http::Identity;

/// Tokens per worker. Each has one place, by its digest: the one that comes last stays.
const PLACES: usize = 256;

thread_local! {
    static SEEN: RefCell<Vec<Option<Seen>>> = const { RefCell::new(Vec::new()) };
}

struct Seen {
    owner: Owner,
    digest: Digest,
    verified: Verified,
}

/// Whose tokens: an authenticator, never the same as one that was before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner(u64);

impl Owner {
    /// Another one.
    pub(super) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Relaxed))
    }

    /// What this thread has seen of a token, if `holds` still.
    pub(super) fn find(self, digest: &Digest, holds: impl Fn(&Verified) -> bool) -> Option<Arc<Identity>> {
        SEEN.with_borrow(|seen| {
            let seen = seen.get(place(digest))?.as_ref()?;
            (seen.owner == self && seen.digest == *digest && holds(&seen.verified)).then(|| Arc::clone(&seen.verified.identity))
        })
    }

    /// Keeps a copy for this thread.
    pub(super) fn keep(self, digest: &Digest, verified: &Verified) -> Arc<Identity> {
        let identity = Arc::new(verified.identity.detached());
        let verified = Verified { identity: Arc::clone(&identity), ..*verified };
        SEEN.with_borrow_mut(|seen| {
            if seen.is_empty() {
                seen.resize_with(PLACES, || None);
            }
            if let Some(place) = seen.get_mut(place(digest)) {
                *place = Some(Seen { owner: self, digest: *digest, verified });
            }
        });
        identity
    }
}

/// A digest is as random as anything.
fn place(digest: &Digest) -> usize {
    let [a, b, ..] = *digest;
    usize::from(u16::from_le_bytes([a, b])) % PLACES
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn verified(user: &str) -> Verified {
        let identity = Identity { user: user.into(), claims: serde_json::Map::new(), scopes: Vec::new(), forward: Vec::new() };
        Verified { identity: Arc::new(identity), until: Instant::now() + Duration::from_secs(1), generation: 7 }
    }

    fn found(owner: Owner, digest: &Digest) -> Option<String> {
        owner.find(digest, |_| true).map(|identity| identity.user.to_string())
    }

    #[test]
    fn a_token_is_found_by_its_owner_and_by_all_of_its_digest() {
        let (owner, other) = (Owner::new(), Owner::new());
        let shared = verified("ann");
        let kept = owner.keep(&[1; 32], &shared);
        assert!(!Arc::ptr_eq(&kept, &shared.identity) && !Arc::ptr_eq(&kept.user, &shared.identity.user), "its own");
        assert_eq!(found(owner, &[1; 32]).as_deref(), Some("ann"));
        assert_eq!(found(other, &[1; 32]), None);
        let mut similar = [1; 32];
        similar[31] = 2;
        assert_eq!(found(owner, &similar), None);
        assert!(owner.find(&[1; 32], |verified| verified.generation == 8).is_none());
    }

    #[test]
    fn of_two_tokens_at_a_place_the_last_stays() {
        let owner = Owner::new();
        let mut similar = [3; 32];
        similar[9] = 4;
        owner.keep(&[3; 32], &verified("ann"));
        owner.keep(&similar, &verified("bob"));
        assert_eq!((found(owner, &[3; 32]), found(owner, &similar).as_deref()), (None, Some("bob")));
    }
}
