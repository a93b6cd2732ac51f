//! Resources that are limited by default: a write that uses them needs a quota that limits it.

use jiff::Timestamp;
use k8s_core::status::ApiStatus;
use k8s_quota::{Quota, Selector, resource_of, usage};
use serde::Deserialize;
use serde_json::Value;

use crate::{admission::Admission, value::str_at};

/// Version and kind of configurations.
const KINDS: [(&str, &str); 3] = [
    ("apiserver.config.k8s.io/v1", "ResourceQuotaConfiguration"),
    ("resourcequota.admission.k8s.io/v1beta1", "Configuration"),
    ("resourcequota.admission.k8s.io/v1alpha1", "Configuration"),
];

/// A resource that is limited by default.
#[derive(Debug)]
pub(super) struct Limited {
    /// The resource by its name in the store.
    resource: String,
    /// Parts of the names of usage that need a quota.
    contains: Vec<String>,
    /// Scopes that need a quota.
    scopes: Vec<Selector>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    #[serde(default)]
    limited_resources: Vec<Row>,
}

#[derive(Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
#[derive(Default)]
struct Row {
    api_group: String,
    resource: String,
    match_contains: Vec<String>,
    match_scopes: Vec<Value>,
}

/// Reads a ResourceQuotaConfiguration. Null limits nothing.
///
/// # Errors
/// The field, and its problem.
pub(super) fn read(value: &Value) -> Result<Vec<Limited>, String> {
    if value.is_null() {
        return Ok(Vec::new());
    }
    let (version, kind) = (str_at(value, "/apiVersion"), str_at(value, "/kind"));
    if !KINDS.contains(&(version, kind)) {
        let (want, of) = (KINDS[0].1, KINDS[0].0);
        return Err(format!("want a {want} of {of}, not {kind:?} of {version:?}"));
    }
    let file = File::deserialize(value).map_err(|e| e.to_string())?;
    let rows = file.limited_resources.into_iter().enumerate();
    rows.map(|(i, row)| {
        if row.resource.is_empty() {
            return Err(format!("limitedResources[{i}].resource: Required value"));
        }
        let resource = match row.api_group.as_str() {
            "" => row.resource,
            group => format!("{}.{group}", row.resource),
        };
        let scopes = row.match_scopes.iter().map(Selector::of).collect();
        Ok(Limited { resource, contains: row.match_contains, scopes })
    })
    .collect()
}

/// Refuses a write that uses a limited resource which no quota of its namespace limits.
///
/// # Errors
/// 403 with upstream's message.
pub(super) fn check(
    limited: &[Limited],
    quotas: &[Quota],
    admission: &Admission<'_>,
    now: Timestamp,
) -> Result<(), ApiStatus> {
    if limited.is_empty() {
        return Ok(());
    }
    let (resource, object) = (&*admission.resource.storage, &*admission.object);
    let mut delta = usage(resource, object, now);
    if let Some(old) = admission.old {
        delta.subtract(&usage(resource, old, now));
    }
    let delta = delta.without_zeros();
    if delta.is_empty() {
        return Ok(());
    }
    let of_resource = || limited.iter().filter(|limited| limited.resource == resource);
    let is_limited = |name: &str| of_resource().any(|l| l.contains.iter().any(|part| name.contains(part)));
    let covers = |quota: &&Quota| quota.selects(resource, object);
    let is_covered = |name: &str| quotas.iter().filter(covers).any(|q| q.hard.get(name).is_some());
    let open: Vec<&str> = delta
        .names()
        .filter(|name| is_limited(name) && resource_of(name) == Some(resource) && !is_covered(name))
        .collect();
    if !open.is_empty() {
        return Err(admission.forbidden(&format!("insufficient quota to consume: {}", open.join(","))));
    }
    let scopes = limited.iter().flat_map(|l| &l.scopes).filter(|scope| scope.selects(resource, object));
    let is_scoped = |scope: &Selector| {
        let terms = quotas.iter().flat_map(Quota::scopes).filter(|term| term.selects(resource, object));
        terms.into_iter().any(|term| term.scope() == scope.scope())
    };
    let open: Vec<String> = scopes.filter(|scope| !is_scoped(scope)).map(Selector::to_string).collect();
    if !open.is_empty() {
        let why = format!("insufficient quota to match these scopes: [{}]", open.join(" "));
        return Err(admission.forbidden(&why));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn configurations_are_read_and_problems_name_the_field() {
        let file =
            |rows: Value| json!({"apiVersion": KINDS[0].0, "kind": KINDS[0].1, "limitedResources": rows});
        let read_ = read(&file(
            json!([{"apiGroup": "apps", "resource": "deployments", "matchContains": ["count/"]}]),
        ));
        assert_eq!(read_.unwrap()[0].resource, "deployments.apps");
        assert!(read(&Value::Null).unwrap().is_empty());
        assert_eq!(read(&file(json!([{}]))).unwrap_err(), "limitedResources[0].resource: Required value");
        assert!(read(&file(json!([{"resources": "x"}]))).unwrap_err().contains("unknown field `resources`"));
        assert!(read(&json!({"kind": "Pod"})).is_err());
    }
}
