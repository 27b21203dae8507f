//! `body_limit`.

use crate::support::client::request;
use crate::support::{Gateway, Then, Upstream};

#[test]
fn a_declared_length_over_the_limit_is_refused_unread() {
    let upstream = Upstream::echo();
    let gateway = Gateway::to(upstream.address, "body_limit: 10B");
    assert_eq!(gateway.request("POST", "/", &[], "0123456789").status, 200, "the limit is inclusive");
    gateway.request("POST", "/", &[], "0123456789a").refused(413, "body_too_large");
    let mut raw = gateway.connect();
    raw.ask("POST / HTTP/1.1\r\nHost: site\r\nContent-Length: 1000000000\r\nExpect: 100-continue\r\n\r\n").refused(413, "body_too_large");
    assert_eq!(upstream.count(), 1);
}

#[test]
fn a_chunked_body_is_cut_when_it_crosses_the_limit() {
    let upstream = Upstream::echo();
    let gateway = Gateway::to(upstream.address, "body_limit: 10B");
    let head = "POST / HTTP/1.1\r\nHost: site\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(gateway.ask(format!("{head}a\r\n0123456789\r\n0\r\n\r\n")).status, 200);
    // The client goes on sending for ever: the answer must not wait for the end.
    gateway.ask(format!("{head}a\r\n0123456789\r\n1\r\na\r\n")).refused(413, "body_too_large");
    assert_eq!(upstream.count(), 1, "the second one was never complete");
}

#[test]
fn crossing_the_limit_after_the_head_was_sent_cuts_the_answer() {
    let upstream = Upstream::raw(|conn| {
        conn.wire.request_head().unwrap();
        conn.write("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n");
        conn.wait_end();
        Then::Close
    });
    let gateway = Gateway::to(upstream.address, "body_limit: 10B");
    let mut raw = gateway.connect();
    raw.send("POST /cut HTTP/1.1\r\nHost: site\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n");
    let answer = raw.wire.answer_head();
    assert_eq!(answer.status, 200);
    assert_eq!(raw.wire.chunk().unwrap(), b"hi");
    raw.send("20\r\n0123456789012345678901234567890123456789\r\n");
    assert!(raw.wire.chunk().is_err(), "the answer ends visibly broken");
}

#[test]
fn a_limit_of_the_defaults_can_be_switched_off() {
    let upstream = Upstream::echo();
    let yaml = "
        upstreams: { up: { endpoints: [http://@0] } }
        defaults: { body_limit: 1B }
        routes: [{ match: /free, body_limit: off, upstream: up }, { match: /*, upstream: up }]
    ";
    let gateway = Gateway::new(yaml, &[upstream.address]);
    let mut raw = gateway.connect();
    assert_eq!(raw.ask(request("POST", "/free", &[], "much")).status, 200);
    raw.ask(request("POST", "/x", &[], "much")).refused(413, "body_too_large");
}
