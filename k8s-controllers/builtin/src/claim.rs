//! Controller references: an owner keeps the objects that it controls and selects, releases those that it no
//! longer selects, and adopts matching orphans.

use std::sync::Arc;

use k8s_core::{
    api::apimachinery::pkg::apis::meta::v1::OwnerReference,
    client::Error as ApiError,
    meta::{LabelSelector, Object, ObjectExt, ObjectKey, owner_reference},
};
use serde_json::json;

use k8s_controllers::{Caches, Context, Error};

/// Adoptions and releases after which `owner` controls exactly what it selects. Pure.
#[derive(Debug)]
pub struct Claim<T> {
    /// Controlled and selected.
    pub kept: Vec<Arc<T>>,
    /// Selected orphans, to be adopted.
    pub adopt: Vec<Arc<T>>,
    /// Controlled but no longer selected, to be released.
    pub release: Vec<Arc<T>>,
}

/// Sorts objects into those to keep, to adopt and to release. An owner that is being deleted adopts and
/// releases nothing.
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

/// Returns the keys of the owners that may adopt an orphaned object: those of its namespace whose selector
/// matches. `selector` returns `None` for an owner without one. Empty for an object with a controller.
pub fn adopters<O: Object, T: Object>(
    caches: &Caches,
    object: &T,
    selector: impl Fn(&O) -> Option<LabelSelector>,
) -> Vec<ObjectKey> {
    if object.controller_ref().is_some() {
        return Vec::new();
    }
    let labels = object.metadata().labels.as_ref();
    let selects = |owner: &O| selector(owner).is_some_and(|s| !s.is_everything() && s.matches(labels));
    let owners = caches.of::<O>().in_namespace(object.namespace());
    owners.iter().filter(|owner| selects(owner)).map(|owner| owner.key()).collect()
}

/// Adopts and releases cached objects of the owner's namespace, and returns those that it controls then.
///
/// # Errors
/// An object could not be adopted or released, except if it no longer exists.
pub async fn claim<O: Object, T: Object>(
    cx: &Context,
    owner: &O,
    selector: &LabelSelector,
) -> Result<Vec<Arc<T>>, Error> {
    claim_with(cx, owner, selector, None, |_| true).await
}

/// As [`claim`], limited to adoptions and releases that `may_move` accepts. `finalizer` is added to adopted
/// objects and removed from released ones.
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
        // The cached owner may be stale; only the live one may adopt.
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

/// Writes owner references and finalizers with the cached resourceVersion as precondition: whole lists are
/// written, and another client may have changed them since.
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

/// An object that no longer exists, or was replaced by another of its name (uid conflict), needs no change.
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
