//! Whatever parses as a response head has a framing or is refused, and reads back as it is written.
#![no_main]

use bytes::BytesMut;
use http::Method;
use libfuzzer_sys::fuzz_target;
use tollgate::http::h1::{Limits, encode, framing, parse_response};

const LIMITS: Limits = Limits { max_head: 64 << 10, max_fields: 256 };

fuzz_target!(|bytes: &[u8]| {
    let mut buf = BytesMut::from(bytes);
    let Ok(Some(mut head)) = parse_response(&mut buf, &mut 0, LIMITS, false) else { return };
    let _length = framing::of_response(&Method::GET, head.status, head.version, &mut head.headers, head.survey);
    let mut wire = BytesMut::new();
    encode::status_line(&mut wire, head.version, head.status, head.reason.as_deref());
    for (name, value) in &head.headers {
        encode::field(&mut wire, name.as_str(), value.as_bytes());
    }
    wire.extend_from_slice(b"\r\n");
    let limits = Limits { max_head: usize::MAX, ..LIMITS };
    let again = parse_response(&mut wire, &mut 0, limits, false).expect("it was written").expect("all of it");
    assert_eq!((again.status, again.version, &again.headers), (head.status, head.version, &head.headers));
    assert!(wire.is_empty());
});
