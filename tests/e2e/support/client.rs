//! A client that writes exactly the bytes it is told to.

use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::wire::{Answer, End, Wire};

/// A raw connection to the gateway.
pub struct Raw {
    pub wire: Wire,
    pub socket: TcpStream,
}

impl Raw {
    pub fn connect(address: SocketAddr) -> Self {
        let socket = TcpStream::connect(address).unwrap();
        Self { wire: Wire::new(socket.try_clone().unwrap()), socket }
    }
    pub fn try_connect(address: SocketAddr) -> Option<Self> {
        let socket = TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()?;
        Some(Self { wire: Wire::new(socket.try_clone().unwrap()), socket })
    }
    /// Writes; a connection that the gateway has closed already is not an error here, its answer tells.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        // The answer, or its absence, is what tests look at.
        let _ = self.wire.write(bytes);
        self
    }
    #[track_caller]
    pub fn read(&mut self) -> Answer {
        self.wire.answer(false)
    }
    #[track_caller]
    pub fn read_to_head(&mut self) -> Answer {
        self.wire.answer(true)
    }
    #[track_caller]
    pub fn ask(&mut self, bytes: impl AsRef<[u8]>) -> Answer {
        self.send(bytes).read()
    }
    pub fn half_close(&self) {
        self.socket.shutdown(Shutdown::Write).unwrap();
    }
    /// What comes until the connection ends, and how it ends.
    pub fn rest(&mut self) -> (Vec<u8>, End) {
        self.wire.rest()
    }
    /// Asserts that the connection ends without another byte.
    #[track_caller]
    pub fn assert_closed(&mut self) {
        let (rest, _) = self.rest();
        assert!(rest.is_empty(), "more came: {:?}", String::from_utf8_lossy(&rest));
    }
    /// Closes with a reset.
    pub fn reset(self) {
        socket2::SockRef::from(&self.socket).set_linger(Some(Duration::ZERO)).unwrap();
    }
    /// Writes without ever blocking, until nothing more is taken for 300 ms; how much that was.
    pub fn stuff(&mut self, most: usize) -> usize {
        use std::io::Write as _;
        self.socket.set_nonblocking(true).unwrap();
        let (mut sent, chunk) = (0, [b'x'; 16 * 1024]);
        let mut last = Instant::now();
        while sent < most && last.elapsed() < Duration::from_millis(300) {
            match self.socket.write(&chunk[..chunk.len().min(most - sent)]) {
                Ok(count) => {
                    sent += count;
                    last = Instant::now();
                }
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        self.socket.set_nonblocking(false).unwrap();
        sent
    }
}

/// A request without a body, as text.
pub fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: site\r\n\r\n")
}

/// A request as text.
pub fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> String {
    let host = if headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) { "" } else { "Host: site\r\n" };
    let mut text = format!("{method} {path} HTTP/1.1\r\n{host}");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() {
        text.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    text + "\r\n" + body
}
