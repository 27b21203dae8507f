//! What is tried again, where, how often, and what never is.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crate::support::client::{get, request};
use crate::support::h2::{self, H2Upstream};
use crate::support::upstream::Unreachable;
use crate::support::{End, Gateway, Refused, Then, Upstream, block_on};

/// Two endpoints, the first one bad; every route option in `route`.
fn pair(route: &str) -> String {
    format!(
        "upstreams:\n  up: {{ endpoints: [http://@0, http://@1], outlier: off }}\nroutes:\n  - {{ name: all, match: /*, upstream: up, {route} }}\n"
    )
}

/// Reads a request and closes without an answer.
fn closes() -> Upstream {
    Upstream::serve(|_, _| Then::Close)
}

#[test]
fn a_refused_connection_is_tried_elsewhere_for_every_method() {
    let (dead, good) = (Refused::new(), Upstream::echo());
    let gateway = Gateway::new(&pair("retry: { backoff: 1ms }"), &[dead.address, good.address]);
    for method in ["GET", "POST", "PATCH", "PUT", "DELETE"] {
        for _ in 0..2 {
            let answer = gateway.request(method, "/x", &[], "hello");
            assert_eq!((answer.status, answer.json()["body"].as_str()), (200, Some("hello")), "{method}");
        }
    }
    let series = "gateway_upstream_requests_total{upstream=\"up\",endpoint=\"http://@0\",status=\"upstream_connect_failed\"}";
    let refused = gateway.metric(&series.replace("@0", &dead.address.to_string()));
    assert!(refused >= 5.0, "{refused}");
    gateway.metric_becomes("gateway_retries_total{upstream=\"up\"}", refused);
    crate::support::eventually("the log says so", || {
        gateway.log().iter().any(|line| line["attempts"] == 2 && line["status"] == 200).then_some(())
    });
}

#[test]
fn a_handshake_that_fails_counts_as_connect_and_is_tried_elsewhere_for_every_method() {
    for then in [Then::Keep, Then::Close, Then::Reset] {
        let bad = Upstream::raw(move |conn| {
            // The first bytes of the ClientHello are there.
            let _ = conn.wire.fill();
            if then == Then::Keep {
                conn.write("this is no TLS\r\n\r\n");
                conn.wait_end();
            }
            then
        });
        let good = Upstream::echo();
        let yaml = |when: &str| {
            format!(
                "upstreams: {{ up: {{ endpoints: ['https://@0', 'http://@1'], outlier: off, tls: {{ verify: false }} }} }}
routes: [{{ name: all, match: /*, upstream: up, retry: {{ when: [{when}], backoff: 1ms }} }}]"
            )
        };
        let gateway = Gateway::new(&yaml("connect"), &[bad.address, good.address]);
        for method in ["GET", "POST", "PATCH", "PUT", "DELETE"] {
            for _ in 0..2 {
                let answer = gateway.request(method, "/x", &[], "hello");
                assert_eq!((answer.status, answer.json()["body"].as_str()), (200, Some("hello")), "{method} {then:?}");
            }
        }
        let series = "gateway_upstream_requests_total{upstream=\"up\",endpoint=\"https://@0\",status=\"upstream_tls_failed\"}";
        let failed = gateway.metric(&series.replace("@0", &bad.address.to_string()));
        assert!(failed >= 5.0, "{failed} {then:?}");
        gateway.metric_becomes("gateway_retries_total{upstream=\"up\"}", failed);
        // It is no `reset`, even where the upstream resets.
        let gateway = Gateway::new(&yaml("reset"), &[bad.address, good.address]);
        let answers: Vec<_> = (0..4).map(|_| gateway.get("/")).collect();
        let refused: Vec<_> = answers.iter().filter(|answer| answer.status != 200).collect();
        assert!(!refused.is_empty() && refused.len() < 4, "{answers:?}");
        refused.iter().for_each(|answer| answer.refused(502, "upstream_tls_failed"));
    }
}

#[test]
fn a_connect_timeout_is_tried_elsewhere() {
    let (silent, good) = (Unreachable::new(), Upstream::text("ok"));
    let yaml = "
        upstreams: { up: { endpoints: [http://@0, http://@1], connect_timeout: 100ms } }
        routes: [{ match: /*, upstream: up }]";
    let gateway = Gateway::new(yaml, &[silent.address, good.address]);
    for _ in 0..2 {
        assert_eq!(gateway.request("POST", "/", &[], "x").text(), "ok");
    }
}

#[test]
fn a_post_that_may_have_been_acted_on_is_never_sent_twice() {
    let upstreams = [closes(), closes()];
    let gateway = Gateway::new(
        &pair("retry: { attempts: 3, when: [connect, reset, timeout, 503], per_try_timeout: 300ms, backoff: 1ms }"),
        &[upstreams[0].address, upstreams[1].address],
    );
    for (method, body) in [("POST", "x"), ("PATCH", "x"), ("POST", "")] {
        let before = upstreams[0].count() + upstreams[1].count();
        gateway.request(method, "/", &[], body).refused(502, "upstream_reset");
        assert_eq!(upstreams[0].count() + upstreams[1].count(), before + 1, "{method}");
    }
}

#[test]
fn a_post_is_not_sent_again_after_a_status_or_a_timeout() {
    let busy = [Upstream::serve(|_, conn| conn.answer(503, "", "busy")), Upstream::serve(|_, conn| conn.answer(503, "", "busy"))];
    let gateway = Gateway::new(&pair("retry: { attempts: 3, when: [503], backoff: 1ms }"), &[busy[0].address, busy[1].address]);
    let answer = gateway.request("POST", "/", &[], "x");
    assert_eq!((answer.status, answer.text().as_str()), (503, "busy"));
    assert_eq!(busy[0].count() + busy[1].count(), 1);

    let silent = Upstream::serve(|_, conn| {
        conn.wait_end();
        Then::Close
    });
    let gateway = Gateway::to(silent.address, "retry: { attempts: 3, when: [timeout], per_try_timeout: 100ms, backoff: 1ms }");
    gateway.request("POST", "/", &[], "x").refused(504, "upstream_timeout");
    assert_eq!(silent.count(), 1);
}

#[test]
fn an_idempotency_key_vouches_for_a_post() {
    let (bad, good) = (closes(), Upstream::echo());
    let gateway = Gateway::new(&pair("retry: { backoff: 1ms }"), &[bad.address, good.address]);
    for _ in 0..2 {
        let answer = gateway.request("POST", "/", &[("idempotency-key", "7")], "hello");
        assert_eq!((answer.status, answer.json()["body"].as_str()), (200, Some("hello")));
    }
    assert!((1..=2).contains(&bad.count()));
}

#[test]
fn a_reset_is_tried_elsewhere_with_the_same_body() {
    for then in [Then::Close, Then::Reset] {
        let (bad, good) = (Upstream::serve(move |_, _| then), Upstream::echo());
        let gateway = Gateway::new(&pair("retry: { backoff: 1ms }"), &[bad.address, good.address]);
        let body = "b".repeat(60_000);
        for method in ["PUT", "DELETE", "PUT", "GET"] {
            let answer = gateway.request(method, "/", &[], &body);
            assert_eq!((answer.status, answer.json()["body"].as_str().map(str::len)), (200, Some(body.len())), "{method}");
        }
        assert!((1..=4).contains(&bad.count()), "{}", bad.count());
    }
}

#[test]
fn a_body_beyond_the_replay_buffer_is_not_sent_again() {
    let upstreams = [closes(), closes()];
    let gateway = Gateway::new(&pair("retry: { backoff: 1ms }"), &[upstreams[0].address, upstreams[1].address]);
    gateway.request("PUT", "/", &[], &"b".repeat(70_000)).refused(502, "upstream_reset");
    assert_eq!(upstreams[0].count() + upstreams[1].count(), 1);
}

#[test]
fn listed_statuses_are_tried_elsewhere_even_without_a_body() {
    for body in ["busy", ""] {
        let (bad, good) = (Upstream::serve(move |_, conn| conn.answer(503, "", body)), Upstream::text("ok"));
        let gateway = Gateway::new(&pair("retry: { when: [503], backoff: 1ms }"), &[bad.address, good.address]);
        for _ in 0..4 {
            assert_eq!(gateway.get("/").text(), "ok");
        }
        let retries = f64::from(u32::try_from(bad.count()).unwrap());
        assert!(retries > 0.0);
        gateway.metric_becomes("gateway_retries_total{upstream=\"up\"}", retries);
    }
}

#[test]
fn a_status_that_is_not_listed_is_the_answer() {
    let (bad, good) = (Upstream::serve(|_, conn| conn.answer(502, "", "mine")), Upstream::text("ok"));
    let gateway = Gateway::new(&pair("retry: { attempts: 3, when: [503], backoff: 1ms }"), &[bad.address, good.address]);
    let answers: Vec<_> = (0..2).map(|_| gateway.get("/").status).collect();
    assert!(answers.contains(&502) && answers.contains(&200), "{answers:?}");
}

#[test]
fn the_last_failure_is_the_answer() {
    let busy = Upstream::serve(|_, conn| conn.answer(503, "x-mine: 1\r\n", "busy"));
    let gateway = Gateway::to(busy.address, "retry: { attempts: 2, when: [503], backoff: 1ms }");
    let answer = gateway.get("/");
    assert_eq!((answer.status, answer.text().as_str(), answer.header("x-mine")), (503, "busy", Some("1")));
    assert_eq!(busy.count(), 3);
    assert_eq!(gateway.logged("/")["attempts"], 3);
}

#[test]
fn an_unreadable_response_is_not_tried_again() {
    let (garbage, other) = (Upstream::bytes("what is this\r\n\r\n", Then::Close), Upstream::bytes("nor this\r\n\r\n", Then::Close));
    let gateway = Gateway::new(&pair("retry: { attempts: 3, backoff: 1ms }"), &[garbage.address, other.address]);
    gateway.get("/").refused(502, "upstream_protocol_error");
    assert_eq!(garbage.count() + other.count(), 1);
}

#[test]
fn nothing_is_tried_again_once_the_answer_has_begun() {
    let cut = Upstream::bytes("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello", Then::Close);
    let gateway = Gateway::to(cut.address, "retry: { attempts: 3, backoff: 1ms }");
    assert!(matches!(gateway.get("/").end, End::Cut | End::Reset));
    assert_eq!(cut.count(), 1);
}

#[test]
fn a_slow_try_is_given_up_for_another() {
    let slow = Upstream::serve(|_, conn| {
        conn.wait_end();
        Then::Close
    });
    let good = Upstream::text("ok");
    let gateway = Gateway::new(&pair("retry: { when: [timeout], per_try_timeout: 150ms, backoff: 1ms }"), &[slow.address, good.address]);
    for _ in 0..2 {
        assert_eq!(gateway.get("/").text(), "ok");
    }
    assert!((1..=2).contains(&slow.count()));
    // The connection it waited on was closed with it.
    crate::support::eventually("the slow connection closes", || (slow.open() == 0).then_some(()));
}

#[test]
fn a_try_is_not_given_up_while_the_client_uploads() {
    let upstream = Upstream::echo();
    for attempts in [0, 1] {
        let retry = format!("retry: {{ attempts: {attempts}, when: [timeout], per_try_timeout: 150ms, backoff: 1ms }}");
        let gateway = Gateway::to(upstream.address, &retry);
        let before = upstream.count();
        let mut raw = gateway.connect();
        raw.send("PUT / HTTP/1.1\r\nHost: site\r\nContent-Length: 5\r\n\r\nhel");
        std::thread::sleep(Duration::from_millis(400));
        let answer = raw.ask("lo");
        assert_eq!((answer.status, answer.json()["body"].as_str()), (200, Some("hello")));
        assert_eq!(upstream.count(), before + 1);
    }
}

#[test]
fn a_try_is_given_up_in_its_time_after_the_upload() {
    let slow = Upstream::serve(|_, conn| {
        conn.wait_end();
        Then::Close
    });
    let gateway = Gateway::to(slow.address, "timeout: 5s\nretry: { attempts: 1, when: [timeout], per_try_timeout: 300ms, backoff: 1ms }");
    let mut raw = gateway.connect();
    raw.send("PUT / HTTP/1.1\r\nHost: site\r\nContent-Length: 5\r\n\r\nhel");
    std::thread::sleep(Duration::from_millis(500));
    let ended = Instant::now();
    raw.ask("lo").refused(504, "upstream_timeout");
    let took = ended.elapsed();
    assert!((Duration::from_millis(580)..Duration::from_secs(3)).contains(&took), "two tries of 300 ms: {took:?}");
    assert_eq!(slow.count(), 2);
}

#[test]
fn all_tries_together_stay_within_the_timeout() {
    let slow = Upstream::serve(|_, conn| {
        conn.wait_end();
        Then::Close
    });
    let gateway = Gateway::to(
        slow.address,
        "timeout: 400ms\nretry: { attempts: 50, when: [timeout], per_try_timeout: 150ms, backoff: 1ms, budget: 100% }",
    );
    let started = Instant::now();
    gateway.get("/").refused(504, "upstream_timeout");
    let took = started.elapsed();
    assert!((Duration::from_millis(390)..Duration::from_millis(1_500)).contains(&took), "{took:?}");
    assert!((2..=4).contains(&slow.count()), "{}", slow.count());
}

/// Busy once, with these header fields.
fn busy_once(fields: &'static str) -> Upstream {
    let calls = AtomicUsize::new(0);
    Upstream::serve(move |_, conn| match calls.fetch_add(1, SeqCst) {
        0 => conn.answer(503, fields, "later"),
        _ => conn.ok("ok"),
    })
}

#[test]
fn retry_after_is_waited_for_when_it_is_short() {
    for fields in ["retry-after: 1\r\n", "date: Wed, 21 Oct 2026 12:00:00 GMT\r\nretry-after: Wed, 21 Oct 2026 12:00:01 GMT\r\n"] {
        let upstream = busy_once(fields);
        let gateway = Gateway::to(upstream.address, "retry: { when: [503], backoff: 1ms }");
        let started = Instant::now();
        assert_eq!(gateway.get("/").text(), "ok", "{fields}");
        assert!(started.elapsed() >= Duration::from_millis(990), "{:?}", started.elapsed());
    }
}

#[test]
fn a_retry_after_that_is_over_is_not_waited_for() {
    let upstream = busy_once("retry-after: Wed, 21 Oct 2015 07:28:00 GMT\r\n");
    let gateway = Gateway::to(upstream.address, "retry: { when: [503], backoff: 1ms }");
    assert_eq!(gateway.get("/").text(), "ok");
}

#[test]
fn a_long_retry_after_is_the_clients_to_wait_for() {
    for after in ["3", "Wed, 21 Oct 2099 07:28:00 GMT", "soon"] {
        let fields = format!("retry-after: {after}\r\n");
        let upstream = Upstream::serve(move |_, conn| conn.answer(503, &fields, "later"));
        let gateway = Gateway::to(upstream.address, "retry: { attempts: 3, when: [503], backoff: 1ms }");
        let answer = gateway.get("/");
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some(after)));
        assert_eq!(upstream.count(), 1);
    }
}

#[test]
fn a_retry_after_beyond_the_timeout_is_not_waited_for() {
    let upstream = Upstream::serve(|_, conn| conn.answer(503, "retry-after: 2\r\n", "later"));
    let gateway = Gateway::to(upstream.address, "timeout: 1s\nretry: { attempts: 3, when: [503], backoff: 1ms }");
    let started = Instant::now();
    assert_eq!(gateway.get("/").status, 503);
    assert!(started.elapsed() < Duration::from_millis(900));
    assert_eq!(upstream.count(), 1);
}

#[test]
fn retries_in_a_total_outage_stay_within_the_budget() {
    let upstream = closes();
    let gateway = Gateway::to(upstream.address, "retry: { attempts: 3, when: [connect, reset], backoff: 1ms, budget: 20% }");
    let (threads, each) = (8, 50);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut raw = gateway.connect();
                for _ in 0..each {
                    assert_eq!(raw.ask(get("/")).status, 502);
                }
            });
        }
    });
    let (requests, attempts) = (threads * each, upstream.count());
    assert!(attempts > requests, "retries happen at all");
    #[allow(clippy::cast_precision_loss)]
    let ratio = attempts as f64 / requests as f64;
    assert!(ratio <= 1.3, "{attempts} attempts for {requests} requests");
    assert!(gateway.metric("gateway_retries_denied_total{upstream=\"up\"}") > 0.0);
    #[allow(clippy::cast_precision_loss)]
    gateway.metric_becomes("gateway_retries_total{upstream=\"up\"}", (attempts - requests) as f64);
}

#[test]
fn attempts_on_an_upstream_that_is_gone_stay_within_the_budget() {
    let mut upstream = Upstream::text("ok");
    let yaml = "
        upstreams: { up: { endpoints: [http://@0], connect_timeout: 200ms } }
        routes: [{ match: /*, upstream: up, retry: { attempts: 3, backoff: 1ms } }]";
    let gateway = Gateway::new(yaml, &[upstream.address]);
    assert_eq!(gateway.get("/").text(), "ok");
    upstream.stop();
    let (threads, each) = (8, 50);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut raw = gateway.connect();
                for _ in 0..each {
                    assert_eq!(raw.ask(get("/")).status, 502);
                }
            });
        }
    });
    let requests = f64::from(threads * each);
    let series = "gateway_upstream_requests_total{upstream=\"up\",endpoint=\"http://@0\",status=\"upstream_connect_failed\"}";
    let attempts = gateway.metric(&series.replace("@0", &upstream.address.to_string()));
    assert!((requests..=1.3 * requests).contains(&attempts), "{attempts} attempts for {requests} requests");
    assert!(gateway.metric("gateway_retries_denied_total{upstream=\"up\"}") > 0.0);
}

#[test]
fn the_keep_alive_race_never_surfaces_for_idempotent_requests() {
    // Every second request on a connection finds it closed, at the worst moment: after the request was read.
    let upstream = Upstream::serve(|request, conn| match conn.served {
        0 => conn.ok(request.method.clone()),
        _ => Then::Close,
    });
    let gateway = Gateway::to(upstream.address, "retry: off");
    let mut raw = gateway.connect();
    for round in 0..50 {
        for (method, body) in [("GET", ""), ("PUT", "body"), ("DELETE", ""), ("OPTIONS", "")] {
            let answer = raw.ask(request(method, "/", &[], body));
            assert_eq!((answer.status, answer.text().as_str()), (200, method), "round {round}");
        }
    }
}

#[test]
fn the_keep_alive_race_is_an_error_for_a_post_whose_bytes_went_out() {
    let upstream = Upstream::serve(|_, conn| match conn.served {
        0 => conn.ok("ok"),
        _ => Then::Close,
    });
    let gateway = Gateway::to(upstream.address, "retry: { attempts: 3 }");
    let mut raw = gateway.connect();
    assert_eq!(raw.ask(get("/")).status, 200);
    raw.ask(request("POST", "/", &[], "x")).refused(502, "upstream_reset");
    assert_eq!(upstream.count(), 2);
}

#[test]
fn connections_closed_while_idle_cost_nobody_anything() {
    // The upstream closes right after the answer, without saying so.
    let upstream = Upstream::serve(|_, conn| {
        conn.ok("ok");
        Then::Close
    });
    let gateway = Gateway::to(upstream.address, "retry: off");
    let mut raw = gateway.connect();
    for _ in 0..100 {
        assert_eq!(raw.ask(get("/")).status, 200);
    }
}

#[test]
fn a_stream_that_was_refused_is_sent_again_whole() {
    block_on(async {
        let refuse = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&refuse);
        let upstream = H2Upstream::serve(move |(request, mut respond)| {
            let count = Arc::clone(&count);
            async move {
                if count.fetch_add(1, SeqCst).is_multiple_of(2) {
                    respond.send_reset(::h2::Reason::REFUSED_STREAM);
                    return;
                }
                let tag = request.headers().get("x-tag").map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default();
                h2::reply((request, respond), 200, &[("x-tag", &tag)], b"ok", &[]).await;
            }
        });
        let yaml = "
            upstreams: { up: { endpoints: [http://@0], protocol: h2, outlier: off } }
            routes: [{ match: /*, upstream: up, retry: { backoff: 1ms } }]";
        let gateway = Gateway::new(yaml, &[upstream.address]);
        for (method, body) in [("POST", ""), ("POST", "hello"), ("GET", "")] {
            let answer = gateway.request(method, "/", &[("x-tag", "7")], body);
            assert_eq!((answer.status, answer.text().as_str(), answer.header("x-tag")), (200, "ok", Some("7")), "{method} {body}");
        }
        let connections = upstream.connections();
        assert!(connections.windows(2).all(|pair| pair[0] == pair[1]) || connections.len() == 6, "{connections:?}");
    });
}

#[test]
fn a_refused_stream_is_counted_against_attempts() {
    block_on(async {
        let upstream = H2Upstream::serve(|(_, mut respond)| async move { respond.send_reset(::h2::Reason::REFUSED_STREAM) });
        let yaml = "
            upstreams: { up: { endpoints: [http://@0], protocol: h2, outlier: off } }
            routes: [{ match: /*, upstream: up, retry: { attempts: 2, backoff: 1ms } }]";
        let gateway = Gateway::new(yaml, &[upstream.address]);
        for round in 1..=3 {
            gateway.get("/").refused(502, "upstream_reset");
            assert_eq!(upstream.requests().len(), round * 3);
        }
    });
}

#[test]
fn other_resets_of_a_stream_are_not_sent_again_for_a_post() {
    block_on(async {
        let upstream = H2Upstream::serve(|(_, mut respond)| async move { respond.send_reset(::h2::Reason::INTERNAL_ERROR) });
        let yaml = "
            upstreams: { up: { endpoints: [http://@0], protocol: h2, outlier: off } }
            routes: [{ match: /*, upstream: up, retry: { attempts: 2, backoff: 1ms } }]";
        let gateway = Gateway::new(yaml, &[upstream.address]);
        gateway.request("POST", "/", &[], "x").refused(502, "upstream_reset");
        assert_eq!(upstream.requests().len(), 1);
        gateway.get("/").refused(502, "upstream_reset");
        assert_eq!(upstream.requests().len(), 4, "a GET is tried three times");
    });
}
