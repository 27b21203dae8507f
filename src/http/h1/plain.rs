//! Heads that are written as plainly as can be, as nearly all are: read in one pass, eight bytes at a time.
//!
//! Plain is: a common method, a target of printable ASCII, HTTP/1.1, a status with its usual phrase, and lines that are a name of letters,
//! digits and `-`, a colon, one space, a value of printable ASCII without blanks at its ends, CR LF. Whatever is not is left to `httparse`,
//! which alone says what else is a head, what is none, and what is none yet. So all that can go wrong here is to take something for
//! plain that `httparse` reads otherwise: property tests compare the two.

use http::header::{
    ACCEPT, ACCEPT_ENCODING, ACCEPT_LANGUAGE, AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, HOST, ORIGIN,
    REFERER, USER_AGENT,
};
use http::{HeaderName, Method, StatusCode};

use super::fields::Span;

/// A known name, in a form that others are compared with at once and whatever their case.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    len: usize,
    first: u64,
    middle: u64,
    last: u64,
}

impl Key {
    /// That of a name of letters, digits and `-`, up to 24 of them.
    pub(super) const fn new(name: &[u8]) -> Self {
        const fn part(name: &[u8], from: usize) -> u64 {
            let (mut word, mut at) = (0, 0);
            while at < 8 && from + at < name.len() {
                word |= ((name[from + at] | 0x20) as u64) << (at * 8);
                at += 1;
            }
            word
        }
        let len = name.len();
        assert!(len <= 24);
        let middle = if len > 16 { part(name, 8) } else { 0 };
        let last = if len > 8 { part(name, len - 8) } else { 0 };
        Self { len, first: part(name, 0), middle, last }
    }

    /// Whether it is the name, a token of `len` bytes, that `line` begins with.
    #[inline]
    pub(super) fn is(self, line: &[u8], len: usize) -> bool {
        // In tokens this bit is the case of a letter, and no other character becomes a letter, digit or dash by it.
        let lower = |at: usize| word(line.get(at..).unwrap_or_default()) | each(0x20);
        let mask = if self.len < 8 { (1 << (self.len * 8)) - 1 } else { u64::MAX };
        len == self.len
            && lower(0) & mask == self.first
            && (self.len <= 8 || lower(self.len - 8) == self.last)
            && (self.len <= 16 || lower(8) == self.middle)
    }
}

/// The name of `len` bytes that `line` begins with, if it is one that most requests have.
#[inline]
pub(super) fn usual(line: &[u8], len: usize) -> Option<HeaderName> {
    static NAMES: [(Key, HeaderName); 13] = [
        (Key::new(b"host"), HOST),
        (Key::new(b"accept"), ACCEPT),
        (Key::new(b"cookie"), COOKIE),
        (Key::new(b"origin"), ORIGIN),
        (Key::new(b"referer"), REFERER),
        (Key::new(b"user-agent"), USER_AGENT),
        (Key::new(b"connection"), CONNECTION),
        (Key::new(b"content-type"), CONTENT_TYPE),
        (Key::new(b"authorization"), AUTHORIZATION),
        (Key::new(b"cache-control"), CACHE_CONTROL),
        (Key::new(b"content-length"), CONTENT_LENGTH),
        (Key::new(b"accept-encoding"), ACCEPT_ENCODING),
        (Key::new(b"accept-language"), ACCEPT_LANGUAGE),
    ];
    NAMES.iter().find(|(key, _)| key.is(line, len)).map(|(_, name)| name.clone())
}

/// What comes next among the field lines.
#[derive(Clone, Copy, Debug)]
pub(super) enum Next<'h> {
    /// A line.
    Line {
        /// The name.
        name: &'h [u8],
        /// The value, two bytes behind the name.
        value: &'h [u8],
        /// What is behind the line end.
        behind: &'h [u8],
    },
    /// The empty line.
    End,
    /// Something that is not plain, or not all there.
    Other,
}

/// The line at the beginning of `rest`.
#[inline(always)]
pub(super) fn line(rest: &[u8]) -> Next<'_> {
    if rest.starts_with(b"\r\n") {
        return Next::End;
    }
    let Some((name, rest)) = rest.split_at_checked(skip(rest, not_name)) else { return Next::Other };
    let Some(rest) = rest.strip_prefix(b": ") else { return Next::Other };
    let Some((value, rest)) = rest.split_at_checked(skip(rest, not_text)) else { return Next::Other };
    let (Some(behind), Some(first), Some(last)) = (rest.strip_prefix(b"\r\n"), value.first(), value.last()) else { return Next::Other };
    if name.is_empty() || *first == b' ' || *last == b' ' { Next::Other } else { Next::Line { name, value, behind } }
}

/// Method, target, and where the field lines begin.
#[inline]
pub(super) fn request_line(head: &[u8]) -> Option<(Method, Span, usize)> {
    const BEHIND: &[u8] = b" HTTP/1.1\r\n";
    let (method, from) = method(head)?;
    let end = from + skip(head.get(from..)?, not_target);
    let at = end + BEHIND.len();
    (end > from && head.get(end..at) == Some(BEHIND)).then(|| (method, Span::between(from, end), at))
}

#[inline]
fn method(head: &[u8]) -> Option<(Method, usize)> {
    Some(match head {
        [b'G', b'E', b'T', b' ', ..] => (Method::GET, 4),
        [b'P', b'O', b'S', b'T', b' ', ..] => (Method::POST, 5),
        [b'P', b'U', b'T', b' ', ..] => (Method::PUT, 4),
        [b'H', b'E', b'A', b'D', b' ', ..] => (Method::HEAD, 5),
        [b'P', b'A', b'T', b'C', b'H', b' ', ..] => (Method::PATCH, 6),
        [b'D', b'E', b'L', b'E', b'T', b'E', b' ', ..] => (Method::DELETE, 7),
        [b'O', b'P', b'T', b'I', b'O', b'N', b'S', b' ', ..] => (Method::OPTIONS, 8),
        _ => return None,
    })
}

/// Status, and where the field lines begin.
#[inline]
pub(super) fn status_line(head: &[u8]) -> Option<(StatusCode, usize)> {
    const OK: &[u8] = b"HTTP/1.1 200 OK\r\n";
    if head.starts_with(OK) {
        return Some((StatusCode::OK, OK.len()));
    }
    let rest = head.strip_prefix(b"HTTP/1.1 ")?;
    let (code, rest) = rest.split_first_chunk::<3>()?;
    let status = StatusCode::from_bytes(code).ok().filter(|status| status.as_u16() < 600)?;
    let rest = rest.strip_prefix(b" ")?.strip_prefix(status.canonical_reason()?.as_bytes())?.strip_prefix(b"\r\n")?;
    Some((status, head.len() - rest.len()))
}

/// Eight times `byte`.
const fn each(byte: u8) -> u64 {
    0x0101_0101_0101_0101 * byte as u64
}

/// The first eight bytes, zeros behind the end.
#[inline]
fn word(bytes: &[u8]) -> u64 {
    match bytes.first_chunk() {
        Some(bytes) => u64::from_le_bytes(*bytes),
        None => last_word(bytes),
    }
}

#[inline(never)]
fn last_word(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word.iter_mut().zip(bytes).for_each(|(place, byte)| *place = *byte);
    u64::from_le_bytes(word)
}

/// How many bytes stand before the first that `not` marks, or before the end. It marks zero, as stands there.
#[inline(always)]
fn skip(bytes: &[u8], not: impl Fn(u64) -> u64) -> usize {
    let (chunks, rest) = bytes.as_chunks::<8>();
    let mut at = 0;
    for chunk in chunks {
        let marks = not(u64::from_le_bytes(*chunk));
        if marks != 0 {
            return at + marks.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    at + not(last_word(rest)).trailing_zeros() as usize / 8
}

/// Marks what is no letter, digit or `-` with the upper bit of its byte. As in the other two, each byte is first made one below 0x80, to which
/// a constant is added that takes those from some value on to 0x80 and none beyond 0xFF: no byte has a say in its neighbour's mark.
#[inline]
fn not_name(word: u64) -> u64 {
    let low = word & each(0x7F);
    let from = |bytes: u64, first: u8| bytes + each(0x80 - first);
    let lower = low | each(0x20);
    let letter = from(lower, b'a') & !from(lower, b'z' + 1);
    let digit = from(low, b'0') & !from(low, b'9' + 1);
    let dash = !from(low ^ each(b'-'), 1);
    (!(letter | digit | dash) | word) & each(0x80)
}

/// Marks what is neither printable ASCII nor a space.
#[inline]
fn not_text(word: u64) -> u64 {
    let low = word & each(0x7F);
    (!(low + each(0x80 - b' ')) | (low + each(1)) | word) & each(0x80)
}

/// Marks what is not printable ASCII.
#[inline]
fn not_target(word: u64) -> u64 {
    let low = word & each(0x7F);
    (!(low + each(0x80 - b'!')) | (low + each(1)) | word) & each(0x80)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_byte_is_marked_whatever_stands_beside_it() {
        type Kind = (fn(u64) -> u64, fn(u8) -> bool);
        let kinds: [Kind; 3] = [
            (not_name, |byte| byte.is_ascii_alphanumeric() || byte == b'-'),
            (not_text, |byte| byte.is_ascii_graphic() || byte == b' '),
            (not_target, |byte| byte.is_ascii_graphic()),
        ];
        for (not, belongs) in kinds {
            for byte in 0..=u8::MAX {
                for beside in 0..=u8::MAX {
                    for place in 0..8 {
                        let mut bytes = [beside; 8];
                        bytes[place] = byte;
                        let expected = bytes.map(|byte| if belongs(byte) { 0 } else { 0x80 });
                        assert_eq!(not(u64::from_le_bytes(bytes)).to_le_bytes(), expected, "{bytes:?}");
                    }
                }
            }
            assert_ne!(not(0), 0, "the end is an end");
        }
    }

    /// A request head as a client or an attacker writes it.
    pub(super) fn heads(starts: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
        let line = prop_oneof![
            4 => "[A-Za-z0-9-]{1,26}: [!-~]([ -~]{0,40}[!-~])?\r\n",
            1 => "[A-Za-z0-9_.!-]{0,3}[ \t]?:[ \t]{0,2}[ -~\t\u{e9}]{0,12}\r?\n",
            1 => "[ \t][ -~]{0,9}\r\n",
        ];
        let parts = (0..starts.len(), proptest::collection::vec(line, 0..5), "(\r\n|\n|)", "[ -~\r\n]{0,20}");
        // Bytes of all kinds take the place of others.
        let bytes = proptest::collection::vec(
            (any::<prop::sample::Index>(), prop_oneof![any::<u8>(), "[\r\n\t :]".prop_map(|text| text.as_bytes()[0])]),
            0..3,
        );
        (parts, bytes).prop_map(move |((start, lines, end, rest), bytes)| {
            let mut head = [starts[start].as_bytes(), lines.concat().as_bytes(), end.as_bytes(), rest.as_bytes()].concat();
            for (at, byte) in bytes {
                if !head.is_empty() {
                    let at = at.index(head.len());
                    head[at] = byte;
                }
            }
            head
        })
    }

    type Field = (Vec<u8>, Vec<u8>);

    /// The plain lines from `at` on, and the length of the head.
    fn fields(head: &[u8], at: usize) -> Option<(Vec<Field>, usize)> {
        let (mut fields, mut rest) = (Vec::new(), &head[at..]);
        loop {
            match line(rest) {
                Next::Line { name, value, behind } => {
                    fields.push((name.to_vec(), value.to_vec()));
                    rest = behind;
                }
                Next::End => return Some((fields, head.len() - rest.len() + 2)),
                Next::Other => return None,
            }
        }
    }

    fn of(headers: &[httparse::Header<'_>]) -> Vec<Field> {
        headers.iter().map(|header| (header.name.as_bytes().to_vec(), header.value.to_vec())).collect()
    }

    const REQUESTS: [&str; 8] = [
        "GET / HTTP/1.1\r\n",
        "POST /a/b?c=d HTTP/1.1\r\n",
        "DELETE /%20<>\"{}| HTTP/1.1\r\n",
        "OPTIONS * HTTP/1.1\r\n",
        "PATCH http://h/ HTTP/1.1\r\n",
        "GET / HTTP/1.0\r\n",
        "GET  / HTTP/1.1\r\n",
        "\r\nHEAD /\u{e9} HTTP/1.1\n",
    ];
    const RESPONSES: [&str; 8] = [
        "HTTP/1.1 200 OK\r\n",
        "HTTP/1.1 404 Not Found\r\n",
        "HTTP/1.1 503 Service Unavailable\r\n",
        "HTTP/1.1 204 \r\n",
        "HTTP/1.1 404 Gone\r\n",
        "HTTP/1.0 200 OK\r\n",
        "HTTP/1.1  200 OK\r\n",
        "HTTP/1.1 600 OK\n",
    ];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn a_request_that_is_plain_is_what_httparse_reads(head in heads(&REQUESTS)) {
            let read = request_line(&head).and_then(|(method, target, at)| Some((method, target, fields(&head, at)?)));
            let Some((method, target, (fields, len))) = read else { return Ok(()) };
            let mut room = [httparse::EMPTY_HEADER; 64];
            let mut request = httparse::Request::new(&mut room);
            prop_assert_eq!(request.parse(&head), Ok(httparse::Status::Complete(len)));
            prop_assert_eq!((request.method, request.version), (Some(method.as_str()), Some(1)));
            prop_assert_eq!(request.path.map(str::as_bytes), Some(target.bytes(&head)));
            prop_assert_eq!(of(request.headers), fields);
        }

        #[test]
        fn a_response_that_is_plain_is_what_httparse_reads(head in heads(&RESPONSES)) {
            let read = status_line(&head).and_then(|(status, at)| Some((status, fields(&head, at)?)));
            let Some((status, (fields, len))) = read else { return Ok(()) };
            let mut room = [httparse::EMPTY_HEADER; 64];
            let mut response = httparse::Response::new(&mut room);
            prop_assert_eq!(response.parse(&head), Ok(httparse::Status::Complete(len)));
            prop_assert_eq!((response.code, response.version), (Some(status.as_u16()), Some(1)));
            prop_assert_eq!(response.reason, status.canonical_reason());
            prop_assert_eq!(of(response.headers), fields);
        }

        #[test]
        fn keys_tell_names_apart_but_for_their_case(one in "[a-cA-C-]{1,24}", other in "[a-cA-C-]{1,24}", around in "[ -~]{0,9}") {
            let line = format!("{one}{around}");
            prop_assert_eq!(Key::new(other.as_bytes()).is(line.as_bytes(), one.len()), one.eq_ignore_ascii_case(&other));
            prop_assert!(Key::new(one.to_uppercase().as_bytes()).is(line.as_bytes(), one.len()));
        }
    }

    #[test]
    fn no_character_of_a_token_passes_for_another() {
        let token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
        for known in ["te", "host", "date", "upgrade", "keep-alive", "http2-settings", "transfer-encoding", "proxy-authorization"] {
            for (at, byte) in (0..known.len()).flat_map(|at| (0..=u8::MAX).filter(token).map(move |byte| (at, byte))) {
                let mut name = known.as_bytes().to_vec();
                name[at] = byte;
                let is_it = Key::new(known.as_bytes()).is(&name, name.len());
                assert_eq!(is_it, name.eq_ignore_ascii_case(known.as_bytes()), "{}", name.escape_ascii());
            }
        }
    }

    #[test]
    fn usual_names_are_those_of_the_map_in_any_case() {
        for name in [
            "host",
            "accept",
            "cookie",
            "origin",
            "referer",
            "user-agent",
            "connection",
            "content-type",
            "authorization",
            "cache-control",
            "content-length",
            "accept-encoding",
            "accept-language",
        ] {
            for line in [format!("{name}: x"), name.to_ascii_uppercase()] {
                assert_eq!(usual(line.as_bytes(), name.len()), HeaderName::from_bytes(name.as_bytes()).ok());
            }
        }
        for name in ["hosts", "accept-encodinG2", "x-accept", "user_agent", "te"] {
            assert_eq!(usual(name.as_bytes(), name.len()), None, "{name}");
        }
    }

    #[test]
    fn what_most_clients_and_servers_send_is_plain() {
        let request = b"GET /users/1?a=b HTTP/1.1\r\nHost: a.example:8080\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n\r\n";
        let (method, target, at) = request_line(request).unwrap();
        assert_eq!((method, target.bytes(request)), (Method::GET, &b"/users/1?a=b"[..]));
        assert_eq!(fields(request, at).unwrap().0.len(), 3);
        let response = b"HTTP/1.1 404 Not Found\r\nServer: nginx\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n";
        let (status, at) = status_line(response).unwrap();
        assert_eq!((status, fields(response, at).unwrap().1), (StatusCode::NOT_FOUND, response.len()));
    }
}
