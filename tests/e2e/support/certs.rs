//! Certificates made for one test.

use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};

use super::Raw;
use super::wire::Wire;

/// An authority, and a directory with what it has issued.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test authority");
        Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }
    /// Writes `NAME.pem` and `NAME.key` for these names.
    pub fn issue(&self, dir: &Path, name: &str, names: &[&str]) {
        self.issue_as(dir, name, names, |_| {});
    }
    /// The same with other facts in the certificate.
    pub fn issue_as(&self, dir: &Path, name: &str, names: &[&str], facts: impl FnOnce(&mut CertificateParams)) {
        let mut params = CertificateParams::new(names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        facts(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(dir.join(format!("{name}.pem")), certificate.pem()).unwrap();
        std::fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
    /// A client that trusts this authority; with the certificate of `identity` if given.
    pub fn client(&self, alpn: &[&str], identity: Option<(&Path, &str)>) -> Arc<rustls::ClientConfig> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let builder = rustls::ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
        let builder = builder.with_root_certificates(roots);
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some((dir, name)) => {
                let (chain, key) = pair(dir, name);
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
    /// A server with the certificate of `name`.
    pub fn server(dir: &Path, name: &str, alpn: &[&str]) -> Arc<rustls::ServerConfig> {
        let (chain, key) = pair(dir, name);
        let builder = rustls::ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
        let mut config = builder.with_no_client_auth().with_single_cert(chain, key).unwrap();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn pair(dir: &Path, name: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let chain = CertificateDer::pem_file_iter(dir.join(format!("{name}.pem"))).unwrap().map(Result::unwrap).collect();
    (chain, PrivateKeyDer::from_pem_file(dir.join(format!("{name}.key"))).unwrap())
}

/// A TLS connection: the handshake is done when this returns.
pub fn connect(address: std::net::SocketAddr, config: &Arc<rustls::ClientConfig>, name: &str) -> std::io::Result<(Raw, Facts)> {
    connect_behind(b"", address, config, name)
}

/// The same behind a proxy that says these bytes first.
pub fn connect_behind(
    proxy: &[u8],
    address: std::net::SocketAddr,
    config: &Arc<rustls::ClientConfig>,
    name: &str,
) -> std::io::Result<(Raw, Facts)> {
    let mut socket = std::net::TcpStream::connect(address)?;
    socket.set_read_timeout(Some(super::PATIENCE))?;
    std::io::Write::write_all(&mut socket, proxy)?;
    let mut session = rustls::ClientConnection::new(Arc::clone(config), ServerName::try_from(name.to_owned()).unwrap()).unwrap();
    while session.is_handshaking() {
        session.complete_io(&mut socket)?;
    }
    let facts = Facts {
        alpn: session.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned()),
        certificate: session.peer_certificates().and_then(|chain| chain.first()).map(|der| der.to_vec()),
        version: session.protocol_version(),
    };
    let raw = Raw { socket: socket.try_clone()?, wire: Wire::over(Box::new(rustls::StreamOwned::new(session, socket))) };
    Ok((raw, facts))
}

/// What a handshake agreed on.
pub struct Facts {
    pub alpn: Option<String>,
    pub certificate: Option<Vec<u8>>,
    pub version: Option<rustls::ProtocolVersion>,
}
