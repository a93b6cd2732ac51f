//! `cargo xtask test`.

use std::{path::Path, process::Command};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{
    leftovers::Leftovers,
    steps::{self, Steps, cargo},
    tidy,
};

/// Programs that tests run, and their Debian packages.
const TOOLS: &[(&str, &str)] = &[
    ("busybox", "busybox-static"),
    ("kubectl", "kubernetes-client"),
    ("nft", "nftables"),
    ("unshare", "util-linux"),
    ("nsenter", "util-linux"),
    ("setpriv", "util-linux"),
    ("script", "bsdutils"),
];

pub(crate) fn run() -> Result<()> {
    let mut steps = Steps::default();
    let result = all(&mut steps);
    steps.summary();
    result
}

fn all(steps: &mut Steps) -> Result<()> {
    steps.step("programs that tests need", install)?;
    let before = Leftovers::now();
    steps.step("tidy", tidy::run)?;
    steps.step("format", || steps::run(&mut cargo(&["fmt", "--all", "--check"])))?;
    steps.step("lints", || {
        let all = ["clippy", "--quiet", "--workspace", "--all-targets", "--features", "xtask/bench"];
        steps::run(cargo(&all).args(["--", "-D", "warnings"]))
    })?;
    steps.step("each library without its default features", alone)?;
    steps.step("documentation", || {
        steps::run(cargo(&["doc", "--quiet", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))
    })?;
    steps.step("build", || steps::run(&mut cargo(&["build", "--quiet", "--workspace", "--all-targets"])))?;
    // Includes the fuzz targets' stable driver, two seconds per target. Test programs run one after the
    // other: those with containers and clusters would disturb each other's timing.
    steps.step("tests", || steps::run(&mut cargo(&["test", "--quiet", "--workspace", "--no-fail-fast"])))?;
    steps.step("fuzz targets, 17 seconds each", || {
        let targets = ["test", "--quiet", "--package", "k8s-fuzz", "--test", "stable"];
        steps::run(cargo(&targets).env("FUZZ_SECONDS", "17"))
    })?;
    steps.step("nothing is left on this machine", || before.compare())
}

/// Checks each library crate alone, so that it has no feature that another crate enables.
///
/// The other steps enable every feature. Crates that build the same dependencies follow one another.
fn alone() -> Result<()> {
    for library in libraries(&steps::output(&mut cargo(&["metadata", "--no-deps", "--format-version=1"]))?)? {
        steps::run(&mut cargo(&[
            "check",
            "--quiet",
            "--lib",
            "--no-default-features",
            "--package",
            &library,
        ]))
        .with_context(|| format!("{library} alone, without its default features"))?;
    }
    Ok(())
}

/// Returns the names of the workspace's libraries that others may use.
fn libraries(metadata: &str) -> Result<Vec<String>> {
    let metadata: Value = serde_json::from_str(metadata)?;
    let mut names = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let kinds = package["targets"]
            .as_array()
            .into_iter()
            .flatten()
            .flat_map(|target| target["kind"].as_array().into_iter().flatten().filter_map(Value::as_str));
        // `publish` is null for a crate that may be published anywhere, and empty for a tool of the
        // repository.
        if package["publish"].is_null() && kinds.into_iter().any(|kind| kind == "lib" || kind == "proc-macro")
        {
            names.push(package["name"].as_str().unwrap_or_default().to_owned());
        }
    }
    Ok(names)
}

/// Returns true if a program is on the PATH.
fn is_there(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

/// Installs missing programs from Debian, and prints them.
fn install() -> Result<()> {
    let mut packages: Vec<&str> =
        TOOLS.iter().filter(|(program, _)| !is_there(program)).map(|(_, package)| *package).collect();
    packages.dedup();
    if packages.is_empty() {
        println!("all there: {}", TOOLS.iter().map(|(program, _)| *program).collect::<Vec<_>>().join(", "));
        return Ok(());
    }
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!("these Debian packages are needed and there is no apt-get: {}", packages.join(" "));
    }
    println!("installing from Debian: {}", packages.join(" "));
    steps::run(Command::new("apt-get").args(["update", "-qq"]))?;
    steps::run(
        Command::new("apt-get")
            .args(["install", "-qq", "-y", "--no-install-recommends"])
            .args(&packages)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_those_that_others_may_use() {
        let all = steps::output(&mut cargo(&["metadata", "--no-deps", "--offline", "--format-version=1"]));
        let names = libraries(&all.unwrap()).unwrap();
        for name in ["k8s-core", "k8s-derive", "k8s-kubelet", "k8s-testing", "hyperkube"] {
            assert!(names.iter().any(|n| n == name), "{name} is missing: {names:?}");
        }
        for tool in ["xtask", "k8s-fuzz", "k8s-examples"] {
            assert!(names.iter().all(|n| n != tool), "{tool} is no library");
        }
    }
}
