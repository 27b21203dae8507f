//! The order of the chain with its reasons, steps of a library user, and secrets that must not come out anywhere.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use serde_json::json;

use crate::support::client::request;
use crate::support::{Answer, Gateway, Raw, Refused, Upstream, eventually};
use crate::tokens::{SECRET, basic, bearer, claims, claims_of, hs256, sha256, with};

#[path = "../../examples/custom_middleware.rs"]
mod custom_middleware;

/// Every step is on, and each of them can refuse.
const FULL: &str = "
    server: { workers: 2, trusted_proxies: [127.0.0.0/8], timeouts: { drain: 200ms } }
    upstreams: { up: { endpoints: [http://@0] } }
    authenticators:
      main: { jwt: { issuer: 'https://id.test', audience: [api], algorithms: [HS256], secret: '@SECRET', forward: { sub: x-user-id } } }
    routes:
      - name: full
        match: /full/*
        ip: { deny: [192.0.2.1] }
        cors: { origins: [https://app.test] }
        body_limit: 4B
        rate_limit:
          - { by: global, rate: 3/h, name: global }
          - { by: user, rate: 2/h, name: user }
          - { by: ip, rate: 100/h, burst: 4, name: address }
        auth: { any: [main], scopes: ['orders:read'] }
        rewrite: { path: '/of/{claim:tenant}' }
        headers: { request: { set: { x-caller: '{user}', x-user-id: 'rule-{user}' } }, response: { set: { x-rule: 'yes' } } }
        retry: { attempts: 0 }
        upstream: up
";

fn full(upstream: std::net::SocketAddr) -> Gateway {
    Gateway::new(&FULL.replace("@SECRET", SECRET), &[upstream])
}

/// Which step a request fails at: a client from `address`, a body of `body` bytes, this token.
fn ask(gateway: &Gateway, address: &str, body: usize, token: &str) -> Answer {
    let fields = [("X-Forwarded-For", address), ("Authorization", &bearer(token)), ("Origin", "https://app.test")];
    gateway.request("POST", "/full/x", &fields, &"b".repeat(body))
}

fn policy(answer: &Answer) -> String {
    answer.refused(429, "rate_limited");
    answer.json()["violated-policies"][0].as_str().unwrap().to_owned()
}

#[test]
fn a_request_that_every_step_would_refuse_is_refused_by_the_first() {
    let refused = Refused::new();
    let gateway = full(refused.address);
    let token = |sub: &str, tenant: &str| hs256(&with(claims_of(sub), json!({ "tenant": tenant })));
    let unscoped = hs256(&with(claims(), json!({ "scope": null })));
    // 1. The address, before anything else: nothing is counted for it, and nothing told.
    for _ in 0..9 {
        ask(&gateway, "192.0.2.1", 9, "bad").refused(403, "ip_denied");
    }
    // 2. The origin of a WebSocket, before limits and auth.
    let foreign = [
        ("X-Forwarded-For", "198.51.100.1"),
        ("Origin", "https://evil.test"),
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    for _ in 0..9 {
        gateway.request("GET", "/full/x", &foreign, "").refused(403, "origin_denied");
    }
    // 3. The declared length, before the limits: four requests of this address are still there after nine of these.
    for _ in 0..9 {
        ask(&gateway, "198.51.100.1", 9, "bad").refused(413, "body_too_large");
    }
    // 4. The address's limit, before auth: guessing is limited.
    for _ in 0..4 {
        ask(&gateway, "198.51.100.1", 1, "bad").refused(401, "unauthenticated");
    }
    assert_eq!(policy(&ask(&gateway, "198.51.100.1", 1, "bad")), "address");
    assert_eq!(policy(&ask(&gateway, "198.51.100.1", 1, &token("ann", "t"))), "address", "even with the right one");
    // 5. Auth, before the limits by identity: those who may not call use nothing up.
    for _ in 0..4 {
        ask(&gateway, "198.51.100.2", 1, &unscoped).refused(403, "forbidden");
    }
    // 6. The user's limit, then the shared one. 7. Rewriting, after all of them. 8. The target.
    ask(&gateway, "198.51.100.3", 1, &token("ann", "")).refused(400, "bad_request");
    ask(&gateway, "198.51.100.3", 1, &token("ann", "t")).refused(502, "upstream_connect_failed");
    for _ in 0..2 {
        assert_eq!(policy(&ask(&gateway, "198.51.100.3", 1, &token("ann", "t"))), "user");
    }
    ask(&gateway, "198.51.100.4", 1, &token("bob", "t")).refused(502, "upstream_connect_failed");
    assert_eq!(policy(&ask(&gateway, "198.51.100.4", 1, &token("bob", "t"))), "global", "which ann's refused requests did not eat");
}

#[test]
fn every_answer_after_the_first_step_has_the_routes_fields_in_their_order() {
    let refused = Refused::new();
    let gateway = full(refused.address);
    let good = hs256(&with(claims(), json!({ "tenant": "t" })));
    for (body, token, status) in [(9, "bad", 413), (1, "bad", 401), (1, good.as_str(), 502)] {
        let answer = ask(&gateway, "198.51.100.1", body, token);
        assert_eq!(answer.status, status);
        assert_eq!(answer.header("x-rule"), Some("yes"), "headers.response applies to the gateway's own answers");
        assert_eq!(answer.header("access-control-allow-origin"), Some("https://app.test"));
        assert!(answer.has("x-request-id") && answer.has("date"));
        assert_eq!(answer.has("ratelimit"), status != 413, "only when a limit was evaluated");
    }
}

#[test]
fn rules_and_the_target_see_what_the_steps_before_them_have_made() {
    let upstream = Upstream::echo();
    let gateway = full(upstream.address);
    let token = hs256(&with(claims(), json!({ "tenant": "a/b" })));
    let answer = ask(&gateway, "198.51.100.1", 4, &token);
    assert_eq!(answer.status, 200, "{answer:?}");
    let seen = upstream.last();
    assert_eq!(seen.target, "/of/a%2Fb");
    assert_eq!((seen.header("x-caller"), seen.all("x-user-id")), (Some("ann"), vec!["rule-ann"]), "header rules come after `forward`");
    assert_eq!(seen.header("x-forwarded-for"), Some("198.51.100.1, 127.0.0.1"));
    assert!(!seen.has("authorization"));
}

#[test]
fn a_route_is_not_chosen_by_what_only_the_gateway_may_say() {
    let yaml = format!(
        "
        authenticators: {{ main: {{ jwt: {{ issuer: 'https://id.test', audience: [api], algorithms: [HS256], secret: '{SECRET}', forward: {{ sub: x-user-id }} }} }} }}
        routes:
          - {{ match: {{ path: /a, headers: {{ x-user-id: root }} }}, respond: {{ status: 200, body: secret }} }}
          - {{ match: /a, respond: {{ status: 200, body: public }} }}
          - {{ match: {{ path: /b, headers: {{ x-hop: '1' }} }}, respond: {{ status: 200, body: secret }} }}
          - {{ match: /b, respond: {{ status: 200, body: public }} }}
    "
    );
    let gateway = Gateway::new(&yaml, &[]);
    assert_eq!(gateway.request("GET", "/a", &[("X-User-Id", "root")], "").text(), "public");
    assert_eq!(gateway.request("GET", "/b", &[("X-Hop", "1"), ("Connection", "x-hop")], "").text(), "public");
}

#[test]
fn a_library_users_step_is_part_of_every_routes_chain() {
    let upstream = Upstream::echo();
    let yaml = format!(
        "
listeners: [{{ address: '127.0.0.1:0' }}]
server: {{ workers: 1, timeouts: {{ drain: 200ms }} }}
log: {{ level: error, access: {{ enabled: false }} }}
upstreams: {{ up: {{ endpoints: ['http://{}'] }} }}
authenticators: {{ main: {{ jwt: {{ issuer: 'https://id.test', audience: [api], algorithms: [HS256], secret: '{SECRET}', forward: {{ sub: x-user-id }} }} }} }}
routes:
  - {{ name: proxied, match: /proxied, upstream: up }}
  - {{ name: fixed, match: /fixed, respond: {{ status: 200 }} }}
  - {{ name: auth, match: /auth, auth: main, upstream: up }}
",
        upstream.address
    );
    let server = custom_middleware::start(&yaml).unwrap();
    let ask = |path: &str, fields: &[(&str, &str)]| Raw::connect(server.addresses()[0]).ask(request("GET", path, fields, ""));
    for (path, route) in [("/proxied", "proxied"), ("/fixed", "fixed")] {
        let answer = ask(path, &[("X-Team", "blue")]);
        assert_eq!((answer.status, answer.header("x-served-for")), (200, Some(route)), "{answer:?}");
        let answer = ask(path, &[("X-Team", "green")]);
        answer.refused(403, "forbidden");
        assert_eq!((answer.json()["detail"].as_str(), answer.has("x-served-for")), (Some("This team is not known here."), false));
    }
    assert_eq!(upstream.count(), 1);
    assert_eq!(upstream.last().header("x-asked-by"), Some("127.0.0.1"));
    ask("/auth", &[("X-Team", "green")]).refused(401, "unauthenticated");
    let answer = ask("/auth", &[("X-Team", "red"), ("Authorization", &bearer(&hs256(&claims())))]);
    assert_eq!((answer.status, upstream.last().header("x-user-id")), (200, Some("ann")));
    server.shutdown();
}

/// The binary, with everything it writes in files.
pub struct Process {
    child: Child,
    dir: tempfile::TempDir,
    ports: [u16; 2],
}

impl Process {
    /// Starts it with `yaml`, in which `@LISTEN` and `@ADMIN` are free ports.
    pub fn start(dir: tempfile::TempDir, yaml: &str, env: &[(&str, &str)]) -> Self {
        let free = [0, 0].map(|_: u8| TcpListener::bind("127.0.0.1:0").unwrap());
        let ports = [0, 1].map(|n: usize| free[n].local_addr().unwrap().port());
        drop(free);
        let yaml = yaml.replace("@LISTEN", &ports[0].to_string()).replace("@ADMIN", &ports[1].to_string());
        std::fs::write(dir.path().join("gateway.yaml"), yaml).unwrap();
        let file = |name: &str| Stdio::from(std::fs::File::create(dir.path().join(name)).unwrap());
        let child = Command::new(env!("CARGO_BIN_EXE_tollgate"))
            .args(["serve", "--config", "gateway.yaml"])
            .current_dir(dir.path())
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(file("out"))
            .stderr(file("err"))
            .spawn()
            .unwrap();
        let mut process = Self { child, dir, ports };
        eventually("it listens", || {
            assert!(process.child.try_wait().unwrap().is_none(), "{}", process.output());
            std::net::TcpStream::connect(("127.0.0.1", ports[0])).ok()
        });
        process
    }
    pub fn ask(&self, port: usize, bytes: &str) -> Answer {
        Raw::connect(([127, 0, 0, 1], self.ports[port]).into()).ask(bytes)
    }
    /// Everything it has written.
    pub fn output(&self) -> String {
        ["out", "err", "access.log"].map(|name| std::fs::read_to_string(self.dir.path().join(name)).unwrap_or_default()).join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself; the test has said so then.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn no_secret_comes_out_anywhere() {
    const PASSWORD: &str = "correct-horse-battery";
    const API_KEY: &str = "tg_acme_topsecretkey";
    const OPAQUE: &str = "opaque-token-0123456789";
    const CLIENT_SECRET: &str = "introspection-client-secret";
    const ADMIN: &str = "admin-token-0123456789";
    const REDIS: &str = "redis-password-0123456789";
    const SUBSTITUTED: &str = "substituted-header-value";
    let introspection = Upstream::serve(|_, conn| conn.answer(500, "", "no"));
    let upstream = Upstream::text("hi");
    let dir = tempfile::tempdir().unwrap();
    let hash = bcrypt::hash(PASSWORD, 4).unwrap();
    std::fs::write(dir.path().join("users"), format!("ada:{hash}\n")).unwrap();
    std::fs::write(dir.path().join("value"), format!("{SUBSTITUTED}\n")).unwrap();
    let key_hash = sha256(API_KEY);
    let yaml = format!(
        "
listeners: [{{ address: '127.0.0.1:@LISTEN' }}]
admin: {{ address: '127.0.0.1:@ADMIN', token: '{ADMIN}' }}
server: {{ workers: 1 }}
log: {{ level: trace, format: json, access: {{ output: access.log }} }}
redis: {{ main: {{ url: 'redis://:{REDIS}@127.0.0.1:1/', timeout: 20ms }} }}
upstreams: {{ up: {{ endpoints: ['http://{}'] }} }}
authenticators:
  main: {{ jwt: {{ issuer: 'https://id.test', audience: [api], algorithms: [HS256], secret: '${{TEST_SECRET}}', from: [bearer, 'cookie:session', 'query:token'], forward: {{ sub: x-user-id }} }} }}
  partners: {{ api_key: {{ from: ['header:x-api-key', 'query:api_key'], keys: [{{ id: acme, sha256: {key_hash} }}] }} }}
  staff: {{ basic: {{ users_file: users, realm: staff }} }}
  opaque: {{ introspection: {{ url: 'http://{}/', client_id: gateway, client_secret: {CLIENT_SECRET} }} }}
routes:
  - {{ match: /jwt, auth: main, upstream: up }}
  - {{ match: /key, auth: partners, rate_limit: [{{ by: 'header:x-api-key', rate: 3/h, store: main }}], upstream: up }}
  - {{ match: /staff, auth: staff, upstream: up }}
  - {{ match: /opaque, auth: opaque, upstream: up }}
  - {{ match: /set, headers: {{ request: {{ set: {{ x-inner: '${{file:value}}' }} }} }}, upstream: up }}
",
        upstream.address, introspection.address
    );
    let process = Process::start(dir, &yaml, &[("TEST_SECRET", SECRET)]);
    let good = hs256(&claims());
    let forged = format!("{}x", &good[..good.len() - 1]);
    let mut secrets = vec![SECRET, PASSWORD, API_KEY, OPAQUE, CLIENT_SECRET, ADMIN, REDIS, SUBSTITUTED, &hash, &key_hash, &good, &forged];
    let wrong = ["tg_acme_wrongsecret", "wrong-password-x"];
    secrets.extend(wrong);
    let (ada, guess) = (basic("ada", PASSWORD), basic("ada", wrong[1]));
    secrets.extend([ada.trim_start_matches("Basic "), guess.trim_start_matches("Basic ")]);
    let signature = good.rsplit('.').next().unwrap();
    secrets.push(signature);

    let mut told = String::new();
    let mut see = |answer: &Answer| {
        told.push_str(&format!("{:?} {}\n", answer.headers, answer.text()));
        answer.status
    };
    let mut client = |path: &str, fields: &[(&str, &str)]| see(&process.ask(0, &request("GET", path, fields, "")));
    assert_eq!(client("/jwt", &[("Authorization", &bearer(&good))]), 200);
    assert_eq!(client("/jwt", &[("Authorization", &bearer(&forged))]), 401);
    assert_eq!(client("/jwt", &[("Cookie", &format!("session={good}"))]), 200);
    assert_eq!(client(&format!("/jwt?token={good}"), &[]), 200);
    assert_eq!(client(&format!("/jwt?%74oken={forged}"), &[]), 401);
    assert_eq!(client("/key", &[("X-Api-Key", API_KEY)]), 200);
    assert_eq!(client(&format!("/key?api_key={API_KEY}"), &[]), 200);
    assert_eq!(client("/key", &[("X-Api-Key", wrong[0])]), 401);
    for _ in 0..4 {
        client("/key", &[("X-Api-Key", API_KEY)]);
    }
    assert_eq!(client("/staff", &[("Authorization", &ada)]), 200);
    assert_eq!(client("/staff", &[("Authorization", &guess)]), 401);
    assert_eq!(client("/opaque", &[("Authorization", &bearer(OPAQUE))]), 503);
    assert_eq!(client("/set", &[]), 200);
    assert_eq!(client(&format!("/nowhere?token={good}"), &[("Authorization", &bearer(&good))]), 404);
    // A head that cannot be read, with credentials in it.
    see(&process.ask(0, &format!("GET /jwt HTTP/1.1\r\nHost: a\r\nHost: b\r\nAuthorization: Bearer {good}\r\n\r\n")));
    let local = ("Host", "localhost");
    let token = format!("Bearer {ADMIN}");
    let mut admin =
        |method: &str, path: &str, value: &str| see(&process.ask(1, &request(method, path, &[local, ("Authorization", value)], "")));
    for path in ["/config", "/info", "/routes", "/upstreams", "/metrics", "/health", "/ready"] {
        assert_eq!(admin("GET", path, &token), 200, "{path}");
    }
    assert_eq!(admin("GET", "/config", &bearer(wrong[1])), 401);
    // A reload that fails beside secrets.
    let file = process.dir.path().join("gateway.yaml");
    let broken = std::fs::read_to_string(&file)
        .unwrap()
        .replace("secret: '${", "algorithm: x, secret: '${")
        .replace("x-inner: '", "x-inner: '{nope}");
    std::fs::write(&file, broken.replace(&key_hash, &format!("{key_hash}zz")).replace("redis://:", "redis://a b:")).unwrap();
    assert_eq!(admin("POST", "/reload", &token), 422);
    assert_eq!(admin("GET", "/info", &token), 200);
    eventually("the requests are logged", || (process.output().matches("\"/nowhere\"").count() > 0).then_some(()));
    let everything = told + &process.output();
    assert!(everything.contains("\"***\""), "the dump hides values, rather than leaving them out");
    for secret in secrets {
        if let Some(at) = everything.find(secret) {
            let (from, to) = (at.saturating_sub(200), (at + secret.len() + 100).min(everything.len()));
            panic!("{secret} came out: {}", String::from_utf8_lossy(&everything.as_bytes()[from..to]));
        }
    }
}
