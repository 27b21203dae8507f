//! Where endpoints and their addresses come from: names, looked up in the background, never per request.

mod dns;
mod service;

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

pub use dns::Dns;

/// Longest time between two look-ups of the name of a written endpoint.
pub const REFRESH: Duration = Duration::from_secs(30);
/// Shortest time between two look-ups: a TTL of 0 must not keep a name server busy.
const SHORTEST: Duration = Duration::from_secs(1);
/// A look-up that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// The addresses of a host (A and AAAA), each with this port.
    Host {
        /// The host's name; without a final dot the search domains hold.
        name: String,
        /// Port of every endpoint.
        port: u16,
    },
    /// The hosts of a service (SRV), each with the port that its record has.
    Service {
        /// Its name, `_SERVICE._tcp.NAME`.
        name: String,
    },
}

impl Question {
    /// The name that is asked for.
    pub fn name(&self) -> &str {
        match self {
            Self::Host { name, .. } | Self::Service { name } => name,
        }
    }
}

/// One address that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Address and port.
    pub address: SocketAddr,
    /// Its share of the requests; 1 unless the record says another.
    pub weight: u32,
    /// Those of a higher number are for when all of a lower one are out (RFC 2782); 0 unless the record says another.
    pub priority: u16,
    /// The target of the service that it is an address of; empty for a host.
    pub target: Arc<str>,
}

/// What a look-up found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The addresses.
    pub found: Vec<Found>,
    /// How long that holds.
    pub ttl: Duration,
    /// Targets of the service that could not be looked up, and why: their last addresses stay.
    pub missing: Vec<(Arc<str>, String)>,
}

impl Answer {
    /// Why this is not all there is.
    pub fn error(&self) -> Option<String> {
        let targets: Vec<String> = self.missing.iter().map(|(target, error)| format!("{target}: {error}")).collect();
        (!targets.is_empty()).then(|| targets.join(", "))
    }
}

/// An answer that is under way; errors are in plain words.
pub type Lookup = Pin<Box<dyn Future<Output = Result<Answer, String>> + Send>>;

/// Turns names into addresses.
pub trait Resolver: Send + Sync {
    /// Asks. Runs on the control runtime.
    fn lookup(&self, question: &Question) -> Lookup;
}

/// Looks a name up once: its addresses by priority, else in a stable order, each once; at least one.
///
/// # Errors
/// In plain words, when the look-up fails, takes too long or yields nothing.
pub async fn resolve(resolver: &dyn Resolver, question: &Question) -> Result<Answer, String> {
    let answer = tokio::time::timeout(PATIENCE, resolver.lookup(question)).await;
    let mut answer = answer.map_err(|_| format!("no answer within {} s", PATIENCE.as_secs()))??;
    if answer.found.is_empty() {
        return Err(answer.error().unwrap_or_else(|| "no address".to_owned()));
    }
    // Name servers rotate their answers; a stable order keeps endpoints where they are.
    answer.found.sort_unstable_by_key(|found| (found.address, found.priority));
    answer.found.dedup_by_key(|found| found.address);
    answer.found.sort_by_key(|found| found.priority);
    Ok(answer)
}

/// Time until a name is looked up again: after its TTL, but not more often than once a second and not less often than every `refresh`.
pub fn pause(ttl: Duration, refresh: Duration) -> Duration {
    ttl.max(SHORTEST).min(refresh)
}

/// The same after so many failures in a row: soon at first, since there may be no address at all.
pub fn pause_after(failures: u32, refresh: Duration) -> Duration {
    SHORTEST.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(refresh)
}

/// `span` ± 10 %, by a number that is uniform over all of `u64`: gateways started together must not ask together for ever.
pub fn jittered(span: Duration, random: u64) -> Duration {
    let share = (random >> 11) as f64 / (1u64 << 53) as f64;
    span.mul_f64(0.9 + 0.2 * share)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(Vec<(&'static str, u16)>, Option<&'static str>);

    impl Resolver for Fixed {
        fn lookup(&self, _: &Question) -> Lookup {
            let found = |(address, priority): &(&str, u16)| Found {
                address: address.parse().unwrap(),
                weight: 1,
                priority: *priority,
                target: "".into(),
            };
            let found = self.0.iter().map(found).collect();
            let missing = self.1.map(|target| (target.into(), "no answer".to_owned())).into_iter().collect();
            let answer = Answer { found, ttl: Duration::ZERO, missing };
            Box::pin(async move { Ok(answer) })
        }
    }

    fn ask(resolver: &Fixed) -> Result<Vec<String>, String> {
        let question = Question::Host { name: "x".to_owned(), port: 80 };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let answer = runtime.block_on(resolve(resolver, &question))?;
        Ok(answer.found.iter().map(|found| found.address.to_string()).collect())
    }

    #[test]
    fn answers_are_sorted_by_priority_and_each_address_comes_once() {
        let answer = Fixed(vec![("10.0.0.2:80", 0), ("10.0.0.1:80", 5), ("10.0.0.3:80", 0), ("10.0.0.1:80", 9)], None);
        assert_eq!(ask(&answer).unwrap(), ["10.0.0.2:80", "10.0.0.3:80", "10.0.0.1:80"]);
    }

    #[test]
    fn an_empty_answer_is_a_failure() {
        assert_eq!(ask(&Fixed(vec![], None)), Err("no address".to_owned()));
        assert_eq!(ask(&Fixed(vec![], Some("a.internal"))), Err("a.internal: no answer".to_owned()));
    }

    #[test]
    fn a_ttl_counts_between_a_second_and_the_refresh() {
        let (second, refresh) = (Duration::from_secs(1), Duration::from_secs(30));
        for (ttl, expected) in [(Duration::ZERO, second), (5 * second, 5 * second), (3_600 * second, refresh), (Duration::MAX, refresh)] {
            assert_eq!(pause(ttl, refresh), expected);
        }
        assert_eq!(pause(Duration::ZERO, second / 10), second / 10, "a shorter refresh is what the user wants");
    }

    #[test]
    fn failures_are_followed_by_look_ups_that_become_rarer() {
        let pauses: Vec<u64> = (1..=7).map(|failures| pause_after(failures, Duration::from_secs(30)).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(pause_after(u32::MAX, Duration::from_secs(3_600)).as_secs(), 1_024);
    }

    #[test]
    fn jitter_stays_within_a_tenth() {
        assert_eq!(jittered(Duration::from_secs(10), 0), Duration::from_secs(9));
        assert!(jittered(Duration::from_secs(10), u64::MAX) <= Duration::from_secs(11));
    }
}
