//! `cargo xtask check`: the quick inner loop.
//!
//! Checks format, lints and unit tests of the crates whose files differ from a commit. Crates that depend on
//! them are compiled by `cargo xtask test`.

use std::{collections::BTreeSet, path::Path, process::Command};

use anyhow::Result;

use crate::{
    root,
    steps::{self, cargo},
    tidy,
};

/// Checks the crates with changes since the commit `since`, uncommitted ones included.
pub(crate) fn run(since: &str) -> Result<()> {
    let changed = changed_files(since)?;
    let crates = crates_of(&changed, |directory| root().join(directory).join("Cargo.toml").exists());
    let names = crates.iter().map(|directory| package_name(directory)).collect::<Result<Vec<_>>>()?;
    println!("changed: {}", if names.is_empty() { "nothing".to_owned() } else { names.join(", ") });
    steps::run(&mut cargo(&["fmt", "--all", "--check"]))?;
    tidy::run()?;
    if names.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = names.iter().flat_map(|name| ["--package", name.as_str()]).collect();
    steps::run(
        cargo(&["clippy", "--quiet", "--all-targets"]).args(&packages).args(["--", "-D", "warnings"]),
    )?;
    steps::run(cargo(&["test", "--quiet", "--lib", "--bins"]).args(&packages))
}

fn changed_files(since: &str) -> Result<Vec<String>> {
    let mut diff = Command::new("git");
    diff.args(["diff", "--name-only", "--relative", since]).current_dir(root());
    let mut new = Command::new("git");
    new.args(["ls-files", "--others", "--exclude-standard"]).current_dir(root());
    let text = steps::output(&mut diff)? + &steps::output(&mut new)?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// The innermost directory with a manifest above each file.
fn crates_of(files: &[String], is_crate: impl Fn(&Path) -> bool) -> BTreeSet<&Path> {
    let mut crates = BTreeSet::new();
    for file in files {
        let above = Path::new(file).ancestors().skip(1).filter(|up| !up.as_os_str().is_empty());
        crates.extend(above.into_iter().find(|up| is_crate(up)));
    }
    crates
}

fn package_name(directory: &Path) -> Result<String> {
    let manifest = std::fs::read_to_string(root().join(directory).join("Cargo.toml"))?;
    let name = manifest.lines().find_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'));
    Ok(name.unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_belong_to_the_innermost_crate() {
        let files = ["k8s-core/cel/src/lib.rs", "k8s-core/src/lib.rs", "README.md"].map(str::to_owned);
        let is_crate = |path: &Path| ["k8s-core/cel", "k8s-core"].iter().any(|c| path == Path::new(c));
        let found = crates_of(&files, is_crate);
        assert_eq!(found.into_iter().collect::<Vec<_>>(), [Path::new("k8s-core"), Path::new("k8s-core/cel")]);
    }
}
