//! Certificates and keys from PEM files, with every way they can be wrong said in plain words.
//!
//! Messages come without the file's path; [`Wrong::in_file`] adds it. Where a part of it was substituted, the report hides that.

use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, RootCertStore};

use super::{PROVIDER, x509};
use crate::config::problem::unreadable;

/// Larger files are refused: a bundle of all public authorities is a quarter of this.
const MAX_FILE: u64 = 1 << 20;

/// Which of the two files of a pair is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The certificate file.
    Certificate,
    /// The key file.
    Key,
}

/// Why a file cannot be used, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// The file at fault.
    pub part: Part,
    /// What is wrong.
    pub message: String,
    /// What would be right.
    pub help: &'static str,
}

impl Wrong {
    /// The message with the path of the file at fault, for a report.
    pub fn in_file(&self, path: &Path) -> String {
        format!("{} ({})", self.message, path.display())
    }
}

/// A certificate chain with its key, and what its first certificate says.
#[derive(Clone, Debug)]
pub struct Pair {
    /// For handshakes.
    pub key: Arc<CertifiedKey>,
    /// Names and validity.
    pub summary: x509::Summary,
}

/// Reads a certificate chain and its key, and checks that they belong together.
pub fn load_pair(certificate: &Path, key: &Path) -> Result<Pair, Vec<Wrong>> {
    let chain = read_certificates(certificate);
    let key = read_key(key);
    let (chain, key) = match (chain, key) {
        (Ok(chain), Ok(key)) => (chain, key),
        (chain, key) => return Err(chain.err().into_iter().chain(key.err()).collect()),
    };
    let summary = chain.first().and_then(|first| x509::parse(first)).ok_or_else(|| {
        vec![Wrong {
            part: Part::Certificate,
            message: "the first certificate in the file cannot be read".to_owned(),
            help: "the file must begin with the server's X.509 certificate, in PEM",
        }]
    })?;
    match CertifiedKey::from_der(chain, key, &PROVIDER) {
        Ok(key) => Ok(Pair { key: Arc::new(key), summary }),
        Err(rustls::Error::InconsistentKeys(_)) => Err(vec![Wrong {
            part: Part::Key,
            message: "the private key does not belong to the certificate".to_owned(),
            help: "give the key that the certificate was made for; in the certificate's file the server's own certificate must come first",
        }]),
        Err(rustls::Error::InvalidCertificate(error)) => Err(vec![Wrong {
            part: Part::Certificate,
            message: format!("the certificate cannot be used: {}", certificate_words(&error)),
            help: "give an X.509 version 3 certificate: `openssl x509 -req` makes version 1 ones without -extfile",
        }]),
        Err(error) => Err(vec![Wrong {
            part: Part::Key,
            message: format!("the private key cannot be used: {error}"),
            help: "RSA (2048 to 8192 bits), ECDSA (P-256, P-384, P-521) and Ed25519 keys are supported",
        }]),
    }
}

/// rustls has the commonest cause only as the name of a type within others.
fn certificate_words(error: &CertificateError) -> String {
    let text = error.to_string();
    if text.contains("UnsupportedCertVersion") { "it is of an old version of X.509".to_owned() } else { text }
}

/// Reads a PEM file of authorities.
pub fn load_roots(path: &Path) -> Result<(RootCertStore, Vec<CertificateDer<'static>>), Wrong> {
    let certificates = read_certificates(path)?;
    let mut roots = RootCertStore::empty();
    for (index, certificate) in certificates.iter().enumerate() {
        roots.add(certificate.clone()).map_err(|error| Wrong {
            part: Part::Certificate,
            message: format!("certificate {} in the file cannot be used as an authority: {error}", index + 1),
            help: "give a PEM file of CA certificates",
        })?;
    }
    Ok((roots, certificates))
}

/// Whether `summary` is out of its validity at this moment, as a sentence for a warning.
pub fn out_of_date(summary: &x509::Summary, now: i64) -> Option<String> {
    if now > summary.not_after {
        let days = (now - summary.not_after) / 86_400;
        return Some(format!("the certificate expired {}", ago(days)));
    }
    (now < summary.not_before).then(|| "the certificate is not valid yet".to_owned())
}

fn ago(days: i64) -> String {
    match days {
        0 => "less than a day ago".to_owned(),
        1 => "1 day ago".to_owned(),
        days => format!("{days} days ago"),
    }
}

/// Seconds since 1970.
pub fn unix_now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Wrong> {
    let wrong =
        |message: String| Wrong { part: Part::Certificate, message, help: "give a PEM file: -----BEGIN CERTIFICATE----- and so on" };
    let text = read(path).map_err(|error| {
        let unread = wrong(format!("the certificate file cannot be read: {error}"));
        Wrong { help: unreadable(&error).unwrap_or(unread.help), ..unread }
    })?;
    let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(|error| wrong(format!("the certificate file is not valid PEM: {}", pem_words(&error))))?;
    if !certificates.is_empty() {
        return Ok(certificates);
    }
    Err(match unlike_pem(&text) {
        Some(Unlike::Empty) => wrong("the certificate file is empty".to_owned()),
        Some(Unlike::Binary) => Wrong {
            part: Part::Certificate,
            message: "the certificate file is binary, not PEM".to_owned(),
            help: "convert it: openssl x509 -inform DER -in FILE -out PEM; out of PKCS #12: openssl pkcs12 -in FILE -nokeys -out PEM",
        },
        None if PrivateKeyDer::from_pem_slice(&text).is_ok() => {
            wrong("the certificate file holds a private key, but no certificate".to_owned())
        }
        None => wrong("the certificate file holds no certificate".to_owned()),
    })
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, Wrong> {
    let wrong = |message: String, help| Wrong { part: Part::Key, message, help };
    let plain = "give a PEM file: -----BEGIN PRIVATE KEY----- and so on";
    let text = read(path).map_err(|error| wrong(format!("the key file cannot be read: {error}"), unreadable(&error).unwrap_or(plain)))?;
    match PrivateKeyDer::from_pem_slice(&text) {
        Ok(key) => Ok(key),
        Err(pem::Error::NoItemsFound) if is_encrypted(&text) => Err(wrong(
            "the private key is encrypted".to_owned(),
            "store it without a passphrase (openssl pkey -in ENCRYPTED -out PLAIN), readable by the gateway only",
        )),
        Err(pem::Error::NoItemsFound) if CertificateDer::from_pem_slice(&text).is_ok() => {
            Err(wrong("the key file holds a certificate, but no private key".to_owned(), plain))
        }
        Err(pem::Error::NoItemsFound) => Err(match unlike_pem(&text) {
            Some(Unlike::Empty) => wrong("the key file is empty".to_owned(), plain),
            Some(Unlike::Binary) => wrong(
                "the key file is binary, not PEM".to_owned(),
                "convert it: openssl pkey -inform DER -in FILE -out PEM; out of PKCS #12: openssl pkcs12 -in FILE -nocerts -noenc -out PEM",
            ),
            None => wrong("the key file holds no private key".to_owned(), plain),
        }),
        Err(error) => Err(wrong(format!("the key file is not valid PEM: {}", pem_words(&error)), plain)),
    }
}

/// What a file without any section of PEM is, where that is plain.
enum Unlike {
    Empty,
    /// DER or PKCS #12: both begin with an ASN.1 sequence.
    Binary,
}

fn unlike_pem(text: &[u8]) -> Option<Unlike> {
    match text.trim_ascii().first() {
        None => Some(Unlike::Empty),
        Some(0x30) if std::str::from_utf8(text).is_err() => Some(Unlike::Binary),
        Some(_) => None,
    }
}

fn is_encrypted(text: &[u8]) -> bool {
    const BEGIN: &[u8] = b"-----BEGIN ENCRYPTED PRIVATE KEY-----";
    text.windows(BEGIN.len()).any(|window| window == BEGIN)
}

/// The parser's error without any bytes of the file: it may be a key.
fn pem_words(error: &pem::Error) -> &'static str {
    match error {
        pem::Error::MissingSectionEnd { .. } => "a section has no END line",
        pem::Error::IllegalSectionStart { .. } => "a BEGIN line is malformed",
        pem::Error::Base64Decode(_) => "the text between BEGIN and END is not base64",
        _ => "it cannot be decoded",
    }
}

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let about = std::fs::metadata(path)?;
    if !about.is_file() {
        return Err(std::io::Error::other("it is not a file"));
    }
    if about.len() > MAX_FILE {
        return Err(std::io::Error::other("it is larger than 1 MiB"));
    }
    std::fs::read(path)
}
