//! Filters of changes.
//!
//! A controller that reads only the spec need not reconcile on status changes:
//! `Controller::<Pod>::new().when(predicates::generation_changed())`. Creations and deletions always pass
//! these filters.

use std::sync::Arc;

use k8s_core::meta::Object;

type Accepts<K> = dyn Fn(Option<&K>, Option<&K>) -> bool + Send + Sync;

/// Accepts or rejects a change from an old to a new version. Cheap to clone.
pub struct Predicate<K>(Option<Arc<Accepts<K>>>);

impl<K> Clone for Predicate<K> {
    fn clone(&self) -> Self {
        Predicate(self.0.clone())
    }
}

impl<K> std::fmt::Debug for Predicate<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Predicate")
    }
}

impl<K: Object> Predicate<K> {
    /// Accepts every change.
    #[must_use]
    pub fn any() -> Self {
        Predicate(None)
    }

    /// Creates a predicate from a function of the old (`None`: created) and the new version (`None`:
    /// deleted).
    #[must_use]
    pub fn new(accepts: impl Fn(Option<&K>, Option<&K>) -> bool + Send + Sync + 'static) -> Self {
        Predicate(Some(Arc::new(accepts)))
    }

    /// Accepts changes that either accepts.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self::new(move |old, new| self.accepts(old, new) || other.accepts(old, new))
    }

    /// Accepts changes that both accept.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self::new(move |old, new| self.accepts(old, new) && other.accepts(old, new))
    }

    pub(crate) fn accepts(&self, old: Option<&K>, new: Option<&K>) -> bool {
        self.0.as_ref().is_none_or(|accepts| accepts(old, new))
    }
}

/// Accepts changes for which `of` returns another value than before.
///
/// ```
/// use k8s_controllers::{Controller, predicates};
/// use k8s_core::api::Pod;
/// // A pod is reconciled when it gets a node or when its labels change.
/// let placed = predicates::changed(|pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.clone()));
/// let controller = Controller::<Pod>::new().when(placed.or(predicates::labels_changed()));
/// # let _ = controller;
/// ```
#[must_use]
pub fn changed<K: Object, V: PartialEq>(of: impl Fn(&K) -> V + Send + Sync + 'static) -> Predicate<K> {
    Predicate::new(move |old, new| match (old, new) {
        (Some(old), Some(new)) => of(old) != of(new),
        _ => true,
    })
}

/// Accepts changes of the spec (generation), and deletion requests; not labels or status.
#[must_use]
pub fn generation_changed<K: Object>() -> Predicate<K> {
    changed(|k: &K| (k.metadata().generation, k.metadata().deletion_timestamp.is_some()))
}

/// Accepts changes of labels.
#[must_use]
pub fn labels_changed<K: Object>() -> Predicate<K> {
    changed(|k: &K| k.metadata().labels.clone())
}

/// Accepts changes of annotations.
#[must_use]
pub fn annotations_changed<K: Object>() -> Predicate<K> {
    changed(|k: &K| k.metadata().annotations.clone())
}

/// Accepts objects that a function selects, by their new or (if deleted) last version.
#[must_use]
pub fn only<K: Object>(picks: impl Fn(&K) -> bool + Send + Sync + 'static) -> Predicate<K> {
    Predicate::new(move |old, new| new.or(old).is_some_and(&picks))
}

#[cfg(test)]
mod tests {
    use k8s_core::api::api::core::v1::Pod;

    use super::*;

    #[test]
    fn what_matters() {
        let pod = |generation, label: &str| {
            let mut pod = Pod::default();
            pod.metadata.generation = Some(generation);
            pod.metadata.labels = Some([("l".to_owned(), label.to_owned())].into());
            pod
        };
        let (a, b, c) = (pod(1, "x"), pod(1, "y"), pod(2, "x"));
        let generation = generation_changed::<Pod>();
        assert!(!generation.accepts(Some(&a), Some(&b)) && generation.accepts(Some(&a), Some(&c)));
        assert!(generation.accepts(None, Some(&a)) && generation.accepts(Some(&a), None));
        let either = generation.clone().or(labels_changed());
        assert!(either.accepts(Some(&a), Some(&b)) && !either.accepts(Some(&a), Some(&a)));
        let both = generation.and(only(|p: &Pod| p.metadata.generation == Some(1)));
        assert!(!both.accepts(Some(&a), Some(&c)) && both.accepts(Some(&c), None).eq(&false));
    }
}
