//! What simulated pods use: what their annotations say, else what they request.

use std::time::Duration;

use k8s_core::{
    api::{
        api::core::v1::{Container, Pod},
        jiff::Timestamp,
    },
    meta::{ObjectExt, Quantity},
};

/// Pod annotation: CPUs that each of its containers uses (`250m`).
pub const USAGE_CPU: &str = "kwok.x-k8s.io/usage-cpu";
/// Pod annotation: memory that each of its containers uses (`64Mi`).
pub const USAGE_MEMORY: &str = "kwok.x-k8s.io/usage-memory";

/// Use of a container or of several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Thousandths of a CPU.
    pub(crate) cpu_milli: u64,
    /// CPU time since the start, nanoseconds.
    pub(crate) cpu_nanos: u64,
    /// Bytes.
    pub(crate) memory: u64,
}

impl Usage {
    pub(crate) fn plus(self, other: Usage) -> Usage {
        Usage {
            cpu_milli: self.cpu_milli.saturating_add(other.cpu_milli),
            cpu_nanos: self.cpu_nanos.saturating_add(other.cpu_nanos),
            memory: self.memory.saturating_add(other.memory),
        }
    }
}

/// A running container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ContainerUsage {
    pub(crate) name: String,
    pub(crate) started: Timestamp,
    pub(crate) usage: Usage,
}

/// Returns the use of the running containers of a pod.
pub(crate) fn containers(pod: &Pod, now: Timestamp) -> Vec<ContainerUsage> {
    let statuses = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
    let running = statuses.filter_map(|status| {
        let started = status.state.as_ref()?.running.as_ref()?.started_at.as_ref()?.0;
        let container = pod.spec.as_ref()?.containers.iter().find(|c| c.name == status.name)?;
        let cpu_milli = amount(pod, container, USAGE_CPU, "cpu", Quantity::milli);
        let memory = amount(pod, container, USAGE_MEMORY, "memory", Quantity::units);
        let ran = Duration::try_from(now.duration_since(started)).unwrap_or_default();
        let cpu_nanos = ran.as_nanos() * u128::from(cpu_milli) / 1000;
        let usage = Usage { cpu_milli, memory, cpu_nanos: u64::try_from(cpu_nanos).unwrap_or(u64::MAX) };
        Some(ContainerUsage { name: status.name.clone(), started, usage })
    });
    running.collect()
}

fn amount(
    pod: &Pod,
    container: &Container,
    annotation: &str,
    resource: &str,
    unit: fn(&Quantity) -> i64,
) -> u64 {
    let said = pod.annotation(annotation).and_then(|text| text.parse::<Quantity>().ok());
    let requested = || {
        let requests = container.resources.as_ref()?.requests.as_ref()?;
        requests.get(resource)?.0.parse::<Quantity>().ok()
    };
    let quantity = said.or_else(requested);
    quantity.and_then(|quantity| u64::try_from(unit(&quantity)).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_uses_what_it_says_or_requests() {
        let now = Timestamp::from_second(108).expect("a time");
        let mut pod: Pod = serde_json::from_value(json!({
            "spec": {"containers": [
                {"name": "a", "resources": {"requests": {"cpu": "250m", "memory": "64Mi"}}}, {"name": "b"},
            ]},
            "status": {"containerStatuses": [
                {"name": "a", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                    "state": {"running": {"startedAt": "1970-01-01T00:01:40Z"}}},
                {"name": "b", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                    "state": {"waiting": {}}},
            ]},
        }))
        .expect("a pod");
        let used = containers(&pod, now);
        assert_eq!(used.len(), 1);
        let wanted = Usage { cpu_milli: 250, cpu_nanos: 2_000_000_000, memory: 64 << 20 };
        assert_eq!(used[0].usage, wanted);
        pod.set_annotation(USAGE_CPU, "2");
        pod.set_annotation(USAGE_MEMORY, "nonsense");
        let usage = containers(&pod, now)[0].usage;
        assert_eq!((usage.cpu_milli, usage.memory), (2000, 64 << 20));
    }
}
