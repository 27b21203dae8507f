//! `explain`: which route a request takes, why the others lost, and what would be done to it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Instant;

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, Version};
use tollgate::config::auth::AuthRule;
use tollgate::config::{hide, resolve};
use tollgate::gateway::Snapshot;
use tollgate::http::headers::{Survey, remove_hop_by_hop};
use tollgate::http::target::{canonical, host};
use tollgate::http::template::{Allowed, UrlTemplate, params_of};
use tollgate::http::{Connection, Exchange, Params, Scheme};
use tollgate::middleware::cors::preflight_method;
use tollgate::middleware::rate_limit::Step;
use tollgate::router::{Outcome, Query, Verdict};
use tollgate::units;

use super::{BAD_CONFIG, DONE, Explain, NO_ROUTE, Options, compiled, print_reports};

/// `explain METHOD URL`.
pub fn explain(options: &Options, request: &Explain) -> io::Result<ExitCode> {
    let snapshot = match compiled(options) {
        Ok(snapshot) => snapshot,
        Err(reports) => {
            print_reports(&reports)?;
            return Ok(ExitCode::from(BAD_CONFIG));
        }
    };
    let asked = match Asked::read(request, &snapshot) {
        Ok(asked) => asked,
        Err(problem) => {
            writeln!(io::stderr(), "tollgate: {problem}")?;
            return Ok(ExitCode::from(BAD_CONFIG));
        }
    };
    let query = Query {
        scheme: asked.scheme,
        host: asked.host.name(),
        path: asked.target.path(),
        query: asked.target.query(),
        method: &asked.method,
        headers: &asked.headers,
    };
    let (text, code) = render(&snapshot, &asked, &query);
    write!(io::stdout(), "{text}")?;
    Ok(ExitCode::from(code))
}

/// The request, canonical as the gateway would see it.
struct Asked {
    method: Method,
    scheme: Scheme,
    headers: HeaderMap,
    host: tollgate::http::Host,
    target: PathAndQuery,
}

impl Asked {
    fn read(request: &Explain, snapshot: &Snapshot) -> Result<Self, String> {
        let method = Method::from_bytes(request.method.as_bytes()).map_err(|_| format!("`{}` is not a method", request.method))?;
        let uri: Uri = request.url.parse().map_err(|_| format!("`{}` is neither a URL nor a path", request.url))?;
        // A word alone would be read as a host.
        if uri.scheme().is_none() && !request.url.starts_with('/') {
            return Err(format!("`{}`: write a path like /api/users, or a URL like http://host/path", request.url));
        }
        let mut headers = HeaderMap::new();
        for line in &request.headers {
            let (name, value) = line.split_once(':').ok_or_else(|| format!("`{line}` is not a header: write 'name: value'"))?;
            let name: HeaderName = name.trim().parse().map_err(|_| format!("`{name}` is not a header name"))?;
            headers.append(name, HeaderValue::from_str(value.trim()).map_err(|_| format!("`{value}` is not a header value"))?);
        }
        if !headers.contains_key("host") {
            // What a client given this URL would send.
            let authority = uri.authority().map_or("localhost", |authority| authority.as_str());
            headers.insert("host", HeaderValue::from_str(authority).map_err(|_| format!("`{authority}` is not a host"))?);
        }
        // No route is chosen by what the gateway takes away first.
        let seen = Survey::of(&headers);
        remove_hop_by_hop(&mut headers, seen);
        snapshot.protected.remove(&mut headers);
        let host = host(Version::HTTP_11, &headers, &uri).map_err(|detail| format!("400 bad_request: {detail}"))?;
        let received = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        let changed = canonical(&received, snapshot.encoded_slash).map_err(|detail| format!("400 bad_request: {detail}"))?;
        // A path alone is asked for in clear text.
        let scheme = if uri.scheme_str() == Some("https") { Scheme::Https } else { Scheme::Http };
        Ok(Self { method, headers, host, target: changed.unwrap_or(received), scheme })
    }

    /// The request as templates see it: from this machine, by a caller who is not known yet.
    fn exchange(&self, params: Params) -> Exchange {
        let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let tls = self.scheme == Scheme::Https;
        Exchange {
            worker: 0,
            connection: Connection { listener: 0, peer, tls, tls_version: None, client_cert: None },
            started: Instant::now(),
            method: self.method.clone(),
            version: Version::HTTP_11,
            target: self.target.clone(),
            host: self.host.clone(),
            scheme: self.scheme,
            client_ip: peer.ip(),
            request_id: HeaderValue::from_static("REQUEST_ID"),
            params,
            identity: None,
            rate_fields: None,
            auth_error: None,
            rate_limit: None,
        }
    }
}

fn render(snapshot: &Snapshot, asked: &Asked, query: &Query<'_>) -> (String, u8) {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(out, "{} {} on host {} by {}", asked.method, asked.target, asked.host.name(), asked.scheme.as_str());
    let preflight = preflight_method(query.method, query.headers).and_then(|asked| Method::from_bytes(asked.as_bytes()).ok());
    let query = &preflight.as_ref().map_or(*query, |asked| preflighted(snapshot, query, asked));
    if *query.method != asked.method {
        let _ = writeln!(out, "a CORS preflight for {}, answered by its route", query.method);
    }
    let outcome = snapshot.router.find(query);
    let code = match &outcome {
        Outcome::Found { route, params } => {
            winner(&mut out, snapshot, *route, &asked.exchange(params.clone()));
            DONE
        }
        Outcome::MethodNotAllowed { allow } => {
            let _ = writeln!(out, "-> 405 method_not_allowed (Allow: {})", allow.to_str().unwrap_or_default());
            NO_ROUTE
        }
        Outcome::NotFound => {
            let _ = writeln!(out, "-> 404 no_route");
            NO_ROUTE
        }
    };
    let _ = writeln!(out, "\nroutes, those that beat others first:");
    for (index, verdict) in snapshot.router.explain(query) {
        let (Some(route), Some(place)) = (snapshot.resolved.get(index), snapshot.source.places.get(index)) else { continue };
        let mark = if matches!(verdict, Verdict::Won) { "*" } else { " " };
        let _ = writeln!(out, "{mark} {} ({place}): {verdict}", route.name);
    }
    (out, code)
}

/// What a preflight is routed by: the method it asks for, where that route has `cors`.
fn preflighted<'a>(snapshot: &Snapshot, query: &Query<'a>, asked: &'a Method) -> Query<'a> {
    let query = *query;
    let by_method = Query { method: asked, ..query };
    match snapshot.router.find(&by_method) {
        Outcome::Found { route, .. } if snapshot.resolved.get(route).is_some_and(|route| route.cors.is_some()) => by_method,
        Outcome::Found { .. } | Outcome::MethodNotAllowed { .. } | Outcome::NotFound => query,
    }
}

fn winner(out: &mut String, snapshot: &Snapshot, index: usize, exchange: &Exchange) {
    let (Some(route), Some(place)) = (snapshot.resolved.get(index), snapshot.source.places.get(index)) else { return };
    let _ = writeln!(out, "-> route {} ({place})\n\nchain:", route.name);
    let mut step = |name: &str, text: String| {
        let _ = writeln!(out, "  {name:<13} {}", hide(&text, &snapshot.source.substituted));
    };
    policies(route, &mut step);
    let proxied = matches!(route.target, resolve::Target::Upstream(_) | resolve::Target::Split(_));
    if let Some((mirror, _)) = route.mirror.as_ref().filter(|_| proxied) {
        let shadow = target(snapshot, &resolve::Target::Upstream(mirror.upstream.clone()));
        step("mirror", format!("{} to {shadow}, linger {}", mirror.percent, mirror.linger));
    }
    step("target", target(snapshot, &route.target));
    if let resolve::Target::Aggregate(aggregate) = &route.target {
        for part in &aggregate.parts {
            step("part path", format!("{} {}", part.name, part_path(&part.path, route, exchange)));
        }
    }
    if let Some(compiled) = snapshot.routes.get(index).filter(|_| proxied) {
        let path = match compiled.rewrite.as_ref().map_or(Ok(None), |rewrite| rewrite.apply(exchange)) {
            Ok(path) => path.unwrap_or_else(|| exchange.target.clone()).to_string(),
            Err(_) => written_path(route, "400 bad_request"),
        };
        step("upstream path", path);
    }
}

/// Every step of the chain that the route has, in order, up to its target.
fn policies(route: &resolve::Route, step: &mut impl FnMut(&str, String)) {
    let span = |duration: Option<std::time::Duration>| duration.map_or_else(|| "off".to_owned(), |d| units::Duration(d).to_string());
    if let Some((ip, _)) = &route.ip {
        step("ip", format!("allow {:?}, deny {:?}", ip.allow, ip.deny));
    }
    if let Some((cors, _)) = &route.cors {
        step("cors", format!("origins {}", cors.origins.join(", ")));
    }
    if let Some(limit) = route.body_limit {
        step("body_limit", units::Size(limit).to_string());
    }
    rate_limits(route, Step::Address, step);
    if let Some((auth, _)) = &route.auth {
        step("auth", auth_rule(auth));
    }
    rate_limits(route, Step::User, step);
    rate_limits(route, Step::Global, step);
    if let Some(rewrite) = &route.rewrite {
        let path = rewrite.path.as_ref().map(|path| format!("path {path}"));
        let strip = rewrite.strip_prefix.as_ref().map(|prefix| format!("strip {prefix}"));
        let regex = rewrite.regex.as_ref().map(|regex| format!("{regex} -> {}", rewrite.to.clone().unwrap_or_default()));
        let host = rewrite.host.as_ref().map(|host| format!("host {host}"));
        step("rewrite", [path, strip, regex, host].into_iter().flatten().collect::<Vec<_>>().join(", "));
    }
    for (headers, _) in &route.headers {
        for (side, ops) in [("request", &headers.request), ("response", &headers.response)] {
            for (what, names) in [("remove", ops.remove.join(", ")), ("set", keys(&ops.set)), ("add", keys(&ops.add))] {
                if !names.is_empty() {
                    step("headers", format!("{side} {what} {names}"));
                }
            }
        }
        if headers.security {
            step("headers", "security".to_owned());
        }
    }
    step("timeout", span(route.timeout));
    step("idle_timeout", span(route.idle_timeout));
    if let Some(retry) = &route.retry {
        let when: Vec<String> = retry.when.iter().map(ToString::to_string).collect();
        let each = retry.per_try_timeout.map_or_else(String::new, |limit| format!(", each {limit}"));
        step("retry", format!("{} more on {}{each}, backoff {}, budget {}", retry.attempts, when.join(", "), retry.backoff, retry.budget));
    }
}

fn rate_limits(route: &resolve::Route, turn: Step, step: &mut impl FnMut(&str, String)) {
    for (limit, _) in route.rate_limits.iter().filter(|(limit, _)| Step::of(&limit.by.0) == turn) {
        let by: Vec<String> = limit.by.0.iter().map(ToString::to_string).collect();
        let burst = limit.burst.unwrap_or(limit.rate.count);
        let store = limit.store.as_ref().map_or_else(String::new, |store| format!(", store {store}"));
        step("rate_limit", format!("{} by {}, burst {burst}{store}", limit.rate, by.join(", ")));
    }
}

fn keys(map: &BTreeMap<String, String>) -> String {
    map.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
}

fn auth_rule(rule: &AuthRule) -> String {
    let mut text = rule.any.join(" or ");
    if !rule.scopes.is_empty() {
        let _ = write!(text, ", scopes {}", rule.scopes.join(", "));
    }
    for (name, values) in &rule.claims {
        let _ = write!(text, ", claim {name} is {}", values.join(" or "));
    }
    if rule.optional {
        text.push_str(" (optional)");
    }
    text
}

/// A path that this request cannot fill, as it is written; `refused` if the caller would make no difference.
fn written_path(route: &resolve::Route, refused: &str) -> String {
    match route.rewrite.as_ref().and_then(|rewrite| rewrite.path.as_ref()) {
        Some(path) if of_caller(path) => path.clone(),
        _ => refused.to_owned(),
    }
}

/// Whether a template takes something from who calls.
fn of_caller(template: &str) -> bool {
    template.contains("{user}") || template.contains("{claim:")
}

/// The path of an aggregate's part; as written, if it needs the caller or another part's answer.
fn part_path(written: &str, route: &resolve::Route, exchange: &Exchange) -> String {
    let params = params_of(&route.matcher);
    match UrlTemplate::parse(written, Allowed { params: &params, parts: None }) {
        Ok(template) => template.render(exchange.into(), None).unwrap_or_else(|_| match of_caller(written) {
            true => written.to_owned(),
            false => "400 bad_request".to_owned(),
        }),
        Err(_) => written.to_owned(),
    }
}

fn target(snapshot: &Snapshot, target: &resolve::Target) -> String {
    let endpoints = |name: &String| {
        let ids =
            snapshot.upstreams.get(name).map(|handle| handle.upstream.endpoints().iter().map(|e| e.id.to_string()).collect::<Vec<_>>());
        format!("{name} ({})", ids.unwrap_or_default().join(", "))
    };
    match target {
        resolve::Target::Upstream(name) => format!("upstream {}", endpoints(name)),
        resolve::Target::Split(split) => {
            let branches: Vec<String> =
                split.to.iter().map(|branch| format!("{} x {}", branch.weight, endpoints(&branch.upstream))).collect();
            let by: Vec<String> = split.by.iter().map(ToString::to_string).collect();
            let by = if by.is_empty() { String::new() } else { format!(" by {}", by.join(", ")) };
            format!("split {}{by}", branches.join(", "))
        }
        resolve::Target::Aggregate(aggregate) => {
            let parts: Vec<String> =
                aggregate.parts.iter().map(|part| format!("{} = {} {} of {}", part.name, part.method, part.path, part.upstream)).collect();
            format!("aggregate {}", parts.join(", "))
        }
        resolve::Target::Respond(respond) => format!("respond {}", respond.status),
        resolve::Target::Redirect(redirect) => format!("redirect {} {}", redirect.status, redirect.to),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::{Cli, Command};
    use super::*;

    /// What `explain` says about the route of this path.
    fn explained(yaml: &str, path: &str) -> String {
        asked(yaml, &["GET", path])
    }

    /// What `explain` says with these arguments.
    fn asked(yaml: &str, arguments: &[&str]) -> String {
        let (snapshot, asked) = read(yaml, arguments);
        let asked = asked.unwrap();
        let (path, query) = (asked.target.path(), asked.target.query());
        let query = Query { scheme: asked.scheme, host: asked.host.name(), path, query, method: &asked.method, headers: &asked.headers };
        render(&snapshot, &asked, &query).0
    }

    /// What `explain` makes of these arguments.
    fn read(yaml: &str, arguments: &[&str]) -> (Snapshot, Result<Asked, String>) {
        let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
        std::fs::write(file.path(), yaml).unwrap();
        let command = ["tollgate", "--config", file.path().to_str().unwrap(), "explain"];
        let cli = Cli::try_parse_from(command.iter().chain(arguments)).unwrap();
        let Some(Command::Explain(request)) = cli.command else { panic!("not explain") };
        let snapshot = compiled(&cli.options).unwrap_or_else(|reports| panic!("{reports:?}"));
        let asked = Asked::read(&request, &snapshot);
        (snapshot, asked)
    }

    #[test]
    fn every_kind_of_target_and_a_mirror_are_shown() {
        let yaml = "
listeners: [{ address: '127.0.0.1:0' }]
upstreams: { a: { endpoints: [http://127.0.0.1:1] }, b: { endpoints: [http://127.0.0.1:2] } }
routes:
  - match: { prefix: / }
    mirror: { upstream: b, percent: 10% }
    routes:
      - { match: /one, upstream: a }
      - { match: /split, split: { by: [cookie:session, ip], to: [{ upstream: a, weight: 9 }, { upstream: b, weight: 1 }] } }
      - match: /many
        aggregate: { parts: [{ name: x, upstream: a, path: /x }, { name: y, upstream: b, path: '/y/{parts.x.id}', method: POST }] }
";
        let shown = |path| explained(yaml, path);
        for (path, lines) in [
            (
                "/one?x=1",
                ["mirror        10% to upstream b (http://127.0.0.1:2), linger 1s", "target        upstream a (http://127.0.0.1:1)"],
            ),
            (
                "/split",
                [
                    "mirror        10% to upstream b (http://127.0.0.1:2), linger 1s",
                    "target        split 9 x a (http://127.0.0.1:1), 1 x b (http://127.0.0.1:2) by cookie:session, ip",
                ],
            ),
            ("/many", ["idle_timeout", "target        aggregate x = GET /x of a, y = POST /y/{parts.x.id} of b"]),
        ] {
            let text = shown(path);
            assert!(lines.iter().all(|line| text.contains(line)), "{text}");
        }
        assert!(!shown("/many").contains("mirror "), "an aggregate is not copied");
    }

    #[test]
    fn what_the_gateway_takes_away_chooses_no_route() {
        let yaml = "
listeners: [{ address: '127.0.0.1:0' }]
upstreams: { a: { endpoints: [http://127.0.0.1:1] } }
authenticators: { k: { api_key: { keys: [{ id: a, sha256: 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae }], forward: { id: x-user } } } }
routes:
  - { name: root, match: { path: /a, headers: { x-user: root } }, priority: 1, auth: k, upstream: a }
  - { name: hop, match: { path: /a, headers: { x-hop: a } }, upstream: a }
  - { name: anybody, match: /a, upstream: a }
";
        assert!(asked(yaml, &["GET", "/a", "-H", "x-user: root"]).contains("-> route anybody"));
        assert!(asked(yaml, &["GET", "/a", "-H", "connection: x-hop", "-H", "x-hop: a"]).contains("-> route anybody"));
        assert!(asked(yaml, &["GET", "/a", "-H", "x-hop: a"]).contains("-> route hop"));
    }

    #[test]
    fn a_word_alone_is_neither_a_url_nor_a_path() {
        let yaml = "
listeners: [{ address: '127.0.0.1:0' }]
routes: [{ match: /users, respond: { status: 200 } }]
";
        for (url, good) in [("users", false), ("site:80", false), ("/users", true), ("http://site/users", true)] {
            assert_eq!(read(yaml, &["GET", url]).1.is_ok(), good, "{url}");
        }
    }

    #[test]
    fn a_preflight_goes_to_the_route_of_the_method_that_it_asks_for() {
        let yaml = "
listeners: [{ address: '127.0.0.1:0' }]
upstreams: { a: { endpoints: [http://127.0.0.1:1] } }
routes:
  - { name: with, match: PUT /with, cors: { origins: ['https://a.example'] }, upstream: a }
  - { name: without, match: PUT /without, upstream: a }
";
        let preflight =
            |path| asked(yaml, &["OPTIONS", path, "-H", "origin: https://a.example", "-H", "access-control-request-method: PUT"]);
        let text = preflight("/with");
        assert!(text.contains("preflight for PUT") && text.contains("-> route with"), "{text}");
        assert!(preflight("/without").contains("-> 405 method_not_allowed"));
    }

    #[test]
    fn the_path_that_goes_upstream_is_shown_with_its_values() {
        let yaml = "
listeners: [{ address: '127.0.0.1:0' }]
upstreams: { a: { endpoints: [http://127.0.0.1:1] } }
authenticators: { k: { api_key: { keys: [{ id: a, sha256: 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae }] } } }
routes:
  - { match: '/users/{id}', rewrite: { path: '/v1/{id}/{scheme}?by={host}' }, upstream: a }
  - { match: /strip/*, rewrite: { strip_prefix: /strip }, upstream: a }
  - { match: /plain, upstream: a }
  - { match: /me, auth: k, rewrite: { path: '/users/{user}' }, upstream: a }
  - { match: '/void/{*rest}', rewrite: { path: '/x/{rest}' }, upstream: a }
  - match: '/home/{id}'
    aggregate: { parts: [{ name: x, upstream: a, path: '/x?u={id}&{query}' }, { name: y, upstream: a, path: '/y/{parts.x.id}' }] }
";
        for (asked, line) in [
            ("https://shop.example/users/a%20b?n=1", "  upstream path /v1/a%20b/https?by=shop.example&n=1"),
            ("/strip/x/y?n=1", "  upstream path /x/y?n=1"),
            ("/plain", "  upstream path /plain"),
            ("/me", "  upstream path /users/{user}"),
            ("/void/", "  upstream path 400 bad_request"),
            ("/home/7?n=1", "  part path     x /x?u=7&n=1"),
            ("/home/7", "  part path     y /y/{parts.x.id}"),
        ] {
            let text = explained(yaml, asked);
            assert!(text.lines().any(|shown| shown == line), "{line} is not in {text}");
        }
    }

    #[test]
    fn the_chain_has_effective_values() {
        let yaml = "
listeners: [{ address: '127.0.0.1:0' }]
redis: { main: { url: redis://127.0.0.1:1 } }
upstreams: { a: { endpoints: [http://127.0.0.1:1] } }
authenticators: { k: { api_key: { keys: [{ id: a, sha256: 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae }] } } }
defaults: { rate_limit: [{ by: ip, rate: 100/s, store: main }], headers: { security: true, response: { remove: [server] } } }
routes:
  - match: /a
    auth: { any: [k], scopes: [read], claims: { role: [admin, staff] } }
    rate_limit: [{ by: global, rate: 5/m, burst: 7 }]
    retry: { attempts: 2, when: [connect, 503], per_try_timeout: 1s }
    headers: { request: { set: { x-secret: 'hidden' } } }
    upstream: a
";
        let text = explained(yaml, "/a");
        let place = |line: &str| text.find(line).unwrap_or_else(|| panic!("{line} is not in {text}"));
        assert!(place("by ip") < place("  auth ") && place("  auth ") < place("by global"), "in the order of the chain: {text}");
        for line in [
            "  rate_limit    100/s by ip, burst 100, store main",
            "  rate_limit    5/m by global, burst 7",
            "  auth          k, scopes read, claim role is admin or staff",
            "  headers       response remove server",
            "  headers       security",
            "  headers       request set x-secret",
            "  retry         2 more on connect, 503, each 1s, backoff 25ms, budget 20%",
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line} is not in {text}");
        }
    }
}
