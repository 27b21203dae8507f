//! Where endpoints and their addresses come from: names, looked up in the background, never per request.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

/// How often the names of written endpoints are looked up again.
pub const REFRESH: Duration = Duration::from_secs(30);
/// A look-up that takes longer has failed. The system's resolver gives up after about this time anyway.
const PATIENCE: Duration = Duration::from_secs(10);

/// An answer that is under way.
pub type Lookup = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>>;

/// Turns names into addresses.
pub trait Resolver: Send + Sync {
    /// All addresses of `host`, with `port`.
    fn lookup(&self, host: &str, port: u16) -> Lookup;
}

/// The system's resolver: `/etc/hosts`, DNS, and whatever else the system asks.
#[derive(Clone, Copy, Debug, Default)]
pub struct System;

impl Resolver for System {
    fn lookup(&self, host: &str, port: u16) -> Lookup {
        let host = host.to_owned();
        Box::pin(async move { Ok(tokio::net::lookup_host((host.as_str(), port)).await?.collect()) })
    }
}

/// Looks a name up once: its addresses in a stable order, each once; at least one.
///
/// # Errors
/// In plain words, when the look-up fails, takes too long or yields nothing.
pub async fn resolve(resolver: &dyn Resolver, host: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
    let answer = tokio::time::timeout(PATIENCE, resolver.lookup(host, port)).await;
    let mut addresses = answer.map_err(|_| format!("no answer within {} s", PATIENCE.as_secs()))?.map_err(|error| error.to_string())?;
    if addresses.is_empty() {
        return Err("no address".to_owned());
    }
    // Resolvers rotate their answers; a stable order keeps endpoints where they are.
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses)
}

/// `span` ± 10 %, by a number that is uniform over all of `u64`: gateways started together must not ask together for ever.
pub fn jittered(span: Duration, random: u64) -> Duration {
    let share = (random >> 11) as f64 / (1u64 << 53) as f64;
    span.mul_f64(0.9 + 0.2 * share)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(Vec<&'static str>);

    impl Resolver for Fixed {
        fn lookup(&self, _: &str, port: u16) -> Lookup {
            let found = self.0.iter().filter_map(|ip| ip.parse().ok()).map(|ip| SocketAddr::new(ip, port)).collect();
            Box::pin(async move { Ok(found) })
        }
    }

    fn run<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
    }

    #[test]
    fn answers_are_sorted_and_each_address_comes_once() {
        let found = run(resolve(&Fixed(vec!["10.0.0.2", "10.0.0.1", "10.0.0.2"]), "x", 80));
        assert_eq!(found, Ok(vec!["10.0.0.1:80".parse().expect("address"), "10.0.0.2:80".parse().expect("address")]));
    }

    #[test]
    fn an_empty_answer_is_a_failure() {
        assert_eq!(run(resolve(&Fixed(vec![]), "x", 80)), Err("no address".to_owned()));
    }

    #[test]
    fn jitter_stays_within_a_tenth() {
        assert_eq!(jittered(Duration::from_secs(10), 0), Duration::from_secs(9));
        assert!(jittered(Duration::from_secs(10), u64::MAX) <= Duration::from_secs(11));
    }
}
