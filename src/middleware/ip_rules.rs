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
