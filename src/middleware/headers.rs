//! Header rules: `headers.request` and `headers.response`, level after level, and the `security` fields.

use std::collections::{BTreeMap, HashSet};
use std::sync::LazyLock;

use http::header::{REFERRER_POLICY, STRICT_TRANSPORT_SECURITY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS};
use http::{HeaderName, HeaderValue};

use crate::config::route::{HeaderOps, Headers};
use crate::config::{At, Problems};
use crate::http::Exchange;
use crate::http::h1::made::Names;
use crate::http::headers::{Fields, Ready, is_reserved};
use crate::http::template::{Allowed, HeaderTemplate, Param};

/// `security` on a connection in clear.
static SECURITY: LazyLock<Ready> = LazyLock::new(|| {
    Ready::from_iter([
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
        (REFERRER_POLICY, HeaderValue::from_static("strict-origin-when-cross-origin")),
    ])
});

/// And over TLS.
static HSTS: LazyLock<Ready> =
    LazyLock::new(|| Ready::from_iter([(STRICT_TRANSPORT_SECURITY, HeaderValue::from_static("max-age=31536000"))]));

/// The header rules of one route, all levels.
#[derive(Clone, Debug, Default)]
pub struct HeaderRules {
    request: Vec<Op>,
    response: Vec<Op>,
    security: bool,
}

#[derive(Clone, Debug)]
enum Op {
    Remove(Field),
    /// Constants, each name once.
    SetAll(Ready),
    Set(Field, HeaderTemplate),
    Add(Field, HeaderTemplate),
}

/// A field that a rule changes.
#[derive(Clone, Debug)]
struct Field {
    name: HeaderName,
    /// The name, as messages are asked for it.
    names: Names,
}

impl From<HeaderName> for Field {
    fn from(name: HeaderName) -> Self {
        Self { names: Names::of(name.as_str().as_bytes()), name }
    }
}

impl HeaderRules {
    /// Compiles all levels, defaults first. `params` are those of the route.
    pub fn compile(levels: &[(Headers, At)], params: &[Param], problems: &mut Problems) -> Self {
        let mut rules = Self::default();
        for (level, at) in levels {
            let mut compiler = Compiler { params, problems };
            compiler.ops(&level.request, &at.key("request"), &mut rules.request);
            compiler.ops(&level.response, &at.key("response"), &mut rules.response);
            rules.security |= level.security;
        }
        rules
    }

    /// Whether [`HeaderRules::request`] does anything.
    pub fn change_requests(&self) -> bool {
        !self.request.is_empty()
    }

    /// Whether [`HeaderRules::response`] does anything.
    pub fn change_responses(&self) -> bool {
        !self.response.is_empty() || self.security
    }

    /// Changes the request that goes upstream.
    pub fn request(&self, exchange: &Exchange, fields: &mut impl Fields) {
        apply(&self.request, exchange, fields);
    }

    /// Changes the response that goes to the client: the `security` fields it lacks, then the rules. `https`: the client's side is TLS.
    pub fn response(&self, exchange: &Exchange, fields: &mut impl Fields, https: bool) {
        if self.security {
            fill_up(&SECURITY, fields);
            if https {
                fill_up(&HSTS, fields);
            }
        }
        apply(&self.response, exchange, fields);
    }
}

/// Adds what is not there.
fn fill_up(ready: &Ready, fields: &mut impl Fields) {
    if !fields.may_have(ready.names()) {
        return fields.append_all(ready);
    }
    for (name, value) in ready.iter() {
        if !fields.has(name) {
            fields.append(name, value.into());
        }
    }
}

fn apply(ops: &[Op], exchange: &Exchange, fields: &mut impl Fields) {
    let mut text = Vec::new();
    for op in ops {
        match op {
            Op::Remove(field) => {
                if fields.may_have(field.names) {
                    fields.remove(&field.name);
                }
            }
            Op::SetAll(ready) if !fields.may_have(ready.names()) => fields.append_all(ready),
            Op::SetAll(ready) => ready.iter().for_each(|(name, value)| fields.replace(name, Some(value.into()))),
            // Without a value the client's copy goes all the same: nobody may fill a field that the gateway owns.
            Op::Set(field, value) => {
                let value = value.render(exchange, &mut text);
                if fields.may_have(field.names) {
                    fields.replace(&field.name, value);
                } else if let Some(value) = value {
                    fields.append(&field.name, value);
                }
            }
            Op::Add(field, value) => {
                if let Some(value) = value.render(exchange, &mut text) {
                    fields.append(&field.name, value);
                }
            }
        }
    }
}

/// Adds a `set`. Constants that follow each other are put on a message together.
fn push_set(ops: &mut Vec<Op>, name: HeaderName, value: HeaderTemplate) {
    let Some(constant) = value.constant() else { return ops.push(Op::Set(name.into(), value)) };
    match ops.last_mut() {
        // One that is set again, or whose like is, takes the place of the first.
        Some(Op::SetAll(ready)) if !ready.names().may_share(Names::of(name.as_str().as_bytes())) => ready.push(name, constant.clone()),
        Some(_) | None => ops.push(Op::SetAll(Ready::from_iter([(name, constant.clone())]))),
    }
}

struct Compiler<'a> {
    params: &'a [Param],
    problems: &'a mut Problems,
}

impl Compiler<'_> {
    fn ops(&mut self, written: &HeaderOps, at: &At, ops: &mut Vec<Op>) {
        for (index, name) in written.remove.iter().enumerate() {
            let at = at.key("remove").index(index);
            ops.extend(self.name(name, &at).map(|name| Op::Remove(name.into())));
        }
        self.values(&written.set, &at.key("set"), |name, value| push_set(ops, name, value));
        self.values(&written.add, &at.key("add"), |name, value| ops.push(Op::Add(name.into(), value)));
    }

    fn values(&mut self, written: &BTreeMap<String, String>, at: &At, mut push: impl FnMut(HeaderName, HeaderTemplate)) {
        let mut seen = HashSet::new();
        for (key, text) in written {
            let at = at.key(key);
            let name = self.name(key, &at.its_key());
            let value = self.value(text, &at);
            let (Some(name), Some(value)) = (name, value) else { continue };
            if seen.insert(name.clone()) {
                push(name, value);
            } else {
                report(
                    self.problems,
                    at.its_key(),
                    format!("the header `{name}` is written twice"),
                    Some("names of headers ignore case".to_owned()),
                );
            }
        }
    }

    fn name(&mut self, written: &str, at: &At) -> Option<HeaderName> {
        let Ok(name) = HeaderName::from_bytes(written.as_bytes()) else {
            report(self.problems, at.clone(), format!("`{written}` is not a header name"), None);
            return None;
        };
        if is_reserved(name.as_str()) {
            let help =
                if name == "host" { "write `rewrite: { host: … }` to change the Host" } else { "the gateway makes this field itself" };
            report(self.problems, at.clone(), format!("the header `{name}` cannot be changed by a rule"), Some(help.to_owned()));
            return None;
        }
        Some(name)
    }

    fn value(&mut self, text: &str, at: &At) -> Option<HeaderTemplate> {
        let allowed = Allowed { params: self.params, parts: None };
        HeaderTemplate::parse(text, allowed).map_err(|error| report(self.problems, at.clone(), error.message, error.help)).ok()
    }
}

/// Records an error once: inherited levels are compiled for every route under them.
fn report(problems: &mut Problems, at: At, message: String, help: Option<String>) {
    if problems.list().iter().any(|known| known.at == at && known.message == message) {
        return;
    }
    problems.error(at, message).help = help;
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use http::HeaderMap;
    use proptest::prelude::*;
    use proptest::sample::select;
    use serde_json::json;

    use super::*;
    use crate::http::h1::{Limits, encode, parse_response};
    use crate::http::template::sample::{exchange, params, with_claims, with_param};

    fn map(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
        entries.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn ops(remove: &[&str], set: &[(&str, &str)], add: &[(&str, &str)]) -> HeaderOps {
        HeaderOps { set: map(set), add: map(add), remove: remove.iter().map(|s| (*s).to_owned()).collect() }
    }

    fn request(ops: HeaderOps) -> (Headers, At) {
        (Headers { request: ops, ..Headers::default() }, At::main("defaults").key("headers"))
    }

    fn compile(levels: &[(Headers, At)]) -> HeaderRules {
        let mut problems = Problems::default();
        let rules = HeaderRules::compile(levels, &params(&["id"]), &mut problems);
        assert_eq!(problems.list(), []);
        rules
    }

    fn headers(entries: &[(&'static str, &'static str)]) -> HeaderMap {
        entries.iter().map(|(k, v)| (HeaderName::from_static(k), HeaderValue::from_static(v))).collect()
    }

    fn after(rules: &HeaderRules, exchange: &Exchange, before: &[(&'static str, &'static str)]) -> Vec<String> {
        let mut map = headers(before);
        rules.request(exchange, &mut map);
        let mut lines: Vec<String> = map.iter().map(|(k, v)| format!("{k}: {}", v.to_str().unwrap())).collect();
        lines.sort();
        lines
    }

    #[test]
    fn each_level_removes_sets_and_adds_in_that_order() {
        let rules = compile(&[
            request(ops(&["x-a"], &[("X-A", "1"), ("x-b", "1")], &[("x-a", "2")])),
            request(ops(&["x-b"], &[], &[("x-a", "3"), ("x-c", "{path}")])),
        ]);
        let lines = after(&rules, &exchange("/p"), &[("x-a", "client"), ("x-b", "client"), ("x-d", "kept")]);
        assert_eq!(lines, ["x-a: 1", "x-a: 2", "x-a: 3", "x-c: /p", "x-d: kept"]);
    }

    #[test]
    fn set_takes_away_the_clients_copy_even_without_a_value() {
        let rules = compile(&[request(ops(&[], &[("x-tenant", "{claim:tenant}")], &[("x-other", "{claim:tenant}")]))]);
        let before = [("x-tenant", "forged"), ("x_tenant", "forged")];
        assert_eq!(after(&rules, &exchange("/"), &before), [""; 0]);
        let ex = with_claims(exchange("/"), "u", &json!({"tenant": "acme"}));
        assert_eq!(after(&rules, &ex, &before), ["x-other: acme", "x-tenant: acme"]);
    }

    #[test]
    fn set_takes_away_all_underscore_twins() {
        let rules = compile(&[request(ops(&[], &[("x-user-id", "{id}")], &[]))]);
        let ex = with_param(exchange("/u/a%20b"), "id", "a%20b");
        let before = [("x_user_id", "1"), ("x-user_id", "2"), ("x_user-id", "3"), ("x_user_idx", "4")];
        assert_eq!(after(&rules, &ex, &before), ["x-user-id: a b", "x_user_idx: 4"]);
        let rules = compile(&[request(ops(&[], &[("x_user", "1")], &[]))]);
        assert_eq!(after(&rules, &ex, &[("x-user", "forged")]), ["x_user: 1"]);
    }

    #[test]
    fn security_fills_gaps_only_and_hsts_needs_https() {
        let rules =
            compile(&[(Headers { security: true, response: ops(&["referrer-policy"], &[], &[]), ..Headers::default() }, At::default())]);
        let mut map = headers(&[("x-frame-options", "SAMEORIGIN")]);
        rules.response(&exchange("/"), &mut map, false);
        assert_eq!(map, headers(&[("x-frame-options", "SAMEORIGIN"), ("x-content-type-options", "nosniff")]));
        rules.response(&exchange("/"), &mut map, true);
        assert_eq!(map["strict-transport-security"], "max-age=31536000");
        let mut own = headers(&[("strict-transport-security", "max-age=1")]);
        rules.response(&exchange("/"), &mut own, true);
        assert_eq!(own["strict-transport-security"], "max-age=1");
    }

    #[test]
    fn rules_know_which_way_they_change_something() {
        let changes = |levels: &[(Headers, At)]| (compile(levels).change_requests(), compile(levels).change_responses());
        assert_eq!(changes(&[]), (false, false));
        assert_eq!(changes(&[request(HeaderOps::default())]), (false, false));
        assert_eq!(changes(&[request(ops(&["x"], &[], &[]))]), (true, false));
        let response = Headers { response: ops(&["x"], &[], &[]), ..Headers::default() };
        assert_eq!(changes(&[(response, At::main("defaults"))]), (false, true));
        assert_eq!(changes(&[(Headers { security: true, ..Headers::default() }, At::main("defaults"))]), (false, true));
    }

    #[test]
    fn fields_of_connection_and_framing_are_refused_once_each() {
        let names = ["Connection", "content-length", "Transfer-Encoding", "host", "Upgrade", "TE", "trailer", "bad name"];
        for name in names {
            for ops in [ops(&[], &[(name, "x")], &[]), ops(&[], &[], &[(name, "x")]), ops(&[name], &[], &[])] {
                let mut problems = Problems::default();
                let level = request(ops);
                HeaderRules::compile(std::slice::from_ref(&level), &[], &mut problems);
                HeaderRules::compile(&[level], &[], &mut problems);
                assert_eq!(problems.list().len(), 1, "{name}");
            }
        }
    }

    #[test]
    fn bad_values_and_names_written_twice_are_refused_at_their_place() {
        let mut problems = Problems::default();
        HeaderRules::compile(
            &[request(ops(&[], &[("x-a", "{nope}"), ("x-b", "a\nb"), ("x-c", "1"), ("X-C", "2")], &[]))],
            &[],
            &mut problems,
        );
        let places: Vec<_> = problems.list().iter().map(|p| (p.at.path.last().cloned(), p.at.on_key)).collect();
        let key = |k: &str| Some(crate::config::problem::Seg::Key(k.to_owned()));
        assert_eq!(places, [(key("x-a"), false), (key("x-b"), false), (key("x-c"), true)]);
    }

    const NAMES: [&str; 8] = ["x-a", "x_a", "X-A-B", "server", "Date", "x-frame-options", "referrer-policy", "Set-Cookie"];
    const VALUES: [&str; 6] = ["1", "a {{b}}", "{claim:tenant}", "{claim:none}", "{path}; {scheme}", "{request_id}"];

    fn some_ops() -> impl Strategy<Value = HeaderOps> {
        let values = || proptest::collection::btree_map(select(&NAMES[..]).prop_map(str::to_lowercase), select(&VALUES[..]), 0..3);
        let remove = proptest::collection::vec(select(&NAMES[..]), 0..3);
        (values(), values(), remove).prop_map(|(set, add, remove)| {
            let owned = |map: BTreeMap<String, &str>| map.into_iter().map(|(name, value)| (name, value.to_owned())).collect();
            HeaderOps { set: owned(set), add: owned(add), remove: remove.into_iter().map(str::to_owned).collect() }
        })
    }

    proptest! {
        #[test]
        fn rules_do_the_same_to_lines_as_to_a_map(
            levels in proptest::collection::vec((some_ops(), any::<bool>()), 1..3),
            message in proptest::collection::vec((select(&NAMES[..]), "[a-z]{1,5}"), 0..9),
            https in any::<bool>(),
        ) {
            let level = |(response, security)| (Headers { response, security, ..Headers::default() }, At::main("defaults"));
            let rules = compile(&levels.into_iter().map(level).collect::<Vec<_>>());
            let ex = with_claims(exchange("/p"), "u", &json!({"tenant": "acme"}));
            let mut wire = b"HTTP/1.1 200 OK\r\n".to_vec();
            message.iter().for_each(|(name, value)| encode::field(&mut wire, name, value.as_bytes()));
            wire.extend_from_slice(b"\r\n");
            let head = |as_lines| {
                let limits = Limits { max_head: 1 << 14, max_fields: 99 };
                parse_response(&mut BytesMut::from(&wire[..]), &mut 0, limits, as_lines).unwrap().unwrap()
            };
            let (mut map, mut lines) = (head(false).headers, head(true).lines.unwrap());
            rules.response(&ex, &mut map, https);
            rules.response(&ex, &mut *lines, https);
            prop_assert_eq!(lines.into_map(), map);
        }
    }
}
