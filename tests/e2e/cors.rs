//! `cors`: which origins' scripts may read answers, and which may open WebSockets.

use crate::support::{Answer, Gateway, Refused, Upstream, eventually};

const APP: &str = "https://app.example.com";

const LISTED: &str = "
    upstreams: { up: { endpoints: [http://@0] }, gone: { endpoints: [http://@1] } }
    authenticators: { partners: { api_key: { keys: [{ id: acme, sha256: 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae }] } } }
    defaults:
      cors:
        origins: [https://app.example.com, 'https://*.example.org', 'http://dev.example.com:3000']
        methods: [GET, PUT]
        headers: [content-type, authorization]
        expose: [x-request-id, x-total]
        credentials: true
        max_age: 5m
    routes:
      - { name: open, match: /open, upstream: up }
      - { name: auth, match: /auth, auth: partners, upstream: up }
      - { name: slow, match: /slow, rate_limit: [{ by: ip, rate: 1/h }], upstream: up }
      - { name: broken, match: /broken, retry: { attempts: 0 }, upstream: gone }
      - { name: put, match: PUT /put, upstream: up }
      - { name: raw, match: /raw, cors: off, upstream: up }
      - { name: asked, match: /asked, cors: { origins: [https://app.example.com] }, upstream: up }
      - { name: any, match: /any, cors: { origins: ['*'] }, upstream: up }
      - { name: none, match: /null, cors: { origins: ['null'] }, upstream: up }
      - { name: rules, match: /rules, headers: { response: { set: { vary: accept, access-control-allow-origin: 'https://evil.test' } } }, upstream: up }
      - { name: body, match: /body, body_limit: 1B, upstream: up }
      - { name: denied, match: /denied, ip: { deny: [127.0.0.0/8] }, upstream: up }
";

fn setup() -> (Gateway, Upstream, Refused) {
    let upstream = Upstream::echo();
    let refused = Refused::new();
    let gateway = Gateway::new(LISTED, &[upstream.address, refused.address]);
    (gateway, upstream, refused)
}

fn from(gateway: &Gateway, path: &str, origin: &str) -> Answer {
    gateway.request("GET", path, &[("Origin", origin)], "")
}
fn preflight(gateway: &Gateway, path: &str, origin: &str, method: &str, headers: &str) -> Answer {
    gateway.request(
        "OPTIONS",
        path,
        &[("Origin", origin), ("Access-Control-Request-Method", method), ("Access-Control-Request-Headers", headers)],
        "",
    )
}
/// The names of the CORS fields, and whether the origin is in `Vary`.
fn cors_fields(answer: &Answer) -> Vec<String> {
    let mut names: Vec<String> =
        answer.headers.iter().map(|(name, _)| name.to_ascii_lowercase()).filter(|name| name.starts_with("access-control-")).collect();
    names.sort();
    names
}
fn varies(answer: &Answer) -> bool {
    answer.all("vary").iter().flat_map(|line| line.split(',')).any(|name| name.trim().eq_ignore_ascii_case("origin"))
}

#[test]
fn listed_origins_are_echoed_and_no_others() {
    let (gateway, upstream, _refused) = setup();
    for origin in [
        APP,
        "https://APP.example.com",
        "https://app.example.com:443",
        "https://a.example.org",
        "https://a.b.example.org",
        "http://dev.example.com:3000",
    ] {
        let answer = from(&gateway, "/open", origin);
        assert_eq!((answer.status, answer.all("access-control-allow-origin")), (200, vec![origin]));
        assert_eq!(answer.header("access-control-allow-credentials"), Some("true"));
        assert_eq!(answer.header("access-control-expose-headers"), Some("x-request-id, x-total"));
        assert!(varies(&answer), "{answer:?}");
    }
    let long = format!("https://{}.example.com", "a".repeat(10_000));
    for origin in [
        "https://evil.com",
        "null",
        "https://app.example.com.evil.com",
        "https://evilapp.example.com",
        "http://app.example.com",
        "https://app.example.com:444",
        "https://sub.app.example.com",
        "https://example.org",
        "https://a.example.org.evil.com",
        "https://aexample.org",
        "https://.example.org",
        "http://a.example.org",
        "https://a.example.org:8443",
        "http://dev.example.com",
        "https://app.example.com/",
        "https://user@a.example.org",
        "https://evil.com/.example.org",
        "*",
        long.as_str(),
    ] {
        let answer = from(&gateway, "/open", origin);
        assert_eq!(answer.status, 200, "served all the same: {origin}");
        assert!(cors_fields(&answer).is_empty(), "{origin}: {answer:?}");
        assert!(varies(&answer));
    }
    let twice = gateway.request("GET", "/open", &[("Origin", APP), ("Origin", "https://evil.com")], "");
    assert!(cors_fields(&twice).is_empty(), "{twice:?}");
    assert!(varies(&gateway.get("/open")), "also without an origin, for caches");
    assert_eq!(upstream.last().target, "/open");
}

#[test]
fn every_answer_of_a_route_can_be_read_by_the_browser() {
    let (gateway, _upstream, _refused) = setup();
    assert_eq!(from(&gateway, "/slow", APP).status, 200);
    for (path, status) in [("/auth", 401), ("/slow", 429), ("/broken", 502), ("/nowhere", 404)] {
        let answer = from(&gateway, path, APP);
        assert_eq!(answer.status, status, "{answer:?}");
        assert_eq!(answer.all("access-control-allow-origin"), [APP], "{path}");
        assert_eq!(answer.header("access-control-allow-credentials"), Some("true"));
        assert!(varies(&answer), "{path}: {answer:?}");
        let foreign = from(&gateway, path, "https://evil.com");
        assert!(cors_fields(&foreign).is_empty() && varies(&foreign), "{path}: {foreign:?}");
    }
    let large = gateway.request("PUT", "/body", &[("Origin", APP)], "four");
    assert_eq!((large.status, large.header("access-control-allow-origin")), (413, Some(APP)));
    let method = gateway.request("GET", "/put", &[("Origin", APP)], "");
    assert_eq!((method.status, method.header("access-control-allow-origin")), (405, Some(APP)));
}

#[test]
fn without_a_list_the_request_id_is_exposed() {
    let (gateway, _upstream, _refused) = setup();
    assert_eq!(from(&gateway, "/asked", APP).header("access-control-expose-headers"), Some("x-request-id"));
}

#[test]
fn preflights_are_answered_here() {
    let (gateway, upstream, _refused) = setup();
    for path in ["/open", "/auth", "/slow", "/slow", "/slow", "/broken"] {
        let answer = preflight(&gateway, path, APP, "PUT", "x-custom");
        assert_eq!((answer.status, answer.body.len()), (204, 0), "{path}: {answer:?}");
        assert_eq!(answer.all("access-control-allow-origin"), [APP]);
        assert_eq!(answer.header("access-control-allow-methods"), Some("GET, PUT"));
        assert_eq!(answer.header("access-control-allow-headers"), Some("content-type, authorization"));
        assert_eq!(answer.header("access-control-max-age"), Some("300"));
        assert_eq!(answer.header("access-control-allow-credentials"), Some("true"));
        assert!(!answer.has("access-control-expose-headers") && !answer.has("content-length"), "{answer:?}");
        let vary = answer.all("vary").join(",").to_ascii_lowercase();
        for name in ["origin", "access-control-request-method", "access-control-request-headers"] {
            assert!(vary.contains(name), "{vary}");
        }
        assert!(!answer.has("ratelimit"), "no limit was evaluated: {answer:?}");
    }
    assert_eq!(from(&gateway, "/slow", APP).status, 200, "three preflights have used nothing up");
    let foreign = preflight(&gateway, "/auth", "https://evil.com", "GET", "");
    assert_eq!((foreign.status, cors_fields(&foreign)), (204, vec![]));
    assert!(varies(&foreign));
    assert!(upstream.requests().iter().all(|request| request.method != "OPTIONS"), "no preflight reaches an upstream");
    let asked = preflight(&gateway, "/asked", APP, "DELETE", "x-one, x-two");
    assert_eq!(asked.header("access-control-allow-headers"), Some("x-one, x-two"), "what is asked for, where no list is given");
    assert_eq!(asked.header("access-control-max-age"), Some("600"));
    assert!(!asked.has("access-control-allow-credentials"));
    let line = gateway.logged("/broken");
    assert_eq!((&line["status"], &line["route"]), (&204.into(), &"broken".into()));
}

#[test]
fn a_preflight_finds_the_route_of_the_method_it_asks_for() {
    let (gateway, upstream, _refused) = setup();
    assert_eq!(preflight(&gateway, "/put", APP, "PUT", "").status, 204);
    let other = preflight(&gateway, "/put", APP, "DELETE", "");
    assert_eq!(other.status, 405, "no route takes DELETE there, nor OPTIONS: {other:?}");
    assert!(other.header("allow").unwrap().contains("OPTIONS"), "{other:?}");
    for fields in [vec![("Origin", APP)], vec![("Access-Control-Request-Method", "GET")]] {
        let answer = gateway.request("OPTIONS", "/open", &fields, "");
        assert_eq!((answer.status, upstream.last().method.as_str()), (200, "OPTIONS"), "an ordinary request");
    }
}

#[test]
fn the_upstreams_own_fields_are_replaced_or_left_alone() {
    let fields = "access-control-allow-origin: https://evil.test\r\naccess-control-allow-credentials: true\r\n\
                  access-control-allow-private-network: true\r\nvary: Accept-Encoding\r\n";
    let upstream = Upstream::serve(move |_, conn| conn.answer(200, fields, "hi"));
    let refused = Refused::new();
    let gateway = Gateway::new(LISTED, &[upstream.address, refused.address]);
    let mine = from(&gateway, "/asked", APP);
    assert_eq!(mine.all("access-control-allow-origin"), [APP]);
    assert_eq!(cors_fields(&mine), ["access-control-allow-origin", "access-control-expose-headers"]);
    assert!(varies(&mine) && mine.all("vary").join(",").contains("Accept-Encoding"), "{mine:?}");
    assert!(cors_fields(&from(&gateway, "/asked", "https://evil.test")).is_empty());
    let raw = from(&gateway, "/raw", APP);
    assert_eq!(raw.all("access-control-allow-origin"), ["https://evil.test"], "off: all passes untouched");
    assert_eq!(raw.all("vary"), ["Accept-Encoding"]);
    assert_eq!(preflight(&gateway, "/raw", APP, "GET", "").header("access-control-allow-origin"), Some("https://evil.test"));
    assert_eq!(upstream.last().method, "OPTIONS");
    let rules = from(&gateway, "/rules", APP);
    assert_eq!(rules.all("access-control-allow-origin"), [APP], "CORS has the last word over header rules");
    assert!(varies(&rules) && rules.all("vary").join(",").contains("accept"));
    let rules = preflight(&gateway, "/rules", APP, "GET", "");
    assert_eq!((rules.all("access-control-allow-origin"), varies(&rules)), (vec![APP], true));
    assert_eq!(rules.header("access-control-allow-methods"), Some("GET, PUT"));
}

#[test]
fn a_star_answers_a_star_and_does_not_vary() {
    let (gateway, _upstream, _refused) = setup();
    for origin in [APP, "null", "https://anyone.test"] {
        let answer = from(&gateway, "/any", origin);
        assert_eq!(answer.all("access-control-allow-origin"), ["*"]);
        assert!(!varies(&answer) && !answer.has("access-control-allow-credentials"), "{answer:?}");
    }
    assert!(cors_fields(&gateway.get("/any")).is_empty());
    assert!(!varies(&gateway.get("/any")));
    assert!(!varies(&preflight(&gateway, "/any", APP, "GET", "")));
    assert_eq!(from(&gateway, "/null", "null").all("access-control-allow-origin"), ["null"], "only where it is written");
    for (credentials, refused) in [("true", true), ("false", false)] {
        let yaml = format!("routes: [{{ match: /*, cors: {{ origins: ['*'], credentials: {credentials} }}, respond: {{ status: 200 }} }}]");
        assert_eq!(Gateway::start_error(&yaml, &[]).is_some(), refused, "credentials: {credentials}");
    }
}

#[test]
fn a_denied_address_learns_nothing() {
    let (gateway, upstream, _refused) = setup();
    let answer = from(&gateway, "/denied", APP);
    answer.refused(403, "ip_denied");
    assert!(cors_fields(&answer).is_empty(), "{answer:?}");
    let answer = preflight(&gateway, "/denied", APP, "GET", "");
    answer.refused(403, "ip_denied");
    assert!(cors_fields(&answer).is_empty(), "{answer:?}");
    assert_eq!(upstream.count(), 0);
}

#[test]
fn websockets_are_for_listed_origins_and_for_what_is_no_browser() {
    let (gateway, upstream, _refused) = setup();
    let handshake = |origin: Option<&str>, path: &str| {
        let mut fields = vec![
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        fields.extend(origin.map(|origin| ("Origin", origin)));
        gateway.request("GET", path, &fields, "")
    };
    for origin in ["https://evil.com", "null"] {
        let answer = handshake(Some(origin), "/open");
        answer.refused(403, "origin_denied");
        assert!(cors_fields(&answer).is_empty());
    }
    assert_eq!(upstream.count(), 0);
    // The echo answers 200: an ordinary response, but the handshake has passed the check.
    assert_eq!(handshake(Some(APP), "/open").status, 200);
    assert_eq!(handshake(None, "/open").status, 200);
    assert_eq!(handshake(Some("https://evil.com"), "/raw").status, 200, "without `cors` nobody is asked");
    assert_eq!(handshake(Some("https://evil.com"), "/any").status, 200);
    eventually("both are logged", || (gateway.log().iter().filter(|line| line["reason"] == "origin_denied").count() == 2).then_some(()));
}
