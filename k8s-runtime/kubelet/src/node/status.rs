//! The status of the Node object.

use std::{collections::BTreeMap, net::IpAddr};

use crate::{
    context::Context,
    facts::{self, Facts},
    types::*,
};

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
const LEAST_MEMORY: i64 = 100 << 20;
/// Free bytes that are enough for any disk size. Upstream's rule alone (10 %) would report DiskPressure with
/// 25 GB free on a disk of 256 GB.
const ENOUGH_DISK: i64 = 1 << 30;

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

/// The pressure conditions: true where a resource is short.
#[derive(Default)]
pub(crate) struct Pressure {
    memory: bool,
    disk: bool,
    pids: bool,
}

impl Pressure {
    /// Returns the types of the conditions that hold.
    pub(crate) fn names(&self) -> Vec<&'static str> {
        let holds = [self.memory, self.disk, self.pids];
        CONDITIONS.into_iter().zip(holds).filter(|(_, holds)| *holds).map(|(name, _)| name).collect()
    }
}

/// Returns `true` if `free` is below the threshold for a disk of `total` bytes.
fn disk_is_short((total, free): (i64, i64)) -> bool {
    free < (total / 10).min(ENOUGH_DISK)
}

/// Reads the pressure of the machine.
pub(crate) fn pressure(cx: &Context) -> Pressure {
    if !cx.config.machine_pressure {
        return Pressure::default();
    }
    let disk = facts::disk(&cx.config).is_some_and(disk_is_short);
    let number =
        |path: &str| std::fs::read_to_string(path).ok()?.split_whitespace().next()?.parse::<i64>().ok();
    let tasks = std::fs::read_to_string("/proc/loadavg")
        .ok()
        .and_then(|text| text.split_whitespace().nth(3)?.split_once('/')?.1.parse::<i64>().ok());
    let most = number("/proc/sys/kernel/pid_max");
    Pressure {
        memory: facts::meminfo("MemAvailable").is_some_and(|free| free < LEAST_MEMORY),
        disk,
        pids: matches!((tasks, most), (Some(tasks), Some(most)) if tasks > most / 10 * 9),
    }
}

fn conditions(cx: &Context, old: Option<&NodeStatus>) -> Vec<NodeCondition> {
    let now = cx.clock.time();
    let pressure = pressure(cx);
    let rows = [
        (
            pressure.memory,
            ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
            ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ),
        (
            pressure.disk,
            ("KubeletHasDiskPressure", "kubelet has disk pressure"),
            ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ),
        (
            pressure.pids,
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
    fn a_large_disk_is_not_short_of_space_while_a_gigabyte_is_left() {
        const GB: i64 = 1 << 30;
        let rows = [
            ((252 * GB, 24 * GB), false),
            ((252 * GB, GB), false),
            ((252 * GB, GB - 1), true),
            ((4 * GB, GB / 2), false),
            ((4 * GB, GB / 3), true),
            ((0, 0), false),
        ];
        for (disk, short) in rows {
            assert_eq!(disk_is_short(disk), short, "{disk:?}");
        }
    }
}
