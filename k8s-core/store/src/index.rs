//! Index of labels and field values, so that a selective list examines only matching objects.
//!
//! It covers the newest state only. A list of an older state takes the candidates of the newest state and
//! adds the objects of later events from history, so the index needs no versions.
//!
//! Guarantee: candidates are a superset. Callers check each against the whole selector, so hash collisions
//! are harmless.

use std::{
    collections::{BTreeSet, HashMap, hash_map::Entry},
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

use super::Stored;

/// A label or field value that a selected object must have.
///
/// ```
/// use k8s_store::{Expect, Meta, Store, Term};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = Store::memory();
/// let labels = |app: &str| Meta { labels: [("app".into(), app.into())].into(), ..Meta::default() };
/// for i in 0..100 {
///     let app = if i == 7 { "web" } else { "other" };
///     store.put("pods", &format!("default/p{i}"), Expect::Absent, labels(app), |_| "{}".into()).await?;
/// }
/// let (_, candidates) = store.select("pods", None, &[vec![Term::Label("app", "web")]])?;
/// assert_eq!(candidates, Some(vec!["default/p7".into()]));
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Term<'a> {
    /// A label key and value.
    Label(&'a str, &'a str),
    /// Index in [`Stored::fields`] and value of a selectable field.
    Field(usize, &'a str),
}

/// Sorted keys of objects that may match; `None`: any object may.
pub type Candidates = Option<Vec<Arc<str>>>;

/// Fraction of all objects: if the rarest term matches more than one in so many, a scan of all is as fast.
const SELECTIVE: usize = 8;

/// Keys of the objects with a term. Most terms (a controller's uid, a pod's address) have one.
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

/// Index of a type's objects by term.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    hasher: RandomState,
    postings: HashMap<u64, Posting>,
}

/// Returns the terms of an object. Empty fields are not indexed: most objects have them.
fn terms(object: &Stored) -> impl Iterator<Item = Term<'_>> {
    let labels = object.labels.iter().map(|(key, value)| Term::Label(key, value));
    let fields = object.fields.iter().enumerate().filter(|(_, value)| !value.is_empty());
    labels.chain(fields.map(|(at, value)| Term::Field(at, value)))
}

impl Index {
    /// Updates the index for a change from `old` to `new`.
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

    /// Returns the sorted keys of objects that may match. Each element of `wanted` is a list of alternative
    /// terms. `None` if `wanted` is not selective enough among `total` objects.
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
        /// Candidates include all matches of a full scan.
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
