//! Addresses and CIDRs of `trusted_proxies` and `ip`.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::config::{At, Problems};

/// Checks that every entry is one address or a CIDR without host bits, and none is an IPv4-mapped one.
pub(in crate::config) fn networks(list: &[String], at: &At, problems: &mut Problems) {
    for (index, text) in list.iter().enumerate() {
        if let Err((message, help)) = network(text) {
            problems.error(at.index(index), message).help(help);
        }
    }
}

fn network(text: &str) -> Result<IpNet, (String, String)> {
    let net: IpNet = match text.parse::<IpAddr>() {
        Ok(address) => address.into(),
        Err(_) => text.parse().map_err(|_| {
            let help = "write an address like 10.1.2.3, or a network like 10.0.0.0/8 or fd00::/8";
            (format!("\"{text}\" is neither an IP address nor a CIDR"), help.to_owned())
        })?,
    };
    if let IpAddr::V6(address) = net.addr()
        && address.to_ipv4_mapped().is_some()
    {
        let help = "addresses are compared as IPv4: write it without ::ffff:";
        return Err((format!("\"{text}\" is an IPv4-mapped IPv6 address"), help.to_owned()));
    }
    if net.trunc() != net {
        return Err((format!("\"{text}\" has bits set behind its mask"), format!("write {} or a longer mask", net.trunc())));
    }
    Ok(net)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_networks_are_taken() {
        for right in ["10.0.0.0/8", "10.1.2.3", "fd00::/8", "::1", "0.0.0.0/0", "::/0"] {
            assert!(network(right).is_ok(), "{right}");
        }
    }

    #[test]
    fn host_bits_mapped_addresses_and_nonsense_are_refused() {
        for wrong in ["10.0.0.1/8", "::ffff:10.0.0.1", "::ffff:0:0/96", "::ffff:0:0/1", "10.0.0.0/33", "example.com", "", "10.0.0/8"] {
            assert!(network(wrong).is_err(), "{wrong}");
        }
        assert!(network("10.0.0.1/8").unwrap_err().1.contains("10.0.0.0/8"));
    }
}
