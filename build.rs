//! Tells the program which commit it is built from: `TOLLGATE_COMMIT` if it is set, else what git says of a release build. Builds for
//! tests do without, for they would start anew with each commit.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-env-changed=TOLLGATE_COMMIT");
    println!("cargo::rerun-if-changed=build.rs");
    let given = std::env::var("TOLLGATE_COMMIT").is_ok_and(|commit| !commit.is_empty());
    if given || std::env::var("PROFILE").as_deref() != Ok("release") {
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
