//! Printer columns of the core, apps, batch and networking groups and their neighbours.

use jiff::Timestamp;
use serde_json::Value;

use super::{
    AGE, CONTAINERS, CREATED_AT, Cell, Column, IMAGES, NAME, SELECTOR, age, cells::*, computed, count,
    human_duration, number, path, typed, wide,
};
use crate::value::{array_at, bool_at, int_at, object_at, str_at};

pub(in crate::resources) const DEFAULT: [Column; 2] = [NAME, CREATED_AT];
pub(in crate::resources) const CONFIGMAPS: [Column; 3] = [NAME, count("Data", data_count), AGE];
pub(in crate::resources) const SECRETS: [Column; 4] =
    [NAME, path("Type", "/type"), count("Data", data_count), AGE];
pub(in crate::resources) const SERVICEACCOUNTS: [Column; 2] = [NAME, AGE];
pub(in crate::resources) const ENDPOINTS: [Column; 3] = [NAME, computed("Endpoints", endpoints), AGE];
pub(in crate::resources) const NAMESPACES: [Column; 3] = [NAME, path("Status", "/status/phase"), AGE];
pub(in crate::resources) const RESOURCEQUOTAS: [Column; 4] = [
    NAME,
    computed("Request", |o, _| quota_amounts(o, false)),
    computed("Limit", |o, _| quota_amounts(o, true)),
    AGE,
];
pub(in crate::resources) const PODTEMPLATES: [Column; 4] = [
    NAME,
    computed("Containers", |o, _| template_containers(o, "name")),
    computed("Images", |o, _| template_containers(o, "image")),
    computed("Pod Labels", |o, _| selector_text(o.pointer("/template/metadata/labels")).into()),
];
pub(in crate::resources) const CONTROLLERREVISIONS: [Column; 4] = [
    NAME,
    computed("Controller", |o, _| revision_owner(o)),
    computed("Revision", |o, _| int_at(o, "/revision").unwrap_or(0).into()),
    AGE,
];
pub(in crate::resources) const IPADDRESSES: [Column; 2] = [NAME, computed("ParentRef", |o, _| parent(o))];
pub(in crate::resources) const SERVICECIDRS: [Column; 3] =
    [NAME, computed("CIDRs", |o, _| joined(texts(array_at(o, "/spec/cidrs")), "")), AGE];
pub(in crate::resources) const LEASES: [Column; 3] = [NAME, path("Holder", "/spec/holderIdentity"), AGE];
pub(in crate::resources) const ROLES: [Column; 2] = [NAME, CREATED_AT];
pub(in crate::resources) const CLUSTERROLES: [Column; 2] = [NAME, CREATED_AT];
pub(in crate::resources) const CUSTOMRESOURCEDEFINITIONS: [Column; 2] = [NAME, CREATED_AT];
pub(in crate::resources) const ROLEBINDINGS: [Column; 6] = [
    NAME,
    computed("Role", role_of),
    AGE,
    wide(computed("Users", |o, _| subjects(o, "User"))),
    wide(computed("Groups", |o, _| subjects(o, "Group"))),
    wide(computed("ServiceAccounts", |o, _| subjects(o, "ServiceAccount"))),
];
pub(in crate::resources) const CLUSTERROLEBINDINGS: [Column; 6] = ROLEBINDINGS;
pub(in crate::resources) const EVENTS: [Column; 10] = [
    computed("Last Seen", event_last_seen),
    path("Type", "/type"),
    path("Reason", "/reason"),
    computed("Object", event_object),
    wide(path("Subobject", "/involvedObject/fieldPath")),
    wide(computed("Source", event_source)),
    computed("Message", |o, _| str_at(o, "/message").trim().into()),
    wide(computed("First Seen", event_first_seen)),
    wide(computed("Count", event_count)),
    wide(NAME),
];
pub(in crate::resources) const NODES: [Column; 10] = [
    NAME,
    computed("Status", node_status),
    computed("Roles", node_roles),
    AGE,
    path("Version", "/status/nodeInfo/kubeletVersion"),
    wide(computed("Internal-IP", |o, _| node_address(o, "InternalIP"))),
    wide(computed("External-IP", |o, _| node_address(o, "ExternalIP"))),
    wide(path("OS-Image", "/status/nodeInfo/osImage")),
    wide(path("Kernel-Version", "/status/nodeInfo/kernelVersion")),
    wide(path("Container-Runtime", "/status/nodeInfo/containerRuntimeVersion")),
];
pub(in crate::resources) const PODS: [Column; 9] = [
    NAME,
    computed("Ready", pod_ready),
    computed("Status", pod_status),
    computed("Restarts", pod_restarts),
    AGE,
    wide(computed("IP", |o, _| or_none(str_at(o, "/status/podIP")))),
    wide(computed("Node", |o, _| or_none(str_at(o, "/spec/nodeName")))),
    wide(computed("Nominated Node", |o, _| or_none(str_at(o, "/status/nominatedNodeName")))),
    wide(computed("Readiness Gates", pod_gates)),
];
pub(in crate::resources) const SERVICES: [Column; 7] = [
    NAME,
    path("Type", "/spec/type"),
    computed("Cluster-IP", |o, _| or_none(str_at(o, "/spec/clusterIP"))),
    computed("External-IP", service_external),
    computed("Port(s)", service_ports),
    AGE,
    wide(computed("Selector", |o, _| selector_text(o.pointer("/spec/selector")).into())),
];
pub(in crate::resources) const REPLICASETS: [Column; 8] = [
    NAME,
    number("Desired", "/spec/replicas"),
    number("Current", "/status/replicas"),
    number("Ready", "/status/readyReplicas"),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];
pub(in crate::resources) const REPLICATIONCONTROLLERS: [Column; 8] = REPLICASETS;
pub(in crate::resources) const DEPLOYMENTS: [Column; 8] = [
    NAME,
    computed("Ready", |o, _| ratio(o, "/status/readyReplicas", "/spec/replicas")),
    count("Up-to-date", |o, _| int_at(o, "/status/updatedReplicas").unwrap_or(0).into()),
    count("Available", |o, _| int_at(o, "/status/availableReplicas").unwrap_or(0).into()),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];
pub(in crate::resources) const STATEFULSETS: [Column; 5] = [
    NAME,
    computed("Ready", |o, _| ratio(o, "/status/readyReplicas", "/spec/replicas")),
    AGE,
    CONTAINERS,
    IMAGES,
];
pub(in crate::resources) const DAEMONSETS: [Column; 11] = [
    NAME,
    number("Desired", "/status/desiredNumberScheduled"),
    number("Current", "/status/currentNumberScheduled"),
    number("Ready", "/status/numberReady"),
    number("Up-to-date", "/status/updatedNumberScheduled"),
    number("Available", "/status/numberAvailable"),
    computed("Node Selector", |o, _| selector_text(o.pointer("/spec/template/spec/nodeSelector")).into()),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];
pub(in crate::resources) const JOBS: [Column; 8] = [
    NAME,
    computed("Status", job_status),
    computed("Completions", job_completions),
    computed("Duration", job_duration),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];
pub(in crate::resources) const CRONJOBS: [Column; 10] = [
    NAME,
    path("Schedule", "/spec/schedule"),
    computed("Timezone", |o, _| or_none(str_at(o, "/spec/timeZone"))),
    typed("boolean", computed("Suspend", |o, _| truth_text(bool_at(o, "/spec/suspend")))),
    typed("integer", count("Active", |o, _| array_at(o, "/status/active").len().into())),
    computed("Last Schedule", |o, now| match str_at(o, "/status/lastScheduleTime") {
        "" => "<none>".into(),
        time => age(time, now).into(),
    }),
    AGE,
    CONTAINERS,
    IMAGES,
    wide(computed("Selector", |_, _| "<none>".into())),
];
pub(in crate::resources) const INGRESSES: [Column; 6] = [
    NAME,
    computed("Class", |o, _| or_none(str_at(o, "/spec/ingressClassName"))),
    computed("Hosts", ingress_hosts),
    computed("Address", ingress_address),
    computed("Ports", |o, _| if array_at(o, "/spec/tls").is_empty() { "80" } else { "80, 443" }.into()),
    AGE,
];
pub(in crate::resources) const INGRESSCLASSES: [Column; 4] = [
    NAME,
    path("Controller", "/spec/controller"),
    computed("Parameters", |o, _| or_none(str_at(o, "/spec/parameters/name"))),
    AGE,
];
pub(in crate::resources) const NETWORKPOLICIES: [Column; 3] =
    [NAME, computed("Pod-Selector", |o, _| selector_text(o.pointer("/spec/podSelector")).into()), AGE];
pub(in crate::resources) const PODDISRUPTIONBUDGETS: [Column; 5] = [
    NAME,
    computed("Min Available", |o, _| int_or_na(o.pointer("/spec/minAvailable"))),
    computed("Max Unavailable", |o, _| int_or_na(o.pointer("/spec/maxUnavailable"))),
    number("Allowed Disruptions", "/status/disruptionsAllowed"),
    AGE,
];
fn int_or_na(value: Option<&Value>) -> Value {
    match value {
        Some(Value::String(s)) => s.clone().into(),
        Some(other) => other.to_string().into(),
        None => "N/A".into(),
    }
}
pub(in crate::resources) const STORAGECLASSES: [Column; 6] = [
    Column { cell: Cell::Fn(storage_class_name), ..NAME },
    path("Provisioner", "/provisioner"),
    path("ReclaimPolicy", "/reclaimPolicy"),
    path("VolumeBindingMode", "/volumeBindingMode"),
    Column {
        name: "AllowVolumeExpansion",
        kind: "string",
        format: "",
        priority: 0,
        cell: Cell::Fn(|o, _| bool_at(o, "/allowVolumeExpansion").into()),
    },
    AGE,
];
fn storage_class_name(class: &Value, _: Timestamp) -> Value {
    let is_default = object_at(class, "/metadata/annotations")
        .is_some_and(|a| a.get("storageclass.kubernetes.io/is-default-class").is_some_and(|v| v == "true"));
    let name = str_at(class, "/metadata/name");
    if is_default { format!("{name} (default)").into() } else { name.into() }
}
pub(in crate::resources) const PERSISTENTVOLUMES: [Column; 11] = [
    NAME,
    path("Capacity", "/spec/capacity/storage"),
    computed("Access Modes", |o, _| access_modes(array_at(o, "/spec/accessModes"))),
    path("Reclaim Policy", "/spec/persistentVolumeReclaimPolicy"),
    computed("Status", |o, _| terminating_or(o, str_at(o, "/status/phase"))),
    computed("Claim", |o, _| match str_at(o, "/spec/claimRef/name") {
        "" => "".into(),
        name => format!("{}/{name}", str_at(o, "/spec/claimRef/namespace")).into(),
    }),
    path("StorageClass", "/spec/storageClassName"),
    computed("VolumeAttributesClass", |o, _| unset(str_at(o, "/spec/volumeAttributesClassName"))),
    path("Reason", "/status/reason"),
    AGE,
    wide(path("VolumeMode", "/spec/volumeMode")),
];
fn unset(value: &str) -> Value {
    if value.is_empty() { "<unset>".into() } else { value.into() }
}
pub(in crate::resources) const PERSISTENTVOLUMECLAIMS: [Column; 9] = [
    NAME,
    computed("Status", |o, _| terminating_or(o, str_at(o, "/status/phase"))),
    path("Volume", "/spec/volumeName"),
    path("Capacity", "/status/capacity/storage"),
    computed("Access Modes", |o, _| access_modes(array_at(o, "/status/accessModes"))),
    computed("StorageClass", |o, _| {
        let class = str_at(o, "/spec/storageClassName");
        if !class.is_empty() {
            return class.into();
        }
        let annotations = object_at(o, "/metadata/annotations");
        annotations
            .and_then(|a| a.get("volume.beta.kubernetes.io/storage-class"))
            .cloned()
            .unwrap_or_else(|| "".into())
    }),
    computed("VolumeAttributesClass", |o, _| unset(str_at(o, "/spec/volumeAttributesClassName"))),
    AGE,
    wide(path("VolumeMode", "/spec/volumeMode")),
];
pub(in crate::resources) const HORIZONTALPODAUTOSCALERS: [Column; 7] = [
    NAME,
    computed("Reference", hpa_reference),
    computed("Targets", hpa_targets),
    computed("MinPods", |o, _| {
        int_at(o, "/spec/minReplicas").map_or("<unset>".into(), |n| n.to_string()).into()
    }),
    typed("string", number("MaxPods", "/spec/maxReplicas")),
    computed("Replicas", |o, _| int_at(o, "/status/currentReplicas").unwrap_or(0).into()),
    AGE,
];
pub(in crate::resources) const PRIORITYCLASSES: [Column; 5] = [
    NAME,
    number("Value", "/value"),
    typed("boolean", computed("Global-Default", |o, _| bool_at(o, "/globalDefault").into())),
    AGE,
    path("PreemptionPolicy", "/preemptionPolicy"),
];
pub(in crate::resources) const ENDPOINTSLICES: [Column; 5] = [
    NAME,
    path("AddressType", "/addressType"),
    computed("Ports", slice_ports),
    computed("Endpoints", slice_endpoints),
    AGE,
];
pub(in crate::resources) const APISERVICES: [Column; 4] = [
    NAME,
    computed("Service", |o, _| match str_at(o, "/spec/service/name") {
        "" => "Local".into(),
        name => format!("{}/{name}", str_at(o, "/spec/service/namespace")).into(),
    }),
    computed("Available", |o, _| {
        condition(o, "Available").map_or("Unknown", |c| str_at(c, "/status")).into()
    }),
    AGE,
];
pub(in crate::resources) const CERTIFICATESIGNINGREQUESTS: [Column; 6] = [
    NAME,
    AGE,
    path("SignerName", "/spec/signerName"),
    path("Requestor", "/spec/username"),
    computed("RequestedDuration", |o, _| {
        int_at(o, "/spec/expirationSeconds").map_or("<none>".into(), human_duration).into()
    }),
    computed("Condition", |o, _| {
        let held: Vec<String> =
            array_at(o, "/status/conditions").iter().map(|c| str_at(c, "/type").to_owned()).collect();
        let issued = !str_at(o, "/status/certificate").is_empty();
        joined(held.into_iter().chain(issued.then(|| "Issued".to_owned())), "Pending")
    }),
];
pub(in crate::resources) const CLUSTERTRUSTBUNDLES: [Column; 2] =
    [NAME, computed("SignerName", |o, _| or_none(str_at(o, "/spec/signerName")))];
pub(in crate::resources) const PODCERTIFICATEREQUESTS: [Column; 7] = [
    NAME,
    path("PodName", "/spec/podName"),
    path("ServiceAccountName", "/spec/serviceAccountName"),
    path("NodeName", "/spec/nodeName"),
    path("SignerName", "/spec/signerName"),
    computed("State", |o, _| {
        let mut ended = array_at(o, "/status/conditions").iter().map(|c| str_at(c, "/type"));
        ended.rfind(|c| ["Issued", "Denied", "Failed"].contains(c)).unwrap_or("Pending").into()
    }),
    wide(computed("UnverifiedUserAnnotations", |o, _| {
        selector_text(o.pointer("/spec/unverifiedUserAnnotations")).into()
    })),
];
