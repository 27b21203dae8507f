//! Whatever parses as a request head has a framing or is refused, and reads back as it is written.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use tollgate::http::h1::{Limits, encode, framing, parse_request};

const LIMITS: Limits = Limits { max_head: 16 << 10, max_fields: 100 };

fuzz_target!(|bytes: &[u8]| {
    let mut buf = BytesMut::from(bytes);
    let Ok(Some(mut head)) = parse_request(&mut buf, &mut 0, LIMITS) else { return };
    assert_eq!(head.head_len + buf.len(), bytes.len());
    let _length = framing::of_request(head.version, &mut head.headers, head.survey);
    assert!(encode::is_target(&head.target));
    let mut wire = BytesMut::new();
    for part in [head.method.as_str().as_bytes(), b" ", &head.target, b" HTTP/1.1\r\n"] {
        wire.extend_from_slice(part);
    }
    for (name, value) in &head.headers {
        encode::field(&mut wire, name.as_str(), value.as_bytes());
    }
    wire.extend_from_slice(b"\r\n");
    let limits = Limits { max_head: usize::MAX, ..LIMITS };
    let again = parse_request(&mut wire, &mut 0, limits).expect("it was written").expect("all of it");
    assert_eq!((&again.method, &again.target, &again.headers), (&head.method, &head.target, &head.headers));
    assert!(wire.is_empty());
});
