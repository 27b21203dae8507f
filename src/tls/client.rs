//! An upstream's side of TLS: authorities, client certificate, the name that is verified, ALPN.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, WebPkiServerVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::SingleCertAndKey;
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::certs::{self, Part};
use super::{Alpn, PROVIDER, negotiated, or_report};
use crate::config::upstream::{Protocol, UpstreamTls};
use crate::config::{At, Problems};

/// TLS towards the endpoints of one upstream. Cheap to clone.
#[derive(Clone)]
pub struct ClientTls {
    connector: TlsConnector,
    /// Connections that must be HTTP/1.1: sessions are shared, ALPN is not.
    http1: TlsConnector,
    server_name: Option<ServerName<'static>>,
    files: Vec<PathBuf>,
}

impl std::fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientTls").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

impl ClientTls {
    /// Reads the files and builds the configuration; only for upstreams with an `https://` endpoint, for the system's authorities are read once
    /// on first use. `at` is the upstream's `tls`; what is wrong is reported, and `None` returned.
    pub fn compile(
        config: &UpstreamTls,
        protocol: Protocol,
        at: &At,
        base: &dyn Fn(&At, &str) -> PathBuf,
        problems: &mut Problems,
    ) -> Option<Self> {
        let verifier = verifier(config, at, base, problems);
        let identity = identity(config, at, base, problems);
        let server_name = server_name(config, at, problems);
        let (verifier, identity, server_name) = (verifier?, identity?, server_name?);
        let builder = ClientConfig::builder_with_provider(Arc::clone(&PROVIDER)).with_safe_default_protocol_versions();
        let builder = or_report(builder, at, "TLS cannot be set up", problems)?.dangerous().with_custom_certificate_verifier(verifier);
        let mut running = match identity {
            Some(identity) => builder.with_client_cert_resolver(Arc::new(identity)),
            None => builder.with_no_client_auth(),
        };
        let mut http1 = running.clone();
        http1.alpn_protocols = vec![b"http/1.1".to_vec()];
        running.alpn_protocols = match protocol {
            Protocol::Auto => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            Protocol::Http1 => vec![b"http/1.1".to_vec()],
            Protocol::H2 => vec![b"h2".to_vec()],
        };
        Some(Self {
            connector: TlsConnector::from(Arc::new(running)),
            http1: TlsConnector::from(Arc::new(http1)),
            server_name,
            files: Self::paths(config, at, base),
        })
    }

    /// The configuration, for health checks: they choose ALPN themselves.
    pub fn client_config(&self) -> &Arc<ClientConfig> {
        self.connector.config()
    }

    /// The name that is sent as SNI and verified: `server_name`, else the endpoint's host (a name, or an IP literal without brackets).
    ///
    /// # Errors
    /// If the host is neither a DNS name nor an IP address.
    pub fn server_name(&self, host: &str) -> io::Result<ServerName<'static>> {
        match &self.server_name {
            Some(name) => Ok(name.clone()),
            None => ServerName::try_from(host.trim_end_matches('.').to_owned())
                .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "the endpoint's host is not a name TLS can verify")),
        }
    }

    /// The handshake, and what ALPN chose. With `http1_only` HTTP/2 is not offered, for WebSocket tunnels. No timeout of its own: it is part of
    /// `connect_timeout`.
    ///
    /// # Errors
    /// What the handshake failed with; a `rustls::Error` inside if TLS itself failed.
    pub async fn connect<IO>(&self, stream: IO, host: &str, http1_only: bool) -> io::Result<(TlsStream<IO>, Alpn)>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let name = self.server_name(host)?;
        let connector = if http1_only { &self.http1 } else { &self.connector };
        let stream = connector.connect(name, stream).await?;
        let alpn = negotiated(stream.get_ref().1);
        Ok((stream, alpn))
    }

    /// All files a configuration names, whether they can be read or not: a change in one of them is a reload.
    pub fn paths(config: &UpstreamTls, at: &At, base: &dyn Fn(&At, &str) -> PathBuf) -> Vec<PathBuf> {
        let files = [("ca", &config.ca), ("cert", &config.cert), ("key", &config.key)];
        files.into_iter().filter_map(|(key, written)| written.as_ref().map(|written| base(&at.key(key), written))).collect()
    }

    /// The [`paths`](Self::paths) it was built from.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }
}

fn verifier(
    config: &UpstreamTls,
    at: &At,
    base: &dyn Fn(&At, &str) -> PathBuf,
    problems: &mut Problems,
) -> Option<Arc<dyn ServerCertVerifier>> {
    let ca = config.ca.as_ref().map(|written| {
        let ca_at = at.key("ca");
        let path = base(&ca_at, written);
        match certs::load_roots(&path) {
            Ok((roots, _)) => Some(Arc::new(roots)),
            Err(wrong) => {
                problems.error(ca_at, wrong.in_file(&path)).help(wrong.help);
                None
            }
        }
    });
    if !config.verify {
        problems
            .warn(at.key("verify"), "certificates of this upstream are not verified: anybody on the way can read and change the traffic")
            .help("use `ca` with the authority's certificate instead");
        return Some(Arc::new(AcceptAny));
    }
    let roots = match ca {
        Some(roots) => roots?,
        None => system_roots(),
    };
    let verifier = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&PROVIDER)).build();
    Some(or_report(verifier, &at.key("ca"), "the authorities cannot be used", problems)?)
}

/// The client certificate: `Some(None)` if there is none.
#[expect(clippy::option_option, reason = "none asked for and cannot be had are different")]
fn identity(
    config: &UpstreamTls,
    at: &At,
    base: &dyn Fn(&At, &str) -> PathBuf,
    problems: &mut Problems,
) -> Option<Option<SingleCertAndKey>> {
    let (cert, key) = match (&config.cert, &config.key) {
        (None, None) => return Some(None),
        (Some(cert), Some(key)) => (cert, key),
        (Some(_), None) => {
            problems.error(at.key("cert"), "a client certificate without its key").help("key: the PEM file of its private key");
            return None;
        }
        (None, Some(_)) => {
            problems.error(at.key("key"), "a key without its client certificate").help("cert: the PEM file of the certificate");
            return None;
        }
    };
    let (cert_at, key_at) = (at.key("cert"), at.key("key"));
    let paths = [base(&cert_at, cert), base(&key_at, key)];
    match certs::load_pair(&paths[0], &paths[1]) {
        Ok(pair) => {
            if let Some(message) = certs::out_of_date(&pair.summary, certs::unix_now()) {
                problems.warn(cert_at, message).help("the upstream will refuse it; renew it");
            }
            Some(Some(SingleCertAndKey::from(pair.key)))
        }
        Err(wrongs) => {
            for wrong in wrongs {
                let (place, path) = match wrong.part {
                    Part::Certificate => (cert_at.clone(), &paths[0]),
                    Part::Key => (key_at.clone(), &paths[1]),
                };
                problems.error(place, wrong.in_file(path)).help(wrong.help);
            }
            None
        }
    }
}

#[expect(clippy::option_option, reason = "none asked for and not usable are different")]
fn server_name(config: &UpstreamTls, at: &At, problems: &mut Problems) -> Option<Option<ServerName<'static>>> {
    let Some(written) = &config.server_name else { return Some(None) };
    match ServerName::try_from(written.clone()) {
        Ok(name) => Some(Some(name)),
        Err(_) => {
            problems.error(at.key("server_name"), "not a name that a certificate can be for").help("write a DNS name or an IP address");
            None
        }
    }
}

/// The system's authorities, or the bundled ones of Mozilla if it has none. Read once: no load may wait for a directory of files twice.
fn system_roots() -> Arc<RootCertStore> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    Arc::clone(ROOTS.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::debug!(%error, "an authority of the system cannot be read");
        }
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            tracing::info!("the system has no certificate authorities: the bundled ones are used");
            roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        }
        Arc::new(roots)
    }))
}

/// `verify: false`: any certificate is taken. Signatures of the handshake are still checked, so that it is at least one peer throughout.
#[derive(Debug)]
struct AcceptAny;

impl ServerCertVerifier for AcceptAny {
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
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &PROVIDER.signature_verification_algorithms)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &PROVIDER.signature_verification_algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        PROVIDER.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
