//! Active checks: what they ask, over what, and what becomes of endpoints that fail them. And connections that checks and requests share
//! the kind of: TLS with every option, Unix sockets.

use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crate::support::certs::Authority;
use crate::support::client::get;
use crate::support::h2::{self, H2Upstream, message};
use crate::support::wire::Wire;
use crate::support::{Gateway, Refused, Then, Upstream, block_on, eventually};

fn endpoint(gateway: &Gateway, index: usize) -> serde_json::Value {
    gateway.admin_get("/upstreams").json()["upstreams"][0]["endpoints"][index].clone()
}

#[track_caller]
fn becomes(gateway: &Gateway, index: usize, state: &str, error: Option<&str>) {
    let mut last = serde_json::Value::Null;
    let end = std::time::Instant::now() + crate::support::PATIENCE;
    while std::time::Instant::now() < end {
        last = endpoint(gateway, index);
        if last["state"] == state && last["last_check"]["error"].as_str() == error {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("not {state} {error:?}: {last}");
}

fn checked(endpoints: &str, health: &str, more: &str) -> String {
    format!(
        "upstreams:\n  up:\n    endpoints: {endpoints}\n    health: {{ interval: 60ms, timeout: 200ms, {health} }}\n{more}\
         routes: [{{ name: all, match: /*, upstream: up, rewrite: {{ host: upstream }} }}]\n"
    )
}

#[test]
fn an_endpoint_that_fails_its_checks_gets_no_requests_until_it_passes_again() {
    let status = Arc::new(AtomicU16::new(200));
    let answer = Arc::clone(&status);
    let sick = Upstream::serve(move |request, conn| match request.target.as_str() {
        "/health?full=1" => conn.answer(answer.load(SeqCst), "", ""),
        _ => conn.ok("sick"),
    });
    let well = Upstream::serve(|request, conn| conn.ok(if request.target.starts_with("/health") { "" } else { "well" }));
    let gateway = Gateway::new(
        &checked("[http://@0, http://@1]", "path: '/health?full=1', healthy: 2, unhealthy: 3", ""),
        &[sick.address, well.address],
    );
    becomes(&gateway, 0, "healthy", None);
    becomes(&gateway, 1, "healthy", None);
    let healthy = format!("gateway_endpoint_healthy{{upstream=\"up\",endpoint=\"http://{}\"}}", sick.address);
    gateway.metric_becomes(&healthy, 1.0);
    let check = sick.requests().into_iter().find(|request| request.target == "/health?full=1").unwrap();
    assert_eq!((check.header("host"), check.header("user-agent")), (Some(sick.address.to_string().as_str()), Some("tollgate-health")));

    status.store(503, SeqCst);
    becomes(&gateway, 0, "unhealthy", Some("status 503, expected 200-399"));
    gateway.metric_becomes(&healthy, 0.0);
    assert!((0..10).all(|_| gateway.get("/").text() == "well"));
    assert!(endpoint(&gateway, 0)["last_check"]["at"].is_string());
    assert_eq!(endpoint(&gateway, 0)["why"], "status 503, expected 200-399");

    status.store(204, SeqCst);
    becomes(&gateway, 0, "healthy", None);
    gateway.metric_becomes(&healthy, 1.0);
    eventually("it serves again", || (gateway.get("/").text() == "sick").then_some(()));
    let log = gateway.admin_get("/metrics").text();
    assert!(!log.contains("tollgate-health"));
    assert!(gateway.log().iter().all(|line| line["path"] == "/"), "checks are no requests");
}

#[test]
fn an_endpoint_that_is_out_is_checked_more_often_each_time_on_a_connection_of_its_own() {
    let well = Arc::new(AtomicBool::new(false));
    let state = Arc::clone(&well);
    let upstream = Upstream::serve(move |_, conn| conn.answer(if state.load(SeqCst) { 200 } else { 503 }, "", ""));
    let yaml = checked("[http://@0]", "path: /, healthy: 1", "").replace("interval: 60ms", "interval: 1m");
    let gateway = Gateway::new(&yaml, &[upstream.address]);
    becomes(&gateway, 0, "unhealthy", Some("status 503, expected 200-399"));
    well.store(true, SeqCst);
    let since = Instant::now();
    becomes(&gateway, 0, "healthy", None);
    // Every 2 s while it is out, ± 10 %, not every minute.
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    assert_eq!((upstream.count(), upstream.connections()), (2, 2));
}

#[test]
fn the_last_error_is_shown_in_plain_words() {
    let refused = Refused::new();
    let slow = Upstream::serve(|_, conn| {
        conn.wait_end();
        Then::Close
    });
    let closes = Upstream::serve(|_, _| Then::Close);
    let redirects = Upstream::serve(|_, conn| conn.answer(302, "location: /\r\n", ""));
    let gateway = Gateway::new(
        &checked("[http://@0, http://@1, http://@2, http://@3]", "path: /, expect: [200-299, 304]", ""),
        &[refused.address, slow.address, closes.address, redirects.address],
    );
    for (index, error) in ["connect: refused", "timeout after 200ms", "closed before the response", "status 302, expected 200-299, 304"]
        .into_iter()
        .enumerate()
    {
        becomes(&gateway, index, "unhealthy", Some(error));
    }
    gateway.metric_becomes("gateway_upstream_panic{upstream=\"up\"}", 1.0);
}

#[test]
fn a_check_without_a_kind_asks_for_health() {
    let upstream = Upstream::serve(|request, conn| conn.answer(if request.target == "/health" { 200 } else { 404 }, "", ""));
    let gateway = Gateway::new(&checked("[http://@0]", "", ""), &[upstream.address]);
    becomes(&gateway, 0, "healthy", None);
    assert_eq!(gateway.admin_get("/config").json()["upstreams"]["up"]["health"]["path"], "/health");
}

#[test]
fn a_tcp_check_is_content_with_a_connection() {
    let mut upstream = Upstream::raw(|conn| {
        conn.wait_end();
        Then::Close
    });
    let gateway = Gateway::new(&checked("[http://@0]", "tcp: true, unhealthy: 2", ""), &[upstream.address]);
    becomes(&gateway, 0, "healthy", None);
    upstream.stop();
    becomes(&gateway, 0, "unhealthy", Some("connect: refused"));
}

/// Answers grpc.health.v1 and everything else.
fn grpc_health(serving: Arc<AtomicBool>, tls: Option<Arc<rustls::ServerConfig>>) -> H2Upstream {
    H2Upstream::with(tls, ::h2::server::Builder::new(), move |stream| {
        let serving = Arc::clone(&serving);
        async move {
            if stream.0.uri().path() == "/grpc.health.v1.Health/Check" {
                let status = if serving.load(SeqCst) { 1 } else { 2 };
                let fields = [("content-type", "application/grpc")];
                return h2::reply(stream, 200, &fields, &message(&[8, status]), &[("grpc-status", "0")]).await;
            }
            h2::reply(stream, 200, &[], b"ok", &[]).await;
        }
    })
}

#[test]
fn grpc_is_asked_in_clear_and_over_tls() {
    block_on(async {
        let authority = Authority::new();
        let dir = tempfile::tempdir().unwrap();
        authority.issue(dir.path(), "up", &["localhost"]);
        std::fs::write(dir.path().join("ca.pem"), authority.pem()).unwrap();
        let server = Authority::server(dir.path(), "up", &["h2"]);
        let (clear, tls) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(true)));
        let upstreams = [grpc_health(Arc::clone(&clear), None), grpc_health(Arc::clone(&tls), Some(server))];
        let more = "    protocol: h2\n    tls: { ca: ca.pem, server_name: localhost }\n";
        let gateway = Gateway::in_dir(
            dir,
            &checked("[http://@0, https://@1]", "grpc: '', unhealthy: 2", more),
            &[upstreams[0].address, upstreams[1].address],
        );
        for (index, serving) in [clear, tls].into_iter().enumerate() {
            becomes(&gateway, index, "healthy", None);
            serving.store(false, SeqCst);
            becomes(&gateway, index, "unhealthy", Some("grpc NOT_SERVING, expected SERVING"));
            serving.store(true, SeqCst);
            becomes(&gateway, index, "healthy", None);
        }
        assert_eq!(gateway.get("/").text(), "ok");
    });
}

/// An HTTPS upstream in HTTP/1.1 that answers everything with `ok`, and asks for a client's certificate if `client_ca` is given.
fn https(dir: &std::path::Path, name: &str, client_ca: Option<&str>) -> Upstream {
    let config = match client_ca {
        None => Authority::server(dir, name, &["http/1.1"]),
        Some(ca) => {
            use rustls::pki_types::pem::PemObject as _;
            let mut roots = rustls::RootCertStore::empty();
            roots.add(rustls::pki_types::CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let verifier =
                rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build().unwrap();
            let chain =
                rustls::pki_types::CertificateDer::pem_file_iter(dir.join(format!("{name}.pem"))).unwrap().map(Result::unwrap).collect();
            let key = rustls::pki_types::PrivateKeyDer::from_pem_file(dir.join(format!("{name}.key"))).unwrap();
            let builder = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
            Arc::new(builder.with_client_cert_verifier(verifier).with_single_cert(chain, key).unwrap())
        }
    };
    Upstream::raw(move |conn| {
        let session = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
        let mut wire = Wire::over(Box::new(rustls::StreamOwned::new(session, conn.socket.try_clone().unwrap())));
        while let Ok(Some(request)) = wire.request() {
            let host = request.header("host").unwrap_or_default().to_owned();
            if wire.write(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{host}", host.len())).is_err() {
                break;
            }
        }
        Then::Close
    })
}

#[test]
fn https_endpoints_are_verified_as_configured() {
    let authority = Authority::new();
    let setup = || {
        let dir = tempfile::tempdir().unwrap();
        authority.issue(dir.path(), "up", &["up.internal"]);
        authority.issue(dir.path(), "gateway", &["gateway"]);
        std::fs::write(dir.path().join("ca.pem"), authority.pem()).unwrap();
        dir
    };
    let yaml = |tls: &str| {
        format!(
            "upstreams: {{ up: {{ endpoints: [https://@0], tls: {{ {tls} }}, health: {{ path: /, interval: 60ms }} }} }}\n\
             routes: [{{ match: /*, upstream: up, retry: off, rewrite: {{ host: upstream }} }}]\n"
        )
    };
    let plain = setup();
    let upstream = https(plain.path(), "up", None);
    for (tls, trusted) in [
        ("ca: ca.pem, server_name: up.internal", true),
        ("ca: ca.pem, server_name: other.internal", false),
        ("ca: ca.pem", false),
        ("server_name: up.internal", false),
        ("verify: false", true),
    ] {
        let gateway = Gateway::in_dir(setup(), &yaml(tls), &[upstream.address]);
        let answer = gateway.get("/");
        if trusted {
            assert_eq!((answer.status, answer.text()), (200, upstream.address.to_string()), "{tls}");
            becomes(&gateway, 0, "healthy", None);
        } else {
            answer.refused(502, "upstream_tls_failed");
            let error = eventually("it is checked", || endpoint(&gateway, 0)["last_check"]["error"].as_str().map(str::to_owned));
            assert!(error.starts_with("tls: "), "{tls}: {error}");
            assert_eq!(endpoint(&gateway, 0)["state"], "unhealthy");
        }
    }
    let mutual = https(plain.path(), "up", Some(&authority.pem()));
    let with = "ca: ca.pem, server_name: up.internal, cert: gateway.pem, key: gateway.key";
    let gateway = Gateway::in_dir(setup(), &yaml(with), &[mutual.address]);
    assert_eq!(gateway.get("/").status, 200);
    becomes(&gateway, 0, "healthy", None);
    let gateway = Gateway::in_dir(setup(), &yaml("ca: ca.pem, server_name: up.internal"), &[mutual.address]);
    assert_eq!(gateway.get("/").status, 502);
}

#[test]
fn a_unix_socket_serves_and_is_checked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.sock");
    let serve = |path: &std::path::Path| {
        let listener = UnixListener::bind(path).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                std::thread::spawn(move || {
                    let mut wire = Wire::over(Box::new(stream));
                    while let Ok(Some(request)) = wire.request() {
                        let host = request.header("host").unwrap_or_default().to_owned();
                        if wire.write(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{host}", host.len())).is_err() {
                            return;
                        }
                    }
                });
            }
        });
    };
    serve(&path);
    let gateway = Gateway::in_dir(dir, &checked("['unix:@DIR/app.sock']", "path: /health, unhealthy: 1, healthy: 1", ""), &[]);
    becomes(&gateway, 0, "healthy", None);
    let mut raw = gateway.connect();
    for _ in 0..5 {
        assert_eq!(raw.ask(get("/")).text(), "localhost");
    }
    assert_eq!(endpoint(&gateway, 0)["id"].as_str(), path.to_str());
    assert_eq!(endpoint(&gateway, 0)["connections"]["open"], 1);
    std::fs::remove_file(&path).unwrap();
    becomes(&gateway, 0, "unhealthy", Some("connect: no such socket"));
    serve(&path);
    becomes(&gateway, 0, "healthy", None);
}

#[test]
fn a_passing_check_does_not_end_an_ejection() {
    let lies = Upstream::serve(|request, conn| conn.answer(if request.target == "/health" { 200 } else { 503 }, "", ""));
    let good = Upstream::text("good");
    let yaml = checked("[http://@0, http://@1]", "path: /health", "    outlier: { errors: 2, eject_for: 1m }\n");
    let gateway = Gateway::new(&yaml, &[lies.address, good.address]);
    becomes(&gateway, 0, "healthy", None);
    becomes(&gateway, 1, "healthy", None);
    for _ in 0..6 {
        gateway.get("/");
    }
    let before = lies.count();
    eventually("it is checked on", || (lies.count() > before + 3).then_some(()));
    assert_eq!(endpoint(&gateway, 0)["state"], "ejected");
    assert!((0..6).all(|_| gateway.get("/").text() == "good"));
}

#[test]
fn verdicts_survive_a_reload_and_removed_endpoints_are_left_alone() {
    let sick = Upstream::serve(|_, conn| conn.answer(503, "", ""));
    let well = Upstream::text("well");
    let addresses = [sick.address, well.address];
    let gateway = Gateway::new(&checked("[http://@0, http://@1]", "path: /", ""), &addresses);
    becomes(&gateway, 0, "unhealthy", Some("status 503, expected 200-399"));
    becomes(&gateway, 1, "healthy", None);
    gateway.reload_ok(&checked("[http://@0, http://@1]", "path: /other, healthy: 1", ""), &addresses);
    assert_eq!((endpoint(&gateway, 0)["state"].as_str(), endpoint(&gateway, 1)["state"].as_str()), (Some("unhealthy"), Some("healthy")));
    gateway.reload_ok(&checked("[http://@1]", "path: /", ""), &addresses);
    // One that was under way when it was removed may still be read by the upstream.
    std::thread::sleep(Duration::from_millis(50));
    let before = sick.count();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(sick.count(), before, "no check after the removal");
}

#[test]
fn without_panic_nothing_healthy_is_503() {
    let sick = Upstream::serve(|_, conn| conn.answer(503, "", "panic"));
    let yaml = checked("[http://@0]", "path: /", "    panic_threshold: 0%\n");
    let gateway = Gateway::new(&yaml, &[sick.address]);
    becomes(&gateway, 0, "unhealthy", Some("status 503, expected 200-399"));
    gateway.get("/").refused(503, "no_healthy_endpoint");
    let gateway = Gateway::new(&checked("[http://@0]", "path: /", ""), &[sick.address]);
    becomes(&gateway, 0, "unhealthy", Some("status 503, expected 200-399"));
    assert_eq!(gateway.get("/").text(), "panic");
}

#[test]
fn the_gateway_is_ready_after_the_first_round() {
    let upstream = Upstream::text("ok");
    let gateway = Gateway::new(&checked("[http://@0]", "path: /", ""), &[upstream.address]);
    eventually("ready", || (gateway.admin_get("/ready").status == 200).then_some(()));
    assert_eq!(endpoint(&gateway, 0)["state"], "healthy");
}
