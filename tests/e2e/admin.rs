//! The admin listener of a running gateway.

use serde_json::json;

use crate::support::client::request;
use crate::support::{Answer, Gateway, Raw, Upstream};

fn ask(gateway: &Gateway, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut all = vec![("connection", "close")];
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        all.push(("host", "localhost"));
    }
    all.extend_from_slice(headers);
    Raw::connect(gateway.admin()).ask(request(method, path, &all, ""))
}

#[test]
fn health_and_ready_tell_the_state() {
    let gateway = Gateway::new("routes: [{ match: /*, respond: { status: 200 } }]", &[]);
    let health = gateway.admin_get("/health");
    assert_eq!((health.status, health.json()), (200, json!({"status": "ok"})));
    let ready = gateway.admin_get("/ready");
    assert_eq!((ready.status, ready.json()), (200, json!({"status": "ready"})));
}

#[test]
fn info_tells_what_runs() {
    let gateway = Gateway::new("routes: [{ match: /*, respond: { status: 200 } }]", &[]);
    let info = gateway.admin_get("/info").json();
    assert_eq!((info["name"].as_str(), info["version"].as_str()), (Some("tollgate"), Some(env!("CARGO_PKG_VERSION"))));
    assert_eq!((info["pid"].as_u64(), info["workers"].as_u64()), (Some(u64::from(std::process::id())), Some(2)));
    assert_eq!(info["listeners"][0]["address"], gateway.address().to_string());
    assert_eq!((info["listeners"][0]["tls"].as_bool(), info["config"]["generation"].as_u64()), (Some(false), Some(1)));
    assert_eq!(info["restart_needed"], json!([]));
    for key in ["started_at", "uptime_seconds", "requests_in_flight", "commit"] {
        assert!(!info[key].is_null(), "{key}: {info}");
    }
}

#[test]
fn routes_are_listed_in_order_of_precedence() {
    let yaml = "
        upstreams: { up: { endpoints: [http://@0] } }
        routes:
          - { match: /*, upstream: up }
          - { name: get-user, match: { host: api.example.com, methods: [GET], path: '/users/{id}' }, timeout: 5s, upstream: up }
    ";
    let upstream = Upstream::echo();
    let gateway = Gateway::new(yaml, &[upstream.address]);
    let routes = gateway.admin_get("/routes").json()["routes"].clone();
    assert_eq!(routes.as_array().unwrap().len(), 2);
    let first = &routes[0];
    assert_eq!(
        (first["name"].as_str(), first["host"].as_str(), first["kind"].as_str()),
        (Some("get-user"), Some("api.example.com"), Some("path"))
    );
    assert_eq!((&first["methods"], first["path"].as_str(), first["timeout"].as_str()), (&json!(["GET"]), Some("/users/{id}"), Some("5s")));
    assert_eq!(first["target"], json!({"kind": "upstream", "upstream": "up"}));
    assert_eq!((routes[1]["name"].as_str(), routes[1]["kind"].as_str()), (Some("/*"), Some("prefix")));
    assert!(first["source"].as_str().unwrap().contains(':'), "{first}");
}

#[test]
fn routes_name_every_upstream_they_ask() {
    let yaml = "
        upstreams: { up: { endpoints: [http://@0] }, new: { endpoints: [http://@0] }, shadow: { endpoints: [http://@0] } }
        routes:
          - { name: both, match: /both, split: [{ upstream: up, weight: 9 }, { upstream: new, weight: 1 }], mirror: { upstream: shadow } }
          - { name: copied, match: /copied, upstream: up, mirror: { upstream: shadow, percent: 5% } }
          - { name: home, match: /home, aggregate: { parts: [{ name: b, upstream: new, path: /b }, { name: a, upstream: up, path: /a }] } }
          - { name: plain, match: /plain, upstream: up }
          - { name: said, match: /said, respond: { status: 200 } }
          - { name: sent-on, match: /sent-on, redirect: { to: /said } }
    ";
    let upstream = Upstream::echo();
    let gateway = Gateway::new(yaml, &[upstream.address]);
    let routes = gateway.admin_get("/routes").json()["routes"].clone();
    for (name, kind, asked, mirror) in [
        ("both", "split", json!("up, new"), Some("shadow")),
        ("copied", "upstream", json!("up"), Some("shadow")),
        ("home", "aggregate", json!("new, up"), None),
        ("plain", "upstream", json!("up"), None),
        ("said", "respond", json!(null), None),
        ("sent-on", "redirect", json!(null), None),
    ] {
        let route = routes.as_array().unwrap().iter().find(|route| route["name"] == name).unwrap();
        assert_eq!(route["target"], json!({"kind": kind, "upstream": asked}), "{name}");
        assert_eq!(route.get("mirror"), mirror.map(|name| json!(name)).as_ref(), "{name}");
    }
}

#[test]
fn upstreams_show_the_state_of_each_endpoint() {
    let upstream = Upstream::echo();
    let gateway = Gateway::to(upstream.address, "");
    gateway.get("/");
    let upstreams = gateway.admin_get("/upstreams").json()["upstreams"].clone();
    let up = &upstreams[0];
    assert_eq!((up["name"].as_str(), up["balance"].as_str(), up["panic"].as_bool()), (Some("up"), Some("round_robin"), Some(false)));
    let endpoint = &up["endpoints"][0];
    assert_eq!(endpoint["id"], format!("http://{}", upstream.address));
    assert_eq!(
        (endpoint["state"].as_str(), endpoint["weight"].as_u64(), endpoint["in_flight"].as_u64()),
        (Some("healthy"), Some(1), Some(0))
    );
    assert_eq!(endpoint["connections"]["open"], 1, "{endpoint}");
}

#[test]
fn secrets_are_shown_nowhere() {
    let yaml = "
        admin: { address: '127.0.0.1:0', token: TOPSECRETtoken }
        redis: { main: { url: 'redis://:TOPSECRETredis@127.0.0.1:1' } }
        upstreams: { up: { endpoints: [http://@0] } }
        authenticators:
          main: { jwt: { issuer: i, audience: [a], algorithms: [HS256], secret: TOPSECRETjwt-0123456789-0123456789 } }
          keys: { api_key: { from: [header:x-key], keys: [{ id: a, sha256: 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae }] } }
          opaque: { introspection: { url: 'http://127.0.0.1:1/', client_id: gateway, client_secret: TOPSECRETintro } }
        routes:
          - { match: /*, auth: [main, keys], upstream: up }
    ";
    let upstream = Upstream::echo();
    let gateway = Gateway::new(yaml, &[upstream.address]);
    let token = ("authorization", "Bearer TOPSECRETtoken");
    gateway.request("GET", "/x", &[("authorization", "Bearer TOPSECRETcredential")], "");
    gateway.request("GET", "/x", &[("x-key", "TOPSECRETkey")], "");
    for path in ["/config", "/info", "/routes", "/upstreams", "/metrics"] {
        let answer = ask(&gateway, "GET", path, &[token]);
        assert_eq!(answer.status, 200, "{path}");
        let text = answer.text();
        assert!(!text.contains("TOPSECRET") && !text.contains("2c26b46b68ff"), "{path}: {text}");
        if path == "/config" {
            assert!(text.contains("***"), "{text}");
        }
    }
    gateway.logged("/x");
    assert!(!gateway.log_text().contains("TOPSECRET"));
}

#[test]
fn a_value_from_a_file_is_hidden_in_conditions_too() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("word"), "TOPSECRETpreview\n").unwrap();
    let yaml = "
        routes:
          - match: { prefix: /, headers: { x-preview: '${file:word}' }, query: { v: '2' } }
            respond: { body: preview }
    ";
    let gateway = Gateway::in_dir(dir, yaml, &[]);
    assert_eq!(gateway.request("GET", "/?v=2", &[("x-preview", "TOPSECRETpreview")], "").text(), "preview");
    let route = gateway.admin_get("/routes").json()["routes"][0].clone();
    assert_eq!((&route["headers"]["x-preview"], &route["query"]["v"]), (&"***".into(), &"2".into()));
}

#[test]
fn the_effective_configuration_has_its_defaults_filled_in() {
    let upstream = Upstream::echo();
    let gateway = Gateway::to(upstream.address, "timeout: 5s");
    let text = gateway.admin_get("/config").json().to_string();
    assert!(text.contains("\"timeout\":\"5s\"") && text.contains("\"idle_timeout\":\"5m\""), "{text}");
}

#[test]
fn a_token_is_asked_for_but_not_for_health() {
    let yaml = "
        admin: { address: '127.0.0.1:0', token: sesame }
        routes: [{ match: /*, respond: { status: 200 } }]
    ";
    let gateway = Gateway::new(yaml, &[]);
    for path in ["/health", "/ready"] {
        assert_eq!(ask(&gateway, "GET", path, &[]).status, 200);
    }
    for headers in
        [&[][..], &[("authorization", "Bearer wrong")], &[("authorization", "Basic sesame")], &[("authorization", "Bearer sesame2")]]
    {
        let answer = ask(&gateway, "GET", "/info", headers);
        assert_eq!(answer.status, 401, "{headers:?}");
        assert!(answer.header("www-authenticate").unwrap().starts_with("Bearer"));
    }
    assert_eq!(ask(&gateway, "GET", "/info", &[("authorization", "Bearer sesame")]).status, 200);
    assert_eq!(ask(&gateway, "GET", "/info", &[("authorization", "Bearer sesame"), ("host", "public.example.com")]).status, 200);
}

#[test]
fn without_a_token_strange_hosts_and_origins_are_refused() {
    let gateway = Gateway::new("routes: [{ match: /*, respond: { status: 200 } }]", &[]);
    assert_eq!(ask(&gateway, "GET", "/info", &[("host", "evil.example.com")]).status, 403);
    assert_eq!(ask(&gateway, "GET", "/info", &[("host", &gateway.admin().to_string())]).status, 200);
    assert_eq!(ask(&gateway, "POST", "/reload", &[("origin", "http://localhost")]).status, 403);
}

#[test]
fn the_admin_listener_is_reached_through_no_route() {
    let gateway = Gateway::new("routes: [{ match: { host: site, path: /x }, respond: { status: 200 } }]", &[]);
    let admin = gateway.admin();
    assert_eq!(gateway.ask(format!("GET http://{admin}/info HTTP/1.1\r\nHost: {admin}\r\n\r\n")).status, 404);
    assert_eq!(gateway.request("GET", "/info", &[("host", &admin.to_string())], "").status, 404);
}

#[test]
fn admin_requests_are_no_traffic() {
    let gateway = Gateway::new("routes: [{ match: GET /a, respond: { status: 200 } }]", &[]);
    for _ in 0..3 {
        gateway.admin_get("/info");
    }
    gateway.get("/a");
    gateway.logged("/a");
    assert_eq!(gateway.log().len(), 1);
    let text = gateway.admin_get("/metrics").text();
    let total: Vec<&str> = text.lines().filter(|line| line.starts_with("gateway_requests_total{")).collect();
    assert_eq!(total, ["gateway_requests_total{route=\"GET /a\",method=\"GET\",status=\"200\"} 1"]);
}

#[test]
fn a_reload_can_be_asked_for() {
    let gateway = Gateway::new("routes: [{ match: /*, respond: { status: 200 } }]", &[]);
    let answer = ask(&gateway, "POST", "/reload", &[]);
    assert_eq!((answer.status, answer.json()), (200, json!({"result": "unchanged"})));
    assert_eq!(ask(&gateway, "GET", "/reload", &[]).status, 405);
    assert_eq!(ask(&gateway, "GET", "/nothing", &[]).status, 404);
}
