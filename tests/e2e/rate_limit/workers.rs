//! Each worker has its own connection to Redis, and decides many requests at once on it.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use super::{Redis, UP};
use crate::support::client::get;
use crate::support::{Gate, Gateway, Raw, eventually};

/// A gateway whose two workers share one allowance in the Redis at this port.
fn gateway(port: u16) -> Gateway {
    let gateway = Gateway::new(
        &format!(
            "
            server: {{ workers: 2, timeouts: {{ drain: 200ms }} }}
            redis: {{ main: {{ url: 'redis://127.0.0.1:{port}', timeout: 20s }} }}
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

/// Ids of the connections that Redis has, without the one that asks.
fn connections(client: &mut redis::Connection) -> BTreeSet<u64> {
    let own: u64 = redis::cmd("CLIENT").arg("ID").query(client).unwrap();
    let list: String = redis::cmd("CLIENT").arg("LIST").query(client).unwrap();
    let ids = list.lines().filter_map(|line| line.strip_prefix("id=")?.split(' ').next()?.parse().ok());
    ids.filter(|id| *id != own).collect()
}

#[test]
fn each_worker_that_asks_has_one_connection_and_a_lost_one_comes_back_alone() {
    let redis = Redis::start();
    let gateway = gateway(redis.port);
    let mut client = redis::Client::open(format!("redis://127.0.0.1:{}", redis.port)).unwrap().get_connection().unwrap();
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
}

impl Relay {
    fn to(redis: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let relay = Self { port: listener.local_addr().unwrap().port(), seen: Arc::default() };
        let seen = relay.seen.clone();
        std::thread::spawn(move || {
            for (index, gateway) in listener.incoming().flatten().enumerate() {
                let Ok(redis) = TcpStream::connect(redis) else { return };
                seen.lock().unwrap().sent.push(Vec::new());
                let ends = (gateway.try_clone().unwrap(), redis.try_clone().unwrap());
                let (there, back) = (seen.clone(), seen.clone());
                std::thread::spawn(move || copy(gateway, redis, |bytes| there.lock().unwrap().sent[index].extend(bytes)));
                std::thread::spawn(move || {
                    copy(ends.1, ends.0, |_| {
                        let hold = back.lock().unwrap().hold.clone();
                        hold.iter().for_each(Gate::pass);
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
