//! Parser of `facts.txt`.

use std::{collections::HashMap, sync::LazyLock};

use serde_json::Value;

use super::ListType;

/// Facts of a field beyond its type.
#[derive(Clone, Debug, Default)]
pub(super) struct Fact {
    pub(super) list_type: Option<ListType>,
    pub(super) map_atomic: bool,
    pub(super) merge_key: Option<Box<str>>,
    pub(super) replace: bool,
    pub(super) retain_keys: bool,
    pub(super) values: Vec<Box<str>>,
    pub(super) default: Option<Value>,
    pub(super) always: bool,
}

/// Facts by definition and field.
pub(super) static FACTS: LazyLock<HashMap<&'static str, HashMap<&'static str, Fact>>> =
    LazyLock::new(|| parse(include_str!("facts.txt")));

/// Writes the facts of a definition into its JSON schema, as OpenAPI extensions.
pub fn annotate(definition: &str, schema: &mut Value) {
    let Some(facts) = FACTS.get(definition) else { return };
    if facts.get(".").is_some_and(|f| f.map_atomic) {
        schema["x-kubernetes-map-type"] = "atomic".into();
    }
    let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) else { return };
    for (field, fact) in facts {
        let Some(property) = properties.get_mut(*field) else { continue };
        match &fact.list_type {
            Some(ListType::Atomic) => property["x-kubernetes-list-type"] = "atomic".into(),
            Some(ListType::Set) => property["x-kubernetes-list-type"] = "set".into(),
            Some(ListType::Map(keys)) => {
                property["x-kubernetes-list-type"] = "map".into();
                property["x-kubernetes-list-map-keys"] = keys.iter().map(|k| Value::from(&**k)).collect();
            }
            None => {}
        }
        if fact.map_atomic {
            property["x-kubernetes-map-type"] = "atomic".into();
        }
        if let Some(key) = &fact.merge_key {
            let strategy = if fact.retain_keys { "merge,retainKeys" } else { "merge" };
            property["x-kubernetes-patch-strategy"] = strategy.into();
            if !key.is_empty() {
                property["x-kubernetes-patch-merge-key"] = (**key).into();
            }
        }
        if !fact.values.is_empty() {
            property["enum"] = fact.values.iter().map(|v| Value::from(&**v)).collect();
        }
        // A null default of a time must not be published.
        if let Some(default) = fact.default.as_ref().filter(|d| !d.is_null()) {
            property["default"] = default.clone();
        }
    }
}

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
            "struct" => self.always = true,
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
                assert!(["list", "map", "patch", "enum", "default", "struct"].contains(&key), "{line}");
            }
        }
        let env = &FACTS["io.k8s.api.core.v1.Container"]["env"];
        assert_eq!(env.list_type, Some(ListType::Map(vec!["name".into()])));
        assert_eq!(env.merge_key.as_deref(), Some("name"));
        assert!(FACTS["io.k8s.api.core.v1.PodSpec"]["volumes"].retain_keys);
    }
}
