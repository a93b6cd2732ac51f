//! Stored objects as JSON, for the store.

use bytes::Bytes;
use k8s_store::{Format, Meta};

use serde_json::Value;

use crate::{
    resources::{Registry, meta_of},
    value::Unversioned,
};

/// The format of the API server's objects: JSON with `metadata.resourceVersion`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Json;

impl Format for Json {
    fn describe(&self, resource: &str, bytes: &[u8]) -> Meta {
        describe(resource, bytes)
    }

    fn stamp(&self, bytes: Bytes, revision: u64) -> Bytes {
        Unversioned::of(&bytes).map_or(bytes, |object| object.at(revision))
    }
}

/// The labels, selectable fields and uid of a stored object; for [`Store::open`](k8s_store::Store::open).
#[must_use]
pub fn describe(resource: &str, json: &[u8]) -> Meta {
    static BUILT_IN: std::sync::LazyLock<Registry> = std::sync::LazyLock::new(Registry::whole);
    let object: Value = serde_json::from_slice(json).unwrap_or_default();
    let fields = BUILT_IN.all().find(|r| *r.storage == *resource).map(|r| r.fields.clone());
    meta_of(&object, fields.as_deref().unwrap_or(&[]))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_object_without_its_revision_gets_it_on_arrival() {
        let object = json!({"kind": "K", "metadata": {"name": "a", "resourceVersion": "7"}});
        let kept = Unversioned::encode(&object).at(None);
        assert!(!String::from_utf8_lossy(&kept).contains('7'));
        assert_eq!(Json.stamp(kept, 42), Unversioned::encode(&object).at(42));
    }
}
