//! OpenAPI v3 (one document per group and version) and v2, generated from the schemas that validate requests.
//!
//! Documents are made when they are first asked for and kept until a definition changes.

mod custom;
mod gnostic;

use std::sync::Arc;

use bytes::Bytes;
use http::{Response, header};
use k8s_core::client::Body;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use crate::{
    call::Call,
    resources::{Registry, Resource},
    respond::{self, not_found_page},
    state::State,
};

/// Answers `/openapi/v2` and `/openapi/v3`, with ETags.
pub(crate) fn answer(state: &Arc<State>, call: &Call, rest: &[&str]) -> Response<Body> {
    let bytes = match rest {
        ["v2"] if accepts_protobuf(call) => {
            let make = || document_v2(&call.registry).map(|json| gnostic::document(&json));
            return respond::tagged(call, cached_bytes(state, "v2 in protobuf", make), PROTOBUF);
        }
        ["v2"] => cached(state, "v2", || document_v2(&call.registry)),
        ["v3"] => {
            let mut paths = Map::new();
            for (group, versions) in call.registry.groups() {
                for version in versions {
                    let path = if group.is_empty() {
                        format!("api/{version}")
                    } else {
                        format!("apis/{group}/{version}")
                    };
                    let document = cached(state, &path, || document_v3(&call.registry, group, version));
                    let url = format!("/openapi/v3/{path}?hash={}", respond::etag(&document));
                    paths.insert(path, json!({"serverRelativeURL": url}));
                }
            }
            // A local API has no document.
            for remote in state.aggregator.all().iter().filter(|r| r.is_available() && !r.is_local()) {
                let path = format!("apis/{}/{}", remote.group, remote.version);
                let hash = respond::etag(remote.resources().to_string().as_bytes());
                paths.insert(
                    path.clone(),
                    json!({"serverRelativeURL": format!("/openapi/v3/{path}?hash={hash}")}),
                );
            }
            Bytes::from(json!({"paths": paths}).to_string())
        }
        ["v3", "api", version] => {
            cached(state, &format!("api/{version}"), || document_v3(&call.registry, "", version))
        }
        ["v3", "apis", group, version] => {
            cached(state, &format!("apis/{group}/{version}"), || document_v3(&call.registry, group, version))
        }
        _ => return not_found_page(),
    };
    if bytes.is_empty() {
        return not_found_page();
    }
    respond::tagged(call, bytes, "application/json")
}

/// The media type of OpenAPI v2 in protobuf. Clients also write it with an `@`, which is no media type.
const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

fn accepts_protobuf(call: &Call) -> bool {
    let accepted = call.headers.get_all(header::ACCEPT).iter().filter_map(|v| v.to_str().ok());
    // The first choice decides.
    let first = accepted.flat_map(|v| v.split(',')).map(str::trim).find(|choice| {
        choice.starts_with("application/com.github.proto-openapi.spec.v2")
            || choice.starts_with("application/json")
    });
    first.is_some_and(|choice| choice.contains("protobuf"))
}

fn cached(state: &Arc<State>, path: &str, make: impl FnOnce() -> Option<Value>) -> Bytes {
    cached_bytes(state, path, || make().map(|v| v.to_string().into_bytes()))
}

fn cached_bytes(state: &Arc<State>, path: &str, make: impl FnOnce() -> Option<Vec<u8>>) -> Bytes {
    let mut all = state.open_api.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(known) = all.get(path) {
        return known.clone();
    }
    let bytes = make().map(Bytes::from).unwrap_or_default();
    all.insert(path.to_owned(), bytes.clone());
    bytes
}

/// Name of a resource's definition.
fn definition_name(resource: &Resource) -> String {
    let reversed: Vec<&str> = resource.group.split('.').rev().collect();
    if resource.custom {
        return format!("{}.{}.{}", reversed.join("."), resource.version, resource.kind);
    }
    let group = match resource.group.split('.').next().unwrap_or_default() {
        "" => "core",
        first => first,
    };
    format!("io.k8s.api.{group}.{}.{}", resource.version, resource.kind)
}

/// Returns the path of references to definitions.
fn prefix(v3: bool) -> &'static str {
    if v3 { "#/components/schemas/" } else { "#/definitions/" }
}

/// Returns the definitions of resources.
fn definitions<'a>(
    resources: impl Iterator<Item = &'a std::sync::Arc<Resource>>,
    v3: bool,
) -> Map<String, Value> {
    let prefix = prefix(v3);
    let path = prefix.trim_start_matches('#').trim_end_matches('/').to_owned();
    let settings = SchemaSettings::draft2020_12().with(|s| s.definitions_path = path.clone().into());
    let mut generator = settings.into_generator();
    let mut out = Map::new();
    let mut roots: Vec<(String, String, Value)> = Vec::new();
    for resource in resources {
        let identity = json!([{"group": resource.group, "version": resource.version, "kind": resource.kind}]);
        let name = definition_name(resource);
        if let Some(schema) = &resource.open_api {
            generator.subschema_for::<k8s_core::api::apimachinery::pkg::apis::meta::v1::ObjectMeta>();
            let metadata = format!("{prefix}io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta");
            let mut schema = custom::published(schema, &metadata, v3);
            schema["x-kubernetes-group-version-kind"] = identity;
            out.insert(name, schema);
        } else if let Some(generate) = resource.generate {
            let root = generate(&mut generator);
            let reference = root.as_value().get("$ref").and_then(Value::as_str).unwrap_or_default();
            let made = reference.rsplit('/').next().unwrap_or_default().to_owned();
            roots.push((name, made, identity));
        }
    }
    for (name, schema) in generator.take_definitions(true) {
        out.insert(name, schema);
    }
    for (name, made, identity) in roots {
        if let Some(mut schema) = out.get(&made).cloned() {
            schema["x-kubernetes-group-version-kind"] = identity;
            out.insert(name, schema);
        }
    }
    for (name, schema) in &mut out {
        annotate(name, schema, v3);
    }
    out
}

/// Adds what types alone do not say, where the document's readers look for it.
fn annotate(name: &str, schema: &mut Value, v3: bool) {
    k8s_schema::annotate(name, schema);
    tidy(schema, v3, 0);
}

/// OpenAPI has `nullable`, not lists of types. In version 3 a reference stands alone or in `allOf`.
fn tidy(schema: &mut Value, v3: bool, depth: usize) {
    if depth > 60 {
        return;
    }
    match schema {
        Value::Object(map) => {
            if let Some(Value::Array(types)) = map.get("type").cloned() {
                let one = types.iter().find(|t| *t != "null").cloned().unwrap_or_default();
                map.insert("type".into(), one);
            }
            // A type may have a property of that name (JSONSchemaProps has): only a text is a reference.
            if v3
                && map.len() > 1
                && map.get("$ref").is_some_and(Value::is_string)
                && let Some(reference) = map.remove("$ref")
            {
                map.insert("allOf".into(), json!([{"$ref": reference}]));
            }
            for child in map.values_mut() {
                tidy(child, v3, depth + 1);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|i| tidy(i, v3, depth + 1)),
        _ => {}
    }
}

fn parameter(name: &str, kind: &str, v3: bool) -> Value {
    let mut parameter = json!({"name": name, "in": "query", "uniqueItems": true});
    if v3 {
        parameter["schema"] = json!({"type": kind, "uniqueItems": true});
    } else {
        parameter["type"] = kind.into();
    }
    parameter
}

/// Returns the paths of a resource: operations, kinds and the options of writes.
fn operations(resource: &Resource, prefix: &str, v3: bool) -> Vec<(String, Value)> {
    let base = if resource.group.is_empty() {
        format!("/api/{}", resource.version)
    } else {
        format!("/apis/{}/{}", resource.group, resource.version)
    };
    let scope = if resource.namespaced { "/namespaces/{namespace}" } else { "" };
    let collection = format!("{base}{scope}/{}", resource.plural);
    let identity = json!({"group": resource.group, "version": resource.version, "kind": resource.kind});
    let reference = json!({"$ref": format!("{prefix}{}", definition_name(resource))});
    let operation = |action: &str, writes: bool| {
        let mut one = json!({
            "operationId": format!("{action}{}{}{}", resource.group.replace('.', ""), resource.version, resource.kind),
            "x-kubernetes-action": action, "x-kubernetes-group-version-kind": identity,
        });
        one["responses"] = if v3 {
            json!({"200": {"description": "OK", "content": {"application/json": {"schema": reference}}}})
        } else {
            json!({"200": {"description": "OK", "schema": reference}})
        };
        if writes {
            one["parameters"] = json!([
                parameter("dryRun", "string", v3),
                parameter("fieldManager", "string", v3),
                parameter("fieldValidation", "string", v3),
            ]);
        }
        one
    };
    vec![
        (
            collection.clone(),
            json!({"get": operation("list", false), "post": operation("post", true), "delete": operation("deletecollection", false)}),
        ),
        (
            format!("{collection}/{{name}}"),
            json!({"get": operation("get", false), "put": operation("put", true), "patch": operation("patch", true), "delete": operation("delete", false)}),
        ),
    ]
}

fn document_v3(registry: &Registry, group: &str, version: &str) -> Option<Value> {
    registry.groups().iter().find(|(g, v)| g == group && v.iter().any(|v| v == version))?;
    let prefix = prefix(true);
    let schemas = definitions(registry.in_version(group, version), true);
    let paths: Map<String, Value> =
        registry.in_version(group, version).flat_map(|r| operations(r, prefix, true)).collect();
    Some(json!({
        "openapi": "3.0.0", "info": {"title": "Kubernetes", "version": crate::health::VERSION},
        "paths": paths, "components": {"schemas": schemas},
    }))
}

fn document_v2(registry: &Registry) -> Option<Value> {
    let prefix = prefix(false);
    let all: Vec<_> = registry.all().cloned().collect();
    let schemas = definitions(all.iter(), false);
    let paths: Map<String, Value> = all.iter().flat_map(|r| operations(r, prefix, false)).collect();
    Some(json!({
        "swagger": "2.0", "info": {"title": "Kubernetes", "version": crate::health::VERSION},
        "paths": paths, "definitions": schemas,
    }))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Definitions that a document refers to and does not have.
    fn dangling(document: &Value) -> BTreeSet<String> {
        fn walk(value: &Value, document: &Value, out: &mut BTreeSet<String>) {
            match value {
                Value::Object(map) => {
                    if let Some(reference) = map.get("$ref").and_then(Value::as_str)
                        && document.pointer(reference.trim_start_matches('#')).is_none()
                    {
                        out.insert(reference.to_owned());
                    }
                    map.values().for_each(|v| walk(v, document, out));
                }
                Value::Array(items) => items.iter().for_each(|v| walk(v, document, out)),
                _ => {}
            }
        }
        let mut out = BTreeSet::new();
        walk(document, document, &mut out);
        out
    }

    #[test]
    fn documents_are_whole() {
        let registry = Registry::new(&[]);
        for (group, version) in
            [("", "v1"), ("apps", "v1"), ("extensions", "v1beta1"), ("apiextensions.k8s.io", "v1")]
        {
            let document = document_v3(&registry, group, version).unwrap();
            assert_eq!(dangling(&document), BTreeSet::new(), "{group}/{version}");
        }
        let core = document_v3(&registry, "", "v1").unwrap();
        let containers =
            core.pointer("/components/schemas/io.k8s.api.core.v1.PodSpec/properties/containers").unwrap();
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
        assert!(document_v3(&registry, "nope", "v1").is_none());
    }
}
