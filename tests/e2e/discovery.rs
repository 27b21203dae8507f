//! Endpoints given by name.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::client::get;
use crate::support::dns::{Dns, Failing};
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

/// The upstream of `/upstreams`.
fn shown(gateway: &Gateway) -> Value {
    gateway.admin_get("/upstreams").json()["upstreams"][0].clone()
}

fn ids(gateway: &Gateway) -> Vec<String> {
    shown(gateway)["endpoints"].as_array().unwrap().iter().map(|endpoint| endpoint["id"].as_str().unwrap().to_owned()).collect()
}

#[track_caller]
fn answers(gateway: &Gateway, text: &str) {
    eventually(&format!("the answer is {text}"), || (gateway.get("/").text() == text).then_some(()));
}

fn discovered(dns: &str, more: &str) -> String {
    format!(
        "upstreams: {{ up: {{ discover: {{ dns: '{dns}', refresh: 30s }}{more} }} }}\nroutes: [{{ match: /*, upstream: up, rewrite: {{ host: upstream }} }}]\n"
    )
}

/// Two upstreams at the same port of two addresses.
fn neighbours() -> (Upstream, Upstream, u16) {
    let one = Upstream::text("one");
    let port = one.address.port();
    (one, Upstream::serve_on(SocketAddr::from(([127, 0, 0, 2], port)), |_, conn| conn.ok("two")), port)
}

#[test]
fn a_written_name_follows_its_records_when_their_ttl_is_over() {
    let (_one, _two, port) = neighbours();
    let dns = Dns::new();
    dns.host("users.internal", 1, &["127.0.0.1"]);
    let yaml = format!("upstreams: {{ up: {{ endpoints: ['http://users.internal:{port}'] }} }}\nroutes: [{{ match: /*, upstream: up }}]\n");
    let gateway = Gateway::with_dns(&dns, "", &yaml);
    answers(&gateway, "one");
    dns.host("users.internal", 1, &["127.0.0.2"]);
    answers(&gateway, "two");
    assert_eq!(ids(&gateway), [format!("http://users.internal:{port}")]);
    assert_eq!((&shown(&gateway)["lookups"][0]["name"], &shown(&gateway)["lookups"][0]["ok"]), (&"users.internal".into(), &true.into()));
}

#[test]
fn endpoints_come_and_go_with_the_addresses_of_a_discovered_name() {
    let (_one, _two, port) = neighbours();
    let dns = Dns::new();
    dns.host("users.internal", 1, &["127.0.0.1"]);
    let gateway = Gateway::with_dns(&dns, "", &discovered(&format!("users.internal:{port}"), ""));
    answers(&gateway, "one");
    dns.host("users.internal", 1, &["127.0.0.2", "127.0.0.1", "::1"]);
    let id = |ip: &str| format!("http://{ip}:{port}");
    eventually("there are three", || (ids(&gateway) == [id("127.0.0.1"), id("127.0.0.2"), id("[::1]")]).then_some(()));
    dns.host("users.internal", 1, &["127.0.0.2"]);
    eventually("there is one", || (ids(&gateway) == [id("127.0.0.2")]).then_some(()));
    assert_eq!(gateway.get("/").text(), "two");
}

#[test]
fn a_long_ttl_is_cut_by_refresh_and_a_short_one_is_followed() {
    let dns = Dns::new();
    dns.host("long.internal", 3_600, &["127.0.0.1"]);
    dns.host("short.internal", 0, &["127.0.0.1"]);
    dns.host("quick.internal", 3_600, &["127.0.0.1"]);
    let gateway = Gateway::with_dns(
        &dns,
        "",
        "
        upstreams:
          long: { discover: { dns: 'long.internal:80', refresh: 30s } }
          short: { discover: { dns: 'short.internal:80', refresh: 30s } }
          quick: { discover: { dns: 'quick.internal:80', refresh: 100ms } }
        routes: [{ match: /long, upstream: long }, { match: /short, upstream: short }, { match: /quick, upstream: quick }]",
    );
    eventually("the short one is asked for three times", || (dns.asked("short.internal") >= 3).then_some(()));
    assert_eq!(dns.asked("long.internal"), 1);
    let (short, quick) = (dns.asked("short.internal"), dns.asked("quick.internal"));
    assert!(short <= 4 && quick > 2 * short, "a TTL of 0 counts as a second, a refresh of 100 ms as itself: {short}, {quick}");
    drop(gateway);
}

#[test]
fn failing_look_ups_keep_the_last_answer_and_show() {
    let upstream = Upstream::text("ok");
    let name = "users.internal";
    for failing in [None, Some(Failing::ServFail), Some(Failing::Silence)] {
        let dns = Dns::new();
        dns.host(name, 1, &["127.0.0.1"]);
        let gateway = Gateway::with_dns(&dns, "", &discovered(&format!("{name}:{}", upstream.address.port()), ""));
        answers(&gateway, "ok");
        match failing {
            None => dns.forget(name),
            Some(_) => dns.fail(name, failing),
        }
        let series = "gateway_upstream_lookup_failures_total{upstream=\"up\"}";
        eventually("a failure is counted", || (gateway.metric(series) >= 1.0).then_some(()));
        let lookup = shown(&gateway)["lookups"][0].clone();
        assert_eq!((lookup["name"].as_str(), lookup["ok"].as_bool()), (Some(name), Some(false)), "{lookup}");
        let error = lookup["error"].as_str().unwrap();
        let expected = match failing {
            None => "no such name",
            Some(Failing::ServFail) => "Server Failure",
            Some(Failing::Silence) => "do not answer",
        };
        assert!(error.contains(expected), "{error}");
        assert_eq!(gateway.get("/").text(), "ok");
        dns.fail(name, None);
        dns.host(name, 1, &["127.0.0.1"]);
        eventually("a look-up succeeds again", || (shown(&gateway)["lookups"][0]["ok"] == true).then_some(()));
    }
}

#[test]
fn requests_never_wait_for_a_silent_name_server_and_are_served_once_it_answers() {
    let upstream = Upstream::text("ok");
    let dns = Dns::new();
    dns.fail("users.internal", Some(Failing::Silence));
    let gateway = Gateway::with_dns(&dns, "", &discovered(&format!("users.internal:{}", upstream.address.port()), ""));
    let started = Instant::now();
    gateway.get("/").refused(503, "no_healthy_endpoint");
    assert!(started.elapsed() < Duration::from_millis(900), "{:?}", started.elapsed());
    dns.fail("users.internal", None);
    dns.host("users.internal", 60, &["127.0.0.1"]);
    answers(&gateway, "ok");
}

#[test]
fn a_reload_in_a_world_without_dns_keeps_what_was_found() {
    let upstream = Upstream::text("ok");
    let dns = Dns::new();
    dns.host("users.internal", 60, &["127.0.0.1"]);
    let yaml = discovered(&format!("users.internal:{}", upstream.address.port()), "");
    let gateway = Gateway::with_dns(&dns, "", &yaml);
    answers(&gateway, "ok");
    dns.fail("users.internal", Some(Failing::Silence));
    gateway.reload_ok(&yaml.replace("rewrite: { host: upstream }", "timeout: 3s"), &[]);
    for _ in 0..20 {
        assert_eq!(gateway.get("/").text(), "ok");
    }
}

/// How often each of the answers came.
fn shares(gateway: &Gateway, count: usize) -> BTreeMap<String, usize> {
    let mut raw = gateway.connect();
    let mut shares = BTreeMap::new();
    for _ in 0..count {
        *shares.entry(raw.ask(get("/")).text()).or_default() += 1;
    }
    shares
}

#[test]
fn a_service_has_the_ports_and_weights_of_its_records() {
    let (great, small) = (Upstream::text("great"), Upstream::text("small"));
    let dns = Dns::new();
    dns.host("a.internal", 60, &["127.0.0.1"]);
    let records = |great_weight| {
        [(10, great_weight, great.address.port(), "a.internal"), (10, 1, small.address.port(), "a.internal"), (10, 1, 9, "gone.internal")]
    };
    dns.service("_http._tcp.users.internal", 1, &records(3));
    let gateway = Gateway::with_dns(&dns, "", &discovered("_http._tcp.users.internal", ", balance: weighted"));
    answers(&gateway, "great");
    assert_eq!(shares(&gateway, 40), BTreeMap::from([("great".to_owned(), 30), ("small".to_owned(), 10)]));
    // A target that does not exist has no endpoint, and is no failure.
    assert_eq!((ids(&gateway).len(), shown(&gateway)["lookups"][0]["ok"].as_bool()), (2, Some(true)));
    // New weights hold for endpoints that stay.
    dns.service("_http._tcp.users.internal", 1, &records(1));
    eventually("the weights are equal", || {
        let weights: Vec<u64> =
            shown(&gateway)["endpoints"].as_array()?.iter().map(|endpoint| endpoint["weight"].as_u64().unwrap()).collect();
        (weights == [1, 1]).then_some(())
    });
    // But for what the scores carry over.
    assert!(shares(&gateway, 40).values().all(|count| count.abs_diff(20) <= 3));
}

#[test]
fn the_name_of_a_service_is_the_authority_of_its_endpoints() {
    let upstream = Upstream::echo();
    let (dns, port) = (Dns::new(), upstream.address.port());
    dns.host("a.internal", 60, &["127.0.0.1"]);
    dns.service("_http._tcp.users.internal", 60, &[(0, 0, port, "a.internal")]);
    let gateway = Gateway::with_dns(&dns, "", &discovered("_http._tcp.users.internal", ""));
    let answer = eventually("it is found", || Some(gateway.get("/")).filter(|answer| answer.status == 200));
    let headers = answer.json()["headers"].to_string();
    assert!(headers.contains(&format!("\"users.internal:{port}\"")), "{headers}");
}

#[test]
fn records_of_a_higher_priority_number_stand_by() {
    let (mut first, standby) = (Upstream::text("first"), Upstream::text("standby"));
    let dns = Dns::new();
    dns.host("a.internal", 60, &["127.0.0.1"]);
    let records = [(10, 1, first.address.port(), "a.internal"), (20, 1, standby.address.port(), "a.internal")];
    dns.service("_http._tcp.users.internal", 60, &records);
    let more = ", outlier: { errors: 2, eject_for: 300ms }, health: { tcp: true, interval: 20ms, unhealthy: 1, healthy: 1 }";
    let gateway = Gateway::with_dns(&dns, "", &discovered("_http._tcp.users.internal", more));
    answers(&gateway, "first");
    eventually("both are checked", || {
        let states = shown(&gateway)["endpoints"].as_array()?.iter().filter(|endpoint| endpoint["state"] == "healthy").count();
        (states == 2).then_some(())
    });
    assert_eq!(shares(&gateway, 20), BTreeMap::from([("first".to_owned(), 20)]));
    let why = shown(&gateway)["endpoints"][1]["why"].as_str().unwrap().to_owned();
    assert!(why.contains("stands by") && why.contains("20"), "{why}");
    let address = first.address;
    first.stop();
    answers(&gateway, "standby");
    eventually("only the standby serves", || (shares(&gateway, 10).len() == 1).then_some(()));
    let _first = Upstream::serve_on(address, |_, conn| conn.ok("first"));
    answers(&gateway, "first");
    eventually("the standby stands by", || (shares(&gateway, 10) == BTreeMap::from([("first".to_owned(), 10)])).then_some(()));
}

#[test]
fn a_target_that_cannot_be_looked_up_keeps_its_endpoints_and_shows() {
    let (one, two) = (Upstream::text("one"), Upstream::text("two"));
    let dns = Dns::new();
    dns.host("a.internal", 1, &["127.0.0.1"]);
    dns.host("b.internal", 1, &["127.0.0.1"]);
    dns.service("_http._tcp.users.internal", 1, &[(0, 1, one.address.port(), "a.internal"), (0, 1, two.address.port(), "b.internal")]);
    let gateway = Gateway::with_dns(&dns, "", &discovered("_http._tcp.users.internal", ""));
    eventually("both are there", || (ids(&gateway).len() == 2).then_some(()));
    dns.fail("b.internal", Some(Failing::ServFail));
    let error = eventually("the failure shows", || shown(&gateway)["lookups"][0]["error"].as_str().map(str::to_owned));
    assert!(error.contains("b.internal"), "{error}");
    assert_eq!(shares(&gateway, 10).len(), 2);
    // While the other's records are followed.
    dns.service("_http._tcp.users.internal", 1, &[(0, 1, 9, "a.internal"), (0, 1, two.address.port(), "b.internal")]);
    eventually("the new port is there", || ids(&gateway).contains(&"http://127.0.0.1:9".to_owned()).then_some(()));
    let kept = format!("http://127.0.0.1:{}", two.address.port());
    assert!(ids(&gateway).len() == 2 && ids(&gateway).contains(&kept), "{:?}", ids(&gateway));
}

#[test]
fn the_hosts_file_and_search_domains_hold() {
    let upstream = Upstream::text("ok");
    let port = upstream.address.port();
    let dns = Dns::new();
    dns.host("users.internal", 60, &["127.0.0.1"]);
    // In the file and in DNS: the file wins, and nobody is asked.
    dns.host("written.internal", 60, &["127.0.0.9"]);
    let yaml = format!(
        "upstreams: {{ short: {{ endpoints: ['http://users:{port}'] }}, written: {{ endpoints: ['http://written.internal:{port}'] }} }}\n\
         routes: [{{ match: /short, upstream: short }}, {{ match: /written, upstream: written }}]\n"
    );
    let gateway = Gateway::with_dns(&dns, "127.0.0.1 other written.internal # and a comment\n", &yaml);
    for path in ["/short", "/written"] {
        eventually(path, || (gateway.get(path).text() == "ok").then_some(()));
    }
    assert_eq!((dns.asked("written.internal"), dns.asked("users.internal")), (0, 1));
}

#[test]
fn a_service_with_a_port_is_a_problem() {
    let error = Gateway::start_error(&discovered("_http._tcp.users.internal:80", ""), &[]).unwrap();
    assert!(error.contains("SRV records have the ports") && error.contains("leave the port out"), "{error}");
    let error = Gateway::start_error(&discovered("users.internal", ""), &[]).unwrap();
    assert!(error.contains("not a name with a port"), "{error}");
}
