//! Which changes of an object matter.
//!
//! A controller that reads only the spec need not look again at every change of the status:
//! `Controller::<Pod>::new().when(predicates::generation_changed())`. Objects that appear and objects that go always matter to these.

use std::sync::Arc;

use k8s_core::meta::Object;

type Accepts<K> = dyn Fn(Option<&K>, Option<&K>) -> bool + Send + Sync;

/// Says of a change (what an object was, what it is) whether it matters. Cheap to clone.
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
    /// Every change.
    #[must_use]
    pub fn any() -> Self {
        Predicate(None)
    }

    /// As a function says: given what the object was (`None`: it is new) and what it is (`None`: it is gone).
    #[must_use]
    pub fn new(accepts: impl Fn(Option<&K>, Option<&K>) -> bool + Send + Sync + 'static) -> Self {
        Predicate(Some(Arc::new(accepts)))
    }

    /// Either of two.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self::new(move |old, new| self.accepts(old, new) || other.accepts(old, new))
    }

    /// Both of two.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self::new(move |old, new| self.accepts(old, new) && other.accepts(old, new))
    }

    pub(crate) fn accepts(&self, old: Option<&K>, new: Option<&K>) -> bool {
        self.0.as_ref().is_none_or(|accepts| accepts(old, new))
    }
}

/// Changes in which `of` gives something else than before.
#[must_use]
pub fn changed<K: Object, V: PartialEq>(of: impl Fn(&K) -> V + Send + Sync + 'static) -> Predicate<K> {
    Predicate::new(move |old, new| match (old, new) {
        (Some(old), Some(new)) => of(old) != of(new),
        _ => true,
    })
}

/// Changes of what is asked for, and that deletion is asked for: not of labels or the status.
#[must_use]
pub fn generation_changed<K: Object>() -> Predicate<K> {
    changed(|k: &K| (k.metadata().generation, k.metadata().deletion_timestamp.is_some()))
}

/// Changes of labels.
#[must_use]
pub fn labels_changed<K: Object>() -> Predicate<K> {
    changed(|k: &K| k.metadata().labels.clone())
}

/// Changes of annotations.
#[must_use]
pub fn annotations_changed<K: Object>() -> Predicate<K> {
    changed(|k: &K| k.metadata().annotations.clone())
}

/// Objects that a function picks, by what they are, or were when they are gone.
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
