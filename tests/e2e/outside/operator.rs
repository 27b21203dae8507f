//! What a service manager, a container runtime and a person at a terminal hold on to: signals, notes, sockets and exit codes.

use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use super::{HEAD, Load, proxy, run};
use crate::support::client::get;
use crate::support::process::Process;
use crate::support::{Gate, PATIENCE, Raw, Upstream, eventually};

/// A command of the program in a directory with this configuration, once it has ended.
fn tollgate(dir: &Path, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tollgate")).args(words).current_dir(dir).stdin(Stdio::null()).output().unwrap()
}

/// How a command ended and all that it said.
fn told(output: &Output) -> (Option<i32>, String) {
    let text = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).concat();
    (output.status.code(), text)
}

/// What `health` says in the directory of a gateway whose file names its ports.
fn health(process: &Process) -> (Option<i32>, String) {
    told(&tollgate(process.dir.path(), &["health"]))
}

#[test]
fn sigint_lets_a_request_end_and_exits_with_0() {
    let gate = Gate::new();
    let wait = gate.clone();
    let upstream = Upstream::serve(move |_, conn| {
        wait.pass();
        conn.ok("whole")
    });
    let mut process = run(&proxy(upstream.address, ""));
    let mut raw = Raw::connect(process.address(0));
    raw.send(get("/"));
    eventually("it is upstream", || (upstream.count() == 1).then_some(()));
    process.signal("INT");
    eventually("it listens no more", || Raw::try_connect(process.address(0)).is_none().then_some(()));
    gate.open();
    assert_eq!(raw.read().text(), "whole");
    assert_eq!(process.ended(), Some(0));
    process.said("stopped");
}

#[test]
fn health_knows_a_gateway_that_serves_from_one_that_drains_and_from_none_and_a_second_signal_ends_a_drain() {
    for (first, second) in [("TERM", "INT"), ("INT", "TERM")] {
        let mut process = run(&format!("{HEAD}server: {{ drain_delay: 10m }}\nroutes: [{{ match: /*, respond: {{ status: 200 }} }}]\n"));
        let (code, text) = health(&process);
        assert_eq!(code, Some(0), "{text}");
        let signalled = Instant::now();
        process.signal(first);
        eventually("health sees the drain", || (health(&process).0 == Some(1)).then_some(()));
        assert_eq!(process.ask(0, &get("/")).status, 200, "clients are served during drain_delay");
        // It does not end a drain.
        process.signal("HUP");
        assert_eq!(process.ask(0, &get("/")).status, 200);
        process.signal(second);
        assert_eq!(process.ended(), Some(1), "{}", process.output());
        assert!(signalled.elapsed().as_secs() < 60);
        assert!(process.output().contains("second signal"), "{}", process.output());
        let (code, text) = health(&process);
        assert_eq!(code, Some(1), "{text}");
        assert!(text.starts_with("tollgate: "), "{text}");
    }
}

#[test]
fn sighup_reads_the_file_again_and_opens_the_log_anew() {
    let answering = |body: &str| format!("{HEAD}routes: [{{ match: /*, respond: {{ status: 200, body: {body} }} }}]\n");
    let process = run(&answering("first"));
    assert_eq!(process.ask(0, &get("/before")).text(), "first");
    let log = process.dir.path().join("access.log");
    let lines = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
    eventually("the first line", || lines(&log).contains("/before").then_some(()));
    let rotated = process.dir.path().join("access.log.1");
    std::fs::rename(&log, &rotated).unwrap();
    process.signal("HUP");
    // Nobody saved anything: the watch on the file has no part in this.
    eventually("the file was read", || (process.metric("gateway_config_reloads_total{result=\"unchanged\"}") >= 1.0).then_some(()));
    eventually("the log is there again", || log.exists().then_some(()));
    assert_eq!(process.ask(0, &get("/after")).text(), "first");
    eventually("the line is in the new log", || lines(&log).contains("/after").then_some(()));
    assert!(lines(&rotated).contains("/before") && !lines(&rotated).contains("/after"));
    process.save(&answering("second"));
    process.signal("HUP");
    eventually("the saved file serves", || (process.ask(0, &get("/")).text() == "second").then_some(()));
}

#[test]
fn the_service_manager_is_told_when_it_is_ready_reloads_and_stops() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let next = |manager: &UnixDatagram| {
        let mut buffer = [0; 256];
        let length = loop {
            match manager.recv(&mut buffer) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                received => break received.unwrap(),
            }
        };
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    };
    let yaml = format!("{HEAD}routes: [{{ match: /*, respond: {{ status: 200 }} }}]\n");
    // Looked at in the moment it comes, not once the start has been waited for.
    let file = dir.path().join("gateway.yaml");
    let ready = std::thread::spawn(move || {
        let note = next(&manager);
        let yaml = std::fs::read_to_string(file).unwrap();
        let address = yaml.split('\'').nth(1).unwrap();
        (note, TcpStream::connect(address).is_ok(), manager)
    });
    let mut process = Process::start(dir, &yaml, &[("NOTIFY_SOCKET", path.to_str().unwrap())]);
    let (note, listens, manager) = ready.join().unwrap();
    assert_eq!((note.as_str(), listens), ("READY=1", true));
    process.signal("HUP");
    let note = next(&manager);
    let micros = note.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap_or_else(|| panic!("{note}"));
    assert!(micros.parse::<u64>().unwrap() > 0);
    assert_eq!(next(&manager), "READY=1");
    process.save("routes: [");
    assert!(next(&manager).starts_with("RELOADING=1\n"));
    assert_eq!(next(&manager), "READY=1", "a reload that fails is over, too");
    process.signal("TERM");
    // The watch may have read the file a second time.
    let last = std::iter::repeat_with(|| next(&manager)).find(|note| !note.starts_with("RELOADING=1\n") && note != "READY=1");
    assert_eq!(last.as_deref(), Some("STOPPING=1"));
    assert_eq!(process.ended(), Some(0));
}

/// Ends the process with the test.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        // It may have ended by itself; the test has said so then.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the gateway with `socket` as descriptor 3; `pid` is what LISTEN_PID says.
fn activated(dir: &Path, socket: &TcpListener, pid: &str) -> Ends {
    let script = format!("exec 3<&0 </dev/null; export LISTEN_FDS=1 LISTEN_PID={pid}; exec \"$0\" serve");
    let passed = OwnedFd::from(socket.try_clone().unwrap());
    let errors = std::fs::File::create(dir.join("err")).unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_tollgate")]).current_dir(dir);
    Ends(command.stdin(Stdio::from(passed)).stdout(Stdio::null()).stderr(Stdio::from(errors)).spawn().unwrap())
}

#[test]
fn a_socket_of_the_service_manager_is_served_from_its_first_connection_on() {
    // The test keeps it open as the service manager does: a gateway that bound the address itself would find it taken.
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let yaml = format!("listeners: [{{ address: '{address}' }}]\nroutes: [{{ match: /*, respond: {{ status: 200, body: served }} }}]\n");
    std::fs::write(dir.path().join("gateway.yaml"), yaml).unwrap();
    let mut early = Raw::connect(address);
    early.send(get("/"));
    {
        let _gateway = activated(dir.path(), &socket, "$$");
        assert_eq!(early.read().text(), "served", "who came before it was started");
        assert_eq!(Raw::connect(address).ask(get("/")).text(), "served");
    }
    // Sockets that are meant for another process are not this one's.
    let mut other = activated(dir.path(), &socket, "1");
    let code = eventually("it ends", || other.0.try_wait().unwrap()).code();
    let said = std::fs::read_to_string(dir.path().join("err")).unwrap();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&address.to_string()), "{said}");
}

#[test]
fn an_address_that_is_taken_is_named_and_exits_with_1() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let dir = tempfile::tempdir().unwrap();
    for (listener, admin) in [(address.as_str(), "127.0.0.1:0"), ("127.0.0.1:0", address.as_str())] {
        let yaml = format!(
            "listeners: [{{ address: '{listener}' }}]\nadmin: {{ address: '{admin}' }}\nroutes: [{{ match: /*, respond: {{ status: 200 }} }}]\n"
        );
        std::fs::write(dir.path().join("gateway.yaml"), yaml).unwrap();
        let output = tollgate(dir.path(), &["serve"]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(&address), "{said}");
    }
}

#[test]
fn explain_tells_by_its_exit_code_whether_a_route_matches() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("gateway.yaml");
    std::fs::write(&file, "routes: [{ name: users, match: 'GET /users/{id}', respond: { status: 200 } }]\n").unwrap();
    let explain = |words: &[&str]| told(&tollgate(dir.path(), &[&["explain"], words].concat()));
    let (code, text) = explain(&["GET", "/users/7"]);
    assert!(code == Some(0) && text.contains("users"), "{text}");
    for other in ["/elsewhere", "http://site/users/7/more"] {
        let (code, text) = explain(&["GET", other]);
        assert_eq!(code, Some(3), "{text}");
    }
    for wrong in [&["GET", "/us ers"][..], &["G T", "/users/7"], &["GET", "/users/7", "-H", "no header"], &["GET"]] {
        let (code, text) = explain(wrong);
        assert!(code == Some(2) && !text.is_empty(), "{wrong:?}: {code:?} {text}");
    }
    std::fs::write(&file, "routes: [{ match: /*, respnd: {} }]\n").unwrap();
    let (code, text) = explain(&["GET", "/users/7"]);
    assert!(code == Some(2) && text.contains("respnd"), "{text}");
}

#[test]
fn the_file_of_the_demo_serves_a_load_on_bench_without_an_error() {
    let demo = tollgate::demo::start_on_free_ports().unwrap();
    let mut yaml =
        tollgate::demo::GATEWAY_YAML.replace("127.0.0.1:8080", "127.0.0.1:@LISTEN").replace("127.0.0.1:9901", "127.0.0.1:@ADMIN");
    for (written, address) in ["127.0.0.1:9081", "127.0.0.1:9082", "127.0.0.1:9083"].iter().zip(demo.addresses()) {
        yaml = yaml.replace(written, &address.to_string());
    }
    let process = run(&yaml);
    let load = Load::of(process.address(0), "/bench");
    load.goes_on(2000);
    load.end();
    let metrics = process.ask(1, "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").text();
    let failed: Vec<&str> = metrics.lines().filter(|line| line.starts_with("gateway_errors_total{") && !line.ends_with(" 0")).collect();
    assert!(failed.is_empty(), "{failed:?}");
}
