//! Metadata of all objects: what the server sets, its validation, and fields that a write cannot change.

use k8s_core::status::ApiStatus;
use serde_json::{Map, Value};

use crate::{
    errors::other_namespace,
    invalid::FieldErrors,
    resources::{
        Resource,
        strategy::{METADATA_OF_CLIENTS, check_labels},
    },
    value::{array_at, child, str_at},
};

/// Sets the server's metadata of a new object. Returns the prefix for `generateName`. Empty: the object has a
/// name.
///
/// # Errors
/// 400 for the namespace of another request.
pub(super) fn start_metadata(
    resource: &Resource,
    object: &mut Value,
    namespace: &str,
    now: &str,
) -> Result<String, ApiStatus> {
    let Some(metadata) = child(object, "metadata") else {
        return Err(ApiStatus::bad_request("metadata must be an object"));
    };
    if resource.namespaced {
        let given = str_at(metadata, "/namespace");
        if !given.is_empty() && given != namespace {
            return Err(other_namespace());
        }
        metadata["namespace"] = namespace.into();
    } else if let Some(map) = metadata.as_object_mut() {
        map.remove("namespace");
    }
    clear_metadata(metadata);
    let prefix = if str_at(metadata, "/name").is_empty() {
        str_at(metadata, "/generateName").to_owned()
    } else {
        String::new()
    };
    metadata["uid"] = k8s_core::random::uuid().to_string().into();
    metadata["creationTimestamp"] = now.into();
    if !prefix.is_empty() {
        metadata["name"] = generated(&prefix).into();
    }
    Ok(prefix)
}

/// Removes the metadata that a new object never has.
fn clear_metadata(metadata: &mut Value) {
    let Some(map) = metadata.as_object_mut() else { return };
    for field in ["selfLink", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"] {
        map.remove(field);
    }
}

/// Metadata that the server has given to a new object.
pub(super) struct Born(Vec<(&'static str, Value)>);

impl Born {
    /// Keeps the metadata of an object after [`start_metadata`].
    pub(super) fn of(object: &Value) -> Self {
        let fields = ["uid", "creationTimestamp", "namespace"].into_iter();
        Born(fields.filter_map(|f| Some((f, object.get("metadata")?.get(f)?.clone()))).collect())
    }

    /// Gives it to the object again, after a plugin may have changed any of it.
    pub(super) fn restore(self, object: &mut Value) {
        let Some(metadata) = child(object, "metadata") else { return };
        clear_metadata(metadata);
        for (field, value) in self.0 {
            metadata[field] = value;
        }
    }
}

/// Adds a random suffix as `generateName` asks.
pub(super) fn generated(prefix: &str) -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut name: String = prefix.chars().take(58).collect();
    name.extend((0..5).map(|_| char::from(LETTERS[k8s_core::random::range(0..LETTERS.len())])));
    name
}

/// Validates name, namespace, labels, annotations, finalizers and owner references.
pub(super) fn check_metadata(resource: &Resource, object: &Value, errors: &mut FieldErrors) {
    let name = str_at(object, "/metadata/name");
    if name.is_empty() {
        errors.required("metadata.name", "name or generateName is required");
    } else {
        resource.strategy.name.check("metadata.name", name, errors);
    }
    check_labels(object, "/metadata/labels", "metadata.labels", errors);
    for key in crate::value::object_at(object, "/metadata/annotations").into_iter().flatten().map(|(k, _)| k)
    {
        if !crate::invalid::names::is_qualified(&key.to_lowercase()) {
            errors.invalid("metadata.annotations", key.as_str(), "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')");
        }
    }
    let controllers =
        array_at(object, "/metadata/ownerReferences").iter().filter(|o| o["controller"] == true).count();
    if controllers > 1 {
        errors.invalid(
            "metadata.ownerReferences",
            array_at(object, "/metadata/ownerReferences").to_vec(),
            "Only one reference can have Controller set to true",
        );
    }
    for (i, owner) in array_at(object, "/metadata/ownerReferences").iter().enumerate() {
        for field in ["apiVersion", "kind", "name", "uid"] {
            if str_at(owner, &format!("/{field}")).is_empty() {
                errors.invalid(format!("metadata.ownerReferences[{i}].{field}"), "", "must not be empty");
            }
        }
    }
}

/// Rejects new finalizers on an object that is being deleted.
pub(super) fn check_finalizers(new: &Value, old: &Value, errors: &mut FieldErrors) {
    if old.pointer("/metadata/deletionTimestamp").is_none() {
        return;
    }
    let had = array_at(old, "/metadata/finalizers");
    let added: Vec<&str> = array_at(new, "/metadata/finalizers")
        .iter()
        .filter(|f| !had.contains(f))
        .filter_map(Value::as_str)
        .collect();
    if !added.is_empty() {
        let detail = format!(
            "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
            added.iter().map(|f| format!("{f:?}")).collect::<Vec<_>>().join(", ")
        );
        // Upstream validates the metadata separately and again with the type's rules, so clients see the
        // cause twice.
        errors.forbidden("metadata.finalizers", &detail);
        errors.forbidden("metadata.finalizers", &detail);
    }
}

/// Subresources that are views of the whole object. The strategy decides which fields a write may change.
pub(super) const VIEWS: [&str; 3] = ["approval", "ephemeralcontainers", "resize"];

/// Restores fields that a write cannot change.
pub(super) fn carry_over(resource: &Resource, new: &mut Value, old: &Value, part: &str) {
    let Some(map) = new.as_object_mut() else { return };
    if part == "status" {
        let asked = map.remove("metadata").unwrap_or_default();
        keep_all_but_status(map, old.as_object().unwrap_or(&Map::new()));
        let Some(kept) = map.get_mut("metadata").and_then(Value::as_object_mut) else { return };
        let fixed = resource.strategy.fixed_by_status;
        for field in METADATA_OF_CLIENTS.iter().filter(|field| !fixed.contains(field)) {
            match asked.get(*field) {
                Some(value) if kept.get(*field) == Some(value) => {}
                Some(value) => drop(kept.insert((*field).to_owned(), value.clone())),
                None => drop(kept.remove(*field)),
            }
        }
        if let Some(fields) = asked.get("managedFields") {
            kept.insert("managedFields".into(), fields.clone());
        }
        return;
    }
    if resource.has_status && !VIEWS.contains(&part) {
        match old.get("status") {
            Some(status) => map.insert("status".into(), status.clone()),
            None => map.remove("status"),
        };
    }
    let metadata = map.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
    let Some(metadata) = metadata.as_object_mut() else { return };
    for field in [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "selfLink",
        "generateName",
    ] {
        match old.get("metadata").and_then(|metadata| metadata.get(field)) {
            Some(value) if metadata.get(field) == Some(value) => None,
            Some(value) => metadata.insert(field.into(), value.clone()),
            None => metadata.remove(field),
        };
    }
}

/// Restores all fields but the status. Most are unchanged and need no copy.
fn keep_all_but_status(new: &mut Map<String, Value>, old: &Map<String, Value>) {
    new.retain(|name, _| name == "status" || old.contains_key(name));
    for (name, value) in old.iter().filter(|(name, _)| *name != "status") {
        if new.get(name) != Some(value) {
            new.insert(name.clone(), value.clone());
        }
    }
}
