//! What compiles a release (pgo/): the profile goes where it belongs, and a build without it is a build all the same.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

fn pgo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("pgo")
}

/// A compiler that says it is `version`, and otherwise what it was told to do.
fn compiler(dir: &Path, version: &str) -> PathBuf {
    let (says, program) = (dir.join("version"), dir.join("rustc"));
    fs::write(&says, version).unwrap();
    fs::write(&program, format!("#!/bin/sh\nif [ \"$1\" = -vV ]; then cat '{}'; else echo \"$*\"; fi\n", says.display())).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    program
}

/// What the compiler is told when cargo tells the wrapper this.
fn told(compiler: &Path, arguments: &[&str], choice: Option<&str>) -> String {
    let mut command = Command::new(pgo().join("rustc"));
    command.arg(compiler).args(arguments).env_remove("TOLLGATE_PGO");
    if let Some(choice) = choice {
        command.env("TOLLGATE_PGO", choice);
    }
    let output = command.output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

#[test]
fn optimised_code_gets_the_profile_and_nothing_else_changes() {
    let dir = tempfile::tempdir().unwrap();
    let rustc = compiler(dir.path(), &fs::read_to_string(pgo().join("toolchain")).unwrap());
    let profile = format!("-Cprofile-use={} -Cllvm-args=-no-pgo-warn-mismatch", pgo().join("profile.profdata").display());
    let release = ["--crate-name", "a b", "-C", "opt-level=3", "x.rs"];
    assert_eq!(told(&rustc, &release, None), format!("--crate-name a b -C opt-level=3 x.rs {profile}"));
    assert_eq!(told(&rustc, &release, Some("off")), "--crate-name a b -C opt-level=3 x.rs");
    assert_eq!(told(&rustc, &release, Some("train:/counts")), "--crate-name a b -C opt-level=3 x.rs -Cprofile-generate=/counts");
    assert_eq!(told(&rustc, &["--crate-name", "a", "x.rs"], None), "--crate-name a x.rs");
}

#[test]
fn another_compiler_does_without_the_profile() {
    let dir = tempfile::tempdir().unwrap();
    let rustc = compiler(dir.path(), "rustc 9.99.0\n");
    assert_eq!(told(&rustc, &["-C", "opt-level=3", "x.rs"], None), "-C opt-level=3 x.rs");
}

#[test]
fn there_is_a_profile() {
    // LLVM's indexed profiles begin with 0xff and "lprofi".
    assert!(fs::read(pgo().join("profile.profdata")).unwrap().starts_with(b"\xfflprofi"));
}
