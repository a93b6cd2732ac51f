//! Warnings about fields and kinds that are stored and not acted on.
//!
//! Each row of a table is one warning. A field is warned about when it is created, or set anew by an update;
//! a kind, when an object of it is created. A row is removed when its field or kind comes to be enforced,
//! together with the line in README's "What does not work yet".
//!
//! Not here: pods that the kubelet refuses (user namespaces, AppArmor profiles, unknown volume plugins).

use std::sync::Arc;

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use k8s_core::json;
use k8s_store::Store;
use serde_json::Value;

use crate::{call::Call, resources::Resource, service_ranges::ServiceRanges, state::State, value::array_at};

/// A kind whose objects are stored only: the name in the store, and the warning.
struct Kind(&'static str, &'static str);

const NO_DRA: &str = "no DRA driver can register with the kubelet: a pod whose claims have devices gets them, but is not started";
const NO_SHARED_DEVICE: &str = "such a device is not allocated: only whole devices are";
const NO_SUCH_REQUEST: &str = "such a request is not allocated: only whole devices are";
const NO_CSI: &str = "CSI drivers are not supported: the object is stored, but not acted on";

const NO_CSI_MOUNT: &str = "no CSI driver can register with the kubelet: the scheduler and the controllers read the object, but no volume is mounted by a driver";

/// Ingresses are acted on where a controller for them runs.
const INGRESSES: &str = "ingresses.networking.k8s.io";

const KINDS: &[Kind] = &[
    Kind("csidrivers.storage.k8s.io", NO_CSI_MOUNT),
    Kind("csinodes.storage.k8s.io", NO_CSI_MOUNT),
    Kind("csistoragecapacities.storage.k8s.io", NO_CSI_MOUNT),
    Kind(INGRESSES, "no ingress controller runs in this cluster: the Ingress is stored, but not acted on"),
    Kind("volumeattachments.storage.k8s.io", NO_CSI),
    Kind("volumeattributesclasses.storage.k8s.io", NO_CSI),
];

/// A field that is stored only: its path (`*`: each element of a list), a test of its value, and the warning.
struct Field(&'static [&'static str], Test, &'static str);

/// A test of a field's value.
type Test = fn(&Value, &Ranges<'_>) -> bool;

const SET: Test = |_, _| true;

/// The address ranges of the cluster.
struct Ranges<'a> {
    services: &'a ServiceRanges,
    /// The configured range of pods. `None`: the ranges of the nodes count.
    pods: Option<Ipv4Net>,
    store: &'a Store,
}

impl Ranges<'_> {
    /// Returns true for an address of a Service or pod of this cluster.
    fn contain(&self, value: &Value) -> bool {
        let Some(address) = value.as_str().and_then(|text| text.parse::<Ipv4Addr>().ok()) else {
            return false;
        };
        let of_nodes = || {
            self.store.snapshot("nodes").range("", "").any(|node| {
                let place = json::find(&node.json, &["spec", "podCIDR"]);
                let range = place.and_then(|place| serde_json::from_slice::<String>(&node.json[place]).ok());
                let range = range.and_then(|range| range.parse::<Ipv4Net>().ok());
                range.is_some_and(|range| range.contains(&address))
            })
        };
        self.services.contains(self.store, address)
            || self.pods.map_or_else(of_nodes, |range| range.contains(&address))
    }
}

/// Fields of one kind, by the name in the store.
const FIELDS: &[(&str, Field)] = &[
    (
        "services",
        Field(
            &["spec", "externalIPs", "*"],
            |v, ranges| ranges.contain(v),
            "the address is in the cluster's own service or pod range: the Service is not answered on it",
        ),
    ),
    (
        "persistentvolumeclaims",
        Field(&["spec", "dataSource"], SET, "volumes are not provisioned: the data source is not copied"),
    ),
    (
        "persistentvolumeclaims",
        Field(&["spec", "dataSourceRef"], SET, "volumes are not provisioned: the data source is not copied"),
    ),
    ("persistentvolumeclaims", Field(&["spec", "volumeAttributesClassName"], SET, NO_CSI)),
    (
        "deviceclasses.resource.k8s.io",
        Field(&["spec", "extendedResourceName"], SET, "devices are not allocated for extended resources"),
    ),
    (
        "resourceclaims.resource.k8s.io",
        Field(&["spec", "devices", "requests", "*", "exactly", "capacity"], SET, NO_SUCH_REQUEST),
    ),
    (
        "resourceclaims.resource.k8s.io",
        Field(&["spec", "devices", "constraints", "*", "distinctAttribute"], SET, NO_SUCH_REQUEST),
    ),
    (
        "resourceclaimtemplates.resource.k8s.io",
        Field(&["spec", "spec", "devices", "requests", "*", "exactly", "capacity"], SET, NO_SUCH_REQUEST),
    ),
    (
        "resourceclaimtemplates.resource.k8s.io",
        Field(&["spec", "spec", "devices", "constraints", "*", "distinctAttribute"], SET, NO_SUCH_REQUEST),
    ),
    (
        "resourceslices.resource.k8s.io",
        Field(&["spec", "devices", "*", "allowMultipleAllocations"], |v, _| v == true, NO_SHARED_DEVICE),
    ),
    (
        "resourceslices.resource.k8s.io",
        Field(&["spec", "devices", "*", "bindingConditions"], SET, NO_SHARED_DEVICE),
    ),
    (
        "resourceslices.resource.k8s.io",
        Field(&["spec", "devices", "*", "consumesCounters"], SET, NO_SHARED_DEVICE),
    ),
];

const NO_SELINUX: &str = "SELinux options are not applied";
const NO_WINDOWS: &str = "Windows options are not applied";

/// Fields of a container; those of a pod's `containers`, `initContainers` and `ephemeralContainers`.
const CONTAINER: &[Field] = &[
    Field(&["resources", "claims"], SET, NO_DRA),
    Field(
        &["restartPolicyRules"],
        SET,
        "restart rules of containers are not applied: the pod's restartPolicy is",
    ),
    Field(&["securityContext", "seLinuxOptions"], SET, NO_SELINUX),
    Field(&["securityContext", "windowsOptions"], SET, NO_WINDOWS),
    Field(
        &["targetContainerName"],
        SET,
        "process namespaces of other containers are not shared: the container sees its own processes only",
    ),
    Field(&["volumeDevices"], SET, "block devices are not passed into containers"),
    Field(
        &["volumeMounts", "*", "recursiveReadOnly"],
        |v, _| v != "Disabled",
        "mounts below a read-only mount stay writable",
    ),
];

/// Fields of a pod's spec.
const POD: &[Field] = &[
    Field(&["hostnameOverride"], SET, "the hostname is not overridden"),
    Field(&["resourceClaims"], SET, NO_DRA),
    Field(
        &["securityContext", "fsGroupChangePolicy"],
        |v, _| v == "OnRootMismatch",
        "volumes get their group at each start",
    ),
    Field(&["securityContext", "seLinuxOptions"], SET, NO_SELINUX),
    Field(&["securityContext", "windowsOptions"], SET, NO_WINDOWS),
];

/// Paths of pod specs, by kind.
const POD_SPECS: &[(&str, &[&str])] = &[
    ("pods", &["spec"]),
    ("podtemplates", &["template", "spec"]),
    ("replicationcontrollers", &["spec", "template", "spec"]),
    ("replicasets.apps", &["spec", "template", "spec"]),
    ("deployments.apps", &["spec", "template", "spec"]),
    ("statefulsets.apps", &["spec", "template", "spec"]),
    ("daemonsets.apps", &["spec", "template", "spec"]),
    ("jobs.batch", &["spec", "template", "spec"]),
    ("cronjobs.batch", &["spec", "jobTemplate", "spec", "template", "spec"]),
];

/// Adds the warnings about an object that is written; `old` is the one that it replaces.
pub(crate) fn warn(
    state: &Arc<State>,
    call: &Call,
    resource: &Resource,
    object: &Value,
    old: Option<&Value>,
) {
    if !state.warns_unenforced || resource.custom {
        return;
    }
    let ranges = Ranges { services: &state.services, pods: state.pod_range, store: &state.store };
    let mut found = of(&resource.storage, object, &ranges);
    if let Some(old) = old {
        let before = of(&resource.storage, old, &ranges);
        found.retain(|warning| !before.contains(warning));
    } else if let Some(kind) = KINDS.iter().find(|kind| kind.0 == &*resource.storage)
        && !(state.serves_ingresses && kind.0 == INGRESSES)
    {
        found.insert(0, kind.1.to_owned());
    }
    for warning in found {
        call.warn_once(warning);
    }
}

/// The warnings about an object's fields.
fn of(storage: &str, object: &Value, ranges: &Ranges<'_>) -> Vec<String> {
    let mut found = Vec::new();
    for (_, field) in FIELDS.iter().filter(|(kind, _)| *kind == storage) {
        field.look_up(object, "", ranges, &mut found);
    }
    let Some((_, at)) = POD_SPECS.iter().find(|(kind, _)| *kind == storage) else { return found };
    let Some(spec) = at.iter().try_fold(object, |value, name| value.get(name)) else { return found };
    let path = at.join(".");
    for field in POD {
        field.look_up(spec, &path, ranges, &mut found);
    }
    for kind in ["containers", "initContainers", "ephemeralContainers"] {
        for (i, container) in array_at(spec, &format!("/{kind}")).iter().enumerate() {
            let path = format!("{path}.{kind}[{i}]");
            CONTAINER.iter().for_each(|field| field.look_up(container, &path, ranges, &mut found));
        }
    }
    found
}

impl Field {
    fn look_up(&self, at: &Value, path: &str, ranges: &Ranges<'_>, found: &mut Vec<String>) {
        self.walk(self.0, at, path, ranges, found);
    }

    fn walk(&self, left: &[&str], at: &Value, path: &str, ranges: &Ranges<'_>, found: &mut Vec<String>) {
        match left {
            [] if (self.1)(at, ranges) => found.push(format!("{path}: {}", self.2)),
            [] => {}
            ["*", rest @ ..] => {
                for (i, item) in at.as_array().into_iter().flatten().enumerate() {
                    self.walk(rest, item, &format!("{path}[{i}]"), ranges, found);
                }
            }
            [name, rest @ ..] => {
                let Some(child) = at.get(name) else { return };
                let path = match (path.is_empty(), name.contains('.')) {
                    (true, _) => (*name).to_owned(),
                    (false, true) => format!("{path}[{name}]"),
                    (false, false) => format!("{path}.{name}"),
                };
                self.walk(rest, child, &path, ranges, found);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_about_something_that_is_served() {
        let registry = crate::resources::Registry::new(&[]);
        let served = |storage: &str| registry.all().any(|r| &*r.storage == storage);
        let kinds = KINDS.iter().map(|kind| kind.0);
        let fields = FIELDS.iter().map(|(kind, _)| *kind).chain(POD_SPECS.iter().map(|(kind, _)| *kind));
        for storage in kinds.chain(fields) {
            assert!(served(storage), "{storage}");
        }
        let pod = registry.find("", "v1", "pods").unwrap();
        let child = |of, name: &str| pod.schema.child(of, name);
        let item = |of| match &pod.schema.node(of).kind {
            k8s_schema::Kind::List { item, .. } => *item,
            _ => of,
        };
        let spec = child(pod.schema.root_id(), "spec").unwrap();
        let container = item(child(spec, "ephemeralContainers").unwrap());
        for (base, rows) in [(spec, POD), (container, CONTAINER)] {
            for row in rows {
                let end = row
                    .0
                    .iter()
                    .try_fold(base, |at, name| if *name == "*" { Some(item(at)) } else { child(at, name) });
                assert!(end.is_some(), "{:?}", row.0);
            }
        }
    }
}
