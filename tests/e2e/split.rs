//! `split`: shares, stickiness, and what a reload moves.

use crate::support::client::{get, request};
use crate::support::{Answer, Gateway, Refused, Then, Upstream, block_on};

fn canary(by: &str, stable: u32, new: u32) -> String {
    let branches = format!("[{{ upstream: stable, weight: {stable} }}, {{ upstream: new, weight: {new} }}]");
    let split = if by.is_empty() { branches } else { format!("{{ by: {by}, to: {branches} }}") };
    format!(
        "upstreams:\n  stable: {{ endpoints: [http://@0] }}\n  new: {{ endpoints: [http://@1] }}\nroutes:\n  - {{ name: all, match: /*, split: {split} }}\n"
    )
}

#[test]
fn shares_follow_the_weights_and_show_in_metrics() {
    let (stable, new) = (Upstream::text("stable"), Upstream::text("new"));
    let gateway = Gateway::new(&canary("", 80, 20), &[stable.address, new.address]);
    let mut raw = gateway.connect();
    let seen = (0..1000).filter(|_| raw.ask(get("/")).text() == "new").count();
    // 6 standard deviations of 1,000 draws at 20 %.
    assert!((124..=276).contains(&seen), "{seen}");
    for (name, upstream) in [("stable", &stable), ("new", &new)] {
        let series =
            format!("gateway_upstream_requests_total{{upstream=\"{name}\",endpoint=\"http://{}\",status=\"200\"}}", upstream.address);
        gateway.metric_becomes(&series, f64::from(u32::try_from(upstream.count()).unwrap()));
    }
}

#[test]
fn a_branch_without_weight_gets_nothing() {
    let (stable, new) = (Upstream::text("stable"), Upstream::text("new"));
    let gateway = Gateway::new(&canary("", 1, 0), &[stable.address, new.address]);
    let mut raw = gateway.connect();
    assert!((0..200).all(|_| raw.ask(get("/")).text() == "stable"));
    assert_eq!(new.connections(), 0);
}

#[test]
fn a_branch_that_is_down_keeps_its_share() {
    let (stable, dead) = (Upstream::text("stable"), Refused::new());
    let gateway = Gateway::new(&canary("", 50, 50), &[stable.address, dead.address]);
    let statuses: Vec<u16> = (0..60).map(|_| gateway.get("/").status).collect();
    let failed = statuses.iter().filter(|status| **status == 502).count();
    assert!((10..=50).contains(&failed), "{failed} of 60 failed");
}

#[test]
fn with_both_branches_down_all_fail() {
    let (one, other) = (Refused::new(), Refused::new());
    let gateway = Gateway::new(&canary("", 50, 50), &[one.address, other.address]);
    for _ in 0..10 {
        gateway.get("/").refused(502, "upstream_connect_failed");
    }
}

/// What twenty users get of a sticky split whose second branch fails, and that the first got no request of the others'.
#[track_caller]
fn shared_with_a_failing_branch(gateway: &Gateway, stable: &Upstream) -> Vec<Answer> {
    let answers: Vec<Answer> = std::thread::scope(|scope| {
        let ask = |user: usize| scope.spawn(move || gateway.request("GET", "/", &[("x-user", &user.to_string())], ""));
        let asked: Vec<_> = (0..20).map(ask).collect();
        asked.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    let (good, bad): (Vec<Answer>, Vec<Answer>) = answers.into_iter().partition(|answer| answer.status == 200);
    assert!(!good.is_empty() && !bad.is_empty(), "{} of 20 failed", bad.len());
    assert!(good.iter().all(|answer| answer.text() == "stable"));
    assert_eq!(stable.count(), good.len(), "a branch spilled over");
    bad
}

#[test]
fn a_branch_that_times_out_keeps_its_share() {
    let (stable, silent) = (
        Upstream::text("stable"),
        Upstream::raw(|conn| {
            conn.wait_end();
            Then::Close
        }),
    );
    let yaml = canary("header:x-user", 50, 50).replace("split:", "timeout: 1s, split:");
    let gateway = Gateway::new(&yaml, &[stable.address, silent.address]);
    for answer in shared_with_a_failing_branch(&gateway, &stable) {
        answer.refused(504, "upstream_timeout");
    }
}

#[test]
fn a_branch_without_a_usable_endpoint_keeps_its_share() {
    let (stable, sick) = (Upstream::text("stable"), Upstream::serve(|_, conn| conn.answer(500, "", "")));
    let checks = "new: { panic_threshold: 0%, health: { path: /health, interval: 50ms, unhealthy: 1 },";
    let gateway = Gateway::new(&canary("header:x-user", 50, 50).replace("new: {", checks), &[stable.address, sick.address]);
    gateway.metric_becomes(&format!("gateway_endpoint_healthy{{upstream=\"new\",endpoint=\"http://{}\"}}", sick.address), 0.0);
    for answer in shared_with_a_failing_branch(&gateway, &stable) {
        answer.refused(503, "no_healthy_endpoint");
    }
    assert!(sick.requests().iter().all(|request| request.target == "/health"), "only checks");
}

#[test]
fn a_sticky_client_stays_where_it_is_and_new_weights_move_only_whom_they_must() {
    block_on(async {
        let (stable, new) = (Upstream::text("stable"), Upstream::text("new"));
        let addresses = [stable.address, new.address];
        let gateway = Gateway::new(&canary("cookie:session", 90, 10), &addresses);
        let branch = |raw: &mut crate::support::Raw, user: usize| {
            raw.ask(request("GET", "/", &[("cookie", &format!("session=u{user}"))], "")).text()
        };
        let all = || {
            let mut raw = gateway.connect();
            (0..300).map(|user| branch(&mut raw, user)).collect::<Vec<_>>()
        };
        let before = all();
        assert_eq!(all(), before, "the same branch, whatever the connection");
        let share = before.iter().filter(|branch| *branch == "new").count();
        assert!((8..=60).contains(&share), "{share} of 300");
        gateway.reload_ok(&canary("cookie:session", 60, 40), &addresses);
        let after = all();
        let left = before.iter().zip(&after).filter(|(before, after)| *before == "new" && *after == "stable").count();
        let joined = before.iter().zip(&after).filter(|(before, after)| *before == "stable" && *after == "new").count();
        assert_eq!(left, 0, "a growing branch loses nobody");
        assert!((50..=130).contains(&joined), "{joined} of 300 moved for 30 %");
    });
}

#[test]
fn without_the_key_a_sticky_split_is_drawn() {
    let (stable, new) = (Upstream::text("stable"), Upstream::text("new"));
    let gateway = Gateway::new(&canary("[header:x-user, cookie:session]", 50, 50), &[stable.address, new.address]);
    let mut raw = gateway.connect();
    let mut seen: Vec<String> = (0..100).map(|_| raw.ask(get("/")).text()).collect();
    seen.sort();
    seen.dedup();
    assert_eq!(seen, ["new", "stable"]);
    let by_header: Vec<String> = (0..20).map(|_| raw.ask(request("GET", "/", &[("x-user", "7")], "")).text()).collect();
    assert!(by_header.windows(2).all(|pair| pair[0] == pair[1]));
}
