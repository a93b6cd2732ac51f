//! Resources known only at run time: discovery, and objects of which only the metadata matters.

use http::Method;
use k8s_core::{
    api::apimachinery::pkg::apis::meta::v1::{APIGroupList, APIResourceList, APIVersions, OwnerReference},
    client::{Client, Error, Resource},
};
use serde::{Deserialize, de::DeserializeOwned};

/// A resource that the server serves, and what can be done with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// The resource, in its preferred version.
    pub resource: Resource,
    /// `get`, `list`, `watch`, `delete`, ...
    pub verbs: Vec<String>,
}

impl Served {
    /// Whether the verb is served.
    #[must_use]
    pub fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }
}

async fn get<T: DeserializeOwned>(client: &Client, path: &str) -> Result<T, Error> {
    client.json(Method::GET, path, "application/json", "").await
}

/// Every resource, once: in its group's preferred version where that has it. `extensions` is left out where another group serves the
/// same kind.
///
/// # Errors
/// When a group cannot be asked: then nobody may conclude that what is not in the list is not there.
pub async fn discover(client: &Client) -> Result<Vec<Served>, Error> {
    let core: APIVersions = get(client, "/api").await?;
    let groups: APIGroupList = get(client, "/apis").await?;
    let mut versions: Vec<(String, String)> = core.versions.into_iter().map(|v| (String::new(), v)).collect();
    for group in groups.groups {
        let preferred = group.preferred_version.map(|v| v.version);
        let others = group.versions.into_iter().map(|v| v.version).filter(|v| Some(v) != preferred.as_ref());
        versions.extend(preferred.clone().into_iter().chain(others).map(|v| (group.name.clone(), v)));
    }
    // All groups at once: each answer is small, and over a network each takes a round trip.
    let answers = futures::future::join_all(versions.into_iter().map(|(group, version)| async move {
        let path =
            if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
        let list: APIResourceList = get(client, &path).await?;
        Ok::<_, Error>((group, version, list))
    }));
    let mut all: Vec<Served> = Vec::new();
    for answer in answers.await {
        let (group, version, list) = answer?;
        for row in list.resources.into_iter().filter(|r| !r.name.contains('/')) {
            if all.iter().any(|s| s.resource.group == group && s.resource.plural == row.name) {
                continue;
            }
            let resource = Resource {
                group: group.clone(),
                version: version.clone(),
                kind: row.kind,
                plural: row.name,
                namespaced: row.namespaced,
            };
            all.push(Served { resource, verbs: row.verbs });
        }
    }
    let elsewhere: Vec<String> =
        all.iter().filter(|s| s.resource.group != "extensions").map(|s| s.resource.kind.clone()).collect();
    all.retain(|s| s.resource.group != "extensions" || !elsewhere.contains(&s.resource.kind));
    Ok(all)
}

/// What matters of an object's metadata to those who do not know its type. Everything else is skipped unread.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Meta {
    /// Name.
    pub name: String,
    /// Namespace, or empty.
    pub namespace: String,
    /// Uid.
    pub uid: String,
    /// resourceVersion.
    pub resource_version: String,
    /// Set when deletion was asked for.
    pub deletion_timestamp: Option<String>,
    /// Who still has to do something before it is gone.
    pub finalizers: Vec<String>,
    /// Its owners.
    pub owner_references: Vec<OwnerReference>,
}

/// An object of any type.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Any {
    /// Its metadata.
    #[serde(default)]
    pub metadata: Meta,
}

/// A list of objects of any type.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct AnyList {
    /// The list's metadata: resourceVersion.
    #[serde(default)]
    pub metadata: Meta,
    /// The objects.
    #[serde(default)]
    pub items: Vec<Any>,
}

/// Lists the metadata of all objects of a resource.
///
/// # Errors
/// As the server says.
pub async fn list(client: &Client, resource: &Resource, namespace: &str) -> Result<AnyList, Error> {
    get(client, &resource.path(namespace, "", "")).await
}

/// Reads the metadata of one object; `None` when it is not there.
///
/// # Errors
/// Any failure but 404.
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
