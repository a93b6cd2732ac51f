//! Reads `facts.txt`.

use std::{collections::HashMap, sync::LazyLock};

use serde_json::Value;

use super::ListType;

/// What is known of one field beyond its type.
#[derive(Clone, Debug, Default)]
pub(super) struct Fact {
    pub(super) list_type: Option<ListType>,
    pub(super) map_atomic: bool,
    pub(super) merge_key: Option<Box<str>>,
    pub(super) replace: bool,
    pub(super) retain_keys: bool,
    pub(super) values: Vec<Box<str>>,
    pub(super) default: Option<Value>,
}

/// Facts by definition, then field.
pub(super) static FACTS: LazyLock<HashMap<&'static str, HashMap<&'static str, Fact>>> =
    LazyLock::new(|| parse(include_str!("facts.txt")));

fn parse(text: &'static str) -> HashMap<&'static str, HashMap<&'static str, Fact>> {
    let mut all: HashMap<&str, HashMap<&str, Fact>> = HashMap::new();
    let mut definition = "";
    for line in text.lines().filter(|l| !l.starts_with('#') && !l.is_empty()) {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            definition = name;
            continue;
        }
        let mut words = line.split(' ');
        let Some(field) = words.next() else { continue };
        let fact = all.entry(definition).or_default().entry(field).or_default();
        for word in words {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            fact.set(key, value);
        }
    }
    all
}

impl Fact {
    fn set(&mut self, key: &str, value: &str) {
        match key {
            "list" => {
                self.list_type = match value.split_once(':') {
                    Some((_, keys)) => Some(ListType::Map(keys.split(',').map(Into::into).collect())),
                    None if value == "set" => Some(ListType::Set),
                    None => Some(ListType::Atomic),
                };
            }
            "map" => self.map_atomic = value == "atomic",
            "patch" => {
                let (strategy, merge_key) = value.split_once(':').unwrap_or((value, ""));
                self.replace = strategy == "replace";
                self.retain_keys = strategy.contains("retainKeys");
                self.merge_key = strategy.contains("merge").then(|| merge_key.into());
            }
            "enum" => self.values = value.split('|').map(Into::into).collect(),
            "default" => {
                let text = |_| Value::String(value.to_owned());
                self.default = Some(serde_json::from_str(value).unwrap_or_else(text));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_understood() {
        for line in include_str!("facts.txt").lines().filter(|l| !l.starts_with(['#', '['])) {
            for word in line.split(' ').skip(1) {
                let key = word.split('=').next().unwrap();
                assert!(["list", "map", "patch", "enum", "default"].contains(&key), "{line}");
            }
        }
        let env = &FACTS["io.k8s.api.core.v1.Container"]["env"];
        assert_eq!(env.list_type, Some(ListType::Map(vec!["name".into()])));
        assert_eq!(env.merge_key.as_deref(), Some("name"));
        assert!(FACTS["io.k8s.api.core.v1.PodSpec"]["volumes"].retain_keys);
    }
}
