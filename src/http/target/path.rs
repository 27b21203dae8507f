//! The canonical path: one spelling for each path, so that no other spelling of it slips past a rule.
//!
//! The usual path is canonical already; finding that out is one pass over its bytes and allocates nothing.

use http::uri::PathAndQuery;

use crate::config::server::EncodedSlash;

const NOT_A_PATH: &str = "The request target does not start with /.";
const BAD_ESCAPE: &str = "The path has a % that is not followed by two hex digits.";
const BAD_CHARACTER: &str = "The path has a control character or a backslash.";
const BAD_SLASH: &str = "The path has an encoded slash.";
const ABOVE_ROOT: &str = "The path leads above the root.";
const BAD_SEGMENT: &str = "The path has a segment that is only a parameter.";
const TOO_LONG: &str = "The path is too long once its characters are encoded.";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    /// Stands for itself.
    Plain,
    Slash,
    Percent,
    /// May not stand in a path, and is encoded.
    Encode,
    /// Refused.
    Bad,
}

static CLASSES: [Class; 256] = classes();

const fn classes() -> [Class; 256] {
    let mut table = [Class::Plain; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = match byte as u8 {
            0..=31 | 127 | b'\\' => Class::Bad,
            b'/' => Class::Slash,
            b'%' => Class::Percent,
            // `#` and `?` end a path and a space ends a target, so these three can only be in a path from the configuration.
            b'"' | b'<' | b'>' | b'^' | b'`' | b'{' | b'|' | b'}' | b' ' | b'#' | b'?' | 128..=255 => Class::Encode,
            _ => Class::Plain,
        };
        byte += 1;
    }
    table
}

/// The target with its path in canonical form and its query byte for byte; `None` if it is canonical already.
///
/// # Errors
/// One fixed sentence for the 400: a broken escape, a control character or `\` in any form, `%2F` where it is refused, a path above the
/// root, a segment that would become a dot segment or nothing once a server cuts it at `;`.
pub fn canonical(target: &PathAndQuery, slash: EncodedSlash) -> Result<Option<PathAndQuery>, &'static str> {
    let text = target.as_str();
    let path = match text.as_bytes().first() {
        Some(b'/') => target.path(),
        // An absolute form without a path: `http://host?query`.
        Some(b'?') => "",
        _ => return Err(NOT_A_PATH),
    };
    let rest = text.get(path.len()..).unwrap_or_default();
    let Some(mut path) = canonical_path(if path.is_empty() { "/" } else { path }, slash)? else {
        return if path.is_empty() { PathAndQuery::try_from(format!("/{rest}")).map(Some).map_err(|_| TOO_LONG) } else { Ok(None) };
    };
    path.push_str(rest);
    PathAndQuery::try_from(path).map(Some).map_err(|_| TOO_LONG)
}

/// [`canonical`] for a path alone.
///
/// # Errors
/// Those of [`canonical`].
pub fn canonical_path(path: &str, slash: EncodedSlash) -> Result<Option<String>, &'static str> {
    if is_canonical(path.as_bytes(), slash)? { Ok(None) } else { resolve_segments(&reencode(path.as_bytes())).map(Some) }
}

/// One pass: all refusals that need only single bytes, and whether anything is to be changed or looked at more closely.
fn is_canonical(path: &[u8], slash: EncodedSlash) -> Result<bool, &'static str> {
    let mut canonical = path.first() == Some(&b'/');
    let mut index = 0;
    while let Some(&byte) = path.get(index) {
        match CLASSES[usize::from(byte)] {
            Class::Plain => {}
            Class::Slash => canonical &= !needs_resolving(path.get(index + 1..).unwrap_or_default()),
            Class::Percent => {
                let (decoded, upper) = escape(path, index).ok_or(BAD_ESCAPE)?;
                if CLASSES[usize::from(decoded)] == Class::Bad {
                    return Err(BAD_CHARACTER);
                }
                if decoded == b'/' && slash == EncodedSlash::Reject {
                    return Err(BAD_SLASH);
                }
                canonical &= upper && !is_unreserved(decoded);
                index += 2;
            }
            Class::Encode => canonical = false,
            Class::Bad => return Err(BAD_CHARACTER),
        }
        index += 1;
    }
    Ok(canonical)
}

/// Whether the segment that starts here is empty but not the last, a dot segment, or one of those before its `;`.
fn needs_resolving(rest: &[u8]) -> bool {
    let ends = |byte: Option<&u8>| matches!(byte, None | Some(b'/' | b';'));
    match rest.first() {
        Some(b'/' | b';') => true,
        Some(b'.') => ends(rest.get(1)) || (rest.get(1) == Some(&b'.') && ends(rest.get(2))),
        _ => false,
    }
}

/// The byte that the escape at `index` stands for, and whether its hex digits are in upper case.
fn escape(path: &[u8], index: usize) -> Option<(u8, bool)> {
    let (high, low) = (*path.get(index + 1)?, *path.get(index + 2)?);
    let value = hex_value(high)? * 16 + hex_value(low)?;
    Some((value, !high.is_ascii_lowercase() && !low.is_ascii_lowercase()))
}

/// The value of one hex digit.
pub(super) fn hex_value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// RFC 3986 section 2.3: encoded or not, these mean the same.
pub(super) const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// Appends `%XX`.
pub(super) fn push_escape(out: &mut String, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    out.push('%');
    out.push(char::from(DIGITS[usize::from(byte >> 4)]));
    out.push(char::from(DIGITS[usize::from(byte & 15)]));
}

/// Escapes in one form, and nothing unescaped that needs an escape. The path has passed [`is_canonical`].
fn reencode(path: &[u8]) -> String {
    let mut out = String::with_capacity(path.len() + 16);
    let mut index = 0;
    while let Some(&byte) = path.get(index) {
        match CLASSES[usize::from(byte)] {
            Class::Percent => {
                if let Some((decoded, _)) = escape(path, index) {
                    if is_unreserved(decoded) { out.push(char::from(decoded)) } else { push_escape(&mut out, decoded) }
                }
                index += 2;
            }
            Class::Encode | Class::Bad => push_escape(&mut out, byte),
            Class::Plain | Class::Slash => out.push(char::from(byte)),
        }
        index += 1;
    }
    out
}

/// Merges slashes and resolves dot segments (RFC 3986 section 5.2.4), but never silently stops at the root.
fn resolve_segments(path: &str) -> Result<String, &'static str> {
    let mut out = String::with_capacity(path.len());
    let mut segments = path.strip_prefix('/').ok_or(NOT_A_PATH)?.split('/').peekable();
    while let Some(segment) = segments.next() {
        if matches!(segment.split_once(';'), Some(("" | "." | "..", _))) {
            return Err(BAD_SEGMENT);
        }
        match segment {
            "" | "." => {}
            ".." => out.truncate(out.rfind('/').ok_or(ABOVE_ROOT)?),
            _ => {
                out.push('/');
                out.push_str(segment);
                continue;
            }
        }
        if segments.peek().is_none() {
            out.push('/');
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(target: &str, slash: EncodedSlash) -> Result<String, &'static str> {
        let target = PathAndQuery::try_from(target).unwrap();
        Ok(canonical(&target, slash)?.map_or_else(|| target.to_string(), |changed| changed.to_string()))
    }

    #[test]
    fn other_spellings_of_a_path_become_the_path() {
        for spelling in [
            "/public/../admin",
            "/public/%2e%2e/admin",
            "/public/%2e./admin",
            "//admin",
            "/./admin",
            "/%61dmin",
            "/%2e/admin",
            "/x//../admin",
        ] {
            assert_eq!(run(spelling, EncodedSlash::Reject).as_deref(), Ok("/admin"), "{spelling}");
        }
        for (written, canonical) in [
            ("/admin?", "/admin?"),
            ("/admin#x", "/admin"),
            ("/admin;x", "/admin;x"),
            ("/admin.", "/admin."),
            ("/ADMIN", "/ADMIN"),
            ("/admin%20", "/admin%20"),
            ("/public/%252e%252e/admin", "/public/%252e%252e/admin"),
            ("/caf%c3%a9", "/caf%C3%A9"),
            ("/café", "/caf%C3%A9"),
            ("/a{b}\"|", "/a%7Bb%7D%22%7C"),
            ("/a%3bx", "/a%3Bx"),
            ("/a/b/..", "/a/"),
            ("/a/.", "/a/"),
            ("/a/..", "/"),
            ("/a//", "/a/"),
            ("//", "/"),
            ("/..a/.b/...", "/..a/.b/..."),
            ("/.well-known/x", "/.well-known/x"),
            ("?q", "/?q"),
            ("/a//b?x=//..%zz%2f\\", "/a/b?x=//..%zz%2f\\"),
        ] {
            assert_eq!(run(written, EncodedSlash::Reject).as_deref(), Ok(canonical), "{written}");
        }
    }

    #[test]
    fn ambiguous_paths_are_refused() {
        for target in [
            "/public/..%2fadmin",
            "/admin%2f..%2fpublic",
            "/public\\..\\admin",
            "/admin%00",
            "/public/..;/admin",
            "/public/.;x/admin",
            "/public/%2e%2e;x/admin",
            "/;x",
            "/a/;",
            "/../x",
            "/a/../../x",
            "//../x",
            "/%zz",
            "/a%",
            "/a%4",
            "/a%5cb",
            "/a%5Cb",
            "/a%7f",
            "/a%0d%0ab",
            "*",
        ] {
            assert!(run(target, EncodedSlash::Reject).is_err(), "{target}");
        }
    }

    #[test]
    fn a_kept_encoded_slash_stays_inside_its_segment() {
        assert_eq!(run("/a%2Fb/../c", EncodedSlash::Keep).as_deref(), Ok("/c"));
        assert_eq!(run("/a%2fb", EncodedSlash::Keep).as_deref(), Ok("/a%2Fb"));
        assert_eq!(run("/x/..%2Fy", EncodedSlash::Keep).as_deref(), Ok("/x/..%2Fy"));
        assert!(run("/a%5Cb", EncodedSlash::Keep).is_err());
    }

    #[test]
    fn a_canonical_target_is_not_copied() {
        for target in ["/", "/api/users/5?a=//..", "/.well-known/a", "/a%20b", "/a;v=1/b", "/a/"] {
            assert!(canonical(&PathAndQuery::from_static(target), EncodedSlash::Reject).unwrap().is_none(), "{target}");
        }
    }

    proptest! {
        #[test]
        fn canonical_is_idempotent_and_has_no_second_spelling(
            parts in proptest::collection::vec(proptest::sample::select(vec![
                "/", "//", "..", ".", ";", "%2e", "%2E", "%2f", "%5c", "%61", "%c3%a9", "a", "b;x", "%", "é", "{", "%00", "\\", "~", "%3b",
            ]), 0..14),
            keep in any::<bool>(),
        ) {
            let slash = if keep { EncodedSlash::Keep } else { EncodedSlash::Reject };
            if let Ok(target) = PathAndQuery::try_from(format!("/{}", parts.concat()))
                && let Ok(once) = canonical(&target, slash)
            {
                let once = once.unwrap_or(target);
                prop_assert!(matches!(canonical(&once, slash), Ok(None)));
                prop_assert!(!once.path().contains("//"));
                prop_assert!(once.path().is_ascii());
                for segment in once.path().split('/') {
                    let cut = segment.split(';').next().unwrap();
                    prop_assert!(cut != "." && cut != ".." && !segment.starts_with(';'));
                }
            }
        }

        #[test]
        fn no_target_panics_and_queries_are_kept(text in "[ -~é]{0,40}") {
            if let Ok(target) = PathAndQuery::try_from(text.as_str())
                && let Ok(Some(changed)) = canonical(&target, EncodedSlash::Reject)
            {
                prop_assert_eq!(changed.query(), target.query());
            }
        }
    }
}
