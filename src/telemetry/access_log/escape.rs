//! Bytes from clients as text that cannot break a line, a quote or a terminal.

use std::io::Write as _;

/// Appends `bytes` as the inside of a JSON string. Escaped are quotes, backslashes, control characters (C0, DEL, C1), line separators,
/// and marks that reorder or hide text. A byte that is not UTF-8 becomes `\xNN` in the decoded string.
pub fn escape(bytes: &[u8], out: &mut Vec<u8>) {
    // Nearly nothing needs an escape.
    if all_plain(bytes) {
        return out.extend_from_slice(bytes);
    }
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|byte| !plain(*byte)) {
        let (clean, dirty) = rest.split_at(at);
        out.extend_from_slice(clean);
        // A run of bytes beyond ASCII is decoded as a whole; a single ASCII byte is escaped alone.
        let run = dirty.iter().position(u8::is_ascii).unwrap_or(dirty.len());
        let (special, after) = dirty.split_at(run.max(1));
        rest = after;
        match special {
            [byte] if byte.is_ascii() => escape_ascii(*byte, out),
            beyond => escape_beyond(beyond, out),
        }
    }
    out.extend_from_slice(rest);
}

/// Whether a byte stands for itself, in JSON and in text.
pub fn plain(byte: u8) -> bool {
    matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\'
}

/// Whether all bytes stand for themselves, eight at a time.
fn all_plain(bytes: &[u8]) -> bool {
    // Of what does not fill a word the last bytes are looked at, some of them once more.
    if let Some(last) = bytes.last_chunk::<8>() {
        let (words, _) = bytes.as_chunks::<8>();
        return words.iter().fold(dirt(last), |found, word| found | dirt(word)) == 0;
    }
    if let (Some([a, b, c, d]), Some([e, f, g, h])) = (bytes.first_chunk::<4>(), bytes.last_chunk::<4>()) {
        return dirt(&[*a, *b, *c, *d, *e, *f, *g, *h]) == 0;
    }
    bytes.iter().all(|byte| plain(*byte))
}

/// Zero if each of eight bytes stands for itself: the high bits of those that do not, and perhaps of bytes behind them, which they carry to or
/// borrow from (Anderson, "Bit Twiddling Hacks").
fn dirt(word: &[u8; 8]) -> u64 {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    let all = |byte: u8| ONES * u64::from(byte);
    let word = u64::from_ne_bytes(*word);
    let beyond = word | word.wrapping_add(ONES);
    let control = word.wrapping_sub(all(b' '));
    let [quote, backslash] = [b'"', b'\\'].map(|special| (word ^ all(special)).wrapping_sub(ONES));
    (beyond | control | quote | backslash) & all(0x80)
}

fn escape_ascii(byte: u8, out: &mut Vec<u8>) {
    match byte {
        b'"' => out.extend_from_slice(b"\\\""),
        b'\\' => out.extend_from_slice(b"\\\\"),
        b'\n' => out.extend_from_slice(b"\\n"),
        b'\r' => out.extend_from_slice(b"\\r"),
        b'\t' => out.extend_from_slice(b"\\t"),
        other => unicode(u32::from(other), out),
    }
}

fn escape_beyond(bytes: &[u8], out: &mut Vec<u8>) {
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            if harmful(character) {
                unicode(u32::from(character), out);
            } else {
                out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
        for byte in chunk.invalid() {
            // Writing into memory cannot fail.
            let _ = write!(out, "\\\\x{byte:02x}");
        }
    }
}

/// Characters beyond ASCII that end lines, steer terminals, or make a line read as something else. All are in the basic plane.
fn harmful(character: char) -> bool {
    matches!(character,
        '\u{80}'..='\u{9f}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

fn unicode(code: u32, out: &mut Vec<u8>) {
    let _ = write!(out, "\\u{code:04x}");
}

#[cfg(test)]
mod tests {
    use super::{all_plain, escape, plain};

    fn escaped(bytes: &[u8]) -> String {
        let mut out = Vec::new();
        escape(bytes, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn ordinary_text_is_unchanged() {
        for text in ["", "curl/8.5.0", "a b = ' {}", "grüße 日本 🦀"] {
            assert_eq!(escaped(text.as_bytes()), text);
        }
    }

    #[test]
    fn quotes_control_characters_and_separators_are_escaped() {
        assert_eq!(escaped(b"a\"b\\c\n\r\t\x00\x1b[31m\x7f"), r#"a\"b\\c\n\r\t\u0000\u001b[31m\u007f"#);
        assert_eq!(escaped("\u{85}\u{9b}\u{2028}\u{2029}\u{202e}\u{feff}".as_bytes()), r"\u0085\u009b\u2028\u2029\u202e\ufeff");
    }

    #[test]
    fn bytes_that_are_not_utf_8_are_shown_in_hex() {
        assert_eq!(escaped(b"a\xff\xc3(\xe2\x82x\xf0\x9f"), r"a\\xff\\xc3(\\xe2\\x82x\\xf0\\x9f");
        assert_eq!(escaped(b"\xc3\xbc\xff\xc3\xbc"), r"ü\\xffü");
    }

    #[test]
    fn many_bytes_at_once_are_judged_as_each_of_them() {
        for byte in 0..=u8::MAX {
            for place in 0..11 {
                let mut bytes = *b"~ a~ b~ c~ ";
                bytes[place] = byte;
                for length in place + 1..=bytes.len() {
                    assert_eq!(all_plain(&bytes[..length]), plain(byte), "{byte} at {place} of {length}");
                }
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_become_one_line_of_valid_json(bytes: Vec<u8>) {
            let text = format!("\"{}\"", escaped(&bytes));
            assert!(!text.contains(|c: char| c.is_control() || c == '\u{2028}' || c == '\u{2029}'));
            let decoded: String = serde_json::from_str(&text).unwrap();
            if let Ok(utf8) = std::str::from_utf8(&bytes) {
                assert_eq!(decoded, utf8);
            }
        }
    }
}
