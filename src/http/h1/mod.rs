//! HTTP/1.1 messages as bytes: heads, framing, bodies (RFC 9112). No I/O and no clock: whoever owns a connection reads into a
//! buffer, asks what is in it, and writes what was encoded.
//!
//! Why an own codec and not hyper's: a gateway drives a connection from the very request that uses it, one message at a time. hyper
//! wants a task (or a driver polled beside the request), channels between the two and a body that waits in a third, which was more
//! than half of the instructions of a proxied request.

pub mod block;
pub mod decode;
pub mod encode;
pub mod fields;
pub mod framing;
pub mod lines;
pub mod made;
mod plain;
#[cfg(test)]
mod tests;

pub use decode::{Decoded, Decoder};
pub use fields::{Limits, ParseError, RequestHead, ResponseHead, parse_request, parse_response};
pub use framing::BodyLength;
pub use lines::Lines;
pub use made::Made;
