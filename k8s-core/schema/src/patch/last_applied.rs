//! Migration from client-side to server-side apply: from the last-applied annotation of `kubectl apply` to
//! `kubectl apply --server-side`.
//!
//! Client-side apply stores its configuration in an annotation, and its fields belong to an `Update` manager.
//! Without special treatment the first server-side apply of a changed manifest would conflict with the same
//! user's earlier writes. Therefore conflicts on fields in the annotation are ignored for the manager
//! `kubectl`, and the annotation is kept up to date for users who go back. (As Kubernetes' field manager.)

use serde_json::Value;

use super::{
    fields,
    managed::{self, Conflict, Manager},
};
use crate::Schema;

/// Annotation in which client-side apply stores its configuration.
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Field manager of both kinds of `kubectl apply`.
const KUBECTL: &str = "kubectl";
/// Maximum size of an object's annotations in bytes; a longer configuration is not stored.
const MOST: usize = 256 << 10;

fn last_applied(object: &Value) -> Option<&str> {
    object.get("metadata")?.get("annotations")?.get(LAST_APPLIED)?.as_str()
}

/// As [`managed::apply`], with the migration from client-side apply. `sent` is the configuration as sent by
/// the client.
///
/// # Errors
/// Conflicts: fields that other managers own with other values, unless `force` takes them over.
pub fn apply(
    live: &Value,
    config: &Value,
    sent: &Value,
    schema: &Schema,
    manager: &Manager,
    force: bool,
    now: &str,
) -> Result<Value, Vec<Conflict>> {
    let applied = managed::apply(live, config, schema, manager, force, now);
    if manager.name != KUBECTL {
        return applied;
    }
    let mut applied = applied.or_else(|conflicts| {
        let before = last_applied(live).and_then(|text| serde_json::from_str::<Value>(text).ok());
        let Some(before) = before else { return Err(conflicts) };
        let own = fields::of(&before, schema, Some(schema.root_id())).paths();
        let others: Vec<Conflict> = conflicts.into_iter().filter(|c| !own.contains(&c.path)).collect();
        if others.is_empty() { managed::apply(live, config, schema, manager, true, now) } else { Err(others) }
    })?;
    if last_applied(&applied).is_some() {
        let mut sent = sent.clone();
        for field in ["managedFields", "resourceVersion", "uid", "creationTimestamp"] {
            if let Some(metadata) = sent.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.remove(field);
            }
        }
        let annotations = |object: &mut Value| {
            object.get_mut("metadata")?.get_mut("annotations")?.as_object_mut().map(std::mem::take)
        };
        if let Some(mut map) = annotations(&mut sent) {
            map.remove(LAST_APPLIED);
            if !map.is_empty() {
                sent["metadata"]["annotations"] = map.into();
            }
        }
        let text = sent.to_string();
        applied["metadata"]["annotations"][LAST_APPLIED] =
            if text.len() > MOST { "".into() } else { text.into() };
    }
    Ok(applied)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_client_side_apply_passes_its_fields_on() {
        let schema = Schema::anything();
        let kubectl =
            |name: &str| Manager { name: name.into(), api_version: "v1".into(), subresource: String::new() };
        let config = json!({"metadata": {"name": "a"}, "data": {"k": "1"}});
        let mut live = config.clone();
        live["metadata"]["annotations"] = json!({LAST_APPLIED: config.to_string()});
        managed::record_update(
            &managed::nothing(),
            &mut live,
            &schema,
            &kubectl("kubectl-client-side-apply"),
            "t1",
        );
        let wanted = json!({"metadata": {"name": "a"}, "data": {"k": "2"}});
        let other = apply(&live, &wanted, &wanted, &schema, &kubectl("gitops"), false, "t2");
        assert_eq!(other.unwrap_err()[0].path, ".data.k");
        let applied = apply(&live, &wanted, &wanted, &schema, &kubectl("kubectl"), false, "t2").unwrap();
        assert_eq!(applied["data"]["k"], "2");
        let noted: Value = serde_json::from_str(last_applied(&applied).unwrap()).unwrap();
        assert_eq!(noted, wanted, "who goes back to client-side apply starts from here");
        // A field that is not in the annotation belongs to another manager.
        let mut foreign = live.clone();
        foreign["data"]["z"] = "1".into();
        managed::record_update(&live, &mut foreign, &schema, &kubectl("edit"), "t1");
        let wanted = json!({"metadata": {"name": "a"}, "data": {"k": "2", "z": "2"}});
        let conflicts =
            apply(&foreign, &wanted, &wanted, &schema, &kubectl("kubectl"), false, "t2").unwrap_err();
        assert_eq!(conflicts.iter().map(|c| c.path.as_str()).collect::<Vec<_>>(), [".data.z"]);
    }
}
