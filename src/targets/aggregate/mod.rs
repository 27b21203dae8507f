//! One answer from several calls.
//!
//! `compile` checks everything at load, `run` calls the parts at the same time under one deadline, `read` bounds what comes back,
//! `scan` checks it in one pass in which `pick` takes out of it what is wanted, `merge` makes one object of that, `answer` the
//! response. Values stay text all the way, and large ones stay where they were received: only what is renamed or filtered is rebuilt.

mod answer;
mod call;
mod chunks;
mod compile;
mod json;
mod merge;
mod object;
mod pick;
mod read;
mod run;
mod scan;
mod shape;
#[cfg(test)]
mod tests;
mod tokens;

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, response};

pub use call::{CallFailure, Caller, PartRequest, PartResponse};
pub use chunks::Chunks;

use crate::config::route::OnConflict;
use crate::config::{At, Problems, route};
use crate::error::Refusal;
use crate::http::Exchange;
use crate::http::template::{Param, UrlTemplate};
use pick::Plan;

/// A compiled aggregate.
#[derive(Debug)]
pub struct Aggregate {
    parts: Vec<Part>,
    upstreams: Vec<String>,
    forward_headers: Vec<HeaderName>,
    on_conflict: OnConflict,
    concurrency: usize,
    max_part_size: u64,
}

/// One call.
#[derive(Debug)]
struct Part {
    name: String,
    /// Index into [`Aggregate::upstreams`].
    upstream: usize,
    method: Method,
    template: UrlTemplate,
    /// The values its template takes out of other parts, one for each reference.
    dependencies: Vec<Dependency>,
    /// `None`: the route's alone.
    timeout: Option<Duration>,
    required: bool,
    /// What is wanted of its answer.
    plan: Plan,
}

/// A value of another part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Dependency {
    part: usize,
    /// Its place in that part's [`pick::Content::needed`].
    value: usize,
}

/// What an aggregate has to say.
#[derive(Debug)]
pub struct Outcome {
    /// The answer, or the refusal to make a problem of.
    pub answer: Result<(response::Parts, Chunks), Box<Refusal>>,
    /// Each part's end as in `x-tollgate-parts`, for the access log. `None`: no part was called.
    pub parts: Option<HeaderValue>,
}

impl Aggregate {
    /// Compiles what is written at `at` (the route's `aggregate`). `params` are those of the route. That the upstreams exist is checked
    /// where they are known.
    pub fn compile(written: &route::Aggregate, at: &At, params: &[Param], problems: &mut Problems) -> Option<Self> {
        compile::aggregate(written, at, params, problems)
    }

    /// Names of the upstreams that are called; [`Caller::call`] gets indices into them.
    pub fn upstreams(&self) -> &[String] {
        &self.upstreams
    }

    /// Whether a part gets the client's body, so that it has to be read first.
    pub fn needs_body(&self) -> bool {
        self.parts.iter().any(Part::has_body)
    }

    /// Longest client body that is buffered where `body_limit` is off, in bytes.
    pub fn max_body(&self) -> u64 {
        self.max_part_size
    }

    /// The client's fields that parts get, out of its request before authentication took its credential away: `forward_headers`, what
    /// forwarded fields are made from, and the body's type. Forwarded fields, request id, claims and header rules go on top of these.
    pub fn pick_headers(&self, client: &HeaderMap) -> HeaderMap {
        let mut picked = HeaderMap::with_capacity(16);
        for (name, value) in client {
            let word = name.as_str();
            let describes_body = self.needs_body() && (*name == CONTENT_TYPE || *name == CONTENT_ENCODING);
            let forwarded = word == "forwarded" || word.starts_with("x-forwarded-");
            if describes_body || forwarded || self.forward_headers.contains(name) {
                picked.append(name, value.clone());
            }
        }
        picked
    }

    /// Calls the parts and merges their answers. `headers` is what [`Aggregate::pick_headers`] gave, after the chain; `body` the
    /// client's body, whole, if [`Aggregate::needs_body`]; `deadline` the route's. Dropping the future cancels all parts.
    pub async fn run<C: Caller>(
        &self,
        caller: &C,
        exchange: &Exchange,
        headers: &HeaderMap,
        body: Bytes,
        deadline: Option<Instant>,
    ) -> Outcome {
        if let Err(refusal) = run::check(self, exchange) {
            return Outcome { answer: Err(refusal), parts: None };
        }
        let ends = run::Run::new(self, caller, exchange, headers, body, deadline).finish().await;
        answer::answer(self, &ends, exchange.method == Method::HEAD).await
    }
}

impl Part {
    /// Whether it gets the client's body.
    fn has_body(&self) -> bool {
        self.method != Method::GET && self.method != Method::HEAD
    }

    /// Its fields: those for all parts, and what is asked of the answer.
    fn headers(&self, all: &HeaderMap) -> HeaderMap {
        let mut headers = all.clone();
        if !self.has_body() {
            headers.remove(CONTENT_TYPE);
            headers.remove(CONTENT_ENCODING);
        }
        headers.entry(ACCEPT).or_insert(HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
        headers
    }
}
