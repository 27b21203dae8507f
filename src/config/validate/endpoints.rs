//! URLs of endpoints and names of discovery.

use std::net::{IpAddr, SocketAddr};

/// The identity of an endpoint: `scheme://host:port` in lower case with the port always written, or `unix:/path`. The error says what is wrong.
pub fn endpoint_id(url: &str) -> Result<String, String> {
    if let Some(path) = url.strip_prefix("unix:") {
        return if path.starts_with('/') && path.len() > 1 {
            Ok(url.to_owned())
        } else {
            Err("a Unix socket needs an absolute path, like unix:/run/app.sock".to_owned())
        };
    }
    let (scheme, rest) = url.split_once("://").ok_or("an endpoint is a URL: write http://HOST:PORT, https://HOST or unix:/path")?;
    let scheme = scheme.to_ascii_lowercase();
    let default_port = match scheme.as_str() {
        "http" => 80,
        "https" => 443,
        _ => return Err("only http, https and unix are possible".to_owned()),
    };
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if authority.contains(['/', '?', '#']) {
        return Err("an endpoint has no path: use `rewrite` on the route".to_owned());
    }
    if authority.contains('@') {
        return Err("an endpoint has no user or password".to_owned());
    }
    let (host, port) = host_port(authority)?;
    Ok(format!("{scheme}://{host}:{}", port.unwrap_or(default_port)))
}

/// Splits `HOST[:PORT]`; an IPv6 address keeps its brackets.
pub(super) fn host_port(authority: &str) -> Result<(String, Option<u16>), String> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']').ok_or("the bracket of the IPv6 address is not closed")?;
            let address: std::net::Ipv6Addr = address.parse().map_err(|_| "this is not an IPv6 address".to_owned())?;
            let port = if port.is_empty() { None } else { Some(port.strip_prefix(':').ok_or("only a port can follow the address")?) };
            (format!("[{address}]"), port)
        }
        None => {
            let (host, port) = authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port)));
            if port.is_some_and(|port| port.contains(':')) {
                return Err("an IPv6 address must be in brackets, like http://[::1]:8080".to_owned());
            }
            (host.to_ascii_lowercase(), port)
        }
    };
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if host.is_empty() || !(host.starts_with('[') || host.chars().all(allowed)) {
        return Err("the host is not a name or an address".to_owned());
    }
    let numeric = host.split('.').all(|label| !label.is_empty() && label.bytes().all(|b| b.is_ascii_digit()));
    if numeric && host.parse::<IpAddr>().is_err() {
        return Err("this is not an IPv4 address".to_owned());
    }
    let port = port
        .map(|port| port.parse::<u16>().ok().filter(|n| *n > 0 && !port.starts_with('+')).ok_or("the port is not a number from 1 to 65535"))
        .transpose()?;
    Ok((host, port))
}

/// Whether the endpoint `id` is the listener at `address`.
pub(super) fn is_listener(id: &str, address: SocketAddr) -> bool {
    let Some((host, port)) = id.split_once("://").and_then(|(_, authority)| authority.rsplit_once(':')) else { return false };
    if port.parse() != Ok(address.port()) {
        return false;
    }
    let (listening, loopback) = (address.ip().to_canonical(), |ip: IpAddr| ip.to_canonical().is_loopback());
    match host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        Ok(ip) => {
            ip.to_canonical() == listening
                || (loopback(ip) || ip.is_unspecified()) && (loopback(listening) && ip.is_unspecified() || listening.is_unspecified())
        }
        Err(_) => host == "localhost" && (loopback(listening) || listening.is_unspecified()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_are_lower_case_with_a_port() {
        assert_eq!(endpoint_id("HTTP://Example.com").unwrap(), "http://example.com:80");
        assert_eq!(endpoint_id("https://a/").unwrap(), "https://a:443");
        assert_eq!(endpoint_id("http://[::1]:8080").unwrap(), "http://[::1]:8080");
        assert_eq!(endpoint_id("unix:/run/app.sock").unwrap(), "unix:/run/app.sock");
    }

    #[test]
    fn paths_users_and_bad_ports_are_refused() {
        for wrong in [
            "127.0.0.1:80",
            "ftp://a",
            "http://a/path",
            "http://a?x",
            "http://u:p@a",
            "http://a:0",
            "http://a:70000",
            "http://a:",
            "http://",
            "http://::1:80",
            "http://[::1",
            "http://[::1]80",
            "unix:app.sock",
            "http://a b",
            "http://1.2.3.4.5",
            "http://256.0.0.1",
        ] {
            assert!(endpoint_id(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_admin_listener_is_recognised() {
        let admin: SocketAddr = "127.0.0.1:9901".parse().unwrap();
        assert!(is_listener("http://127.0.0.1:9901", admin));
        assert!(is_listener("http://localhost:9901", admin));
        assert!(!is_listener("http://127.0.0.1:9902", admin));
        assert!(!is_listener("http://10.0.0.1:9901", admin));
        assert!(is_listener("http://127.0.0.1:9901", "0.0.0.0:9901".parse().unwrap()));
        assert!(is_listener("http://[::1]:9901", "[::1]:9901".parse().unwrap()));
    }
}
