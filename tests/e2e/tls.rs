//! TLS on both sides.

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustls::pki_types::{CertificateDer, pem::PemObject};

use crate::support::certs::{Authority, connect};
use crate::support::client::get;
use crate::support::frames::{HEAD, PREFACE, frame, frames};
use crate::support::h2::{Client, H2Upstream, grpc, message, reply, request, whole};
use crate::support::process::Process;
use crate::support::{End, Gate, Gateway, PATIENCE, Raw, Upstream, block_on, eventually};

struct Site {
    yaml: String,
    gateway: Gateway,
    authority: Authority,
}

/// A gateway with certificates of these names: the name of the file and what it is for.
fn site(certificates: &[(&str, &[&str])], tls: &str, rest: &str, upstreams: &[std::net::SocketAddr]) -> Site {
    let (dir, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    for (file, names) in certificates {
        authority.issue(dir.path(), file, names);
    }
    std::fs::write(dir.path().join("ca.pem"), authority.pem()).unwrap();
    authority.issue(dir.path(), "client", &["client.example"]);
    let list: Vec<String> = certificates.iter().map(|(file, _)| format!("{{ cert: {file}.pem, key: {file}.key }}")).collect();
    let yaml = format!("listeners: [{{ address: '127.0.0.1:0', tls: {{ certificates: [{}]{tls} }} }}]\n{rest}", list.join(", "));
    Site { gateway: Gateway::in_dir(dir, &yaml, upstreams), yaml, authority }
}

const HERE: &str = "routes: [{ match: /*, respond: { status: 200, body: hi } }]\n";

fn certificate(dir: &Path, name: &str) -> Vec<u8> {
    CertificateDer::from_pem_file(dir.join(format!("{name}.pem"))).unwrap().to_vec()
}

#[test]
fn the_name_asked_for_chooses_the_certificate() {
    let certificates: [(&str, &[&str]); 3] =
        [("first", &["first.test"]), ("wild", &["*.shop.test", "first.test"]), ("exact", &["a.shop.test"])];
    let site = site(&certificates, "", HERE, &[]);
    let dir = site.gateway.dir();
    let config = site.authority.client(&[], None);
    for (name, file) in [("first.test", "first"), ("b.shop.test", "wild"), ("a.shop.test", "exact"), ("A.Shop.Test", "exact")] {
        let (mut raw, facts) = connect(site.gateway.address(), &config, name).unwrap();
        assert_eq!(facts.certificate, Some(certificate(&dir, file)), "{name}");
        assert_eq!(raw.ask(get("/")).status, 200);
    }
    // A name that no certificate has, and none at all, get the first one; clients that look refuse it.
    for name in ["x.b.shop.test", "shop.test", "other.test", "127.0.0.1"] {
        assert!(connect(site.gateway.address(), &config, name).is_err());
        let (mut raw, facts) = connect(site.gateway.address(), &careless(), name).unwrap();
        assert_eq!(facts.certificate, Some(certificate(&dir, "first")), "{name}");
        assert_eq!(raw.ask(get("/")).status, 200);
    }
}

#[test]
fn alpn_chooses_the_protocol() {
    let site = site(&[("site", &["site"])], "", HERE, &[]);
    for (offered, chosen) in [(&["h2", "http/1.1"][..], Some("h2")), (&["http/1.1"], Some("http/1.1")), (&[], None)] {
        let (mut raw, facts) = connect(site.gateway.address(), &site.authority.client(offered, None), "site").unwrap();
        assert_eq!(facts.alpn.as_deref(), chosen);
        if chosen != Some("h2") {
            assert_eq!(raw.ask(get("/")).status, 200);
        }
    }
    block_on(async {
        let config = site.authority.client(&["h2"], None);
        let mut client = Client::connect_tls(site.gateway.address(), config, "site").await;
        assert_eq!(client.get("/h2").await.text(), "hi");
    });
    let line = site.gateway.logged("/h2");
    assert_eq!((line["tls"].as_str(), line["scheme"].as_str()), (Some("TLSv1.3"), Some("https")));
    assert!(line["host"].as_str().is_some_and(|host| host.starts_with("site")), "{line}");
}

#[test]
fn a_new_certificate_is_taken_without_a_restart_and_a_bad_one_is_not() {
    let site = site(&[("site", &["site"])], "", HERE, &[]);
    let dir = site.gateway.dir();
    let config = site.authority.client(&[], None);
    // A client of its own each time: one that resumes a session remembers the certificate it saw then.
    let served =
        || connect(site.gateway.address(), &site.authority.client(&[], None), "site").ok().and_then(|(_, facts)| facts.certificate);
    let (mut old, _) = connect(site.gateway.address(), &config, "site").unwrap();
    let first = certificate(&dir, "site");
    assert_eq!(served(), Some(first.clone()));

    site.authority.issue(&dir, "site", &["site"]);
    let second = certificate(&dir, "site");
    assert_ne!(first, second);
    site.gateway.reload_ok(&site.yaml, &[]);
    assert_eq!(served(), Some(second.clone()));
    assert_eq!(old.ask(get("/")).status, 200);

    // A key of another pair.
    site.authority.issue(&dir, "other", &["site"]);
    std::fs::copy(dir.join("other.key"), dir.join("site.key")).unwrap();
    site.gateway.reload(&site.yaml, &[]);
    assert_eq!(served(), Some(second));
    assert_eq!(old.ask(get("/")).status, 200);
}

#[test]
fn http2_clients_are_sent_on_when_the_certificate_they_saw_is_replaced() {
    let (asked, go) = (Gate::new(), Gate::new());
    let (its, wait) = (asked.clone(), go.clone());
    let upstream = Upstream::serve(move |request, conn| {
        if request.target == "/last" {
            its.open();
            wait.pass();
        }
        conn.ok("done")
    });
    let rest = format!("server: {{ workers: 1, timeouts: {{ drain: 200ms }} }}\n{}", Gateway::simple(""));
    let site = site(&[("site", &["site"])], "", &rest, &[upstream.address]);
    let (address, dir) = (site.gateway.address(), site.gateway.dir());
    let config = site.authority.client(&["h2"], None);
    block_on(async {
        let mut client = Client::connect_tls(address, Arc::clone(&config), "site").await;
        let (last, _) = client.start(request("GET", "/last", &[]), b"").await.unwrap();
        tokio::task::spawn_blocking(move || asked.pass()).await.unwrap();
        // Another change is none of its business.
        site.gateway.reload_ok(&site.yaml.replace("name: all", "name: every"), &[upstream.address]);
        for _ in 0..3 {
            assert_eq!(client.get("/").await.text(), "done");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        site.authority.issue(&dir, "site", &["site"]);
        site.gateway.reload_ok(&site.yaml, &[upstream.address]);
        let end = Instant::now() + PATIENCE;
        // What crosses the GOAWAY is taken; then nothing begins here any more.
        while let Ok((response, _)) = client.start(request("GET", "/late", &[]), b"").await {
            assert_eq!(whole(response.await.unwrap()).await.unwrap().text(), "done");
            assert!(Instant::now() < end, "the client stays");
        }
        go.open();
        assert_eq!(whole(last.await.unwrap()).await.unwrap().text(), "done");
        // The connection ends by itself; what the client still writes at that moment may be lost.
        let _ = client.driver.await.unwrap();
        assert_eq!(Client::connect_tls(address, site.authority.client(&["h2"], None), "site").await.get("/").await.text(), "done");
    });
    site.gateway.metric_becomes("gateway_requests_in_flight", 0.0);
}

#[test]
fn a_stream_that_crosses_the_goaway_of_a_new_certificate_is_answered() {
    let site = site(&[("site", &["site"])], "", HERE, &[]);
    let (mut raw, facts) = connect(site.gateway.address(), &site.authority.client(&["h2"], None), "site").unwrap();
    assert_eq!(facts.alpn.as_deref(), Some("h2"));
    raw.send([PREFACE, &frame(4, 0, 0, b"")].concat());
    let (mut old, _) = connect(site.gateway.address(), &site.authority.client(&["http/1.1"], None), "site").unwrap();
    site.authority.issue(&site.gateway.dir(), "site", &["site"]);
    site.gateway.reload_ok(&site.yaml, &[]);
    let until = |raw: &mut Raw, wanted: (u8, u32)| {
        while !frames(&raw.wire.buffer).contains(&wanted) {
            assert!(raw.wire.fill().unwrap() > 0, "no {wanted:?}");
        }
    };
    until(&mut raw, (7, 0));
    // No stream is refused yet: the last one is the highest there can be, and there is no error.
    let goaway = [&[0, 0, 8, 7, 0, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0][..]].concat();
    assert!(raw.wire.buffer.windows(goaway.len()).any(|window| window == goaway), "{:?}", raw.wire.buffer);
    raw.send(frame(1, 5, 1, HEAD));
    until(&mut raw, (1, 1));
    // HTTP/1.1 has no such word; its connections stay.
    assert_eq!(old.ask(get("/")).status, 200);
}

#[test]
fn wrong_files_are_named_at_load() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    authority.issue(dir.path(), "a", &["a"]);
    authority.issue(dir.path(), "b", &["b"]);
    std::fs::write(dir.path().join("junk.pem"), "junk").unwrap();
    std::fs::write(dir.path().join("empty"), "").unwrap();
    std::fs::write(dir.path().join("a.der"), certificate(dir.path(), "a")).unwrap();
    let path = dir.path().display().to_string();
    for (cert, key, words) in [
        ("a.pem", "b.key", "the private key does not belong to the certificate"),
        ("a.pem", "gone.key", "the key file cannot be read: No such file"),
        ("a.pem", "a.pem", "the key file holds a certificate, but no private key"),
        ("a.pem", "empty", "the key file is empty"),
        ("a.pem", "a.der", "the key file is binary, not PEM"),
        ("junk.pem", "a.key", "the certificate file holds no certificate"),
        ("a.key", "a.key", "the certificate file holds a private key, but no certificate"),
        ("empty", "a.key", "the certificate file is empty"),
        ("a.der", "a.key", "the certificate file is binary, not PEM"),
        (".", "a.key", "the certificate file cannot be read: it is not a file"),
    ] {
        let yaml = format!(
            "listeners: [{{ address: '127.0.0.1:0', tls: {{ certificates: [{{ cert: {path}/{cert}, key: {path}/{key} }}] }} }}]\nroutes: [{{ match: /*, respond: {{ status: 200 }} }}]\n"
        );
        let error = Gateway::start_error(&yaml, &[]).unwrap_or_else(|| panic!("{cert} {key} loads"));
        let wrong = if words.contains("certificate file") { cert } else { key };
        assert!(error.contains(&format!(" ({path}/{wrong})")), "{error}");
        // The line with the file, and what would be right.
        assert!(error.contains(words) && error.contains(&format!("cert: {path}/{cert}, key: {path}/{key}")), "{cert} {key}: {error}");
        assert!(error.contains("help: "), "{error}");
    }
}

#[test]
fn what_was_substituted_into_a_path_stays_out_of_the_report() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tenant"), "tenant-4711\n").unwrap();
    let yaml = format!(
        "listeners: [{{ address: '127.0.0.1:0', tls: {{ certificates: [{{ cert: '/nowhere/${{file:{}}}/site.pem', key: /nowhere/site.key }}] }} }}]\n\
         upstreams: {{ up: {{ endpoints: [https://a], tls: {{ ca: /nowhere/ca.pem }} }} }}\nroutes: [{{ match: /*, upstream: up }}]\n",
        dir.path().join("tenant").display()
    );
    let error = Gateway::start_error(&yaml, &[]).unwrap();
    for told in ["No such file or directory (os error 2) (***)", "(/nowhere/site.key)", "(/nowhere/ca.pem)"] {
        assert!(error.contains(told), "{told} in {error}");
    }
    assert!(!error.contains("4711"), "{error}");
}

#[test]
fn a_certificate_out_of_date_is_served_and_warned_about() {
    let (dir, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    authority.issue_as(dir.path(), "site", &["site"], |params| params.not_after = rcgen::date_time_ymd(2020, 2, 29));
    let yaml = format!("{PROGRAM}{HERE}");
    let process = Process::start(dir, &yaml, &[]);
    let warning = process.said("the certificate expired");
    assert_eq!(warning["level"], "WARN", "{warning}");
    assert!(warning["message"].as_str().unwrap().ends_with(" days ago"), "{warning}");
    assert!(warning["at"].as_str().unwrap().contains("gateway.yaml:2:"), "{warning}");
    assert_eq!(warning["help"], "clients will refuse it; renew it");
    // Clients that do not mind are served.
    let (mut raw, facts) = connect(process.address(0), &careless(), "site").unwrap();
    assert_eq!(raw.ask(get("/")).status, 200);
    assert_eq!(facts.certificate, Some(certificate(process.dir.path(), "site")));
    assert!(connect(process.address(0), &authority.client(&[], None), "site").is_err(), "others refuse it");
    let metrics = process.ask(1, "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").text();
    let listener = process.address(0);
    let series = format!("gateway_certificate_expiry_timestamp_seconds{{listener=\"{listener}\",certificate=\"site.pem\"}} 1582934400");
    assert!(metrics.lines().any(|line| line == series), "{metrics}");
}

/// Of the program, with what it says in JSON.
const PROGRAM: &str = "
listeners: [{ address: '127.0.0.1:@LISTEN', tls: { certificates: [{ cert: site.pem, key: site.key }] } }]
admin: { address: '127.0.0.1:@ADMIN' }
server: { workers: 1, timeouts: { drain: 200ms } }
log: { level: info, format: json, access: { enabled: false } }
";

/// A client that takes any certificate.
fn careless() -> Arc<rustls::ClientConfig> {
    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::pki_types::{ServerName, UnixTime};
    #[derive(Debug)]
    struct Careless(Arc<rustls::crypto::CryptoProvider>);
    impl ServerCertVerifier for Careless {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, rustls::Error> {
            Ok(ServerCertVerified::assertion())
        }
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            signed: &rustls::DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            rustls::crypto::verify_tls12_signature(message, cert, signed, &self.0.signature_verification_algorithms)
        }
        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            signed: &rustls::DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            rustls::crypto::verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
        }
        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            self.0.signature_verification_algorithms.supported_schemes()
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions().unwrap();
    Arc::new(builder.dangerous().with_custom_certificate_verifier(Arc::new(Careless(provider))).with_no_client_auth())
}

#[test]
fn files_are_watched_and_a_pair_that_does_not_fit_is_not_taken() {
    let (dir, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    authority.issue(dir.path(), "site", &["site"]);
    authority.issue(dir.path(), "next", &["site"]);
    let process = Process::start(dir, &format!("{PROGRAM}{HERE}"), &[]);
    let path = |name: &str| process.dir.path().join(name);
    let served = || connect(process.address(0), &authority.client(&[], None), "site").unwrap().1.certificate;
    let first = certificate(process.dir.path(), "site");
    assert_eq!(served(), Some(first.clone()));
    let (mut old, _) = connect(process.address(0), &authority.client(&[], None), "site").unwrap();
    let copy = |from: &str, to: &str| {
        std::fs::copy(path(from), path("new")).unwrap();
        std::fs::rename(path("new"), path(to)).unwrap();
    };
    // One file of the two.
    copy("next.key", "site.key");
    let warning = process.said("the private key does not belong to the certificate; the one in use is kept");
    assert_eq!(warning["level"], "WARN", "{warning}");
    assert!(warning["at"].as_str().unwrap().contains("gateway.yaml:2:"), "{warning}");
    assert_eq!(served(), Some(first));
    // The other one.
    copy("next.pem", "site.pem");
    let next = certificate(process.dir.path(), "next");
    eventually("the new pair is served", || (served().as_ref() == Some(&next)).then_some(()));
    // A certificate that cannot be read.
    std::fs::write(path("site.pem"), "").unwrap();
    process.said("the certificate file is empty; the one in use is kept");
    assert_eq!(served(), Some(next));
    assert_eq!(old.ask(get("/")).status, 200);
}

#[test]
fn clients_must_show_the_certificate_that_is_required() {
    let upstream = Upstream::echo();
    let rest = "
authenticators: { mesh: { client_cert: { forward: { subject: x-client-subject, san: x-client-san } } } }
upstreams: { up: { endpoints: [http://@0] } }
routes: [{ match: /*, auth: mesh, upstream: up }]\n";
    let site = site(&[("site", &["site"])], ", client_ca: ca.pem, client_auth: required", rest, &[upstream.address]);
    let (dir, address) = (site.gateway.dir(), site.gateway.address());
    let ask = |config: &Arc<rustls::ClientConfig>| {
        let (mut raw, _) = connect(address, config, "site").ok()?;
        // With TLS 1.3 the refusal comes after the client's side of the handshake.
        raw.wire.write(get("/")).ok()?;
        raw.wire.head().ok()??;
        Some(())
    };
    assert!(ask(&site.authority.client(&[], None)).is_none());
    let stranger = Authority::new();
    let elsewhere = tempfile::tempdir().unwrap();
    stranger.issue(elsewhere.path(), "client", &["client.example"]);
    assert!(ask(&site.authority.client(&[], Some((elsewhere.path(), "client")))).is_none());
    assert_eq!(upstream.count(), 0);
    assert!(ask(&site.authority.client(&[], Some((&dir, "client")))).is_some());
    assert_eq!(upstream.last().header("x-client-san"), Some("client.example"));
    assert!(upstream.last().header("x-client-subject").is_some_and(|subject| subject.contains("client")));
    let tls = format!("gateway_connection_errors_total{{listener=\"{address}\",kind=\"tls\"}}");
    site.gateway.metric_becomes(&tls, 2.0);
}

#[test]
fn an_optional_client_certificate_may_be_absent_but_not_wrong() {
    let site = site(&[("site", &["site"])], ", client_ca: ca.pem, client_auth: optional", HERE, &[]);
    let address = site.gateway.address();
    let status = |config: &Arc<rustls::ClientConfig>| {
        let (mut raw, _) = connect(address, config, "site").ok()?;
        raw.wire.write(get("/")).ok()?;
        raw.wire.head().ok()?.map(|(line, _)| line)
    };
    let dir = site.gateway.dir();
    assert!(status(&site.authority.client(&[], None)).is_some());
    assert!(status(&site.authority.client(&[], Some((&dir, "client")))).is_some());
    let elsewhere = tempfile::tempdir().unwrap();
    Authority::new().issue(elsewhere.path(), "client", &["client.example"]);
    assert!(status(&site.authority.client(&[], Some((elsewhere.path(), "client")))).is_none());
}

#[test]
fn a_session_of_one_listener_opens_no_other() {
    let (dir, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    authority.issue(dir.path(), "site", &["site"]);
    std::fs::write(dir.path().join("ca.pem"), authority.pem()).unwrap();
    let yaml = "
        listeners:
          - { address: '127.0.0.1:0', tls: { certificates: [{ cert: site.pem, key: site.key }] } }
          - { address: 'localhost:0', tls: { certificates: [{ cert: site.pem, key: site.key }], client_ca: ca.pem, client_auth: required } }
        routes: [{ match: /*, respond: { status: 200 } }]";
    let gateway = Gateway::in_dir(dir, &yaml.replace("localhost", "127.0.0.2"), &[]);
    let addresses = gateway.addresses();
    let config = authority.client(&[], None);
    for _ in 0..2 {
        let (mut raw, _) = connect(addresses[0], &config, "site").unwrap();
        // The ticket comes with the first answer.
        assert_eq!(raw.ask(get("/")).status, 200);
    }
    let refused = match connect(addresses[1], &config, "site") {
        Err(_) => true,
        Ok((mut raw, _)) => raw.wire.write(get("/")).is_err() || !matches!(raw.wire.head(), Ok(Some(_))),
    };
    assert!(refused, "a ticket has skipped client verification");
}

#[test]
fn older_versions_can_be_refused() {
    let site = site(&[("site", &["site"])], ", min_version: '1.3'", HERE, &[]);
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(site.gateway.dir().join("ca.pem")).unwrap()).unwrap();
    let config = |version: &'static rustls::SupportedProtocolVersion| {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider).with_protocol_versions(&[version]).unwrap();
        Arc::new(builder.with_root_certificates(roots.clone()).with_no_client_auth())
    };
    assert!(connect(site.gateway.address(), &config(&rustls::version::TLS12), "site").is_err());
    let (_, facts) = connect(site.gateway.address(), &config(&rustls::version::TLS13), "site").unwrap();
    assert_eq!(facts.version, Some(rustls::ProtocolVersion::TLSv1_3));
}

#[test]
fn a_handshake_takes_no_longer_than_it_may() {
    let rest = format!("server: {{ workers: 1, timeouts: {{ handshake: 300ms, header: 300ms, drain: 200ms }} }}\n{HERE}");
    let site = site(&[("site", &["site"])], "", &rest, &[]);
    for start in [&b""[..], b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\r\nHost: site\r\n\r\n"] {
        let mut raw = Raw::connect(site.gateway.address());
        raw.send(start);
        let begun = Instant::now();
        raw.rest();
        assert!(begun.elapsed() < Duration::from_secs(3));
    }
    let metric = format!("gateway_connection_errors_total{{listener=\"{}\",kind=\"tls\"}}", site.gateway.address());
    site.gateway.metric_becomes(&metric, 3.0);
    // A handshake and then nothing: `timeouts.header`, whatever the protocol.
    for alpn in [&["h2"][..], &["http/1.1"]] {
        let (mut raw, _) = connect(site.gateway.address(), &site.authority.client(alpn, None), "site").unwrap();
        let begun = Instant::now();
        raw.rest();
        assert!(begun.elapsed() < Duration::from_secs(3), "{alpn:?}");
    }
}

#[test]
fn the_expiry_of_certificates_is_a_metric() {
    let site = site(&[("site", &["site"])], "", HERE, &[]);
    let text = site.gateway.admin_get("/metrics").text();
    let line =
        text.lines().find(|line| line.starts_with("gateway_certificate_expiry_timestamp_seconds{")).unwrap_or_else(|| panic!("{text}"));
    assert!(line.contains("certificate=\"") && line.contains(&format!("listener=\"{}\"", site.gateway.address())), "{line}");
    let expiry: f64 = line.rsplit(' ').next().unwrap().parse().unwrap();
    assert!(expiry > SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64(), "{line}");
}

/// An HTTPS upstream in HTTP/1.1, for one connection after the other.
fn https_upstream(config: Arc<rustls::ServerConfig>) -> std::net::SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            let config = Arc::clone(&config);
            std::thread::spawn(move || {
                let session = rustls::ServerConnection::new(config).unwrap();
                let mut stream = rustls::StreamOwned::new(session, socket);
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") {
                    match std::io::Read::read(&mut stream, &mut byte) {
                        Ok(1) => head.push(byte[0]),
                        _ => return,
                    }
                }
                // `/ends…` ends with the connection, and `/ends-cut` without the word that TLS has for it.
                let length = if head.starts_with(b"GET /ends") { "" } else { "content-length: 6\r\n" };
                let _ = write!(stream, "HTTP/1.1 200 OK\r\n{length}connection: close\r\n\r\nsecret");
                if !head.starts_with(b"GET /ends-cut") {
                    stream.conn.send_close_notify();
                }
                let _ = stream.flush();
            });
        }
    });
    address
}

#[test]
fn a_body_that_ends_with_a_tls_connection_is_whole_only_if_tls_says_so() {
    let (dir, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    authority.issue(dir.path(), "up", &["up.test"]);
    std::fs::write(dir.path().join("ca.pem"), authority.pem()).unwrap();
    let address = https_upstream(Authority::server(dir.path(), "up", &[]));
    let yaml = "
        upstreams:
          up: { endpoints: [https://@0], tls: { ca: ca.pem, server_name: up.test } }
        routes:
          - { match: { prefix: / }, upstream: up }";
    let gateway = Gateway::in_dir(dir, yaml, &[address]);
    let whole = gateway.get("/ends");
    assert_eq!((whole.status, whole.text().as_str(), whole.end), (200, "secret", End::Framed));
    let cut = gateway.get("/ends-cut");
    assert!(matches!(cut.end, End::Cut | End::Reset), "{cut:?}");
    assert_eq!(gateway.logged("/ends-cut")["reason"], "upstream_truncated");
}

#[test]
fn upstreams_over_tls_are_verified() {
    let (dir, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    authority.issue(dir.path(), "up", &["up.test"]);
    std::fs::write(dir.path().join("ca.pem"), authority.pem()).unwrap();
    std::fs::write(dir.path().join("other.pem"), Authority::new().pem()).unwrap();
    let address = https_upstream(Authority::server(dir.path(), "up", &[]));
    let yaml = "
        upstreams:
          good: { endpoints: [https://@0], tls: { ca: ca.pem, server_name: up.test } }
          name: { endpoints: [https://@0], tls: { ca: ca.pem, server_name: down.test } }
          stranger: { endpoints: [https://@0], tls: { ca: other.pem, server_name: up.test } }
          loose: { endpoints: [https://@0], tls: { verify: false } }
        routes:
          - { match: /good, upstream: good }
          - { match: /name, upstream: name, retry: off }
          - { match: /stranger, upstream: stranger, retry: off }
          - { match: /loose, upstream: loose }";
    let gateway = Gateway::in_dir(dir, yaml, &[address]);
    assert_eq!(gateway.get("/good").text(), "secret");
    assert_eq!(gateway.get("/loose").text(), "secret");
    gateway.get("/name").refused(502, "upstream_tls_failed");
    gateway.get("/stranger").refused(502, "upstream_tls_failed");
    // Whoever runs the gateway can see what to mend.
    let seen = gateway.admin_get("/upstreams").json();
    let error = |name: &str| {
        let upstream = seen["upstreams"].as_array().unwrap().iter().find(|upstream| upstream["name"] == name).unwrap();
        upstream["endpoints"][0]["last_connect_error"]["error"].as_str().map(str::to_owned)
    };
    assert!(error("name").is_some_and(|error| error.starts_with("TLS: ") && error.contains("down.test")), "{seen}");
    assert!(error("stranger").is_some_and(|error| error.starts_with("TLS: invalid peer certificate")), "{seen}");
    assert_eq!(error("good"), None);
}

#[test]
fn alpn_chooses_the_protocol_towards_upstreams() {
    let (dir, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    authority.issue(dir.path(), "up", &["up.test"]);
    std::fs::write(dir.path().join("ca.pem"), authority.pem()).unwrap();
    let h2 =
        H2Upstream::with(Some(Authority::server(dir.path(), "up", &["h2", "http/1.1"])), h2::server::Builder::new(), |stream| async move {
            reply(stream, 200, &[("content-type", "application/grpc")], &message(b"hi"), &[("grpc-status", "0")]).await;
        });
    let http1 = https_upstream(Authority::server(dir.path(), "up", &["http/1.1"]));
    let yaml = "
        server: { workers: 1, timeouts: { drain: 200ms } }
        upstreams:
          auto: { endpoints: [https://@0], tls: { ca: ca.pem, server_name: up.test } }
          h2: { endpoints: [https://@0], protocol: h2, tls: { ca: ca.pem, server_name: up.test } }
          http1: { endpoints: [https://@1], tls: { ca: ca.pem, server_name: up.test } }
          wrong: { endpoints: [https://@1], protocol: h2, tls: { ca: ca.pem, server_name: up.test } }
        routes:
          - { match: /auto, upstream: auto }
          - { match: /h2, upstream: h2 }
          - { match: /http1, upstream: http1 }
          - { match: /wrong, upstream: wrong, retry: off }";
    let gateway = Gateway::in_dir(dir, yaml, &[h2.address, http1]);
    for path in ["/auto", "/h2"] {
        let mut clients: Vec<Raw> = (0..10).map(|_| gateway.connect()).collect();
        clients.iter_mut().for_each(|client| {
            client.send(get(path));
        });
        clients.iter_mut().for_each(|client| assert_eq!(client.read().status, 200, "{path}"));
    }
    let mut used = h2.connections();
    used.sort_unstable();
    used.dedup();
    assert_eq!(used.len(), 2, "one connection an upstream");
    assert_eq!(h2.last().uri.scheme_str(), Some("https"));
    let mut clients: Vec<Raw> = (0..5).map(|_| gateway.connect()).collect();
    clients.iter_mut().for_each(|client| {
        client.send(get("/http1"));
    });
    clients.iter_mut().for_each(|client| assert_eq!(client.read().text(), "secret"));
    let status = gateway.get("/wrong");
    assert_eq!(status.status, 502, "{status:?}");
    block_on(async {
        let mut client = Client::connect(gateway.address()).await;
        assert_eq!(client.ask(grpc("/auto", &[]), &message(b"x")).await.unwrap().grpc_status(), Some("0"));
        assert_eq!(client.ask(grpc("/http1", &[]), &message(b"x")).await.unwrap().grpc_status(), Some("14"));
    });
    eventually("nothing is left in flight", || (gateway.metric("gateway_requests_in_flight") == 0.0).then_some(()));
}
