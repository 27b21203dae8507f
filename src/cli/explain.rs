//! `explain`: which route a request takes, why the others lost, and what would be done to it.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::ExitCode;

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, Version};
use tollgate::config::resolve;
use tollgate::gateway::Snapshot;
use tollgate::http::Scheme;
use tollgate::http::target::{canonical, host};
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
        if uri.authority().is_none() && !request.url.starts_with('/') {
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
        let host = host(Version::HTTP_11, &headers, &uri).map_err(|detail| format!("400 bad_request: {detail}"))?;
        let received = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        let changed = canonical(&received, snapshot.encoded_slash).map_err(|detail| format!("400 bad_request: {detail}"))?;
        // A path alone is asked for in clear text.
        let scheme = if uri.scheme_str() == Some("https") { Scheme::Https } else { Scheme::Http };
        Ok(Self { method, scheme, headers, host, target: changed.unwrap_or(received) })
    }
}

fn render(snapshot: &Snapshot, asked: &Asked, query: &Query<'_>) -> (String, u8) {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(out, "{} {} on host {} by {}", asked.method, asked.target, asked.host.name(), asked.scheme.as_str());
    let outcome = snapshot.router.find(query);
    let code = match &outcome {
        Outcome::Found { route, .. } => {
            winner(&mut out, snapshot, *route);
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

fn winner(out: &mut String, snapshot: &Snapshot, index: usize) {
    let (Some(route), Some(place)) = (snapshot.resolved.get(index), snapshot.source.places.get(index)) else { return };
    let _ = writeln!(out, "-> route {} ({place})\n\nchain:", route.name);
    let mut step = |name: &str, text: String| {
        let _ = writeln!(out, "  {name:<13} {text}");
    };
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
    for (limit, _) in &route.rate_limits {
        let by: Vec<String> = limit.by.0.iter().map(ToString::to_string).collect();
        step("rate_limit", format!("{} by {}", limit.rate, by.join(", ")));
    }
    if let Some((auth, _)) = &route.auth {
        step("auth", format!("{}{}", auth.any.join(" or "), if auth.optional { " (optional)" } else { "" }));
    }
    if let Some(rewrite) = &route.rewrite {
        let path = rewrite.path.as_ref().map(|path| format!("path {path}"));
        let strip = rewrite.strip_prefix.as_ref().map(|prefix| format!("strip {prefix}"));
        let regex = rewrite.regex.as_ref().map(|regex| format!("{regex} -> {}", rewrite.to.clone().unwrap_or_default()));
        let host = rewrite.host.as_ref().map(|host| format!("host {host}"));
        step("rewrite", [path, strip, regex, host].into_iter().flatten().collect::<Vec<_>>().join(", "));
    }
    step("timeout", span(route.timeout));
    step("idle_timeout", span(route.idle_timeout));
    if let Some(retry) = &route.retry {
        step("retry", format!("{} more", retry.attempts));
    }
    let proxied = matches!(route.target, resolve::Target::Upstream(_) | resolve::Target::Split(_));
    if let Some((mirror, _)) = route.mirror.as_ref().filter(|_| proxied) {
        step("mirror", format!("{} to {}", mirror.percent, target(snapshot, &resolve::Target::Upstream(mirror.upstream.clone()))));
    }
    step("target", target(snapshot, &route.target));
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
        let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
        std::fs::write(file.path(), yaml).unwrap();
        let cli = Cli::try_parse_from(["tollgate", "--config", file.path().to_str().unwrap(), "explain", "GET", path]).unwrap();
        let Some(Command::Explain(request)) = cli.command else { panic!("not explain") };
        let snapshot = compiled(&cli.options).unwrap_or_else(|reports| panic!("{reports:?}"));
        let asked = Asked::read(&request, &snapshot).unwrap();
        let (path, query) = (asked.target.path(), asked.target.query());
        let query = Query { scheme: asked.scheme, host: asked.host.name(), path, query, method: &asked.method, headers: &asked.headers };
        render(&snapshot, &asked, &query).0
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
            ("/one", ["mirror        10% to upstream b (http://127.0.0.1:2)", "target        upstream a (http://127.0.0.1:1)"]),
            (
                "/split",
                [
                    "mirror        10% to upstream b (http://127.0.0.1:2)",
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
}
