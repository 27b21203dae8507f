//! HTTP/2 connections: h2 speaks the protocol, streams are run beside their clocks, and who answers no ping is gone.
//!
//! Why h2 itself and not hyper on top of it: a task, a boxed future of six kilobytes, a timer and a dozen more locked looks at the stream for
//! each request were 6,200 of its 49,000 instructions. Here streams are served by tasks that are used again ([`runners`]).

mod alive;
mod runners;
mod stream;
mod tunnel;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use h2::server::{Builder, Connection, Handshake, SendResponse};
use h2::{Reason, RecvStream};
use http::header::CONTENT_LENGTH;
use http::{Method, Request};
use tokio::sync::oneshot;

use crate::http::clock::{Clock, ConnectionTimeouts, Phase};
use crate::http::connection::{ConnectionState, Link};
use crate::http::incoming::Incoming;
use crate::http::upgrade::Upgrading;
use crate::server::connection::Session;
use crate::server::http2::alive::Alive;
use crate::server::http2::stream::{Job, Reply};
use crate::server::io::ClientIo;
use crate::server::streams::Streams;

/// HTTP/2 windows: a slow reader stops the upstream at about this much.
const STREAM_WINDOW: u32 = 64 << 10;
/// The windows of all streams together have room in that of the connection: else uploads that wait for a slow upstream would stop the others.
const LEAST_CONNECTION_WINDOW: u32 = 1 << 20;
const MAX_WINDOW: u32 = (1 << 31) - 1;
/// Longest frame that the client may send.
const MAX_FRAME: u32 = 16 << 10;
/// Bytes of one stream that wait to be written.
const SEND_BUFFER: usize = 64 << 10;
/// The protocol library's own limit on heads is the backstop behind ours, which answers with a body.
const BACKSTOP: usize = 2;

/// A connection, driven to its end by polling it.
pub(super) struct Http2<'a> {
    session: &'a Session,
    shared: &'a Arc<ConnectionState>,
    streams: &'a Arc<Streams>,
    timeouts: ConnectionTimeouts,
    state: State,
    alive: Alive,
    /// No new streams: told once the handshake is over.
    leaving: bool,
}

enum State {
    Handshake(Handshake<ClientIo, Bytes>),
    Open(Connection<ClientIo, Bytes>),
}

impl<'a> Http2<'a> {
    /// A connection whose preface is still to be read.
    pub(super) fn new(
        session: &'a Session,
        io: ClientIo,
        shared: &'a Arc<ConnectionState>,
        streams: &'a Arc<Streams>,
        timeouts: ConnectionTimeouts,
    ) -> Self {
        let alive = Alive::new(session.ping(), io.heard());
        let snapshot = session.snapshot();
        let mut builder = Builder::new();
        builder
            .max_concurrent_streams(snapshot.max_streams)
            // The library's twenty are less than a browser cancels when a page is left; floods have a budget of their own (`Frames`).
            .max_pending_accept_reset_streams(usize::try_from(snapshot.max_streams).unwrap_or(usize::MAX))
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(snapshot.max_streams.saturating_mul(STREAM_WINDOW).clamp(LEAST_CONNECTION_WINDOW, MAX_WINDOW))
            .max_frame_size(MAX_FRAME)
            .max_send_buffer_size(SEND_BUFFER)
            .max_header_list_size(u32::try_from(snapshot.max_header_size.saturating_mul(BACKSTOP)).unwrap_or(u32::MAX))
            .enable_connect_protocol();
        Self { session, shared, streams, timeouts, state: State::Handshake(builder.handshake(io)), alive, leaving: false }
    }

    /// Sends GOAWAY: what is open is finished, and what crosses it is still taken.
    pub(super) fn leave(&mut self) {
        self.leaving = true;
        if let State::Open(connection) = &mut self.state {
            connection.graceful_shutdown();
        }
    }
}

impl Future for Http2<'_> {
    type Output = Result<(), h2::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if let State::Handshake(handshake) = &mut this.state {
            let mut connection = ready!(Pin::new(handshake).poll(cx))?;
            if this.leaving {
                connection.graceful_shutdown();
            }
            this.alive.begin(connection.ping_pong());
            this.state = State::Open(connection);
        }
        let Self { session, shared, streams, timeouts, state: State::Open(connection), alive, .. } = this else { return Poll::Pending };
        if alive.poll(cx).is_ready() {
            tracing::debug!("an HTTP/2 client answers no ping");
            connection.abrupt_shutdown(Reason::NO_ERROR);
        }
        // Those that are there at once came at once.
        let mut now = None;
        while let Some(accepted) = ready!(connection.poll_accept(cx)) {
            let (request, respond) = accepted?;
            let clock = Arc::new(Clock::new(Phase::Request, *now.get_or_insert_with(Instant::now), *timeouts));
            let snapshot = session.view();
            streams.clock().set_timeouts(snapshot.timeouts);
            if let Some((request, upgrading, reply)) = parts(request, respond) {
                let (client, link) = (Arc::clone(&session.client), Link::Http2(clock, Arc::clone(shared)));
                runners::run(Box::new(Job { client, snapshot, link, upgrading, request, reply, guard: streams.begin() }));
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// A request as the gateway takes it, and where its answer goes. `None` if it can have none.
fn parts(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) -> Option<(Request<Incoming>, Option<Upgrading>, Reply)> {
    let (head, stream) = request.into_parts();
    let (body, upgrading, tunnel) = if head.method == Method::CONNECT {
        if head.headers.get(CONTENT_LENGTH).is_some_and(|length| length != "0") {
            // What follows belongs to the tunnel, if to anything.
            respond.send_reset(Reason::PROTOCOL_ERROR);
            return None;
        }
        let (sender, receiver) = oneshot::channel();
        (Incoming::Empty, Some(Upgrading(receiver)), Some((stream, sender)))
    } else {
        (Incoming::of_stream(stream, &head.headers), None, None)
    };
    Some((Request::from_parts(head, body), upgrading, Reply { respond, tunnel }))
}
