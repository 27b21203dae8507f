//! The response of an aggregate: what the parts' ends mean together.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, response};

use super::call::{CallFailure, Failure};
use super::chunks::Chunks;
use super::merge::{Input, merge};
use super::read::{Document, Failed};
use super::run::End;
use super::{Aggregate, Outcome};
use crate::error::{Reason, Refusal};

/// The field that says how each part ended.
const PARTS: HeaderName = HeaderName::from_static("x-tollgate-parts");

/// The outcome of `ends`, one for each part. `head`: the answer has no body.
pub(super) async fn answer(aggregate: &Aggregate, ends: &[End], head: bool) -> Outcome {
    let words: Vec<(&str, String)> = aggregate.parts.iter().zip(ends).map(|(part, end)| (part.name.as_str(), word(end))).collect();
    let line = words.iter().map(|(name, word)| format!("{name}={word}")).collect::<Vec<_>>().join(", ");
    let line = HeaderValue::from_maybe_shared(Bytes::from(line)).ok();
    let answer = match refusal(aggregate, ends) {
        Some(refusal) => Err(refusal),
        None => merged(aggregate, ends, head).await,
    };
    let answer = match answer {
        Ok((mut parts, body)) => {
            parts.headers.extend(line.clone().map(|line| (PARTS, line)));
            Ok((parts, body))
        }
        Err(mut refusal) => {
            refusal.headers.extend(line.clone().map(|line| (PARTS, line)));
            let members = words.into_iter().map(|(name, word)| (name.to_owned(), serde_json::Value::String(word)));
            refusal.extra.push(("parts", serde_json::Value::Object(members.collect())));
            Err(refusal)
        }
    };
    Outcome { answer, parts: line }
}

fn word(end: &End) -> String {
    match end {
        Ok(document) => document.status.as_str().to_owned(),
        Err(failed) => failed.failure.to_string(),
    }
}

/// Why there is no answer, if there is none: a required part failed, or all did.
fn refusal(aggregate: &Aggregate, ends: &[End]) -> Option<Box<Refusal>> {
    let failed = || ends.iter().filter_map(|end| end.as_ref().err());
    // A part that was cancelled did not fail by itself; the one that made it so is the cause.
    let required = aggregate.parts.iter().zip(ends).filter(|(part, _)| part.required).filter_map(|(_, end)| end.as_ref().err());
    if let Some(cause) = required.into_iter().find(|failed| failed.failure != Failure::Cancelled) {
        return Some(required_failed(cause));
    }
    if failed().count() < ends.len() {
        return None;
    }
    let late = failed().all(|failed| failed.failure == Failure::Call(CallFailure::Timeout));
    let status = if late { StatusCode::GATEWAY_TIMEOUT } else { StatusCode::BAD_GATEWAY };
    Some(refuse(status, if late { "No part of the answer came in time." } else { "No part of the answer could be had." }))
}

fn required_failed(cause: &Failed) -> Box<Refusal> {
    let mut refusal = refuse(cause.failure.status(), "A required part of the answer could not be had.");
    for challenge in &cause.challenges {
        refusal.headers.append(WWW_AUTHENTICATE, challenge.clone());
    }
    refusal
}

fn refuse(status: StatusCode, detail: &'static str) -> Box<Refusal> {
    let mut refusal = Refusal::new(Reason::AggregateFailed, detail);
    refusal.status = Some(status);
    refusal
}

async fn merged(aggregate: &Aggregate, ends: &[End], head: bool) -> Result<(response::Parts, Chunks), Box<Refusal>> {
    let good = || aggregate.parts.iter().zip(ends).filter_map(|(part, end)| Some((part, end.as_ref().ok()?)));
    let inputs: Vec<Input<'_>> =
        good().map(|(part, document)| Input { name: &part.name, value: &document.content.value, shape: &part.plan.shape }).collect();
    let body = merge(&inputs, aggregate.on_conflict)
        .await
        .map_err(|_| refuse(StatusCode::BAD_GATEWAY, "Two parts of the answer set the same key."))?;
    let (mut parts, ()) = Response::new(()).into_parts();
    parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    let cache = if inputs.len() < ends.len() {
        Some(HeaderValue::from_static("no-store"))
    } else {
        strictest(good().map(|(_, document)| document))
    };
    parts.headers.extend(cache.map(|cache| (CACHE_CONTROL, cache)));
    Ok((parts, if head { Chunks::default() } else { body }))
}

/// What the parts' `Cache-Control` fields say together.
#[derive(Default)]
struct Caching {
    no_store: bool,
    no_cache: bool,
    private: bool,
    max_age: Option<u64>,
}

impl Caching {
    fn add(&mut self, headers: &HeaderMap) {
        for value in headers.get_all(CACHE_CONTROL) {
            for directive in value.to_str().unwrap_or("no-store").split(',') {
                let (name, argument) = directive.split_once('=').unwrap_or((directive, ""));
                match name.trim().to_ascii_lowercase().as_str() {
                    "no-store" => self.no_store = true,
                    "no-cache" => self.no_cache = true,
                    "private" => self.private = true,
                    "max-age" | "s-maxage" => {
                        // An age that cannot be read is stale (RFC 9111 section 4.2.1).
                        let age = argument.trim().trim_matches('"').parse().unwrap_or(0);
                        self.max_age = Some(self.max_age.map_or(age, |known| known.min(age)));
                    }
                    _ => {}
                }
            }
        }
    }

    fn value(&self) -> Option<HeaderValue> {
        if self.no_store {
            return Some(HeaderValue::from_static("no-store"));
        }
        let mut directives = Vec::new();
        directives.extend(self.private.then(|| "private".to_owned()));
        directives.extend(self.no_cache.then(|| "no-cache".to_owned()));
        directives.extend(self.max_age.map(|age| format!("max-age={age}")));
        if directives.is_empty() { None } else { HeaderValue::from_maybe_shared(Bytes::from(directives.join(", "))).ok() }
    }
}

fn strictest<'a>(parts: impl Iterator<Item = &'a Document>) -> Option<HeaderValue> {
    let mut caching = Caching::default();
    parts.for_each(|document| caching.add(&document.headers));
    caching.value()
}
