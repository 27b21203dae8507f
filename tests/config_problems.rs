//! What users get to see of a wrong configuration: file, line, column, and words.

use std::path::PathBuf;

use tollgate::config::load::{Loaded, Source, load, load_with};
use tollgate::config::resolve;
use tollgate::config::validate::validate;

fn finish(mut loaded: Loaded) -> Loaded {
    let mut problems = std::mem::take(&mut loaded.problems);
    validate(&loaded.config, &mut problems);
    resolve::routes(&loaded.config, &mut problems);
    loaded.problems = problems;
    loaded
}

fn checked(yaml: &str) -> Loaded {
    let lookup = |name: &str| match name {
        "SECRET" => Some("s3cr3t-value".to_owned()),
        "FOUR" => Some("4".to_owned()),
        "TIME" => Some("3s".to_owned()),
        _ => None,
    };
    finish(load_with(&Source::Text { yaml: yaml.to_owned(), dir: PathBuf::from("/nowhere") }, &lookup))
}

/// `LINE:COLUMN: message` of each problem.
fn problems(yaml: &str) -> Vec<String> {
    checked(yaml).reports().iter().map(|report| format!("{}:{}: {}", report.line, report.column, report.message)).collect()
}

#[track_caller]
fn one(yaml: &str, place: &str, words: &[&str]) {
    let found = problems(yaml);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(found[0].starts_with(&format!("{place}: ")), "{found:?} is not at {place}");
    for word in words {
        assert!(found[0].contains(word), "{found:?} has no {word}");
    }
}

const USERS: &str = "upstreams:\n  users: { endpoints: [http://127.0.0.1:8081] }\n";

#[test]
fn empty_files_and_comments_are_an_empty_configuration() {
    for yaml in ["", "\n\n", "# nothing\n", "\u{feff}", "routes:\n", "{}\n"] {
        assert_eq!(problems(yaml), Vec::<String>::new(), "{yaml:?}");
    }
}

#[test]
fn wrong_types() {
    one("server:\n  max_headers: many\n", "2:16", &["a whole number", "\"many\""]);
    one("server: 5\n", "1:9", &["expected a mapping", "the number 5"]);
    one("log:\n  access: { enabled: yes }\n", "2:22", &["true or false"]);
    one("server:\n  drain_delay: 5\n", "2:16", &["duration"]);
    one("routes: {}\n", "1:9", &["a list"]);
}

#[test]
fn a_number_for_text_is_to_be_quoted() {
    let yaml = format!("{USERS}routes:\n  - match: {{ path: /, query: {{ v: 1.10 }} }}\n    upstream: users\n");
    one(&yaml, "4:35", &["quote it"]);
    one("listeners:\n  - address: 0.0.0.0:1\n    tls: { certificates: [{ cert: a, key: b }], min_version: 1.2 }\n", "3:62", &["quote it"]);
}

#[test]
fn unknown_fields_top_nested_and_in_a_list() {
    one("serverr: {}\n", "1:1", &["unknown field \"serverr\", did you mean \"server\"?"]);
    one("server:\n  timeouts:\n    idel: 5s\n", "3:5", &["unknown field \"idel\", did you mean \"idle\"?"]);
    let yaml = format!("{USERS}routes:\n  - name: get-user\n    match: GET /users\n    timout: 5s\n    upstream: users\n");
    one(&yaml, "6:5", &["unknown field \"timout\", did you mean \"timeout\"? (route get-user)"]);
    let yaml = format!("{USERS}routes:\n  - match: {{ paht: /x, prefix: / }}\n    upstream: users\n");
    one(&yaml, "4:14", &["unknown field \"paht\", did you mean \"path\"?"]);
}

#[test]
fn a_misspelt_required_field_is_one_problem_and_groups_are_in_the_name() {
    let yaml = format!("{USERS}routes:\n  - match: /g/*\n    routes:\n      - match: GET /y\n        split: [{{ upstraem: users }}]\n");
    let found = problems(&yaml);
    assert!(found[0].starts_with("7:19: unknown field") && found[0].ends_with("(route GET /g/y)"), "{found:#?}");
    assert_eq!(found.len(), 1, "{found:#?}");
}

#[test]
fn the_report_has_the_line_a_caret_and_the_suggestion() {
    let loaded = checked("server:\n  max_header: 5\n");
    let text = loaded.reports()[0].to_string();
    assert_eq!(text, "gateway.yaml:2:3: unknown field \"max_header\", did you mean \"max_headers\"?\n  2 |   max_header: 5\n    |   ^");
}

#[test]
fn unknown_variants() {
    one("log: { level: inof }\n", "1:15", &["\"inof\"", "did you mean \"info\"?"]);
    one("upstreams:\n  a: { endpoints: [http://a], balance: round_robbin }\n", "2:40", &["did you mean \"round_robin\"?"]);
}

#[test]
fn missing_fields() {
    one("listeners:\n  - proxy_protocol: false\n", "2:5", &["missing field \"address\""]);
    one(
        "authenticators:\n  main:\n    jwt:\n      issuer: x\n      audience: [a]\n",
        "4:7",
        &["missing field \"algorithms\"", "authenticator main"],
    );
    // All of them, and none that is there and wrong, or misspelt.
    let found =
        problems("authenticators:\n  main:\n    jwt: { jwks: x }\n  other:\n    jwt: { issuer: x, audience: y, algorithm: [RS256] }\n");
    let expected = [
        "3:10: missing field \"issuer\"",
        "3:10: missing field \"audience\"",
        "3:10: missing field \"algorithms\"",
        "5:33: expected a list",
        "5:36: unknown field \"algorithm\"",
    ];
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "{found} is not {expected}");
    }
}

#[test]
fn duplicate_keys_are_reported_at_the_second() {
    one("log: {}\nserver: {}\nlog: {}\n", "3:1", &["duplicate key \"log\"", "line 1"]);
}

#[test]
fn unknown_upstreams() {
    let yaml = format!("{USERS}routes:\n  - match: /a\n    upstream: userz\n");
    one(&yaml, "5:15", &["unknown upstream \"userz\", did you mean \"users\"?", "(route /a)"]);
}

#[test]
fn missing_variables() {
    one("admin:\n  token: ${NOT_SET}\n", "2:10", &["`NOT_SET` is not set"]);
}

#[test]
fn three_problems_come_at_once_and_in_order() {
    let found = problems("server: { workers: 0, max_haeders: 5 }\nlog:\n  level: loud\n");
    assert_eq!(found.len(), 3, "{found:#?}");
    assert!(found[0].starts_with("1:20: ") && found[1].starts_with("1:23: ") && found[2].starts_with("3:10: "), "{found:#?}");
}

#[test]
fn columns_count_characters() {
    one("log: { access: { output: \"äöü€𝄞\", enabeld: true } }\n", "1:35", &["enabeld"]);
}

#[test]
fn lines_may_end_in_crlf() {
    one("log: {}\r\nserver:\r\n  max_headres: 5\r\n", "3:3", &["max_headres"]);
}

#[test]
fn a_bad_element_does_not_hide_the_others() {
    let yaml = format!("{USERS}routes:\n  - match: nonsense\n    upstream: users\n  - match: /b\n    upstream: userz\n");
    let found = problems(&yaml);
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[0].starts_with("4:12: ") && found[1].starts_with("7:15: "), "{found:#?}");
    let yaml = format!("{USERS}routes:\n  - 5\n  - match: /b\n    upstream: userz\n");
    let found = problems(&yaml);
    assert!(found[1].starts_with("6:15: "), "{found:#?}");
}

#[test]
fn substituted_text_is_read_as_what_is_expected_and_is_never_structure() {
    let loaded = checked(
        "server: { workers: \"${FOUR}\", max_connections_per_ip: \"${FOUR}\", drain_delay: \"${TIME}\" }\nadmin: { token: \"${NONE:-a: [b}\" }\n",
    );
    assert!(loaded.reports().is_empty(), "{:?}", loaded.reports());
    assert_eq!(loaded.config.server.workers, tollgate::config::server::Workers::Count(4));
    assert_eq!(loaded.config.server.max_connections_per_ip.on(), Some(&4));
    assert_eq!(loaded.config.admin.unwrap().token.expose(), "a: [b");
}

#[test]
fn substituted_values_are_in_no_message() {
    for yaml in [
        "server: { drain_delay: \"${SECRET}\" }\n",
        "server: { workers: \"${SECRET}\" }\n",
        "log: { level: \"${SECRET}\" }\n",
        "routes:\n  - match: /a\n    upstream: ${SECRET}\n",
        "routes:\n  - match: ${SECRET}\n    respond: {}\n",
        "server: { trusted_proxies: [\"${SECRET}\"] }\n",
        "upstreams:\n  a: { endpoints: [\"x${SECRET}\"] }\n",
    ] {
        let text: Vec<String> = checked(yaml).reports().iter().map(ToString::to_string).collect();
        assert!(!text.is_empty(), "{yaml}");
        assert!(!text.join("\n").contains("s3cr3t"), "{text:?}");
    }
}

#[test]
fn later_options_are_refused() {
    let routes =
        "routes:\n  - match: /a/*\n    files: { root: x }\n  - match: /b\n    grpc: {}\n  - match: /c\n    compress: {}\n    respond: {}\n";
    let found = problems(&format!("tracing: {{ otlp: {{ endpoint: x }} }}\ndefaults: {{ cache: {{}} }}\n{routes}"));
    assert_eq!(found.len(), 5, "{found:#?}");
    assert!(found.iter().all(|problem| problem.contains("not supported yet")), "{found:#?}");
    one("upstreams:\n  a: { discover: { consul: x } }\n", "2:20", &["not supported yet"]);
}

#[test]
fn syntax_errors_have_a_place_and_an_explanation() {
    one("a: {\n", "1:4", &["never closed"]);
    one("server:\n\tworkers: 1\n", "2:1", &["a tab cannot indent"]);
}

#[test]
fn routes_are_checked() {
    let check = |route: &str, words: &str| {
        let found = problems(&format!("{USERS}routes:\n  - {route}\n"));
        assert!(found.len() == 1 && found[0].contains(words), "{route}: {found:#?}");
    };
    check("{ match: /a }", "no target");
    check("{ match: /a, upstream: users, respond: {} }", "exactly one target");
    check("{ match: { path: /a, prefix: /b }, upstream: users }", "exactly one of");
    check("{ match: { host: a }, upstream: users }", "matches no path");
    check("{ match: TRACE /a, upstream: users }", "TRACE");
    check("{ match: /a, respond: { status: 204, body: x } }", "no body");
    check("{ match: /a, redirect: { to: /b, status: 200 } }", "not a redirect");
    check("{ match: /a, redirect: { to: /b }, rewrite: { path: /c } }", "no effect");
    check("{ match: /a, upstream: users, rewrite: { path: /c, strip_prefix: /a } }", "exclude each other");
    check("{ match: /a/b, upstream: users, rewrite: { strip_prefix: /b } }", "not a prefix");
    check("{ match: /a, split: [{ upstream: users, weight: 0 }] }", "all weights are 0");
    check("{ match: /a, upstream: users, retry: { when: [timeout] } }", "per_try_timeout");
    check("{ match: /a, upstream: users, timeout: 0s }", "0 seconds");
    check("{ match: /a, upstream: users, auth: nobody }", "unknown authenticator");
    check("{ match: /a, upstream: users, rate_limit: [{ by: ip, rate: 1/s, store: x }] }", "unknown redis store");
    check("{ match: /a, upstream: users, rate_limit: [{ by: ip, rate: 1/s, burst: 0 }] }", "burst of 0");
    check("{ match: /a, upstream: users, ip: { allow: [10.0.0.1/8] } }", "behind its mask");
    check("{ match: /a, routes: [] }", "must be a prefix");
    check(
        "{ match: { host: a.b, prefix: /a }, routes: [{ match: { host: c.d, path: /x }, upstream: users }] }",
        "outside the group's host",
    );
    check("{ match: /a/*, routes: [{ match: { regex: x }, upstream: users }] }", "cannot have a regex");
    check("{ match: /a, aggregate: { parts: [] } }", "at least one part");
}

#[test]
fn upstreams_are_checked() {
    let check = |upstream: &str, words: &str| {
        let found = problems(&format!("admin: {{}}\nupstreams:\n  a: {upstream}\n"));
        assert!(found.len() == 1 && found[0].contains(words), "{upstream}: {found:#?}");
    };
    check("{}", "no endpoints");
    check("{ endpoints: [http://a], discover: { dns: \"a:1\" } }", "exclude each other");
    check("{ endpoints: [http://a, \"http://A:80\"] }", "listed twice");
    check("{ endpoints: [http://a/x] }", "not an endpoint");
    check("{ endpoints: [http://127.0.0.1:9901] }", "admin listener");
    check("{ endpoints: [{ url: http://a, weight: 2 }] }", "no weights");
    check("{ endpoints: [{ url: http://a, weight: 1001 }], balance: weighted }", "above 1000");
    check("{ endpoints: [{ url: http://a, weight: 0 }], balance: weighted }", "all weights are 0");
    check("{ endpoints: [http://a], health: { path: /a, tcp: true } }", "exactly one of path, tcp and grpc");
    check("{ endpoints: [http://a], health: { intervall: 1s } }", "did you mean \"interval\"");
    check("{ endpoints: [http://a], pool: { max_connections: 0 } }", "0 connections");
    check("{ endpoints: [http://a], balance: { consistent_hash: { key: ip, bounded_load: 1 } } }", "above 1");
    check("{ endpoints: [http://a], tls: { cert: x } }", "needs `key`");
    check("{ discover: { dns: name } }", "name with a port");
}

#[test]
fn the_server_side_is_checked() {
    one("admin: { address: \"0.0.0.0:9901\" }\n", "1:19", &["needs a `token`"]);
    one("listeners:\n  - address: 0.0.0.0:80\n  - address: 0.0.0.0:80\n", "3:14", &["two listeners"]);
    one("listeners:\n  - address: 0.0.0.0:80\n  - address: 127.0.0.1:80\n", "3:14", &["every address"]);
    one("listeners:\n  - address: \"[::1]:80\"\n  - address: \"[::]:80\"\n", "3:14", &["every address"]);
    one("listeners:\n  - address: 0.0.0.0:80\n    proxy_protocol: true\n", "3:21", &["trusted_proxies"]);
    one(
        "listeners:\n  - address: 0.0.0.0:1\n    tls: { certificates: [{ cert: a, key: b }], client_auth: optional }\n",
        "3:62",
        &["client_ca"],
    );
    one("listeners:\n  - address: localhost\n", "2:14", &["not an address"]);
    one("server: { max_connections: 0 }\n", "1:28", &["0"]);
    one("server: { trusted_proxies: [\"::ffff:10.0.0.1\"] }\n", "1:29", &["IPv4-mapped"]);
    one("authenticators: { a: {} }\n", "1:22", &["no kind"]);
}

#[test]
fn default_names_and_their_doubles() {
    let routes = "  - { match: { host: a.x, path: /p }, respond: {} }\n  - { match: { host: b.x, path: /p }, respond: {} }\n  - { match: { path: /q, headers: { a: b } }, respond: {} }\n  - { match: \"GET,POST /q\", respond: {} }\n  - { match: /q, respond: {} }\n";
    let loaded = checked(&format!("routes:\n{routes}"));
    let names: Vec<String> = resolve::routes(&loaded.config, &mut loaded.problems.clone()).into_iter().map(|route| route.name).collect();
    assert_eq!(names, ["/p a.x", "/p b.x", "/q", "GET,POST /q", "/q #2"]);
    let found = problems("routes:\n  - { name: a, match: /a, respond: {} }\n  - { name: a, match: /b, respond: {} }\n");
    assert!(found.len() == 2 && found[0].starts_with("2:13") && found[1].starts_with("3:13"), "{found:#?}");
    let group = "routes:\n  - { name: a, match: /a/*, routes: [{ name: b, match: /b, respond: {} }] }\n";
    assert_eq!(problems(group), Vec::<String>::new());
    let found = problems(&format!("{group}  - {{ name: a, match: /c, respond: {{}} }}\n"));
    assert!(found.len() == 2 && found[0].starts_with("2:13") && found[1].starts_with("3:13"), "{found:#?}");
}

#[test]
fn inheritance_replaces_blocks_and_adds_limits_and_headers() {
    let yaml = "defaults:\n  timeout: 1s\n  retry: { attempts: 3, backoff: 1s }\n  rate_limit: [{ by: global, rate: 1/s }]\n  headers: { security: true }\nroutes:\n  - match: /g/*\n    timeout: off\n    rate_limit: [{ by: ip, rate: 2/s }]\n    routes:\n      - { match: /a, retry: { attempts: 5 }, respond: {} }\n      - { match: /b, rate_limit: off, headers: off, respond: {} }\n";
    let loaded = checked(yaml);
    assert!(loaded.reports().is_empty(), "{:?}", loaded.reports());
    let routes = resolve::routes(&loaded.config, &mut loaded.problems.clone());
    let (a, b) = (&routes[0], &routes[1]);
    assert_eq!(a.timeout, None);
    let retry = a.retry.as_ref().unwrap();
    assert_eq!((retry.attempts, retry.backoff.to_string().as_str()), (5, "25ms"));
    let rates: Vec<String> = a.rate_limits.iter().map(|(limit, _)| limit.rate.to_string()).collect();
    assert_eq!(rates, ["1/s", "2/s"]);
    assert_eq!(a.headers.len(), 1);
    assert!(b.rate_limits.is_empty() && b.headers.is_empty());
    assert_eq!(b.retry.as_ref().unwrap().attempts, 3);
}

#[allow(clippy::unwrap_used)] // a helper of tests
fn write(dir: &std::path::Path, name: &str, text: &str) {
    let path = dir.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

#[test]
fn includes_add_routes_in_path_order_with_their_own_places() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "gateway.yaml", "include: [\"routes/*.yaml\", \"none/*.yaml\"]\nroutes:\n  - { match: /main, respond: {} }\n");
    write(dir.path(), "routes/b.yaml", "routes:\n  - { match: /b, respond: {} }\n");
    write(dir.path(), "routes/a.yaml", "# a\nroutes:\n  - { match: /a, respond: {}, timout: 1s }\n");
    let loaded = finish(load(&Source::File(dir.path().join("gateway.yaml"))));
    let reports = loaded.reports();
    assert_eq!(reports.len(), 1, "{reports:?}");
    assert!(reports[0].file.ends_with("routes/a.yaml"), "{}", reports[0].file);
    assert_eq!((reports[0].line, reports[0].column), (3, 31));
    let routes = resolve::routes(&loaded.config, &mut loaded.problems.clone());
    let names: Vec<&str> = routes.iter().map(|route| route.name.as_str()).collect();
    assert_eq!(names, ["/main", "/a", "/b"]);
    assert!(loaded.watch.contains(&dir.path().join("routes")), "{:?}", loaded.watch);
}

#[test]
fn what_an_include_may_not_do() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "gateway.yaml", "include: [missing.yaml, more.yaml]\nupstreams:\n  a: { endpoints: [http://a] }\n");
    write(dir.path(), "more.yaml", "server: {}\nupstreams:\n  a: { endpoints: [http://b] }\n");
    let loaded = finish(load(&Source::File(dir.path().join("gateway.yaml"))));
    let found: Vec<String> = loaded.reports().iter().map(|r| format!("{}:{}: {}", r.line, r.column, r.message)).collect();
    assert_eq!(found.len(), 4, "{found:#?}");
    assert!(found[0].starts_with("1:11: ") && found[0].contains("missing.yaml"), "{found:#?}");
    assert!(found[1].starts_with("3:3: ") && found[1].contains("defined twice"), "{found:#?}");
    assert!(found[2].starts_with("1:1: ") && found[2].contains("main file only"), "{found:#?}");
    assert!(found[3].starts_with("3:3: ") && found[3].contains("defined twice"), "{found:#?}");
}

#[test]
fn the_hash_changes_with_contents_and_with_substituted_values() {
    let load = |yaml: &str, value: &str| {
        let value = value.to_owned();
        load_with(&Source::Text { yaml: yaml.to_owned(), dir: PathBuf::new() }, &move |_| Some(value.clone())).hash
    };
    let yaml = "admin: { token: \"${A}\" }\n";
    assert_eq!(load(yaml, "1"), load(yaml, "1"));
    assert_ne!(load(yaml, "1"), load(yaml, "2"));
    assert_ne!(load(yaml, "1"), load(&format!("{yaml}#"), "1"));
}

#[test]
fn merge_keys_work_and_their_problems_are_where_they_are_written() {
    let yaml = "upstreams:\n  a: &a\n    endpoints: [http://a]\n    pool: { max_idel: 1 }\n  b:\n    <<: *a\n    endpoints: [http://b]\n";
    let found = problems(yaml);
    assert!(found[0].starts_with("4:13: ") && found[0].contains("max_idel"), "{found:#?}");
}

#[test]
fn a_file_that_is_missing_or_says_nothing_is_a_problem() {
    let loaded = load(&Source::File(PathBuf::from("/nowhere/gateway.yaml")));
    let report = &loaded.reports()[0];
    assert!(report.to_string().starts_with("/nowhere/gateway.yaml:1:1: cannot read"), "{report}");
    assert!(report.help.as_ref().is_some_and(|help| help.contains("--config")), "{report}");

    let dir = tempfile::tempdir().unwrap();
    // As an editor or `cp` on a full disk leaves it: it must not take all routes away.
    for text in ["", "# nothing\n"] {
        write(dir.path(), "gateway.yaml", text);
        let reports = load(&Source::File(dir.path().join("gateway.yaml"))).reports();
        assert!(matches!(reports.as_slice(), [one] if one.message.contains("no configuration")), "{reports:?}");
    }
    let reports = load(&Source::File(dir.path().to_owned())).reports();
    assert!(!reports[0].file.is_empty(), "{reports:?}");
}

/// Problems of a whole load, what is compiled included: a mistake is told once, whoever finds it.
#[test]
fn a_mistake_is_told_once() {
    use tollgate::gateway::{Shared, compile};
    for (upstream, words) in [
        ("{ endpoints: [127.0.0.1:80] }", "not an endpoint"),
        ("{ endpoints: [http://a/b] }", "is not an endpoint"),
        ("{ endpoints: http://a }", "expected a list"),
        ("{}", "has no endpoints"),
        ("{ endpoints: [{ url: http://a, weight: 3 }] }", "no weights"),
        ("{ endpoints: [{ url: http://a, weight: 3000 }], balance: weighted }", "3000"),
    ] {
        let yaml = format!("upstreams: {{ u: {upstream} }}\n");
        let loaded = load(&Source::Text { yaml, dir: PathBuf::from("/nowhere") });
        let reports = compile(&Shared::new(1, None), loaded, None, 1).map(|_| ()).unwrap_err();
        assert!(matches!(reports.as_slice(), [one] if one.message.contains(words)), "{upstream}: {reports:#?}");
    }
    for (authenticator, words) in [("{ jwt: { issuer: a, audience: b, algorithms: [RS256], jwks: x } }", "a list"), ("{}", "no kind")] {
        let yaml = format!("authenticators: {{ p: {authenticator} }}\n");
        let loaded = load(&Source::Text { yaml, dir: PathBuf::from("/nowhere") });
        let reports = compile(&Shared::new(1, None), loaded, None, 1).map(|_| ()).unwrap_err();
        assert!(matches!(reports.as_slice(), [one] if one.message.contains(words)), "{authenticator}: {reports:#?}");
    }
}

#[test]
fn help_says_what_would_be_right() {
    let help = |yaml: &str| checked(yaml).reports().iter().filter_map(|report| report.help.clone()).collect::<Vec<_>>().join("\n");
    for (yaml, words) in [
        ("routes:\n  - match: { path: /, protocol: https }\n    respond: {}\n", "known here are scheme, host, methods"),
        ("server: { trusted_proxies: 10.0.0.0/8 }\n", "write [10.0.0.0/8]"),
        ("defaults: { rate_limit: { by: ip, rate: 1/s } }\n", "write [{ … }]"),
        ("defaults: { retry: no }\n", "`off`"),
        ("routes:\n  - match: /users/:id\n    respond: {}\n", "write {id}"),
    ] {
        assert!(help(yaml).contains(words), "{yaml}: {}", help(yaml));
    }
    // A near name needs no list of all.
    assert!(!help("serve: {}\n").contains("known here"));
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(300))]
    #[test]
    fn no_text_makes_the_loader_panic(yaml in "(?s).{0,200}") {
        checked(&yaml).reports();
    }

    #[test]
    fn no_yaml_like_text_makes_the_loader_panic(lines in proptest::collection::vec("( {0,6})(- )?(routes|match|upstream|endpoints|auth|<<|[a-z]|\"x\")?:? ?(\\[|\\]|\\{|\\}|\\*a|&a|\\$\\{A\\}|!t|[0-9a-z/.]{0,6}|off|\\||>)", 0..12)) {
        checked(&lines.join("\n")).reports();
    }
}
