//! Limits whose Redis is away, slow, or comes back.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use super::passed;
use super::server::{Redis, UP};
use crate::support::client::request;
use crate::support::process::Process;
use crate::support::{Gateway, eventually};

#[test]
fn without_redis_each_gateway_decides_with_its_share_and_returns_by_itself() {
    let mut redis = Redis::start();
    let limit = "{ by: 'header:x-k', rate: 10/h, store: main }";
    let first = redis.gateway(limit);
    first.metric_becomes(UP, 1.0);
    // The second one counts the first among the gateways.
    let second = redis.gateway(limit);
    second.metric_becomes(UP, 1.0);
    let ask = |gateway: &Gateway, key: &str| gateway.request("GET", "/", &[("X-K", key)], "");
    assert_eq!(passed(2, || ask(&second, "k")), 2);
    redis.stop();
    eventually("the store counts as down", || {
        for gateway in [&first, &second] {
            assert_eq!(ask(gateway, &format!("{:?}", Instant::now())).status, 200, "an outage stops nothing");
        }
        (first.metric(UP) + second.metric(UP) == 0.0).then_some(())
    });
    assert_eq!(passed(30, || ask(&second, "other")), 5, "half of ten, since there are two");
    redis.restart();
    eventually("the store is used again", || (second.metric(UP) == 1.0).then_some(()));
    first.metric_becomes(UP, 1.0);
    let mut n = 0;
    let count = passed(30, || {
        n += 1;
        ask([&first, &second][n % 2], "new")
    });
    assert_eq!(count, 10, "shared again");
}

#[test]
fn a_store_that_never_answers_costs_its_timeout_at_most() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let yaml = format!(
        "
        redis: {{ main: {{ url: 'redis://{}', timeout: 50ms }} }}
        routes: [{{ match: /*, rate_limit: [{{ by: ip, rate: 4/h, store: main }}], respond: {{ status: 200 }} }}]
    ",
        silent.local_addr().unwrap()
    );
    let gateway = Gateway::new(&yaml, &[]);
    let begun = Instant::now();
    assert_eq!(passed(9, || gateway.get("/")), 4, "decided here: the whole limit, while nothing is known of others");
    assert!(begun.elapsed() < Duration::from_secs(5), "nobody waits for a store that is not there");
    let mut raw = gateway.connect();
    assert_eq!(raw.ask(request("GET", "/", &[], "")).status, 429);
}

#[test]
fn a_redis_that_stalls_costs_its_timeout_three_times_and_is_used_again() {
    let redis = Redis::start();
    let gateway = redis.gateway("{ by: 'header:x-k', rate: 10/h, store: main }");
    gateway.metric_becomes(UP, 1.0);
    let ask = |key: &str| gateway.request("GET", "/", &[("X-K", key)], "");
    assert_eq!(passed(4, || ask("k")), 4);
    redis.signal("-STOP");
    let begun = Instant::now();
    // The whole limit, since there is no other gateway, in buckets that start full; only the first three wait for 500 ms each.
    assert_eq!(passed(30, || ask("k")), 10);
    let waited = begun.elapsed();
    assert!(waited >= Duration::from_millis(1_400), "the store was given its time: {waited:?}");
    assert!(waited < Duration::from_millis(4_000), "nobody waits for a store that is down: {waited:?}");
    assert_eq!(gateway.metric(UP), 0.0);
    redis.signal("-CONT");
    gateway.metric_becomes(UP, 1.0);
    // What the stalled one had got in the meantime it has counted: at least the four from before.
    assert!(passed(30, || ask("k")) <= 6);
    assert_eq!(passed(30, || ask("new")), 10);
}

#[test]
fn a_redis_that_stalls_before_a_worker_has_connected_costs_no_more() {
    let redis = Redis::start();
    let gateway = redis.up("{ by: 'header:x-k', rate: 100/h, store: main }");
    redis.signal("-STOP");
    let begun = Instant::now();
    let mut slow = 0;
    eventually("the store counts as down", || {
        let asked = Instant::now();
        assert_eq!(gateway.request("GET", "/", &[("X-K", &format!("{asked:?}"))], "").status, 200);
        slow += u32::from(asked.elapsed() >= Duration::from_millis(250));
        (gateway.metric(UP) == 0.0).then_some(())
    });
    assert!(slow <= 3, "{slow} requests have waited");
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    redis.signal("-CONT");
    gateway.metric_becomes(UP, 1.0);
    assert_eq!(passed(200, || gateway.request("GET", "/", &[("X-K", "new")], "")), 100);
}

#[test]
fn a_request_waits_once_for_a_redis_that_stalls_however_many_limits_it_has() {
    let redis = Redis::start();
    let limits = "{ by: ip, rate: 9/h, store: main }, { by: path, rate: 9/h }, { by: global, rate: 9/h, store: main }";
    let yaml = redis.yaml(limits).replace("500ms", "1s");
    let gateway = Gateway::new(&yaml, &[]);
    gateway.metric_becomes(UP, 1.0);
    let mut raw = gateway.connect();
    assert_eq!(raw.ask(request("GET", "/", &[], "")).header("ratelimit"), Some("\"ip\";r=8;t=400"));
    redis.signal("-STOP");
    let begun = Instant::now();
    let answer = raw.ask(request("GET", "/", &[], ""));
    let waited = begun.elapsed();
    redis.signal("-CONT");
    assert!(waited >= Duration::from_millis(990) && waited < Duration::from_millis(1_900), "{waited:?}");
    assert_eq!(answer.status, 200);
    // Shared ones are decided here, in buckets that start full; the one of this process has gone on.
    assert_eq!(answer.header("ratelimit"), Some("\"path\";r=7;t=400"));
    assert_eq!(answer.header("ratelimit-policy"), Some("\"ip\";q=9;w=3600, \"path\";q=9;w=3600, \"global\";q=9;w=3600"));
}

/// The program with one route whose limit is in the store at this URL.
fn process(url: &str) -> Process {
    let yaml = format!(
        "
listeners: [{{ address: '127.0.0.1:@LISTEN' }}]
admin: {{ address: '127.0.0.1:@ADMIN' }}
log: {{ format: json, access: {{ enabled: false }} }}
redis: {{ main: {{ url: '{url}', timeout: 500ms }} }}
routes: [{{ match: /*, rate_limit: [{{ by: ip, rate: 100/h, store: main }}], respond: {{ status: 200 }} }}]
"
    );
    Process::start(tempfile::tempdir().unwrap(), &yaml, &[])
}

#[test]
fn an_outage_is_noticed_at_once_without_traffic() {
    let mut redis = Redis::start();
    let process = process(&redis.url());
    process.said("store is up");
    redis.stop();
    // Not only when the next heartbeat fails.
    assert_eq!(process.said("store is down")["error"], "the connection was closed");
    assert_eq!(process.metric(UP), 0.0);
    redis.restart();
    eventually("it is used again", || (process.metric(UP) == 1.0).then_some(()));
    let answer = process.ask(0, "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n");
    assert_eq!((answer.status, answer.header("ratelimit")), (200, Some("\"ip\";r=99;t=36")));
}

#[test]
fn the_log_tells_why_a_store_is_away_each_cause_once() {
    let mut redis = Redis::with(&["--requirepass", "secret"]);
    redis.stop();
    let process = process(&redis.url().replace("redis://", "redis://:wrong-password@"));
    let causes = || -> Vec<String> {
        let text = process.output();
        let events = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let told = events.filter(|event| event["message"].as_str().is_some_and(|message| message.starts_with("store cannot be reached")));
        told.map(|event| event["error"].as_str().unwrap().to_owned()).collect()
    };
    eventually("that nobody listens", || (causes().len() == 1).then_some(()));
    redis.restart();
    eventually("that the password is wrong", || causes().last().filter(|cause| cause.contains("Password authentication failed")).map(drop));
    let told = causes();
    // It may have been met while it started.
    assert!(told.len() <= 4, "{told:?}");
    assert!(told[0].contains("refused"), "{told:?}");
    let text = process.output();
    assert!(!text.contains("wrong-password") && process.metric(UP) == 0.0, "{text}");
}
