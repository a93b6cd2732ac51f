//! Common metadata of API objects, and helpers for it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde::{Serialize, de::DeserializeOwned};

pub mod node;
pub mod selector;

pub use k8s_quantity::{Quantity, QuantityError};
pub use selector::{FieldSelector, LabelSelector};

/// A typed API object: any top-level type of k8s-openapi, and any type with the same traits.
pub trait Object:
    k8s_openapi::Resource
    + k8s_openapi::Metadata<Ty = ObjectMeta>
    + Serialize
    + DeserializeOwned
    + Clone
    + Send
    + Sync
    + 'static
{
    /// Plural name in lower case, as in URLs.
    const PLURAL: &'static str;
}

impl<K> Object for K
where
    K: k8s_openapi::Resource
        + k8s_openapi::Metadata<Ty = ObjectMeta>
        + Serialize
        + DeserializeOwned
        + Clone
        + Send
        + Sync
        + 'static,
{
    const PLURAL: &'static str = K::URL_PATH_SEGMENT;
}

/// Accessors that treat absent values as empty.
///
/// ```
/// use k8s_core::{api::Pod, meta::ObjectExt};
/// let mut pod = Pod::default();
/// pod.metadata.name = Some("web".into());
/// pod.metadata.namespace = Some("default".into());
/// pod.set_label("app", "web");
/// assert_eq!((pod.name(), pod.label("app"), pod.annotation("note")), ("web", Some("web"), None));
/// assert_eq!(pod.key().to_string(), "default/web");
/// assert!(pod.revision() == 0 && !pod.is_deleting());
/// ```
pub trait ObjectExt {
    /// Returns the name; empty before creation with `generateName`.
    fn name(&self) -> &str;
    /// Returns the namespace; empty for cluster-scoped objects.
    fn namespace(&self) -> &str;
    /// Returns the uid; empty before creation.
    fn uid(&self) -> &str;
    /// Returns the resourceVersion as a number; 0 if it is absent.
    fn revision(&self) -> u64;
    /// Returns the value of a label.
    fn label(&self, key: &str) -> Option<&str>;
    /// Returns the value of an annotation.
    fn annotation(&self, key: &str) -> Option<&str>;
    /// Returns true if deletion was requested.
    fn is_deleting(&self) -> bool;
    /// Returns the controlling owner.
    fn controller_ref(&self) -> Option<&OwnerReference>;
    /// Sets a label, or replaces its value.
    fn set_label(&mut self, key: &str, value: &str);
    /// Sets an annotation, or replaces its value.
    fn set_annotation(&mut self, key: &str, value: &str);
    /// Returns the key: `namespace/name`, or the name alone.
    fn key(&self) -> ObjectKey;
}

impl<K: k8s_openapi::Metadata<Ty = ObjectMeta>> ObjectExt for K {
    fn name(&self) -> &str {
        self.metadata().name.as_deref().unwrap_or_default()
    }
    fn namespace(&self) -> &str {
        self.metadata().namespace.as_deref().unwrap_or_default()
    }
    fn uid(&self) -> &str {
        self.metadata().uid.as_deref().unwrap_or_default()
    }
    fn revision(&self) -> u64 {
        self.metadata().resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0)
    }
    fn label(&self, key: &str) -> Option<&str> {
        self.metadata().labels.as_ref()?.get(key).map(String::as_str)
    }
    fn annotation(&self, key: &str) -> Option<&str> {
        self.metadata().annotations.as_ref()?.get(key).map(String::as_str)
    }
    fn is_deleting(&self) -> bool {
        self.metadata().deletion_timestamp.is_some()
    }
    fn controller_ref(&self) -> Option<&OwnerReference> {
        self.metadata().owner_references.as_ref()?.iter().find(|o| o.controller == Some(true))
    }
    fn set_label(&mut self, key: &str, value: &str) {
        self.metadata_mut().labels.get_or_insert_default().insert(key.to_owned(), value.to_owned());
    }
    fn set_annotation(&mut self, key: &str, value: &str) {
        self.metadata_mut().annotations.get_or_insert_default().insert(key.to_owned(), value.to_owned());
    }
    fn key(&self) -> ObjectKey {
        ObjectKey::new(self.namespace(), self.name())
    }
}

/// Namespace and name of an object. The namespace is empty for cluster-scoped objects.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// Namespace; empty for cluster-scoped objects.
    pub namespace: String,
    /// Name of the object.
    pub name: String,
}

impl ObjectKey {
    /// Creates a key from a namespace (empty for cluster scope) and a name.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        ObjectKey { namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

impl std::fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// Returns a controller reference to `owner` that blocks its foreground deletion.
///
/// ```
/// use k8s_core::{api::{Deployment, ReplicaSet}, meta::{ObjectExt, owner_reference}};
/// let mut owner = Deployment::default();
/// owner.metadata.name = Some("web".into());
/// let mut set = ReplicaSet::default();
/// set.metadata.owner_references = Some(vec![owner_reference(&owner)]);
/// assert_eq!(set.controller_ref().map(|owner| owner.kind.as_str()), Some("Deployment"));
/// ```
#[must_use]
pub fn owner_reference<K: Object>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::API_VERSION.to_owned(),
        kind: K::KIND.to_owned(),
        name: owner.name().to_owned(),
        uid: owner.uid().to_owned(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}
