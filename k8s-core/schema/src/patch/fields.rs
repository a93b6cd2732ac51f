//! Sets of field paths in the format of managedFields (`FieldsV1`).
//!
//! A path element is `f:<field>`, `k:<keys as JSON>` (element of a keyed list) or `v:<value as JSON>`
//! (element of a set).

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::{Kind, ListType, MAX_DEPTH, NodeId, Schema};

/// A set of field paths, stored as a tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSet {
    /// The path to this node is in the set.
    pub member: bool,
    /// Longer paths, by their next element.
    pub children: BTreeMap<String, FieldSet>,
}

impl FieldSet {
    /// Creates a set of the empty path: a leaf.
    #[must_use]
    pub fn leaf() -> Self {
        FieldSet { member: true, children: BTreeMap::new() }
    }

    /// Returns true if the set has no path.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.member && self.children.values().all(FieldSet::is_empty)
    }

    /// Parses `fieldsV1` of an entry of `managedFields`; malformed parts are ignored.
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

    /// Formats the set as `fieldsV1` of an entry of `managedFields`.
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

    /// Returns the paths that are in either set.
    #[must_use]
    pub fn union(mut self, other: FieldSet) -> FieldSet {
        if self.children.is_empty() {
            return FieldSet { member: self.member | other.member, ..other };
        }
        self.member |= other.member;
        for (key, theirs) in other.children {
            let mine = self.children.remove(&key).unwrap_or_default();
            self.children.insert(key, mine.union(theirs));
        }
        self
    }

    /// Returns true if this set and `fields` (in `fieldsV1` format) share a path. Neither may contain the
    /// empty path.
    #[must_use]
    pub fn touches(&self, fields: &Value) -> bool {
        let of = |key: &String| self.children.get(key);
        (self.member && is_member(fields))
            || fields
                .as_object()
                .into_iter()
                .flatten()
                .any(|(key, child)| of(key).is_some_and(|mine| mine.touches(child)))
    }

    /// Returns true if this set is a subset of `fields` (in `fieldsV1` format).
    #[must_use]
    pub fn is_within(&self, fields: &Value) -> bool {
        (!self.member || is_member(fields))
            && self
                .children
                .iter()
                .all(|(key, mine)| fields.get(key).is_some_and(|child| mine.is_within(child)))
    }

    /// Returns the paths that are not in the other set.
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

    /// Returns the paths that are in both sets.
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

    /// Returns all paths in user notation: `.spec.containers[name="c"].image`.
    ///
    /// ```
    /// use k8s_schema::patch::fields::FieldSet;
    /// use serde_json::json;
    /// let container = json!({r#"k:{"name":"c"}"#: {"f:image": {}}});
    /// let set = FieldSet::from_json(&json!({"f:spec": {"f:containers": container}}));
    /// assert_eq!(set.paths(), [r#".spec.containers[name="c"].image"#]);
    /// assert_eq!(FieldSet::from_json(&set.to_json()), set);
    /// ```
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
            path.push_str(&shown(key));
            child.collect(path, out);
            path.truncate(length);
        }
    }
}

/// Returns a path element in user notation: `.spec`, `[name="c"]`, `[="x"]`.
pub(super) fn shown(element: &str) -> String {
    match element.split_once(':') {
        Some(("f", name)) => format!(".{name}"),
        Some(("k", keys)) => {
            let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
            let keys: Vec<String> = keys.iter().map(|(k, v)| format!("{k}={v}")).collect();
            format!("[{}]", keys.join(","))
        }
        _ => format!("[={}]", element.get(2..).unwrap_or_default()),
    }
}

/// Returns true if the path to this node of a `fieldsV1` is in its set.
fn is_member(fields: &Value) -> bool {
    fields.as_object().is_none_or(|map| map.is_empty() || map.contains_key("."))
}

/// Returns the path element of a list element: its keys, or its value.
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

/// Returns the defaults of list element fields, for omitted keys.
pub(super) fn key_default<'a>(schema: &'a Schema, item: NodeId) -> impl Fn(&str) -> Option<Value> + 'a {
    move |key| match &schema.node(item).kind {
        Kind::Object { fields, .. } => fields.get(key)?.default.clone(),
        _ => None,
    }
}

/// Returns all paths of a value.
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

/// Returns all paths of a value in `fieldsV1` format, like [`of`] without the intermediate set. `member`
/// includes the path to the value itself.
pub(super) fn json_of(
    value: &Value,
    schema: &Schema,
    node: Option<NodeId>,
    member: bool,
    depth: usize,
) -> Value {
    let kind = node.map(|n| &schema.node(n).kind);
    let mut all = Map::new();
    match (value, kind) {
        _ if depth > MAX_DEPTH => {}
        (_, Some(Kind::Object { atomic: true, .. })) => {}
        (Value::Object(map), _) => {
            for (name, child) in map {
                let node = node.and_then(|n| schema.child(n, name));
                all.insert(format!("f:{name}"), json_of(child, schema, node, false, depth + 1));
            }
        }
        (Value::Array(items), Some(Kind::List { item, list_type })) if *list_type != ListType::Atomic => {
            let defaults = key_default(schema, *item);
            for value in items {
                let Some(element) = element(value, list_type, &defaults) else { continue };
                let child = match list_type {
                    ListType::Map(_) => json_of(value, schema, Some(*item), true, depth + 1),
                    _ => Value::Object(Map::new()),
                };
                all.insert(element, child);
            }
        }
        _ => {}
    }
    if member && !all.is_empty() {
        all.insert(".".into(), Value::Object(Map::new()));
    }
    all.into()
}

/// Compares two values: returns the paths that were added or changed, and those that were removed.
///
/// ```
/// use k8s_schema::{Schema, patch::fields::compare};
/// use serde_json::json;
/// let old = json!({"data": {"a": "1", "b": "2"}});
/// let (changed, removed) = compare(&old, &json!({"data": {"a": "3"}}), &Schema::anything());
/// assert_eq!((changed.paths(), removed.paths()), (vec![".data.a".to_owned()], vec![".data.b".to_owned()]));
/// ```
#[must_use]
pub fn compare(old: &Value, new: &Value, schema: &Schema) -> (FieldSet, FieldSet) {
    let (mut changed, mut removed) = (FieldSet::default(), FieldSet::default());
    if old != new {
        compare_at(old, new, schema, Some(schema.root_id()), &mut changed, &mut removed, 0);
    }
    (changed, removed)
}

/// Compares two different values.
fn compare_at(
    old: &Value,
    new: &Value,
    schema: &Schema,
    node: Option<NodeId>,
    changed: &mut FieldSet,
    removed: &mut FieldSet,
    depth: usize,
) {
    let kind = node.map(|n| &schema.node(n).kind);
    match (old, new, kind) {
        (Value::Object(before), Value::Object(after), kind)
            if !matches!(kind, Some(Kind::Object { atomic: true, .. })) && depth <= MAX_DEPTH =>
        {
            for name in before.keys().chain(after.keys().filter(|k| !before.contains_key(*k))) {
                let (old, new) = (before.get(name), after.get(name));
                if old == new {
                    continue;
                }
                let child = node.and_then(|n| schema.child(n, name));
                step(old, new, format!("f:{name}"), schema, child, changed, removed, depth);
            }
        }
        (Value::Array(before), Value::Array(after), Some(Kind::List { item, list_type }))
            if *list_type != ListType::Atomic =>
        {
            let defaults = key_default(schema, *item);
            let (before, after) = (keyed(before, list_type, &defaults), keyed(after, list_type, &defaults));
            for key in before.keys().chain(after.keys().filter(|k| !before.contains_key(*k))) {
                let (old, new) = (before.get(key).copied(), after.get(key).copied());
                if old == new {
                    continue;
                }
                step(old, new, key.clone(), schema, Some(*item), changed, removed, depth);
            }
        }
        _ => *changed = FieldSet::leaf(),
    }
}

/// Maps the elements of a list by their path elements.
fn keyed<'a>(
    items: &'a [Value],
    list_type: &ListType,
    defaults: &dyn Fn(&str) -> Option<Value>,
) -> BTreeMap<String, &'a Value> {
    items.iter().filter_map(|item| Some((element(item, list_type, defaults)?, item))).collect()
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
            // A new container belongs to its creator.
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
