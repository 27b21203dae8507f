use bytes::{Bytes, BytesMut};
use http::header::{CONNECTION, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};
use proptest::prelude::*;

use super::decode::{DecodeError, Decoded, Decoder};
use super::fields::{Limits, ParseError, RequestHead, ResponseHead, parse_request, parse_response};
use super::framing::BodyLength;
use super::{encode, framing};
use crate::http::headers::Fields;

const LIMITS: Limits = Limits { max_head: 64 << 10, max_fields: 256 };

/// Lines that a gateway minds, and some that only look like them.
const SPECIAL: [&str; 16] = [
    "Content-Length: 7",
    "content-length: 8",
    "Transfer-Encoding: chunked",
    "Connection: close",
    "Connection: keep-alive",
    "connection: Close",
    "connection: x-b",
    "Keep-Alive: timeout=5, max=9",
    "Date: today",
    "Trailer: x-t",
    "Upgrade: h2c",
    "Server: some one",
    "Set-Cookie: a=b",
    "X-Length: 1",
    "Proxy-Authenticate: Basic",
    "TE: trailers",
];

fn request(bytes: &[u8]) -> Result<Option<RequestHead>, ParseError> {
    parse_request(&mut BytesMut::from(bytes), &mut 0, LIMITS)
}
fn response(bytes: &[u8]) -> Result<Option<ResponseHead>, ParseError> {
    parse_response(&mut BytesMut::from(bytes), &mut 0, LIMITS, false)
}

/// Data, trailers, and what is left over.
type Read = Result<(Vec<u8>, Option<HeaderMap>, Vec<u8>), DecodeError>;

/// Reads a body that comes in `pieces`.
fn read(mut decoder: Decoder, pieces: &[&[u8]]) -> Read {
    let (mut buf, mut data, mut trailers) = (BytesMut::new(), Vec::new(), None);
    for piece in pieces {
        buf.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut buf)? {
                Decoded::Data(bytes) => {
                    assert!(!bytes.is_empty());
                    data.extend_from_slice(&bytes);
                }
                Decoded::Trailers(fields) => trailers = Some(fields),
                Decoded::End | Decoded::NeedMore => break,
            }
        }
    }
    decoder.eof()?;
    Ok((data, trailers, buf.to_vec()))
}

fn chunked() -> Decoder {
    Decoder::new(BodyLength::Chunked, LIMITS)
}

/// The head of a request as a client would write it; `false` if its target is none.
fn request_head(out: &mut Vec<u8>, method: &Method, target: &[u8], headers: &HeaderMap) -> bool {
    if !encode::is_target(target) {
        return false;
    }
    for part in [method.as_str().as_bytes(), b" ", target, b" HTTP/1.1\r\n"] {
        out.extend_from_slice(part);
    }
    fields(out, headers);
    true
}

fn response_head(out: &mut Vec<u8>, version: Version, status: StatusCode, reason: Option<&[u8]>, headers: &HeaderMap) {
    encode::status_line(out, version, status, reason);
    fields(out, headers);
}

fn fields(out: &mut Vec<u8>, headers: &HeaderMap) {
    for (name, value) in headers {
        encode::field(out, name.as_str(), value.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

#[test]
fn a_request_head_is_taken_off_the_buffer_and_the_rest_stays() {
    let mut buf = BytesMut::from("\r\nPOST /a?b HTTP/1.1\r\nHost: a\r\nX-Y:\t b c \r\nContent-Length: 2\r\n\r\nhi");
    let head = parse_request(&mut buf, &mut 0, LIMITS).unwrap().unwrap();
    assert_eq!((&head.method, &head.target[..], head.version), (&Method::POST, &b"/a?b"[..], Version::HTTP_11));
    assert_eq!((head.headers["x-y"].as_bytes(), head.headers.len()), (&b"b c"[..], 3));
    assert!(head.survey.content_length() && !head.survey.transfer_encoding());
    assert_eq!((&buf[..], head.head_len), (&b"hi"[..], 64));
}

#[test]
fn what_is_wrong_with_a_request_head_is_told_apart() {
    for (head, error) in [
        ("G(T / HTTP/1.1\r\n\r\n", ParseError::BadMethod),
        ("\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\nGET / HTTP/1.1\r\n\r\n", ParseError::BadMethod),
        ("GET  HTTP/1.1\r\n\r\n", ParseError::BadTarget),
        ("GET /a\u{1}b HTTP/1.1\r\n\r\n", ParseError::BadTarget),
        ("GET /a\tb HTTP/1.1\r\n\r\n", ParseError::BadTarget),
        ("GET / HTTP/2.0\r\n\r\n", ParseError::BadVersion),
        ("GET / HTTP/1.2\r\n\r\n", ParseError::BadVersion),
        ("GET / b HTTP/1.1\r\n\r\n", ParseError::BadVersion),
        ("GET / HTTP/1.1\rHost: a\r\n\r\n", ParseError::BadLine),
        ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", ParseError::BadField),
        ("GET / HTTP/1.1\r\n Host: a\r\n\r\n", ParseError::BadField),
        ("GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n", ParseError::BadField),
        ("GET / HTTP/1.1\r\nHost\r\n\r\n", ParseError::BadField),
        ("GET / HTTP/1.1\r\n: a\r\n\r\n", ParseError::BadField),
        ("GET / HTTP/1.1\r\nHost: a\rb\r\n\r\n", ParseError::BadField),
        ("GET / HTTP/1.1\r\nHost: a\0b\r\n\r\n", ParseError::BadField),
        ("GET / HTTP/1.1\r\nHost: a\u{7f}\r\n\r\n", ParseError::BadField),
        ("GET / HTTP/1.1\r\nH\u{e9}: a\r\n\r\n", ParseError::BadField),
    ] {
        assert_eq!(request(head.as_bytes()).map(|_| ()), Err(error), "{head:?}");
    }
}

#[test]
fn bare_line_feeds_end_lines_and_bytes_above_ascii_pass() {
    let head = request(b"GET /\xC3\xA9 HTTP/1.0\nHost: \xFF\n\n").unwrap().unwrap();
    assert_eq!((&head.target[..], head.headers["host"].as_bytes(), head.version), (&b"/\xC3\xA9"[..], &b"\xFF"[..], Version::HTTP_10));
}

#[test]
fn heads_are_limited_in_fields_and_bytes_also_while_incomplete() {
    let with = |fields: usize| format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(fields));
    for fields in [0, 1, 63, 64, 65, 256] {
        assert_eq!(request(with(fields).as_bytes()).unwrap().unwrap().headers.len(), fields);
    }
    assert_eq!(request(with(257).as_bytes()).map(|_| ()), Err(ParseError::TooManyFields));
    let few = Limits { max_head: 64, max_fields: 2 };
    let parse = |text: &str| parse_request(&mut BytesMut::from(text), &mut 0, few).map(|head| head.is_some());
    assert_eq!(parse(&with(3)), Err(ParseError::TooManyFields));
    assert_eq!(parse(&with(2)), Ok(true));
    assert_eq!(parse(&format!("GET / HTTP/1.1\r\na: {}\r\n\r\n", "b".repeat(40))), Ok(true));
    assert_eq!(parse(&format!("GET / HTTP/1.1\r\na: {}\r\n\r\n", "b".repeat(64))), Err(ParseError::HeadTooLarge));
    assert_eq!(parse(&format!("GET / HTTP/1.1\r\na: {}", "b".repeat(64))), Err(ParseError::HeadTooLarge));
    assert_eq!(parse(&format!("GET /{}", "b".repeat(64))), Err(ParseError::TargetTooLong));
    assert_eq!(parse(&format!("GET /{}", "b".repeat(40))), Ok(false));
}

#[test]
fn responses_keep_an_unusual_reason_and_may_lack_one() {
    let reason = |bytes: &[u8]| response(bytes).unwrap().unwrap().reason;
    assert_eq!(reason(b"HTTP/1.1 200 OK\r\n\r\n"), None);
    assert_eq!(reason(b"HTTP/1.1 200 Fine by me\r\n\r\n").unwrap(), "Fine by me");
    for none in [&b"HTTP/1.1 200\r\n\r\n"[..], b"HTTP/1.1 200 \r\n\r\n", b"HTTP/1.1 200 \xFF\r\n\r\n"] {
        assert_eq!(reason(none), None);
    }
    assert_eq!(response(b"HTTP/1.0 599 \r\na: b\r\n\r\n").unwrap().unwrap().status.as_u16(), 599);
}

#[test]
fn what_is_no_response_is_refused() {
    for (head, error) in [
        (&b"HTTP/1.1 99 x\r\n\r\n"[..], ParseError::BadStatus),
        (b"HTTP/1.1 099 x\r\n\r\n", ParseError::BadStatus),
        (b"HTTP/1.1 600 x\r\n\r\n", ParseError::BadStatus),
        (b"HTTP/1.1 1000 x\r\n\r\n", ParseError::BadStatus),
        (b"HTTP/0.9 200 OK\r\n\r\n", ParseError::BadVersion),
        (b"nonsense\r\n\r\n", ParseError::BadVersion),
        (b"HTTP/1.1 200 OK\r\na: b\r\n c\r\n\r\n", ParseError::BadField),
        (b"HTTP/1.1 200 OK\r\na : b\r\n\r\n", ParseError::BadField),
        (b"HTTP/1.1 200 OK\r\na: b\0\r\n\r\n", ParseError::BadField),
    ] {
        assert_eq!(response(head).map(|_| ()), Err(error), "{}", head.escape_ascii());
    }
}

#[test]
fn chunks_are_read_strictly() {
    let whole = |text: &str| read(chunked(), &[text.as_bytes()]);
    let (data, trailers, rest) = whole("5 ;a=b\r\nhello\r\nA\r\n0123456789\r\n00\r\nx-a: 1\r\nx-b:2\r\n\r\nGET").unwrap();
    assert_eq!((&data[..], &rest[..]), (&b"hello0123456789"[..], &b"GET"[..]));
    let trailers = trailers.unwrap();
    assert_eq!((trailers.len(), &trailers["x-b"]), (2, &HeaderValue::from_static("2")));
    for (text, error) in [
        ("5;a=\nhello\r\n0\r\n\r\n", DecodeError::ChunkSize),
        ("0x5\r\nhello\r\n0\r\n\r\n", DecodeError::ChunkSize),
        ("5_0\r\n", DecodeError::ChunkSize),
        ("\r\n5\r\n", DecodeError::ChunkSize),
        (" 5\r\n", DecodeError::ChunkSize),
        ("+5\r\n", DecodeError::ChunkSize),
        ("5 5\r\n", DecodeError::ChunkSize),
        ("5\nhello", DecodeError::ChunkSize),
        ("5\rhello", DecodeError::ChunkSize),
        ("10000000000000000\r\n", DecodeError::ChunkSize),
        ("5\r\nhello\n0\r\n\r\n", DecodeError::ChunkEnd),
        ("5\r\nhello0\r\n\r\n", DecodeError::ChunkEnd),
        ("5\r\nhello\r\r", DecodeError::ChunkEnd),
        ("5\r\nhello\r\n", DecodeError::Cut),
        ("5\r\nhello\r\n0\r\n", DecodeError::Cut),
        ("0\r\nx-a: 1\r\n", DecodeError::Cut),
        ("0\r\nx-a: 1\n\r\n\r\n", DecodeError::Trailers(ParseError::BadLine)),
        ("0\r\n\nx-a: 1\r\n\r\n", DecodeError::Trailers(ParseError::BadLine)),
        ("0\r\nx-a : 1\r\n\r\n", DecodeError::Trailers(ParseError::BadField)),
    ] {
        assert_eq!(whole(text), Err(error), "{text:?}");
    }
    assert!(matches!(chunked().decode(&mut BytesMut::from("FFFFFFFFFFFFFFFF\r\nx")), Ok(Decoded::Data(_))));
}

#[test]
fn extensions_and_trailers_are_bounded() {
    let extended = format!("1;{}\r\nx\r\n0\r\n\r\n", "a".repeat(16 << 10));
    assert_eq!(read(chunked(), &[extended.as_bytes()]), Err(DecodeError::Extensions));
    let many = format!("{}0\r\n\r\n", format!("1;{}\r\nx\r\n", "a".repeat(1 << 10)).repeat(16));
    assert_eq!(read(chunked(), &[many.as_bytes()]), Err(DecodeError::Extensions));
    assert!(read(chunked(), &[format!("1;{}\r\nx\r\n0\r\n\r\n", "a".repeat(16_000)).as_bytes()]).is_ok());
    let few = || Decoder::new(BodyLength::Chunked, Limits { max_head: 64, max_fields: 2 });
    let trailers = |fields: usize| format!("0\r\n{}\r\n", "a: b\r\n".repeat(fields));
    assert!(read(few(), &[trailers(2).as_bytes()]).is_ok());
    assert_eq!(read(few(), &[trailers(3).as_bytes()]), Err(DecodeError::Trailers(ParseError::TooManyFields)));
    let long = format!("0\r\na: {}", "b".repeat(64));
    assert_eq!(read(few(), &[long.as_bytes()]), Err(DecodeError::Trailers(ParseError::HeadTooLarge)));
}

#[test]
fn only_a_body_that_ends_with_the_connection_may_end_with_it() {
    assert_eq!(read(Decoder::new(BodyLength::Known(3), LIMITS), &[b"ab"]), Err(DecodeError::Cut));
    assert_eq!(read(Decoder::new(BodyLength::Known(3), LIMITS), &[b"ab", b"cd"]).unwrap().2, b"d");
    assert_eq!(read(Decoder::new(BodyLength::UntilClose, LIMITS), &[b"ab", b"cd"]).unwrap().0, b"abcd");
    assert_eq!(read(Decoder::new(BodyLength::Known(0), LIMITS), &[b"ab"]).unwrap().2, b"ab");
}

#[test]
fn a_target_that_would_break_the_request_line_is_not_written() {
    for bad in ["", "/a b", "/a\r\nx: y", "/\u{7f}", "/\t"] {
        let mut out = Vec::new();
        assert!(!request_head(&mut out, &Method::GET, bad.as_bytes(), &HeaderMap::new()) && out.is_empty());
    }
}

#[test]
fn heads_are_written_as_they_stand_on_the_wire() {
    let headers = HeaderMap::from_iter([(http::header::HOST, HeaderValue::from_static("a"))]);
    let mut out = Vec::new();
    assert!(request_head(&mut out, &Method::PUT, b"/x?y", &headers));
    assert_eq!(out, b"PUT /x?y HTTP/1.1\r\nhost: a\r\n\r\n");
    let line = |version, status, reason: Option<&[u8]>| {
        let mut out = Vec::new();
        response_head(&mut out, version, StatusCode::from_u16(status).unwrap(), reason, &HeaderMap::new());
        String::from_utf8(out).unwrap()
    };
    assert_eq!(line(Version::HTTP_2, 200, None), "HTTP/1.1 200 OK\r\n\r\n");
    assert_eq!(line(Version::HTTP_10, 200, None), "HTTP/1.0 200 OK\r\n\r\n");
    assert_eq!(line(Version::HTTP_11, 404, None), "HTTP/1.1 404 Not Found\r\n\r\n");
    assert_eq!(line(Version::HTTP_11, 299, None), "HTTP/1.1 299 \r\n\r\n");
    assert_eq!(line(Version::HTTP_11, 200, Some(b"Fine")), "HTTP/1.1 200 Fine\r\n\r\n");
    assert_eq!(line(Version::HTTP_11, 200, Some(b"Fine\r\nx: y")), "HTTP/1.1 200 OK\r\n\r\n");
}

#[test]
fn only_trailers_that_may_be_ones_are_written() {
    let mut trailers = HeaderMap::new();
    for name in ["x-sum", "content-length", "x-other"] {
        trailers.append(name, HeaderValue::from_static("1"));
    }
    let mut out = Vec::new();
    encode::last_chunk(&mut out, &trailers);
    assert_eq!(out, b"0\r\nx-sum: 1\r\nx-other: 1\r\n\r\n");
    out.clear();
    encode::last_chunk(&mut out, &HeaderMap::new());
    assert_eq!(out, encode::LAST_CHUNK);
}

fn headers() -> impl Strategy<Value = HeaderMap> {
    let field = ("[xX][a-zA-Z0-9_-]{0,12}", "[!-~\u{e9}]([ -~\u{e9}\t]{0,20}[!-~])?");
    proptest::collection::vec(field, 0..80).prop_map(|fields| {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        headers
    })
}

/// `bytes` cut at `cuts`.
fn pieces<'b>(bytes: &'b [u8], cuts: &[prop::sample::Index]) -> Vec<&'b [u8]> {
    let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    at.extend([0, bytes.len()]);
    at.sort_unstable();
    at.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect()
}

proptest! {
    #[test]
    fn a_request_head_survives_the_wire_however_it_is_cut(
        headers in headers(), method in "[A-Z]{1,10}", target in "/[!-~]{0,30}", cuts: [prop::sample::Index; 5],
    ) {
        let (method, mut wire) = (Method::from_bytes(method.as_bytes()).unwrap(), Vec::new());
        prop_assert!(request_head(&mut wire, &method, target.as_bytes(), &headers));
        let (mut buf, mut seen, len) = (BytesMut::new(), 0, wire.len());
        wire.extend_from_slice(b"rest");
        let mut head = None;
        for piece in pieces(&wire, &cuts) {
            buf.extend_from_slice(piece);
            if head.is_none() {
                head = parse_request(&mut buf, &mut seen, LIMITS).unwrap();
            }
        }
        let head = head.unwrap();
        prop_assert_eq!((&head.method, &head.target[..], head.head_len), (&method, target.as_bytes(), len));
        prop_assert_eq!(&head.headers, &headers);
        prop_assert_eq!(&buf[..], b"rest");
    }

    #[test]
    fn a_response_head_survives_the_wire_however_it_is_cut(
        headers in headers(), status in 100_u16..600, reason in "[!-~]([ -~]{0,20}[!-~])?", cuts: [prop::sample::Index; 5],
    ) {
        let (status, mut wire) = (StatusCode::from_u16(status).unwrap(), Vec::new());
        response_head(&mut wire, Version::HTTP_11, status, Some(reason.as_bytes()), &headers);
        let (mut buf, mut seen, mut head) = (BytesMut::new(), 0, None);
        for piece in pieces(&wire, &cuts) {
            buf.extend_from_slice(piece);
            if head.is_none() {
                head = parse_response(&mut buf, &mut seen, LIMITS, false).unwrap();
            }
        }
        let head = head.unwrap();
        let phrase = head.reason.as_deref().or(status.canonical_reason().map(str::as_bytes));
        prop_assert_eq!((head.status, phrase), (status, Some(reason.as_bytes())));
        prop_assert_eq!(head.headers, headers);
        prop_assert!(buf.is_empty());
    }

    #[test]
    fn fields_that_stay_lines_say_the_same_as_a_map(
        mut headers in headers(), special in proptest::collection::vec(0_usize..SPECIAL.len(), 0..4), tidy in any::<bool>(),
    ) {
        let mut wire = b"HTTP/1.1 200 OK\r\n".to_vec();
        for (name, value) in &headers {
            encode::field(&mut wire, name.as_str(), value.as_bytes());
        }
        for line in special.iter().map(|at| SPECIAL[*at]) {
            wire.extend_from_slice(line.as_bytes());
            wire.extend_from_slice(b"\r\n");
        }
        wire.extend_from_slice(if tidy { b"\r\n" } else { b"x-a:b\r\n\r\n" });
        let map = parse_response(&mut BytesMut::from(&wire[..]), &mut 0, LIMITS, false).unwrap().unwrap();
        let head = parse_response(&mut BytesMut::from(&wire[..]), &mut 0, LIMITS, true).unwrap().unwrap();
        let Some(lines) = head.lines else {
            prop_assert_eq!(head.headers, map.headers);
            return Ok(());
        };
        prop_assert!(tidy && head.headers.is_empty());
        headers = map.headers;
        let length = framing::of_response(&Method::GET, StatusCode::OK, Version::HTTP_11, &mut headers, map.survey).unwrap();
        prop_assert_eq!(framing::of_declared(&Method::GET, StatusCode::OK, lines.declared()), length);
        prop_assert_eq!(lines.dated(), headers.contains_key("date"));
        prop_assert_eq!(lines.close(), headers.get("connection").is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"close")));
        prop_assert_eq!(lines.idle_limit(), headers.get("keep-alive").and_then(|value| super::lines::idle_limit(value.as_bytes())));
        for name in [CONNECTION, HeaderName::from_static("keep-alive"), TRANSFER_ENCODING] {
            headers.remove(&name);
            prop_assert!(!lines.has(&name));
        }
        let mut written = Vec::new();
        lines.write(&mut written);
        for name in headers.keys().filter(|name| *name != "content-length") {
            let longer = HeaderName::from_bytes(format!("{name}-").as_bytes()).unwrap();
            prop_assert!(lines.has(name) && (headers.contains_key(&longer) || !lines.has(&longer)));
        }
        prop_assert_eq!(&lines.into_map(), &headers);
        headers.remove("content-length");
        let again = response(&[b"HTTP/1.1 200 OK\r\n", &written[..], b"\r\n"].concat()).unwrap().unwrap();
        prop_assert_eq!(again.headers, headers);
    }

    #[test]
    fn a_chunked_body_survives_the_wire_however_it_is_cut(
        chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..6),
        trailers in headers(), cuts: [prop::sample::Index; 6],
    ) {
        let mut wire = Vec::new();
        for chunk in chunks.iter().filter(|chunk| !chunk.is_empty()) {
            encode::chunk_size(&mut wire, chunk.len());
            wire.extend_from_slice(chunk);
            wire.extend_from_slice(b"\r\n");
        }
        encode::last_chunk(&mut wire, &trailers);
        wire.extend_from_slice(b"rest");
        let (data, read_trailers, rest) = read(chunked(), &pieces(&wire, &cuts)).unwrap();
        prop_assert_eq!(data, chunks.concat());
        prop_assert_eq!(read_trailers.unwrap_or_default(), trailers);
        prop_assert_eq!(rest, b"rest");
    }

    #[test]
    fn where_a_body_is_cut_never_changes_what_is_read(
        bytes in "([0-9a-f]{0,3}(;a|\r)?\r?\n?[a-z]{0,12}(\r\n)?){0,6}(0\r\n(a:b\r\n)?\r\n)?x?", cuts: [prop::sample::Index; 6],
    ) {
        let whole = read(chunked(), &[bytes.as_bytes()]);
        let in_pieces = read(chunked(), &pieces(bytes.as_bytes(), &cuts));
        prop_assert_eq!(whole, in_pieces);
    }

    #[test]
    fn no_bytes_make_the_parsers_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), start in 0_usize..5) {
        let starts = ["", "GET / HTTP/1.1\r\n", "HTTP/1.1 200 OK\r\na: ", "5\r\nhello\r\n0\r\n", "\r\n"];
        let bytes = [starts[start].as_bytes(), &bytes].concat();
        if let Ok(Some(mut head)) = request(&bytes) {
            prop_assert!(encode::is_target(&head.target));
            let _length = framing::of_request(head.version, &mut head.headers, head.survey);
        }
        if let Ok(Some(mut head)) = response(&bytes) {
            let _length = framing::of_response(&Method::GET, head.status, head.version, &mut head.headers, head.survey);
        }
        for length in [BodyLength::Chunked, BodyLength::Known(7), BodyLength::UntilClose] {
            let _read = read(Decoder::new(length, LIMITS), &[&bytes]);
        }
    }

    #[test]
    fn every_chunk_size_reads_back(len in 1_usize..) {
        let mut line = Vec::new();
        encode::chunk_size(&mut line, len);
        prop_assert_eq!(line, format!("{len:X}\r\n").into_bytes());
    }
}

#[test]
fn a_head_shares_the_buffer_it_came_in() {
    let mut buf = BytesMut::from("HTTP/1.1 200 OK\r\nx-a: 12345\r\ncontent-length: 4\r\n\r\nbody");
    let place = buf.as_ptr() as usize;
    let head = parse_response(&mut buf, &mut 0, LIMITS, false).unwrap().unwrap();
    assert_eq!(head.headers["x-a"].as_bytes().as_ptr() as usize - place, 22);
    let Ok(Decoded::Data(data)) = Decoder::new(BodyLength::Known(4), LIMITS).decode(&mut buf) else { panic!("no data") };
    assert_eq!((data.as_ptr() as usize - place, data), (50, Bytes::from_static(b"body")));
}
