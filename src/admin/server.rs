//! The admin listener's connections: few, short, and never in the way of traffic.

use std::convert::Infallible;
use std::io;
use std::net::TcpListener;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::answer::{Answer, Page, answer, refused, unread};
use super::{Control, Settings};
use crate::telemetry::events;

/// Open connections; more wait in the kernel's backlog.
const MAX_CONNECTIONS: usize = 64;
/// For a head, and for an idle connection to send the next one: scrapes come every few seconds.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest head, a token included.
const MAX_HEAD: usize = 16 << 10;
/// Longest body, and how long one may take. No path reads it.
const MAX_BODY: usize = 64 << 10;
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// After a failure to accept, such as with no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long answers in the making may take after shutdown.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// Serves the admin listener until `shutdown` turns true (or its sender is gone), then lets answers in the making finish.
/// `settings` may change meanwhile; a request is judged by those in force when its head is complete.
///
/// # Errors
/// The listener cannot be registered with the runtime.
pub async fn serve(
    listener: TcpListener,
    settings: Arc<ArcSwap<Settings>>,
    control: Arc<dyn Control>,
    mut shutdown: watch::Receiver<bool>,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let mut connections = JoinSet::new();
    let (stop, stopped) = watch::channel(false);
    loop {
        let accepted = tokio::select! {
            biased;
            _ = shutdown.wait_for(|stop| *stop) => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                connections.spawn(connection(stream, Arc::clone(&settings), Arc::clone(&control), stopped.clone()));
            }
            Err(error) => {
                events::accept_failed(settings.load().address, &error);
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    stop.send_replace(true);
    // What is left after that is cut when the set is dropped.
    let _ = tokio::time::timeout(LAST_ANSWERS, async { while connections.join_next().await.is_some() {} }).await;
    Ok(())
}

async fn connection(stream: TcpStream, settings: Arc<ArcSwap<Settings>>, control: Arc<dyn Control>, mut stopped: watch::Receiver<bool>) {
    let service = service_fn(|request| {
        let (settings, control) = (Arc::clone(&settings), Arc::clone(&control));
        async move { Ok::<_, Infallible>(handle(request, &settings, &control).await) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_header_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    let mut serving = pin!(serving);
    // A client that breaks off or speaks no HTTP concerns nobody else.
    let done = tokio::select! {
        _ = serving.as_mut() => true,
        _ = stopped.wait_for(|stop| *stop) => false,
    };
    if !done {
        serving.as_mut().graceful_shutdown();
        let _ = serving.await;
    }
}

async fn handle(request: Request<Incoming>, settings: &ArcSwap<Settings>, control: &Arc<dyn Control>) -> Answer {
    let (head, body) = request.into_parts();
    let page = Page::at(head.uri.path());
    let checked = settings.load().check(&head, page.is_some_and(Page::open));
    if let Err(why) = checked {
        return refused(why);
    }
    let too_long = || unread(StatusCode::PAYLOAD_TOO_LARGE, "The body is too long.");
    if body.size_hint().lower() > MAX_BODY as u64 {
        return too_long();
    }
    match tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, MAX_BODY).collect()).await {
        Ok(Ok(_)) => answer(page, &head.method, control).await,
        Ok(Err(error)) if error.is::<LengthLimitError>() => too_long(),
        Ok(Err(_)) => unread(StatusCode::BAD_REQUEST, "The body cannot be read."),
        Err(_) => unread(StatusCode::REQUEST_TIMEOUT, "The body was too slow."),
    }
}
