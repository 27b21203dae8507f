//! The contract's own file loads.

use std::path::PathBuf;

use tollgate::config::load::{Loaded, Source, load};
use tollgate::config::resolve::{self, Target};
use tollgate::config::validate::validate;

fn reference() -> Loaded {
    load(&Source::File(PathBuf::from("tests/fixtures/reference.yaml")))
}

#[test]
fn the_reference_file_has_no_problems() {
    let mut loaded = reference();
    let mut problems = std::mem::take(&mut loaded.problems);
    validate(&loaded.config, &mut problems);
    resolve::routes(&loaded.config, &mut problems);
    loaded.problems = problems;
    let reports: Vec<String> = loaded.reports().iter().map(ToString::to_string).collect();
    assert!(reports.is_empty(), "{}", reports.join("\n"));
}

#[test]
fn its_routes_have_their_names_places_and_targets() {
    let loaded = reference();
    let routes = resolve::routes(&loaded.config, &mut loaded.problems.clone());
    let names: Vec<&str> = routes.iter().map(|route| route.name.as_str()).collect();
    assert_eq!(names, ["get-user", "/checkout/*", "GET /home/{id}", "GET /status", "/*", "GET /admin/users/{id}"]);
    let child = &routes[5];
    assert_eq!(child.matcher.path.as_deref(), Some("/admin/users/{id}"));
    assert_eq!(child.auth.as_ref().map(|(rule, _)| rule.any.clone()), Some(vec!["staff".to_owned()]));
    assert!(matches!(&child.target, Target::Upstream(name) if name == "users"));
    let text = &loaded.files[0].text;
    let line = text.lines().position(|line| line.contains("- name: get-user")).unwrap() + 1;
    assert_eq!(loaded.spot(&routes[0].at), format!("tests/fixtures/reference.yaml:{line}:5"));
    assert_eq!(routes[0].rate_limits.len(), 3);
}
