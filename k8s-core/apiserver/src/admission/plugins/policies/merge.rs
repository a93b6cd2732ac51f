//! Merges what an ApplyConfiguration expression makes into an object, as server-side apply does.

use k8s_schema::{
    Kind, ListType, NodeId, Schema,
    patch::managed::{Manager, apply},
};
use serde_json::Value;

use crate::{
    resources::Resource,
    value::{set, take},
};

/// Returns the object with a configuration merged into it. Nobody becomes the manager of its fields.
///
/// # Errors
/// Upstream's text, for a configuration that would replace a whole list or map.
pub(super) fn merged(resource: &Resource, object: &Value, mut configuration: Value) -> Result<Value, String> {
    if !configuration.is_object() {
        return Err("error applying patch: the expression made no object".into());
    }
    let schema = resource.request_schema();
    for field in ["apiVersion", "kind"] {
        configuration[field] = object[field].clone();
    }
    let mut atomic = Vec::new();
    atomics(&configuration, schema, Some(schema.root_id()), "", &mut atomic);
    if !atomic.is_empty() {
        let all = atomic.join(", ");
        return Err(format!(
            "error applying patch: invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: {all}"
        ));
    }
    let mut plain = object.clone();
    let managers = take(&mut plain, "/metadata", "managedFields");
    let manager =
        Manager { name: "policy".into(), api_version: resource.api_version(), subresource: String::new() };
    let merged = apply(&plain, &configuration, schema, &manager, true, "1970-01-01T00:00:00Z");
    let mut merged = merged.map_err(|_| "error applying patch: the fields conflict".to_owned())?;
    take(&mut merged, "/metadata", "managedFields");
    if let Some(managers) = managers {
        set(&mut merged, "/metadata/managedFields", managers);
    }
    Ok(merged)
}

/// Finds the paths of lists and maps that are replaced as a whole.
fn atomics(value: &Value, schema: &Schema, node: Option<NodeId>, path: &str, found: &mut Vec<String>) {
    let Some(node) = node else { return };
    match (value, &schema.node(node).kind) {
        (Value::Object(map), Kind::Object { atomic, .. }) => {
            if *atomic {
                found.push(path.to_owned());
            }
            for (name, value) in map {
                atomics(value, schema, schema.child(node, name), &format!("{path}.{name}"), found);
            }
        }
        (Value::Array(items), Kind::List { item, list_type }) => {
            if matches!(list_type, ListType::Atomic) {
                found.push(path.to_owned());
            }
            for (i, value) in items.iter().enumerate() {
                atomics(value, schema, Some(*item), &format!("{path}[{i}]"), found);
            }
        }
        _ => {}
    }
}
