//! Calls the parts: together, as many as `concurrency` allows, those that need another's answer after it, all until the deadline.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;
use std::time::Instant;

use bytes::Bytes;
use http::HeaderMap;
use http::uri::PathAndQuery;

use super::call::{CallFailure, Caller, Failure, PartRequest};
use super::read::{self, Document, Failed};
use super::{Aggregate, Dependency, Part};
use crate::error::{Reason, Refusal};
use crate::http::Exchange;
use crate::http::template::Scope;

/// How a part ended.
pub(super) type End = Result<Document, Failed>;

/// Checks, before anything is called, that the request has all values the parts' templates want of it.
pub(super) fn check(aggregate: &Aggregate, exchange: &Exchange) -> Result<(), Box<Refusal>> {
    for part in &aggregate.parts {
        // What the other parts will give is not known yet: any text stands for it.
        let stand_in = vec!["x".to_owned(); part.template.part_refs().len()];
        target(part, exchange, &stand_in)?;
    }
    Ok(())
}

fn target(part: &Part, exchange: &Exchange, parts: &[String]) -> Result<PathAndQuery, Box<Refusal>> {
    let text = part.template.render(Scope { exchange, parts }, None)?;
    PathAndQuery::from_maybe_shared(Bytes::from(text))
        .map_err(|_| Refusal::new(Reason::BadRequest, "The path that results from the request is not allowed."))
}

/// One request's calls.
pub(super) struct Run<'a, C> {
    aggregate: &'a Aggregate,
    caller: &'a C,
    exchange: &'a Exchange,
    headers: &'a HeaderMap,
    body: Bytes,
    deadline: Option<Instant>,
    ends: Vec<Option<End>>,
    started: Vec<bool>,
}

impl<'a, C: Caller> Run<'a, C> {
    pub(super) fn new(
        aggregate: &'a Aggregate,
        caller: &'a C,
        exchange: &'a Exchange,
        headers: &'a HeaderMap,
        body: Bytes,
        deadline: Option<Instant>,
    ) -> Self {
        let count = aggregate.parts.len();
        let ends = std::iter::repeat_with(|| None).take(count).collect();
        Self { aggregate, caller, exchange, headers, body, deadline, ends, started: vec![false; count] }
    }

    /// Runs to the end: all parts done, or a required one failed.
    pub(super) async fn finish(mut self) -> Vec<End> {
        let mut calls: Vec<(usize, Pin<Box<_>>)> = Vec::with_capacity(self.aggregate.parts.len());
        loop {
            while calls.len() < self.aggregate.concurrency
                && let Some((index, call)) = self.next_call()
            {
                calls.push((index, Box::pin(call)));
            }
            if calls.is_empty() || self.required_failed() {
                break;
            }
            let (index, end) = first_done(&mut calls).await;
            self.end(index, end);
        }
        drop(calls);
        let unfinished = if self.late() { Failure::Call(CallFailure::Timeout) } else { Failure::Cancelled };
        self.ends.into_iter().map(|end| end.unwrap_or_else(|| Err(unfinished.into()))).collect()
    }

    /// Whether the route's time is over.
    fn late(&self) -> bool {
        self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    fn end(&mut self, index: usize, end: End) {
        if let Some(place) = self.ends.get_mut(index) {
            *place = Some(end);
        }
    }

    fn required_failed(&self) -> bool {
        self.aggregate.parts.iter().zip(&self.ends).any(|(part, end)| part.required && matches!(end, Some(Err(_))))
    }

    /// The next call that can start, in written order. Parts that cannot be called any more end here.
    fn next_call(&mut self) -> Option<(usize, impl Future<Output = End> + Send + use<'a, C>)> {
        let aggregate = self.aggregate;
        // A part that ends here can be what one before it waits for, so the search starts again until nothing changes.
        loop {
            let mut changed = false;
            for (index, part) in aggregate.parts.iter().enumerate() {
                if self.started.get(index).copied().unwrap_or(true) || self.waits(part) {
                    continue;
                }
                if let Some(started) = self.started.get_mut(index) {
                    *started = true;
                }
                match self.request(part) {
                    Ok(request) => return Some((index, call(self.caller, part, aggregate.max_part_size, request, self.deadline))),
                    Err(failure) => {
                        self.end(index, Err(failure.into()));
                        changed = true;
                    }
                }
            }
            if !changed {
                return None;
            }
        }
    }

    /// Whether a part that `part` needs has not ended.
    fn waits(&self, part: &Part) -> bool {
        part.dependencies.iter().any(|needed| matches!(self.ends.get(needed.part), Some(None)))
    }

    fn request(&self, part: &Part) -> Result<PartRequest, Failure> {
        // What has waited for others may be too late to be called; the first calls have their deadline on the way.
        if self.late() && self.ends.iter().any(Option::is_some) {
            return Err(Failure::Call(CallFailure::Timeout));
        }
        let values = self.values(part)?;
        let target = target(part, self.exchange, &values).map_err(|_| Failure::NoValue)?;
        let body = if part.has_body() { self.body.clone() } else { Bytes::new() };
        Ok(PartRequest { method: part.method.clone(), target, headers: part.headers(self.headers), body })
    }

    /// What the template takes out of other parts' answers, before their `select` and `rename`.
    fn values(&self, part: &Part) -> Result<Vec<String>, Failure> {
        let value = |needed: &Dependency| match self.ends.get(needed.part) {
            Some(Some(Ok(document))) => document.content.needed.get(needed.value).cloned().flatten(),
            Some(Some(Err(_)) | None) | None => None,
        };
        part.dependencies.iter().map(|needed| value(needed).ok_or(Failure::NoValue)).collect()
    }
}

/// Waits for the first of `calls` that is done, and takes it out.
async fn first_done<T, F: Future<Output = T>>(calls: &mut Vec<(usize, Pin<Box<F>>)>) -> (usize, T) {
    poll_fn(|context| {
        for place in 0..calls.len() {
            let Some((index, call)) = calls.get_mut(place) else { break };
            if let Poll::Ready(output) = call.as_mut().poll(context) {
                let index = *index;
                calls.remove(place);
                return Poll::Ready((index, output));
            }
        }
        Poll::Pending
    })
    .await
}

/// Calls one part and reads its answer, within its own time and the route's.
async fn call<C: Caller>(caller: &C, part: &Part, limit: u64, request: PartRequest, deadline: Option<Instant>) -> End {
    let own = part.timeout.map(|timeout| Instant::now() + timeout);
    let deadline = [own, deadline].into_iter().flatten().min();
    let work = async {
        let response = caller.call(part.upstream, request, deadline).await.map_err(Failure::Call)?;
        read::document(response, &part.plan, limit).await
    };
    match deadline {
        Some(deadline) => tokio::time::timeout_at(deadline.into(), work).await.map_err(|_| Failure::Call(CallFailure::Timeout))?,
        None => work.await,
    }
}
