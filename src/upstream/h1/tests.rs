use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use http_body::{Body, Frame};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use super::{Error, H1, Head};
use crate::config::upstream::{Pool, Protocol};
use crate::http::body::{BodyFailure, BoxedBody, RequestBody};
use crate::http::h1::ResponseHead;
use crate::http::h1::decode::DecodeError;
use crate::telemetry::metrics::Metrics;
use crate::upstream::connect::Destination;
use crate::upstream::endpoint::Address;
use crate::upstream::pool::EndpointPool;

/// A connection and its peer.
async fn pair() -> (H1, UnixStream) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let destination = Destination {
        address: Address::Unix(path),
        tls_name: "x".into(),
        tls: None,
        protocol: Protocol::Http1,
        ping: crate::upstream::connect::H2_PING,
    };
    let pool = Arc::new(EndpointPool::new(1, destination, &Pool::default(), Metrics::new(1, "", "").endpoint("u", "e")));
    let connection = pool.connect_for_tunnel(0, &[], Duration::from_secs(5)).await.unwrap().unwrap();
    (connection, listener.accept().await.unwrap().0)
}

fn fields(lines: &[(&'static str, &'static str)]) -> HeaderMap {
    let lines = lines.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        headers.append(name, value);
    }
    headers
}

fn start(connection: &mut H1, method: &Method, headers: &HeaderMap, body: RequestBody) {
    let host = HeaderValue::from_static("site");
    connection.start(&Head { method, target: "/x?y", host: &host, headers, added: None }, body, false).unwrap();
}

async fn head(connection: &mut H1) -> Result<ResponseHead, Error> {
    poll_fn(|cx| connection.poll_head(cx)).await
}

/// The rest of the body, and its trailers.
async fn body(connection: &mut H1) -> Result<(Vec<u8>, HeaderMap), Error> {
    let (mut data, mut trailers) = (Vec::new(), HeaderMap::new());
    while !connection.is_body_ended() {
        let Some(frame) = poll_fn(|cx| connection.poll_body(cx)).await else { break };
        match frame?.into_data() {
            Ok(bytes) => data.extend_from_slice(&bytes),
            Err(frame) => trailers = frame.into_trailers().unwrap(),
        }
    }
    Ok((data, trailers))
}

async fn read(peer: &mut UnixStream, until: &str) -> String {
    let mut got = Vec::new();
    while !got.ends_with(until.as_bytes()) {
        got.push(peer.read_u8().await.unwrap());
    }
    String::from_utf8(got).unwrap()
}

/// A GET that the peer answers with `answer` and, with `close`, an end.
async fn get(answer: &[u8], close: bool) -> (H1, Result<ResponseHead, Error>, Option<UnixStream>) {
    let (mut connection, mut peer) = pair().await;
    start(&mut connection, &Method::GET, &HeaderMap::new(), RequestBody::Empty);
    peer.write_all(answer).await.unwrap();
    if close {
        peer.shutdown().await.unwrap();
    }
    let head = head(&mut connection).await;
    (connection, head, Some(peer))
}

/// A body that a test sends piece by piece.
struct Pieces(mpsc::UnboundedReceiver<Frame<Bytes>>);

impl Body for Pieces {
    type Data = Bytes;
    type Error = BodyFailure;
    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyFailure>>> {
        self.0.poll_recv(cx).map(|frame| frame.map(Ok))
    }
}

fn pieces() -> (mpsc::UnboundedSender<Frame<Bytes>>, RequestBody) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (sender, RequestBody::Boxed(BoxedBody(Box::pin(Pieces(receiver)))))
}

#[tokio::test]
async fn a_request_goes_out_with_its_host_first_and_framing_of_our_own() {
    let (mut connection, mut peer) = pair().await;
    let headers = fields(&[("x-a", "1"), ("host", "other"), ("content-length", "77"), ("transfer-encoding", "gzip"), ("x-a", "2")]);
    start(&mut connection, &Method::POST, &headers, RequestBody::Full(Bytes::from_static(b"hello")));
    peer.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi").await.unwrap();
    assert_eq!(head(&mut connection).await.unwrap().status, 200);
    let expected = "POST /x?y HTTP/1.1\r\nhost: site\r\nx-a: 1\r\nx-a: 2\r\ncontent-length: 5\r\n\r\nhello";
    assert_eq!(read(&mut peer, "hello").await, expected);
    assert_eq!(body(&mut connection).await.unwrap().0, b"hi");
    assert!(connection.finish() && connection.is_ready());
    start(&mut connection, &Method::GET, &HeaderMap::new(), RequestBody::Empty);
    peer.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
    assert_eq!(head(&mut connection).await.unwrap().status, 204);
    assert_eq!(read(&mut peer, "\r\n\r\n").await, "GET /x?y HTTP/1.1\r\nhost: site\r\n\r\n");
    assert!(connection.is_body_ended() && connection.finish());
}

#[tokio::test]
async fn a_body_of_unknown_length_goes_out_in_chunks_with_its_trailers() {
    let (mut connection, mut peer) = pair().await;
    let (sender, stream) = pieces();
    start(&mut connection, &Method::GET, &fields(&[("trailer", "x-sum")]), stream);
    sender.send(Frame::data(Bytes::from_static(b"0123456789abcdefg"))).unwrap();
    sender.send(Frame::data(Bytes::new())).unwrap();
    sender.send(Frame::trailers(fields(&[("x-sum", "1"), ("content-length", "2")]))).unwrap();
    peer.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nx-b: 3\r\n\r\n").await.unwrap();
    head(&mut connection).await.unwrap();
    let sent = read(&mut peer, "x-sum: 1\r\n\r\n").await;
    assert!(sent.ends_with("transfer-encoding: chunked\r\n\r\n11\r\n0123456789abcdefg\r\n0\r\nx-sum: 1\r\n\r\n"), "{sent}");
    let (data, trailers) = body(&mut connection).await.unwrap();
    assert_eq!((&data[..], &trailers["x-b"]), (&b"hi"[..], &HeaderValue::from_static("3")));
    assert!(connection.finish());
}

#[tokio::test]
async fn both_directions_flow_at_once() {
    let (mut connection, mut peer) = pair().await;
    let (sender, stream) = pieces();
    start(&mut connection, &Method::POST, &HeaderMap::new(), stream);
    peer.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
    head(&mut connection).await.unwrap();
    for piece in ["one", "two"] {
        sender.send(Frame::data(Bytes::from(piece))).unwrap();
        let echo = async {
            read(&mut peer, &format!("3\r\n{piece}\r\n")).await;
            peer.write_all(format!("3\r\n{piece}\r\n").as_bytes()).await.unwrap();
        };
        let frame = poll_fn(|cx| connection.poll_body(cx));
        let (frame, ()) = tokio::join!(frame, echo);
        assert_eq!(frame.unwrap().unwrap().into_data().unwrap(), piece);
    }
    drop(sender);
    let end = async {
        read(&mut peer, "0\r\n\r\n").await;
        peer.write_all(b"0\r\n\r\n").await.unwrap();
    };
    let (rest, ()) = tokio::join!(body(&mut connection), end);
    assert!(rest.unwrap().0.is_empty() && connection.finish());
}

#[tokio::test]
async fn an_answer_before_the_end_of_the_request_ends_the_connection() {
    let (mut connection, mut peer) = pair().await;
    let (_sender, stream) = pieces();
    start(&mut connection, &Method::POST, &HeaderMap::new(), stream);
    peer.write_all(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    assert_eq!(head(&mut connection).await.unwrap().status, 413);
    assert!(connection.is_body_ended() && !connection.finish());
}

#[tokio::test]
async fn interim_responses_are_read_over_up_to_a_bound_and_101_is_handed_out() {
    let interim = "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n";
    let (_, head, _) = get(format!("{}HTTP/1.1 200 OK\r\n\r\n", interim.repeat(16)).as_bytes(), false).await;
    assert_eq!(head.unwrap().status, 200);
    let (_, head, _) = get(format!("{}HTTP/1.1 200 OK\r\n\r\n", interim.repeat(17)).as_bytes(), false).await;
    assert!(matches!(head, Err(Error::Interim)));
    let (connection, head, peer) = get(format!("{interim}HTTP/1.1 101 Go\r\nupgrade: x\r\n\r\nfirst").as_bytes(), false).await;
    assert_eq!(head.unwrap().status, 101);
    let (mut tunnel, mut peer) = (connection.into_tunnel(), peer.unwrap());
    peer.write_all(b" then").await.unwrap();
    peer.shutdown().await.unwrap();
    let mut all = String::new();
    tunnel.read_to_string(&mut all).await.unwrap();
    assert_eq!(all, "first then");
}

#[tokio::test]
async fn what_must_not_be_used_again_is_not() {
    for (answer, reusable) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi", true),
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: keep-alive\r\n\r\nhi", true),
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: x\r\nconnection: keep-alive , CLOSE\r\n\r\nhi", false),
        ("HTTP/1.0 200 OK\r\ncontent-length: 2\r\nconnection: keep-alive\r\n\r\nhi", false),
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi!", false),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n\r\n", false),
    ] {
        let (mut connection, head, _peer) = get(answer.as_bytes(), false).await;
        head.unwrap();
        assert_eq!(body(&mut connection).await.unwrap().0, b"hi");
        assert_eq!(connection.finish(), reusable, "{answer}");
    }
    let (mut connection, head, _peer) = get(b"HTTP/1.1 200 OK\r\n\r\nhi", true).await;
    head.unwrap();
    assert_eq!(body(&mut connection).await.unwrap().0, b"hi");
    assert!(!connection.finish());
}

#[tokio::test]
async fn a_response_that_ends_early_is_never_a_whole_one() {
    for (answer, error) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nhi", DecodeError::Cut),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n", DecodeError::Cut),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi!", DecodeError::ChunkEnd),
    ] {
        let (mut connection, head, _peer) = get(answer.as_bytes(), true).await;
        head.unwrap();
        let body = body(&mut connection).await;
        assert!(matches!(body, Err(Error::Decode(found)) if found == error), "{answer}: {body:?}");
    }
    for answer in ["HTTP/1.1 200 OK\r\ncontent-le", ""] {
        let (connection, head, _peer) = get(answer.as_bytes(), true).await;
        assert!(matches!(head, Err(Error::Closed(None))), "{head:?}");
        assert_eq!((connection.has_sent(), connection.has_received()), (true, !answer.is_empty()));
    }
}

#[tokio::test]
async fn a_closed_or_talkative_connection_is_not_ready() {
    let (mut connection, peer) = pair().await;
    assert!(connection.is_ready());
    drop(peer);
    // Until the runtime has heard of it.
    while connection.is_ready() {
        tokio::task::yield_now().await;
    }
    let (mut connection, mut peer) = pair().await;
    peer.write_all(b"HTTP/1.1 408 Request Timeout\r\n\r\n").await.unwrap();
    while connection.is_ready() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn bytes_that_were_never_written_leave_the_body_untouched() {
    let (mut connection, peer) = pair().await;
    drop(peer);
    let (_sender, stream) = pieces();
    start(&mut connection, &Method::POST, &HeaderMap::new(), stream);
    assert!(matches!(head(&mut connection).await, Err(Error::Closed(Some(_)))));
    assert!(!connection.has_sent() && !connection.has_received());
    assert!(matches!(connection.take_untouched_body(), Some(RequestBody::Boxed(_))));
}

#[tokio::test]
async fn an_answer_that_came_before_the_connection_broke_is_delivered() {
    let (mut connection, mut peer) = pair().await;
    peer.write_all(b"HTTP/1.1 503 Busy\r\ncontent-length: 2\r\n\r\nhi").await.unwrap();
    drop(peer);
    start(&mut connection, &Method::POST, &HeaderMap::new(), RequestBody::Full(Bytes::from_static(b"hello")));
    assert_eq!(head(&mut connection).await.unwrap().status, 503);
    assert_eq!(body(&mut connection).await.unwrap().0, b"hi");
    assert!(!connection.finish());
}

#[tokio::test]
async fn a_request_body_that_fails_or_is_too_short_fails_the_request() {
    let (mut connection, _peer) = pair().await;
    struct Short(bool);
    impl Body for Short {
        type Data = Bytes;
        type Error = BodyFailure;
        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyFailure>>> {
            Poll::Ready(std::mem::take(&mut self.0).then(|| Ok(Frame::data(Bytes::from_static(b"ab")))))
        }
        fn size_hint(&self) -> http_body::SizeHint {
            http_body::SizeHint::with_exact(3)
        }
    }
    start(&mut connection, &Method::POST, &HeaderMap::new(), RequestBody::Boxed(BoxedBody(Box::pin(Short(true)))));
    assert!(matches!(head(&mut connection).await, Err(Error::Body(BodyFailure::Client))));
}

#[tokio::test]
async fn empty_frames_of_a_request_body_hold_nothing_up() {
    /// Whoever asks at the end of the list waits for ever.
    struct Frames(Vec<&'static [u8]>, Option<u64>);
    impl Body for Frames {
        type Data = Bytes;
        type Error = BodyFailure;
        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyFailure>>> {
            Poll::Ready(self.0.pop().map(|data| Ok(Frame::data(Bytes::from_static(data)))))
        }
        fn size_hint(&self) -> http_body::SizeHint {
            self.1.map_or_else(http_body::SizeHint::default, http_body::SizeHint::with_exact)
        }
    }
    for (length, end) in [(None, "2\r\nha\r\n2\r\nlf\r\n0\r\n\r\n"), (Some(4), "\r\n\r\nhalf")] {
        let (mut connection, mut peer) = pair().await;
        let body = Frames(vec![b"", b"lf", b"", b"", b"ha", b""], length);
        start(&mut connection, &Method::POST, &HeaderMap::new(), RequestBody::Boxed(BoxedBody(Box::pin(body))));
        // Polled once: nothing that comes later would wake it.
        assert!(std::future::poll_fn(|cx| Poll::Ready(connection.poll_head(cx).is_pending())).await);
        let got = tokio::time::timeout(std::time::Duration::from_secs(10), read(&mut peer, end)).await;
        assert!(got.is_ok(), "it stopped at an empty frame");
    }
}

#[tokio::test]
async fn long_bodies_pass_whole_both_ways() {
    let (mut connection, mut peer) = pair().await;
    let long: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    start(&mut connection, &Method::POST, &HeaderMap::new(), RequestBody::Full(Bytes::from(long.clone())));
    let expected = long.clone();
    let server = async move {
        read(&mut peer, "\r\n\r\n").await;
        let mut got = vec![0; expected.len()];
        peer.read_exact(&mut got).await.unwrap();
        assert!(got == expected);
        peer.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", got.len()).as_bytes()).await.unwrap();
        peer.write_all(&got).await.unwrap();
        peer
    };
    let client = async {
        head(&mut connection).await.unwrap();
        body(&mut connection).await.unwrap().0
    };
    let (got, _peer) = tokio::join!(client, server);
    assert!(got == long && connection.finish());
}

#[tokio::test]
async fn a_target_that_would_break_the_request_is_not_sent() {
    let (mut connection, _peer) = pair().await;
    let host = HeaderValue::from_static("site");
    let head = Head { method: &Method::GET, target: "/a b", host: &host, headers: &HeaderMap::new(), added: None };
    assert!(matches!(connection.start(&head, RequestBody::Empty, false), Err(Error::Request)));
}

#[tokio::test]
async fn a_long_body_is_read_into_the_same_memory_again_and_again() {
    let (mut connection, mut peer) = pair().await;
    start(&mut connection, &Method::GET, &HeaderMap::new(), RequestBody::Empty);
    // As much as a socket holds, so that no read waits: a body that stalls lets go of its memory.
    let answer = [&b"HTTP/1.1 200 OK\r\ncontent-length: 150000\r\n\r\n"[..], &[b'x'; 150_000]].concat();
    peer.write_all(&answer).await.unwrap();
    head(&mut connection).await.unwrap();
    let mut places = Vec::new();
    while !connection.is_body_ended() {
        let frame = poll_fn(|cx| connection.poll_body(cx)).await.unwrap().unwrap();
        places.push(frame.data_ref().unwrap().as_ptr() as usize);
    }
    // The first piece came with the head.
    assert!(matches!(places[..], [_, second, third] if second == third), "{places:x?}");
}
