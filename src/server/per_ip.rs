//! `max_connections_per_ip`: how many connections each client address has open.

use std::net::IpAddr;
use std::sync::Arc;

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;

use crate::http::client_addr::{slash64, unmap};

/// Counts by address, IPv6 by its /64. Only used while the limit is on: looked at twice per connection, never per request.
#[derive(Clone, Debug, Default)]
pub struct PerIp(Arc<DashMap<u128, usize>>);

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
        match self.0.entry(key) {
            Entry::Occupied(mut count) if *count.get() < limit => *count.get_mut() += 1,
            Entry::Vacant(free) if limit > 0 => {
                free.insert(1);
            }
            Entry::Occupied(_) | Entry::Vacant(_) => return None,
        }
        Some(Counted { counts: self.clone(), key })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Entry::Occupied(mut count) = self.counts.0.entry(self.key) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
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
