//! Where WebSocket frames begin and end in a stream of bytes (RFC 6455, section 5.2). Payloads are not looked at.

use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

/// Follows the frames of one direction.
#[derive(Clone, Debug, Default)]
pub(super) struct Frames {
    header: [u8; 14],
    /// Bytes of the header so far.
    have: usize,
    /// Payload bytes still to come.
    rest: u64,
    /// A whole close frame has passed.
    closed: bool,
}

/// Opcode of a close frame.
const CLOSE: u8 = 0x8;

impl Frames {
    /// Whether the next byte begins a frame.
    pub(super) fn at_boundary(&self) -> bool {
        self.have == 0 && self.rest == 0
    }
    /// Whether a whole close frame has passed.
    pub(super) fn closed(&self) -> bool {
        self.closed
    }
    /// Follows all of `bytes`.
    pub(super) fn advance(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let taken = self.next(bytes);
            bytes = bytes.get(taken..).unwrap_or_default();
        }
    }
    /// Follows `bytes` to the end of the frame under way, or of `bytes`; how many that were, at least one if there is one.
    pub(super) fn next(&mut self, bytes: &[u8]) -> usize {
        let mut taken = 0;
        if self.rest == 0 {
            for &byte in bytes {
                taken += 1;
                if self.header_byte(byte) {
                    break;
                }
            }
        }
        let left = bytes.len() - taken;
        let payload = usize::try_from(self.rest).map_or(left, |rest| rest.min(left));
        self.rest -= payload as u64;
        if self.at_boundary() && self.header[0] & 0x0f == CLOSE {
            self.closed = true;
        }
        taken + payload
    }

    /// Takes a byte of a header; whether it was the last one.
    fn header_byte(&mut self, byte: u8) -> bool {
        if let Some(slot) = self.header.get_mut(self.have) {
            *slot = byte;
        }
        self.have += 1;
        let [_, second, long @ ..] = &self.header;
        let length_bytes = match second & 0x7f {
            127 => 8,
            126 => 2,
            _ => 0,
        };
        let mask_bytes = if second & 0x80 == 0 { 0 } else { 4 };
        if self.have < 2 || self.have < 2 + length_bytes + mask_bytes {
            return false;
        }
        self.rest = match length_bytes {
            0 => u64::from(second & 0x7f),
            count => long.iter().take(count).fold(0, |sum, &byte| sum << 8 | u64::from(byte)),
        };
        self.have = 0;
        true
    }
}

/// A close frame with status 1001 "going away". Frames to a server are masked, with bytes nobody can predict (RFC 6455, section 5.3).
pub(super) fn going_away(masked: bool) -> Vec<u8> {
    let mut frame = Frame::close(Some(CloseFrame { code: CloseCode::Away, reason: "".into() }));
    if masked {
        let mut mask = [0u8; 4];
        // Without randomness the mask stays zero, which is a valid mask: the payload is two known bytes.
        let _ = aws_lc_rs::rand::fill(&mut mask);
        frame.header_mut().mask = Some(mask);
    }
    let mut bytes = Vec::with_capacity(frame.len());
    // Only the writer can fail, and a vector does not.
    let _ = frame.format(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(opcode: u8, masked: bool, payload: usize) -> Vec<u8> {
        let mask = if masked { 0x80 } else { 0 };
        let mut bytes = vec![0x80 | opcode];
        match payload {
            0..=125 => bytes.push(mask | u8::try_from(payload).unwrap()),
            126..=0xffff => {
                bytes.push(mask | 126);
                bytes.extend(u16::try_from(payload).unwrap().to_be_bytes());
            }
            _ => {
                bytes.push(mask | 127);
                bytes.extend((payload as u64).to_be_bytes());
            }
        }
        bytes.extend(std::iter::repeat_n(0xff, payload + if masked { 4 } else { 0 }));
        bytes
    }

    proptest::proptest! {
        #[test]
        fn boundaries_are_found_however_the_bytes_are_cut(
            frames in proptest::collection::vec((0u8..=2, proptest::bool::ANY, proptest::sample::select(vec![0, 1, 125, 126, 300, 65_535, 65_536])), 1..5),
            piece in 1usize..2000,
        ) {
            let frames: Vec<Vec<u8>> = frames.into_iter().map(|(opcode, masked, payload)| frame(opcode, masked, payload)).collect();
            let mut ends: Vec<usize> = vec![0];
            for frame in &frames {
                ends.push(ends[ends.len() - 1] + frame.len());
            }
            let mut follower = Frames::default();
            let mut at = 0;
            for piece in frames.concat().chunks(piece) {
                follower.advance(piece);
                at += piece.len();
                proptest::prop_assert_eq!(follower.at_boundary(), ends.contains(&at));
            }
        }
    }

    #[test]
    fn next_stops_at_the_end_of_a_frame() {
        let bytes = [frame(1, true, 3), frame(2, false, 0), frame(1, false, 7)].concat();
        let mut follower = Frames::default();
        assert_eq!(follower.next(&bytes), 9);
        assert!(follower.at_boundary());
        assert_eq!(follower.next(&bytes[9..]), 2);
        assert!(follower.at_boundary());
        assert_eq!(follower.next(&bytes[11..15]), 4);
        assert!(!follower.at_boundary());
        assert_eq!(follower.next(&bytes[15..]), 5);
        assert!(follower.at_boundary());
    }

    #[test]
    fn the_goodbye_says_1001_and_is_masked_for_servers() {
        assert_eq!(going_away(false), [0x88, 2, 0x03, 0xe9]);
        let frames: Vec<Vec<u8>> = (0..8).map(|_| going_away(true)).collect();
        for frame in &frames {
            let [0x88, 0x82, a, b, _, _, high, low] = frame[..] else { panic!("{frame:?}") };
            assert_eq!([high ^ a, low ^ b], [0x03, 0xe9]);
        }
        assert!(frames.iter().any(|frame| frame != &frames[0]), "the masks are drawn: {frames:?}");
    }

    #[test]
    fn a_close_frame_counts_once_it_is_whole() {
        let mut follower = Frames::default();
        let close = going_away(true);
        follower.advance(&close[..7]);
        assert!(!follower.closed());
        follower.advance(&close[7..]);
        assert!(follower.closed() && follower.at_boundary());
        let mut empty = Frames::default();
        empty.advance(&[0x88, 0]);
        assert!(empty.closed());
    }

    #[test]
    fn the_longest_length_does_not_overflow() {
        let mut follower = Frames::default();
        follower.advance(&[0x82, 127, 255, 255, 255, 255, 255, 255, 255, 255, 0]);
        assert!(!follower.at_boundary());
    }
}
