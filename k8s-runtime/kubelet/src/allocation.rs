//! The resources that the kubelet has allocated to a pod, beside those that its specification asks for.
//!
//! They differ while a resize waits for room. Everything in the kubelet but the decision on a resize acts on
//! the allocated ones: [`Allocation::apply`] puts them into the pod.
//! Guarantee: a kubelet that starts again finds the allocation of each admitted pod in the pod's directory,
//! so that a resize asked for in between is decided anew, not taken for granted.
//! Not here: the decision (`pod/allocate.rs`), and cgroups (`pod::resize`).

use std::{collections::BTreeMap, fs, io, path::Path, sync::Arc};

use k8s_core::{json, meta::Quantity};
use serde::{Deserialize, Serialize};

use crate::types::*;

const FILE: &str = "allocation.json";

/// Resources of a pod: those of its containers by name, and those of the whole pod.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Allocation {
    containers: BTreeMap<String, ResourceRequirements>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pod: Option<ResourceRequirements>,
}

impl Allocation {
    /// Returns what a pod asks for.
    pub(crate) fn of(pod: &Pod) -> Self {
        let Some(spec) = &pod.spec else { return Allocation::default() };
        let all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let containers = all.map(|c| (c.name.clone(), c.resources.clone().unwrap_or_default())).collect();
        Allocation { containers, pod: spec.resources.clone() }
    }

    /// Returns `true` for equal amounts, however they are written.
    pub(crate) fn same(&self, other: &Allocation) -> bool {
        let empty = ResourceRequirements::default();
        let of = |pod: &Option<ResourceRequirements>| pod.clone().unwrap_or_default();
        self.containers.len() == other.containers.len()
            && same_requirements(&of(&self.pod), &of(&other.pod))
            && self.containers.iter().all(|(name, mine)| {
                let theirs = other.containers.get(name).unwrap_or(&empty);
                same_requirements(mine, theirs)
            })
    }

    /// Returns the pod with these resources in its specification.
    pub(crate) fn apply(&self, pod: &Arc<Pod>) -> Arc<Pod> {
        if self.same(&Allocation::of(pod)) {
            return pod.clone();
        }
        let mut pod = (**pod).clone();
        if let Some(spec) = &mut pod.spec {
            spec.resources = self.pod.clone();
            let containers = spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten());
            for container in containers {
                if let Some(resources) = self.containers.get(&container.name) {
                    container.resources = Some(resources.clone());
                }
            }
        }
        Arc::new(pod)
    }

    /// Reads the allocation from a pod's directory. `None`: there is none, or it is damaged.
    pub(crate) fn load(pod_dir: &Path) -> Option<Self> {
        let path = pod_dir.join(FILE);
        let bytes = fs::read(&path).ok()?;
        let read = json::from_slice(&bytes);
        read.inspect_err(|e| tracing::warn!(?path, error = %e, "allocation not read")).ok()
    }

    /// Writes the allocation into a pod's directory, which is made if it is missing. Atomic.
    pub(crate) fn save(&self, pod_dir: &Path) -> io::Result<()> {
        fs::create_dir_all(pod_dir)?;
        let bytes = json::to_vec(self).map_err(io::Error::other)?;
        let (path, temporary) = (pod_dir.join(FILE), pod_dir.join("allocation.tmp"));
        fs::write(&temporary, bytes).and_then(|()| fs::rename(&temporary, &path))
    }
}

fn same_requirements(a: &ResourceRequirements, b: &ResourceRequirements) -> bool {
    same_list(a.requests.as_ref(), b.requests.as_ref()) && same_list(a.limits.as_ref(), b.limits.as_ref())
}

fn same_list(a: Option<&BTreeMap<String, ApiQuantity>>, b: Option<&BTreeMap<String, ApiQuantity>>) -> bool {
    let amounts = |list: Option<&BTreeMap<String, ApiQuantity>>| -> BTreeMap<String, Option<Quantity>> {
        let entries = list.into_iter().flatten();
        entries.map(|(name, quantity)| (name.clone(), Quantity::try_from(quantity).ok())).collect()
    };
    amounts(a) == amounts(b)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(cpu: &str) -> Arc<Pod> {
        let container = json!({"name": "c", "resources": {"requests": {"cpu": cpu}}});
        let spec = json!({"containers": [container], "initContainers": [{"name": "i"}]});
        Arc::new(serde_json::from_value(json!({"metadata": {"uid": "u"}, "spec": spec})).unwrap())
    }

    #[test]
    fn amounts_are_compared_by_value_and_put_into_the_pod() {
        let one = Allocation::of(&pod("1"));
        assert!(one.same(&Allocation::of(&pod("1000m"))));
        assert!(!one.same(&Allocation::of(&pod("2"))));
        let same = pod("1000m");
        assert!(Arc::ptr_eq(&one.apply(&same), &same));
        assert!(Allocation::of(&one.apply(&pod("2"))).same(&one));
    }

    #[test]
    fn a_file_keeps_it_and_a_damaged_one_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("pod");
        assert!(Allocation::load(&home).is_none());
        let one = Allocation::of(&pod("1"));
        one.save(&home).unwrap();
        assert!(Allocation::load(&home).unwrap().same(&one));
        fs::write(home.join(FILE), "{").unwrap();
        assert!(Allocation::load(&home).is_none());
    }
}
