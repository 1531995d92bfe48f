//! Builds the program that some parts start, so that they never measure an old one.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use crate::Outcome;

/// Builds `backstop-relay` as this bench was built: the same profile, the same folder.
pub(crate) fn build() -> Outcome<()> {
    let bench = std::env::current_exe()?;
    let folder = bench.parent().and_then(Path::parent).ok_or("the bench is not where cargo builds")?;
    let target = folder.parent().ok_or("the bench is not where cargo builds")?;
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        Some(name) => name,
        None => return Err("the bench is not where cargo builds".into()),
    };
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // What cargo tells this process about its package is no setting: build scripts would run again because of it.
    for (name, _) in std::env::vars_os().filter(|(name, _)| is_about_package(name)) {
        cargo.env_remove(name);
    }
    let status = cargo
        // With the tests' own package, so that it is built with the features that the tests' programs have.
        .args(["build", "--quiet", "-p", "backstop-relay", "-p", "backstop-tests", "--bin", "backstop-relay"])
        .args(["--profile", profile, "--target-dir"])
        .arg(target)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()?;
    if status.success() { Ok(()) } else { Err("backstop-relay cannot be built".into()) }
}

fn is_about_package(variable: &OsStr) -> bool {
    let name = variable.as_encoded_bytes();
    [&b"CARGO_PKG_"[..], b"CARGO_MANIFEST_"].iter().any(|prefix| name.starts_with(prefix))
}
