//! What the admin listener shows of a running server.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::admin::Control;
use crate::config::At;
use crate::config::dump::hide;
use crate::config::route::Match;
use crate::config::{effective_json, resolve};
use crate::gateway::status::{
    BreakerStatus, CheckStatus, ConfigStatus, ConnectErrorStatus, ConnectionStatus, EndpointStatus, Info, LastReload, ListenerStatus,
    LookupStatus, Ready, ReloadOutcome, RouteStatus, TargetStatus, UpstreamStatus,
};
use crate::server::apply::{Core, is_draining, lock};
use crate::telemetry::time::rfc3339;
use crate::units;
use crate::upstream::endpoint::LastCheck;

/// Longest wait for the first round of checks before the gateway calls itself ready.
const STARTING: Duration = Duration::from_secs(5);

/// The admin listener's view of a server.
pub struct Status(pub(super) Arc<Core>);

impl Control for Status {
    fn info(&self) -> Info {
        let core = &self.0;
        let snapshot = core.snapshot();
        let last = lock(&core.last).clone();
        let applied = lock(&core.applied);
        let listeners = applied.listeners.iter().map(|listener| ListenerStatus {
            address: listener.address.to_string(),
            tls: listener.spec.load().tls.is_some(),
            connections: listener.metrics.connections(),
        });
        Info {
            name: env!("CARGO_PKG_NAME").to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: crate::COMMIT.to_owned(),
            pid: std::process::id(),
            started_at: rfc3339(core.started.0),
            uptime_seconds: core.started.1.elapsed().as_secs(),
            workers: core.state.shared.workers,
            requests_in_flight: snapshot.metrics.requests_in_flight(),
            listeners: listeners.collect(),
            config: ConfigStatus {
                path: snapshot.source.files.first().cloned().unwrap_or_default(),
                files: snapshot.source.files.clone(),
                hash: snapshot.source.hash.clone(),
                generation: snapshot.generation,
                loaded_at: rfc3339(snapshot.loaded_at),
                last_reload: LastReload { at: last.at.map(rfc3339), result: last.result, errors: last.errors },
            },
            restart_needed: last.restart_needed,
        }
    }

    fn ready(&self) -> Ready {
        let core = &self.0;
        if is_draining(core) {
            return Ready::Draining;
        }
        let checked = lock(&core.applied).background.iter().all(crate::upstream::Background::first_round_done);
        if checked || core.started.1.elapsed() >= STARTING { Ready::Ready } else { Ready::Starting }
    }

    fn routes(&self) -> Vec<RouteStatus> {
        let snapshot = self.0.snapshot();
        let precedence = snapshot.router.precedence();
        let secrets = &snapshot.source.substituted;
        precedence
            .into_iter()
            .filter_map(|index| Some(route_status(snapshot.resolved.get(index)?, snapshot.source.places.get(index)?, secrets)))
            .collect()
    }

    fn upstreams(&self) -> Vec<UpstreamStatus> {
        let now = Instant::now();
        let snapshot = self.0.snapshot();
        snapshot.upstreams.values().map(|handle| upstream_status(handle.upstream.status(now))).collect()
    }

    fn effective_config(&self) -> serde_json::Value {
        let snapshot = self.0.snapshot();
        effective_json(&snapshot.config, &snapshot.resolved, &snapshot.source.substituted)
    }

    fn metrics(&self) -> String {
        let snapshot = self.0.snapshot();
        let now = Instant::now();
        for handle in snapshot.upstreams.values() {
            // Ejections end without an event: what is shown must be true now.
            handle.upstream.refresh(now);
        }
        snapshot.metrics.encode()
    }

    fn reload(&self) -> Pin<Box<dyn Future<Output = ReloadOutcome> + Send>> {
        let core = Arc::clone(&self.0);
        Box::pin(async move {
            // Compiling takes long, and the control runtime has health checks to run.
            match tokio::task::spawn_blocking(move || core.reload()).await {
                Ok(outcome) => outcome,
                Err(_) => ReloadOutcome::Failed { errors: Vec::new() },
            }
        })
    }
}

fn route_status(route: &resolve::Route, place: &str, secrets: &[String]) -> RouteStatus {
    let matcher = &route.matcher;
    let hidden =
        |conditions: &BTreeMap<String, String>| conditions.iter().map(|(name, value)| (name.clone(), hide(value, secrets))).collect();
    let (kind, path) = kind_and_path(matcher);
    RouteStatus {
        name: route.name.clone(),
        priority: i64::from(route.priority),
        scheme: matcher.scheme,
        host: matcher.host.clone(),
        methods: matcher.methods.clone().unwrap_or_default(),
        kind,
        path,
        headers: hidden(&matcher.headers),
        query: hidden(&matcher.query),
        target: target_status(&route.target),
        mirror: route.mirror.as_ref().map(|(mirror, _)| mirror.upstream.clone()),
        auth: route.auth.as_ref().map(|(auth, _)| auth.any.clone()).unwrap_or_default(),
        timeout: route.timeout.map(|timeout| units::Duration(timeout).to_string()),
        rate_limit: route.rate_limits.iter().map(|(limit, _): &(_, At)| limit_text(limit)).collect(),
        source: place.to_owned(),
    }
}

fn limit_text(limit: &crate::config::route::RateLimit) -> String {
    let by: Vec<String> = limit.by.0.iter().map(ToString::to_string).collect();
    format!("{} {}", by.join("|"), limit.rate)
}

fn kind_and_path(matcher: &Match) -> (&'static str, String) {
    if let Some(path) = &matcher.path {
        return ("path", path.clone());
    }
    if let Some(regex) = &matcher.regex {
        return ("regex", regex.clone());
    }
    ("prefix", matcher.prefix.clone().unwrap_or_else(|| "/".to_owned()))
}

fn target_status(target: &resolve::Target) -> TargetStatus {
    let (kind, upstream) = match target {
        resolve::Target::Upstream(name) => ("upstream", Some(name.clone())),
        resolve::Target::Split(split) => {
            let names: Vec<&str> = split.to.iter().map(|branch| branch.upstream.as_str()).collect();
            ("split", Some(names.join(", ")))
        }
        resolve::Target::Aggregate(aggregate) => {
            let names: Vec<&str> = aggregate.parts.iter().map(|part| part.upstream.as_str()).collect();
            ("aggregate", Some(names.join(", ")))
        }
        resolve::Target::Respond(_) => ("respond", None),
        resolve::Target::Redirect(_) => ("redirect", None),
    };
    TargetStatus { kind, upstream }
}

fn lookup_status((name, last): (String, LastCheck)) -> LookupStatus {
    LookupStatus { name, at: rfc3339(last.at), ok: last.ok, error: last.error.map(|error| error.to_string()) }
}

fn upstream_status(upstream: crate::upstream::UpstreamSnapshot) -> UpstreamStatus {
    let endpoints = upstream.endpoints.into_iter().map(|endpoint| {
        let (open, idle) = endpoint.endpoint.pool.counts();
        let check = endpoint.last_check;
        EndpointStatus {
            id: endpoint.id.to_string(),
            weight: endpoint.weight,
            state: endpoint.state,
            in_flight: u64::from(endpoint.in_flight),
            connections: ConnectionStatus { open: open as u64, idle: idle as u64 },
            ewma_ms: Some(endpoint.ewma_ms),
            consecutive_errors: endpoint.consecutive_errors,
            why: endpoint.why,
            ejections: endpoint.endpoint.pool.metrics().ejections(),
            ejected_until: endpoint.ejected_until.map(rfc3339),
            last_connect_error: endpoint
                .last_connect_error
                .and_then(|failed| Some(ConnectErrorStatus { at: rfc3339(failed.at), error: failed.error?.to_string() })),
            last_check: CheckStatus {
                at: check.as_ref().map(|check| rfc3339(check.at)),
                ok: check.as_ref().map(|check| check.ok),
                error: check.and_then(|check| check.error).map(|error| error.to_string()),
            },
        }
    });
    UpstreamStatus {
        name: upstream.name.to_string(),
        balance: upstream.balance.to_owned(),
        panic: upstream.panic,
        breaker: BreakerStatus { mode: upstream.breaker_mode, drop: upstream.breaker_drop },
        endpoints: endpoints.collect(),
        lookups: upstream.lookups.into_iter().map(lookup_status).collect(),
    }
}
