//! Paths that are no resources: what is served, in both forms of discovery, OpenAPI, and the list of paths.

mod remote;

use std::sync::Arc;

use http::{HeaderValue, Response, StatusCode, header};
use k8s_core::{client::Body, status::ApiStatus};
use serde_json::{Value, json};

use crate::{
    auth::openid::{self, configuration},
    call::Call,
    debug,
    fair::dump,
    health, openapi,
    resources::{Registry, Resource, Subresource},
    respond::{self, not_found_page},
    state::State,
};

/// The media type of the aggregated form.
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// Answers a path that is no resource.
pub(crate) fn path(state: &Arc<State>, call: &Call) -> Result<Response<Body>, ApiStatus> {
    if call.info.verb != "get" && call.info.verb != "head" {
        return Ok(not_found_page());
    }
    if let Some(answer) = health::single(state, &call.info.path) {
        return Ok(answer);
    }
    if let Some(answer) = debug::answer(state, &call.info.path) {
        return Ok(answer);
    }
    let registry = &call.registry;
    let parts: Vec<&str> = call.info.path.split('/').filter(|p| !p.is_empty()).collect();
    let accept = call.headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let aggregated = accept.contains("as=APIGroupDiscoveryList");
    let answer = match parts.as_slice() {
        [] => {
            json!({"paths": paths(&remote::groups(state, registry), configuration(&state.issuer).is_some())})
        }
        ["api" | "apis"] if aggregated => {
            let mut all = aggregate(registry, parts == ["api"]);
            if parts == ["apis"] {
                remote::add(&mut all, state);
            }
            let bytes = crate::value::encode(&all);
            return Ok(respond::tagged(call, bytes.into(), AGGREGATED));
        }
        ["api"] => {
            let core = registry.groups().iter().find(|(group, _)| group.is_empty());
            let versions = core.map(|(_, versions)| versions.as_slice()).unwrap_or_default();
            json!({"kind": "APIVersions", "versions": versions, "serverAddressByClientCIDRs": []})
        }
        ["apis"] => {
            let groups: Vec<Value> = remote::groups(state, registry)
                .iter()
                .filter(|(g, _)| !g.is_empty())
                .map(|(g, v)| group(g, v))
                .collect();
            json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
        }
        ["apis", name] => {
            match remote::groups(state, registry).iter().find(|(g, _)| g == name && !g.is_empty()) {
                Some((g, versions)) => {
                    let mut one = group(g, versions);
                    one["kind"] = "APIGroup".into();
                    one["apiVersion"] = "v1".into();
                    one
                }
                None => return Ok(not_found_page()),
            }
        }
        ["api", version] => match resources(registry, "", version) {
            Some(list) => list,
            None => return Ok(not_found_page()),
        },
        ["apis", group, version] => match resources(registry, group, version) {
            Some(list) => list,
            None => return Ok(not_found_page()),
        },
        [".well-known", "openid-configuration"] => match configuration(&state.issuer) {
            Some(document) => return Ok(respond::public_for_an_hour(&document, "application/json")),
            None => return Ok(not_found_page()),
        },
        ["openid", "v1", "jwks"] => match openid::keys(&state.issuer) {
            Some(keys) => return Ok(respond::public_for_an_hour(&keys, openid::KEYS_MEDIA)),
            None => return Ok(not_found_page()),
        },
        ["openapi", rest @ ..] => return Ok(openapi::answer(state, call, rest)),
        [debug, fairness, what] if [*debug, *fairness] == dump::PATH => {
            let fair = state.gate.fair.as_ref();
            return Ok(match fair.and_then(|fair| fair.dump(what, &call.query, state.clock.now())) {
                Some(text) => respond::text(StatusCode::OK, text),
                None => not_found_page(),
            });
        }
        ["metrics"] => {
            let all = registry.all().map(|r| &*r.storage);
            let stored = all.map(|storage| (storage, state.store.snapshot(storage).len())).collect();
            let mut response = respond::text(StatusCode::OK, state.metrics.text(&stored));
            let format = HeaderValue::from_static(k8s_metrics::CONTENT_TYPE);
            response.headers_mut().insert(header::CONTENT_TYPE, format);
            return Ok(response);
        }
        _ => return Ok(not_found_page()),
    };
    Ok(respond::json_value(StatusCode::OK, &answer))
}

fn paths(groups: &[(String, Vec<String>)], is_issuer: bool) -> Vec<String> {
    let mut all: Vec<String> = [
        "/api",
        "/apis",
        "/apis/",
        "/healthz",
        "/livez",
        "/metrics",
        "/openapi/v2",
        "/openapi/v3",
        "/openapi/v3/",
        "/readyz",
        "/version",
    ]
    .map(str::to_owned)
    .into();
    all.extend(health::paths());
    if is_issuer {
        all.extend([openid::CONFIGURATION.to_owned(), openid::KEYS.to_owned()]);
    }
    let core = groups.iter().filter(|(group, _)| group.is_empty());
    all.extend(core.flat_map(|(_, versions)| versions).map(|version| format!("/api/{version}")));
    for (group, versions) in groups.iter().filter(|(g, _)| !g.is_empty()) {
        all.push(format!("/apis/{group}"));
        all.extend(versions.iter().map(|v| format!("/apis/{group}/{v}")));
    }
    all.sort();
    all
}

fn group(name: &str, versions: &[String]) -> Value {
    let version = |v: &String| json!({"groupVersion": format!("{name}/{v}"), "version": v});
    let all: Vec<Value> = versions.iter().map(version).collect();
    let preferred = all.first().cloned().unwrap_or_default();
    json!({"name": name, "versions": all, "preferredVersion": preferred})
}

/// The subresources that discovery lists: those with verbs.
fn listed(resource: &Resource) -> impl Iterator<Item = &Subresource> {
    resource.subresources.iter()
}

/// The old form: one list for a group and version. `None` when it is not served.
fn resources(registry: &Registry, group: &str, version: &str) -> Option<Value> {
    registry.groups().iter().find(|(g, v)| g == group && v.iter().any(|v| v == version))?;
    let mut all = Vec::new();
    for r in registry.in_version(group, version) {
        let mut one = json!({"name": r.plural, "singularName": r.singular, "namespaced": r.namespaced, "kind": r.kind, "verbs": r.verbs});
        if !r.short_names.is_empty() {
            one["shortNames"] = json!(r.short_names);
        }
        if !r.categories.is_empty() {
            one["categories"] = json!(r.categories);
        }
        one["storageVersionHash"] = hash(&r.storage).into();
        all.push(one);
        for s in listed(r) {
            let mut one = json!({"name": format!("{}/{}", r.plural, s.name), "singularName": "", "namespaced": r.namespaced, "kind": s.kind, "verbs": s.verbs});
            if let Some((group, version)) = &s.group_version {
                one["group"] = group.clone().into();
                one["version"] = version.clone().into();
            }
            all.push(one);
        }
    }
    for (plural, kind, namespaced) in registry.unstored(group, version) {
        let mut one = json!({"name": plural, "singularName": kind.to_lowercase(), "namespaced": namespaced, "kind": kind, "verbs": verbs(plural)});
        if plural == COMPONENT_STATUSES {
            one["shortNames"] = json!(["cs"]);
        }
        all.push(one);
    }
    all.sort_by(|a, b| a["name"].as_str().cmp(&b["name"].as_str()));
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    Some(
        json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": all}),
    )
}

const COMPONENT_STATUSES: &str = "componentstatuses";

/// The verbs of a resource that is not stored.
fn verbs(plural: &str) -> Value {
    if plural == COMPONENT_STATUSES { json!(["get", "list"]) } else { json!(["create"]) }
}

/// Changes with the stored form of a resource.
fn hash(storage: &str) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    use sha2::{Digest, Sha256};
    STANDARD.encode(&Sha256::digest(storage.as_bytes())[..8])
}

/// The new form: everything at once.
fn aggregate(registry: &Registry, core: bool) -> Value {
    let mut items = Vec::new();
    for (group, versions) in registry.groups().iter().filter(|(g, _)| g.is_empty() == core) {
        let all: Vec<Value> = versions
            .iter()
            .map(|version| {
                let mut resources: Vec<Value> =
                    registry.in_version(group, version).map(|r| aggregated_resource(r)).collect();
                for (plural, kind, namespaced) in registry.unstored(group, version) {
                    let short = if plural == COMPONENT_STATUSES { json!(["cs"]) } else { json!([]) };
                    resources.push(json!({"resource": plural, "responseKind": {"group": group, "version": version, "kind": kind},
                        "scope": if namespaced { "Namespaced" } else { "Cluster" }, "singularResource": kind.to_lowercase(), "verbs": verbs(plural), "shortNames": short}));
                }
                json!({"version": version, "freshness": "Current", "resources": resources})
            })
            .collect();
        let metadata = if core {
            json!({"creationTimestamp": null})
        } else {
            json!({"name": group, "creationTimestamp": null})
        };
        items.push(json!({"metadata": metadata, "versions": all}));
    }
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items})
}

fn aggregated_resource(r: &Resource) -> Value {
    let kind =
        |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    let mut one = json!({
        "resource": r.plural, "responseKind": kind(&r.group, &r.version, &r.kind),
        "scope": if r.namespaced { "Namespaced" } else { "Cluster" }, "singularResource": r.singular, "verbs": r.verbs,
    });
    if !r.short_names.is_empty() {
        one["shortNames"] = json!(r.short_names);
    }
    if !r.categories.is_empty() {
        one["categories"] = json!(r.categories);
    }
    let subresources: Vec<Value> = listed(r)
        .map(|s| {
            let (group, version) = s.group_version.clone().unwrap_or((r.group.clone(), r.version.clone()));
            json!({"subresource": s.name, "responseKind": kind(&group, &version, &s.kind), "verbs": s.verbs})
        })
        .collect();
    if !subresources.is_empty() {
        one["subresources"] = subresources.into();
    }
    one
}
