//! Node objects and their leases: registration, conditions, heartbeats.
//!
//! Guarantees: each lease is renewed once in an interval, and the renewals are spread over it. A node is
//! never created again once somebody has deleted it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::{StreamExt, stream};
use http::Method;
use ipnet::IpNet;
use k8s_core::{
    api::{
        api::{coordination::v1::Lease, core::v1::Node},
        apimachinery::pkg::apis::meta::v1::OwnerReference,
    },
    client::{Client, Error, Patch, Resource},
    clock::Clock,
    meta::ObjectExt,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::parts::{Parts, STRATEGIC};

/// Namespace of the nodes' leases.
const LEASES: &str = "kube-node-lease";
/// Shortest time between two batches of renewals.
const TICK: Duration = Duration::from_millis(100);
/// Renewals on their way at a time.
const AT_ONCE: usize = 32;

/// Properties of simulated nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeShape {
    /// Capacity, by resource.
    pub capacity: BTreeMap<String, String>,
    /// Labels beside host name, operating system and architecture.
    pub labels: BTreeMap<String, String>,
    /// Addresses of the node.
    pub addresses: Vec<String>,
    /// Version of its kubelet.
    pub version: String,
    /// Range of its pods; `None`: another program gives it one.
    pub pods: Option<IpNet>,
    /// Interval of the renewals of its lease. The lease lasts four times as long.
    pub heartbeat: Duration,
}

impl Default for NodeShape {
    /// 32 CPUs, 64 GiB, 110 pods, a heartbeat every 10 seconds.
    fn default() -> Self {
        let capacity = [("cpu", "32"), ("memory", "64Gi"), ("pods", "110"), ("ephemeral-storage", "100Gi")];
        NodeShape {
            capacity: capacity.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
            labels: BTreeMap::new(),
            addresses: Vec::new(),
            version: concat!("v", env!("CARGO_PKG_VERSION")).to_owned(),
            pods: None,
            heartbeat: Duration::from_secs(10),
        }
    }
}

fn typed<T: DeserializeOwned>(value: Value) -> Result<T, Error> {
    serde_json::from_value(value)
        .map_err(|source| Error::Decode { what: std::any::type_name::<T>().to_owned(), source })
}

/// The conditions of a healthy node: type, status, reason, message.
pub(crate) const CONDITIONS: [(&str, &str, &str, &str); 4] = [
    ("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
    ("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
    ("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
    ("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
];

fn conditions(clock: &Clock) -> Vec<Value> {
    let now = clock.time();
    let row = |(kind, status, reason, message)| {
        json!({
            "type": kind, "status": status, "reason": reason, "message": message,
            "lastHeartbeatTime": now, "lastTransitionTime": now,
        })
    };
    CONDITIONS.into_iter().map(row).collect()
}

/// Creates a ready Node and its Lease. An existing Node keeps its spec, and becomes ready.
///
/// # Errors
/// The API server's error.
///
/// ```
/// use k8s_apiserver::{ApiServer, User};
/// use k8s_core::{api::Node, clock::Clock};
/// use k8s_simulated::{NodeShape, register};
/// use k8s_store::Store;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let server = ApiServer::builder(Store::memory()).build().await?;
/// register(&server.client_as(User::admin()), &Clock::system(), "node-0", &NodeShape::default()).await?;
/// let node = server.client_as(User::admin()).all::<Node>().get("node-0").await?;
/// assert_eq!(node.status.unwrap().capacity.unwrap()["pods"].0, "110");
/// # Ok(()) }
/// ```
pub async fn register(client: &Client, clock: &Clock, name: &str, shape: &NodeShape) -> Result<(), Error> {
    let mut labels = shape.labels.clone();
    for (key, value) in
        [("kubernetes.io/hostname", name), ("kubernetes.io/os", "linux"), ("kubernetes.io/arch", "amd64")]
    {
        labels.insert(key.to_owned(), value.to_owned());
    }
    let internal = shape.addresses.iter().map(|a| json!({"type": "InternalIP", "address": a}));
    let addresses: Vec<Value> = internal.chain([json!({"type": "Hostname", "address": name})]).collect();
    let status = json!({
        "addresses": addresses,
        "capacity": shape.capacity, "allocatable": shape.capacity,
        "conditions": conditions(clock),
        "nodeInfo": info(&shape.version),
        // As kwok's nodes, whose Stages select by it.
        "phase": "Running",
    });
    let range = shape.pods.map(|range| range.to_string());
    let spec = range.map(|range| json!({"podCIDR": range, "podCIDRs": [range]}));
    let node: Node =
        typed(json!({"metadata": {"name": name, "labels": labels}, "spec": spec, "status": status}))?;
    let nodes = client.all::<Node>();
    let node = match nodes.create(&node).await {
        Err(e) if e.is_already_exists() => {
            nodes.patch(name, &Patch::Merge(json!({"metadata": {"labels": labels}}))).await?;
            nodes.patch_status(name, &Patch::Strategic(json!({"status": status}))).await?
        }
        made => made?,
    };
    match create_lease(client, clock, &node, shape.heartbeat).await {
        Err(e) if e.is_already_exists() => beat(client, clock, name).await,
        made => made,
    }
}

fn info(version: &str) -> Value {
    json!({
        "architecture": "amd64", "bootID": "", "containerRuntimeVersion": "simulated://1",
        "kernelVersion": "", "kubeProxyVersion": "", "kubeletVersion": version, "machineID": "",
        "operatingSystem": "linux", "osImage": "", "systemUUID": "",
    })
}

/// Returns true for a node whose conditions its kubelet would have to write: nobody has yet, or the node
/// controller has found it silent.
pub(crate) fn needs_status(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let ready = conditions.into_iter().find(|c| c.type_ == "Ready");
    ready.is_none_or(|ready| ready.status == "Unknown")
}

/// Makes a node ready. What its status lacks gets values like kwok's.
pub(crate) async fn write_status(client: &Client, clock: &Clock, node: &Node) -> Result<(), Error> {
    let there = node.status.clone().unwrap_or_default();
    let mut status = json!({"conditions": conditions(clock), "phase": "Running"});
    if there.capacity.is_none_or(|capacity| capacity.is_empty()) {
        let room = json!({"cpu": "1k", "memory": "1Ti", "pods": "1M"});
        (status["capacity"], status["allocatable"]) = (room.clone(), room);
    }
    if there.addresses.is_none_or(|addresses| addresses.is_empty()) {
        status["addresses"] = json!([{"type": "Hostname", "address": node.name()}]);
    }
    if there.node_info.is_none_or(|info| info.kubelet_version.is_empty()) {
        status["nodeInfo"] = info(&NodeShape::default().version);
    }
    let patch = json!({"metadata": {"uid": node.uid()}, "status": status}).to_string();
    let path = Resource::of::<Node>().path("", node.name(), "status");
    client.bytes(Method::PATCH, &path, STRATEGIC, patch).await.map(drop)
}

async fn create_lease(client: &Client, clock: &Clock, node: &Node, every: Duration) -> Result<(), Error> {
    let owner = OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: node.name().to_owned(),
        uid: node.uid().to_owned(),
        ..OwnerReference::default()
    };
    let seconds = every.saturating_mul(4).as_secs().clamp(1, 1 << 30);
    let lease: Lease = typed(json!({
        "metadata": {"name": node.name(), "ownerReferences": [owner]},
        "spec": {
            "holderIdentity": node.name(), "leaseDurationSeconds": seconds, "renewTime": clock.micro_time(),
        },
    }))?;
    client.namespaced::<Lease>(LEASES).create(&lease).await.map(drop)
}

async fn beat(client: &Client, clock: &Clock, name: &str) -> Result<(), Error> {
    let patch = json!({"spec": {"renewTime": clock.micro_time()}}).to_string();
    let path = Resource::of::<Lease>().path(LEASES, name, "");
    client.bytes(Method::PATCH, &path, "application/merge-patch+json", patch).await.map(drop)
}

/// Renews the leases of all nodes, in turn.
pub(crate) struct Beats {
    parts: Parts,
    every: Duration,
}

impl Beats {
    pub(crate) fn new(parts: Parts, every: Duration) -> Self {
        Beats { parts, every: every.max(TICK) }
    }

    pub(crate) async fn run(self) {
        let mut last: Option<Arc<str>> = None;
        loop {
            let (wait, count) = batch(self.parts.board().known_nodes(), self.every);
            self.parts.clock.sleep(wait).await;
            let mut names = Vec::with_capacity(count);
            {
                let board = self.parts.board();
                while names.len() < count
                    && let Some(name) = board.node_after(last.as_ref())
                {
                    last = Some(name.clone());
                    names.push(name);
                }
            }
            stream::iter(names).for_each_concurrent(AT_ONCE, |name| self.one(name)).await;
        }
    }

    async fn one(&self, name: Arc<str>) {
        let client = (self.parts.writer)(&name);
        let result = match beat(&client, &self.parts.clock, &name).await {
            Err(e) if e.is_not_found() => {
                let node = self.parts.nodes.as_ref().and_then(|nodes| nodes.get("", &name));
                match node {
                    Some(node) => create_lease(&client, &self.parts.clock, &node, self.every).await,
                    None => Ok(()),
                }
            }
            other => other,
        };
        if let Err(e) = result {
            tracing::warn!(node = &*name, error = %e, "lease not renewed");
        }
    }
}

/// Returns the time to the next batch of renewals, and its size.
fn batch(nodes: usize, every: Duration) -> (Duration, usize) {
    let nodes = u32::try_from(nodes).unwrap_or(u32::MAX);
    if nodes == 0 {
        return (every, 0);
    }
    let apart = every / nodes;
    if apart >= TICK {
        return (apart, 1);
    }
    let count = (f64::from(nodes) * TICK.as_secs_f64() / every.as_secs_f64()).ceil();
    // At least 1, at most the number of nodes.
    (every.mul_f64(count / f64::from(nodes)), count as usize)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EVERY: Duration = Duration::from_secs(10);

    #[test]
    fn batches_of_renewals() {
        assert_eq!(batch(0, EVERY), (EVERY, 0));
        assert_eq!(batch(1, EVERY), (EVERY, 1));
        assert_eq!(batch(4, EVERY), (Duration::from_millis(2500), 1));
        assert_eq!(batch(1000, EVERY), (Duration::from_millis(100), 10));
    }

    proptest! {
        #[test]
        fn each_lease_is_renewed_once_in_an_interval(nodes in 1..50_000_usize, seconds in 1..600_u64) {
            let every = Duration::from_secs(seconds);
            let (wait, count) = batch(nodes, every);
            let nodes = u32::try_from(nodes).unwrap_or(0);
            let round = wait.as_secs_f64() * f64::from(nodes) / count as f64;
            prop_assert!((round - every.as_secs_f64()).abs() < 0.01 * every.as_secs_f64(), "{round}");
            prop_assert!(count >= 1 && (count == 1 || wait < 2 * TICK));
        }
    }

    #[test]
    fn only_a_silent_or_new_node_needs_a_status() {
        let node = |status: &str| -> Node {
            typed(json!({"status": {"conditions": [{"type": "Ready", "status": status}]}})).expect("a node")
        };
        assert!(needs_status(&Node::default()) && needs_status(&node("Unknown")));
        // `False` is what a Stage says.
        assert!(!needs_status(&node("True")) && !needs_status(&node("False")));
    }
}
