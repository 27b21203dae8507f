//! One route, compiled, and the chain that every request on it passes: [`Route::run`] is the order, from top to bottom.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{CONTENT_LENGTH, TRAILER};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::error::{Reason, Refusal};
use crate::gateway::handle::{Context, CorsFields};
use crate::gateway::mirror::MirrorTarget;
use crate::gateway::reply::Answer;
use crate::gateway::target::{Outgoing, Target, UpstreamHandle};
use crate::http::Exchange;
use crate::http::h1::Made;
use crate::http::headers::{Added, Beside, Fields, Forwarding, Usual, set_forwarded};
use crate::http::text::Text;
use crate::middleware::auth::{AuthChain, Spent};
use crate::middleware::cors::Cors;
use crate::middleware::headers::HeaderRules;
use crate::middleware::ip_rules::IpRules;
use crate::middleware::rate_limit::{Decision, PendingCheck, RateLimits};
use crate::middleware::rewrite::{HostMode, Rewrite};
use crate::telemetry::metrics::RouteMetrics;
use crate::upstream::retry::RetryPolicy;

/// A route as it runs.
pub struct Route {
    /// Its name, for logs and metrics.
    pub name: Arc<str>,
    /// Its metrics.
    pub metrics: Arc<RouteMetrics>,
    /// `ip`.
    pub ip: Option<IpRules>,
    /// `cors`.
    pub cors: Option<Cors>,
    /// `body_limit`, in bytes.
    pub body_limit: Option<u64>,
    /// `rate_limit`, inherited ones included.
    pub limits: Option<RateLimits>,
    /// `auth`.
    pub auth: Option<AuthChain>,
    /// `rewrite`.
    pub rewrite: Option<Rewrite>,
    /// `headers`, inherited ones included.
    pub headers: HeaderRules,
    /// `timeout`.
    pub timeout: Option<Duration>,
    /// `idle_timeout`.
    pub idle_timeout: Option<Duration>,
    /// `retry`.
    pub retry: Option<RetryPolicy>,
    /// `mirror`.
    pub mirror: Option<MirrorTarget>,
    /// What answers.
    pub target: Target,
}

impl std::fmt::Debug for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Route").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Route {
    /// Takes a request through the chain, and puts the target's answer into `answer`. The order is a security property, so it is written here
    /// once and cannot be configured.
    ///
    /// # Errors
    /// The refusal of the first step that refuses; the caller makes the answer from it.
    pub async fn run(
        &self,
        ex: &mut Exchange,
        cx: &mut Context<'_>,
        headers: &mut HeaderMap,
        answer: &mut Answer,
    ) -> Result<(), Box<Refusal>> {
        // First of all, so that a denied address learns nothing about the route, its CORS rules included.
        if let Some(ip) = &self.ip {
            ip.check(ex.client_ip).inspect_err(|_| cx.cors = CorsFields::Withheld)?;
        }
        // Outside auth and limits: preflights carry no credentials, and browsers can read only a 401 or 429 that has CORS fields.
        if let Some(cors) = &self.cors {
            if let Some(fields) = cors.preflight(&ex.method, headers) {
                cx.cors = CorsFields::Preflight(fields);
                *answer = Answer::no_content();
                return Ok(());
            }
            if cx.websocket.is_some() {
                cors.check_websocket_origin(headers)?;
            }
        }
        // Before anything is read or buffered.
        check_declared_length(self.body_limit, headers)?;
        // Parts get what the client sent, credentials included, if the configuration says so.
        let picked = match &self.target {
            Target::Aggregate(aggregate) => Some(aggregate.pick(headers)),
            Target::Proxy(_) | Target::Split(_) | Target::Respond(_) | Target::Redirect(_) => None,
        };
        // Whether it is no longer the time at which the request came.
        let mut late = false;
        // Before auth, so that guessing credentials is limited.
        if let Some(limits) = &self.limits
            && let Some(pending) = undecided(limits.check_address(ex, headers, ex.started))?
        {
            Box::pin(pending.finish(ex)).await?;
            late = true;
        }
        let credential = match &self.auth {
            Some(auth) => Some(auth.check(ex, headers).await?),
            None => None,
        };
        late |= credential.as_ref().is_some_and(Spent::took_time);
        // After auth, since the identity is known now; `global` last, so that refused requests do not eat the shared quota.
        if let Some(limits) = &self.limits
            && let Some(pending) = undecided(limits.check_identity(ex, headers, ex.started))?
        {
            Box::pin(pending.finish(ex)).await?;
            late = true;
        }
        // Only now, since limits may count by the credential; and before anything else can see the request.
        if let Some(credential) = credential {
            credential.remove(headers, &mut ex.target);
        }
        // A library user's own steps know the caller, and see what the client sent without its credential.
        for own in cx.snapshot.middleware.iter() {
            own.request(&self.name, ex, headers)?;
        }
        let begun = if late { Instant::now() } else { ex.started };
        let target = match &self.target {
            Target::Respond(respond) => {
                *answer = Answer::full(respond.respond(ex));
                return Ok(());
            }
            Target::Redirect(redirect) => {
                *answer = Answer::full(redirect.respond(ex)?);
                return Ok(());
            }
            Target::Aggregate(aggregate) => {
                *headers = picked.unwrap_or_else(|| aggregate.pick(headers));
                None
            }
            Target::Proxy(_) | Target::Split(_) => self.rewritten(ex)?,
        };
        // Last, so that rules and balancing see exactly what the target gets.
        self.send(ex, cx, Outgoing { target, headers, begun }, answer).await
    }

    /// Path and query for the target, if they change.
    fn rewritten(&self, ex: &Exchange) -> Result<Option<PathAndQuery>, Box<Refusal>> {
        match &self.rewrite {
            Some(rewrite) => rewrite.apply(ex),
            None => Ok(None),
        }
    }

    /// Host for the target; `None` is the endpoint's own.
    pub(super) fn host<'a>(&'a self, ex: &'a Exchange) -> Option<&'a HeaderValue> {
        match self.rewrite.as_ref().map_or(&HostMode::Preserve, Rewrite::host) {
            HostMode::Preserve => ex.host.authority.as_ref(),
            HostMode::Upstream => None,
            HostMode::Fixed(host) => Some(host),
        }
    }

    /// Whether nobody on the way to `handle` looks at the fields that are added to a request, so that they are written beside its map.
    fn adds_apart(&self, handle: &UpstreamHandle, cx: &Context<'_>) -> bool {
        self.mirror.is_none()
            && !cx.trusted
            && !cx.grpc
            && cx.grpc_web.is_none()
            && cx.websocket.is_none()
            && cx.trailer.is_none()
            && !handle.may_speak_h2()
            && handle.upstream.hash_selectors().is_empty()
    }

    /// Forwarded fields, identity, request id and header rules: in `headers`, or for `handle` beside them.
    pub(super) fn prepare(&self, ex: &Exchange, cx: &Context<'_>, handle: Option<&UpstreamHandle>, headers: &mut HeaderMap) -> Apart {
        let id = cx.snapshot.request_id.as_ref().map(|name| (name, &ex.request_id));
        if !handle.is_some_and(|handle| self.adds_apart(handle, cx)) {
            set_forwarded(headers, &forwarding(ex, cx));
            self.add(ex, id, headers);
            if let Some(trailer) = &cx.trailer {
                headers.insert(TRAILER, trailer.clone());
            }
            return Apart::Nothing;
        }
        let forwards = ex.identity.as_ref().is_some_and(|identity| !identity.forward.is_empty());
        if !self.headers.change_requests() && !forwards {
            Usual { forwarding: forwarding(ex, cx), id }.make_room(headers);
            return Apart::Usual;
        }
        let usual = Usual { forwarding: forwarding(ex, cx), id: None };
        usual.make_room(headers);
        let mut made = Made::default();
        usual.put(&mut made);
        let mut beside = Beside::new(headers, made);
        self.add(ex, id, &mut beside);
        Apart::Made(beside.made())
    }

    /// What rules can change that comes behind the forwarded fields.
    fn add(&self, ex: &Exchange, id: Option<(&HeaderName, &HeaderValue)>, fields: &mut impl Fields) {
        if let Some(identity) = &ex.identity {
            for (name, value) in &identity.forward {
                fields.set(name, value.into());
            }
        }
        if let Some((name, id)) = id {
            fields.set(name, id.into());
        }
        self.headers.request(ex, fields);
    }

    /// What is written beside the map: made of the request where that is all there is to it.
    pub(super) fn added<'a>(&self, apart: Apart, ex: &'a Exchange, cx: &Context<'a>) -> Option<Added<'a>> {
        match apart {
            Apart::Nothing => None,
            Apart::Usual => {
                let id = cx.snapshot.request_id.as_ref().map(|name| (name, &ex.request_id));
                Some(Added::Usual(Usual { forwarding: forwarding(ex, cx), id }))
            }
            Apart::Made(made) => Some(Added::Made(made)),
        }
    }

    /// The fields that the route puts on every response, the gateway's own included. CORS comes last, so that no rule breaks it.
    pub fn finish_response(&self, ex: &Exchange, cx: &mut Context<'_>, answer: &mut Answer) {
        if self.headers.change_responses() {
            let https = ex.scheme == crate::http::Scheme::Https;
            match answer.all_lines() {
                Some(lines) => self.headers.response(ex, lines, https),
                None => self.headers.response(ex, answer.headers(), https),
            }
        }
        for own in cx.snapshot.middleware.iter().rev() {
            let status = answer.parts.status;
            own.response(&self.name, ex, status, answer.headers());
        }
        match (&self.cors, std::mem::take(&mut cx.cors)) {
            (Some(cors), CorsFields::Ordinary) => match answer.all_lines() {
                Some(lines) => cors.apply(cx.origin.as_ref().map(Text::as_bytes), lines),
                None => cors.apply(cx.origin.as_ref().map(Text::as_bytes), answer.headers()),
            },
            (_, CorsFields::Preflight(fields)) => Cors::apply_preflight(fields, answer.headers()),
            (_, CorsFields::Withheld) | (None, CorsFields::Ordinary) => {}
        }
        if let Some(limits) = &self.limits {
            match answer.all_lines() {
                Some(lines) => limits.fields(ex, lines),
                None => limits.fields(ex, answer.headers()),
            }
        }
    }

    /// Whether nobody needs the fields of an upstream's response as a map, so that they can go to the client as the lines they came in: HTTP/2
    /// does, and so do a library user's own steps.
    pub(super) fn takes_lines(&self, cx: &Context<'_>) -> bool {
        cx.snapshot.middleware.is_empty() && cx.link.http1().is_some()
    }
}

/// What of a request's fields is not in its map.
pub(super) enum Apart {
    /// Nothing.
    Nothing,
    /// What every request gets; written when it is needed.
    Usual,
    /// These lines.
    Made(Made),
}

fn forwarding<'a>(ex: &'a Exchange, cx: &Context<'_>) -> Forwarding<'a> {
    Forwarding { peer: ex.connection.peer.ip(), trusted: cx.trusted, scheme: ex.scheme, host: ex.host.authority.as_ref() }
}

/// What is to be awaited, if limits have not let a request pass yet.
fn undecided(decision: Decision) -> Result<Option<Box<PendingCheck>>, Box<Refusal>> {
    match decision {
        Decision::Pass => Ok(None),
        Decision::Refused(refusal) => Err(refusal),
        Decision::Remote(pending) => Ok(Some(pending)),
    }
}

fn check_declared_length(limit: Option<u64>, headers: &HeaderMap) -> Result<(), Box<Refusal>> {
    let (Some(limit), Some(length)) = (limit, headers.get(CONTENT_LENGTH)) else { return Ok(()) };
    // Unreadable lengths never get past the parser.
    match length.to_str().ok().and_then(|length| length.parse::<u64>().ok()) {
        Some(length) if length > limit => Err(Refusal::new(Reason::BodyTooLarge, "The request body is longer than this route allows.")),
        Some(_) | None => Ok(()),
    }
}
