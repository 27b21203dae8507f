//! PROXY protocol, versions 1 and 2: the client's address as a load balancer in front saw it.
//!
//! [`parse`] judges the bytes received so far, without I/O; [`read`] takes a header off a connection and not a byte more. Only connections from
//! trusted addresses are asked for one; there it is required.
//! Source: the PROXY protocol specification by HAProxy, sections 2.1 and 2.2.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// What the bytes so far are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// The beginning of a header: read more.
    Incomplete,
    /// A whole header.
    Header {
        /// The client; `None` for `LOCAL` and `UNKNOWN`, where the socket's own address holds.
        source: Option<SocketAddr>,
        /// Bytes of the header; what follows is the client's.
        consumed: usize,
    },
    /// Something else: no header begins like this.
    NotProxy,
    /// Begins like a header, but breaks the format.
    Invalid,
}

/// Longest header of version 1, with its line end.
pub const MAX_V1: usize = 107;
/// Longest header of version 2 that is taken, TLVs included: the addresses take 36 bytes, the usual TLVs a few dozen.
pub const MAX_V2: usize = 16 + 4096;

const SIGNATURE_V1: &[u8] = b"PROXY";
const SIGNATURE_V2: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Reads a header at the start of `bytes`.
pub fn parse(bytes: &[u8]) -> Parsed {
    if begins(bytes, SIGNATURE_V2) {
        return if bytes.len() < 16 { short_v2(bytes) } else { v2(bytes) };
    }
    if begins(bytes, SIGNATURE_V1) {
        return v1(bytes);
    }
    Parsed::NotProxy
}

/// Takes the header off a connection: the client's address, or `None` if the socket's own holds. What follows the header stays unread, for TLS
/// or HTTP. No timeout of its own: it is part of `timeouts.handshake`.
///
/// # Errors
/// If there is no header, a broken one, or the connection ends: it is to be closed.
pub async fn read(stream: &mut TcpStream) -> io::Result<Option<SocketAddr>> {
    let mut header = Vec::new();
    let mut piece = [0u8; 256];
    loop {
        let count = stream.peek(&mut piece).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let before = header.len();
        header.extend_from_slice(piece.get(..count).unwrap_or_default());
        let (end, found) = match parse(&header) {
            // All bytes of an incomplete header belong to it. Taking them makes the next look wait for new ones.
            Parsed::Incomplete => (count, None),
            Parsed::Header { source, consumed } => (consumed.saturating_sub(before), Some(source)),
            Parsed::NotProxy => return Err(io::Error::new(io::ErrorKind::InvalidData, "a PROXY header is expected")),
            Parsed::Invalid => return Err(io::Error::new(io::ErrorKind::InvalidData, "a malformed PROXY header")),
        };
        stream.read_exact(piece.get_mut(..end).unwrap_or_default()).await?;
        if let Some(source) = found {
            return Ok(source);
        }
    }
}

/// Whether `bytes` agrees with `signature` as far as both go.
fn begins(bytes: &[u8], signature: &[u8]) -> bool {
    bytes.iter().zip(signature).all(|(a, b)| a == b)
}

fn v1(bytes: &[u8]) -> Parsed {
    let window = bytes.get(..MAX_V1).unwrap_or(bytes);
    let Some(end) = window.iter().position(|&byte| byte == b'\n') else {
        return if window.len() < MAX_V1 { Parsed::Incomplete } else { Parsed::Invalid };
    };
    let line = window.get(..end).and_then(|line| line.strip_suffix(b"\r")).and_then(|line| std::str::from_utf8(line).ok());
    match line.and_then(v1_line) {
        Some(source) => Parsed::Header { source, consumed: end + 1 },
        None => Parsed::Invalid,
    }
}

/// `PROXY TCP4 192.0.2.1 192.0.2.2 56324 443`; single spaces, nothing else. After `UNKNOWN` anything is ignored.
#[expect(clippy::option_option, reason = "the inner one is UNKNOWN, the outer one a broken line")]
fn v1_line(line: &str) -> Option<Option<SocketAddr>> {
    let mut words = line.split(' ');
    if words.next() != Some("PROXY") {
        return None;
    }
    let family = words.next()?;
    if family == "UNKNOWN" {
        return Some(None);
    }
    let (source, destination) = (words.next()?, words.next()?);
    let source_port = port(words.next()?)?;
    port(words.next()?)?; // the destination's
    if words.next().is_some() {
        return None;
    }
    let source: IpAddr = match family {
        "TCP4" => {
            destination.parse::<Ipv4Addr>().ok()?;
            source.parse::<Ipv4Addr>().ok()?.into()
        }
        "TCP6" => {
            destination.parse::<Ipv6Addr>().ok()?;
            source.parse::<Ipv6Addr>().ok()?.into()
        }
        _ => return None,
    };
    Some(Some(SocketAddr::new(source.to_canonical(), source_port)))
}

/// Decimal digits without leading zeros, at most 65535.
fn port(word: &str) -> Option<u16> {
    let plain = word.bytes().all(|byte| byte.is_ascii_digit()) && (word.len() == 1 || !word.starts_with('0'));
    if plain { word.parse().ok() } else { None }
}

/// The fixed part is not whole yet; what is there of it is checked at once, so that a connection is not held for nothing.
fn short_v2(bytes: &[u8]) -> Parsed {
    match bytes.get(12) {
        Some(version) if version & 0xf0 != 0x20 || version & 0x0f > 1 => Parsed::Invalid,
        _ => Parsed::Incomplete,
    }
}

fn v2(bytes: &[u8]) -> Parsed {
    let (Some(&command), Some(&family), Some(&[high, low])) =
        (bytes.get(12), bytes.get(13), bytes.get(14..16).and_then(<[u8]>::first_chunk))
    else {
        return Parsed::Incomplete;
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    let consumed = 16 + length;
    if command & 0xf0 != 0x20 || command & 0x0f > 1 || consumed > MAX_V2 {
        return Parsed::Invalid;
    }
    let Some(body) = bytes.get(16..consumed) else { return Parsed::Incomplete };
    if command & 0x0f == 0 {
        return Parsed::Header { source: None, consumed };
    }
    match v2_source(family, body) {
        Some(source) => Parsed::Header { source, consumed },
        None => Parsed::Invalid,
    }
}

/// The source address of a `PROXY` command. Unix sockets and unspecified families have none; the protocol (stream or datagram) is not ours
/// to judge. Whatever follows the addresses are TLVs.
#[expect(clippy::option_option, reason = "the inner one is a family without an address, the outer one a short body")]
fn v2_source(family: u8, body: &[u8]) -> Option<Option<SocketAddr>> {
    if family & 0x0f > 2 {
        return None;
    }
    match family >> 4 {
        0 => Some(None),
        1 => {
            let addresses: &[u8; 12] = body.first_chunk()?;
            let [a, b, c, d, _, _, _, _, high, low, _, _] = *addresses;
            Some(Some(SocketAddr::new(Ipv4Addr::new(a, b, c, d).into(), u16::from_be_bytes([high, low]))))
        }
        2 => {
            let addresses: &[u8; 36] = body.first_chunk()?;
            let source: &[u8; 16] = addresses.first_chunk()?;
            let port = addresses.get(32..34)?.first_chunk()?;
            Some(Some(SocketAddr::new(IpAddr::from(Ipv6Addr::from(*source)).to_canonical(), u16::from_be_bytes(*port))))
        }
        3 => (body.len() >= 216).then_some(None),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(text: &str) -> Parsed {
        parse(text.as_bytes())
    }
    fn source(text: &str, consumed: usize) -> Parsed {
        Parsed::Header { source: Some(text.parse().unwrap()), consumed }
    }
    fn v2_bytes(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = SIGNATURE_V2.to_vec();
        bytes.extend([command, family]);
        bytes.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
        bytes.extend(body);
        bytes
    }

    #[test]
    fn version_1_names_the_source() {
        assert_eq!(header("PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\nGET / HTTP/1.1\r\n"), source("192.0.2.1:56324", 42));
        assert_eq!(header("PROXY TCP6 2001:db8::1 2001:db8::2 1 65535\r\n"), source("[2001:db8::1]:1", 44));
        assert_eq!(header("PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n"), source("192.0.2.1:1", 37));
    }

    #[test]
    fn version_1_unknown_keeps_the_socket_address() {
        assert_eq!(header("PROXY UNKNOWN\r\n"), Parsed::Header { source: None, consumed: 15 });
        assert_eq!(header("PROXY UNKNOWN ffff:: ffff:: 65535 65535\r\nX"), Parsed::Header { source: None, consumed: 41 });
    }

    #[test]
    fn version_1_in_pieces_is_incomplete_until_the_line_ends() {
        let whole = b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n";
        for end in 0..whole.len() {
            assert_eq!(parse(&whole[..end]), Parsed::Incomplete, "{end}");
        }
        assert_eq!(parse(whole), source("1.2.3.4:1", whole.len()));
    }

    #[test]
    fn broken_version_1_lines_are_invalid() {
        for line in [
            "PROXY\r\n",
            "PROXY \r\n",
            "PROXYTCP4 1.2.3.4 5.6.7.8 1 2\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 1 2\n",
            "PROXY  TCP4 1.2.3.4 5.6.7.8 1 2\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 1 2 3\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 1 2 \r\n",
            "PROXY TCP4 01.2.3.4 5.6.7.8 1 2\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 01 2\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 +1 2\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 65536 2\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8  2\r\n",
            "PROXY TCP4 ::1 ::1 1 2\r\n",
            "PROXY TCP6 1.2.3.4 ::1 1 2\r\n",
            "PROXY UDP4 1.2.3.4 5.6.7.8 1 2\r\n",
            "PROXY tcp4 1.2.3.4 5.6.7.8 1 2\r\n",
        ] {
            assert_eq!(header(line), Parsed::Invalid, "{line:?}");
        }
        assert_eq!(header(&format!("PROXY UNKNOWN {}", "x".repeat(93))), Parsed::Invalid);
        assert_eq!(header(&format!("PROXY UNKNOWN {}\r\n", "x".repeat(91))), Parsed::Header { source: None, consumed: 107 });
        assert_eq!(header(&format!("PROXY UNKNOWN {}\r\n", "x".repeat(92))), Parsed::Invalid);
    }

    #[test]
    fn other_protocols_are_not_proxy_from_the_first_differing_byte_on() {
        for text in ["G", "GET / HTTP/1.1\r\n", "PRI * HTTP/2.0\r\n\r\n", "PROPFIND / HTTP/1.1\r\n", "\r\nGET", "\x16\x03\x01"] {
            assert_eq!(header(text), Parsed::NotProxy, "{text:?}");
        }
        assert_eq!(header(""), Parsed::Incomplete);
        assert_eq!(header("P"), Parsed::Incomplete);
    }

    #[test]
    fn version_2_names_the_source_and_skips_tlvs() {
        let mut body = vec![192, 0, 2, 1, 192, 0, 2, 2, 0xdc, 0x04, 0x01, 0xbb];
        assert_eq!(parse(&v2_bytes(0x21, 0x11, &body)), source("192.0.2.1:56324", 28));
        body.extend([0x04, 0, 2, 0xaa, 0xbb]);
        assert_eq!(parse(&[v2_bytes(0x21, 0x11, &body), b"GET".to_vec()].concat()), source("192.0.2.1:56324", 33));
        let mut six = "2001:db8::7".parse::<Ipv6Addr>().unwrap().octets().to_vec();
        six.extend([0; 16]);
        six.extend([0x1f, 0x90, 0, 80]);
        assert_eq!(parse(&v2_bytes(0x21, 0x21, &six)), source("[2001:db8::7]:8080", 52));
    }

    #[test]
    fn version_2_local_unspecified_and_unix_keep_the_socket_address() {
        let kept = |consumed| Parsed::Header { source: None, consumed };
        assert_eq!(parse(&v2_bytes(0x20, 0x00, &[])), kept(16));
        assert_eq!(parse(&v2_bytes(0x20, 0x11, &[1, 2, 3])), kept(19), "the addresses of LOCAL are ignored");
        assert_eq!(parse(&v2_bytes(0x21, 0x00, &[9; 5])), kept(21));
        assert_eq!(parse(&v2_bytes(0x21, 0x31, &[0; 216])), kept(232));
    }

    #[test]
    fn broken_version_2_headers_are_invalid() {
        let body = [0; 12];
        for (command, family, body) in [
            (0x11, 0x11, &body[..]),
            (0x22, 0x11, &body[..]),
            (0x21, 0x41, &body[..]),
            (0x21, 0x13, &body[..]),
            (0x21, 0x11, &body[..11]),
            (0x21, 0x21, &body[..]),
            (0x21, 0x31, &body[..]),
        ] {
            assert_eq!(parse(&v2_bytes(command, family, body)), Parsed::Invalid, "{command:x} {family:x} {}", body.len());
        }
        assert_eq!(parse(&v2_bytes(0x31, 0, &[])[..13]), Parsed::Invalid, "the version is judged as soon as it is there");
        let huge = [SIGNATURE_V2.as_slice(), &[0x21, 0x11, 0xff, 0xff]].concat();
        assert_eq!(parse(&huge), Parsed::Invalid, "a huge header is refused by its length, not buffered");
    }

    #[test]
    fn version_2_in_pieces_is_incomplete_until_its_length_is_there() {
        let whole = v2_bytes(0x21, 0x11, &[1; 20]);
        for end in 0..whole.len() {
            assert_eq!(parse(&whole[..end]), Parsed::Incomplete, "{end}");
        }
    }

    async fn connected() -> (TcpStream, TcpStream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (client, accepted) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (client.unwrap(), accepted.unwrap().0)
    }

    #[tokio::test]
    async fn exactly_the_header_is_taken_off_a_connection() {
        let long = v2_bytes(0x21, 0x11, &[&[192, 0, 2, 1, 0, 0, 0, 0, 0, 9, 0, 0][..], &[0; 900]].concat());
        for header in [b"PROXY TCP4 192.0.2.1 192.0.2.2 9 443\r\n".to_vec(), long] {
            let (mut client, mut server) = connected().await;
            let sender = tokio::spawn(async move {
                for piece in [&header[..9], &header[9..20], &header[20..]] {
                    tokio::io::AsyncWriteExt::write_all(&mut client, piece).await.unwrap();
                    tokio::task::yield_now().await;
                }
                tokio::io::AsyncWriteExt::write_all(&mut client, b"GET /").await.unwrap();
            });
            assert_eq!(read(&mut server).await.unwrap(), Some("192.0.2.1:9".parse().unwrap()));
            sender.await.unwrap();
            let mut rest = Vec::new();
            server.read_to_end(&mut rest).await.unwrap();
            assert_eq!(rest, b"GET /");
        }
    }

    #[tokio::test]
    async fn connections_without_a_whole_header_are_errors() {
        for (text, kind) in [
            ("GET / HTTP/1.1\r\n", io::ErrorKind::InvalidData),
            ("PROXY NOPE\r\n", io::ErrorKind::InvalidData),
            ("PROXY TCP4 1.2", io::ErrorKind::UnexpectedEof),
            ("", io::ErrorKind::UnexpectedEof),
        ] {
            let (mut client, mut server) = connected().await;
            tokio::io::AsyncWriteExt::write_all(&mut client, text.as_bytes()).await.unwrap();
            drop(client);
            assert_eq!(read(&mut server).await.unwrap_err().kind(), kind, "{text:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_judged_and_never_more_is_consumed_than_there_is(
            start in proptest::sample::select(vec![b"".to_vec(), b"PROXY ".to_vec(), b"PROXY TCP4 ".to_vec(), SIGNATURE_V2.to_vec()]),
            rest in proptest::collection::vec(proptest::num::u8::ANY, 0..300),
        ) {
            let bytes = [start, rest].concat();
            match parse(&bytes) {
                Parsed::Header { consumed, .. } => proptest::prop_assert!(consumed <= bytes.len()),
                Parsed::Incomplete => proptest::prop_assert!(bytes.len() < MAX_V2),
                Parsed::NotProxy | Parsed::Invalid => {}
            }
        }

        #[test]
        fn a_judgement_does_not_change_when_more_bytes_arrive(bytes in "PROXY (TCP4|UNKNOWN)?[ 0-9.]{0,40}\r?\n?.{0,9}") {
            let mut decided = None;
            for end in 0..=bytes.len() {
                let now = parse(&bytes.as_bytes()[..end]);
                if let Some(before) = decided {
                    proptest::prop_assert_eq!(before, now);
                }
                if now != Parsed::Incomplete {
                    decided = Some(now);
                }
            }
        }
    }
}
