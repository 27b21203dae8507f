//! What `tollgate check` says about a wrong `gateway.yaml`.

use std::process::Command;

/// `tollgate check` on `files`: its exit code, and the first line of each problem.
fn check(files: &[(&str, &str)], env: &[(&str, &str)]) -> (Option<i32>, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let program = env!("CARGO_BIN_EXE_tollgate");
    let output = Command::new(program).arg("check").current_dir(dir.path()).envs(env.iter().copied()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    let problems = said.lines().filter(|line| line.split(':').nth(2).is_some_and(|column| column.parse::<u32>().is_ok()));
    (output.status.code(), problems.map(str::to_owned).collect())
}

#[track_caller]
fn problems(yaml: &str, expected: &[&str]) {
    let (code, found) = check(&[("gateway.yaml", yaml)], &[]);
    assert_eq!(code, Some(2), "{yaml}");
    assert_eq!(found, expected, "{yaml}");
}

#[test]
fn one_mistake_is_one_problem() {
    problems(
        "upstreams: { u: { endpoint: [http://h:1] } }",
        &["gateway.yaml:1:19: unknown field \"endpoint\", did you mean \"endpoints\"? (upstream u)"],
    );
    problems(
        "upstreams: { u: { endpoints: [http://h:1], health: { paths: / } } }",
        &["gateway.yaml:1:54: unknown field \"paths\", did you mean \"path\"? (upstream u)"],
    );
    problems(
        "upstreams: { u: { endpoints: [http://name:secret@h:1] } }",
        &["gateway.yaml:1:31: \"http://***@h:1\" is not an endpoint (upstream u)"],
    );
    problems(
        "upstreams: { u: { endpoints: [{ url: http://h:1, weight: 2 }] } }",
        &["gateway.yaml:1:58: this upstream's `balance` has no weights (upstream u)"],
    );
    problems("upstreams: { u: { discover: { consul: {} } } }", &["gateway.yaml:1:31: `consul` is not supported yet (upstream u)"]);
    problems("authenticators: { a: {} }", &["gateway.yaml:1:22: this authenticator has no kind"]);
    problems("redis: { r: { url: http://x } }", &["gateway.yaml:1:20: this is not the URL of a Redis server"]);
    problems(
        "routes: [{ match: CONNECT /a, respond: { status: 200 } }]",
        &["gateway.yaml:1:19: CONNECT cannot be routed (route CONNECT /a)"],
    );
    problems(
        "upstream: { u: { endpoints: [http://h:1] } }\nroutes: [{ match: /a, upstream: u }]",
        &["gateway.yaml:1:1: unknown field \"upstream\", did you mean \"upstreams\"?"],
    );
}

#[test]
fn an_unknown_upstream_is_found_wherever_it_is_named() {
    let known = "upstreams: { users: { endpoints: [http://h:1] } }\nroutes:\n";
    for (route, column) in [
        ("{ match: /a, upstream: userz }", 26),
        ("{ match: /a, split: [{ upstream: users }, { upstream: userz }] }", 57),
        ("{ match: /a, aggregate: { parts: [{ name: a, path: /, upstream: users }, { name: b, path: /, upstream: userz }] } }", 106),
        ("{ match: /a, upstream: users, mirror: { upstream: userz } }", 53),
    ] {
        let expected = format!("gateway.yaml:3:{column}: unknown upstream \"userz\", did you mean \"users\"? (route /a)");
        problems(&format!("{known}- {route}"), &[&expected]);
    }
}

#[test]
fn a_misspelt_field_hides_no_other_mistake() {
    problems(
        "routes:\n  - match: /a\n    timout: 5s",
        &[
            "gateway.yaml:2:5: this route has no target (route /a)",
            "gateway.yaml:3:5: unknown field \"timout\", did you mean \"timeout\"? (route /a)",
        ],
    );
    problems(
        "upstreams:\n  u:\n    protocl: h2\n    connect_timeout: 0s",
        &[
            "gateway.yaml:3:5: unknown field \"protocl\", did you mean \"protocol\"? (upstream u)",
            "gateway.yaml:3:5: the upstream \"u\" has no endpoints",
            "gateway.yaml:4:22: in 0 seconds nothing can happen (upstream u)",
        ],
    );
}

#[test]
fn variables_need_no_quotes_in_a_flow_mapping() {
    let yaml =
        "admin: { address: 127.0.0.1:1, token: ${TOKEN:-a b} }\nserver: { max_headers: ${N}, drain_delay: ${D:-1s}}\nlog: { level: ${L} }";
    let (code, found) = check(&[("gateway.yaml", yaml)], &[("N", "50"), ("L", "{}")]);
    assert_eq!((code, found), (Some(2), vec!["gateway.yaml:3:15: the substituted value does not fit here".to_owned()]));
    let (code, found) = check(&[("gateway.yaml", yaml)], &[("N", "50"), ("L", "debug")]);
    assert_eq!((code, found), (Some(0), Vec::new()));
}

#[test]
fn included_files_are_read_in_the_order_of_their_paths() {
    let main = "include: [b.yaml, a.yaml, \"[a-b]*\"]";
    let (code, found) = check(&[("gateway.yaml", main), ("a.yaml", "x: 1"), ("b.yaml", "y: 1"), ("aa.yaml", "z: 1")], &[]);
    let expected = ["a.yaml:1:1: unknown field \"x\"", "aa.yaml:1:1: unknown field \"z\"", "b.yaml:1:1: unknown field \"y\""];
    assert_eq!((code, found), (Some(2), expected.map(str::to_owned).to_vec()));
}

#[test]
fn what_is_not_built_yet_says_so_however_it_is_written() {
    let words = "`tracing` is not supported yet";
    for yaml in ["tracing: {}", "tracing: { otlp: { endpoint: http://x } }", "tracing: { otlp: {} }"] {
        let (code, found) = check(&[("gateway.yaml", yaml)], &[]);
        assert!(code == Some(2) && found.iter().any(|problem| problem.contains(words)), "{yaml}: {found:?}");
    }
}

#[test]
fn the_request_id_cannot_travel_in_a_field_that_the_gateway_makes() {
    for name in ["host", "connection", "content-length", "te"] {
        let expected = format!("gateway.yaml:1:23: `{name}` cannot carry an id: the gateway makes this field itself");
        problems(&format!("server: {{ request_id: {name} }}"), &[&expected]);
    }
}

#[test]
fn an_access_log_that_cannot_be_opened_is_found_without_making_it() {
    let dir = tempfile::tempdir().unwrap();
    let output = |name: &str| format!("log: {{ access: {{ output: {} }} }}", dir.path().join(name).display());
    let verdict = |name: &str| check(&[("gateway.yaml", &output(name))], &[]);
    assert_eq!(verdict("access.log"), (Some(0), Vec::new()));
    assert!(!dir.path().join("access.log").exists());
    for wrong in ["missing/access.log", ""] {
        let (code, found) = verdict(wrong);
        assert_eq!(code, Some(2), "{found:?}");
        assert!(found[0].starts_with("gateway.yaml:1:26: the access log cannot be opened: "), "{found:?}");
    }
}
