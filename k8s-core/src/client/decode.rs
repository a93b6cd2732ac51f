//! Answers to values: one object that its type cannot hold stops nothing.
//!
//! Whatever a server stores passed through Go's types or through a schema, and may lack what a Rust type demands. So each object is decoded strictly first
//! and, where that fails, as Go would ([`json::lenient`]). What is still something else than its type says is left out of lists and told apart in watches
//! ([`WatchEvent::Unreadable`](super::WatchEvent)); it is counted ([`unreadable_objects`]) and logged once.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{LazyLock, Mutex, PoisonError},
};

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, value::RawValue};

use super::Resource;
use crate::{json, meta::ObjectKey};

/// How many objects are logged. Who makes more unreadable ones than this is found in the log by the first of them.
const TOLD: usize = 1024;

/// An object that its type cannot hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// Namespace and name.
    pub key: ObjectKey,
    /// Uid.
    pub uid: String,
    /// resourceVersion as a number; 0 where it is not one.
    pub revision: u64,
}

#[derive(Default)]
struct Seen {
    counts: BTreeMap<(String, String, String), u64>,
    told: HashSet<String>,
}

static SEEN: LazyLock<Mutex<Seen>> = LazyLock::new(Mutex::default);

/// How often this process left out an object that its type cannot hold, by group, version and kind.
#[must_use]
pub fn unreadable_objects() -> Vec<((String, String, String), u64)> {
    let seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    seen.counts.iter().map(|(kind, count)| (kind.clone(), *count)).collect()
}

impl Unreadable {
    /// Reads what tells the object apart, counts it and logs it, once for each object.
    pub(crate) fn found(resource: &Resource, object: &Value, error: &serde_json::Error) -> Self {
        let text = |name: &str| object["metadata"][name].as_str().unwrap_or_default();
        let this = Unreadable {
            key: ObjectKey::new(text("namespace"), text("name")),
            uid: text("uid").to_owned(),
            revision: text("resourceVersion").parse().unwrap_or(0),
        };
        let Resource { group, version, kind, .. } = resource;
        let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
        *seen.counts.entry((group.clone(), version.clone(), kind.clone())).or_default() += 1;
        let name = format!("{kind}.{version}.{group} {} {}", this.key, this.uid);
        let new = seen.told.len() < TOLD && seen.told.insert(name);
        drop(seen);
        if new {
            tracing::warn!(kind, object = %this.key, %error, "an object is not what its type says and is left out");
        }
        this
    }
}

/// Decodes an object, or says which one could not be.
///
/// # Errors
/// When the text is not JSON.
pub(super) fn object<K: DeserializeOwned>(
    resource: &Resource,
    text: &[u8],
) -> Result<Result<K, Unreadable>, serde_json::Error> {
    let strict = match serde_json::from_slice(text) {
        Ok(object) => return Ok(Ok(object)),
        Err(e) => e,
    };
    let value: Value = serde_json::from_slice(text)?;
    Ok(json::lenient(&value).map_err(|_| Unreadable::found(resource, &value, &strict)))
}

/// One page of a list.
#[derive(Debug)]
pub struct Page<K> {
    /// The objects.
    pub items: Vec<K>,
    /// Objects that the type cannot hold.
    pub unreadable: Vec<Unreadable>,
    /// The list's resourceVersion.
    pub version: String,
    /// Where the next page begins; empty: this was the last.
    pub continue_token: String,
}

#[derive(Deserialize)]
struct Raw<I> {
    #[serde(default)]
    metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ListMeta,
    items: Option<Vec<I>>,
}

/// Decodes a list.
///
/// # Errors
/// When it is no list.
pub(super) fn page<K: DeserializeOwned>(
    resource: &Resource,
    text: &[u8],
) -> Result<Page<K>, serde_json::Error> {
    let (metadata, items, unreadable) = match serde_json::from_slice::<Raw<K>>(text) {
        Ok(raw) => (raw.metadata, raw.items.unwrap_or_default(), Vec::new()),
        Err(_) => {
            let raw: Raw<&RawValue> = serde_json::from_slice(text)?;
            let (mut items, mut unreadable) = (Vec::new(), Vec::new());
            for one in raw.items.unwrap_or_default() {
                match object(resource, one.get().as_bytes())? {
                    Ok(object) => items.push(object),
                    Err(one) => unreadable.push(one),
                }
            }
            (raw.metadata, items, unreadable)
        }
    };
    Ok(Page {
        items,
        unreadable,
        version: metadata.resource_version.unwrap_or_default(),
        continue_token: metadata.continue_.unwrap_or_default(),
    })
}
