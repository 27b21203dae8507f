//! CORS as a browser sees it: a page on one origin, the gateway on another, in headless Chromium.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Gateway, Refused, Upstream};

/// Asks the gateway in `?gateway=` as a script of this page can, and writes down what it learns.
const PAGE: &str = r#"<!doctype html><title>page</title><pre id="result"></pre><script>
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
  document.getElementById('result').textContent = JSON.stringify(result);
})();
</script>"#;

/// What the page at `url` has learned.
fn visit(url: &str, profile: &Path) -> Value {
    let mut child = Command::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"])
        .args(["--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--virtual-time-budget=20000"])
        .arg(format!("--user-data-dir={}", profile.display()))
        .args(["--dump-dom", url])
        .stdout(Stdio::from(std::fs::File::create(profile.join("dom")).unwrap()))
        .stderr(Stdio::from(std::fs::File::create(profile.join("errors")).unwrap()))
        .spawn()
        .unwrap_or_else(|error| panic!("this test needs `chromium` (Debian package chromium; scripts/test installs it): {error}"));
    let end = Instant::now() + Duration::from_secs(120);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > end {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("chromium did not end in two minutes");
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let read = |name| std::fs::read_to_string(profile.join(name)).unwrap();
    let dom = read("dom");
    let text = dom.split_once("<pre id=\"result\">").and_then(|(_, rest)| rest.split_once("</pre>")).map(|(text, _)| text);
    let text = text.filter(|text| !text.is_empty()).unwrap_or_else(|| panic!("no result ({status}): {dom}\n{}", read("errors")));
    serde_json::from_str(&text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")).unwrap()
}

#[test]
fn a_browser_can_read_what_the_gateway_allows_and_nothing_else() {
    let page = || Upstream::serve(|_, conn| conn.answer(200, "content-type: text/html\r\n", PAGE));
    let (own, foreign) = (page(), page());
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
    let visit = |page: &Upstream| visit(&format!("http://{}/?gateway=http://{}", page.address, gateway.address()), profile.path());
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
