//! Message bodies: from the bytes behind a head to the bytes of the body.

use std::fmt;

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;

use super::fields::{Limits, ParseError, front, parse_trailers};
use super::framing::BodyLength;

/// Bytes of chunk extensions in one body: nobody uses them, and each costs its receiver more than its sender.
const MAX_EXTENSIONS: usize = 16 << 10;
/// Hexadecimal digits of a chunk size, leading zeros included: as many as 2^64 − 1 has.
const MAX_DIGITS: u8 = 16;

/// Reads one body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoder {
    /// This many bytes are to come.
    Length(u64),
    /// Chunks.
    Chunked(Chunks),
    /// Everything until the connection ends.
    UntilClose,
    /// The body has ended.
    Done,
}

/// Where a chunked body is being read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunks {
    step: Step,
    /// Size of the chunk while its line is read, then what is left of it.
    size: u64,
    extensions: usize,
    limits: Limits,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The size line; so many digits were read.
    Size(u8),
    /// Blanks behind the size.
    Blank,
    /// An extension.
    Extension,
    /// The LF of the size line.
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// Trailers; so many bytes of them were looked at.
    Trailers(usize),
}

/// What was read.
#[derive(Debug)]
pub enum Decoded {
    /// Bytes of the body; never none.
    Data(Bytes),
    /// Trailers; the body has ended.
    Trailers(HeaderMap),
    /// The body has ended.
    End,
    /// Nothing before more bytes have come.
    NeedMore,
}

/// Why the rest of a body cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// A chunk's size is no number, too large, or its line does not end in CRLF.
    ChunkSize,
    /// More than 16 KiB of chunk extensions.
    Extensions,
    /// No CRLF behind a chunk.
    ChunkEnd,
    /// Bad or too many trailers.
    Trailers(ParseError),
    /// The connection ended before the body.
    Cut,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ChunkSize => f.write_str("bad chunk size"),
            Self::Extensions => f.write_str("chunk extensions too large"),
            Self::ChunkEnd => f.write_str("no line end behind a chunk"),
            Self::Trailers(error) => write!(f, "trailers: {error}"),
            Self::Cut => f.write_str("the connection ended before the body"),
        }
    }
}

impl std::error::Error for DecodeError {}

impl Decoder {
    /// A decoder for a body of this length; `limits` hold for trailers.
    pub fn new(length: BodyLength, limits: Limits) -> Self {
        match length {
            BodyLength::Known(0) => Self::Done,
            BodyLength::Known(length) => Self::Length(length),
            BodyLength::Chunked => Self::Chunked(Chunks { step: Step::Size(0), size: 0, extensions: 0, limits }),
            BodyLength::UntilClose => Self::UntilClose,
        }
    }

    /// Whether the body has ended.
    pub fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }

    /// How many bytes of the body are to come, if that is known.
    pub fn remaining(&self) -> Option<u64> {
        match self {
            Self::Length(left) => Some(*left),
            Self::Done => Some(0),
            Self::Chunked(_) | Self::UntilClose => None,
        }
    }

    /// Takes what can be taken off the front of `buf`. Bytes behind the end of the body stay.
    ///
    /// # Errors
    /// [`DecodeError`]; the connection cannot be read any further then.
    #[inline]
    pub fn decode(&mut self, buf: &mut BytesMut) -> Result<Decoded, DecodeError> {
        match self {
            Self::Done => Ok(Decoded::End),
            _ if buf.is_empty() => Ok(Decoded::NeedMore),
            Self::UntilClose => Ok(Decoded::Data(buf.split().freeze())),
            Self::Length(left) => {
                let data = take(buf, left);
                if *left == 0 {
                    *self = Self::Done;
                }
                Ok(Decoded::Data(data))
            }
            Self::Chunked(chunks) => {
                let decoded = chunks.decode(buf)?;
                match &decoded {
                    Decoded::Trailers(_) | Decoded::End => *self = Self::Done,
                    Decoded::Data(_) | Decoded::NeedMore => {}
                }
                Ok(decoded)
            }
        }
    }

    /// Takes the usual end of a chunked body if all of it is next in `buf`, so that the end is known with the last data.
    pub fn end_if_here(&mut self, buf: &mut BytesMut) {
        const END: &[u8] = b"\r\n0\r\n\r\n";
        if matches!(self, Self::Chunked(Chunks { step: Step::DataCr, .. })) && buf.starts_with(END) {
            buf.advance(END.len());
            *self = Self::Done;
        }
    }

    /// The connection ended here.
    ///
    /// # Errors
    /// [`DecodeError::Cut`] unless that is the end of the body.
    pub fn eof(&mut self) -> Result<(), DecodeError> {
        match self {
            Self::UntilClose | Self::Done => {
                *self = Self::Done;
                Ok(())
            }
            Self::Length(_) | Self::Chunked(_) => Err(DecodeError::Cut),
        }
    }
}

/// Takes at most `left` bytes.
fn take(buf: &mut BytesMut, left: &mut u64) -> Bytes {
    let len = usize::try_from(*left).map_or(buf.len(), |left| left.min(buf.len()));
    *left -= len as u64;
    front(buf, len)
}

impl Chunks {
    fn decode(&mut self, buf: &mut BytesMut) -> Result<Decoded, DecodeError> {
        loop {
            match self.step {
                Step::Data => {
                    if buf.is_empty() {
                        return Ok(Decoded::NeedMore);
                    }
                    let data = take(buf, &mut self.size);
                    if self.size == 0 {
                        self.step = Step::DataCr;
                    }
                    return Ok(Decoded::Data(data));
                }
                Step::Trailers(seen) => return self.trailers(buf, seen),
                Step::Size(_) | Step::Blank | Step::Extension | Step::SizeLf | Step::DataCr | Step::DataLf => {
                    if !self.line(buf)? {
                        return Ok(Decoded::NeedMore);
                    }
                }
            }
        }
    }

    /// Reads what stands between the data of two chunks; `true` when something else begins, `false` when more bytes are needed.
    fn line(&mut self, buf: &mut BytesMut) -> Result<bool, DecodeError> {
        let mut read = 0;
        for &byte in buf.iter() {
            self.step = self.byte(byte)?;
            read += 1;
            if matches!(self.step, Step::Data | Step::Trailers(_)) {
                break;
            }
        }
        buf.advance(read);
        Ok(matches!(self.step, Step::Data | Step::Trailers(_)))
    }

    fn byte(&mut self, byte: u8) -> Result<Step, DecodeError> {
        Ok(match (self.step, byte) {
            (Step::Size(digits @ 1..), b'\t' | b' ' | b';' | b'\r') => {
                debug_assert!(digits <= MAX_DIGITS);
                self.behind_size(byte)?
            }
            (Step::Size(digits), _) => {
                let digit = char::from(byte).to_digit(16).filter(|_| digits < MAX_DIGITS).ok_or(DecodeError::ChunkSize)?;
                // Sixteen digits always fit.
                self.size = self.size << 4 | u64::from(digit);
                Step::Size(digits + 1)
            }
            (Step::Blank, b'\t' | b' ' | b';' | b'\r') => self.behind_size(byte)?,
            (Step::Blank, _) => return Err(DecodeError::ChunkSize),
            (Step::Extension, b'\r') => Step::SizeLf,
            // A bare LF would be the end of the line for others.
            (Step::Extension, b'\n') => return Err(DecodeError::ChunkSize),
            (Step::Extension, _) => self.extend(Step::Extension)?,
            (Step::SizeLf, b'\n') if self.size == 0 => Step::Trailers(0),
            (Step::SizeLf, b'\n') => Step::Data,
            (Step::SizeLf, _) => return Err(DecodeError::ChunkSize),
            (Step::DataCr, b'\r') => Step::DataLf,
            (Step::DataLf, b'\n') => Step::Size(0),
            (Step::DataCr | Step::DataLf, _) => return Err(DecodeError::ChunkEnd),
            (Step::Data | Step::Trailers(_), _) => self.step,
        })
    }

    fn behind_size(&mut self, byte: u8) -> Result<Step, DecodeError> {
        match byte {
            b'\r' => Ok(Step::SizeLf),
            b';' => self.extend(Step::Extension),
            _ => self.extend(Step::Blank),
        }
    }

    /// Counts a byte that nobody wants.
    fn extend(&mut self, next: Step) -> Result<Step, DecodeError> {
        self.extensions += 1;
        if self.extensions > MAX_EXTENSIONS { Err(DecodeError::Extensions) } else { Ok(next) }
    }

    fn trailers(&mut self, buf: &mut BytesMut, seen: usize) -> Result<Decoded, DecodeError> {
        if buf.starts_with(b"\r\n") {
            buf.advance(2);
            return Ok(Decoded::End);
        }
        let from = seen.saturating_sub(3);
        let news = buf.get(from..).unwrap_or_default();
        let end = news.windows(4).position(|end| end == b"\r\n\r\n").map(|end| from + end + 4);
        let len = end.unwrap_or(buf.len());
        if len > self.limits.max_head {
            return Err(DecodeError::Trailers(ParseError::HeadTooLarge));
        }
        if end.is_none() {
            self.step = Step::Trailers(buf.len());
            return Ok(Decoded::NeedMore);
        }
        let section = buf.split_to(len).freeze();
        // What ends a line here must end it for everybody.
        let bare = section.iter().zip(section.iter().skip(1)).any(|(before, byte)| *byte == b'\n' && *before != b'\r');
        if bare || section.first() == Some(&b'\n') {
            return Err(DecodeError::Trailers(ParseError::BadLine));
        }
        parse_trailers(section, self.limits.max_fields).map(Decoded::Trailers).map_err(DecodeError::Trailers)
    }
}
