//! Objects of any kind from manifests.

use http::Method;
use k8s_core::{
    api::apimachinery::pkg::apis::meta::v1::APIResourceList,
    client::{Client, Error, Patch, PostParams, Resource},
};
use serde_json::Value;

/// Parses the documents of a YAML stream.
pub(crate) fn documents(yaml: &str) -> Result<Vec<Value>, String> {
    let all: Vec<Value> = serde_saphyr::from_multiple(yaml).map_err(|e| format!("not YAML: {e}"))?;
    Ok(all.into_iter().filter(|d| !d.is_null()).collect())
}

/// Finds the resource of a manifest's kind by discovery.
async fn resource_of(client: &Client, manifest: &Value) -> Result<Resource, String> {
    let text = |field: &str| manifest[field].as_str().unwrap_or_default().to_owned();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    let path = if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
    let list: APIResourceList = client
        .json(Method::GET, &path, "application/json", "")
        .await
        .map_err(|e| format!("apiVersion {api_version:?} of a {kind} is not served: {e}"))?;
    let row = list.resources.into_iter().find(|r| r.kind == kind && !r.name.contains('/'));
    let row = row.ok_or_else(|| format!("kind {kind:?} is not served in {api_version:?}"))?;
    Ok(Resource {
        group: group.to_owned(),
        version: version.to_owned(),
        kind,
        plural: row.name,
        namespaced: row.namespaced,
    })
}

/// Applies a manifest by server-side apply.
pub(crate) async fn apply(client: &Client, manifest: &Value) -> Result<Value, String> {
    let resource = resource_of(client, manifest).await?;
    let name = manifest["metadata"]["name"].as_str().unwrap_or_default();
    let namespace = match manifest["metadata"]["namespace"].as_str() {
        _ if !resource.namespaced => "",
        None | Some("") => "default",
        Some(namespace) => namespace,
    };
    let api = client.dynamic(&resource, namespace);
    let params = PostParams { force: true, field_manager: "lab".into(), ..PostParams::default() };
    let applied = api.patch_with(name, "", &Patch::Apply(manifest), &params).await;
    let failed = |e: Error| format!("apply {} {name:?}: {e}", resource.kind);
    let applied = applied.map_err(failed)?;
    serde_json::to_value(applied).map_err(|e| e.to_string())
}
