use std::time::{Duration, SystemTime};

use http::Method;

use super::*;
use crate::error::Reason;

/// The gateway's own lines, without help and type.
fn series(metrics: &Metrics) -> Vec<String> {
    let text = process::encode(&metrics.gather());
    text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
}

fn has(metrics: &Metrics, line: &str) {
    let series = series(metrics);
    assert!(series.iter().any(|found| found == line), "no {line} in\n{}", series.join("\n"));
}

#[test]
fn a_scripted_sequence_gives_exactly_this_scrape() {
    let metrics = Metrics::new(2, "1.2.3", "abc");
    let route = metrics.route("get-user");
    metrics.request_started(0);
    metrics.request_started(1);
    metrics.request_ended(0);
    route.request(0, &Method::GET, 200, Some(Duration::from_millis(2)));
    route.request(1, &Method::GET, 200, Some(Duration::from_secs(60)));
    route.request(1, &"PURGE".parse().unwrap(), 502, None);
    route.error(1, Reason::UpstreamReset);
    route.tunnel_opened(0);
    let text = process::encode(&metrics.gather());
    let expected = r#"# HELP gateway_requests_total Requests that ended, by the status sent.
# TYPE gateway_requests_total counter
gateway_requests_total{route="get-user",method="GET",status="200"} 2
gateway_requests_total{route="get-user",method="other",status="502"} 1
# HELP gateway_request_duration_seconds Time from a request's head to its last response byte; tunnels are not observed.
# TYPE gateway_request_duration_seconds histogram
gateway_request_duration_seconds_bucket{route="get-user",le="0.001"} 0
gateway_request_duration_seconds_bucket{route="get-user",le="0.0025"} 1
gateway_request_duration_seconds_bucket{route="get-user",le="0.005"} 1
gateway_request_duration_seconds_bucket{route="get-user",le="0.01"} 1
gateway_request_duration_seconds_bucket{route="get-user",le="0.025"} 1
gateway_request_duration_seconds_bucket{route="get-user",le="0.05"} 1
gateway_request_duration_seconds_bucket{route="get-user",le="0.1"} 1
gateway_request_duration_seconds_bucket{route="get-user",le="0.25"} 1
gateway_request_duration_seconds_bucket{route="get-user",le="0.5"} 1
gateway_request_duration_seconds_bucket{route="get-user",le="1"} 1
gateway_request_duration_seconds_bucket{route="get-user",le="2.5"} 1
gateway_request_duration_seconds_bucket{route="get-user",le="5"} 1
gateway_request_duration_seconds_bucket{route="get-user",le="10"} 1
gateway_request_duration_seconds_bucket{route="get-user",le="30"} 1
gateway_request_duration_seconds_bucket{route="get-user",le="+Inf"} 2
gateway_request_duration_seconds_sum{route="get-user"} 60.002
gateway_request_duration_seconds_count{route="get-user"} 2
# HELP gateway_errors_total Requests that the gateway answered itself or cut, by reason.
# TYPE gateway_errors_total counter
gateway_errors_total{route="get-user",reason="upstream_reset"} 1
# HELP gateway_rate_limited_total Requests refused by a rate limit.
# TYPE gateway_rate_limited_total counter
gateway_rate_limited_total{route="get-user"} 0
# HELP gateway_config_reloads_total Reloads of the configuration (ok, failed, unchanged); the start is none.
# TYPE gateway_config_reloads_total counter
gateway_config_reloads_total{result="ok"} 0
gateway_config_reloads_total{result="failed"} 0
gateway_config_reloads_total{result="unchanged"} 0
# HELP gateway_access_log_dropped_total Access log lines dropped because the output was full or failed.
# TYPE gateway_access_log_dropped_total counter
gateway_access_log_dropped_total 0
# HELP gateway_requests_in_flight Requests that have begun and not ended.
# TYPE gateway_requests_in_flight gauge
gateway_requests_in_flight 1
# HELP gateway_tunnels Open tunnels (WebSocket).
# TYPE gateway_tunnels gauge
gateway_tunnels{route="get-user"} 1
# HELP gateway_build_info Always 1; the labels say what runs.
# TYPE gateway_build_info gauge
gateway_build_info{version="1.2.3",commit="abc"} 1
"#;
    assert_eq!(text, expected);
    assert_eq!(metrics.requests_in_flight(), 1);
}

#[test]
fn a_scrape_has_the_process_too() {
    let text = Metrics::new(1, "1", "c").encode();
    for name in ["process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds", "process_start_time_seconds"] {
        assert!(text.contains(&format!("\n{name} ")), "{name} is missing");
    }
}

#[test]
fn upstreams_endpoints_and_listeners_count_from_zero() {
    let metrics = Metrics::new(1, "1", "c");
    let upstream = metrics.upstream("users");
    let endpoint = metrics.endpoint("users", "http://a:80");
    let listener = metrics.listener("0.0.0.0:8080");
    for line in [
        r#"gateway_retries_total{upstream="users"} 0"#,
        r#"gateway_retries_denied_total{upstream="users"} 0"#,
        r#"gateway_breaker_dropped_total{upstream="users"} 0"#,
        r#"gateway_upstream_panic{upstream="users"} 0"#,
        r#"gateway_upstream_ejections_total{upstream="users",endpoint="http://a:80"} 0"#,
        r#"gateway_endpoint_healthy{upstream="users",endpoint="http://a:80"} 0"#,
        r#"gateway_connection_errors_total{listener="0.0.0.0:8080",kind="header_timeout"} 0"#,
    ] {
        has(&metrics, line);
    }
    upstream.retry(0);
    upstream.retry_denied(0);
    upstream.breaker_dropped(0);
    upstream.set_panic(true);
    upstream.attempt_duration(0, Duration::from_millis(1));
    endpoint.attempt_status(0, 503);
    endpoint.attempt_failed(0, Reason::UpstreamConnectFailed);
    endpoint.ejected(0);
    endpoint.set_healthy(true);
    endpoint.connection_opened(0);
    endpoint.connection_opened(5);
    endpoint.connection_closed(0);
    listener.connection_opened(0);
    listener.connection_error(0, ConnectionError::HeaderTimeout);
    listener.bytes_received(0, 10);
    listener.bytes_sent(0, 20);
    for line in [
        r#"gateway_retries_total{upstream="users"} 1"#,
        r#"gateway_retries_denied_total{upstream="users"} 1"#,
        r#"gateway_breaker_dropped_total{upstream="users"} 1"#,
        r#"gateway_upstream_panic{upstream="users"} 1"#,
        r#"gateway_upstream_request_duration_seconds_bucket{upstream="users",le="0.001"} 1"#,
        r#"gateway_upstream_requests_total{upstream="users",endpoint="http://a:80",status="503"} 1"#,
        r#"gateway_upstream_requests_total{upstream="users",endpoint="http://a:80",status="upstream_connect_failed"} 1"#,
        r#"gateway_upstream_ejections_total{upstream="users",endpoint="http://a:80"} 1"#,
        r#"gateway_endpoint_healthy{upstream="users",endpoint="http://a:80"} 1"#,
        r#"gateway_upstream_connections{upstream="users",endpoint="http://a:80"} 1"#,
        r#"gateway_connections{listener="0.0.0.0:8080"} 1"#,
        r#"gateway_connection_errors_total{listener="0.0.0.0:8080",kind="header_timeout"} 1"#,
        r#"gateway_bytes_received_total{listener="0.0.0.0:8080"} 10"#,
        r#"gateway_bytes_sent_total{listener="0.0.0.0:8080"} 20"#,
    ] {
        has(&metrics, line);
    }
}

#[test]
fn the_rest_of_the_list_is_counted() {
    let metrics = Metrics::new(1, "1", "c");
    let route = metrics.route(NO_ROUTE);
    route.rate_limited(0);
    route.auth_failure(0, "not_yet_valid");
    route.grpc(0, 0);
    route.grpc(0, 16);
    route.grpc(0, 17);
    route.grpc(0, 255);
    let (store, authenticator) = (metrics.store("main"), metrics.authenticator("jwt"));
    has(&metrics, r#"gateway_store_up{store="main"} 1"#);
    store.set_up(false);
    authenticator.jwks_fetch(true);
    authenticator.jwks_fetch(false);
    authenticator.jwks_fetch(false);
    metrics.access_log_dropped().fetch_add(3, Relaxed);
    metrics.set_certificates("[::]:443", vec![("certs/a.pem".to_owned(), 4_102_444_800), ("certs/b.pem".to_owned(), 1)]);
    metrics.set_certificates("[::]:443", vec![("certs/a.pem".to_owned(), 4_102_444_800)]);
    for line in [
        r#"gateway_rate_limited_total{route="-"} 1"#,
        r#"gateway_auth_failures_total{route="-",reason="not_yet_valid"} 1"#,
        r#"gateway_grpc_responses_total{route="-",grpc_status="0"} 1"#,
        r#"gateway_grpc_responses_total{route="-",grpc_status="16"} 1"#,
        r#"gateway_grpc_responses_total{route="-",grpc_status="other"} 2"#,
        r#"gateway_store_up{store="main"} 0"#,
        r#"gateway_jwks_fetches_total{authenticator="jwt",result="ok"} 1"#,
        r#"gateway_jwks_fetches_total{authenticator="jwt",result="failed"} 2"#,
        "gateway_access_log_dropped_total 3",
        r#"gateway_certificate_expiry_timestamp_seconds{listener="[::]:443",certificate="certs/a.pem"} 4102444800"#,
    ] {
        has(&metrics, line);
    }
    assert!(!series(&metrics).iter().any(|line| line.contains("b.pem")));
}

#[test]
fn reloads_are_counted_with_the_last_result_and_a_start_is_none() {
    let metrics = Metrics::new(1, "1", "c");
    assert!(!series(&metrics).iter().any(|line| line.starts_with("gateway_config_last")));
    metrics.loaded();
    has(&metrics, "gateway_config_last_reload_successful 1");
    has(&metrics, r#"gateway_config_reloads_total{result="ok"} 0"#);
    let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_500);
    for (result, successful) in [(Reload::Ok, 1), (Reload::Failed, 0), (Reload::Unchanged, 1)] {
        metrics.reloads.one(result, at);
        has(&metrics, &format!("gateway_config_last_reload_successful {successful}"));
        has(&metrics, &format!("gateway_config_reloads_total{{result=\"{}\"}} 1", result.as_str()));
    }
    has(&metrics, "gateway_config_last_reload_timestamp_seconds 1.5");
    metrics.reload(Reload::Failed);
    has(&metrics, "gateway_config_last_reload_successful 0");
    has(&metrics, r#"gateway_config_reloads_total{result="failed"} 2"#);
}

#[test]
fn handles_survive_by_name_and_end_with_their_last_holder() {
    let metrics = Metrics::new(1, "1", "c");
    let (kept, gone, upstream) = (metrics.route("kept"), metrics.route("gone"), metrics.upstream("u"));
    kept.rate_limited(0);
    gone.rate_limited(0);
    // The next snapshot resolves its names while the old one still lives.
    let again = metrics.route("kept");
    assert!(Arc::ptr_eq(&kept, &again));
    drop((kept, upstream));
    metrics.retain();
    has(&metrics, r#"gateway_rate_limited_total{route="kept"} 1"#);
    has(&metrics, r#"gateway_rate_limited_total{route="gone"} 1"#);
    // A request in flight held the old snapshot longer than the reload took.
    drop(gone);
    let series = series(&metrics);
    assert!(!series.iter().any(|line| line.contains("gone") || line.contains("upstream=")), "{series:#?}");
    let new = metrics.route("gone");
    new.rate_limited(0);
    has(&metrics, r#"gateway_rate_limited_total{route="gone"} 1"#);
    metrics.route(NO_ROUTE).rate_limited(0);
    has(&metrics, r#"gateway_rate_limited_total{route="-"} 1"#);
}

#[test]
fn names_that_read_alike_together_do_not_mix() {
    let metrics = Metrics::new(1, "1", "c");
    let (first, second) = (metrics.endpoint("api", "v1users"), metrics.endpoint("apiv1", "users"));
    first.ejected(0);
    has(&metrics, r#"gateway_upstream_ejections_total{upstream="api",endpoint="v1users"} 1"#);
    has(&metrics, r#"gateway_upstream_ejections_total{upstream="apiv1",endpoint="users"} 0"#);
    drop(second);
}

#[test]
fn label_values_are_escaped() {
    let metrics = Metrics::new(1, "1", "c");
    let route = metrics.route("a\"b\\c\nd");
    route.rate_limited(0);
    has(&metrics, r#"gateway_rate_limited_total{route="a\"b\\c\nd"} 1"#);
}

#[test]
fn requests_cannot_make_series_without_bound() {
    let metrics = Metrics::new(1, "1", "c");
    let route = metrics.route(NO_ROUTE);
    let count = |metrics: &Metrics| series(metrics).len();
    route.request(0, &"M".parse().unwrap(), 404, Some(Duration::ZERO));
    let before = count(&metrics);
    for number in 0..10_000 {
        route.request(0, &format!("M{number}").parse().unwrap(), 404, Some(Duration::ZERO));
    }
    assert_eq!(count(&metrics), before);
}

#[test]
fn every_series_is_of_a_family_in_the_table() {
    let metrics = Metrics::new(1, "1", "c");
    let names: Vec<_> = Family::ALL.iter().map(|family| family.name()).collect();
    for family in metrics.gather() {
        assert!(names.contains(&family.name()));
    }
}
