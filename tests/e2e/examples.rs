//! Every file of `examples/` is run: started as a gateway, and what its head says to try is tried.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;

use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::{IntoClientRequest as _, client};

use crate::rate_limit::Redis;
use crate::support::client::{get, request};
use crate::support::example::Stage;
use crate::support::example::Step::{Beside, Elsewhere, Holds, Shows, Streams};
use crate::support::h2::{self, H2Upstream};
use crate::support::{Upstream, block_on, eventually};
use crate::tokens::basic;

/// A test for each example, and the list of their files.
macro_rules! examples {
    ($($test:ident: $file:literal, $play:expr;)+) => {
        const FILES: &[&str] = &[$($file),+];
        $(
            #[test]
            fn $test() {
                let play: fn(Stage) = $play;
                play(Stage::new($file));
            }
        )+
    };
}

#[test]
fn every_example_is_run() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut files: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".yaml"))
        .collect();
    files.sort();
    let mut run = FILES.to_vec();
    run.sort_unstable();
    assert_eq!(files, run, "each file of examples/ has a line in tests/e2e/examples.rs, and each line a file");
}

/// The backends that answered, in order.
fn backends(shown: &str) -> Vec<String> {
    let names =
        shown.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|error| panic!("{error}: {shown}")));
    names.map(|answer| answer["backend"].as_str().unwrap_or_else(|| panic!("{shown}")).to_owned()).collect()
}

fn in_turn(shown: &str) {
    let seen = backends(shown);
    let mut once = seen[..3].to_vec();
    once.sort();
    assert_eq!((once, &seen[..3]), (vec!["ads".to_owned(), "orders".to_owned(), "users".to_owned()], &seen[3..]));
}

/// This many answers, from whichever backends.
fn six_answers(shown: &str) {
    assert_eq!(backends(shown).len(), 6);
}

fn three_of_one(shown: &str) {
    let seen = backends(shown);
    assert_eq!((seen.len(), &seen[0], &seen[0]), (3, &seen[1], &seen[2]), "{seen:?}");
}

fn always_users(shown: &str) {
    let seen = backends(shown);
    assert!(!seen.is_empty() && seen.iter().all(|name| name == "users"), "{seen:?}");
}

fn without<const N: usize>(shown: &str, words: [&str; N]) {
    let found = shown.to_lowercase();
    for word in words {
        assert!(!found.contains(word), "`{word}` is in {shown}");
    }
}

examples! {
    aggregation_home: "aggregation-home.yaml", |stage| {
        // A busy machine may take longer than people would wait.
        stage.with("timeout: 1s ", "timeout: 20s ").with("timeout: 500ms", "timeout: 20s").with("timeout: 200ms", "timeout: 20s").start().tries(&[
            ("curl -i", Shows(&[
                "http/1.1 200", "x-tollgate-parts: user=200, orders=200, ads=200", r#""user":{"id":1,"name":"Ada Lovelace"}"#,
                r#""orders":[{"id":101,"amount":"19.90"},"#, r#""ads":["Slide rules, as new","#,
            ])),
            ("curl -X POST", Shows(&["http/1.1 200", "user=200, orders=200, ads=503", r#""user":{"id":1"#, r#""orders":[{"id":101"#])),
            ("/home/99", Shows(&["http/1.1 404", r#""reason":"aggregate_failed""#])),
            ("/account/1", Shows(&[r#""id":1"#, r#"101"#])),
        ]);
    };
    api_keys: "api-keys.yaml", |stage| stage.start().tries(&[
        ("KEY=", Shows(&[])),
        ("/orders", Shows(&["http/1.1 401", "unauthenticated"])),
        ("-H \"x-api-key: $KEY\"", Shows(&["http/1.1 200", r#""id":101"#])),
        ("/echo?key=$KEY", Holds(|shown| {
            assert!(shown.contains(r#""target":"/echo""#) && shown.contains(r#""x-consumer-id":"demo""#), "{shown}");
            without(shown, ["tg_demo"]);
        })),
        ("-X POST", Shows(&["http/1.1 403"])),
    ]);
    balance_consistent_hash: "balance-consistent-hash.yaml", |stage| stage.start().tries(&[
        ("x-user-id: ada", Holds(three_of_one)),
        ("x-user-id: $i", Holds(|shown| assert_eq!(backends(shown).len(), 3))),
    ]);
    balance_least_requests: "balance-least-requests.yaml", |stage| stage.start().tries(&[
        ("/whoami", Holds(always_users)),
        ("/upstreams", Shows(&[r#""balance":"least_requests""#, r#""in_flight":0"#, r#""weight":2"#])),
    ]);
    balance_p2c: "balance-p2c.yaml", |stage| stage.start().tries(&[
        ("/whoami", Holds(six_answers)),
        ("/upstreams", Shows(&[r#""balance":"p2c""#, r#""ewma_ms":"#])),
    ]);
    balance_random: "balance-random.yaml", |stage| stage.start().tries(&[("/whoami", Holds(six_answers))]);
    balance_round_robin: "balance-round-robin.yaml", |stage| stage.start().tries(&[("/whoami", Holds(in_turn))]);
    balance_weighted: "balance-weighted.yaml", |stage| stage.start().tries(&[("/whoami", Holds(|shown| {
        assert_eq!(backends(shown), ["users", "users", "orders", "users", "ads", "users", "users"], "A A B A C A A");
    }))]);
    basic_names: "basic.yaml", |stage| {
        std::fs::create_dir(stage.dir().join("keys")).unwrap();
        std::fs::write(stage.dir().join("keys/htpasswd"), format!("ada:{}\n", bcrypt::hash("open sesame", 4).unwrap())).unwrap();
        let example = stage.prepared().start();
        example.tries(&[
            ("/tools", Shows(&["http/1.1 401", "www-authenticate: basic realm=\"staff\""])),
            ("-u ada", Elsewhere("it asks for a password")),
        ]);
        let answer = example.gateway.request("GET", "/tools", &[("Authorization", &basic("ada", "open sesame"))], "");
        assert_eq!((answer.status, answer.json()["headers"]["x-user-id"].as_str()), (200, Some("ada")));
    };
    breaker: "breaker.yaml", |stage| stage.start().tries(&[
        ("/break?seconds=20", Shows(&["broken_for_seconds"])),
        ("seq 60", Holds(|shown| assert_eq!(shown.trim(), "503 ".repeat(60).trim()))),
        ("/upstreams", Holds(|shown| {
            let json: serde_json::Value = serde_json::from_str(shown).unwrap();
            let breaker = &json["upstreams"][0]["breaker"];
            assert!(breaker["mode"] == "adaptive" && breaker["drop"].as_f64().unwrap() > 0.5, "{breaker}");
        })),
    ]);
    canary: "canary.yaml", |stage| stage.start().tries(&[
        ("uniq -c", Holds(|shown| {
            let count = |version: &str| -> u32 {
                let line = shown.lines().find(|line| line.contains(version));
                line.map_or(0, |line| line.split_whitespace().next().unwrap().parse().unwrap())
            };
            // Drawn for each request: 20 of 40 are not 90 % in one run of a hundred millions.
            assert!(count("v1") + count("v2") == 40 && count("v1") > 20, "{shown}");
        })),
        ("x-version: v2", Shows(&[r#"{"checkout":"v2"}"#])),
        ("cookie: session=7", Holds(|shown| {
            let seen = backends(shown);
            assert!(seen.len() == 5 && seen.iter().all(|name| *name == seen[0]), "{seen:?}");
        })),
        ("/metrics", Shows(&["upstream=\"checkout-v1\"", "upstream=\"checkout-v2\""])),
    ]);
    cors_spa: "cors-spa.yaml", |stage| stage.start().tries(&[
        ("-X OPTIONS", Shows(&[
            "http/1.1 204", "access-control-allow-origin: http://localhost:3000", "access-control-allow-methods: GET, POST, PUT, PATCH, DELETE",
            "access-control-allow-headers: content-type, authorization", "access-control-max-age: 600",
        ])),
        ("http://localhost:3000", Shows(&[
            "http/1.1 200", "access-control-allow-origin: http://localhost:3000", "access-control-allow-credentials: true",
            "access-control-expose-headers: x-request-id, ratelimit, retry-after", "Ada Lovelace",
        ])),
        ("elsewhere.example", Holds(|shown| {
            assert!(shown.contains("Ada Lovelace"), "{shown}");
            without(shown, ["access-control-"]);
        })),
    ]);
    discovery_dns: "discovery-dns.yaml", |stage| stage.start().tries(&[
        ("/whoami", Shows(&[r#"{"backend":"users"}"#])),
        ("/upstreams", Shows(&["http://127.0.0.1:9081"])),
    ]);
    grpc: "grpc.yaml", |stage| {
        let greeter = H2Upstream::serve(|(request, respond)| async move {
            let health = request.uri().path() == "/grpc.health.v1.Health/Check";
            let answer = if health { h2::message(&[8, 1]) } else { h2::message(b"hello") };
            h2::reply((request, respond), 200, &[("content-type", "application/grpc")], &answer, &[("grpc-status", "0")]).await;
        });
        let example = stage.here("127.0.0.1:50051", &greeter.address).start();
        example.tries(&[
            ("SayHello", Elsewhere("grpcurl is in no distribution; below")),
            ("Health/Check", Elsewhere("grpcurl is in no distribution; below")),
        ]);
        block_on(async {
            let mut client = h2::Client::connect(example.gateway.address()).await;
            for (path, said) in [("/helloworld.Greeter/SayHello", &b"hello"[..]), ("/grpc.health.v1.Health/Check", &[8, 1])] {
                let reply = client.ask(h2::grpc(path, &[]), &h2::message(b"Ada")).await.unwrap();
                assert_eq!((reply.status, reply.grpc_status(), &reply.body), (200, Some("0"), &h2::message(said)));
            }
            let reply = client.ask(h2::grpc("/helloworld.Stranger/SayHello", &[]), &h2::message(b"Ada")).await.unwrap();
            assert_eq!(reply.grpc_status(), Some("12"), "no route is UNIMPLEMENTED");
        });
    };
    headers: "headers.yaml", |stage| stage.start().tries(&[
        ("x-internal: 1", Holds(|shown| {
            for part in [r#""x-region":"eu-1""#, r#""x-client":"127.0.0.1""#, r#""x-original-path":"/echo""#] {
                assert!(shown.contains(part), "{part} in {shown}");
            }
            without(shown, ["x-internal", "fake"]);
        })),
        ("head -20", Shows(&["cache-control: no-store", "link: </docs>; rel=help", "x-content-type-options: nosniff", "x-frame-options: deny"])),
    ]);
    include: "include.yaml", |stage| stage.start().tries(&[
        ("tollgate check", Shows(&["ok (2 routes"])),
        ("/team-a", Shows(&[r#"{"backend":"users"}"#])),
    ]);
    introspection: "introspection.yaml", |stage| {
        let provider = Upstream::serve(|_, conn| {
            conn.answer(200, "content-type: application/json\r\n", r#"{"active":true,"sub":"ann","scope":"echo"}"#)
        });
        let url = format!("http://{}/introspect", provider.address);
        let example = stage.here("https://id.example.com/introspect", &url).before("TOKEN=opaque").start();
        example.tries(&[
            ("INTROSPECT_SECRET", Elsewhere("the test has started it")),
            ("Bearer $TOKEN", Shows(&["http/1.1 200", r#""x-user-id":"ann""#])),
        ]);
        assert_eq!((provider.count(), provider.last().text().as_str()), (1, "token=opaque&token_type_hint=access_token"));
    };
    ip_and_body_limit: "ip-and-body-limit.yaml", |stage| stage.start().tries(&[
        ("/office", Shows(&["http/1.1 200"])),
        ("X-Forwarded-For", Shows(&["http/1.1 403", "ip_denied"])),
        ("head -c 2000", Shows(&["http/1.1 413", "body_too_large"])),
        ("head -c 1000", Shows(&["http/1.1 200"])),
    ]);
    jwt: "jwt.yaml", |stage| stage.prepare().start().tries(&[
        ("TOKEN=", Shows(&[])),
        ("/me", Shows(&["http/1.1 401", "unauthenticated"])),
        ("/me", Shows(&["http/1.1 200", "Ada Lovelace"])),
        ("/orders", Shows(&["http/1.1 200", r#""id":101"#])),
        ("sub=2", Shows(&["http/1.1 403"])),
        ("mallory", Holds(|shown| {
            assert!(shown.contains(r#""x-user-id":"1""#) && shown.contains(r#""x-user-role":"admin""#), "{shown}");
            without(shown, ["mallory", "authorization"]);
        })),
    ]);
    // A busy machine may take seconds over eight calls: what comes back meanwhile must not count.
    limits: "limits.yaml", |stage| stage.with("rate: 1/s", "rate: 1/h").start().tries(&[
        ("seq 8", Shows(&["200 200 200 200 200 429 429 429"])),
        ("curl -i", Shows(&["http/1.1 429", "\nratelimit:", "ratelimit-policy:", "\"users\";q=5", "retry-after:"])),
        ("x-tenant: $i", Shows(&["200 200 200 200 200 200 200 200"])),
    ]);
    limits_redis: "limits-redis.yaml", |stage| {
        let redis = Redis::start();
        let url = format!("redis://127.0.0.1:{}", redis.port);
        let stage = stage.here("${REDIS_URL:-redis://127.0.0.1:6379}", &url).with("rate: 1/s", "rate: 1/h").with("timeout: 50ms", "timeout: 5s");
        let second = crate::support::Gateway::new(&stage.yaml(), &[]);
        let example = stage.start();
        for gateway in [&example.gateway, &second] {
            gateway.metric_becomes("gateway_store_up{store=\"main\"}", 1.0);
        }
        example.port(8081, second.address().port()).tries(&[
            ("redis-server", Elsewhere("the test has started one")),
            ("serve -c examples/limits-redis.yaml", Elsewhere("the test has started it")),
            ("--listen", Elsewhere("the test has started it")),
            ("seq 6", Shows(&["200 200 200 200 200 429 429 429 429 429 429 429"])),
            ("gateway_store_up", Shows(&["gateway_store_up{store=\"main\"} 1"])),
        ]);
    };
    mirror: "mirror.yaml", |stage| stage.start().tries(&[
        ("/whoami", Holds(always_users)),
        ("grep mirror", Shows(&["gateway_mirrored_total{route="])),
    ]);
    mtls: "mtls.yaml", |stage| stage.prepare().start().tries(&[
        ("/echo", Shows(&["http/2 401"])),
        ("client.pem", Shows(&["http/2 200", r#""x-client-subject":"CN=billing,O=Example""#, r#""x-client-san":"spiffe://example.com/billing""#])),
        ("/status", Shows(&["http/2 200", "anybody may ask this"])),
    ]);
    public_and_protected: "public-and-protected.yaml", |stage| stage.prepare().start().tries(&[
        ("TOKEN=", Shows(&[])),
        ("/status", Shows(&["http/1.1 200", "all is well"])),
        ("/users/1", Shows(&["http/1.1 401"])),
        ("/users/1", Shows(&["http/1.1 200", "Ada Lovelace"])),
        ("/shop", Holds(|shown| {
            assert!(shown.contains(r#""target":"/echo""#), "{shown}");
            without(shown, ["x-user-id"]);
        })),
        ("/shop", Shows(&[r#""x-user-id":"2""#])),
        ("nonsense", Shows(&["http/1.1 401"])),
    ]);
    redirects: "redirects.yaml", |stage| stage.start().tries(&[
        ("/blog", Shows(&["location: /articles/hello?year=2024\r\n"])),
        ("old.example.com", Shows(&["location: https://new.example.com/about?x=1"])),
        ("/sale", Shows(&["location: https://shop.example.com/"])),
    ]);
    retries_and_health: "retries-and-health.yaml", |stage| {
        let example = stage.start();
        example.tries(&[
            ("while sleep", Beside(|shown| assert!(backends(shown).len() > 2, "nobody notices: {shown}"))),
            ("/break?seconds=20", Shows(&["broken_for_seconds"])),
            ("/upstreams", Shows(&["http://127.0.0.1:9081", "http://127.0.0.1:9082", "http://127.0.0.1:9083", "last_check"])),
            ("/flaky", Elsewhere("\"orders\" is broken for 20 s; below")),
        ]);
        eventually("the broken one is taken out", || {
            let upstreams = example.gateway.admin_get("/upstreams").json();
            let fleet = upstreams["upstreams"].as_array().unwrap().iter().find(|upstream| upstream["name"] == "fleet").unwrap();
            fleet["endpoints"].as_array().unwrap().iter().any(|endpoint| endpoint["state"] != "healthy").then_some(())
        });
        let healed = crate::support::Raw::connect(example.demo.addresses()[1]).ask(request("POST", "/break?seconds=0", &[], ""));
        assert_eq!(healed.status, 200);
        for _ in 0..4 {
            assert_eq!(example.gateway.get("/flaky").text(), "{\"ok\":true}\n", "it fails every second time, yet never here");
        }
    };
    rewrite: "rewrite.yaml", |stage| stage.start().tries(&[
        ("/api/echo?a=b", Shows(&[r#""target":"/echo?a=b""#])),
        ("/people/1", Shows(&["Ada Lovelace"])),
        ("/old/whoami", Shows(&[r#"{"backend":"orders"}"#])),
        ("/host/echo", Shows(&[r#""target":"/echo""#, r#""host":"127.0.0.1:9082""#])),
    ]);
    routing: "routing.yaml", |stage| stage.start().tries(&[
        ("localhost/users/5", Shows(&["-> route GET /users/{id} (", "query parameter `v` is missing"])),
        ("/users/me", Shows(&["-> route GET /users/me ("])),
        ("api.example.com", Shows(&["-> route /* api.example.com ("])),
        ("?v=2", Shows(&["-> route GET /users/{id} #2 ("])),
        ("DELETE", Shows(&["http/1.1 405", "allow: get, head"])),
        ("/nowhere", Shows(&["http/1.1 404", "no_route"])),
    ]);
    sse: "sse.yaml", |stage| stage.start().tries(&[("/events", Streams(&["data: {\"tick\":1}"]))]);
    tls: "tls.yaml", |stage| stage.prepare().start().tries(&[
        ("HTTP/2", Shows(&["http/2 200", "strict-transport-security:", "x-content-type-options: nosniff", "Ada Lovelace"])),
        ("--http1.1", Shows(&["http/1.1 200", "strict-transport-security:", "Ada Lovelace"])),
        ("308 to https", Holds(|shown| assert!(shown.contains("308") && shown.contains("https://localhost:8443/users/1"), "{shown}"))),
    ]);
    unix_socket: "unix-socket.yaml", |stage| {
        let path = stage.dir().join("app.sock");
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                if stream.read(&mut byte).unwrap() == 0 {
                    return;
                }
                head.push(byte[0]);
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\nhello there\n").unwrap();
        });
        stage.here("/tmp/app.sock", &path.display()).start().tries(&[
            ("uvicorn", Elsewhere("any HTTP server will do; the test has one")),
            ("curl -i", Shows(&["http/1.1 200", "hello there"])),
        ]);
    };
    websocket: "websocket.yaml", |stage| {
        let example = stage.start();
        example.tries(&[
            ("websocat ws://", Elsewhere("websocat is in no distribution; below")),
            ("Origin", Elsewhere("websocat is in no distribution; below")),
            ("curl -i -N", Shows(&["http/1.1 101", "sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="])),
        ]);
        let connect = || std::net::TcpStream::connect(example.gateway.address()).unwrap();
        let url = format!("ws://{}/chat", example.gateway.address());
        let (mut socket, _) = client(url.as_str(), connect()).unwrap();
        socket.send(Message::text("hello")).unwrap();
        assert_eq!(socket.read().unwrap(), Message::text("hello"), "it comes back");
        socket.close(None).unwrap();
        let mut foreign = url.as_str().into_client_request().unwrap();
        foreign.headers_mut().insert("origin", "https://elsewhere.example".parse().unwrap());
        let refused = client(foreign, connect()).unwrap_err().to_string();
        assert!(refused.contains("403"), "{refused}");
        assert_eq!(example.gateway.ask(get("/chat")).status, 426, "no handshake, no socket");
    };
}
