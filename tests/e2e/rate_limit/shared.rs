//! Limits that gateways share through Redis while it answers.

use super::passed;
use super::server::{Redis, UP, connections, free_port};
use crate::support::certs::Authority;
use crate::support::process::Process;
use crate::support::{Answer, Gateway, eventually};

#[test]
fn gateways_share_a_limit_through_redis() {
    let redis = Redis::start();
    let limit = "{ by: 'header:x-k', rate: 10/h, store: main }";
    let gateways = [redis.gateway(limit), redis.gateway(limit)];
    gateways.iter().for_each(|gateway| gateway.metric_becomes(UP, 1.0));
    let ask = |n: usize, key: &str| gateways[n % 2].request("GET", "/", &[("X-K", key)], "");
    let mut n = 0;
    let count = passed(30, || {
        n += 1;
        ask(n, "one")
    });
    assert_eq!(count, 10, "over both gateways together");
    for n in 0..2 {
        let answer = ask(n, "one");
        answer.refused(429, "rate_limited");
        assert_eq!(answer.header("ratelimit-policy"), Some("\"header:x-k\";q=10;w=3600"));
        assert!(answer.header("retry-after").unwrap().parse::<u32>().unwrap() <= 360);
    }
    // Exact for parallel requests, too.
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let ask = &ask;
        let clients: Vec<_> = (0..8).map(|n| scope.spawn(move || (0..5).map(|_| ask(n, "two").status).collect::<Vec<_>>())).collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 10);
}

#[test]
fn a_flood_of_refused_clients_does_not_reach_redis() {
    let redis = Redis::start();
    let gateway = redis.gateway("{ by: ip, rate: 2/h, store: main }");
    gateway.metric_becomes(UP, 1.0);
    assert_eq!(passed(9, || gateway.get("/")), 2);
    let mut client = redis.client();
    let calls = |client: &mut redis::Connection| -> u64 {
        let info: String = redis::cmd("INFO").arg("commandstats").query(client).unwrap();
        info.lines()
            .filter(|line| line.starts_with("cmdstat_eval"))
            .filter_map(|line| line.split("calls=").nth(1)?.split(',').next()?.parse::<u64>().ok())
            .sum()
    };
    let before = calls(&mut client);
    assert!(before >= 3, "two that passed and one that did not: {before}");
    for _ in 0..50 {
        assert_eq!(gateway.get("/").status, 429);
    }
    assert!(calls(&mut client) <= before + 1, "a heartbeat may have come between");
}

const LIMIT: &str = "{ by: 'header:x-k', rate: 10/h, store: main }";

fn ask(gateway: &Gateway, key: &str) -> Answer {
    gateway.request("GET", "/", &[("X-K", key)], "")
}

#[test]
fn a_password_in_the_url_opens_a_store_and_without_the_right_one_it_is_down() {
    let redis = Redis::with(&["--requirepass", "p#ss/word"]);
    let with = |user: &str| Gateway::new(&redis.yaml(LIMIT).replace("redis://", &format!("redis://{user}")), &[]);
    let right = [with(":p%23ss%2Fword@"), with("default:p%23ss%2Fword@")];
    right.iter().for_each(|gateway| gateway.metric_becomes(UP, 1.0));
    let mut n = 0;
    let together = passed(30, || {
        n += 1;
        ask(&right[n % 2], "k")
    });
    assert_eq!(together, 10);
    for wrong in [with(""), with(":p4ss@")] {
        assert_eq!(passed(30, || ask(&wrong, "k")), 10, "decided there");
        assert_eq!(wrong.metric(UP), 0.0);
    }
    let error = Gateway::start_error(&redis.yaml(LIMIT).replace("redis://", "redis://:p#ss@"), &[]).unwrap();
    assert!(error.contains("in a password write %23"), "{error}");
}

#[test]
fn a_store_may_speak_tls_and_its_certificate_is_checked() {
    let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
    let authority = Authority::new();
    authority.issue(dir.path(), "server", &["localhost"]);
    std::fs::write(dir.path().join("ca.pem"), authority.pem()).unwrap();
    let file = |name: &str| dir.path().join(name).display().to_string();
    let redis = Redis::with(&[
        "--tls-port",
        &port.to_string(),
        "--tls-cert-file",
        &file("server.pem"),
        "--tls-key-file",
        &file("server.key"),
        "--tls-auth-clients",
        "no",
    ]);
    // What the system trusts is the process's environment.
    let start = |host: &str, trusted: &str| {
        let yaml = format!(
            "
listeners: [{{ address: '127.0.0.1:@LISTEN' }}]
admin: {{ address: '127.0.0.1:@ADMIN' }}
server: {{ workers: 2 }}
log: {{ format: json, access: {{ enabled: false }} }}
redis: {{ main: {{ url: 'rediss://{host}:{port}', timeout: 5s }} }}
routes: [{{ match: /*, rate_limit: [{{ by: ip, rate: 10/h, store: main }}], respond: {{ status: 200 }} }}]
"
        );
        Process::start(tempfile::tempdir().unwrap(), &yaml, &[("SSL_CERT_FILE", trusted)])
    };
    let ask = |gateway: &Process| gateway.ask(0, "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n");
    let right = start("localhost", &file("ca.pem"));
    right.said("store is up");
    assert_eq!(passed(30, || ask(&right)), 10);
    let mut client = redis.client();
    let keys: Vec<String> = redis::cmd("KEYS").arg("tollgate:*").query(&mut client).unwrap();
    assert_eq!(keys.len(), 2, "the heartbeats and a bucket: {keys:?}");
    Authority::new().issue(dir.path(), "other", &["other"]);
    for (host, trusted) in [("127.0.0.1", "ca.pem"), ("localhost", "other.pem")] {
        let wrong = start(host, &file(trusted));
        let event = wrong.said("store cannot be reached");
        assert!(event["error"].as_str().unwrap().to_lowercase().contains("certificate"), "{event}");
        assert_eq!((ask(&wrong).status, wrong.metric(UP)), (200, 0.0), "decided there");
    }
}

#[test]
fn scripts_and_buckets_may_be_flushed_at_any_time() {
    let redis = Redis::start();
    let gateway = redis.up(LIMIT);
    let mut client = redis.client();
    assert_eq!(passed(4, || ask(&gateway, "k")), 4);
    redis::cmd("SCRIPT").arg("FLUSH").exec(&mut client).unwrap();
    assert_eq!(
        ask(&gateway, "k").header("ratelimit").unwrap().split(";t=").next(),
        Some("\"header:x-k\";r=5"),
        "one script is loaded again"
    );
    assert_eq!(passed(30, || ask(&gateway, "k")), 5);
    redis::cmd("FLUSHALL").exec(&mut client).unwrap();
    assert_eq!(passed(30, || ask(&gateway, "other")), 10);
    assert_eq!(gateway.metric(UP), 1.0);
}

#[test]
fn who_was_refused_is_let_off_by_a_store_that_has_lost_its_data() {
    let mut redis = Redis::start();
    let gateway = redis.up(LIMIT);
    assert_eq!(passed(30, || ask(&gateway, "k")), 10);
    assert_eq!(ask(&gateway, "k").status, 429);
    redis.stop();
    gateway_is_down(&gateway);
    redis.restart();
    gateway.metric_becomes(UP, 1.0);
    assert_eq!(passed(30, || ask(&gateway, "k")), 10);
}

/// Asks until the store counts as down.
fn gateway_is_down(gateway: &Gateway) {
    eventually("the store counts as down", || {
        assert_eq!(ask(gateway, &format!("{:?}", std::time::Instant::now())).status, 200, "an outage stops nothing");
        (gateway.metric(UP) == 0.0).then_some(())
    });
}

/// Gateways that live, and when each wrote last, in seconds.
fn heartbeats(client: &mut redis::Connection) -> Vec<(String, u64)> {
    redis::cmd("ZRANGE").arg("tollgate:{limits}:gateways").arg(0).arg(-1).arg("WITHSCORES").query(client).unwrap()
}

#[test]
fn gateways_that_start_together_soon_know_of_each_other() {
    let mut redis = Redis::start();
    let gateways = [redis.up(LIMIT), redis.up(LIMIT)];
    let mut client = redis.client();
    let first = heartbeats(&mut client);
    assert_eq!(first.len(), 2);
    let newest = first.iter().map(|(_, at)| *at).max().unwrap();
    eventually("each has looked again", || heartbeats(&mut client).iter().all(|(_, at)| *at > newest).then_some(()));
    drop(client);
    redis.stop();
    for gateway in &gateways {
        gateway_is_down(gateway);
        assert_eq!(passed(30, || ask(gateway, "k")), 5, "half of ten, since there are two");
    }
}

#[test]
fn a_changed_store_connects_anew_as_the_same_gateway_and_a_removed_one_leaves() {
    let redis = Redis::start();
    let gateway = redis.up(LIMIT);
    let mut client = redis.client();
    assert_eq!(passed(4, || ask(&gateway, "k")), 4);
    let before = connections(&mut client);
    gateway.reload_ok(&redis.yaml(LIMIT).replace("500ms", "5s"), &[]);
    eventually("the old connections are closed", || connections(&mut client).is_disjoint(&before).then_some(()));
    gateway.metric_becomes(UP, 1.0);
    assert_eq!(heartbeats(&mut client).len(), 1, "it is still one gateway");
    let bare = "routes: [{ name: r, match: /*, rate_limit: [{ by: ip, rate: 10/h }], respond: { status: 200 } }]";
    assert_eq!(ask(&gateway, "k").status, 200);
    gateway.reload_ok(bare, &[]);
    eventually("none is left", || connections(&mut client).is_empty().then_some(()));
    assert_eq!(ask(&gateway, "k").status, 200);
}

#[test]
fn another_database_of_the_same_redis_is_another_store() {
    let redis = Redis::start();
    let other = Gateway::new(&redis.yaml(LIMIT).replace("', timeout", "/1', timeout"), &[]);
    other.metric_becomes(UP, 1.0);
    let gateways = [redis.up(LIMIT), redis.up(LIMIT)];
    assert_eq!(passed(30, || ask(&gateways[0], "k")), 10);
    assert_eq!(ask(&gateways[1], "k").status, 429);
    assert_eq!(passed(30, || ask(&other, "k")), 10);
    assert_eq!(heartbeats(&mut redis.client()).len(), 2);
}
