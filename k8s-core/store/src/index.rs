//! Which objects carry a label or have a field's value, so that a selective list looks at those alone.
//!
//! Kept for the newest state only. A list of an older state takes the newest state's candidates and adds what changed since (which history
//! holds), so that the index needs no versions of its own.
//!
//! Guarantee: candidates are a superset. Whoever asks checks each against the whole selector, so two terms that hash alike do no harm.

use std::{
    collections::{BTreeSet, HashMap, hash_map::Entry},
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

use super::Stored;

/// Something that an object must have to be selected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Term<'a> {
    /// A label with this key and value.
    Label(&'a str, &'a str),
    /// The selectable field at this place of [`Stored::fields`] has this value.
    Field(usize, &'a str),
}

/// The keys of objects that may match, in order; `None`: any object may.
pub type Candidates = Option<Vec<Arc<str>>>;

/// When the rarest term still has more than one of so many objects, walking all of them in order is as quick.
const SELECTIVE: usize = 8;

/// The keys of the objects that have a term. Most terms of a cluster (a controller's uid, a pod's address) have one.
#[derive(Clone, Debug)]
enum Posting {
    One(Arc<str>),
    Many(BTreeSet<Arc<str>>),
}

impl Posting {
    fn len(&self) -> usize {
        match self {
            Posting::One(_) => 1,
            Posting::Many(keys) => keys.len(),
        }
    }

    fn extend(&self, out: &mut Vec<Arc<str>>) {
        match self {
            Posting::One(key) => out.push(key.clone()),
            Posting::Many(keys) => out.extend(keys.iter().cloned()),
        }
    }
}

/// Every term of a type's objects.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    hasher: RandomState,
    postings: HashMap<u64, Posting>,
}

/// The terms that an object is found by. An empty field says nothing: most objects have it empty.
fn terms(object: &Stored) -> impl Iterator<Item = Term<'_>> {
    let labels = object.labels.iter().map(|(key, value)| Term::Label(key, value));
    let fields = object.fields.iter().enumerate().filter(|(_, value)| !value.is_empty());
    labels.chain(fields.map(|(at, value)| Term::Field(at, value)))
}

impl Index {
    /// Notes that an object's state is now `new` instead of `old`.
    pub(super) fn replace(&mut self, old: Option<&Stored>, new: Option<&Stored>) {
        if let (Some(old), Some(new)) = (old, new)
            && old.labels == new.labels
            && old.fields == new.fields
        {
            return;
        }
        if let Some(object) = old {
            for term in terms(object).filter(|term| !new.is_some_and(|new| terms(new).any(|t| t == *term))) {
                self.remove(self.hasher.hash_one(term), &object.key);
            }
        }
        if let Some(object) = new {
            for term in terms(object).filter(|term| !old.is_some_and(|old| terms(old).any(|t| t == *term))) {
                self.add(self.hasher.hash_one(term), &object.key);
            }
        }
    }

    fn add(&mut self, term: u64, key: &Arc<str>) {
        match self.postings.entry(term) {
            Entry::Vacant(slot) => {
                slot.insert(Posting::One(key.clone()));
            }
            Entry::Occupied(mut slot) => match slot.get_mut() {
                Posting::One(only) if only == key => {}
                Posting::One(only) => {
                    let both = BTreeSet::from([only.clone(), key.clone()]);
                    slot.insert(Posting::Many(both));
                }
                Posting::Many(keys) => {
                    keys.insert(key.clone());
                }
            },
        }
    }

    fn remove(&mut self, term: u64, key: &Arc<str>) {
        let Entry::Occupied(mut slot) = self.postings.entry(term) else { return };
        match slot.get_mut() {
            Posting::One(only) if only == key => {
                slot.remove();
            }
            Posting::One(_) => {}
            Posting::Many(keys) => {
                keys.remove(key);
                if let (1, Some(last)) = (keys.len(), keys.first()) {
                    let last = last.clone();
                    slot.insert(Posting::One(last));
                }
            }
        }
    }

    /// The keys of the objects that may match, in order. Each element of `wanted` lists terms of which a matching object has at least one.
    /// `None` when `wanted` does not narrow `total` objects down enough to be worth it.
    pub(super) fn candidates(&self, wanted: &[Vec<Term<'_>>], total: usize) -> Candidates {
        let postings = |terms: &[Term<'_>]| -> Vec<&Posting> {
            terms.iter().filter_map(|term| self.postings.get(&self.hasher.hash_one(term))).collect()
        };
        let rarest = wanted
            .iter()
            .map(|terms| postings(terms))
            .min_by_key(|found| found.iter().map(|p| p.len()).sum::<usize>())?;
        let size: usize = rarest.iter().map(|p| p.len()).sum();
        if size > total / SELECTIVE {
            return None;
        }
        let mut keys = Vec::with_capacity(size);
        rarest.iter().for_each(|posting| posting.extend(&mut keys));
        if rarest.len() > 1 {
            keys.sort_unstable();
            keys.dedup();
        }
        Some(keys)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stored(key: &str, label: u8, field: u8) -> Stored {
        Stored {
            key: key.into(),
            revision: 1,
            uid: "".into(),
            labels: Box::new([("app".into(), label.to_string().into())]),
            fields: Box::new([field.to_string().into(), "".into()]),
            json: bytes::Bytes::new(),
        }
    }

    proptest! {
        /// The index against a scan of the objects: never a match too few.
        #[test]
        fn finds_what_a_scan_finds(changes in proptest::collection::vec((0u8..40, 0u8..6, 0u8..6, any::<bool>()), 1..120)) {
            let mut index = Index::default();
            let mut objects: std::collections::BTreeMap<String, Stored> = Default::default();
            for (key, label, field, gone) in changes {
                let key = format!("ns/{key:02}");
                let new = (!gone).then(|| stored(&key, label, field));
                index.replace(objects.get(&key), new.as_ref());
                match new {
                    Some(new) => objects.insert(key, new),
                    None => objects.remove(&key),
                };
            }
            for value in 0..6 {
                let value = value.to_string();
                let wanted = [vec![Term::Label("app", &value), Term::Label("app", "1")], vec![Term::Field(0, &value)]];
                let scan: Vec<&str> = objects.values()
                    .filter(|o| ["1", value.as_str()].contains(&&*o.labels[0].1) && *o.fields[0] == *value)
                    .map(|o| &*o.key).collect();
                let found = index.candidates(&wanted, usize::MAX).unwrap();
                prop_assert!(found.is_sorted());
                prop_assert!(scan.iter().all(|key| found.iter().any(|f| **f == **key)));
                prop_assert!(found.iter().all(|key| objects.contains_key(&**key)));
            }
            for object in objects.values() {
                index.replace(Some(object), None);
            }
            prop_assert!(index.postings.is_empty(), "nothing is left of what is gone");
        }
    }
}
