//! Limits of local storage: `sizeLimit` of emptyDirs, and `ephemeral-storage` of containers and pods. Pure.
//!
//! As upstream (`pkg/kubelet/eviction`, `localStorageEviction`): a pod that takes more is evicted.

use std::collections::BTreeMap;

use k8s_core::meta::Quantity;

use super::rank::Usage;
use crate::{resources, types::*};

const STORAGE: &str = "ephemeral-storage";

/// The limits of a pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Limits {
    /// Limits of emptyDirs on disk, by the volume's name.
    pub(crate) volumes: BTreeMap<String, Quantity>,
    /// Limit of the whole pod.
    pub(crate) pod: Option<Quantity>,
    /// Limits of containers, by name.
    pub(crate) containers: BTreeMap<String, Quantity>,
}

/// A limit is exceeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Excess {
    /// Name of the limit in metrics.
    pub(crate) signal: &'static str,
    pub(crate) message: String,
}

/// Returns `true` for an emptyDir in memory. Its mount has the limit.
pub(crate) fn is_in_memory(source: &EmptyDirVolumeSource) -> bool {
    source.medium.as_deref() == Some("Memory")
}

fn positive(quantity: Option<&ApiQuantity>) -> Option<Quantity> {
    let quantity = Quantity::try_from(quantity?).ok()?;
    (!quantity.is_zero() && !quantity.is_negative()).then_some(quantity)
}

impl Limits {
    /// Returns the limits of a pod. `None`: it has none.
    pub(crate) fn of(spec: &PodSpec) -> Option<Self> {
        let volumes = spec.volumes.iter().flatten().filter_map(|volume| {
            let source = volume.empty_dir.as_ref().filter(|source| !is_in_memory(source))?;
            Some((volume.name.clone(), positive(source.size_limit.as_ref())?))
        });
        let containers = spec.containers.iter().filter_map(|container| {
            Some((container.name.clone(), positive(resources::limits(container)?.get(STORAGE))?))
        });
        let all = resources::pod_limits(spec);
        let limits = Limits {
            volumes: volumes.collect(),
            pod: all.get(STORAGE).map(|bytes| Quantity::from_bytes(*bytes)),
            containers: containers.collect(),
        };
        (limits != Limits::default()).then_some(limits)
    }

    /// Returns `true` if only volumes are limited.
    pub(crate) fn is_of_volumes(&self) -> bool {
        self.pod.is_none() && self.containers.is_empty()
    }

    /// Number of bytes from which any limit of the pod is exceeded.
    pub(crate) fn largest(&self) -> u64 {
        let all = self.volumes.values().chain(&self.pod).chain(self.containers.values());
        all.map(|limit| u64::try_from(limit.units()).unwrap_or(0)).max().unwrap_or(0)
    }

    /// Returns the first limit that a pod exceeds.
    pub(crate) fn exceeded(&self, usage: &Usage) -> Option<Excess> {
        let bytes = |n: u64| Quantity::from_bytes(i64::try_from(n).unwrap_or(i64::MAX));
        for (name, limit) in &self.volumes {
            if usage.volumes.get(name).is_some_and(|used| bytes(used.bytes) > *limit) {
                let message = format!("Usage of EmptyDir volume {name:?} exceeds the limit \"{limit}\". ");
                return Some(Excess { signal: "emptydirfs.limit", message });
            }
        }
        if let Some(limit) = self.pod.filter(|limit| bytes(usage.disk().bytes) > *limit) {
            let message =
                format!("Pod ephemeral local storage usage exceeds the total limit of containers {limit}. ");
            return Some(Excess { signal: "ephemeralpodfs.limit", message });
        }
        for container in &usage.containers {
            let used = [container.layer, container.logs].into_iter().flatten().map(|part| part.bytes).sum();
            let limit = self.containers.get(&container.name);
            if let Some(limit) = limit.filter(|limit| bytes(used) > **limit) {
                let name = &container.name;
                let message =
                    format!("Container {name} exceeded its local ephemeral storage limit \"{limit}\". ");
                return Some(Excess { signal: "ephemeralcontainerfs.limit", message });
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use k8s_runtime::DiskUsage;
    use serde_json::{Value, json};

    use super::{super::rank::ContainerUsage, *};

    fn limits(spec: Value) -> Option<Limits> {
        Limits::of(&serde_json::from_value(spec).unwrap())
    }

    fn container(name: &str, limit: &str) -> Value {
        let limits = if limit.is_empty() { json!({}) } else { json!({STORAGE: limit}) };
        json!({"name": name, "resources": {"limits": limits}})
    }

    /// Usage in MiB of two containers' layers and logs, and of a volume.
    fn using(containers: [(u64, u64); 2], volume: u64) -> Usage {
        let disk = |mib: u64| DiskUsage { bytes: mib << 20, inodes: 1 };
        let one = |(name, (layer, logs)): (&str, (u64, u64))| ContainerUsage {
            name: name.into(),
            layer: Some(disk(layer)),
            logs: Some(disk(logs)),
            ..ContainerUsage::default()
        };
        let containers = ["a", "b"].into_iter().zip(containers).map(one).collect();
        Usage { containers, volumes: [("v".to_owned(), disk(volume))].into() }
    }

    #[test]
    fn limits_of_pods() {
        let dir = |source: Value| json!({"containers": [], "volumes": [{"name": "v", "emptyDir": source}]});
        assert_eq!(limits(dir(json!({}))), None);
        assert_eq!(limits(dir(json!({"sizeLimit": "0"}))), None);
        assert_eq!(limits(dir(json!({"sizeLimit": "1Mi", "medium": "Memory"}))), None);
        let one = limits(dir(json!({"sizeLimit": "1Mi"}))).unwrap();
        assert!(one.is_of_volumes() && one.largest() == 1 << 20);
        assert_eq!(limits(json!({"containers": [container("a", "")]})), None);
        let two = limits(json!({"containers": [container("a", "1Mi"), container("b", "2Mi")]})).unwrap();
        assert_eq!((two.pod, two.containers.len()), (Some(Quantity::from_bytes(3 << 20)), 2));
        assert!(!two.is_of_volumes() && two.largest() == 3 << 20);
    }

    #[test]
    fn what_exceeds_a_limit_is_told() {
        let all = json!({
            "containers": [container("a", "10Mi"), container("b", "")],
            "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "4Mi"}}],
        });
        let mut of_two = all.clone();
        of_two["containers"][1] = container("b", "20Mi");
        let volume = "Usage of EmptyDir volume \"v\" exceeds the limit \"4Mi\". ";
        let whole = |limit: &str| {
            format!("Pod ephemeral local storage usage exceeds the total limit of containers {limit}. ")
        };
        let one = "Container a exceeded its local ephemeral storage limit \"10Mi\". ".to_owned();
        for (spec, used, want) in [
            (&all, using([(4, 2), (0, 0)], 4), None),
            (&all, using([(0, 0), (0, 0)], 5), Some(volume.to_owned())),
            (&all, using([(1, 1), (9, 0)], 0), Some(whole("10Mi"))),
            (&of_two, using([(6, 4), (9, 0)], 0), None),
            (&of_two, using([(6, 5), (9, 0)], 0), Some(one)),
            (&of_two, using([(0, 0), (28, 0)], 3), Some(whole("30Mi"))),
        ] {
            let have = limits(spec.clone()).unwrap().exceeded(&used).map(|excess| excess.message);
            assert_eq!(have, want, "{used:?}");
        }
    }
}
