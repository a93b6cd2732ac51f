//! Simulated nodes in a cluster's process: their names and address ranges, over the control plane's caches.

mod kwok;

use std::{collections::HashSet, net::IpAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt, stream};
use http::{Request, Response};
use ipnet::{IpNet, Ipv4Net};
use k8s_apiserver::{User, proxy::NodeConnector};
use k8s_controllers::metrics::counted;
use k8s_core::{
    api::api::core::v1::{Node, Pod},
    client::{Body, BoxError, Client, ListParams},
    clock::Clock,
    meta::ObjectExt,
};
use k8s_simulated::{Kubelets, NodeShape, Script, Simulation};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{control_plane::ControlPlane, error::ClusterError, settings::ClusterSettings};

/// Prefix length of a node's range of pod addresses.
const NODE_PREFIX: u8 = 24;
/// Nodes that are registered at a time.
const AT_ONCE: usize = 32;
/// Running time of the pods of Jobs without an annotation for it.
const JOB_RUNS: Duration = Duration::from_secs(1);
/// Default interval of the renewals of a node's lease, as kubelets have.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(10);
/// Longest interval: beyond it a node that is gone would count as ready for most of an hour.
const LONGEST_HEARTBEAT: Duration = Duration::from_secs(600);

/// Choices about simulated nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SimulatedConfig {
    /// Duration of the start of pods without an annotation for it.
    pub(crate) start_delay: Duration,
    /// Interval of the renewals of each node's lease.
    pub(crate) heartbeat: Duration,
}

impl Default for SimulatedConfig {
    fn default() -> Self {
        SimulatedConfig { start_delay: Duration::ZERO, heartbeat: HEARTBEAT }
    }
}

/// Parses an interval of heartbeats.
pub(crate) fn heartbeat(text: &str) -> Result<Duration, String> {
    let every = crate::duration::parse(text)?;
    if (Duration::from_secs(1)..=LONGEST_HEARTBEAT).contains(&every) {
        return Ok(every);
    }
    Err(format!("{text:?} is not between 1s and 10m"))
}

/// Returns the time without heartbeat after which a node of this process is not ready: upstream's, or more
/// for slower heartbeats.
pub(crate) fn grace(heartbeat: Duration) -> Duration {
    Duration::from_secs(50).max(heartbeat * 5)
}

/// Returns the pod range of a cluster with this number of simulated nodes: the chosen one, or a larger one
/// than the default.
///
/// # Errors
/// The chosen range has too few ranges for nodes.
pub(crate) fn pod_range(chosen: Ipv4Net, nodes: usize) -> Result<Ipv4Net, ClusterError> {
    let fits = |range: Ipv4Net| range.prefix_len() <= NODE_PREFIX && nodes <= subnets(range);
    let large = Ipv4Net::new_assert([10, 128, 0, 0].into(), 9);
    if fits(chosen) {
        return Ok(chosen);
    }
    if chosen == ClusterSettings::default().cluster_cidr && fits(large) {
        return Ok(large);
    }
    let reason = format!(
        "{chosen} has no range of /{NODE_PREFIX} for each of {nodes} nodes; choose a larger one with --cluster-cidr"
    );
    Err(ClusterError::invalid("address ranges", reason))
}

fn subnets(range: Ipv4Net) -> usize {
    1_usize.checked_shl(u32::from(NODE_PREFIX.saturating_sub(range.prefix_len()))).unwrap_or(usize::MAX)
}

/// Gives each name the next range that is not taken.
fn ranges(pods: Ipv4Net, taken: &HashSet<IpNet>, names: &[String]) -> Vec<(String, Option<IpNet>)> {
    let mut free =
        pods.subnets(NODE_PREFIX).into_iter().flatten().map(IpNet::from).filter(|r| !taken.contains(r));
    names.iter().map(|name| (name.clone(), free.next())).collect()
}

/// Running simulated nodes.
pub(crate) struct SimulatedNodes {
    names: Vec<String>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl SimulatedNodes {
    /// Registers the nodes, and simulates them and those that others add with kwok's annotation. All are
    /// ready on return.
    ///
    /// # Errors
    /// A node cannot be registered.
    #[expect(clippy::disallowed_methods, reason = "shutdown waits for the task")]
    pub(crate) async fn start(
        plane: &ControlPlane,
        names: Vec<String>,
        address: IpAddr,
        pods: Ipv4Net,
        config: &SimulatedConfig,
    ) -> Result<Self, ClusterError> {
        let server = plane.api.server.clone();
        let of_node = move |name: &str| -> Client {
            counted(&server.client_as(User::node(name)), server.metrics()).named("kubelet")
        };
        register(plane, &of_node, &names, address, pods, config).await?;
        kwok::install(&plane.api.client()).await.map_err(ClusterError::of("install the Stages of kwok"))?;
        let caches = k8s_builtin::trimmed(plane.caches.clone());
        let delay = config.start_delay;
        let simulation = Simulation::new(caches.of::<Pod>(), of_node)
            .nodes(caches.of::<Node>(), names.iter().cloned())
            .heartbeats(config.heartbeat, names.iter().cloned())
            .scripts(move |pod| script(pod, delay))
            .stages(plane.api.client_as(kwok::user()).named("kwok"));
        let connector = Arc::new(InProcess(simulation.kubelets()));
        for name in &names {
            plane.api.kubelets.add(name, connector.clone());
        }
        let kubelets = plane.api.kubelets.clone();
        let simulation = simulation.on_node(move |name| kubelets.add(name, connector.clone()));
        let stop = CancellationToken::new();
        let run = simulation.run(stop.clone());
        let task = tokio::spawn(async move {
            run.await;
            // The caches are filled as long as one clone lives.
            drop(caches);
        });
        Ok(SimulatedNodes { names, stop, task })
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    pub(crate) async fn shutdown(self) {
        self.stop.cancel();
        // The runtime (tokio) has already reported a panic of the task.
        let _ = self.task.await;
    }
}

/// Returns the script of a pod: as its annotations say; pods of Jobs complete.
fn script(pod: &Pod, delay: Duration) -> Script {
    let script = Script::annotated(pod, delay);
    match pod.controller_ref() {
        Some(owner) if owner.kind == "Job" => script.or_exits(JOB_RUNS, 0),
        _ => script,
    }
}

async fn register(
    plane: &ControlPlane,
    of_node: &(impl Fn(&str) -> Client + Sync),
    names: &[String],
    address: IpAddr,
    pods: Ipv4Net,
    config: &SimulatedConfig,
) -> Result<(), ClusterError> {
    let there = plane.api.client().all::<Node>().list(&ListParams::default()).await;
    let there = there.map_err(ClusterError::of("list the nodes"))?;
    let taken: HashSet<IpNet> =
        there.iter().filter_map(|n| n.spec.as_ref()?.pod_cidr.as_ref()?.parse().ok()).collect();
    let known: HashSet<&str> = there.iter().map(|node| node.name()).collect();
    let (old, new): (Vec<String>, Vec<String>) =
        names.iter().cloned().partition(|name| known.contains(name.as_str()));
    let all = old.into_iter().map(|name| (name, None)).chain(ranges(pods, &taken, &new));
    let shape = NodeShape {
        addresses: vec![address.to_string()],
        version: k8s_apiserver::health::VERSION.into(),
        heartbeat: config.heartbeat,
        ..NodeShape::default()
    };
    let (clock, shape) = (&Clock::system(), &shape);
    stream::iter(all)
        .map(|(name, pods)| async move {
            let shape = NodeShape { pods, ..shape.clone() };
            k8s_simulated::register(&of_node(&name), clock, &name, &shape).await
        })
        .buffer_unordered(AT_ONCE)
        .try_collect::<Vec<()>>()
        .await
        .map(drop)
        .map_err(ClusterError::of("register a simulated node"))
}

/// The kubelets of simulated nodes, called without HTTP.
struct InProcess(Kubelets);

#[async_trait]
impl NodeConnector for InProcess {
    async fn call(
        &self,
        node: &serde_json::Value,
        request: Request<Body>,
    ) -> Result<Response<Body>, BoxError> {
        let name = node.pointer("/metadata/name").and_then(serde_json::Value::as_str).unwrap_or_default();
        Ok(self.0.answer(name, &request))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> Ipv4Net {
        text.parse().expect("a range")
    }

    #[test]
    fn many_nodes_get_a_large_range() {
        let default = ClusterSettings::default().cluster_cidr;
        assert_eq!(pod_range(default, 256).expect("fits"), default);
        assert_eq!(pod_range(default, 20_000).expect("fits"), range("10.128.0.0/9"));
        assert_eq!(pod_range(range("10.50.0.0/15"), 512).expect("fits"), range("10.50.0.0/15"));
        for (chosen, nodes) in [(range("10.50.0.0/16"), 257), (default, 32_769), (range("10.50.0.0/25"), 1)] {
            let refused = pod_range(chosen, nodes).unwrap_err().to_string();
            assert!(refused.contains("--cluster-cidr"), "{refused}");
        }
    }

    #[test]
    fn a_range_is_given_once() {
        let names = ["a".to_owned(), "b".to_owned(), "c".to_owned()];
        let taken = HashSet::from(["10.1.0.0/24".parse().expect("a range")]);
        let given = ranges(range("10.1.0.0/23"), &taken, &names);
        let given: Vec<String> =
            given.iter().map(|(_, r)| r.map(|r| r.to_string()).unwrap_or_default()).collect();
        assert_eq!(given, ["10.1.1.0/24", "", ""]);
    }

    #[test]
    fn pods_of_jobs_complete() {
        let mut pod = Pod::default();
        assert_eq!(script(&pod, Duration::ZERO), Script::runs());
        let owner = serde_json::json!({"apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": "u", "controller": true});
        pod.metadata.owner_references = serde_json::from_value(serde_json::json!([owner])).ok();
        assert_eq!(script(&pod, Duration::ZERO), Script::exits(JOB_RUNS, 0));
        pod.set_annotation(k8s_simulated::EXIT, "3");
        assert_eq!(script(&pod, Duration::ZERO), Script::exits(Duration::ZERO, 3));
    }

    #[test]
    fn heartbeats_have_bounds() {
        assert_eq!(heartbeat("40s"), Ok(Duration::from_secs(40)));
        assert!(heartbeat("0s").is_err() && heartbeat("11m").unwrap_err().contains("between 1s and 10m"));
        assert_eq!((grace(HEARTBEAT).as_secs(), grace(Duration::from_secs(40)).as_secs()), (50, 200));
    }
}
