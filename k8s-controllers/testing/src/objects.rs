//! Objects of any kind from manifests.

use http::Method;
use k8s_core::{
    api::apimachinery::pkg::apis::meta::v1::{APIResource, APIResourceList},
    client::{Api, Client, DynObject, Error, Patch, PostParams, Resource},
};
use serde_json::Value;

/// Parses the documents of a YAML stream.
pub(crate) fn documents(yaml: &str) -> Result<Vec<Value>, String> {
    let all: Vec<Value> = serde_saphyr::from_multiple(yaml).map_err(|e| format!("not YAML: {e}"))?;
    Ok(all.into_iter().filter(|d| !d.is_null()).collect())
}

/// Finds a resource of an API version by discovery.
async fn find(
    client: &Client,
    api_version: &str,
    wanted: impl Fn(&APIResource) -> bool,
    what: &str,
) -> Result<Resource, String> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let path = if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
    let list: APIResourceList = client
        .json(Method::GET, &path, "application/json", "")
        .await
        .map_err(|e| format!("apiVersion {api_version:?} of {what} is not served: {e}"))?;
    let row = list.resources.into_iter().find(|row| wanted(row) && !row.name.contains('/'));
    let row = row.ok_or_else(|| format!("{what} is not served in {api_version:?}"))?;
    Ok(Resource {
        group: group.to_owned(),
        version: version.to_owned(),
        kind: row.kind,
        plural: row.name,
        namespaced: row.namespaced,
    })
}

/// Finds the API of a manifest's kind in the manifest's namespace.
async fn of(client: &Client, manifest: &Value) -> Result<Api<DynObject>, String> {
    let kind = manifest["kind"].as_str().unwrap_or_default();
    let api_version = manifest["apiVersion"].as_str().unwrap_or_default();
    let resource = find(client, api_version, |row| row.kind == kind, &format!("kind {kind:?}")).await?;
    let namespace = match manifest["metadata"]["namespace"].as_str() {
        _ if !resource.namespaced => "",
        None | Some("") => "default",
        Some(namespace) => namespace,
    };
    Ok(client.dynamic(&resource, namespace))
}

/// Finds the API of `PLURAL.GROUP/VERSION` in a namespace; empty: in all.
pub(crate) async fn named(
    client: &Client,
    resource: &str,
    namespace: &str,
) -> Result<Api<DynObject>, String> {
    let parts =
        resource.split_once('/').map(|(name, version)| (name.split_once('.').unwrap_or((name, "")), version));
    let Some(((plural, group), version)) = parts else {
        return Err(format!("{resource:?} is not of the form PLURAL.GROUP/VERSION"));
    };
    let api_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    let found = find(client, &api_version, |row| row.name == plural, &format!("resource {plural:?}")).await?;
    Ok(client.dynamic(&found, if found.namespaced { namespace } else { "" }))
}

/// Creates an object from a manifest.
pub(crate) async fn create(client: &Client, manifest: &Value) -> Result<(), String> {
    let failed = |e: &dyn std::fmt::Display| {
        format!("create {} {:?}: {e}", manifest["kind"], manifest["metadata"]["name"])
    };
    let api = of(client, manifest).await?;
    let object = serde_json::from_value(manifest.clone()).map_err(|e| failed(&e))?;
    api.create(&object).await.map(drop).map_err(|e| failed(&e))
}

/// Applies a manifest by server-side apply.
pub(crate) async fn apply(client: &Client, manifest: &Value) -> Result<Value, String> {
    let api = of(client, manifest).await?;
    let name = manifest["metadata"]["name"].as_str().unwrap_or_default();
    let params = PostParams { force: true, field_manager: "lab".into(), ..PostParams::default() };
    let applied = api.patch_with(name, "", &Patch::Apply(manifest), &params).await;
    let failed = |e: Error| format!("apply {} {name:?}: {e}", manifest["kind"]);
    let applied = applied.map_err(failed)?;
    serde_json::to_value(applied).map_err(|e| e.to_string())
}
