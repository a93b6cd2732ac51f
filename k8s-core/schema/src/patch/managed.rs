//! Server-side apply: field ownership and conflicts.
//!
//! All functions work on the stored form of an object. Entries are stored in `metadata.managedFields` in
//! upstream's format.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::{Map, Value, json};

use super::fields::{self, FieldSet, compare, element, key_default};
use crate::{
    Kind, ListType, MAX_DEPTH, NodeId, Schema,
    paths::{self, Paths},
};

/// Field manager of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manager {
    /// Name of the field manager.
    pub name: String,
    /// `apiVersion` of the request.
    pub api_version: String,
    /// Subresource of the request; empty for the main resource.
    pub subresource: String,
}

/// A field that another manager owns with another value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// Name of its owner.
    pub manager: String,
    /// The owner's subresource; empty for the main resource.
    pub subresource: String,
    /// The owner's operation, `Apply` or `Update`.
    pub operation: String,
    /// The `apiVersion` that the owner wrote with.
    pub api_version: String,
    /// Time of the write, for an `Update` owner.
    pub time: String,
    /// Path of the field.
    pub path: String,
}

#[derive(Clone, Debug)]
struct Entry {
    manager: String,
    apply: bool,
    api_version: String,
    time: String,
    subresource: String,
    fields: FieldSet,
}

/// Metadata fields that the server sets; no manager owns them.
const OWN_METADATA: [&str; 11] = [
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "selfLink",
    "managedFields",
    "generateName",
];

fn stripped(mut set: FieldSet) -> FieldSet {
    set.children.remove("f:apiVersion");
    set.children.remove("f:kind");
    if let Some(metadata) = set.children.get_mut("f:metadata") {
        for name in OWN_METADATA {
            metadata.children.remove(&format!("f:{name}"));
        }
        metadata.member = false;
        if metadata.children.is_empty() {
            set.children.remove("f:metadata");
        }
    }
    set.member = false;
    set
}

fn entries_of(object: &Value) -> Vec<Entry> {
    let list = object.pointer("/metadata/managedFields").and_then(Value::as_array);
    list.into_iter()
        .flatten()
        .map(|entry| {
            let text = |field: &str| text(entry, field).to_owned();
            Entry {
                manager: text("manager"),
                apply: text("operation") == "Apply",
                api_version: text("apiVersion"),
                time: text("time"),
                subresource: text("subresource"),
                fields: entry.get("fieldsV1").map(FieldSet::from_json).unwrap_or_default(),
            }
        })
        .collect()
}

fn store_entries(object: &mut Value, entries: Vec<Entry>) {
    store(object, entries.into_iter().filter(|e| !e.fields.is_empty()).map(Entry::into_json).collect());
}

impl Entry {
    fn into_json(self) -> Value {
        let mut entry = json!({
            "manager": self.manager,
            "operation": if self.apply { "Apply" } else { "Update" },
            "apiVersion": self.api_version,
            "fieldsType": "FieldsV1",
            "fieldsV1": self.fields.to_json(),
        });
        if !self.time.is_empty() {
            entry["time"] = self.time.into();
        }
        if !self.subresource.is_empty() {
            entry["subresource"] = self.subresource.into();
        }
        entry
    }
}

/// Returns a string field of an entry.
fn text<'a>(entry: &'a Value, field: &str) -> &'a str {
    entry.get(field).and_then(Value::as_str).unwrap_or_default()
}

/// Stores entries in upstream's order: `Apply` entries first, then by time.
fn store(object: &mut Value, mut entries: Vec<Value>) {
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    if entries.is_empty() {
        metadata.remove("managedFields");
        return;
    }
    let key = |e: &Value| {
        let rest = ["time", "manager", "apiVersion", "subresource"].map(|field| text(e, field).to_owned());
        (text(e, "operation") != "Apply", rest)
    };
    if entries.len() > 1 {
        entries.sort_by_cached_key(key);
    }
    metadata.insert("managedFields".into(), entries.into());
}

/// Returns the entries before an update.
///
/// The entries of `new` are used if it has any, so that clients can transfer fields between managers; an
/// empty list, or a list with one empty entry, resets them. The entries of `old` are used if `new` has none
/// or a malformed one (clients that do not know the field omit it), and for writes of subresources.
fn entries_before(old: &Value, new: &mut Value, is_subresource: bool) -> Vec<Value> {
    let pointer = "/metadata/managedFields";
    let old = old.pointer(pointer).and_then(Value::as_array);
    let sent = match new.pointer_mut(pointer) {
        Some(Value::Array(entries)) => Some(std::mem::take(entries)),
        _ => None,
    };
    match sent {
        // Usually unchanged: nothing to copy or validate.
        Some(entries) if old == Some(&entries) => entries,
        Some(entries) if !is_subresource => match entries.as_slice() {
            [] => Vec::new(),
            [Value::Object(empty)] if empty.is_empty() => Vec::new(),
            _ => checked(entries).unwrap_or_else(|| old.cloned().unwrap_or_default()),
        },
        _ => old.cloned().unwrap_or_default(),
    }
}

/// Validates entries sent by a client: merges those of the same manager and normalizes their field sets;
/// `None` if one is malformed.
fn checked(entries: Vec<Value>) -> Option<Vec<Value>> {
    let mut by_manager: BTreeMap<[String; 4], Value> = BTreeMap::new();
    for mut entry in entries {
        let operation = text(&entry, "operation");
        let is_known = ["Apply", "Update"].contains(&operation) && text(&entry, "fieldsType") == "FieldsV1";
        let version = text(&entry, "apiVersion");
        if !is_known || version.is_empty() {
            return None;
        }
        // An `Apply` manager is the same in all versions.
        let version = if operation == "Apply" { "" } else { version };
        let key =
            [text(&entry, "manager"), operation, version, text(&entry, "subresource")].map(str::to_owned);
        let fields = match entry.get("fieldsV1") {
            Some(fields) if fields.is_object() => FieldSet::from_json(fields).to_json(),
            Some(_) => return None,
            None => Value::Object(Map::new()),
        };
        entry["fieldsV1"] = fields;
        by_manager.insert(key, entry);
    }
    Some(by_manager.into_values().collect())
}

/// Records a create or update: changed fields belong to `manager` alone afterwards. `now` is RFC 3339.
///
/// The entries of `new` replace those of `old`, except in writes of subresources; an empty list resets them.
pub fn record_update(old: &Value, new: &mut Value, schema: &Schema, manager: &Manager, now: &str) {
    if is_nothing(old) {
        let entry = Entry {
            manager: manager.name.clone(),
            apply: false,
            api_version: manager.api_version.clone(),
            time: now.to_owned(),
            subresource: manager.subresource.clone(),
            fields: FieldSet::default(),
        };
        let mut entry = entry.into_json();
        entry["fieldsV1"] = created(new, schema);
        store(new, vec![entry]);
        return;
    }
    let (changed, removed) = compare(old, new, schema);
    let (changed, removed) = (stripped(changed), stripped(removed));
    let mut own = None;
    let mut entries = entries_before(old, new, !manager.subresource.is_empty());
    entries.retain_mut(|e| {
        let mine = text(e, "operation") != "Apply"
            && text(e, "manager") == manager.name
            && text(e, "subresource") == manager.subresource
            && text(e, "apiVersion") == manager.api_version;
        if mine {
            own = Some(e.take());
            return false;
        }
        // Most entries are disjoint from the change and stay unparsed.
        let Some(fields) = e.get_mut("fieldsV1") else { return false };
        if !changed.touches(fields) && !removed.touches(fields) {
            return true;
        }
        let left = FieldSet::from_json(fields).difference(&changed).difference(&removed);
        *fields = left.to_json();
        !left.is_empty()
    });
    let own = match own {
        Some(mut entry) => {
            if !changed.is_empty() || text(&entry, "time").is_empty() {
                entry["time"] = now.into();
            }
            let fields = &mut entry["fieldsV1"];
            if removed.touches(fields) || !changed.is_within(fields) {
                *fields = FieldSet::from_json(fields).difference(&removed).union(changed).to_json();
            }
            entry
        }
        None => Entry {
            manager: manager.name.clone(),
            apply: false,
            api_version: manager.api_version.clone(),
            time: now.to_owned(),
            subresource: manager.subresource.clone(),
            fields: changed,
        }
        .into_json(),
    };
    if own["fieldsV1"].as_object().is_some_and(|fields| !fields.is_empty()) {
        entries.push(own);
    }
    store(new, entries);
}

/// Returns the `fieldsV1` of an object's creator, without comparing.
fn created(object: &Value, schema: &Schema) -> Value {
    let mut all = Map::new();
    for (name, value) in object.as_object().into_iter().flatten() {
        let node = schema.child(schema.root_id(), name);
        match name.as_str() {
            "apiVersion" | "kind" => {}
            "metadata" => {
                let mut own = Map::new();
                for (name, value) in value.as_object().into_iter().flatten() {
                    if !OWN_METADATA.contains(&name.as_str()) {
                        let node = node.and_then(|n| schema.child(n, name));
                        own.insert(format!("f:{name}"), fields::json_of(value, schema, node, true, 2));
                    }
                }
                if !own.is_empty() {
                    all.insert("f:metadata".into(), own.into());
                }
            }
            _ => drop(all.insert(format!("f:{name}"), fields::json_of(value, schema, node, true, 1))),
        }
    }
    all.into()
}

/// Finds a duplicate in a configuration: two list elements with the same keys, or equal set members. Returns
/// its path and a message. [`apply`] cannot process it.
///
/// # Examples
/// ```
/// use k8s_openapi::api::core::v1::Pod;
/// use k8s_schema::{builtin, generate, patch::managed::ambiguous};
/// let schema = builtin(&[generate::<Pod>]).remove(0);
/// let config = serde_json::json!({"spec": {"containers": [{"name": "c"}, {"name": "c"}]}});
/// assert_eq!(ambiguous(&config, &schema).unwrap(), r#".spec.containers: duplicate entries for key [name="c"]"#);
/// ```
#[must_use]
pub fn ambiguous(config: &Value, schema: &Schema) -> Option<String> {
    ambiguous_at(config, schema, schema.root_id(), &mut String::new(), 0)
}

fn ambiguous_at(
    value: &Value,
    schema: &Schema,
    node: NodeId,
    path: &mut String,
    depth: usize,
) -> Option<String> {
    if depth > MAX_DEPTH {
        return None;
    }
    let mut within = |part: &str, value: &Value, node: NodeId| {
        let length = path.len();
        path.push_str(part);
        let found = ambiguous_at(value, schema, node, path, depth + 1);
        path.truncate(length);
        found
    };
    match (value, &schema.node(node).kind) {
        (_, Kind::Object { atomic: true, .. }) => None,
        (Value::Object(map), _) => map.iter().find_map(|(name, value)| {
            schema.child(node, name).and_then(|child| within(&format!(".{name}"), value, child))
        }),
        (Value::Array(items), Kind::List { item, list_type }) if *list_type != ListType::Atomic => {
            let defaults = key_default(schema, *item);
            let mut seen = HashSet::new();
            for value in items {
                let Some(id) = element(value, list_type, &defaults) else {
                    return Some(format!("{path}: an element has no keys that it could be known by"));
                };
                let shown = fields::shown(&id);
                if !seen.insert(id) {
                    return Some(format!("{path}: duplicate entries for key {shown}"));
                }
                let length = path.len();
                path.push_str(&shown);
                let found = ambiguous_at(value, schema, *item, path, depth + 1);
                path.truncate(length);
                if found.is_some() {
                    return found;
                }
            }
            None
        }
        _ => None,
    }
}

/// Returns the paths of fields of a configuration that its type does not have, in user notation and in order.
/// [`apply`] would keep them.
///
/// # Examples
/// ```
/// use k8s_openapi::api::core::v1::Pod;
/// use k8s_schema::{builtin, generate, patch::managed::undeclared};
/// let schema = builtin(&[generate::<Pod>]).remove(0);
/// let config = serde_json::json!({"spec": {"containers": [{"name": "c", "imagee": "i"}], "nodename": "n"}});
/// let found = undeclared(&config, &schema);
/// assert_eq!(found.as_slice(), [r#".spec.containers[name="c"].imagee"#, ".spec.nodename"]);
/// ```
#[must_use]
pub fn undeclared(config: &Value, schema: &Schema) -> Paths {
    let mut found = Paths::default();
    undeclared_at(config, schema, schema.root_id(), &mut String::new(), 0, &mut found);
    found
}

fn undeclared_at(
    value: &Value,
    schema: &Schema,
    node: NodeId,
    path: &mut String,
    depth: usize,
    found: &mut Paths,
) {
    if depth > MAX_DEPTH {
        return;
    }
    let length = path.len();
    match (value, &schema.node(node).kind) {
        (Value::Object(map), Kind::Object { preserve, .. }) => {
            for (name, value) in map {
                path.push('.');
                path.push_str(paths::part(name));
                match schema.child(node, name) {
                    Some(child) => undeclared_at(value, schema, child, path, depth + 1, found),
                    None if *preserve => {}
                    None => found.push(path),
                }
                path.truncate(length);
            }
        }
        (Value::Array(items), Kind::List { item, list_type }) => {
            let defaults = key_default(schema, *item);
            for (i, value) in items.iter().enumerate() {
                let id =
                    if *list_type == ListType::Atomic { None } else { element(value, list_type, &defaults) };
                let shown = id.map_or_else(|| format!("[{i}]"), |id| fields::shown(&id));
                path.push_str(paths::part(&shown));
                undeclared_at(value, schema, *item, path, depth + 1, found);
                path.truncate(length);
            }
        }
        _ => {}
    }
}

/// Applies `config` to `live` (an empty object to create one) and returns the result.
///
/// Reject configurations that are [`ambiguous`] before: their result is undefined.
///
/// ```
/// use k8s_schema::{Schema, patch::managed::{Manager, apply}};
/// use serde_json::json;
///
/// let schema = Schema::custom(&json!({"type": "object", "properties": {
///     "spec": {"type": "object", "properties": {"replicas": {"type": "integer"}}},
/// }})).unwrap();
/// let by = |name: &str| Manager {
///     name: name.into(),
///     api_version: "example.com/v1".into(),
///     subresource: String::new(),
/// };
/// let replicas = |n| json!({"metadata": {"name": "shop"}, "spec": {"replicas": n}});
/// let now = "2026-01-01T00:00:00Z";
/// let live = apply(&json!({"metadata": {}}), &replicas(3), &schema, &by("alice"), false, now).unwrap();
/// let conflicts = apply(&live, &replicas(5), &schema, &by("bob"), false, now).unwrap_err();
/// assert_eq!((conflicts[0].manager.as_str(), conflicts[0].path.as_str()), ("alice", ".spec.replicas"));
/// let forced = apply(&live, &replicas(5), &schema, &by("bob"), true, now).unwrap();
/// assert_eq!(forced["spec"]["replicas"], 5);
/// ```
///
/// # Errors
/// Conflicts: fields that other managers own with other values, unless `force` takes them over.
pub fn apply(
    live: &Value,
    config: &Value,
    schema: &Schema,
    manager: &Manager,
    force: bool,
    now: &str,
) -> Result<Value, Vec<Conflict>> {
    let root = Some(schema.root_id());
    let wanted = stripped(fields::of(config, schema, root));
    let mut entries = entries_of(live);
    let is_mine = |e: &Entry| e.apply && e.manager == manager.name && e.subresource == manager.subresource;
    let before =
        entries.iter().filter(|e| is_mine(e)).fold(FieldSet::default(), |all, e| all.union(e.fields.clone()));
    let mut merged = live.clone();
    merge(&mut merged, config, schema, root, 0);
    let (changed, _) = compare(live, &merged, schema);
    let changed = stripped(changed).intersection(&wanted);
    let mut conflicts = Vec::new();
    for entry in entries.iter_mut().filter(|e| !is_mine(e)) {
        let contested = entry.fields.intersection(&changed);
        if contested.is_empty() {
            continue;
        }
        if force {
            entry.fields = entry.fields.difference(&contested);
            continue;
        }
        conflicts.extend(contested.paths().into_iter().map(|path| Conflict {
            manager: entry.manager.clone(),
            subresource: entry.subresource.clone(),
            operation: if entry.apply { "Apply" } else { "Update" }.into(),
            api_version: entry.api_version.clone(),
            time: entry.time.clone(),
            path,
        }));
    }
    if !conflicts.is_empty() {
        return Err(conflicts);
    }
    // Remove fields that this manager applied before, omits now, and no other manager owns.
    let owned =
        entries.iter().filter(|e| !is_mine(e)).fold(wanted.clone(), |all, e| all.union(e.fields.clone()));
    let gone = before.difference(&wanted);
    if !gone.is_empty() {
        remove(&mut merged, &gone, &owned, schema, root, 0);
    }
    let unchanged = without_managed_fields(&merged) == without_managed_fields(live) && before == wanted;
    let time =
        entries.iter().find(|e| unchanged && is_mine(e)).map_or_else(|| now.to_owned(), |e| e.time.clone());
    entries.retain(|e| !is_mine(e));
    entries.push(Entry {
        manager: manager.name.clone(),
        apply: true,
        api_version: manager.api_version.clone(),
        time,
        subresource: manager.subresource.clone(),
        fields: wanted,
    });
    store_entries(&mut merged, entries);
    Ok(merged)
}

fn is_nothing(object: &Value) -> bool {
    object.as_object().is_some_and(|map| {
        map.len() == 1 && map.get("metadata").and_then(Value::as_object).is_some_and(Map::is_empty)
    })
}

/// Returns the object without managedFields, for comparisons.
#[must_use]
pub fn without_managed_fields(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    object
}

/// Merges `config` into `target` by the schema's list types.
fn merge(target: &mut Value, config: &Value, schema: &Schema, node: Option<NodeId>, depth: usize) {
    let kind = node.map(|n| &schema.node(n).kind);
    match (&mut *target, config, kind) {
        (Value::Object(have), Value::Object(want), kind)
            if !matches!(kind, Some(Kind::Object { atomic: true, .. })) && depth <= MAX_DEPTH =>
        {
            for (name, value) in want {
                let child = node.and_then(|n| schema.child(n, name));
                match have.get_mut(name) {
                    Some(old) => merge(old, value, schema, child, depth + 1),
                    None => {
                        have.insert(name.clone(), value.clone());
                    }
                }
            }
        }
        (Value::Array(have), Value::Array(want), Some(Kind::List { item, list_type }))
            if *list_type != ListType::Atomic =>
        {
            let defaults = key_default(schema, *item);
            let id = |value: &Value| element(value, list_type, &defaults);
            let mut places: HashMap<Option<String>, usize> = HashMap::new();
            for (at, value) in have.iter().enumerate() {
                places.entry(id(value)).or_insert(at);
            }
            let order: Vec<Option<String>> = want.iter().map(id).collect();
            for (value, id) in want.iter().zip(&order) {
                let at = *places.entry(id.clone()).or_insert(have.len());
                match have.get_mut(at) {
                    Some(old) => merge(old, value, schema, Some(*item), depth + 1),
                    None => have.push(value.clone()),
                }
            }
            order_as(have, &order, &id);
        }
        _ => *target = config.clone(),
    }
}

/// Sorts the elements named in `order`, within the positions that they occupied.
fn order_as(have: &mut [Value], order: &[Option<String>], id: &dyn Fn(&Value) -> Option<String>) {
    let mut wanted: HashMap<&Option<String>, usize> = HashMap::new();
    for (at, id) in order.iter().enumerate() {
        wanted.entry(id).or_insert(at);
    }
    let mut named: Vec<(usize, usize)> = have
        .iter()
        .enumerate()
        .filter_map(|(place, value)| Some((*wanted.get(&id(value))?, place)))
        .collect();
    let places: Vec<usize> = named.iter().map(|(_, place)| *place).collect();
    named.sort_unstable();
    let values: Vec<Value> = named.iter().map(|(_, place)| have[*place].take()).collect();
    for (place, value) in places.into_iter().zip(values) {
        have[place] = value;
    }
}

/// Removes the paths of `gone`, except those that `others` own and their ancestors.
fn remove(
    target: &mut Value,
    gone: &FieldSet,
    others: &FieldSet,
    schema: &Schema,
    node: Option<NodeId>,
    depth: usize,
) {
    if depth > MAX_DEPTH {
        return;
    }
    let nothing = FieldSet::default();
    let kind = node.map(|n| &schema.node(n).kind);
    match target {
        Value::Object(map) => {
            for (key, gone) in &gone.children {
                let Some(name) = key.strip_prefix("f:") else { continue };
                let owned = others.children.get(key).unwrap_or(&nothing);
                let child = node.and_then(|n| schema.child(n, name));
                let Some(value) = map.get_mut(name) else { continue };
                remove(value, gone, owned, schema, child, depth + 1);
                let leaf = gone.member && gone.children.is_empty();
                let emptied = !gone.children.is_empty() && is_hollow(value);
                if (leaf || emptied) && owned.is_empty() {
                    map.remove(name);
                }
            }
        }
        Value::Array(items) => {
            let Some(Kind::List { item, list_type }) = kind else { return };
            let defaults = key_default(schema, *item);
            items.retain_mut(|value| {
                let Some(id) = element(value, list_type, &defaults) else { return true };
                let Some(gone) = gone.children.get(&id) else { return true };
                let owned = others.children.get(&id).unwrap_or(&nothing);
                if gone.member && owned.is_empty() {
                    return false;
                }
                remove(value, gone, owned, schema, Some(*item), depth + 1);
                true
            });
        }
        _ => {}
    }
}

fn is_hollow(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

/// Returns an empty object, to create one by apply.
#[must_use]
pub fn nothing() -> Value {
    json!({"metadata": Map::new()})
}

#[cfg(test)]
mod tests;
