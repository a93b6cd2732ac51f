//! The status of the Node object.

use std::{collections::BTreeMap, net::IpAddr};

use crate::{context::Context, eviction::plan::Condition, facts::Facts, types::*};

/// Quantities by the name of the resource.
type Resources = BTreeMap<String, ApiQuantity>;

/// Types of the conditions that the kubelet writes.
pub(super) const CONDITIONS: [&str; 4] = ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"];
/// What the API server admits for pods of this node only because the kubelet does it, by upstream's names and
/// in their order.
const DECLARED_FEATURES: [&str; 2] =
    ["InPlacePodLevelResourcesVerticalScaling", "InPlacePodVerticalScalingInitContainers"];
/// Maximum number of images in the status, as upstream's `--node-status-max-images`.
const MOST_IMAGES: usize = 50;

/// Returns `GOARCH` of the machine.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

pub(super) fn labels(cx: &Context) -> BTreeMap<String, String> {
    let (os, arch) = ("linux".to_owned(), architecture().to_owned());
    let mut labels = cx.config.node_labels.clone();
    for (key, value) in [
        ("kubernetes.io/hostname", cx.config.node_name.clone()),
        ("kubernetes.io/os", os.clone()),
        ("kubernetes.io/arch", arch.clone()),
        ("beta.kubernetes.io/os", os),
        ("beta.kubernetes.io/arch", arch),
    ] {
        labels.insert(key.to_owned(), value);
    }
    labels
}

fn conditions(cx: &Context, old: Option<&NodeStatus>) -> Vec<NodeCondition> {
    let now = cx.clock.time();
    let rows = [
        (
            cx.pressure.holds(Condition::Memory),
            ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
            ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ),
        (
            cx.pressure.holds(Condition::Disk),
            ("KubeletHasDiskPressure", "kubelet has disk pressure"),
            ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ),
        (
            cx.pressure.holds(Condition::Pid),
            ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
            ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ),
        (
            true,
            ("KubeletReady", "kubelet is posting ready status"),
            ("KubeletNotReady", "container runtime is down"),
        ),
    ];
    let known = old.and_then(|o| o.conditions.as_deref()).unwrap_or_default();
    CONDITIONS
        .iter()
        .zip(rows)
        .map(|(type_, (is, yes, no))| {
            let status = if is { "True" } else { "False" };
            let (reason, message) = if is { yes } else { no };
            let before = known.iter().find(|c| c.type_ == *type_ && c.status == status);
            NodeCondition {
                type_: (*type_).to_owned(),
                status: status.to_owned(),
                reason: Some(reason.to_owned()),
                message: Some(message.to_owned()),
                last_heartbeat_time: Some(now.clone()),
                last_transition_time: before
                    .and_then(|c| c.last_transition_time.clone())
                    .or_else(|| Some(now.clone())),
            }
        })
        .collect()
}

/// Reasons of events about the pressure conditions, without and with pressure.
const EVENTS: [(&str, [&str; 2]); 3] = [
    ("MemoryPressure", ["NodeHasSufficientMemory", "NodeHasInsufficientMemory"]),
    ("DiskPressure", ["NodeHasNoDiskPressure", "NodeHasDiskPressure"]),
    ("PIDPressure", ["NodeHasSufficientPID", "NodeHasInsufficientPID"]),
];

/// Returns the reasons of events about pressure conditions that differ from those before.
pub(super) fn changes(before: Option<&NodeStatus>, now: &NodeStatus) -> Vec<&'static str> {
    let status = |of: &NodeStatus, type_: &str| {
        of.conditions.iter().flatten().find(|c| c.type_ == type_).map(|c| c.status.clone())
    };
    let changed = EVENTS.iter().filter_map(|(type_, [calm, pressed])| {
        let is = status(now, type_)?;
        let was = before.and_then(|before| status(before, type_));
        (was.as_ref() != Some(&is)).then_some(if is == "True" { *pressed } else { *calm })
    });
    changed.collect()
}

fn addresses(facts: &Facts) -> Vec<NodeAddress> {
    let address = |type_: &str, address: String| NodeAddress { type_: type_.to_owned(), address };
    let internal = facts.ips.iter().map(|ip: &IpAddr| address("InternalIP", ip.to_string()));
    internal.chain([address("Hostname", facts.hostname.clone())]).collect()
}

async fn images(cx: &Context) -> Vec<ContainerImage> {
    let mut images = match cx.images.store().list().await {
        Ok(images) => images,
        Err(e) => {
            tracing::debug!(error = %e, "images not listed");
            Vec::new()
        }
    };
    images.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.id.cmp(&b.id)));
    images
        .into_iter()
        .take(MOST_IMAGES)
        .map(|image| ContainerImage {
            names: Some(image.digests.into_iter().chain(image.tags).collect()),
            size_bytes: i64::try_from(image.size).ok(),
        })
        .collect()
}

/// Returns the resources in a status that are not the kubelet's own: somebody else advertises them. All of
/// their capacity is allocatable.
fn foreign(own: &Resources, old: Option<&NodeStatus>) -> Resources {
    let there = old.and_then(|old| old.capacity.as_ref()).into_iter().flatten();
    there.filter(|(name, _)| !own.contains_key(*name)).map(|(name, n)| (name.clone(), n.clone())).collect()
}

/// Computes the node's status. Resources that others advertise, and transition times, are taken over from
/// `old`.
pub(super) async fn compute(cx: &Context, old: Option<&NodeStatus>) -> NodeStatus {
    let facts = &cx.facts;
    let foreign = foreign(&facts.capacity(), old);
    NodeStatus {
        addresses: Some(addresses(facts)),
        capacity: Some(facts.capacity().into_iter().chain(foreign.clone()).collect()),
        allocatable: Some(facts.allocatable().into_iter().chain(foreign).collect()),
        conditions: Some(conditions(cx, old)),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: cx.config.port.into() }),
        }),
        declared_features: Some(DECLARED_FEATURES.map(str::to_owned).to_vec()),
        images: Some(images(cx).await),
        node_info: Some(NodeSystemInfo {
            architecture: architecture().to_owned(),
            boot_id: facts.boot_id.clone(),
            container_runtime_version: cx.runtime.version(),
            kernel_version: facts.kernel.clone(),
            kube_proxy_version: String::new(),
            kubelet_version: cx.config.kubelet_version.clone(),
            machine_id: facts.machine_id.clone(),
            operating_system: "linux".into(),
            os_image: facts.os_image.clone(),
            swap: None,
            system_uuid: facts.system_uuid.clone(),
        }),
        ..NodeStatus::default()
    }
}

/// Compares the parts of two statuses that the kubelet writes, without heartbeat times.
pub(super) fn differs(a: &NodeStatus, b: &NodeStatus) -> bool {
    own(a) != own(b)
}

fn own(status: &NodeStatus) -> NodeStatus {
    let conditions = status.conditions.iter().flatten().filter(|c| CONDITIONS.contains(&c.type_.as_str()));
    let timeless = conditions.map(|condition| NodeCondition {
        last_heartbeat_time: None,
        last_transition_time: None,
        ..condition.clone()
    });
    NodeStatus {
        addresses: status.addresses.clone(),
        capacity: status.capacity.clone(),
        allocatable: status.allocatable.clone(),
        conditions: Some(timeless.collect()),
        daemon_endpoints: status.daemon_endpoints.clone(),
        declared_features: status.declared_features.clone(),
        images: status.images.clone(),
        node_info: status.node_info.clone(),
        ..NodeStatus::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_that_others_advertise_stay() {
        let list = |rows: &[(&str, &str)]| -> Resources {
            rows.iter().map(|(name, n)| ((*name).to_owned(), ApiQuantity((*n).to_owned()))).collect()
        };
        let capacity = list(&[("cpu", "64"), ("example.com/dongle", "3"), ("pods", "9")]);
        let old = NodeStatus { capacity: Some(capacity), ..NodeStatus::default() };
        let own = list(&[("cpu", "2"), ("pods", "110")]);
        assert_eq!(foreign(&own, Some(&old)), list(&[("example.com/dongle", "3")]));
        assert_eq!(foreign(&own, None), list(&[]));
    }

    #[test]
    fn a_condition_that_changes_is_told_once() {
        let status = |pairs: &[(&str, &str)]| NodeStatus {
            conditions: Some(
                pairs
                    .iter()
                    .map(|(type_, status)| NodeCondition {
                        type_: (*type_).to_owned(),
                        status: (*status).to_owned(),
                        ..NodeCondition::default()
                    })
                    .collect(),
            ),
            ..NodeStatus::default()
        };
        let calm = status(&[("MemoryPressure", "False"), ("DiskPressure", "False"), ("Ready", "True")]);
        let full = status(&[("MemoryPressure", "False"), ("DiskPressure", "True"), ("Ready", "True")]);
        assert_eq!(changes(None, &calm), ["NodeHasSufficientMemory", "NodeHasNoDiskPressure"]);
        assert_eq!(changes(Some(&calm), &full), ["NodeHasDiskPressure"]);
        assert_eq!(changes(Some(&full), &full), [""; 0]);
        let unknown = status(&[("MemoryPressure", "Unknown"), ("DiskPressure", "True")]);
        assert_eq!(changes(Some(&unknown), &full), ["NodeHasSufficientMemory"]);
    }
}
