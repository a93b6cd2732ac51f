//! The built-in controllers by name, for `Lab::controllers`.
//!
//! ```
//! use k8s_testing::{Lab, controllers::{deployment, replica_set, garbage_collector}};
//!
//! let lab = Lab::new().controllers([deployment(), replica_set(), garbage_collector()]);
//! ```

use k8s_builtin as builtin;
use k8s_builtin::BuiltIn;

/// A built-in controller by the name or older name that `--controllers` knows it by.
#[must_use]
pub fn named(name: &str) -> Option<&'static BuiltIn> {
    builtin::ALL.iter().find(|row| row.name == name || row.alias == name)
}

/// All that are on by default.
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
    /// Deployments.
    deployment = "deployment";
    /// ReplicaSets.
    replica_set = "replicaset";
    /// ReplicationControllers.
    replication_controller = "replicationcontroller";
    /// DaemonSets.
    daemon_set = "daemonset";
    /// Jobs.
    job = "job";
    /// Finished Jobs whose time to live is over.
    ttl_after_finished = "ttl-after-finished";
    /// CronJobs.
    cron_job = "cronjob";
    /// Owner references.
    garbage_collector = "garbagecollector";
    /// Namespaces that are deleted.
    namespace = "namespace";
    /// EndpointSlices.
    endpoint_slice = "endpointslice";
    /// Endpoints.
    endpoints = "endpoint";
    /// The default service account of each namespace.
    service_account = "serviceaccount";
    /// The certificate authority in each namespace.
    root_ca = "root-ca-cert-publisher";
    /// Nodes without heartbeats.
    node_lifecycle = "nodelifecycle";
    /// Taints that evict.
    taint_eviction = "tainteviction";
    /// Ended and orphaned pods.
    pod_gc = "podgc";
    /// PersistentVolumes and claims.
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
