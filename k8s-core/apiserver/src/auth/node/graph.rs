//! Index of the objects that the pods of each node refer to.
//!
//! Flow: every question first takes the events of pods, volumes, attachments, slices and certificate requests
//! that the store has shown since the last one. Where history no longer has them, the index is made anew.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use k8s_core::json::find;
use k8s_store::{Event, EventKind, Store, Stored, WatchCursor};
use serde_json::Value;

use crate::value::{array_at, object_at, str_at};

/// Kinds of objects that are divided among nodes.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Kind {
    Secret,
    ConfigMap,
    Claim,
    Volume,
    ServiceAccount,
    Pod,
    Attachment,
    Slice,
    ResourceClaim,
    PodCertificate,
}

const PODS: &str = "pods";
const VOLUMES: &str = "persistentvolumes";
const ATTACHMENTS: &str = "volumeattachments.storage.k8s.io";
const SLICES: &str = "resourceslices.resource.k8s.io";
const POD_CERTIFICATES: &str = "podcertificaterequests.certificates.k8s.io";
const FOLLOWED: [&str; 5] = [PODS, VOLUMES, ATTACHMENTS, SLICES, POD_CERTIFICATES];

/// Number of events that are taken at once.
const BATCH: usize = 512;

/// Key of an object: `namespace/name`, or the name alone.
type Key = Arc<str>;

/// The index, and its place in the store's history.
pub(super) struct Graph {
    store: Store,
    known: Mutex<Option<Known>>,
}

impl std::fmt::Debug for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Graph").finish_non_exhaustive()
    }
}

struct Known {
    cursors: Vec<WatchCursor>,
    index: Index,
}

/// A pod of a node, with the objects that it refers to.
struct Pod {
    node: Key,
    refers_to: Vec<(Kind, Key)>,
}

/// A volume with a claim, and the secrets that a kubelet needs for it.
struct Volume {
    claim: Key,
    secrets: Vec<Key>,
}

#[derive(Default)]
struct Index {
    pods: HashMap<Key, Pod>,
    /// Nodes whose pods refer to an object, each with the number of those pods.
    users: HashMap<(Kind, Key), HashMap<Key, usize>>,
    volumes: HashMap<Key, Volume>,
    volumes_of_secret: HashMap<Key, HashSet<Key>>,
    /// Nodes of attachments, slices and certificate requests of pods.
    placed: HashMap<(Kind, Key), Key>,
}

impl Graph {
    pub(super) fn new(store: Store) -> Self {
        Graph { store, known: Mutex::new(None) }
    }

    /// Returns true if the object is of the node, or a pod of the node refers to it.
    pub(super) fn relates(&self, node: &str, kind: Kind, namespace: &str, name: &str) -> bool {
        let key = if namespace.is_empty() { name.to_owned() } else { format!("{namespace}/{name}") };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let current = match known.take().and_then(Known::advanced) {
            Some(current) => current,
            None => Known::read(&self.store),
        };
        known.insert(current).index.relates(node, kind, &key)
    }
}

impl Known {
    /// Makes the index from all objects.
    fn read(store: &Store) -> Self {
        // Cursors first: an event that is also in the snapshot changes nothing.
        let revision = store.revision();
        let cursors = FOLLOWED.iter().map(|resource| store.watch(resource, revision)).collect();
        let mut index = Index::default();
        for resource in FOLLOWED {
            for stored in store.snapshot(resource).range("", "") {
                index.put(resource, stored);
            }
        }
        Known { cursors, index }
    }

    /// Takes the events since the last time; `None` if some are no longer there.
    fn advanced(mut self) -> Option<Self> {
        for (cursor, resource) in self.cursors.iter_mut().zip(FOLLOWED) {
            loop {
                let events = cursor.take(BATCH).ok()?;
                if events.is_empty() {
                    break;
                }
                events.iter().for_each(|event| self.index.apply(resource, event));
            }
        }
        Some(self)
    }
}

/// Returns true if a change of a pod leaves its references as they are. Most changes are of the status.
fn refers_as_before(event: &Event) -> bool {
    let same = |path: &[&str], a: &Stored, b: &Stored| {
        find(&a.json, path).map(|place| &a.json[place]) == find(&b.json, path).map(|place| &b.json[place])
    };
    event.before.as_ref().is_some_and(|before| {
        before.uid == event.object.uid
            && same(&["spec"], before, &event.object)
            && same(&["status", "resourceClaimStatuses"], before, &event.object)
            && same(&["status", "extendedResourceClaimStatus"], before, &event.object)
            && same(&["metadata", "annotations"], before, &event.object)
    })
}

impl Index {
    fn apply(&mut self, resource: &str, event: &Event) {
        match event.kind {
            EventKind::Deleted => self.remove(resource, &event.object.key),
            EventKind::Modified if resource == PODS && refers_as_before(event) => {}
            EventKind::Added | EventKind::Modified => self.put(resource, &event.object),
        }
    }

    fn put(&mut self, resource: &str, stored: &Stored) {
        self.remove(resource, &stored.key);
        let Ok(object) = serde_json::from_slice::<Value>(&stored.json) else { return };
        let key = stored.key.clone();
        match resource {
            PODS => self.put_pod(key, stored.namespace(), &object),
            VOLUMES => self.put_volume(key, &object),
            _ => {
                let node = str_at(&object, "/spec/nodeName");
                if !node.is_empty() {
                    self.placed.insert((kind_of(resource), key), node.into());
                }
            }
        }
    }

    fn put_pod(&mut self, key: Key, namespace: &str, pod: &Value) {
        let node: Key = str_at(pod, "/spec/nodeName").into();
        if node.is_empty() {
            return;
        }
        let within = |(kind, name): (Kind, String)| (kind, format!("{namespace}/{name}").into());
        // A mirror pod, which a node made itself, gives it nothing.
        let mirrors = object_at(pod, "/metadata/annotations")
            .is_some_and(|annotations| annotations.contains_key("kubernetes.io/config.mirror"));
        let found = if mirrors { Vec::new() } else { references(pod) };
        let refers_to: Vec<(Kind, Key)> = found.into_iter().map(within).collect();
        for reference in &refers_to {
            let nodes = self.users.entry(reference.clone()).or_default();
            *nodes.entry(node.clone()).or_default() += 1;
        }
        self.pods.insert(key, Pod { node, refers_to });
    }

    fn put_volume(&mut self, key: Key, volume: &Value) {
        let (namespace, name) =
            (str_at(volume, "/spec/claimRef/namespace"), str_at(volume, "/spec/claimRef/name"));
        if name.is_empty() {
            return;
        }
        let secrets: Vec<Key> = secrets_of_volume(volume, namespace).into_iter().map(Key::from).collect();
        for secret in &secrets {
            self.volumes_of_secret.entry(secret.clone()).or_default().insert(key.clone());
        }
        self.volumes.insert(key, Volume { claim: format!("{namespace}/{name}").into(), secrets });
    }

    fn remove(&mut self, resource: &str, key: &Key) {
        match resource {
            PODS => {
                let Some(pod) = self.pods.remove(key) else { return };
                for reference in pod.refers_to {
                    let Some(nodes) = self.users.get_mut(&reference) else { continue };
                    if let Some(count) = nodes.get_mut(&pod.node) {
                        *count -= 1;
                        if *count == 0 {
                            nodes.remove(&pod.node);
                        }
                    }
                    if nodes.is_empty() {
                        self.users.remove(&reference);
                    }
                }
            }
            VOLUMES => {
                let Some(volume) = self.volumes.remove(key) else { return };
                for secret in volume.secrets {
                    let Some(volumes) = self.volumes_of_secret.get_mut(&secret) else { continue };
                    volumes.remove(key);
                    if volumes.is_empty() {
                        self.volumes_of_secret.remove(&secret);
                    }
                }
            }
            _ => {
                self.placed.remove(&(kind_of(resource), key.clone()));
            }
        }
    }

    fn relates(&self, node: &str, kind: Kind, key: &str) -> bool {
        match kind {
            Kind::Pod => self.pods.get(key).is_some_and(|pod| &*pod.node == node),
            Kind::Volume => self.uses_volume(node, key),
            Kind::Attachment | Kind::Slice | Kind::PodCertificate => {
                self.placed.get(&(kind, key.into())).is_some_and(|of| &**of == node)
            }
            Kind::Secret => {
                self.uses(node, kind, key)
                    || self
                        .volumes_of_secret
                        .get(key)
                        .is_some_and(|volumes| volumes.iter().any(|volume| self.uses_volume(node, volume)))
            }
            Kind::ConfigMap | Kind::Claim | Kind::ServiceAccount | Kind::ResourceClaim => {
                self.uses(node, kind, key)
            }
        }
    }

    fn uses(&self, node: &str, kind: Kind, key: &str) -> bool {
        self.users.get(&(kind, key.into())).is_some_and(|nodes| nodes.contains_key(node))
    }

    fn uses_volume(&self, node: &str, volume: &str) -> bool {
        self.volumes.get(volume).is_some_and(|volume| self.uses(node, Kind::Claim, &volume.claim))
    }
}

fn kind_of(resource: &str) -> Kind {
    match resource {
        ATTACHMENTS => Kind::Attachment,
        POD_CERTIFICATES => Kind::PodCertificate,
        _ => Kind::Slice,
    }
}

/// References to Secrets in a pod's volumes.
const VOLUME_SECRETS: [&str; 10] = [
    "/secret/secretName",
    "/azureFile/secretName",
    "/cephfs/secretRef/name",
    "/cinder/secretRef/name",
    "/flexVolume/secretRef/name",
    "/rbd/secretRef/name",
    "/scaleIO/secretRef/name",
    "/iscsi/secretRef/name",
    "/storageos/secretRef/name",
    "/csi/nodePublishSecretRef/name",
];

/// Returns the objects in its own namespace that a pod refers to.
pub(crate) fn references(pod: &Value) -> Vec<(Kind, String)> {
    let mut all: Vec<(Kind, String)> = Vec::new();
    let mut add = |kind: Kind, name: &str| {
        if !name.is_empty() && !all.iter().any(|(k, n)| *k == kind && n == name) {
            all.push((kind, name.to_owned()));
        }
    };
    add(Kind::ServiceAccount, str_at(pod, "/spec/serviceAccountName"));
    for secret in array_at(pod, "/spec/imagePullSecrets") {
        add(Kind::Secret, str_at(secret, "/name"));
    }
    for list in ["/spec/containers", "/spec/initContainers", "/spec/ephemeralContainers"] {
        for container in array_at(pod, list) {
            for from in array_at(container, "/envFrom") {
                add(Kind::Secret, str_at(from, "/secretRef/name"));
                add(Kind::ConfigMap, str_at(from, "/configMapRef/name"));
            }
            for variable in array_at(container, "/env") {
                add(Kind::Secret, str_at(variable, "/valueFrom/secretKeyRef/name"));
                add(Kind::ConfigMap, str_at(variable, "/valueFrom/configMapKeyRef/name"));
            }
        }
    }
    for volume in array_at(pod, "/spec/volumes") {
        for pointer in VOLUME_SECRETS {
            add(Kind::Secret, str_at(volume, pointer));
        }
        add(Kind::ConfigMap, str_at(volume, "/configMap/name"));
        add(Kind::Claim, str_at(volume, "/persistentVolumeClaim/claimName"));
        if volume.get("ephemeral").is_some() {
            let claim = format!("{}-{}", str_at(pod, "/metadata/name"), str_at(volume, "/name"));
            add(Kind::Claim, &claim);
        }
        for source in array_at(volume, "/projected/sources") {
            add(Kind::Secret, str_at(source, "/secret/name"));
            add(Kind::ConfigMap, str_at(source, "/configMap/name"));
        }
    }
    for claim in array_at(pod, "/spec/resourceClaims") {
        add(Kind::ResourceClaim, str_at(claim, "/resourceClaimName"));
    }
    for claim in array_at(pod, "/status/resourceClaimStatuses") {
        add(Kind::ResourceClaim, str_at(claim, "/resourceClaimName"));
    }
    add(Kind::ResourceClaim, str_at(pod, "/status/extendedResourceClaimStatus/resourceClaimName"));
    all
}

/// References to Secrets of a persistent volume that a kubelet reads.
const PERSISTENT_SECRETS: [&str; 10] = [
    "/spec/cephfs/secretRef",
    "/spec/cinder/secretRef",
    "/spec/flexVolume/secretRef",
    "/spec/rbd/secretRef",
    "/spec/scaleIO/secretRef",
    "/spec/iscsi/secretRef",
    "/spec/storageos/secretRef",
    "/spec/csi/nodePublishSecretRef",
    "/spec/csi/nodeStageSecretRef",
    "/spec/csi/nodeExpandSecretRef",
];

/// Returns the keys of the Secrets that a kubelet needs for a volume.
fn secrets_of_volume(volume: &Value, claim_namespace: &str) -> Vec<String> {
    let key = |namespace: &str, name: &str| {
        let namespace = if namespace.is_empty() { claim_namespace } else { namespace };
        (!name.is_empty()).then(|| format!("{namespace}/{name}"))
    };
    let azure =
        key(str_at(volume, "/spec/azureFile/secretNamespace"), str_at(volume, "/spec/azureFile/secretName"));
    let others = PERSISTENT_SECRETS.iter().filter_map(|pointer| {
        let reference = volume.pointer(pointer)?;
        key(str_at(reference, "/namespace"), str_at(reference, "/name"))
    });
    azure.into_iter().chain(others).collect()
}
