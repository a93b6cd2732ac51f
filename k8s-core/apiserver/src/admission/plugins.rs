//! Built-in admission plugins, in upstream's order and with upstream's names.

mod always;
mod always_pull_images;
mod anti_affinity;
mod certificates;
mod claim_resize;
mod default_storage_class;
mod default_toleration_seconds;
mod device_access;
mod event_rate_limit;
mod extended_resource_toleration;
mod external_ips;
mod image_policy;
mod ingress_class;
mod limit_ranger;
mod namespace_lifecycle;
mod namespaces;
mod node_declared_features;
mod node_restriction;
mod owner_references;
mod param_access;
mod pod_node_selector;
mod pod_resize;
mod pod_security;
mod pod_toleration_restriction;
mod pod_topology_labels;
mod pods;
mod policies;
mod priority;
mod resource_quota;
mod role_escalation;
mod runtime_class;
mod service_account;
mod storage_protection;
mod taint_nodes;
mod webhooks;

use std::sync::Arc;

use k8s_core::{clock::Clock, status::ApiStatus};
use k8s_store::Store;
use serde_json::Value;

use super::{
    Abandoned, Admission, Admit, Configuration, Connection, Deletion, Operation,
    metrics::{Durations, Row, Step},
};
use crate::{auth::Authorization, call::Call, resources::Resource, value::default_text};

/// The parts of a server that plugins are made of.
pub(crate) struct Parts {
    pub(crate) store: Store,
    pub(crate) authorization: Arc<Authorization>,
    pub(crate) clock: Clock,
    pub(crate) metrics: k8s_metrics::Registry,
}

/// A row of the table of built-in plugins.
struct Plugin {
    /// Upstream's name.
    name: &'static str,
    /// True if it is on without being named (`--enable-admission-plugins`).
    default: bool,
    /// Makes the plugin from its configuration, which is null if there is none.
    make: Make,
}

/// Makes a plugin.
///
/// # Errors
/// The problem with its configuration, which names the field.
type Make = fn(&Parts, &Value) -> Result<Arc<dyn Admit>, String>;

/// A plugin that is on without being named.
const fn on(name: &'static str, make: Make) -> Plugin {
    Plugin { name, default: true, make }
}

/// A plugin that is off without being named.
const fn off(name: &'static str, make: Make) -> Plugin {
    Plugin { name, default: false, make }
}

/// Plugins before those of a distribution, in upstream's order.
static PLUGINS: &[Plugin] = &[
    off("AlwaysAdmit", |_, _| Ok(Arc::new(always::AlwaysAdmit))),
    off("NamespaceAutoProvision", |parts, _| {
        let (store, clock) = (parts.store.clone(), parts.clock.clone());
        Ok(Arc::new(namespaces::AutoProvision { store, clock }))
    }),
    on("NamespaceLifecycle", |parts, _| {
        Ok(Arc::new(namespace_lifecycle::NamespaceLifecycle { store: parts.store.clone() }))
    }),
    off("NamespaceExists", |parts, _| Ok(Arc::new(namespaces::Exists { store: parts.store.clone() }))),
    off("LimitPodHardAntiAffinityTopology", |_, _| {
        Ok(Arc::new(anti_affinity::LimitPodHardAntiAffinityTopology))
    }),
    on("LimitRanger", |parts, _| Ok(Arc::new(limit_ranger::LimitRanger { store: parts.store.clone() }))),
    on("ServiceAccount", |parts, _| {
        Ok(Arc::new(service_account::ServiceAccount { store: parts.store.clone() }))
    }),
    on("NodeRestriction", |parts, _| {
        Ok(Arc::new(node_restriction::NodeRestriction {
            store: parts.store.clone(),
            authorization: parts.authorization.clone(),
        }))
    }),
    on("TaintNodesByCondition", |_, _| Ok(Arc::new(taint_nodes::TaintNodesByCondition))),
    off("AlwaysPullImages", |_, _| Ok(Arc::new(always_pull_images::AlwaysPullImages))),
    off("ImagePolicyWebhook", |_, configuration| {
        Ok(Arc::new(image_policy::ImagePolicyWebhook::new(configuration)?))
    }),
    on("PodSecurity", |parts, configuration| {
        Ok(Arc::new(pod_security::PodSecurity::new(parts, configuration)?))
    }),
    off("PodNodeSelector", |parts, configuration| {
        Ok(Arc::new(pod_node_selector::PodNodeSelector::new(parts.store.clone(), configuration)?))
    }),
    on("Priority", |parts, _| Ok(Arc::new(priority::Priority { store: parts.store.clone() }))),
    on("DefaultTolerationSeconds", |_, _| Ok(Arc::new(default_toleration_seconds::DefaultTolerationSeconds))),
    off("PodTolerationRestriction", |parts, configuration| {
        let store = parts.store.clone();
        Ok(Arc::new(pod_toleration_restriction::PodTolerationRestriction::new(store, configuration)?))
    }),
    off("EventRateLimit", |parts, configuration| {
        Ok(Arc::new(event_rate_limit::EventRateLimit::new(parts.clock.clone(), configuration)?))
    }),
    off("ExtendedResourceToleration", |_, _| {
        Ok(Arc::new(extended_resource_toleration::ExtendedResourceToleration))
    }),
    on("DefaultStorageClass", |parts, _| {
        Ok(Arc::new(default_storage_class::DefaultStorageClass { store: parts.store.clone() }))
    }),
    on("StorageObjectInUseProtection", |_, _| Ok(Arc::new(storage_protection::StorageObjectInUseProtection))),
    off("OwnerReferencesPermissionEnforcement", |parts, _| {
        let authorization = parts.authorization.clone();
        Ok(Arc::new(owner_references::OwnerReferencesPermissionEnforcement { authorization }))
    }),
    on("PersistentVolumeClaimResize", |parts, _| {
        Ok(Arc::new(claim_resize::PersistentVolumeClaimResize { store: parts.store.clone() }))
    }),
    on("RuntimeClass", |parts, _| Ok(Arc::new(runtime_class::RuntimeClass { store: parts.store.clone() }))),
    on("CertificateApproval", |parts, _| Ok(Arc::new(certificates::Approval(parts.authorization.clone())))),
    on("CertificateSigning", |parts, _| Ok(Arc::new(certificates::Signing(parts.authorization.clone())))),
    on("ClusterTrustBundleAttest", |parts, _| {
        Ok(Arc::new(certificates::Attest(parts.authorization.clone())))
    }),
    on("CertificateSubjectRestriction", |_, _| Ok(Arc::new(certificates::SubjectRestriction))),
    on("DefaultIngressClass", |parts, _| {
        Ok(Arc::new(ingress_class::DefaultIngressClass { store: parts.store.clone() }))
    }),
    off("DenyServiceExternalIPs", |_, _| Ok(Arc::new(external_ips::DenyServiceExternalIps))),
    on("PodTopologyLabels", |parts, _| {
        Ok(Arc::new(pod_topology_labels::PodTopologyLabels { store: parts.store.clone() }))
    }),
    on("NodeDeclaredFeatureValidator", |parts, _| {
        let store = parts.store.clone();
        Ok(Arc::new(node_declared_features::NodeDeclaredFeatureValidator { store }))
    }),
    on("PodResizeValidator", |parts, _| {
        Ok(Arc::new(pod_resize::PodResizeValidator { store: parts.store.clone() }))
    }),
    on("MutatingAdmissionPolicy", |parts, _| Ok(Arc::new(policies::Mutating::new(parts)))),
    on("MutatingAdmissionWebhook", |parts, _| Ok(Arc::new(webhooks::Mutating::new(parts)))),
    on("ValidatingAdmissionPolicy", |parts, _| Ok(Arc::new(policies::Validating::new(parts)))),
    on("ValidatingAdmissionWebhook", |parts, _| Ok(Arc::new(webhooks::Validating::new(parts)))),
];

/// Plugins after those of a distribution. They refuse and count objects in their final form, and change none.
static LAST: &[Plugin] = &[
    on("ResourceQuota", |parts, configuration| {
        Ok(Arc::new(resource_quota::ResourceQuota::new(parts, configuration)?))
    }),
    off("AlwaysDeny", |_, _| Ok(Arc::new(always::AlwaysDeny))),
];

/// Names of upstream's plugins, in their order (`AllOrderedPlugins` in pkg/kubeapiserver/options/plugins.go).
const UPSTREAM: [&str; 41] = [
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

/// Returns the names of the plugins that this server has, in their order.
pub fn plugins() -> impl Iterator<Item = &'static str> {
    PLUGINS.iter().chain(LAST).map(|plugin| plugin.name)
}

/// Returns the names of the plugins that are on by default, in their order.
///
/// ```
/// let on: Vec<&str> = k8s_apiserver::admission::default_plugins().collect();
/// assert_eq!(on[0], "NamespaceLifecycle");
/// ```
pub fn default_plugins() -> impl Iterator<Item = &'static str> {
    PLUGINS.iter().chain(LAST).filter(|plugin| plugin.default).map(|plugin| plugin.name)
}

/// Admission plugins cannot be made as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PluginError {
    /// No admission plugin has this name. Correct it.
    #[error("admission plugin {name:?} is unknown")]
    Unknown {
        /// The name.
        name: String,
    },
    /// This server has no such plugin. Leave it out.
    #[error("admission plugin {name:?} cannot be turned on: this server does not have it")]
    Missing {
        /// The name.
        name: String,
    },
    /// A plugin is turned on and off. Name it once.
    #[error("admission plugin {name:?} is turned on and off")]
    Contradictory {
        /// The name.
        name: String,
    },
    /// The configuration of a plugin has a wrong value. Correct the field.
    #[error("configuration of the admission plugin {name}: {problem}")]
    Configuration {
        /// Name of the plugin.
        name: String,
        /// The field, and its problem.
        problem: String,
    },
}

/// The choice of built-in plugins.
#[derive(Debug, Default)]
pub(crate) struct Selection {
    /// Names of plugins to turn on.
    pub(crate) on: Vec<String>,
    /// Names of plugins to turn off.
    pub(crate) off: Vec<String>,
    pub(crate) configuration: Configuration,
}

impl Selection {
    /// Checks that upstream has every name, and that this server has those to turn on.
    fn check(&self) -> Result<(), PluginError> {
        let configured = self.configuration.names();
        let mut all = self.on.iter().chain(&self.off).map(String::as_str).chain(configured);
        if let Some(name) = all.find(|name| !UPSTREAM.contains(name)) {
            return Err(PluginError::Unknown { name: name.to_owned() });
        }
        if let Some(name) = self.on.iter().find(|name| !plugins().any(|known| known == **name)) {
            return Err(PluginError::Missing { name: name.clone() });
        }
        match self.on.iter().find(|name| self.off.contains(name)) {
            Some(name) => Err(PluginError::Contradictory { name: name.clone() }),
            None => Ok(()),
        }
    }

    fn has(&self, plugin: &Plugin) -> bool {
        let named = |names: &[String]| names.iter().any(|name| name == plugin.name);
        (plugin.default || named(&self.on)) && !named(&self.off)
    }
}

/// All plugins of a server, in their order.
pub(crate) struct Chain {
    first: Vec<Row>,
    own: Vec<Row>,
    last: Vec<Row>,
    durations: Durations,
    escalation: role_escalation::RoleEscalation,
    params: param_access::ParamAccess,
    devices: device_access::DeviceAccess,
    pod_signing: certificates::PodSigning,
    /// Names of the built-in plugins that are on.
    names: Vec<&'static str>,
}

impl Chain {
    /// The built-in plugins of a selection, with those that a distribution adds.
    ///
    /// # Errors
    /// An unknown name, or a problem with a plugin's configuration.
    pub(crate) fn new(
        parts: &Parts,
        own: Vec<Arc<dyn Admit>>,
        selection: &Selection,
    ) -> Result<Self, PluginError> {
        selection.check()?;
        let durations = Durations::new(&parts.metrics);
        let make = |plugins: &[Plugin]| {
            let chosen = plugins.iter().filter(|plugin| selection.has(plugin));
            let made = chosen.map(|plugin| {
                let made = (plugin.make)(parts, selection.configuration.of(plugin.name));
                made.map(|made| durations.row(plugin.name, made))
                    .map_err(|problem| PluginError::Configuration { name: plugin.name.to_owned(), problem })
            });
            made.collect::<Result<Vec<_>, _>>()
        };
        let escalation = role_escalation::RoleEscalation { authorization: parts.authorization.clone() };
        let params = param_access::ParamAccess { authorization: parts.authorization.clone() };
        let devices = device_access::DeviceAccess { authorization: parts.authorization.clone() };
        let pod_signing = certificates::PodSigning(parts.authorization.clone());
        let names =
            PLUGINS.iter().chain(LAST).filter(|plugin| selection.has(plugin)).map(|p| p.name).collect();
        let own = own.into_iter().map(|plugin| durations.row("extension", plugin)).collect();
        let (first, last) = (make(PLUGINS)?, make(LAST)?);
        Ok(Chain { first, own, last, durations, escalation, params, devices, pod_signing, names })
    }

    /// Returns true if a built-in plugin is on.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.names.contains(&name)
    }

    /// Lets each plugin change or refuse an object. Plugins of a distribution are not asked about updates of
    /// `scale` ([`own`](Self::own) is).
    ///
    /// # Errors
    /// The first refusal.
    pub(crate) async fn admit(&self, admission: &mut Admission<'_>) -> Result<(), ApiStatus> {
        let operation = admission.operation;
        self.durations.step(Step::Admit, operation, self.rounds(admission)).await
    }

    async fn rounds(&self, admission: &mut Admission<'_>) -> Result<(), ApiStatus> {
        self.round(admission).await?;
        if std::mem::take(&mut admission.rounds.wanted) {
            admission.rounds.again = true;
            self.round(admission).await?;
        }
        // Upstream has this check in the storage of its RBAC kinds: after everything that changes a role.
        self.escalation.admit(admission).await
    }

    async fn round(&self, admission: &mut Admission<'_>) -> Result<(), ApiStatus> {
        for row in &self.first {
            self.admit_one(row, admission).await?;
        }
        if admission.request.subresource != "scale" {
            self.own(admission).await?;
        }
        Ok(())
    }

    async fn admit_one(&self, row: &Row, admission: &mut Admission<'_>) -> Result<(), ApiStatus> {
        let operation = admission.operation;
        if !row.plugin.handles(operation, admission.resource, &admission.request.subresource) {
            return Ok(());
        }
        self.durations.plugin(row, Step::Admit, operation, row.plugin.admit(admission)).await
    }

    /// Lets each plugin of a distribution change or refuse an object.
    ///
    /// # Errors
    /// The first refusal.
    pub(crate) async fn own(&self, admission: &mut Admission<'_>) -> Result<(), ApiStatus> {
        for row in &self.own {
            self.admit_one(row, admission).await?;
        }
        if !self.own.is_empty() && matches!(admission.request.subresource.as_str(), "" | "scale") {
            // Fields that a plugin added have their defaults, too.
            admission.resource.default(admission.object);
        }
        Ok(())
    }

    /// Lets each plugin change or refuse an object that is posted to a subresource: a Binding, Eviction or
    /// TokenRequest.
    ///
    /// # Errors
    /// The first refusal.
    pub(crate) async fn posted(
        &self,
        call: &Call,
        resource: &Resource,
        object: &mut Value,
        dry_run: bool,
    ) -> Result<(), ApiStatus> {
        if let Some(part) = resource.subresource(&call.info.subresource) {
            let version = part.group_version.as_ref().map(|(group, version)| format!("{group}/{version}"));
            default_text(object, "kind", &part.kind);
            default_text(object, "apiVersion", version.as_deref().unwrap_or(&resource.api_version()));
        }
        let mut admission = Admission::new(call, resource, object, None, dry_run);
        self.admit(&mut admission).await?;
        self.validate(&admission).await
    }

    /// Lets each plugin refuse an object in its final form.
    ///
    /// # Errors
    /// The first refusal.
    pub(crate) async fn validate(&self, admission: &Admission<'_>) -> Result<(), ApiStatus> {
        self.durations.step(Step::Validate, admission.operation, self.validate_all(admission)).await
    }

    async fn validate_all(&self, admission: &Admission<'_>) -> Result<(), ApiStatus> {
        self.params.check(admission).await?;
        self.devices.check(admission).await?;
        self.pod_signing.check(admission).await?;
        let operation = admission.operation;
        for row in self.all(operation, admission.resource, &admission.request.subresource) {
            let work = row.plugin.validate(admission);
            if let Err(refusal) = self.durations.plugin(row, Step::Validate, operation, work).await {
                self.abandon(admission.call).await;
                return Err(refusal);
            }
        }
        Ok(())
    }

    /// Lets each plugin take back what it did about a write that was validated and did not happen.
    pub(crate) async fn abandon(&self, call: &Call) {
        for row in self.first.iter().chain(&self.own).chain(&self.last) {
            row.plugin.abandon(&Abandoned { call }).await;
        }
    }

    /// Lets each plugin refuse a deletion.
    ///
    /// # Errors
    /// The first refusal.
    pub(crate) async fn delete(&self, deletion: &Deletion<'_>) -> Result<(), ApiStatus> {
        let all = async {
            for row in self.all(Operation::Delete, deletion.resource, "") {
                let work = row.plugin.delete(deletion);
                self.durations.plugin(row, Step::Validate, Operation::Delete, work).await?;
            }
            Ok(())
        };
        self.durations.step(Step::Validate, Operation::Delete, all).await
    }

    /// Lets each plugin refuse a connection.
    ///
    /// # Errors
    /// The first refusal.
    pub(crate) async fn connect(&self, connection: &Connection<'_>) -> Result<(), ApiStatus> {
        let part = &connection.request.subresource;
        let all = async {
            for row in self.all(Operation::Connect, connection.resource, part) {
                let work = row.plugin.connect(connection);
                self.durations.plugin(row, Step::Validate, Operation::Connect, work).await?;
            }
            Ok(())
        };
        self.durations.step(Step::Validate, Operation::Connect, all).await
    }

    fn all<'a>(
        &'a self,
        operation: Operation,
        resource: &'a Resource,
        part: &'a str,
    ) -> impl Iterator<Item = &'a Row> {
        let all = self.first.iter().chain(&self.own).chain(&self.last);
        all.filter(move |row| row.plugin.handles(operation, resource, part))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugins_have_upstreams_names_and_order() {
        let places: Vec<usize> =
            plugins().map(|p| UPSTREAM.iter().position(|name| *name == p).expect(p)).collect();
        assert!(places.is_sorted_by(|a, b| a < b), "{places:?}");
    }
}
