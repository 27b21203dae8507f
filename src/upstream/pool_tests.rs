//! What pools learn from their upstreams.

use super::*;
use crate::config::{At, Problems, upstream::Protocol};
use crate::upstream::EndpointSpec;

#[test]
fn a_learned_idle_timeout_follows_the_upstream_and_goes_with_its_last_connection() {
    let spec = EndpointSpec::parse("http://127.0.0.1:1", 1, &At::default(), &mut Problems::default()).unwrap();
    let metrics = crate::telemetry::metrics::Metrics::new(1, "", "").endpoint("u", "e");
    let destination = Destination::new(&spec, None, Protocol::Auto);
    let pool = Arc::new(EndpointPool::new(1, destination, &config::upstream::Pool::default(), metrics));
    let holds = || pool.idle_timeout.load(Relaxed);
    let connection = pool.reserve(0, false).unwrap();
    for (theirs, ours) in [(5, 4_000), (30, 29_000), (1, 500), (3_600, 60_000), (5, 4_000)] {
        pool.learn_idle_timeout(Duration::from_secs(theirs));
        assert_eq!(holds(), ours, "of {theirs} s");
    }
    drop(connection);
    assert_eq!(holds(), 60_000, "as configured");
}
