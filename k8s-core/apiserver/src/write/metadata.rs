//! Validation of metadata for all objects, and fields that a write cannot change.

use serde_json::{Map, Value};

use crate::{
    invalid::FieldErrors,
    resources::{Resource, strategy::check_labels},
    value::{list, text},
};

/// Validates metadata.
pub(super) fn check_metadata(resource: &Resource, object: &Value, errors: &mut FieldErrors) {
    let name = text(object, "/metadata/name");
    if name.is_empty() {
        errors.required("metadata.name", "name or generateName is required");
    } else {
        resource.strategy.name.check("metadata.name", name, errors);
    }
    check_labels(object, "/metadata/labels", "metadata.labels", errors);
    for key in crate::value::map(object, "/metadata/annotations").into_iter().flatten().map(|(k, _)| k) {
        if !crate::invalid::names::is_qualified(&key.to_lowercase()) {
            errors.invalid("metadata.annotations", key.as_str(), "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')");
        }
    }
    let controllers =
        list(object, "/metadata/ownerReferences").iter().filter(|o| o["controller"] == true).count();
    if controllers > 1 {
        errors.invalid(
            "metadata.ownerReferences",
            list(object, "/metadata/ownerReferences").to_vec(),
            "Only one reference can have Controller set to true",
        );
    }
    for (i, owner) in list(object, "/metadata/ownerReferences").iter().enumerate() {
        for field in ["apiVersion", "kind", "name", "uid"] {
            if text(owner, &format!("/{field}")).is_empty() {
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
    let had = list(old, "/metadata/finalizers");
    let added: Vec<&str> = list(new, "/metadata/finalizers")
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
pub(super) const VIEWS: [&str; 2] = ["approval", "ephemeralcontainers"];

/// Metadata fields that clients control.
const OF_CLIENTS: [&str; 4] = ["labels", "annotations", "finalizers", "ownerReferences"];

/// Kinds whose status writes cannot change any metadata. Custom resources are like this, too.
const STATUS_ALONE: [&str; 8] = [
    "apiservices.apiregistration.k8s.io",
    "customresourcedefinitions.apiextensions.k8s.io",
    "flowschemas.flowcontrol.apiserver.k8s.io",
    "prioritylevelconfigurations.flowcontrol.apiserver.k8s.io",
    "resourceclaims.resource.k8s.io",
    "servicecidrs.networking.k8s.io",
    "validatingadmissionpolicies.admissionregistration.k8s.io",
    "volumeattachments.storage.k8s.io",
];

/// Returns the metadata fields that status writes of a kind cannot change, as upstream.
fn fixed_by_status_writes(resource: &Resource) -> &'static [&'static str] {
    match &*resource.storage {
        kind if resource.custom || STATUS_ALONE.contains(&kind) => &OF_CLIENTS,
        "deployments.apps" => &["labels"],
        "pods" => &["ownerReferences"],
        _ => &[],
    }
}

/// Restores fields that a write cannot change.
pub(super) fn carry_over(resource: &Resource, new: &mut Value, old: &Value, part: &str) {
    let Some(map) = new.as_object_mut() else { return };
    if part == "status" {
        let asked = map.remove("metadata").unwrap_or_default();
        keep_all_but_status(map, old.as_object().unwrap_or(&Map::new()));
        let Some(kept) = map.get_mut("metadata").and_then(Value::as_object_mut) else { return };
        let fixed = fixed_by_status_writes(resource);
        for field in OF_CLIENTS.iter().filter(|field| !fixed.contains(field)) {
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
