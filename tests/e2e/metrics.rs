//! `/metrics` through a real gateway.

use crate::support::client::request;
use crate::support::{Gateway, Refused, Upstream};

#[test]
fn requests_and_attempts_are_counted_with_their_labels() {
    let upstream = Upstream::serve(|request, conn| conn.answer(if request.target == "/500" { 500 } else { 200 }, "", "hello"));
    let gateway = Gateway::to(upstream.address, "");
    let mut raw = gateway.connect();
    raw.ask(request("GET", "/", &[], ""));
    raw.ask(request("POST", "/", &[], "x"));
    raw.ask(request("POST", "/500", &[], "x"));
    raw.ask(request("BREW", "/", &[], ""));
    for (labels, value) in [
        ("method=\"GET\",status=\"200\"", 1.0),
        ("method=\"POST\",status=\"200\"", 1.0),
        ("method=\"POST\",status=\"500\"", 1.0),
        ("method=\"other\",status=\"200\"", 1.0),
    ] {
        gateway.metric_becomes(&format!("gateway_requests_total{{route=\"all\",{labels}}}"), value);
    }
    let endpoint = format!("http://{}", upstream.address);
    gateway.metric_becomes(&format!("gateway_upstream_requests_total{{upstream=\"up\",endpoint=\"{endpoint}\",status=\"200\"}}"), 3.0);
    gateway.metric_becomes(&format!("gateway_upstream_requests_total{{upstream=\"up\",endpoint=\"{endpoint}\",status=\"500\"}}"), 1.0);
    gateway.metric_becomes("gateway_request_duration_seconds_count{route=\"all\"}", 4.0);
    gateway.metric_becomes("gateway_upstream_request_duration_seconds_count{upstream=\"up\"}", 4.0);
    gateway.metric_becomes("gateway_requests_in_flight", 0.0);
    gateway.metric_becomes(&format!("gateway_connections{{listener=\"{}\"}}", gateway.address()), 1.0);
    gateway.metric_becomes(&format!("gateway_endpoint_healthy{{upstream=\"up\",endpoint=\"{endpoint}\"}}"), 1.0);
    drop(raw);
    gateway.metric_becomes(&format!("gateway_connections{{listener=\"{}\"}}", gateway.address()), 0.0);
}

#[test]
fn attempts_without_a_response_are_counted_by_their_reason() {
    let refused = Refused::new();
    let gateway = Gateway::to(refused.address, "retry: { attempts: 2, when: [connect], backoff: 1ms }");
    gateway.get("/").refused(502, "upstream_connect_failed");
    let endpoint = format!("http://{}", refused.address);
    gateway.metric_becomes(
        &format!("gateway_upstream_requests_total{{upstream=\"up\",endpoint=\"{endpoint}\",status=\"upstream_connect_failed\"}}"),
        3.0,
    );
    gateway.metric_becomes("gateway_retries_total{upstream=\"up\"}", 2.0);
}

#[test]
fn random_paths_hosts_and_methods_make_no_new_series() {
    let gateway = Gateway::new("routes: [{ match: GET /a, respond: { status: 200 } }]", &[]);
    gateway.get("/a");
    gateway.get("/none");
    gateway.request("M0", "/a", &[], "");
    gateway.metric_becomes("gateway_errors_total{route=\"-\",reason=\"method_not_allowed\"}", 1.0);
    let series = || gateway.admin_get("/metrics").text().lines().filter(|line| line.starts_with("gateway_requests_total")).count();
    let before = series();
    let mut raw = gateway.connect();
    for index in 0..100 {
        raw.ask(request("GET", &format!("/random/{index}"), &[("Host", &format!("h{index}"))], ""));
        raw.ask(request(&format!("M{index}"), "/a", &[], ""));
    }
    gateway.metric_becomes("gateway_errors_total{route=\"-\",reason=\"no_route\"}", 101.0);
    assert_eq!(series(), before);
}

#[test]
fn the_page_is_valid_and_has_what_every_gateway_has() {
    let gateway = Gateway::new("routes: [{ match: GET /a, respond: { status: 200 } }]", &[]);
    gateway.get("/a");
    gateway.metric_becomes("gateway_requests_total{route=\"GET /a\",method=\"GET\",status=\"200\"}", 1.0);
    let answer = gateway.admin_get("/metrics");
    assert!(answer.header("content-type").unwrap().starts_with("text/plain"), "{:?}", answer.header("content-type"));
    let text = answer.text();
    for name in [
        "gateway_build_info{",
        "gateway_config_last_reload_successful 1",
        "gateway_config_last_reload_timestamp_seconds ",
        "gateway_access_log_dropped_total 0",
        "gateway_bytes_received_total{",
        "gateway_bytes_sent_total{",
        "process_cpu_seconds_total",
        "process_open_fds",
        "process_resident_memory_bytes",
        "process_start_time_seconds",
    ] {
        assert!(text.contains(name), "{name} is missing:\n{text}");
    }
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (series, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok(), "{line}");
        let name = series.split('{').next().unwrap();
        assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'), "{line}");
    }
}
