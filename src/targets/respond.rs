//! A fixed answer, made once at load.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, response};

use crate::config::{At, Problems, route};
use crate::http::Exchange;
use crate::http::headers::is_reserved;

/// A fixed answer.
#[derive(Clone, Debug)]
pub struct Respond {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Respond {
    /// Compiles what is written at `at` (the route's `respond`).
    pub fn compile(written: &route::Respond, at: &At, problems: &mut Problems) -> Option<Self> {
        let status = status(written, at, problems);
        let mut headers = headers(written, &at.key("headers"), problems)?;
        let status = status?;
        if !bodiless(status) {
            headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static("text/plain; charset=utf-8"));
            headers.insert(CONTENT_LENGTH, HeaderValue::from(written.body.len()));
        }
        Some(Self { status, headers, body: Bytes::from(written.body.clone()) })
    }

    /// The answer; HEAD gets the head of it.
    pub fn respond(&self, exchange: &Exchange) -> (response::Parts, Bytes) {
        let (mut parts, ()) = Response::new(()).into_parts();
        parts.status = self.status;
        parts.headers = self.headers.clone();
        (parts, if exchange.method == Method::HEAD { Bytes::new() } else { self.body.clone() })
    }
}

/// Whether answers with this status have no body and no length.
fn bodiless(status: StatusCode) -> bool {
    status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED
}

fn status(written: &route::Respond, at: &At, problems: &mut Problems) -> Option<StatusCode> {
    let status = StatusCode::from_u16(written.status).ok().filter(|_| (200..=599).contains(&written.status));
    let Some(status) = status else {
        let message = format!("`{}` is not a status to answer with", written.status);
        problems.error(at.key("status"), message).help("write a number from 200 to 599");
        return None;
    };
    if bodiless(status) && !written.body.is_empty() {
        let message = format!("an answer with status {} cannot have a body", written.status);
        problems.error(at.key("body"), message).help("leave `body` out, or write status 200");
        return None;
    }
    Some(status)
}

fn headers(written: &route::Respond, at: &At, problems: &mut Problems) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    let before = problems.list().len();
    for (key, text) in &written.headers {
        let at = at.key(key);
        match (HeaderName::from_bytes(key.as_bytes()), HeaderValue::from_str(text)) {
            (Err(_), _) => {
                problems.error(at.its_key(), format!("`{key}` is not a header name"));
            }
            (Ok(_), Err(_)) => {
                problems.error(at, "a header field cannot hold line breaks or other control characters");
            }
            (Ok(name), Ok(_)) if is_reserved(name.as_str()) => {
                problems.error(at.its_key(), format!("the header `{name}` cannot be set")).help("the gateway makes this field itself");
            }
            (Ok(name), Ok(value)) => {
                if headers.insert(name, value).is_some() {
                    problems.error(at.its_key(), format!("the header `{key}` is written twice")).help("names of headers ignore case");
                }
            }
        }
    }
    (problems.list().len() == before).then_some(headers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::template::sample::exchange;

    fn written(status: u16, headers: &[(&str, &str)], body: &str) -> route::Respond {
        let headers = headers.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        route::Respond { status, headers, body: body.to_owned() }
    }

    fn compile(written: &route::Respond) -> Result<Respond, usize> {
        let mut problems = Problems::default();
        Respond::compile(written, &At::main("respond"), &mut problems).ok_or(problems.list().len())
    }

    #[test]
    fn the_answer_is_as_written_with_a_type_and_a_length() {
        let (parts, body) = compile(&written(201, &[("X-A", "b")], "héllo")).unwrap().respond(&exchange("/"));
        assert_eq!((parts.status.as_u16(), &body[..]), (201, "héllo".as_bytes()));
        assert_eq!(parts.headers["x-a"], "b");
        assert_eq!(parts.headers[CONTENT_TYPE], "text/plain; charset=utf-8");
        assert_eq!(parts.headers[CONTENT_LENGTH], "6");
        let (parts, _) = compile(&written(200, &[("content-type", "application/json")], "{}")).unwrap().respond(&exchange("/"));
        assert_eq!(parts.headers[CONTENT_TYPE], "application/json");
    }

    #[test]
    fn head_has_the_same_length_and_no_body() {
        let mut ex = exchange("/");
        ex.method = Method::HEAD;
        let (parts, body) = compile(&written(200, &[], "body")).unwrap().respond(&ex);
        assert_eq!((parts.headers[CONTENT_LENGTH].to_str().unwrap(), body.len()), ("4", 0));
    }

    #[test]
    fn no_content_has_neither_type_nor_length_and_refuses_a_body() {
        let (parts, _) = compile(&written(204, &[], "")).unwrap().respond(&exchange("/"));
        assert!(parts.headers.is_empty());
        assert_eq!(compile(&written(204, &[], "x")).unwrap_err(), 1);
        assert_eq!(compile(&written(304, &[], "x")).unwrap_err(), 1);
    }

    #[test]
    fn bad_statuses_and_headers_are_all_reported() {
        assert_eq!(compile(&written(101, &[("content-length", "1"), ("a b", "x"), ("x", "a\nb")], "")).unwrap_err(), 4);
        assert_eq!(compile(&written(600, &[], "")).unwrap_err(), 1);
    }
}
