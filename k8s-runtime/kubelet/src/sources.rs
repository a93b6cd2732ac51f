//! ConfigMaps and Secrets that pods on this node use; each is watched by name while a pod uses it.
//!
//! Flow: the first user starts a watch of the object, all users read its newest state from memory, and the
//! last user's handle ends the watch. The kubelet therefore needs no permission to list all Secrets.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use k8s_core::{
    cache::{Cache, Reflector, Subscription, reflect},
    client::{Client, ListParams},
    meta::Object,
};

use crate::types::{ConfigMap, Secret};

/// The time that a user waits for the first answer about an object.
const FIRST_ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The reason for which an object cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SourceError {
    #[error("{kind} {name:?} not found")]
    Missing { kind: &'static str, name: String },
    #[error("failed to sync {kind} cache: timed out waiting for the condition")]
    NotSynced { kind: &'static str },
}

/// One object that is watched while somebody holds this.
#[derive(Debug)]
pub(crate) struct Watched<K> {
    cache: Cache<K>,
    _reflector: Reflector,
    namespace: String,
    name: String,
    kind: &'static str,
}

impl<K: Object> Watched<K> {
    pub(crate) async fn get(&self) -> Result<Arc<K>, SourceError> {
        tokio::time::timeout(FIRST_ANSWER_TIMEOUT, self.cache.synced())
            .await
            .map_err(|_| SourceError::NotSynced { kind: self.kind })?;
        self.cache
            .get(&self.namespace, &self.name)
            .ok_or_else(|| SourceError::Missing { kind: self.kind, name: self.name.clone() })
    }

    pub(crate) fn subscribe(&self) -> Subscription<K> {
        self.cache.subscribe()
    }
}

type Table<K> = Mutex<HashMap<(String, String), Weak<Watched<K>>>>;

/// All objects that are watched, by namespace and name.
#[derive(Debug)]
pub(crate) struct Sources {
    client: Client,
    config_maps: Table<ConfigMap>,
    secrets: Table<Secret>,
}

fn watched<K: Object>(
    client: &Client,
    table: &Table<K>,
    namespace: &str,
    name: &str,
    kind: &'static str,
) -> Arc<Watched<K>> {
    let mut table = table.lock().unwrap_or_else(PoisonError::into_inner);
    let key = (namespace.to_owned(), name.to_owned());
    if let Some(there) = table.get(&key).and_then(Weak::upgrade) {
        return there;
    }
    table.retain(|_, w| w.strong_count() > 0);
    let cache = Cache::new();
    let params = ListParams::default().fields(format!("metadata.name={name}"));
    let reflector = reflect(client.namespaced::<K>(namespace), params, cache.clone());
    let new = Arc::new(Watched {
        cache,
        _reflector: reflector,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        kind,
    });
    table.insert(key, Arc::downgrade(&new));
    new
}

impl Sources {
    pub(crate) fn new(client: Client) -> Self {
        Sources { client, config_maps: Mutex::default(), secrets: Mutex::default() }
    }

    /// Keeps a ConfigMap watched while the handle lives.
    pub(crate) fn watch_config_map(&self, namespace: &str, name: &str) -> Arc<Watched<ConfigMap>> {
        watched(&self.client, &self.config_maps, namespace, name, "configmap")
    }

    /// Keeps a Secret watched while the handle lives.
    pub(crate) fn watch_secret(&self, namespace: &str, name: &str) -> Arc<Watched<Secret>> {
        watched(&self.client, &self.secrets, namespace, name, "secret")
    }

    /// The present state of a ConfigMap.
    pub(crate) async fn config_map(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Arc<ConfigMap>, SourceError> {
        self.watch_config_map(namespace, name).get().await
    }

    /// The present state of a Secret.
    pub(crate) async fn secret(&self, namespace: &str, name: &str) -> Result<Arc<Secret>, SourceError> {
        self.watch_secret(namespace, name).get().await
    }
}
