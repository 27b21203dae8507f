//! WebSockets through the gateway, from HTTP/1.1 and HTTP/2 clients, with and without TLS, to their end.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{self, Message, WebSocket};

use crate::support::certs::{self, Authority};
use crate::support::h2::{Client, request};
use crate::support::{Gate, Gateway, PATIENCE, Request, Then, Upstream, block_on, eventually};

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

fn handshake(path: &str, more: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: site\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n{more}\r\n"
    )
}

fn switched(request: &Request, more: &str) -> String {
    let accept = derive_accept_key(request.header("sec-websocket-key").unwrap().as_bytes());
    format!("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n{more}\r\n")
}

/// An upstream that switches and echoes bytes, whatever they mean, until the end, which it then notes.
fn echo(ended: &Gate) -> Upstream {
    let ended = ended.clone();
    Upstream::serve(move |request, conn| {
        conn.write(switched(request, "Sec-WebSocket-Protocol: chat\r\nSec-WebSocket-Extensions: permessage-deflate\r\n"));
        loop {
            let bytes = std::mem::take(&mut conn.wire.buffer);
            if !bytes.is_empty() && !conn.write(&bytes) {
                break;
            }
            if !matches!(conn.wire.fill(), Ok(1..)) {
                break;
            }
        }
        ended.open();
        Then::Close
    })
}

/// A real server for one socket: sends texts back, tells what it saw.
fn server() -> (SocketAddr, std::thread::JoinHandle<Vec<Message>>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let thread = std::thread::spawn(move || {
        let (socket, _) = listener.accept().unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut socket = tungstenite::accept(socket).unwrap();
        let mut seen = Vec::new();
        while let Ok(message) = socket.read() {
            seen.push(message.clone());
            if message.is_text() || message.is_binary() {
                socket.send(message).unwrap();
            }
        }
        seen
    });
    (address, thread)
}

fn client(address: SocketAddr, path: &str) -> WebSocket<TcpStream> {
    let socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    tungstenite::client::client(format!("ws://site{path}"), socket).unwrap().0
}

fn going_away(message: &Message) -> bool {
    matches!(message, Message::Close(Some(CloseFrame { code: CloseCode::Away, .. })))
}

#[test]
fn messages_pass_both_ways_and_the_close_is_clean() {
    let (address, thread) = server();
    let gateway = Gateway::to(address, "");
    let mut socket = client(gateway.address(), "/chat");
    gateway.metric_becomes("gateway_tunnels{route=\"all\"}", 1.0);
    for message in [Message::text("hello"), Message::binary(vec![7; 300_000]), Message::text("")] {
        socket.send(message.clone()).unwrap();
        assert_eq!(socket.read().unwrap(), message);
    }
    socket.send(Message::Ping(Bytes::from_static(b"p"))).unwrap();
    assert_eq!(socket.read().unwrap(), Message::Pong(Bytes::from_static(b"p")));
    socket.close(Some(CloseFrame { code: CloseCode::Normal, reason: "bye".into() })).unwrap();
    while socket.read().is_ok() {}
    drop(socket);
    let seen = thread.join().unwrap();
    assert!(matches!(seen.last(), Some(Message::Close(Some(CloseFrame { code: CloseCode::Normal, .. })))), "{:?}", seen.last());
    gateway.metric_becomes("gateway_tunnels{route=\"all\"}", 0.0);
    let line = gateway.logged("/chat");
    assert_eq!((line["status"].as_u64(), line["complete"].as_bool()), (Some(101), Some(true)));
    assert!(line["bytes_in"].as_u64().unwrap() > 300_000 && line["bytes_out"].as_u64().unwrap() > 300_000, "{line}");
    gateway.metric_becomes("gateway_requests_in_flight", 0.0);
}

#[test]
fn the_handshake_goes_on_as_it_came() {
    let ended = Gate::new();
    let upstream = echo(&ended);
    let gateway = Gateway::to(upstream.address, "");
    let mut raw = gateway.connect();
    raw.send(handshake(
        "/chat?x=1",
        "Sec-WebSocket-Protocol: chat, superchat\r\nSec-WebSocket-Extensions: permessage-deflate\r\nOrigin: https://a.example\r\n",
    ));
    let answer = raw.wire.answer_head();
    assert_eq!(answer.status, 101);
    for (name, value) in [
        ("upgrade", "websocket"),
        ("connection", "upgrade"),
        ("sec-websocket-accept", ACCEPT),
        ("sec-websocket-protocol", "chat"),
        ("sec-websocket-extensions", "permessage-deflate"),
    ] {
        assert_eq!(answer.header(name).map(str::to_ascii_lowercase), Some(value.to_ascii_lowercase()), "{name}");
    }
    assert!(answer.has("x-request-id"));
    let seen = upstream.last();
    assert_eq!((seen.method.as_str(), seen.target.as_str(), seen.version.as_str()), ("GET", "/chat?x=1", "HTTP/1.1"));
    assert_eq!(seen.header("sec-websocket-key"), Some(KEY));
    assert_eq!(seen.header("sec-websocket-protocol"), Some("chat, superchat"));
    assert_eq!(seen.header("x-forwarded-for"), Some("127.0.0.1"));
    // Bytes are not looked into.
    raw.send([0xc1, 0x83, 1, 2, 3, 4, 5, 6, 7]);
    while raw.wire.buffer.len() < 9 {
        assert!(raw.wire.fill().unwrap() > 0);
    }
    assert_eq!(raw.wire.buffer, [0xc1, 0x83, 1, 2, 3, 4, 5, 6, 7]);
    drop(raw);
    ended.pass();
}

#[test]
fn bytes_that_come_with_either_head_are_delivered() {
    let upstream = Upstream::serve(|request, conn| {
        let mut bytes = switched(request, "").into_bytes();
        bytes.extend_from_slice(b"\x81\x05early");
        conn.write(bytes);
        while conn.wire.buffer.len() < 11 {
            conn.wire.fill().unwrap();
        }
        let got = std::mem::take(&mut conn.wire.buffer);
        conn.write(got);
        conn.wait_end();
        Then::Close
    });
    let gateway = Gateway::to(upstream.address, "");
    let mut raw = gateway.connect();
    // A client may not send before the 101, but what it sends is not lost either.
    raw.send([handshake("/x", "").as_bytes(), b"\x81\x85\0\0\0\0HELLO"].concat());
    assert_eq!(raw.wire.answer_head().status, 101);
    while raw.wire.buffer.len() < 18 {
        assert!(raw.wire.fill().unwrap() > 0);
    }
    assert_eq!(raw.wire.buffer, b"\x81\x05early\x81\x85\0\0\0\0HELLO");
}

#[test]
fn a_refused_handshake_is_an_ordinary_answer() {
    for status in [200_u16, 204, 401, 426, 503] {
        let upstream = Upstream::serve(move |_, conn| match status {
            204 => {
                conn.write("HTTP/1.1 204 No\r\n\r\n");
                Then::Keep
            }
            _ => conn.answer(status, "upgrade: websocket\r\nx-mine: 1\r\n", "no"),
        });
        let gateway = Gateway::to(upstream.address, "retry: off");
        let mut raw = gateway.connect();
        // What follows is a request, not tunnel bytes.
        raw.send(handshake("/x", ""));
        let answer = raw.read();
        assert_eq!(answer.status, status);
        assert!(!answer.has("upgrade"));
        if !answer.closes() {
            raw.send("GET /second HTTP/1.1\r\nHost: site\r\n\r\n");
            assert_eq!(raw.wire.answer_head().status, status);
            assert_eq!(upstream.last().target, "/second");
        }
        assert_eq!(gateway.metric("gateway_tunnels{route=\"all\"}"), 0.0);
    }
}

#[test]
fn a_wrong_101_is_a_bad_gateway() {
    for head in [
        "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n",
        "Connection: upgrade\r\nUpgrade: websocket\r\n",
        "Connection: upgrade\r\nUpgrade: h2c\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n",
        "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n",
    ] {
        let ended = Gate::new();
        let over = ended.clone();
        let upstream = Upstream::serve(move |_, conn| {
            conn.write(format!("HTTP/1.1 101 Switching Protocols\r\n{head}\r\n"));
            conn.wait_end();
            over.open();
            Then::Close
        });
        let gateway = Gateway::to(upstream.address, "");
        let mut raw = gateway.connect();
        raw.send(handshake("/x", ""));
        raw.read().refused(502, "upstream_protocol_error");
        ended.pass();
        // An unrequested one as well.
        gateway.get("/plain").refused(502, "upstream_protocol_error");
    }
}

#[test]
fn wrong_handshakes_are_bad_requests_and_other_upgrades_are_dropped() {
    let upstream = Upstream::echo();
    let gateway = Gateway::to(upstream.address, "");
    let good = handshake("/x", "");
    for wrong in [
        good.replace("Version: 13", "Version: 8"),
        good.replace(KEY, "short"),
        good.replace(&format!("Sec-WebSocket-Key: {KEY}\r\n"), ""),
        good.replace("GET ", "POST "),
        good.replace("Connection: Upgrade\r\n", ""),
        good.replace("\r\n\r\n", "\r\nContent-Length: 2\r\n\r\nhi"),
    ] {
        gateway.ask(&wrong).refused(400, "bad_request");
    }
    assert_eq!(upstream.count(), 0);
    for other in ["h2c", "foo", "TLS/1.2"] {
        let answer = gateway.ask(good.replace("Upgrade: websocket", &format!("Upgrade: {other}\r\nHTTP2-Settings: AAMAAABkAAQAAP__")));
        assert_eq!(answer.status, 200);
        let seen = upstream.last();
        assert!(!seen.has("upgrade") && !seen.has("http2-settings"), "{seen:?}");
    }
}

/// Handshakes, in this order, to a gateway with `POLICY`: path, a field, and the status over HTTP/1.1.
const HANDSHAKES: [(&str, (&str, &str), u16); 15] = [
    ("/auth", ("x-mine", "1"), 401),
    ("/auth", ("x-api-key", "wrong"), 401),
    ("/auth", ("x-api-key", "foo"), 101),
    ("/ip", ("x-mine", "1"), 403),
    ("/limit", ("x-mine", "1"), 101),
    ("/limit", ("x-mine", "1"), 429),
    ("/origin", ("origin", "https://evil.example"), 403),
    ("/origin", ("origin", "https://app.example.com"), 101),
    ("/origin", ("x-mine", "1"), 101),
    ("/none", ("x-mine", "1"), 404),
    ("/no/401", ("x-mine", "1"), 401),
    ("/no/403", ("x-mine", "1"), 403),
    ("/no/404", ("x-mine", "1"), 404),
    ("/no/426", ("x-mine", "1"), 426),
    ("/no/503", ("x-mine", "1"), 503),
];

const POLICY: &str = "
    upstreams: { up: { endpoints: [http://@0] } }
    authenticators:
      keys: { api_key: { from: [header:x-api-key], keys: [{ id: a, sha256: 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae }] } }
    routes:
      - { match: /auth, auth: keys, upstream: up }
      - { match: /ip, ip: { deny: [127.0.0.0/8] }, upstream: up }
      - { match: /limit, rate_limit: [{ by: ip, rate: 1/h, burst: 1 }], upstream: up }
      - { match: /origin, cors: { origins: ['https://app.example.com'] }, upstream: up }
      - { name: no, match: /no/*, retry: off, upstream: up }
      - { match: /local, respond: { status: 200, body: here } }";

/// An upstream that switches, but for `/no/STATUS`.
fn choosy() -> Upstream {
    Upstream::serve(|request, conn| match request.target.strip_prefix("/no/") {
        Some(status) => conn.answer(status.parse().unwrap(), "x-theirs: 1\r\n", "no"),
        None => {
            conn.write(switched(request, ""));
            conn.wait_end();
            Then::Close
        }
    })
}

#[track_caller]
fn assert_policy_was_applied(gateway: &Gateway, upstream: &Upstream) {
    // Lines of different workers may come in any order.
    eventually("the refusal is logged", || {
        gateway.log().iter().any(|line| line["path"] == "/origin" && line["reason"] == "origin_denied").then_some(())
    });
    let seen = upstream.requests();
    let asked = |path: &str| seen.iter().filter(|request| request.target.starts_with(path)).count();
    assert_eq!((asked("/auth"), asked("/ip"), asked("/limit"), asked("/origin"), asked("/no/")), (1, 0, 1, 2, 5));
    assert!(!seen.iter().any(|request| request.has("x-api-key")));
    assert_eq!(gateway.metric("gateway_tunnels{route=\"no\"}"), 0.0);
}

#[test]
fn policy_applies_to_the_handshake() {
    let upstream = choosy();
    let gateway = Gateway::new(POLICY, &[upstream.address]);
    let shake = |path: &str, (name, value): (&str, &str)| {
        let mut raw = gateway.connect();
        raw.send(handshake(path, &format!("{name}: {value}\r\n")));
        raw.wire.answer_head()
    };
    for (path, field, status) in HANDSHAKES {
        let answer = shake(path, field);
        assert_eq!(answer.status, status, "{path} {field:?}");
        assert_eq!(answer.has("x-theirs"), path.starts_with("/no/"), "{path}");
    }
    assert_eq!(shake("/local", ("x-mine", "1")).status, 200);
    assert_policy_was_applied(&gateway, &upstream);
}

#[test]
fn policy_applies_to_an_extended_connect_too() {
    let upstream = choosy();
    let gateway = Gateway::new(POLICY, &[upstream.address]);
    block_on(async {
        let mut client = Client::connect(gateway.address()).await;
        ready(&mut client).await;
        for (path, (name, value), status) in HANDSHAKES {
            let mut request = connect(path, "websocket", "13");
            request.headers_mut().insert(name, value.parse().unwrap());
            let (response, _stream) = client.open(request).await.unwrap();
            let mut response = response.await.unwrap();
            // A tunnel is a 200 here.
            assert_eq!(response.status(), if status == 101 { 200 } else { status }, "{path} {name}: {value}");
            assert_eq!(response.headers().contains_key("x-theirs"), path.starts_with("/no/"), "{path}");
            if path.starts_with("/no/") {
                assert_eq!(read_exactly(response.body_mut(), 2).await, b"no");
            }
        }
    });
    assert_policy_was_applied(&gateway, &upstream);
}

#[test]
fn an_idle_tunnel_is_closed_and_a_busy_one_is_not() {
    let ended = Gate::new();
    let upstream = echo(&ended);
    let gateway = Gateway::to(upstream.address, "timeout: 900ms\nidle_timeout: 400ms");
    let mut raw = gateway.connect();
    raw.send(handshake("/idle", ""));
    assert_eq!(raw.wire.answer_head().status, 101);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(1000) {
        raw.send(b"\x82\x80\0\0\0\0");
        std::thread::sleep(Duration::from_millis(100));
    }
    let quiet = Instant::now();
    let (rest, _) = raw.rest();
    assert!(rest.len() >= 30 && rest.len() % 6 == 0, "{rest:?}");
    assert!(quiet.elapsed() < Duration::from_secs(3));
    ended.pass();
    assert_eq!(gateway.logged("/idle")["reason"], "idle_timeout");
}

#[test]
fn a_half_close_is_passed_on_and_a_reset_closes_the_other_side() {
    let upstream = Upstream::serve(|request, conn| {
        conn.write(switched(request, ""));
        // The client has said all it had to say; there is still an answer.
        conn.wait_end();
        conn.write(b"\x81\x04last");
        Then::Close
    });
    let gateway = Gateway::to(upstream.address, "");
    let mut raw = gateway.connect();
    raw.send(handshake("/half", ""));
    assert_eq!(raw.wire.answer_head().status, 101);
    raw.half_close();
    assert_eq!(raw.rest().0, b"\x81\x04last");

    let ended = Gate::new();
    let upstream = echo(&ended);
    let gateway = Gateway::to(upstream.address, "");
    let mut raw = gateway.connect();
    raw.send(handshake("/reset", ""));
    assert_eq!(raw.wire.answer_head().status, 101);
    raw.reset();
    ended.pass();
    gateway.metric_becomes("gateway_tunnels{route=\"all\"}", 0.0);
}

#[test]
fn when_one_side_ends_the_other_is_told_at_once_and_closed_soon() {
    // The upstream ends and the client stays.
    let gone = Gate::new();
    let over = gone.clone();
    let upstream = Upstream::serve(move |request, conn| {
        conn.write(switched(request, ""));
        conn.write(b"\x81\x04last");
        let _ = conn.socket.shutdown(std::net::Shutdown::Write);
        conn.wait_end();
        over.open();
        Then::Close
    });
    let gateway = Gateway::to(upstream.address, "idle_timeout: 5m");
    let mut raw = gateway.connect();
    raw.send(handshake("/down", ""));
    assert_eq!(raw.wire.answer_head().status, 101);
    let begun = Instant::now();
    assert_eq!(raw.rest().0, b"\x81\x04last");
    assert!(begun.elapsed() < Duration::from_secs(1), "the end came late");
    gone.pass();
    gateway.metric_becomes("gateway_tunnels{route=\"all\"}", 0.0);
    assert!(begun.elapsed() < Duration::from_secs(5));
    let line = gateway.logged("/down");
    assert_eq!((line["complete"].as_bool(), line["bytes_out"].as_u64(), line.get("reason")), (Some(true), Some(6), None), "{line}");

    // The client ends and the upstream stays.
    let (told, hold) = (Gate::new(), Gate::new());
    let (its, wait) = (told.clone(), hold.clone());
    let upstream = Upstream::serve(move |request, conn| {
        conn.write(switched(request, ""));
        conn.wait_end();
        its.open();
        wait.pass();
        Then::Close
    });
    let gateway = Gateway::to(upstream.address, "idle_timeout: 5m");
    let mut raw = gateway.connect();
    raw.send(handshake("/up", ""));
    assert_eq!(raw.wire.answer_head().status, 101);
    let begun = Instant::now();
    raw.half_close();
    told.pass();
    assert!(begun.elapsed() < Duration::from_secs(1), "the end came late");
    raw.assert_closed();
    assert!(begun.elapsed() < Duration::from_secs(5));
    gateway.metric_becomes("gateway_tunnels{route=\"all\"}", 0.0);
    hold.open();
}

#[test]
fn tunnels_outlive_reloads_even_of_their_route() {
    let (address, thread) = server();
    let gateway = Gateway::to(address, "");
    let mut socket = client(gateway.address(), "/chat");
    gateway.reload_ok("routes: [{ match: /other, respond: { status: 200 } }]", &[]);
    gateway.reload_ok(&Gateway::simple("timeout: 5s"), &[address]);
    for _ in 0..3 {
        socket.send(Message::text("still here")).unwrap();
        assert_eq!(socket.read().unwrap(), Message::text("still here"));
    }
    drop(socket);
    thread.join().unwrap();
}

#[test]
fn a_drain_says_goodbye_to_both_sides() {
    let (address, thread) = server();
    let gateway = Gateway::to(address, "");
    let mut socket = client(gateway.address(), "/chat");
    socket.send(Message::text("hello")).unwrap();
    assert_eq!(socket.read().unwrap(), Message::text("hello"));
    let stopping = gateway.begin_shutdown();
    let message = socket.read().unwrap();
    assert!(going_away(&message), "{message:?}");
    let seen = thread.join().unwrap();
    assert!(seen.last().is_some_and(going_away), "{seen:?}");
    let gateway = stopping.join();
    assert_eq!(gateway.logged("/chat")["status"], 101);
}

#[test]
fn a_drain_waits_for_the_end_of_a_frame() {
    let ended = Gate::new();
    let upstream = echo(&ended);
    let gateway = Gateway::to(upstream.address, "");
    let mut raw = gateway.connect();
    raw.send(handshake("/frame", ""));
    assert_eq!(raw.wire.answer_head().status, 101);
    // Half a frame, echoed: the goodbye comes behind the other half.
    raw.send(b"\x82\x05ab");
    while raw.wire.buffer.len() < 4 {
        raw.wire.fill().unwrap();
    }
    let stopping = gateway.begin_shutdown();
    std::thread::sleep(Duration::from_millis(600));
    raw.send(b"cde");
    let (rest, _) = raw.rest();
    assert_eq!(rest[..7], *b"\x82\x05abcde");
    assert_eq!(rest[7..], [0x88, 2, 0x03, 0xe9]);
    stopping.join();
}

#[test]
fn sockets_work_over_tls() {
    let (address, thread) = server();
    let (dir, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    authority.issue(dir.path(), "site", &["site"]);
    let yaml = "
        listeners: [{ address: '127.0.0.1:0', tls: { certificates: [{ cert: site.pem, key: site.key }] } }]
        upstreams: { up: { endpoints: [http://@0] } }
        routes: [{ name: all, match: /*, upstream: up }]";
    let gateway = Gateway::in_dir(dir, yaml, &[address]);
    let (raw, _) = certs::connect(gateway.address(), &authority.client(&["http/1.1"], None), "site").unwrap();
    let mut socket = tungstenite::client::client("ws://site/x", Tls(raw.wire.stream)).unwrap().0;
    socket.send(Message::text("secret")).unwrap();
    assert_eq!(socket.read().unwrap(), Message::text("secret"));
    let stopping = gateway.begin_shutdown();
    let message = socket.read().unwrap();
    assert!(going_away(&message), "{message:?}");
    thread.join().unwrap();
    stopping.join();
}

#[test]
fn upstreams_over_tls_are_asked_in_http1_whatever_they_could_speak() {
    let (dir, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    authority.issue(dir.path(), "up", &["up.test"]);
    std::fs::write(dir.path().join("ca.pem"), authority.pem()).unwrap();
    let config = Authority::server(dir.path(), "up", &["h2", "http/1.1"]);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let upstream = std::thread::spawn(move || {
        let (socket, _) = listener.accept().unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let session = rustls::ServerConnection::new(config).unwrap();
        let mut socket = tungstenite::accept(rustls::StreamOwned::new(session, socket)).unwrap();
        let message = socket.read().unwrap();
        socket.send(message).unwrap();
        while socket.read().is_ok() {}
        socket.get_ref().conn.alpn_protocol().map(<[u8]>::to_vec)
    });
    let yaml = "
        upstreams: { up: { endpoints: [https://@0], tls: { ca: ca.pem, server_name: up.test } } }
        routes: [{ name: all, match: /*, upstream: up }]";
    let gateway = Gateway::in_dir(dir, yaml, &[address]);
    let mut socket = client(gateway.address(), "/chat");
    socket.send(Message::text("secret")).unwrap();
    assert_eq!(socket.read().unwrap(), Message::text("secret"));
    socket.close(None).unwrap();
    while socket.read().is_ok() {}
    assert_eq!(upstream.join().unwrap().as_deref(), Some(&b"http/1.1"[..]));
}

struct Tls(Box<dyn crate::support::wire::Io>);
impl Read for Tls {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buf)
    }
}
impl Write for Tls {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.0.write(buf)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

/// An extended CONNECT (RFC 8441).
fn connect(path: &str, protocol: &'static str, version: &str) -> http::Request<()> {
    let mut request = request("CONNECT", path, &[("sec-websocket-version", version), ("sec-websocket-protocol", "chat")]);
    request.extensions_mut().insert(::h2::ext::Protocol::from_static(protocol));
    request
}

async fn ready(client: &mut Client) {
    // The server's settings allow it.
    let end = Instant::now() + PATIENCE;
    while !client.send.is_extended_connect_protocol_enabled() {
        assert!(Instant::now() < end, "RFC 8441 is not offered");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn read_exactly(body: &mut ::h2::RecvStream, count: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < count {
        let data = body.data().await.expect("the stream ended").unwrap();
        let _ = body.flow_control().release_capacity(data.len());
        bytes.extend_from_slice(&data);
    }
    bytes
}

#[test]
fn http2_clients_open_tunnels_by_extended_connect() {
    let ended = Gate::new();
    let upstream = echo(&ended);
    // The connection is in use while the tunnel is open, however long `timeouts.idle` is.
    let yaml = format!("{}server: {{ workers: 1, timeouts: {{ idle: 300ms, header: 300ms, drain: 200ms }} }}\n", Gateway::simple(""));
    let gateway = Gateway::new(&yaml, &[upstream.address]);
    block_on(async {
        let mut client = Client::connect(gateway.address()).await;
        ready(&mut client).await;
        let (response, mut stream) = client.open(connect("/chat?x=1", "websocket", "13")).await.unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["sec-websocket-protocol"], "chat");
        assert!(!response.headers().contains_key("sec-websocket-accept"));
        let mut body = response.into_body();
        for text in [&b"\x81\x85\0\0\0\0hello"[..], b"\x81\x83\0\0\0\0you"] {
            stream.send_data(Bytes::from_static(text), false).unwrap();
            assert_eq!(read_exactly(&mut body, text.len()).await, text);
            tokio::time::sleep(Duration::from_millis(700)).await;
        }
        stream.send_data(Bytes::new(), true).unwrap();
        while let Some(Ok(_)) = body.data().await {}
    });
    ended.pass();
    let seen = upstream.last();
    assert_eq!((seen.method.as_str(), seen.target.as_str()), ("GET", "/chat?x=1"));
    assert_eq!(seen.header("host"), Some("site"));
    assert_eq!(seen.header("upgrade"), Some("websocket"));
    assert_eq!(gateway.logged("/chat")["status"], 200);
    gateway.metric_becomes("gateway_tunnels{route=\"all\"}", 0.0);
}

#[test]
fn extended_connect_works_over_tls_and_outlives_a_new_certificate() {
    let ended = Gate::new();
    let upstream = echo(&ended);
    let (dir, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    authority.issue(dir.path(), "site", &["site"]);
    let yaml = "
        listeners: [{ address: '127.0.0.1:0', tls: { certificates: [{ cert: site.pem, key: site.key }] } }]
        upstreams: { up: { endpoints: [http://@0] } }
        routes: [{ name: all, match: /*, upstream: up }]";
    let gateway = Gateway::in_dir(dir, yaml, &[upstream.address]);
    let pass = async |stream: &mut ::h2::SendStream<Bytes>, body: &mut ::h2::RecvStream, bytes: &'static [u8]| {
        stream.send_data(Bytes::from_static(bytes), false).unwrap();
        assert_eq!(read_exactly(body, bytes.len()).await, bytes);
    };
    block_on(async {
        // It asks for ALPN h2 and gets it.
        let mut client = Client::connect_tls(gateway.address(), authority.client(&["h2", "http/1.1"], None), "site").await;
        ready(&mut client).await;
        let (response, mut stream) = client.open(connect("/chat", "websocket", "13")).await.unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.status(), 200);
        let mut body = response.into_body();
        pass(&mut stream, &mut body, b"\x81\x85\0\0\0\0hello").await;
        // The client is told to come anew for what is new; the tunnel stays.
        authority.issue(&gateway.dir(), "site", &["site"]);
        gateway.reload_ok(yaml, &[upstream.address]);
        let end = Instant::now() + PATIENCE;
        while client.open(connect("/late", "connect-udp", "13")).await.is_ok() {
            assert!(Instant::now() < end, "no GOAWAY");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        for _ in 0..3 {
            pass(&mut stream, &mut body, b"\x82\x82\0\0\0\0hi").await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        gateway.metric_becomes("gateway_tunnels{route=\"all\"}", 1.0);
        stream.send_data(Bytes::new(), true).unwrap();
        while let Some(Ok(_)) = body.data().await {}
    });
    ended.pass();
    let line = gateway.logged("/chat");
    assert_eq!((line["tls"].as_str(), line["protocol"].as_str()), (Some("TLSv1.3"), Some("HTTP/2")), "{line}");
}

#[test]
fn an_http2_client_that_stays_when_the_upstream_has_ended_is_cut_soon() {
    let upstream = Upstream::serve(|request, conn| {
        conn.write(switched(request, ""));
        conn.write(b"\x81\x04last");
        let _ = conn.socket.shutdown(std::net::Shutdown::Write);
        conn.wait_end();
        Then::Close
    });
    let gateway = Gateway::to(upstream.address, "idle_timeout: 5m");
    block_on(async {
        let mut client = Client::connect(gateway.address()).await;
        ready(&mut client).await;
        let (response, mut stream) = client.open(connect("/chat", "websocket", "13")).await.unwrap();
        let mut body = response.await.unwrap().into_body();
        let begun = Instant::now();
        assert_eq!(read_exactly(&mut body, 6).await, b"\x81\x04last");
        // The end, in a frame of its own.
        while let Some(data) = body.data().await {
            assert_eq!(data.unwrap(), "");
        }
        assert!(begun.elapsed() < Duration::from_secs(1), "the end came late");
        // Whatever it has open is over, and the connection is not.
        std::future::poll_fn(|cx| stream.poll_reset(cx)).await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(5));
        let (response, _stream) = client.open(connect("/again", "websocket", "13")).await.unwrap();
        assert_eq!(response.await.unwrap().status(), 200);
    });
    gateway.metric_becomes("gateway_tunnels{route=\"all\"}", 0.0);
}

#[test]
fn other_connects_open_nothing() {
    let upstream = Upstream::echo();
    let gateway = Gateway::to(upstream.address, "");
    block_on(async {
        let mut client = Client::connect(gateway.address()).await;
        ready(&mut client).await;
        for (request, status) in [
            (connect("/x", "connect-udp", "13"), 405),
            (connect("/x", "websocket", "8"), 400),
            (http::Request::builder().method("CONNECT").uri("site:22").version(http::Version::HTTP_2).body(()).unwrap(), 405),
        ] {
            let (response, _stream) = client.open(request).await.unwrap();
            assert_eq!(response.await.unwrap().status(), status);
        }
        // An upstream that does not switch: here its 200 would mean a tunnel.
        let (response, _stream) = client.open(connect("/plain", "websocket", "13")).await.unwrap();
        assert_eq!(response.await.unwrap().status(), 502);
    });
    assert_eq!(upstream.count(), 1);
    assert_eq!(gateway.logged("/plain")["reason"], "upstream_protocol_error");
    gateway.reload_ok("routes: [{ match: /*, respond: { status: 200 } }]", &[]);
    block_on(async {
        let mut client = Client::connect(gateway.address()).await;
        ready(&mut client).await;
        let (response, _stream) = client.open(connect("/local", "websocket", "13")).await.unwrap();
        assert_eq!(response.await.unwrap().status(), 400);
    });
}

#[test]
fn a_drain_says_goodbye_through_http2_too() {
    let ended = Gate::new();
    let upstream = echo(&ended);
    let gateway = Gateway::to(upstream.address, "");
    block_on(async {
        let mut client = Client::connect(gateway.address()).await;
        ready(&mut client).await;
        let (response, mut stream) = client.open(connect("/chat", "websocket", "13")).await.unwrap();
        let mut body = response.await.unwrap().into_body();
        stream.send_data(Bytes::from_static(b"\x81\x82\0\0\0\0hi"), false).unwrap();
        assert_eq!(read_exactly(&mut body, 8).await.len(), 8);
        let stopping = gateway.begin_shutdown();
        assert_eq!(read_exactly(&mut body, 4).await, [0x88, 2, 0x03, 0xe9]);
        tokio::task::spawn_blocking(move || stopping.join()).await.unwrap();
    });
    ended.pass();
}
