//! Content of a cache: objects in slots, ordered by key, with indexes.
//!
//! An index refers to slot numbers, not keys: an object whose index keys do not change leaves the indexes
//! untouched, and a lookup compares no names.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use slab::Slab;

use crate::meta::ObjectKey;

type Slot = usize;
type EntriesOf<K> = dyn Fn(&K) -> Vec<String> + Send + Sync;

struct Index<K> {
    entries_of: Box<EntriesOf<K>>,
    entries: HashMap<String, BTreeSet<Slot>>,
}

/// Objects and indexes of a cache.
pub(super) struct State<K> {
    order: BTreeMap<ObjectKey, Slot>,
    objects: Slab<Arc<K>>,
    indexes: BTreeMap<&'static str, Index<K>>,
}

impl<K> Default for State<K> {
    fn default() -> Self {
        State { order: BTreeMap::new(), objects: Slab::new(), indexes: BTreeMap::new() }
    }
}

impl<K> State<K> {
    pub(super) fn get(&self, key: &ObjectKey) -> Option<&Arc<K>> {
        self.objects.get(*self.order.get(key)?)
    }

    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &ObjectKey> {
        self.order.keys()
    }

    /// Iterates over all objects in key order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<K>> {
        self.order.values().filter_map(|slot| self.objects.get(*slot))
    }

    /// Iterates over the objects of a namespace in name order.
    pub(super) fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = &Arc<K>> {
        self.order
            .range(ObjectKey::new(namespace, "")..)
            .take_while(move |(key, _)| key.namespace == namespace)
            .filter_map(|(_, slot)| self.objects.get(*slot))
    }

    /// Iterates over the objects with an index key, in no particular order.
    pub(super) fn by_index(&self, index: &str, entry: &str) -> impl Iterator<Item = &Arc<K>> {
        let slots = self.indexes.get(index).and_then(|index| index.entries.get(entry));
        slots.into_iter().flatten().filter_map(|slot| self.objects.get(*slot))
    }

    pub(super) fn add_index(
        &mut self,
        name: &'static str,
        entries_of: impl Fn(&K) -> Vec<String> + Send + Sync + 'static,
    ) {
        if self.indexes.contains_key(name) {
            return;
        }
        let mut index = Index { entries_of: Box::new(entries_of), entries: HashMap::new() };
        for (slot, object) in &self.objects {
            index.add(slot, (index.entries_of)(object));
        }
        self.indexes.insert(name, index);
    }

    /// Computes the object's keys in all indexes. Called before any change: the functions are the user's, and
    /// a panic must leave the state consistent.
    fn entries_of(&self, object: &K) -> Vec<Vec<String>> {
        self.indexes.values().map(|index| (index.entries_of)(object)).collect()
    }

    /// Inserts an object; returns the previous one.
    pub(super) fn insert(&mut self, key: ObjectKey, object: Arc<K>) -> Option<Arc<K>> {
        let is = self.entries_of(&object);
        let Some(slot) = self.order.get(&key).copied() else {
            let slot = self.objects.insert(object);
            for (index, is) in self.indexes.values_mut().zip(is) {
                index.add(slot, is);
            }
            self.order.insert(key, slot);
            return None;
        };
        let was = self.entries_of(self.objects.get(slot)?);
        for (index, (was, is)) in self.indexes.values_mut().zip(was.into_iter().zip(is)) {
            if was != is {
                index.remove(slot, &was);
                index.add(slot, is);
            }
        }
        Some(std::mem::replace(self.objects.get_mut(slot)?, object))
    }

    /// Removes an object and returns it.
    pub(super) fn remove(&mut self, key: &ObjectKey) -> Option<Arc<K>> {
        let slot = *self.order.get(key)?;
        let was = self.entries_of(self.objects.get(slot)?);
        for (index, was) in self.indexes.values_mut().zip(was) {
            index.remove(slot, &was);
        }
        self.order.remove(key);
        self.objects.try_remove(slot)
    }
}

impl<K> Index<K> {
    fn add(&mut self, slot: Slot, entries: Vec<String>) {
        for entry in entries {
            self.entries.entry(entry).or_default().insert(slot);
        }
    }

    fn remove(&mut self, slot: Slot, entries: &[String]) {
        for entry in entries {
            if let Some(slots) = self.entries.get_mut(entry) {
                slots.remove(&slot);
                if slots.is_empty() {
                    self.entries.remove(entry);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Thing = (u8, Vec<u8>);

    proptest! {
        /// After any insertions and removals an index finds exactly the objects with a key.
        #[test]
        fn an_index_finds_what_is_there(
            ops in prop::collection::vec((0..6u8, prop::option::of(prop::collection::vec(0..3u8, 0..3))), 0..60),
            begin in 0..60usize,
        ) {
            let mut state = State::<Thing>::default();
            let mut model = BTreeMap::<u8, Thing>::new();
            for (i, (name, labels)) in ops.into_iter().enumerate() {
                if i == begin {
                    state.add_index("l", |(_, labels)| labels.iter().map(ToString::to_string).collect());
                }
                let key = ObjectKey::new("n", &name.to_string());
                let (was, expected) = match labels {
                    Some(labels) => {
                        let thing = (name, labels);
                        (state.insert(key, Arc::new(thing.clone())), model.insert(name, thing))
                    }
                    None => (state.remove(&key), model.remove(&name)),
                };
                prop_assert_eq!(was.as_deref(), expected.as_ref());
                prop_assert!(state.iter().map(|o| &**o).eq(model.values()));
                for label in 0..3u8 {
                    let mut found: Vec<_> = state.by_index("l", &label.to_string()).map(|o| (**o).clone()).collect();
                    found.sort();
                    let there = model.values().filter(|(_, labels)| i >= begin && labels.contains(&label));
                    prop_assert!(found.iter().eq(there));
                }
            }
        }
    }
}
