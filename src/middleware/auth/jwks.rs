//! Keys fetched from an issuer: at load, when their time is over, and when a token names one that is not there.
//!
//! Workers read the keys and ask for a refetch; one task on the control runtime fetches. Random key names must not flood
//! the issuer, and an outage must not look like a bad token.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL};
use http::{HeaderMap, Request, Uri};
use http_body_util::Full;
use jsonwebtoken::Algorithm;
use tokio::sync::{Notify, watch};

use super::Observer;
use super::jwt::{Digest, digest};
use super::keys::KeySet;
use crate::http::fetch::{ClientTls, Limits, fetch};

/// Bounds on how long a set is used before it is fetched again.
const REFRESH: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(900));
/// At most one refetch for unknown names in this time.
const UNKNOWN_EVERY: Duration = Duration::from_secs(30);
/// Old keys serve this long after the last success.
const STALE: Duration = Duration::from_secs(24 * 3600);
/// Waits after failures: 1 s, doubled, at most this.
const BACKOFF: Duration = Duration::from_secs(60);
/// A fetch may take 5 s and answer 1 MiB.
const LIMITS: Limits = Limits { timeout: Duration::from_secs(5), max_body: 1 << 20 };

/// The keys behind one URL.
#[derive(Debug)]
pub(super) struct Jwks {
    url: Uri,
    algorithms: Vec<Algorithm>,
    current: ArcSwapOption<Current>,
    generation: AtomicU64,
    state: std::sync::Mutex<State>,
    /// A worker wants a refetch.
    wanted: Notify,
    /// Counts fetches that ended.
    ended: watch::Sender<u64>,
}

/// Keys as last fetched.
#[derive(Debug)]
pub(super) struct Current {
    pub(super) keys: Arc<KeySet>,
    /// Grows with every change of the keys.
    pub(super) generation: u64,
    digest: Digest,
    fetched: Instant,
}

#[derive(Debug)]
struct State {
    fetching: bool,
    refetch: bool,
    /// When the last refetch for an unknown name was asked for.
    last_refetch: Option<Instant>,
    due: Instant,
    failures: u32,
}

impl Jwks {
    /// Keys that were never fetched; the first fetch is due at once.
    pub(super) fn new(url: Uri, algorithms: Vec<Algorithm>) -> Self {
        let state = State { fetching: false, refetch: false, last_refetch: None, due: Instant::now(), failures: 0 };
        Self {
            url,
            algorithms,
            current: ArcSwapOption::empty(),
            generation: AtomicU64::new(0),
            state: std::sync::Mutex::new(state),
            wanted: Notify::new(),
            ended: watch::Sender::new(0),
        }
    }

    /// Where they are.
    pub(super) fn url(&self) -> &Uri {
        &self.url
    }

    /// The keys, unless there are none or they are too old.
    pub(super) fn current(&self, now: Instant) -> Option<Arc<Current>> {
        self.current.load_full().filter(|current| now.saturating_duration_since(current.fetched) < STALE)
    }

    /// Changes with the keys.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// A token names an unknown key: joins the fetch under way, or asks for one. `None`: too early for another.
    pub(super) fn refetch(&self, now: Instant) -> Option<watch::Receiver<u64>> {
        let mut state = self.state();
        if !state.fetching && !state.refetch {
            if state.last_refetch.is_some_and(|last| now.saturating_duration_since(last) < UNKNOWN_EVERY) {
                return None;
            }
            state.refetch = true;
            state.last_refetch = Some(now);
            self.wanted.notify_one();
        }
        Some(self.ended.subscribe())
    }

    /// Joins the fetch under way, if there is one; the first one is under way from the start.
    pub(super) fn join(&self) -> Option<watch::Receiver<u64>> {
        let state = self.state();
        let first = state.failures == 0 && self.current.load().is_none();
        (first || state.fetching || state.refetch).then(|| self.ended.subscribe())
    }

    /// Fetches for ever. Run on the control runtime; dropping the future stops it.
    pub(super) async fn run(&self, name: &str, tls: &ClientTls, observer: &dyn Observer) {
        let mut ended = self.ended.subscribe();
        loop {
            let due = {
                let state = self.state();
                if state.refetch { Instant::now() } else { state.due }
            };
            tokio::select! {
                () = tokio::time::sleep_until(due.into()) => {}
                () = self.wanted.notified() => {}
            }
            let Some(fetching) = Fetching::begin(self, Instant::now()) else {
                // Another task has it, or it is not due any more.
                if self.state().fetching && ended.changed().await.is_err() {
                    return;
                }
                continue;
            };
            let outcome = self.fetch(tls).await;
            let result = fetching.end(outcome, Instant::now());
            match &result {
                Ok(()) => observer.jwks_fetched(name, "ok", None),
                Err(error) => observer.jwks_fetched(name, "failed", Some(error)),
            }
        }
    }

    async fn fetch(&self, tls: &ClientTls) -> Result<(Bytes, Duration), String> {
        let request = Request::get(self.url.clone())
            .header(ACCEPT, "application/jwk-set+json, application/json")
            .body(Full::default())
            .map_err(|error| error.to_string())?;
        let response = fetch(request, tls, LIMITS).await.map_err(|error| error.to_string())?;
        if response.status() != http::StatusCode::OK {
            return Err(format!("status {}", response.status().as_u16()));
        }
        let refresh = refresh_after(response.headers());
        Ok((response.into_body(), refresh))
    }

    /// Takes over what was fetched.
    fn accept(&self, body: &[u8], now: Instant) -> Result<(), String> {
        let keys = KeySet::jwks(body, &self.algorithms)?;
        let digest = digest(body);
        let (keys, generation) = match self.current.load_full() {
            Some(old) if old.digest == digest => (old.keys.clone(), old.generation),
            Some(_) | None => (Arc::new(keys), self.generation() + 1),
        };
        self.current.store(Some(Arc::new(Current { keys, generation, digest, fetched: now })));
        self.generation.store(generation, Ordering::Release);
        Ok(())
    }
}

/// A fetch under way: whatever ends it, those who wait go on.
struct Fetching<'a>(&'a Jwks);

impl<'a> Fetching<'a> {
    fn begin(jwks: &'a Jwks, now: Instant) -> Option<Self> {
        let mut state = jwks.state();
        if state.fetching || !(state.refetch || state.due <= now) {
            return None;
        }
        state.fetching = true;
        state.refetch = false;
        Some(Self(jwks))
    }

    fn end(self, outcome: Result<(Bytes, Duration), String>, now: Instant) -> Result<(), String> {
        let result = outcome.and_then(|(body, refresh)| self.0.accept(&body, now).map(|()| refresh));
        let mut state = self.0.state();
        match result {
            Ok(refresh) => {
                state.failures = 0;
                state.due = now + refresh;
                Ok(())
            }
            Err(error) => {
                state.due = now + backoff(state.failures);
                state.failures = state.failures.saturating_add(1);
                Err(error)
            }
        }
    }
}

impl Drop for Fetching<'_> {
    fn drop(&mut self) {
        self.0.state().fetching = false;
        self.0.ended.send_modify(|count| *count += 1);
    }
}

/// The wait after so many failures in a row.
fn backoff(failures: u32) -> Duration {
    Duration::from_secs(1 << failures.min(6)).min(BACKOFF)
}

/// How long an answer is used: its `max-age` within bounds.
fn refresh_after(headers: &HeaderMap) -> Duration {
    let directives = headers.get_all(CACHE_CONTROL).iter().filter_map(|line| line.to_str().ok()).flat_map(|line| line.split(','));
    let mut ages = directives.filter_map(|directive| {
        let (name, value) = directive.trim().split_once('=')?;
        if name.trim().eq_ignore_ascii_case("max-age") { value.trim().trim_matches('"').parse::<u64>().ok() } else { None }
    });
    ages.next().map_or(REFRESH.1, |seconds| Duration::from_secs(seconds).clamp(REFRESH.0, REFRESH.1))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn jwks() -> Jwks {
        Jwks::new(Uri::from_static("https://id.test/jwks"), vec![Algorithm::ES256])
    }
    fn fetched(jwks: &Jwks, body: &'static str, now: Instant) -> Result<(), String> {
        Fetching::begin(jwks, now).unwrap().end(Ok((Bytes::from_static(body.as_bytes()), Duration::from_secs(900))), now)
    }

    #[test]
    fn the_first_fetch_can_be_joined_before_its_task_runs() {
        let jwks = Jwks::new(Uri::from_static("http://127.0.0.1:1/"), Vec::new());
        assert!(jwks.join().is_some(), "a request may come before the task has had its first turn");
        let fetching = Fetching::begin(&jwks, Instant::now()).unwrap();
        assert!(fetching.end(Err("down".to_owned()), Instant::now()).is_err());
        assert!(jwks.join().is_none(), "after a failure nobody waits");
    }

    #[test]
    fn the_first_fetch_is_due_at_once_and_only_one_runs() {
        let (jwks, now) = (jwks(), Instant::now());
        let running = Fetching::begin(&jwks, now).unwrap();
        assert!(jwks.join().is_some() && Fetching::begin(&jwks, now).is_none());
        drop(running);
        // Given up without an outcome it is still the first one, and due: requests wait for its next turn.
        assert!(jwks.join().is_some() && Fetching::begin(&jwks, now).is_some());
    }

    #[test]
    fn unknown_names_cause_one_fetch_in_30_seconds_and_the_first_one_does_not_count() {
        let (jwks, start) = (jwks(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        fetched(&jwks, r#"{"keys":[]}"#, at(0)).unwrap();
        assert!(jwks.refetch(at(1)).is_some());
        assert!(jwks.refetch(at(2)).is_some(), "it has not run yet, so others join it");
        fetched(&jwks, r#"{"keys":[]}"#, at(3)).unwrap();
        assert!(jwks.refetch(at(30)).is_none());
        assert!(jwks.refetch(at(31)).is_some());
    }

    #[test]
    fn keys_serve_24_hours_after_the_last_success() {
        let (jwks, start) = (jwks(), Instant::now());
        assert!(jwks.current(start).is_none());
        fetched(&jwks, r#"{"keys":[]}"#, start).unwrap();
        let failed = Fetching::begin(&jwks, start + Duration::from_secs(900)).unwrap().end(Err("x".into()), start + STALE / 2);
        assert_eq!(failed, Err("x".into()));
        assert!(jwks.current(start + STALE - Duration::from_secs(1)).is_some());
        assert!(jwks.current(start + STALE).is_none());
    }

    #[test]
    fn only_other_keys_are_a_new_generation() {
        let (jwks, start) = (jwks(), Instant::now());
        for (second, body, generation) in [(0, r#"{"keys":[]}"#, 1), (1000, r#"{"keys":[]}"#, 1), (2000, r#"{"keys":[{}]}"#, 2)] {
            fetched(&jwks, body, start + Duration::from_secs(second)).unwrap();
            assert_eq!(jwks.generation(), generation);
        }
        assert!(fetched(&jwks, "nonsense", start + Duration::from_secs(3000)).is_err());
        assert_eq!(jwks.generation(), 2);
    }

    #[test]
    fn waits_grow_to_a_minute_and_max_age_stays_within_bounds() {
        assert_eq!([0, 1, 2, 5, 6, 99].map(|n| backoff(n).as_secs()), [1, 2, 4, 32, 60, 60]);
        for (value, seconds) in [
            ("max-age=300", 300),
            ("public, Max-Age=\"600\"", 600),
            ("max-age=0", 60),
            ("max-age=99999", 900),
            ("no-store", 900),
            ("max-age=x", 900),
        ] {
            let headers = HeaderMap::from_iter([(CACHE_CONTROL, HeaderValue::from_static(value))]);
            assert_eq!(refresh_after(&headers).as_secs(), seconds, "{value}");
        }
        assert_eq!(refresh_after(&HeaderMap::new()).as_secs(), 900);
    }
}
