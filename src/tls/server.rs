//! A listener's side of TLS: certificates by SNI, client certificates, tickets.

use std::path::PathBuf;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use rustls::pki_types::CertificateDer;
use rustls::server::{ProducesTickets, ServerConfig, ServerConnection, WebPkiClientVerifier};
use rustls::{RootCertStore, SupportedProtocolVersion};

use super::certs::{self, Pair, Part, Wrong};
use super::resolver::Resolver;
use super::{PROVIDER, or_report, x509};
use crate::config::server::{Certificate, ClientAuth, ListenerTls, TlsVersion};
use crate::config::{At, Problems};
use crate::http::exchange::ClientCertificate;

/// TLS of one listener, as it runs.
#[derive(Debug)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
    pairs: Vec<Loaded>,
    clients: Option<Clients>,
    tickets: Arc<dyn ProducesTickets>,
    files: Vec<PathBuf>,
}

/// A certificate in use, for the expiry gauge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateInfo {
    /// The certificate's path as written.
    pub label: String,
    /// Last second it is valid, Unix time.
    pub not_after: i64,
}

#[derive(Clone, Debug)]
struct Loaded {
    written: Certificate,
    paths: [PathBuf; 2],
    pair: Pair,
}

/// How clients are verified. Tickets are only good among equal ones.
#[derive(Clone, Debug)]
struct Clients {
    path: PathBuf,
    roots: Arc<RootCertStore>,
    certificates: Vec<CertificateDer<'static>>,
    auth: ClientAuth,
}

/// What all steps of compiling need.
struct Context<'a> {
    at: &'a At,
    base: &'a dyn Fn(&At, &str) -> PathBuf,
    previous: Option<&'a ServerTls>,
}

impl ServerTls {
    /// Reads the files and builds the configuration. `base` makes a path as written into one that can be opened. `previous` is what the same
    /// listener runs now: its ticket keys live on while client verification is the same, and where a file **at an unchanged path** cannot be
    /// used any more, what was read from it before is kept, with a warning.
    pub fn compile(
        config: &ListenerTls,
        at: &At,
        base: &dyn Fn(&At, &str) -> PathBuf,
        previous: Option<&Self>,
        problems: &mut Problems,
    ) -> Option<Self> {
        let context = Context { at, base, previous };
        let pairs = context.pairs(config, problems);
        let clients = context.clients(config, problems);
        let (pairs, clients) = (pairs?, clients?);
        let kept = previous.filter(|previous| same_verification(previous.clients.as_ref(), clients.as_ref()));
        let tickets = match kept {
            Some(previous) => Arc::clone(&previous.tickets),
            None => or_report(rustls::crypto::aws_lc_rs::Ticketer::new(), at, "session tickets cannot be set up", problems)?,
        };
        let running = or_report(build(config.min_version, &pairs, clients.as_ref(), &tickets), at, "TLS cannot be set up", problems)?;
        let files = Self::paths(config, at, base);
        Some(Self { config: Arc::new(running), pairs, clients, tickets, files })
    }

    /// All files a configuration names, whether they can be read or not: a change in one of them is a reload.
    pub fn paths(config: &ListenerTls, at: &At, base: &dyn Fn(&At, &str) -> PathBuf) -> Vec<PathBuf> {
        let mut paths = Vec::new();
        for (index, pair) in config.certificates.iter().enumerate() {
            let at = at.key("certificates").index(index);
            paths.extend([base(&at.key("cert"), &pair.cert), base(&at.key("key"), &pair.key)]);
        }
        paths.extend(config.client_ca.as_ref().map(|ca| base(&at.key("client_ca"), ca)));
        paths
    }

    /// For `tokio_rustls::TlsAcceptor::from`: one per handshake, so that a swap holds from the next one on.
    pub fn config(&self) -> &Arc<ServerConfig> {
        &self.config
    }
    /// The certificates in use, in written order.
    pub fn certificates(&self) -> impl Iterator<Item = CertificateInfo> + '_ {
        self.pairs.iter().map(|loaded| CertificateInfo { label: loaded.written.cert.clone(), not_after: loaded.pair.summary.not_after })
    }
    /// Whether a client that met `old` should come anew: a certificate that it showed is gone, or clients are verified otherwise.
    pub fn supersedes(&self, old: &Self) -> bool {
        let gone = |old: &Loaded| !self.pairs.iter().any(|new| new.pair.key.cert == old.pair.key.cert);
        old.pairs.iter().any(gone) || !same_verification(old.clients.as_ref(), self.clients.as_ref())
    }
    /// The [`paths`](Self::paths) it was built from.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }
}

impl Context<'_> {
    /// All certificates, or `None` after reporting what is wrong with every one that is.
    fn pairs(&self, config: &ListenerTls, problems: &mut Problems) -> Option<Vec<Loaded>> {
        let at = self.at.key("certificates");
        if config.certificates.is_empty() {
            problems.error(at, "a TLS listener needs a certificate").help("certificates: [{ cert: site.pem, key: site.key }]");
            return None;
        }
        let loaded: Vec<Option<Loaded>> =
            config.certificates.iter().enumerate().map(|(index, written)| self.pair(written, &at.index(index), problems)).collect();
        loaded.into_iter().collect()
    }

    fn pair(&self, written: &Certificate, at: &At, problems: &mut Problems) -> Option<Loaded> {
        let (cert_at, key_at) = (at.key("cert"), at.key("key"));
        let paths = [(self.base)(&cert_at, &written.cert), (self.base)(&key_at, &written.key)];
        let place = |wrong: &Wrong| match wrong.part {
            Part::Certificate => (cert_at.clone(), &paths[0]),
            Part::Key => (key_at.clone(), &paths[1]),
        };
        let pair = match certs::load_pair(&paths[0], &paths[1]) {
            Ok(pair) => pair,
            Err(wrongs) => {
                let before = self.previous.and_then(|previous| previous.pairs.iter().find(|old| old.paths == paths));
                for wrong in &wrongs {
                    report(problems, place(wrong), wrong, before.is_some());
                }
                before?.pair.clone()
            }
        };
        if let Some(message) = certs::out_of_date(&pair.summary, certs::unix_now()) {
            problems.warn(cert_at.clone(), message).help("clients will refuse it; renew it");
        }
        Some(Loaded { written: written.clone(), paths, pair })
    }

    /// How clients are verified: `Some(None)` if they are not.
    #[expect(clippy::option_option, reason = "none asked for and cannot be had are different")]
    fn clients(&self, config: &ListenerTls, problems: &mut Problems) -> Option<Option<Clients>> {
        let Some(written) = &config.client_ca else {
            if config.client_auth.is_some() {
                problems
                    .error(self.at.key("client_auth"), "client_auth without client_ca")
                    .help("client_ca: the PEM file of the authorities that client certificates are verified against");
                return None;
            }
            return Some(None);
        };
        let at = self.at.key("client_ca");
        let path = (self.base)(&at, written);
        let auth = config.client_auth.unwrap_or_default();
        match certs::load_roots(&path) {
            Ok((roots, certificates)) => Some(Some(Clients { path, roots: Arc::new(roots), certificates, auth })),
            Err(wrong) => {
                let before = self.previous.and_then(|previous| previous.clients.as_ref()).filter(|old| old.path == path);
                report(problems, (at, &path), &wrong, before.is_some());
                before.map(|old| Some(Clients { auth, ..old.clone() }))
            }
        }
    }
}

/// An error, or a warning if what was read before can be kept.
fn report(problems: &mut Problems, (at, path): (At, &PathBuf), wrong: &Wrong, kept: bool) {
    if kept {
        let kept = Wrong { message: format!("{}; the one in use is kept", wrong.message), ..wrong.clone() };
        problems.warn(at, kept.in_file(path)).help(kept.help);
    } else {
        problems.error(at, wrong.in_file(path)).help(wrong.help);
    }
}

/// Whether a session of a client verified under one may be resumed under the other.
fn same_verification(old: Option<&Clients>, new: Option<&Clients>) -> bool {
    match (old, new) {
        (None, None) => true,
        (Some(old), Some(new)) => old.auth == new.auth && old.certificates == new.certificates,
        (None, Some(_)) | (Some(_), None) => false,
    }
}

fn build(
    lowest: TlsVersion,
    pairs: &[Loaded],
    clients: Option<&Clients>,
    tickets: &Arc<dyn ProducesTickets>,
) -> Result<ServerConfig, Box<dyn std::error::Error>> {
    let versions: &[&SupportedProtocolVersion] = match lowest {
        TlsVersion::V1_2 => &[&rustls::version::TLS13, &rustls::version::TLS12],
        TlsVersion::V1_3 => &[&rustls::version::TLS13],
    };
    let builder = ServerConfig::builder_with_provider(Arc::clone(&PROVIDER)).with_protocol_versions(versions)?;
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(clients) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&clients.roots), Arc::clone(&PROVIDER));
            let verifier = match clients.auth {
                ClientAuth::Required => verifier,
                ClientAuth::Optional => verifier.allow_unauthenticated(),
            };
            builder.with_client_cert_verifier(verifier.build()?)
        }
    };
    let mut config = builder.with_cert_resolver(Arc::new(Resolver::new(pairs.iter().map(|loaded| &loaded.pair))));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ticketer = Arc::clone(tickets);
    // One ticket instead of two: browsers use one, and each costs a signature-sized record per handshake. 0-RTT stays off (replay).
    config.send_tls13_tickets = 1;
    config.max_early_data_size = 0;
    Ok(config)
}

/// What the client's certificate says. It has been verified if it is there: the handshake fails otherwise.
pub fn client_certificate(connection: &ServerConnection) -> Option<ClientCertificate> {
    let der = connection.peer_certificates()?.first()?;
    let summary = x509::parse(der)?;
    let san = [summary.uris, summary.dns_names, summary.emails].concat();
    let fingerprint = x509::hex(digest(&SHA256, der).as_ref());
    Some(ClientCertificate { subject: summary.subject, san, serial: summary.serial, fingerprint })
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
