//! One answer out of several upstreams, and what hostile or missing ones make of it.

use std::io::Write as _;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::client::{get, request};
use crate::support::h2::Client;
use crate::support::{Answer, Gate, Gateway, Refused, Then, Upstream, block_on, eventually};

fn yaml(route: &str, parts: &[&str], more: &str) -> String {
    let count = parts.len();
    let upstreams: String = (0..count).map(|i| format!("  u{i}: {{ endpoints: [http://@{i}], connect_timeout: 300ms }}\n")).collect();
    let parts: String = parts.iter().map(|part| format!("        - {{ {part} }}\n")).collect();
    format!(
        "upstreams:\n{upstreams}routes:\n  - name: home\n    match: /home/{{id}}\n    {route}\n    aggregate:\n      {more}\n      parts:\n{parts}"
    )
}

/// An upstream that answers with this JSON.
fn json_of(body: &'static str) -> Upstream {
    Upstream::serve(move |_, conn| conn.answer(200, "content-type: application/json\r\n", body))
}

fn words(answer: &Answer) -> &str {
    answer.header("x-tollgate-parts").unwrap_or_else(|| panic!("no word of the parts: {answer:?}"))
}

/// One optional part beside a good one.
fn beside(bad: &Upstream, part: &str, more: &str) -> (Gateway, Upstream) {
    let good = json_of("{\"ok\":true}");
    let parts = ["name: good, upstream: u0, path: /good", part];
    (Gateway::new(&yaml("timeout: 2s", &parts, more), &[good.address, bad.address]), good)
}

const BAD: &str = "name: bad, upstream: u1, path: /bad";

#[test]
fn parts_are_called_at_the_same_time_and_merged_in_written_order() {
    let (first, second) = (Gate::new(), Gate::new());
    let (mine, other) = (first.clone(), second.clone());
    // Each waits for the other to be called: one after another they would never answer.
    let user = Upstream::serve(move |_, conn| {
        mine.open();
        other.pass();
        conn.ok("{\"name\":\"Ann\",\"plan\":\"a\"}")
    });
    let (mine, other) = (second, first);
    let orders = Upstream::serve(move |_, conn| {
        mine.open();
        other.pass();
        conn.ok("{\"data\":{\"items\":[{\"id\":1,\"total\":12345678901234567890.123456789012345678901234567890,\"secret\":2},{\"id\":9007199254740993,\"total\":1e400}]}}")
    });
    let ads = json_of("{\"plan\":\"b\",\"banner\":[1,2]}");
    let parts = [
        "name: user, upstream: u0, path: '/users/{id}', required: true",
        "name: orders, upstream: u1, path: '/orders?user={id}&{query}', select: data.items, allow: [id, total], rename: { total: amount }",
        "name: ads, upstream: u2, path: /ads, group: false",
    ];
    let gateway = Gateway::new(&yaml("", &parts, ""), &[user.address, orders.address, ads.address]);
    let answer = gateway.get("/home/a%2Db%20c?x=1&y=%41");
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(words(&answer), "user=200, orders=200, ads=200");
    assert_eq!(
        answer.text(),
        "{\"user\":{\"name\":\"Ann\",\"plan\":\"a\"},\"orders\":[{\"id\":1,\"amount\":12345678901234567890.123456789012345678901234567890},\
         {\"id\":9007199254740993,\"amount\":1e400}],\"plan\":\"b\",\"banner\":[1,2]}"
    );
    assert_eq!(user.last().target, "/users/a-b%20c");
    assert_eq!(orders.last().target, "/orders?user=a-b%20c&x=1&y=%41");
    assert_eq!(gateway.logged("/home/a%2Db%20c")["parts"], "user=200, orders=200, ads=200");
}

#[test]
fn a_parameter_cannot_leave_its_place() {
    let user = json_of("{}");
    let gateway = Gateway::new(&yaml("", &["name: user, upstream: u0, path: '/users/{id}?id={id}'"], ""), &[user.address]);
    for (id, path, query) in [
        ("a%3Fb%23c", "a%3Fb%23c", "a%3Fb%23c"),
        ("a&b=c", "a&b=c", "a%26b%3Dc"),
        ("%40evil", "@evil", "@evil"),
        ("http:169.254.169.254", "http:169.254.169.254", "http:169.254.169.254"),
    ] {
        assert_eq!(gateway.get(&format!("/home/{id}")).status, 200, "{id}");
        let target = user.last().target;
        let decoded = |text: &str| text.replace("%40", "@").replace("%3A", ":").replace("%26", "&").replace("%3D", "=");
        let (sent_path, sent_query) = target.split_once('?').unwrap();
        assert_eq!(decoded(sent_path), format!("/users/{}", decoded(path)), "{target}");
        assert!(!sent_query.contains(['&', '#']) && sent_query.matches('=').count() == 1, "{target}");
        assert_eq!(decoded(sent_query), format!("id={}", decoded(query)));
    }
    assert_eq!(gateway.get("/home/..%2F..%2Fadmin").status, 400);
}

#[test]
fn a_failed_optional_part_is_left_out_and_named() {
    let status = |status: u16| Upstream::serve(move |_, conn| conn.answer(status, "", "{}"));
    for (bad, word) in [
        (status(500), "500"),
        (status(404), "404"),
        (status(302), "302"),
        (Upstream::serve(|_, _| Then::Close), "reset"),
        (Upstream::bytes("what\r\n\r\n", Then::Close), "protocol_error"),
        (Upstream::text("<html>"), "not_json"),
        (Upstream::text("{\"a\":1"), "not_json"),
        (Upstream::text("{\"a\":1} x"), "not_json"),
        (Upstream::bytes("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"a\":", Then::Close), "reset"),
    ] {
        let (gateway, _good) = beside(&bad, BAD, "");
        let answer = gateway.get("/home/1");
        assert_eq!((answer.status, words(&answer)), (200, format!("good=200, bad={word}").as_str()));
        assert_eq!(answer.json(), json!({"good": {"ok": true}}), "{word}");
        assert_eq!(answer.header("cache-control"), Some("no-store"));
    }
    let (good, refused) = (json_of("{}"), Refused::new());
    let parts = ["name: good, upstream: u0, path: /good", BAD];
    let gateway = Gateway::new(&yaml("", &parts, ""), &[good.address, refused.address]);
    assert_eq!(words(&gateway.get("/home/1")), "good=200, bad=connect_failed");
}

#[test]
fn redirects_of_a_part_are_not_followed() {
    let target = json_of("{\"followed\":true}");
    for status in [301, 302, 303, 307, 308] {
        let location = format!("location: http://{}/there\r\n", target.address);
        let moved = Upstream::serve(move |_, conn| conn.answer(status, &location, "{}"));
        let (gateway, _good) = beside(&moved, BAD, "");
        let answer = gateway.get("/home/1");
        assert_eq!((answer.status, words(&answer)), (200, format!("good=200, bad={status}").as_str()));
        assert_eq!(answer.json(), json!({"good": {"ok": true}}));
        let gateway = Gateway::new(&yaml("", &["name: a, upstream: u0, path: /, required: true"], ""), &[moved.address]);
        let answer = gateway.get("/home/1");
        answer.refused(502, "aggregate_failed");
        assert!(!answer.has("location"), "{answer:?}");
    }
    assert_eq!(target.connections(), 0);
}

#[test]
fn a_part_without_a_usable_endpoint_is_no_endpoint_and_503_if_required() {
    let (good, sick) = (json_of("{\"ok\":true}"), Upstream::serve(|_, conn| conn.answer(503, "", "{}")));
    for required in [false, true] {
        let parts = ["name: good, upstream: u0, path: /good", &format!("{BAD}, required: {required}")];
        let checks = "panic_threshold: 0%, health: { path: /, interval: 50ms, unhealthy: 1 },";
        let text = yaml("", &parts, "").replace("u1: {", &format!("u1: {{ {checks}"));
        let gateway = Gateway::new(&text, &[good.address, sick.address]);
        gateway.metric_becomes(&format!("gateway_endpoint_healthy{{upstream=\"u1\",endpoint=\"http://{}\"}}", sick.address), 0.0);
        let answer = gateway.get("/home/1");
        assert!(words(&answer).ends_with("bad=no_endpoint"), "{answer:?}");
        if required {
            answer.refused(503, "aggregate_failed");
        } else {
            assert_eq!((answer.status, answer.json()), (200, json!({"good": {"ok": true}})));
        }
    }
    assert!(sick.requests().iter().all(|request| request.target == "/"), "only checks");
}

#[test]
fn a_part_whose_upstream_is_busy_is_overloaded_and_503_if_required() {
    for required in [false, true] {
        let (busy, done) = (Gate::new(), Gate::new());
        let (its, wait) = (busy.clone(), done.clone());
        let good = json_of("{\"ok\":true}");
        let upstream = Upstream::serve(move |_, conn| {
            its.open();
            wait.pass();
            conn.ok("{}")
        });
        let parts = ["name: good, upstream: u0, path: /good", &format!("{BAD}, required: {required}")];
        let text = yaml("", &parts, "").replace("u1: {", "u1: { pool: { max_connections: 1 },") + "  - { match: /hold, upstream: u1 }\n";
        let gateway = Gateway::new(&text, &[good.address, upstream.address]);
        let mut holds = gateway.connect();
        holds.send(get("/hold"));
        busy.pass();
        let answer = gateway.get("/home/1");
        assert!(words(&answer).ends_with("bad=overloaded"), "{answer:?}");
        if required {
            answer.refused(503, "aggregate_failed");
        } else {
            assert_eq!((answer.status, answer.json()), (200, json!({"good": {"ok": true}})));
        }
        done.open();
        assert_eq!(holds.read().status, 200);
        assert_eq!(upstream.count(), 1, "the part was never sent");
    }
}

#[test]
fn empty_and_204_are_empty_objects_and_any_2xx_counts() {
    let empty = Upstream::serve(|request, conn| match request.target.as_str() {
        "/none" => {
            conn.write("HTTP/1.1 204 No Content\r\n\r\n");
            Then::Keep
        }
        "/created" => conn.answer(201, "", "[1]"),
        _ => conn.ok(""),
    });
    let parts = ["name: a, upstream: u0, path: /none", "name: b, upstream: u0, path: /empty", "name: c, upstream: u0, path: /created"];
    let text = yaml("", &parts, "");
    let gateway = Gateway::new(&text, &[empty.address, empty.address, empty.address]);
    let answer = gateway.get("/home/1");
    assert_eq!((answer.text().as_str(), words(&answer)), ("{\"a\":{},\"b\":{},\"c\":[1]}", "a=204, b=200, c=201"));
}

#[test]
fn huge_deep_and_exploding_parts_are_refused() {
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    bomb.write_all(b"[").unwrap();
    for _ in 0..64 {
        bomb.write_all(&[b' '; 1 << 20]).unwrap();
    }
    bomb.write_all(b"]").unwrap();
    let bomb = bomb.finish().unwrap();
    assert!(bomb.len() < 200_000);
    let bomb = Upstream::serve(move |_, conn| conn.answer(200, "content-encoding: gzip\r\n", &bomb));
    let huge = Upstream::serve(|_, conn| conn.ok(format!("\"{}\"", "h".repeat(2 << 20))));
    let endless = Upstream::serve(|_, conn| {
        conn.write("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
        while conn.write("4\r\n    \r\n".repeat(1000)) {}
        Then::Close
    });
    for bad in [bomb, huge, endless] {
        let (gateway, _good) = beside(&bad, BAD, "max_part_size: 1MiB");
        let answer = gateway.get("/home/1");
        assert_eq!((answer.status, words(&answer)), (200, "good=200, bad=too_large"));
        eventually("the part's connection is given up", || (bad.open() == 0).then_some(()));
    }
    let deep = Upstream::serve(|_, conn| conn.ok("[".repeat(100_000) + &"]".repeat(100_000)));
    let (gateway, _good) = beside(&deep, BAD, "");
    assert_eq!(words(&gateway.get("/home/1")), "good=200, bad=not_json");
    let fits = Upstream::serve(|_, conn| conn.ok("[".repeat(128) + &"]".repeat(128)));
    let (gateway, _good) = beside(&fits, BAD, "");
    assert_eq!(words(&gateway.get("/home/1")), "good=200, bad=200");
}

#[test]
fn gzip_parts_are_decoded_and_broken_ones_are_not_json() {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(b"{\"n\":18446744073709551616}").unwrap();
    let packed = packed.finish().unwrap();
    let cut = packed[..packed.len() - 6].to_vec();
    let good = Upstream::serve(move |request, conn| {
        assert_eq!((request.header("accept"), request.header("accept-encoding")), (Some("application/json"), Some("gzip")));
        conn.answer(200, "content-encoding: gzip\r\n", &packed)
    });
    let (gateway, _good) = beside(&good, BAD, "");
    assert_eq!(gateway.get("/home/1").text(), "{\"good\":{\"ok\":true},\"bad\":{\"n\":18446744073709551616}}");
    let bad = Upstream::serve(move |_, conn| conn.answer(200, "content-encoding: gzip\r\n", &cut));
    let (gateway, _good) = beside(&bad, BAD, "");
    let answer = gateway.get("/home/1");
    assert_eq!(answer.json(), json!({"good": {"ok": true}}), "{answer:?}");
}

#[test]
fn a_slow_part_costs_only_itself() {
    let slow = Upstream::serve(|_, conn| {
        conn.wait_end();
        Then::Close
    });
    let (gateway, _good) = beside(&slow, "name: bad, upstream: u1, path: /bad, timeout: 150ms", "");
    let started = Instant::now();
    let answer = gateway.get("/home/1");
    assert_eq!((answer.status, words(&answer)), (200, "good=200, bad=timeout"));
    assert!((Duration::from_millis(140)..Duration::from_millis(1_500)).contains(&started.elapsed()), "{:?}", started.elapsed());
    eventually("the slow part is cancelled", || (slow.open() == 0).then_some(()));

    // A body that dribbles is no better.
    let dribbles = Upstream::serve(|_, conn| {
        conn.write("HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n");
        while conn.write(" ") {
            std::thread::sleep(Duration::from_millis(10));
        }
        Then::Close
    });
    let (gateway, _good) = beside(&dribbles, "name: bad, upstream: u1, path: /bad, timeout: 150ms", "");
    assert_eq!(words(&gateway.get("/home/1")), "good=200, bad=timeout");
}

#[test]
fn at_the_routes_timeout_what_is_there_is_merged() {
    let slow = Upstream::serve(|_, conn| {
        conn.wait_end();
        Then::Close
    });
    let good = json_of("{\"ok\":true}");
    let parts = ["name: good, upstream: u0, path: /good", BAD];
    let gateway = Gateway::new(&yaml("timeout: 200ms", &parts, ""), &[good.address, slow.address]);
    let answer = gateway.get("/home/1");
    assert_eq!((answer.status, words(&answer), answer.text().as_str()), (200, "good=200, bad=timeout", "{\"good\":{\"ok\":true}}"));
    let both = ["name: a, upstream: u0, path: /a", "name: b, upstream: u1, path: /b"];
    let gateway = Gateway::new(&yaml("timeout: 200ms", &both, ""), &[slow.address, slow.address]);
    let answer = gateway.get("/home/1");
    answer.refused(504, "aggregate_failed");
    assert_eq!(words(&answer), "a=timeout, b=timeout");
}

#[test]
fn a_required_part_decides_and_cancels_the_others() {
    for (status, expected) in
        [(404, 404), (401, 401), (403, 403), (409, 409), (429, 429), (400, 400), (500, 502), (503, 502), (418, 502), (302, 502)]
    {
        let bad = Upstream::serve(move |_, conn| conn.answer(status, "www-authenticate: Basic realm=x\r\n", "{}"));
        let slow = Upstream::serve(|_, conn| {
            conn.wait_end();
            Then::Close
        });
        let parts = ["name: bad, upstream: u0, path: /, required: true", "name: slow, upstream: u1, path: /"];
        let gateway = Gateway::new(&yaml("timeout: 5s\n    retry: off", &parts, ""), &[bad.address, slow.address]);
        let started = Instant::now();
        let answer = gateway.get("/home/1");
        answer.refused(expected, "aggregate_failed");
        assert!(started.elapsed() < Duration::from_secs(3));
        assert_eq!(words(&answer), format!("bad={status}, slow=cancelled"));
        assert_eq!(answer.has("www-authenticate"), status == 401);
        eventually("the other part is cancelled", || (slow.open() == 0).then_some(()));
    }
}

#[test]
fn when_all_parts_fail_so_does_the_answer() {
    let bad = Upstream::serve(|_, conn| conn.answer(500, "", ""));
    let parts = ["name: a, upstream: u0, path: /a", "name: b, upstream: u1, path: /b"];
    let gateway = Gateway::new(&yaml("", &parts, ""), &[bad.address, bad.address]);
    let answer = gateway.get("/home/1");
    answer.refused(502, "aggregate_failed");
    assert_eq!((words(&answer), answer.header("cache-control")), ("a=500, b=500", Some("no-store")));
    assert_eq!(answer.json()["parts"], json!({"a": "500", "b": "500"}));
}

#[test]
fn a_part_may_need_another_ones_value() {
    let users = Upstream::serve(|request, conn| match request.target.as_str() {
        "/users/7" => conn.ok("{\"data\":{\"account\":\"a/b c\",\"shop\":9007199254740993}}"),
        _ => conn.ok("{\"data\":{\"account\":null}}"),
    });
    let orders = json_of("[1]");
    let shop = json_of("{\"s\":1}");
    let parts = [
        "name: user, upstream: u0, path: '/users/{id}', select: data, allow: [shop]",
        "name: orders, upstream: u1, path: '/orders?account={parts.user.data.account}'",
        "name: shop, upstream: u2, path: '/shops/{parts.user.data.shop}'",
    ];
    let gateway = Gateway::new(&yaml("", &parts, ""), &[users.address, orders.address, shop.address]);
    let answer = gateway.get("/home/7");
    assert_eq!(answer.text(), "{\"user\":{\"shop\":9007199254740993},\"orders\":[1],\"shop\":{\"s\":1}}");
    assert_eq!(orders.last().target, "/orders?account=a%2Fb%20c");
    assert_eq!(shop.last().target, "/shops/9007199254740993");
    let answer = gateway.get("/home/8");
    assert_eq!(words(&answer), "user=200, orders=no_value, shop=no_value");
    assert_eq!((orders.count(), shop.count()), (1, 1), "nothing is called with a value that is missing");
    for (wrong, what) in [("{parts.nobody.id}", "nobody"), ("{parts.orders.id}", "orders")] {
        let path = format!("name: orders, upstream: u1, path: '/orders?x={wrong}'");
        let error =
            Gateway::start_error(&yaml("", &[parts[0], &path, parts[2]], ""), &[users.address, orders.address, shop.address]).unwrap();
        assert!(error.contains(what), "{error}");
    }
}

#[test]
fn cache_control_is_the_strictest_of_the_parts() {
    for (one, other, expected) in [
        ("max-age=60", "public, max-age=10", Some("max-age=10")),
        ("private, max-age=60", "max-age=600", Some("private, max-age=60")),
        ("max-age=60", "no-store", Some("no-store")),
        ("", "", None),
    ] {
        let part = |value: &'static str| {
            Upstream::serve(move |_, conn| {
                let field = if value.is_empty() { String::new() } else { format!("cache-control: {value}\r\n") };
                conn.answer(200, &format!("{field}set-cookie: a=b\r\nx-mine: 1\r\n"), "{}")
            })
        };
        let (a, b) = (part(one), part(other));
        let parts = ["name: a, upstream: u0, path: /", "name: b, upstream: u1, path: /"];
        let gateway = Gateway::new(&yaml("", &parts, ""), &[a.address, b.address]);
        let answer = gateway.get("/home/1");
        assert_eq!(answer.header("cache-control"), expected, "{one} and {other}");
        assert!(!answer.has("set-cookie") && !answer.has("x-mine"));
    }
}

#[test]
fn a_client_that_leaves_cancels_every_part() {
    let hang = || {
        Upstream::serve(|_, conn| {
            conn.wait_end();
            Then::Close
        })
    };
    let (a, b) = (hang(), hang());
    let parts = ["name: a, upstream: u0, path: /", "name: b, upstream: u1, path: /"];
    let gateway = Gateway::new(&yaml("timeout: 30s", &parts, ""), &[a.address, b.address]);
    let mut raw = gateway.connect();
    raw.send(get("/home/1"));
    eventually("both are called", || (a.count() == 1 && b.count() == 1).then_some(()));
    drop(raw);
    eventually("both are cancelled", || (a.open() == 0 && b.open() == 0).then_some(()));
    assert_eq!(gateway.logged("/home/1")["status"], 499);
}

#[test]
fn only_the_named_client_fields_reach_the_parts() {
    let part = Upstream::echo();
    let more = "forward_headers: [authorization, accept-language]";
    let gateway = Gateway::new(&yaml("", &["name: a, upstream: u0, path: /"], more), &[part.address]);
    let fields = [
        ("authorization", "Bearer x"),
        ("accept-language", "de"),
        ("cookie", "a=b"),
        ("x-mine", "1"),
        ("user-agent", "me"),
        ("x-forwarded-for", "6.6.6.6"),
    ];
    assert_eq!(gateway.request("GET", "/home/1", &fields, "").status, 200);
    let seen = part.last();
    assert_eq!((seen.header("authorization"), seen.header("accept-language")), (Some("Bearer x"), Some("de")));
    assert_eq!(seen.header("x-forwarded-for"), Some("127.0.0.1"));
    assert!(seen.has("x-request-id"));
    for name in ["cookie", "x-mine", "user-agent", "content-length"] {
        assert!(!seen.has(name), "{name}: {seen:?}");
    }
}

#[test]
fn a_post_reaches_the_parts_that_want_it() {
    let (write, read) = (Upstream::echo(), Upstream::echo());
    let parts = ["name: write, upstream: u0, path: /w, method: POST", "name: read, upstream: u1, path: /r"];
    let gateway = Gateway::new(&yaml("", &parts, "max_part_size: 1KiB"), &[write.address, read.address]);
    let answer = gateway.request("POST", "/home/1", &[("content-type", "text/plain")], "hello");
    assert_eq!(answer.status, 200, "{answer:?}");
    let (write, read) = (write.last(), read.last());
    assert_eq!((write.method.as_str(), write.text().as_str(), write.header("content-type")), ("POST", "hello", Some("text/plain")));
    assert_eq!((read.method.as_str(), read.text().as_str(), read.has("content-type")), ("GET", "", false));
    gateway.request("POST", "/home/1", &[], &"x".repeat(1025)).refused(413, "body_too_large");
}

#[test]
fn body_limit_holds_before_any_part_is_called() {
    let part = Upstream::echo();
    let parts = ["name: write, upstream: u0, path: /w, method: POST", "name: read, upstream: u0, path: /r"];
    let gateway = Gateway::new(&yaml("body_limit: 10B", &parts, ""), &[part.address, part.address]);
    gateway.request("POST", "/home/1", &[], &"x".repeat(11)).refused(413, "body_too_large");
    let chunked = "POST /home/1 HTTP/1.1\r\nHost: site\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nxxxxxx\r\n5\r\nxxxxx\r\n0\r\n\r\n";
    gateway.ask(chunked).refused(413, "body_too_large");
    assert_eq!(part.connections(), 0);
    assert_eq!(gateway.request("POST", "/home/1", &[], &"x".repeat(10)).status, 200);
    let written = part.requests().into_iter().find(|request| request.target == "/w").unwrap();
    assert_eq!(written.text(), "x".repeat(10));
}

#[test]
fn conflicts_go_as_written() {
    let (a, b) = (json_of("{\"k\":1,\"a\":1}"), json_of("{\"k\":2,\"b\":2}"));
    let parts = ["name: a, upstream: u0, path: /, group: false", "name: b, upstream: u1, path: /, group: false"];
    for (rule, expected) in [("last", "2"), ("first", "1")] {
        let gateway = Gateway::new(&yaml("", &parts, &format!("on_conflict: {rule}")), &[a.address, b.address]);
        assert_eq!(gateway.get("/home/1").json()["k"].to_string(), expected);
    }
    let gateway = Gateway::new(&yaml("", &parts, "on_conflict: error"), &[a.address, b.address]);
    gateway.get("/home/1").refused(502, "aggregate_failed");
}

#[test]
fn head_calls_the_parts_and_sends_no_body() {
    let a = json_of("{\"a\":1}");
    let gateway = Gateway::new(&yaml("", &["name: a, upstream: u0, path: /"], ""), &[a.address]);
    let mut raw = gateway.connect();
    raw.send(request("HEAD", "/home/1", &[], ""));
    let answer = raw.read_to_head();
    assert_eq!((answer.status, words(&answer)), (200, "a=200"));
    assert_eq!(a.last().method, "GET");
    assert_eq!(raw.ask(get("/home/1")).text(), "{\"a\":{\"a\":1}}");
}

#[test]
fn parts_are_balanced_and_retried_like_any_call() {
    let (dead, good) = (Refused::new(), json_of("{}"));
    let yaml = "
        upstreams: { up: { endpoints: [http://@0, http://@1], outlier: off } }
        routes:
          - match: /home
            retry: { backoff: 1ms }
            aggregate: { parts: [{ name: a, upstream: up, path: /a, required: true }, { name: b, upstream: up, path: /b, required: true }] }";
    let gateway = Gateway::new(yaml, &[dead.address, good.address]);
    for _ in 0..4 {
        assert_eq!(gateway.get("/home").status, 200);
    }
    assert!(gateway.metric("gateway_retries_total{upstream=\"up\"}") >= 3.0);
}

/// A list of about this many bytes, with numbers that only text can hold, in objects with white space here and there.
fn large(bytes: usize) -> String {
    let mut text = "{\"data\": {\"items\": [".to_owned();
    while text.len() < bytes {
        text.push_str("{\"id\": 18446744073709551617.0e-2 ,\"total\":1e400,\"note\":\"gr\u{fc}n \\u00e9 \\\"x\\\"\"}, ");
    }
    text + "null]}}"
}

#[test]
fn large_parts_arrive_byte_for_byte_and_changed_ones_with_their_numbers() {
    let text = large(1 << 20);
    let body = text.clone();
    let up = Upstream::serve(move |request, conn| match request.target.as_str() {
        "/chunked" => {
            conn.write("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
            for piece in body.as_bytes().chunks(100_003) {
                conn.write(format!("{:x}\r\n", piece.len()));
                conn.write(piece);
                conn.write("\r\n");
            }
            conn.write("0\r\n\r\n");
            Then::Keep
        }
        _ => conn.ok(&body),
    });
    let parts = [
        "name: whole, upstream: u0, path: /whole",
        "name: chunked, upstream: u0, path: /chunked",
        "name: changed, upstream: u0, path: /whole, select: data.items, deny: [note], rename: { total: amount }",
        "name: flat, upstream: u0, path: /whole, group: false",
    ];
    let gateway = Gateway::new(&yaml("", &parts, ""), &[up.address; 4]);
    let items = text.strip_prefix("{\"data\": {\"items\": [").unwrap();
    let changed = "{\"id\":18446744073709551617.0e-2,\"amount\":1e400},".repeat(items.matches("\"id\"").count());
    let inner = &text["{\"data\": ".len()..text.len() - 1];
    let expected = format!("{{\"whole\":{text},\"chunked\":{text},\"changed\":[{changed}null],\"data\":{inner}}}");
    let answer = gateway.get("/home/1");
    assert_eq!((answer.status, words(&answer)), (200, "whole=200, chunked=200, changed=200, flat=200"));
    assert!(answer.text() == expected, "another text of {} bytes, not {}", answer.body.len(), expected.len());
    assert_eq!(answer.header("content-length"), Some(expected.len().to_string().as_str()));
    let mut raw = gateway.connect();
    raw.send(request("HEAD", "/home/1", &[], ""));
    assert_eq!(raw.read_to_head().header("content-length"), Some(expected.len().to_string().as_str()));
    let logged = eventually("both are logged whole", || {
        let lines = gateway.log();
        (lines.len() == 2).then_some(lines)
    });
    assert_eq!(logged[0]["bytes_out"].as_u64(), Some(expected.len() as u64), "{}", logged[0]);
}

#[test]
fn large_parts_reach_http2_clients_too() {
    let text = large(300 << 10);
    let body = text.clone();
    let up = Upstream::serve(move |_, conn| conn.ok(&body));
    let parts = ["name: a, upstream: u0, path: /", "name: b, upstream: u1, path: /"];
    let gateway = Gateway::new(&yaml("", &parts, ""), &[up.address; 2]);
    block_on(async {
        let mut client = Client::connect(gateway.address()).await;
        let reply = client.get("/home/1").await;
        assert!(reply.text() == format!("{{\"a\":{text},\"b\":{text}}}"), "another text of {} bytes", reply.text().len());
    });
}
