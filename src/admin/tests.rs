//! The admin listener through a real socket, with a made-up gateway behind it.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use arc_swap::ArcSwap;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{Control, Settings, client, serve};
use crate::gateway::status::{Info, Ready, ReloadOutcome, Report, RouteStatus, UpstreamStatus};
use crate::units::Secret;

#[derive(Default)]
struct Fake {
    draining: AtomicBool,
    broken: AtomicBool,
}

impl Control for Fake {
    fn info(&self) -> Info {
        Info { name: "tollgate".to_owned(), ..Info::default() }
    }
    fn ready(&self) -> Ready {
        if self.draining.load(SeqCst) { Ready::Draining } else { Ready::Ready }
    }
    fn routes(&self) -> Vec<RouteStatus> {
        vec![RouteStatus { name: "get-user".to_owned(), ..RouteStatus::default() }]
    }
    fn upstreams(&self) -> Vec<UpstreamStatus> {
        vec![UpstreamStatus { name: "users".to_owned(), ..UpstreamStatus::default() }]
    }
    fn effective_config(&self) -> Value {
        json!({"admin": {"token": "***"}})
    }
    fn metrics(&self) -> String {
        "gateway_requests_in_flight 0\n".to_owned()
    }
    fn reload(&self) -> Pin<Box<dyn Future<Output = ReloadOutcome> + Send>> {
        let broken = self.broken.load(SeqCst);
        Box::pin(async move {
            if !broken {
                return ReloadOutcome::Ok { generation: 4, duration_ms: 12 };
            }
            let report = Report {
                file: "gateway.yaml".to_owned(),
                line: 42,
                column: 7,
                message: "unknown field".to_owned(),
                help: None,
                source_line: None,
                warning: false,
            };
            ReloadOutcome::Failed { errors: vec![report] }
        })
    }
}

struct Admin {
    address: SocketAddr,
    fake: Arc<Fake>,
    settings: Arc<ArcSwap<Settings>>,
    stop: watch::Sender<bool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Admin {
    fn start(token: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let fake = Arc::new(Fake::default());
        let settings = Arc::new(ArcSwap::from_pointee(Settings { token: Secret::new(token), address }));
        let (stop, stopped) = watch::channel(false);
        let (its_settings, control) = (Arc::clone(&settings), Arc::clone(&fake));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async { tokio::spawn(serve(listener, its_settings, control, stopped)).await.unwrap().unwrap() });
        });
        Self { address, fake, settings, stop, thread: Some(thread) }
    }

    fn raw(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Status, head in lower case, body.
    fn ask(&self, method: &str, path: &str, headers: &str) -> (u16, String, String) {
        let host = if headers.contains("host:") { "" } else { "host: localhost\r\n" };
        let answer = self.raw(&format!("{method} {path} HTTP/1.1\r\n{host}{headers}connection: close\r\n\r\n"));
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), head.to_ascii_lowercase(), body.to_owned())
    }

    fn json(&self, method: &str, path: &str) -> (u16, Value) {
        let (status, head, body) = self.ask(method, path, "");
        assert!(head.contains("content-type: application/json\r\n"), "{head}");
        (status, serde_json::from_str(&body).unwrap())
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

#[test]
fn every_page_answers_as_the_table_says() {
    let admin = Admin::start("");
    assert_eq!(admin.json("GET", "/health"), (200, json!({"status": "ok"})));
    assert_eq!(admin.json("GET", "/ready"), (200, json!({"status": "ready"})));
    let (status, info) = admin.json("GET", "/info?x");
    assert_eq!((status, &info["name"]), (200, &json!("tollgate")));
    let (status, routes) = admin.json("GET", "/routes");
    assert_eq!((status, &routes["routes"][0]["name"]), (200, &json!("get-user")));
    let (status, upstreams) = admin.json("GET", "/upstreams");
    assert_eq!((status, &upstreams["upstreams"][0]["name"]), (200, &json!("users")));
    assert_eq!(admin.json("GET", "/config"), (200, json!({"admin": {"token": "***"}})));
    let (status, head, body) = admin.ask("GET", "/metrics", "");
    assert_eq!((status, body.as_str()), (200, "gateway_requests_in_flight 0\n"));
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
}

#[test]
fn reload_answers_with_its_result() {
    let admin = Admin::start("");
    assert_eq!(admin.json("POST", "/reload"), (200, json!({"result": "ok", "generation": 4, "duration_ms": 12})));
    admin.fake.broken.store(true, SeqCst);
    let error = json!({"file": "gateway.yaml", "line": 42, "column": 7, "message": "unknown field", "help": null});
    assert_eq!(admin.json("POST", "/reload"), (422, json!({"result": "failed", "errors": [error]})));
}

#[test]
fn head_is_get_without_a_body() {
    let admin = Admin::start("");
    let (status, head, body) = admin.ask("HEAD", "/metrics", "");
    assert_eq!((status, body.as_str()), (200, ""));
    assert!(head.contains("content-length: 29"), "{head}");
}

#[test]
fn wrong_methods_and_paths_are_problems_that_help() {
    let admin = Admin::start("");
    for (method, path, allow) in
        [("POST", "/info", "get, head"), ("DELETE", "/metrics", "get, head"), ("GET", "/reload", "post"), ("HEAD", "/reload", "post")]
    {
        let (status, head, _) = admin.ask(method, path, "");
        assert_eq!(status, 405);
        assert!(head.contains(&format!("allow: {allow}\r\n")), "{head}");
    }
    let (status, head, body) = admin.ask("GET", "/health/", "");
    assert_eq!(status, 404);
    assert!(head.contains("content-type: application/problem+json"), "{head}");
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((&body["status"], &body["title"]), (&json!(404), &json!("Not Found")));
    assert_eq!(body["paths"], json!(["/health", "/ready", "/info", "/routes", "/upstreams", "/config", "/reload", "/metrics"]));
}

#[test]
fn without_a_token_foreign_hosts_and_pages_are_refused() {
    let admin = Admin::start("");
    assert_eq!(admin.ask("GET", "/info", "host: evil.example\r\n").0, 403);
    assert_eq!(admin.ask("GET", "/info", &format!("host: {}\r\n", admin.address)).0, 200);
    assert_eq!(admin.ask("POST", "/reload", "origin: http://localhost\r\n").0, 403);
    let (_, head, _) = admin.ask("GET", "/info", "origin: http://localhost\r\n");
    assert!(!head.contains("access-control"), "{head}");
    assert!(admin.raw("GET /health HTTP/1.0\r\n\r\n").starts_with("HTTP/1.0 200"));
}

#[test]
fn with_a_token_only_health_and_readiness_are_open() {
    let admin = Admin::start("s3cret");
    for path in ["/info", "/routes", "/upstreams", "/config", "/metrics", "/nothing"] {
        let (status, head, body) = admin.ask("GET", path, "authorization: Bearer wrong\r\n");
        assert_eq!(status, 401, "{path}");
        assert!(head.contains("www-authenticate: bearer\r\n"), "{head}");
        assert!(!body.contains("s3cret"));
    }
    assert_eq!(admin.ask("POST", "/reload", "").0, 401);
    assert_eq!(admin.ask("GET", "/info", "authorization: Bearer s3cret\r\n").0, 200);
    assert_eq!(admin.ask("POST", "/reload", "host: gw.example\r\nauthorization: Bearer s3cret\r\n").0, 200);
    assert_eq!(admin.ask("GET", "/health", "host: gw.example\r\n").0, 200);
    assert_eq!(admin.ask("GET", "/ready", "host: gw.example\r\n").0, 200);
}

#[test]
fn a_changed_token_holds_for_the_next_request() {
    let admin = Admin::start("old");
    assert_eq!(admin.ask("GET", "/info", "authorization: Bearer old\r\n").0, 200);
    admin.settings.store(Arc::new(Settings { token: Secret::new("new"), address: admin.address }));
    assert_eq!(admin.ask("GET", "/info", "authorization: Bearer old\r\n").0, 401);
    assert_eq!(admin.ask("GET", "/info", "authorization: Bearer new\r\n").0, 200);
}

#[test]
fn long_bodies_and_heads_are_refused() {
    let admin = Admin::start("");
    assert_eq!(admin.ask("POST", "/reload", "content-length: 65537\r\n").0, 413);
    let chunks = format!("11000\r\n{}\r\n", "z".repeat(0x11000));
    let head = "POST /reload HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n";
    let mut stream = TcpStream::connect(admin.address).unwrap();
    stream.write_all(format!("{head}{chunks}").as_bytes()).unwrap();
    let mut status = [0; 12];
    stream.read_exact(&mut status).unwrap();
    assert_eq!(&status, b"HTTP/1.1 413");
    assert_eq!(admin.ask("POST", "/reload", &format!("x: {}\r\n", "y".repeat(17 << 10))).0, 431);
    let body = "z".repeat(1000);
    let answer = admin.raw(&format!("POST /reload HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 1000\r\n\r\n{body}"));
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[test]
fn the_client_tells_readiness() {
    let admin = Admin::start("");
    let limit = Duration::from_secs(30);
    assert_eq!(client::ready(admin.address, limit).unwrap(), (200, r#"{"status":"ready"}"#.to_owned()));
    admin.fake.draining.store(true, SeqCst);
    assert_eq!(client::ready(admin.address, limit).unwrap(), (503, r#"{"status":"draining"}"#.to_owned()));
    let anywhere = SocketAddr::new(std::net::Ipv4Addr::UNSPECIFIED.into(), admin.address.port());
    assert_eq!(client::ready(anywhere, limit).unwrap().0, 503);
}

#[test]
fn the_client_fails_where_nobody_answers() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let silent = client::ready(address, Duration::from_millis(20)).unwrap_err();
    assert_eq!(silent.kind(), std::io::ErrorKind::TimedOut);
    drop(listener);
    assert!(client::ready(address, Duration::from_secs(30)).is_err());
}

#[test]
fn shutdown_closes_idle_connections() {
    let admin = Admin::start("");
    let mut stream = TcpStream::connect(admin.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    admin.stop.send_replace(true);
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert!(rest.ends_with(br#"{"status":"ok"}"#));
}
