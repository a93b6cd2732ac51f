//! Which objects belong to an owner: those it controls and selects. Others are released, free ones that it selects are adopted.

use std::sync::Arc;

use k8s_core::{
    api::apimachinery::pkg::apis::meta::v1::OwnerReference,
    client::Error as ApiError,
    meta::{LabelSelector, Object, ObjectExt, owner_reference},
};
use serde_json::json;

use k8s_controllers::{Context, Error};

/// What is to be done so that `owner` has exactly what it selects. Pure.
#[derive(Debug)]
pub struct Claim<T> {
    /// Controlled and selected.
    pub kept: Vec<Arc<T>>,
    /// Free and selected: to adopt.
    pub adopt: Vec<Arc<T>>,
    /// Controlled and no longer selected: to release.
    pub release: Vec<Arc<T>>,
}

/// Sorts objects into those to keep, to adopt and to release. An owner that is being deleted takes and leaves nothing.
pub fn plan<O: Object, T: Object>(
    owner: &O,
    selector: &LabelSelector,
    controlled: Vec<Arc<T>>,
    free: Vec<Arc<T>>,
) -> Claim<T> {
    let selected = |object: &Arc<T>| selector.matches(object.metadata().labels.as_ref());
    let (kept, others): (Vec<_>, Vec<_>) = controlled.into_iter().partition(selected);
    if owner.is_deleting() {
        return Claim { kept, adopt: Vec::new(), release: Vec::new() };
    }
    let release = others.into_iter().filter(|o| !o.is_deleting()).collect();
    let adopt = free.into_iter().filter(|o| !o.is_deleting() && selected(o)).collect();
    Claim { kept, adopt, release }
}

/// Claims what `owner` selects among the cached objects of its namespace, and returns it.
///
/// # Errors
/// When an object cannot be adopted or released for another reason than that it is gone.
pub async fn claim<O: Object, T: Object>(
    cx: &Context,
    owner: &O,
    selector: &LabelSelector,
) -> Result<Vec<Arc<T>>, Error> {
    claim_with(cx, owner, selector, None, |_| true).await
}

/// As [`claim`], for an owner that takes and leaves only what `may_move`, and that keeps a finalizer on what it has: adopted objects get it,
/// released ones lose it.
///
/// # Errors
/// As [`claim`].
pub async fn claim_with<O: Object, T: Object>(
    cx: &Context,
    owner: &O,
    selector: &LabelSelector,
    finalizer: Option<&str>,
    may_move: impl Fn(&T) -> bool,
) -> Result<Vec<Arc<T>>, Error> {
    let mut free = cx.caches().orphans(owner.namespace());
    free.retain(|object| may_move(object));
    let Claim { mut kept, adopt, release }: Claim<T> = plan(owner, selector, cx.owned(owner), free);
    if !adopt.is_empty() {
        // The cached owner may be an old one; only the live one may adopt.
        let live = cx.api::<O>(owner.namespace()).get_opt(owner.name()).await?;
        if live.is_some_and(|live| live.uid() == owner.uid() && !live.is_deleting()) {
            for object in adopt {
                let mut owners = object.metadata().owner_references.clone().unwrap_or_default();
                owners.push(owner_reference(owner));
                let mut finalizers = object.metadata().finalizers.clone().unwrap_or_default();
                finalizers
                    .extend(finalizer.filter(|f| !finalizers.iter().any(|g| g == f)).map(str::to_owned));
                if let Some(object) = gone_is_fine(hand_over(cx, &*object, owners, finalizers).await)? {
                    kept.push(Arc::new(object));
                }
            }
        }
    }
    for object in release.into_iter().filter(|object| may_move(object)) {
        let mut owners = object.metadata().owner_references.clone().unwrap_or_default();
        owners.retain(|o| o.uid != owner.uid());
        let mut finalizers = object.metadata().finalizers.clone().unwrap_or_default();
        finalizers.retain(|f| Some(f.as_str()) != finalizer);
        gone_is_fine(hand_over(cx, &*object, owners, finalizers).await)?;
    }
    Ok(kept)
}

/// Writes owners and finalizers, if nobody has changed the object since it was cached: whole lists are written, and a list may have an entry
/// of someone else's by now.
async fn hand_over<T: Object>(
    cx: &Context,
    object: &T,
    owners: Vec<OwnerReference>,
    finalizers: Vec<String>,
) -> Result<T, Error> {
    let patch = json!({"metadata": {
        "uid": object.uid(),
        "resourceVersion": object.metadata().resource_version,
        "ownerReferences": owners,
        "finalizers": finalizers,
    }});
    cx.merge(object, &patch).await
}

/// An object that is gone, or another object of its name (uid conflict), needs nothing any more.
fn gone_is_fine<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match result {
        Ok(object) => Ok(Some(object)),
        Err(Error::Api(e)) if is_gone(&e) => Ok(None),
        Err(e) => Err(e),
    }
}

fn is_gone(error: &ApiError) -> bool {
    error.is_not_found() || error.is_invalid()
}
