//! A WebSocket that sends back what it gets.

use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::{OnUpgrade, Parts};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocket};

use super::answers::{Reply, empty};

/// Answers the handshake and starts the echo.
pub(super) fn accept(request: &mut Request<Incoming>) -> Response<Reply> {
    let key = request.headers().get(SEC_WEBSOCKET_KEY).map(|key| derive_accept_key(key.as_bytes()));
    let Some(accept) = key.and_then(|accept| HeaderValue::try_from(accept).ok()) else {
        return empty(StatusCode::UPGRADE_REQUIRED, "this is a WebSocket: connect with one\n".to_owned());
    };
    drop(tokio::spawn(echo(hyper::upgrade::on(request))));
    let mut response = empty(StatusCode::SWITCHING_PROTOCOLS, String::new());
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    response
}

async fn echo(upgrade: OnUpgrade) {
    let Ok(upgraded) = upgrade.await else { return };
    let Ok(Parts { io, read_buf, .. }) = upgraded.downcast::<TokioIo<TcpStream>>() else { return };
    let Ok(stream) = io.into_inner().into_std() else { return };
    // A plain thread for each: a demo has few, and blocking code is the shortest.
    let thread = std::thread::Builder::new().name("demo-websocket".to_owned()).stack_size(256 << 10);
    if let Err(error) = thread.spawn(move || repeat(stream, read_buf.to_vec())) {
        tracing::error!(%error, "no thread for a demo WebSocket");
    }
}

fn repeat(stream: std::net::TcpStream, read: Vec<u8>) {
    if stream.set_nonblocking(false).is_err() {
        return;
    }
    let mut socket = WebSocket::from_partially_read(stream, read, Role::Server, None);
    // Ends when either side closes; pings and closes are answered inside `read`.
    while let Ok(message) = socket.read() {
        if (message.is_text() || message.is_binary()) && socket.send(message).is_err() {
            return;
        }
    }
}
