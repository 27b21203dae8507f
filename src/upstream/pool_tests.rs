//! What pools learn from their upstreams.

use super::*;
use crate::config::{At, Problems, upstream::Protocol};
use crate::upstream::EndpointSpec;

fn pool(config: &config::upstream::Pool) -> Arc<EndpointPool> {
    let spec = EndpointSpec::parse("http://127.0.0.1:1", 1, &At::default(), &mut Problems::default()).unwrap();
    let metrics = crate::telemetry::metrics::Metrics::new(1, "", "").endpoint("u", "e");
    Arc::new(EndpointPool::new(1, Destination::new(&spec, None, Protocol::Auto), config, metrics))
}

#[test]
fn a_learned_idle_timeout_follows_the_upstream_and_goes_with_its_last_connection() {
    let pool = pool(&config::upstream::Pool::default());
    let holds = || pool.idle_timeout.load(Relaxed);
    let connection = pool.reserve(0, false).unwrap();
    for (theirs, ours) in [(5, 4_000), (30, 29_000), (1, 500), (3_600, 60_000), (5, 4_000)] {
        pool.learn_idle_timeout(Duration::from_secs(theirs));
        assert_eq!(holds(), ours, "of {theirs} s");
    }
    drop(connection);
    assert_eq!(holds(), 60_000, "as configured");
}

#[test]
fn no_more_requests_wait_for_a_full_endpoint_than_there_are_places_in_the_queue() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let pool = pool(&config::upstream::Pool { max_connections: 1, ..config::upstream::Pool::default() });
        let connection = pool.reserve(0, false).unwrap();
        let mut waiting: Vec<_> = (0..MAX_WAITING).map(|_| Box::pin(pool.wait_for_room())).collect();
        for wait in &mut waiting {
            assert!(std::future::poll_fn(|cx| std::task::Poll::Ready(wait.as_mut().poll(cx).is_pending())).await);
        }
        assert!(!pool.wait_for_room().await, "one too many is told at once");
        waiting.pop();
        let mut last = Box::pin(pool.wait_for_room());
        assert!(std::future::poll_fn(|cx| std::task::Poll::Ready(last.as_mut().poll(cx).is_pending())).await, "whose place is free now");
        drop(connection);
        assert!(waiting.swap_remove(0).await, "the first is served");
    });
}
