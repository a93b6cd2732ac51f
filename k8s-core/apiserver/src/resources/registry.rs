//! The registry: all resources that are served, and its changes at run time.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, RwLock},
};

use super::{BUILT_IN, Resource, enablement::Enablement, is_built_in, table::UNSTORED};

/// Everything that is served now.
#[derive(Debug, Default)]
pub struct Registry {
    served: BTreeMap<(String, String, String), Arc<Resource>>,
    /// Group names and versions in the order that discovery has them.
    groups: Vec<(String, Vec<String>)>,
    /// Served ones of [`UNSTORED`].
    unstored: Vec<(&'static str, &'static str, &'static str, bool)>,
}

impl Registry {
    /// Built-in resources that are served by default, and `custom` ones.
    #[must_use]
    pub fn new(custom: &[Arc<Resource>]) -> Self {
        Registry::with(&Enablement::default(), custom)
    }

    /// All built-in resources, served by default or not.
    #[must_use]
    pub fn whole() -> Self {
        Registry::with(&Enablement::everything(), &[])
    }

    /// The built-in resources of a choice, and `custom` ones.
    pub(super) fn with(enablement: &Enablement, custom: &[Arc<Resource>]) -> Self {
        let mut registry = Registry::default();
        let on = |r: &&Arc<Resource>| enablement.serves(&r.group, &r.version, &r.plural, !r.off_by_default);
        for resource in BUILT_IN.iter().filter(on).chain(custom) {
            registry.add_version(&resource.group, &resource.version);
            let key = (resource.group.clone(), resource.version.clone(), resource.plural.clone());
            registry.served.insert(key, resource.clone());
        }
        let on = |u: &(&str, &str, &str, bool)| enablement.serves(u.0, "v1", u.1, true);
        registry.unstored.extend(UNSTORED.into_iter().filter(on));
        // Groups that hold only reviews come after the others.
        for (group, ..) in registry.unstored.clone() {
            registry.add_version(group, "v1");
        }
        // Old names come last, so that `kubectl get deployments` means apps.
        if let Some(at) = registry.groups.iter().position(|(g, _)| g == "extensions") {
            let old = registry.groups.remove(at);
            registry.groups.push(old);
        }
        registry
    }

    fn add_version(&mut self, group: &str, version: &str) {
        let at = self.groups.iter().position(|(g, _)| g == group).unwrap_or_else(|| {
            self.groups.push((group.to_owned(), Vec::new()));
            self.groups.len() - 1
        });
        let versions = &mut self.groups[at].1;
        if !versions.iter().any(|v| v == version) {
            versions.push(version.to_owned());
        }
    }

    /// The served resources of a group's v1 that are not stored: plural, kind, namespaced.
    pub(crate) fn unstored<'a>(
        &'a self,
        group: &'a str,
        version: &'a str,
    ) -> impl Iterator<Item = (&'static str, &'static str, bool)> + 'a {
        let of_version = move |u: &&(&str, &str, &str, bool)| u.0 == group && version == "v1";
        self.unstored
            .iter()
            .filter(of_version)
            .map(|(_, plural, kind, namespaced)| (*plural, *kind, *namespaced))
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
    enablement: Enablement,
    now: RwLock<Arc<Registry>>,
    custom: RwLock<HashMap<String, Vec<Arc<Resource>>>>,
}

impl Default for SharedRegistry {
    fn default() -> Self {
        SharedRegistry::new(Enablement::default())
    }
}

impl SharedRegistry {
    /// A registry with the built-in resources of a choice.
    pub(crate) fn new(enablement: Enablement) -> Self {
        let now = Arc::new(Registry::with(&enablement, &[]));
        SharedRegistry { enablement, now: RwLock::new(now), custom: RwLock::default() }
    }

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
        let next = Arc::new(Registry::with(&self.enablement, &all));
        *self.now.write().unwrap_or_else(std::sync::PoisonError::into_inner) = next;
    }
}
