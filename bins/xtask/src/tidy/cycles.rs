//! No import cycles between the modules of a crate.
//!
//! A module is a direct child of the crate's `src`. It imports another one where its files name
//! `crate::other` (or `super::other`, as often as it takes to get to the root), or a name that the root
//! re-exports from there. Tests do not count.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use super::source::{blank_comments, files, without_tests};

/// The imports of each module, with a file that has each.
type Graph = BTreeMap<String, BTreeMap<String, PathBuf>>;

/// Returns a line for each import that is part of a cycle in this crate.
pub(super) fn problems(source: &Path) -> anyhow::Result<Vec<String>> {
    let graph = graph(source)?;
    let mut problems = Vec::new();
    for (module, imports) in &graph {
        for (other, file) in imports.iter().filter(|(other, _)| reaches(&graph, other, module)) {
            problems.push(format!("{}: {module} imports {other}, which imports {module}", file.display()));
        }
    }
    Ok(problems)
}

fn reaches(graph: &Graph, from: &str, to: &str) -> bool {
    let (mut seen, mut todo) = (BTreeSet::from([from]), vec![from]);
    while let Some(module) = todo.pop() {
        if module == to {
            return true;
        }
        for next in graph.get(module).into_iter().flat_map(BTreeMap::keys) {
            if seen.insert(next) {
                todo.push(next);
            }
        }
    }
    false
}

fn graph(source: &Path) -> anyhow::Result<Graph> {
    let root = without_tests(&blank_comments(&std::fs::read_to_string(source.join("lib.rs"))?));
    let modules: BTreeSet<&str> = root
        .split(';')
        .filter_map(|item| item.trim_end().rsplit_once("mod "))
        .map(|(_, name)| name.trim())
        .filter(|name| source.join(format!("{name}.rs")).exists())
        .collect();
    let reexports = reexports(&root, &modules);
    let mut graph = Graph::new();
    for file in files(source)? {
        let inside = file.strip_prefix(source)?.with_extension("");
        let path: Vec<&str> = inside.iter().filter_map(|part| part.to_str()).collect();
        let Some(module) = path.first().filter(|module| modules.contains(*module)) else { continue };
        let text = without_tests(&blank_comments(&std::fs::read_to_string(&file)?));
        let supers = "super::".repeat(path.len());
        let longer = format!("super::{supers}");
        let mut names = names_after(&text, "crate::");
        names.extend(names_after(&text.replace(&longer, ""), &supers));
        for name in names {
            let Some(other) = modules.get(name.as_str()).copied().or_else(|| reexports.get(&name).copied())
            else {
                continue;
            };
            if other != *module {
                graph.entry((*module).to_owned()).or_default().insert(other.to_owned(), file.clone());
            }
        }
    }
    Ok(graph)
}

/// Names that the root re-exports (`pub use module::{Name, ...}`), with their module.
fn reexports<'a>(root: &str, modules: &BTreeSet<&'a str>) -> BTreeMap<String, &'a str> {
    let mut all = BTreeMap::new();
    for module in modules {
        for (at, _) in root.match_indices(&format!("use {module}::")) {
            let rest = &root[at + "use ::".len() + module.len()..];
            let Some((items, _)) = rest.split_once(';') else { continue };
            // A list over several lines ends with a comma.
            for item in items.trim_matches(['{', '}']).split(',').filter(|item| !item.trim().is_empty()) {
                let name = item.rsplit("::").next().unwrap_or(item);
                let name = name.rsplit(" as ").next().unwrap_or(name);
                all.insert(name.trim().to_owned(), *module);
            }
        }
    }
    all
}

/// The first names of paths that begin with `prefix`: one, or several in braces.
fn names_after(text: &str, prefix: &str) -> Vec<String> {
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut names = Vec::new();
    for (at, _) in text.match_indices(prefix) {
        if text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':') {
            continue;
        }
        let rest = &text[at + prefix.len()..];
        let Some(group) = rest.strip_prefix('{') else {
            names.push(word(rest));
            continue;
        };
        let mut depth = 0;
        let mut item = String::new();
        for c in group.chars() {
            match c {
                '}' if depth == 0 => break,
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 0 => names.push(word(std::mem::take(&mut item).trim())),
                _ if depth == 0 => item.push(c),
                _ => {}
            }
        }
        names.push(word(item.trim()));
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(files: &[(&str, &str)]) -> Vec<String> {
        let dir = std::env::temp_dir().join(format!("xtask-cycles-{}-{}", std::process::id(), files.len()));
        std::fs::create_dir_all(dir.join("a")).expect("a temporary directory");
        for (name, text) in files {
            std::fs::write(dir.join(name), text).expect("a file in it");
        }
        let found = problems(&dir).expect("the sources are there");
        std::fs::remove_dir_all(&dir).expect("the directory is ours");
        found
    }

    #[test]
    fn a_cycle_is_found_through_groups_supers_and_reexports() {
        let lib = "mod a;\npub mod b;\nmod c;\npub use c::{C, D as E};\n";
        let found = check(&[
            ("lib.rs", lib),
            ("a.rs", "use crate::{\n b::{X, Y},\n};\nmod x;"),
            ("a/x.rs", "use super::Z;\n// crate::c is only named here\n"),
            ("b.rs", "fn f() -> crate::E { super::c::g() }"),
            ("c.rs", "use super::a;\n"),
        ]);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found.iter().any(|line| line.ends_with("a imports b, which imports a")), "{found:?}");
    }

    #[test]
    fn tests_and_comments_do_not_count() {
        let found = check(&[
            ("lib.rs", "mod a;\nmod b;\n"),
            ("a.rs", "//! Like [`crate::b`].\n#[cfg(test)]\nmod tests { use crate::b; }"),
            ("b.rs", "use crate::a;"),
        ]);
        assert_eq!(found, Vec::<String>::new());
    }
}
