//! HTTP/2 on both sides, frame by frame where it matters.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{RecvStream, server};
use http::{HeaderMap, Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

/// A client connection.
pub struct Client {
    pub send: SendRequest<Bytes>,
    pub driver: tokio::task::JoinHandle<Result<(), h2::Error>>,
}

/// A whole response.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    pub trailers: HeaderMap,
    /// Why the body ended early.
    pub error: Option<h2::Error>,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
    /// `grpc-status`, wherever it is.
    pub fn grpc_status(&self) -> Option<&str> {
        self.trailers.get("grpc-status").or_else(|| self.headers.get("grpc-status")).map(|value| value.to_str().unwrap())
    }
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Client {
    /// In clear, by prior knowledge.
    pub async fn connect(address: SocketAddr) -> Self {
        Self::over(prompt(TcpStream::connect(address).await.unwrap())).await
    }
    /// Over TLS.
    pub async fn connect_tls(address: SocketAddr, config: Arc<rustls::ClientConfig>, name: &str) -> Self {
        let socket = prompt(TcpStream::connect(address).await.unwrap());
        let name = rustls::pki_types::ServerName::try_from(name.to_owned()).unwrap();
        let stream = tokio_rustls::TlsConnector::from(config).connect(name, socket).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        Self::over(stream).await
    }
    async fn over(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Self {
        let (send, connection) = h2::client::Builder::new().handshake(stream).await.unwrap();
        let driver = tokio::spawn(connection);
        Self { send, driver }
    }
    /// Sends a request with this body and reads the whole answer.
    pub async fn ask(&mut self, request: Request<()>, body: &[u8]) -> Result<Reply, h2::Error> {
        let (response, _) = self.start(request, body).await?;
        whole(response.await?).await
    }
    /// Sends a request with this body.
    pub async fn start(
        &mut self,
        request: Request<()>,
        body: &[u8],
    ) -> Result<(h2::client::ResponseFuture, h2::SendStream<Bytes>), h2::Error> {
        self.ready().await?;
        let (response, mut stream) = self.send.send_request(request, body.is_empty())?;
        if !body.is_empty() {
            stream.send_data(Bytes::copy_from_slice(body), true)?;
        }
        Ok((response, stream))
    }
    /// Sends a request whose body follows.
    pub async fn open(&mut self, request: Request<()>) -> Result<(h2::client::ResponseFuture, h2::SendStream<Bytes>), h2::Error> {
        self.ready().await?;
        self.send.send_request(request, false)
    }
    async fn ready(&mut self) -> Result<(), h2::Error> {
        self.send = self.send.clone().ready().await?;
        Ok(())
    }
    pub async fn get(&mut self, path: &str) -> Reply {
        self.ask(request("GET", path, &[]), b"").await.unwrap()
    }
}

/// Without it a second small frame, as of two window updates, waits for the other side's delayed acknowledgement.
fn prompt(socket: TcpStream) -> TcpStream {
    socket.set_nodelay(true).unwrap();
    socket
}

/// Reads a response to its end, or to where it is cut.
pub async fn whole(response: Response<RecvStream>) -> Result<Reply, h2::Error> {
    let (parts, mut stream) = response.into_parts();
    let mut reply =
        Reply { status: parts.status.as_u16(), headers: parts.headers, body: Vec::new(), trailers: HeaderMap::new(), error: None };
    while let Some(data) = stream.data().await {
        match data {
            Ok(data) => {
                let _ = stream.flow_control().release_capacity(data.len());
                reply.body.extend_from_slice(&data);
            }
            Err(error) => {
                reply.error = Some(error);
                return Ok(reply);
            }
        }
    }
    match stream.trailers().await {
        Ok(trailers) => reply.trailers = trailers.unwrap_or_default(),
        Err(error) => reply.error = Some(error),
    }
    Ok(reply)
}

/// A request for `http://site`.
pub fn request(method: &str, path: &str, headers: &[(&str, &str)]) -> Request<()> {
    let mut builder = Request::builder().method(method).uri(format!("http://site{path}")).version(http::Version::HTTP_2);
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(()).unwrap()
}

/// A gRPC call with one message.
pub fn grpc(path: &str, headers: &[(&str, &str)]) -> Request<()> {
    let mut all = vec![("content-type", "application/grpc"), ("te", "trailers")];
    all.extend_from_slice(headers);
    request("POST", path, &all)
}

/// A gRPC message as it is on the wire.
pub fn message(payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0];
    bytes.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// What a stream of an upstream is made of.
pub type Stream = (Request<RecvStream>, server::SendResponse<Bytes>);

/// An HTTP/2 upstream in clear on a free port.
pub struct H2Upstream {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<(http::request::Parts, usize)>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl H2Upstream {
    /// Gives each stream to `handler` in a task of its own.
    pub fn serve<F>(handler: impl Fn(Stream) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::with(None, server::Builder::new(), handler)
    }

    /// The same with TLS and settings of the protocol.
    pub fn with<F>(
        tls: Option<Arc<rustls::ServerConfig>>,
        builder: server::Builder,
        handler: impl Fn(Stream) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (stop, stopped) = oneshot::channel();
        let its = Arc::clone(&seen);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let handler = Arc::new(handler);
            runtime.block_on(async move {
                let accepting = async {
                    let listener = TcpListener::from_std(listener).unwrap();
                    for index in 0_usize.. {
                        let Ok((socket, _)) = listener.accept().await else { continue };
                        let socket = prompt(socket);
                        let (handler, seen, builder, tls) = (Arc::clone(&handler), Arc::clone(&its), builder.clone(), tls.clone());
                        tokio::spawn(async move {
                            match tls {
                                None => connection(socket, builder, index, handler, seen).await,
                                Some(tls) => {
                                    let Ok(stream) = tokio_rustls::TlsAcceptor::from(tls).accept(socket).await else { return };
                                    connection(stream, builder, index, handler, seen).await;
                                }
                            }
                        });
                    }
                };
                tokio::select! { () = accepting => {}, _ = stopped => {} }
            });
        });
        Self { address, seen, stop: Some(stop), thread: Some(thread) }
    }

    /// The heads of the streams so far.
    pub fn requests(&self) -> Vec<http::request::Parts> {
        self.seen.lock().unwrap().iter().map(|(parts, _)| parts.clone()).collect()
    }
    /// On which connection each stream came.
    pub fn connections(&self) -> Vec<usize> {
        self.seen.lock().unwrap().iter().map(|(_, connection)| *connection).collect()
    }
    #[track_caller]
    pub fn last(&self) -> http::request::Parts {
        self.requests().pop().expect("the upstream saw no request")
    }
}

async fn connection<F>(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    builder: server::Builder,
    index: usize,
    handler: Arc<impl Fn(Stream) -> F>,
    seen: Arc<Mutex<Vec<(http::request::Parts, usize)>>>,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else { return };
    while let Some(Ok((request, respond))) = connection.accept().await {
        let (parts, body) = request.into_parts();
        seen.lock().unwrap().push((parts.clone(), index));
        tokio::spawn(handler((Request::from_parts(parts, body), respond)));
    }
}

impl Drop for H2Upstream {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.thread.take().unwrap().join().unwrap();
    }
}

/// Answers a stream with this status, body and trailers.
pub async fn reply((request, mut respond): Stream, status: u16, headers: &[(&str, &str)], body: &[u8], trailers: &[(&str, &str)]) {
    drain(request.into_body()).await;
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    let ends = body.is_empty() && trailers.is_empty();
    let Ok(mut stream) = respond.send_response(response.body(()).unwrap(), ends) else { return };
    if !body.is_empty() && stream.send_data(Bytes::copy_from_slice(body), trailers.is_empty()).is_err() {
        return;
    }
    if !trailers.is_empty() {
        let fields = trailers
            .iter()
            .map(|(name, value)| (http::HeaderName::from_bytes(name.as_bytes()).unwrap(), http::HeaderValue::from_str(value).unwrap()));
        // A client that is gone is the test's business.
        let _ = stream.send_trailers(fields.collect());
    }
}

/// Reads a body to its end.
pub async fn drain(mut body: RecvStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some(Ok(data)) = body.data().await {
        let _ = body.flow_control().release_capacity(data.len());
        bytes.extend_from_slice(&data);
    }
    bytes
}
