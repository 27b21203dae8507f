//! A chunked body is read the same however its bytes are cut; the first byte says how.
#![no_main]

use bytes::BytesMut;
use http::HeaderMap;
use libfuzzer_sys::fuzz_target;
use tollgate::http::h1::decode::DecodeError;
use tollgate::http::h1::{BodyLength, Decoded, Decoder, Limits};

const LIMITS: Limits = Limits { max_head: 1 << 10, max_fields: 16 };

/// Data, trailers, and what is left over.
type Read = Result<(Vec<u8>, Option<HeaderMap>, Vec<u8>), DecodeError>;

fn read(bytes: &[u8], step: usize) -> Read {
    let (mut decoder, mut buf) = (Decoder::new(BodyLength::Chunked, LIMITS), BytesMut::new());
    let (mut data, mut trailers) = (Vec::new(), None);
    for piece in bytes.chunks(step) {
        buf.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut buf)? {
                Decoded::Data(bytes) => data.extend_from_slice(&bytes),
                Decoded::Trailers(fields) => trailers = Some(fields),
                Decoded::End | Decoded::NeedMore => break,
            }
        }
    }
    decoder.eof()?;
    Ok((data, trailers, buf.to_vec()))
}

fuzz_target!(|bytes: &[u8]| {
    let Some((step, bytes)) = bytes.split_first() else { return };
    assert_eq!(read(bytes, usize::MAX), read(bytes, usize::from(*step).max(1)));
});
