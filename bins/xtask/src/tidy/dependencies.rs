//! Licences, duplicate versions and lower bounds of the crates that Linux builds, from `cargo metadata`.
//!
//! `.cargo/deny.toml` repeats the licences for cargo-deny, which also knows advisories and needs the
//! internet.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// Licences that a crate may have. An expression needs one of them in each of its alternatives.
const LICENCES: [&str; 9] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Zlib",
];

/// Crates with several versions, how many, and the reason.
const DUPLICATES: [(&str, usize, &str); 14] = [
    ("base64", 2, "0.22 is k8s-openapi's, 0.23 kube-client's"),
    ("block-buffer", 2, "as digest"),
    ("cpufeatures", 2, "as digest"),
    ("crypto-common", 2, "as digest"),
    ("darling", 2, "at build time: derive_builder (0.20), kube-derive (0.24)"),
    ("darling_core", 2, "as darling"),
    ("darling_macro", 2, "as darling"),
    ("digest", 2, "sha2 of ours (0.10), sha1 of tungstenite (0.11)"),
    ("getrandom", 3, "ring (0.2), rand 0.9 (0.3), rand 0.10 and tempfile (0.4)"),
    ("hashbrown", 2, "kube-runtime (0.16), indexmap (0.17)"),
    ("rand", 2, "0.9 is ours, 0.10 that of hickory-proto, proptest and tungstenite"),
    ("rand_core", 2, "as rand"),
    ("syn", 2, "at build time: half of the derive macros are at 3"),
    ("synstructure", 2, "at build time: as syn"),
];

/// Crates whose lower bound may be below the version of Cargo.lock, that bound, and the reason.
const OLDER: &[(&str, &str, &str)] = &[];

/// Returns the crates with another licence, the duplicates that are not listed or not there, and the lower
/// bounds that are too low.
pub(super) fn problems(metadata: &Value) -> Vec<String> {
    let mut problems = Vec::new();
    let mut versions = BTreeMap::<&str, BTreeSet<&str>>::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let field = |name: &str| package[name].as_str().unwrap_or_default();
        versions.entry(field("name")).or_default().insert(field("version"));
        if !allowed(field("license")) {
            problems.push(format!(
                "{} {}: licence {:?}: choose another crate, or add the licence to xtask's list",
                field("name"),
                field("version"),
                field("license")
            ));
        }
    }
    for (name, found) in &versions {
        let listed = DUPLICATES.iter().find(|(listed, ..)| listed == name).map_or(1, |(_, count, _)| *count);
        if found.len() > listed {
            let found = found.iter().copied().collect::<Vec<_>>().join(", ");
            problems.push(format!("{name}: versions {found}: use one, or list it in xtask with the reason"));
        }
    }
    for (name, count, _) in DUPLICATES {
        let found = versions.get(name).map_or(0, BTreeSet::len);
        if found < count {
            problems.push(format!("{name}: {found} versions: lower the {count} in xtask's list"));
        }
    }
    for (name, bound) in bounds(metadata) {
        let built = versions.get(name).into_iter().flatten().find(|version| compatible(bound, version));
        if let Some(built) = built
            && numbers(bound) < tested(built)
            && !OLDER.iter().any(|(listed, older, _)| (*listed, *older) == (name, bound))
        {
            problems.push(format!(
                "{name}: the lower bound {bound} is below the tested {built}: raise it, or list it in xtask with the reason"
            ));
        }
    }
    problems
}

/// Returns the lower bounds of our crates' dependencies, by name.
fn bounds(metadata: &Value) -> BTreeSet<(&str, &str)> {
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let ours = packages.filter(|package| package["source"].is_null());
    let all = ours.flat_map(|package| package["dependencies"].as_array().into_iter().flatten());
    all.filter(|dependency| dependency["source"].is_string())
        .filter_map(|dependency| {
            Some((dependency["name"].as_str()?, dependency["req"].as_str()?.strip_prefix('^')?))
        })
        .collect()
}

fn numbers(version: &str) -> [u64; 3] {
    let mut parts = version.split(['.', '-', '+']).map(|part| part.parse().unwrap_or(0));
    std::array::from_fn(|_| parts.next().unwrap_or(0))
}

/// True if cargo may choose the version for the bound.
fn compatible(bound: &str, version: &str) -> bool {
    match (numbers(bound), numbers(version)) {
        ([0, bound, _], [0, version, _]) => bound == version,
        ([bound, ..], [version, ..]) => bound == version,
    }
}

/// Returns the least bound for a version: without the patch level, which before 1.0 may add what we use.
fn tested(version: &str) -> [u64; 3] {
    match numbers(version) {
        [0, minor, patch] => [0, minor, patch],
        [major, minor, _] => [major, minor, 0],
    }
}

/// True if an SPDX expression (old crates write `/` for `OR`) can be satisfied with [`LICENCES`].
fn allowed(expression: &str) -> bool {
    let expression = expression.replace(['(', ')'], "").replace('/', " OR ");
    expression.split(" AND ").all(|part| part.split(" OR ").any(|licence| LICENCES.contains(&licence.trim())))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn licence_expressions() {
        for (expression, expected) in [
            ("MIT OR Apache-2.0", true),
            ("MIT/Apache-2.0", true),
            ("Unlicense OR MIT", true),
            ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
            ("MIT AND GPL-3.0-only", false),
            ("GPL-3.0-only", false),
            ("", false),
        ] {
            assert_eq!(allowed(expression), expected, "{expression}");
        }
    }

    #[test]
    fn a_new_duplicate_and_one_that_is_gone_are_found() {
        let package = |name: &str, version: &str| json!({"name": name, "version": version, "license": "MIT"});
        let mut all: Vec<Value> = DUPLICATES
            .iter()
            .flat_map(|(name, count, _)| (0..*count).map(|i| package(name, &i.to_string())))
            .collect();
        assert_eq!(problems(&json!({ "packages": all })), Vec::<String>::new());
        all.remove(0);
        all.extend([package("twice", "1.0.0"), package("twice", "2.0.0")]);
        let found = problems(&json!({ "packages": all }));
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("twice: versions 1.0.0, 2.0.0"), "{found:?}");
        assert!(found[1].starts_with("base64: 1 versions"), "{found:?}");
    }

    #[test]
    fn a_lower_bound_below_the_tested_version_is_found() {
        let check = |bound: &str, version: &str| {
            let dependency = json!({"name": "dep", "req": format!("^{bound}"), "source": "registry"});
            let ours =
                json!({"name": "ours", "version": "0.1.0", "license": "MIT", "dependencies": [dependency]});
            let dep = json!({"name": "dep", "version": version, "license": "MIT", "source": "registry"});
            let other = json!({"name": "unused", "version": "9.0.0", "license": "MIT", "source": "registry"});
            let found = problems(&json!({"packages": [ours, dep, other]}));
            found.iter().filter(|problem| problem.starts_with("dep: the lower bound")).count()
        };
        for (bound, version, expected) in [
            ("1", "1.12.3", 1),
            ("1.11", "1.12.3", 1),
            ("1.12", "1.12.3", 0),
            ("1.12.1", "1.12.3", 0),
            ("0.1", "0.1.21", 1),
            ("0.1.20", "0.1.21", 1),
            ("0.1.21", "0.1.21", 0),
            ("2", "1.12.3", 0),
        ] {
            assert_eq!(check(bound, version), expected, "{bound} {version}");
        }
    }
}
