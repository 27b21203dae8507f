//! Which endpoint gets a request, seen from outside.

use std::collections::HashMap;
use std::time::Duration;

use crate::support::client::{get, request};
use crate::support::{Gate, Gateway, Upstream, eventually};

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

fn upstreams(count: usize) -> (Vec<Upstream>, Vec<std::net::SocketAddr>) {
    let upstreams: Vec<Upstream> = NAMES[..count].iter().map(|name| Upstream::text(name)).collect();
    let addresses = upstreams.iter().map(|upstream| upstream.address).collect();
    (upstreams, addresses)
}

fn balanced(balance: &str, endpoints: &str) -> String {
    format!("upstreams:\n  up:\n    endpoints: {endpoints}\n    balance: {balance}\nroutes: [{{ name: all, match: /*, upstream: up }}]\n")
}

fn picks(gateway: &Gateway, count: usize) -> String {
    let mut raw = gateway.connect();
    (0..count).map(|_| raw.ask(get("/")).text()).collect()
}

fn shares(picks: &str) -> HashMap<char, usize> {
    picks.chars().fold(HashMap::new(), |mut shares, pick| {
        *shares.entry(pick).or_default() += 1;
        shares
    })
}

#[test]
fn round_robin_goes_round_over_all_connections() {
    let (_upstreams, addresses) = upstreams(3);
    let gateway = Gateway::new(&balanced("round_robin", "[http://@0, http://@1, http://@2]"), &addresses);
    let seen: String = (0..9).map(|_| gateway.get("/").text()).collect();
    assert!("abcabcabcabc".contains(&seen), "{seen}");
}

#[test]
fn weighted_is_exact_and_smooth() {
    let (_upstreams, addresses) = upstreams(3);
    let endpoints = "[{ url: 'http://@0', weight: 5 }, { url: 'http://@1', weight: 1 }, { url: 'http://@2', weight: 1 }]";
    let gateway = Gateway::new(&balanced("weighted", endpoints), &addresses);
    assert_eq!(picks(&gateway, 21), "aabacaa".repeat(3));
}

#[test]
fn weight_zero_gets_no_new_requests() {
    let (_upstreams, addresses) = upstreams(2);
    let gateway = Gateway::new(&balanced("weighted", "[{ url: 'http://@0', weight: 0 }, 'http://@1']"), &addresses);
    assert_eq!(picks(&gateway, 10), "b".repeat(10));
}

#[test]
fn least_requests_goes_where_least_is_in_flight() {
    let gate = Gate::new();
    let pass = gate.clone();
    let busy = Upstream::serve(move |_, conn| {
        pass.pass();
        conn.ok("busy")
    });
    let free = Upstream::text("free");
    let gateway = Gateway::new(&balanced("least_requests", "[http://@0, http://@1]"), &[busy.address, free.address]);
    let mut raws = Vec::new();
    eventually("the busy one is busy", || {
        let mut raw = gateway.connect();
        raw.send(get("/"));
        raws.push(raw);
        std::thread::sleep(Duration::from_millis(10));
        (busy.count() >= 1).then_some(())
    });
    for _ in 0..10 {
        assert_eq!(gateway.get("/").text(), "free");
    }
    let seen = gateway.admin_get("/upstreams").json()["upstreams"][0].clone();
    assert_eq!((seen["balance"].as_str(), seen["endpoints"][0]["in_flight"].as_u64()), (Some("least_requests"), Some(1)));
    gate.open();
}

#[test]
fn p2c_avoids_the_slow_one() {
    let slow = Upstream::serve(|_, conn| {
        std::thread::sleep(Duration::from_millis(60));
        conn.ok("s")
    });
    let fast = Upstream::text("f");
    let gateway = Gateway::new(&balanced("p2c", "[http://@0, http://@1]"), &[slow.address, fast.address]);
    let seen = shares(&picks(&gateway, 100));
    assert!(seen[&'f'] >= 90, "{seen:?}");
    let endpoints = gateway.admin_get("/upstreams").json()["upstreams"][0]["endpoints"].clone();
    assert!(endpoints[1]["ewma_ms"].as_f64().unwrap() < 60.0, "{endpoints}");
}

#[test]
fn random_uses_everybody() {
    let (_upstreams, addresses) = upstreams(3);
    let gateway = Gateway::new(&balanced("random", "[http://@0, http://@1, http://@2]"), &addresses);
    let seen = shares(&picks(&gateway, 300));
    assert!(seen.len() == 3 && seen.values().all(|count| (50..=150).contains(count)), "{seen:?}");
}

#[test]
fn a_hashed_key_stays_put_and_only_the_lost_ones_move() {
    let (mut all, addresses) = upstreams(5);
    let endpoints = "[http://@0, http://@1, http://@2, http://@3, http://@4]";
    let yaml = balanced("{ consistent_hash: { key: [header:x-user, ip] } }", endpoints)
        .replace("upstream: up }", "upstream: up, retry: { backoff: 1ms, budget: 100% } }");
    let gateway = Gateway::new(&yaml, &addresses);
    let map = || -> Vec<String> {
        let mut raw = gateway.connect();
        (0..200).map(|user| raw.ask(request("GET", "/", &[("x-user", &user.to_string())], "")).text()).collect()
    };
    let before = map();
    assert_eq!(map(), before);
    assert!(shares(&before.concat()).len() == 5);
    // Without the header the next selector holds: one client, one endpoint.
    assert_eq!(shares(&picks(&gateway, 20)).len(), 1);
    all[2].stop();
    let after = map();
    for (before, after) in before.iter().zip(&after) {
        assert!(after != "c" && (before == after || before == "c"), "{before} to {after}");
    }
    // Another gateway, another order of the list: the same endpoints.
    let reversed = yaml.replace(endpoints, "[http://@4, http://@3, http://@2, http://@1, http://@0]");
    gateway.reload_ok(&reversed, &addresses);
    assert_eq!(map(), after);
}

#[test]
fn slow_start_gives_a_new_endpoint_little_at_first() {
    let (_upstreams, addresses) = upstreams(2);
    let yaml = |endpoints: &str| balanced("round_robin", endpoints).replace("    balance", "    slow_start: 1m\n    balance");
    let gateway = Gateway::new(&yaml("[http://@0]"), &addresses);
    assert_eq!(picks(&gateway, 3), "aaa");
    gateway.reload_ok(&yaml("[http://@0, http://@1]"), &addresses);
    let seen = shares(&picks(&gateway, 110));
    // A factor of 0.1 to a little more: 10 of 110.
    assert!((8..=16).contains(&seen[&'b']), "{seen:?}");
}

#[test]
fn what_upstreams_shows() {
    let (_upstreams, addresses) = upstreams(2);
    let gateway = Gateway::new(&balanced("weighted", "[{ url: 'http://@0', weight: 3 }, 'http://@1']"), &addresses);
    picks(&gateway, 8);
    let upstream = gateway.admin_get("/upstreams").json()["upstreams"][0].clone();
    assert_eq!(
        (upstream["name"].as_str(), upstream["panic"].as_bool(), upstream["breaker"]["mode"].as_str()),
        (Some("up"), Some(false), Some("off"))
    );
    let endpoint = &upstream["endpoints"][0];
    assert_eq!(endpoint["id"], format!("http://{}", addresses[0]));
    assert_eq!(
        (endpoint["weight"].as_u64(), endpoint["state"].as_str(), endpoint["in_flight"].as_u64()),
        (Some(3), Some("healthy"), Some(0))
    );
    assert_eq!((endpoint["connections"]["open"].as_u64(), endpoint["connections"]["idle"].as_u64()), (Some(1), Some(1)));
    assert!(endpoint["ewma_ms"].as_f64().unwrap() > 0.0 && endpoint["ejected_until"].is_null() && endpoint["last_check"]["ok"].is_null());
    assert!(endpoint["why"].is_null() && endpoint["ejections"] == 0, "{endpoint}");
    for (index, count) in [(0, 6.0), (1, 2.0)] {
        let labels = format!("upstream=\"up\",endpoint=\"http://{}\"", addresses[index]);
        gateway.metric_becomes(&format!("gateway_upstream_requests_total{{{labels},status=\"200\"}}"), count);
        gateway.metric_becomes(&format!("gateway_upstream_connections{{{labels}}}"), 1.0);
        gateway.metric_becomes(&format!("gateway_upstream_ejections_total{{{labels}}}"), 0.0);
        gateway.metric_becomes(&format!("gateway_endpoint_healthy{{{labels}}}"), 1.0);
    }
    gateway.metric_becomes("gateway_upstream_request_duration_seconds_count{upstream=\"up\"}", 8.0);
}
