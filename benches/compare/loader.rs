//! The load that wrk and h2load cannot make: requests at a fixed rate, and WebSocket messages.
//!
//! Standard library only, one blocking thread per connection, so that `rustc -O loader.rs` is the whole build.
//! It shares the machine with the proxy, but only the proxy's own CPU time is measured, so what it costs does not count.
//!
//! ```text
//! loader rate  ADDRESS PATH CONNECTIONS REQUESTS_PER_SECOND SECONDS   0 requests per second: as fast as answers come
//! loader ws    ADDRESS PATH CONNECTIONS SECONDS BYTES                 one message in flight per connection
//! loader echo  ADDRESS                                                the WebSocket backend
//! loader slow  ADDRESS MILLISECONDS                                   a backend that answers after so long
//! loader hostile ADDRESS CONNECTIONS SECONDS                          clients that misbehave; prints nothing
//! ```
//! Prints one line of JSON: `{"requests":…,"errors":…,"late":…,"seconds":…,"p50_us":…,"p99_us":…,"max_us":…}`.

use std::error::Error;
use std::io::{self, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// The key and its answer from RFC 6455, section 1.3: a fixed pair spares both ends a SHA-1.
const WS_KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const WS_ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
/// Longer than any answer of a proxy that still lives.
const READ_TIMEOUT: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("loader: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Outcome<()> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["echo", address] => echo_server(address),
        ["slow", address, milliseconds] => slow_server(address, Duration::from_millis(milliseconds.parse()?)),
        ["hostile", address, connections, seconds] => hostile(address, connections.parse()?, Duration::from_secs_f64(seconds.parse()?)),
        ["rate", address, path, connections, rps, seconds] => {
            let plan = Plan::new(address, path, connections.parse()?, seconds.parse()?);
            let rps: f64 = rps.parse()?;
            plan.run(move |plan, index, start| rate_connection(plan, index, rps, start))
        }
        ["ws", address, path, connections, seconds, bytes] => {
            let plan = Plan::new(address, path, connections.parse()?, seconds.parse()?);
            let bytes: usize = bytes.parse()?;
            plan.run(move |plan, _, start| ws_connection(plan, bytes, start))
        }
        _ => Err("usage: rate ADDRESS PATH CONNECTIONS RPS SECONDS | ws ADDRESS PATH CONNECTIONS SECONDS BYTES | echo ADDRESS | slow ADDRESS MS | hostile ADDRESS CONNECTIONS SECONDS".into()),
    }
}

/// What all connections of one run have in common.
#[derive(Clone)]
struct Plan {
    address: String,
    path: String,
    connections: u32,
    length: Duration,
}

/// What one connection saw.
#[derive(Default)]
struct Tally {
    latencies_us: Vec<u32>,
    /// Requests that were due before the end but had no answer then; their latencies are lower bounds.
    late: u64,
    errors: u64,
}

impl Plan {
    fn new(address: &str, path: &str, connections: u32, seconds: f64) -> Self {
        Self {
            address: address.to_owned(),
            path: path.to_owned(),
            connections: connections.max(1),
            length: Duration::from_secs_f64(seconds),
        }
    }

    /// Runs every connection on a thread of its own and prints what they saw together.
    fn run<F>(self, connection: F) -> Outcome<()>
    where
        F: Fn(&Self, u32, Instant) -> Outcome<Tally> + Clone + Send + 'static,
    {
        // All threads are ready before the first request.
        let start = Instant::now() + Duration::from_millis(100);
        let mut threads = Vec::new();
        for index in 0..self.connections {
            let (plan, connection) = (self.clone(), connection.clone());
            threads.push(thread::Builder::new().stack_size(128 * 1024).spawn(move || connection(&plan, index, start))?);
        }
        let mut all = Tally::default();
        for thread in threads {
            match thread.join().map_err(|_| "a connection's thread panicked")? {
                Ok(tally) => {
                    all.latencies_us.extend(tally.latencies_us);
                    all.late += tally.late;
                    all.errors += tally.errors;
                }
                Err(error) => {
                    eprintln!("loader: {error}");
                    all.errors += 1;
                }
            }
        }
        all.print(start.elapsed());
        Ok(())
    }
}

impl Tally {
    fn add(&mut self, latency: Duration) {
        self.latencies_us.push(u32::try_from(latency.as_micros()).unwrap_or(u32::MAX));
    }

    fn print(mut self, elapsed: Duration) {
        self.latencies_us.sort_unstable();
        let served = self.latencies_us.len() as u64 - self.late;
        let at = |part: f64| {
            let last = self.latencies_us.len().saturating_sub(1);
            self.latencies_us.get((last as f64 * part).round() as usize).copied().unwrap_or(0)
        };
        println!(
            "{{\"requests\":{served},\"errors\":{},\"late\":{},\"seconds\":{:.3},\"p50_us\":{},\"p99_us\":{},\"max_us\":{}}}",
            self.errors,
            self.late,
            elapsed.as_secs_f64(),
            at(0.5),
            at(0.99),
            at(1.0)
        );
    }
}

fn connect(plan: &Plan) -> Outcome<(TcpStream, BufReader<TcpStream>)> {
    let stream = TcpStream::connect(&plan.address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(READ_TIMEOUT))?;
    let reader = BufReader::with_capacity(16 * 1024, stream.try_clone()?);
    Ok((stream, reader))
}

fn sleep_until(when: Instant) {
    let now = Instant::now();
    if when > now {
        thread::sleep(when - now);
    }
}

/// Keep-alive requests, each at its own planned moment.
///
/// An open loop: a request that has to wait for the answer before it counts from when it was due, so a stall of the proxy
/// is seen by every request it would have met. A request sent on an idle connection counts from the send, so that the
/// imprecision of this program's own timer is not taken for the proxy's.
fn rate_connection(plan: &Plan, index: u32, rps: f64, start: Instant) -> Outcome<Tally> {
    let (mut stream, mut reader) = connect(plan)?;
    let request = format!("GET {} HTTP/1.1\r\nHost: {}\r\n\r\n", plan.path, plan.address);
    let gap = if rps > 0.0 { Duration::from_secs_f64(f64::from(plan.connections) / rps) } else { Duration::ZERO };
    let end = start + plan.length;
    let mut due = start + gap.mul_f64(f64::from(index) / f64::from(plan.connections));
    let mut tally = Tally::default();
    sleep_until(start);
    loop {
        let before = Instant::now();
        let closed_loop = gap.is_zero();
        if before >= end || (!closed_loop && due >= end) {
            break;
        }
        let waited = !closed_loop && before > due;
        if !waited {
            sleep_until(due.min(end));
        }
        let from = if waited { due } else { Instant::now() };
        stream.write_all(request.as_bytes())?;
        if read_response(&mut reader)? != 200 {
            tally.errors += 1;
        }
        tally.add(from.elapsed());
        due += gap;
    }
    while !gap.is_zero() && due < end {
        tally.add(end - due);
        tally.late += 1;
        due += gap;
    }
    Ok(tally)
}

/// Reads one response with a Content-Length and gives back its status.
fn read_response(reader: &mut BufReader<TcpStream>) -> Outcome<u16> {
    let head = read_head(reader)?;
    let status = head.get(9..12).and_then(|text| text.parse().ok()).ok_or("no status in the response")?;
    let length: u64 = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse().ok())
        .ok_or("the response has no Content-Length")?;
    let read = io::copy(&mut reader.take(length), &mut io::sink())?;
    if read == length { Ok(status) } else { Err("the response was cut".into()) }
}

fn read_head(reader: &mut impl io::BufRead) -> Outcome<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Err("the connection was closed before the end of a head".into());
        }
    }
    Ok(head)
}

/// Sends a message, awaits its echo, and so on until the time is over.
fn ws_connection(plan: &Plan, bytes: usize, start: Instant) -> Outcome<Tally> {
    let (mut stream, mut reader) = connect(plan)?;
    write!(
        stream,
        "GET {} HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {WS_KEY}\r\n\r\n",
        plan.path, plan.address
    )?;
    let head = read_head(&mut reader)?;
    if !head.starts_with("HTTP/1.1 101") || !head.contains(WS_ACCEPT) {
        return Err(format!("the upgrade was refused: {}", head.lines().next().unwrap_or_default()).into());
    }
    // An all-zero masking key is valid and leaves the payload as it is.
    let message = frame(&vec![b'x'; bytes], Some([0; 4]))?;
    let mut payload = Vec::new();
    let mut tally = Tally::default();
    sleep_until(start);
    while start.elapsed() < plan.length {
        let from = Instant::now();
        stream.write_all(&message)?;
        read_frame(&mut reader, &mut payload)?.ok_or("the tunnel was closed")?;
        if payload.len() != bytes {
            tally.errors += 1;
        }
        tally.add(from.elapsed());
    }
    Ok(tally)
}

/// A final binary frame.
fn frame(payload: &[u8], mask: Option<[u8; 4]>) -> Outcome<Vec<u8>> {
    let mut frame = vec![0x82];
    let flag = if mask.is_some() { 0x80 } else { 0 };
    match payload.len() {
        short @ 0..=125 => frame.push(flag | u8::try_from(short)?),
        long => {
            frame.push(flag | 126);
            frame.extend(u16::try_from(long)?.to_be_bytes());
        }
    }
    frame.extend(mask.into_iter().flatten());
    frame.extend(payload);
    Ok(frame)
}

/// Reads one frame, unmasked; `None` when the other side closed.
fn read_frame(reader: &mut impl Read, payload: &mut Vec<u8>) -> Outcome<Option<()>> {
    let mut head = [0; 2];
    match reader.read_exact(&mut head) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    if head[0] & 0x0f == 8 {
        return Ok(None);
    }
    let length = match head[1] & 0x7f {
        126 => {
            let mut long = [0; 2];
            reader.read_exact(&mut long)?;
            usize::from(u16::from_be_bytes(long))
        }
        127 => return Err("a frame longer than 64 KiB".into()),
        short => usize::from(short),
    };
    let mut mask = [0; 4];
    if head[1] & 0x80 != 0 {
        reader.read_exact(&mut mask)?;
    }
    payload.resize(length, 0);
    reader.read_exact(payload)?;
    if mask != [0; 4] {
        payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, key)| *byte ^= key);
    }
    Ok(Some(()))
}

/// Accepts any upgrade that carries the fixed key, and sends every message back.
fn echo_server(address: &str) -> Outcome<()> {
    for stream in TcpListener::bind(address)?.incoming() {
        let stream = stream?;
        thread::Builder::new().stack_size(128 * 1024).spawn(move || {
            if let Err(error) = echo_connection(stream) {
                eprintln!("loader: echo: {error}");
            }
        })?;
    }
    Ok(())
}

fn echo_connection(mut stream: TcpStream) -> Outcome<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::with_capacity(16 * 1024, stream.try_clone()?);
    let head = match read_head(&mut reader) {
        Ok(head) => head,
        // A port probe, not an upgrade.
        Err(_) => return Ok(()),
    };
    if !head.contains(WS_KEY) {
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
        return Ok(());
    }
    write!(
        stream,
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {WS_ACCEPT}\r\n\r\n"
    )?;
    let mut payload = Vec::new();
    while read_frame(&mut reader, &mut payload)?.is_some() {
        stream.write_all(&frame(&payload, None)?)?;
    }
    Ok(())
}

/// Answers every request after `delay`.
fn slow_server(address: &str, delay: Duration) -> Outcome<()> {
    for stream in TcpListener::bind(address)?.incoming() {
        let mut stream = stream?;
        thread::Builder::new().stack_size(128 * 1024).spawn(move || -> Outcome<()> {
            stream.set_nodelay(true)?;
            let mut reader = BufReader::with_capacity(4 * 1024, stream.try_clone()?);
            // An error is the client's end.
            while read_head(&mut reader).is_ok() {
                thread::sleep(delay);
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Connections that misbehave until the time is over, each in the way that its number gives it.
fn hostile(address: &str, connections: usize, length: Duration) -> Outcome<()> {
    let end = Instant::now() + length;
    let mut threads = Vec::new();
    for index in 0..connections {
        let address = address.to_owned();
        threads.push(thread::Builder::new().stack_size(128 * 1024).spawn(move || {
            while Instant::now() < end {
                // Being refused or cut off is what it is for.
                let _ = misbehave(&address, index, end);
                // They are a tenth of the clients, not of the machine: what they do must cost them little CPU.
                thread::sleep(Duration::from_millis(20));
            }
        })?);
    }
    for thread in threads {
        thread.join().map_err(|_| "a connection's thread panicked")?;
    }
    Ok(())
}

/// One connection of a hostile client, until it is cut off or has done its worst.
fn misbehave(address: &str, kind: usize, end: Instant) -> Outcome<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_millis(100)))?;
    stream.set_write_timeout(Some(Duration::from_millis(100)))?;
    match kind % 7 {
        // A head that comes a byte at a time, and never ends.
        0 => {
            stream.write_all(b"GET / HTTP/1.1\r\nX-Slow: ")?;
            while Instant::now() < end {
                stream.write_all(b"x")?;
                thread::sleep(Duration::from_millis(20));
            }
        }
        // Large answers that are asked for and not read.
        1 => {
            while Instant::now() < end {
                stream.write_all(b"GET /1m HTTP/1.1\r\nHost: x\r\n\r\n")?;
                thread::sleep(Duration::from_millis(100));
            }
        }
        // What is no HTTP.
        2 => stream.write_all(&[0x16; 512])?,
        // A head larger than any limit.
        3 => {
            stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n")?;
            for _ in 0..1024 {
                stream.write_all(b"X-Large: 0123456789012345678901234567890123456789012345678901234567890123456789\r\n")?;
            }
        }
        // An upload that is announced and does not come.
        4 => {
            stream.write_all(b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nx")?;
            thread::sleep(Duration::from_millis(200).min(end.saturating_duration_since(Instant::now())));
        }
        // Conflicting lengths, again and again.
        5 => stream.write_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")?,
        // Requests in a row whose answers are not awaited.
        _ => {
            for _ in 0..16 {
                stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")?;
            }
        }
    }
    Ok(())
}
