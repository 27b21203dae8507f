//! A `redis-server` of one test, on a port of its own.

#[cfg(feature = "redis")]
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use crate::support::{Gateway, eventually};

/// What `/metrics` says about the store `main`.
pub const UP: &str = "gateway_store_up{store=\"main\"}";

/// A port that nobody listens on, outside of the range that the kernel gives out by itself: it must still be free after a restart.
pub fn free_port() -> u16 {
    let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), Instant::now());
    (0..1_000)
        .map(|n| 12_000 + u16::try_from((random.wrapping_add(n)) % 18_000).unwrap())
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .unwrap()
}

/// A Redis of one test; ended with it.
pub struct Redis {
    pub port: u16,
    options: Vec<String>,
    child: Option<Child>,
}

impl Redis {
    pub fn start() -> Self {
        Self::with(&[])
    }
    /// The same with more options of `redis-server`.
    pub fn with(options: &[&str]) -> Self {
        let options = options.iter().map(|&option| option.to_owned()).collect();
        let mut redis = Self { port: free_port(), options, child: None };
        redis.restart();
        redis
    }
    pub fn restart(&mut self) {
        let port = self.port.to_string();
        let child = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", &port, "--save", "", "--appendonly", "no"])
            .args(&self.options)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("these tests need `redis-server` (Debian package redis-server; scripts/test installs it)");
        self.child = Some(child);
        // Any answer will do: it may want a password first.
        eventually("redis answers", || {
            let mut connection = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
            connection.write_all(b"PING\r\n").ok()?;
            connection.read(&mut [0; 64]).ok().filter(|count| *count > 0)
        });
    }
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
    /// Sends a signal to this server.
    pub fn signal(&self, signal: &str) {
        let id = self.child.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
    }
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }
    /// The configuration of a gateway with one route that has these limits, which may name the store `main`.
    pub fn yaml(&self, limits: &str) -> String {
        format!(
            "
            redis: {{ main: {{ url: '{}', timeout: 500ms }} }}
            routes: [{{ name: r, match: /*, rate_limit: [{limits}], respond: {{ status: 200 }} }}]
        ",
            self.url()
        )
    }
    pub fn gateway(&self, limits: &str) -> Gateway {
        Gateway::new(&self.yaml(limits), &[])
    }
    /// The same once its store is up.
    pub fn up(&self, limits: &str) -> Gateway {
        let gateway = self.gateway(limits);
        gateway.metric_becomes(UP, 1.0);
        gateway
    }
    /// A connection of the test.
    #[cfg(feature = "redis")]
    pub fn client(&self) -> redis::Connection {
        redis::Client::open(self.url()).unwrap().get_connection().unwrap()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Ids of the connections that Redis has, without the one that asks.
#[cfg(feature = "redis")]
pub fn connections(client: &mut redis::Connection) -> BTreeSet<u64> {
    let own: u64 = redis::cmd("CLIENT").arg("ID").query(client).unwrap();
    let list: String = redis::cmd("CLIENT").arg("LIST").query(client).unwrap();
    let ids = list.lines().filter_map(|line| line.strip_prefix("id=")?.split(' ').next()?.parse().ok());
    ids.filter(|id| *id != own).collect()
}
