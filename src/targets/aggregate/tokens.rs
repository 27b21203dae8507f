//! The tokens of JSON: strict, and as fast as a byte at a time or eight allow.

use std::ops::Range;

/// Not one JSON document in UTF-8, or nested too deeply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Invalid;

/// The next byte that is not white space, with `at` moved there; there must be one.
#[inline(always)]
pub(super) fn next(text: &[u8], at: &mut usize) -> Result<u8, Invalid> {
    match text.get(*at) {
        Some(byte) if *byte > b' ' => Ok(*byte),
        Some(_) => {
            *at = white(text, *at);
            text.get(*at).copied().ok_or(Invalid)
        }
        None => Err(Invalid),
    }
}

/// The place behind the white space at `at`.
#[inline]
pub(super) fn white(text: &[u8], at: usize) -> usize {
    let rest = text.get(at..).unwrap_or_default();
    at + rest.iter().take_while(|byte| matches!(byte, b' ' | b'\n' | b'\r' | b'\t')).count()
}

#[inline(never)]
pub(super) fn is_utf8(text: &[u8], place: Range<usize>) -> Result<(), Invalid> {
    text.get(place).and_then(|bytes| std::str::from_utf8(bytes).ok()).map(|_| ()).ok_or(Invalid)
}

/// Checks a slice of a long string. What its end may have cut in two is left to the next slice, which begins at the place returned.
#[inline(never)]
pub(super) fn utf8_until(text: &[u8], place: Range<usize>) -> Result<usize, Invalid> {
    match std::str::from_utf8(text.get(place.clone()).unwrap_or_default()) {
        Ok(_) => Ok(place.end),
        Err(error) if error.error_len().is_none() => Ok(place.start + error.valid_up_to()),
        Err(_) => Err(Invalid),
    }
}

/// The place of the first quote, backslash or control character from `at` on, or one not before `until` or the text's end; and whether
/// there are only ASCII characters before it (`false` may be wrong: a few bytes behind the place are looked at, too).
#[inline]
pub(super) fn plain(text: &[u8], mut at: usize, until: usize) -> (usize, bool) {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    // The high bit of each byte of `x` that is zero; above the first such byte there may be wrong ones ("Bit Twiddling Hacks", Anderson).
    let zero = |x: u64| x.wrapping_sub(ONES) & !x & HIGH;
    let mut seen = 0;
    while let Some(bytes) = text.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
        let word = u64::from_le_bytes(*bytes);
        let control = word.wrapping_sub(ONES * 0x20) & !word & HIGH;
        let special = zero(word ^ (ONES * 0x22)) | zero(word ^ (ONES * 0x5c)) | control;
        seen |= word;
        if special != 0 {
            return (at + special.trailing_zeros() as usize / 8, seen & HIGH == 0);
        }
        at += 8;
        if at >= until {
            return (at, seen & HIGH == 0);
        }
    }
    let mut ascii = seen & HIGH == 0;
    while let Some(byte) = text.get(at).filter(|byte| **byte >= 0x20 && **byte != b'"' && **byte != b'\\') {
        ascii &= byte.is_ascii();
        at += 1;
    }
    (at, ascii)
}

/// The place behind the escape sequence at `at`. Half a surrogate pair is legal JSON.
pub(super) fn escape(text: &[u8], at: usize) -> Option<usize> {
    match text.get(at + 1)? {
        b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => Some(at + 2),
        b'u' => text.get(at + 2..at + 6)?.iter().all(u8::is_ascii_hexdigit).then_some(at + 6),
        _ => None,
    }
}

/// The place behind the number at `at`.
#[inline]
pub(super) fn number(text: &[u8], mut at: usize) -> Option<usize> {
    if text.get(at) == Some(&b'-') {
        at += 1;
    }
    at = if text.get(at) == Some(&b'0') { at + 1 } else { digits(text, at)? };
    if text.get(at) == Some(&b'.') {
        at = digits(text, at + 1)?;
    }
    if let Some(b'e' | b'E') = text.get(at) {
        at += 1;
        if let Some(b'+' | b'-') = text.get(at) {
            at += 1;
        }
        at = digits(text, at)?;
    }
    Some(at)
}

/// The place behind one digit or more.
#[inline]
fn digits(text: &[u8], start: usize) -> Option<usize> {
    let mut at = start;
    while text.get(at).is_some_and(u8::is_ascii_digit) {
        at += 1;
    }
    (at > start).then_some(at)
}

#[inline]
pub(super) fn word<const N: usize>(text: &[u8], at: usize, word: &[u8; N]) -> Option<usize> {
    (text.get(at..)?.first_chunk::<N>()? == word).then_some(at + N)
}
