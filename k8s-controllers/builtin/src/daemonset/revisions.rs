//! History of a DaemonSet's templates, stored as ControllerRevisions.

use std::sync::Arc;

use k8s_core::{
    api::{
        api::{
            apps::v1::{ControllerRevision, DaemonSet},
            core::v1::Pod,
        },
        apimachinery::pkg::{apis::meta::v1::ObjectMeta, runtime::RawExtension},
    },
    client::DeleteOptions,
    json,
    meta::{ObjectExt, owner_reference},
};
use serde_json::json;

use super::HASH;
use crate::hash;
use k8s_controllers::{Context, Error};

/// Ensures that the current template has a ControllerRevision with the highest number; returns its hash.
pub(super) async fn ensure(cx: &Context, set: &DaemonSet) -> Result<String, Error> {
    let template = set.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default();
    let collisions = set.status.as_ref().and_then(|s| s.collision_count);
    let hash = hash::of(&template, collisions);
    let all: Vec<Arc<ControllerRevision>> = cx.owned(set);
    let newest = all.iter().map(|r| r.revision).max().unwrap_or(0);
    if let Some(live) = all.iter().find(|r| r.label(HASH) == Some(&hash)) {
        if live.revision < newest {
            // A rollback: the old revision becomes the newest.
            let next = ControllerRevision { revision: newest + 1, ..(**live).clone() };
            cx.replace(&next).await?;
        }
        return Ok(hash);
    }
    let mut labels = template.metadata.as_ref().and_then(|m| m.labels.clone()).unwrap_or_default();
    labels.insert(HASH.into(), hash.clone());
    // As upstream: the data is a strategic merge patch that replaces the template.
    let mut data = json::to_value(&template).map_err(|e| Error::Other(e.into()))?;
    data["$patch"] = "replace".into();
    let revision = ControllerRevision {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", set.name())),
            namespace: Some(set.namespace().to_owned()),
            labels: Some(labels),
            annotations: set.metadata.annotations.clone(),
            owner_references: Some(vec![owner_reference(set)]),
            ..ObjectMeta::default()
        },
        data: Some(RawExtension(json!({"spec": {"template": data}}))),
        revision: newest + 1,
    };
    match cx.create(&revision).await {
        Err(Error::Api(e)) if e.is_already_exists() => Ok(hash),
        other => other.map(|_| hash),
    }
}

/// Deletes the oldest revisions beyond `revisionHistoryLimit` that no pod uses.
pub(super) async fn clean_up(
    cx: &Context,
    set: &DaemonSet,
    hash: &str,
    pods: &[Arc<Pod>],
) -> Result<(), Error> {
    let limit = set.spec.as_ref().and_then(|s| s.revision_history_limit).unwrap_or(10);
    let used = |r: &ControllerRevision| {
        r.label(HASH) == Some(hash) || pods.iter().any(|p| p.label(HASH) == r.label(HASH))
    };
    let mut old: Vec<Arc<ControllerRevision>> = cx.owned(set);
    old.retain(|r| !used(r));
    old.sort_by_key(|r| r.revision);
    let surplus = old.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
    for revision in old.iter().take(surplus) {
        cx.delete(&**revision, DeleteOptions::default()).await?;
    }
    Ok(())
}
