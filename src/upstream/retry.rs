//! When a failed attempt is tried again, and how long the wait before it is. The table is in the option reference under `retry`.

use std::time::{Duration, SystemTime};

use http::header::{DATE, RETRY_AFTER};
use http::{HeaderMap, HeaderName, Method, StatusCode};

use crate::config::route::{Retry, RetryOn};

/// The field by which a sender vouches that a request may be sent twice.
pub static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Longest `Retry-After` that is waited for.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(2);

/// `retry` of a route.
#[derive(Clone, Debug)]
pub struct RetryPolicy {
    /// Tries after the first.
    pub attempts: u32,
    /// Retries per first attempt that the upstream's budget allows.
    pub budget: f64,
    /// Longest single attempt.
    pub per_try_timeout: Option<Duration>,
    connect: bool,
    reset: bool,
    timeout: bool,
    statuses: Box<[u16]>,
    backoff: Duration,
}

/// A way an attempt fails that a retry can mend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retriable {
    /// Nothing was sent, or the upstream said that it did nothing.
    Connect,
    /// Closed before the response head.
    Reset,
    /// `per_try_timeout` over.
    Timeout,
    /// A status.
    Status(StatusCode),
}

impl RetryPolicy {
    /// The running form of what is written.
    pub fn new(config: &Retry) -> Self {
        let has = |on: RetryOn| config.when.contains(&on);
        let statuses = config.when.iter().filter_map(|on| match on {
            RetryOn::Status(status) => Some(*status),
            RetryOn::Connect | RetryOn::Reset | RetryOn::Timeout => None,
        });
        Self {
            attempts: config.attempts,
            budget: config.budget.fraction(),
            per_try_timeout: config.per_try_timeout.map(crate::units::Duration::get),
            connect: has(RetryOn::Connect),
            reset: has(RetryOn::Reset),
            timeout: has(RetryOn::Timeout),
            statuses: statuses.collect(),
            backoff: config.backoff.get(),
        }
    }

    /// Whether `failure` is one of `when`, and may be tried again for this kind of request.
    pub fn allows(&self, failure: Retriable, idempotent: bool) -> bool {
        match failure {
            Retriable::Connect => self.connect,
            Retriable::Reset => self.reset && idempotent,
            Retriable::Timeout => self.timeout && idempotent,
            Retriable::Status(status) => idempotent && self.statuses.contains(&status.as_u16()),
        }
    }

    /// Whether a response's status could ever be tried again; the usual answer is a cheap no.
    pub fn any_status(&self) -> bool {
        !self.statuses.is_empty()
    }

    /// Wait before a connection that was refused is asked for again, `number` from 1: half to all of the longest wait before a retry, and long
    /// enough not to be busy.
    pub fn wait_at_least(&self, number: u32, random: u64) -> Duration {
        let half = (self.longest_wait(number) / 2).max(Duration::from_millis(5));
        half + half.mul_f64((random >> 11) as f64 / (1u64 << 53) as f64)
    }

    fn longest_wait(&self, number: u32) -> Duration {
        self.backoff.saturating_mul(1 << number.saturating_sub(1).min(10)).min(self.backoff * 10)
    }

    /// Wait before retry `number` (from 1): random in 0 … `backoff`·2^(n−1), at most 10 × `backoff` ("full jitter").
    pub fn wait(&self, number: u32, random: u64) -> Duration {
        let nanos = u64::try_from(self.longest_wait(number).as_nanos()).unwrap_or(u64::MAX);
        if nanos == 0 { Duration::ZERO } else { Duration::from_nanos(random % (nanos + 1)) }
    }
}

/// Whether sending a request twice has the effect of sending it once (RFC 9110, 9.2.2), or its sender vouches for that.
pub fn idempotent(method: &Method, headers: &HeaderMap) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE) || headers.contains_key(&IDEMPOTENCY_KEY)
}

/// What `Retry-After` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryAfter {
    /// There is none: the backoff decides.
    None,
    /// This long.
    Wait(Duration),
    /// Longer than a request should wait, or unreadable.
    TooLong,
}

/// Reads `Retry-After` (RFC 9110, 10.2.3): seconds, or a date. A date is compared with the `Date` of the response, which is of the same
/// clock; without one with `now`.
pub fn retry_after(headers: &HeaderMap, now: SystemTime) -> RetryAfter {
    let Some(value) = headers.get(RETRY_AFTER) else { return RetryAfter::None };
    let seconds = value.to_str().ok().and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
    let wait = seconds.or_else(|| {
        let until = date(headers, &RETRY_AFTER)?;
        // One that is over asks for no wait.
        Some(until.duration_since(date(headers, &DATE).unwrap_or(now)).unwrap_or_default())
    });
    match wait {
        Some(wait) if wait <= LONGEST_RETRY_AFTER => RetryAfter::Wait(wait),
        Some(_) | None => RetryAfter::TooLong,
    }
}

fn date(headers: &HeaderMap, name: &HeaderName) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(name)?.to_str().ok()?.trim()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units;

    fn policy(when: Vec<RetryOn>) -> RetryPolicy {
        RetryPolicy::new(&Retry { attempts: 3, when, backoff: units::Duration::from_millis(25), ..Retry::default() })
    }

    #[test]
    fn only_connect_is_tried_again_for_methods_that_act_twice() {
        let policy = policy(vec![RetryOn::Connect, RetryOn::Reset, RetryOn::Timeout, RetryOn::Status(503)]);
        assert!(policy.allows(Retriable::Connect, false));
        for failure in [Retriable::Reset, Retriable::Timeout, Retriable::Status(StatusCode::SERVICE_UNAVAILABLE)] {
            assert!(!policy.allows(failure, false), "{failure:?}");
            assert!(policy.allows(failure, true), "{failure:?}");
        }
        assert!(!policy.allows(Retriable::Status(StatusCode::BAD_GATEWAY), true));
    }

    #[test]
    fn what_is_not_listed_is_not_tried_again() {
        let policy = policy(vec![]);
        assert!(!policy.allows(Retriable::Connect, true) && !policy.allows(Retriable::Reset, true));
    }

    #[test]
    fn the_wait_doubles_and_is_capped_at_ten_times_the_backoff() {
        let policy = policy(vec![RetryOn::Connect]);
        let longest = |number| (0..2_000_u64).map(|i| policy.wait(number, i.wrapping_mul(0x9E37_79B9_7F4A_7C15))).max().unwrap();
        assert!(longest(1) <= Duration::from_millis(25) && longest(1) > Duration::from_millis(20));
        assert!(longest(2) <= Duration::from_millis(50) && longest(2) > Duration::from_millis(40));
        assert!(longest(20) <= Duration::from_millis(250) && longest(20) > Duration::from_millis(200));
    }

    #[test]
    fn a_refused_connection_is_asked_for_again_after_half_the_wait_at_least_and_never_busily() {
        let policy = policy(vec![RetryOn::Connect]);
        for (number, longest) in [(1, 25), (2, 50), (20, 250)] {
            let longest = Duration::from_millis(longest);
            assert!(policy.wait_at_least(number, 0) == longest / 2 && policy.wait_at_least(number, u64::MAX) <= longest);
        }
        let eager = RetryPolicy::new(&Retry { backoff: units::Duration::from_millis(0), ..Retry::default() });
        assert_eq!(eager.wait_at_least(1, 0), Duration::from_millis(5));
    }

    #[test]
    fn post_counts_as_idempotent_only_with_a_key() {
        let mut headers = HeaderMap::new();
        assert!(!idempotent(&Method::POST, &headers) && !idempotent(&Method::PATCH, &headers));
        assert!(idempotent(&Method::PUT, &headers) && idempotent(&Method::GET, &headers));
        headers.insert("idempotency-key", "1".parse().unwrap());
        assert!(idempotent(&Method::POST, &headers));
    }

    const NOON: &str = "Wed, 21 Oct 2026 12:00:00 GMT";

    fn asked(fields: &[(HeaderName, &str)]) -> RetryAfter {
        let fields = fields.iter().map(|(name, value)| (name.clone(), value.parse().unwrap()));
        retry_after(&HeaderMap::from_iter(fields), httpdate::parse_http_date(NOON).unwrap())
    }

    #[test]
    fn a_long_retry_after_forbids_the_retry() {
        let with = |value: &str| asked(&[(RETRY_AFTER, value)]);
        assert_eq!(with("1"), RetryAfter::Wait(Duration::from_secs(1)));
        assert_eq!(with("3"), RetryAfter::TooLong);
        assert_eq!(with("soon"), RetryAfter::TooLong);
        assert_eq!(asked(&[]), RetryAfter::None);
    }

    #[test]
    fn a_date_is_obeyed_like_seconds() {
        let with = |value: &str| asked(&[(RETRY_AFTER, value)]);
        assert_eq!(with("Wed, 21 Oct 2026 12:00:02 GMT"), RetryAfter::Wait(Duration::from_secs(2)));
        assert_eq!(with("Wed, 21 Oct 2026 12:00:03 GMT"), RetryAfter::TooLong);
        assert_eq!(with("Wednesday, 21-Oct-26 12:00:01 GMT"), RetryAfter::Wait(Duration::from_secs(1)), "the obsolete form");
        assert_eq!(with("Wed, 21 Oct 2026 11:59:59 GMT"), RetryAfter::Wait(Duration::ZERO), "that time is over");
    }

    #[test]
    fn a_date_is_read_by_the_clock_of_the_response() {
        let hour_ahead = [(DATE, "Wed, 21 Oct 2026 13:00:00 GMT"), (RETRY_AFTER, "Wed, 21 Oct 2026 13:00:01 GMT")];
        assert_eq!(asked(&hour_ahead), RetryAfter::Wait(Duration::from_secs(1)));
    }
}
