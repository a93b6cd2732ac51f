//! Metadata of objects of any type, for code that learns resources at run time ([`crate::discovery`]).

use http::Method;
use k8s_core::{
    api::apimachinery::pkg::apis::meta::v1::OwnerReference,
    client::{Client, Error, Resource},
};
use serde::{Deserialize, de::DeserializeOwned};

/// Reads a path as JSON.
///
/// # Errors
/// The API server's error.
pub(crate) async fn get<T: DeserializeOwned>(client: &Client, path: &str) -> Result<T, Error> {
    client.json(Method::GET, path, "application/json", "").await
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
