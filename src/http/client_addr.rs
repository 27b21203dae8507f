//! Who the client is: the peer, or an address that trusted proxies vouch for; and lists of addresses for rules.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use http::header::FORWARDED;
use http::{HeaderMap, HeaderName};

use crate::config::{At, Problems};

static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The address with `::ffff:a.b.c.d` written as `a.b.c.d`.
pub fn unmap(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(address) => address.to_ipv4_mapped().map_or(ip, IpAddr::V4),
    }
}

/// A key per client: IPv4 addresses one by one, IPv6 addresses by their /64, since a client can have all addresses of one.
pub fn slash64(ip: IpAddr) -> u128 {
    match unmap(ip) {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits() >> 64 << 64,
    }
}

/// A set of addresses, given as CIDRs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cidrs {
    /// First and last address of each range; sorted, disjoint.
    v4: Vec<(u32, u32)>,
    v6: Vec<(u128, u128)>,
}

impl Cidrs {
    /// Reads CIDRs; one without a mask is one address. Those with host bits set and IPv4-mapped ones are problems at their place in the list.
    pub fn parse(list: &[String], at: &At, problems: &mut Problems) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (index, text) in list.iter().enumerate() {
            match parse_cidr(text) {
                Ok(Range::V4(first, last)) => v4.push((first, last)),
                Ok(Range::V6(first, last)) => v6.push((first, last)),
                Err((message, help)) => {
                    problems.error(at.index(index), message).help(help);
                }
            }
        }
        Self { v4: merge(v4), v6: merge(v6) }
    }

    /// Whether there is no address in it.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// Whether `ip`, unmapped, is in it.
    pub fn contains(&self, ip: IpAddr) -> bool {
        match unmap(ip) {
            IpAddr::V4(address) => within(&self.v4, address.to_bits()),
            IpAddr::V6(address) => within(&self.v6, address.to_bits()),
        }
    }
}

fn within<T: Ord + Copy>(ranges: &[(T, T)], value: T) -> bool {
    let after = ranges.partition_point(|&(first, _)| first <= value);
    after.checked_sub(1).and_then(|index| ranges.get(index)).is_some_and(|&(_, last)| value <= last)
}

fn merge<T: Ord + Copy>(mut ranges: Vec<(T, T)>) -> Vec<(T, T)> {
    ranges.sort_unstable();
    let mut merged: Vec<(T, T)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match merged.last_mut() {
            Some(previous) if first <= previous.1 => previous.1 = previous.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged
}

enum Range {
    V4(u32, u32),
    V6(u128, u128),
}

/// The range, or what is wrong and what would be right.
fn parse_cidr(text: &str) -> Result<Range, (String, String)> {
    let wrong = || (format!("`{text}` is not an address or a CIDR"), "write 10.0.0.0/8, 192.0.2.7 or 2001:db8::/32".to_owned());
    let (address, mask) = match text.split_once('/') {
        Some((address, mask)) => (address, Some(mask)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().map_err(|_| wrong())?;
    let width: u32 = if address.is_ipv4() { 32 } else { 128 };
    let bits = match mask {
        None => width,
        Some(mask) if mask.bytes().all(|byte| byte.is_ascii_digit()) => {
            mask.parse().ok().filter(|&bits| bits <= width).ok_or_else(wrong)?
        }
        Some(_) => return Err(wrong()),
    };
    let host_bits = |first: IpAddr| {
        let fixed = if mask.is_some() { format!("write {first}/{bits}") } else { format!("write {first}") };
        (format!("`{text}` has bits set behind its mask"), fixed)
    };
    match address {
        IpAddr::V4(address) => {
            let value = address.to_bits();
            let rest = u32::MAX.checked_shr(bits).unwrap_or(0);
            if value & rest == 0 { Ok(Range::V4(value, value | rest)) } else { Err(host_bits(Ipv4Addr::from_bits(value & !rest).into())) }
        }
        IpAddr::V6(address) => {
            if let Some(v4) = address.to_ipv4_mapped() {
                let fixed = if bits >= 96 { format!("{v4}/{}", bits - 96) } else { "10.0.0.0/8".to_owned() };
                return Err((format!("`{text}` is an IPv4-mapped address"), format!("write it as IPv4, like {fixed}")));
            }
            let value = address.to_bits();
            let rest = u128::MAX.checked_shr(bits).unwrap_or(0);
            if value & rest == 0 { Ok(Range::V6(value, value | rest)) } else { Err(host_bits(Ipv6Addr::from_bits(value & !rest).into())) }
        }
    }
}

/// `server.trusted_proxies`: the peers whose word about the client counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies(Cidrs);

impl TrustedProxies {
    /// Reads `server.trusted_proxies`, written at `at`.
    pub fn compile(list: &[String], at: &At, problems: &mut Problems) -> Self {
        Self(Cidrs::parse(list, at, problems))
    }
    /// Whether nobody is trusted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// Whether `ip` is trusted.
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.0.contains(ip)
    }
}

/// The client's address: the peer, or, if that is trusted, the first address in `X-Forwarded-For` from the right that is not. An entry that
/// is no address stops the walk at the address before it; if all are trusted it is the leftmost one. `Forwarded` is read only without
/// `X-Forwarded-For`.
pub fn client_address(peer: SocketAddr, trusted: &TrustedProxies, headers: &HeaderMap) -> IpAddr {
    let peer = unmap(peer.ip());
    if trusted.is_empty() || !trusted.contains(peer) {
        return peer;
    }
    let mut lines = headers.get_all(&X_FORWARDED_FOR).iter().rev().peekable();
    if lines.peek().is_some() {
        let entries = lines.flat_map(|line| line.as_bytes().rsplit(|&byte| byte == b','));
        return walk(peer, trusted, entries.map(|entry| std::str::from_utf8(entry).ok().and_then(parse_node)));
    }
    let elements = headers.get_all(FORWARDED).iter().rev().flat_map(|line| forwarded_for(line.as_bytes()).into_iter().rev());
    walk(peer, trusted, elements)
}

fn walk(peer: IpAddr, trusted: &TrustedProxies, entries: impl Iterator<Item = Option<IpAddr>>) -> IpAddr {
    let mut client = peer;
    for entry in entries {
        let Some(address) = entry else { break };
        client = address;
        if !trusted.contains(address) {
            break;
        }
    }
    client
}

/// `ip`, `ip:port`, `[v6]` or `[v6]:port`.
fn parse_node(text: &str) -> Option<IpAddr> {
    let text = text.trim_matches([' ', '\t']);
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(unmap(address));
    }
    let (address, port) = if let Some(rest) = text.strip_prefix('[') {
        let (address, port) = rest.split_once(']')?;
        (IpAddr::V6(address.parse().ok()?), port)
    } else {
        let (address, _) = text.split_once(':')?;
        (IpAddr::V4(address.parse().ok()?), text.get(address.len()..)?)
    };
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok();
    (port.is_empty() || port.strip_prefix(':').is_some_and(is_port)).then(|| unmap(address))
}

/// The `for` nodes of one `Forwarded` line (RFC 7239), from the left; `None` where there is none that is an address.
fn forwarded_for(line: &[u8]) -> Vec<Option<IpAddr>> {
    let Some(elements) = std::str::from_utf8(line).ok().and_then(|line| split_unquoted(line, ',')) else { return vec![None] };
    elements
        .into_iter()
        .map(|element| {
            let pairs = split_unquoted(element, ';')?;
            let (_, node) =
                pairs.into_iter().filter_map(|pair| pair.split_once('=')).find(|(name, _)| name.trim().eq_ignore_ascii_case("for"))?;
            let node = node.trim();
            // An address needs no quoted pairs: one with a `\` is not read.
            parse_node(node.strip_prefix('"').and_then(|node| node.strip_suffix('"')).unwrap_or(node))
        })
        .collect()
}

/// Splits at `separator` outside of quoted strings; `None` if a quoted string does not end.
fn split_unquoted(text: &str, separator: char) -> Option<Vec<&str>> {
    let (mut quoted, mut escaped, mut start) = (false, false, 0);
    let mut parts = Vec::new();
    for (index, character) in text.char_indices() {
        if escaped {
            escaped = false;
        } else if quoted && character == '\\' {
            escaped = true;
        } else if character == '"' {
            quoted = !quoted;
        } else if character == separator && !quoted {
            parts.push(text.get(start..index)?);
            start = index + 1;
        }
    }
    parts.push(text.get(start..)?);
    (!quoted).then_some(parts)
}

/// `a.b.c.d` and its length, without the formatting machinery, which costs as much as the rest of the forwarded fields.
pub fn ipv4_text(address: Ipv4Addr) -> ([u8; 16], usize) {
    let mut buffer = [0; 16];
    let mut length = 0;
    let mut push = |byte: u8| {
        if let Some(place) = buffer.get_mut(length) {
            *place = byte;
            length += 1;
        }
    };
    for (index, octet) in address.octets().into_iter().enumerate() {
        if index > 0 {
            push(b'.');
        }
        if octet >= 100 {
            push(b'0' + octet / 100);
        }
        if octet >= 10 {
            push(b'0' + octet / 10 % 10);
        }
        push(b'0' + octet % 10);
    }
    (buffer, length)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn trusted(list: &[&str]) -> TrustedProxies {
        let mut problems = Problems::default();
        let list: Vec<String> = list.iter().map(|&text| text.to_owned()).collect();
        let trusted = TrustedProxies::compile(&list, &At::main("server"), &mut problems);
        assert!(problems.list().is_empty(), "{problems:?}");
        trusted
    }

    fn client(peer: &str, trusted: &TrustedProxies, lines: &[(&'static str, &str)]) -> String {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        client_address(SocketAddr::new(peer.parse().unwrap(), 1), trusted, &headers).to_string()
    }

    const XFF: &str = "x-forwarded-for";

    #[test]
    fn an_untrusted_peer_is_the_client_whatever_it_says() {
        let proxies = trusted(&["10.0.0.0/8"]);
        assert_eq!(client("192.0.2.1", &proxies, &[(XFF, "1.1.1.1"), ("forwarded", "for=1.1.1.1")]), "192.0.2.1");
        assert_eq!(client("10.0.0.1", &trusted(&[]), &[(XFF, "1.1.1.1")]), "10.0.0.1");
    }

    #[test]
    fn the_walk_goes_from_the_right_over_all_lines_to_the_first_untrusted_address() {
        let proxies = trusted(&["10.0.0.0/8", "2001:db8::/32"]);
        assert_eq!(client("10.0.0.1", &proxies, &[(XFF, "6.6.6.6, 1.1.1.1"), (XFF, "10.0.0.3,10.0.0.2")]), "1.1.1.1");
        assert_eq!(client("10.0.0.1", &proxies, &[(XFF, "10.0.0.9, 10.0.0.8")]), "10.0.0.9");
        assert_eq!(client("::ffff:10.0.0.1", &proxies, &[(XFF, "::ffff:1.2.3.4")]), "1.2.3.4");
        assert_eq!(client("10.0.0.1", &proxies, &[(XFF, "1.2.3.4:80, [2001:db8::1]:443")]), "1.2.3.4");
        assert_eq!(client("10.0.0.1", &proxies, &[(XFF, "2001:4::1")]), "2001:4::1");
    }

    #[test]
    fn an_entry_that_is_no_address_stops_the_walk() {
        let proxies = trusted(&["10.0.0.0/8"]);
        for entry in ["unknown", "010.0.0.1", "", "1.2.3.4:x", "1.2.3.4:99999", "[::1", "[::1]x", "a", "1.2.3.4:", "fe80::1%eth0"] {
            assert_eq!(client("10.0.0.1", &proxies, &[(XFF, &format!("6.6.6.6, {entry}, 10.0.0.2"))]), "10.0.0.2", "{entry}");
            assert_eq!(client("10.0.0.1", &proxies, &[(XFF, entry)]), "10.0.0.1", "{entry}");
        }
    }

    #[test]
    fn forwarded_counts_only_without_x_forwarded_for() {
        let proxies = trusted(&["10.0.0.0/8"]);
        assert_eq!(client("10.0.0.1", &proxies, &[("forwarded", "for=6.6.6.6, For=\"1.1.1.1:80\";proto=http,for=10.0.0.2")]), "1.1.1.1");
        assert_eq!(client("10.0.0.1", &proxies, &[("forwarded", "for=\"[2001:4::1]:8\";by=\"a,b\"")]), "2001:4::1");
        assert_eq!(client("10.0.0.1", &proxies, &[("forwarded", "for=1.1.1.1, for=_hidden")]), "10.0.0.1");
        assert_eq!(client("10.0.0.1", &proxies, &[("forwarded", "for=1.1.1.1, by=\"x")]), "10.0.0.1");
        assert_eq!(client("10.0.0.1", &proxies, &[("forwarded", "for=1.1.1.1"), (XFF, "2.2.2.2")]), "2.2.2.2");
    }

    #[test]
    fn wrong_cidrs_are_reported_where_they_stand() {
        let list = [
            "10.0.0.1/8",
            "::ffff:0:0/1",
            "::ffff:10.0.0.0/104",
            "10.0.0.0/33",
            "10.0.0.0/+8",
            "x",
            "010.0.0.1",
            "2001:db8::1/32",
            "1.2.3.4",
        ];
        let list = list.map(str::to_owned);
        let mut problems = Problems::default();
        let cidrs = Cidrs::parse(&list, &At::main("allow"), &mut problems);
        let places: Vec<At> = problems.list().iter().map(|problem| problem.at.clone()).collect();
        assert_eq!(places, (0..8).map(|index| At::main("allow").index(index)).collect::<Vec<_>>());
        assert_eq!(problems.list()[0].help.as_deref(), Some("write 10.0.0.0/8"));
        assert_eq!(problems.list()[2].help.as_deref(), Some("write it as IPv4, like 10.0.0.0/8"));
        assert!(cidrs.contains("1.2.3.4".parse().unwrap()) && !cidrs.contains("1.2.3.5".parse().unwrap()));
    }

    #[test]
    fn clients_count_by_address_or_slash_64() {
        let key = |text: &str| slash64(text.parse().unwrap());
        assert_eq!(key("2001:db8::1"), key("2001:db8::ffff:0:0:1"));
        assert_ne!(key("2001:db8::1"), key("2001:db8:0:1::1"));
        assert_eq!(key("::ffff:1.2.3.4"), key("1.2.3.4"));
        assert_ne!(key("1.2.3.4"), key("1.2.3.5"));
        assert_ne!(key("1.2.3.4"), key("::"));
    }

    proptest! {
        #[test]
        fn a_set_holds_what_one_of_its_cidrs_holds(nets in proptest::collection::vec((any::<u32>(), 0_u32..=32), 0..8), probe in any::<u32>(), near in 0_usize..8) {
            let nets: Vec<(u32, u32)> = nets.into_iter().map(|(ip, bits)| (ip & !u32::MAX.checked_shr(bits).unwrap_or(0), bits)).collect();
            let list: Vec<String> = nets.iter().map(|(ip, bits)| format!("{}/{bits}", Ipv4Addr::from_bits(*ip))).collect();
            let mut problems = Problems::default();
            let set = Cidrs::parse(&list, &At::default(), &mut problems);
            prop_assert!(problems.list().is_empty());
            for probe in [probe, nets.get(near).map_or(0, |net| net.0), nets.get(near).map_or(0, |net| net.0.wrapping_sub(1))] {
                let expected = nets.iter().any(|&(ip, bits)| probe & !u32::MAX.checked_shr(bits).unwrap_or(0) == ip);
                prop_assert_eq!(set.contains(Ipv4Addr::from_bits(probe).into()), expected);
            }
        }

        #[test]
        fn no_header_panics(line in "[ -~]{0,40}") {
            let proxies = trusted(&["0.0.0.0/0"]);
            client("10.0.0.1", &proxies, &[(XFF, &line)]);
            client("10.0.0.1", &proxies, &[("forwarded", &line)]);
        }
    }
}
