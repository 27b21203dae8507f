//! One active check over the network: a new connection each time, one question, one answer.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HOST, TE, USER_AGENT};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::config::upstream::{Health, Protocol};

/// A health answer of gRPC is a few bytes; more than this is something else.
const MOST_ANSWER: usize = 64 * 1024;

/// TLS towards one endpoint.
#[derive(Clone, Debug)]
pub struct TlsConnect {
    /// Roots, client certificate, verification.
    pub config: Arc<rustls::ClientConfig>,
    /// Name to verify and to send as SNI.
    pub server_name: ServerName<'static>,
}

/// Where to connect.
#[derive(Clone, Debug)]
pub enum Dial {
    /// The first of these that accepts.
    Tcp(Arc<Vec<SocketAddr>>),
    /// A socket.
    Unix(PathBuf),
}

/// One endpoint as a check sees it.
#[derive(Clone, Debug)]
pub struct Target {
    /// Where to connect.
    pub dial: Dial,
    /// TLS, for `https` endpoints.
    pub tls: Option<TlsConnect>,
    /// The endpoint's authority.
    pub authority: HeaderValue,
    /// The upstream's protocol.
    pub protocol: Protocol,
}

/// Checks an endpoint once; `timeout` covers connecting and the answer.
///
/// # Errors
/// Why it did not pass, as `/upstreams` shows it.
pub async fn check(target: &Target, health: &Health) -> Result<(), String> {
    match tokio::time::timeout(health.timeout.get(), run(target, health)).await {
        Ok(result) => result,
        Err(_) => Err(format!("timeout after {}", health.timeout)),
    }
}

async fn run(target: &Target, health: &Health) -> Result<(), String> {
    match &target.dial {
        Dial::Unix(path) => {
            let stream = UnixStream::connect(path).await.map_err(|error| connect_error(&error))?;
            converse(stream, false, target, health).await
        }
        Dial::Tcp(addresses) => {
            let stream = connect(addresses).await?;
            match &target.tls {
                Some(tls) if !health.tcp => {
                    let connector = tokio_rustls::TlsConnector::from(tls.config.clone());
                    let connector = connector.with_alpn(alpn(target.protocol, health));
                    let stream = connector.connect(tls.server_name.clone(), stream).await.map_err(|error| format!("tls: {error}"))?;
                    let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                    converse(stream, h2, target, health).await
                }
                Some(_) | None => converse(stream, false, target, health).await,
            }
        }
    }
}

async fn connect(addresses: &[SocketAddr]) -> Result<TcpStream, String> {
    let mut last = "dns: no address yet".to_owned();
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = connect_error(&error),
        }
    }
    Err(last)
}

fn connect_error(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connect: refused".to_owned(),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => "connect: unreachable".to_owned(),
        io::ErrorKind::NotFound => "connect: no such socket".to_owned(),
        io::ErrorKind::TimedOut => "connect: timed out".to_owned(),
        _ => format!("connect: {error}"),
    }
}

fn alpn(protocol: Protocol, health: &Health) -> Vec<Vec<u8>> {
    let (h1, h2) = (b"http/1.1".to_vec(), b"h2".to_vec());
    if health.grpc.is_some() {
        return vec![h2];
    }
    match protocol {
        Protocol::H2 => vec![h2],
        Protocol::Http1 => vec![h1],
        Protocol::Auto => vec![h2, h1],
    }
}

async fn converse<S>(stream: S, negotiated_h2: bool, target: &Target, health: &Health) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    if let Some(service) = &health.grpc {
        let body = frame(service);
        let request = request(target, "POST", "/grpc.health.v1.Health/Check", true)
            .header(CONTENT_TYPE, "application/grpc")
            .header(TE, "trailers")
            .body(Full::new(body));
        return over_h2(stream, built(request)?, grpc_answer).await;
    }
    let Some(path) = &health.path else {
        return Ok(()); // `tcp: true`: it is connected
    };
    let h2 = negotiated_h2 || target.protocol == Protocol::H2;
    let request = built(request(target, "GET", path, h2).body(Full::default()))?;
    let judge = |response: Response<Incoming>| async move { expect(response.status().as_u16(), health) };
    if h2 { over_h2(stream, request, judge).await } else { over_h1(stream, request, judge).await }
}

fn request(target: &Target, method: &str, path: &str, h2: bool) -> http::request::Builder {
    let builder = Request::builder().method(method).header(USER_AGENT, "tollgate-health");
    let authority = target.authority.to_str().unwrap_or("localhost");
    if h2 {
        let scheme = if target.tls.is_some() { "https" } else { "http" };
        builder.uri(format!("{scheme}://{authority}{path}"))
    } else {
        builder.uri(path).header(HOST, target.authority.clone())
    }
}

fn built(request: http::Result<Request<Full<Bytes>>>) -> Result<Request<Full<Bytes>>, String> {
    request.map_err(|error| format!("request: {error}"))
}

fn expect(status: u16, health: &Health) -> Result<(), String> {
    if health.expect.iter().any(|range| range.contains(status)) {
        return Ok(());
    }
    let ranges: Vec<String> = health.expect.iter().map(ToString::to_string).collect();
    Err(format!("status {status}, expected {}", ranges.join(", ")))
}

async fn over_h1<S, J, F>(stream: S, request: Request<Full<Bytes>>, judge: J) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    J: FnOnce(Response<Incoming>) -> F,
    F: Future<Output = Result<(), String>>,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| answer_error(&error))?;
    drive(connection, async move { judge(sender.send_request(request).await.map_err(|error| answer_error(&error))?).await }).await
}

async fn over_h2<S, J, F>(stream: S, request: Request<Full<Bytes>>, judge: J) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    J: FnOnce(Response<Incoming>) -> F,
    F: Future<Output = Result<(), String>>,
{
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(|error| answer_error(&error))?;
    drive(connection, async move { judge(sender.send_request(request).await.map_err(|error| answer_error(&error))?).await }).await
}

/// Runs a connection until the work on it is done; both end with the check, nothing is left running.
async fn drive<C: Future<Output = hyper::Result<()>>>(connection: C, work: impl Future<Output = Result<(), String>>) -> Result<(), String> {
    let (mut connection, mut work) = (pin!(connection), pin!(work));
    tokio::select! {
        biased;
        result = &mut work => result,
        // How it ended is told to the work as well, and more exactly.
        _ = &mut connection => work.await,
    }
}

fn answer_error(error: &hyper::Error) -> String {
    if error.is_incomplete_message() || error.is_closed() || error.is_canceled() {
        "closed before the response".to_owned()
    } else {
        format!("response: {error}")
    }
}

/// A gRPC message `HealthCheckRequest { service }`: prefix (not compressed, length), then field 1 as protobuf string.
fn frame(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.put_u8((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        message.put_u8(length as u8);
        message.put_slice(service.as_bytes());
    }
    let mut frame = BytesMut::with_capacity(5 + message.len());
    frame.put_u8(0);
    frame.put_u32(message.len() as u32);
    frame.put_slice(&message);
    frame.freeze()
}

async fn grpc_answer(response: Response<Incoming>) -> Result<(), String> {
    let (head, body) = response.into_parts();
    if head.status != 200 {
        return Err(format!("status {}, expected gRPC", head.status.as_u16()));
    }
    let body = Limited::new(body, MOST_ANSWER).collect().await.map_err(|error| format!("response: {error}"))?;
    let trailers = body.trailers().cloned().unwrap_or_default();
    let status = |fields: &HeaderMap| fields.get("grpc-status").and_then(|value| value.to_str().ok()).map(str::to_owned);
    match status(&trailers).or_else(|| status(&head.headers)).as_deref() {
        Some("0") => {}
        Some(other) => return Err(format!("grpc-status {other}, expected 0")),
        None => return Err("no grpc-status".to_owned()),
    }
    match serving_status(&body.to_bytes()) {
        Some(1) => Ok(()),
        Some(0) => Err("grpc UNKNOWN, expected SERVING".to_owned()),
        Some(2) => Err("grpc NOT_SERVING, expected SERVING".to_owned()),
        Some(3) => Err("grpc SERVICE_UNKNOWN, expected SERVING".to_owned()),
        Some(other) => Err(format!("grpc status {other}, expected SERVING")),
        None => Err("grpc answer is unreadable".to_owned()),
    }
}

/// Field 1 of a framed `HealthCheckResponse`; absent is 0, as proto3 leaves zeros out. `None` if unreadable.
fn serving_status(framed: &[u8]) -> Option<u64> {
    let (prefix, rest) = framed.split_at_checked(5)?;
    let length = u32::from_be_bytes(prefix.get(1..)?.try_into().ok()?) as usize;
    let mut message = rest.get(..length).filter(|_| prefix[0] == 0)?;
    let mut status = 0;
    while !message.is_empty() {
        let tag = varint(&mut message)?;
        match tag & 7 {
            0 => {
                let value = varint(&mut message)?;
                if tag >> 3 == 1 {
                    status = value;
                }
            }
            1 => message = message.get(8..)?,
            2 => {
                let length = usize::try_from(varint(&mut message)?).ok()?;
                message = message.get(length..)?;
            }
            5 => message = message.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::time::Duration as Span;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::units::Duration;

    fn run_test<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
    }

    fn target(address: SocketAddr, protocol: Protocol) -> Target {
        Target { dial: Dial::Tcp(Arc::new(vec![address])), tls: None, authority: HeaderValue::from_static("users.internal:8080"), protocol }
    }

    fn health() -> Health {
        Health { path: Some("/health?full=1".to_owned()), ..Health::default() }
    }

    /// Answers one connection with `answer` and returns what was asked.
    async fn ask(answer: &'static str, health: &Health) -> (Result<(), String>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("bound");
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("accepts");
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).await.expect("reads");
                asked.push(byte[0]);
            }
            stream.write_all(answer.as_bytes()).await.expect("writes");
            String::from_utf8(asked).expect("text")
        });
        let result = check(&target(address, Protocol::Auto), health).await;
        (result, server.await.expect("no panic"))
    }

    #[test]
    fn a_get_with_the_endpoints_authority_passes_on_the_expected_status() {
        let (result, asked) = run_test(ask("HTTP/1.1 204 No Content\r\n\r\n", &health()));
        assert_eq!(result, Ok(()));
        let asked = asked.to_ascii_lowercase();
        assert!(asked.starts_with("get /health?full=1 http/1.1\r\n"), "{asked}");
        assert!(asked.contains("\r\nhost: users.internal:8080\r\n") && asked.contains("\r\nuser-agent: tollgate-health\r\n"), "{asked}");
    }

    #[test]
    fn other_statuses_fail_and_redirects_are_not_followed() {
        let (result, _) = run_test(ask("HTTP/1.1 503 Nope\r\ncontent-length: 0\r\n\r\n", &health()));
        assert_eq!(result, Err("status 503, expected 200-399".to_owned()));
        let strict = Health { expect: vec!["200".parse().expect("range"), "204".parse().expect("range")], ..health() };
        let (result, _) = run_test(ask("HTTP/1.1 302 Found\r\nlocation: /\r\ncontent-length: 0\r\n\r\n", &strict));
        assert_eq!(result, Err("status 302, expected 200, 204".to_owned()));
    }

    #[test]
    fn a_connection_closed_without_an_answer_fails() {
        let (result, _) = run_test(ask("", &health()));
        assert_eq!(result, Err("closed before the response".to_owned()));
    }

    #[test]
    fn refused_and_silent_endpoints_say_so() {
        run_test(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
            let address = listener.local_addr().expect("bound");
            let short = Health { timeout: Duration(Span::from_millis(20)), ..health() };
            assert_eq!(check(&target(address, Protocol::Auto), &short).await, Err("timeout after 20ms".to_owned()));
            let tcp = Health { path: None, tcp: true, ..health() };
            assert_eq!(check(&target(address, Protocol::Auto), &tcp).await, Ok(()));
            drop(listener);
            assert_eq!(check(&target(address, Protocol::Auto), &tcp).await, Err("connect: refused".to_owned()));
            let none = Target { dial: Dial::Tcp(Arc::default()), ..target(address, Protocol::Auto) };
            assert_eq!(check(&none, &tcp).await, Err("dns: no address yet".to_owned()));
        });
    }

    #[test]
    fn http2_and_grpc_are_asked_with_prior_knowledge() {
        async fn serve(
            request: Request<Incoming>,
        ) -> Result<Response<http_body_util::combinators::BoxBody<Bytes, std::convert::Infallible>>, std::convert::Infallible> {
            if request.uri().path() != "/grpc.health.v1.Health/Check" {
                assert_eq!(request.uri().authority().map(http::uri::Authority::as_str), Some("users.internal:8080"));
                return Ok(Response::new(Full::default().boxed()));
            }
            let asked = request.into_body().collect().await.expect("a body").to_bytes();
            let status = if asked == frame("greeter") { 1 } else { 2 };
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            let body = Full::new(Bytes::from(vec![0, 0, 0, 0, 2, 0x08, status])).with_trailers(std::future::ready(Some(Ok(trailers))));
            Ok(Response::new(body.boxed()))
        }
        run_test(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
            let target = target(listener.local_addr().expect("bound"), Protocol::H2);
            let server = tokio::spawn(async move {
                for _ in 0..3 {
                    let (stream, _) = listener.accept().await.expect("accepts");
                    tokio::spawn(
                        hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                            .serve_connection(TokioIo::new(stream), hyper::service::service_fn(serve)),
                    );
                }
            });
            let grpc = |service: &str| Health { path: None, grpc: Some(service.to_owned()), ..Health::default() };
            assert_eq!(check(&target, &health()).await, Ok(()));
            assert_eq!(check(&target, &grpc("greeter")).await, Ok(()));
            assert_eq!(check(&target, &grpc("")).await, Err("grpc NOT_SERVING, expected SERVING".to_owned()));
            server.await.expect("no panic");
        });
    }

    #[test]
    fn protobuf_is_read_as_written_elsewhere() {
        assert_eq!(frame(""), Bytes::from_static(&[0, 0, 0, 0, 0]));
        assert_eq!(frame("ab"), Bytes::from_static(&[0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']));
        assert_eq!(serving_status(&[0, 0, 0, 0, 0]), Some(0));
        assert_eq!(serving_status(&[0, 0, 0, 0, 2, 0x08, 1]), Some(1));
        // Unknown fields are passed over.
        assert_eq!(serving_status(&[0, 0, 0, 0, 6, 0x12, 2, 9, 9, 0x08, 3]), Some(3));
        for broken in [&[][..], &[0, 0, 0, 0, 2, 8], &[1, 0, 0, 0, 2, 8, 1], &[0, 0, 0, 0, 1, 0x80]] {
            assert_eq!(serving_status(broken), None);
        }
    }
}
