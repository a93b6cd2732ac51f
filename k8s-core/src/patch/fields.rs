//! Sets of field paths, as managedFields (`FieldsV1`) write them.
//!
//! A path element is `f:<field>`, `k:<keys as JSON>` (element of a keyed list) or `v:<value as JSON>` (element of a set).

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::schema::{Kind, ListType, MAX_DEPTH, NodeId, Schema};

/// A set of field paths, as a tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSet {
    /// The path to here is in the set.
    pub member: bool,
    /// Longer paths.
    pub children: BTreeMap<String, FieldSet>,
}

impl FieldSet {
    /// A set with the empty path only: a leaf.
    #[must_use]
    pub fn leaf() -> Self {
        FieldSet { member: true, children: BTreeMap::new() }
    }

    /// Whether no path is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.member && self.children.values().all(FieldSet::is_empty)
    }

    /// From `fieldsV1`.
    #[must_use]
    pub fn from_json(value: &Value) -> Self {
        Self::parse(value, 0)
    }

    fn parse(value: &Value, depth: usize) -> Self {
        let Value::Object(map) = value else { return FieldSet::leaf() };
        if depth > MAX_DEPTH {
            return FieldSet::leaf();
        }
        let mut set = FieldSet { member: map.is_empty() && depth > 0, children: BTreeMap::new() };
        for (key, child) in map {
            if key == "." {
                set.member = true;
            } else {
                set.children.insert(key.clone(), Self::parse(child, depth + 1));
            }
        }
        set
    }

    /// To `fieldsV1`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut map = Map::new();
        if self.member && !self.children.is_empty() {
            map.insert(".".into(), Value::Object(Map::new()));
        }
        for (key, child) in &self.children {
            map.insert(key.clone(), child.to_json());
        }
        Value::Object(map)
    }

    fn child(&mut self, element: String, child: FieldSet) {
        if !child.is_empty() {
            self.children.insert(element, child);
        }
    }

    /// The paths of either.
    #[must_use]
    pub fn union(mut self, other: &FieldSet) -> FieldSet {
        self.member |= other.member;
        for (key, theirs) in &other.children {
            let mine = self.children.remove(key).unwrap_or_default();
            self.children.insert(key.clone(), mine.union(theirs));
        }
        self
    }

    /// The paths of this one that are not in the other.
    #[must_use]
    pub fn difference(&self, other: &FieldSet) -> FieldSet {
        let mut result = FieldSet { member: self.member && !other.member, children: BTreeMap::new() };
        for (key, mine) in &self.children {
            match other.children.get(key) {
                Some(theirs) => result.child(key.clone(), mine.difference(theirs)),
                None => result.child(key.clone(), mine.clone()),
            }
        }
        result
    }

    /// The paths of both.
    #[must_use]
    pub fn intersection(&self, other: &FieldSet) -> FieldSet {
        let mut result = FieldSet { member: self.member && other.member, children: BTreeMap::new() };
        for (key, mine) in &self.children {
            if let Some(theirs) = other.children.get(key) {
                result.child(key.clone(), mine.intersection(theirs));
            }
        }
        result
    }

    /// Every path in it, written as users know field paths: `.spec.containers[name="c"].image`.
    #[must_use]
    pub fn paths(&self) -> Vec<String> {
        let mut out = Vec::new();
        self.collect(&mut String::new(), &mut out);
        out
    }

    fn collect(&self, path: &mut String, out: &mut Vec<String>) {
        if self.member {
            out.push(path.clone());
        }
        for (key, child) in &self.children {
            let length = path.len();
            match key.split_once(':') {
                Some(("f", name)) => {
                    path.push('.');
                    path.push_str(name);
                }
                Some(("k", keys)) => {
                    let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
                    let keys: Vec<String> = keys.iter().map(|(k, v)| format!("{k}={v}")).collect();
                    path.push_str(&format!("[{}]", keys.join(",")));
                }
                _ => path.push_str(&format!("[={}]", &key[2.min(key.len())..])),
            }
            child.collect(path, out);
            path.truncate(length);
        }
    }
}

/// The path element of a list element: its keys, or its value.
#[must_use]
pub fn element(
    item: &Value,
    list_type: &ListType,
    defaults: &dyn Fn(&str) -> Option<Value>,
) -> Option<String> {
    match list_type {
        ListType::Atomic => None,
        ListType::Set => Some(format!("v:{item}")),
        ListType::Map(keys) => {
            let object = item.as_object()?;
            let mut id = Map::new();
            for key in keys {
                if let Some(value) = object.get(key.as_ref()).cloned().or_else(|| defaults(key)) {
                    id.insert(key.to_string(), value);
                }
            }
            Some(format!("k:{}", Value::Object(id)))
        }
    }
}

/// The default of a field of a list's elements, for keys that an element leaves out.
pub(super) fn key_default<'a>(schema: &'a Schema, item: NodeId) -> impl Fn(&str) -> Option<Value> + 'a {
    move |key| match &schema.node(item).kind {
        Kind::Object { fields, .. } => fields.get(key)?.default.clone(),
        _ => None,
    }
}

/// Every path that a value has.
#[must_use]
pub fn of(value: &Value, schema: &Schema, node: Option<NodeId>) -> FieldSet {
    of_at(value, schema, node, 0)
}

fn of_at(value: &Value, schema: &Schema, node: Option<NodeId>, depth: usize) -> FieldSet {
    if depth > MAX_DEPTH {
        return FieldSet::leaf();
    }
    let kind = node.map(|n| &schema.node(n).kind);
    match (value, kind) {
        (_, Some(Kind::Object { atomic: true, .. })) => FieldSet::leaf(),
        (Value::Object(map), _) if !map.is_empty() => {
            let mut set = FieldSet::default();
            for (name, child) in map {
                let node = node.and_then(|n| schema.child(n, name));
                set.children.insert(format!("f:{name}"), of_at(child, schema, node, depth + 1));
            }
            set
        }
        (Value::Array(items), Some(Kind::List { item, list_type })) if *list_type != ListType::Atomic => {
            let defaults = key_default(schema, *item);
            let mut set = FieldSet { member: items.is_empty(), children: BTreeMap::new() };
            for value in items {
                if let Some(element) = element(value, list_type, &defaults) {
                    let mut child = match list_type {
                        ListType::Map(_) => of_at(value, schema, Some(*item), depth + 1),
                        _ => FieldSet::default(),
                    };
                    child.member = true;
                    set.children.insert(element, child);
                }
            }
            set
        }
        _ => FieldSet::leaf(),
    }
}

/// What changed between two values: paths that are new or have another value, and paths that are gone.
#[must_use]
pub fn compare(old: &Value, new: &Value, schema: &Schema) -> (FieldSet, FieldSet) {
    let (mut changed, mut removed) = (FieldSet::default(), FieldSet::default());
    compare_at(old, new, schema, Some(schema.root_id()), &mut changed, &mut removed, 0);
    (changed, removed)
}

fn compare_at(
    old: &Value,
    new: &Value,
    schema: &Schema,
    node: Option<NodeId>,
    changed: &mut FieldSet,
    removed: &mut FieldSet,
    depth: usize,
) {
    if old == new {
        return;
    }
    let kind = node.map(|n| &schema.node(n).kind);
    match (old, new, kind) {
        (Value::Object(before), Value::Object(after), kind)
            if !matches!(kind, Some(Kind::Object { atomic: true, .. })) && depth <= MAX_DEPTH =>
        {
            for name in before.keys().chain(after.keys().filter(|k| !before.contains_key(*k))) {
                let child = node.and_then(|n| schema.child(n, name));
                step(
                    before.get(name),
                    after.get(name),
                    format!("f:{name}"),
                    schema,
                    child,
                    changed,
                    removed,
                    depth,
                );
            }
        }
        (Value::Array(before), Value::Array(after), Some(Kind::List { item, list_type }))
            if *list_type != ListType::Atomic =>
        {
            let defaults = key_default(schema, *item);
            let keyed = |items: &[Value]| -> BTreeMap<String, Value> {
                items.iter().filter_map(|i| Some((element(i, list_type, &defaults)?, i.clone()))).collect()
            };
            let (before, after) = (keyed(before), keyed(after));
            for key in before.keys().chain(after.keys().filter(|k| !before.contains_key(*k))) {
                step(
                    before.get(key),
                    after.get(key),
                    key.clone(),
                    schema,
                    Some(*item),
                    changed,
                    removed,
                    depth,
                );
            }
        }
        _ => *changed = FieldSet::leaf(),
    }
}

#[allow(clippy::too_many_arguments, reason = "one step of a walk over two values and two results")]
fn step(
    old: Option<&Value>,
    new: Option<&Value>,
    element: String,
    schema: &Schema,
    node: Option<NodeId>,
    changed: &mut FieldSet,
    removed: &mut FieldSet,
    depth: usize,
) {
    match (old, new) {
        (Some(old), Some(new)) => {
            let (mut c, mut r) = (FieldSet::default(), FieldSet::default());
            compare_at(old, new, schema, node, &mut c, &mut r, depth + 1);
            changed.child(element.clone(), c);
            removed.child(element, r);
        }
        (None, Some(new)) => {
            let mut set = of_at(new, schema, node, depth + 1);
            // A container that is itself new belongs to whoever made it.
            set.member = true;
            changed.child(element, set);
        }
        (Some(old), None) => {
            let mut set = of_at(old, schema, node, depth + 1);
            set.member = true;
            removed.child(element, set);
        }
        (None, None) => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn json_form_round_trips() {
        let json = json!({"f:metadata": {"f:labels": {".": {}, "f:x": {}}}, "f:spec": {"f:c": {"k:{\"name\":\"a\"}": {".": {}, "f:name": {}}}}});
        let set = FieldSet::from_json(&json);
        assert_eq!(set.to_json(), json);
        assert_eq!(
            set.paths(),
            [".metadata.labels", ".metadata.labels.x", ".spec.c[name=\"a\"]", ".spec.c[name=\"a\"].name"]
        );
        assert!(set.difference(&set).is_empty());
        assert_eq!(set.intersection(&set), set);
    }
}
