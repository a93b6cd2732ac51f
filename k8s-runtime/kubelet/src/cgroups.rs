//! Requests and limits in the terms of the kernel: shares, quotas and bytes.
//!
//! Values are upstream's (`pkg/kubelet/cm/helpers_linux.go`, `pkg/kubelet/qos`,
//! `pkg/kubelet/kuberuntime/kuberuntime_container_linux.go`).

use k8s_runtime::{ContainerSpec, Requests, Resources};

use crate::{
    resources::{
        Qos, all_containers, amount, limits, pod_limits, pod_requests, qos, request, requested, whole,
    },
    types::*,
};

/// Period of CPU quotas, microseconds.
const PERIOD: u64 = 100_000;

/// Converts thousandths of a CPU into shares.
pub(crate) fn shares(milli: i64) -> u64 {
    u64::try_from(milli.saturating_mul(1024) / 1000).unwrap_or(0).clamp(2, 262_144)
}

/// Converts thousandths of a CPU into microseconds of each period.
fn quota(milli: i64) -> i64 {
    milli.saturating_mul(100).max(1000)
}

/// CPU and memory of a container: what can change while it runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) requests: Requests,
    /// Microseconds of CPU time in each period. `None`: unlimited.
    pub(crate) quota_us: Option<i64>,
    /// Bytes of memory. `None`: unlimited.
    pub(crate) memory_bytes: Option<i64>,
}

impl Size {
    /// Returns the size of a container that the runtime has.
    pub(crate) fn of(spec: &ContainerSpec) -> Self {
        Size {
            requests: spec.requests,
            quota_us: spec.resources.cpu_quota_us,
            memory_bytes: spec.resources.memory_bytes,
        }
    }

    /// Returns the size that a container of a pod should have.
    pub(crate) fn wanted(spec: &PodSpec, container: &Container) -> Self {
        Size {
            requests: requested(container),
            quota_us: cpu_limit(spec, container).map(quota),
            memory_bytes: memory_limit(spec, container),
        }
    }

    /// Limit of CPU, thousandths. `None`: unlimited.
    pub(crate) fn cpu_limit(&self) -> Option<i64> {
        self.quota_us.map(|quota| quota / 100)
    }

    /// Settings of the CPU's cgroup.
    pub(crate) fn cpu(&self) -> Resources {
        let milli = i64::try_from(self.requests.cpu_milli).unwrap_or(i64::MAX);
        Resources {
            cpu_shares: Some(shares(milli)),
            cpu_quota_us: self.quota_us,
            cpu_period_us: self.quota_us.map(|_| PERIOD),
            ..Resources::default()
        }
    }

    /// Settings of the memory's cgroup.
    pub(crate) fn memory(&self) -> Resources {
        Resources { memory_bytes: self.memory_bytes, ..Resources::default() }
    }
}

/// Limit of a container's CPU, thousandths; the default is the pod's.
fn cpu_limit(spec: &PodSpec, container: &Container) -> Option<i64> {
    let own = amount(limits(container), "cpu");
    own.or_else(|| amount(whole(spec)?.limits.as_ref(), "cpu")).map(|q| q.milli())
}

/// Limit of a container's memory, bytes; the default is the pod's.
fn memory_limit(spec: &PodSpec, container: &Container) -> Option<i64> {
    let own = amount(limits(container), "memory");
    own.or_else(|| amount(whole(spec)?.limits.as_ref(), "memory")).map(|q| q.units())
}

/// The `oom_score_adj` of a container: higher is killed first when memory is short.
fn oom_score_adj(spec: &PodSpec, container: &Container, node_memory: i64) -> i32 {
    match qos(spec) {
        Qos::Guaranteed => -997,
        Qos::BestEffort => 1000,
        Qos::Burstable => {
            let of = |c: &Container| request(c, "memory").map_or(0, |q| q.units());
            // What a pod requests beyond its containers counts for all of them.
            let rest = amount(whole(spec).and_then(|w| w.requests.as_ref()), "memory").map_or(0, |whole| {
                let count = i64::try_from(all_containers(spec).count()).unwrap_or(i64::MAX).max(1);
                (whole.units() - all_containers(spec).map(of).sum::<i64>()).max(0) / count
            });
            let wanted = of(container).saturating_add(rest);
            let share = i128::from(wanted) * 1000 / i128::from(node_memory.max(1));
            i32::try_from(1000 - share).unwrap_or(3).clamp(3, 999)
        }
    }
}

/// The cgroup limits of a container.
pub(crate) fn container(spec: &PodSpec, container: &Container, node_memory: i64) -> Resources {
    let size = Size::wanted(spec, container);
    let mut resources = size.cpu();
    resources.merge(&size.memory());
    resources.oom_score_adj = Some(oom_score_adj(spec, container, node_memory));
    resources
}

/// The cgroup limits of a whole pod. A resource is limited if the pod or every container limits it.
pub(crate) fn pod(spec: &PodSpec) -> Resources {
    let requests = pod_requests(spec);
    let all = pod_limits(spec);
    let limit = |name: &str| {
        let of_pod = amount(whole(spec).and_then(|w| w.limits.as_ref()), name).is_some();
        let of_all = || all_containers(spec).all(|c| amount(limits(c), name).is_some());
        (of_pod || of_all()).then(|| all.get(name).copied()).flatten().filter(|limit| *limit > 0)
    };
    let cpu_limit = limit("cpu");
    Resources {
        cpu_shares: Some(shares(requests.get("cpu").copied().unwrap_or(0))),
        cpu_quota_us: cpu_limit.map(quota),
        cpu_period_us: cpu_limit.map(|_| PERIOD),
        memory_bytes: limit("memory"),
        ..Resources::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(value: Value) -> PodSpec {
        serde_json::from_value(value).unwrap()
    }

    fn one(requests: Value, limits: Value) -> Value {
        json!({"name": "c", "resources": {"requests": requests, "limits": limits}})
    }

    #[test]
    fn kernel_terms_of_a_container() {
        let c = one(json!({"cpu": "100m", "memory": "100Mi"}), json!({"cpu": "500m", "memory": "200Mi"}));
        let spec = spec(json!({"containers": [c]}));
        let have = container(&spec, &spec.containers[0], 1000 << 20);
        assert_eq!(have.cpu_shares, Some(102));
        assert_eq!(have.cpu_quota_us, Some(50_000));
        assert_eq!(have.memory_bytes, Some(200 << 20));
        assert_eq!(have.oom_score_adj, Some(900));
        assert_eq!(pod(&spec).memory_bytes, Some(200 << 20));
    }

    #[test]
    fn a_pod_is_limited_by_itself_or_by_all_of_its_containers() {
        let (limited, free) = (one(json!({}), json!({"cpu": "1", "memory": "1Mi"})), json!({"name": "d"}));
        let mut sidecar = limited.clone();
        sidecar["restartPolicy"] = "Always".into();
        let memory = |spec_: Value| {
            let have = pod(&spec(spec_));
            (have.cpu_quota_us, have.memory_bytes.map(|bytes| bytes >> 20))
        };
        assert_eq!(memory(json!({"containers": [limited, limited]})), (Some(200_000), Some(2)));
        assert_eq!(memory(json!({"containers": [limited, free]})), (None, None));
        assert_eq!(
            memory(json!({"containers": [limited], "initContainers": [sidecar]})),
            (Some(200_000), Some(2))
        );
        assert_eq!(memory(json!({"containers": [limited], "initContainers": [free]})), (None, None));
        let whole = json!({"limits": {"memory": "8Mi"}});
        assert_eq!(memory(json!({"containers": [limited, free], "resources": whole})), (None, Some(8)));
    }

    #[test]
    fn limits_of_the_pod_are_those_of_containers_without_any() {
        let c = one(json!({}), json!({"memory": "1Mi"}));
        let whole = json!({"requests": {"memory": "100Mi"}, "limits": {"cpu": "2", "memory": "200Mi"}});
        let spec = spec(json!({"containers": [c, {"name": "d"}], "resources": whole}));
        let [c, d] = [0, 1].map(|i| Size::wanted(&spec, &spec.containers[i]));
        assert_eq!((c.quota_us, c.memory_bytes), (Some(200_000), Some(1 << 20)));
        assert_eq!((d.quota_us, d.memory_bytes), (Some(200_000), Some(200 << 20)));
        assert_eq!((d.cpu_limit(), d.requests.memory_bytes), (Some(2000), 0));
        // (100 - 1) MiB for two containers.
        let scores = [0, 1].map(|i| container(&spec, &spec.containers[i], 1000 << 20).oom_score_adj);
        assert_eq!(scores, [Some(950), Some(951)]);
    }
}
