//! Memory allocations of a plain request may not become more.
//!
//! An allocation costs little and shows in no profile, so they come back one by one. They are counted in a process of its own, in which only
//! the gateway allocates: the client and the upstream below have their buffers on the stack.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use tollgate::config::load::Source;
use tollgate::server::{Options, Server};

/// Allocations of one proxied request with keep-alive on both sides, from its first byte to the answer's last. A change that needs fewer
/// lowers this number; one that needs more says in its commit what they buy.
const MOST: u64 = 5;
/// Requests that are counted together. What the gateway allocates beside requests, now and then, is lost in the division.
const REQUESTS: u64 = 1_000;
/// Requests before the first count: connections are made, buffers have grown.
const WARM_UP: u64 = 200;
/// The least of so many counts is the result.
const COUNTS: usize = 3;

/// The system's allocator, counting while it is told to.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

static ON: AtomicBool = AtomicBool::new(false);
static COUNT: AtomicU64 = AtomicU64::new(0);

fn count() {
    if ON.load(Relaxed) {
        COUNT.fetch_add(1, Relaxed);
    }
}

// SAFETY: every call is passed on to `System` as it is; counting touches two atomics and allocates nothing.
#[allow(unsafe_code)] // An allocator cannot be written without, and allocations cannot be counted in another place.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `alloc`, which is that of `System`.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(block, layout, size) }
    }
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }
}

const MEASURE: &str = "allocations::measure_in_a_process_of_its_own";
const SAYS: &str = "allocations of 1000 requests: ";

#[test]
fn a_plain_request_allocates_no_more_than_it_did() {
    let arguments = ["--exact", MEASURE, "--ignored", "--nocapture", "--test-threads=1"];
    let output = Command::new(std::env::current_exe().unwrap()).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let all: u64 = text.lines().find_map(|line| line.split_once(SAYS)?.1.trim().parse().ok()).unwrap_or_else(|| panic!("no count: {text}"));
    let each = all / REQUESTS;
    assert!(
        each <= MOST,
        "a plain proxied request makes {each} allocations ({all} in {REQUESTS}), {MOST} are allowed: avoid the new ones, or argue for them"
    );
}

#[test]
#[ignore = "started by the test above, alone in a process"]
#[allow(clippy::print_stdout)] // That is how it tells the test above.
fn measure_in_a_process_of_its_own() {
    let upstream = upstream();
    let yaml = format!(
        "listeners: [{{ address: '127.0.0.1:0' }}]\nserver: {{ workers: 1 }}\nlog: {{ level: error, access: {{ enabled: false }} }}\n\
         upstreams: {{ up: {{ endpoints: ['http://{upstream}'] }} }}\nroutes: [{{ match: /*, upstream: up }}]\n"
    );
    let server = Server::start(Source::Text { yaml, dir: ".".into() }, Options::default()).unwrap();
    let mut client = TcpStream::connect(server.addresses()[0]).unwrap();
    client.set_nodelay(true).unwrap();
    (0..WARM_UP).for_each(|_| ask(&mut client));
    let counts = [(); COUNTS].map(|()| {
        COUNT.store(0, Relaxed);
        ON.store(true, Relaxed);
        (0..REQUESTS).for_each(|_| ask(&mut client));
        ON.store(false, Relaxed);
        COUNT.load(Relaxed)
    });
    println!("{SAYS}{}", counts.iter().min().unwrap());
    server.shutdown();
}

/// One request as wrk sends it, and its answer.
fn ask(client: &mut TcpStream) {
    client.write_all(b"GET /users/1?a=b HTTP/1.1\r\nHost: site\r\nUser-Agent: test\r\nAccept: */*\r\n\r\n").unwrap();
    let mut buffer = [0; 4096];
    let mut filled = 0;
    while !buffer[..filled].ends_with(b"\r\n\r\nhello, world") {
        let count = client.read(&mut buffer[filled..]).unwrap();
        assert!(count > 0, "the connection was closed");
        filled += count;
    }
    assert!(buffer.starts_with(b"HTTP/1.1 200 "));
}

/// A server that answers every request with a few fields and bytes.
fn upstream() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || serve(stream.unwrap()));
        }
    });
    address
}

fn serve(mut stream: TcpStream) {
    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nServer: test\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\nContent-Type: text/plain\r\n\
        Content-Length: 12\r\n\r\nhello, world";
    stream.set_nodelay(true).unwrap();
    let (mut buffer, mut filled) = ([0; 4096], 0);
    // An error is the other side's end.
    while let Ok(count @ 1..) = stream.read(&mut buffer[filled..]) {
        filled += count;
        if buffer[..filled].ends_with(b"\r\n\r\n") {
            filled = 0;
            if stream.write_all(ANSWER).is_err() {
                return;
            }
        }
    }
}
