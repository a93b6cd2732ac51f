//! The Scale of an object, and its admission.

use std::sync::Arc;

use k8s_core::status::ApiStatus;
use serde_json::{Value, json};

use crate::{
    admission::Admission,
    call::Call,
    resources::{Resource, columns::selector_text},
    state::State,
    value::{int_at, set},
};

/// Returns the Scale of an object; null for a resource without one.
pub(crate) fn scale_of(resource: &Resource, object: &Value) -> Value {
    let Some(paths) = &resource.scale else { return Value::Null };
    let metadata = object.get("metadata").cloned().unwrap_or_default();
    let mut kept = json!({});
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = metadata.get(field) {
            kept[field] = value.clone();
        }
    }
    let replicas = int_at(object, &paths.spec).unwrap_or(0);
    let mut status = json!({"replicas": int_at(object, &paths.status).unwrap_or(0)});
    if !paths.selector.is_empty()
        && let Some(selector) = object.pointer(&paths.selector)
    {
        status["selector"] = selector_text(Some(selector)).into();
    }
    let spec = if replicas == 0 { json!({}) } else { json!({"replicas": replicas}) };
    json!({"kind": "Scale", "apiVersion": scale_version(resource), "metadata": kept, "spec": spec, "status": status})
}

fn scale_version(resource: &Resource) -> String {
    let version = resource.subresource("scale").and_then(|s| s.group_version.clone());
    let (group, version) = version.unwrap_or_else(|| ("autoscaling".into(), "v1".into()));
    format!("{group}/{version}")
}

/// Lets the admission plugins change or refuse a new scale: those of a distribution see the scaled object,
/// the others the Scale.
///
/// # Errors
/// The first refusal.
pub(crate) async fn admit(
    state: &Arc<State>,
    call: &Call,
    resource: &Resource,
    new: &mut Value,
    old: &Value,
    dry_run: bool,
) -> Result<(), ApiStatus> {
    let (mut scale, before) = (scale_of(resource, new), scale_of(resource, old));
    let mut admission = Admission::new(call, resource, &mut scale, Some(&before), dry_run);
    state.admission.admit(&mut admission).await?;
    if let Some(paths) = &resource.scale {
        let replicas = int_at(&scale, "/spec/replicas").unwrap_or(0);
        if int_at(new, &paths.spec).unwrap_or(0) != replicas {
            set(new, &paths.spec, replicas.into());
        }
    }
    state.admission.own(&mut Admission::new(call, resource, new, Some(old), dry_run)).await
}

/// Lets the admission plugins refuse a scale in its final form.
///
/// # Errors
/// The first refusal.
pub(crate) async fn validate(
    state: &Arc<State>,
    call: &Call,
    resource: &Resource,
    new: &Value,
    old: &Value,
    dry_run: bool,
) -> Result<(), ApiStatus> {
    let (mut scale, before) = (scale_of(resource, new), scale_of(resource, old));
    state.admission.validate(&Admission::new(call, resource, &mut scale, Some(&before), dry_run)).await
}
