//! PROXY protocol on a listener: who is believed, and what becomes of the rest.

use crate::support::certs::{Authority, connect, connect_behind};
use crate::support::client::get;
use crate::support::frames::{HEAD, PREFACE, frame, frames};
use crate::support::{Gateway, Raw, Upstream, eventually};

fn gateway(upstream: &Upstream, trusted: &str) -> Gateway {
    let yaml = "
        listeners: [{ address: '127.0.0.1:0', proxy_protocol: true }]
        server: { workers: 1, trusted_proxies: ['TRUSTED'], timeouts: { handshake: 300ms, drain: 200ms } }
        upstreams: { up: { endpoints: [http://@0] } }
        routes: [{ match: /*, upstream: up }]";
    Gateway::new(&yaml.replace("TRUSTED", trusted), &[upstream.address])
}

fn v2(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    header.extend_from_slice(&[0x20 | command, family]);
    header.extend_from_slice(&u16::try_from(addresses.len()).unwrap().to_be_bytes());
    header.extend_from_slice(addresses);
    header
}

#[test]
fn the_source_in_a_header_of_a_trusted_peer_is_the_client() {
    let upstream = Upstream::echo();
    let gateway = gateway(&upstream, "127.0.0.0/8");
    let v4 = v2(1, 0x11, &[192, 0, 2, 7, 127, 0, 0, 1, 0x1f, 0x90, 0, 80]);
    let mut v6 = [0_u8; 36];
    v6[..2].copy_from_slice(&[0x20, 0x01]);
    v6[15] = 9;
    for (header, client) in [
        (b"PROXY TCP4 192.0.2.1 198.51.100.1 5000 80\r\n".to_vec(), "192.0.2.1"),
        (b"PROXY TCP6 2001:db8::1 2001:db8::2 5000 80\r\n".to_vec(), "2001:db8::1"),
        (v4, "192.0.2.7"),
        (v2(1, 0x21, &v6), "2001::9"),
        (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1"),
        (v2(0, 0, &[]), "127.0.0.1"),
    ] {
        let mut raw = gateway.connect();
        // In pieces, with the request right behind.
        let (first, second) = header.split_at(5);
        raw.send(first);
        std::thread::sleep(std::time::Duration::from_millis(10));
        raw.send([second, get("/").as_bytes()].concat());
        assert_eq!(raw.read().status, 200, "{client}");
        assert_eq!(upstream.last().header("x-forwarded-for"), Some(client));
        // The header is said once, for the connection.
        assert_eq!(raw.ask(get("/again")).status, 200);
        assert_eq!(upstream.last().header("x-forwarded-for"), Some(client));
    }
    assert_eq!(gateway.logged("/again")["client_ip"], "192.0.2.1");
}

#[test]
fn a_trusted_peer_must_send_a_header() {
    let upstream = Upstream::echo();
    let gateway = gateway(&upstream, "127.0.0.0/8");
    let begin = v2(1, 0x11, &[0; 12])[..20].to_vec();
    for wrong in [
        get("/").into_bytes(),
        b"PROXY TCP4 1.2.3 4.5.6.7 1 2\r\n".to_vec(),
        b"PROXY TCP4 010.0.0.1 4.5.6.7 1 2\r\n".to_vec(),
        [b"PROXY ".as_slice(), &[b'x'; 200]].concat(),
        v2(1, 0x11, &[0; 4]),
        // Cut short: closed when `timeouts.handshake` is over.
        begin,
        b"PROXY TC".to_vec(),
        Vec::new(),
    ] {
        let mut raw = Raw::connect(gateway.address());
        raw.send(&wrong);
        raw.assert_closed();
    }
    assert_eq!(upstream.count(), 0);
    let listener = gateway.address();
    gateway.metric_becomes(&format!("gateway_connection_errors_total{{listener=\"{listener}\",kind=\"proxy\"}}"), 8.0);
}

#[test]
fn other_peers_are_served_as_themselves() {
    let upstream = Upstream::echo();
    let gateway = gateway(&upstream, "10.0.0.0/8");
    assert_eq!(gateway.get("/").status, 200);
    assert_eq!(upstream.last().header("x-forwarded-for"), Some("127.0.0.1"));
    let mut raw = gateway.connect();
    assert_eq!(raw.ask("PROXY TCP4 192.0.2.1 198.51.100.1 5000 80\r\nGET / HTTP/1.1\r\nHost: site\r\n\r\n").status, 400);
    raw.assert_closed();
    assert_eq!(upstream.count(), 1);
}

#[test]
fn nobody_to_believe_is_a_load_error() {
    let yaml = "
        listeners: [{ address: '127.0.0.1:0', proxy_protocol: true }]
        routes: [{ match: /*, respond: { status: 200 } }]";
    let error = Gateway::start_error(yaml, &[]).expect("it must not start");
    assert!(error.contains("trusted_proxies"), "{error}");
}

#[test]
fn connections_per_address_count_the_believed_source() {
    let upstream = Upstream::echo();
    let yaml = "
        listeners: [{ address: '127.0.0.1:0', proxy_protocol: true }]
        server: { workers: 1, trusted_proxies: ['127.0.0.0/8'], max_connections_per_ip: 1, timeouts: { drain: 200ms } }
        upstreams: { up: { endpoints: [http://@0] } }
        routes: [{ match: /*, upstream: up }]";
    let gateway = Gateway::new(yaml, &[upstream.address]);
    let from = |client: &str| format!("PROXY TCP4 {client} 198.51.100.1 5000 80\r\n{}", get("/"));
    let (mut one, mut other, mut second) = (gateway.connect(), gateway.connect(), gateway.connect());
    assert_eq!(one.ask(from("192.0.2.1")).status, 200);
    assert_eq!(other.ask(from("192.0.2.2")).status, 200);
    second.send(from("192.0.2.1"));
    second.assert_closed();
}

/// The same listener with TLS.
fn over_tls(upstream: &Upstream, trusted: &str) -> (Gateway, Authority) {
    let (dir, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    authority.issue(dir.path(), "site", &["site"]);
    let yaml = "
        listeners: [{ address: '127.0.0.1:0', proxy_protocol: true, tls: { certificates: [{ cert: site.pem, key: site.key }] } }]
        server: { workers: 1, trusted_proxies: ['TRUSTED'], timeouts: { handshake: 300ms, drain: 200ms } }
        upstreams: { up: { endpoints: [http://@0] } }
        routes: [{ match: /*, upstream: up }]";
    (Gateway::in_dir(dir, &yaml.replace("TRUSTED", trusted), &[upstream.address]), authority)
}

fn errors(gateway: &Gateway, kind: &str, count: f64) {
    gateway.metric_becomes(&format!("gateway_connection_errors_total{{listener=\"{}\",kind=\"{kind}\"}}", gateway.address()), count);
}

#[test]
fn the_header_comes_before_tls() {
    let upstream = Upstream::echo();
    let (gateway, authority) = over_tls(&upstream, "127.0.0.0/8");
    let v4 = v2(1, 0x11, &[192, 0, 2, 7, 127, 0, 0, 1, 0x1f, 0x90, 0, 80]);
    for (header, client) in [
        (b"PROXY TCP4 192.0.2.1 198.51.100.1 5000 443\r\n".as_slice(), "192.0.2.1"),
        (&v4, "192.0.2.7"),
        (b"PROXY UNKNOWN\r\n", "127.0.0.1"),
    ] {
        let config = authority.client(&["http/1.1"], None);
        let (mut raw, _) = connect_behind(header, gateway.address(), &config, "site").unwrap();
        assert_eq!(raw.ask(get("/")).status, 200);
        let seen = upstream.last();
        assert_eq!((seen.header("x-forwarded-for"), seen.header("x-forwarded-proto")), (Some(client), Some("https")));
    }
    // And HTTP/2 behind both.
    let (mut raw, facts) = connect_behind(&v4, gateway.address(), &authority.client(&["h2"], None), "site").unwrap();
    assert_eq!(facts.alpn.as_deref(), Some("h2"));
    raw.send([PREFACE, &frame(4, 0, 0, b""), &frame(1, 5, 1, HEAD)].concat());
    eventually("an answer", || {
        assert!(raw.wire.fill().unwrap() > 0);
        frames(&raw.wire.buffer).contains(&(1, 1)).then_some(())
    });
    assert_eq!(upstream.last().header("x-forwarded-for"), Some("192.0.2.7"));
    errors(&gateway, "proxy", 0.0);
    // Without it there is no handshake at all.
    for header in [b"".as_slice(), b"PROXY TCP4 192.0.2.1 198.51.100.1 5000\r\n", &v2(1, 0x11, &[0; 4])] {
        assert!(connect_behind(header, gateway.address(), &authority.client(&[], None), "site").is_err(), "{header:?}");
    }
    errors(&gateway, "proxy", 3.0);
    errors(&gateway, "tls", 0.0);
    assert_eq!(upstream.count(), 4);
}

#[test]
fn nobody_else_is_believed_over_tls_either() {
    let upstream = Upstream::echo();
    let (gateway, authority) = over_tls(&upstream, "10.0.0.0/8");
    let config = authority.client(&["http/1.1"], None);
    let (mut raw, _) = connect(gateway.address(), &config, "site").unwrap();
    assert_eq!(raw.ask(get("/")).status, 200);
    assert_eq!(upstream.last().header("x-forwarded-for"), Some("127.0.0.1"));
    // To who listens for TLS a PROXY line is no handshake.
    let line = b"PROXY TCP4 192.0.2.1 198.51.100.1 5000 443\r\n";
    assert!(connect_behind(line, gateway.address(), &config, "site").is_err());
    errors(&gateway, "tls", 1.0);
    // Inside it is no request.
    assert_eq!(raw.ask([line.as_slice(), get("/").as_bytes()].concat()).status, 400);
    assert_eq!(upstream.count(), 1);
}

#[test]
fn http2_by_prior_knowledge_follows_a_header_too() {
    let upstream = Upstream::echo();
    let gateway = gateway(&upstream, "127.0.0.0/8");
    let mut raw = gateway.connect();
    raw.send([b"PROXY TCP4 192.0.2.1 198.51.100.1 5000 80\r\n", PREFACE, &frame(4, 0, 0, b""), &frame(1, 5, 1, HEAD)].concat());
    eventually("the request arrives", || (upstream.count() == 1).then_some(()));
    assert_eq!(upstream.last().header("x-forwarded-for"), Some("192.0.2.1"));
    // Of another peer the preface would follow a line that is no request.
    let stranger = self::gateway(&upstream, "10.0.0.0/8");
    let mut raw = stranger.connect();
    raw.send([b"PROXY TCP4 192.0.2.1 198.51.100.1 5000 80\r\n", PREFACE, &frame(4, 0, 0, b""), &frame(1, 5, 1, HEAD)].concat());
    assert_eq!(raw.read().status, 400);
    raw.assert_closed();
    assert_eq!(upstream.count(), 1);
}
