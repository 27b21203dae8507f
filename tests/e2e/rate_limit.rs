//! `rate_limit`: how much a caller may ask for, in one process and through Redis.

#[cfg(feature = "redis")]
mod outages;
#[cfg_attr(not(feature = "redis"), allow(dead_code))]
mod server;
#[cfg(feature = "redis")]
mod shared;
#[cfg(feature = "redis")]
mod workers;

pub use server::Redis;

use serde_json::json;

use crate::support::client::get;
use crate::support::{Answer, Gateway, Upstream, eventually};
use crate::tokens::{SECRET, bearer, claims_of, hs256};

/// Asks until somebody is refused, at most `most` times; how many passed.
fn passed(most: usize, mut ask: impl FnMut() -> Answer) -> usize {
    for count in 0..most {
        let answer = ask();
        if answer.status == 429 {
            return count;
        }
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    most
}

/// One respond route with these limits; no bucket gains anything during a test.
fn limited(limits: &str) -> Gateway {
    Gateway::new(&format!("routes: [{{ name: r, match: /*, rate_limit: {limits}, respond: {{ status: 200 }} }}]"), &[])
}

#[test]
fn the_burst_passes_and_the_next_one_is_429() {
    let gateway = limited("[{ by: ip, rate: 60/h, burst: 3, name: 'per address' }]");
    for left in [2, 1, 0] {
        let answer = gateway.get("/");
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("ratelimit-policy"), Some("\"per address\";q=3;w=180"));
        assert_eq!(answer.header("ratelimit"), Some(format!("\"per address\";r={left};t=60").as_str()));
    }
    let answer = gateway.get("/over");
    answer.refused(429, "rate_limited");
    let body = answer.json();
    assert_eq!(body["type"], "https://iana.org/assignments/http-problem-types#quota-exceeded");
    assert_eq!(body["violated-policies"], json!(["per address"]));
    assert_eq!(answer.header("retry-after"), Some("60"));
    assert_eq!(answer.header("ratelimit"), Some("\"per address\";r=0;t=60"));
    assert_eq!(answer.header("ratelimit-policy"), Some("\"per address\";q=3;w=180"));
    let line = gateway.logged("/over");
    assert_eq!((&line["rate_limit"], &line["reason"], &line["status"]), (&json!("per address"), &json!("rate_limited"), &json!(429)));
    gateway.metric_becomes("gateway_rate_limited_total{route=\"r\"}", 1.0);
    gateway.metric_becomes("gateway_errors_total{route=\"r\",reason=\"rate_limited\"}", 1.0);
    let head = gateway.request("HEAD", "/", &[], "");
    assert_eq!((head.status, head.header("retry-after"), head.body.len()), (429, Some("60"), 0));
}

#[test]
fn time_brings_requests_back() {
    let gateway = limited("[{ by: ip, rate: 10/s, burst: 2 }]");
    assert_eq!(passed(3, || gateway.get("/")), 2);
    let refused = gateway.get("/");
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("1")), "100 ms, written as the shortest wait there is");
    eventually("100 ms later one passes", || (gateway.get("/").status == 200).then_some(()));
}

#[test]
fn the_burst_is_exact_for_parallel_requests_on_all_workers() {
    let gateway = limited("[{ by: global, rate: 100/h }]");
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..10)
            .map(|_| {
                let mut raw = gateway.connect();
                scope.spawn(move || (0..20).map(|_| raw.ask(get("/")).status).collect::<Vec<_>>())
            })
            .collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 100);
    assert_eq!(statuses.iter().filter(|status| **status == 429).count(), 100);
}

#[test]
fn inherited_and_own_limits_both_count_and_a_bucket_lives_where_it_is_written() {
    let yaml = "
        defaults: { rate_limit: [{ by: ip, rate: 6/h, name: all }] }
        routes:
          - { match: /a, rate_limit: [{ by: ip, rate: 2/h, name: own }], respond: { status: 200 } }
          - { match: /b, rate_limit: [{ by: ip, rate: 2/h, name: own }], respond: { status: 200 } }
          - { match: /free, rate_limit: off, respond: { status: 200 } }
          - match: /g/*
            rate_limit: [{ by: ip, rate: 3/h, name: group }]
            routes:
              - { match: /x, respond: { status: 200 } }
              - { match: /y, respond: { status: 200 } }
    ";
    let gateway = Gateway::new(yaml, &[]);
    let first = gateway.get("/a");
    assert_eq!(first.header("ratelimit-policy"), Some("\"all\";q=6;w=3600, \"own\";q=2;w=3600"), "defaults, then the route");
    assert_eq!(first.header("ratelimit"), Some("\"own\";r=1;t=1800"), "the one with the least left");
    assert_eq!(passed(9, || gateway.get("/a")), 1);
    assert_eq!(gateway.get("/a").json()["violated-policies"], json!(["own"]));
    // `all` was charged by the two that passed, and by the two that `own` refused after it.
    assert_eq!(gateway.get("/b").header("ratelimit"), Some("\"all\";r=1;t=600"));
    assert_eq!(gateway.get("/g/x").status, 200);
    let answer = gateway.get("/g/y");
    assert_eq!((answer.status, answer.json()["violated-policies"][0].as_str()), (429, Some("all")), "one bucket for all that inherit it");
    let free = gateway.get("/free");
    assert!(free.status == 200 && !free.has("ratelimit") && !free.has("ratelimit-policy"));
    // A group's bucket is shared by its routes; `all` refuses before it is charged.
    let fresh = Gateway::new(&yaml.replace("6/h", "60/h"), &[]);
    assert_eq!(passed(2, || fresh.get("/g/x")), 2);
    assert_eq!(passed(9, || fresh.get("/g/y")), 1);
}

#[test]
fn what_refuses_is_not_charged_nor_what_comes_after_it() {
    let yaml = "
        routes:
          - match: /*
            rate_limit: [{ by: global, rate: 3/h, name: shared }, { by: 'header:x-k', rate: 1/h, name: own }]
            respond: { status: 200 }
    ";
    let gateway = Gateway::new(yaml, &[]);
    let ask = |key: &str| gateway.request("GET", "/", &[("X-K", key)], "").status;
    assert_eq!(ask("a"), 200);
    for _ in 0..10 {
        assert_eq!(ask("a"), 429);
    }
    assert_eq!((ask("b"), ask("c"), ask("d")), (200, 200, 429), "`global` is last, so refused requests did not eat it");
}

#[test]
fn keys_are_the_first_selector_present_and_never_nothing() {
    let gateway = Gateway::new(
        "
        server: { workers: 2, trusted_proxies: [127.0.0.0/8], timeouts: { drain: 200ms } }
        routes:
          - { match: /list, rate_limit: [{ by: ['header:x-tenant', 'cookie:c', 'query:q', ip], rate: 1/h }], respond: { status: 200 } }
          - { match: /bare, rate_limit: [{ by: 'header:x-tenant', rate: 1/h }], respond: { status: 200 } }
          - { match: /user, rate_limit: [{ by: user, rate: 1/h }], respond: { status: 200 } }
          - { match: '/p/{id}', rate_limit: [{ by: 'param:id', rate: 1/h }], respond: { status: 200 } }
          - { match: /host, rate_limit: [{ by: host, rate: 1/h }], respond: { status: 200 } }
          - { match: /ip, rate_limit: [{ by: ip, rate: 1/h }], respond: { status: 200 } }
        ",
        &[],
    );
    let ask = |path: &str, fields: &[(&str, &str)]| gateway.request("GET", path, fields, "").status;
    let twice = |path: &str, fields: &[(&str, &str)]| assert_eq!((ask(path, fields), ask(path, fields)), (200, 429), "{path} {fields:?}");
    twice("/list", &[("X-Tenant", "t")]);
    twice("/list", &[("X-Tenant", "T")]);
    twice("/list", &[("X-Tenant", ""), ("Cookie", "c=t")]);
    assert_eq!(ask("/list", &[("Cookie", "a=1; c=t")]), 429);
    twice("/list?q=t", &[]);
    assert_eq!(ask("/list?q=%74&x", &[]), 429, "decoded");
    twice("/list", &[]);
    assert_eq!(ask("/list?q=", &[]), 429, "empty is absent");
    twice("/bare", &[]);
    assert_eq!(ask("/bare", &[("X-Tenant", "new")]), 200);
    twice("/user", &[]);
    twice("/p/a%41", &[]);
    assert_eq!(ask("/p/aA", &[]), 429, "another way to write the same");
    twice("/host", &[("Host", "a.test")]);
    assert_eq!((ask("/host", &[("Host", "A.TEST.")]), ask("/host", &[("Host", "a.test:80")])), (429, 429));
    twice("/ip", &[("X-Forwarded-For", "192.0.2.1")]);
    twice("/ip", &[("X-Forwarded-For", "2001:db8:1:2::1")]);
    assert_eq!(ask("/ip", &[("X-Forwarded-For", "2001:db8:1:2:ffff::9")]), 429, "by the /64");
    assert_eq!(ask("/ip", &[("X-Forwarded-For", "::ffff:192.0.2.1")]), 429);
    assert_eq!(ask("/ip", &[("X-Forwarded-For", "6.6.6.6, 192.0.2.1")]), 429, "what the client made up does not count");
}

#[test]
fn http2_and_http1_share_a_bucket() {
    let gateway = limited("[{ by: ip, rate: 2/h }]");
    assert_eq!(gateway.get("/").status, 200);
    crate::support::block_on(async {
        let mut client = crate::support::h2::Client::connect(gateway.address()).await;
        assert_eq!(client.get("/").await.status, 200);
        let refused = client.get("/").await;
        assert_eq!((refused.status, refused.header("retry-after")), (429, Some("1800")));
    });
}

fn users(limits: &str) -> (Gateway, Upstream) {
    let upstream = Upstream::echo();
    let yaml = format!(
        "
        upstreams: {{ up: {{ endpoints: [http://@0] }} }}
        authenticators:
          main: {{ jwt: {{ issuer: 'https://id.test', audience: [api], algorithms: [HS256], secret: '{SECRET}' }} }}
          keys: {{ api_key: {{ keys: [{{ id: acme, sha256: 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae }}] }} }}
        routes: [{{ name: r, match: /*, auth: [main, keys], rate_limit: {limits}, upstream: up }}]
    "
    );
    (Gateway::new(&yaml, &[upstream.address]), upstream)
}

#[test]
fn a_users_limit_is_the_users_and_address_limits_come_before_auth() {
    let (gateway, upstream) = users("[{ by: user, rate: 2/h, name: user }, { by: ip, rate: 6/h, name: ip }]");
    let ask = |sub: &str| gateway.request("GET", "/", &[("Authorization", &bearer(&hs256(&claims_of(sub))))], "");
    let first = ask("ann");
    assert_eq!(first.header("ratelimit-policy"), Some("\"ip\";q=6;w=3600, \"user\";q=2;w=3600"));
    assert_eq!((ask("ann").status, ask("ann").status, ask("bob").status), (200, 429, 200));
    // Four of the address are used; guessing uses up the rest, and then even the right one waits.
    for status in [401, 401, 429, 429] {
        let answer = gateway.request("GET", "/guess", &[("Authorization", "Bearer guess")], "");
        assert_eq!(answer.status, status);
        assert_eq!(answer.header("ratelimit-policy"), Some("\"ip\";q=6;w=3600"), "only what was evaluated");
    }
    let answer = ask("carol");
    assert_eq!((answer.status, answer.json()["violated-policies"][0].as_str()), (429, Some("ip")));
    assert_eq!(upstream.count(), 3);
}

#[test]
fn a_limit_after_auth_still_counts_by_the_credential_it_names() {
    // `user` makes it wait for auth, which takes the key out of the request; the limit counts by what the client sent.
    let (gateway, upstream) =
        users("[{ by: ['header:x-tenant', user], rate: 1/h }, { by: ['header:x-api-key', user], rate: 2/h, name: key }]");
    let ask = |tenant: &str| gateway.request("GET", "/", &[("X-Api-Key", "foo"), ("X-Tenant", tenant)], "");
    assert_eq!((ask("a").status, ask("b").status), (200, 200));
    let third = ask("c");
    assert_eq!((third.status, third.json()["violated-policies"][0].as_str()), (429, Some("key")));
    assert!(upstream.requests().iter().all(|request| !request.has("x-api-key")));
}

#[test]
fn retries_and_websockets_count_once_and_preflights_not_at_all() {
    let upstream = Upstream::serve(|request, conn| if request.target == "/retry" { conn.answer(503, "", "") } else { conn.ok("hi") });
    let yaml = "
        upstreams: { up: { endpoints: [http://@0] } }
        routes:
          - match: /*
            rate_limit: [{ by: ip, rate: 3/h }]
            retry: { attempts: 2, when: [503], backoff: 1ms }
            cors: { origins: [https://app.test] }
            upstream: up
    ";
    let gateway = Gateway::new(yaml, &[upstream.address]);
    let retried = gateway.get("/retry");
    assert_eq!((retried.status, upstream.count(), retried.header("ratelimit")), (503, 3, Some("\"ip\";r=2;t=1200")));
    for _ in 0..5 {
        let fields = [("Origin", "https://app.test"), ("Access-Control-Request-Method", "GET")];
        assert_eq!(gateway.request("OPTIONS", "/", &fields, "").status, 204);
    }
    let handshake = [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    assert_eq!(gateway.request("GET", "/", &handshake, "").header("ratelimit"), Some("\"ip\";r=1;t=1200"));
    assert_eq!(passed(9, || gateway.get("/")), 1);
}

#[test]
fn an_upstreams_own_fields_are_replaced() {
    let upstream =
        Upstream::serve(|_, conn| conn.answer(200, "ratelimit: \"theirs\";r=1;t=1\r\nratelimit-policy: \"theirs\";q=1\r\n", "hi"));
    let gateway = Gateway::to(upstream.address, "rate_limit: [{ by: ip, rate: 9/h }]");
    let answer = gateway.get("/");
    assert_eq!(answer.all("ratelimit"), ["\"ip\";r=8;t=400"]);
    assert_eq!(answer.all("ratelimit-policy"), ["\"ip\";q=9;w=3600"]);
    let plain = Gateway::to(upstream.address, "");
    assert_eq!(plain.get("/").all("ratelimit"), ["\"theirs\";r=1;t=1"], "untouched where there is no limit");
}

#[test]
fn a_reload_keeps_the_buckets_of_limits_that_did_not_change() {
    let yaml = |own: &str, more: &str| {
        format!("routes: [{{ match: /a, rate_limit: [{{ by: ip, rate: {own} }}], respond: {{ status: 200 }} }}{more}]")
    };
    let gateway = Gateway::new(&yaml("3/h", ""), &[]);
    assert_eq!(passed(2, || gateway.get("/a")), 2);
    gateway.reload_ok(&yaml("3/h", ", { match: /b, respond: { status: 200 } }"), &[]);
    assert_eq!(passed(9, || gateway.get("/a")), 1, "unchanged: what was used stays used");
    gateway.reload_ok(&yaml("4/h", ""), &[]);
    assert_eq!(passed(9, || gateway.get("/a")), 4, "changed: starts full");
}

#[test]
fn a_rate_or_burst_of_nothing_is_refused_at_load() {
    for limit in ["{ by: ip, rate: 0/s }", "{ by: ip, rate: 1/s, burst: 0 }", "{ by: ip, rate: 1/s, store: nowhere }"] {
        let yaml = format!("routes: [{{ match: /*, rate_limit: [{limit}], respond: {{ status: 200 }} }}]");
        assert!(Gateway::start_error(&yaml, &[]).is_some(), "{limit}");
    }
}
