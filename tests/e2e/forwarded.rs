//! What upstreams are told about the client, and what a client cannot make them believe.

use crate::support::client::{get, request};
use crate::support::{Gateway, Request, Upstream};

fn proxy(server: &str) -> (Gateway, Upstream) {
    let upstream = Upstream::echo();
    let yaml = format!("{server}\n{}", Gateway::simple(""));
    (Gateway::new(&yaml, &[upstream.address]), upstream)
}

fn sent(gateway: &Gateway, upstream: &Upstream, headers: &[(&str, &str)]) -> Request {
    let answer = gateway.request("GET", "/x", headers, "");
    assert_eq!(answer.status, 200, "{answer:?}");
    upstream.last()
}

#[test]
fn an_untrusted_peer_is_the_client_whatever_it_says() {
    let (gateway, upstream) = proxy("");
    let seen = sent(
        &gateway,
        &upstream,
        &[
            ("Host", "site:8080"),
            ("X-Forwarded-For", "1.2.3.4"),
            ("X-Forwarded-For", "5.6.7.8"),
            ("X-Forwarded-Proto", "https"),
            ("X-Forwarded-Host", "evil"),
            ("X-Forwarded-Port", "1"),
            ("X-Forwarded-Prefix", "/evil"),
            ("X_Forwarded_For", "9.9.9.9"),
            ("Forwarded", "for=1.2.3.4"),
            ("X-Real-IP", "1.2.3.4"),
            ("X-Original-URL", "/admin"),
            ("X-Rewrite-URL", "/admin"),
        ],
    );
    assert_eq!(seen.all("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(seen.all("x-forwarded-proto"), ["http"]);
    assert_eq!(seen.all("x-forwarded-host"), ["site:8080"]);
    assert_eq!(seen.all("x-forwarded-port"), ["8080"]);
    for name in ["x-forwarded-prefix", "x_forwarded_for", "forwarded", "x-real-ip", "x-original-url", "x-rewrite-url"] {
        assert!(!seen.has(name), "{name}: {seen:?}");
    }
    let line = gateway.logged("/x");
    assert_eq!((line["client_ip"].as_str(), line["scheme"].as_str()), (Some("127.0.0.1"), Some("http")));
}

#[test]
fn the_forwarded_port_is_the_schemes_where_the_host_has_none() {
    let (gateway, upstream) = proxy("");
    assert_eq!(sent(&gateway, &upstream, &[]).header("x-forwarded-port"), Some("80"));
}

const TRUSTING: &str = "server: { workers: 1, trusted_proxies: [127.0.0.0/8, 10.0.0.0/8], timeouts: { drain: 200ms } }";

#[test]
fn a_trusted_peers_list_is_walked_from_the_right() {
    let (gateway, upstream) = proxy(TRUSTING);
    for (index, (lists, client)) in [
        (&["1.2.3.4"][..], "1.2.3.4"),
        (&["9.9.9.9, 1.2.3.4, 10.0.0.1"], "1.2.3.4"),
        (&["9.9.9.9", "1.2.3.4", "10.0.0.1"], "1.2.3.4"),
        (&["10.0.0.2, 10.0.0.1"], "10.0.0.2"),
        (&["1.2.3.4, unknown, 10.0.0.1"], "10.0.0.1"),
        (&["1.2.3.4:8080"], "1.2.3.4"),
        (&["[2001:db8::1]:80"], "2001:db8::1"),
        (&["1.2.3.4, ::ffff:10.0.0.1"], "1.2.3.4"),
        (&["1.2.3.4, 010.0.0.1"], "127.0.0.1"),
        (&["garbage"], "127.0.0.1"),
    ]
    .into_iter()
    .enumerate()
    {
        let path = format!("/{index}");
        let headers: Vec<(&str, &str)> = lists.iter().map(|list| ("X-Forwarded-For", *list)).collect();
        assert_eq!(gateway.request("GET", &path, &headers, "").status, 200);
        assert_eq!(gateway.logged(&path)["client_ip"], client, "{lists:?}");
        let chain = upstream.last().all("x-forwarded-for").join(", ");
        assert_eq!(chain, format!("{}, 127.0.0.1", lists.join(", ")), "{lists:?}");
    }
}

#[test]
fn a_trusted_peers_other_facts_are_kept_where_they_make_sense() {
    let (gateway, upstream) = proxy(TRUSTING);
    let seen = sent(
        &gateway,
        &upstream,
        &[
            ("X-Forwarded-Proto", "https"),
            ("X-Forwarded-Host", "outer"),
            ("X-Forwarded-Port", "4443"),
            ("X-Forwarded-Prefix", "/p"),
            ("X-Real-IP", "1.1.1.1"),
            ("Forwarded", "for=1.2.3.4"),
        ],
    );
    assert_eq!(seen.header("x-forwarded-proto"), Some("https"));
    assert_eq!(seen.header("x-forwarded-host"), Some("outer"));
    assert_eq!(seen.header("x-forwarded-port"), Some("4443"));
    assert_eq!((seen.header("x-forwarded-prefix"), seen.header("x-real-ip")), (Some("/p"), Some("1.1.1.1")));
    assert_eq!(seen.all("forwarded").join(", ").replace(' ', ""), "for=1.2.3.4,for=127.0.0.1");
    let line = gateway.logged("/x");
    assert_eq!((line["client_ip"].as_str(), line["scheme"].as_str()), (Some("1.2.3.4"), Some("https")));
    let seen = sent(&gateway, &upstream, &[("X-Forwarded-Proto", "gopher"), ("X-Forwarded-Port", "x")]);
    assert_eq!((seen.header("x-forwarded-proto"), seen.header("x-forwarded-port")), (Some("http"), Some("80")));
}

#[test]
fn hop_by_hop_fields_of_a_request_stop_here() {
    let (gateway, upstream) = proxy("");
    let seen = sent(
        &gateway,
        &upstream,
        &[
            ("Connection", "keep-alive, X-Hop"),
            ("Connection", ","),
            ("Connection", "x-other"),
            ("X-Hop", "1"),
            ("X-Other", "1"),
            ("X-Stays", "1"),
            ("Keep-Alive", "timeout=5"),
            ("Proxy-Connection", "keep-alive"),
            ("Proxy-Authorization", "Basic eA=="),
            ("TE", "gzip"),
            ("Upgrade", "h2c"),
            ("HTTP2-Settings", "AAMAAABkAARAAAAAAAIAAAAA"),
        ],
    );
    for name in ["x-hop", "x-other", "keep-alive", "proxy-connection", "proxy-authorization", "te", "upgrade", "http2-settings"] {
        assert!(!seen.has(name), "{name}: {seen:?}");
    }
    assert_eq!(seen.header("x-stays"), Some("1"));
    assert_eq!(sent(&gateway, &upstream, &[("TE", "gzip, trailers"), ("Connection", "TE")]).header("te"), Some("trailers"));
}

#[test]
fn connection_cannot_name_away_what_the_gateway_adds() {
    let upstream = Upstream::echo();
    let gateway = Gateway::to(upstream.address, "headers: { request: { set: { x-user-id: gateway } } }");
    let seen = sent(
        &gateway,
        &upstream,
        &[("Connection", "close, X-Forwarded-For, X-User-Id, X-Request-Id, Host"), ("X-User-Id", "client"), ("X-Request-Id", "mine")],
    );
    assert_eq!(seen.all("x-user-id"), ["gateway"]);
    assert_eq!(seen.all("x-forwarded-for"), ["127.0.0.1"]);
    assert!(seen.has("x-request-id") && seen.has("host"), "{seen:?}");
}

#[test]
fn hop_by_hop_fields_of_a_response_stop_here() {
    let head = "HTTP/1.1 200 OK\r\nConnection: foo, X-Hop\r\nConnection: x-other\r\nX-Hop: 1\r\nFoo: 1\r\nX-Other: 1\r\nX-Stays: 1\r\n\
        Keep-Alive: timeout=5\r\nProxy-Authenticate: Basic\r\nProxy-Connection: x\r\nUpgrade: h2c\r\ncontent-length: 0\r\n\r\n";
    let upstream = Upstream::bytes(head, crate::support::Then::Keep);
    let gateway = Gateway::to(upstream.address, "");
    let answer = gateway.get("/");
    for name in ["x-hop", "foo", "x-other", "keep-alive", "proxy-authenticate", "proxy-connection", "upgrade"] {
        assert!(!answer.has(name), "{name}: {answer:?}");
    }
    assert_eq!(answer.header("x-stays"), Some("1"));
}

#[test]
fn a_good_request_id_is_kept_and_a_bad_one_replaced() {
    let (gateway, upstream) = proxy("");
    let id = "A-z0.9_~+/=:@";
    let answer = gateway.request("GET", "/kept", &[("X-Request-Id", id)], "");
    assert_eq!(answer.header("x-request-id"), Some(id));
    assert_eq!(upstream.last().header("x-request-id"), Some(id));
    assert_eq!(gateway.logged("/kept")["request_id"], id);
    let long = "a".repeat(129);
    for headers in [
        &[("X-Request-Id", "a b")][..],
        &[("X-Request-Id", long.as_str())],
        &[("X-Request-Id", "")],
        &[("X-Request-Id", "a"), ("X-Request-Id", "b")],
        &[],
    ] {
        let answer = gateway.request("GET", "/made", headers, "");
        let ids = answer.all("x-request-id");
        assert_eq!(ids.len(), 1, "{headers:?}");
        assert_eq!((ids[0].len(), ids[0].as_bytes()[14]), (36, b'7'), "a UUIDv7: {ids:?}");
        assert_eq!(upstream.last().all("x-request-id"), ids);
    }
}

#[test]
fn the_request_id_of_the_gateway_replaces_the_upstreams() {
    let upstream = Upstream::serve(|_, conn| conn.answer(200, "x-request-id: theirs\r\n", ""));
    let gateway = Gateway::to(upstream.address, "");
    let answer = gateway.request("GET", "/", &[("X-Request-Id", "mine")], "");
    assert_eq!(answer.all("x-request-id"), ["mine"]);
}

#[test]
fn request_ids_can_be_off_or_have_another_name() {
    let (gateway, upstream) = proxy("server: { workers: 1, request_id: off }");
    let answer = gateway.get("/x");
    assert!(!answer.has("x-request-id") && !upstream.last().has("x-request-id"));
    assert!(gateway.logged("/x")["request_id"].is_string());
    let (gateway, upstream) = proxy("server: { workers: 1, request_id: x-trace }");
    let answer = gateway.get("/x");
    assert_eq!(answer.header("x-trace"), upstream.last().header("x-trace"));
    assert!(answer.has("x-trace"));
}

#[test]
fn host_is_the_clients_the_endpoints_or_a_fixed_one() {
    let upstream = Upstream::echo();
    let yaml = "
        upstreams: { up: { endpoints: [http://@0] } }
        routes:
          - { match: /preserve, upstream: up }
          - { match: /upstream, rewrite: { host: upstream }, upstream: up }
          - { match: /fixed, rewrite: { host: fixed.example.com }, upstream: up }
    ";
    let gateway = Gateway::new(yaml, &[upstream.address]);
    for (path, host) in [("/preserve", "Site:81"), ("/upstream", &upstream.address.to_string()), ("/fixed", "fixed.example.com")] {
        assert_eq!(gateway.request("GET", path, &[("Host", "Site:81")], "").status, 200);
        let seen = upstream.last();
        assert_eq!(seen.all("host"), [host], "{path}");
        assert_eq!(seen.header("x-forwarded-host"), Some("Site:81"), "{path}");
    }
}

#[test]
fn protected_names_never_come_from_a_client() {
    let upstream = Upstream::echo();
    let yaml = "
        upstreams: { up: { endpoints: [http://@0] } }
        authenticators:
          keys: { api_key: { from: [header:x-key], keys: [{ id: a, sha256: 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae }], forward: { id: x-user-id } } }
        routes: [{ match: /*, upstream: up }]
    ";
    let gateway = Gateway::new(yaml, &[upstream.address]);
    let mut raw = gateway.connect();
    for name in ["x-user-id", "X-User-Id", "x_user_id", "X_User-Id", "x-tollgate-admin", "X_Tollgate_Admin"] {
        assert_eq!(raw.ask(request("GET", "/", &[(name, "root")], "")).status, 200);
        assert!(!upstream.last().has(name), "{name}");
    }
    let trailers = "POST / HTTP/1.1\r\nHost: site\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\nTrailer: x-user-id, x-fine\r\n\r\n\
        2\r\nhi\r\n0\r\nX_User_Id: root\r\nx-user-id: root\r\nauthorization: x\r\nhost: y\r\nx-fine: 1\r\n\r\n";
    assert_eq!(raw.ask(trailers).status, 200);
    let seen = upstream.last();
    assert_eq!(seen.trailers, [("x-fine".to_owned(), "1".to_owned())]);
    assert!(!seen.has("x-user-id"));
    raw.ask(get("/"));
}

#[test]
fn several_cookie_lines_become_one() {
    let (gateway, upstream) = proxy("");
    assert_eq!(sent(&gateway, &upstream, &[("Cookie", "a=1"), ("Cookie", "b=2")]).all("cookie"), ["a=1; b=2"]);
}

#[test]
fn a_proxy_header_tells_the_client_where_the_peer_is_trusted() {
    let upstream = Upstream::echo();
    let yaml = format!(
        "listeners: [{{ address: '127.0.0.1:0', proxy_protocol: true }}]\n\
         server: {{ workers: 1, trusted_proxies: [127.0.0.1], timeouts: {{ handshake: 200ms, drain: 200ms }} }}\n{}",
        Gateway::simple("")
    );
    let gateway = Gateway::new(&yaml, &[upstream.address]);
    let mut raw = gateway.connect();
    assert_eq!(raw.ask(format!("PROXY TCP4 1.2.3.4 5.6.7.8 1111 80\r\n{}", get("/v1"))).status, 200);
    assert_eq!(upstream.last().header("x-forwarded-for"), Some("1.2.3.4"));
    assert_eq!(raw.ask(get("/again")).status, 200, "once per connection");
    assert_eq!(gateway.logged("/v1")["client_ip"], "1.2.3.4");
    let mut v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    v2.extend([9, 8, 7, 6, 127, 0, 0, 1, 4, 0, 0, 80]);
    v2.extend(get("/v2").into_bytes());
    assert_eq!(gateway.connect().ask(v2).status, 200);
    assert_eq!(gateway.logged("/v2")["client_ip"], "9.8.7.6");
    let mut local = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\0\0".to_vec();
    local.extend(get("/local").into_bytes());
    assert_eq!(gateway.connect().ask(local).status, 200);
    assert_eq!(gateway.logged("/local")["client_ip"], "127.0.0.1");
    assert_eq!(gateway.connect().ask(format!("PROXY UNKNOWN\r\n{}", get("/unknown"))).status, 200);
    assert_eq!(gateway.logged("/unknown")["client_ip"], "127.0.0.1");
    gateway.connect().send(get("/none")).assert_closed();
    // A header that never ends.
    gateway.connect().send("PROXY TCP4 1.2.3").assert_closed();
    gateway.metric_becomes(&format!("gateway_connection_errors_total{{listener=\"{}\",kind=\"proxy\"}}", gateway.address()), 2.0);
}

#[test]
fn a_proxy_header_from_an_untrusted_peer_is_a_bad_request() {
    let yaml = "
        listeners: [{ address: '127.0.0.1:0', proxy_protocol: true }]
        server: { workers: 1, trusted_proxies: [10.0.0.0/8] }
        routes: [{ match: /*, respond: { status: 200 } }]
    ";
    let gateway = Gateway::new(yaml, &[]);
    assert_eq!(gateway.get("/").status, 200, "served as itself");
    assert_eq!(gateway.ask(format!("PROXY TCP4 1.2.3.4 5.6.7.8 1111 80\r\n{}", get("/"))).status, 400);
}
