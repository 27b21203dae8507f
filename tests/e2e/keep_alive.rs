//! HTTP/2 peers that are gone without a word: pings find them, on both sides.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use tollgate::server::Options;

use crate::support::frames::{HEAD, PREFACE, frame, frames, raw};
use crate::support::h2::{Client, request};
use crate::support::{Conn, Gate, Gateway, Then, Upstream, block_on};

/// A gateway that pings often.
fn gateway(yaml: &str, upstream: &Upstream) -> Gateway {
    let options = Options { http2_ping: Some(Duration::from_millis(200)), ..Options::default() };
    Gateway::with(options, tempfile::tempdir().unwrap(), yaml, &[upstream.address])
}

#[test]
fn a_client_that_answers_no_ping_is_closed_and_one_that_does_is_not() {
    let (gone, go) = (Gate::new(), Gate::new());
    let (over, wait) = (gone.clone(), go.clone());
    let upstream = Upstream::serve(move |request, conn| {
        if request.target == "/" {
            conn.wait_end();
            over.open();
            return Then::Close;
        }
        wait.pass();
        conn.ok("still here")
    });
    let gateway = gateway(&Gateway::simple(""), &upstream);
    block_on(async {
        let mut client = Client::connect(gateway.address()).await;
        let (response, _) = client.start(request("GET", "/patient", &[]), b"").await.unwrap();
        let address = gateway.address();
        let begun = Instant::now();
        let bytes = tokio::task::spawn_blocking(move || {
            let mut dead = raw(address);
            dead.send(frame(1, 5, 1, HEAD));
            dead.rest().0
        })
        .await
        .unwrap();
        let seen = frames(&bytes);
        assert!(seen.contains(&(6, 0)), "no ping: {seen:?}");
        assert!(!seen.contains(&(1, 1)), "there is no answer: {seen:?}");
        assert!(begun.elapsed() >= Duration::from_millis(300) && begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        tokio::task::spawn_blocking(move || gone.pass()).await.unwrap();
        go.open();
        assert_eq!(response.await.unwrap().status(), 200);
        assert_eq!(client.get("/again").await.text(), "still here");
    });
    assert_eq!(gateway.logged("/")["status"], 499);
    let errors = format!("gateway_connection_errors_total{{listener=\"{}\",kind=\"bad_request\"}}", gateway.address());
    assert!(gateway.metric(&errors) < 1.0, "a client that is gone sent nothing bad");
}

/// An HTTP/2 upstream by hand. It answers every request, unless it is `silent`: then it reads and says nothing, until it is closed.
fn serve(conn: &mut Conn, silent: bool, pings: &AtomicUsize) -> Then {
    conn.write(frame(4, 0, 0, b""));
    let mut taken = PREFACE.len();
    loop {
        while let Some(head) = conn.wire.buffer.get(taken..taken + 9).and_then(|head| <[u8; 9]>::try_from(head).ok()) {
            let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
            if conn.wire.buffer.len() < taken + 9 + length {
                break;
            }
            taken += 9 + length;
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            match (head[3], head[4] & 1) {
                (4, 0) => conn.write(frame(4, 1, 0, b"")),
                (1, _) if !silent => conn.write(frame(1, 5, stream, b"\x88")),
                (6, 0) => {
                    pings.fetch_add(1, SeqCst);
                    if silent { true } else { conn.write(frame(6, 1, 0, &conn.wire.buffer[taken - length..taken])) }
                }
                _ => true,
            };
        }
        if !matches!(conn.wire.fill(), Ok(1..)) {
            return Then::Close;
        }
    }
}

#[test]
fn an_upstream_connection_that_leads_nowhere_is_found_out() {
    for (method, status) in [("GET", 200), ("POST", 502)] {
        let (pings, closed) = (Arc::new(AtomicUsize::new(0)), Gate::new());
        let (its, over) = (Arc::clone(&pings), closed.clone());
        let upstream = Upstream::raw(move |conn| {
            let then = serve(conn, conn.index == 0, &its);
            if conn.index == 0 {
                over.open();
            }
            then
        });
        let yaml = "
            server: { workers: 1, timeouts: { drain: 200ms } }
            upstreams: { up: { endpoints: [http://@0], protocol: h2 } }
            routes: [{ match: /*, upstream: up }]";
        let gateway = gateway(yaml, &upstream);
        let begun = Instant::now();
        // What may be repeated is, on another connection; the rest is told.
        let answer = gateway.request(method, "/", &[], "");
        assert_eq!(answer.status, status, "{method}: {answer:?}");
        assert!(begun.elapsed() < Duration::from_secs(5));
        if status == 502 {
            answer.refused(502, "upstream_reset");
        }
        closed.pass();
        assert_eq!(pings.load(SeqCst), 1, "{method}");
        assert_eq!(gateway.get("/next").status, 200);
        assert_eq!(upstream.connections(), 2);
    }
}
