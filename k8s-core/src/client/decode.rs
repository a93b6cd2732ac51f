//! Decodes responses. An object that does not deserialize does not fail a list or watch.
//!
//! Stored objects were validated by Go types or a schema, and may lack fields that a Rust type requires. Each
//! object is therefore decoded strictly first and, if that fails, with Go's rules ([`json::from_slice`]).
//! Objects that still do not deserialize are skipped in lists and reported separately in watches
//! ([`WatchEvent::Unreadable`](super::WatchEvent)); they are counted ([`unreadable_objects`]) and logged
//! once.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{LazyLock, Mutex, PoisonError},
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ListMeta;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, value::RawValue};

use super::Resource;
use crate::{json, meta::ObjectKey};

/// Maximum number of logged objects. The first ones are enough to find their author.
const TOLD: usize = 1024;

/// An object that does not deserialize into its type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// Namespace and name, as far as they can be read.
    pub key: ObjectKey,
    /// Unique id of the object; empty if it cannot be read.
    pub uid: String,
    /// resourceVersion as a number; 0 if it is not one.
    pub revision: u64,
}

#[derive(Default)]
struct Seen {
    counts: BTreeMap<(String, String, String), u64>,
    told: HashSet<String>,
}

static SEEN: LazyLock<Mutex<Seen>> = LazyLock::new(Mutex::default);

/// Returns how many unreadable objects this process has skipped, by group, version and kind.
#[must_use]
pub fn unreadable_objects() -> Vec<((String, String, String), u64)> {
    let seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    seen.counts.iter().map(|(kind, count)| (kind.clone(), *count)).collect()
}

impl Unreadable {
    /// Reads the object's identity, counts it, and logs it once.
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
            tracing::warn!(kind, object = %this.key, %error, "an object does not deserialize into its type and is skipped");
        }
        this
    }
}

/// Decodes an object; returns the identity of one that does not deserialize.
///
/// # Errors
/// The text is not JSON.
pub(super) fn object<K: DeserializeOwned>(
    resource: &Resource,
    text: &[u8],
) -> Result<Result<K, Unreadable>, serde_json::Error> {
    match json::from_slice(text) {
        Ok(object) => Ok(Ok(object)),
        Err(e) => unreadable(resource, text, &e).map(Err),
    }
}

/// Returns the identity of an object that does not deserialize.
fn unreadable(
    resource: &Resource,
    text: &[u8],
    error: &serde_json::Error,
) -> Result<Unreadable, serde_json::Error> {
    Ok(Unreadable::found(resource, &serde_json::from_slice(text)?, error))
}

/// One page of a list.
#[derive(Debug)]
pub struct Page<K> {
    /// Objects of this page, in the server's order.
    pub items: Vec<K>,
    /// Objects that do not deserialize.
    pub unreadable: Vec<Unreadable>,
    /// resourceVersion of the list.
    pub version: String,
    /// Continue token of the next page; empty on the last page.
    pub continue_token: String,
}

#[derive(Deserialize)]
struct Raw<I> {
    #[serde(default)]
    metadata: ListMeta,
    items: Option<Vec<I>>,
}

/// Decodes a list whose objects all deserialize strictly.
// Not inlined, so that one copy per type serves all crates above (`shared`).
#[inline(never)]
pub(crate) fn decode_list<K: DeserializeOwned>(text: &[u8]) -> Result<(ListMeta, Vec<K>), serde_json::Error> {
    let Raw { metadata, items } = json::strictly::<Raw<K>>(text)?;
    Ok((metadata, items.unwrap_or_default()))
}

/// Decodes a list.
///
/// # Errors
/// The text is not a list.
pub(super) fn page<K: DeserializeOwned>(
    resource: &Resource,
    text: &[u8],
) -> Result<Page<K>, serde_json::Error> {
    let (metadata, items, unreadable) = match decode_list(text) {
        Ok((metadata, items)) => (metadata, items, Vec::new()),
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
