//! Trims pods in the caches of the built-in controllers and the scheduler: drops fields that only a node
//! reads, which are most of a pod's memory.

use k8s_core::api::api::core::v1::{Container, ContainerStatus, Pod, Volume};

use k8s_controllers::Caches;

/// Annotation in which `kubectl apply` stores the applied configuration.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Returns caches for the built-in controllers and the scheduler. Their pods keep metadata, scheduling
/// fields, requests, ports, claims, phase, conditions and exit codes; commands, environment, mounts, probes
/// and image digests are dropped.
#[must_use]
pub fn trimmed(caches: Caches) -> Caches {
    caches.trimmed::<Pod>(pod)
}

fn pod(pod: &mut Pod) {
    if let Some(annotations) = &mut pod.metadata.annotations {
        annotations.remove(LAST_APPLIED);
    }
    if let Some(spec) = &mut pod.spec {
        spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()).for_each(container);
        spec.ephemeral_containers = None;
        spec.host_aliases = None;
        spec.dns_config = None;
        spec.security_context = None;
        if let Some(volumes) = &mut spec.volumes {
            volumes.retain(|v| !is_made_by_the_node(v));
        }
    }
    if let Some(status) = &mut pod.status {
        let all = [&mut status.container_statuses, &mut status.init_container_statuses];
        all.into_iter().flatten().flatten().for_each(container_status);
        status.ephemeral_container_statuses = None;
    }
}

/// Keeps name, image, ports, requests and restart policy.
fn container(container: &mut Container) {
    let full = std::mem::take(container);
    *container = Container {
        name: full.name,
        image: full.image,
        ports: full.ports,
        resources: full.resources.map(|mut resources| {
            resources.limits = None;
            resources
        }),
        restart_policy: full.restart_policy,
        restart_policy_rules: full.restart_policy_rules,
        ..Container::default()
    };
}

/// Keeps name, states, readiness, restarts, and the requests that the node has given.
fn container_status(status: &mut ContainerStatus) {
    let full = std::mem::take(status);
    *status = ContainerStatus {
        name: full.name,
        ready: full.ready,
        started: full.started,
        restart_count: full.restart_count,
        state: full.state,
        last_state: full.last_state,
        allocated_resources: full.allocated_resources,
        resources: full.resources.map(|mut resources| {
            resources.limits = None;
            resources
        }),
        ..ContainerStatus::default()
    };
}

/// Returns true for volumes that do not constrain the node.
fn is_made_by_the_node(volume: &Volume) -> bool {
    volume.projected.is_some()
        || volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.empty_dir.is_some()
        || volume.downward_api.is_some()
        || volume.host_path.is_some()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_decides_stays_and_what_runs_goes() {
        let mut trimmed: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "annotations": {LAST_APPLIED: "{}", "controller.kubernetes.io/pod-deletion-cost": "3"}},
            "spec": {
                "nodeName": "n", "tolerations": [{"key": "a"}],
                "containers": [{"name": "c", "image": "i", "command": ["x"], "env": [{"name": "A", "value": "1"}],
                    "ports": [{"name": "web", "containerPort": 80}],
                    "resources": {"requests": {"cpu": "1"}, "limits": {"cpu": "2"}}}],
                "volumes": [{"name": "t", "projected": {"sources": []}}, {"name": "d", "persistentVolumeClaim": {"claimName": "x"}}],
            },
            "status": {"phase": "Failed", "containerStatuses": [{"name": "c", "image": "i", "imageID": "sha256:0", "ready": false,
                "restartCount": 2, "state": {"terminated": {"exitCode": 3}}, "allocatedResources": {"cpu": "1"}}]},
        }))
        .unwrap();
        pod(&mut trimmed);
        let left = serde_json::to_value(&trimmed).unwrap();
        assert_eq!(
            left["spec"],
            json!({
                "nodeName": "n", "tolerations": [{"key": "a"}],
                "containers": [{"name": "c", "image": "i", "ports": [{"name": "web", "containerPort": 80}], "resources": {"requests": {"cpu": "1"}}}],
                "volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "x"}}],
            })
        );
        assert_eq!(
            left["metadata"]["annotations"],
            json!({"controller.kubernetes.io/pod-deletion-cost": "3"})
        );
        assert_eq!(left["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"], 3);
        assert_eq!(left["status"]["containerStatuses"][0]["allocatedResources"], json!({"cpu": "1"}));
    }
}
