//! Copies of requests: they go out as the request does, and the request never notices.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::client::get;
use crate::support::h2::{self, Client, H2Upstream};
use crate::support::upstream::Unreachable;
use crate::support::{Conn, Gate, Gateway, Refused, Then, Upstream, block_on, eventually};

pub fn mirrored(route: &str, mirror: &str) -> String {
    format!(
        "upstreams:\n  up: {{ endpoints: [http://@0] }}\n  shadow: {{ endpoints: [http://@1], connect_timeout: 300ms }}\n\
         routes:\n  - {{ name: all, match: /*, upstream: up, {route} mirror: {mirror} }}\n"
    )
}

fn series(result: &str) -> String {
    format!("gateway_mirrored_total{{route=\"all\",result=\"{result}\"}}")
}

pub fn result(gateway: &Gateway, result: &str, count: f64) {
    gateway.metric_becomes(&series(result), count);
}

/// How many copies have arrived. A copy that has not when its request is over is given up, so what is tested of others waits for this.
#[derive(Clone, Default)]
pub struct Copies(Arc<AtomicUsize>);

impl Copies {
    /// A copy has arrived.
    pub fn arrived(&self) {
        self.0.fetch_add(1, SeqCst);
    }
    /// Waits for so many.
    pub fn wait_for(&self, count: usize) {
        eventually("the copy", || (self.0.load(SeqCst) >= count).then_some(()));
    }
    /// A shadow that counts here, and answers as `handler` does.
    pub fn shadow(&self, handler: impl Fn(&mut Conn) -> Then + Send + Sync + 'static) -> Upstream {
        let copies = self.clone();
        Upstream::serve(move |_, conn| {
            copies.arrived();
            handler(conn)
        })
    }
    /// An upstream for one client that answers each request when its copy has arrived, up to `most`.
    pub fn main(&self, most: usize, handler: impl Fn(&mut Conn) -> Then + Send + Sync + 'static) -> Upstream {
        let (copies, asked) = (self.clone(), AtomicUsize::new(0));
        Upstream::serve(move |_, conn| {
            copies.wait_for((asked.fetch_add(1, SeqCst) + 1).min(most));
            handler(conn)
        })
    }
}

/// An upstream that answers `main` when the copy has arrived at the shadow, which answers `shadow`.
pub fn pair() -> (Upstream, Upstream) {
    let copies = Copies::default();
    (copies.main(usize::MAX, |conn| conn.ok("main")), copies.shadow(|conn| conn.ok("shadow")))
}

#[test]
fn the_copy_is_what_the_upstream_gets() {
    let (main, shadow) = pair();
    let gateway = Gateway::new(
        &mirrored("rewrite: { strip_prefix: /api }, headers: { request: { set: { x-set: '1' } } },", "{ upstream: shadow }")
            .replace("/*", "/api/*"),
        &[main.address, shadow.address],
    );
    for (method, body) in [("GET", ""), ("POST", "hello"), ("PUT", "b"), ("DELETE", "")] {
        let answer = gateway.request(method, "/api/x?q=1", &[("x-mine", "2"), ("x-forwarded-for", "6.6.6.6")], body);
        assert_eq!(answer.text(), "main");
    }
    eventually("four copies", || (shadow.count() == 4).then_some(()));
    let (mut sent, mut copied) = (main.requests(), shadow.requests());
    sent.sort_by(|a, b| a.method.cmp(&b.method));
    copied.sort_by(|a, b| a.method.cmp(&b.method));
    for (sent, copied) in sent.iter().zip(&copied) {
        assert_eq!((&sent.method, &sent.target, &sent.body), (&copied.method, &copied.target, &copied.body));
        let sorted = |fields: &crate::support::wire::Fields| {
            let mut fields: Vec<_> = fields.iter().map(|(name, value)| (name.to_lowercase(), value.clone())).collect();
            fields.sort();
            fields
        };
        assert_eq!(sorted(&sent.headers), sorted(&copied.headers));
    }
    result(&gateway, "sent", 4.0);
    eventually("copies are no requests: four lines", || (gateway.log().len() == 4).then_some(()));
    assert!(gateway.log().iter().all(|line| line["upstream"] == "up"));
}

#[test]
fn a_shadow_that_fails_hangs_or_stalls_is_never_noticed() {
    let refused = Refused::new();
    let silent = Unreachable::new();
    let hangs = Upstream::raw(|conn| {
        conn.wait_end();
        Then::Close
    });
    let garbage = Upstream::bytes("what\r\n\r\n", Then::Close);
    for address in [refused.address, silent.address, hangs.address, garbage.address] {
        let main = Upstream::text("main");
        let gateway = Gateway::new(&mirrored("timeout: 500ms,", "{ upstream: shadow }"), &[main.address, address]);
        let mut raw = gateway.connect();
        let started = Instant::now();
        for _ in 0..5 {
            assert_eq!(raw.ask(get("/")).text(), "main");
        }
        assert!(started.elapsed() < Duration::from_millis(450), "{:?}", started.elapsed());
        let ended = || ["sent", "failed", "late"].map(|result| gateway.metric(&series(result))).iter().sum::<f64>();
        eventually("five copies have ended", || (ended() > 4.5).then_some(()));
    }
    eventually("the hanging connections are closed", || (hangs.open() == 0).then_some(()));
}

/// A gRPC server that keeps the messages of its calls, and answers `hello` when `then` is done.
fn greeter<F: Future<Output = ()> + Send + 'static>(
    then: impl Fn() -> F + Send + Sync + 'static,
) -> (H2Upstream, Arc<Mutex<Vec<Vec<u8>>>>) {
    let bodies = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&bodies);
    let then = Arc::new(then);
    let server = H2Upstream::serve(move |(request, mut respond)| {
        let (kept, then) = (Arc::clone(&kept), Arc::clone(&then));
        async move {
            let body = h2::drain(request.into_body()).await;
            kept.lock().unwrap().push(body);
            then().await;
            let head = http::Response::builder().header("content-type", "application/grpc").body(()).unwrap();
            let Ok(mut stream) = respond.send_response(head, false) else { return };
            let trailers =
                http::HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), http::HeaderValue::from_static("0"))]);
            // A copy may be given up meanwhile.
            let _ = stream.send_data(h2::message(b"hello").into(), false).and_then(|()| stream.send_trailers(trailers));
        }
    });
    (server, bodies)
}

#[test]
fn grpc_and_grpc_web_calls_are_copied() {
    let copies = Copies::default();
    let (its, asked) = (copies.clone(), Arc::new(AtomicUsize::new(0)));
    let (main, sent) = greeter(move || {
        let (copies, count) = (its.clone(), asked.fetch_add(1, SeqCst) + 1);
        async move { tokio::task::spawn_blocking(move || copies.wait_for(count)).await.unwrap() }
    });
    let (shadow, copied) = greeter(move || {
        copies.arrived();
        std::future::ready(())
    });
    let yaml = mirrored("", "{ upstream: shadow }").replace("endpoints:", "protocol: h2, endpoints:");
    let gateway = Gateway::new(&yaml, &[main.address, shadow.address]);
    block_on(async {
        let mut client = Client::connect(gateway.address()).await;
        let reply = client.ask(h2::grpc("/pkg.Greeter/Hello", &[]), &h2::message(b"grpc")).await.unwrap();
        assert_eq!((reply.status, reply.grpc_status(), &reply.body), (200, Some("0"), &h2::message(b"hello")));
    });
    for (content_type, body) in
        [("application/grpc-web+proto", "\0\0\0\0\x03web".to_owned()), ("application/grpc-web-text", "AAAAAAR0ZXh0".to_owned())]
    {
        let answer = gateway.request("POST", "/pkg.Greeter/Hello", &[("content-type", content_type), ("x-grpc-web", "1")], &body);
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    result(&gateway, "sent", 3.0);
    let expected = [h2::message(b"grpc"), h2::message(b"web"), h2::message(b"text")];
    assert_eq!(*sent.lock().unwrap(), expected);
    assert_eq!(*copied.lock().unwrap(), expected, "the copy is what the upstream gets");
    assert_eq!(shadow.requests().len(), 3);
    for ((mut sent, mut copied), message) in main.requests().into_iter().zip(shadow.requests()).zip(&expected) {
        // Whether the length is said is framing: a copy is whole before it leaves, a call may be a stream. What is said must be true.
        for head in [&mut sent, &mut copied] {
            if let Some(length) = head.headers.remove("content-length") {
                assert_eq!(length, message.len().to_string().as_str());
            }
        }
        assert_eq!((&sent.method, sent.uri.path(), &sent.headers), (&copied.method, copied.uri.path(), &copied.headers));
        let content_type = copied.headers["content-type"].to_str().unwrap();
        assert!(["application/grpc", "application/grpc+proto"].contains(&content_type), "{copied:?}");
        assert_eq!(copied.headers["te"], "trailers");
    }
}

#[test]
fn a_failing_main_upstream_is_mirrored_all_the_same() {
    let copies = Copies::default();
    let (main, shadow) = (copies.main(1, |_| Then::Close), copies.shadow(|conn| conn.ok("shadow")));
    let gateway = Gateway::new(&mirrored("", "{ upstream: shadow }"), &[main.address, shadow.address]);
    gateway.get("/").refused(502, "upstream_reset");
    result(&gateway, "sent", 1.0);
}

#[test]
fn bodies_are_copied_up_to_64_kib() {
    let copies = Copies::default();
    // The second and the fourth are not copied.
    let (wanted, asked) = ([1, 1, 2, 2], AtomicUsize::new(0));
    let its = copies.clone();
    let main = Upstream::serve(move |_, conn| {
        its.wait_for(wanted[asked.fetch_add(1, SeqCst)]);
        conn.ok("main")
    });
    let shadow = copies.shadow(|conn| conn.ok("shadow"));
    let gateway = Gateway::new(&mirrored("", "{ upstream: shadow }"), &[main.address, shadow.address]);
    let most = "m".repeat(64 << 10);
    assert_eq!(gateway.request("POST", "/fits", &[], &most).status, 200);
    assert_eq!(gateway.request("POST", "/long", &[], &format!("{most}x")).status, 200);
    let chunked = |count: usize| {
        let mut text = "POST /chunked HTTP/1.1\r\nHost: site\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned();
        for _ in 0..count {
            text.push_str(&format!("2000\r\n{}\r\n", "c".repeat(0x2000)));
        }
        text + "0\r\n\r\n"
    };
    assert_eq!(gateway.ask(chunked(8)).status, 200);
    assert_eq!(gateway.ask(chunked(9)).status, 200);
    result(&gateway, "sent", 2.0);
    result(&gateway, "skipped", 2.0);
    let mut copies: Vec<_> = shadow.requests().into_iter().map(|request| (request.target, request.body.len())).collect();
    copies.sort();
    assert_eq!(copies, [("/chunked".to_owned(), 64 << 10), ("/fits".to_owned(), 64 << 10)]);
}

#[test]
fn trailers_are_copied_as_the_upstream_gets_them() {
    let (main, shadow) = pair();
    let gateway = Gateway::new(&mirrored("", "{ upstream: shadow }"), &[main.address, shadow.address]);
    for (path, body, text) in [("/body", "2\r\nhi\r\n", "hi"), ("/none", "", "")] {
        let sent = format!(
            "POST {path} HTTP/1.1\r\nHost: site\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum, authorization\r\n\r\n\
             {body}0\r\nx-sum: 1\r\nauthorization: Bearer x\r\n\r\n"
        );
        assert_eq!(gateway.ask(sent).text(), "main");
        let copied = eventually("the copy", || shadow.requests().into_iter().find(|request| request.target == path));
        assert_eq!((copied.trailers, copied.body), (main.last().trailers, text.as_bytes().to_vec()), "{path}");
        assert_eq!(main.last().trailers, [("x-sum".to_owned(), "1".to_owned())]);
    }
    result(&gateway, "sent", 2.0);
}

#[test]
fn a_body_that_never_ends_is_not_copied() {
    let (main, shadow) = (Upstream::echo(), Upstream::text("shadow"));
    let gateway = Gateway::new(&mirrored("", "{ upstream: shadow }"), &[main.address, shadow.address]);
    let mut raw = gateway.connect();
    raw.send("POST / HTTP/1.1\r\nHost: site\r\nContent-Length: 10\r\n\r\nhello");
    std::thread::sleep(Duration::from_millis(50));
    drop(raw);
    result(&gateway, "skipped", 1.0);
    assert_eq!(shadow.connections(), 0);
}

#[test]
fn refused_requests_are_not_copied() {
    let (main, shadow) = (Upstream::text("main"), Upstream::text("shadow"));
    let gateway = Gateway::new(&mirrored("ip: { deny: [127.0.0.1] },", "{ upstream: shadow }"), &[main.address, shadow.address]);
    gateway.get("/").refused(403, "ip_denied");
    assert_eq!(shadow.connections(), 0);
}

#[test]
fn a_share_is_copied() {
    let (main, shadow) = (Upstream::text("main"), Upstream::text("shadow"));
    for (percent, range) in [("0%", 0.0..=0.0), ("30%", 60.0..=180.0), ("100%", 400.0..=400.0)] {
        let gateway = Gateway::new(&mirrored("", &format!("{{ upstream: shadow, percent: {percent} }}")), &[main.address, shadow.address]);
        let mut raw = gateway.connect();
        for _ in 0..400 {
            assert_eq!(raw.ask(get("/")).status, 200);
        }
        let all = || ["sent", "failed", "dropped", "late"].map(|result| gateway.metric(&series(result))).iter().sum::<f64>();
        eventually("the share was copied", || range.contains(&all()).then_some(()));
    }
}

#[test]
fn only_so_many_copies_are_under_way() {
    let (gate, copies) = (Gate::new(), Copies::default());
    let pass = gate.clone();
    let main = copies.main(128, |conn| conn.ok("main"));
    let shadow = copies.shadow(move |conn| {
        pass.pass();
        conn.ok("late")
    });
    // Those whose answers nobody waits for any more are under way while their connections linger.
    let gateway = Gateway::new(&mirrored("", "{ upstream: shadow, linger: 1m }"), &[main.address, shadow.address]);
    // One connection is on one worker.
    let mut raw = gateway.connect();
    for _ in 0..140 {
        assert_eq!(raw.ask(get("/")).text(), "main");
    }
    result(&gateway, "dropped", 12.0);
    gate.open();
    result(&gateway, "sent", 128.0);
    assert_eq!(raw.ask(get("/")).text(), "main");
    result(&gateway, "sent", 129.0);
}

#[test]
fn a_long_answer_of_the_shadow_is_not_read_to_its_end() {
    let copies = Copies::default();
    let main = copies.main(usize::MAX, |conn| conn.ok("main"));
    let shadow = copies.shadow(|conn| {
        conn.write("HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n");
        while conn.write([b'x'; 4096]) {}
        Then::Close
    });
    let gateway = Gateway::new(&mirrored("", "{ upstream: shadow, linger: 1m }"), &[main.address, shadow.address]);
    assert_eq!(gateway.get("/").text(), "main");
    result(&gateway, "sent", 1.0);
    eventually("its connection is closed", || (shadow.open() == 0).then_some(()));
}

#[test]
fn a_split_is_mirrored_too_and_what_is_not_proxied_cannot_be() {
    let (main, shadow) = pair();
    let yaml = "
        upstreams: { up: { endpoints: [http://@0] }, shadow: { endpoints: [http://@1] } }
        routes:
          - { name: all, match: /*, split: [{ upstream: up }], mirror: { upstream: shadow } }
          - { match: /fixed, respond: { status: 200 } }";
    let gateway = Gateway::new(yaml, &[main.address, shadow.address]);
    assert_eq!(gateway.get("/").text(), "main");
    assert_eq!(gateway.get("/fixed").status, 200);
    result(&gateway, "sent", 1.0);
    let wrong = yaml.replace("respond: { status: 200 } }", "respond: { status: 200 }, mirror: { upstream: shadow } }");
    let error = Gateway::start_error(&wrong, &[main.address, shadow.address]).unwrap();
    assert!(error.contains("`mirror` copies proxied requests"), "{error}");
    let unknown = yaml.replace("mirror: { upstream: shadow }", "mirror: { upstream: shadov }");
    let error = Gateway::start_error(&unknown, &[main.address, shadow.address]).unwrap();
    assert!(error.contains("shadov"), "{error}");
}
