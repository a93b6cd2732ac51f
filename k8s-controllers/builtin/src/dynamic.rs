//! Resources known at run time only: discovery, and metadata of objects of any type.

use std::collections::BTreeMap;

use http::Method;
use k8s_core::{
    api::apimachinery::pkg::apis::meta::v1::{APIGroupList, APIResourceList, APIVersions, OwnerReference},
    client::{Client, Error, Resource},
};
use serde::{Deserialize, de::DeserializeOwned};

/// A served resource and its verbs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// The resource, in its preferred version.
    pub resource: Resource,
    /// `get`, `list`, `watch`, `delete`, ...
    pub verbs: Vec<String>,
}

impl Served {
    /// Returns true if the verb is supported.
    #[must_use]
    pub fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }
}

async fn get<T: DeserializeOwned>(client: &Client, path: &str) -> Result<T, Error> {
    client.json(Method::GET, path, "application/json", "").await
}

/// Result of a discovery.
#[derive(Debug, Default)]
pub struct Discovery {
    /// Every resource once, in its group's preferred version if that has it. A resource of `extensions` is
    /// left out if another group serves the same kind.
    pub served: Vec<Served>,
    /// Groups and versions (`metrics.k8s.io/v1beta1`) whose discovery failed, mostly of an aggregated API
    /// server that does not respond. Their resources are unknown, not absent.
    pub failed: BTreeMap<String, Error>,
}

impl Discovery {
    /// Describes the failed groups; `None` if discovery is complete.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        if self.failed.is_empty() {
            return None;
        }
        let all: Vec<String> = self.failed.iter().map(|(name, e)| format!("{name}: {e}")).collect();
        Some(format!(
            "Discovery failed for some groups, {} failing: unable to retrieve the complete list of server APIs: {}",
            self.failed.len(),
            all.join(", ")
        ))
    }

    /// Returns true if discovery failed for a version of this group.
    #[must_use]
    pub fn is_uncertain(&self, group: &str) -> bool {
        self.failed.keys().any(|name| name.rsplit_once('/').map_or("", |(g, _)| g) == group)
    }
}

/// Discovers all resources.
///
/// # Errors
/// The list of groups could not be read.
pub async fn discover(client: &Client) -> Result<Discovery, Error> {
    let core: APIVersions = get(client, "/api").await?;
    let groups: APIGroupList = get(client, "/apis").await?;
    let mut versions: Vec<(String, String)> = core.versions.into_iter().map(|v| (String::new(), v)).collect();
    for group in groups.groups {
        let preferred = group.preferred_version.map(|v| v.version);
        let others = group.versions.into_iter().map(|v| v.version).filter(|v| Some(v) != preferred.as_ref());
        versions.extend(preferred.clone().into_iter().chain(others).map(|v| (group.name.clone(), v)));
    }
    // All groups concurrently: each response is small, but costs a round trip.
    let answers = futures::future::join_all(versions.into_iter().map(|(group, version)| async move {
        let name = if group.is_empty() { version.clone() } else { format!("{group}/{version}") };
        let prefix = if group.is_empty() { "/api/" } else { "/apis/" };
        let list = get::<APIResourceList>(client, &(prefix.to_owned() + &name)).await;
        (group, version, name, list)
    }));
    let mut found = Discovery::default();
    for (group, version, name, list) in answers.await {
        match list {
            // Discovery failed for a more preferred version: do not take the group's resources from this one.
            Ok(_) if found.is_uncertain(&group) => {}
            Ok(list) => found.add(&group, &version, list),
            Err(e) => drop(found.failed.insert(name, e)),
        }
    }
    let kinds = found.served.iter().filter(|s| s.resource.group != "extensions");
    let elsewhere: Vec<String> = kinds.map(|s| s.resource.kind.clone()).collect();
    found.served.retain(|s| s.resource.group != "extensions" || !elsewhere.contains(&s.resource.kind));
    Ok(found)
}

impl Discovery {
    fn add(&mut self, group: &str, version: &str, list: APIResourceList) {
        for row in list.resources.into_iter().filter(|r| !r.name.contains('/')) {
            let known = |s: &Served| s.resource.group == group && s.resource.plural == row.name;
            if self.served.iter().any(known) {
                continue;
            }
            let resource = Resource {
                group: group.to_owned(),
                version: version.to_owned(),
                kind: row.kind,
                plural: row.name,
                namespaced: row.namespaced,
            };
            self.served.push(Served { resource, verbs: row.verbs });
        }
    }
}

/// Object metadata for type-independent code. All other fields are skipped unparsed.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Meta {
    /// Object name.
    pub name: String,
    /// Namespace; empty for cluster-scoped objects.
    pub namespace: String,
    /// Unique id.
    pub uid: String,
    /// Current resourceVersion.
    pub resource_version: String,
    /// Set once deletion was requested.
    pub deletion_timestamp: Option<String>,
    /// Finalizers that block the removal.
    pub finalizers: Vec<String>,
    /// Owner references.
    pub owner_references: Vec<OwnerReference>,
}

/// An object of any type, metadata only.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Any {
    /// Object metadata.
    #[serde(default)]
    pub metadata: Meta,
}

/// A list of objects of any type.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct AnyList {
    /// List metadata with the resourceVersion.
    #[serde(default)]
    pub metadata: Meta,
    /// Listed objects.
    #[serde(default)]
    pub items: Vec<Any>,
}

/// Lists the metadata of a resource's objects.
///
/// # Errors
/// The API server's error.
pub async fn list(client: &Client, resource: &Resource, namespace: &str) -> Result<AnyList, Error> {
    get(client, &resource.path(namespace, "", "")).await
}

/// Reads the metadata of an object; `None` if it does not exist.
///
/// # Errors
/// Any error but 404.
pub async fn get_meta(
    client: &Client,
    resource: &Resource,
    namespace: &str,
    name: &str,
) -> Result<Option<Meta>, Error> {
    match get::<Any>(client, &resource.path(namespace, name, "")).await {
        Ok(object) => Ok(Some(object.metadata)),
        Err(e) if e.is_not_found() => Ok(None),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, future::BoxFuture};
    use http::{Request, Response};
    use k8s_core::client::{Body, BoxError, Transport, body_from_bytes};
    use serde_json::json;

    use super::*;

    /// A server with two versions of `apps`, one of which may fail.
    struct Fake(&'static str);

    impl Transport for Fake {
        fn call(&self, request: Request<Body>) -> BoxFuture<'static, Result<Response<Body>, BoxError>> {
            let path = request.uri().path().to_owned();
            let resource = json!({"name": "deployments", "singularName": "", "namespaced": true, "kind": "Deployment", "verbs": ["list"]});
            let version = |v: &str| json!({"groupVersion": format!("apps/{v}"), "version": v});
            let answer = match path.as_str() {
                "/api" => json!({"versions": [], "serverAddressByClientCIDRs": []}),
                "/apis" => {
                    json!({"groups": [{"name": "apps", "versions": [version("v1beta2"), version("v1")], "preferredVersion": version("v1")}]})
                }
                "/apis/apps/v1" | "/apis/apps/v1beta2" => {
                    json!({"groupVersion": &path["/apis/".len()..], "resources": [resource]})
                }
                _ => json!({}),
            };
            let mut response = Response::new(body_from_bytes(answer.to_string()));
            if path == self.0 {
                *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
            }
            async { Ok(response) }.boxed()
        }
    }

    async fn versions(failing: &'static str) -> (Vec<String>, bool) {
        let found = discover(&Client::new(Fake(failing))).await.unwrap();
        let versions = found.served.iter().map(|s| s.resource.version.clone()).collect();
        (versions, found.is_uncertain("apps"))
    }

    #[tokio::test]
    async fn a_version_that_fails_is_not_replaced_by_another() {
        assert_eq!(versions("").await, (vec!["v1".to_owned()], false));
        assert_eq!(versions("/apis/apps/v1").await, (vec![], true));
        assert_eq!(versions("/apis/apps/v1beta2").await, (vec!["v1".to_owned()], true));
    }
}
