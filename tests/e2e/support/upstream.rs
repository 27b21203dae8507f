//! Upstreams that do as they are told, well or badly.

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::json;

use super::eventually;
use super::wire::{Request, Wire};

/// What becomes of a connection after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    Keep,
    Close,
    Reset,
}

/// A connection that an upstream has accepted.
pub struct Conn {
    pub wire: Wire,
    pub socket: TcpStream,
    /// Which one it is, from 0.
    pub index: usize,
    /// Requests before this one on it.
    pub served: usize,
}

impl Conn {
    /// Writes; a gateway that is gone is not this side's failure.
    pub fn write(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.wire.write(bytes).is_ok()
    }
    /// A complete answer with a length.
    pub fn answer(&mut self, status: u16, headers: &str, body: impl AsRef<[u8]>) -> Then {
        let body = body.as_ref();
        let mut bytes = format!("HTTP/1.1 {status} Status\r\n{headers}content-length: {}\r\n\r\n", body.len()).into_bytes();
        bytes.extend_from_slice(body);
        self.write(bytes);
        Then::Keep
    }
    pub fn ok(&mut self, body: impl AsRef<[u8]>) -> Then {
        self.answer(200, "", body)
    }
    /// Whether the gateway has ended the connection; waits for it.
    pub fn wait_end(&mut self) -> bool {
        loop {
            match self.wire.fill() {
                Ok(0) | Err(_) => return true,
                Ok(_) => {}
            }
        }
    }
    fn end(self, then: Then) {
        if then == Then::Reset {
            // Only a socket that still exists can be told.
            let _ = socket2::SockRef::from(&self.socket).set_linger(Some(Duration::ZERO));
        } else {
            let _ = self.socket.shutdown(std::net::Shutdown::Both);
        }
    }
}

#[derive(Default)]
struct Seen {
    connections: AtomicUsize,
    open: AtomicUsize,
    requests: Mutex<Vec<Request>>,
    stop: AtomicBool,
    sockets: Mutex<Vec<TcpStream>>,
}

/// An upstream on a free loopback port, with a thread for each connection.
pub struct Upstream {
    pub address: SocketAddr,
    seen: Arc<Seen>,
    acceptor: Option<JoinHandle<()>>,
}

impl Upstream {
    /// Answers each complete request as `handler` does.
    pub fn serve(handler: impl Fn(&Request, &mut Conn) -> Then + Send + Sync + 'static) -> Self {
        Self::serve_on("127.0.0.1:0".parse().unwrap(), handler)
    }

    /// The same on a given address, to come back after a stop.
    pub fn serve_on(address: SocketAddr, handler: impl Fn(&Request, &mut Conn) -> Then + Send + Sync + 'static) -> Self {
        Self::start(address, move |mut conn, seen| {
            loop {
                let Ok(Some(mut request)) = conn.wire.request() else { return };
                request.connection = conn.index;
                seen.requests.lock().unwrap().push(request.clone());
                match handler(&request, &mut conn) {
                    Then::Keep => conn.served += 1,
                    then => return conn.end(then),
                }
            }
        })
    }

    /// Gives each accepted connection to `handler`, before a byte of it was read.
    pub fn raw(handler: impl Fn(&mut Conn) -> Then + Send + Sync + 'static) -> Self {
        Self::start("127.0.0.1:0".parse().unwrap(), move |mut conn, _| {
            let then = handler(&mut conn);
            conn.end(then);
        })
    }

    fn start(address: SocketAddr, serve: impl Fn(Conn, &Seen) + Send + Sync + 'static) -> Self {
        let listener = eventually("the port is free", || TcpListener::bind(address).ok());
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Seen::default());
        let (its, serve) = (Arc::clone(&seen), Arc::new(serve));
        let acceptor = std::thread::spawn(move || {
            for socket in listener.incoming() {
                if its.stop.load(SeqCst) {
                    return;
                }
                let Ok(socket) = socket else { continue };
                let index = its.connections.fetch_add(1, SeqCst);
                its.open.fetch_add(1, SeqCst);
                its.sockets.lock().unwrap().push(socket.try_clone().unwrap());
                let (its, serve) = (Arc::clone(&its), Arc::clone(&serve));
                std::thread::spawn(move || {
                    let closer = socket.try_clone().unwrap();
                    let conn = Conn { wire: Wire::new(socket.try_clone().unwrap()), socket, index, served: 0 };
                    serve(conn, &its);
                    // The list for `stop` must not hold the socket open.
                    let local = closer.peer_addr().ok();
                    drop(closer);
                    its.sockets.lock().unwrap().retain(|socket| socket.peer_addr().ok() != local);
                    its.open.fetch_sub(1, SeqCst);
                });
            }
        });
        Self { address, seen, acceptor: Some(acceptor) }
    }

    /// Answers with what it got, as JSON.
    pub fn echo() -> Self {
        Self::serve(|request, conn| conn.answer(200, "content-type: application/json\r\n", echoed(request)))
    }

    /// Answers everything with this text.
    pub fn text(body: &'static str) -> Self {
        Self::serve(move |_, conn| conn.ok(body))
    }

    /// Answers everything with these bytes, then does `then`.
    pub fn bytes(bytes: impl Into<Vec<u8>>, then: Then) -> Self {
        let bytes = bytes.into();
        Self::serve(move |_, conn| {
            conn.write(&bytes);
            then
        })
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.seen.connections.load(SeqCst)
    }
    /// Connections open now.
    pub fn open(&self) -> usize {
        self.seen.open.load(SeqCst)
    }
    /// Complete requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.seen.requests.lock().unwrap().clone()
    }
    pub fn count(&self) -> usize {
        self.seen.requests.lock().unwrap().len()
    }
    /// The last complete request.
    #[track_caller]
    pub fn last(&self) -> Request {
        self.seen.requests.lock().unwrap().last().cloned().expect("the upstream saw no request")
    }

    /// Closes everything: from now on connections are refused.
    pub fn stop(&mut self) {
        let Some(acceptor) = self.acceptor.take() else { return };
        self.seen.stop.store(true, SeqCst);
        // Wakes the acceptor.
        let _ = TcpStream::connect(self.address).map(|mut socket| socket.write(b""));
        acceptor.join().unwrap();
        for socket in self.seen.sockets.lock().unwrap().drain(..) {
            let _ = socket.shutdown(std::net::Shutdown::Both);
        }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What [`Upstream::echo`] answers.
pub fn echoed(request: &Request) -> String {
    let headers: Vec<_> = request.headers.iter().map(|(name, value)| json!([name, value])).collect();
    json!({"method": request.method, "target": request.target, "version": request.version, "headers": headers, "body": request.text()})
        .to_string()
}

/// An address that refuses connections for as long as this lives.
pub struct Refused {
    pub address: SocketAddr,
    _socket: socket2::Socket,
}

impl Refused {
    pub fn new() -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        Self { address, _socket: socket }
    }
}

/// An address where connections are neither accepted nor refused.
pub struct Unreachable {
    pub address: SocketAddr,
    _socket: socket2::Socket,
    _fillers: Vec<socket2::Socket>,
}

impl Unreachable {
    pub fn new() -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        socket.listen(0).unwrap();
        let address = socket.local_addr().unwrap();
        // A full backlog: the kernel drops further handshakes.
        let fillers = (0..4)
            .map(|_| {
                let filler = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
                filler.set_nonblocking(true).unwrap();
                // "In progress" is the expected outcome.
                let _ = filler.connect(&address);
                filler
            })
            .collect();
        Self { address: address.as_socket().unwrap(), _socket: socket, _fillers: fillers }
    }
}
