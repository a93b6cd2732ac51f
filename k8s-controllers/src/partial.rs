//! Metadata-only objects.

use std::{fmt, marker::PhantomData};

use k8s_core::{
    api::{Metadata, Resource, apimachinery::pkg::apis::meta::v1::ObjectMeta},
    meta::Object,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, ser::SerializeStruct};

/// A `K` reduced to its metadata: watched and cached like `K` with a fraction of the memory.
///
/// `Controller::<Node>::new().watches::<MetadataOnly<Pod>>(...)` keeps name, labels and owners of every pod,
/// and nothing else. For reading only: writing it back would drop all other fields.
pub struct MetadataOnly<K> {
    /// Object metadata.
    pub metadata: ObjectMeta,
    kind: PhantomData<fn() -> K>,
}

impl<K> Clone for MetadataOnly<K> {
    fn clone(&self) -> Self {
        MetadataOnly { metadata: self.metadata.clone(), kind: PhantomData }
    }
}

impl<K> fmt::Debug for MetadataOnly<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MetadataOnly").field("metadata", &self.metadata).finish()
    }
}

impl<K: Object> Resource for MetadataOnly<K> {
    const API_VERSION: &'static str = K::API_VERSION;
    const GROUP: &'static str = K::GROUP;
    const KIND: &'static str = K::KIND;
    const VERSION: &'static str = K::VERSION;
    const URL_PATH_SEGMENT: &'static str = K::URL_PATH_SEGMENT;
    type Scope = K::Scope;
}

impl<K: Object> Metadata for MetadataOnly<K> {
    type Ty = ObjectMeta;
    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn metadata_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl<K: Object> Serialize for MetadataOnly<K> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_struct("MetadataOnly", 3)?;
        object.serialize_field("apiVersion", K::API_VERSION)?;
        object.serialize_field("kind", K::KIND)?;
        object.serialize_field("metadata", &self.metadata)?;
        object.end()
    }
}

impl<'de, K> Deserialize<'de> for MetadataOnly<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Part {
            #[serde(default)]
            metadata: ObjectMeta,
        }
        Ok(MetadataOnly { metadata: Part::deserialize(deserializer)?.metadata, kind: PhantomData })
    }
}
