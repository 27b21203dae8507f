//! A configuration replaced while the gateway runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use tollgate::gateway::status::ReloadOutcome;

use crate::support::certs::{Authority, connect};
use crate::support::client::get;
use crate::support::h2::H2Upstream;
use crate::support::{Gate, Gateway, Raw, Upstream, eventually};

fn answering(body: &str) -> String {
    format!("routes: [{{ match: /*, respond: {{ status: 200, body: '{body}' }} }}]")
}

#[test]
fn a_good_configuration_serves_at_once_on_open_connections_too() {
    let gateway = Gateway::new(&answering("one"), &[]);
    let mut raw = gateway.connect();
    assert_eq!(raw.ask(get("/")).text(), "one");
    let reloads = "gateway_config_reloads_total{result=\"ok\"}";
    assert!(gateway.metric(reloads) < 0.5, "a start is no reload");
    gateway.reload_ok(&answering("two"), &[]);
    assert_eq!(raw.ask(get("/")).text(), "two");
    let info = gateway.admin_get("/info").json();
    assert_eq!((info["config"]["generation"].as_u64(), info["config"]["last_reload"]["result"].as_str()), (Some(2), Some("ok")));
    gateway.metric_becomes(reloads, 1.0);
}

#[test]
fn an_equal_configuration_changes_nothing() {
    let gateway = Gateway::new(&answering("one"), &[]);
    assert!(matches!(gateway.reload(&answering("one"), &[]), ReloadOutcome::Unchanged));
    assert_eq!(gateway.admin_get("/info").json()["config"]["generation"], 1);
    gateway.metric_becomes("gateway_config_reloads_total{result=\"unchanged\"}", 1.0);
}

#[test]
fn a_bad_configuration_keeps_the_old_one_and_says_why() {
    let gateway = Gateway::new(&answering("one"), &[]);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = format!("listeners: [{{ address: '{}' }}]\n{}", taken.local_addr().unwrap(), answering("two"));
    for (yaml, words) in [
        ("routes: [{ match: /*, respond: { status: 200 }, timout: 5s }]", "timeout"),
        ("routes: [{ match: /*, upstream: nowhere }]", "nowhere"),
        ("routes: [", ""),
        (
            "routes: [{ match: /*, respond: { status: 200 } }]\nupstreams: { up: { endpoints: [https://a], tls: { ca: missing.pem } } }",
            "certificate file",
        ),
        (port.as_str(), ""),
    ] {
        let ReloadOutcome::Failed { errors } = gateway.reload(yaml, &[]) else { panic!("it was taken: {yaml}") };
        let said = serde_json::to_string(&errors).unwrap();
        assert!(!errors.is_empty() && said.contains(words), "{yaml}: {said}");
        assert_eq!(gateway.get("/").text(), "one");
        let info = gateway.admin_get("/info").json();
        assert_eq!(info["config"]["last_reload"]["result"], "failed");
        assert!(!info["config"]["last_reload"]["errors"].as_array().unwrap().is_empty());
        gateway.metric_becomes("gateway_config_last_reload_successful", 0.0);
    }
    gateway.reload_ok(&answering("three"), &[]);
    assert_eq!(gateway.get("/").text(), "three");
    gateway.metric_becomes("gateway_config_last_reload_successful", 1.0);
}

#[test]
fn a_reload_that_fails_at_its_listener_leaves_the_access_log_as_it_was() {
    let gateway = Gateway::new(&answering("one"), &[]);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let other = gateway.dir().join("other.log");
    let yaml = format!(
        "listeners: [{{ address: '{}' }}]\nlog: {{ level: error, access: {{ output: '{}' }}, format: json }}\n{}",
        taken.local_addr().unwrap(),
        other.display(),
        answering("two")
    );
    assert!(matches!(gateway.reload(&yaml, &[]), ReloadOutcome::Failed { .. }));
    // A rotation: what is reopened must be the log that serves.
    std::fs::rename(gateway.log_path(), gateway.dir().join("access.log.1")).unwrap();
    gateway.reopen_logs();
    assert_eq!(gateway.get("/after").text(), "one");
    gateway.logged("/after");
    assert_eq!(std::fs::read_to_string(&other).unwrap_or_default(), "");
    drop(taken);
    gateway.reload_ok(&yaml, &[]);
    assert_eq!(Raw::connect(gateway.address()).ask(get("/moved")).text(), "two");
    eventually("the new log is in use", || std::fs::read_to_string(&other).unwrap().contains("/moved").then_some(()));
}

#[test]
fn a_failed_reload_is_422_with_line_and_column() {
    let gateway = Gateway::new(&answering("one"), &[]);
    assert!(matches!(gateway.reload("routes: [{ match: /*, respond: { status: 200 }, timout: 5s }]", &[]), ReloadOutcome::Failed { .. }));
    let answer =
        Raw::connect(gateway.admin()).ask("POST /reload HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(answer.status, 422);
    let error = answer.json()["errors"][0].clone();
    assert_eq!((error["line"].as_u64(), error["column"].as_u64()), (Some(1), Some(49)), "{error}");
}

#[test]
fn a_request_in_flight_ends_on_the_configuration_it_started_with() {
    let gate = Gate::new();
    let wait = gate.clone();
    let slow = Upstream::serve(move |_, conn| {
        wait.pass();
        conn.ok("slow")
    });
    let gateway = Gateway::to(slow.address, "headers: { response: { set: { x-config: old } } }");
    let mut raw = gateway.connect();
    raw.send(get("/"));
    eventually("it is upstream", || (slow.count() == 1).then_some(()));
    gateway.reload_ok(&answering("new"), &[]);
    assert_eq!(gateway.get("/").text(), "new");
    gate.open();
    let answer = raw.read();
    assert_eq!((answer.text().as_str(), answer.header("x-config")), ("slow", Some("old")));
    assert_eq!(raw.ask(get("/")).text(), "new", "the connection lives on");
}

#[test]
fn listeners_are_added_and_removed_live() {
    let first = "127.0.0.1:0";
    let gateway = Gateway::new(&answering("x"), &[]);
    let address = gateway.address();
    let mut raw = gateway.connect();
    assert_eq!(raw.ask(get("/")).status, 200);
    let free = std::net::TcpListener::bind(first).unwrap().local_addr().unwrap();
    gateway.reload_ok(&format!("listeners: [{{ address: '127.0.0.1:0' }}, {{ address: '{free}' }}]\n{}", answering("x")), &[]);
    assert_eq!(gateway.addresses(), [address, free], "a listener that stays keeps its port");
    assert_eq!(Raw::connect(free).ask(get("/")).status, 200);
    assert_eq!(raw.ask(get("/")).status, 200);
    gateway.reload_ok(&format!("listeners: [{{ address: '{free}' }}]\n{}", answering("x")), &[]);
    eventually("the removed listener refuses", || Raw::try_connect(address).is_none().then_some(()));
    assert_eq!(Raw::connect(free).ask(get("/")).status, 200);
}

#[test]
fn tls_comes_and_goes_at_an_address_that_stays() {
    let (dir, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    authority.issue(dir.path(), "site", &["site.test"]);
    let plain = format!("listeners: [{{ address: '127.0.0.1:0' }}]\n{}", answering("plain"));
    let tls = format!(
        "listeners: [{{ address: '127.0.0.1:0', tls: {{ certificates: [{{ cert: site.pem, key: site.key }}] }} }}]\n{}",
        answering("tls")
    );
    let gateway = Gateway::in_dir(dir, &plain, &[]);
    let (address, client) = (gateway.address(), authority.client(&[], None));
    for _ in 0..3 {
        let mut before = gateway.connect();
        assert_eq!(before.ask(get("/")).text(), "plain");
        assert!(connect(address, &client, "site.test").is_err());
        gateway.reload_ok(&tls, &[]);
        assert_eq!(gateway.addresses(), [address]);
        for _ in 0..4 {
            let (mut raw, _) = connect(address, &client, "site.test").unwrap();
            assert_eq!(raw.ask(get("/")).text(), "tls");
        }
        let mut raw = gateway.connect();
        raw.send(get("/"));
        assert!(!raw.rest().0.starts_with(b"HTTP/1.1 200"), "clear text was served");
        assert_eq!(before.ask(get("/")).text(), "tls", "who is connected stays, and sees the new routes");
        let (mut before, _) = connect(address, &client, "site.test").unwrap();
        gateway.reload_ok(&plain, &[]);
        assert_eq!(gateway.addresses(), [address]);
        for _ in 0..4 {
            assert_eq!(gateway.get("/").text(), "plain");
        }
        assert_eq!(before.ask(get("/")).text(), "plain");
    }
}

#[test]
fn proxy_protocol_comes_and_goes_at_an_address_that_stays() {
    let upstream = Upstream::echo();
    let with = |on: bool| {
        format!(
            "listeners: [{{ address: '127.0.0.1:0', proxy_protocol: {on} }}]
server: {{ trusted_proxies: [127.0.0.0/8], timeouts: {{ drain: 200ms }} }}\n{}",
            Gateway::simple("")
        )
    };
    let said = format!("PROXY TCP4 192.0.2.1 198.51.100.1 5000 80\r\n{}", get("/"));
    let gateway = Gateway::new(&with(false), &[upstream.address]);
    let address = gateway.address();
    for _ in 0..3 {
        for _ in 0..4 {
            assert_eq!(gateway.get("/").status, 200);
            assert_eq!(upstream.last().header("x-forwarded-for"), Some("127.0.0.1"));
            assert_eq!(gateway.ask(&said).status, 400);
        }
        gateway.reload_ok(&with(true), &[upstream.address]);
        assert_eq!(gateway.addresses(), [address]);
        for _ in 0..4 {
            assert_eq!(gateway.ask(&said).status, 200);
            assert_eq!(upstream.last().header("x-forwarded-for"), Some("192.0.2.1"));
            let mut raw = gateway.connect();
            raw.send(get("/"));
            raw.assert_closed();
        }
        gateway.reload_ok(&with(false), &[upstream.address]);
        assert_eq!(gateway.addresses(), [address]);
    }
}

#[test]
fn sockets_of_the_service_manager_are_used_whenever_a_listener_has_their_address() {
    let passed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    passed.set_nonblocking(true).unwrap();
    let address = passed.local_addr().unwrap();
    let options = tollgate::server::Options { inherited: [passed].into(), ..tollgate::server::Options::default() };
    let (with, without) = (format!("listeners: [{{ address: '{address}' }}]\n{}", answering("x")), answering("x"));
    let gateway = Gateway::with(options, tempfile::tempdir().unwrap(), &without, &[]);
    let mut early = Raw::connect(address);
    early.send(get("/"));
    for _ in 0..2 {
        gateway.reload_ok(&with, &[]);
        assert_eq!(Raw::connect(address).ask(get("/")).text(), "x");
        gateway.reload_ok(&without, &[]);
        // It stays open, as the service manager keeps it: clients wait.
        assert!(Raw::try_connect(address).is_some());
    }
    assert_eq!(early.read().text(), "x", "who came before anybody listened");
}

#[test]
fn pools_and_counters_survive_a_reload_that_does_not_touch_them() {
    let upstream = Upstream::echo();
    let simple = |route: &str| format!("server: {{ workers: 1, timeouts: {{ drain: 200ms }} }}\n{}", Gateway::simple(route));
    let gateway = Gateway::new(&simple(""), &[upstream.address]);
    let mut raw = gateway.connect();
    raw.ask(get("/"));
    for timeout in 1..=5 {
        gateway.reload_ok(&simple(&format!("timeout: {timeout}s")), &[upstream.address]);
        assert_eq!(raw.ask(get("/")).status, 200);
    }
    assert_eq!(upstream.connections(), 1);
    gateway.metric_becomes("gateway_requests_total{route=\"all\",method=\"GET\",status=\"200\"}", 6.0);
}

#[test]
fn series_of_names_that_left_the_configuration_end() {
    let gateway = Gateway::new("routes: [{ name: old, match: /*, respond: { status: 200 } }]", &[]);
    gateway.get("/");
    gateway.metric_becomes("gateway_requests_total{route=\"old\",method=\"GET\",status=\"200\"}", 1.0);
    gateway.reload_ok("routes: [{ name: new, match: /*, respond: { status: 200 } }]", &[]);
    gateway.get("/");
    gateway.metric_becomes("gateway_requests_total{route=\"new\",method=\"GET\",status=\"200\"}", 1.0);
    let text = gateway.admin_get("/metrics").text();
    assert!(!text.contains("route=\"old\""), "{text}");
}

#[test]
fn connections_and_series_of_an_upstream_that_left_end_at_once() {
    let h1 = Upstream::echo();
    let h2 = H2Upstream::serve(|(_, mut respond)| async move {
        respond.send_response(http::Response::new(()), true).unwrap();
    });
    for (address, protocol) in [(h1.address, "http1"), (h2.address, "h2")] {
        let used =
            format!("upstreams: {{ u: {{ endpoints: [http://@0], protocol: {protocol} }} }}\nroutes: [{{ match: /*, upstream: u }}]");
        let gateway = Gateway::new(&used, &[address]);
        assert_eq!(gateway.get("/").status, 200);
        gateway.metric_becomes(&format!("gateway_upstream_connections{{upstream=\"u\",endpoint=\"http://{address}\"}}"), 1.0);
        gateway.reload_ok(&answering("new"), &[]);
        assert_eq!(gateway.get("/").text(), "new");
        eventually("the series end", || (!gateway.admin_get("/metrics").text().contains("upstream=\"u\"")).then_some(()));
        gateway.reload_ok(&used, &[address]);
        assert_eq!(gateway.get("/").status, 200, "it comes back with a connection of its own");
    }
    assert_eq!(h1.connections(), 2);
    assert_eq!(h2.connections(), [0, 1]);
}

#[test]
fn rate_buckets_survive_where_their_limit_is_unchanged() {
    let limited = |rate: &str, body: &str| {
        format!(
            "routes: [{{ name: l, match: /*, rate_limit: [{{ by: global, rate: {rate} }}], respond: {{ status: 200, body: {body} }} }}]"
        )
    };
    let gateway = Gateway::new(&limited("1/h", "a"), &[]);
    assert_eq!(gateway.get("/").status, 200);
    gateway.reload_ok(&limited("1/h", "b"), &[]);
    assert_eq!(gateway.get("/").status, 429);
    gateway.reload_ok(&limited("2/h", "b"), &[]);
    assert_eq!(gateway.get("/").status, 200, "another limit starts full");
}

#[test]
fn a_hundred_reloads_under_load_lose_no_request_and_leak_nothing() {
    let upstream = Upstream::echo();
    let gateway = Gateway::to(upstream.address, "");
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..4)
        .map(|index| {
            let (stop, done, address) = (Arc::clone(&stop), Arc::clone(&done), gateway.address());
            std::thread::spawn(move || {
                let mut raw = Raw::connect(address);
                while !stop.load(SeqCst) {
                    let answer = raw.ask(if index % 2 == 0 { get("/") } else { crate::support::client::request("POST", "/", &[], "body") });
                    assert_eq!(answer.status, 200, "{answer:?}");
                    assert!(!answer.closes());
                    done.fetch_add(1, SeqCst);
                }
            })
        })
        .collect();
    let fds = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let mut before = 0;
    for index in 0..100 {
        gateway.reload_ok(&Gateway::simple(&format!("timeout: {}s", index + 1)), &[upstream.address]);
        if index == 10 {
            before = fds();
        }
    }
    // Other tests run in this process, too.
    assert!(fds() < before + 500, "descriptors went from {before} to {}", fds());
    stop.store(true, SeqCst);
    for client in clients {
        client.join().unwrap();
    }
    assert!(done.load(SeqCst) > 100, "{done:?}");
}

#[test]
fn a_file_is_watched_and_a_typo_in_it_costs_nothing() {
    use tollgate::config::load::Source;
    use tollgate::server::{Options, Server};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("gateway.yaml");
    let write = |body: &str| {
        let log = dir.path().join("access.log");
        let head = format!(
            "listeners: [{{ address: '127.0.0.1:0' }}]\nlog: {{ level: error, access: {{ output: '{}' }} }}\nserver: {{ workers: 1 }}\n",
            log.display()
        );
        // As editors do it: another file takes the name.
        std::fs::write(dir.path().join("new"), head + body).unwrap();
        std::fs::rename(dir.path().join("new"), &path).unwrap();
    };
    write(&answering("one"));
    let server = Server::start(Source::File(path.clone()), Options { watch: true, ..Options::default() }).unwrap();
    let address = server.addresses()[0];
    assert_eq!(Raw::connect(address).ask(get("/")).text(), "one");
    write("routes: [{ match: /*, respnd: {} }]");
    write(&answering("two"));
    eventually("the new file serves", || (Raw::connect(address).ask(get("/")).text() == "two").then_some(()));
    // Cut short, as by a full disk.
    std::fs::write(&path, "").unwrap();
    let ReloadOutcome::Failed { errors } = server.reload() else { panic!("an empty file was taken") };
    assert!(errors[0].message.contains("no configuration"), "{errors:?}");
    assert_eq!(Raw::connect(address).ask(get("/")).text(), "two");
    server.shutdown();
}
