//! Resources created at run time: those of CustomResourceDefinitions and ThirdPartyResources.

mod check;
mod rules;
mod webhook;

pub(crate) use rules::{Rules, compiles};
pub(crate) use webhook::Webhook;

use std::sync::Arc;

use k8s_core::legacy::third_party_kind;
use k8s_schema::{MAX_DEPTH, Schema};
use serde_json::{Value, json};

use super::{
    ALL_VERBS, Columns, Field, Resource, ScalePaths, Subresource,
    columns::{CustomColumn, custom_default},
    storage_name,
    strategy::{BASE, METADATA_OF_CLIENTS, Strategy, extensions::CUSTOM_RESOURCE_DEFINITION},
};
use crate::{
    invalid::FieldErrors,
    value::{array_at, bool_at, default_text, str_at},
};

static CUSTOM: Strategy = Strategy {
    generation: true,
    allow_unconditional_update: false,
    fixed_by_status: &METADATA_OF_CLIENTS,
    ..BASE
};

fn subresource(name: &str, kind: &str, group_version: Option<(&str, &str)>) -> Subresource {
    Subresource {
        name: name.into(),
        kind: kind.into(),
        group_version: group_version.map(|(g, v)| (g.to_owned(), v.to_owned())),
        verbs: ["get", "patch", "update"].map(str::to_owned).into(),
    }
}

fn texts(object: &Value, pointer: &str) -> Vec<String> {
    array_at(object, pointer).iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// Converts `.spec.replicas` to a JSON pointer.
fn pointer(path: &str) -> String {
    path.replace('.', "/")
}

/// Returns the resources of a CustomResourceDefinition, one per served version. A version whose schema does
/// not compile is omitted.
#[must_use]
pub fn from_definition(crd: &Value) -> Vec<Arc<Resource>> {
    let (group, plural, kind) =
        (str_at(crd, "/spec/group"), str_at(crd, "/spec/names/plural"), str_at(crd, "/spec/names/kind"));
    let versions = array_at(crd, "/spec/versions");
    let Some(stored) = versions.iter().find(|v| bool_at(v, "/storage")) else { return Vec::new() };
    let storage_version = format!("{group}/{}", str_at(stored, "/name"));
    let mut served: Vec<&Value> = versions.iter().filter(|v| bool_at(v, "/served")).collect();
    served.sort_by_key(|v| priority(str_at(v, "/name")));
    let make = |version: &Value| {
        let mut open_api =
            version.pointer("/schema/openAPIV3Schema").cloned().unwrap_or_else(|| json!({"type": "object"}));
        if bool_at(crd, "/spec/preserveUnknownFields") {
            // Only schemas that preserve unknown fields may omit it.
            default_text(&mut open_api, "type", "object");
            keep_unknown_fields(&mut open_api, 0);
        }
        let schema = Schema::custom(&open_api).ok()?;
        // Errors were reported when the definition was created.
        let mut problems = FieldErrors::default();
        let rules = Rules::new(&open_api, "", &mut problems);
        let mut subresources = Vec::new();
        let has_status = version.pointer("/subresources/status").is_some();
        let scale = version.pointer("/subresources/scale").map(|s| ScalePaths {
            spec: pointer(str_at(s, "/specReplicasPath")),
            status: pointer(str_at(s, "/statusReplicasPath")),
            selector: pointer(str_at(s, "/labelSelectorPath")),
        });
        if scale.is_some() {
            subresources.push(subresource("scale", "Scale", Some(("autoscaling", "v1"))));
        }
        if has_status {
            subresources.push(subresource("status", kind, None));
        }
        let mut columns: Vec<CustomColumn> = array_at(version, "/additionalPrinterColumns")
            .iter()
            .map(|c| CustomColumn {
                name: str_at(c, "/name").into(),
                kind: str_at(c, "/type").into(),
                format: str_at(c, "/format").into(),
                description: str_at(c, "/description").into(),
                priority: c
                    .pointer("/priority")
                    .and_then(Value::as_i64)
                    .and_then(|p| p.try_into().ok())
                    .unwrap_or(0),
                path: str_at(c, "/jsonPath").into(),
            })
            .collect();
        if columns.is_empty() {
            columns.push(custom_default());
        }
        let field_names: Arc<[String]> = array_at(version, "/selectableFields")
            .iter()
            .map(|f| str_at(f, "/jsonPath").trim_start_matches('.').to_owned())
            .collect();
        Some(Resource {
            group: group.into(),
            version: str_at(version, "/name").into(),
            kind: kind.into(),
            list_kind: str_at(crd, "/spec/names/listKind").into(),
            plural: plural.into(),
            singular: str_at(crd, "/spec/names/singular").into(),
            short_names: texts(crd, "/spec/names/shortNames"),
            categories: texts(crd, "/spec/names/categories"),
            namespaced: str_at(crd, "/spec/scope") == "Namespaced",
            verbs: ALL_VERBS.to_vec(),
            subresources,
            storage: storage_name(group, plural),
            storage_version: storage_version.clone(),
            has_status,
            scale,
            fields: field_names.iter().map(|path| Field::at(path)).collect(),
            field_names,
            columns: Columns::Custom(columns.into()),
            schema,
            served_schema: None,
            strategy: &CUSTOM,
            conversion: None,
            custom: true,
            webhook: None,
            terminating: crd.pointer("/metadata/deletionTimestamp").is_some(),
            off_by_default: false,
            typed: None,
            rules: Some(rules),
            open_api: Some(Arc::new(open_api)),
            generate: None,
        })
    };
    let by_webhook = str_at(crd, "/spec/conversion/strategy") == "Webhook";
    let webhook = make(stored)
        .filter(|_| by_webhook)
        .map(|stored| Arc::new(Webhook::new(&crd["spec"]["conversion"], Arc::new(stored))));
    served
        .into_iter()
        .filter_map(|version| {
            let mut resource = make(version)?;
            // Objects stored in an earlier version exist until they are written again.
            let earlier =
                array_at(crd, "/status/storedVersions").iter().any(|v| Some(v) != stored.get("name"));
            if earlier || version.get("name") != stored.get("name") {
                resource.webhook = webhook.clone();
            }
            Some(Arc::new(resource))
        })
        .collect()
}

/// Returns the sort key of a version: stable before beta before alpha, higher numbers first, then all other
/// names alphabetically.
fn priority(version: &str) -> (u8, std::cmp::Reverse<(u64, u64)>, String) {
    let parse = || -> Option<(u8, u64, u64)> {
        let rest = version.strip_prefix('v')?;
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let major = rest.get(..digits)?.parse().ok()?;
        match rest.get(digits..)? {
            "" => Some((0, major, 0)),
            tail => {
                let beta = tail.strip_prefix("beta");
                let minor = beta.or_else(|| tail.strip_prefix("alpha"))?.parse().ok()?;
                Some((if beta.is_some() { 1 } else { 2 }, major, minor))
            }
        }
    };
    match parse() {
        Some((stability, major, minor)) => (stability, std::cmp::Reverse((major, minor)), String::new()),
        None => (3, std::cmp::Reverse((0, 0)), version.to_owned()),
    }
}

/// Sets `x-kubernetes-preserve-unknown-fields` on every object of a schema.
fn keep_unknown_fields(schema: &mut Value, depth: usize) {
    if depth > MAX_DEPTH {
        return;
    }
    let Some(map) = schema.as_object_mut() else { return };
    let is_object = map.get("type").map_or(map.contains_key("properties"), |t| t == "object");
    if is_object && !map.contains_key("additionalProperties") {
        map.insert("x-kubernetes-preserve-unknown-fields".into(), true.into());
    }
    for (_, field) in map.get_mut("properties").and_then(Value::as_object_mut).into_iter().flatten() {
        keep_unknown_fields(field, depth + 1);
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = map.get_mut(key) {
            keep_unknown_fields(inner, depth + 1);
        }
    }
}

/// Validates an object, or an update of `old`, against a CustomResourceDefinition's `openAPIV3Schema` as the
/// server does: limits, formats and CEL rules.
///
/// # Errors
/// All errors: errors of the schema (fields below `schema`), otherwise of the object.
///
/// # Examples
/// ```
/// use k8s_apiserver::resources::custom::validate;
/// use serde_json::json;
///
/// let schema = json!({"type": "object", "properties": {"size": {"type": "integer", "maximum": 3}},
///     "x-kubernetes-validations": [{"rule": "self.size != 2", "message": "not two"}]});
/// assert_eq!(validate(&schema, &json!({"size": 3}), None), Ok(()));
/// let refused = validate(&schema, &json!({"size": 2}), None).unwrap_err();
/// assert_eq!(refused.lines(), ["<nil>: Invalid value: \"object\": not two"]);
/// ```
pub fn validate(schema: &Value, object: &Value, old: Option<&Value>) -> Result<(), FieldErrors> {
    let mut errors = FieldErrors::default();
    let rules = Rules::new(schema, "schema", &mut errors);
    if errors.is_empty() {
        rules.check(object, old, &mut errors);
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

/// Validates the schemas and rules of a definition.
pub(crate) fn check_definition(crd: &Value, errors: &mut FieldErrors) {
    let mut crd = crd.clone();
    (CUSTOM_RESOURCE_DEFINITION.default)(&mut crd);
    (CUSTOM_RESOURCE_DEFINITION.validate)(&crd, errors);
}

/// Returns the resources of a ThirdPartyResource, whose objects have no schema.
#[must_use]
pub fn from_third_party(tpr: &Value) -> Vec<Arc<Resource>> {
    let Some((kind, group)) = third_party_kind(str_at(tpr, "/metadata/name")) else { return Vec::new() };
    let singular = kind.to_lowercase();
    let plural = if singular.ends_with('s') { format!("{singular}es") } else { format!("{singular}s") };
    let versions: Vec<&str> = array_at(tpr, "/versions").iter().map(|v| str_at(v, "/name")).collect();
    let Some(stored) = versions.first() else { return Vec::new() };
    let open_api = Arc::new(json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}));
    versions
        .iter()
        .map(|version| {
            Arc::new(Resource {
                group: group.clone(),
                version: (*version).into(),
                kind: kind.clone(),
                list_kind: format!("{kind}List"),
                plural: plural.clone(),
                singular: singular.clone(),
                short_names: Vec::new(),
                categories: Vec::new(),
                namespaced: true,
                verbs: ALL_VERBS.to_vec(),
                subresources: Vec::new(),
                storage: storage_name(&group, &plural),
                storage_version: format!("{group}/{stored}"),
                has_status: false,
                scale: None,
                fields: Arc::new([]),
                field_names: Arc::new([]),
                columns: Columns::Custom(Arc::new([custom_default()])),
                schema: Schema::anything(),
                served_schema: None,
                strategy: &CUSTOM,
                conversion: None,
                custom: true,
                webhook: None,
                terminating: false,
                off_by_default: false,
                typed: None,
                rules: None,
                open_api: Some(open_api.clone()),
                generate: None,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stable_versions_come_first() {
        let mut versions = ["foo", "v1alpha2", "v2", "v1", "v10", "v1beta3", "v11beta1", "v1beta10"];
        versions.sort_by_key(|v| priority(v));
        assert_eq!(versions, ["v10", "v2", "v1", "v11beta1", "v1beta10", "v1beta3", "v1alpha2", "foo"]);
    }

    #[test]
    fn a_third_party_resource_is_served() {
        let made = from_third_party(
            &json!({"metadata": {"name": "rds-database.stable.example.com"}, "versions": [{"name": "v1"}]}),
        );
        assert_eq!(
            (made[0].kind.as_str(), made[0].plural.as_str(), made[0].group.as_str()),
            ("RdsDatabase", "rdsdatabases", "stable.example.com")
        );
    }

    #[test]
    fn a_definition_with_scale_and_columns() {
        let crd = json!({"spec": {"group": "g.example.com", "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing", "singular": "thing", "listKind": "ThingList", "shortNames": ["th"]},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object", "properties": {"replicas": {"type": "integer"}}}}}},
                "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}},
                "additionalPrinterColumns": [{"name": "R", "type": "integer", "jsonPath": ".spec.replicas"}]}]}});
        let made = from_definition(&crd);
        assert_eq!(made[0].scale.as_ref().unwrap().spec, "/spec/replicas");
        assert!(made[0].has_status);
    }
}
