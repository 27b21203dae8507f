//! API keys, known by their SHA-256 only.

use std::sync::Arc;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use serde_json::{Map, Value};

use super::chain::Outcome;
use super::claims::Forward;
use super::failure::AuthError;
use super::jwt::Digest;
use crate::config::auth::Key;
use crate::http::Identity;

/// The keys of one authenticator.
#[derive(Debug, Default)]
pub(super) struct ApiKeys {
    pub(super) forward: Forward,
    entries: Vec<Entry>,
}

struct Entry {
    hash: Digest,
    /// The first second (since 1970) in which it is not valid any more.
    expires: Option<f64>,
    identity: Arc<Identity>,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry").field("id", &self.identity.user).finish_non_exhaustive()
    }
}

impl ApiKeys {
    /// No keys yet.
    pub(super) fn new(forward: Forward) -> Self {
        Self { forward, entries: Vec::new() }
    }

    /// Adds a key.
    ///
    /// # Errors
    /// The member that is wrong, and what would be right; never a hash.
    pub(super) fn add(&mut self, key: &Key) -> Result<(), (&'static str, String)> {
        if key.id.is_empty() {
            return Err(("id", "`id` is empty".to_owned()));
        }
        let hash = from_hex(key.sha256.expose()).ok_or(("sha256", "`sha256` is not 64 hexadecimal digits".to_owned()))?;
        if let Some(other) = self.entries.iter().find(|entry| entry.hash == hash) {
            return Err(("sha256", format!("the key of `{}` is already listed for `{}`", key.id, other.identity.user)));
        }
        let expires = key.expires.as_deref().map(end_of_day).transpose().map_err(|message| ("expires", message))?;
        let claims: Map<String, Value> =
            Map::from_iter([("id".to_owned(), key.id.clone().into()), ("scope".to_owned(), key.scopes.join(" ").into())]);
        let identity = Identity { user: key.id.as_str().into(), scopes: key.scopes.clone(), forward: self.forward.fields(&claims), claims };
        self.entries.push(Entry { hash, expires, identity: Arc::new(identity) });
        Ok(())
    }

    /// How many keys there are.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whose key has this digest. The same work for every digest: how long it takes says nothing about the entries.
    pub(super) fn verify(&self, digest: &Digest, unix: f64) -> Outcome {
        let mut found = None;
        for entry in &self.entries {
            if verify_slices_are_equal(&entry.hash, digest).is_ok() {
                found = Some(entry);
            }
        }
        let entry = found.ok_or(AuthError::Unknown)?;
        if entry.expires.is_some_and(|end| unix >= end) { Err(AuthError::Expired) } else { Ok(entry.identity.clone()) }
    }
}

fn from_hex(text: &str) -> Option<Digest> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut out = Digest::default();
    for (byte, pair) in out.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let pair = std::str::from_utf8(pair).ok()?;
        // `from_str_radix` would take a sign.
        *byte = u8::from_str_radix(pair, 16).ok().filter(|_| pair.bytes().all(|b| b.is_ascii_hexdigit()))?;
    }
    Some(out)
}

/// The second after the last of a day such as `2027-12-31` (UTC), since 1970.
pub(super) fn end_of_day(text: &str) -> Result<f64, String> {
    let wrong = || format!("`{text}` is not a date: write it like 2027-12-31");
    let parts: Vec<&str> = text.split('-').collect();
    let [year, month, day] = parts.as_slice() else { return Err(wrong()) };
    let number = |part: &str, length: usize| -> Option<i64> {
        part.parse().ok().filter(|_| part.len() == length && part.bytes().all(|b| b.is_ascii_digit()))
    };
    let (Some(year), Some(month), Some(day)) = (number(year, 4), number(month, 2), number(day, 2)) else { return Err(wrong()) };
    let leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    let days = match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        _ => return Err(wrong()),
    };
    if !(1..=days).contains(&day) {
        return Err(wrong());
    }
    // Days since 1970 of the proleptic Gregorian calendar: years counted from March, so that the leap day comes last.
    let (years, months) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let since_march = (153 * months + 2) / 5 + day - 1;
    let days = years * 365 + years.div_euclid(4) - years.div_euclid(100) + years.div_euclid(400) + since_march - 719_468;
    // Far below the point where f64 stops counting seconds.
    #[expect(clippy::cast_precision_loss, reason = "years have four digits")]
    Ok(((days + 1) * 86_400) as f64)
}

#[cfg(test)]
mod tests {
    use super::super::jwt::digest;
    use super::*;
    use crate::units::Secret;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }
    fn key(id: &str, secret: &str, expires: Option<&str>) -> Key {
        Key {
            id: id.into(),
            sha256: Secret::new(hex(&digest(secret.as_bytes()))),
            scopes: vec!["a".into()],
            expires: expires.map(str::to_owned),
        }
    }

    #[test]
    fn a_day_ends_at_midnight_utc() {
        for (day, end) in [
            ("1970-01-01", 86_400.0),
            ("2000-02-29", 951_868_800.0),
            ("2027-12-31", 1_830_297_600.0),
            ("2026-02-28", 1_772_323_200.0),
            ("2100-02-28", 4_107_542_400.0),
        ] {
            assert_eq!(end_of_day(day), Ok(end), "{day}");
        }
        for wrong in
            ["2026-02-29", "2100-02-29", "2026-13-01", "2026-00-10", "2026-1-1", "tomorrow", "2026-12-32", "+026-01-01", "", "2026-12"]
        {
            assert!(end_of_day(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_key_is_known_by_its_whole_hash_until_its_last_day_ends() {
        let mut keys = ApiKeys::default();
        keys.add(&key("old", "k1", Some("2026-01-31"))).unwrap();
        keys.add(&key("acme", "k2", None)).unwrap();
        keys.add(&key("acme", "k3", None)).unwrap();
        let end = end_of_day("2026-01-31").unwrap();
        let user = |secret: &str, now: f64| keys.verify(&digest(secret.as_bytes()), now).map(|identity| identity.user.to_string());
        assert_eq!(user("k1", end - 1.0), Ok("old".into()));
        assert_eq!(user("k1", end), Err(AuthError::Expired));
        assert_eq!(user("k2", end), Ok("acme".into()));
        assert_eq!(user("k3", end), Ok("acme".into()));
        assert_eq!(user("k", end), Err(AuthError::Unknown));
    }

    #[test]
    fn equal_hashes_and_wrong_entries_are_refused_without_showing_a_hash() {
        let mut keys = ApiKeys::default();
        keys.add(&key("a", "k", None)).unwrap();
        let upper = Key { sha256: Secret::new(hex(&digest(b"k")).to_uppercase()), ..key("b", "k", None) };
        for (wrong, member) in [
            (key("b", "k", None), "sha256"),
            (upper, "sha256"),
            (Key { sha256: Secret::new("ab"), ..key("c", "x", None) }, "sha256"),
            (Key { sha256: Secret::new("+f".repeat(32)), ..key("c", "x", None) }, "sha256"),
            (key("", "y", None), "id"),
            (key("d", "z", Some("soon")), "expires"),
        ] {
            let (what, message) = keys.add(&wrong).unwrap_err();
            assert_eq!(what, member);
            assert!(!message.contains(&hex(&digest(b"k"))[..8]));
        }
        assert_eq!(keys.len(), 1);
        assert!(!format!("{keys:?}").contains(&hex(&digest(b"k"))[..8]));
    }
}
