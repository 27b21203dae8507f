//! A name server that answers as it is told, and a resolver that asks it.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use tollgate::discovery::{self, Resolver};

const A: u16 = 1;
const AAAA: u16 = 28;
const SRV: u16 = 33;

/// How a name fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failing {
    ServFail,
    Silence,
}

/// A record's data with its TTL.
type Record = (u32, Vec<u8>);

#[derive(Default)]
struct Zone {
    records: HashMap<(String, u16), Vec<Record>>,
    failing: HashMap<String, Failing>,
    /// Names and types asked for, in order.
    asked: Vec<(String, u16)>,
}

/// A name server on loopback. Names without records do not exist.
pub struct Dns {
    address: SocketAddr,
    zone: Arc<Mutex<Zone>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Dns {
    pub fn new() -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = socket.local_addr().unwrap();
        let (zone, stop) = (Arc::new(Mutex::new(Zone::default())), Arc::new(AtomicBool::new(false)));
        let (its, stopped) = (Arc::clone(&zone), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut query = [0; 4096];
            while let Ok((length, peer)) = socket.recv_from(&mut query) {
                if stopped.load(SeqCst) {
                    return;
                }
                if let Some(answer) = answer(&mut its.lock().unwrap(), &query[..length]) {
                    // A gateway that is gone is not this side's failure.
                    let _ = socket.send_to(&answer, peer);
                }
            }
        });
        Self { address, zone, stop, thread: Some(thread) }
    }

    fn set(&self, name: &str, kind: u16, records: Vec<Record>) {
        self.zone.lock().unwrap().records.insert((name.to_owned(), kind), records);
    }

    /// The addresses of a host, in place of those it had.
    pub fn host(&self, name: &str, ttl: u32, addresses: &[&str]) {
        let ips: Vec<IpAddr> = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
        let v4 = ips.iter().filter_map(|ip| if let IpAddr::V4(ip) = ip { Some((ttl, ip.octets().to_vec())) } else { None });
        let v6 = ips.iter().filter_map(|ip| if let IpAddr::V6(ip) = ip { Some((ttl, ip.octets().to_vec())) } else { None });
        self.set(name, A, v4.collect());
        self.set(name, AAAA, v6.collect());
    }

    /// The records of a service: priority, weight, port, target.
    pub fn service(&self, name: &str, ttl: u32, records: &[(u16, u16, u16, &str)]) {
        let record = |(priority, weight, port, target): &(u16, u16, u16, &str)| {
            let numbers = [priority, weight, port].into_iter().flat_map(|number| number.to_be_bytes());
            (ttl, numbers.chain(encoded(target)).collect())
        };
        self.set(name, SRV, records.iter().map(record).collect());
    }

    /// Removes all records of a name: it does not exist any more.
    pub fn forget(&self, name: &str) {
        self.zone.lock().unwrap().records.retain(|(held, _), _| held != name);
    }

    /// Makes a name fail, or ends that.
    pub fn fail(&self, name: &str, failing: Option<Failing>) {
        let mut zone = self.zone.lock().unwrap();
        match failing {
            Some(failing) => zone.failing.insert(name.to_owned(), failing),
            None => zone.failing.remove(name),
        };
    }

    /// How often addresses or records of a name were asked for: one look-up of a host asks twice.
    pub fn asked(&self, name: &str) -> usize {
        self.zone.lock().unwrap().asked.iter().filter(|(asked, kind)| asked == name && *kind != AAAA).count()
    }

    /// A resolver that asks only this server, waiting a second for it, with `internal` as its search domain and these lines as its hosts file.
    pub fn resolver(&self, dir: &std::path::Path, hosts: &str) -> Arc<dyn Resolver> {
        let (conf, hosts_file) = (dir.join("resolv.conf"), dir.join("hosts"));
        std::fs::write(&conf, "nameserver 127.0.0.1\nsearch internal\noptions timeout:1 attempts:1 ndots:1\n").unwrap();
        std::fs::write(&hosts_file, hosts).unwrap();
        Arc::new(discovery::Dns::of_files(conf, hosts_file, self.address.port()))
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        let waker = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        waker.send_to(b"", self.address).unwrap();
        self.thread.take().unwrap().join().unwrap();
    }
}

/// A name as labels, each behind its length.
fn encoded(name: &str) -> Vec<u8> {
    let labels = name.split('.').filter(|label| !label.is_empty());
    labels.flat_map(|label| [vec![label.len() as u8], label.as_bytes().to_vec()].concat()).chain([0]).collect()
}

fn answer(zone: &mut Zone, query: &[u8]) -> Option<Vec<u8>> {
    let (mut labels, mut at) = (Vec::new(), 12);
    while query[at] != 0 {
        let length = usize::from(query[at]);
        labels.push(String::from_utf8_lossy(&query[at + 1..=at + length]).to_lowercase());
        at += 1 + length;
    }
    let name = labels.join(".");
    let kind = u16::from_be_bytes([query[at + 1], query[at + 2]]);
    zone.asked.push((name.clone(), kind));
    let records = zone.records.get(&(name.clone(), kind)).cloned().unwrap_or_default();
    let exists = zone.records.keys().any(|(held, _)| *held == name);
    let code = match zone.failing.get(&name) {
        Some(Failing::Silence) => return None,
        Some(Failing::ServFail) => 2,
        None if exists => 0,
        None => 3,
    };
    let count = if code == 0 { records.len() as u8 } else { 0 };
    // The header: id, response with recursion, one question, so many answers; then the question.
    let mut answer = [&query[..2], &[0x81, 0x80 | code, 0, 1, 0, count, 0, 0, 0, 0], &query[12..at + 5]].concat();
    for (ttl, data) in records.iter().take(usize::from(count)) {
        // Each with a pointer to the question's name, in class IN.
        answer
            .extend([&[0xC0, 12], &kind.to_be_bytes()[..], &[0, 1], &ttl.to_be_bytes(), &(data.len() as u16).to_be_bytes(), data].concat());
    }
    Some(answer)
}
