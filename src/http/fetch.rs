//! A small HTTP client for the gateway's own errands: key sets and introspection. One connection per request, HTTP/1.1,
//! no redirects (a key set that could redirect could send the gateway anywhere), a limit on everything.
//!
//! For the control runtime only: name resolution blocks a thread of its pool.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HOST, USER_AGENT};
use http::{HeaderValue, Request, Response, Uri};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// How long a request may take in all, and how long its answer's body may be.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From name resolution to the body's last byte.
    pub timeout: Duration,
    /// Bytes of the body.
    pub max_body: usize,
}

/// Why there is no answer. The texts name no credential.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The URL has no host, or is neither http nor https.
    #[error("not a http or https URL")]
    Url,
    /// The name has no address.
    #[error("the name cannot be resolved: {0}")]
    Resolve(std::io::Error),
    /// No connection.
    #[error("connect: {0}")]
    Connect(std::io::Error),
    /// No TLS session.
    #[error("TLS: {0}")]
    Tls(std::io::Error),
    /// Not HTTP, or cut.
    #[error("HTTP: {0}")]
    Http(#[from] hyper::Error),
    /// Too long.
    #[error("the answer is longer than {0} bytes")]
    TooLarge(usize),
    /// The body was cut.
    #[error("body: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    /// Too slow.
    #[error("timeout after {}s", .0.as_secs())]
    Timeout(Duration),
}

/// TLS for outgoing errands: certificates are verified against the system's roots, or bundled ones where it has none.
#[derive(Clone)]
pub struct ClientTls(Arc<rustls::ClientConfig>);

impl std::fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClientTls")
    }
}

impl ClientTls {
    /// Trusts the system's roots (`SSL_CERT_FILE` counts), else the bundled ones. Reads files.
    pub fn system() -> Result<Self, rustls::Error> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        }
        Self::with_roots(roots)
    }

    /// Trusts these roots only.
    pub fn with_roots(roots: rustls::RootCertStore) -> Result<Self, rustls::Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(Arc::new(config)))
    }
}

/// Sends one request and reads the whole answer, whatever its status.
///
/// # Errors
/// See [`FetchError`]; a status is never an error.
pub async fn fetch(request: Request<Full<Bytes>>, tls: &ClientTls, limits: Limits) -> Result<Response<Bytes>, FetchError> {
    tokio::time::timeout(limits.timeout, exchange(request, tls, limits.max_body)).await.unwrap_or(Err(FetchError::Timeout(limits.timeout)))
}

async fn exchange(request: Request<Full<Bytes>>, tls: &ClientTls, max_body: usize) -> Result<Response<Bytes>, FetchError> {
    let uri = request.uri().clone();
    let secure = match uri.scheme_str() {
        Some("https") => true,
        Some("http") => false,
        Some(_) | None => return Err(FetchError::Url),
    };
    let host = uri.host().filter(|host| !host.is_empty()).ok_or(FetchError::Url)?;
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    let stream = connect(host, uri.port_u16().unwrap_or(if secure { 443 } else { 80 })).await?;
    let request = origin_form(request, &uri)?;
    if secure {
        let name = ServerName::try_from(host.to_owned()).map_err(|_| FetchError::Url)?;
        let stream = TlsConnector::from(tls.0.clone()).connect(name, stream).await.map_err(FetchError::Tls)?;
        send(request, stream, max_body).await
    } else {
        send(request, stream, max_body).await
    }
}

/// Tries the host's addresses in the resolver's order.
async fn connect(host: &str, port: u16) -> Result<TcpStream, FetchError> {
    let addresses = tokio::net::lookup_host((host, port)).await.map_err(FetchError::Resolve)?;
    let mut error = std::io::Error::from(std::io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(failure) => error = failure,
        }
    }
    Err(FetchError::Connect(error))
}

/// The request as it goes on the wire: path only, with `Host` and `User-Agent`.
fn origin_form(mut request: Request<Full<Bytes>>, uri: &Uri) -> Result<Request<Full<Bytes>>, FetchError> {
    let authority = uri.authority().ok_or(FetchError::Url)?.as_str();
    // Userinfo is no part of `Host`.
    let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let host = HeaderValue::try_from(authority).map_err(|_| FetchError::Url)?;
    request.headers_mut().insert(HOST, host);
    request.headers_mut().entry(USER_AGENT).or_insert(HeaderValue::from_static(concat!("tollgate/", env!("CARGO_PKG_VERSION"))));
    *request.uri_mut() = uri.path_and_query().map_or_else(Uri::default, |path| Uri::from(path.clone()));
    Ok(request)
}

async fn send<S>(request: Request<Full<Bytes>>, stream: S, max_body: usize) -> Result<Response<Bytes>, FetchError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let _driver = Driver(tokio::spawn(connection));
    let (head, body) = sender.send_request(request).await?.into_parts();
    let body = Limited::new(body, max_body)
        .collect()
        .await
        .map_err(|error| if error.is::<LengthLimitError>() { FetchError::TooLarge(max_body) } else { FetchError::Body(error) })?;
    Ok(Response::from_parts(head, body.to_bytes()))
}

/// The connection's task; it ends with the request.
struct Driver(tokio::task::JoinHandle<Result<(), hyper::Error>>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    const LIMITS: Limits = Limits { timeout: Duration::from_secs(5), max_body: 10 };

    fn tls() -> ClientTls {
        ClientTls::with_roots(rustls::RootCertStore::empty()).unwrap()
    }
    fn get(url: &str) -> Request<Full<Bytes>> {
        Request::get(url).body(Full::default()).unwrap()
    }

    /// Answers one request with `answer`; gives the request.
    async fn serve(answer: &'static str) -> (String, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://user@{}/a?b=c", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = vec![0; 4096];
            let read = stream.read(&mut buffer).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&buffer[..read]).into_owned()
        });
        (url, server)
    }

    #[tokio::test]
    async fn the_answer_is_read_whole_whatever_its_status() {
        let (url, server) = serve("HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 2\r\n\r\nok").await;
        let response = fetch(get(&url), &tls(), LIMITS).await.unwrap();
        assert_eq!((response.status().as_u16(), &response.body()[..]), (302, &b"ok"[..]));
        let request = server.await.unwrap();
        assert!(request.starts_with("GET /a?b=c HTTP/1.1\r\n") && request.contains("host: 127.0.0.1:"), "{request}");
    }

    #[tokio::test]
    async fn what_is_too_long_cut_slow_or_no_url_is_an_error() {
        let (url, _server) = serve("HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\n01234567890").await;
        assert!(matches!(fetch(get(&url), &tls(), LIMITS).await, Err(FetchError::TooLarge(10))));
        let (url, _server) = serve("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n0123").await;
        assert!(matches!(fetch(get(&url), &tls(), LIMITS).await, Err(FetchError::Body(_))));
        let (url, _server) = serve("nonsense\r\n\r\n").await;
        assert!(matches!(fetch(get(&url), &tls(), LIMITS).await, Err(FetchError::Http(_))));
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", silent.local_addr().unwrap());
        let short = Limits { timeout: Duration::from_millis(1), ..LIMITS };
        assert!(matches!(fetch(get(&url), &tls(), short).await, Err(FetchError::Timeout(_))));
        assert!(matches!(fetch(get("ftp://127.0.0.1/"), &tls(), LIMITS).await, Err(FetchError::Url)));
    }

    #[tokio::test]
    async fn only_trusted_certificates_are_accepted() {
        let signed = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(signed.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![signed.cert.der().clone()], key)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://localhost:{}/", listener.local_addr().unwrap().port());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let mut buffer = vec![0; 4096];
                let _read = stream.read(&mut buffer).await;
                let _sent = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
                let _shut = stream.shutdown().await;
            }
        });
        let mut roots = rustls::RootCertStore::empty();
        roots.add(signed.cert.der().clone()).unwrap();
        let trusting = ClientTls::with_roots(roots).unwrap();
        assert_eq!(&fetch(get(&url), &trusting, LIMITS).await.unwrap().body()[..], b"ok");
        assert!(matches!(fetch(get(&url), &tls(), LIMITS).await, Err(FetchError::Tls(_))));
    }
}
