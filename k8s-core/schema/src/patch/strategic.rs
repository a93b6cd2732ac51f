//! Strategic merge patch: a merge patch with keyed lists.
//!
//! Directives: `$patch: replace|delete|merge` on objects and list elements, `$retainKeys`,
//! `$deleteFromPrimitiveList/<field>` and `$setElementOrder/<field>` (defined by upstream's `strategicpatch`
//! package).

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::PatchError;
use crate::{Field, Kind, MAX_DEPTH, NodeId, Schema};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const ORDER: &str = "$setElementOrder/";

/// Applies a strategic merge patch.
///
/// ```
/// use k8s_schema::{Generate, builtin, generate, patch::strategic};
/// use serde_json::json;
///
/// let generators: [Generate; 1] = [generate::<k8s_openapi::api::core::v1::PodSpec>];
/// let schema = &builtin(&generators)[0];
/// let mut spec = json!({"containers": [{"name": "a", "image": "web:1"}, {"name": "b", "image": "log:1"}]});
/// // Containers are merged by name.
/// strategic(&mut spec, &json!({"containers": [{"name": "a", "image": "web:2"}]}), schema)?;
/// assert_eq!(spec["containers"][0], json!({"name": "a", "image": "web:2"}));
/// assert_eq!(spec["containers"][1]["image"], "log:1");
/// # Ok::<(), k8s_schema::patch::PatchError>(())
/// ```
///
/// # Errors
/// [`PatchError::Malformed`] for an invalid directive, or a list element without its merge key.
pub fn strategic(target: &mut Value, patch: &Value, schema: &Schema) -> Result<(), PatchError> {
    if !patch.is_object() {
        return Err(PatchError::Malformed("a strategic merge patch must be an object".into()));
    }
    object(target, patch, schema, Some(schema.root_id()), 0)
}

fn malformed(message: impl Into<String>) -> PatchError {
    PatchError::Malformed(message.into())
}

/// Returns a field's type and merge rules, if the schema has it.
fn field_of<'a>(schema: &'a Schema, node: Option<NodeId>, name: &str) -> (Option<NodeId>, Option<&'a Field>) {
    match node.map(|n| &schema.node(n).kind) {
        Some(Kind::Object { fields, rest, .. }) => match fields.get(name) {
            Some(field) => (Some(field.node), Some(field)),
            None => (*rest, None),
        },
        _ => (None, None),
    }
}

fn object(
    target: &mut Value,
    patch: &Value,
    schema: &Schema,
    node: Option<NodeId>,
    depth: usize,
) -> Result<(), PatchError> {
    if depth > MAX_DEPTH {
        return Err(malformed("the patch is nested too deep"));
    }
    let Value::Object(changes) = patch else {
        *target = patch.clone();
        return Ok(());
    };
    match changes.get(PATCH).and_then(Value::as_str) {
        Some("replace") => {
            *target = without_directives(patch);
            return Ok(());
        }
        Some("delete") => {
            *target = Value::Object(Map::new());
            return Ok(());
        }
        Some("merge") | None => {}
        Some(other) => return Err(malformed(format!("unknown patch type {other:?} in {PATCH}"))),
    }
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(map) = target else { return Ok(()) };
    if let Some(keep) = changes.get(RETAIN_KEYS) {
        let keep = keep.as_array().ok_or_else(|| malformed(format!("{RETAIN_KEYS} must be a list")))?;
        let keep: HashSet<&str> = keep.iter().filter_map(Value::as_str).collect();
        map.retain(|key, _| keep.contains(key.as_str()));
    }
    for (key, change) in changes {
        if key == PATCH || key == RETAIN_KEYS || key.starts_with(ORDER) {
            continue;
        }
        if let Some(name) = key.strip_prefix(DELETE_FROM) {
            let gone = change.as_array().ok_or_else(|| malformed(format!("{key} must be a list")))?;
            let gone: HashSet<&Value> = gone.iter().collect();
            if let Some(Value::Array(items)) = map.get_mut(name) {
                items.retain(|item| !gone.contains(item));
            }
            continue;
        }
        let (child, field) = field_of(schema, node, key);
        match change {
            Value::Null => {
                map.remove(key);
            }
            Value::Object(inner) if inner.get(PATCH).is_some_and(|p| p == "delete") => {
                map.remove(key);
            }
            Value::Object(_) if field.is_some_and(|f| f.replace) => {
                map.insert(key.clone(), without_directives(change));
            }
            Value::Object(_) => {
                object(map.entry(key.clone()).or_insert(Value::Null), change, schema, child, depth + 1)?;
            }
            Value::Array(items) => {
                let merges = field.and_then(|f| f.merge_key.as_deref());
                let list = map.entry(key.clone()).or_insert_with(|| Value::Array(Vec::new()));
                let order = changes.get(&format!("{ORDER}{key}")).and_then(Value::as_array);
                match (merges, list) {
                    (Some(merge_key), Value::Array(have)) => {
                        let before = have.clone();
                        list_of(have, items, merge_key, schema, child, depth)?;
                        // Without an order of its own, a patch means that of its elements: new ones come first.
                        reorder(have, &before, order.unwrap_or(items), merge_key);
                    }
                    (_, list) => *list = Value::Array(items.iter().map(without_directives).collect()),
                }
            }
            other => {
                map.insert(key.clone(), other.clone());
            }
        }
    }
    // An order directive without changes sorts only.
    for (key, order) in changes {
        if let (Some(name), Value::Array(order)) = (key.strip_prefix(ORDER), order)
            && !changes.contains_key(name)
            && let (Some(Value::Array(have)), (_, Some(field))) =
                (map.get_mut(name), field_of(schema, node, name))
            && let Some(merge_key) = &field.merge_key
        {
            let before = have.clone();
            reorder(have, &before, order, merge_key);
        }
    }
    Ok(())
}

fn list_of(
    have: &mut Vec<Value>,
    changes: &[Value],
    merge_key: &str,
    schema: &Schema,
    list: Option<NodeId>,
    depth: usize,
) -> Result<(), PatchError> {
    let item = match list.map(|l| &schema.node(l).kind) {
        Some(Kind::List { item, .. }) => Some(*item),
        _ => None,
    };
    // An element `$patch: replace` without other members replaces the whole list by the other elements.
    if changes.iter().any(|c| c.get(PATCH).is_some_and(|p| p == "replace")) {
        *have = changes
            .iter()
            .filter(|c| {
                c.get(PATCH).is_none_or(|p| p != "replace") || c.as_object().is_some_and(|o| o.len() > 1)
            })
            .map(without_directives)
            .collect();
        return Ok(());
    }
    let is_delete = |change: &Value| change.get(PATCH).is_some_and(|p| p == "delete");
    for change in changes.iter().filter(|change| change.is_object()) {
        if change.get(merge_key).is_none_or(Value::is_null) {
            return Err(malformed(format!("map: {change} does not contain declared merge key: {merge_key}")));
        }
    }
    let gone: HashSet<&Value> = changes
        .iter()
        .filter(|change| is_delete(change))
        .filter_map(|change| change.get(merge_key))
        .collect();
    have.retain(|element| !element.get(merge_key).is_some_and(|key| gone.contains(key)));
    // Index of the first element with an identity.
    let mut places: HashMap<Value, usize> = HashMap::new();
    for (at, element) in have.iter().enumerate() {
        places.entry(identity(element, merge_key)).or_insert(at);
    }
    for change in changes.iter().filter(|change| !is_delete(change)) {
        let id = identity(change, merge_key);
        let at = *places.entry(id).or_insert(have.len());
        if at == have.len() {
            have.push(if change.is_object() { Value::Object(Map::new()) } else { change.clone() });
        }
        if let (true, Some(found)) = (change.is_object(), have.get_mut(at)) {
            object(found, change, schema, item, depth + 1)?;
        }
    }
    Ok(())
}

/// Returns the identity of a list element: its merge key's value, or the element itself.
fn identity(element: &Value, merge_key: &str) -> Value {
    if element.is_object() { element.get(merge_key).cloned().unwrap_or_default() } else { element.clone() }
}

/// Sorts the elements named in `order`; the others keep their position relative to these if possible.
fn reorder(have: &mut Vec<Value>, before: &[Value], order: &[Value], merge_key: &str) {
    let places = |list: &[Value]| -> HashMap<Value, usize> {
        let mut places = HashMap::new();
        for (at, element) in list.iter().enumerate() {
            places.entry(identity(element, merge_key)).or_insert(at);
        }
        places
    };
    let (wanted, before) = (places(order), places(before));
    let wanted_at = |v: &Value| wanted.get(&identity(v, merge_key)).copied();
    let was_at = |v: &Value| before.get(&identity(v, merge_key)).copied();
    let (mut named, others): (Vec<Value>, Vec<Value>) =
        std::mem::take(have).into_iter().partition(|v| wanted_at(v).is_some());
    named.sort_by_cached_key(|v| wanted_at(v));
    let mut others = others.into_iter().peekable();
    for value in named {
        let here = was_at(&value);
        while let Some(other) = others.next_if(|o| matches!((was_at(o), here), (Some(a), Some(b)) if a < b)) {
            have.push(other);
        }
        have.push(value);
    }
    have.extend(others);
}

/// Returns a new value without directives.
fn without_directives(value: &Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(
            map.iter()
                .filter(|(k, v)| !k.starts_with('$') && !v.is_null())
                .map(|(k, v)| (k.clone(), without_directives(v)))
                .collect(),
        ),
        Value::Array(items) => Value::Array(
            items
                .iter()
                .filter(|i| i.get(PATCH).is_none_or(|p| p != "delete"))
                .map(without_directives)
                .collect(),
        ),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    use super::*;
    use crate::{builtin, generate};

    fn check(target: Value, patch: Value, want: Value) {
        let schema = builtin(&[generate::<Pod>]).remove(0);
        let mut result = target;
        strategic(&mut result, &patch, &schema).unwrap();
        assert_eq!(result, want, "{patch}");
    }

    #[test]
    fn keyed_lists_merge() {
        check(
            json!({"spec": {"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}]}}),
            json!({"spec": {"containers": [{"name": "b", "image": "2"}, {"name": "c", "image": "3"}]}}),
            json!({"spec": {"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "2"}, {"name": "c", "image": "3"}]}}),
        );
    }

    #[test]
    fn new_elements_come_before_those_that_the_patch_does_not_name() {
        let names = |names: &[&str]| -> Value {
            let all: Vec<Value> = names.iter().map(|name| json!({"name": name})).collect();
            json!({"spec": {"containers": all}})
        };
        for (before, patch, after) in [
            (&["a"][..], &["n"][..], &["n", "a"][..]),
            (&["a", "b", "c"], &["b"], &["a", "b", "c"]),
            (&["a", "b", "c"], &["c", "a"], &["b", "c", "a"]),
            (&["a", "b"], &["b", "n"], &["a", "b", "n"]),
            (&["a", "b"], &["n", "b"], &["n", "a", "b"]),
        ] {
            check(names(before), names(patch), names(after));
        }
        let finalizers = |all: &[&str]| json!({"metadata": {"finalizers": all}});
        check(finalizers(&["b"]), finalizers(&["c"]), finalizers(&["c", "b"]));
    }

    #[test]
    fn directives() {
        let two = json!({"spec": {"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}]}});
        check(
            two.clone(),
            json!({"spec": {"containers": [{"name": "a", "$patch": "delete"}]}}),
            json!({"spec": {"containers": [{"name": "b", "image": "1"}]}}),
        );
        check(
            two.clone(),
            json!({"spec": {"containers": [{"$patch": "replace"}, {"name": "z"}]}}),
            json!({"spec": {"containers": [{"name": "z"}]}}),
        );
        check(
            two,
            json!({"spec": {"$setElementOrder/containers": [{"name": "c"}, {"name": "b"}, {"name": "a"}], "containers": [{"name": "c"}]}}),
            json!({"spec": {"containers": [{"name": "c"}, {"name": "b", "image": "1"}, {"name": "a", "image": "1"}]}}),
        );
        check(
            json!({"metadata": {"finalizers": ["a", "b"], "labels": {"x": "1", "y": "2"}}}),
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c"], "labels": {"x": null, "z": "3"}}}),
            json!({"metadata": {"finalizers": ["c", "b"], "labels": {"y": "2", "z": "3"}}}),
        );
        check(
            json!({"spec": {"volumes": [{"name": "v", "emptyDir": {}}]}}),
            json!({"spec": {"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/x"}}]}}),
            json!({"spec": {"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]}}),
        );
    }

    #[test]
    fn atomic_lists_are_replaced_and_bad_patches_refused() {
        check(
            json!({"spec": {"containers": [{"name": "a", "command": ["x", "y"]}]}}),
            json!({"spec": {"containers": [{"name": "a", "command": ["z"]}]}}),
            json!({"spec": {"containers": [{"name": "a", "command": ["z"]}]}}),
        );
        let schema = builtin(&[generate::<Pod>]).remove(0);
        let mut pod = json!({});
        assert!(strategic(&mut pod, &json!({"spec": {"containers": [{"image": "x"}]}}), &schema).is_err());
        assert!(strategic(&mut pod, &json!({"spec": {"$patch": "explode"}}), &schema).is_err());
    }
}
