use std::future::pending;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;
use tonic::codegen::tokio_stream::StreamExt;

use super::*;

type Meter = Arc<Mutex<(usize, usize)>>;

struct Rig {
    client: DuplexStream,
    upstream: DuplexStream,
    drain: Option<oneshot::Sender<()>>,
    metered: Meter,
    tunnel: JoinHandle<TunnelEnd>,
}

/// A tunnel between two in-memory pipes of `size` bytes each way.
fn rig(size: usize, idle_timeout: Option<Duration>, websocket: bool) -> Rig {
    let (client, near) = duplex(size);
    let (upstream, far) = duplex(size);
    let (drain, drained) = oneshot::channel();
    let metered = Meter::default();
    let sum = Arc::clone(&metered);
    let meter = move |way, bytes| {
        let mut sum = sum.lock().unwrap();
        match way {
            Way::Up => sum.0 += bytes,
            Way::Down => sum.1 += bytes,
        }
    };
    let drain_future = async move {
        if drained.await.is_err() {
            pending::<()>().await;
        }
    };
    let tunnel = tokio::spawn(run(near, far, TunnelOptions { idle_timeout, drain: drain_future, websocket, meter }));
    Rig { client, upstream, drain: Some(drain), metered, tunnel }
}

impl Rig {
    fn drain(&mut self) {
        self.drain.take().unwrap().send(()).unwrap();
    }
}

/// A text frame of `payload` bytes of `x`; masked with zeros if asked for.
fn frame(payload: usize, masked: bool) -> Vec<u8> {
    let mut bytes = vec![0x81, u8::try_from(payload).unwrap() | if masked { 0x80 } else { 0 }];
    bytes.extend(vec![0; if masked { 4 } else { 0 }]);
    bytes.extend(vec![b'x'; payload]);
    bytes
}

async fn exactly(stream: &mut DuplexStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes).await.unwrap();
    bytes
}

async fn rest(stream: &mut DuplexStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    bytes
}

fn pattern(count: usize) -> Vec<u8> {
    (0..count).map(|index| u8::try_from(index * 31 % 251).unwrap()).collect()
}

#[tokio::test]
async fn bytes_pass_both_ways_whole_however_slow_the_sinks_are() {
    for size in [1, 7, 4096, 1 << 20] {
        let mut rig = rig(size, None, false);
        let sent = pattern(if size == 1 { 3_000 } else { 300_000 });
        let (up, down) = (sent.clone(), sent.iter().rev().copied().collect::<Vec<_>>());
        let (mut client_read, mut client_write) = tokio::io::split(rig.client);
        let (mut upstream_read, mut upstream_write) = tokio::io::split(rig.upstream);
        let (mut got_up, mut got_down) = (Vec::new(), Vec::new());
        let (a, b, c, d) = tokio::join!(
            async { client_write.write_all(&up).await.and(client_write.shutdown().await) },
            async { upstream_write.write_all(&down).await.and(upstream_write.shutdown().await) },
            upstream_read.read_to_end(&mut got_up),
            client_read.read_to_end(&mut got_down),
        );
        a.and(b).and(c).and(d).unwrap();
        assert!(got_up == up && got_down == down, "{size}");
        let count = sent.len() as u64;
        assert_eq!(rig.tunnel.await.unwrap(), TunnelEnd { cause: Cause::Closed, from_client: count, from_upstream: count });
        assert_eq!(*rig.metered.lock().unwrap(), (sent.len(), sent.len()));
        rig.drain = None;
    }
}

#[tokio::test]
async fn a_half_close_is_passed_on_and_the_other_way_stays_open() {
    let mut rig = rig(4096, None, true);
    rig.client.write_all(&frame(3, true)).await.unwrap();
    rig.client.shutdown().await.unwrap();
    assert_eq!(rest(&mut rig.upstream).await, frame(3, true));
    rig.upstream.write_all(&frame(5, false)).await.unwrap();
    assert_eq!(exactly(&mut rig.client, 7).await, frame(5, false));
    drop(rig.upstream);
    assert_eq!(rest(&mut rig.client).await, b"");
    assert_eq!(rig.tunnel.await.unwrap(), TunnelEnd { cause: Cause::Closed, from_client: 9, from_upstream: 7 });
}

#[tokio::test]
async fn a_tunnel_without_a_byte_ends_after_the_idle_timeout() {
    let mut rig = rig(4096, Some(Duration::from_millis(20)), true);
    rig.client.write_all(b"x").await.unwrap();
    let end = rig.tunnel.await.unwrap();
    assert_eq!(end, TunnelEnd { cause: Cause::Idle, from_client: 1, from_upstream: 0 });
    assert_eq!(rest(&mut rig.client).await, b"");
    assert_eq!(rest(&mut rig.upstream).await, b"x");
}

#[test]
fn the_idle_timeout_counts_from_the_last_byte() {
    let (last, idle) = (Instant::now(), Duration::from_secs(300));
    let at = |seconds| last + Duration::from_secs(seconds);
    assert_eq!(later(last, idle, at(0)), Some(at(300)));
    assert_eq!(later(last, idle, at(299)), Some(at(300)));
    assert_eq!(later(last, idle, at(300)), None);
}

#[tokio::test]
async fn what_a_stream_buffers_is_flushed_without_waiting_for_more() {
    let (mut client, near) = duplex(4096);
    let (mut upstream, far) = duplex(4096);
    let tunnel = tokio::spawn(run(tokio::io::BufStream::new(near), tokio::io::BufStream::new(far), plain()));
    client.write_all(&frame(2, true)).await.unwrap();
    assert_eq!(exactly(&mut upstream, 8).await, frame(2, true));
    upstream.write_all(&frame(2, false)).await.unwrap();
    assert_eq!(exactly(&mut client, 4).await, frame(2, false));
    drop((client, upstream));
    assert_eq!(tunnel.await.unwrap().cause, Cause::Closed);
}

#[tokio::test]
async fn a_sink_that_takes_nothing_is_idle_too_and_the_source_is_held_back() {
    let mut rig = rig(16, Some(Duration::from_millis(20)), false);
    let sent = vec![7; 1 << 20];
    let mut written = 0;
    while let Ok(count) = rig.client.write(&sent).await {
        written += count;
    }
    assert_eq!(rig.tunnel.await.unwrap().cause, Cause::Idle);
    assert!(written <= BUFFER + 3 * 16, "{written} bytes were taken for a sink that takes 16");
}

/// A stream that fails when it is read, or when it is written.
struct Failing {
    read: Poll<()>,
    data: &'static [u8],
}

impl AsyncRead for Failing {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut tokio::io::ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        if !self.data.is_empty() {
            buffer.put_slice(self.data);
            self.data = b"";
            return Poll::Ready(Ok(()));
        }
        self.read.map(|()| Err(std::io::ErrorKind::ConnectionReset.into()))
    }
}

impl AsyncWrite for Failing {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<std::io::Result<usize>> {
        Poll::Ready(Err(std::io::ErrorKind::BrokenPipe.into()))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn plain() -> TunnelOptions<std::future::Pending<()>, fn(Way, usize)> {
    TunnelOptions { idle_timeout: None, drain: pending(), websocket: true, meter: |_, _| {} }
}

#[tokio::test]
async fn a_reset_on_one_side_closes_the_other_after_what_was_sent_before() {
    let reset = || Failing { read: Poll::Ready(()), data: b"bye" };
    let (mut end, near) = duplex(64);
    assert_eq!(run(reset(), near, plain()).await, TunnelEnd { cause: Cause::ClientReset, from_client: 3, from_upstream: 0 });
    assert_eq!(rest(&mut end).await, b"bye");
    let (mut end, near) = duplex(64);
    assert_eq!(run(near, reset(), plain()).await, TunnelEnd { cause: Cause::UpstreamReset, from_client: 0, from_upstream: 3 });
    assert_eq!(rest(&mut end).await, b"bye");
}

#[tokio::test]
async fn an_upstream_that_takes_no_more_still_has_its_last_words_delivered() {
    let (mut end, near) = duplex(4);
    end.write_all(b"late").await.unwrap();
    let upstream = Failing { read: Poll::Pending, data: b"policy violation" };
    let tunnel = tokio::spawn(run(near, upstream, plain()));
    assert_eq!(rest(&mut end).await, b"policy violation", "although the client takes four bytes at a time");
    assert_eq!(tunnel.await.unwrap(), TunnelEnd { cause: Cause::UpstreamReset, from_client: 0, from_upstream: 16 });
}

#[tokio::test]
async fn a_drained_tunnel_takes_what_still_comes_so_that_no_reset_overtakes_the_goodbye() {
    let mut rig = rig(64, None, true);
    rig.drain();
    assert_eq!(rest(&mut rig.client).await, [0x88, 2, 0x03, 0xe9]);
    rig.client.write_all(&pattern(4096)).await.unwrap();
    rest(&mut rig.upstream).await;
    rig.upstream.write_all(&pattern(4096)).await.unwrap();
    drop((rig.client, rig.upstream));
    let end = rig.tunnel.await.unwrap();
    assert_eq!(end, TunnelEnd { cause: Cause::Drained, from_client: 8, from_upstream: 4 });
}

#[tokio::test]
async fn a_drain_between_frames_says_goodbye_to_both_sides_at_once() {
    let mut rig = rig(4096, None, true);
    rig.client.write_all(&frame(3, true)).await.unwrap();
    assert_eq!(exactly(&mut rig.upstream, 9).await, frame(3, true));
    rig.drain();
    let client_got = rest(&mut rig.client).await;
    let upstream_got = rest(&mut rig.upstream).await;
    assert_eq!(client_got, [0x88, 2, 0x03, 0xe9]);
    let [0x88, 0x82, a, b, _, _, high, low] = upstream_got[..] else { panic!("{upstream_got:?} is no masked close frame") };
    assert_eq!([high ^ a, low ^ b], [0x03, 0xe9]);
    drop((rig.client, rig.upstream));
    assert_eq!(rig.tunnel.await.unwrap().cause, Cause::Drained);
}

#[tokio::test]
async fn a_drain_within_a_frame_waits_for_its_end_and_drops_what_follows() {
    let mut rig = rig(4096, None, true);
    let message = frame(100, false);
    rig.upstream.write_all(&message[..40]).await.unwrap();
    assert_eq!(exactly(&mut rig.client, 40).await, message[..40]);
    rig.drain();
    assert_eq!(exactly(&mut rig.upstream, 8).await[..2], [0x88, 0x82], "the idle direction does not wait for the busy one");
    rig.upstream.write_all(&message[40..]).await.unwrap();
    rig.upstream.write_all(&frame(10, false)).await.unwrap();
    let got = rest(&mut rig.client).await;
    assert_eq!(got, [&message[40..], &[0x88, 2, 0x03, 0xe9]].concat());
    drop((rig.client, rig.upstream));
    assert_eq!(rig.tunnel.await.unwrap().cause, Cause::Drained);
}

#[tokio::test]
async fn a_drain_does_not_wait_long_for_a_frame_that_never_ends() {
    let mut rig = rig(4096, None, true);
    rig.client.write_all(&frame(100, true)[..50]).await.unwrap();
    exactly(&mut rig.upstream, 50).await;
    rig.drain();
    assert_eq!(rig.tunnel.await.unwrap().cause, Cause::Drained);
    assert_eq!(rest(&mut rig.upstream).await, b"", "no close frame inside a frame");
}

#[tokio::test]
async fn a_drain_does_not_repeat_a_close_frame() {
    let mut rig = rig(4096, None, true);
    rig.upstream.write_all(&[0x88, 2, 0x03, 0xe8]).await.unwrap();
    exactly(&mut rig.client, 4).await;
    rig.drain();
    assert_eq!(rest(&mut rig.client).await, b"");
}

#[tokio::test]
async fn websocket_ends_understand_the_goodbye() {
    let mut rig = rig(4096, None, true);
    let (client, upstream) = (duplex(1), duplex(1));
    let mut client = WebSocketStream::from_raw_socket(std::mem::replace(&mut rig.client, client.0), Role::Client, None).await;
    let mut upstream = WebSocketStream::from_raw_socket(std::mem::replace(&mut rig.upstream, upstream.0), Role::Server, None).await;
    client.get_mut().write_all(&frame(5, true)).await.unwrap();
    assert_eq!(upstream.next().await.unwrap().unwrap(), Message::text("xxxxx"));
    upstream.get_mut().write_all(&frame(2, false)).await.unwrap();
    assert_eq!(client.next().await.unwrap().unwrap(), Message::text("xx"));
    rig.drain();
    let at_upstream = upstream.next().await.unwrap().unwrap();
    let at_client = client.next().await.unwrap().unwrap();
    for message in [at_client, at_upstream] {
        let Message::Close(Some(close)) = message else { panic!("{message:?}") };
        assert_eq!(u16::from(close.code), 1001);
    }
    drop((client, upstream));
    assert_eq!(rig.tunnel.await.unwrap().cause, Cause::Drained);
}

#[test]
fn an_idle_tunnel_is_small() {
    let future = run(duplex(1).0, duplex(1).0, plain());
    assert!(std::mem::size_of_val(&future) < 1024, "{}", std::mem::size_of_val(&future));
}
