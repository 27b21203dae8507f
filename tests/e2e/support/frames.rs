//! HTTP/2 frame by frame, for peers that do not behave.

use std::net::SocketAddr;

use super::Raw;

/// What HTTP/2 clients send first.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// `GET http://site/` in static HPACK.
pub const HEAD: &[u8] = b"\x82\x86\x84\x41\x04site";

/// A frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// A client that writes its own frames.
pub fn raw(gateway: SocketAddr) -> Raw {
    let mut raw = Raw::connect(gateway);
    raw.send([PREFACE, &frame(4, 0, 0, b"")].concat());
    raw
}

/// What the gateway sent until the end: kind and stream of each frame.
pub fn frames(bytes: &[u8]) -> Vec<(u8, u32)> {
    let (mut rest, mut seen) = (bytes, Vec::new());
    while rest.len() >= 9 {
        let length = usize::from(rest[0]) << 16 | usize::from(rest[1]) << 8 | usize::from(rest[2]);
        seen.push((rest[3], u32::from_be_bytes(rest[5..9].try_into().unwrap())));
        rest = rest.get(9 + length..).unwrap_or_default();
    }
    seen
}

/// Whether there is a GOAWAY.
pub fn went_away(bytes: &[u8]) -> bool {
    frames(bytes).iter().any(|(kind, _)| *kind == 7)
}
