//! What the demo's backends answer.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Frame, Incoming};
use serde_json::{Value, json};
use tokio::time::Interval;

use super::{Backend, Kind, websocket};

/// Longest request body that is read.
const MAX_BODY: usize = 1 << 20;
/// Longest pause a request can ask for, in milliseconds.
const MAX_PAUSE: u64 = 60_000;
/// How long a backend stays broken after `POST /break`, unless `?seconds=` says otherwise.
const BROKEN_FOR: u64 = 15;

/// A body: whole, or a stream of events.
pub(super) enum Reply {
    Whole(Full<Bytes>),
    Events(Events),
}

/// One server-sent event a second, for as long as somebody listens.
pub(super) struct Events {
    interval: Interval,
    count: u64,
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(whole) => Pin::new(whole).poll_frame(cx),
            Self::Events(events) => {
                ready!(events.interval.poll_tick(cx));
                events.count += 1;
                let event = format!("id: {0}\ndata: {{\"tick\":{0}}}\n\n", events.count);
                Poll::Ready(Some(Ok(Frame::data(Bytes::from(event)))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(whole) => whole.is_end_stream(),
            Self::Events(_) => false,
        }
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        match self {
            Self::Whole(whole) => whole.size_hint(),
            Self::Events(_) => hyper::body::SizeHint::default(),
        }
    }
}

/// Answers one request.
pub(super) async fn answer(backend: &Backend, request: Request<Incoming>) -> Response<Reply> {
    let path = request.uri().path().to_owned();
    if path == "/break" && *request.method() == Method::POST {
        return break_down(backend, &request);
    }
    if backend.is_broken(Instant::now()) {
        return json_reply(StatusCode::SERVICE_UNAVAILABLE, &json!({ "error": "broken on purpose", "backend": backend.kind.name() }));
    }
    match path.as_str() {
        "/health" => return json_reply(StatusCode::OK, &json!({ "status": "ok" })),
        "/whoami" => return json_reply(StatusCode::OK, &json!({ "backend": backend.kind.name() })),
        "/checkout" => return json_reply(StatusCode::OK, &json!({ "checkout": version(backend.kind) })),
        _ => {}
    }
    match backend.kind {
        Kind::Users => users(&request),
        Kind::Orders => orders(backend, request).await,
        Kind::Ads => ads(&request),
    }
}

fn break_down(backend: &Backend, request: &Request<Incoming>) -> Response<Reply> {
    let seconds = query(request, "seconds").unwrap_or(BROKEN_FOR);
    backend.break_until(Instant::now() + Duration::from_secs(seconds.min(3600)));
    json_reply(StatusCode::OK, &json!({ "backend": backend.kind.name(), "broken_for_seconds": seconds.min(3600) }))
}

/// `users` and `orders` play the old checkout, `ads` the new one.
fn version(kind: Kind) -> &'static str {
    match kind {
        Kind::Users | Kind::Orders => "v1",
        Kind::Ads => "v2",
    }
}

const PEOPLE: [(u64, &str, &str); 3] = [(1, "Ada Lovelace", "admin"), (2, "Grace Hopper", "member"), (3, "Edsger Dijkstra", "member")];

fn person((id, name, role): &(u64, &str, &str)) -> Value {
    json!({ "id": id, "name": name, "role": role })
}

fn users(request: &Request<Incoming>) -> Response<Reply> {
    let path = request.uri().path();
    if path == "/users" {
        return json_reply(StatusCode::OK, &PEOPLE.iter().map(person).collect());
    }
    let id = path.strip_prefix("/users/").and_then(|id| id.parse::<u64>().ok());
    match PEOPLE.iter().find(|(known, ..)| Some(*known) == id) {
        Some(found) => json_reply(StatusCode::OK, &person(found)),
        None => not_found(),
    }
}

fn ads(request: &Request<Incoming>) -> Response<Reply> {
    match request.uri().path() {
        "/ads" => json_reply(StatusCode::OK, &json!({ "ads": ["Slide rules, as new", "Punch cards, by the box"] })),
        _ => not_found(),
    }
}

async fn orders(backend: &Backend, mut request: Request<Incoming>) -> Response<Reply> {
    let path = request.uri().path().to_owned();
    match path.as_str() {
        "/orders" if *request.method() == Method::POST => echo(request, StatusCode::CREATED).await,
        "/orders" => order_list(query(&request, "user")),
        "/echo" => echo(request, StatusCode::OK).await,
        "/slow" => {
            let pause = query(&request, "ms").unwrap_or(1000).min(MAX_PAUSE);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            json_reply(StatusCode::OK, &json!({ "slept_ms": pause }))
        }
        "/flaky" if backend.count().is_multiple_of(2) => {
            json_reply(StatusCode::SERVICE_UNAVAILABLE, &json!({ "error": "every second request fails" }))
        }
        "/flaky" => json_reply(StatusCode::OK, &json!({ "ok": true })),
        "/events" => events(),
        "/ws" => websocket::accept(&mut request),
        other => match other.strip_prefix("/status/").and_then(|code| code.parse().ok()) {
            Some(code @ 200..=599) => {
                let status = StatusCode::from_u16(code).unwrap_or(StatusCode::NOT_FOUND);
                json_reply(status, &json!({ "status": code }))
            }
            Some(_) | None => not_found(),
        },
    }
}

fn order_list(user: Option<u64>) -> Response<Reply> {
    let all = [(101_u64, 1_u64, "19.90"), (102, 1, "5.00"), (103, 2, "120.00")];
    let items: Vec<Value> = all
        .iter()
        .filter(|(_, owner, _)| user.is_none_or(|user| user == *owner))
        .map(|(id, owner, total)| json!({ "id": id, "user": owner, "total": total, "warehouse": "B7" }))
        .collect();
    json_reply(StatusCode::OK, &json!({ "data": { "items": items } }))
}

/// What arrived, as JSON: to see what the gateway adds, drops and rewrites.
async fn echo(request: Request<Incoming>, status: StatusCode) -> Response<Reply> {
    let (head, body) = request.into_parts();
    let Ok(body) = Limited::new(body, MAX_BODY).collect().await else {
        return json_reply(StatusCode::PAYLOAD_TOO_LARGE, &json!({ "error": "the demo reads up to 1 MiB" }));
    };
    let body = body.to_bytes();
    let mut headers = serde_json::Map::new();
    for (name, value) in &head.headers {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        match headers.get_mut(name.as_str()) {
            Some(Value::String(earlier)) => {
                earlier.push_str(", ");
                earlier.push_str(&value);
            }
            Some(_) | None => drop(headers.insert(name.as_str().to_owned(), Value::String(value))),
        }
    }
    let seen = json!({
        "method": head.method.as_str(),
        "target": head.uri.to_string(),
        "headers": headers,
        "body": String::from_utf8_lossy(&body),
    });
    json_reply(status, &seen)
}

fn events() -> Response<Reply> {
    let interval = tokio::time::interval(Duration::from_secs(1));
    let mut response = Response::new(Reply::Events(Events { interval, count: 0 }));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn not_found() -> Response<Reply> {
    json_reply(StatusCode::NOT_FOUND, &json!({ "error": "not found" }))
}

/// A number out of the query.
fn query(request: &Request<Incoming>, name: &str) -> Option<u64> {
    let pairs = request.uri().query()?.split('&');
    pairs.filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name)?.1.parse().ok()
}

fn json_reply(status: StatusCode, value: &Value) -> Response<Reply> {
    let mut response = empty(status, format!("{value}\n"));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// An answer with just this text.
pub(super) fn empty(status: StatusCode, text: String) -> Response<Reply> {
    let mut response = Response::new(Reply::Whole(Full::from(text)));
    *response.status_mut() = status;
    response
}
