//! HTTP/1 as bytes: just enough of a parser to see exactly what went over a connection.

use std::io::{self, Read, Write};
use std::net::TcpStream;

/// A blocking stream in both directions.
pub trait Io: Read + Write + Send {}
impl<T: Read + Write + Send> Io for T {}

/// How a message's body ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// As its framing says.
    Framed,
    /// By a clean end of the connection, with no framing given.
    Eof,
    /// By an end of the connection where more was promised.
    Cut,
    /// By a reset.
    Reset,
}

pub type Fields = Vec<(String, String)>;

/// A connection with what was read ahead.
pub struct Wire {
    pub stream: Box<dyn Io>,
    pub buffer: Vec<u8>,
}

/// A request as an upstream got it.
#[derive(Clone, Debug, Default)]
pub struct Request {
    pub method: String,
    pub target: String,
    pub version: String,
    pub headers: Fields,
    pub body: Vec<u8>,
    pub trailers: Fields,
    /// Which connection it came on, from 0.
    pub connection: usize,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        field(&self.headers, name)
    }
    pub fn has(&self, name: &str) -> bool {
        self.header(name).is_some()
    }
    pub fn all(&self, name: &str) -> Vec<&str> {
        all(&self.headers, name)
    }
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A response as a client got it.
#[derive(Clone, Debug)]
pub struct Answer {
    pub version: String,
    pub status: u16,
    pub phrase: String,
    pub headers: Fields,
    pub body: Vec<u8>,
    pub trailers: Fields,
    pub end: End,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        field(&self.headers, name)
    }
    pub fn has(&self, name: &str) -> bool {
        self.header(name).is_some()
    }
    pub fn all(&self, name: &str) -> Vec<&str> {
        all(&self.headers, name)
    }
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
    /// The `reason` of a problem body.
    #[track_caller]
    pub fn reason(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let body = self.json();
        assert_eq!(body["status"], self.status, "{body}");
        body["reason"].as_str().unwrap_or_else(|| panic!("no reason: {body}")).to_owned()
    }
    /// Asserts a gateway-made error.
    #[track_caller]
    pub fn refused(&self, status: u16, reason: &str) {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.reason(), reason);
    }
    /// Whether the connection ends after it.
    pub fn closes(&self) -> bool {
        self.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }
}

fn field<'a>(fields: &'a Fields, name: &str) -> Option<&'a str> {
    fields.iter().find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

fn all<'a>(fields: &'a Fields, name: &str) -> Vec<&'a str> {
    fields.iter().filter(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str()).collect()
}

fn parse_fields(lines: &str) -> Fields {
    lines
        .split("\r\n")
        .filter(|line| !line.is_empty())
        .map(|line| {
            let (name, value) = line.split_once(':').unwrap_or((line, ""));
            (name.to_owned(), value.trim().to_owned())
        })
        .collect()
}

impl Wire {
    pub fn new(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(super::PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self::over(Box::new(stream))
    }
    pub fn over(stream: Box<dyn Io>) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    /// Reads more; 0 is the end. A timeout is the test's failure.
    pub fn fill(&mut self) -> io::Result<usize> {
        let mut chunk = [0_u8; 16 * 1024];
        match self.stream.read(&mut chunk) {
            Ok(count) => {
                self.buffer.extend_from_slice(&chunk[..count]);
                Ok(count)
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                panic!("nothing came; so far: {:?}", String::from_utf8_lossy(&self.buffer))
            }
            // A signal to the tests' process; nothing was read.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => self.fill(),
            Err(error) => Err(error),
        }
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        let rest = self.buffer.split_off(count);
        std::mem::replace(&mut self.buffer, rest)
    }

    /// Everything up to and with `end`; `None` when the connection ends before it.
    fn until(&mut self, end: &[u8]) -> io::Result<Option<String>> {
        loop {
            if let Some(at) = self.buffer.windows(end.len()).position(|window| window == end) {
                let bytes = self.take(at + end.len());
                return Ok(Some(String::from_utf8_lossy(&bytes).into_owned()));
            }
            if self.fill()? == 0 {
                return Ok(None);
            }
        }
    }

    /// A head: its first line and its fields.
    pub fn head(&mut self) -> io::Result<Option<(String, Fields)>> {
        let Some(head) = self.until(b"\r\n\r\n")? else { return Ok(None) };
        let (line, fields) = head.split_once("\r\n").unwrap();
        Ok(Some((line.to_owned(), parse_fields(fields))))
    }

    fn exactly(&mut self, count: usize) -> Result<Vec<u8>, (Vec<u8>, End)> {
        while self.buffer.len() < count {
            match self.fill() {
                Ok(0) => return Err((std::mem::take(&mut self.buffer), End::Cut)),
                Ok(_) => {}
                Err(_) => return Err((std::mem::take(&mut self.buffer), End::Reset)),
            }
        }
        Ok(self.take(count))
    }

    /// One chunk; empty is the last one.
    pub fn chunk(&mut self) -> Result<Vec<u8>, End> {
        let line = match self.until(b"\r\n") {
            Ok(Some(line)) => line,
            Ok(None) => return Err(End::Cut),
            Err(_) => return Err(End::Reset),
        };
        let size = usize::from_str_radix(line.trim_end().split(';').next().unwrap(), 16).unwrap_or_else(|_| panic!("chunk size {line:?}"));
        if size == 0 {
            return Ok(Vec::new());
        }
        let data = self.exactly(size + 2).map_err(|(_, end)| end)?;
        assert!(data.ends_with(b"\r\n"), "the chunk does not end");
        Ok(data[..size].to_vec())
    }

    fn chunked(&mut self) -> (Vec<u8>, Fields, End) {
        let mut body = Vec::new();
        loop {
            match self.chunk() {
                Err(end) => return (body, Vec::new(), end),
                Ok(chunk) if chunk.is_empty() => break,
                Ok(chunk) => body.extend(chunk),
            }
        }
        let mut trailers = String::new();
        loop {
            match self.until(b"\r\n") {
                Ok(Some(line)) if line == "\r\n" => return (body, parse_fields(&trailers), End::Framed),
                Ok(Some(line)) => trailers.push_str(&line),
                Ok(None) => return (body, parse_fields(&trailers), End::Cut),
                Err(_) => return (body, parse_fields(&trailers), End::Reset),
            }
        }
    }

    /// What is left until the connection ends.
    pub fn rest(&mut self) -> (Vec<u8>, End) {
        loop {
            match self.fill() {
                Ok(0) => return (std::mem::take(&mut self.buffer), End::Eof),
                Ok(_) => {}
                Err(_) => return (std::mem::take(&mut self.buffer), End::Reset),
            }
        }
    }

    /// The body of a message with these fields; `close` says whether it may be delimited by the end of the connection.
    fn body(&mut self, fields: &Fields, close: bool) -> (Vec<u8>, Fields, End) {
        if field(fields, "transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
            return self.chunked();
        }
        if let Some(length) = field(fields, "content-length") {
            return match self.exactly(length.parse().unwrap()) {
                Ok(body) => (body, Vec::new(), End::Framed),
                Err((body, end)) => (body, Vec::new(), end),
            };
        }
        if close {
            let (body, end) = self.rest();
            return (body, Vec::new(), end);
        }
        (Vec::new(), Vec::new(), End::Framed)
    }

    /// The next request; `None` at the end of the connection.
    pub fn request(&mut self) -> io::Result<Option<Request>> {
        let Some(mut request) = self.request_head()? else { return Ok(None) };
        let (body, trailers, end) = self.body(&request.headers, false);
        if end != End::Framed {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        (request.body, request.trailers) = (body, trailers);
        Ok(Some(request))
    }

    /// The head of the next request.
    pub fn request_head(&mut self) -> io::Result<Option<Request>> {
        let Some((line, headers)) = self.head()? else { return Ok(None) };
        let mut words = line.split(' ').map(str::to_owned);
        let (method, target, version) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
        Ok(Some(Request { method, target, version, headers, ..Request::default() }))
    }

    /// The head of the next response.
    #[track_caller]
    pub fn answer_head(&mut self) -> Answer {
        let head = self.head().unwrap_or_else(|error| panic!("no head: {error}"));
        let (line, headers) = head.unwrap_or_else(|| panic!("closed without a head; read {:?}", String::from_utf8_lossy(&self.buffer)));
        let (version, rest) = line.split_once(' ').unwrap();
        let (status, phrase) = rest.split_once(' ').unwrap_or((rest, ""));
        Answer {
            version: version.to_owned(),
            status: status.parse().unwrap(),
            phrase: phrase.to_owned(),
            headers,
            body: Vec::new(),
            trailers: Vec::new(),
            end: End::Framed,
        }
    }

    /// The next response, interim ones included; `head`: it answers a HEAD.
    #[track_caller]
    pub fn answer(&mut self, head: bool) -> Answer {
        let mut answer = self.answer_head();
        if !head && answer.status >= 200 && answer.status != 204 && answer.status != 304 {
            let headers = answer.headers.clone();
            (answer.body, answer.trailers, answer.end) = self.body(&headers, true);
        }
        answer
    }

    pub fn write(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())?;
        self.stream.flush()
    }
}
