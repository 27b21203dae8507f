//! An answer on its way from the target to the client: its head, which every step on the way back may look at and change.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, response};

use crate::gateway::answer::{ResponseBody, Source};
use crate::http::h1::Lines;
use crate::http::headers::Fields;

/// An answer before the fields that every response gets.
pub struct Answer {
    /// Its head.
    pub parts: response::Parts,
    /// Fields that are not in the head's map, which has none of their names: they go out as they came.
    pub lines: Option<Box<Lines>>,
    /// The request id, where it is in neither.
    pub id: Option<HeaderValue>,
    /// Its body.
    pub source: Source,
}

impl Answer {
    /// One that nobody has made yet.
    pub(super) fn none() -> Self {
        Self::new(Response::new(()).into_parts().0, Source::Empty)
    }

    /// An answer.
    pub fn new(parts: response::Parts, source: Source) -> Self {
        Self { parts, lines: None, id: None, source }
    }

    /// An answer from memory.
    pub fn full((parts, bytes): (response::Parts, Bytes)) -> Self {
        Self::new(parts, if bytes.is_empty() { Source::Empty } else { Source::Full(bytes) })
    }

    /// All fields, in the map.
    pub fn headers(&mut self) -> &mut HeaderMap {
        fold(&mut self.parts.headers, self.lines.take());
        &mut self.parts.headers
    }

    /// The lines, if all fields are there.
    pub(super) fn all_lines(&mut self) -> Option<&mut Lines> {
        self.lines.as_deref_mut().filter(|_| self.parts.headers.is_empty())
    }

    /// Sets the request id, which is in the field `name`.
    pub(super) fn set_id(&mut self, name: &HeaderName, id: HeaderValue) {
        if self.lines.is_some() && !self.has_line(name) {
            self.id = Some(id);
        } else {
            self.headers().insert(name.clone(), id);
        }
    }

    fn has_line(&self, name: &HeaderName) -> bool {
        self.lines.as_ref().is_some_and(|lines| lines.has(name))
    }

    /// A 204.
    pub fn no_content() -> Self {
        let (mut parts, ()) = Response::new(()).into_parts();
        parts.status = StatusCode::NO_CONTENT;
        Self::new(parts, Source::Empty)
    }
}

/// What the client gets.
pub struct Answered<'a> {
    /// The head.
    pub parts: response::Parts,
    /// Fields that are not in the head's map, for HTTP/1 clients.
    pub lines: Option<Box<Lines>>,
    /// The request id, where it is in neither; the body knows the name of its field.
    pub id: Option<HeaderValue>,
    /// The body.
    pub body: ResponseBody<'a>,
}

impl<'a> Answered<'a> {
    /// An answer that nobody accounts for.
    pub(super) fn unaccounted(parts: response::Parts, bytes: Bytes) -> Self {
        Self { parts, lines: None, id: None, body: ResponseBody::unaccounted(bytes) }
    }

    /// The same with all fields in the map.
    pub fn into_response(mut self) -> Response<ResponseBody<'a>> {
        fold(&mut self.parts.headers, self.lines);
        if let (Some(id), Some(name)) = (self.id, self.body.id_name()) {
            self.parts.headers.insert(name.clone(), id);
        }
        Response::from_parts(self.parts, self.body)
    }
}

/// Puts `lines` into `headers`, which has none of their names.
fn fold(headers: &mut HeaderMap, lines: Option<Box<Lines>>) {
    if let Some(lines) = lines {
        let made = std::mem::replace(headers, lines.into_map());
        headers.extend(made);
    }
}
