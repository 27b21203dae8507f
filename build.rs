//! Tells the program which commit it is built from: `TOLLGATE_COMMIT` if it is set, else what git says of a release build. Builds for
//! tests do without, for they would start anew with each commit. And tells whoever builds a release when it does not get its profile.

use std::fs::File;
use std::process::{Command, Output};

fn main() {
    println!("cargo::rerun-if-env-changed=TOLLGATE_COMMIT");
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("PROFILE").as_deref() != Ok("release") {
        return;
    }
    commit();
    profile();
}

fn commit() {
    if std::env::var("TOLLGATE_COMMIT").is_ok_and(|commit| !commit.is_empty()) {
        return;
    }
    // Changes with each commit and each change of branch. A file that is not there would count as changed each time.
    let moves = ".git/logs/HEAD";
    if std::path::Path::new(moves).exists() {
        println!("cargo::rerun-if-changed={moves}");
    }
    let git = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output();
    if let Some(commit) = git.ok().filter(|git| git.status.success()).and_then(|git| String::from_utf8(git.stdout).ok()) {
        println!("cargo::rustc-env=TOLLGATE_COMMIT={}", commit.trim());
    }
}

/// Nothing else would tell that a program is slower than it could be.
fn profile() {
    println!("cargo::rerun-if-env-changed=TOLLGATE_PGO");
    println!("cargo::rerun-if-changed=pgo");
    println!("cargo::rerun-if-changed=Cargo.lock");
    if std::env::var("TOLLGATE_PGO").is_ok_and(|choice| choice != "use") {
        return;
    }
    if let Err(why) = profiled() {
        println!("cargo::warning=built without the profile in pgo/, so slower than it could be: {why}");
    }
}

/// Whether the profile is used, and fits: it names functions as its compiler does, which has the versions of dependencies in its names.
fn profiled() -> Result<(), String> {
    if !std::env::var("RUSTC_WRAPPER").is_ok_and(|wrapper| wrapper.ends_with("pgo/rustc")) {
        return Err("cargo did not read .cargo/config.toml (run it in the repository), or RUSTC_WRAPPER is set".to_owned());
    }
    let wanted = std::fs::read_to_string("pgo/toolchain").map_err(|error| format!("pgo/toolchain: {error}"))?;
    let compiler = said(Command::new(std::env::var("RUSTC").unwrap_or_default()).arg("-vV").output());
    if compiler.trim_end() != wanted.trim_end() {
        let name = |version: &str| version.lines().next().unwrap_or("another one").to_owned();
        return Err(format!("it is for {}, and this is {}", name(&wanted), name(&compiler)));
    }
    let lock = File::open("Cargo.lock").map_err(|error| format!("Cargo.lock: {error}"))?;
    if said(Command::new("cksum").stdin(lock).output()) != std::fs::read_to_string("pgo/dependencies").unwrap_or_default() {
        return Err("dependencies have changed since it was made: run pgo/train".to_owned());
    }
    Ok(())
}

/// What a command printed; nothing if it failed.
fn said(output: std::io::Result<Output>) -> String {
    output.ok().and_then(|output| String::from_utf8(output.stdout).ok()).unwrap_or_default()
}
