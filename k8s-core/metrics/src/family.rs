//! A metric for each set of label values.

use std::{
    collections::HashMap,
    fmt,
    hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState},
    sync::{Arc, PoisonError, RwLock},
};

/// Default limit of label sets of a family.
const LABEL_SETS: usize = 2000;

/// Label value that stands for all sets above the limit.
const OTHER: &str = "other";

/// A hasher of numbers that are hashes already.
#[derive(Default)]
struct Already(u64);

impl Hasher for Already {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        // Only `u64` keys are hashed, by `write_u64`; others still get a hash.
        self.0 = bytes.iter().fold(self.0, |hash, byte| hash.rotate_left(8) ^ u64::from(*byte));
    }
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// One label set and its metric.
type Cell<const N: usize, M> = ([Box<str>; N], M);

struct Cells<const N: usize, M> {
    /// By the hash of the values, so that borrowed values can be looked up.
    by_hash: HashMap<u64, Vec<Cell<N, M>>, BuildHasherDefault<Already>>,
    count: usize,
    limit: usize,
}

impl<const N: usize, M: Clone> Cells<N, M> {
    fn find(&self, hash: u64, values: &[&str; N]) -> Option<&M> {
        let cells = self.by_hash.get(&hash)?;
        cells.iter().find(|(have, _)| have.iter().zip(values).all(|(a, b)| **a == **b)).map(|(_, m)| m)
    }

    fn find_or_insert(&mut self, hash: u64, values: &[&str; N], make: &Make<N, M>) -> M {
        if let Some(found) = self.find(hash, values) {
            return found.clone();
        }
        let made = make(values);
        let cell = (values.map(Box::from), made.clone());
        self.by_hash.entry(hash).or_default().push(cell);
        self.count += 1;
        made
    }
}

/// Makes the metric of a label set.
type Make<const N: usize, M> = dyn Fn(&[&str; N]) -> M + Send + Sync;

/// Metrics of one name, one for each set of `N` label values. A clone is the same family.
///
/// # Examples
/// ```
/// use k8s_metrics::{Counter, Family};
/// let verbs: Family<1, Counter> = Family::new(["verb"]).limit(2);
/// for verb in ["get", "list", "get", "x", "y"] {
///     verbs.get_or_create(&[verb]).inc();
/// }
/// assert_eq!(verbs.get(&["get"]).map(|c| c.get()), Some(2));
/// assert_eq!(verbs.get(&["other"]).map(|c| c.get()), Some(2)); // x and y
/// ```
pub struct Family<const N: usize, M> {
    names: [&'static str; N],
    cells: Arc<RwLock<Cells<N, M>>>,
    hashes: RandomState,
    make: Arc<Make<N, M>>,
}

impl<const N: usize, M> Clone for Family<N, M> {
    fn clone(&self) -> Self {
        Family {
            names: self.names,
            cells: self.cells.clone(),
            hashes: self.hashes.clone(),
            make: self.make.clone(),
        }
    }
}

impl<const N: usize, M> fmt::Debug for Family<N, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Family").field("names", &self.names).finish_non_exhaustive()
    }
}

impl<const N: usize, M: Clone> Family<N, M> {
    /// Creates a family with these label names, without label sets.
    #[must_use]
    pub fn new(names: [&'static str; N]) -> Self
    where
        M: Default + 'static,
    {
        Self::new_with_constructor(names, |_| M::default())
    }

    /// Creates a family whose metrics are made by a function of the label values, as histograms are for their
    /// buckets. Above the limit the values are `other`.
    #[must_use]
    pub fn new_with_constructor(
        names: [&'static str; N],
        make: impl Fn(&[&str; N]) -> M + Send + Sync + 'static,
    ) -> Self {
        let cells = Cells { by_hash: HashMap::default(), count: 0, limit: LABEL_SETS };
        Family {
            names,
            cells: Arc::new(RwLock::new(cells)),
            hashes: RandomState::new(),
            make: Arc::new(make),
        }
    }

    /// Sets the limit of label sets. Default: 2000. Sets above it share one set whose values are `other`.
    #[must_use]
    pub fn limit(self, sets: usize) -> Self {
        self.cells.write().unwrap_or_else(PoisonError::into_inner).limit = sets;
        self
    }

    /// Returns the metric of a label set. The values are in the order of the names. A set that exists costs a
    /// hash and a read lock.
    #[must_use]
    pub fn get_or_create(&self, values: &[&str; N]) -> M {
        let hash = self.hashes.hash_one(values);
        if let Some(found) = self.cells.read().unwrap_or_else(PoisonError::into_inner).find(hash, values) {
            return found.clone();
        }
        let mut cells = self.cells.write().unwrap_or_else(PoisonError::into_inner);
        if cells.count < cells.limit || cells.find(hash, values).is_some() {
            return cells.find_or_insert(hash, values, &*self.make);
        }
        let others = [OTHER; N];
        cells.find_or_insert(self.hashes.hash_one(others), &others, &*self.make)
    }

    /// Returns the metric of a label set that exists.
    #[must_use]
    pub fn get(&self, values: &[&str; N]) -> Option<M> {
        let cells = self.cells.read().unwrap_or_else(PoisonError::into_inner);
        cells.find(self.hashes.hash_one(values), values).cloned()
    }

    /// Removes a label set from the output. Returns true if there was one.
    pub fn remove(&self, values: &[&str; N]) -> bool {
        let hash = self.hashes.hash_one(values);
        let mut cells = self.cells.write().unwrap_or_else(PoisonError::into_inner);
        let Some(found) = cells.by_hash.get_mut(&hash) else { return false };
        let before = found.len();
        found.retain(|(have, _)| !have.iter().zip(values).all(|(a, b)| **a == **b));
        let removed = before - found.len();
        if found.is_empty() {
            cells.by_hash.remove(&hash);
        }
        cells.count -= removed;
        removed > 0
    }

    /// Returns the label names.
    pub(crate) fn names(&self) -> &[&'static str; N] {
        &self.names
    }

    /// Returns all label sets and their metrics, sorted.
    pub(crate) fn sorted(&self) -> Vec<([Box<str>; N], M)> {
        let cells = self.cells.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = cells.by_hash.values().flatten().cloned().collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Counter;

    #[test]
    fn a_family_stops_to_grow_at_its_limit() {
        let names: Family<2, Counter> = Family::new(["name", "code"]).limit(3);
        for n in 0..100 {
            names.get_or_create(&[&format!("n{n}"), "200"]).inc();
        }
        names.get_or_create(&["n1", "200"]).inc();
        let all = names.sorted();
        assert_eq!(all.len(), 4, "three and the others");
        assert_eq!(names.get(&["n1", "200"]).unwrap().get(), 2, "one that exists is still counted");
        assert_eq!(names.get(&["other", "other"]).unwrap().get(), 97);
        assert!(names.get(&["n50", "200"]).is_none());
    }

    #[test]
    fn a_removed_set_makes_room() {
        let names: Family<1, Counter> = Family::new(["name"]).limit(1);
        names.get_or_create(&["a"]).inc();
        assert!(names.remove(&["a"]) && !names.remove(&["a"]));
        names.get_or_create(&["b"]).inc();
        assert_eq!(names.get(&["b"]).unwrap().get(), 1);
    }

    #[test]
    fn neighbouring_values_are_different_sets() {
        let names: Family<2, Counter> = Family::new(["a", "b"]);
        names.get_or_create(&["x", "yz"]).inc();
        names.get_or_create(&["xy", "z"]).inc();
        assert_eq!(names.get(&["x", "yz"]).unwrap().get(), 1);
    }
}
