//! The two ends of an HTTP/1 connection that its requests share: what was read and not used yet, and the socket.
//!
//! The connection's loop and the body of its current request both read here. Mostly they run on one task. Towards an HTTP/2 upstream the
//! body is read by a task of that connection: then each wakes the other when what it waits for has changed.

use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes, BytesMut};
use http_body::Frame;
use tokio::io::{AsyncReadExt, AsyncWrite};

use crate::http::h1::{BodyLength, Decoded, Decoder, Limits, ParseError, RequestHead, block, parse_request};
use crate::http::incoming::{BodySource, Broken};
use crate::http::upgrade::BoxedStream;
use crate::server::io::ClientIo;

/// Bytes read at a time where many come.
const LARGE: usize = 128 << 10;
/// Most bytes of empty lines that are skipped at once.
const MAX_EMPTY: usize = 16;
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// What is read and written on an HTTP/1 connection.
pub(super) struct Wire(Mutex<Inner>);

struct Inner {
    /// `None` once a tunnel has it.
    io: Option<ClientIo>,
    /// Read and not used yet.
    buf: BytesMut,
    /// How much of `buf` was looked at for the end of a head.
    seen: usize,
    /// Whether the last read filled all the room it had.
    much: bool,
    /// Of the current request's body.
    decoder: Decoder,
    /// Number of the current request.
    number: u64,
    /// Bytes of the 100 that the client waits for and that are to be written before its body is read.
    owed: &'static [u8],
    /// The 100 is written but may not have left.
    unflushed: bool,
    /// The client has closed its side.
    eof: bool,
    /// The body of the current request is beyond repair.
    broken: bool,
    /// Who waits for more of the body.
    reader: Option<Waker>,
    /// The connection's task, while the body is somebody else's to read.
    owner: Option<Waker>,
}

/// What came of reading for a head.
pub(super) enum Heard {
    /// A request.
    Head(RequestHead),
    /// The client has closed between two requests.
    End,
    /// The client has closed, or the connection broke, in the middle of a head.
    Cut,
    /// Bytes that are no head. `tls`: they look like the start of a TLS handshake.
    Bad {
        /// What is wrong.
        error: ParseError,
        /// Whether the client seems to speak TLS.
        tls: bool,
    },
}

impl Wire {
    /// `prefix` was read from `io` already.
    pub(super) fn new(io: ClientIo, prefix: &[u8]) -> Self {
        Self(Mutex::new(Inner {
            io: Some(io),
            buf: BytesMut::from(prefix),
            seen: 0,
            much: false,
            decoder: Decoder::Done,
            number: 0,
            owed: b"",
            unflushed: false,
            eof: false,
            broken: false,
            reader: None,
            owner: None,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether bytes of a request have come that was not read yet.
    pub(super) fn has_bytes(&self) -> bool {
        !self.lock().buf.is_empty()
    }

    /// The next request's head. `begun` is called when only a part of it has come.
    pub(super) fn poll_head(&self, cx: &mut Context<'_>, limits: Limits, begun: impl Fn()) -> Poll<Heard> {
        let inner = &mut *self.lock();
        loop {
            inner.skip_empty_lines();
            if !inner.buf.is_empty() {
                let tls = inner.buf.first() == Some(&0x16);
                match parse_request(&mut inner.buf, &mut inner.seen, limits) {
                    Ok(Some(head)) => return Poll::Ready(Heard::Head(head)),
                    Ok(None) => begun(),
                    Err(error) => return Poll::Ready(Heard::Bad { error, tls }),
                }
            }
            if inner.eof {
                return Poll::Ready(inner.hung_up());
            }
            match ready!(inner.poll_read(cx)) {
                Ok(0) => inner.eof = true,
                Ok(_) => {}
                Err(_) => return Poll::Ready(inner.hung_up()),
            }
        }
    }

    /// A request whose body has this length begins; returns its number.
    pub(super) fn begin(&self, length: BodyLength, limits: Limits, expects_continue: bool) -> u64 {
        let inner = &mut *self.lock();
        inner.next_number();
        inner.decoder = Decoder::new(length, limits);
        inner.owed = if expects_continue && !inner.decoder.is_done() { CONTINUE } else { b"" };
        inner.broken = false;
        inner.number
    }

    /// Whether the client has gone while it should wait for its answer. What it sends meanwhile is kept for later, as far as one read
    /// goes; what it still sends of a body is not looked at here.
    pub(super) fn poll_gone(&self, cx: &mut Context<'_>) -> bool {
        let inner = &mut *self.lock();
        if !inner.decoder.is_done() {
            // Whoever reads the body says when it has ended; until then it is there that the client's leaving is heard of.
            inner.owner = Some(cx.waker().clone());
            return false;
        }
        if !inner.buf.is_empty() {
            return false;
        }
        if !inner.eof {
            match inner.poll_read(cx) {
                Poll::Ready(Ok(0)) => inner.eof = true,
                Poll::Ready(Ok(_)) | Poll::Pending => {}
                Poll::Ready(Err(_)) => return true,
            }
        }
        inner.eof && inner.buf.is_empty()
    }

    /// Whether the client has ended its side in the middle of the body.
    pub(super) fn is_cut(&self) -> bool {
        let inner = self.lock();
        inner.eof && inner.broken && !inner.decoder.is_done()
    }

    /// The answer begins: who waits for a 100 gets none any more. What is left of one that is half written must go first.
    pub(super) fn answer_begins(&self) -> &'static [u8] {
        let inner = &mut *self.lock();
        let owed = std::mem::take(&mut inner.owed);
        if owed.len() < CONTINUE.len() { owed } else { b"" }
    }

    /// Whether the whole request was read; drops what has arrived of the rest of its body. `false`: the connection cannot go on.
    pub(super) fn request_is_over(&self) -> bool {
        let inner = &mut *self.lock();
        // Whoever still holds the body reads nothing of the next request.
        inner.next_number();
        while !inner.broken {
            match inner.decoder.decode(&mut inner.buf) {
                Ok(Decoded::End | Decoded::Trailers(_)) => return true,
                Ok(Decoded::Data(_)) => {}
                Ok(Decoded::NeedMore) | Err(_) => return false,
            }
        }
        false
    }

    /// Between two requests nothing is kept that is not needed.
    pub(super) fn rest(&self) {
        let inner = &mut *self.lock();
        inner.seen = 0;
        inner.much = false;
        inner.unflushed = false;
        if inner.buf.is_empty() {
            inner.buf = BytesMut::new();
        }
    }

    /// Writes all of `out`.
    pub(super) fn poll_write(&self, cx: &mut Context<'_>, out: &mut Outbox) -> Poll<io::Result<()>> {
        let inner = &mut *self.lock();
        while !out.is_empty() {
            let Some(io) = &mut inner.io else { return Poll::Ready(Err(io::ErrorKind::NotConnected.into())) };
            let written = ready!(out.poll_write(Pin::new(io), cx))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            out.advance(written);
        }
        Poll::Ready(Ok(()))
    }

    /// Passes on what TLS holds back.
    pub(super) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.lock().io {
            Some(io) => Pin::new(io).poll_flush(cx),
            None => Poll::Ready(Ok(())),
        }
    }

    /// Says goodbye, as far as the close of the socket does not say it.
    pub(super) fn poll_goodbye(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let inner = &mut *self.lock();
        match &mut inner.io {
            Some(io) if io.must_say_goodbye() => Pin::new(io).poll_shutdown(cx),
            Some(_) | None => Poll::Ready(Ok(())),
        }
    }

    /// The connection is over, whoever still holds the body of its last request.
    pub(super) fn close(&self) {
        let inner = &mut *self.lock();
        inner.broken = true;
        inner.io = None;
        inner.next_number();
    }

    /// The byte stream, for a tunnel, with what was read ahead.
    pub(super) fn take_stream(&self) -> Option<BoxedStream> {
        let inner = &mut *self.lock();
        let mut io = inner.io.take()?;
        io.unread(std::mem::take(&mut inner.buf).into());
        Some(Box::new(io))
    }
}

impl Inner {
    fn next_number(&mut self) {
        self.number += 1;
        self.owner = None;
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    /// Line ends in front of a request are no part of it (RFC 9112 section 2.2): a connection that got nothing else is idle.
    fn skip_empty_lines(&mut self) {
        if self.buf.len() <= MAX_EMPTY && self.buf.iter().all(|byte| matches!(byte, b'\r' | b'\n')) {
            self.buf.clear();
            self.seen = 0;
        }
    }

    fn hung_up(&self) -> Heard {
        if self.buf.is_empty() { Heard::End } else { Heard::Cut }
    }

    /// One read, behind what is in the buffer: into the block that all connections share, or into a buffer of this one where much
    /// comes.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Some(io) = &mut self.io else { return Poll::Ready(Ok(0)) };
        if !self.much {
            let read = ready!(block::poll_read(io, &mut self.buf, cx))?;
            self.much = read.full;
            return Poll::Ready(Ok(read.bytes));
        }
        if self.buf.capacity() - self.buf.len() < LARGE / 2 {
            // Takes the old memory again if nobody refers to it any more.
            self.buf.reserve(LARGE);
        }
        let Poll::Ready(read) = pin!(io.read_buf(&mut self.buf)).poll(cx) else {
            // A body that stalls takes no memory.
            if self.buf.is_empty() {
                self.buf = BytesMut::new();
            }
            return Poll::Pending;
        };
        self.much = matches!(read, Ok(read) if read >= block::BLOCK);
        Poll::Ready(read)
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        loop {
            match self.decoder.decode(&mut self.buf) {
                Ok(Decoded::Data(data)) => {
                    // Who has begun to send waits for no 100.
                    if self.owed.len() == CONTINUE.len() {
                        self.owed = b"";
                    }
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Ok(Decoded::Trailers(trailers)) => return Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
                Ok(Decoded::End) => return Poll::Ready(None),
                Ok(Decoded::NeedMore) if self.eof || self.broken => return Poll::Ready(self.break_off(Broken::Cut)),
                Ok(Decoded::NeedMore) => {}
                Err(_) => return Poll::Ready(self.break_off(Broken::Unreadable)),
            }
            if ready!(self.poll_continue(cx)).is_err() {
                return Poll::Ready(self.break_off(Broken::Cut));
            }
            match ready!(self.poll_read(cx)) {
                Ok(0) => self.eof = true,
                Ok(_) => {}
                Err(_) => return Poll::Ready(self.break_off(Broken::Cut)),
            }
        }
    }

    fn break_off<T>(&mut self, why: Broken) -> Option<Result<T, Broken>> {
        self.broken = true;
        Some(Err(why))
    }

    /// Invites the client to send its body, unless it has begun by itself.
    fn poll_continue(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.buf.is_empty() && self.owed.len() == CONTINUE.len() {
            self.owed = b"";
        }
        while !self.owed.is_empty() {
            let Some(io) = &mut self.io else { return Poll::Ready(Err(io::ErrorKind::NotConnected.into())) };
            let written = ready!(Pin::new(&mut *io).poll_write(cx, self.owed))?;
            self.owed = self.owed.get(written.max(1)..).unwrap_or_default();
            self.unflushed = true;
        }
        if self.unflushed
            && let Some(io) = &mut self.io
        {
            ready!(Pin::new(io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }
}

impl BodySource for Wire {
    fn poll_frame(&self, number: u64, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let inner = &mut *self.lock();
        if inner.number != number {
            return Poll::Ready(Some(Err(Broken::Cut)));
        }
        let frame = inner.poll_body(cx);
        if frame.is_pending() {
            inner.reader = Some(cx.waker().clone());
        } else if (inner.decoder.is_done() || inner.broken)
            && let Some(owner) = inner.owner.take()
        {
            owner.wake();
        }
        frame
    }

    fn ended(&self, number: u64) -> bool {
        let inner = self.lock();
        inner.number == number && inner.decoder.is_done()
    }
}

/// What waits to be written: encoded bytes, then a piece of the body that is not copied, then what follows it.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    /// Heads, chunk sizes, small pieces.
    pub(super) front: BytesMut,
    /// A large piece.
    pub(super) piece: Bytes,
    /// The line end behind a chunk.
    pub(super) back: &'static [u8],
}

impl Outbox {
    pub(super) fn is_empty(&self) -> bool {
        self.front.is_empty() && self.piece.is_empty() && self.back.is_empty()
    }

    fn poll_write(&self, io: Pin<&mut ClientIo>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.piece.is_empty() && self.back.is_empty() {
            io.poll_write(cx, &self.front)
        } else {
            io.poll_write_vectored(cx, &[IoSlice::new(&self.front), IoSlice::new(&self.piece), IoSlice::new(self.back)])
        }
    }

    fn advance(&mut self, mut written: usize) {
        for part in [&mut self.front as &mut dyn Buf, &mut self.piece, &mut self.back] {
            let step = written.min(part.remaining());
            part.advance(step);
            written -= step;
        }
        if self.piece.is_empty() {
            // An empty slice would still hold the memory it came from, and whoever reads there could not use it again.
            self.piece = Bytes::new();
        }
    }
}
