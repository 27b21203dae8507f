//! `max_connections_per_ip`: how many connections each client address has open.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use crate::http::client_addr::{slash64, unmap};

/// Counts by address, IPv6 by its /64. Only used while the limit is on: the lock is taken twice per connection, never per request.
#[derive(Clone, Debug, Default)]
pub struct PerIp(Arc<Mutex<HashMap<u128, usize>>>);

/// A counted connection.
#[derive(Debug)]
pub struct Counted {
    counts: PerIp,
    key: u128,
}

impl PerIp {
    /// Counts a connection from `ip`, or `None` if it has `limit` open already.
    pub fn count(&self, ip: IpAddr, limit: usize) -> Option<Counted> {
        let key = slash64(unmap(ip));
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(key).or_insert(0);
        if *count >= limit {
            return None;
        }
        *count += 1;
        Some(Counted { counts: self.clone(), key })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = self.counts.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_gets_its_limit_and_a_place_back_when_one_closes() {
        let counts = PerIp::default();
        let ip: IpAddr = "10.0.0.1".parse().unwrap();
        let first = counts.count(ip, 2).unwrap();
        let _second = counts.count("::ffff:10.0.0.1".parse().unwrap(), 2).unwrap();
        assert!(counts.count(ip, 2).is_none());
        drop(first);
        assert!(counts.count(ip, 2).is_some());
    }

    #[test]
    fn addresses_of_one_ipv6_network_count_together() {
        let counts = PerIp::default();
        let _one = counts.count("2001:db8::1".parse().unwrap(), 1).unwrap();
        assert!(counts.count("2001:db8::2".parse().unwrap(), 1).is_none());
        assert!(counts.count("2001:db8:0:1::2".parse().unwrap(), 1).is_some());
    }
}
