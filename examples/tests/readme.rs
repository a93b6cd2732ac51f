//! The commands of the READMEs exist, with the flags that they have there.
//!
//! `distribution` has the command line of `hyperkube`. Its `--help` is the reference.

use std::{collections::BTreeSet, path::Path, process::Command};

const SINGLE: [&str; 5] =
    ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"];

fn text(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path:?}: {e}"))
}

/// Lines of shell blocks, and code in backticks elsewhere; without comments.
fn commands(markdown: &str) -> Vec<String> {
    let mut commands = Vec::new();
    let mut block = None;
    let mut prose = String::new();
    for line in markdown.lines() {
        if let Some(language) = line.strip_prefix("```") {
            block = if block.is_some() { None } else { Some(language) };
        } else if block == Some("sh") {
            commands.push(line.split(" #").next().unwrap_or_default().trim().to_owned());
        } else if block.is_none() {
            prose.push_str(line);
            prose.push(' ');
        }
    }
    commands.extend(prose.split('`').skip(1).step_by(2).map(str::to_owned));
    commands
}

fn help(subcommands: &[&str]) -> Option<String> {
    let out = Command::new(env!("CARGO_BIN_EXE_distribution")).args(subcommands).arg("--help").output();
    let out = out.expect("the example is built with its tests");
    out.status.success().then(|| String::from_utf8_lossy(&out.stdout).into_owned())
}

/// The words of a help text, so that `--port` is not found in `--https-listen-port`.
fn words(help: &str) -> BTreeSet<String> {
    let word = |c: char| !(c.is_ascii_alphanumeric() || c == '-');
    help.split(word).map(str::to_owned).collect()
}

fn flags(command: &str) -> impl Iterator<Item = &str> {
    let words = command.split_whitespace().filter(|word| word.starts_with("--") && word.len() > 2);
    words.map(|word| word.split('=').next().unwrap_or_default())
}

/// A command's problem, if it is one of the program and cannot be run as written.
fn problem(command: &str) -> Option<String> {
    let example = "cargo run -p k8s-examples --bin distribution -- ";
    let rest = command.strip_prefix(example).or_else(|| command.strip_prefix("hyperkube "))?;
    let rest = rest.trim_end_matches(['&', ' ']);
    let mut subcommands: Vec<&str> = rest.split_whitespace().take_while(|w| !w.starts_with('-')).collect();
    subcommands.truncate(if subcommands.first() == Some(&"image") { 2 } else { 1 });
    let Some(help) = help(&subcommands) else { return Some(format!("{command:?}: no such subcommand")) };
    let known = words(&help);
    let unknown: Vec<&str> = flags(rest).filter(|flag| !known.contains(*flag)).collect();
    (!unknown.is_empty()).then(|| format!("{command:?}: unknown {unknown:?}"))
}

#[test]
fn commands_and_flags_exist() {
    let mut found = 0;
    let mut problems = Vec::new();
    for file in ["../README.md", "README.md"] {
        for command in commands(&text(file)) {
            found += usize::from(command.starts_with("hyperkube "));
            problems.extend(problem(&command));
        }
    }
    assert!(found >= 6, "{found} commands of hyperkube");
    assert_eq!(problems, Vec::<String>::new());
}

/// Flags that the text names without their command.
#[test]
fn flags_in_prose_exist() {
    let mut known = BTreeSet::new();
    for subcommand in
        ["up", "server", "envtest", "envtest-kube-apiserver", "reset", "image"].iter().chain(&SINGLE)
    {
        known.extend(words(&help(&[subcommand]).expect(subcommand)));
    }
    let all = commands(&text("../README.md"));
    let named: Vec<&str> = all.iter().filter(|c| c.starts_with("--")).flat_map(|c| flags(c)).collect();
    assert!(named.len() >= 5, "{named:?}");
    // Of kubectl: the image that the walk-through runs.
    let unknown: Vec<&&str> = named.iter().filter(|f| !known.contains(**f) && **f != "--image").collect();
    assert_eq!(unknown, Vec::<&&str>::new());
}

#[test]
fn an_unknown_flag_or_subcommand_is_found() {
    assert_eq!(problem("hyperkube up --simulated-nodes 3"), None);
    assert_eq!(problem("kubectl get pods --bogus"), None);
    assert!(problem("hyperkube up --simulated 3").is_some());
    assert!(problem("hyperkube downgrade").is_some());
}
