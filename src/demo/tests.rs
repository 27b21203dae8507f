use std::io::{Read, Write};
use std::net::TcpStream;

use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::client;

use super::*;

/// The backends on free ports.
fn demo() -> Demo {
    start_on_free_ports().unwrap()
}

fn ask(address: SocketAddr, method: &str, target: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let length = body.len();
    write!(stream, "{method} {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn backends_answer_json() {
    let demo = demo();
    let [users, orders, ads] = demo.addresses() else { panic!("three of them") };
    assert!(ask(*users, "GET", "/users/1", "").contains("\"name\":\"Ada Lovelace\""));
    assert!(ask(*users, "GET", "/users/9", "").starts_with("HTTP/1.1 404"));
    let list = ask(*orders, "GET", "/orders?user=2", "");
    assert!(list.contains("\"id\":103") && !list.contains("\"id\":101"), "{list}");
    assert!(ask(*orders, "POST", "/orders", "{}").starts_with("HTTP/1.1 201"));
    assert!(ask(*orders, "GET", "/status/418", "").starts_with("HTTP/1.1 418"));
    assert!(ask(*orders, "GET", "/status/7", "").starts_with("HTTP/1.1 404"));
    assert!(ask(*ads, "GET", "/ads", "").contains("Slide rules"));
}

#[test]
fn the_echo_shows_what_arrived() {
    let demo = demo();
    let seen = ask(demo.addresses()[1], "PUT", "/echo?a=b", "hello");
    for part in ["\"method\":\"PUT\"", "\"target\":\"/echo?a=b\"", "\"body\":\"hello\"", "\"host\":\"x\""] {
        assert!(seen.contains(part), "{part} in {seen}");
    }
}

#[test]
fn a_flaky_request_fails_every_second_time() {
    let demo = demo();
    let statuses = [(); 4].map(|()| ask(demo.addresses()[1], "GET", "/flaky", "").starts_with("HTTP/1.1 200"));
    assert_eq!(statuses, [false, true, false, true]);
}

#[test]
fn a_broken_backend_fails_its_health_check_until_it_heals() {
    let demo = demo();
    let ads = demo.addresses()[2];
    assert!(ask(ads, "POST", "/break?seconds=60", "").starts_with("HTTP/1.1 200"));
    assert!(ask(ads, "GET", "/health", "").starts_with("HTTP/1.1 503"));
    assert!(ask(ads, "POST", "/break?seconds=0", "").starts_with("HTTP/1.1 200"));
    assert!(ask(ads, "GET", "/health", "").starts_with("HTTP/1.1 200"));
}

#[test]
fn events_start_at_once() {
    let demo = demo();
    let mut stream = TcpStream::connect(demo.addresses()[1]).unwrap();
    write!(stream, "GET /events HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut seen = Vec::new();
    while !seen.windows(10).any(|bytes| bytes == b"{\"tick\":1}") {
        let mut some = [0; 512];
        let read = stream.read(&mut some).unwrap();
        assert!(read > 0, "it ended early");
        seen.extend_from_slice(&some[..read]);
    }
    assert!(String::from_utf8_lossy(&seen).contains("content-type: text/event-stream"));
}

#[test]
fn a_websocket_echoes() {
    let demo = demo();
    let stream = TcpStream::connect(demo.addresses()[1]).unwrap();
    let (mut socket, _) = client("ws://x/ws", stream).unwrap();
    socket.send(Message::text("hello")).unwrap();
    assert_eq!(socket.read().unwrap(), Message::text("hello"));
    socket.close(None).unwrap();
}

#[test]
fn a_taken_port_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let error = start_at([(Kind::Users, &address), (Kind::Orders, "127.0.0.1:0"), (Kind::Ads, "127.0.0.1:0")]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    assert!(error.to_string().contains(&address) && error.to_string().contains("users"), "{error}");
}

#[test]
fn the_backends_are_where_the_configuration_looks_for_them() {
    for (_, address) in ADDRESSES {
        assert!(GATEWAY_YAML.contains(&format!("http://{address}")), "{address}");
    }
}

#[test]
fn everything_to_try_is_listed() {
    let text = things_to_try(None, None);
    assert!(TRY.iter().all(|(command, _)| text.contains(command)));
    let moved = things_to_try(Some("127.0.0.1:1"), Some("127.0.0.1:2"));
    assert!(moved.contains("http://127.0.0.1:1/home/1") && moved.contains("http://127.0.0.1:2/metrics"));
    assert!(!moved.contains(":8080") && !moved.contains(":9901"));
}
