//! What is compiled from stored objects, once per change of them.

use std::sync::{Arc, PoisonError, RwLock};

use k8s_store::Store;

/// A value that is made from the objects of some resources.
#[derive(Debug)]
pub(crate) struct Cached<T, const N: usize> {
    resources: [&'static str; N],
    made: RwLock<Option<([u64; N], Arc<T>)>>,
}

impl<T, const N: usize> Cached<T, N> {
    /// A value made from the objects of these resources, by their names in the store.
    pub(crate) fn new(resources: [&'static str; N]) -> Self {
        Cached { resources, made: RwLock::new(None) }
    }

    /// Returns the value, which is made anew if an object has changed since.
    pub(crate) fn get(&self, store: &Store, make: impl FnOnce() -> T) -> Arc<T> {
        // Read before the objects: a change meanwhile is found by the next call.
        let revisions = self.resources.map(|resource| store.last_change(resource));
        let known = self.made.read().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, made)) = known.as_ref().filter(|(of, _)| *of == revisions) {
            return made.clone();
        }
        drop(known);
        let made = Arc::new(make());
        *self.made.write().unwrap_or_else(PoisonError::into_inner) = Some((revisions, made.clone()));
        made
    }
}
