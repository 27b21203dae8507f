//! Request bodies on their way from a client to an upstream: streamed, counted, limited, and kept for a replay while they are small.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use ::http::HeaderMap;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::oneshot;

use crate::http::clock::Clock;
use crate::http::copied::Copied;
use crate::http::incoming::{Broken, Incoming};

/// Longest body that is kept for another attempt.
pub const REPLAY_LIMIT: usize = 64 << 10;
/// Most pieces of one body that are kept.
const REPLAY_CHUNKS: usize = 1024;
/// What keeping a chunk costs beside its bytes.
const CHUNK: usize = 96;
/// Chunks below this are copied to be kept.
const SMALL: usize = 4 << 10;
/// All kept bodies together; beyond it requests run without a copy.
const REPLAY_TOTAL: usize = 64 << 20;

static REPLAY_BYTES: AtomicUsize = AtomicUsize::new(0);

/// Why a body ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFailure {
    /// The client closed.
    Client,
    /// The client sent what cannot be read.
    Unreadable,
    /// It is longer than `body_limit`.
    TooLarge,
    /// It stalled.
    Stalled,
    /// Another attempt has taken the body over.
    Detached,
}

impl fmt::Display for BodyFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Client => "the client ended its request body early",
            Self::Unreadable => "the request body cannot be read",
            Self::TooLarge => "the request body is longer than body_limit",
            Self::Stalled => "the request body stalled",
            Self::Detached => "another attempt has taken the request body over",
        })
    }
}

impl std::error::Error for BodyFailure {}

impl From<Broken> for BodyFailure {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Cut => Self::Client,
            Broken::Unreadable => Self::Unreadable,
        }
    }
}

/// A client's request body, shared by the attempts that send it.
pub struct ClientBody {
    state: Mutex<State>,
    clock: Arc<Clock>,
}

impl fmt::Debug for ClientBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientBody").finish_non_exhaustive()
    }
}

/// Drops fields of trailers that must not pass.
pub type TrailerFilter = Arc<dyn Fn(&mut HeaderMap) + Send + Sync>;

struct State {
    incoming: Incoming,
    /// What was read so far, while it may be sent again.
    replay: Option<Replay>,
    trailers: Option<HeaderMap>,
    filter: Option<TrailerFilter>,
    read: u64,
    limit: u64,
    /// Length of the whole body, if the client declared it.
    length: Option<u64>,
    ended: bool,
    started: bool,
    failure: Option<BodyFailure>,
    attempt: u32,
    copy: Option<Copy>,
}

/// Collects the bytes of a body for somebody else.
struct Copy {
    bytes: Vec<u8>,
    to: oneshot::Sender<Copied>,
}

#[derive(Default)]
struct Replay {
    chunks: VecDeque<Bytes>,
    bytes: usize,
}

impl Replay {
    /// Keeps a chunk; `false` when there is no room, and nothing is kept any more.
    fn keep(&mut self, chunk: &Bytes) -> bool {
        // A client that sends byte by byte must not cost more memory than it is charged for.
        if self.bytes + chunk.len() > REPLAY_LIMIT || self.chunks.len() >= REPLAY_CHUNKS {
            return false;
        }
        let cost = chunk.len() + CHUNK;
        if REPLAY_BYTES.fetch_add(cost, Relaxed) + cost > REPLAY_TOTAL {
            REPLAY_BYTES.fetch_sub(cost, Relaxed);
            return false;
        }
        self.bytes += chunk.len();
        // A small slice would keep all of the block that it was read into.
        self.chunks.push_back(if chunk.len() < SMALL { Bytes::copy_from_slice(chunk) } else { chunk.clone() });
        true
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        REPLAY_BYTES.fetch_sub(self.bytes + self.chunks.len() * CHUNK, Relaxed);
    }
}

impl ClientBody {
    /// A body of at most `limit` bytes. With `replay` it is kept, up to [`REPLAY_LIMIT`], so that another attempt can send it again.
    pub fn new(incoming: Incoming, limit: Option<u64>, replay: bool, filter: Option<TrailerFilter>, clock: Arc<Clock>) -> Arc<Self> {
        let length = incoming.length();
        // A long body would be dropped from the buffer anyway.
        let replay = (replay && length.is_none_or(|length| length <= REPLAY_LIMIT as u64)).then(Replay::default);
        let state = State {
            incoming,
            replay,
            trailers: None,
            filter,
            read: 0,
            limit: limit.unwrap_or(u64::MAX),
            length,
            ended: false,
            started: false,
            failure: None,
            attempt: 0,
            copy: None,
        };
        Arc::new(Self { state: Mutex::new(state), clock })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A sender of the whole body for a new attempt; earlier ones end with [`BodyFailure::Detached`].
    pub fn attempt(self: &Arc<Self>) -> RequestBody {
        let mut state = self.lock();
        state.attempt += 1;
        RequestBody::Client(Attempt { body: Arc::clone(self), number: state.attempt, chunk: 0, trailers_sent: false, ended: false })
    }

    /// A copy of the body, there as soon as the client has sent all of it. It fails if that never happens, or if the body is longer than
    /// [`REPLAY_LIMIT`]; `None` if that is known already. Only for a body of which nothing was read yet.
    pub fn copy(&self) -> Option<oneshot::Receiver<Copied>> {
        let mut state = self.lock();
        if state.started || state.length.is_some_and(|length| length > REPLAY_LIMIT as u64) {
            return None;
        }
        let (to, copy) = oneshot::channel();
        state.copy = Some(Copy { bytes: Vec::new(), to });
        Some(copy)
    }

    /// Whether another attempt could send the whole body.
    pub fn replayable(&self) -> bool {
        let state = self.lock();
        state.failure.is_none() && (!state.started || state.replay.is_some())
    }

    /// Whether no byte was read from the client yet.
    pub fn untouched(&self) -> bool {
        !self.lock().started
    }

    /// Why it ended early, if it did.
    pub fn failure(&self) -> Option<BodyFailure> {
        self.lock().failure
    }

    /// Marks it as failed, so that an attempt that is sending it is reset.
    pub fn fail(&self, failure: BodyFailure) {
        self.lock().failure.get_or_insert(failure);
    }

    /// Whether the client has sent all of it.
    pub fn ended(&self) -> bool {
        self.lock().ended
    }

    /// Bytes read from the client.
    pub fn bytes_read(&self) -> u64 {
        self.lock().read
    }

    /// Reads and drops what has arrived already, at most 64 KiB, without waiting for more. `true` when the body ended within that.
    ///
    /// Asking for the body lets hyper read it from its buffer only after this task has yielded, hence the few turns.
    pub async fn drop_arrived(&self) -> bool {
        let mut turns = 4;
        std::future::poll_fn(|cx| {
            let mut state = self.lock();
            loop {
                if state.ended || state.failure.is_some() || state.read > REPLAY_LIMIT as u64 {
                    return Poll::Ready(state.ended);
                }
                match Pin::new(&mut state.incoming).poll_frame(cx) {
                    Poll::Ready(Some(Ok(frame))) => state.read += frame.data_ref().map_or(0, |data| data.len() as u64),
                    Poll::Ready(None) => state.ended = true,
                    Poll::Ready(Some(Err(_))) => return Poll::Ready(false),
                    Poll::Pending if turns == 0 => return Poll::Ready(false),
                    Poll::Pending => {
                        turns -= 1;
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                }
                state.ended |= state.incoming.is_end_stream();
            }
        })
        .await
    }

    /// Reads the whole body, at most `limit` bytes.
    ///
    /// # Errors
    /// [`BodyFailure`] when the client ends it early or it is longer.
    pub async fn collect(self: &Arc<Self>, limit: u64) -> Result<Bytes, BodyFailure> {
        use http_body_util::BodyExt;
        let mut body = self.attempt();
        let mut first: Option<Bytes> = None;
        let mut rest: Vec<u8> = Vec::new();
        let mut total = 0;
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            total += data.len() as u64;
            if total > limit {
                self.fail(BodyFailure::TooLarge);
                return Err(BodyFailure::TooLarge);
            }
            match first.take() {
                None if rest.is_empty() => first = Some(data),
                None => rest.extend_from_slice(&data),
                Some(chunk) => {
                    rest.extend_from_slice(&chunk);
                    rest.extend_from_slice(&data);
                }
            }
        }
        Ok(first.unwrap_or_else(|| rest.into()))
    }
}

/// The body of one request to an upstream.
#[derive(Debug)]
pub enum RequestBody {
    /// None.
    Empty,
    /// Bytes in memory.
    Full(Bytes),
    /// A client's body.
    Client(Attempt),
    /// An adapted body (gRPC-Web).
    Boxed(BoxedBody),
}

/// A body behind a pointer, for the rare adapters.
pub struct BoxedBody(pub Pin<Box<dyn Body<Data = Bytes, Error = BodyFailure> + Send>>);

impl fmt::Debug for BoxedBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BoxedBody")
    }
}

/// One attempt's view of a client's body.
#[derive(Debug)]
pub struct Attempt {
    body: Arc<ClientBody>,
    number: u32,
    /// Next chunk of the replay buffer.
    chunk: usize,
    trailers_sent: bool,
    ended: bool,
}

impl Attempt {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyFailure>>> {
        let mut state = self.body.lock();
        let state = &mut *state;
        if state.attempt != self.number {
            return Poll::Ready(Some(Err(BodyFailure::Detached)));
        }
        if let Some(failure) = state.failure {
            return Poll::Ready(Some(Err(failure)));
        }
        if let Some(chunk) = state.replay.as_ref().and_then(|replay| replay.chunks.get(self.chunk)) {
            self.chunk += 1;
            return Poll::Ready(Some(Ok(Frame::data(chunk.clone()))));
        }
        if state.ended {
            self.ended = true;
            if !self.trailers_sent
                && let Some(trailers) = state.trailers.clone()
            {
                self.trailers_sent = true;
                return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
            }
            return Poll::Ready(None);
        }
        state.started = true;
        let frame = match Pin::new(&mut state.incoming).poll_frame(cx) {
            Poll::Pending => {
                self.body.clock.await_client(true);
                return Poll::Pending;
            }
            Poll::Ready(frame) => frame,
        };
        self.body.clock.await_client(false);
        let result = match frame {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => state.data(data, &self.body.clock, &mut self.chunk),
                Err(frame) => state.trailers(frame).map(|trailers| {
                    self.trailers_sent = true;
                    Ok(Frame::trailers(trailers))
                }),
            },
            Some(Err(broken)) => Some(Err(*state.failure.insert(broken.into()))),
            None => {
                state.ended = true;
                None
            }
        };
        state.ended |= state.failure.is_none() && state.incoming.is_end_stream();
        if state.ended {
            if let Some(Copy { bytes, to }) = state.copy.take() {
                // Whoever wanted it may be gone.
                let _ = to.send(Copied { bytes: bytes.into(), trailers: state.trailers.clone() });
            }
            self.body.clock.request_body_ended(Instant::now());
            self.ended = state.trailers.is_none() || self.trailers_sent;
        }
        Poll::Ready(result)
    }
}

impl State {
    fn data(&mut self, data: Bytes, clock: &Clock, next: &mut usize) -> Option<Result<Frame<Bytes>, BodyFailure>> {
        self.read += data.len() as u64;
        // An HTTP/2 stream has no socket of its own that would tell its clock.
        clock.moved(data.len());
        clock.body_bytes(data.len());
        if self.read > self.limit {
            return Some(Err(*self.failure.insert(BodyFailure::TooLarge)));
        }
        if let Some(copy) = &mut self.copy {
            if copy.bytes.len() + data.len() <= REPLAY_LIMIT {
                copy.bytes.extend_from_slice(&data);
            } else {
                self.copy = None;
            }
        }
        if let Some(replay) = &mut self.replay {
            if replay.keep(&data) {
                *next += 1;
            } else {
                self.replay = None;
            }
        }
        Some(Ok(Frame::data(data)))
    }

    fn trailers(&mut self, frame: Frame<Bytes>) -> Option<HeaderMap> {
        let mut trailers = frame.into_trailers().ok()?;
        if let Some(filter) = &self.filter {
            filter(&mut trailers);
        }
        self.ended = true;
        if trailers.is_empty() {
            return None;
        }
        self.trailers = Some(trailers.clone());
        Some(trailers)
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyFailure;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyFailure>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Full(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Client(attempt) => attempt.poll_frame(cx),
            Self::Boxed(body) => body.0.as_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_empty(),
            Self::Client(attempt) => attempt.ended,
            Self::Boxed(body) => body.0.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Client(attempt) => attempt.body.lock().length.map_or_else(SizeHint::default, SizeHint::with_exact),
            Self::Boxed(body) => body.0.size_hint(),
        }
    }
}
