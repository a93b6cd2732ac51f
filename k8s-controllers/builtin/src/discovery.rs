//! Discovery: the resources that an API server serves.
//!
//! Flow: `/api` and `/apis` are read in the aggregated form, which lists all resources. A server older than
//! Kubernetes 1.27 does not know that form and returns its groups; then each group and version is read by
//! itself.
//! Guarantee: a group and version without an answer is reported as [`Discovery::failed`], and no other
//! version takes its place.

use std::collections::BTreeMap;

use http::Method;
use k8s_core::{
    api::apimachinery::pkg::apis::meta::v1::{APIGroupList, APIResource, APIResourceList, APIVersions},
    client::{Client, Error, Resource},
    json,
    status::{ApiStatus, Reason},
};
use serde::{Deserialize, de::DeserializeOwned};

/// Media types of a discovery document, preferred first.
const ACCEPT: &str = concat!(
    "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,",
    "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,",
    "application/json"
);
/// The group of the first years. Its resources are the same objects as those of the groups below.
pub(crate) const EXTENSIONS: &str = "extensions";
/// Groups that took over resources of `extensions`.
pub(crate) const SUCCESSORS: [&str; 5] = ["apps", "autoscaling", "batch", "networking.k8s.io", "policy"];

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

/// Result of a discovery.
#[derive(Debug, Default)]
pub struct Discovery {
    /// Every resource once, in its group's preferred version if that has it. A resource of `extensions` is
    /// left out if another group serves the same kind, and while that is uncertain.
    pub served: Vec<Served>,
    /// Versions of each group that has resources or subresources, preferred first.
    pub versions: BTreeMap<String, Vec<String>>,
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

    /// Adds the resources of a version. Versions of a group come in order of preference.
    fn add(&mut self, version: Version) {
        let Version { group, version, resources } = version;
        if resources.is_ok() {
            self.versions.entry(group.clone()).or_default().push(version.clone());
        }
        match resources {
            // Discovery failed for a more preferred version: do not take the group's resources from this one.
            Ok(_) if self.is_uncertain(&group) => {}
            Ok(rows) => {
                for Row { plural, kind, namespaced, verbs } in rows {
                    let known = |s: &Served| s.resource.group == group && s.resource.plural == plural;
                    if self.served.iter().any(known) {
                        continue;
                    }
                    let (group, version) = (group.clone(), version.clone());
                    let resource = Resource { group, version, kind, plural, namespaced };
                    self.served.push(Served { resource, verbs });
                }
            }
            Err(e) => drop(self.failed.insert(name_of(&group, &version), e)),
        }
    }

    /// Leaves out resources of `extensions` that another group serves or may serve.
    fn prefer_successors(&mut self) {
        let uncertain = self.is_uncertain(EXTENSIONS);
        let kinds = self.served.iter().filter(|s| s.resource.group != EXTENSIONS);
        let elsewhere: Vec<String> = kinds.map(|s| s.resource.kind.clone()).collect();
        let stays = |s: &Served| !uncertain && !elsewhere.contains(&s.resource.kind);
        self.served.retain(|s| s.resource.group != EXTENSIONS || stays(s));
    }
}

/// Discovers all resources.
///
/// # Errors
/// `/api` or `/apis` could not be read.
pub async fn discover(client: &Client) -> Result<Discovery, Error> {
    let (core, groups) = futures::try_join!(versions(client, "/api"), versions(client, "/apis"))?;
    let mut found = Discovery::default();
    core.into_iter().chain(groups).for_each(|version| found.add(version));
    found.prefer_successors();
    Ok(found)
}

/// A group and version, and its resources if they are known.
struct Version {
    group: String,
    version: String,
    resources: Result<Vec<Row>, Error>,
}

/// A resource without its subresources.
struct Row {
    plural: String,
    kind: String,
    namespaced: bool,
    verbs: Vec<String>,
}

/// Returns `apps/v1`, or `v1` of the core group.
fn name_of(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// Returns all versions of the groups below a root path: of each group in order of preference.
async fn versions(client: &Client, root: &'static str) -> Result<Vec<Version>, Error> {
    let bytes = client.get_as(root, ACCEPT).await?;
    if json::plain(&bytes, &["kind"]) == Some("APIGroupDiscoveryList") {
        let all: AggregatedList = decode(root, &bytes)?;
        return Ok(all.items.into_iter().flat_map(AggregatedGroup::versions).collect());
    }
    let names: Vec<(String, String)> = if root == "/api" {
        let core: APIVersions = decode(root, &bytes)?;
        core.versions.into_iter().map(|version| (String::new(), version)).collect()
    } else {
        let groups: APIGroupList = decode(root, &bytes)?;
        let all = groups.groups.into_iter().flat_map(|group| {
            let preferred = group.preferred_version.map(|v| v.version);
            let mut versions: Vec<String> = group.versions.into_iter().map(|v| v.version).collect();
            // A stable sort: the others keep their order.
            versions.sort_by_key(|version| preferred.as_ref() != Some(version));
            versions.into_iter().map(move |version| (group.name.clone(), version))
        });
        all.collect()
    };
    // Concurrently: each response is small, but costs a round trip.
    let all = names.into_iter().map(|(group, version)| async move {
        let path = format!("{root}/{}", name_of(&group, &version));
        let list = client.json::<APIResourceList>(Method::GET, &path, "application/json", "").await;
        Version { group, version, resources: list.map(rows) }
    });
    Ok(futures::future::join_all(all).await)
}

fn decode<T: DeserializeOwned>(root: &str, bytes: &[u8]) -> Result<T, Error> {
    json::from_slice(bytes).map_err(|source| Error::Decode { what: root.to_owned(), source })
}

fn rows(list: APIResourceList) -> Vec<Row> {
    let resources = list.resources.into_iter().filter(|r| !r.name.contains('/'));
    let row = |r: APIResource| Row { plural: r.name, kind: r.kind, namespaced: r.namespaced, verbs: r.verbs };
    resources.map(row).collect()
}

/// `APIGroupDiscoveryList` of `apidiscovery.k8s.io`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct AggregatedList {
    items: Vec<AggregatedGroup>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AggregatedGroup {
    metadata: AggregatedMeta,
    /// Preferred first.
    versions: Vec<AggregatedVersion>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AggregatedMeta {
    /// Empty for the core group.
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AggregatedVersion {
    version: String,
    resources: Vec<AggregatedResource>,
    /// `Stale` if the version's server did not respond to the API server.
    freshness: String,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct AggregatedResource {
    resource: String,
    /// Absent for a resource that has subresources only.
    response_kind: Option<AggregatedKind>,
    scope: String,
    verbs: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AggregatedKind {
    kind: String,
}

impl AggregatedGroup {
    fn versions(self) -> impl Iterator<Item = Version> {
        let group = self.metadata.name;
        self.versions.into_iter().map(move |AggregatedVersion { version, resources, freshness }| {
            let resources = if freshness == "Stale" {
                let name = name_of(&group, &version);
                Err(ApiStatus::of(
                    Reason::ServiceUnavailable,
                    format!("stale GroupVersion discovery: {name}"),
                )
                .into())
            } else {
                Ok(resources.into_iter().filter_map(AggregatedResource::row).collect())
            };
            Version { group: group.clone(), version, resources }
        })
    }
}

impl AggregatedResource {
    fn row(self) -> Option<Row> {
        let namespaced = self.scope == "Namespaced";
        Some(Row { plural: self.resource, kind: self.response_kind?.kind, namespaced, verbs: self.verbs })
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, future::BoxFuture};
    use http::{Request, Response, header};
    use k8s_core::client::{Body, BoxError, Transport, body_from_bytes};
    use serde_json::{Value, json};

    use super::*;

    /// A server with two versions of `apps` and one of `extensions`; one of them does not respond.
    struct Fake {
        failing: &'static str,
        /// It knows the aggregated form.
        aggregated: bool,
    }

    /// Plural names and kinds.
    type Rows = &'static [(&'static str, &'static str)];
    /// The rows of each group and version, preferred version first.
    const VERSIONS: [(&str, &str, Rows); 3] = [
        ("extensions", "v1beta1", &[("deployments", "Deployment"), ("thirds", "Third")]),
        ("apps", "v1", &[("deployments", "Deployment")]),
        ("apps", "v1beta2", &[("deployments", "Deployment")]),
    ];

    impl Fake {
        fn group(&self, group: &str) -> Value {
            let own = VERSIONS.iter().filter(|(g, ..)| *g == group);
            let all: Vec<Value> = own
                .map(|(g, version, rows)| {
                    let resources: Vec<Value> = rows.iter().map(|(plural, kind)| {
                    json!({"resource": plural, "responseKind": {"group": g, "version": version, "kind": kind},
                        "scope": "Namespaced", "singularResource": "", "verbs": ["list"],
                        "subresources": [{"subresource": "status", "verbs": ["get"]}]})
                }).collect();
                    let stale = self.failing == format!("{g}/{version}");
                    let freshness = if stale { "Stale" } else { "Current" };
                    json!({"version": version, "freshness": freshness, "resources": resources})
                })
                .collect();
            json!({"metadata": {"name": group}, "versions": all})
        }

        /// The same, from a server of the first years.
        fn old_group(group: &str) -> Value {
            let version = |v: &str| json!({"groupVersion": format!("{group}/{v}"), "version": v});
            let own = VERSIONS.iter().filter(|(g, ..)| *g == group).map(|(_, v, _)| version(v));
            let mut all: Vec<Value> = own.collect();
            let preferred = all[0].clone();
            all.reverse();
            json!({"name": group, "versions": all, "preferredVersion": preferred})
        }

        fn old_version(&self, path: &str) -> Option<Value> {
            let (group, version) = path.strip_prefix("/apis/")?.split_once('/')?;
            let (.., rows) = VERSIONS.iter().find(|(g, v, _)| (*g, *v) == (group, version))?;
            let row = |name: &str, kind: &str| json!({"name": name, "singularName": "", "namespaced": true, "kind": kind, "verbs": ["list"]});
            let all = rows
                .iter()
                .flat_map(|(plural, kind)| [row(plural, kind), row(&format!("{plural}/status"), kind)]);
            let known = self.failing != format!("{group}/{version}");
            known.then(|| json!({"groupVersion": format!("{group}/{version}"), "resources": all.collect::<Vec<_>>()}))
        }
    }

    impl Transport for Fake {
        fn call(&self, request: Request<Body>) -> BoxFuture<'static, Result<Response<Body>, BoxError>> {
            let accept = request.headers()[header::ACCEPT].to_str().unwrap();
            let aggregated = self.aggregated && accept.contains("as=APIGroupDiscoveryList");
            let answer = match request.uri().path() {
                "/api" if aggregated => Some(json!({"kind": "APIGroupDiscoveryList", "items": []})),
                "/apis" if aggregated => {
                    let items = ["extensions", "apps"].map(|group| self.group(group));
                    Some(json!({"kind": "APIGroupDiscoveryList", "items": items}))
                }
                "/api" => {
                    Some(json!({"kind": "APIVersions", "versions": [], "serverAddressByClientCIDRs": []}))
                }
                "/apis" => {
                    let groups = ["extensions", "apps"].map(Fake::old_group);
                    Some(json!({"kind": "APIGroupList", "groups": groups}))
                }
                path => self.old_version(path),
            };
            let mut response = Response::new(body_from_bytes(answer.clone().unwrap_or_default().to_string()));
            if answer.is_none() {
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
            ("apps/v1", &[], &["apps", "extensions"]),
            ("apps/v1beta2", &[deployments], &["apps", "extensions"]),
            ("extensions/v1beta1", &[deployments], &["extensions"]),
        ];
        for (failing, served, uncertain) in cases {
            for aggregated in [true, false] {
                let client = Client::new(Fake { failing, aggregated });
                let found = discover(&client).await.unwrap();
                let name = |s: &Served| format!("{} {}", s.resource.api_version(), s.resource.plural);
                let mut names: Vec<String> = found.served.iter().map(name).collect();
                names.sort();
                assert_eq!(names, served, "{failing}, aggregated {aggregated}");
                let is_usable = |s: &Served| s.can("list") && !s.can("get") && s.resource.namespaced;
                assert!(found.served.iter().all(is_usable), "{found:?}");
                assert_eq!(found.failure().is_some(), !failing.is_empty());
                for group in ["", "apps", "extensions", "batch"] {
                    assert_eq!(found.is_uncertain(group), uncertain.contains(&group), "{failing} {group:?}");
                }
            }
        }
    }

    #[tokio::test]
    async fn an_unusable_root_is_an_error() {
        struct Broken(&'static str);
        impl Transport for Broken {
            fn call(&self, _: Request<Body>) -> BoxFuture<'static, Result<Response<Body>, BoxError>> {
                let response = Response::new(body_from_bytes(self.0));
                async { Ok(response) }.boxed()
            }
        }
        for body in ["", "<html>", r#"{"kind":"APIGroupDiscoveryList","items":3}"#] {
            let error = discover(&Client::new(Broken(body))).await.unwrap_err();
            assert!(error.to_string().starts_with("decode /api"), "{body}: {error}");
        }
    }
}
