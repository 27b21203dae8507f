//! Percent-encoding for the places a template can fill, and the check that nothing made from values climbs out of its path.

/// Unreserved characters of RFC 3986: never encoded.
const fn unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// What a path segment may hold unencoded: `pchar` of RFC 3986 without `%`, and the brackets that browsers send as they are.
const fn segment_byte(byte: u8) -> bool {
    unreserved(byte)
        || matches!(byte, b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' | b':' | b'@' | b'[' | b']')
}

fn push_escape(out: &mut String, byte: u8) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    out.push('%');
    out.push(char::from(HEX[usize::from(byte >> 4)]));
    out.push(char::from(HEX[usize::from(byte & 15)]));
}

/// The byte that the escape at the front of `bytes` stands for.
fn escape(bytes: &[u8]) -> Option<u8> {
    let [b'%', high, low, ..] = bytes else { return None };
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    Some(digit(*high)? << 4 | digit(*low)?)
}

/// Appends plain bytes as one component of a query, or as one segment: all but unreserved characters are encoded.
pub fn push_component(out: &mut String, value: &[u8]) {
    for &byte in value {
        if unreserved(byte) { out.push(char::from(byte)) } else { push_escape(out, byte) }
    }
}

/// Appends bytes of a canonical path as they stand there. Slashes are encoded unless `keep_slash`; what cannot stand in a path
/// (half an escape, cut off by a regex group) is encoded.
pub fn push_raw_segments(out: &mut String, raw: &str, keep_slash: bool) {
    let bytes = raw.as_bytes();
    for (at, &byte) in bytes.iter().enumerate() {
        let kept = segment_byte(byte) || (byte == b'/' && keep_slash) || (byte == b'%' && escape(&bytes[at..]).is_some());
        if kept { out.push(char::from(byte)) } else { push_escape(out, byte) }
    }
}

/// Appends bytes of a canonical path percent-decoded. `%2F` stays as written: with `encoded_slash: keep` it is a part of its segment.
pub fn push_decoded(out: &mut Vec<u8>, raw: &str) {
    let mut rest = raw.as_bytes();
    while let [first, tail @ ..] = rest {
        match escape(rest) {
            Some(byte) if byte != b'/' => {
                out.push(byte);
                rest = &rest[3..];
            }
            Some(_) | None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
}

/// Appends bytes of a canonical path as one component of a query. `%2F` is not encoded twice.
pub fn push_raw_component(out: &mut String, raw: &str) {
    let mut rest = raw.as_bytes();
    while let [first, tail @ ..] = rest {
        let (byte, after) = match escape(rest) {
            Some(byte) => (byte, &rest[3..]),
            None => (*first, tail),
        };
        push_component(out, &[byte]);
        rest = after;
    }
}

/// Literal text of a path in the form that requests are brought to, or what is wrong with it.
pub fn normalise_literal(text: &str) -> Result<String, &'static str> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let (byte, escaped) = match (*first, escape(rest)) {
            (b'%', None) => return Err("has a `%` without two hex digits"),
            (_, Some(byte)) => (byte, true),
            (byte, None) => (byte, false),
        };
        rest = if escaped { &rest[3..] } else { tail };
        if byte.is_ascii_control() || byte == b'\\' {
            return Err("has a control character or a backslash");
        }
        let stays = if escaped { unreserved(byte) } else { segment_byte(byte) || byte == b'/' };
        if stays { out.push(char::from(byte)) } else { push_escape(&mut out, byte) }
    }
    Ok(out)
}

/// The last check of a path that was made from values: `//` becomes `/`; `false` if it does not start with `/`, has a broken
/// escape or a byte no path can hold, or has a segment that servers take for `.` or `..`.
pub fn check_path(path: &mut String) -> bool {
    if !path.starts_with('/') {
        return false;
    }
    if path.contains("//") {
        let mut last = '\0';
        path.retain(|c| !(std::mem::replace(&mut last, c) == '/' && c == '/'));
    }
    let bytes = path.as_bytes();
    let clean = |(at, byte): (usize, &u8)| segment_byte(*byte) || *byte == b'/' || (*byte == b'%' && escape(&bytes[at..]).is_some());
    bytes.iter().enumerate().all(clean) && !path.split('/').any(climbs)
}

/// Whether some server takes `segment` for `.` or `..`, parameters after `;` included.
pub fn climbs(segment: &str) -> bool {
    let name = segment.split(';').next().unwrap_or_default();
    if name.is_empty() {
        return !segment.is_empty();
    }
    let mut dots = 0;
    let mut rest = name.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = match escape(rest) {
            Some(b'.') => &rest[3..],
            Some(_) => return false,
            None if *first == b'.' => tail,
            None => return false,
        };
        dots += 1;
    }
    dots <= 2
}
