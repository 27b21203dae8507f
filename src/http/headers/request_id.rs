//! Request ids: the client's if it is harmless, else a UUID of version 7 (RFC 9562), which sorts by time.

use std::cell::Cell;
use std::hash::{BuildHasher, RandomState};

use http::{HeaderMap, HeaderName, HeaderValue};

use super::unindexed;

/// Whether a client's id may be kept: 1–128 characters from `A-Z a-z 0-9 . _ ~ + / = : @ -`.
pub fn valid_request_id(value: &HeaderValue) -> bool {
    (1..=128).contains(&value.len())
        && value
            .as_bytes()
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'~' | b'+' | b'/' | b'=' | b':' | b'@' | b'-'))
}

/// The id of a request: what stands in `name` if that is one valid line, else a new one.
pub fn request_id(headers: &HeaderMap, name: &HeaderName, now_ms: impl FnOnce() -> u64) -> HeaderValue {
    let mut lines = headers.get_all(name).iter();
    match (lines.next(), lines.next()) {
        (Some(id), None) if valid_request_id(id) => unindexed(id.clone()),
        _ => make_request_id(now_ms()),
    }
}

/// A new id, with random bits of this thread's generator; `now_ms` are milliseconds since 1970.
pub fn make_request_id(now_ms: u64) -> HeaderValue {
    new_request_id(now_ms, random())
}

/// Each byte as two digits: one look-up for two of them.
static HEX: [[u8; 2]; 256] = {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut table = [[0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = [DIGITS[byte >> 4], DIGITS[byte & 15]];
        byte += 1;
    }
    table
};

/// A UUIDv7 from milliseconds since 1970 and random bits, of which 74 are used.
pub fn new_request_id(now_ms: u64, random: u128) -> HeaderValue {
    const VERSION: u128 = 0xf << 76;
    const VARIANT: u128 = 0b11 << 62;
    let random = random & ((1 << 80) - 1) & !VERSION & !VARIANT;
    let bits = (u128::from(now_ms) << 80) | (7 << 76) | (0b10 << 62) | random;
    let mut digits = [0; 32];
    for (pair, byte) in digits.as_chunks_mut::<2>().0.iter_mut().zip(bits.to_be_bytes()) {
        *pair = HEX[usize::from(byte)];
    }
    let mut text = [b'-'; 36];
    for (place, from) in [(0..8, 0..8), (9..13, 8..12), (14..18, 12..16), (19..23, 16..20), (24..36, 20..32)] {
        text[place].copy_from_slice(&digits[from]);
    }
    unindexed(HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static("-")))
}

/// 128 random bits: xoshiro256++ (Blackman and Vigna), one per thread, seeded from the operating system. Not for secrets.
fn random() -> u128 {
    thread_local! {
        static STATE: Cell<[u64; 4]> = Cell::new({
            let keys = RandomState::new();
            [1_u64, 2, 3, 4].map(|number| keys.hash_one(number))
        });
    }
    STATE.with(|state| {
        let mut s = state.get();
        let mut next = || {
            let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
            let t = s[1] << 17;
            s[2] ^= s[0];
            s[3] ^= s[1];
            s[1] ^= s[2];
            s[0] ^= s[3];
            s[2] ^= t;
            s[3] = s[3].rotate_left(45);
            result
        };
        let bits = (u128::from(next()) << 64) | u128::from(next());
        state.set(s);
        bits
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_id_is_a_version_7_uuid() {
        // The example of RFC 9562, appendix A.6.
        let random = (0xCC3 << 64) | (0b01_1000 << 56) | 0xC4_DC0C_0C07_398F;
        assert_eq!(new_request_id(0x017F_22E2_79B0, random), "017f22e2-79b0-7cc3-98c4-dc0c0c07398f");
        assert_eq!(new_request_id(0, u128::MAX), "00000000-0000-7fff-bfff-ffffffffffff");
    }

    #[test]
    fn ids_differ_also_between_threads() {
        let many = || (0..1000).map(|_| make_request_id(1).to_str().unwrap().to_owned()).collect::<Vec<_>>();
        let mut ids = many();
        ids.extend(std::thread::spawn(many).join().unwrap());
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), 2000);
    }

    #[test]
    fn only_one_harmless_line_is_kept() {
        let name = HeaderName::from_static("x-request-id");
        let taken = |lines: &[&str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(&name, HeaderValue::from_str(line).unwrap());
            }
            request_id(&headers, &name, || 5).to_str().unwrap().to_owned()
        };
        let long = "a".repeat(128);
        for id in ["aZ9._~+/=:@-", long.as_str()] {
            assert_eq!(taken(&[id]), id);
        }
        let too_long = "a".repeat(129);
        for lines in [&[][..], &[""], &["a b"], &["a,b"], &["a\"b"], &["é"], &["a", "a"], &[too_long.as_str()]] {
            let id = taken(lines);
            assert!(id.len() == 36 && id.starts_with("00000000-0005-7"), "{lines:?} {id}");
        }
    }
}
