//! The policies of one kind with their bindings, compiled and found by the resources that they are about.

use std::{collections::HashMap, sync::Arc};

use k8s_store::Store;
use serde_json::Value;

use super::{binding::Binding, policy::Policy};
use crate::{admission::cached::Cached, resources::Resource};

/// Policies with their bindings, by the plural names of the resources that they are about.
#[derive(Debug, Default)]
pub(super) struct Index {
    all: Vec<(Policy, Vec<Binding>)>,
    by_plural: HashMap<String, Vec<usize>>,
    /// Those about resources of every name.
    rest: Vec<usize>,
}

impl Index {
    /// Reads policies and bindings of one kind, by their names in the store.
    fn new(store: &Store, policies: &str, bindings: &str) -> Self {
        let objects = |resource: &str| {
            let all = store.snapshot(resource);
            let values = all.range("", "").filter_map(|s| serde_json::from_slice::<Value>(&s.json).ok());
            values.collect::<Vec<_>>()
        };
        let mut bound: HashMap<String, Vec<Binding>> = HashMap::new();
        for binding in objects(bindings).iter().map(Binding::new) {
            bound.entry(binding.policy.clone()).or_default().push(binding);
        }
        let mut index = Index::default();
        for policy in objects(policies) {
            let Some(bound) = bound.remove(crate::value::name(&policy)) else { continue };
            let (policy, place) = (Policy::new(&policy), index.all.len());
            let mut plurals: Vec<&str> = policy.matcher.subjects().map(|(_, plural)| plural).collect();
            plurals.sort_unstable();
            plurals.dedup();
            if plurals.contains(&"*") {
                index.rest.push(place);
            } else {
                for plural in plurals {
                    index.by_plural.entry(plural.to_owned()).or_default().push(place);
                }
            }
            index.all.push((policy, bound));
        }
        index
    }

    /// The policies that may be about a resource, in the order of their names.
    pub(super) fn about(&self, resource: &Resource) -> Vec<&(Policy, Vec<Binding>)> {
        let named = self.by_plural.get(&resource.plural).map(Vec::as_slice).unwrap_or_default();
        let mut places: Vec<usize> = named.iter().chain(&self.rest).copied().collect();
        places.sort_unstable();
        places.into_iter().filter_map(|place| self.all.get(place)).collect()
    }
}

/// The policies of one kind in a store.
pub(super) struct Policies {
    pub(super) store: Store,
    /// Names of the policies' and the bindings' resources in the store.
    names: [&'static str; 2],
    index: Cached<Index, 2>,
}

impl Policies {
    pub(super) fn new(store: Store, policies: &'static str, bindings: &'static str) -> Self {
        let names = [policies, bindings];
        Policies { store, names, index: Cached::new(names) }
    }

    /// Returns the policies if there are any about a resource.
    pub(super) fn about(&self, resource: &Resource) -> Option<Arc<Index>> {
        let [policies, bindings] = self.names;
        let index = self.index.get(&self.store, || Index::new(&self.store, policies, bindings));
        let some = !index.rest.is_empty() || index.by_plural.contains_key(&resource.plural);
        some.then_some(index)
    }
}
