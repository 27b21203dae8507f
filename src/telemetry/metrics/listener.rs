//! What is counted per listener.

use super::collect::Scrape;
use super::shard::{Counter, Level, Own, PerWorker};
use super::table::Family;

/// Why a client connection ended before a request could be read from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionError {
    /// The TLS handshake failed or was too slow.
    Tls,
    /// The PROXY header is missing or malformed.
    Proxy,
    /// The head took longer than `timeouts.header`.
    HeaderTimeout,
    /// The parser refused the head.
    BadRequest,
    /// The parser refused the head for its size.
    TooLarge,
}

impl ConnectionError {
    /// All kinds: `ALL[kind as usize] == kind`.
    pub const ALL: [Self; 5] = [Self::Tls, Self::Proxy, Self::HeaderTimeout, Self::BadRequest, Self::TooLarge];

    /// The word in the `kind` label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::Proxy => "proxy",
            Self::HeaderTimeout => "header_timeout",
            Self::BadRequest => "bad_request",
            Self::TooLarge => "too_large",
        }
    }
}

/// Counters of one listener.
#[derive(Debug)]
pub struct ListenerMetrics {
    shards: PerWorker<Shard>,
}

#[derive(Debug, Default)]
struct Shard {
    connections: Level,
    received: Own,
    sent: Own,
    errors: [Counter; ConnectionError::ALL.len()],
}

impl ListenerMetrics {
    pub(super) fn new(workers: usize) -> Self {
        Self { shards: PerWorker::new(workers) }
    }

    /// A client connection was accepted.
    pub fn connection_opened(&self, worker: usize) {
        self.shards.of(worker).connections.up();
    }

    /// A client connection was closed.
    pub fn connection_closed(&self, worker: usize) {
        self.shards.of(worker).connections.down();
    }

    /// Open client connections, for `/info`.
    pub fn connections(&self) -> u64 {
        self.shards.level(|shard| &shard.connections).unsigned_abs()
    }

    /// A connection ended before a request could be read from it.
    pub fn connection_error(&self, worker: usize, kind: ConnectionError) {
        if let Some(counter) = self.shards.of(worker).errors.get(kind as usize) {
            counter.one();
        }
    }

    /// Bytes came from a client, after TLS.
    pub fn bytes_received(&self, worker: usize, bytes: u64) {
        self.shards.of(worker).received.add(bytes);
    }

    /// Bytes went to a client, before TLS.
    pub fn bytes_sent(&self, worker: usize, bytes: u64) {
        self.shards.of(worker).sent.add(bytes);
    }

    pub(super) fn collect(&self, listener: &str, scrape: &mut Scrape) {
        scrape.number(Family::Connections, &[listener], self.connections() as f64);
        scrape.count(Family::BytesReceived, &[listener], self.shards.sum_own(|shard| &shard.received));
        scrape.count(Family::BytesSent, &[listener], self.shards.sum_own(|shard| &shard.sent));
        for kind in ConnectionError::ALL {
            let count = self.shards.used().filter_map(|shard| shard.errors.get(kind as usize)).map(Counter::get).sum();
            scrape.count(Family::ConnectionErrors, &[listener, kind.as_str()], count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::ConnectionError;

    #[test]
    fn kinds_stand_at_their_own_index() {
        for (index, kind) in ConnectionError::ALL.iter().enumerate() {
            assert_eq!(*kind as usize, index);
        }
    }
}
