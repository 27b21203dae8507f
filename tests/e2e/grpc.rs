//! gRPC through the gateway: a real server and client (tonic), and frame by frame where those are too polite.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::sync::mpsc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::{BoxFuture, Service, tokio_stream};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::support::h2::{self, Client, H2Upstream, grpc, message, reply};
use crate::support::{Gate, Gateway, PATIENCE, Refused, Then, Upstream, block_on};

/// Messages that are just bytes.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;
    fn encoder(&mut self) -> Self {
        Self
    }
    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;
    fn encode(&mut self, item: Vec<u8>, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buf.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;
    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        Ok(Some(buf.copy_to_bytes(buf.remaining()).to_vec()))
    }
}

/// What a server sends, as long as there is more.
struct Outbox(mpsc::Receiver<Result<Vec<u8>, Status>>);

impl tokio_stream::Stream for Outbox {
    type Item = Result<Vec<u8>, Status>;
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx)
    }
}

/// A greeter: `unary` echoes, `server` counts, `client` adds up, `both` echoes one by one.
#[derive(Clone)]
pub struct Greeter {
    /// Opens when a call was cancelled under the server.
    pub cancelled: Gate,
    timeouts: Arc<Mutex<Vec<String>>>,
}

struct OnDrop(Gate);
impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.open();
    }
}

type Outcome<T> = BoxFuture<Response<T>, Status>;

struct Unary(Greeter);
impl Service<Request<Vec<u8>>> for Unary {
    type Response = Response<Vec<u8>>;
    type Error = Status;
    type Future = Outcome<Vec<u8>>;
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }
    fn call(&mut self, request: Request<Vec<u8>>) -> Self::Future {
        let greeter = self.0.clone();
        Box::pin(async move {
            if let Some(timeout) = request.metadata().get("grpc-timeout") {
                greeter.timeouts.lock().unwrap().push(timeout.to_str().unwrap().to_owned());
            }
            match request.get_ref().as_slice() {
                b"fail" => Err(Status::failed_precondition("not now: 100 %")),
                b"hang" => {
                    let _guard = OnDrop(greeter.cancelled.clone());
                    std::future::pending().await
                }
                other => {
                    let mut response = Response::new(other.to_vec());
                    response.metadata_mut().insert("x-from", "greeter".parse().unwrap());
                    if let Some(binary) = request.metadata().get_bin("x-bin") {
                        response.metadata_mut().insert_bin("x-bin", binary.clone());
                    }
                    Ok(response)
                }
            }
        })
    }
}

struct ServerSide(Greeter);
impl Service<Request<Vec<u8>>> for ServerSide {
    type Response = Response<Outbox>;
    type Error = Status;
    type Future = Outcome<Outbox>;
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }
    fn call(&mut self, request: Request<Vec<u8>>) -> Self::Future {
        let greeter = self.0.clone();
        Box::pin(async move {
            let (sender, receiver) = mpsc::channel(1);
            let endless = request.get_ref() == b"endless";
            tokio::spawn(async move {
                let _guard = OnDrop(greeter.cancelled.clone());
                for number in 0_u8.. {
                    if !endless && number == 5 {
                        let _ = sender.send(Err(Status::out_of_range("five is enough"))).await;
                        return;
                    }
                    if sender.send(Ok(vec![number])).await.is_err() {
                        return;
                    }
                    if endless {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                }
            });
            Ok(Response::new(Outbox(receiver)))
        })
    }
}

struct ClientSide;
impl Service<Request<Streaming<Vec<u8>>>> for ClientSide {
    type Response = Response<Vec<u8>>;
    type Error = Status;
    type Future = Outcome<Vec<u8>>;
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }
    fn call(&mut self, request: Request<Streaming<Vec<u8>>>) -> Self::Future {
        Box::pin(async move {
            let mut stream = request.into_inner();
            let mut all = Vec::new();
            while let Some(message) = stream.message().await? {
                all.extend(message);
            }
            Ok(Response::new(all))
        })
    }
}

struct Both;
impl Service<Request<Streaming<Vec<u8>>>> for Both {
    type Response = Response<Outbox>;
    type Error = Status;
    type Future = Outcome<Outbox>;
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }
    fn call(&mut self, request: Request<Streaming<Vec<u8>>>) -> Self::Future {
        Box::pin(async move {
            let mut stream = request.into_inner();
            let (sender, receiver) = mpsc::channel(1);
            tokio::spawn(async move {
                while let Ok(Some(message)) = stream.message().await {
                    if sender.send(Ok(message)).await.is_err() {
                        return;
                    }
                }
            });
            Ok(Response::new(Outbox(receiver)))
        })
    }
}

/// A running tonic server.
pub struct Server {
    pub address: SocketAddr,
    pub greeter: Greeter,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    pub fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let greeter = Greeter { cancelled: Gate::new(), timeouts: Arc::default() };
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let its = greeter.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let accepting = async {
                    loop {
                        let Ok((socket, _)) = listener.accept().await else { continue };
                        let greeter = its.clone();
                        tokio::spawn(async move {
                            let service = hyper::service::service_fn(move |request| {
                                let greeter = greeter.clone();
                                async move { Ok::<_, Infallible>(dispatch(greeter, request).await) }
                            });
                            // A connection that breaks is the test's business.
                            let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                                .serve_connection(TokioIo::new(socket), service)
                                .await;
                        });
                    }
                };
                tokio::select! { () = accepting => {}, _ = stopped => {} }
            });
        });
        Self { address, greeter, stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.thread.take().unwrap().join().unwrap();
    }
}

async fn dispatch(greeter: Greeter, request: http::Request<hyper::body::Incoming>) -> http::Response<tonic::body::Body> {
    let mut server = tonic::server::Grpc::new(Raw);
    match request.uri().path() {
        "/greeter/unary" => server.unary(Unary(greeter), request).await,
        "/greeter/server" => server.server_streaming(ServerSide(greeter), request).await,
        "/greeter/client" => server.client_streaming(ClientSide, request).await,
        "/greeter/both" => server.streaming(Both, request).await,
        // As tonic does for what it does not know: trailers-only.
        _ => Status::unimplemented("no such method").into_http(),
    }
}

const ROUTE: &str = "
    upstreams: { up: { endpoints: [http://@0], protocol: h2 } }
    routes: [{ name: all, match: /*, upstream: up }]";

async fn client(gateway: &Gateway) -> tonic::client::Grpc<Channel> {
    let channel = Channel::from_shared(format!("http://{}", gateway.address())).unwrap().connect().await.unwrap();
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    client
}

fn path(path: &'static str) -> http::uri::PathAndQuery {
    http::uri::PathAndQuery::from_static(path)
}

async fn unary(client: &mut tonic::client::Grpc<Channel>, body: &[u8]) -> Result<Response<Vec<u8>>, Status> {
    client.ready().await.unwrap();
    client.unary(Request::new(body.to_vec()), path("/greeter/unary"), Raw).await
}

#[test]
fn unary_calls_pass_with_metadata_and_status() {
    let server = Server::start();
    let gateway = Gateway::new(ROUTE, &[server.address]);
    block_on(async {
        let mut client = client(&gateway).await;
        let mut request = Request::new(b"hello".to_vec());
        request.metadata_mut().insert_bin("x-bin", tonic::metadata::MetadataValue::from_bytes(&[0, 255, 7]));
        let response = client.unary(request, path("/greeter/unary"), Raw).await.unwrap();
        assert_eq!(response.metadata().get("x-from").unwrap(), "greeter");
        assert_eq!(response.metadata().get_bin("x-bin").unwrap().to_bytes().unwrap(), Bytes::from_static(&[0, 255, 7]));
        assert_eq!(response.into_inner(), b"hello");
        let status = unary(&mut client, b"fail").await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, "not now: 100 %"));
        client.ready().await.unwrap();
        let unknown = client.unary::<_, Vec<u8>, _>(Request::new(vec![]), path("/greeter/none"), Raw).await.unwrap_err();
        assert_eq!(unknown.code(), Code::Unimplemented);
    });
    for (status, count) in [(0, 1.0), (9, 1.0), (12, 1.0)] {
        gateway.metric_becomes(&format!("gateway_grpc_responses_total{{route=\"all\",grpc_status=\"{status}\"}}"), count);
    }
    assert_eq!(gateway.logged("/greeter/unary")["grpc_status"], 0);
}

#[test]
fn all_kinds_of_streams_pass_message_by_message() {
    let server = Server::start();
    let gateway = Gateway::new(ROUTE, &[server.address]);
    block_on(async {
        let mut client = client(&gateway).await;
        let mut stream = client.server_streaming(Request::new(b"five".to_vec()), path("/greeter/server"), Raw).await.unwrap().into_inner();
        for number in 0..5_u8 {
            assert_eq!(stream.message().await.unwrap(), Some(vec![number]));
        }
        assert_eq!(stream.message().await.unwrap_err().code(), Code::OutOfRange);

        client.ready().await.unwrap();
        let large = vec![7; 300_000];
        let parts = tokio_stream::iter([b"a".to_vec(), large.clone(), b"b".to_vec()]);
        let sum = client.client_streaming(Request::new(parts), path("/greeter/client"), Raw).await.unwrap().into_inner();
        assert_eq!(sum, [b"a".to_vec(), large, b"b".to_vec()].concat());

        client.ready().await.unwrap();
        let (sender, receiver) = mpsc::channel(1);
        let outbox = tokio_stream::StreamExt::map(Outbox(receiver), Result::unwrap);
        let mut stream = client.streaming(Request::new(outbox), path("/greeter/both"), Raw).await.unwrap().into_inner();
        for number in 0..20_u8 {
            sender.send(Ok(vec![number; 3])).await.unwrap();
            // The answer comes before the next question is asked.
            assert_eq!(stream.message().await.unwrap(), Some(vec![number; 3]));
        }
        drop(sender);
        assert_eq!(stream.message().await.unwrap(), None);
    });
}

#[test]
fn a_deadline_is_told_upstream_and_kept_by_the_gateway() {
    let server = Server::start();
    let gateway = Gateway::new(ROUTE, &[server.address]);
    block_on(async {
        let mut client = client(&gateway).await;
        let mut request = Request::new(b"quick".to_vec());
        request.set_timeout(Duration::from_secs(5));
        client.unary::<_, Vec<u8>, _>(request, path("/greeter/unary"), Raw).await.unwrap();
        // Without a client of its own that gives up first.
        let begun = Instant::now();
        let mut raw = Client::connect(gateway.address()).await;
        let reply = raw.ask(grpc("/greeter/unary", &[("grpc-timeout", "300m")]), &message(b"hang")).await.unwrap();
        assert_eq!((reply.status, reply.grpc_status()), (200, Some("4")));
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(290) && took < Duration::from_secs(3), "{took:?}");
    });
    let timeouts = server.greeter.timeouts.lock().unwrap().clone();
    let parse =
        |text: &str| text[..text.len() - 1].parse::<u64>().unwrap() * if text.ends_with('u') { 1 } else { panic!("unit of {text}") };
    let first = parse(&timeouts[0]);
    assert!((3_000_000..=5_000_000).contains(&first), "{timeouts:?}");
    let second = parse(&timeouts[1]);
    assert!((1..=300_000).contains(&second), "{timeouts:?}");
    server.greeter.cancelled.pass();
    gateway.metric_becomes("gateway_grpc_responses_total{route=\"all\",grpc_status=\"4\"}", 1.0);
}

#[test]
fn a_deadline_ends_a_stream_that_has_begun() {
    let server = Server::start();
    let gateway = Gateway::new(ROUTE, &[server.address]);
    block_on(async {
        let mut raw = Client::connect(gateway.address()).await;
        let reply = raw.ask(grpc("/greeter/server", &[("grpc-timeout", "300m")]), &message(b"endless")).await.unwrap();
        assert_eq!((reply.status, reply.grpc_status()), (200, Some("4")));
        assert!(!reply.body.is_empty());
    });
    server.greeter.cancelled.pass();
}

#[test]
fn a_malformed_deadline_is_an_invalid_argument() {
    let server = Server::start();
    let gateway = Gateway::new(ROUTE, &[server.address]);
    block_on(async {
        let mut raw = Client::connect(gateway.address()).await;
        for wrong in ["5", "S", "123456789S", "-1S", "1.5S", "1s"] {
            let reply = raw.ask(grpc("/greeter/unary", &[("grpc-timeout", wrong)]), &message(b"x")).await.unwrap();
            assert_eq!((reply.status, reply.grpc_status()), (200, Some("3")), "{wrong}");
        }
    });
}

#[test]
fn a_client_that_cancels_cancels_upstream() {
    for call in ["/greeter/unary", "/greeter/server"] {
        let server = Server::start();
        let gateway = Gateway::new(ROUTE, &[server.address]);
        block_on(async {
            let mut raw = Client::connect(gateway.address()).await;
            let body = message(if call == "/greeter/unary" { b"hang" } else { b"endless" });
            let (response, stream) = raw.start(grpc(call, &[]), &body).await.unwrap();
            let body = if call == "/greeter/server" {
                Some(response.await.unwrap().into_body())
            } else {
                tokio::time::sleep(Duration::from_millis(200)).await;
                drop(response);
                None
            };
            assert!(!server.greeter.cancelled.is_open());
            drop((body, stream));
            tokio::time::sleep(Duration::from_millis(50)).await;
        });
        server.greeter.cancelled.pass();
        gateway.metric_becomes("gateway_grpc_responses_total{route=\"all\",grpc_status=\"1\"}", 1.0);
    }
}

#[test]
fn an_upstream_that_resets_resets_the_client_with_its_code() {
    let upstream = H2Upstream::serve(|(request, mut respond)| async move {
        let early = request.uri().path() == "/early";
        if early {
            respond.send_reset(::h2::Reason::ENHANCE_YOUR_CALM);
            return;
        }
        let head = http::Response::builder().header("content-type", "application/grpc").body(()).unwrap();
        let mut stream = respond.send_response(head, false).unwrap();
        stream.send_data(Bytes::from(message(b"one")), false).unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        stream.send_reset(::h2::Reason::ENHANCE_YOUR_CALM);
    });
    let gateway = Gateway::new(ROUTE, &[upstream.address]);
    block_on(async {
        let mut raw = Client::connect(gateway.address()).await;
        let reply = raw.ask(grpc("/late", &[]), &message(b"x")).await.unwrap();
        assert_eq!(reply.body, message(b"one"));
        assert_eq!(reply.error.unwrap().reason(), Some(::h2::Reason::ENHANCE_YOUR_CALM));
        // Before there was a head, the gateway answers: UNAVAILABLE.
        let reply = raw.ask(grpc("/early", &[]), &message(b"x")).await.unwrap();
        assert_eq!(reply.grpc_status(), Some("14"));
    });
    assert_eq!(gateway.logged("/late")["reason"], "upstream_truncated");
}

#[test]
fn a_call_without_a_status_never_ends_in_success() {
    let upstream = H2Upstream::serve(|(request, respond)| async move {
        let trailers: &[(&str, &str)] = if request.uri().path() == "/other" { &[("x-other", "1")] } else { &[] };
        let body = if request.uri().path() == "/empty" { Vec::new() } else { message(b"one") };
        reply((request, respond), 200, &[("content-type", "application/grpc")], &body, trailers).await;
    });
    let gateway = Gateway::new(ROUTE, &[upstream.address]);
    block_on(async {
        let mut raw = Client::connect(gateway.address()).await;
        for path in ["/none", "/other", "/empty"] {
            let reply = raw.ask(grpc(path, &[]), &message(b"x")).await.unwrap();
            assert_eq!((reply.status, reply.grpc_status()), (200, Some("13")), "{path}");
        }
    });
}

#[test]
fn a_call_whose_upstream_connection_breaks_never_ends_in_success() {
    use crate::support::frames::{PREFACE, frame, frames};
    let upstream = Upstream::raw(|conn| {
        conn.write(frame(4, 0, 0, b""));
        while !frames(conn.wire.buffer.get(PREFACE.len()..).unwrap_or_default()).contains(&(1, 1)) {
            assert!(conn.wire.fill().unwrap() > 0);
        }
        // 200, content-type: application/grpc; one message; then nothing.
        conn.write(frame(1, 4, 1, &[b"\x88\x0f\x10\x10".as_slice(), b"application/grpc"].concat()));
        conn.write(frame(0, 0, 1, &message(b"one")));
        std::thread::sleep(Duration::from_millis(50));
        Then::Close
    });
    let gateway = Gateway::new(ROUTE, &[upstream.address]);
    block_on(async {
        let mut raw = Client::connect(gateway.address()).await;
        let reply = raw.ask(grpc("/broken", &[]), &message(b"x")).await.unwrap();
        assert_eq!((reply.status, reply.body.as_slice()), (200, message(b"one").as_slice()));
        assert!(reply.error.as_ref().is_some_and(::h2::Error::is_reset), "a clean end: {:?}", reply.trailers);
        assert_eq!(reply.grpc_status(), None);
    });
    assert_eq!(gateway.logged("/broken")["reason"], "upstream_truncated");
}

#[test]
fn trailers_only_answers_pass_as_they_are() {
    let upstream = H2Upstream::serve(|stream| async move {
        reply(stream, 200, &[("content-type", "application/grpc"), ("grpc-status", "5"), ("grpc-message", "no%20such")], b"", &[]).await;
    });
    let gateway = Gateway::new(ROUTE, &[upstream.address]);
    block_on(async {
        let mut raw = Client::connect(gateway.address()).await;
        let (response, _) = raw.start(grpc("/x", &[]), &message(b"x")).await.unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.headers()["grpc-status"], "5");
        assert_eq!(response.headers()["grpc-message"], "no%20such");
        assert!(response.body().is_end_stream(), "the head must end the stream");
    });
    assert_eq!(upstream.last().headers["te"], "trailers");
    gateway.metric_becomes("gateway_grpc_responses_total{route=\"all\",grpc_status=\"5\"}", 1.0);
}

#[test]
fn errors_of_the_gateway_are_grpc_statuses() {
    let refused = Refused::new();
    let upstream = Upstream::text("not gRPC");
    let yaml = "
        upstreams:
          up: { endpoints: [http://@0], protocol: h2 }
          one: { endpoints: [http://@1] }
          gone: { endpoints: [http://@0], protocol: h2, panic_threshold: 0%, health: { tcp: true, interval: 50ms, unhealthy: 1 } }
        authenticators:
          keys: { api_key: { from: [header:x-api-key], keys: [{ id: a, sha256: 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae }] } }
        routes:
          - { match: /auth/*, auth: keys, upstream: up }
          - { match: /ip/*, ip: { deny: [127.0.0.0/8] }, upstream: up }
          - { match: /limit/*, rate_limit: [{ by: ip, rate: 1/h, burst: 1 }], respond: { status: 200 } }
          - { match: /large/*, body_limit: 4B, upstream: up }
          - { match: /refused/*, upstream: up, retry: off }
          - { match: /one/*, upstream: one }
          - { match: /gone/*, upstream: gone }
          - { match: GET /get, upstream: up }";
    let gateway = Gateway::new(yaml, &[refused.address, upstream.address]);
    let long = format!("/{}", "a".repeat(33 << 10));
    block_on(async {
        let mut raw = Client::connect(gateway.address()).await;
        raw.ask(grpc("/limit/x", &[]), &message(b"x")).await.unwrap();
        for (path, status) in [
            ("/auth/x", "16"),
            ("/ip/x", "7"),
            ("/limit/x", "8"),
            ("/large/x", "8"),
            ("/refused/x", "14"),
            ("/one/x", "14"),
            ("/gone/x", "14"),
            ("/get", "12"),
            ("/none", "12"),
            ("/%zz", "3"),
            (&long, "8"),
        ] {
            let reply = raw.ask(grpc(path, &[("content-length", "10")]), &message(b"hello")).await.unwrap();
            assert_eq!((reply.status, reply.header("grpc-status")), (200, Some(status)), "{path}");
            assert_eq!(reply.header("content-type"), Some("application/grpc"));
            assert!(reply.header("grpc-message").is_some_and(|message| !message.is_empty()), "{path}");
            assert!(reply.body.is_empty() && reply.trailers.is_empty());
        }
    });
    assert_eq!(gateway.logged("/refused/x")["reason"], "upstream_connect_failed");
    assert_eq!(gateway.logged("/refused/x")["grpc_status"], 14);
    // On HTTP/1.1 it is a plain 400.
    gateway.request("POST", "/auth/x", &[("content-type", "application/grpc")], "x").refused(400, "bad_request");
    assert_eq!(upstream.count(), 0);
}

#[test]
fn retries_happen_only_where_the_upstream_did_nothing() {
    let server = Server::start();
    let refused = Refused::new();
    let yaml = "
        upstreams: { up: { endpoints: [http://@0, http://@1], protocol: h2 } }
        routes: [{ match: /*, retry: { attempts: 2, when: [connect, reset, 503], backoff: 1ms }, upstream: up }]";
    let gateway = Gateway::new(yaml, &[refused.address, server.address]);
    block_on(async {
        let mut client = client(&gateway).await;
        for _ in 0..4 {
            assert_eq!(unary(&mut client, b"hello").await.unwrap().into_inner(), b"hello");
        }
    });
    let upstream = H2Upstream::serve(|(_, mut respond)| async move { respond.send_reset(::h2::Reason::INTERNAL_ERROR) });
    gateway.reload_ok(&yaml.replace(", http://@1", ""), &[upstream.address]);
    block_on(async {
        let mut raw = Client::connect(gateway.address()).await;
        let reply = raw.ask(grpc("/x", &[("idempotency-key", "k")]), &message(b"x")).await.unwrap();
        assert_eq!(reply.grpc_status(), Some("14"));
    });
    assert_eq!(upstream.requests().len(), 1);
}

#[test]
fn grpc_health_checks_decide_who_gets_calls() {
    let verdict = |status: u8| {
        move |(request, respond): h2::Stream| async move {
            if request.uri().path() == "/grpc.health.v1.Health/Check" {
                reply((request, respond), 200, &[("content-type", "application/grpc")], &message(&[8, status]), &[("grpc-status", "0")])
                    .await;
            } else {
                reply((request, respond), 200, &[("content-type", "application/grpc")], &message(b"served"), &[("grpc-status", "0")]).await;
            }
        }
    };
    let (serving, sick) = (H2Upstream::serve(verdict(1)), H2Upstream::serve(verdict(2)));
    let yaml = "
        upstreams: { up: { endpoints: [http://@0, http://@1], protocol: h2, health: { grpc: greeter, interval: 50ms } } }
        routes: [{ match: /*, upstream: up }]";
    let gateway = Gateway::new(yaml, &[serving.address, sick.address]);
    gateway.metric_becomes(&format!("gateway_endpoint_healthy{{upstream=\"up\",endpoint=\"http://{}\"}}", sick.address), 0.0);
    gateway.metric_becomes(&format!("gateway_endpoint_healthy{{upstream=\"up\",endpoint=\"http://{}\"}}", serving.address), 1.0);
    block_on(async {
        let mut raw = Client::connect(gateway.address()).await;
        for _ in 0..4 {
            assert_eq!(raw.ask(grpc("/call", &[]), &message(b"x")).await.unwrap().body, message(b"served"));
        }
    });
    let calls = |upstream: &H2Upstream| upstream.requests().iter().filter(|head| head.uri.path() == "/call").count();
    assert_eq!((calls(&serving), calls(&sick)), (4, 0));
}

#[test]
fn browsers_speak_grpc_web_to_plain_grpc_backends() {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    let server = Server::start();
    let yaml = "
        upstreams: { up: { endpoints: [http://@0], protocol: h2 } }
        routes: [{ name: all, match: /*, upstream: up, cors: { origins: ['https://app.example.com'], expose: [grpc-status, grpc-message] } }]";
    let gateway = Gateway::new(yaml, &[server.address]);
    let ask = |content_type: &str, body: &[u8]| {
        let head = format!(
            "POST /greeter/unary HTTP/1.1\r\nHost: site\r\nOrigin: https://app.example.com\r\nX-Grpc-Web: 1\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        gateway.ask([head.as_bytes(), body].concat())
    };
    let answer = ask("application/grpc-web+proto", &message(b"hello"));
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/grpc-web+proto")));
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://app.example.com"));
    assert_eq!(answer.body[..10], message(b"hello"));
    assert_eq!(answer.body[10], 0x80);
    assert!(String::from_utf8_lossy(&answer.body[15..]).contains("grpc-status: 0\r\n"), "{answer:?}");

    let answer = ask("application/grpc-web-text", STANDARD.encode(message(b"hello")).as_bytes());
    assert_eq!(answer.header("content-type"), Some("application/grpc-web-text+proto"));
    let decoded: Vec<u8> = answer.body.chunks(4).flat_map(|group| STANDARD.decode(group).unwrap()).collect();
    assert_eq!(decoded[..10], message(b"hello"));
    assert!(String::from_utf8_lossy(&decoded[15..]).contains("grpc-status: 0\r\n"));

    let failed = ask("application/grpc-web", &message(b"fail"));
    let all = format!("{:?}{}", failed.headers, String::from_utf8_lossy(&failed.body));
    assert!(all.contains("grpc-status") && all.contains('9'), "{all}");
    gateway.metric_becomes("gateway_grpc_responses_total{route=\"all\",grpc_status=\"0\"}", 2.0);
    gateway.metric_becomes("gateway_grpc_responses_total{route=\"all\",grpc_status=\"9\"}", 1.0);
    let bad = ask("application/grpc-web-text", b"!!!!");
    assert_ne!(bad.header("grpc-status"), Some("0"));
    assert!(!String::from_utf8_lossy(&bad.body).contains("grpc-status: 0"), "{bad:?}");
}

#[test]
fn grpc_web_to_an_http1_upstream_is_nothing_special() {
    let upstream = Upstream::echo();
    let gateway = Gateway::to(upstream.address, "");
    let answer = gateway.request("POST", "/x", &[("content-type", "application/grpc-web+proto")], "whatever");
    assert_eq!(answer.status, 200);
    assert_eq!(upstream.last().header("content-type"), Some("application/grpc-web+proto"));
    assert_eq!(upstream.last().text(), "whatever");
}

#[test]
fn a_gateway_that_shuts_down_lets_calls_end() {
    let server = Server::start();
    let yaml = format!("{ROUTE}\n    server: {{ workers: 1, timeouts: {{ drain: 5s }} }}");
    let gateway = Gateway::new(&yaml, &[server.address]);
    let address = gateway.address();
    block_on(async {
        let mut client = client(&gateway).await;
        let (sender, receiver) = mpsc::channel(1);
        let outbox = tokio_stream::StreamExt::map(Outbox(receiver), Result::unwrap);
        let mut stream = client.streaming(Request::new(outbox), path("/greeter/both"), Raw).await.unwrap().into_inner();
        sender.send(Ok(vec![1])).await.unwrap();
        assert_eq!(stream.message().await.unwrap(), Some(vec![1]));
        let stopping = gateway.begin_shutdown();
        let end = Instant::now() + PATIENCE;
        while tokio::net::TcpStream::connect(address).await.is_ok() {
            assert!(Instant::now() < end, "the listener stays open");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        sender.send(Ok(vec![2])).await.unwrap();
        assert_eq!(stream.message().await.unwrap(), Some(vec![2]));
        drop(sender);
        assert_eq!(stream.message().await.unwrap(), None);
        tokio::task::spawn_blocking(move || stopping.join()).await.unwrap();
    });
}
