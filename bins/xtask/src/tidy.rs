//! `cargo xtask tidy`: the repository's own rules.

mod cycles;
mod dependencies;
mod examples;
mod metrics;
mod process;
mod source;
mod words;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{root, steps};

/// Allowed top-level entries, except dot-files.
const TOP_LEVEL: &[&str] = &[
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "bins",
    "examples",
    "fuzz",
    "k8s-controllers",
    "k8s-core",
    "k8s-net",
    "k8s-runtime",
    "rustfmt.toml",
    "target",
];

/// The exact dependencies among our crates. A missing one is forbidden, and one without a manifest entry is
/// stale.
///
/// They point one way: programs and `k8s-testing` -> API server, scheduler, kubelet -> controllers, runtime,
/// net -> k8s-core -> leaf crates. Dev-dependencies do not count: tests may use crates above their own.
const EDGES: &[(&str, &[&str])] = &[
    ("k8s-metrics", &[]),
    ("k8s-progress", &[]),
    ("k8s-quantity", &[]),
    ("k8s-tls", &[]),
    ("k8s-derive", &[]),
    ("k8s-cel", &["k8s-quantity"]),
    ("k8s-quota", &["k8s-quantity"]),
    ("k8s-schema", &["k8s-quantity"]),
    ("k8s-store", &["k8s-progress"]),
    ("k8s-core", &["k8s-derive", "k8s-progress", "k8s-quantity", "k8s-tls"]),
    ("k8s-controllers", &["k8s-core", "k8s-metrics"]),
    ("k8s-builtin", &["k8s-core", "k8s-controllers", "k8s-metrics", "k8s-quota"]),
    ("k8s-runtime", &["k8s-tls"]),
    ("k8s-net", &["k8s-core", "k8s-metrics"]),
    ("k8s-ingress", &["k8s-core", "k8s-metrics", "k8s-tls"]),
    (
        "k8s-apiserver",
        &["k8s-core", "k8s-cel", "k8s-metrics", "k8s-quota", "k8s-schema", "k8s-store", "k8s-tls"],
    ),
    ("k8s-metrics-server", &["k8s-core", "k8s-apiserver"]),
    ("k8s-scheduler", &["k8s-core", "k8s-cel", "k8s-controllers", "k8s-metrics"]),
    ("k8s-simulated", &["k8s-core"]),
    ("k8s-kubelet", &["k8s-core", "k8s-metrics", "k8s-tls", "k8s-runtime", "k8s-net"]),
    (
        "k8s-testing",
        &[
            "k8s-core",
            "k8s-store",
            "k8s-builtin",
            "k8s-controllers",
            "k8s-apiserver",
            "k8s-scheduler",
            "k8s-simulated",
        ],
    ),
    ("k8s-envtest", &["k8s-core", "k8s-testing"]),
    (
        "hyperkube",
        &[
            "k8s-core",
            "k8s-metrics",
            "k8s-metrics-server",
            "k8s-store",
            "k8s-tls",
            "k8s-builtin",
            "k8s-controllers",
            "k8s-runtime",
            "k8s-net",
            "k8s-ingress",
            "k8s-apiserver",
            "k8s-scheduler",
            "k8s-simulated",
            "k8s-kubelet",
        ],
    ),
    (
        "k8s-examples",
        &[
            "k8s-core",
            "k8s-builtin",
            "k8s-controllers",
            "k8s-runtime",
            "k8s-apiserver",
            "k8s-scheduler",
            "k8s-testing",
            "hyperkube",
        ],
    ),
    ("xtask", &["k8s-runtime"]),
    (
        "k8s-fuzz",
        &["k8s-core", "k8s-cel", "k8s-schema", "k8s-store", "k8s-apiserver", "k8s-runtime", "k8s-ingress"],
    ),
];

pub(crate) fn run() -> Result<()> {
    let mut problems = Vec::new();
    problems.extend(top_level()?);
    problems.extend(edges()?);
    problems.extend(module_docs()?);
    let sources = library_sources()?;
    for source in &sources {
        problems.extend(cycles::problems(source)?);
    }
    problems.extend(dependencies::problems(&dependencies()?));
    problems.extend(examples::problems(&root().join("examples"))?);
    problems.extend(metrics::problems(&root(), &sources)?);
    problems.extend(process::problems(&root(), &rust_files()?)?);
    problems.extend(words::problems(&root(), &rust_files()?)?);
    if problems.is_empty() {
        println!(
            "top level, crate edges, module cycles, module documentation, licences, duplicates, examples, metrics and words are as they should be"
        );
        return Ok(());
    }
    bail!("{}", problems.join("\n"))
}

fn top_level() -> Result<Vec<String>> {
    // Tracked and untracked files, without ignored ones such as build directories.
    let listed = steps::output(
        Command::new("git")
            .args(["ls-files", "--cached", "--others", "--exclude-standard"])
            .current_dir(root()),
    );
    let names: Vec<String> = match listed {
        Ok(text) => text.lines().map(|l| l.split('/').next().unwrap_or(l).to_owned()).collect(),
        Err(_) => {
            fs::read_dir(root())?.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect()
        }
    };
    let mut bad: Vec<String> =
        names.into_iter().filter(|n| !n.starts_with('.') && !TOP_LEVEL.contains(&n.as_str())).collect();
    bad.sort();
    bad.dedup();
    Ok(bad.into_iter().map(|n| format!("{n}: the top level holds only what DESIGN lays out")).collect())
}

fn metadata() -> Result<Value> {
    let text =
        steps::output(&mut steps::cargo(&["metadata", "--format-version=1", "--no-deps", "--offline"]))?;
    serde_json::from_str(&text).context("cargo metadata")
}

/// All packages of a Linux build. Those of other platforms need not be there, so that it works offline.
fn dependencies() -> Result<Value> {
    let version = steps::output(Command::new("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names no host")?;
    let mut metadata = steps::cargo(&["metadata", "--format-version=1", "--filter-platform", host]);
    let text = steps::output(&mut metadata)?;
    serde_json::from_str(&text).context("cargo metadata")
}

fn edges() -> Result<Vec<String>> {
    let metadata = metadata()?;
    let mut problems = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = package["name"].as_str().unwrap_or_default();
        let Some((_, allowed)) = EDGES.iter().find(|(crate_, _)| *crate_ == name) else {
            problems.push(format!("{name}: a crate that xtask's table of edges does not have"));
            continue;
        };
        let declared: Vec<&str> = package["dependencies"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|dependency| dependency["kind"].is_null())
            .filter_map(|dependency| dependency["name"].as_str())
            .filter(|to| EDGES.iter().any(|(crate_, _)| crate_ == to))
            .collect();
        for to in declared.iter().filter(|to| !allowed.contains(to)) {
            problems.push(format!("{name} must not depend on {to}"));
        }
        for to in allowed.iter().filter(|to| !declared.contains(to)) {
            problems.push(format!("{name} does not depend on {to}: take the edge out of xtask's table"));
        }
    }
    Ok(problems)
}

/// The `src` directories of our crates that are libraries.
fn library_sources() -> Result<Vec<PathBuf>> {
    let metadata = metadata()?;
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let sources = packages
        .filter_map(|package| Some(Path::new(package["manifest_path"].as_str()?).parent()?.join("src")))
        .filter(|source| source.join("lib.rs").exists());
    Ok(sources.collect())
}

/// The Rust files that git knows or would add, relative to the top level.
fn rust_files() -> Result<Vec<PathBuf>> {
    let mut list = Command::new("git");
    list.args(["ls-files", "--cached", "--others", "--exclude-standard", "*.rs"]).current_dir(root());
    let files = steps::output(&mut list)?;
    Ok(files.lines().map(PathBuf::from).filter(|file| root().join(file).exists()).collect())
}

/// Every crate and every module with a folder needs module documentation.
fn module_docs() -> Result<Vec<String>> {
    let mut problems = Vec::new();
    let mut todo: Vec<PathBuf> =
        ["bins", "examples", "fuzz", "k8s-controllers", "k8s-core", "k8s-net", "k8s-runtime"]
            .iter()
            .map(|d| root().join(d))
            .collect();
    while let Some(directory) = todo.pop() {
        for entry in fs::read_dir(&directory).with_context(|| format!("{directory:?}"))?.flatten() {
            let path = entry.path();
            if path.is_dir() {
                if !matches!(entry.file_name().to_str(), Some("target" | "data" | "corpus" | "artifacts")) {
                    todo.push(path);
                }
            } else if path.extension().is_some_and(|e| e == "rs") && must_have_docs(&path) {
                let text = fs::read_to_string(&path)?;
                // Attributes may precede it at a crate's root.
                if !text.trim_start().starts_with("//!") && !text.contains("\n//!") {
                    problems.push(format!(
                        "{}: no module documentation (//!)",
                        path.strip_prefix(root()).unwrap_or(&path).display()
                    ));
                }
            }
        }
    }
    Ok(problems)
}

fn must_have_docs(path: &Path) -> bool {
    let text = path.to_string_lossy();
    let is_source = text.contains("/src/") && !text.contains("/src/bin/");
    let unit_tests =
        path.file_stem().is_some_and(|s| s == "tests" || s.to_string_lossy().ends_with("_tests"));
    is_source && !unit_tests
}
