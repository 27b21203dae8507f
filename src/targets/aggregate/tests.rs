//! Aggregates from configuration to answer, with upstreams that answer when the test says so.

mod load;
mod model;
pub(super) mod texts;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use http::StatusCode;
use http::header::CACHE_CONTROL;
use http_body_util::Full;
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::*;
use crate::http::template::sample::{exchange, params, with_claims, with_param};

/// The output of a future that never waits.
pub(super) fn now<F: Future>(future: F) -> F::Output {
    match std::pin::pin!(future).poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
        std::task::Poll::Ready(output) => output,
        std::task::Poll::Pending => panic!("it waits"),
    }
}

/// All bytes of a body.
pub(super) fn bytes_of(chunks: Chunks) -> Vec<u8> {
    now(http_body_util::BodyExt::collect(chunks)).unwrap().to_bytes().to_vec()
}

/// The plan of a part with these keys.
pub(super) fn plan(extra: Value) -> Plan {
    compile(&[part("a", "/", extra)]).parts.remove(0).plan
}

/// What an upstream does when it is called.
#[derive(Clone)]
enum Step {
    Answer(u16, &'static str, HeaderMap),
    Fail(CallFailure),
    /// Answers once notified.
    After(Arc<Notify>, Box<Step>),
    Never,
}

fn ok(body: &'static str) -> Step {
    Step::Answer(200, body, HeaderMap::new())
}

fn status(status: u16) -> Step {
    Step::Answer(status, "{}", HeaderMap::new())
}

fn cached(body: &'static str, cache: &'static str) -> Step {
    Step::Answer(200, body, HeaderMap::from_iter([(CACHE_CONTROL, HeaderValue::from_static(cache))]))
}

/// Upstreams by name, and what happened.
#[derive(Default)]
struct Fake {
    names: Vec<String>,
    steps: HashMap<String, Step>,
    requests: Mutex<Vec<(String, PartRequest)>>,
    /// Calls that were given up before their answer.
    dropped: Arc<Mutex<Vec<String>>>,
    called: Notify,
}

struct Open(String, Arc<Mutex<Vec<String>>>, bool);

impl Drop for Open {
    fn drop(&mut self) {
        if !self.2 {
            self.1.lock().unwrap().push(std::mem::take(&mut self.0));
        }
    }
}

impl Caller for Fake {
    type Body = Full<Bytes>;
    async fn call(&self, upstream: usize, request: PartRequest, _: Option<Instant>) -> Result<PartResponse<Self::Body>, CallFailure> {
        let name = self.names[upstream].clone();
        self.requests.lock().unwrap().push((name.clone(), request));
        self.called.notify_one();
        let mut open = Open(name.clone(), self.dropped.clone(), false);
        let mut step = self.steps[&name].clone();
        while let Step::After(gate, next) = step {
            gate.notified().await;
            step = *next;
        }
        if matches!(step, Step::Never) {
            std::future::pending::<()>().await;
        }
        open.2 = true;
        match step {
            Step::Answer(status, body, headers) => Ok(PartResponse {
                status: StatusCode::from_u16(status).unwrap(),
                headers,
                body: Full::new(Bytes::from_static(body.as_bytes())),
            }),
            Step::Fail(failure) => Err(failure),
            Step::After(..) | Step::Never => unreachable!(),
        }
    }
}

impl Fake {
    fn new(aggregate: &Aggregate, steps: &[(&str, Step)]) -> Self {
        let steps = steps.iter().map(|(name, step)| ((*name).to_owned(), step.clone())).collect();
        Self { names: aggregate.upstreams().to_vec(), steps, ..Self::default() }
    }
    fn targets(&self) -> Vec<String> {
        self.requests.lock().unwrap().iter().map(|(name, request)| format!("{name} {} {}", request.method, request.target)).collect()
    }
    async fn calls(&self, count: usize) {
        while self.requests.lock().unwrap().len() < count {
            self.called.notified().await;
        }
    }
}

/// A part named as its upstream, with `extra` keys.
fn part(name: &str, path: &str, extra: Value) -> Value {
    let mut part = json!({"name": name, "upstream": name, "path": path});
    if let Value::Object(extra) = extra {
        part.as_object_mut().unwrap().extend(extra);
    }
    part
}

/// From JSON with durations as the configuration has them in memory.
fn written(value: &Value) -> route::Aggregate {
    let parts = value["parts"].as_array().unwrap().iter().map(|part| {
        let list = |key: &str| part.get(key).map(|v| v.as_array().unwrap().iter().map(|v| v.as_str().unwrap().to_owned()).collect());
        route::Part {
            name: part["name"].as_str().unwrap().to_owned(),
            upstream: part["upstream"].as_str().unwrap().to_owned(),
            method: part["method"].as_str().unwrap_or("GET").to_owned(),
            path: part["path"].as_str().unwrap().to_owned(),
            timeout: part["timeout"].as_u64().map(|ms| crate::units::Setting::On(crate::units::Duration::from_millis(ms))),
            required: part["required"].as_bool().unwrap_or(false),
            select: part["select"].as_str().map(str::to_owned),
            allow: list("allow"),
            deny: list("deny"),
            rename: part.get("rename").map(|v| serde_json::from_value(v.clone()).unwrap()).unwrap_or_default(),
            group: part["group"].as_bool().unwrap_or(true),
        }
    });
    route::Aggregate {
        parts: parts.collect(),
        on_conflict: serde_json::from_value(value.get("on_conflict").cloned().unwrap_or(json!("last"))).unwrap(),
        concurrency: value["concurrency"].as_u64().map_or(16, |n| usize::try_from(n).unwrap()),
        max_part_size: crate::units::Size(value["max_part_size"].as_u64().unwrap_or(4 << 20)),
        forward_headers: value.get("forward_headers").map(|v| serde_json::from_value(v.clone()).unwrap()).unwrap_or_default(),
    }
}

fn try_compile(value: &Value) -> Result<Aggregate, Vec<String>> {
    let mut problems = Problems::default();
    let compiled = Aggregate::compile(&written(value), &At::main("aggregate"), &params(&["id"]), &mut problems);
    assert_eq!(compiled.is_none(), problems.has_errors());
    compiled.ok_or_else(|| problems.list().iter().map(|p| p.message.clone()).collect())
}

fn compile(parts: &[Value]) -> Aggregate {
    try_compile(&json!({"parts": parts})).unwrap()
}

async fn run_at(aggregate: &Aggregate, fake: &Fake, target: &str, deadline: Option<Instant>) -> Outcome {
    let ex = exchange(target);
    aggregate.run(fake, &ex, &HeaderMap::new(), Bytes::from_static(b"client"), deadline).await
}

async fn run(aggregate: &Aggregate, steps: &[(&str, Step)]) -> Outcome {
    run_at(aggregate, &Fake::new(aggregate, steps), "/home", None).await
}

/// Status, parts line and body of an outcome; for a refusal its reason instead of the body.
fn seen(outcome: Outcome) -> (u16, String, String) {
    let line = outcome.parts.map(|line| line.to_str().unwrap().to_owned()).unwrap_or_default();
    match outcome.answer {
        Ok((parts, body)) => {
            assert_eq!(parts.headers["x-tollgate-parts"], line);
            assert_eq!(parts.headers["content-type"], "application/json");
            (parts.status.as_u16(), line, String::from_utf8(bytes_of(body)).unwrap())
        }
        Err(refusal) => (refusal.status().as_u16(), line, refusal.reason.as_str().to_owned()),
    }
}

fn three(result: (u16, &str, &str)) -> (u16, String, String) {
    (result.0, result.1.to_owned(), result.2.to_owned())
}

#[tokio::test]
async fn the_contracts_example_gives_one_object() {
    let aggregate = compile(&[
        part("user", "/users/{id}", json!({"required": true})),
        part("orders", "/orders?user={id}", json!({"select": "data.items", "allow": ["id", "total"], "rename": {"total": "amount"}})),
        part("ads", "/ads", json!({"group": false})),
    ]);
    let fake = Fake::new(
        &aggregate,
        &[
            ("user", ok(r#"{"id":18446744073709551617}"#)),
            ("orders", ok(r#"{"data":{"items":[{"id":1,"total":9.90,"x":0}]}}"#)),
            ("ads", ok(r#"{"ad":"buy"}"#)),
        ],
    );
    let ex = with_param(exchange("/home/a%26b?q"), "id", "a%26b");
    let outcome = aggregate.run(&fake, &ex, &HeaderMap::new(), Bytes::new(), None).await;
    let body = r#"{"user":{"id":18446744073709551617},"orders":[{"id":1,"amount":9.90}],"ad":"buy"}"#;
    assert_eq!(seen(outcome), three((200, "user=200, orders=200, ads=200", body)));
    assert_eq!(fake.targets(), ["user GET /users/a%26b", "orders GET /orders?user=a%26b", "ads GET /ads"]);
}

#[tokio::test]
async fn parts_merge_in_written_order_whatever_comes_first() {
    let aggregate = compile(&[part("a", "/", json!({"group": false})), part("b", "/", json!({"group": false}))]);
    let gate = Arc::new(Notify::new());
    let fake = Fake::new(&aggregate, &[("a", Step::After(gate.clone(), Box::new(ok(r#"{"k":"a"}"#)))), ("b", ok(r#"{"k":"b"}"#))]);
    let (outcome, ()) = tokio::join!(run_at(&aggregate, &fake, "/", None), async {
        fake.calls(2).await;
        gate.notify_one();
    });
    assert_eq!(seen(outcome).2, r#"{"k":"b"}"#);
}

#[tokio::test]
async fn no_more_than_concurrency_run_at_once() {
    let parts: Vec<Value> = ["a", "b", "c", "d"].iter().map(|name| part(name, "/", json!({}))).collect();
    let aggregate = try_compile(&json!({"parts": parts, "concurrency": 2})).unwrap();
    let gates: Vec<_> = (0..4).map(|_| Arc::new(Notify::new())).collect();
    let steps: Vec<_> = ["a", "b", "c", "d"].into_iter().zip(&gates).map(|(n, g)| (n, Step::After(g.clone(), Box::new(ok("1"))))).collect();
    let fake = Fake::new(&aggregate, &steps);
    let (outcome, ()) = tokio::join!(run_at(&aggregate, &fake, "/", None), async {
        fake.calls(2).await;
        tokio::task::yield_now().await;
        assert_eq!(fake.targets(), ["a GET /", "b GET /"]);
        gates[1].notify_one();
        fake.calls(3).await;
        tokio::task::yield_now().await;
        assert_eq!(fake.targets().len(), 3);
        gates.iter().for_each(|gate| gate.notify_one());
    });
    assert_eq!(seen(outcome).2, r#"{"a":1,"b":1,"c":1,"d":1}"#);
}

#[tokio::test]
async fn a_failed_optional_part_leaves_no_key_and_the_answer_is_not_stored() {
    let aggregate = compile(&[part("a", "/", json!({})), part("b", "/", json!({})), part("c", "/", json!({"group": false}))]);
    let steps = [("a", cached("1", "max-age=60")), ("b", Step::Fail(CallFailure::Timeout)), ("c", ok("[1]"))];
    let outcome = run(&aggregate, &steps).await;
    assert_eq!(outcome.answer.as_ref().unwrap().0.headers[CACHE_CONTROL], "no-store");
    assert_eq!(seen(outcome), three((200, "a=200, b=timeout, c=not_object", r#"{"a":1}"#)));
}

#[tokio::test]
async fn every_failure_has_its_word_and_its_status_when_required() {
    use CallFailure::{ConnectFailed, NoEndpoint, Overloaded, ProtocolError, Reset, Timeout};
    let mut cases = vec![
        (Step::Fail(Timeout), "timeout", 504),
        (Step::Fail(ConnectFailed), "connect_failed", 502),
        (Step::Fail(Reset), "reset", 502),
        (Step::Fail(NoEndpoint), "no_endpoint", 503),
        (Step::Fail(Overloaded), "overloaded", 503),
        (Step::Fail(ProtocolError), "protocol_error", 502),
        (ok("<html>"), "not_json", 502),
        (ok("[]"), "not_object", 502),
        (ok("{\"long\":\"0123456789012345678901234567890123456789\"}"), "too_large", 502),
    ];
    for (code, word, sent) in [
        (400, "400", 400),
        (401, "401", 401),
        (402, "402", 502),
        (403, "403", 403),
        (404, "404", 404),
        (409, "409", 409),
        (410, "410", 410),
        (422, "422", 422),
        (429, "429", 429),
        (301, "301", 502),
        (405, "405", 502),
        (500, "500", 502),
        (503, "503", 502),
        (504, "504", 502),
    ] {
        cases.push((status(code), word, sent));
    }
    let parts = [part("good", "/", json!({})), part("bad", "/", json!({"required": true, "group": false}))];
    let aggregate = try_compile(&json!({"parts": parts, "max_part_size": 40})).unwrap();
    for (step, word, sent) in cases {
        let outcome = run(&aggregate, &[("good", ok("1")), ("bad", step)]).await;
        assert_eq!(seen(outcome), (sent, format!("good=200, bad={word}"), "aggregate_failed".to_owned()));
    }
}

#[tokio::test]
async fn a_failed_required_part_cancels_the_others_at_once() {
    let aggregate = compile(&[part("slow", "/", json!({})), part("bad", "/", json!({"required": true})), part("good", "/", json!({}))]);
    let challenge = HeaderMap::from_iter([(http::header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))]);
    let fake = Fake::new(&aggregate, &[("slow", Step::Never), ("bad", Step::Answer(401, "", challenge)), ("good", ok("1"))]);
    let refusal = run_at(&aggregate, &fake, "/", None).await.answer.unwrap_err();
    assert_eq!(refusal.status(), 401);
    assert_eq!(refusal.headers["www-authenticate"], "Bearer");
    assert_eq!(refusal.headers["x-tollgate-parts"], "slow=cancelled, bad=401, good=cancelled");
    assert_eq!(refusal.extra, [("parts", json!({"slow": "cancelled", "bad": "401", "good": "cancelled"}))]);
    assert_eq!(*fake.dropped.lock().unwrap(), ["slow"]);
}

#[tokio::test]
async fn if_all_parts_fail_there_is_no_answer() {
    let aggregate = compile(&[part("a", "/", json!({})), part("b", "/", json!({}))]);
    let late = || Step::Fail(CallFailure::Timeout);
    assert_eq!(seen(run(&aggregate, &[("a", late()), ("b", late())]).await).0, 504);
    assert_eq!(seen(run(&aggregate, &[("a", late()), ("b", status(404))]).await), three((502, "a=timeout, b=404", "aggregate_failed")));
}

#[tokio::test]
async fn at_the_deadline_what_is_there_is_merged() {
    let parts = [part("a", "/", json!({})), part("slow", "/", json!({})), part("later", "/{parts.slow.x}", json!({}))];
    let deadline = || Some(Instant::now());
    let aggregate = compile(&parts);
    let fake = Fake::new(&aggregate, &[("a", ok("1")), ("slow", Step::Never), ("later", ok("1"))]);
    let outcome = run_at(&aggregate, &fake, "/", deadline()).await;
    assert_eq!(seen(outcome), three((200, "a=200, slow=timeout, later=timeout", r#"{"a":1}"#)));
    assert_eq!(*fake.dropped.lock().unwrap(), ["slow"]);
    let aggregate = compile(&[part("a", "/", json!({"required": true})), part("slow", "/", json!({}))]);
    let fake = Fake::new(&aggregate, &[("a", Step::Never), ("slow", Step::Never)]);
    assert_eq!(seen(run_at(&aggregate, &fake, "/", deadline()).await), three((504, "a=timeout, slow=timeout", "aggregate_failed")));
}

#[tokio::test]
async fn a_parts_own_timeout_ends_only_that_part() {
    let aggregate = compile(&[part("slow", "/", json!({"timeout": 0})), part("b", "/", json!({}))]);
    let outcome = run(&aggregate, &[("slow", Step::Never), ("b", ok("2"))]).await;
    assert_eq!(seen(outcome), three((200, "slow=timeout, b=200", r#"{"b":2}"#)));
}

#[tokio::test]
async fn dropping_the_request_cancels_all_parts() {
    let aggregate = compile(&[part("a", "/", json!({})), part("b", "/", json!({}))]);
    let fake = Fake::new(&aggregate, &[("a", Step::Never), ("b", Step::Never)]);
    tokio::select! {
        _ = run_at(&aggregate, &fake, "/", None) => panic!("it ended"),
        () = fake.calls(2) => {}
    }
    assert_eq!(*fake.dropped.lock().unwrap(), ["a", "b"]);
}

#[tokio::test]
async fn a_part_waits_for_the_part_it_depends_on_and_others_do_not() {
    let aggregate = compile(&[
        part("orders", "/orders/{parts.user.ids.1}?n={parts.user.name}", json!({})),
        part("user", "/user", json!({"select": "nothing", "rename": {"name": "x"}})),
        part("ads", "/ads", json!({})),
    ]);
    let gate = Arc::new(Notify::new());
    let user = ok(r#"{"ids":[1,123456789012345678901234567890],"name":"a&/é"}"#);
    let fake = Fake::new(&aggregate, &[("orders", ok("[]")), ("user", Step::After(gate.clone(), Box::new(user))), ("ads", ok("2"))]);
    let (outcome, ()) = tokio::join!(run_at(&aggregate, &fake, "/", None), async {
        fake.calls(2).await;
        tokio::task::yield_now().await;
        assert_eq!(fake.targets(), ["user GET /user", "ads GET /ads"]);
        gate.notify_one();
    });
    assert_eq!(seen(outcome), three((200, "orders=200, user=200, ads=200", r#"{"orders":[],"user":null,"ads":2}"#)));
    assert_eq!(fake.targets()[2], "orders GET /orders/123456789012345678901234567890?n=a%26%2F%C3%A9");
}

#[tokio::test]
async fn a_value_that_is_missing_or_no_scalar_fails_the_waiting_part_only() {
    let aggregate = compile(&[
        part("user", "/", json!({})),
        part("orders", "/o/{parts.user.id}", json!({})),
        part("more", "/{parts.orders.x}", json!({})),
    ]);
    for user in [r#"{"id":null}"#, "{}", r#"{"id":{}}"#, r#"{"id":[1]}"#, r#"{"id":""}"#, r#"{"id":".."}"#, "7"] {
        let fake = Fake::new(&aggregate, &[("user", ok(user)), ("orders", ok("1")), ("more", ok("1"))]);
        let outcome = run_at(&aggregate, &fake, "/", None).await;
        assert_eq!(seen(outcome), (200, "user=200, orders=no_value, more=no_value".to_owned(), format!("{{\"user\":{user}}}")));
        assert_eq!(fake.targets().len(), 1);
    }
    let outcome = run(&aggregate, &[("user", status(404)), ("orders", ok("1")), ("more", ok("1"))]).await;
    assert_eq!(seen(outcome).1, "user=404, orders=no_value, more=no_value");
}

#[tokio::test]
async fn a_request_without_a_value_that_a_path_needs_calls_nobody() {
    let aggregate = compile(&[part("a", "/", json!({})), part("b", "/{claim:sub}/{parts.a.x}", json!({}))]);
    let fake = Fake::new(&aggregate, &[("a", ok("1")), ("b", ok("1"))]);
    assert_eq!(seen(run_at(&aggregate, &fake, "/", None).await), three((400, "", "bad_request")));
    assert!(fake.targets().is_empty());
    let ex = with_claims(exchange("/"), "u", &json!({"sub": "http://169.254.169.254/"}));
    let fake = Fake::new(&aggregate, &[("a", ok(r#"{"x":1}"#)), ("b", ok("1"))]);
    let outcome = aggregate.run(&fake, &ex, &HeaderMap::new(), Bytes::new(), None).await;
    assert_eq!(seen(outcome).0, 200);
    assert_eq!(fake.targets()[1], "b GET /http%3A%2F%2F169.254.169.254%2F/1");
}

#[tokio::test]
async fn bodies_and_headers_go_where_they_belong() {
    let parts = [part("get", "/?{query}", json!({})), part("post", "/", json!({"method": "POST"}))];
    let aggregate = try_compile(&json!({"parts": parts, "forward_headers": ["Authorization", "accept-language"]})).unwrap();
    assert!(aggregate.needs_body());
    let client: HeaderMap = [
        ("authorization", "Bearer t"),
        ("accept-language", "de"),
        ("cookie", "a=b"),
        ("content-type", "text/plain"),
        ("accept-encoding", "br"),
        ("x-forwarded-for", "1.2.3.4"),
        ("forwarded", "for=1.2.3.4"),
        ("x-real-ip", "1.2.3.4"),
        ("content-length", "6"),
        ("accept", "text/html"),
    ]
    .into_iter()
    .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
    .collect();
    let mut picked = aggregate.pick_headers(&client);
    picked.insert("x-user-id", HeaderValue::from_static("alice"));
    let fake = Fake::new(&aggregate, &[("get", ok("1")), ("post", ok("1"))]);
    aggregate.run(&fake, &exchange("/x?a=b&c"), &picked, Bytes::from_static(b"client"), None).await.answer.unwrap();
    let requests = fake.requests.lock().unwrap();
    let names = |index: usize| {
        let mut names: Vec<_> = requests[index].1.headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names.join(" ")
    };
    assert_eq!(names(0), "accept accept-encoding accept-language authorization forwarded x-forwarded-for x-user-id");
    assert_eq!(names(1), "accept accept-encoding accept-language authorization content-type forwarded x-forwarded-for x-user-id");
    assert_eq!(requests[0].1.headers[ACCEPT], "application/json");
    assert_eq!(requests[0].1.headers[ACCEPT_ENCODING], "gzip");
    assert_eq!(requests[0].1.target, "/?a=b&c");
    assert_eq!((&requests[0].1.body[..], &requests[1].1.body[..]), (&b""[..], &b"client"[..]));
    assert!(!compile(&[part("a", "/", json!({"method": "HEAD"}))]).needs_body());
}

#[tokio::test]
async fn caching_is_as_strict_as_the_strictest_part() {
    let aggregate = compile(&[part("a", "/", json!({})), part("b", "/", json!({})), part("c", "/", json!({}))]);
    for (a, b, expected) in [
        ("max-age=60", "public, max-age=\"30\"", Some("max-age=30")),
        ("private, max-age=60", "max-age=90", Some("private, max-age=60")),
        ("no-store", "max-age=90", Some("no-store")),
        ("Private", "No-Cache", Some("private, no-cache")),
        ("max-age=60, s-maxage=5", "max-age=x", Some("max-age=0")),
        ("public", "immutable", None),
    ] {
        let outcome = run(&aggregate, &[("a", cached("1", a)), ("b", cached("1", b)), ("c", ok("1"))]).await;
        let (head, _) = outcome.answer.unwrap();
        assert_eq!(head.headers.get(CACHE_CONTROL).map(|v| v.to_str().unwrap()), expected, "{a} + {b}");
    }
}

#[tokio::test]
async fn head_has_the_length_and_no_body_and_part_headers_are_dropped() {
    let aggregate = compile(&[part("a", "/", json!({}))]);
    let cookie = HeaderMap::from_iter([(http::header::SET_COOKIE, HeaderValue::from_static("a=b"))]);
    let fake = Fake::new(&aggregate, &[("a", Step::Answer(200, "1", cookie))]);
    let mut ex = exchange("/");
    ex.method = Method::HEAD;
    let (head, body) = aggregate.run(&fake, &ex, &HeaderMap::new(), Bytes::new(), None).await.answer.unwrap();
    assert_eq!((head.headers["content-length"].to_str().unwrap(), body.len()), ("7", 0));
    assert!(!head.headers.contains_key("set-cookie"));
    assert_eq!(fake.targets(), ["a GET /"]);
}

#[tokio::test]
async fn a_conflict_that_is_an_error_is_a_502() {
    let parts = [part("a", "/", json!({})), part("b", "/", json!({"group": false}))];
    let aggregate = try_compile(&json!({"parts": parts, "on_conflict": "error"})).unwrap();
    let outcome = run(&aggregate, &[("a", ok("1")), ("b", ok(r#"{"a":2}"#))]).await;
    assert_eq!(seen(outcome), three((502, "a=200, b=200", "aggregate_failed")));
}

#[test]
fn the_run_can_move_between_threads() {
    fn send<T: Send>(_: T) {}
    let aggregate = compile(&[part("a", "/", json!({}))]);
    let fake = Fake::new(&aggregate, &[]);
    let (ex, headers) = (exchange("/"), HeaderMap::new());
    send(aggregate.run(&fake, &ex, &headers, Bytes::new(), None));
}
