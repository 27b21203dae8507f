//! One direction of a tunnel: reads, writes on, keeps what is not taken, passes the end on.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::frames::{Frames, going_away};

/// Steps in a row before other tasks get their turn.
const TURNS: usize = 32;

/// Which end of a direction broke.
#[derive(Debug)]
pub(super) enum Broken {
    Source,
    Sink,
}

impl Broken {
    /// One of two words for it.
    pub(super) fn choose<T>(&self, source: T, sink: T) -> T {
        match self {
            Self::Source => source,
            Self::Sink => sink,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Bytes flow.
    Open,
    /// The source ended: what is kept is delivered, then the sink is shut.
    Ending,
    /// As `Ending`, because of a drain: the source has not ended.
    Leaving,
    /// After `Leaving` the source is read to its end and thrown away: a socket closed with bytes unread is reset, and the reset would
    /// overtake the close frame.
    Emptying,
    /// Nothing more happens.
    Done,
}

/// One direction.
#[derive(Debug)]
pub(super) struct Flow {
    stage: Stage,
    /// Bytes read that the sink has not taken, from `start` on.
    kept: Vec<u8>,
    start: usize,
    frames: Option<Frames>,
    /// During a drain: what is put in at the next boundary.
    goodbye: Option<Vec<u8>>,
    unflushed: bool,
    waits_for_source: bool,
    delivered: u64,
    told: u64,
}

impl Flow {
    pub(super) fn new(websocket: bool) -> Self {
        Self {
            stage: Stage::Open,
            kept: Vec::new(),
            start: 0,
            frames: websocket.then(Frames::default),
            goodbye: None,
            unflushed: false,
            waits_for_source: false,
            delivered: 0,
            told: 0,
        }
    }

    /// Bytes the sink has taken.
    pub(super) fn delivered(&self) -> u64 {
        self.delivered
    }
    /// Bytes the sink has taken since this was last asked.
    pub(super) fn news(&mut self) -> usize {
        let new = self.delivered - self.told;
        self.told = self.delivered;
        usize::try_from(new).unwrap_or(usize::MAX)
    }
    /// The end has been passed on.
    pub(super) fn is_done(&self) -> bool {
        self.stage == Stage::Done
    }
    /// There is nothing to deliver at the moment.
    pub(super) fn is_exhausted(&self) -> bool {
        self.is_done() || self.waits_for_source
    }

    /// Begins the goodbye to the sink: at once if no frame is under way. `masked` for sinks that are servers.
    pub(super) fn leave(&mut self, masked: bool) {
        if self.stage != Stage::Open {
            return;
        }
        let said_already = self.frames.as_ref().is_none_or(Frames::closed);
        self.goodbye = Some(if said_already { Vec::new() } else { going_away(masked) });
        if self.frames.as_ref().is_none_or(Frames::at_boundary) {
            self.cut();
        }
    }

    /// Puts the close frame behind everything kept; nothing of the source is delivered after it.
    fn cut(&mut self) {
        self.kept.extend(self.goodbye.take().unwrap_or_default());
        self.stage = Stage::Leaving;
    }

    /// Moves what can be moved.
    pub(super) fn poll<R, W>(&mut self, cx: &mut Context<'_>, source: &mut R, sink: &mut W, scratch: &mut [u8]) -> Result<(), Broken>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        self.waits_for_source = false;
        for _ in 0..TURNS {
            match self.step(cx, source, sink, scratch) {
                Poll::Ready(Ok(())) if self.is_done() => return Ok(()),
                Poll::Ready(Ok(())) => {}
                Poll::Pending => return Ok(()),
                Poll::Ready(Err(broken)) => {
                    self.stage = Stage::Done;
                    self.kept = Vec::new();
                    return Err(broken);
                }
            }
        }
        cx.waker().wake_by_ref();
        Ok(())
    }

    fn step<R, W>(&mut self, cx: &mut Context<'_>, source: &mut R, sink: &mut W, scratch: &mut [u8]) -> Poll<Result<(), Broken>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        match self.stage {
            Stage::Done => return Poll::Ready(Ok(())),
            Stage::Emptying => return self.empty(cx, source, scratch),
            Stage::Open | Stage::Ending | Stage::Leaving => {}
        }
        ready!(self.deliver(cx, sink))?;
        match self.stage {
            Stage::Open => self.pass_on(cx, source, sink, scratch),
            Stage::Ending | Stage::Leaving | Stage::Emptying | Stage::Done => {
                ready!(Pin::new(sink).poll_shutdown(cx)).map_err(|_| Broken::Sink)?;
                self.stage = if self.stage == Stage::Leaving { Stage::Emptying } else { Stage::Done };
                Poll::Ready(Ok(()))
            }
        }
    }

    /// Writes everything kept, and gives its memory back.
    fn deliver<W: AsyncWrite + Unpin>(&mut self, cx: &mut Context<'_>, sink: &mut W) -> Poll<Result<(), Broken>> {
        while let Some(rest) = self.kept.get(self.start..).filter(|rest| !rest.is_empty()) {
            let written = ready!(Pin::new(&mut *sink).poll_write(cx, rest)).map_err(|_| Broken::Sink)?;
            if written == 0 {
                return Poll::Ready(Err(Broken::Sink));
            }
            self.start += written;
            self.delivered += written as u64;
            self.unflushed = true;
        }
        self.kept = Vec::new();
        self.start = 0;
        Poll::Ready(Ok(()))
    }

    /// Reads once and writes what came on.
    fn pass_on<R, W>(&mut self, cx: &mut Context<'_>, source: &mut R, sink: &mut W, scratch: &mut [u8]) -> Poll<Result<(), Broken>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let mut buffer = ReadBuf::new(scratch);
        if Pin::new(source).poll_read(cx, &mut buffer).map_err(|_| Broken::Source)?.is_pending() {
            self.waits_for_source = true;
            if self.unflushed {
                ready!(Pin::new(sink).poll_flush(cx)).map_err(|_| Broken::Sink)?;
                self.unflushed = false;
            }
            return Poll::Pending;
        }
        let mut bytes = buffer.filled();
        if bytes.is_empty() {
            self.stage = Stage::Ending;
            return Poll::Ready(Ok(()));
        }
        let mut boundary = false;
        if let Some(frames) = &mut self.frames {
            if self.goodbye.is_some() {
                let taken = frames.next(bytes);
                boundary = frames.at_boundary();
                bytes = bytes.get(..taken).unwrap_or(bytes);
                if boundary && frames.closed() {
                    self.goodbye = Some(Vec::new());
                }
            } else {
                frames.advance(bytes);
            }
        }
        let written = match Pin::new(sink).poll_write(cx, bytes).map_err(|_| Broken::Sink)? {
            Poll::Ready(0) => return Poll::Ready(Err(Broken::Sink)),
            Poll::Ready(written) => written,
            Poll::Pending => 0,
        };
        self.delivered += written as u64;
        self.unflushed = true;
        self.kept.extend_from_slice(bytes.get(written..).unwrap_or_default());
        if boundary {
            self.cut();
        }
        Poll::Ready(Ok(()))
    }

    /// Reads and throws away; any end will do.
    fn empty<R: AsyncRead + Unpin>(&mut self, cx: &mut Context<'_>, source: &mut R, scratch: &mut [u8]) -> Poll<Result<(), Broken>> {
        let mut buffer = ReadBuf::new(scratch);
        match Pin::new(source).poll_read(cx, &mut buffer) {
            Poll::Pending => {
                self.waits_for_source = true;
                return Poll::Pending;
            }
            Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {}
            Poll::Ready(_) => self.stage = Stage::Done,
        }
        Poll::Ready(Ok(()))
    }
}
