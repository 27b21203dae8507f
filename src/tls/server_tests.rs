use rcgen::string::Ia5String;
use rcgen::{CertificateParams, DnType, KeyPair, SanType, date_time_ymd};
use rustls::SignatureScheme;

use super::super::resolver::Resolver;
use super::super::testing::{Kit, Met, Said, authority, listener, meet, params};
use super::super::tls_version_word;
use super::*;
use crate::config::problem::Severity::{Error, Warning};

fn verifying(names: &[&str], auth: ClientAuth) -> ListenerTls {
    ListenerTls { client_ca: Some("ca.pem".to_owned()), client_auth: Some(auth), ..listener(names) }
}

fn one(said: &Said) -> (&str, &str) {
    let [(_, place, message)] = &said[..] else { panic!("{said:?}") };
    (place, message)
}

#[tokio::test]
async fn sni_picks_exact_then_wildcard_then_first() {
    let kit = Kit::new();
    let first = kit.issue_for("first", &["first.test", "localhost"]);
    let wild = kit.issue_for("wild", &["*.Example.test"]);
    let exact = kit.issue_for("exact", &["api.example.test"]);
    let server = kit.good_server(&listener(&["first", "wild", "exact"]));
    let client = kit.good_client(None);
    for (name, expected) in [("first.test", &first), ("api.example.test", &exact), ("API.example.test", &exact), ("x.example.test", &wild)]
    {
        assert!(meet(&server, &client, name).await.unwrap().certificate() == *expected, "{name}");
    }
    let (any, _) = kit.client(&crate::config::upstream::UpstreamTls { verify: false, ..Default::default() }, Default::default());
    let any = any.unwrap();
    for name in ["example.test", "a.b.example.test", "other.test", "127.0.0.1"] {
        assert!(meet(&server, &any, name).await.unwrap().certificate() == first, "{name} has no certificate of its own");
    }
}

#[tokio::test]
async fn a_certificate_without_dns_names_is_chosen_by_its_common_name() {
    let kit = Kit::new();
    kit.issue_for("first", &["first.test"]);
    let mut params = params(&[]);
    params.distinguished_name.push(DnType::CommonName, "old.test");
    let old = kit.issue("old", &params);
    let server = kit.good_server(&listener(&["first", "old"]));
    let (any, _) = kit.client(&crate::config::upstream::UpstreamTls { verify: false, ..Default::default() }, Default::default());
    assert!(meet(&server, &any.unwrap(), "old.test").await.unwrap().certificate() == old);
}

#[test]
fn of_two_certificates_for_a_name_the_one_the_client_can_verify_is_chosen() {
    let kit = Kit::new();
    let ecdsa = kit.issue_for("ecdsa", &["a.test"]);
    let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let ed25519 = params(&["a.test"]).self_signed(&key).unwrap();
    kit.write("ed.pem", &ed25519.pem());
    kit.write("ed.key", &key.serialize_pem());
    let pairs = ["ecdsa", "ed"].map(|name| certs::load_pair(&kit.path(&format!("{name}.pem")), &kit.path(&format!("{name}.key"))).unwrap());
    let resolver = Resolver::new(&pairs);
    let chosen = |scheme| resolver.choose(Some("a.test"), &[scheme]).unwrap().cert[0].to_vec();
    assert!(chosen(SignatureScheme::ECDSA_NISTP256_SHA256) == ecdsa);
    assert!(chosen(SignatureScheme::ED25519) == ed25519.der().to_vec());
}

#[tokio::test]
async fn the_protocol_is_negotiated_and_versions_have_words() {
    let kit = Kit::new();
    kit.issue_for("site", &["site.test"]);
    let server = kit.good_server(&listener(&["site"]));
    let met = meet(&server, &kit.good_client(None), "site.test").await.unwrap();
    assert_eq!(tls_version_word(met.server.get_ref().1), Some("TLSv1.3"));
    assert_eq!(super::super::negotiated(met.server.get_ref().1), super::super::Alpn::H2);
    assert_eq!(client_certificate(met.server.get_ref().1), None);
}

/// A client of TLS 1.2 only.
async fn meet_in_tls12(kit: &Kit, server: &ServerTls) -> std::io::Result<Option<&'static str>> {
    let (roots, _) = certs::load_roots(&kit.path("ca.pem")).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(Arc::clone(&PROVIDER))
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let (near, far) = tokio::io::duplex(64 << 10);
    let name = rustls::pki_types::ServerName::try_from("site.test").unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::clone(server.config()));
    let (server, _client) = tokio::try_join!(acceptor.accept(far), connector.connect(name, near))?;
    Ok(tls_version_word(server.get_ref().1))
}

#[tokio::test]
async fn tls_1_2_is_taken_unless_min_version_forbids_it() {
    let kit = Kit::new();
    kit.issue_for("site", &["site.test"]);
    let lenient = kit.good_server(&listener(&["site"]));
    assert_eq!(meet_in_tls12(&kit, &lenient).await.unwrap(), Some("TLSv1.2"));
    let strict = kit.good_server(&ListenerTls { min_version: TlsVersion::V1_3, ..listener(&["site"]) });
    assert!(meet_in_tls12(&kit, &strict).await.is_err());
    assert!(meet(&strict, &kit.good_client(None), "site.test").await.is_ok());
}

#[tokio::test]
async fn required_client_certificates_are_required_and_verified() {
    let kit = Kit::new();
    kit.issue_for("site", &["site.test"]);
    let mut params = params(&["device.test"]);
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Ex, Inc");
    params.distinguished_name.push(DnType::CommonName, "device 7");
    params.subject_alt_names.push(SanType::Rfc822Name(Ia5String::try_from("d@x.test").unwrap()));
    params.subject_alt_names.push(SanType::URI(Ia5String::try_from("spiffe://x.test/device/7").unwrap()));
    params.serial_number = Some(vec![0x00, 0xab, 0xcd].into());
    let der = kit.issue("device", &params);
    let server = kit.good_server(&verifying(&["site"], ClientAuth::Required));

    let met = meet(&server, &kit.good_client(Some("device")), "site.test").await.unwrap();
    let expected = ClientCertificate {
        subject: "CN=device 7,O=Ex\\, Inc".to_owned(),
        san: vec!["spiffe://x.test/device/7".to_owned(), "device.test".to_owned(), "d@x.test".to_owned()],
        serial: "abcd".to_owned(),
        fingerprint: x509::hex(digest(&SHA256, &der).as_ref()),
    };
    assert_eq!(client_certificate(met.server.get_ref().1), Some(expected));
    assert!(meet(&server, &kit.good_client(None), "site.test").await.is_err(), "none");
    stranger(&kit);
    assert!(meet(&server, &kit.good_client(Some("stranger")), "site.test").await.is_err(), "of another authority");
}

/// A client certificate that no authority of the kit has signed.
fn stranger(kit: &Kit) {
    let key = KeyPair::generate().unwrap();
    let certificate = params(&["stranger.test"]).signed_by(&key, &authority("other")).unwrap();
    kit.write("stranger.pem", &certificate.pem());
    kit.write("stranger.key", &key.serialize_pem());
}

#[tokio::test]
async fn optional_client_certificates_may_be_absent_but_not_invalid() {
    let kit = Kit::new();
    kit.issue_for("site", &["site.test"]);
    kit.issue_for("device", &["device.test"]);
    let mut old = params(&["old.test"]);
    old.not_after = date_time_ymd(2001, 1, 1);
    kit.issue("old", &old);
    stranger(&kit);
    let server = kit.good_server(&verifying(&["site"], ClientAuth::Optional));
    let seen = |met: Met| client_certificate(met.server.get_ref().1).map(|certificate| certificate.san);
    assert_eq!(seen(meet(&server, &kit.good_client(None), "site.test").await.unwrap()), None);
    let known = seen(meet(&server, &kit.good_client(Some("device")), "site.test").await.unwrap());
    assert_eq!(known, Some(vec!["device.test".to_owned()]));
    assert!(meet(&server, &kit.good_client(Some("stranger")), "site.test").await.is_err());
    let config = crate::config::upstream::UpstreamTls {
        ca: Some("ca.pem".to_owned()),
        cert: Some("old.pem".to_owned()),
        key: Some("old.key".to_owned()),
        ..Default::default()
    };
    let (expired, said) = kit.client(&config, Default::default());
    assert_eq!((said[0].0, said[0].1.as_str()), (Warning, "cert"));
    assert!(meet(&server, &expired.unwrap(), "site.test").await.is_err());
}

#[tokio::test]
async fn a_changed_certificate_is_used_from_the_next_handshake_on_and_old_connections_live() {
    let kit = Kit::new();
    let old = kit.issue_for("site", &["site.test"]);
    let before = kit.good_server(&listener(&["site"]));
    let open = meet(&before, &kit.good_client(None), "site.test").await.unwrap();
    let new = kit.issue_for("site", &["site.test"]);
    let (after, said) = kit.server(&listener(&["site"]), Some(&before));
    assert_eq!(said, []);
    assert!(meet(&after.unwrap(), &kit.good_client(None), "site.test").await.unwrap().certificate() == new);
    drop(before);
    let Met { mut server, mut client } = open;
    tokio::io::AsyncWriteExt::write_all(&mut server, b"still here").await.unwrap();
    tokio::io::AsyncWriteExt::flush(&mut server).await.unwrap();
    let mut text = [0; 10];
    tokio::io::AsyncReadExt::read_exact(&mut client, &mut text).await.unwrap();
    assert_eq!(&text, b"still here");
    assert!(client.get_ref().1.peer_certificates().unwrap()[0].to_vec() == old);
}

#[test]
fn what_was_shown_is_superseded_when_it_is_gone_or_clients_are_verified_otherwise() {
    let kit = Kit::new();
    kit.issue_for("site", &["site.test"]);
    kit.issue_for("other", &["other.test"]);
    let before = kit.good_server(&listener(&["site"]));
    let after = |config: &ListenerTls| kit.server(config, Some(&before)).0.unwrap().supersedes(&before);
    assert!(!after(&listener(&["site"])));
    assert!(!after(&listener(&["other", "site"])), "one more certificate");
    assert!(after(&listener(&["other"])));
    assert!(after(&verifying(&["site"], ClientAuth::Optional)));
    kit.issue_for("site", &["site.test"]);
    assert!(after(&listener(&["site"])), "renewed");
    // A broken one keeps what there was.
    kit.write("site.pem", "junk");
    assert!(!after(&listener(&["site"])));
}

#[tokio::test]
async fn a_broken_new_certificate_keeps_the_old_one_with_a_warning() {
    let kit = Kit::new();
    let old = kit.issue_for("site", &["site.test"]);
    kit.issue_for("other", &["other.test"]);
    let before = kit.good_server(&listener(&["site"]));
    let other_key = std::fs::read_to_string(kit.path("other.key")).unwrap();
    for (file, text) in [("site.key", other_key.as_str()), ("site.pem", "half a file"), ("site.key", "")] {
        kit.write(file, text);
        let (after, said) = kit.server(&listener(&["site"]), Some(&before));
        assert!(
            said.iter().all(|(severity, _, message)| *severity == Warning && message.contains("; the one in use is kept (")),
            "{said:?}"
        );
        assert!(meet(&after.unwrap(), &kit.good_client(None), "site.test").await.unwrap().certificate() == old);
    }
    std::fs::remove_file(kit.path("site.pem")).unwrap();
    assert!(kit.server(&listener(&["site"]), Some(&before)).0.is_some());
    assert!(kit.server(&listener(&["site"]), None).0.is_none(), "a first load has nothing to keep");
    let (moved, said) = kit.server(&listener(&["missing"]), Some(&before));
    assert!(moved.is_none() && said.iter().all(|(severity, ..)| *severity == Error), "a new path has nothing to keep: {said:?}");
}

#[tokio::test]
async fn a_broken_authority_file_keeps_the_old_one_at_a_reload() {
    let kit = Kit::new();
    kit.issue_for("site", &["site.test"]);
    kit.issue_for("device", &["device.test"]);
    let client = kit.good_client(Some("device"));
    let config = verifying(&["site"], ClientAuth::Required);
    let before = kit.good_server(&config);
    kit.write("ca.pem", "");
    let (after, said) = kit.server(&config, Some(&before));
    let message = format!("the certificate file is empty; the one in use is kept ({})", kit.path("ca.pem").display());
    assert_eq!(one(&said), ("client_ca", message.as_str()));
    assert!(meet(&after.unwrap(), &client, "site.test").await.is_ok());
    assert!(kit.server(&config, None).0.is_none());
}

#[tokio::test]
async fn sessions_resume_over_a_reload_while_client_verification_is_the_same() {
    let kit = Kit::new();
    kit.issue_for("site", &["site.test"]);
    let client = kit.good_client(None);
    let before = kit.good_server(&listener(&["site"]));
    assert!(!meet(&before, &client, "site.test").await.unwrap().resumed());
    assert!(meet(&before, &client, "site.test").await.unwrap().resumed());
    kit.issue_for("site", &["site.test"]);
    let after = kit.server(&listener(&["site"]), Some(&before)).0.unwrap();
    assert!(meet(&after, &client, "site.test").await.unwrap().resumed());
    let another = kit.good_server(&listener(&["site"]));
    assert!(!meet(&another, &client, "site.test").await.unwrap().resumed(), "tickets are not shared between listeners");
}

#[tokio::test]
async fn a_ticket_never_skips_client_verification() {
    let kit = Kit::new();
    kit.issue_for("site", &["site.test"]);
    kit.issue_for("device", &["device.test"]);
    let nobody = kit.good_client(None);
    let open = kit.good_server(&listener(&["site"]));
    let optional = kit.good_server(&verifying(&["site"], ClientAuth::Optional));
    for before in [&open, &optional] {
        let nobody = if std::ptr::eq(before, &open) { nobody.clone() } else { kit.good_client(None) };
        meet(before, &nobody, "site.test").await.unwrap();
        assert!(meet(before, &nobody, "site.test").await.unwrap().resumed());
        let required = kit.server(&verifying(&["site"], ClientAuth::Required), Some(before)).0.unwrap();
        assert!(meet(&required, &nobody, "site.test").await.is_err());
    }
    let device = kit.good_client(Some("device"));
    let required = kit.good_server(&verifying(&["site"], ClientAuth::Required));
    meet(&required, &device, "site.test").await.unwrap();
    kit.write("ca.pem", &authority("new").pem());
    let changed = kit.server(&verifying(&["site"], ClientAuth::Required), Some(&required)).0.unwrap();
    assert!(meet(&changed, &device, "site.test").await.is_err(), "sessions end with the authority that vouched for them");
}

#[test]
fn files_that_cannot_be_used_are_named_with_the_reason() {
    let kit = Kit::new();
    let der = kit.issue_for("site", &["site.test"]);
    std::fs::write(kit.path("site.der"), der).unwrap();
    kit.write("words", "no key in here\n");
    kit.issue_for("other", &["other.test"]);
    let (site, key) = ("site.pem", "site.key");
    kit.write("garbage.pem", "-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n");
    kit.write("cut.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n");
    kit.write("nonsense.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    kit.write("locked.key", "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n");
    kit.write("nonsense.key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n");
    kit.write("empty", "");
    for (cert, key, place, message) in [
        (site, "other.key", "key", "the private key does not belong to the certificate"),
        ("none.pem", key, "cert", "the certificate file cannot be read: No such file or directory"),
        (".", key, "cert", "the certificate file cannot be read: it is not a file"),
        ("empty", key, "cert", "the certificate file is empty"),
        ("words", key, "cert", "the certificate file holds no certificate"),
        (key, key, "cert", "the certificate file holds a private key, but no certificate"),
        ("garbage.pem", key, "cert", "the certificate file is not valid PEM: the text between BEGIN and END is not base64"),
        ("cut.pem", key, "cert", "the certificate file is not valid PEM: a section has no END line"),
        ("nonsense.pem", key, "cert", "the first certificate in the file cannot be read"),
        (site, "none.key", "key", "the key file cannot be read: No such file or directory"),
        (site, "empty", "key", "the key file is empty"),
        (site, "words", "key", "the key file holds no private key"),
        (site, "site.der", "key", "the key file is binary, not PEM"),
        ("site.der", "site.key", "cert", "the certificate file is binary, not PEM"),
        (site, site, "key", "the key file holds a certificate, but no private key"),
        (site, "locked.key", "key", "the private key is encrypted"),
        (site, "nonsense.key", "key", "the private key cannot be used"),
    ] {
        let config = ListenerTls { certificates: vec![Certificate { cert: cert.to_owned(), key: key.to_owned() }], ..listener(&[]) };
        let (_, said) = kit.server(&config, None);
        let (at, text) = one(&said);
        let file = kit.path(if place == "cert" { cert } else { key });
        assert!(at == place && text.starts_with(message) && text.ends_with(&format!(" ({})", file.display())), "{cert} {key}: {said:?}");
    }
    let both = ListenerTls { certificates: vec![Certificate { cert: "a".to_owned(), key: "b".to_owned() }; 2], ..listener(&[]) };
    assert_eq!(kit.server(&both, None).1.len(), 4, "every wrong file is reported");
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let kit = Kit::new();
    kit.issue_for("site", &["site.test"]);
    assert_eq!(one(&kit.server(&listener(&[]), None).1), ("certificates", "a TLS listener needs a certificate"));
    let config = ListenerTls { client_auth: Some(ClientAuth::Optional), ..listener(&["site"]) };
    assert_eq!(one(&kit.server(&config, None).1), ("client_auth", "client_auth without client_ca"));
    let config = ListenerTls { client_ca: Some("none".to_owned()), ..listener(&["site"]) };
    assert_eq!(one(&kit.server(&config, None).1).0, "client_ca");
}

#[test]
fn certificates_out_of_date_are_used_with_a_warning() {
    let kit = Kit::new();
    let issue = |name: &str, change: &dyn Fn(&mut CertificateParams)| {
        let mut params = params(&["site.test"]);
        change(&mut params);
        kit.issue(name, &params);
    };
    issue("old", &|params| params.not_after = date_time_ymd(2020, 2, 29));
    issue("young", &|params| params.not_before = date_time_ymd(2999, 1, 1));
    let (tls, said) = kit.server(&listener(&["old", "young"]), None);
    assert!(said[0].2.starts_with("the certificate expired ") && said[0].2.ends_with(" days ago"), "{said:?}");
    assert_eq!(said[1], (Warning, "cert".to_owned(), "the certificate is not valid yet".to_owned()));
    let info: Vec<_> = tls.unwrap().certificates().map(|info| (info.label, info.not_after)).collect();
    assert_eq!(info[0], ("old.pem".to_owned(), 1_582_934_400));
}

#[test]
fn all_files_that_were_read_are_listed() {
    let kit = Kit::new();
    kit.issue_for("site", &["site.test"]);
    let server = kit.good_server(&verifying(&["site"], ClientAuth::Required));
    assert_eq!(server.files(), ["site.pem", "site.key", "ca.pem"].map(|name| kit.path(name)));
}
