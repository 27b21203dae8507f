//! What a connection has to write: a head, and a body that is asked for more as the upstream takes it.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::Body;
use tokio::io::AsyncWrite;

use super::Head;
use crate::http::body::{BodyFailure, RequestBody};
use crate::http::h1::encode;
use crate::upstream::wire::Wire;

/// Longest head buffer that is kept for the next request of the worker.
const KEPT: usize = 16 << 10;

thread_local! {
    /// The buffer that heads are written to; a connection has it only while one is on its way.
    static HEAD: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// How the end of the request's body is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    /// By its length; so much is left.
    Length(u64),
    Chunked,
}

/// The request's side of a connection.
#[derive(Debug)]
pub(super) struct Output {
    /// The head, the size of a chunk, trailers: written before `data`, up to `start` already.
    front: Vec<u8>,
    start: usize,
    data: Bytes,
    /// Written behind `data`.
    back: &'static [u8],
    body: RequestBody,
    framing: Framing,
    /// Whether anything was taken out of the body.
    touched: bool,
    /// Nothing more comes behind what is there.
    complete: bool,
    unflushed: bool,
    /// Bytes that the stream took.
    pub(super) written: u64,
    /// The stream takes no more.
    broken: Option<io::Error>,
}

impl Default for Output {
    fn default() -> Self {
        Self {
            front: Vec::new(),
            start: 0,
            data: Bytes::new(),
            back: b"",
            body: RequestBody::Empty,
            framing: Framing::Length(0),
            touched: false,
            complete: true,
            unflushed: false,
            written: 0,
            broken: None,
        }
    }
}

impl Output {
    /// Queues a head, and makes `body` what comes behind it. `false` if the head cannot be written.
    pub(super) fn start(&mut self, head: &Head<'_>, body: RequestBody) -> bool {
        self.front = HEAD.take();
        self.front.clear();
        self.start = 0;
        self.written = 0;
        self.touched = false;
        self.unflushed = false;
        let (ended, exact) = (body.is_end_stream(), body.size_hint().exact());
        self.body = body;
        self.complete = ended;
        self.framing = match exact {
            _ if ended => Framing::Length(0),
            Some(length) => Framing::Length(length),
            None => Framing::Chunked,
        };
        let out = &mut self.front;
        if !encode::is_target(head.target.as_bytes()) {
            return false;
        }
        line(out, &[head.method.as_str().as_bytes(), b" ", head.target.as_bytes(), b" HTTP/1.1\r\nhost: ", head.host.as_bytes(), b"\r\n"]);
        let mut length = false;
        for (name, value) in head.headers {
            let name = name.as_str();
            // By length first: nearly every name is told apart by it.
            match (name.len(), name) {
                (4, "host") | (17, "transfer-encoding") => continue,
                (14, "content-length") => {
                    length = true;
                    continue;
                }
                _ => {}
            }
            encode::field(out, name, value.as_bytes());
        }
        if let Some(added) = head.added {
            added.write(out);
        }
        match self.framing {
            // A length of nothing is sent on, but not made up: most requests have no body, and none that says so.
            Framing::Length(0) if !length => {}
            Framing::Length(bytes) => {
                out.extend_from_slice(b"content-length: ");
                encode::decimal(out, bytes);
                out.extend_from_slice(b"\r\n");
            }
            Framing::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        }
        out.extend_from_slice(b"\r\n");
        true
    }

    /// Whether all of the request was handed to the stream.
    pub(super) fn is_done(&self) -> bool {
        self.complete && !self.unflushed && self.is_empty()
    }

    fn is_empty(&self) -> bool {
        self.start == self.front.len() && self.data.is_empty() && self.back.is_empty()
    }

    /// Why the stream took no more, if that is so.
    pub(super) fn take_error(&mut self) -> Option<io::Error> {
        self.broken.take()
    }

    /// The body, if nothing was taken out of it.
    pub(super) fn take_untouched_body(&mut self) -> Option<RequestBody> {
        (!self.touched).then(|| std::mem::replace(&mut self.body, RequestBody::Empty))
    }

    /// Writes what can be written. A stream that takes no more is no error here: it may hold a response.
    ///
    /// # Errors
    /// [`BodyFailure`] when the body ends early.
    pub(super) fn poll(&mut self, wire: &mut Wire, cx: &mut Context<'_>) -> Result<(), BodyFailure> {
        if self.broken.is_some() {
            return Ok(());
        }
        loop {
            if !self.complete && self.data.is_empty() && self.back.is_empty() {
                // A frame without bytes, as HTTP/2 clients end a body with, leaves nothing to write and nobody to wake this task.
                while self.more(cx)?.is_ready() && !self.complete && self.data.is_empty() {}
            }
            let step = if !self.is_empty() {
                self.write(wire, cx)
            } else if self.unflushed {
                Pin::new(&mut *wire).poll_flush(cx).map_ok(|()| self.unflushed = false)
            } else {
                return Ok(());
            };
            match step {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => {
                    self.broken = Some(error);
                    return Ok(());
                }
            }
        }
    }

    /// Takes the next frame out of the body, if it is there.
    fn more(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, BodyFailure> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Pending => return Ok(Poll::Pending),
            Poll::Ready(None) => self.end(None)?,
            Poll::Ready(Some(Err(failure))) => return Err(failure),
            Poll::Ready(Some(Ok(frame))) => {
                self.touched = true;
                match frame.into_data() {
                    Ok(data) => self.queue(data)?,
                    Err(frame) => self.end(frame.into_trailers().ok().as_ref())?,
                }
            }
        }
        Ok(Poll::Ready(()))
    }

    fn queue(&mut self, mut data: Bytes) -> Result<(), BodyFailure> {
        match &mut self.framing {
            Framing::Length(left) => {
                // More than was announced would be taken for another request.
                data.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= data.len() as u64;
                self.data = data;
                if *left == 0 || self.body.is_end_stream() {
                    self.end(None)?;
                }
            }
            Framing::Chunked if data.is_empty() => {}
            Framing::Chunked => {
                encode::chunk_size(&mut self.front, data.len());
                self.data = data;
                self.back = b"\r\n";
                if self.body.is_end_stream() {
                    self.back = b"\r\n0\r\n\r\n";
                    self.complete = true;
                }
            }
        }
        Ok(())
    }

    /// The body has ended.
    fn end(&mut self, trailers: Option<&HeaderMap>) -> Result<(), BodyFailure> {
        self.complete = true;
        match (self.framing, trailers) {
            (Framing::Length(0), _) => {}
            (Framing::Length(_), _) => return Err(BodyFailure::Client),
            (Framing::Chunked, Some(trailers)) => encode::last_chunk(&mut self.front, trailers),
            (Framing::Chunked, None) => self.front.extend_from_slice(encode::LAST_CHUNK),
        }
        Ok(())
    }

    /// Writes once.
    fn write(&mut self, wire: &mut Wire, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let front = self.front.get(self.start..).unwrap_or_default();
        let buffers = wire.buffers();
        let wire = Pin::new(wire);
        let written = if self.data.is_empty() && self.back.is_empty() {
            wire.poll_write(cx, front)
        } else if front.is_empty() && self.back.is_empty() {
            wire.poll_write(cx, &self.data)
        } else {
            wire.poll_write_vectored(cx, &[IoSlice::new(front), IoSlice::new(&self.data), IoSlice::new(self.back)])
        };
        match std::task::ready!(written)? {
            0 => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            written => {
                self.unflushed = buffers;
                self.advance(written);
                Poll::Ready(Ok(()))
            }
        }
    }

    fn advance(&mut self, written: usize) {
        self.written += written as u64;
        let of_front = written.min(self.front.len() - self.start);
        self.start += of_front;
        let of_data = (written - of_front).min(self.data.len());
        self.data.advance(of_data);
        if self.data.is_empty() {
            // An empty slice would still hold the memory it came from, and whoever reads there could not use it again.
            self.data = Bytes::new();
        }
        self.back = self.back.get(written - of_front - of_data..).unwrap_or_default();
        if self.start == self.front.len() {
            self.start = 0;
            self.front.clear();
            if self.complete {
                give_back(std::mem::take(&mut self.front));
            }
        }
    }

    /// An idle connection has no buffer and no body.
    pub(super) fn release(&mut self) {
        self.front = Vec::new();
        self.start = 0;
        self.data = Bytes::new();
        self.back = b"";
        self.body = RequestBody::Empty;
    }
}

/// Leaves a buffer to the worker's next head.
fn give_back(buffer: Vec<u8>) {
    if buffer.capacity() <= KEPT {
        HEAD.set(buffer);
    }
}

fn line(out: &mut Vec<u8>, parts: &[&[u8]]) {
    for part in parts {
        out.extend_from_slice(part);
    }
}
