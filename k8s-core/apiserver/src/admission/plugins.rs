//! Built-in admission plugins, in upstream's order and with upstream's names.

mod default_storage_class;
mod default_toleration_seconds;
mod namespace_lifecycle;
mod priority;
mod role_escalation;
mod service_account;

use std::sync::Arc;

use k8s_core::status::ApiStatus;
use k8s_store::Store;

use super::{Admission, Admit, Deletion};
use crate::auth::Authorization;

/// The parts of a server that plugins are made of.
pub(crate) struct Parts {
    pub(crate) store: Store,
    pub(crate) authorization: Arc<Authorization>,
}

/// A row of the table of built-in plugins.
struct Plugin {
    name: &'static str,
    make: fn(&Parts) -> Arc<dyn Admit>,
}

/// Plugins before those of a distribution, in upstream's order.
static PLUGINS: &[Plugin] = &[
    Plugin {
        name: "NamespaceLifecycle",
        make: |parts| Arc::new(namespace_lifecycle::NamespaceLifecycle { store: parts.store.clone() }),
    },
    Plugin {
        name: "ServiceAccount",
        make: |parts| Arc::new(service_account::ServiceAccount { store: parts.store.clone() }),
    },
    Plugin { name: "Priority", make: |parts| Arc::new(priority::Priority { store: parts.store.clone() }) },
    Plugin {
        name: "DefaultTolerationSeconds",
        make: |_| Arc::new(default_toleration_seconds::DefaultTolerationSeconds),
    },
    Plugin {
        name: "DefaultStorageClass",
        make: |parts| Arc::new(default_storage_class::DefaultStorageClass { store: parts.store.clone() }),
    },
];

/// Names of upstream's plugins, in their order (`AllOrderedPlugins` in pkg/kubeapiserver/options/plugins.go).
pub(crate) const UPSTREAM: [&str; 41] = [
    "AlwaysAdmit",
    "NamespaceAutoProvision",
    "NamespaceLifecycle",
    "NamespaceExists",
    "LimitPodHardAntiAffinityTopology",
    "LimitRanger",
    "ServiceAccount",
    "NodeRestriction",
    "TaintNodesByCondition",
    "AlwaysPullImages",
    "ImagePolicyWebhook",
    "PodSecurity",
    "PodNodeSelector",
    "Priority",
    "DefaultTolerationSeconds",
    "PodTolerationRestriction",
    "EventRateLimit",
    "ExtendedResourceToleration",
    "DefaultStorageClass",
    "StorageObjectInUseProtection",
    "PodGroupProtection",
    "OwnerReferencesPermissionEnforcement",
    "PersistentVolumeClaimResize",
    "RuntimeClass",
    "CertificateApproval",
    "CertificateSigning",
    "ClusterTrustBundleAttest",
    "CertificateSubjectRestriction",
    "DefaultIngressClass",
    "DenyServiceExternalIPs",
    "PodTopologyLabels",
    "PodGroupWorkloadExists",
    "NodeDeclaredFeatureValidator",
    "JobValidation",
    "PodResizeValidator",
    "MutatingAdmissionPolicy",
    "MutatingAdmissionWebhook",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionWebhook",
    "ResourceQuota",
    "AlwaysDeny",
];

/// Plugins after those of a distribution. Upstream has this check in the storage of its RBAC kinds.
static LAST: &[Plugin] = &[Plugin {
    name: "RoleEscalation",
    make: |parts| Arc::new(role_escalation::RoleEscalation { authorization: parts.authorization.clone() }),
}];

/// All plugins of a server, in their order.
pub(crate) struct Chain {
    first: Vec<Arc<dyn Admit>>,
    own: Vec<Arc<dyn Admit>>,
    last: Vec<Arc<dyn Admit>>,
}

impl Chain {
    /// The built-in plugins but those named in `off`, with those that a distribution adds.
    pub(crate) fn new(parts: &Parts, own: Vec<Arc<dyn Admit>>, off: &[String]) -> Self {
        let make = |plugins: &[Plugin]| {
            plugins
                .iter()
                .filter(|plugin| !off.iter().any(|name| name == plugin.name))
                .map(|plugin| {
                    tracing::trace!(plugin = plugin.name, "admission plugin");
                    (plugin.make)(parts)
                })
                .collect()
        };
        Chain { first: make(PLUGINS), own, last: make(LAST) }
    }

    /// Lets each plugin change or refuse an object.
    ///
    /// # Errors
    /// The first refusal.
    pub(crate) async fn admit(&self, admission: &mut Admission<'_>) -> Result<(), ApiStatus> {
        for plugin in self.first.iter().chain(&self.own) {
            plugin.admit(admission).await?;
        }
        if !self.own.is_empty() {
            // Fields that a plugin added have their defaults, too.
            admission.resource.default(admission.object);
        }
        for plugin in &self.last {
            plugin.admit(admission).await?;
        }
        Ok(())
    }

    /// Lets each plugin refuse an object in its final form.
    ///
    /// # Errors
    /// The first refusal.
    pub(crate) async fn validate(&self, admission: &Admission<'_>) -> Result<(), ApiStatus> {
        for plugin in self.all() {
            plugin.validate(admission).await?;
        }
        Ok(())
    }

    /// Lets each plugin refuse a deletion.
    ///
    /// # Errors
    /// The first refusal.
    pub(crate) async fn delete(&self, deletion: &Deletion<'_>) -> Result<(), ApiStatus> {
        for plugin in self.all() {
            plugin.delete(deletion).await?;
        }
        Ok(())
    }

    fn all(&self) -> impl Iterator<Item = &Arc<dyn Admit>> {
        self.first.iter().chain(&self.own).chain(&self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugins_have_upstreams_names_and_order() {
        let places: Vec<usize> =
            PLUGINS.iter().map(|p| UPSTREAM.iter().position(|name| *name == p.name).expect(p.name)).collect();
        assert!(places.is_sorted_by(|a, b| a < b), "{places:?}");
    }
}
