//! What `/upstreams` shows.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::endpoint::LastCheck;
use super::set::Set;
use super::{Address, Endpoint, Upstream};
use crate::health::active::Verdict;

/// An upstream at one moment.
#[derive(Clone, Debug)]
pub struct UpstreamSnapshot {
    /// Its name.
    pub name: Arc<str>,
    /// The word of its strategy.
    pub balance: &'static str,
    /// Whether all endpoints are used because too few are available.
    pub panic: bool,
    /// `off` or `adaptive`.
    pub breaker_mode: &'static str,
    /// Share of attempts the breaker would drop, 0.0 to 1.0.
    pub breaker_drop: f64,
    /// Its endpoints in written order.
    pub endpoints: Vec<EndpointSnapshot>,
    /// The last look-up of each of its names.
    pub lookups: Vec<(String, LastCheck)>,
}

/// An endpoint at one moment.
#[derive(Clone, Debug)]
pub struct EndpointSnapshot {
    /// The endpoint, for what its pool knows.
    pub endpoint: Arc<Endpoint>,
    /// Its id.
    pub id: Arc<str>,
    /// Its weight.
    pub weight: u32,
    /// `healthy`, `unhealthy`, `unchecked` or `ejected`.
    pub state: &'static str,
    /// Whether it is available: what `gateway_endpoint_healthy` says.
    pub available: bool,
    /// Attempts in flight.
    pub in_flight: u32,
    /// Peak EWMA of the time to response heads, in milliseconds.
    pub ewma_ms: f64,
    /// Failed attempts in a row.
    pub consecutive_errors: u32,
    /// Why it gets no requests; `None` if it may.
    pub why: Option<String>,
    /// Until when it is ejected.
    pub ejected_until: Option<SystemTime>,
    /// Its last active check.
    pub last_check: Option<LastCheck>,
    /// Why a request could last not connect to it.
    pub last_connect_error: Option<LastCheck>,
}

impl Upstream {
    /// Its state as `/upstreams` shows it.
    pub fn status(&self, now: Instant) -> UpstreamSnapshot {
        let set = self.current(now);
        let endpoints = set.members.iter().map(|endpoint| self.endpoint_status(endpoint, &set, now)).collect();
        UpstreamSnapshot {
            name: self.name.clone(),
            balance: self.strategy.word(),
            panic: set.panic,
            breaker_mode: if self.rules.breaker { "adaptive" } else { "off" },
            breaker_drop: if self.rules.breaker { self.state.breaker.drop_probability(now) } else { 0.0 },
            endpoints,
            lookups: self.lock_lookups().iter().map(|(name, last)| (name.clone(), last.clone())).collect(),
        }
    }

    /// Why an endpoint gets no requests, apart from panic, which asks for no reason.
    fn why(&self, endpoint: &Endpoint, set: &Set, now: Instant) -> Option<String> {
        let state = &endpoint.state;
        if endpoint.weight == 0 {
            return Some("its weight is 0".to_owned());
        }
        if !endpoint.is_resolved() {
            let Address::Tcp { host, .. } = &endpoint.address else { return None };
            let error = self.lock_lookups().get(host).and_then(|last| last.error.clone());
            return Some(
                error.map_or_else(|| "its name is being looked up".to_owned(), |error| format!("its name has no address: {error}")),
            );
        }
        if self.rules.outlier.is_some() && state.ejected_until(now).is_some() {
            return Some(format!("{} failed attempts in a row", state.consecutive_errors(now)));
        }
        if !self.rules.is_healthy(endpoint) {
            let last = state.last_check().and_then(|last| last.error);
            return Some(last.map_or_else(|| "not checked yet".to_owned(), |error| error.to_string()));
        }
        let first = set.members.iter().filter(|other| self.rules.available(other, now)).map(|other| other.priority).min();
        let waits = first.filter(|first| *first < endpoint.priority)?;
        Some(format!("stands by: its priority is {}, and endpoints of priority {waits} are available", endpoint.priority))
    }

    fn endpoint_status(&self, endpoint: &Arc<Endpoint>, set: &Set, now: Instant) -> EndpointSnapshot {
        let state = &endpoint.state;
        let ejected = state.ejected_until(now).filter(|_| self.rules.outlier.is_some());
        let word = match (ejected, &self.rules.health) {
            (Some(_), _) => "ejected",
            (None, None) => "healthy",
            (None, Some(_)) => match state.verdict() {
                Verdict::Unchecked => "unchecked",
                Verdict::Healthy => "healthy",
                Verdict::Unhealthy => "unhealthy",
            },
        };
        EndpointSnapshot {
            id: endpoint.id.clone(),
            weight: endpoint.weight,
            state: word,
            available: self.rules.available(endpoint, now),
            in_flight: state.in_flight(),
            ewma_ms: f64::from(state.ewma.read(now)) * 1e3,
            consecutive_errors: state.consecutive_errors(now),
            why: self.why(endpoint, set, now),
            ejected_until: ejected.map(|until| SystemTime::now() + until.saturating_duration_since(now)),
            last_connect_error: state.unreached.last(),
            last_check: self.rules.health.as_ref().and_then(|_| state.last_check()),
            endpoint: endpoint.clone(),
        }
    }
}
