//! How connections reach the workers: each accepts for itself, nobody gets more than its share, and a worker that is stuck holds up only
//! whom it serves already.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};

use http::{HeaderMap, HeaderValue, StatusCode};
use tollgate::error::Refusal;
use tollgate::gateway::Middleware;
use tollgate::http::Exchange;
use tollgate::server::Options;

use crate::support::client::{get, request};
use crate::support::{Gate, Gateway, Raw, eventually};

const HELD: &str = "/held";

/// Says which worker serves, and holds the one that gets a certain path.
struct Where {
    gate: Gate,
    held: Sender<usize>,
}

impl Middleware for Where {
    fn request(&self, _: &str, exchange: &Exchange, _: &mut HeaderMap) -> Result<(), Box<Refusal>> {
        if exchange.target.path() == HELD {
            self.held.send(exchange.worker).unwrap();
            self.gate.pass();
        }
        Ok(())
    }
    fn response(&self, _: &str, exchange: &Exchange, _: StatusCode, headers: &mut HeaderMap) {
        headers.insert("x-worker", HeaderValue::from(exchange.worker));
    }
}

struct Workers {
    gateway: Gateway,
    gate: Gate,
    held: Receiver<usize>,
}

fn workers(count: usize, server: &str, inherited: Arc<[TcpListener]>) -> Workers {
    let (gate, (sender, held)) = (Gate::new(), mpsc::channel());
    let middleware: Vec<Arc<dyn Middleware>> = vec![Arc::new(Where { gate: gate.clone(), held: sender })];
    let listeners = inherited.first().map(|socket| format!("listeners: [{{ address: '{}' }}]\n", socket.local_addr().unwrap()));
    let yaml = format!(
        "server: {{ workers: {count}, timeouts: {{ drain: 200ms }}{server} }}\nroutes: [{{ match: /*, respond: {{ status: 200 }} }}]\n{}",
        listeners.unwrap_or_default()
    );
    let options = Options { middleware, inherited, ..Options::default() };
    Workers { gateway: Gateway::with(options, tempfile::tempdir().unwrap(), &yaml, &[]), gate, held }
}

fn worker(raw: &mut Raw) -> usize {
    raw.ask(get("/")).header("x-worker").unwrap().parse().unwrap()
}

/// How many of the connections each worker has.
fn spread(address: SocketAddr, workers: usize, connections: usize) -> Vec<usize> {
    let mut counts = vec![0; workers];
    let mut open: Vec<Raw> = Vec::new();
    for _ in 0..connections {
        let mut raw = Raw::connect(address);
        counts[worker(&mut raw)] += 1;
        open.push(raw);
    }
    counts
}

#[test]
fn connections_that_stay_are_spread_evenly() {
    for count in [1, 2, 3] {
        let workers = workers(count, "", Arc::default());
        // Too few to leave it to chance.
        assert_eq!(spread(workers.gateway.address(), count, 4 * count), vec![4; count]);
    }
}

#[test]
fn those_of_a_socket_from_the_service_manager_are_spread_as_evenly() {
    let passed = TcpListener::bind("127.0.0.1:0").unwrap();
    passed.set_nonblocking(true).unwrap();
    let workers = workers(3, "", [passed].into());
    assert_eq!(spread(workers.gateway.address(), 3, 12), [4, 4, 4]);
}

#[test]
fn clients_of_a_worker_that_is_stuck_are_served_by_the_others() {
    let workers = workers(2, "", Arc::default());
    let mut victim = workers.gateway.connect();
    victim.send(get(HELD));
    let stuck = workers.held.recv().unwrap();
    // The system deals them to both workers.
    for _ in 0..8 {
        let mut raw = workers.gateway.connect();
        let answer = raw.ask(request("GET", "/", &[("Connection", "close")], ""));
        assert_ne!(answer.header("x-worker"), Some(&*stuck.to_string()));
        raw.assert_closed();
    }
    workers.gate.open();
    assert_eq!(victim.read().status, 200);
}

#[test]
fn the_limit_on_connections_is_exact_and_everybody_has_a_turn() {
    const LIMIT: usize = 3;
    let workers = workers(4, &format!(", max_connections: {LIMIT}"), Arc::default());
    let mut clients: Vec<Raw> = (0..24).map(|_| workers.gateway.connect()).collect();
    for client in &mut clients {
        client.send(get("/"));
        client.socket.set_nonblocking(true).unwrap();
    }
    while !clients.is_empty() {
        let ready = |client: &Raw| client.socket.peek(&mut [0]).is_ok();
        eventually("the next are served", || clients.iter().any(ready).then_some(()));
        let answered = clients.iter().filter(|client| ready(client)).count();
        assert!(answered <= LIMIT, "{answered} at a time");
        // Closing them makes room.
        clients.retain(|client| !ready(client));
    }
}

#[test]
fn an_address_that_another_gateway_listens_on_is_taken() {
    let first = workers(2, "", Arc::default());
    let yaml = format!(
        "listeners: [{{ address: '{}' }}]\nserver: {{ workers: 2 }}\nroutes: [{{ match: /*, respond: {{ status: 200 }} }}]",
        first.gateway.address()
    );
    let error = Gateway::start_error(&yaml, &[]).unwrap();
    assert!(error.contains("is already in use"), "{error}");
}
