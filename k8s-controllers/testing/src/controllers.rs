//! The built-in controllers by name, for `Lab::controllers`.
//!
//! ```
//! use k8s_testing::{Lab, controllers::{deployment, replica_set, garbage_collector}};
//!
//! let lab = Lab::new().controllers([deployment(), replica_set(), garbage_collector()]);
//! ```

use k8s_builtin as builtin;
use k8s_builtin::BuiltIn;

/// Returns a built-in controller by its name or alias, as for `--controllers`.
#[must_use]
pub fn named(name: &str) -> Option<&'static BuiltIn> {
    builtin::ALL.iter().find(|row| row.name == name || row.alias == name)
}

/// Returns all controllers that are on by default.
#[must_use]
pub fn all() -> Vec<&'static BuiltIn> {
    builtin::all().rows().collect()
}

macro_rules! by_name {
    ($($(#[$doc:meta])* $function:ident = $name:literal;)*) => {
        $($(#[$doc])*
        #[must_use]
        pub fn $function() -> &'static BuiltIn {
            named($name).unwrap_or_else(|| unreachable!("the tests look all of them up"))
        })*

        #[cfg(test)]
        const NAMES: &[&str] = &[$($name),*];
    };
}

by_name! {
    /// The Deployment controller: rollouts by ReplicaSets.
    deployment = "deployment";
    /// The ReplicaSet controller.
    replica_set = "replicaset";
    /// The ReplicationController controller.
    replication_controller = "replicationcontroller";
    /// Computes the status of PodDisruptionBudgets.
    disruption = "disruption";
    /// Scales the targets of HorizontalPodAutoscalers.
    autoscaler = "horizontalpodautoscaling";
    /// The StatefulSet controller.
    stateful_set = "statefulset";
    /// The DaemonSet controller.
    daemon_set = "daemonset";
    /// The Job controller.
    job = "job";
    /// Deletes finished Jobs after `ttlSecondsAfterFinished`.
    ttl_after_finished = "ttl-after-finished";
    /// The CronJob controller.
    cron_job = "cronjob";
    /// The garbage collector: cascading deletion by owner references.
    garbage_collector = "garbagecollector";
    /// Empties and removes deleted namespaces.
    namespace = "namespace";
    /// Maintains the EndpointSlices of Services.
    endpoint_slice = "endpointslice";
    /// Maintains the legacy Endpoints of Services.
    endpoints = "endpoint";
    /// Creates the default service account of each namespace.
    service_account = "serviceaccount";
    /// Publishes the cluster's CA certificate in each namespace.
    root_ca = "root-ca-cert-publisher";
    /// Marks and taints nodes without heartbeats.
    node_lifecycle = "nodelifecycle";
    /// Evicts pods from nodes with `NoExecute` taints.
    taint_eviction = "tainteviction";
    /// Deletes terminated and orphaned pods.
    pod_gc = "podgc";
    /// Counts the usage of ResourceQuotas.
    resource_quota = "resourcequota";
    /// Writes the annotation `node.alpha.kubernetes.io/ttl` of nodes.
    node_ttl = "ttl";
    /// Attaches CSI volumes to the nodes of their pods.
    attach_detach = "attachdetach";
    /// Keeps claims that pods use.
    pvc_protection = "pvc-protection";
    /// Keeps volumes that are bound.
    pv_protection = "pv-protection";
    /// Creates the claims of generic ephemeral volumes.
    ephemeral_volume = "ephemeral-volume";
    /// Makes the ResourceClaims of pods, and releases them.
    resource_claim = "resourceclaim-controller";
    /// Binds PersistentVolumes to claims.
    persistent_volume_binder = "persistentvolume-binder";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_one_of_the_table() {
        for name in NAMES {
            assert!(named(name).is_some(), "{name}");
        }
        assert!(named("nonsense").is_none());
    }
}
