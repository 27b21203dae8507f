//! What one aggregate costs against the calls it replaces: a screen made of three JSON answers, fetched by the client as one aggregate,
//! as three calls one after another, and as three calls at once, in latency and CPU time. Parts of 2 KiB and of 1 MiB.
//!
//! `cargo bench --bench aggregate`
//!
//! Client, gateway (two workers) and the three backends are threads of this one process, on loopback and with keep-alive everywhere, so
//! the CPU time of every row includes all of them; the row without a gateway shows how much of it is client and backends. A round trip costs
//! nothing here: over a real network each one in the last column adds the client's distance to the latency. Rows take turns, so that
//! whatever else the machine does meets all of them. Access logs are off, or three calls would also write three lines.
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs)]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tollgate::config::load::Source;
use tollgate::server::{Options, Server};

/// As in the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How often the rows take turns.
const TURNS: usize = 5;
/// Screens before each turn that are not counted: connections are made, caches are filled.
const WARM_UP: usize = 5;
/// Ticks per second in `/proc/self/stat`: the same on every Linux, whatever the kernel's own rate is.
const TICKS: f64 = 100.0;
const PARTS: [&str; 3] = ["/0", "/1", "/2"];

fn main() {
    measure("2 KiB", 2 << 10, 4_000);
    measure("1 MiB", 1 << 20, 200);
}

/// Prints the table for parts of `size` bytes.
fn measure(name: &str, size: usize, screens: usize) {
    let backends = [(); 3].map(|()| backend(&body(size)));
    let source = Source::Text { yaml: config(backends), dir: ".".into() };
    let server = Server::start(source, Options::default()).unwrap();
    let gateway = server.addresses()[0];
    let mut rows = [
        Row::new("one aggregate, parts as they are", &[gateway], &["/plain"], false),
        Row::new("one aggregate, one part selected and renamed", &[gateway], &["/one"], false),
        Row::new("one aggregate, three parts selected and renamed", &[gateway], &["/all"], false),
        Row::new("three calls, one after another", &[gateway], &PARTS, false),
        Row::new("three calls at once, on three connections", &[gateway; 3], &PARTS, true),
        Row::new("without a gateway: one after another", &backends, &PARTS, false),
    ];
    rows.iter_mut().for_each(|row| row.check(size));
    for _ in 0..TURNS {
        rows.iter_mut().for_each(|row| row.turn(screens / TURNS));
    }
    println!("three parts of {name}, {screens} screens each");
    println!("{:<48} {:>10} {:>10} {:>11} {:>11}", "a screen is", "median", "p99", "CPU", "round trips");
    rows.iter_mut().for_each(Row::print);
    println!();
}

/// Three upstreams, a plain route to each, and aggregates of all three: untouched, with one part read and changed, with all of them.
fn config(backends: [SocketAddr; 3]) -> String {
    use std::fmt::Write as _;
    let mut yaml = "listeners: [{ address: '127.0.0.1:0' }]\nserver: { workers: 2 }\n".to_owned();
    yaml.push_str("log: { level: error, access: { enabled: false } }\nupstreams:\n");
    for (index, address) in backends.iter().enumerate() {
        writeln!(yaml, "  u{index}: {{ endpoints: ['http://{address}'] }}").unwrap();
    }
    yaml.push_str("routes:\n");
    for index in 0..3 {
        writeln!(yaml, "  - {{ match: /{index}, upstream: u{index} }}").unwrap();
    }
    for (path, changed) in [("plain", 0), ("one", 1), ("all", 3)] {
        writeln!(yaml, "  - match: /{path}\n    aggregate:\n      parts:").unwrap();
        for index in 0..3 {
            // Required: a part that fails must end the measurement, not make it look fast.
            let change = if index < changed { ", select: data.items, rename: { total: amount }" } else { "" };
            writeln!(yaml, "        - {{ name: p{index}, upstream: u{index}, path: /{index}, required: true{change} }}").unwrap();
        }
    }
    yaml
}

/// JSON of exactly this many bytes: a list of orders, a hundred bytes each.
fn body(size: usize) -> String {
    const OPEN: &str = "{\"data\":{\"items\":[";
    let order = |id: usize, note: &str| format!("{{\"id\":{id},\"total\":\"19.90\",\"open\":true,\"note\":\"{note}\"}}");
    let mut json = OPEN.to_owned();
    let mut id = 100_000;
    while json.len() + 250 < size {
        json.push_str(&order(id, "two slide rules, as new, and a box of chalk"));
        json.push(',');
        id += 1;
    }
    let rest = size - json.len() - order(id, "").len() - "]}}".len();
    json.push_str(&order(id, &"x".repeat(rest)));
    json.push_str("]}}");
    assert_eq!(json.len(), size);
    json
}

/// A server that answers every request with this body, one thread per connection.
fn backend(body: &str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let head = format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
    let answer: Arc<[u8]> = (head + body).into_bytes().into();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, answer) = (stream.unwrap(), Arc::clone(&answer));
            std::thread::spawn(move || serve(stream, &answer));
        }
    });
    address
}

fn serve(mut stream: TcpStream, answer: &[u8]) {
    stream.set_nodelay(true).unwrap();
    let (mut buffer, mut filled) = ([0; 4096], 0);
    // No request has a body, and none is sent before the answer to the one before. An error is the other side's end.
    while let Ok(count @ 1..) = stream.read(&mut buffer[filled..]) {
        filled += count;
        if buffer[..filled].ends_with(b"\r\n\r\n") {
            filled = 0;
            if stream.write_all(answer).is_err() {
                return;
            }
        }
    }
}

/// A keep-alive client.
struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        Self { stream, buffer: vec![0; 256 << 10] }
    }

    fn send(&mut self, path: &str) {
        self.stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: site\r\n\r\n").as_bytes()).unwrap();
    }

    /// Reads one answer, which must be a 200; the length of its body.
    fn receive(&mut self) -> usize {
        let mut filled = 0;
        let end = loop {
            filled += self.read(filled);
            if let Some(at) = self.buffer[..filled].windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break at + 4;
            }
        };
        let head = std::str::from_utf8(&self.buffer[..end]).unwrap().to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 200 "), "{head}");
        let length: usize = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length").parse().unwrap();
        let mut left = (end + length).checked_sub(filled).expect("nothing after the answer");
        while left > 0 {
            left = left.checked_sub(self.read(0)).expect("nothing after the answer");
        }
        length
    }

    fn read(&mut self, at: usize) -> usize {
        let count = self.stream.read(&mut self.buffer[at..]).unwrap();
        assert!(count > 0, "the connection was closed");
        count
    }
}

/// One way to get a screen, and what it took so far.
struct Row {
    name: &'static str,
    clients: Vec<Client>,
    paths: Vec<&'static str>,
    at_once: bool,
    times: Vec<Duration>,
    /// In seconds, of the whole process.
    cpu: f64,
}

impl Row {
    /// Paths are asked in turn on connections to `addresses`; all before the first answer is read if `at_once`.
    fn new(name: &'static str, addresses: &[SocketAddr], paths: &[&'static str], at_once: bool) -> Self {
        let clients = addresses.iter().map(|address| Client::connect(*address)).collect();
        Self { name, clients, paths: paths.to_vec(), at_once, times: Vec::new(), cpu: 0.0 }
    }

    /// Fetches one screen; bytes of its bodies.
    fn screen(&mut self) -> usize {
        if self.at_once {
            for (client, path) in self.clients.iter_mut().zip(&self.paths) {
                client.send(path);
            }
            return self.clients.iter_mut().map(Client::receive).sum();
        }
        let (mut bytes, count) = (0, self.clients.len());
        for (index, path) in self.paths.iter().enumerate() {
            let client = &mut self.clients[index % count];
            client.send(path);
            bytes += client.receive();
        }
        bytes
    }

    /// A screen that lacks a part would be fast for the wrong reason.
    fn check(&mut self, size: usize) {
        let bytes = self.screen();
        // Selecting takes off the braces around each list.
        assert!(bytes > 3 * size - 100, "{}: {bytes} bytes", self.name);
    }

    fn turn(&mut self, screens: usize) {
        for _ in 0..WARM_UP {
            self.screen();
        }
        let cpu = cpu_seconds();
        for _ in 0..screens {
            let began = Instant::now();
            self.screen();
            self.times.push(began.elapsed());
        }
        self.cpu += cpu_seconds() - cpu;
    }

    fn print(&mut self) {
        self.times.sort_unstable();
        let at = |share: f64| self.times[(self.times.len() as f64 * share) as usize].as_secs_f64() * 1e6;
        let cpu = self.cpu * 1e6 / self.times.len() as f64;
        let trips = if self.at_once { 1 } else { self.paths.len() };
        println!("{:<48} {:>7.0} µs {:>7.0} µs {cpu:>8.0} µs {trips:>11}", self.name, at(0.5), at(0.99));
    }
}

/// CPU time of this process so far, in user and kernel mode.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("CPU time is read from /proc");
    // Fields 14 and 15, counted behind the program's name, which may hold spaces.
    let (_, fields) = stat.rsplit_once(')').unwrap();
    fields.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<f64>().unwrap()).sum::<f64>() / TICKS
}
