//! What `tollgate demo` needs: three small backends on loopback, the configuration that goes with them, and a list of things to try.
//!
//! The backends are playthings and say so: `users` and `ads` answer fixed JSON, `orders` can also be slow, fail, stream and echo.
//! They run on a thread of their own, so that they are as far from the gateway's workers as real backends would be.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

mod answers;
mod websocket;

/// The configuration of the demo: the repository's own `gateway.yaml`, for where no file is at hand.
pub const GATEWAY_YAML: &str = include_str!("../gateway.yaml");

/// Where the backends listen; `gateway.yaml` names the same addresses.
const ADDRESSES: [(Kind, &str); 3] = [(Kind::Users, "127.0.0.1:9081"), (Kind::Orders, "127.0.0.1:9082"), (Kind::Ads, "127.0.0.1:9083")];

/// Which backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Users,
    Orders,
    Ads,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Users => "users",
            Self::Orders => "orders",
            Self::Ads => "ads",
        }
    }
}

/// One backend's state.
#[derive(Debug)]
struct Backend {
    kind: Kind,
    flaky: AtomicU64,
    broken_until: Mutex<Option<Instant>>,
}

impl Backend {
    fn new(kind: Kind) -> Self {
        Self { kind, flaky: AtomicU64::new(0), broken_until: Mutex::new(None) }
    }

    /// Counts a request to `/flaky`; how many there were before it.
    fn count(&self) -> u64 {
        self.flaky.fetch_add(1, Ordering::Relaxed)
    }

    /// Pretends to be broken until `when`.
    fn break_until(&self, when: Instant) {
        *self.broken_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(when);
    }

    fn is_broken(&self, now: Instant) -> bool {
        self.broken_until.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|until| now < until)
    }
}

/// The running backends; they stop when this is dropped.
#[derive(Debug)]
pub struct Demo {
    addresses: Vec<SocketAddr>,
    _stop: oneshot::Sender<()>,
}

/// Starts the three backends.
///
/// # Errors
/// One of their ports is taken; the message says which, and what to do.
pub fn start() -> io::Result<Demo> {
    start_at(ADDRESSES)
}

/// The same on free ports: for tests of the examples, which talk to these backends.
///
/// # Errors
/// No port is free, or no thread can be started.
pub fn start_on_free_ports() -> io::Result<Demo> {
    start_at(ADDRESSES.map(|(kind, _)| (kind, "127.0.0.1:0")))
}

impl Demo {
    /// Where they listen: users, orders, ads.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }
}

fn start_at(addresses: [(Kind, &str); 3]) -> io::Result<Demo> {
    let mut listeners = Vec::new();
    for (kind, address) in addresses {
        let listener = std::net::TcpListener::bind(address).map_err(|error| explain(kind, address, &error))?;
        listener.set_nonblocking(true)?;
        listeners.push((kind, listener));
    }
    let addresses = listeners.iter().map(|(_, listener)| listener.local_addr()).collect::<io::Result<Vec<_>>>()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (stop, stopped) = oneshot::channel::<()>();
    std::thread::Builder::new().name("demo-backends".to_owned()).spawn(move || {
        runtime.block_on(async move {
            for (kind, listener) in listeners {
                match TcpListener::from_std(listener) {
                    Ok(listener) => drop(tokio::spawn(accept(Arc::new(Backend::new(kind)), listener))),
                    Err(error) => tracing::error!(backend = kind.name(), %error, "this demo backend does not run"),
                }
            }
            // Ends with an error when the sender is dropped, and that is the signal.
            drop(stopped.await);
        });
    })?;
    Ok(Demo { addresses, _stop: stop })
}

fn explain(kind: Kind, address: &str, error: &io::Error) -> io::Error {
    let help = match error.kind() {
        io::ErrorKind::AddrInUse => "; something else listens there, perhaps another demo: stop it and try again",
        _other => "",
    };
    io::Error::new(error.kind(), format!("the demo's backend \"{}\" cannot listen on {address}: {error}{help}", kind.name()))
}

async fn accept(backend: Arc<Backend>, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, _peer)) => drop(tokio::spawn(serve(Arc::clone(&backend), stream))),
            // Out of file descriptors, most likely: some connections end meanwhile.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn serve(backend: Arc<Backend>, stream: TcpStream) {
    // Answers are small: waiting to fill a packet would only delay them.
    drop(stream.set_nodelay(true));
    let service = service_fn(move |request| {
        let backend = Arc::clone(&backend);
        async move { Ok::<_, std::convert::Infallible>(answers::answer(&backend, request).await) }
    });
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades();
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection to a demo backend ended early");
    }
}

/// What `tollgate demo` prints: commands to try, each against the routes of [`GATEWAY_YAML`]. `gateway` and `admin` are addresses other
/// than the file's.
pub fn things_to_try(gateway: Option<&str>, admin: Option<&str>) -> String {
    let mut text =
        String::from("Tollgate is running on http://127.0.0.1:8080, with three small backends behind it. In another terminal, try:\n");
    for (command, comment) in TRY {
        text.push_str(&format!("\n  {command}\n      {comment}\n"));
    }
    text.push_str(concat!(
        "
A gateway.yaml in the current directory is served instead of the built-in one. Edit it while the demo runs:
",
        "every change applies at once, and a mistake changes nothing but is explained here.
",
    ));
    let moved = [("127.0.0.1:8080", gateway), ("127.0.0.1:9901", admin)];
    moved.into_iter().fold(text, |text, (of_file, other)| other.map_or(text.clone(), |other| text.replace(of_file, other)))
}

/// Commands and what they show. `scripts/tour` runs those that the README has too.
const TRY: [(&str, &str); 10] = [
    ("curl -i http://127.0.0.1:8080/api/users/1", "a route to a backend, with security headers, rate limit headers and a request id"),
    ("curl http://127.0.0.1:8080/home/1", "one call answered from three services at the same time"),
    ("curl http://127.0.0.1:8080/api/me", "401: who are you? A JWT answers that; gateway.yaml has one to try"),
    ("for i in 1 2 3 4; do curl http://127.0.0.1:8080/whoami; done", "load balancing over three endpoints"),
    ("curl http://127.0.0.1:8080/play/flaky", "the backend fails every second request; a retry hides it"),
    ("curl -i 'http://127.0.0.1:8080/play/slow?ms=5000'", "504 after the route's timeout of 2s"),
    ("curl -N http://127.0.0.1:8080/play/events", "server-sent events, never buffered"),
    (
        "curl -X POST http://127.0.0.1:9081/break; curl http://127.0.0.1:9901/upstreams",
        "a backend breaks for 15 s: watch it leave and come back",
    ),
    ("curl http://127.0.0.1:9901/metrics", "what Prometheus reads"),
    ("wrk -c 64 -d 5 http://127.0.0.1:8080/bench", "how fast it is"),
];

#[cfg(test)]
mod tests;
