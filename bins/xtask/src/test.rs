//! `cargo xtask test`.

use std::{path::Path, process::Command};

use anyhow::{Result, bail};

use crate::{
    failures,
    leftovers::Leftovers,
    steps::{self, Steps, cargo},
    tidy,
};

/// Programs that tests run, and their Debian packages.
const TOOLS: &[(&str, &str)] = &[
    ("busybox", "busybox-static"),
    ("curl", "curl"),
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
    steps.step("libraries without their features", without_features)?;
    steps.step("documentation", || {
        steps::run(cargo(&["doc", "--quiet", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))
    })?;
    // As `cargo test` builds it: `cargo build --all-targets` would build each test program a second time.
    steps.step("build", || steps::run(&mut cargo(&["test", "--quiet", "--workspace", "--no-run"])))?;
    // Includes the fuzz targets' stable driver: a step of its own would build its crates again, with other
    // features. Test programs run one after the other: those with containers and clusters would disturb each
    // other's timing.
    steps.step("tests, 15 seconds for each fuzz target", || {
        let all = ["test", "--quiet", "--workspace", "--no-fail-fast"];
        failures::run(cargo(&all).env("FUZZ_SECONDS", "15"))
    })?;
    steps.step("nothing is left on this machine", || before.compare())
}

/// Libraries that are checked without their default features, by invocation. Crates of one invocation enable
/// no feature of each other's; those of several would.
const WITHOUT_FEATURES: [&[&str]; 4] = [
    &["k8s-cel", "k8s-metrics", "k8s-progress", "k8s-tls"],
    &["k8s-quantity"],
    &["k8s-schema"],
    &["k8s-core", "k8s-builtin", "k8s-controllers", "k8s-store"],
];

/// Checks libraries without their default features, which the other steps enable.
fn without_features() -> Result<()> {
    for libraries in WITHOUT_FEATURES {
        let packages = libraries.iter().flat_map(|library| ["--package", library]);
        steps::run(cargo(&["check", "--quiet", "--lib", "--no-default-features"]).args(packages))?;
    }
    Ok(())
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
