//! What failing tests said, repeated where a reader looks first: at the end.
//!
//! `cargo test --no-fail-fast` goes on for minutes after a failure. A log of which only the end is kept would
//! name the failed test and not its reason.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

/// Most lines that are repeated of one test program.
const MOST_LINES: usize = 200;

/// Runs `cargo test`, passes its output on, and repeats at the end what failed, with the machine's free disk
/// and memory.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let told = format!("{command:?}");
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("run {told}"))?;
    let mut failures = Failures::default();
    if let Some(out) = child.stdout.take() {
        let mut screen = std::io::stdout().lock();
        for line in BufReader::new(out).split(b'\n') {
            let line = line.with_context(|| format!("read from {told}"))?;
            screen.write_all(&line)?;
            screen.write_all(b"\n")?;
            failures.read(&String::from_utf8_lossy(&line));
        }
    }
    let status = child.wait()?;
    if status.success() {
        return Ok(());
    }
    println!("\n==> what failed\n{}", failures.lines.join("\n"));
    // Nodes that are short of disk or memory take no pods.
    for figures in [&["df", "-h", "/", "/tmp", "/var/tmp"][..], &["free", "-m"]] {
        let _ = Command::new(figures[0]).args(&figures[1..]).status();
    }
    bail!("{told} ended with {status}");
}

/// Collects the sections "failures:" of test programs.
#[derive(Default)]
struct Failures {
    lines: Vec<String>,
    /// Lines that may still be taken of the current section; `None` outside.
    inside: Option<usize>,
}

impl Failures {
    fn read(&mut self, line: &str) {
        if line == "failures:" && self.inside.is_none() {
            self.inside = Some(MOST_LINES);
        }
        let Some(left) = self.inside.as_mut() else { return };
        let ends = line.starts_with("test result: ");
        if *left > 0 || ends {
            self.lines.push(line.to_owned());
            *left = left.saturating_sub(1);
        }
        if ends {
            self.inside = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_of_failures_are_kept_and_nothing_else() {
        let mut failures = Failures::default();
        let text = "running 2 tests\ntest a ... FAILED\n\nfailures:\n\n---- a ----\nwhy\n\nfailures:\n    a\n\n\
                    test result: FAILED. 1 passed\nrunning 1 test\ntest result: ok. 1 passed";
        text.lines().for_each(|line| failures.read(line));
        let kept = "failures:\n\n---- a ----\nwhy\n\nfailures:\n    a\n\ntest result: FAILED. 1 passed";
        assert_eq!(failures.lines.join("\n"), kept);
    }
}
