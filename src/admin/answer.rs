//! What each path answers.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderName, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Method, Response, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json};

use super::Control;
use super::guard::Refused;
use crate::gateway::status::{Ready, ReloadOutcome};

/// An answer, ready to be sent.
pub type Answer = Response<Full<Bytes>>;

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// Whether the process runs.
    Health,
    /// Whether it wants requests.
    Ready,
    /// Program, listeners, configuration.
    Info,
    /// Routes in order of precedence.
    Routes,
    /// Upstreams and their endpoints.
    Upstreams,
    /// The effective configuration.
    Config,
    /// Load the configuration now.
    Reload,
    /// Metrics.
    Metrics,
}

impl Page {
    const ALL: [Self; 8] =
        [Self::Health, Self::Ready, Self::Info, Self::Routes, Self::Upstreams, Self::Config, Self::Reload, Self::Metrics];

    const fn path(self) -> &'static str {
        match self {
            Self::Health => "/health",
            Self::Ready => "/ready",
            Self::Info => "/info",
            Self::Routes => "/routes",
            Self::Upstreams => "/upstreams",
            Self::Config => "/config",
            Self::Reload => "/reload",
            Self::Metrics => "/metrics",
        }
    }

    /// The page at `path`.
    pub fn at(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|page| page.path() == path)
    }

    /// Whether it never needs the token: probes of orchestrators have none.
    pub const fn open(self) -> bool {
        matches!(self, Self::Health | Self::Ready)
    }

    const fn allow(self) -> &'static str {
        match self {
            Self::Reload => "POST",
            Self::Health | Self::Ready | Self::Info | Self::Routes | Self::Upstreams | Self::Config | Self::Metrics => "GET, HEAD",
        }
    }
}

/// Answers a request that passed the checks.
pub async fn answer(page: Option<Page>, method: &Method, control: &Arc<dyn Control>) -> Answer {
    let Some(page) = page else {
        let paths = Page::ALL.map(Page::path);
        return problem(StatusCode::NOT_FOUND, "There is nothing at this path.", json!({ "paths": paths }));
    };
    let fits = match page {
        Page::Reload => method == Method::POST,
        Page::Health | Page::Ready | Page::Info | Page::Routes | Page::Upstreams | Page::Config | Page::Metrics => {
            method == Method::GET || method == Method::HEAD
        }
    };
    if !fits {
        let refusal = problem(StatusCode::METHOD_NOT_ALLOWED, "This path does not take this method.", Value::Null);
        return with(refusal, ALLOW, page.allow());
    }
    match page {
        Page::Health => json_answer(StatusCode::OK, &json!({ "status": "ok" })),
        Page::Ready => ready(control.ready()),
        Page::Info => json_answer(StatusCode::OK, &control.info()),
        Page::Routes => json_answer(StatusCode::OK, &json!({ "routes": control.routes() })),
        Page::Upstreams => json_answer(StatusCode::OK, &json!({ "upstreams": control.upstreams() })),
        Page::Config => json_answer(StatusCode::OK, &control.effective_config()),
        Page::Metrics => made(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", control.metrics().into()),
        Page::Reload => reload(control).await,
    }
}

fn ready(state: Ready) -> Answer {
    let status = match state {
        Ready::Ready => StatusCode::OK,
        Ready::Starting | Ready::Draining => StatusCode::SERVICE_UNAVAILABLE,
    };
    json_answer(status, &json!({ "status": state.as_str() }))
}

/// A task of its own: a client that leaves must not stop a reload half-way.
async fn reload(control: &Arc<dyn Control>) -> Answer {
    match tokio::spawn(control.reload()).await {
        Ok(outcome) => {
            let status = match outcome {
                ReloadOutcome::Ok { .. } | ReloadOutcome::Unchanged => StatusCode::OK,
                ReloadOutcome::Failed { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            };
            json_answer(status, &outcome)
        }
        Err(_) => problem(StatusCode::INTERNAL_SERVER_ERROR, "The reload did not end as it should; this is a defect.", Value::Null),
    }
}

/// The answer to a request that the checks refused.
pub fn refused(why: Refused) -> Answer {
    match why {
        Refused::Token => {
            let refusal = problem(StatusCode::UNAUTHORIZED, "The admin token is missing or wrong.", Value::Null);
            with(refusal, WWW_AUTHENTICATE, "Bearer")
        }
        Refused::Host => {
            let detail = "Without a token the Host must be localhost, a loopback address or the admin address.";
            problem(StatusCode::FORBIDDEN, detail, Value::Null)
        }
        Refused::Origin => problem(StatusCode::FORBIDDEN, "Requests from web pages are refused.", Value::Null),
    }
}

/// The answer to a request whose body is too long or too slow. Nothing more is read from its connection.
pub fn unread(status: StatusCode, detail: &str) -> Answer {
    with(problem(status, detail, Value::Null), CONNECTION, "close")
}

fn problem(status: StatusCode, detail: &str, extra: Value) -> Answer {
    let mut body = json!({
        "type": "about:blank",
        "title": status.canonical_reason().unwrap_or_default(),
        "status": status.as_u16(),
        "detail": detail,
    });
    if let (Some(body), Value::Object(extra)) = (body.as_object_mut(), extra) {
        body.extend(extra);
    }
    made(status, "application/problem+json", body.to_string().into())
}

fn json_answer(status: StatusCode, body: &impl serde::Serialize) -> Answer {
    match serde_json::to_vec(body) {
        Ok(text) => made(status, "application/json", text.into()),
        Err(_) => problem(StatusCode::INTERNAL_SERVER_ERROR, "The answer cannot be written as JSON; this is a defect.", Value::Null),
    }
}

fn made(status: StatusCode, content_type: &'static str, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    let answer = with(answer, CONTENT_TYPE, content_type);
    with(with(answer, CACHE_CONTROL, "no-store"), X_CONTENT_TYPE_OPTIONS, "nosniff")
}

fn with(mut answer: Answer, name: HeaderName, value: &'static str) -> Answer {
    answer.headers_mut().insert(name, HeaderValue::from_static(value));
    answer
}
