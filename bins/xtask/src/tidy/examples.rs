//! Every example is listed in `examples/README.md`, with the command that runs it.
//!
//! A row of its table is "| `file` | `command` | text |". A program's file names the same command in its
//! documentation.

use std::path::Path;

/// Tests of this table and of the READMEs: no examples themselves.
const OF_THE_README: [&str; 2] = ["tests/run.rs", "tests/readme.rs"];

/// Returns the examples without a row or without their command, and the rows without an example.
pub(super) fn problems(examples: &Path) -> anyhow::Result<Vec<String>> {
    let readme = std::fs::read_to_string(examples.join("README.md"))?;
    let rows = rows(&readme);
    let mut problems = Vec::new();
    let mut files = rust_files(examples, "")?;
    files.extend(rust_files(examples, "tests/")?);
    files.retain(|file| !OF_THE_README.contains(&file.as_str()));
    for file in &files {
        let Some((_, command)) = rows.iter().find(|(listed, _)| listed == file) else {
            problems.push(format!("examples/{file}: add a row to examples/README.md"));
            continue;
        };
        let text = std::fs::read_to_string(examples.join(file))?;
        if !file.starts_with("tests/") && !text.contains(&format!("//! Run it: `{command}`\n")) {
            problems
                .push(format!("examples/{file}: its documentation lacks the line \"Run it: `{command}`\""));
        }
    }
    for (listed, _) in rows.iter().filter(|(listed, _)| !files.iter().any(|file| file == listed)) {
        problems.push(format!("examples/README.md: there is no {listed}"));
    }
    Ok(problems)
}

/// The file and command of each row.
fn rows(readme: &str) -> Vec<(&str, &str)> {
    let cells = readme.lines().filter_map(|line| {
        let mut quoted = line.strip_prefix("| `")?.split('`');
        let file = quoted.next().filter(|file| file.ends_with(".rs"))?;
        Some((file, quoted.nth(1)?))
    });
    cells.collect()
}

fn rust_files(examples: &Path, folder: &str) -> anyhow::Result<Vec<String>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(examples.join(folder))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".rs") {
            files.push(format!("{folder}{name}"));
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_example_without_row_or_command_and_a_row_without_example_are_found() {
        let dir = std::env::temp_dir().join(format!("xtask-examples-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("tests")).expect("a temporary directory");
        for (name, text) in [
            ("a.rs", "//! A.\n//!\n//! Run it: `cargo a`\n"),
            ("b.rs", "//! B.\n"),
            ("c.rs", "//! C.\n"),
            ("tests/t.rs", ""),
            ("tests/run.rs", ""),
            (
                "README.md",
                "| `a.rs` | `cargo a` | A |\n| `b.rs` | `cargo b` | B |\n| `d.rs` | `cargo d` | D |\n",
            ),
        ] {
            std::fs::write(dir.join(name), text).expect("a file in it");
        }
        let found = problems(&dir).expect("the files are there");
        std::fs::remove_dir_all(&dir).expect("the directory is ours");
        let starts = [
            "examples/b.rs: its",
            "examples/c.rs: add",
            "examples/tests/t.rs: add",
            "examples/README.md: there is no d.rs",
        ];
        assert_eq!(found.len(), starts.len(), "{found:?}");
        assert!(found.iter().zip(starts).all(|(line, start)| line.starts_with(start)), "{found:?}");
    }
}
