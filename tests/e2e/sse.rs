//! Server-sent events and long polling: out at once, never held back, never cut but by `idle_timeout`, and gone with the client.

use std::time::{Duration, Instant};

use http::Method;

use crate::support::certs::{self, Authority};
use crate::support::client::get;
use crate::support::h2::{Client, request};
use crate::support::{Gate, Gateway, Raw, Then, Upstream, block_on};

/// An upstream that sends one event, then one more whenever `step` opens, and opens `gone` when its client left.
fn events(step: &Gate, gone: &Gate) -> Upstream {
    let (step, gone) = (step.clone(), gone.clone());
    Upstream::serve(move |_, conn| {
        conn.write("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n");
        step.pass();
        conn.write("9\r\ndata: 2\n\n\r\n");
        conn.wait_end();
        gone.open();
        Then::Close
    })
}

#[test]
fn http2_clients_get_each_event_as_it_is_sent_and_cancel_upstream_when_they_leave() {
    let (step, gone) = (Gate::new(), Gate::new());
    let upstream = events(&step, &gone);
    let gateway = Gateway::to(upstream.address, "timeout: 200ms");
    block_on(async {
        let mut client = Client::connect(gateway.address()).await;
        let (response, _) = client.start(request("GET", "/events", &[]), b"").await.unwrap();
        let mut body = response.await.unwrap().into_body();
        assert_eq!(body.data().await.unwrap().unwrap(), "data: 1\n\n");
        // `timeout` ends with the response head.
        tokio::time::sleep(Duration::from_millis(400)).await;
        step.open();
        assert_eq!(body.data().await.unwrap().unwrap(), "data: 2\n\n");
        let left = Instant::now();
        drop(body);
        tokio::task::spawn_blocking(move || gone.pass()).await.unwrap();
        assert!(left.elapsed() < Duration::from_secs(1));
    });
    assert_eq!(gateway.logged("/events")["reason"], "client_closed");
}

/// A client that reads two events and leaves; the upstream hears of it within a second.
fn leaves(mut raw: Raw, step: &Gate, gone: &Gate) {
    raw.send(get("/events"));
    assert_eq!(raw.wire.answer_head().status, 200);
    assert_eq!(raw.wire.chunk().unwrap(), b"data: 1\n\n");
    step.open();
    assert_eq!(raw.wire.chunk().unwrap(), b"data: 2\n\n");
    let left = Instant::now();
    drop(raw);
    gone.pass();
    assert!(left.elapsed() < Duration::from_secs(1));
}

#[test]
fn an_http1_client_that_leaves_cancels_upstream_within_a_second() {
    let (step, gone) = (Gate::new(), Gate::new());
    let upstream = events(&step, &gone);
    let gateway = Gateway::to(upstream.address, "");
    leaves(gateway.connect(), &step, &gone);
}

#[test]
fn an_http1_client_that_leaves_over_tls_cancels_upstream_too() {
    let (step, gone) = (Gate::new(), Gate::new());
    let upstream = events(&step, &gone);
    let (dir, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    authority.issue(dir.path(), "site", &["site"]);
    let yaml = "
        listeners: [{ address: '127.0.0.1:0', tls: { certificates: [{ cert: site.pem, key: site.key }] } }]
        upstreams: { up: { endpoints: [http://@0] } }
        routes: [{ name: all, match: /*, upstream: up }]";
    let gateway = Gateway::in_dir(dir, yaml, &[upstream.address]);
    let (raw, _) = certs::connect(gateway.address(), &authority.client(&["http/1.1"], None), "site").unwrap();
    leaves(raw, &step, &gone);
    assert_eq!(gateway.logged("/events")["reason"], "client_closed");
}

#[test]
fn a_long_poll_is_cancelled_before_there_is_any_answer() {
    for h2 in [false, true] {
        let (asked, gone) = (Gate::new(), Gate::new());
        let (its, over) = (asked.clone(), gone.clone());
        let upstream = Upstream::serve(move |_, conn| {
            its.open();
            conn.wait_end();
            over.open();
            Then::Close
        });
        let gateway = Gateway::to(upstream.address, "timeout: off");
        let left = if h2 {
            block_on(async {
                let mut client = Client::connect(gateway.address()).await;
                let (response, _) = client.start(request(Method::GET.as_str(), "/poll", &[]), b"").await.unwrap();
                tokio::task::spawn_blocking(move || asked.pass()).await.unwrap();
                drop(response);
                let left = Instant::now();
                tokio::time::sleep(Duration::from_millis(50)).await;
                left
            })
        } else {
            let mut raw = gateway.connect();
            raw.send(get("/poll"));
            asked.pass();
            drop(raw);
            Instant::now()
        };
        gone.pass();
        assert!(left.elapsed() < Duration::from_secs(1));
        assert_eq!(gateway.logged("/poll")["status"], 499);
    }
}

#[test]
fn a_stream_that_moves_outlives_idle_timeout_and_one_that_does_not_is_cut() {
    let upstream = Upstream::serve(move |_, conn| {
        conn.write("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n");
        for _ in 0..10 {
            conn.write("3\r\n:\n\n\r\n");
            std::thread::sleep(Duration::from_millis(100));
        }
        conn.wait_end();
        Then::Close
    });
    let gateway = Gateway::to(upstream.address, "idle_timeout: 400ms");
    block_on(async {
        let mut client = Client::connect(gateway.address()).await;
        let begun = Instant::now();
        let (response, _) = client.start(request("GET", "/slow", &[]), b"").await.unwrap();
        let mut body = response.await.unwrap().into_body();
        let mut bytes = 0;
        let end = loop {
            match body.data().await {
                Some(Ok(data)) => bytes += data.len(),
                end => break end,
            }
        };
        assert_eq!(bytes, 30);
        assert!(matches!(end, Some(Err(_))), "a clean end: {end:?}");
        assert!(begun.elapsed() > Duration::from_millis(1200));
    });
    assert_eq!(gateway.logged("/slow")["reason"], "idle_timeout");
}
