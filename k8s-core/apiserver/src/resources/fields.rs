//! Selectable fields: values that the store indexes and selectors compare.

use k8s_store::Meta;
use serde_json::Value;

/// Returns the values of a resource's selectable fields in an object's stored form.
#[must_use]
pub fn selectable(fields: &[String], object: &Value) -> Box<[Box<str>]> {
    fields.iter().map(|path| field_text(object, path).into()).collect()
}

/// Returns the labels, selectable fields and uid of an object, which the store keeps beside its JSON.
pub(crate) fn meta_of(object: &Value, fields: &[String]) -> Meta {
    let labels = crate::value::object_at(object, "/metadata/labels").into_iter().flatten();
    Meta {
        uid: crate::value::str_at(object, "/metadata/uid").into(),
        labels: labels.map(|(k, v)| (k.as_str().into(), v.as_str().unwrap_or_default().into())).collect(),
        fields: selectable(fields, object),
    }
}

/// Returns a field's value as selectors compare it. Empty: the field is absent.
#[must_use]
pub fn field_text(object: &Value, path: &str) -> String {
    if path == "source" && object.get("involvedObject").is_some() {
        let source = object.pointer("/source/component").or_else(|| object.get("reportingComponent"));
        return source.and_then(Value::as_str).unwrap_or_default().to_owned();
    }
    let path = if path == "status.successful" { "status.succeeded" } else { path };
    let value = path.split('.').try_fold(object, |at, part| at.get(part));
    match value {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Bool(_) | Value::Number(_)) => value.map(Value::to_string).unwrap_or_default(),
        _ if path == "spec.unschedulable" || path == "spec.hostNetwork" => "false".into(),
        _ => String::new(),
    }
}
