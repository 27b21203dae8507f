//! HTTP Basic with bcrypt hashes. Slow on purpose, so it runs on blocking threads, few at a time, and a success is remembered
//! for a minute under a keyed hash.

use std::collections::HashMap;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use quick_cache::sync::Cache;
use serde_json::Map;

use super::chain::{Answer, Outcome};
use super::claims::Forward;
use super::errands::{Errands, Flights};
use super::failure::AuthError;
use super::jwt::Digest;
use crate::http::Identity;

/// How long a success is remembered.
const REMEMBERED_FOR: Duration = Duration::from_secs(60);
/// How many are.
const REMEMBERED: usize = 10_000;
/// bcrypt hashes are this long.
const HASH_LENGTH: usize = 60;
/// Checked for unknown names where the file has no users; of no password.
const NOBODY: &str = "$2b$10$abcdefghijklmnopqrstuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuu";
const BASE64: GeneralPurpose =
    GeneralPurpose::new(&STANDARD, GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent));

/// Whether a password fits a hash: slow on purpose.
type Check = fn(&[u8], &str) -> bool;

/// A compiled `basic` authenticator with its memory.
#[derive(Debug)]
pub(super) struct Basic {
    pub(super) forward: Forward,
    users: Users,
    errands: Arc<Errands>,
    flights: Arc<Flights>,
    /// Made anew in each process: what is remembered is worth nothing outside.
    secret: hmac::Key,
    good: Arc<Cache<Digest, Instant>>,
    check: Check,
}

/// Names and hashes of an htpasswd file.
#[derive(Default)]
pub(super) struct Users {
    by_name: HashMap<String, User>,
    /// The dearest hash: unknown names cost as much.
    dearest: Option<(u32, Arc<str>)>,
}

struct User {
    hash: Arc<str>,
    identity: Arc<Identity>,
}

impl std::fmt::Debug for Users {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Users({})", self.by_name.len())
    }
}

impl Users {
    /// Reads an htpasswd file: all problems, each with its line.
    pub(super) fn parse(content: &[u8], forward: &Forward) -> Result<Self, Vec<String>> {
        let mut users = Self::default();
        let mut problems = Vec::new();
        let Ok(text) = std::str::from_utf8(content) else { return Err(vec!["not UTF-8 text".to_owned()]) };
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Err(message) = users.add(line, forward) {
                problems.push(format!("line {}: {message}", index + 1));
            }
        }
        if problems.is_empty() { Ok(users) } else { Err(problems) }
    }

    fn add(&mut self, line: &str, forward: &Forward) -> Result<(), &'static str> {
        let (name, hash) = line.split_once(':').filter(|(name, _)| !name.is_empty()).ok_or("not `name:hash`")?;
        let is_bcrypt = ["$2a$", "$2b$", "$2y$"].iter().any(|prefix| hash.starts_with(prefix));
        let parts = bcrypt::HashParts::from_str(hash).ok().filter(|_| is_bcrypt && hash.len() == HASH_LENGTH);
        let parts = parts.filter(|parts| (4..=31).contains(&parts.get_cost()));
        let cost = parts.ok_or("not a bcrypt hash: make one with `htpasswd -B`")?.get_cost();
        if self.by_name.contains_key(name) {
            return Err("this name is listed twice");
        }
        let hash: Arc<str> = hash.into();
        if self.dearest.as_ref().is_none_or(|(other, _)| cost > *other) {
            self.dearest = Some((cost, hash.clone()));
        }
        let claims = Map::from_iter([("name".to_owned(), name.into())]);
        let identity = Identity { user: name.into(), scopes: Vec::new(), forward: forward.fields(&claims), claims };
        self.by_name.insert(name.to_owned(), User { hash, identity: Arc::new(identity) });
        Ok(())
    }
}

impl Basic {
    /// An authenticator that remembers nobody yet. `None`: the system gives no random numbers.
    pub(super) fn new(forward: Forward, users: Users, errands: Arc<Errands>) -> Option<Self> {
        let mut secret = [0; 32];
        aws_lc_rs::rand::fill(&mut secret).ok()?;
        // One thread per processor: more would only take time from the workers.
        let slots = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Some(Self {
            forward,
            users,
            errands,
            flights: Flights::new(slots),
            secret: hmac::Key::new(hmac::HMAC_SHA256, &secret),
            good: Arc::new(Cache::new(REMEMBERED)),
            check: |password, hash| bcrypt::verify(password, hash).unwrap_or(false),
        })
    }

    /// Who sent `credential` (base64 of `name:password`).
    pub(super) fn verify(&self, credential: &str) -> Answer {
        let Some((name, password)) = decode(credential) else { return Answer::Now(Err(AuthError::Malformed)) };
        let user = self.users.by_name.get(&name);
        let hash = match (user, &self.users.dearest) {
            (Some(user), _) => user.hash.clone(),
            (None, Some((_, dearest))) => dearest.clone(),
            (None, None) => Arc::from(NOBODY),
        };
        let key = self.key(&hash, &name, &password);
        let outcome = user.map_or(Err(AuthError::Unknown), |user| Ok(user.identity.clone()));
        let good = self.good.clone();
        let known = || good.get(&key).is_some_and(|until| Instant::now() < until).then(|| outcome.clone());
        if let Some(outcome) = known() {
            return Answer::Now(outcome);
        }
        let (memory, result, check) = (self.good.clone(), outcome.clone(), self.check);
        self.flights.join(key, &self.errands, known, async move {
            let check = tokio::task::spawn_blocking(move || check(&password, &hash));
            let fits = check.await.map_err(|_| AuthError::Unavailable)?;
            let outcome: Outcome = if fits { result } else { Err(AuthError::Unknown) };
            if outcome.is_ok() {
                memory.insert(key, Instant::now() + REMEMBERED_FOR);
            }
            outcome
        })
    }

    /// A keyed hash of everything the result depends on.
    fn key(&self, hash: &str, name: &str, password: &[u8]) -> Digest {
        let mut context = hmac::Context::with_key(&self.secret);
        for part in [hash.as_bytes(), name.as_bytes(), password] {
            context.update(&part.len().to_le_bytes());
            context.update(part);
        }
        let mut out = Digest::default();
        out.iter_mut().zip(context.sign().as_ref()).for_each(|(to, from)| *to = *from);
        out
    }
}

fn decode(credential: &str) -> Option<(String, Vec<u8>)> {
    let bytes = BASE64.decode(credential).ok()?;
    let colon = bytes.iter().position(|b| *b == b':')?;
    let (name, password) = bytes.split_at(colon);
    Some((String::from_utf8(name.to_vec()).ok()?, password.get(1..)?.to_vec()))
}

/// The challenge for a realm; `None` if the realm cannot stand in a header.
pub(super) fn challenge(realm: &str) -> Option<String> {
    if realm.chars().any(char::is_control) {
        return None;
    }
    Some(format!(r#"Basic realm="{}", charset="UTF-8""#, realm.replace('\\', "\\\\").replace('"', "\\\"")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bcrypt_hashes_are_read_and_each_wrong_line_is_named() {
        let hash = bcrypt::hash("pw", 4).unwrap();
        let file = format!(
            "# staff\n\nann:{hash}\nbob:$apr1$x$y\ncyd:{{SHA}}abc\nann:{hash}\nnocolon\n:{hash}\ndan:{}\r\neve:$2y$99${}\n",
            hash.replace("$2b$", "$2y$"),
            &hash[7..]
        );
        let problems = Users::parse(file.as_bytes(), &Forward::default()).unwrap_err();
        let lines: Vec<&str> = problems.iter().map(|p| p.split(':').next().unwrap()).collect();
        assert_eq!(lines, ["line 4", "line 5", "line 6", "line 7", "line 8", "line 10"]);
        assert!(problems.iter().all(|p| !p.contains(&hash[10..20])));
        let users = Users::parse(format!("ann:{hash}\n").as_bytes(), &Forward::default()).unwrap();
        assert_eq!(format!("{users:?}"), "Users(1)");
    }

    /// What was checked by [`noted`], by password: tests use passwords of their own.
    static CHECKED: std::sync::Mutex<Vec<(Vec<u8>, u32)>> = std::sync::Mutex::new(Vec::new());

    fn noted(password: &[u8], hash: &str) -> bool {
        let cost = bcrypt::HashParts::from_str(hash).unwrap().get_cost();
        CHECKED.lock().unwrap().push((password.to_vec(), cost));
        password == b"right"
    }

    #[tokio::test]
    async fn an_unknown_name_takes_the_path_of_a_wrong_password() {
        struct Nobody;
        impl super::super::Observer for Nobody {
            fn jwks_fetched(&self, _: &str, _: &'static str, _: Option<&str>) {}
            fn introspection_failed(&self, _: &str, _: &str) {}
        }
        let errands = Arc::new(Errands::default());
        let observer: Arc<dyn super::super::Observer> = Arc::new(Nobody);
        errands.start(&tokio::runtime::Handle::current(), &observer);
        let hash = |cost| bcrypt::hash("other", cost).unwrap();
        let file = format!("ann:{}\nbob:{}\n", hash(5), hash(4));
        let users = Users::parse(file.as_bytes(), &Forward::default()).unwrap();
        let basic = Basic { check: noted, ..Basic::new(Forward::default(), users, errands.clone()).unwrap() };
        let empty = Basic { check: noted, ..Basic::new(Forward::default(), Users::default(), errands).unwrap() };
        let ask = async |basic: &Basic, name: &str, password: &str| {
            let credential = base64::engine::general_purpose::STANDARD.encode(format!("{name}:{password}"));
            match basic.verify(&credential) {
                Answer::Remembered(_) | Answer::Now(_) | Answer::Keys(_) => panic!("not checked at all"),
                Answer::Later(outcome) => outcome.await.unwrap().map(|identity| identity.user.to_string()),
            }
        };
        for (basic, name, password, cost) in
            [(&basic, "ann", "wrong-1", 5), (&basic, "eve", "wrong-2", 5), (&basic, "", "wrong-3", 5), (&empty, "ann", "wrong-4", 10)]
        {
            assert!(matches!(ask(basic, name, password).await, Err(AuthError::Unknown)), "{name}");
            let checked = CHECKED.lock().unwrap();
            let costs: Vec<u32> = checked.iter().filter(|(other, _)| other == password.as_bytes()).map(|(_, cost)| *cost).collect();
            assert_eq!(costs, [cost], "{name}: one hash, as dear as the dearest");
        }
        // A hash that fits helps nobody whose name is not there.
        assert!(matches!(ask(&basic, "eve", "right").await, Err(AuthError::Unknown)));
        assert_eq!(ask(&basic, "ann", "right").await.unwrap(), "ann");
    }

    #[test]
    fn the_hash_for_unknown_names_is_a_real_one() {
        assert!(bcrypt::HashParts::from_str(NOBODY).is_ok_and(|parts| parts.get_cost() == 10));
        assert_eq!(bcrypt::verify("", &NOBODY.replace("$10$", "$04$")).ok(), Some(false));
    }

    #[test]
    fn credentials_are_split_at_the_first_colon() {
        let encode = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
        assert_eq!(decode(&encode(b"a:b:c")), Some(("a".into(), b"b:c".to_vec())));
        assert_eq!(decode(encode(b"a:bc").trim_end_matches('=')), Some(("a".into(), b"bc".to_vec())));
        for wrong in [encode(b"nocolon"), "!!".into(), encode(b"\xff:x")] {
            assert_eq!(decode(&wrong), None);
        }
    }

    #[test]
    fn a_realm_is_quoted() {
        assert_eq!(challenge("staff").as_deref(), Some(r#"Basic realm="staff", charset="UTF-8""#));
        assert_eq!(challenge(r#"a"b\"#).as_deref(), Some(r#"Basic realm="a\"b\\", charset="UTF-8""#));
        assert_eq!(challenge("a\nb"), None);
    }
}
