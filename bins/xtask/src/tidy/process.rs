//! No library call changes its process: signals, limits, the log and the allocator belong to programs.

use std::path::{Path, PathBuf};

use super::source::{blank_comments, without_tests};

/// Calls and attributes that change the whole process, with the files that may have them.
const CHANGES: &[(&str, &[&str])] = &[
    ("descriptors::raise(", &["bins/src/commands"]),
    ("tracing_subscriber::", &["bins/src/commands"]),
    ("signal::unix::", &["bins/src/commands"]),
    ("signal::ctrl_c", &["bins/src/commands"]),
    ("#[global_allocator]", &["bins/src/allocator.rs"]),
    ("text_pages::release(", &["bins/src/commands"]),
    // Of a container's or a shim's own process.
    ("setrlimit(", &["bins/src/commands", "k8s-runtime/src/descriptors.rs", "k8s-runtime/src/embedded/shim"]),
    ("umask(", &["k8s-runtime/src/embedded/shim"]),
    ("env::set_var(", &[]),
    ("env::remove_var(", &[]),
    ("env::set_current_dir(", &["k8s-runtime/src/embedded/shim", "k8s-runtime/src/embedded/zygote.rs"]),
    // A lab's failing runs are silenced, in a process that is a test.
    ("panic::set_hook(", &["k8s-controllers/testing/src/seeds.rs"]),
];

/// Returns a line for each library source that changes its process.
pub(super) fn problems(root: &Path, files: &[PathBuf]) -> anyhow::Result<Vec<String>> {
    let mut problems = Vec::new();
    for file in files {
        let name = file.to_string_lossy();
        let is_library =
            name.contains("/src/") && !name.starts_with("bins/xtask/") && !name.starts_with("fuzz/");
        if is_library {
            let text = std::fs::read_to_string(root.join(file))?;
            problems.extend(changes(&name, &text));
        }
    }
    Ok(problems)
}

fn changes(file: &str, text: &str) -> Vec<String> {
    let text = without_tests(&blank_comments(text));
    CHANGES
        .iter()
        .filter(|(call, allowed)| text.contains(call) && !allowed.iter().any(|a| file.starts_with(a)))
        .map(|(call, _)| {
            format!("{file}: `{call}` changes the process; only a program may (bins/src/commands)")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_programs_change_their_process() {
        let text = "fn f() { k8s_runtime::descriptors::raise(); }";
        assert_eq!(changes("bins/src/cluster.rs", text).len(), 1);
        assert!(changes("bins/src/commands/process.rs", text).is_empty());
        assert!(changes("bins/src/cluster.rs", "// descriptors::raise() is for mains").is_empty());
        assert!(
            changes("a/src/b.rs", "#[cfg(test)]\nmod tests { fn f() { std::env::set_var(); } }").is_empty()
        );
    }
}
