//! Endpoints given by name.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::support::{Gateway, Upstream, eventually};

#[test]
fn a_name_is_resolved_and_the_address_that_answers_is_used() {
    // `localhost` may have an IPv6 address where nobody listens: the other one is tried at once.
    let upstream = Upstream::echo();
    let port = upstream.address.port();
    let yaml = format!(
        "upstreams: {{ up: {{ endpoints: ['http://localhost:{port}'] }} }}\nroutes: [{{ match: /*, upstream: up, rewrite: {{ host: upstream }} }}]\n"
    );
    let gateway = Gateway::new(&yaml, &[]);
    let answer = eventually("the name is resolved", || Some(gateway.get("/")).filter(|answer| answer.status == 200));
    let headers = answer.json()["headers"].to_string();
    assert!(headers.contains(&format!("localhost:{port}")), "{headers}");
    gateway.metric_becomes("gateway_upstream_lookup_failures_total{upstream=\"up\"}", 0.0);
}

#[test]
fn each_address_of_a_discovered_name_is_an_endpoint() {
    let upstream = Upstream::echo();
    let port = upstream.address.port();
    let yaml = format!(
        "upstreams: {{ up: {{ discover: {{ dns: 'localhost:{port}', refresh: 200ms }}, outlier: off }} }}\n\
         routes: [{{ match: /*, upstream: up, rewrite: {{ host: upstream }}, retry: {{ backoff: 1ms }} }}]\n"
    );
    let gateway = Gateway::new(&yaml, &[]);
    let answer = eventually("the name is resolved", || Some(gateway.get("/")).filter(|answer| answer.status == 200));
    assert!(answer.json()["headers"].to_string().contains(&format!("localhost:{port}")));
    let endpoints = gateway.admin_get("/upstreams").json()["upstreams"][0]["endpoints"].clone();
    let ids: Vec<&str> = endpoints.as_array().unwrap().iter().map(|endpoint| endpoint["id"].as_str().unwrap()).collect();
    let v4 = format!("http://{}", SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let v6 = format!("http://{}", SocketAddr::from((Ipv6Addr::LOCALHOST, port)));
    assert!(ids.contains(&v4.as_str()) && ids.iter().all(|id| *id == v4 || *id == v6), "{ids:?}");
    // Looked up again and again, they stay.
    std::thread::sleep(std::time::Duration::from_millis(600));
    assert_eq!(gateway.admin_get("/upstreams").json()["upstreams"][0]["endpoints"].as_array().unwrap().len(), ids.len());
}

#[test]
fn a_name_without_addresses_is_503_and_shows_in_metrics() {
    // A name that the resolver cannot even ask for.
    let yaml = "
        upstreams: { up: { endpoints: ['http://nosuch.invalid:80'] }, gone: { discover: { dns: 'nosuch.invalid:80', refresh: 100ms } } }
        routes: [{ match: /a, upstream: up }, { match: /b, upstream: gone }]";
    let gateway = Gateway::new(yaml, &[]);
    gateway.get("/a").refused(503, "no_healthy_endpoint");
    gateway.get("/b").refused(503, "no_healthy_endpoint");
    for upstream in ["up", "gone"] {
        let series = format!("gateway_upstream_lookup_failures_total{{upstream=\"{upstream}\"}}");
        eventually("the failure is counted", || (gateway.metric(&series) >= 1.0).then_some(()));
    }
    gateway.metric_becomes("gateway_endpoint_healthy{upstream=\"up\",endpoint=\"http://nosuch.invalid:80\"}", 0.0);
}
