use super::super::testing::{Kit, listener, meet};
use super::*;
use crate::config::problem::Severity::{Error, Warning};

fn trusting(kit: &Kit, config: UpstreamTls, protocol: Protocol) -> ClientTls {
    let (tls, said) = kit.client(&UpstreamTls { ca: Some("ca.pem".to_owned()), ..config }, protocol);
    assert_eq!(said, []);
    tls.unwrap()
}

#[tokio::test]
async fn the_upstream_is_verified_against_ca_and_name() {
    let kit = Kit::new();
    kit.issue_for("site", &["site.test"]);
    let server = kit.good_server(&listener(&["site"]));
    let client = trusting(&kit, UpstreamTls::default(), Protocol::Auto);
    assert!(meet(&server, &client, "site.test").await.is_ok());
    assert!(meet(&server, &client, "site.test.").await.is_ok(), "a final dot is no part of the name");
    let error = meet(&server, &client, "other.test").await.err().unwrap();
    assert!(error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()), "{error:?}");
    let stranger = Kit::new();
    assert!(meet(&server, &trusting(&stranger, UpstreamTls::default(), Protocol::Auto), "site.test").await.is_err());
}

#[tokio::test]
async fn server_name_replaces_the_host() {
    let kit = Kit::new();
    kit.issue_for("site", &["site.test"]);
    let server = kit.good_server(&listener(&["site"]));
    let named = trusting(&kit, UpstreamTls { server_name: Some("site.test".to_owned()), ..UpstreamTls::default() }, Protocol::Auto);
    let met = meet(&server, &named, "10.0.0.1").await.unwrap();
    assert_eq!(met.server.get_ref().1.server_name(), Some("site.test"));
}

#[tokio::test]
async fn protocols_are_offered_as_configured() {
    let kit = Kit::new();
    kit.issue_for("site", &["site.test"]);
    let server = kit.good_server(&listener(&["site"]));
    for (protocol, http1_only, expected) in [
        (Protocol::Auto, false, Alpn::H2),
        (Protocol::Auto, true, Alpn::Http1),
        (Protocol::Http1, false, Alpn::Http1),
        (Protocol::H2, false, Alpn::H2),
        (Protocol::H2, true, Alpn::Http1),
    ] {
        let client = trusting(&kit, UpstreamTls::default(), protocol);
        let (near, far) = tokio::io::duplex(64 << 10);
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::clone(server.config()));
        let (_server, (_client, alpn)) = tokio::try_join!(acceptor.accept(far), client.connect(near, "site.test", http1_only)).unwrap();
        assert_eq!(alpn, expected, "{protocol:?} {http1_only}");
    }
}

#[tokio::test]
async fn without_verification_anything_goes_and_the_operator_is_warned() {
    let kit = Kit::new();
    kit.issue_for("site", &["site.test"]);
    let server = kit.good_server(&listener(&["site"]));
    let (client, said) = kit.client(&UpstreamTls { verify: false, ..UpstreamTls::default() }, Protocol::Auto);
    assert_eq!((said[0].0, said[0].1.as_str(), said.len()), (Warning, "verify", 1));
    assert!(meet(&server, &client.unwrap(), "whatever.test").await.is_ok());
}

#[test]
fn wrong_settings_are_refused_where_they_stand() {
    let kit = Kit::new();
    kit.issue_for("site", &["site.test"]);
    kit.issue_for("other", &["other.test"]);
    let text = |text: &str| Some(text.to_owned());
    let fine = || UpstreamTls { ca: text("ca.pem"), ..UpstreamTls::default() };
    for (config, place) in [
        (UpstreamTls { ca: text("none.pem"), ..fine() }, "ca"),
        (UpstreamTls { ca: text("site.key"), ..fine() }, "ca"),
        (UpstreamTls { cert: text("site.pem"), ..fine() }, "cert"),
        (UpstreamTls { key: text("site.key"), ..fine() }, "key"),
        (UpstreamTls { cert: text("site.pem"), key: text("other.key"), ..fine() }, "key"),
        (UpstreamTls { server_name: text("no name"), ..fine() }, "server_name"),
    ] {
        let (_, said) = kit.client(&config, Protocol::Auto);
        assert_eq!((said.len(), said[0].0, said[0].1.as_str()), (1, Error, place), "{said:?}");
    }
}

#[tokio::test]
async fn a_host_that_is_no_name_is_an_error_and_no_handshake() {
    let kit = Kit::new();
    let client = trusting(&kit, UpstreamTls::default(), Protocol::Auto);
    assert!(client.server_name("a b").is_err());
    assert!(client.server_name("::1").is_ok());
    let error = client.connect(tokio::io::duplex(1).0, "", false).await.err().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
}

#[tokio::test]
async fn without_ca_only_public_authorities_are_trusted() {
    let kit = Kit::new();
    kit.issue_for("site", &["site.test"]);
    let server = kit.good_server(&listener(&["site"]));
    assert!(!system_roots().is_empty());
    let (client, said) = kit.client(&UpstreamTls::default(), Protocol::Auto);
    assert_eq!(said, []);
    assert!(meet(&server, &client.unwrap(), "site.test").await.is_err());
}
