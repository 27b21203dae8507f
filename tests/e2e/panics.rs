//! A defect in one request: it costs that request, and nothing else.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use http::{HeaderMap, StatusCode};
use tollgate::config::load::Source;
use tollgate::error::Refusal;
use tollgate::gateway::Middleware;
use tollgate::http::Exchange;
use tollgate::server::{Options, Server};

use crate::support::client::{get, request};
use crate::support::{Answer, Gate, Raw, Upstream, block_on, eventually, h2};

/// A step with a defect, on the way in or on the way back.
struct Defect;

impl Middleware for Defect {
    fn request(&self, _: &str, _: &Exchange, headers: &mut HeaderMap) -> Result<(), Box<Refusal>> {
        assert!(headers.get("x-defect").is_none(), "a defect on the way in");
        Ok(())
    }
    fn response(&self, _: &str, _: &Exchange, status: StatusCode, _: &mut HeaderMap) {
        assert!(status != StatusCode::IM_A_TEAPOT, "a defect on the way back");
    }
}

/// A gateway with one worker: whatever a panic broke, everybody would notice.
struct Defective {
    server: Server,
    log: PathBuf,
    _dir: tempfile::TempDir,
}

impl Defective {
    fn to(upstream: SocketAddr) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("access.log");
        let yaml = format!(
            "
listeners: [{{ address: '127.0.0.1:0' }}]
admin: {{ address: '127.0.0.1:0' }}
server: {{ workers: 1, timeouts: {{ drain: 200ms }} }}
log: {{ level: error, format: json, access: {{ output: '{}' }} }}
upstreams: {{ up: {{ endpoints: ['http://{upstream}'] }} }}
routes: [{{ name: all, match: /*, upstream: up }}]
",
            log.display()
        );
        let options = Options { middleware: vec![Arc::new(Defect)], ..Options::default() };
        let server = Server::start(Source::Text { yaml, dir: dir.path().into() }, options).unwrap();
        Self { server, log, _dir: dir }
    }
    fn address(&self) -> SocketAddr {
        self.server.addresses()[0]
    }
    fn connect(&self) -> Raw {
        Raw::connect(self.address())
    }
    /// The log line of `path`.
    fn logged(&self, path: &str) -> serde_json::Value {
        eventually("the log line", || {
            let text = std::fs::read_to_string(&self.log).ok()?;
            let line = text.lines().find(|line| line.contains(&format!("\"path\":\"{path}\"")))?;
            serde_json::from_str(line).ok()
        })
    }
    fn metrics(&self) -> String {
        let ask = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        Raw::connect(self.server.admin_address().unwrap()).ask(ask).text()
    }
}

/// An upstream whose path is the status it answers.
fn statuses() -> Upstream {
    Upstream::serve(|request, conn| conn.answer(request.target[1..4].parse().unwrap_or(200), "", "fine"))
}

/// A complete 500 that says so everywhere, with the id of the log line.
#[track_caller]
fn assert_internal(gateway: &Defective, answer: &Answer, path: &str) {
    answer.refused(500, "internal");
    let line = gateway.logged(path);
    assert_eq!((&line["status"], &line["reason"], &line["route"]), (&500.into(), &"internal".into(), &"all".into()), "{line}");
    assert_eq!(answer.header("x-request-id"), line["request_id"].as_str());
    assert_eq!(answer.json()["request_id"], line["request_id"]);
}

#[test]
fn a_panic_on_the_way_in_costs_its_request_only() {
    let upstream = statuses();
    let gateway = Defective::to(upstream.address);
    let mut raw = gateway.connect();
    assert_eq!(raw.ask(get("/200")).text(), "fine");
    let answer = raw.ask(request("GET", "/in", &[("X-Defect", "1"), ("X-Request-Id", "mine")], ""));
    assert_internal(&gateway, &answer, "/in");
    assert_eq!(answer.header("x-request-id"), Some("mine"));
    assert!(!answer.closes());
    assert_eq!(raw.ask(get("/200")).text(), "fine", "on the same connection");
    let head = raw.send(request("HEAD", "/head", &[("X-Defect", "1")], "")).read_to_head();
    assert_eq!((head.status, raw.wire.buffer.len()), (500, 0));
    assert_eq!(raw.ask(get("/200")).text(), "fine");
    assert_eq!(gateway.connect().ask(get("/200")).text(), "fine", "on a new one");
    assert_eq!(upstream.count(), 4, "the defective one never got there");
    let metrics = gateway.metrics();
    for series in [
        "gateway_requests_total{route=\"all\",method=\"GET\",status=\"500\"} 1",
        "gateway_errors_total{route=\"all\",reason=\"internal\"} 2",
        "gateway_requests_in_flight 0",
    ] {
        assert!(metrics.contains(series), "{series} in {metrics}");
    }
}

#[test]
fn a_panic_on_the_way_back_costs_its_request_only() {
    let upstream = statuses();
    let gateway = Defective::to(upstream.address);
    let mut raw = gateway.connect();
    assert_internal(&gateway, &raw.ask(get("/418")), "/418");
    assert_eq!(raw.ask(get("/200")).text(), "fine");
    assert!(gateway.metrics().contains("gateway_requests_in_flight 0"));
}

#[test]
fn a_panic_before_the_body_was_read_leaves_no_byte_of_it_to_the_next_request() {
    let upstream = statuses();
    let gateway = Defective::to(upstream.address);
    let mut raw = gateway.connect();
    let body = "GET /smuggled HTTP/1.1\r\nHost: site\r\n\r\n";
    assert_internal(&gateway, &raw.ask(request("POST", "/in", &[("X-Defect", "1")], body)), "/in");
    // The connection may go on or end, but what comes on it never answers what was a body.
    raw.send(get("/201"));
    raw.half_close();
    let (rest, _) = raw.rest();
    assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 201"), "{}", String::from_utf8_lossy(&rest));
    assert_eq!(gateway.connect().ask(get("/200")).text(), "fine");
    assert!(upstream.requests().iter().all(|request| request.target != "/smuggled"));
}

#[test]
fn other_requests_of_the_worker_and_of_the_connection_go_on() {
    let gate = Gate::new();
    let wait = gate.clone();
    let upstream = Upstream::serve(move |request, conn| {
        if request.target == "/slow" {
            wait.pass();
        }
        conn.ok("fine")
    });
    let gateway = Defective::to(upstream.address);
    let mut slow = gateway.connect();
    slow.send(get("/slow"));
    eventually("it is upstream", || (upstream.count() == 1).then_some(()));
    gateway.connect().ask(request("GET", "/in", &[("X-Defect", "1")], "")).refused(500, "internal");
    block_on(async {
        let mut client = h2::Client::connect(gateway.address()).await;
        let (stays, _) = client.start(h2::request("GET", "/slow", &[]), b"").await.unwrap();
        let reply = client.ask(h2::request("GET", "/in", &[("x-defect", "1")]), b"").await.unwrap();
        assert_eq!((reply.status, reply.text().contains("\"internal\"")), (500, true));
        let reply = client.ask(h2::grpc("/in", &[("x-defect", "1")]), b"").await.unwrap();
        assert_eq!((reply.status, reply.grpc_status()), (200, Some("13")), "gRPC clients get a status they know");
        gate.open();
        assert_eq!(h2::whole(stays.await.unwrap()).await.unwrap().text(), "fine", "the other stream of the connection");
    });
    assert_eq!(slow.read().text(), "fine");
}
