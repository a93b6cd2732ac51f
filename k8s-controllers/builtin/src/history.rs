//! Histories of pod templates, stored as ControllerRevisions.
//!
//! A revision's data is a strategic merge patch that replaces the template, as upstream's. A revision that
//! holds an equal template is used, whoever made it.

use std::sync::Arc;

use k8s_controllers::{Context, Error};
use k8s_core::{
    api::{
        api::{apps::v1::ControllerRevision, core::v1::PodTemplateSpec},
        apimachinery::pkg::{apis::meta::v1::ObjectMeta, runtime::RawExtension},
    },
    client::DeleteOptions,
    json,
    meta::{LabelSelector, Object, ObjectExt, owner_reference},
};
use serde_json::json;

use crate::{claim, hash};

/// Most names that are tried for one template.
const MOST_COLLISIONS: i32 = 100;

/// The revisions of an owner, oldest first.
#[derive(Debug)]
pub(crate) struct History {
    /// The revision of the current template.
    pub(crate) update: Arc<ControllerRevision>,
    /// All revisions with `update`, by number.
    pub(crate) all: Vec<Arc<ControllerRevision>>,
    /// Number of names that were taken by revisions of other templates.
    pub(crate) collisions: Option<i32>,
}

/// Returns the template that a revision holds; `None` if it holds none.
pub(crate) fn template(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut data = revision.data.as_ref()?.0.pointer("/spec/template")?.clone();
    data.as_object_mut()?.remove("$patch");
    json::from_value(&data).ok()
}

/// Adopts the revisions that `selector` selects, and ensures that the current template has one with the
/// highest number. `label` is the label of revisions that has the template's hash.
///
/// # Errors
/// A revision cannot be written.
pub(crate) async fn ensure<K: Object>(
    cx: &Context,
    owner: &K,
    selector: &LabelSelector,
    current: &PodTemplateSpec,
    collisions: Option<i32>,
    label: &str,
) -> Result<History, Error> {
    let mut all: Vec<Arc<ControllerRevision>> = claim::claim(cx, owner, selector).await?;
    all.sort_by(|a, b| (a.revision, a.name()).cmp(&(b.revision, b.name())));
    let newest = all.last().map_or(0, |last| last.revision);
    if let Some(place) = all.iter().rposition(|one| template(one).as_ref() == Some(current)) {
        let mut update = all[place].clone();
        if update.revision < newest {
            // A rollback: the old revision becomes the newest.
            update = Arc::new(
                cx.replace(&ControllerRevision { revision: newest + 1, ..(*update).clone() }).await?,
            );
            all.remove(place);
            all.push(update.clone());
        }
        return Ok(History { update, all, collisions });
    }
    let mut collisions = collisions;
    loop {
        let made = build(owner, current, collisions, label, newest + 1)?;
        match cx.create(&made).await {
            Ok(made) => {
                let update = Arc::new(made);
                all.push(update.clone());
                return Ok(History { update, all, collisions });
            }
            Err(Error::Api(e)) if e.is_already_exists() => {
                let live = cx.api::<ControllerRevision>(owner.namespace()).get_opt(made.name()).await?;
                let Some(live) = live else { return Err(Error::Api(e)) };
                if template(&live).as_ref() == Some(current) && is_mine(&live, owner) {
                    // Ours, made before the cache saw it.
                    let update = Arc::new(live);
                    all.push(update.clone());
                    return Ok(History { update, all, collisions });
                }
                let next = collisions.unwrap_or(0) + 1;
                if next > MOST_COLLISIONS {
                    return Err(Error::Api(e));
                }
                collisions = Some(next);
            }
            Err(e) => return Err(e),
        }
    }
}

fn is_mine(revision: &ControllerRevision, owner: &impl ObjectExt) -> bool {
    revision.controller_ref().is_some_and(|reference| reference.uid == owner.uid())
}

fn build<K: Object>(
    owner: &K,
    template: &PodTemplateSpec,
    collisions: Option<i32>,
    label: &str,
    revision: i64,
) -> Result<ControllerRevision, Error> {
    // No collision and none counted are the same, so that a template has one name.
    let hash = hash::of(template, collisions.filter(|count| *count != 0));
    let mut labels = template.metadata.as_ref().and_then(|m| m.labels.clone()).unwrap_or_default();
    labels.insert(label.to_owned(), hash.clone());
    let mut data = json::to_value(template).map_err(|e| Error::Other(e.into()))?;
    data["$patch"] = "replace".into();
    // A name has at most 253 bytes, of which the hash has some.
    let prefix: String = owner.name().chars().take(223).collect();
    Ok(ControllerRevision {
        metadata: ObjectMeta {
            name: Some(format!("{prefix}-{hash}")),
            namespace: Some(owner.namespace().to_owned()),
            labels: Some(labels),
            annotations: owner.metadata().annotations.clone(),
            owner_references: Some(vec![owner_reference(owner)]),
            ..ObjectMeta::default()
        },
        data: Some(RawExtension(json!({"spec": {"template": data}}))),
        revision,
    })
}

/// Deletes the oldest revisions beyond `limit` that `is_used` does not name.
///
/// # Errors
/// A revision cannot be deleted.
pub(crate) async fn clean_up(
    cx: &Context,
    all: &[Arc<ControllerRevision>],
    limit: i32,
    is_used: impl Fn(&ControllerRevision) -> bool,
) -> Result<(), Error> {
    let old: Vec<&Arc<ControllerRevision>> = all.iter().filter(|r| !is_used(r)).collect();
    let surplus = old.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
    for revision in old.into_iter().take(surplus) {
        cx.delete(&**revision, DeleteOptions::default()).await?;
    }
    Ok(())
}
