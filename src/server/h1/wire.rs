//! The two ends of an HTTP/1 connection that its requests share: what was read and not used yet, and the socket.
//!
//! The connection's loop owns them. For a request with a body they are lent: the loop and the body of that request both read here. Mostly
//! they run on one task. Towards an HTTP/2 upstream the body is read by a task of that connection: then each wakes the other when what it
//! waits for has changed. When the request is over the loop takes them back, whoever still holds the body.

use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Bytes, BytesMut};
use http_body::Frame;
use tokio::io::{AsyncReadExt, AsyncWrite};

use crate::http::h1::{BodyLength, Decoded, Decoder, Limits, ParseError, RequestHead, block, parse_request};
use crate::http::incoming::{BodySource, Broken, Incoming};
use crate::server::h1::outbox::Outbox;
use crate::server::io::ClientIo;

/// Bytes read at a time where many come.
const LARGE: usize = 128 << 10;
/// Most bytes of empty lines that are skipped at once.
const MAX_EMPTY: usize = 16;
/// What HTTP/2 clients send first (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// What is read and written on an HTTP/1 connection.
pub(super) struct Wire(Side);

enum Side {
    /// The loop's alone, as long as there is no body: nothing to lock.
    Own(Box<Inner>),
    /// Shared with the body of the current request.
    Lent(Arc<Lent>),
    /// The connection is over.
    Closed,
}

/// What the body of a request reads from; `None` once that request is over.
struct Lent(Mutex<Option<Box<Inner>>>);

struct Inner {
    /// `None` once a tunnel has it.
    io: Option<ClientIo>,
    /// Read and not used yet.
    buf: BytesMut,
    /// Whether `buf` is the block that all connections of the worker share: only while a head is looked for, never while the task rests.
    lent: bool,
    /// How much of `buf` was looked at for the end of a head.
    seen: usize,
    /// Whether the last read filled all the room it had.
    much: bool,
    /// Of the current request's body.
    decoder: Decoder,
    /// Bytes of the 100 that the client waits for and that are to be written before its body is read.
    owed: &'static [u8],
    /// The 100 is written but may not have left.
    unflushed: bool,
    /// The first bytes may still be those of an HTTP/2 client.
    sniffing: bool,
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
    /// The preface of HTTP/2, which is still to be read.
    Http2,
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
    /// Nothing was read from `io`. `sniffing`: its client may speak HTTP/2.
    pub(super) fn new(io: ClientIo, sniffing: bool) -> Self {
        Self(Side::Own(Box::new(Inner {
            io: Some(io),
            buf: BytesMut::new(),
            lent: false,
            seen: 0,
            much: false,
            decoder: Decoder::Done,
            owed: b"",
            unflushed: false,
            sniffing,
            eof: false,
            broken: false,
            reader: None,
            owner: None,
        })))
    }

    /// Does something with what is on the wire; `closed` is what comes of it on one that is no more.
    #[inline]
    fn with<T>(&mut self, closed: T, f: impl FnOnce(&mut Inner) -> T) -> T {
        match &mut self.0 {
            Side::Own(inner) => f(inner),
            Side::Lent(lent) => lent.lock().as_deref_mut().map_or(closed, f),
            Side::Closed => closed,
        }
    }

    /// Whether bytes of a request have come that was not read yet.
    pub(super) fn has_bytes(&mut self) -> bool {
        self.with(false, |inner| !inner.buf.is_empty())
    }

    /// The next request's head. `begun` is called when only a part of it has come.
    pub(super) fn poll_head(&mut self, cx: &mut Context<'_>, limits: Limits, begun: impl Fn()) -> Poll<Heard> {
        self.with(Poll::Ready(Heard::End), |inner| {
            loop {
                if let Some(heard) = inner.look(limits, &begun) {
                    return Poll::Ready(heard);
                }
                if inner.eof {
                    return Poll::Ready(inner.hung_up());
                }
                match ready!(inner.poll_read_head(cx)) {
                    Ok(0) => inner.eof = true,
                    Ok(_) => {}
                    Err(_) => return Poll::Ready(inner.hung_up()),
                }
            }
        })
    }

    /// A request with this body begins.
    pub(super) fn begin(&mut self, length: BodyLength, limits: Limits, expects_continue: bool) -> Incoming {
        self.take_back();
        let Side::Own(inner) = &mut self.0 else { return Incoming::Empty };
        inner.decoder = Decoder::new(length, limits);
        inner.broken = false;
        inner.owed = b"";
        let length = match length {
            // Nothing is lent, for there is nothing to read.
            BodyLength::Known(0) => return Incoming::Empty,
            BodyLength::Known(length) => Some(length),
            BodyLength::Chunked | BodyLength::UntilClose => None,
        };
        if expects_continue {
            inner.owed = CONTINUE;
        }
        let Side::Own(inner) = std::mem::replace(&mut self.0, Side::Closed) else { return Incoming::Empty };
        let lent = Arc::new(Lent(Mutex::new(Some(inner))));
        self.0 = Side::Lent(Arc::clone(&lent));
        Incoming::Http1 { source: lent, length }
    }

    /// The request is over: its body gets nothing any more.
    fn take_back(&mut self) {
        if let Side::Lent(lent) = &self.0 {
            let taken = lent.lock().take();
            self.0 = taken.map_or(Side::Closed, |mut inner| {
                inner.owner = None;
                if let Some(reader) = inner.reader.take() {
                    reader.wake();
                }
                Side::Own(inner)
            });
        }
    }

    /// Whether the client has gone while it should wait for its answer. What it sends meanwhile is kept for later, as far as one read
    /// goes; what it still sends of a body is not looked at here.
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>) -> bool {
        self.with(true, |inner| {
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
        })
    }

    /// Whether the client has closed in the middle of its request.
    pub(super) fn is_cut(&mut self) -> bool {
        self.with(false, |inner| inner.eof && inner.broken && !inner.decoder.is_done())
    }

    /// The answer begins: who waits for a 100 gets none any more. What is left of one that is half written must go first.
    pub(super) fn answer_begins(&mut self) -> &'static [u8] {
        self.with(b"", |inner| {
            let owed = std::mem::take(&mut inner.owed);
            if owed.len() < CONTINUE.len() { owed } else { b"" }
        })
    }

    /// Whether the whole request was read; drops what has arrived of the rest of its body. `false`: the connection cannot go on.
    pub(super) fn request_is_over(&mut self) -> bool {
        self.take_back();
        let Side::Own(inner) = &mut self.0 else { return false };
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
    pub(super) fn rest(&mut self) {
        self.with((), |inner| {
            inner.seen = 0;
            inner.much = false;
            inner.unflushed = false;
            if inner.buf.is_empty() {
                inner.buf = BytesMut::new();
            }
        });
    }

    /// Writes all of `out`.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>, out: &mut Outbox) -> Poll<io::Result<()>> {
        self.with(Poll::Ready(Err(io::ErrorKind::NotConnected.into())), |inner| {
            while !out.is_empty() {
                let Some(io) = &mut inner.io else { return Poll::Ready(Err(io::ErrorKind::NotConnected.into())) };
                let written = ready!(out.poll_write(Pin::new(io), cx))?;
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                out.advance(written);
            }
            Poll::Ready(Ok(()))
        })
    }

    /// Passes on what TLS holds back.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(Poll::Ready(Ok(())), |inner| match &mut inner.io {
            Some(io) => Pin::new(io).poll_flush(cx),
            None => Poll::Ready(Ok(())),
        })
    }

    /// Says goodbye, as far as the close of the socket does not say it.
    pub(super) fn poll_goodbye(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(Poll::Ready(Ok(())), |inner| match &mut inner.io {
            Some(io) if io.must_say_goodbye() => Pin::new(io).poll_shutdown(cx),
            Some(_) | None => Poll::Ready(Ok(())),
        })
    }

    /// The byte stream, for a tunnel or another protocol, with what was read ahead.
    pub(super) fn take_stream(&mut self) -> Option<ClientIo> {
        self.with(None, |inner| {
            let mut io = inner.io.take()?;
            io.unread(std::mem::take(&mut inner.buf).into());
            Some(io)
        })
    }
}

impl Drop for Wire {
    /// The connection is over, whoever still holds the body of its last request.
    fn drop(&mut self) {
        self.take_back();
    }
}

impl Inner {
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

    /// Looks for a head in what was read. The block is given back then.
    #[inline]
    fn look(&mut self, limits: Limits, begun: &impl Fn()) -> Option<Heard> {
        self.skip_empty_lines();
        if self.sniffing && !self.buf.is_empty() {
            let common = self.buf.len().min(PREFACE.len());
            self.sniffing = self.buf.get(..common) == PREFACE.get(..common);
            if self.sniffing {
                self.settle();
                return (common == PREFACE.len()).then_some(Heard::Http2);
            }
        }
        if self.buf.is_empty() {
            self.settle();
            return None;
        }
        let tls = self.buf.first() == Some(&0x16);
        let parsed = parse_request(&mut self.buf, &mut self.seen, limits);
        self.settle();
        match parsed {
            Ok(Some(head)) => Some(Heard::Head(head)),
            Ok(None) => {
                begun();
                None
            }
            Err(error) => Some(Heard::Bad { error, tls }),
        }
    }

    /// The block is left to the other connections; what was not used stays here.
    #[inline]
    fn settle(&mut self) {
        if std::mem::take(&mut self.lent) {
            block::give_back(&mut self.buf);
        }
    }

    /// One read for a head, which mostly comes as a whole: with nothing in the buffer the block itself is looked at.
    #[inline]
    fn poll_read_head(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Some(io) = self.io.as_mut().filter(|_| self.buf.is_empty() && !self.much) else { return self.poll_read(cx) };
        let read = ready!(block::poll_lend(io, &mut self.buf, cx))?;
        (self.lent, self.much) = (read.bytes > 0, read.full);
        Poll::Ready(Ok(read.bytes))
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

impl Lent {
    fn lock(&self) -> MutexGuard<'_, Option<Box<Inner>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BodySource for Lent {
    fn poll_frame(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let mut lent = self.lock();
        let Some(inner) = lent.as_deref_mut() else { return Poll::Ready(Some(Err(Broken::Cut))) };
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

    fn ended(&self) -> bool {
        self.lock().as_ref().is_some_and(|inner| inner.decoder.is_done())
    }
}
