//! The registry: all resources that are served, and its changes at run time.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, RwLock},
};

use super::{BUILT_IN, Resource, is_built_in};

/// Everything that is served now.
#[derive(Debug, Default)]
pub struct Registry {
    served: BTreeMap<(String, String, String), Arc<Resource>>,
    /// Group names and versions in the order that discovery has them.
    groups: Vec<(String, Vec<String>)>,
}

impl Registry {
    /// Built-in resources and `custom` ones.
    #[must_use]
    pub fn new(custom: &[Arc<Resource>]) -> Self {
        let mut registry = Registry::default();
        for resource in BUILT_IN.iter().chain(custom) {
            let at = registry.groups.iter().position(|(g, _)| *g == resource.group).unwrap_or_else(|| {
                registry.groups.push((resource.group.clone(), Vec::new()));
                registry.groups.len() - 1
            });
            let versions = &mut registry.groups[at].1;
            if !versions.contains(&resource.version) {
                versions.push(resource.version.clone());
            }
            let key = (resource.group.clone(), resource.version.clone(), resource.plural.clone());
            registry.served.insert(key, resource.clone());
        }
        // Groups that hold only reviews, which are not stored.
        for group in ["authentication.k8s.io", "authorization.k8s.io"] {
            registry.groups.push((group.into(), vec!["v1".into()]));
        }
        // Old names come last, so that `kubectl get deployments` means apps.
        if let Some(at) = registry.groups.iter().position(|(g, _)| g == "extensions") {
            let old = registry.groups.remove(at);
            registry.groups.push(old);
        }
        registry
    }

    /// Returns a served resource by group, version and plural name.
    #[must_use]
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Resource>> {
        self.served.get(&(group.to_owned(), version.to_owned(), plural.to_owned()))
    }

    /// The resource of a kind.
    #[must_use]
    pub fn by_kind(&self, group: &str, version: &str, kind: &str) -> Option<&Arc<Resource>> {
        self.served.values().find(|r| r.group == group && r.version == version && r.kind == kind)
    }

    /// All resources of a group and version, by plural name.
    pub fn in_version<'a>(
        &'a self,
        group: &'a str,
        version: &'a str,
    ) -> impl Iterator<Item = &'a Arc<Resource>> {
        self.served
            .range((group.to_owned(), version.to_owned(), String::new())..)
            .take_while(move |((g, v, _), _)| g == group && v == version)
            .map(|(_, r)| r)
    }

    /// Iterates over all served resources: each version is one.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.served.values()
    }

    /// Groups with their versions, preferred first.
    #[must_use]
    pub fn groups(&self) -> &[(String, Vec<String>)] {
        &self.groups
    }
}

/// The registry that changes as CRDs come and go. Readers hold a snapshot.
#[derive(Debug)]
pub struct SharedRegistry {
    now: RwLock<Arc<Registry>>,
    custom: RwLock<HashMap<String, Vec<Arc<Resource>>>>,
}

impl Default for SharedRegistry {
    fn default() -> Self {
        SharedRegistry { now: RwLock::new(Arc::new(Registry::new(&[]))), custom: RwLock::default() }
    }
}

impl SharedRegistry {
    /// Returns the current registry.
    #[must_use]
    pub fn now(&self) -> Arc<Registry> {
        self.now.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Serves the resources of a definition (by name) in place of its earlier ones; an empty list removes
    /// them. Built-in resources cannot be redefined.
    pub fn define(&self, definition: &str, mut resources: Vec<Arc<Resource>>) {
        resources.retain(|r| !is_built_in(&r.storage));
        let mut custom = self.custom.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        if resources.is_empty() {
            custom.remove(definition);
        } else {
            custom.insert(definition.to_owned(), resources);
        }
        let mut all: Vec<Arc<Resource>> = custom.values().flatten().cloned().collect();
        all.sort_by(|a, b| (&a.group, &a.plural).cmp(&(&b.group, &b.plural)));
        *self.now.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Arc::new(Registry::new(&all));
    }
}
