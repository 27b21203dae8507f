//! SRV records (RFC 2782) as endpoints: their weights as shares of requests.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::Found;

/// Greatest weight of an endpoint, as in the configuration.
const MOST: f64 = 1_000.0;

/// One SRV record with the addresses of its target.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub priority: u16,
    pub weight: u16,
    pub port: u16,
    pub name: Arc<str>,
    pub addresses: Vec<IpAddr>,
}

/// The endpoints of `targets`. A target's weight is shared by its addresses; what does not fit 1 to 1000 is scaled. Weight 0 beside
/// others is "a very small chance"; if all of a priority have it, they are equals.
pub(super) fn endpoints(targets: &[Target]) -> Vec<Found> {
    let mut priorities: Vec<u16> = targets.iter().map(|target| target.priority).collect();
    priorities.sort_unstable();
    priorities.dedup();
    priorities.into_iter().flat_map(|priority| of_priority(targets, priority)).collect()
}

fn of_priority(targets: &[Target], priority: u16) -> Vec<Found> {
    let group = || targets.iter().filter(|target| target.priority == priority);
    let unweighted = group().all(|target| target.weight == 0);
    let share = |target: &Target| {
        let weight = if unweighted { 1.0 } else { f64::from(target.weight) };
        weight / target.addresses.len().max(1) as f64
    };
    let fits = |share: f64| (1.0..=MOST).contains(&share) && share.fract() == 0.0;
    let most = group().map(share).fold(f64::MIN_POSITIVE, f64::max);
    let scale = if group().all(|target| fits(share(target))) { 1.0 } else { MOST / most };
    let of_target = |target: &Target| {
        let weight = (share(target) * scale).round().max(1.0) as u32;
        let found = |ip: &IpAddr| Found { address: SocketAddr::new(*ip, target.port), weight, priority, target: target.name.clone() };
        target.addresses.iter().map(found).collect::<Vec<_>>()
    };
    group().flat_map(of_target).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(priority: u16, weight: u16, addresses: &[&str]) -> Target {
        Target { priority, weight, port: 80, name: "a".into(), addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect() }
    }

    fn weights(targets: &[Target]) -> Vec<(u16, u32)> {
        endpoints(targets).iter().map(|found| (found.priority, found.weight)).collect()
    }

    #[test]
    fn small_weights_stay_as_they_are() {
        assert_eq!(weights(&[target(10, 5, &["10.0.0.1"]), target(10, 1, &["10.0.0.2"])]), [(10, 5), (10, 1)]);
    }

    #[test]
    fn no_weights_are_equal_weights() {
        assert_eq!(weights(&[target(0, 0, &["10.0.0.1"]), target(0, 0, &["10.0.0.2"])]), [(0, 1), (0, 1)]);
    }

    #[test]
    fn weight_zero_beside_others_is_a_very_small_chance() {
        assert_eq!(weights(&[target(0, 0, &["10.0.0.1"]), target(0, 2, &["10.0.0.2"])]), [(0, 1), (0, 1000)]);
    }

    #[test]
    fn great_weights_are_scaled() {
        let found = weights(&[target(0, 60_000, &["10.0.0.1"]), target(0, 30_000, &["10.0.0.2"]), target(0, 1, &["10.0.0.3"])]);
        assert_eq!(found, [(0, 1000), (0, 500), (0, 1)]);
    }

    #[test]
    fn the_addresses_of_a_target_share_its_weight() {
        assert_eq!(weights(&[target(0, 10, &["10.0.0.1", "::1"]), target(0, 10, &["10.0.0.2"])]), [(0, 5), (0, 5), (0, 10)]);
        assert_eq!(weights(&[target(0, 1, &["10.0.0.1", "::1"]), target(0, 1, &["10.0.0.2"])]), [(0, 500), (0, 500), (0, 1000)]);
    }

    #[test]
    fn priorities_have_weights_of_their_own_and_the_lowest_comes_first() {
        let found = weights(&[target(20, 60_000, &["10.0.0.1"]), target(10, 2, &["10.0.0.2"]), target(10, 0, &[])]);
        assert_eq!(found, [(10, 1000), (20, 1000)]);
    }
}
