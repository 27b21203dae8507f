//! The installed program as its operator sees it: under load while its file changes, at a signal, with backends that die, with large
//! bodies and with clients that only hold connections.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::support::client::get;
use crate::support::process::Process;
use crate::support::upstream::Conn;
use crate::support::{End, Raw, Then, Upstream, eventually};

mod operator;

const HEAD: &str = "
listeners: [{ address: '127.0.0.1:@LISTEN' }]
admin: { address: '127.0.0.1:@ADMIN' }
log: { level: info, format: json, access: { output: access.log } }
";

fn proxy(upstream: SocketAddr, more: &str) -> String {
    format!("{HEAD}upstreams: {{ up: {{ endpoints: ['http://{upstream}'] }} }}\nroutes: [{{ name: all, match: /*, upstream: up }}]\n{more}")
}

fn run(yaml: &str) -> Process {
    Process::start(tempfile::tempdir().unwrap(), yaml, &[])
}

/// Clients that ask as fast as they are answered, and fail at the first answer that is not a 200 on a connection that stays.
struct Load {
    over: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    fn on(address: SocketAddr) -> Self {
        Self::of(address, "/")
    }
    fn of(address: SocketAddr, path: &'static str) -> Self {
        let (over, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let client = || {
            let (over, served, mut raw) = (Arc::clone(&over), Arc::clone(&served), Raw::connect(address));
            std::thread::spawn(move || {
                while !over.load(SeqCst) {
                    let answer = raw.ask(get(path));
                    assert_eq!((answer.status, answer.end, answer.closes()), (200, End::Framed, false), "{answer:?}");
                    served.fetch_add(1, SeqCst);
                }
            })
        };
        let clients = (0..8).map(|_| client()).collect();
        Self { over, served, clients }
    }
    /// Waits until this many more were served.
    #[track_caller]
    fn goes_on(&self, count: usize) {
        let wanted = self.served.load(SeqCst) + count;
        eventually("the load goes on", || {
            assert!(self.clients.iter().all(|client| !client.is_finished()), "a client has seen a fault");
            (self.served.load(SeqCst) >= wanted).then_some(())
        });
    }
    fn end(self) {
        self.over.store(true, SeqCst);
        self.clients.into_iter().for_each(|client| client.join().unwrap());
    }
}

#[test]
fn a_typo_saved_under_load_costs_nothing_and_is_explained() {
    let upstream = Upstream::text("x");
    let good = proxy(upstream.address, "");
    let process = run(&good);
    let load = Load::on(process.address(0));
    load.goes_on(200);
    process.save(&good.replace("match: /*", "match: /*, timout: 5s"));
    let said = process.said("unknown field");
    assert_eq!(said["message"], "unknown field \"timout\", did you mean \"timeout\"? (route all)");
    assert!(said["at"].as_str().unwrap().contains("gateway.yaml:6:"), "{said}");
    load.goes_on(200);
    assert!(process.metric("gateway_config_last_reload_successful") < 0.5);
    process.save(&good.replace("match: /*", "match: /*, headers: { response: { set: { x-new: '1' } } }"));
    eventually("the mended file serves", || process.ask(0, &get("/")).has("x-new").then_some(()));
    load.goes_on(200);
    load.end();
    assert!(process.metric("gateway_config_last_reload_successful") > 0.5);
    assert!(process.metric("gateway_config_reloads_total{result=\"failed\"}") >= 1.0);
}

#[test]
fn a_file_that_is_saved_as_soon_as_the_gateway_listens_is_seen() {
    let answering = |body: &str| format!("{HEAD}routes: [{{ match: /*, respond: {{ status: 200, body: {body} }} }}]");
    for _ in 0..5 {
        let process = run(&answering("first"));
        process.save(&answering("second"));
        eventually("the saved file serves", || (process.ask(0, &get("/")).text() == "second").then_some(()));
    }
}

#[test]
fn sigterm_under_load_loses_nothing() {
    let upstream = Upstream::text("x");
    let mut process = run(&proxy(upstream.address, ""));
    let address = process.address(0);
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let mut raw = Raw::connect(address);
            std::thread::spawn(move || {
                for served in 1_usize.. {
                    let answer = raw.ask(get("/"));
                    assert_eq!((answer.status, answer.end, answer.text().as_str()), (200, End::Framed, "x"));
                    if answer.closes() {
                        raw.assert_closed();
                        return served;
                    }
                }
                unreachable!("it goes on until it is told to end");
            })
        })
        .collect();
    eventually("the load is on", || (upstream.count() > 200).then_some(()));
    process.signal("TERM");
    let served: usize = clients.into_iter().map(|client| client.join().unwrap()).sum();
    assert_eq!(process.ended(), Some(0));
    assert!(Raw::try_connect(address).is_none());
    assert_eq!(upstream.count(), served);
    let log = std::fs::read_to_string(process.dir.path().join("access.log")).unwrap();
    assert_eq!(log.lines().filter(|line| line.contains("\"status\":200")).count(), served, "every request has its line");
    assert_eq!(log.lines().count(), served);
    process.said("stopped");
}

#[test]
fn a_killed_backend_shows_with_a_reason_and_heals_by_itself() {
    let mut backend = run(&format!("{HEAD}routes: [{{ match: /*, respond: {{ body: alive }} }}]"));
    let yaml = format!(
        "{HEAD}upstreams: {{ up: {{ endpoints: ['http://{}'], health: {{ path: /, interval: 100ms, healthy: 1, unhealthy: 1 }} }} }}
routes: [{{ match: /*, upstream: up, retry: off }}]",
        backend.address(0)
    );
    let process = run(&yaml);
    let mut raw = Raw::connect(process.address(0));
    assert_eq!(raw.ask(get("/")).text(), "alive");
    for _ in 0..2 {
        backend.signal("KILL");
        assert_eq!(backend.ended(), None);
        let answer = raw.ask(get("/"));
        assert!([502, 503].contains(&answer.status), "{answer:?}");
        assert!(["upstream_connect_failed", "upstream_reset", "no_healthy_endpoint"].contains(&answer.reason().as_str()), "{answer:?}");
        let state = || {
            let upstreams = process.ask(1, "GET /upstreams HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").json();
            upstreams["upstreams"][0]["endpoints"][0]["state"].as_str().unwrap().to_owned()
        };
        eventually("it shows as unhealthy", || (state() == "unhealthy").then_some(()));
        backend.start_again();
        eventually("it heals", || (raw.ask(get("/")).status == 200).then_some(()));
        eventually("it shows as healthy", || (state() == "healthy").then_some(()));
    }
}

/// Two thousand connections that send nothing, until the other side has closed them all. A process of its own, for it needs descriptors.
const IDLERS: &str = "
import resource, select, socket, sys
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
idlers = [socket.create_connection(('127.0.0.1', int(sys.argv[1]))) for _ in range(2000)]
print('open', flush=True)
poll, left = select.poll(), {idler.fileno(): idler for idler in idlers}
for number in left:
    poll.register(number, select.POLLIN)
while left:
    gone = poll.poll(20000)
    assert gone, f'{len(left)} are still open'
    for number, _ in gone:
        assert left.pop(number).recv(1) == b'', 'something was said'
        poll.unregister(number)
print('closed', flush=True)
";

#[test]
fn two_thousand_connections_that_send_nothing_are_gone_after_header() {
    let upstream = Upstream::text("x");
    let process = run(&proxy(upstream.address, "server: { timeouts: { header: 1s } }"));
    let mut honest = Raw::connect(process.address(0));
    assert_eq!(honest.ask(get("/")).status, 200);
    let before = process.descriptors();
    let port = process.address(0).port().to_string();
    let mut idlers = Command::new("python3").args(["-c", IDLERS, &port]).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(idlers.stdout.take().unwrap()).lines();
    assert_eq!(said.next().unwrap().unwrap(), "open");
    assert_eq!(honest.ask(get("/")).status, 200, "who asks is served");
    assert_eq!(said.next().unwrap().unwrap(), "closed");
    assert!(idlers.wait().unwrap().success());
    assert_eq!(honest.ask(get("/")).status, 200);
    // A few more may be the process's own: a worker that was late to start, another connection to the upstream.
    eventually("their descriptors are free", || (process.descriptors() <= before + 8).then_some(()));
    let timeouts = format!("gateway_connection_errors_total{{listener=\"{}\",kind=\"header_timeout\"}}", process.address(0));
    eventually("they are counted", || (process.metric(&timeouts) >= 2000.0).then_some(()));
}

#[test]
fn without_descriptors_who_is_connected_is_served_and_the_rest_waits_without_a_busy_loop() {
    let process = run(&format!("{HEAD}routes: [{{ name: all, match: /*, respond: {{ status: 200 }} }}]\n"));
    let mut honest = Raw::connect(process.address(0));
    assert_eq!(honest.ask(get("/")).status, 200);
    process.limit_descriptors(process.descriptors() + 5);
    let crowd: Vec<Raw> = (0..50).map(|_| Raw::connect(process.address(0))).collect();
    process.said("cannot accept connections");
    let attempts = || process.output().matches("cannot accept connections").count();
    let (begun, before) = (Instant::now(), attempts());
    eventually("a second of it", || {
        assert_eq!(honest.ask(get("/")).status, 200);
        (begun.elapsed() >= Duration::from_secs(1)).then_some(())
    });
    let (tried, pauses) = (attempts() - before, begun.elapsed().as_millis() / 50);
    assert!(tried as u128 <= pauses + 2, "tried {tried} times where {pauses} pauses fit");
    drop(crowd);
    eventually("new ones are taken again", || {
        let mut raw = Raw::connect(process.address(0));
        raw.send("GET / HTTP/1.1\r\nHost: site\r\nConnection: close\r\n\r\n");
        raw.rest().0.starts_with(b"HTTP/1.1 200").then_some(())
    });
    assert_eq!(honest.ask(get("/")).status, 200);
}

/// 1 GiB.
const LARGE: u64 = 1 << 30;

/// Reads this many bytes more.
fn swallow(buffered: usize, mut socket: &std::net::TcpStream, size: u64) {
    let (mut left, mut chunk) = (size - buffered as u64, vec![0; 256 << 10]);
    while left > 0 {
        let count = socket.read(&mut chunk).unwrap();
        assert_ne!(count, 0, "{left} bytes are missing");
        left -= count as u64;
    }
}

fn pour(mut socket: &std::net::TcpStream, size: u64) {
    let chunk = vec![b'x'; 256 << 10];
    for _ in 0..size / chunk.len() as u64 {
        socket.write_all(&chunk).unwrap();
    }
}

#[test]
fn a_gibibyte_passes_each_way_with_flat_memory() {
    let upstream = Upstream::raw(|conn: &mut Conn| {
        while let Ok(Some(request)) = conn.wire.request_head() {
            if request.method == "POST" {
                let buffered = std::mem::take(&mut conn.wire.buffer).len();
                swallow(buffered, &conn.socket, LARGE);
                conn.ok("all of it");
            } else {
                conn.write(format!("HTTP/1.1 200 OK\r\ncontent-length: {LARGE}\r\n\r\n"));
                pour(&conn.socket, LARGE);
            }
        }
        Then::Close
    });
    let process = run(&proxy(upstream.address, ""));
    let mut raw = Raw::connect(process.address(0));
    let before = process.memory("VmRSS");
    raw.send(format!("POST /up HTTP/1.1\r\nHost: site\r\nContent-Length: {LARGE}\r\n\r\n"));
    pour(&raw.socket, LARGE);
    assert_eq!(raw.read().text(), "all of it");
    raw.send(get("/down"));
    assert_eq!(raw.wire.answer_head().status, 200);
    let buffered = std::mem::take(&mut raw.wire.buffer).len();
    swallow(buffered, &raw.socket, LARGE);
    let most = process.memory("VmHWM");
    assert!(most < before + (16 << 10), "from {before} KiB to {most} KiB");
}

#[test]
fn clients_that_read_nothing_stop_the_upstream_and_cost_little_each() {
    const CLIENTS: usize = 200;
    let stopped = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&stopped);
    let upstream = Upstream::raw(move |conn: &mut Conn| {
        if let Ok(Some(_)) = conn.wire.request_head() {
            conn.write(format!("HTTP/1.1 200 OK\r\ncontent-length: {LARGE}\r\n\r\n"));
            conn.socket.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
            let (chunk, mut socket) = (vec![b'x'; 64 << 10], &conn.socket);
            // Far more than sockets on the way can hold is never taken.
            for _ in 0..LARGE >> 16 {
                if socket.write_all(&chunk).is_err() {
                    seen.fetch_add(1, SeqCst);
                    break;
                }
            }
            conn.wait_end();
        }
        Then::Close
    });
    let process = run(&proxy(upstream.address, ""));
    let before = process.memory("VmRSS");
    let clients: Vec<Raw> = (0..CLIENTS)
        .map(|_| {
            let mut raw = Raw::connect(process.address(0));
            raw.send(get("/"));
            raw
        })
        .collect();
    eventually("the upstream is stopped for all of them", || (stopped.load(SeqCst) == CLIENTS).then_some(()));
    let grown = process.memory("VmHWM").saturating_sub(before);
    assert!(grown < CLIENTS as u64 * 512, "{grown} KiB for {CLIENTS} clients");
    drop(clients);
}

/// A configuration in which every kind of thing is made anew when its number changes.
fn numbered(upstream: SocketAddr, number: usize) -> String {
    let routes: String = (0..30)
        .map(|n| {
            format!(
                "  - {{ name: r{n}, match: {{ regex: '/r{n}/(?<name>[a-z]+)' }}, timeout: {}ms, rate_limit: [{{ by: ip, rate: {}/s }}], \
                 headers: {{ response: {{ set: {{ x-number: '{number}' }} }} }}, upstream: up{n} }}\n",
                1000 + number,
                1 + number
            )
        })
        .collect();
    let upstreams: String = (0..30).map(|n| format!("  up{n}: {{ endpoints: ['http://{upstream}'] }}\n")).collect();
    format!(
        "{HEAD}upstreams:\n  up: {{ endpoints: ['http://{upstream}'] }}\n{upstreams}
authenticators:
  main: {{ jwt: {{ issuer: 'https://id.test', audience: [a{number}], algorithms: [HS256], secret: 0123456789abcdef0123456789abcdef }} }}
routes:\n{routes}  - {{ name: all, match: /*, headers: {{ response: {{ set: {{ x-number: '{number}' }} }} }}, upstream: up }}\n"
    )
}

#[test]
fn a_hundred_reloads_under_load_leak_neither_memory_nor_descriptors() {
    let upstream = Upstream::text("x");
    let process = run(&numbered(upstream.address, 0));
    let load = Load::on(process.address(0));
    let reload = |number: usize| {
        process.save(&numbered(upstream.address, number));
        let ask = "POST /reload HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
        let answer = process.ask(1, ask);
        // The watch may have been faster.
        assert!(answer.status == 200 && ["ok", "unchanged"].contains(&answer.json()["result"].as_str().unwrap()), "{answer:?}");
    };
    (1..=20).for_each(reload);
    load.goes_on(100);
    let (memory, descriptors) = (process.memory("VmRSS"), process.descriptors());
    (21..=120).for_each(reload);
    load.goes_on(100);
    assert_eq!(process.ask(0, &get("/")).header("x-number"), Some("120"));
    let info = process.ask(1, "GET /info HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").json();
    // More than one each if a file was replaced just while the watch had it read.
    assert!(info["config"]["generation"].as_u64().unwrap() >= 121, "{info}");
    // A connection or two may be on their way out; what leaks would leak a hundred times.
    eventually("the descriptors are as few as before", || (process.descriptors() <= descriptors + 4).then_some(()));
    let grown = process.memory("VmRSS").saturating_sub(memory);
    // The allocator keeps more or less of what was freed; a hundred configurations of this size would be over 100 MiB.
    assert!(grown < 48 << 10, "{grown} KiB more than {memory} KiB");
    load.end();
}

#[test]
fn an_endpoint_is_not_blamed_for_descriptors_that_the_gateway_lacks() {
    // Each request needs a connection of its own.
    let upstreams = [0, 1].map(|_| {
        Upstream::serve(|_, conn| {
            conn.answer(200, "connection: close\r\n", "hi");
            Then::Close
        })
    });
    let [first, second] = upstreams.each_ref().map(|upstream| upstream.address);
    let yaml = format!(
        "{HEAD}server: {{ workers: 1 }}
upstreams: {{ up: {{ endpoints: ['http://{first}', 'http://{second}'] }} }}
routes: [{{ match: /*, upstream: up }}]\n"
    );
    let process = Process::start(tempfile::tempdir().unwrap(), &yaml, &[("DESCRIPTORS", "64")]);
    // The first to come holds a place; the others take what is left.
    let mut client = Raw::connect(process.address(0));
    let others: Vec<Raw> = (0..80).map(|_| Raw::connect(process.address(0))).collect();
    process.said("cannot accept connections");
    let mut refused = 0;
    eventually("no descriptor is left for ten requests", || {
        let answer = client.ask(get("/"));
        if answer.status != 200 {
            answer.refused(503, "overloaded");
            assert_eq!(answer.header("retry-after"), Some("1"));
            refused += 1;
        }
        (refused == 10).then_some(())
    });
    drop(others);
    eventually("it has room again", || (client.ask(get("/")).status == 200).then_some(()));
    for upstream in &upstreams {
        let series = format!("gateway_upstream_ejections_total{{upstream=\"up\",endpoint=\"http://{}\"}}", upstream.address);
        assert_eq!(process.metric(&series), 0.0);
    }
}
