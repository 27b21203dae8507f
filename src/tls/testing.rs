//! Certificates in a temporary directory, and handshakes in memory, for the tests of this module.

use std::io;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::HandshakeKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::{client, server};

use super::{ClientTls, ServerTls};
use crate::config::problem::Severity;
use crate::config::server::{Certificate, ListenerTls};
use crate::config::upstream::{Protocol, UpstreamTls};
use crate::config::{At, Problems};

/// A directory with one authority in `ca.pem`.
pub(super) struct Kit {
    dir: tempfile::TempDir,
    authority: CertifiedIssuer<'static, KeyPair>,
}

/// What a compile said: severity, last step of the place, message.
pub(super) type Said = Vec<(Severity, String, String)>;

impl Kit {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let kit = Self { authority: authority("kit"), dir };
        kit.write("ca.pem", &kit.authority.pem());
        kit
    }
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    pub(super) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }
    /// A certificate by the authority in `NAME.pem` and `NAME.key`; its DER.
    pub(super) fn issue(&self, name: &str, params: &CertificateParams) -> Vec<u8> {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.authority).unwrap();
        self.write(&format!("{name}.pem"), &certificate.pem());
        self.write(&format!("{name}.key"), &key.serialize_pem());
        certificate.der().to_vec()
    }
    /// The same for DNS names.
    pub(super) fn issue_for(&self, name: &str, dns: &[&str]) -> Vec<u8> {
        self.issue(name, &params(dns))
    }
    fn base(&self) -> impl Fn(&At, &str) -> PathBuf + use<> {
        let dir: PathBuf = self.dir.path().to_owned();
        move |_, path: &str| Path::new(&dir).join(path)
    }
    pub(super) fn server(&self, config: &ListenerTls, previous: Option<&ServerTls>) -> (Option<ServerTls>, Said) {
        let mut problems = Problems::default();
        let tls = ServerTls::compile(config, &At::main("tls"), &self.base(), previous, &mut problems);
        assert_eq!(tls.is_none(), problems.has_errors(), "{problems:?}");
        (tls, said(&problems))
    }
    pub(super) fn good_server(&self, config: &ListenerTls) -> ServerTls {
        let (tls, said) = self.server(config, None);
        assert_eq!(said, []);
        tls.unwrap()
    }
    pub(super) fn client(&self, config: &UpstreamTls, protocol: Protocol) -> (Option<ClientTls>, Said) {
        let mut problems = Problems::default();
        let tls = ClientTls::compile(config, protocol, &At::main("tls"), &self.base(), &mut problems);
        assert_eq!(tls.is_none(), problems.has_errors(), "{problems:?}");
        (tls, said(&problems))
    }
    /// A client that trusts the authority, with the certificate `name` if given.
    pub(super) fn good_client(&self, name: Option<&str>) -> ClientTls {
        let (cert, key) = (name.map(|name| format!("{name}.pem")), name.map(|name| format!("{name}.key")));
        let config = UpstreamTls { ca: Some("ca.pem".to_owned()), cert, key, ..UpstreamTls::default() };
        let (tls, said) = self.client(&config, Protocol::Auto);
        assert_eq!(said, []);
        tls.unwrap()
    }
}

fn said(problems: &Problems) -> Said {
    let last = |at: &At| match at.path.last() {
        Some(crate::config::problem::Seg::Key(key)) => key.clone(),
        other => format!("{other:?}"),
    };
    problems.list().iter().map(|problem| (problem.severity, last(&problem.at), problem.message.clone())).collect()
}

pub(super) fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = params(&[]);
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

pub(super) fn params(dns: &[&str]) -> CertificateParams {
    CertificateParams::new(dns.iter().map(|&name| name.to_owned()).collect::<Vec<_>>()).unwrap()
}

/// A listener with these certificates.
pub(super) fn listener(names: &[&str]) -> ListenerTls {
    let pair = |name: &&str| Certificate { cert: format!("{name}.pem"), key: format!("{name}.key") };
    ListenerTls {
        certificates: names.iter().map(pair).collect(),
        client_ca: None,
        client_auth: None,
        min_version: crate::config::server::TlsVersion::default(),
    }
}

/// Both ends of an established connection.
pub(super) struct Met {
    pub(super) server: server::TlsStream<DuplexStream>,
    pub(super) client: client::TlsStream<DuplexStream>,
}

impl Met {
    /// The certificate the client saw.
    pub(super) fn certificate(&self) -> Vec<u8> {
        self.client.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    }
    pub(super) fn resumed(&self) -> bool {
        self.client.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed)
    }
}

/// A handshake, and one byte back, so that the client has seen its tickets or its refusal.
pub(super) async fn meet(server: &ServerTls, client: &ClientTls, name: &str) -> io::Result<Met> {
    let (near, far) = tokio::io::duplex(64 << 10);
    let accept = async {
        let mut stream = TlsAcceptor::from(server.config().clone()).accept(far).await?;
        stream.write_all(b"!").await?;
        stream.flush().await?;
        io::Result::Ok(stream)
    };
    let connect = async {
        let (mut stream, _) = client.connect(near, name, false).await?;
        stream.read_u8().await?;
        io::Result::Ok(stream)
    };
    let (server, client) = tokio::try_join!(accept, connect)?;
    Ok(Met { server, client })
}
