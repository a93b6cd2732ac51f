//! Resources known at run time only: discovery, and metadata of objects of any type.

use std::collections::BTreeMap;

use http::Method;
use k8s_core::{
    api::apimachinery::pkg::apis::meta::v1::{APIGroupList, APIResourceList, APIVersions, OwnerReference},
    client::{Client, Error, Resource},
};
use serde::{Deserialize, de::DeserializeOwned};

/// The group of the first years. Its resources are the same objects as those of the groups below.
const EXTENSIONS: &str = "extensions";
/// Groups that took over resources of `extensions`.
const SUCCESSORS: [&str; 5] = ["apps", "autoscaling", "batch", "networking.k8s.io", "policy"];

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
    /// left out if another group serves the same kind, and while that is uncertain.
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

    /// Returns true if discovery failed for a version of this group. `extensions` is uncertain, too, while
    /// one of its successors is: `apps/v1` without an answer does not make `extensions/v1beta1` the version
    /// of Deployments.
    #[must_use]
    pub fn is_uncertain(&self, group: &str) -> bool {
        let mut failed = self.failed.keys().map(|name| name.rsplit_once('/').map_or("", |(g, _)| g));
        failed.any(|g| g == group || (group == EXTENSIONS && SUCCESSORS.contains(&g)))
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
    found.prefer_successors();
    Ok(found)
}

impl Discovery {
    /// Leaves out resources of `extensions` that another group serves or may serve.
    fn prefer_successors(&mut self) {
        let uncertain = self.is_uncertain(EXTENSIONS);
        let kinds = self.served.iter().filter(|s| s.resource.group != EXTENSIONS);
        let elsewhere: Vec<String> = kinds.map(|s| s.resource.kind.clone()).collect();
        let stays = |s: &Served| !uncertain && !elsewhere.contains(&s.resource.kind);
        self.served.retain(|s| s.resource.group != EXTENSIONS || stays(s));
    }

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

    /// A server with two versions of `apps` and one of `extensions`; discovery of one of them fails.
    struct Fake(&'static str);

    impl Transport for Fake {
        fn call(&self, request: Request<Body>) -> BoxFuture<'static, Result<Response<Body>, BoxError>> {
            let path = request.uri().path().to_owned();
            let row = |plural: &str, kind: &str| json!({"name": plural, "singularName": "", "namespaced": true, "kind": kind, "verbs": ["list"]});
            let version = |g: &str, v: &str| json!({"groupVersion": format!("{g}/{v}"), "version": v});
            let answer = match path.as_str() {
                "/api" => json!({"versions": [], "serverAddressByClientCIDRs": []}),
                "/apis" => {
                    let apps = [version("apps", "v1beta2"), version("apps", "v1")];
                    let old = version("extensions", "v1beta1");
                    json!({"groups": [
                        {"name": "extensions", "versions": [old], "preferredVersion": old},
                        {"name": "apps", "versions": apps, "preferredVersion": apps[1]},
                    ]})
                }
                "/apis/apps/v1" | "/apis/apps/v1beta2" | "/apis/extensions/v1beta1" => {
                    let mut rows = vec![row("deployments", "Deployment")];
                    if path.contains("extensions") {
                        rows.push(row("thirds", "Third"));
                    }
                    json!({"groupVersion": &path["/apis/".len()..], "resources": rows})
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

    #[tokio::test]
    async fn nothing_takes_the_place_of_a_version_that_fails() {
        let (deployments, thirds) = ("apps/v1 deployments", "extensions/v1beta1 thirds");
        let cases: [(&str, &[&str], &[&str]); 4] = [
            ("", &[deployments, thirds], &[]),
            ("/apis/apps/v1", &[], &["apps", "extensions"]),
            ("/apis/apps/v1beta2", &[deployments], &["apps", "extensions"]),
            ("/apis/extensions/v1beta1", &[deployments], &["extensions"]),
        ];
        for (failing, served, uncertain) in cases {
            let found = discover(&Client::new(Fake(failing))).await.unwrap();
            let name = |s: &Served| format!("{} {}", s.resource.api_version(), s.resource.plural);
            let mut names: Vec<String> = found.served.iter().map(name).collect();
            names.sort();
            assert_eq!(names, served, "{failing}");
            for group in ["", "apps", "extensions", "batch"] {
                assert_eq!(found.is_uncertain(group), uncertain.contains(&group), "{failing} {group:?}");
            }
        }
    }
}
