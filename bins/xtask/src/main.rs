//! The workflow of this repository: `cargo xtask check|test|tidy|bench`.
//!
//! `test` is the gate for a change: its steps run in order and end at the first failure. All steps use one
//! profile and one feature set, so that nothing is compiled twice.

#[cfg(feature = "bench")]
mod bench;
mod check;
mod failures;
mod leftovers;
mod steps;
mod test;
mod tidy;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

/// Workflow of this repository.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run all checks for a change: format, lints, documentation, build, all tests with real containers, fuzz
    /// targets.
    Test,
    /// Format, lints and unit tests of the crates that changed: seconds, for the inner loop.
    Check {
        /// The commit to compare with.
        #[arg(long, default_value = "HEAD")]
        since: String,
    },
    /// Check the repository's own rules: crate edges, top level, module documentation.
    Tidy,
    /// Measure a whole cluster (release build, own network namespace; needs root).
    Bench {
        /// Number of pods created one after the other.
        #[arg(long, default_value_t = 50)]
        pods: usize,
        /// Number of pods created at once.
        #[arg(long, default_value_t = 30)]
        at_once: usize,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Test => test::run(),
        Task::Check { since } => check::run(&since),
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

/// Runs this program again with the bench's dependencies compiled in.
#[cfg(not(feature = "bench"))]
mod bench {
    use crate::steps;

    pub(crate) fn run(pods: usize, at_once: usize) -> anyhow::Result<()> {
        let (pods, at_once) = (pods.to_string(), at_once.to_string());
        let program = ["run", "--quiet", "--package", "xtask", "--features", "bench", "--", "bench"];
        steps::run(steps::cargo(&program).args(["--pods", &pods, "--at-once", &at_once]))
    }
}

/// Returns the repository's top-level directory.
fn root() -> PathBuf {
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).map(PathBuf::from).unwrap_or(manifest)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_readmes_name_tasks_that_exist() {
        let tasks = Cli::command();
        let tasks: Vec<&str> = tasks.get_subcommands().map(clap::Command::get_name).collect();
        let readme = std::fs::read_to_string(root().join("README.md")).expect("the repository has a README");
        let name = |text: &str| text.chars().take_while(char::is_ascii_alphabetic).collect::<String>();
        let named: Vec<String> = readme.split("cargo xtask ").skip(1).map(name).collect();
        assert!(named.len() >= 3, "{named:?}");
        assert!(named.iter().all(|task| tasks.contains(&task.as_str())), "{named:?} of {tasks:?}");
    }
}
