//! All workflow of this repository: `cargo xtask test|tidy|bench`.
//!
//! `test` is what a change must pass, in order, ending at the first failure. Everything is built in one profile with one set of features, so
//! that nothing is compiled twice.

#[cfg(feature = "bench")]
mod bench;
mod leftovers;
mod steps;
mod test;
mod tidy;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

/// All workflow of this repository.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Everything a change must pass: format, lints, documentation, build, all tests with real containers, fuzz targets.
    Test,
    /// The repository's own rules: crate edges, top level, module documentation.
    Tidy,
    /// Figures of a whole cluster (a release build, a private network namespace; needs root).
    Bench {
        /// How many pods are created one after the other.
        #[arg(long, default_value_t = 50)]
        pods: usize,
        /// How many pods are created at once.
        #[arg(long, default_value_t = 30)]
        at_once: usize,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Test => test::run(),
        Task::Tidy => tidy::run(),
        Task::Bench { pods, at_once } => bench::run(pods, at_once),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("xtask: FAILED: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs this program again with what the bench needs built in.
#[cfg(not(feature = "bench"))]
mod bench {
    use crate::steps;

    pub(crate) fn run(pods: usize, at_once: usize) -> anyhow::Result<()> {
        let (pods, at_once) = (pods.to_string(), at_once.to_string());
        let program = ["run", "--quiet", "--package", "xtask", "--features", "bench", "--", "bench"];
        steps::run(steps::cargo(&program).args(["--pods", &pods, "--at-once", &at_once]))
    }
}

/// The repository's top level.
fn root() -> PathBuf {
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).map(PathBuf::from).unwrap_or(manifest)
}
