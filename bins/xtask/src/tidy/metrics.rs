//! Names of metrics: each is defined once in the tree.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::source;

/// Returns a problem for each metric that is defined twice in these source directories.
pub(super) fn problems(root: &Path, directories: &[PathBuf]) -> anyhow::Result<Vec<String>> {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for directory in directories {
        for file in source::files(directory)? {
            let text = source::without_tests(&source::blank_comments(&std::fs::read_to_string(&file)?));
            let place = file.strip_prefix(root).unwrap_or(&file).display().to_string();
            for name in names(&text) {
                places.entry(name.to_owned()).or_default().push(place.clone());
            }
        }
    }
    Ok(twice(&places))
}

fn twice(places: &BTreeMap<String, Vec<String>>) -> Vec<String> {
    let more = places.iter().filter(|(_, places)| places.len() > 1);
    more.map(|(name, places)| format!("the metric {name} is defined in {}", places.join(" and "))).collect()
}

/// The metrics that a file defines: names that a help text follows, which begins with a capital.
fn names(text: &str) -> Vec<&str> {
    if !text.contains("k8s_metrics") && !text.contains("MetricType") {
        return Vec::new();
    }
    let parts: Vec<&str> = text.split('"').collect();
    let name = |part: &str| part.contains('_') && part.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    let defined = parts
        .windows(3)
        .filter(|w| name(w[0]) && w[1].trim() == "," && w[2].starts_with(|c: char| c.is_ascii_uppercase()));
    defined.map(|w| w[0]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_what_a_help_text_follows() {
        let text = r#"use k8s_metrics::Registry;
            registry.register("a_total", "Number of a.", Counter::default());
            let rows = [("b_seconds", "How long", 1), ("not_one", "help")];
            ("c_total",
             "Number of c.")"#;
        assert_eq!(names(text), ["a_total", "b_seconds", "c_total"]);
        assert!(names(&text.replace("k8s_metrics", "other")).is_empty());
    }

    #[test]
    fn the_trees_metrics_are_found_and_unique() {
        let places = [("a_total", vec!["x.rs", "y.rs"]), ("b_total", vec!["x.rs"])];
        let places = places.map(|(n, p)| (n.to_owned(), p.into_iter().map(str::to_owned).collect())).into();
        assert_eq!(twice(&places), ["the metric a_total is defined in x.rs and y.rs"]);
        let file = crate::root().join("k8s-core/metrics/src/process.rs");
        let text = std::fs::read_to_string(file).unwrap();
        assert!(names(&source::without_tests(&text)).contains(&"process_open_fds"));
    }
}
