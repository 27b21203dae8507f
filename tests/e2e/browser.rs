//! CORS and gRPC-Web as a browser sees them: a page on one origin, the gateway on another, in headless Chromium.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::grpc::Server;
use crate::support::certs::Authority;
use crate::support::{Gateway, Refused, Upstream, eventually};

/// Asks the gateway in `?gateway=` as a script of this page can, and writes down what it learns.
const PAGE: &str = r#"<!doctype html><title>page</title><script>
const gateway = new URLSearchParams(location.search).get('gateway');
document.cookie = 'visitor=browser';
async function ask(path, options) {
  try {
    const answer = await fetch(gateway + path, options);
    return { status: answer.status, body: await answer.text(), total: answer.headers.get('x-total'), hidden: answer.headers.get('x-hidden') };
  } catch (error) {
    return { blocked: error.name };
  }
}
(async () => {
  const include = { credentials: 'include' };
  const result = {
    listed: await ask('/listed', {}),
    credentials: await ask('/listed', include),
    star: await ask('/star', {}),
    starCredentials: await ask('/star', include),
    off: await ask('/off', {}),
    put: await ask('/listed', { method: 'PUT', headers: { 'x-custom': '1', 'content-type': 'application/json' }, body: '{}' }),
    patch: await ask('/listed', { method: 'PATCH' }),
    header: await ask('/listed', { headers: { 'x-unlisted': '1' } }),
    unauthenticated: await ask('/auth', {}),
    authenticated: await ask('/auth', { headers: { 'x-api-key': 'foo' } }),
    limited: (await ask('/slow', {}), await ask('/slow', {})),
    broken: await ask('/broken', {}),
  };
  fetch('/result', { method: 'POST', body: JSON.stringify(result) });
})();
</script>"#;

/// A page's server. What its script learns it sends back there: waiting for the document would need a guess at how long that takes.
fn page(text: &'static str) -> Upstream {
    Upstream::serve(move |_, conn| conn.answer(200, "content-type: text/html\r\n", text))
}

/// What the script of `page` has learned about the gateway at `target`.
fn visit(page: &Upstream, target: &str, profile: &Path) -> Value {
    let errors = profile.join("errors");
    let before = page.count();
    let child = Command::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"])
        .args(["--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"])
        // The certificates of these tests are nobody's.
        .arg("--ignore-certificate-errors")
        .arg(format!("--user-data-dir={}", profile.display()))
        .arg(format!("http://{}/?gateway={target}", page.address))
        .stdout(Stdio::null())
        .stderr(Stdio::from(std::fs::File::create(&errors).unwrap()))
        .spawn()
        .unwrap_or_else(|error| panic!("this test needs `chromium` (Debian package chromium; scripts/test installs it): {error}"));
    let _child = Browser(child);
    let end = Instant::now() + Duration::from_secs(120);
    loop {
        if let Some(result) = page.requests().iter().skip(before).find(|request| request.target == "/result") {
            return serde_json::from_slice(&result.body).unwrap();
        }
        assert!(Instant::now() < end, "no result in two minutes: {}", std::fs::read_to_string(&errors).unwrap());
        std::thread::sleep(Duration::from_millis(20));
    }
}

struct Browser(std::process::Child);
impl Drop for Browser {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_browser_can_read_what_the_gateway_allows_and_nothing_else() {
    let (own, foreign) = (page(PAGE), page(PAGE));
    let upstream = Upstream::serve(|request, conn| {
        let cookie = request.header("cookie").unwrap_or("no cookie").to_owned();
        conn.answer(200, "x-total: 7\r\nx-hidden: 8\r\n", format!("{} {cookie}", request.method))
    });
    let refused = Refused::new();
    let yaml = "
        upstreams: { up: { endpoints: [http://@0] }, gone: { endpoints: [http://@1] } }
        authenticators: { keys: { api_key: { keys: [{ id: acme, sha256: 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae }] } } }
        defaults:
          cors: { origins: ['http://@2'], methods: [GET, PUT], headers: [content-type, x-custom, x-api-key], expose: [x-total], credentials: true }
        routes:
          - { match: /listed, upstream: up }
          - { match: /star, cors: { origins: ['*'] }, upstream: up }
          - { match: /off, cors: off, upstream: up }
          - { match: /auth, auth: keys, upstream: up }
          - { match: /slow, rate_limit: [{ by: 'header:origin', rate: 1/h }], upstream: up }
          - { match: /broken, retry: { attempts: 0 }, upstream: gone }
    ";
    let gateway = Gateway::new(yaml, &[upstream.address, refused.address, own.address]);
    let profile = tempfile::tempdir().unwrap();
    let visit = |page: &Upstream| visit(page, &format!("http://{}", gateway.address()), profile.path());
    let blocked = json!({ "blocked": "TypeError" });

    let seen = visit(&own);
    assert_eq!(seen["listed"], json!({ "status": 200, "body": "GET no cookie", "total": "7", "hidden": null }), "{seen}");
    assert_eq!(seen["credentials"]["body"], "GET visitor=browser");
    assert_eq!((&seen["star"]["body"], &seen["starCredentials"]), (&json!("GET no cookie"), &blocked));
    assert_eq!(seen["off"], blocked);
    assert_eq!(seen["put"]["body"], "PUT no cookie");
    assert_eq!((&seen["patch"], &seen["header"]), (&blocked, &blocked), "the preflight did not allow these");
    assert_eq!((&seen["unauthenticated"]["status"], &seen["authenticated"]["status"]), (&json!(401), &json!(200)));
    assert_eq!((&seen["limited"]["status"], &seen["broken"]["status"]), (&json!(429), &json!(502)));
    assert!(seen["unauthenticated"]["body"].as_str().unwrap().contains("unauthenticated"), "the reason can be read: {seen}");

    let seen = visit(&foreign);
    for name in ["listed", "credentials", "off", "put", "unauthenticated", "authenticated", "limited", "broken"] {
        assert_eq!(seen[name], blocked, "{name}: {seen}");
    }
    assert_eq!(seen["star"]["status"], 200);
    assert!(upstream.requests().iter().all(|request| request.method != "PATCH" && !request.has("x-unlisted")));
    assert_eq!(
        upstream.requests().iter().filter(|request| request.method == "PUT").count(),
        1,
        "the foreign page's preflight kept it away"
    );
}

/// Calls `?gateway=` as gRPC-Web clients do: binary and in text, built and read by hand.
const CALLER: &str = r#"<!doctype html><title>page</title><script>
const gateway = new URLSearchParams(location.search).get('gateway');
const [encoder, decoder] = [new TextEncoder(), new TextDecoder()];
function framed(message) {
  const frame = new Uint8Array(5 + message.length);
  new DataView(frame.buffer).setUint32(1, message.length);
  frame.set(message, 5);
  return frame;
}
function join(pieces) {
  const all = new Uint8Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
  pieces.reduce((at, piece) => (all.set(piece, at), at + piece.length), 0);
  return all;
}
// Every piece is padded on its own: group by group.
const unbase64 = text => join((text.match(/.{4}/g) || []).map(group => Uint8Array.from(atob(group), c => c.charCodeAt(0))));
function read(bytes) {
  const result = { messages: [], trailers: null };
  for (let at = 0; at < bytes.length;) {
    const length = new DataView(bytes.buffer).getUint32(at + 1);
    const payload = bytes.slice(at + 5, at + 5 + length);
    if (bytes[at] & 0x80) result.trailers = decoder.decode(payload); else result.messages.push(Array.from(payload));
    at += 5 + length;
  }
  return result;
}
async function call(path, message, text, more) {
  try {
    const type = text ? 'application/grpc-web-text' : 'application/grpc-web+proto';
    const frame = framed(encoder.encode(message));
    const answer = await fetch(gateway + path, {
      method: 'POST',
      headers: { 'content-type': type, 'x-grpc-web': '1', 'x-user-agent': 'grpc-web-javascript/0.1', ...more },
      body: text ? btoa(String.fromCharCode(...frame)) : frame,
    });
    const body = text ? unbase64(await answer.text()) : new Uint8Array(await answer.arrayBuffer());
    return { status: answer.status, type: answer.headers.get('content-type'), head: answer.headers.get('grpc-status'), ...read(body) };
  } catch (error) {
    return { blocked: error.name };
  }
}
// Reads two messages of an endless stream, one by one as they come, then leaves.
async function leave(path) {
  const answer = await fetch(gateway + path, {
    method: 'POST', headers: { 'content-type': 'application/grpc-web+proto', 'x-grpc-web': '1' }, body: framed(encoder.encode('endless')),
  });
  const reader = answer.body.getReader();
  let bytes = new Uint8Array(0);
  while (bytes.length < 12) bytes = join([bytes, (await reader.read()).value]);
  await reader.cancel();
  return read(bytes.slice(0, 12)).messages;
}
(async () => {
  const result = {
    unary: await call('/greeter/unary', 'hello', false),
    unaryText: await call('/greeter/unary', 'hello', true),
    failed: await call('/greeter/unary', 'fail', false),
    deadline: await call('/greeter/unary', 'hang', false, { 'grpc-timeout': '300m' }),
    stream: await call('/greeter/server', 'five', false),
    streamText: await call('/greeter/server', 'five', true),
    refused: await call('/secure/unary', 'hello', false),
    refusedText: await call('/secure/unary', 'hello', true),
    exposed: await call('/exposed/unary', 'hello', false),
    closed: await call('/closed/unary', 'hello', false),
  };
  if (!result.unary.blocked) result.left = await leave('/greeter/server');
  return result;
})().catch(error => ({ error: String(error) })).then(result => fetch('/result', { method: 'POST', body: JSON.stringify(result) }));
</script>"#;

#[test]
fn grpc_web_works_from_a_browser_with_cors_and_nothing_else() {
    let (own, foreign) = (page(CALLER), page(CALLER));
    let server = Server::start();
    let (dir, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    authority.issue(dir.path(), "site", &["127.0.0.1"]);
    let yaml = "
        listeners:
          - { address: '127.0.0.1:0' }
          - { address: '127.0.0.2:0', tls: { certificates: [{ cert: site.pem, key: site.key }] } }
        upstreams: { up: { endpoints: [http://@0], protocol: h2 } }
        authenticators: { keys: { api_key: { keys: [{ id: acme, sha256: 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae }] } } }
        defaults: { cors: { origins: ['http://@1'] } }
        routes:
          - { match: /greeter/*, upstream: up }
          - { match: /secure/*, auth: keys, upstream: up }
          - { match: /exposed/*, auth: keys, cors: { origins: ['http://@1'], expose: [grpc-status, grpc-message] }, upstream: up }
          - { match: /closed/*, cors: off, upstream: up }";
    let gateway = Gateway::in_dir(dir, yaml, &[server.address, own.address]);
    let profile = tempfile::tempdir().unwrap();
    let blocked = json!({ "blocked": "TypeError" });
    // In clear by HTTP/1.1, over TLS by HTTP/2.
    for (index, (scheme, protocol)) in [("http", "HTTP/1.1"), ("https", "HTTP/2")].into_iter().enumerate() {
        let target = format!("{scheme}://{}", gateway.addresses()[index]);
        let seen = visit(&own, &target, profile.path());
        let hello = json!([b"hello"]);
        for (name, kind) in [("unary", "application/grpc-web+proto"), ("unaryText", "application/grpc-web-text+proto")] {
            let answer = &seen[name];
            assert_eq!((&answer["status"], &answer["type"], &answer["messages"]), (&json!(200), &json!(kind), &hello), "{scheme}: {seen}");
            assert_eq!(answer["trailers"], "grpc-status: 0\r\n", "{scheme}: {seen}");
        }
        for name in ["stream", "streamText"] {
            assert_eq!(seen[name]["messages"], json!([[0], [1], [2], [3], [4]]), "{scheme}: {seen}");
            assert!(seen[name]["trailers"].as_str().unwrap().contains("grpc-status: 11\r\n"), "{scheme}: {seen}");
        }
        // A status that the head has is not for the page to read: it comes in the body, whoever refused.
        for (name, status) in [("failed", "9"), ("deadline", "4"), ("refused", "16"), ("refusedText", "16")] {
            let answer = &seen[name];
            assert_eq!(
                (&answer["status"], &answer["head"], &answer["messages"]),
                (&json!(200), &Value::Null, &json!([])),
                "{name}: {seen}"
            );
            let trailers = answer["trailers"].as_str().unwrap_or_else(|| panic!("{name}: {seen}"));
            assert!(trailers.contains(&format!("grpc-status: {status}\r\n")) && trailers.contains("grpc-message: "), "{name}: {seen}");
        }
        assert_eq!((&seen["exposed"]["head"], &seen["exposed"]["trailers"]), (&json!("16"), &Value::Null), "{seen}");
        assert_eq!(seen["closed"], blocked);
        assert_eq!(seen["left"], json!([[0], [1]]), "{seen}");
        eventually("the call that the page left has ended", || {
            let left =
                |line: &Value| line["path"] == "/greeter/server" && line["protocol"] == protocol && line["reason"] == "client_closed";
            gateway.log().iter().any(left).then_some(())
        });
    }
    let seen = visit(&foreign, &format!("http://{}", gateway.address()), profile.path());
    assert_eq!((&seen["unary"], &seen["refused"], &seen["stream"]), (&blocked, &blocked, &blocked), "{seen}");
    gateway.metric_becomes("gateway_requests_in_flight", 0.0);
}
