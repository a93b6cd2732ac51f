//! Per-type rules of PUT: create on update, unconditional update.

use crate::resources::Resource;

/// Types for which PUT creates a missing object.
const CREATE_ON_UPDATE: [&str; 10] = [
    "clusterrolebindings.rbac.authorization.k8s.io",
    "clusterroles.rbac.authorization.k8s.io",
    "endpoints",
    "events",
    "leases.coordination.k8s.io",
    "limitranges",
    "priorityclasses.scheduling.k8s.io",
    "rolebindings.rbac.authorization.k8s.io",
    "roles.rbac.authorization.k8s.io",
    "services",
];

/// Types for which PUT requires a resourceVersion.
const CONDITIONAL: [&str; 12] = [
    "apiservices.apiregistration.k8s.io",
    "csidrivers.storage.k8s.io",
    "csinodes.storage.k8s.io",
    "customresourcedefinitions.apiextensions.k8s.io",
    "leases.coordination.k8s.io",
    "mutatingwebhookconfigurations.admissionregistration.k8s.io",
    "poddisruptionbudgets.policy",
    "runtimeclasses.node.k8s.io",
    "validatingadmissionpolicies.admissionregistration.k8s.io",
    "validatingadmissionpolicybindings.admissionregistration.k8s.io",
    "validatingwebhookconfigurations.admissionregistration.k8s.io",
    "volumeattachments.storage.k8s.io",
];

/// Returns true if PUT creates a missing object.
pub(super) fn creates(resource: &Resource) -> bool {
    CREATE_ON_UPDATE.contains(&&*resource.storage)
}

/// Returns true if PUT requires a resourceVersion.
pub(super) fn is_conditional(resource: &Resource) -> bool {
    resource.custom || CONDITIONAL.contains(&&*resource.storage)
}
