//! `ip`: client addresses that may call, and those that may not.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::config::problem::Severity;
use crate::config::route::IpRules as Config;
use crate::config::{At, Problems};
use crate::error::{Reason, Refusal};

/// Rules for client addresses, compiled.
#[derive(Clone, Debug, Default)]
pub struct IpRules {
    allow: Vec<IpNet>,
    deny: Vec<IpNet>,
}

impl IpRules {
    /// Compiles the block at `at`; `None` if a range is wrong.
    pub fn compile(config: &Config, at: &At, problems: &mut Problems) -> Option<Self> {
        let mut list = |ranges: &[String], key: &str| -> Option<Vec<IpNet>> {
            let mut nets = Some(Vec::with_capacity(ranges.len()));
            for (index, text) in ranges.iter().enumerate() {
                match parse_cidr(text) {
                    Ok(net) => nets.iter_mut().for_each(|nets| nets.push(net)),
                    Err((wrong, help)) => {
                        once(problems, at.key(key).index(index), wrong, help);
                        nets = None;
                    }
                }
            }
            nets
        };
        let (allow, deny) = (list(&config.allow, "allow"), list(&config.deny, "deny"));
        Some(Self { allow: allow?, deny: deny? })
    }

    /// Refuses an address that is denied, or that is not allowed where some are.
    pub fn check(&self, ip: IpAddr) -> Result<(), Box<Refusal>> {
        let ip = ip.to_canonical();
        let within = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&ip));
        if within(&self.deny) || (!self.allow.is_empty() && !within(&self.allow)) {
            return Err(Refusal::new(Reason::IpDenied, "The client address is not allowed."));
        }
        Ok(())
    }
}

/// A range as users write it; without a mask it is one address. The error says what is wrong, and what would be right.
pub fn parse_cidr(text: &str) -> Result<IpNet, (String, String)> {
    let like = || "write an address or a range, like 10.0.0.0/8, 192.0.2.7 or 2001:db8::/32".to_owned();
    let net: IpNet = match text.parse::<IpAddr>() {
        Ok(ip) => IpNet::from(ip),
        Err(_) => text.parse().map_err(|_| (format!("`{text}` is not an address or a range of addresses"), like()))?,
    };
    if let IpNet::V6(v6) = net
        && v6.addr().to_ipv4_mapped().is_some()
    {
        let help = match (v6.addr().to_ipv4_mapped(), v6.prefix_len().checked_sub(96)) {
            (Some(v4), Some(32)) => format!("write {v4}: clients with such addresses are matched as IPv4"),
            (Some(v4), Some(bits)) => format!("write {v4}/{bits}: clients with such addresses are matched as IPv4"),
            _ => "write the IPv4 range: clients with such addresses are matched as IPv4".to_owned(),
        };
        return Err((format!("`{text}` is an IPv4-mapped range"), help));
    }
    if net.addr() != net.network() {
        return Err((
            format!("`{text}` has bits set behind its mask"),
            format!("write {}, or {} for the one address", net.trunc(), net.addr()),
        ));
    }
    Ok(net)
}

/// Reports an error unless the same one is there: a block is compiled once for each route that inherits it.
fn once(problems: &mut Problems, at: At, message: String, help: String) {
    if !problems.list().iter().any(|p| p.severity == Severity::Error && p.at == at && p.message == message) {
        problems.error(at, message).help(help);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(allow: &[&str], deny: &[&str]) -> (Option<IpRules>, Problems) {
        let list = |ranges: &[&str]| ranges.iter().map(|range| (*range).to_owned()).collect();
        let mut problems = Problems::default();
        let config = Config { allow: list(allow), deny: list(deny) };
        let rules = IpRules::compile(&config, &At::main("defaults").key("ip"), &mut problems);
        (rules, problems)
    }

    fn passes(allow: &[&str], deny: &[&str], ip: &str) -> bool {
        let (rules, problems) = rules(allow, deny);
        assert!(!problems.has_errors(), "{problems:?}");
        match rules.unwrap().check(ip.parse().unwrap()) {
            Ok(()) => true,
            Err(refusal) => {
                assert_eq!((refusal.reason, refusal.status().as_u16()), (Reason::IpDenied, 403));
                false
            }
        }
    }

    #[test]
    fn deny_refuses_what_it_lists_and_allow_all_that_it_does_not() {
        assert!(passes(&[], &[], "192.0.2.1"));
        assert!(!passes(&[], &["192.0.2.0/24"], "192.0.2.1"));
        assert!(passes(&[], &["192.0.2.0/24"], "192.0.3.1"));
        assert!(passes(&["10.0.0.0/8"], &[], "10.1.2.3"));
        assert!(!passes(&["10.0.0.0/8"], &[], "11.1.2.3"));
        assert!(!passes(&["10.0.0.0/8"], &["10.1.0.0/16"], "10.1.2.3"));
        assert!(!passes(&["10.0.0.0/8"], &[], "2001:db8::1"));
    }

    #[test]
    fn a_range_without_a_mask_is_one_address_and_rules_use_whole_addresses() {
        assert!(passes(&["192.0.2.1"], &[], "192.0.2.1"));
        assert!(!passes(&["192.0.2.1"], &[], "192.0.2.2"));
        assert!(passes(&["2001:db8::1"], &[], "2001:db8::1"));
        assert!(!passes(&["2001:db8::1"], &[], "2001:db8::2"));
    }

    #[test]
    fn a_mapped_client_address_is_its_ipv4_address() {
        assert!(passes(&["10.0.0.0/8"], &[], "::ffff:10.0.0.1"));
        assert!(!passes(&[], &["10.0.0.0/8"], "::ffff:10.0.0.1"));
        assert!(passes(&["0.0.0.0/0"], &[], "1.2.3.4"));
        assert!(passes(&["::/0"], &[], "2001:db8::1"));
    }

    #[test]
    fn wrong_ranges_are_all_reported_with_what_is_right() {
        let (compiled, problems) = rules(&["10.0.0.1/8", "::ffff:10.0.0.0/104", "10.0.0.0/33"], &["::ffff:0:0/96", "010.0.0.1", "x"]);
        assert!(compiled.is_none());
        let found: Vec<_> = problems.list().iter().map(|p| (p.message.as_str(), p.help.as_deref().unwrap_or_default())).collect();
        assert_eq!(found.len(), 6, "{found:?}");
        assert_eq!(found[0], ("`10.0.0.1/8` has bits set behind its mask", "write 10.0.0.0/8, or 10.0.0.1 for the one address"));
        assert!(found[1].1.starts_with("write 10.0.0.0/8:"), "{found:?}");
        assert!(found[3].1.starts_with("write 0.0.0.0/0:"), "{found:?}");
        assert_eq!(problems.list()[1].at, At::main("defaults").key("ip").key("allow").index(1));
    }

    #[test]
    fn mapped_ranges_wider_than_ipv4_are_refused_too() {
        // All of IPv4 hides in ::ffff:0:0/1 and the like: whoever writes it would trust everybody.
        for range in ["::ffff:0:0/1", "::ffff:0:0/95", "::ffff:1.2.3.4", "::ffff:1.2.3.4/128"] {
            assert!(parse_cidr(range).is_err(), "{range}");
        }
    }

    #[test]
    fn a_block_that_many_routes_inherit_is_reported_once() {
        let config = Config { allow: vec!["x".to_owned()], deny: Vec::new() };
        let mut problems = Problems::default();
        for _ in 0..3 {
            IpRules::compile(&config, &At::main("defaults").key("ip"), &mut problems);
        }
        assert_eq!(problems.list().len(), 1);
    }
}
