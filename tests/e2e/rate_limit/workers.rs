//! Each worker has its own connection to Redis, and decides many requests at once on it.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::server::{Redis, UP, connections};
use crate::support::client::get;
use crate::support::{Gate, Gateway, Raw, eventually};

/// A gateway whose two workers share one allowance in the Redis at this port, for whose answers they wait as long as need be.
fn gateway(port: u16) -> Gateway {
    patient(port, 2, "20s")
}

fn patient(port: u16, workers: usize, timeout: &str) -> Gateway {
    let gateway = Gateway::new(
        &format!(
            "
            server: {{ workers: {workers}, timeouts: {{ drain: 200ms }} }}
            redis: {{ main: {{ url: 'redis://127.0.0.1:{port}', timeout: {timeout} }} }}
            routes: [{{ name: r, match: /*, rate_limit: [{{ by: global, rate: 1000/h, store: main }}], respond: {{ status: 200 }} }}]
        "
        ),
        &[],
    );
    gateway.metric_becomes(UP, 1.0);
    gateway
}

/// Connections that stay open, spread over the workers, each of which has asked once.
fn clients(gateway: &Gateway, count: usize) -> Vec<Raw> {
    let mut clients: Vec<Raw> = (0..count).map(|_| gateway.connect()).collect();
    clients.iter_mut().for_each(|client| assert_eq!(client.ask(get("/")).status, 200));
    clients
}

#[test]
fn each_worker_that_asks_has_one_connection_and_a_lost_one_comes_back_alone() {
    let redis = Redis::start();
    let gateway = gateway(redis.port);
    let mut client = redis.client();
    // The client with which the test waited for the server may not be gone at once.
    let heartbeat = eventually("only the heartbeat is connected: no worker has asked yet", || {
        let ids = connections(&mut client);
        (ids.len() == 1).then_some(ids)
    });
    let mut clients = clients(&gateway, 8);
    let first = connections(&mut client);
    assert_eq!(first.len(), 3, "one more for each of the two workers");
    std::thread::scope(|scope| {
        for client in &mut clients {
            scope.spawn(|| (0..20).for_each(|_| assert_eq!(client.ask(get("/")).status, 200)));
        }
    });
    assert_eq!(connections(&mut client), first, "the same, however many ask");
    let used = |client: &mut Raw| client.ask(get("/")).header("ratelimit").unwrap().to_owned();
    let left: BTreeSet<String> = clients.iter_mut().map(used).collect();
    assert_eq!(left.len(), 8, "all decided there: each has taken one from the same bucket: {left:?}");
    for id in first.difference(&heartbeat) {
        redis::cmd("CLIENT").arg("KILL").arg("ID").arg(*id).exec(&mut client).unwrap();
    }
    let second = eventually("each worker has a connection again", || {
        clients.iter_mut().for_each(|client| assert_eq!(client.ask(get("/")).status, 200));
        let ids = connections(&mut client);
        (ids.len() == 3).then_some(ids)
    });
    assert_eq!(second.intersection(&first).copied().collect::<BTreeSet<_>>(), heartbeat, "the store itself was never down");
    assert_eq!(gateway.metric(UP), 1.0);
}

/// Stands between a gateway and Redis, and can hold back what Redis answers.
struct Relay {
    port: u16,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    /// What was sent to Redis, by connection.
    sent: Vec<Vec<u8>>,
    /// Answers wait for it.
    hold: Option<Gate>,
    /// Answers on connections made from now on wait for it.
    hold_new: Option<Gate>,
}

impl Relay {
    fn to(redis: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let relay = Self { port: listener.local_addr().unwrap().port(), seen: Arc::default() };
        let seen = relay.seen.clone();
        std::thread::spawn(move || {
            for (index, gateway) in listener.incoming().flatten().enumerate() {
                let Ok(redis) = TcpStream::connect(redis) else { return };
                let held = {
                    let mut seen = seen.lock().unwrap();
                    seen.sent.push(Vec::new());
                    seen.hold_new.clone()
                };
                let ends = (gateway.try_clone().unwrap(), redis.try_clone().unwrap());
                let (there, back) = (seen.clone(), seen.clone());
                std::thread::spawn(move || copy(gateway, redis, |bytes| there.lock().unwrap().sent[index].extend(bytes)));
                std::thread::spawn(move || {
                    copy(ends.1, ends.0, |_| {
                        let hold = back.lock().unwrap().hold.clone();
                        hold.iter().chain(&held).for_each(Gate::pass);
                    })
                });
            }
        });
        relay
    }

    /// Holds back all answers from now on, until the gate is opened.
    fn hold(&self) -> Gate {
        let gate = Gate::new();
        self.seen.lock().unwrap().hold = Some(gate.clone());
        gate
    }

    /// The same for connections that are made from now on.
    fn hold_new(&self) -> Gate {
        let gate = Gate::new();
        self.seen.lock().unwrap().hold_new = Some(gate.clone());
        gate
    }

    /// Decisions asked for, by connection.
    fn asked(&self) -> Vec<usize> {
        let seen = self.seen.lock().unwrap();
        seen.sent.iter().map(|sent| sent.windows(7).filter(|word| word == b"EVALSHA").count()).collect()
    }
}

/// Passes bytes on until one side ends.
fn copy(mut from: TcpStream, mut to: TcpStream, mut before: impl FnMut(&[u8])) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        before(&buffer[..count]);
        if to.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
}

#[test]
fn a_worker_does_not_wait_for_an_answer_before_it_asks_again() {
    const CLIENTS: usize = 16;
    let redis = Redis::start();
    let relay = Relay::to(SocketAddr::from(([127, 0, 0, 1], redis.port)));
    let gateway = gateway(relay.port);
    let mut clients = clients(&gateway, CLIENTS);
    let before = relay.asked();
    assert_eq!(before.len(), 3, "the heartbeat's, and one for each worker: {before:?}");
    let gate = relay.hold();
    clients.iter_mut().for_each(|client| {
        client.send(get("/"));
    });
    let under_way = eventually("all are asked for while none is answered", || {
        let asked: Vec<usize> = relay.asked().iter().zip(&before).map(|(now, before)| now - before).collect();
        // The first is the heartbeat's.
        (asked.iter().skip(1).sum::<usize>() == CLIENTS).then_some(asked)
    });
    assert!(under_way.iter().skip(1).all(|asked| *asked >= 2), "both workers, on one connection each: {under_way:?}");
    gate.open();
    let left: BTreeSet<String> = clients.iter_mut().map(|client| client.read().header("ratelimit").unwrap().to_owned()).collect();
    assert_eq!(left.len(), CLIENTS, "each was charged: {left:?}");
    assert_eq!(relay.asked().len(), 3, "no connection was added");
}

#[test]
fn a_slow_handshake_delays_one_decision_of_a_worker_and_is_no_outage() {
    let redis = Redis::start();
    let relay = Relay::to(SocketAddr::from(([127, 0, 0, 1], redis.port)));
    let gateway = patient(relay.port, 4, "150ms");
    let mut own = redis.client();
    let heartbeat = eventually("only the heartbeat is connected", || Some(connections(&mut own)).filter(|ids| ids.len() == 1));
    let gate = relay.hold_new();
    // Accepted by the worker that has the fewest: one each.
    let mut clients: Vec<Raw> = (0..4).map(|_| gateway.connect()).collect();
    let timed = |client: &mut Raw| {
        let begun = Instant::now();
        assert_eq!(client.ask(get("/")).status, 200);
        begun.elapsed()
    };
    for client in &mut clients {
        let first = timed(client);
        assert!(first >= Duration::from_millis(145), "it has waited for its worker's connection: {first:?}");
    }
    let others: Vec<Duration> = (0..5).map(|_| timed(&mut clients[3])).collect();
    assert!(others.iter().sum::<Duration>() < Duration::from_millis(500), "no other has: {others:?}");
    // More than three have waited in vain, but the store has answered the task each time.
    assert_eq!(gateway.metric(UP), 1.0);
    gate.open();
    eventually("all workers ask the store", || {
        clients.iter_mut().for_each(|client| {
            timed(client);
        });
        let asked = relay.asked();
        (asked.iter().filter(|asked| **asked > 0).count() == 5).then_some(())
    });
    assert!(heartbeat.is_subset(&connections(&mut own)), "the task had no need to connect again");
}

#[test]
fn workers_that_cannot_connect_decide_themselves_and_try_on_while_heartbeats_go_on() {
    let redis = Redis::start();
    let gateway = gateway(redis.port);
    let mut own = redis.client();
    let full = |own: &mut redis::Connection, most: usize| {
        redis::cmd("CONFIG").arg("SET").arg("maxclients").arg(most).exec(own).unwrap();
    };
    eventually("only the heartbeat is connected", || (connections(&mut own).len() == 1).then_some(()));
    full(&mut own, 2);
    let mut clients = clients(&gateway, 4);
    let heartbeat = |own: &mut redis::Connection| -> Vec<(String, u64)> {
        redis::cmd("ZRANGE").arg("tollgate:{limits}:gateways").arg(0).arg(-1).arg("WITHSCORES").query(own).unwrap()
    };
    let refused = |own: &mut redis::Connection| -> u64 {
        let info: String = redis::cmd("INFO").arg("stats").query(own).unwrap();
        info.lines().find_map(|line| line.strip_prefix("rejected_connections:")?.trim().parse().ok()).unwrap()
    };
    let before = heartbeat(&mut own);
    eventually("the gateway lives on, though its workers try again and again", || {
        clients.iter_mut().for_each(|client| assert_eq!(client.ask(get("/")).status, 200));
        (heartbeat(&mut own)[0].1 > before[0].1 && refused(&mut own) >= 6).then_some(())
    });
    assert!(refused(&mut own) < 60, "no storm: {}", refused(&mut own));
    assert_eq!(gateway.metric(UP), 1.0);
    full(&mut own, 100);
    eventually("both are connected, without anybody's doing", || (connections(&mut own).len() == 3).then_some(()));
    let left: BTreeSet<String> = clients.iter_mut().map(|client| client.ask(get("/")).header("ratelimit").unwrap().to_owned()).collect();
    assert_eq!(left.len(), 4, "all decided there: {left:?}");
}
