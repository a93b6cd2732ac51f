//! What PUT means beyond replacing an object, type by type.

use crate::resources::Resource;

/// Types of which a PUT makes an object that is not there.
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

/// Types of which a PUT must say what version it replaces.
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

/// Whether a PUT makes an object that is not there.
pub(super) fn creates(resource: &Resource) -> bool {
    CREATE_ON_UPDATE.contains(&&*resource.storage)
}

/// Whether a PUT must have a resourceVersion.
pub(super) fn is_conditional(resource: &Resource) -> bool {
    resource.custom || CONDITIONAL.contains(&&*resource.storage)
}
