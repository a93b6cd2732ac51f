//! Readings of all nodes, and the rates between them.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream};
use http::{Method, Request};
use http_body_util::{BodyExt, Collected, Limited};
use jiff::Timestamp;
use k8s_core::{
    client::{Body, BoxError, Client, Error, empty_body},
    clock::Clock,
};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use crate::summary::{Stats, Summary};

/// Nodes that are read at the same time.
const AT_ONCE: usize = 32;
/// Longest wait for a node.
const PATIENCE: Duration = Duration::from_secs(10);
/// Shortest time between two readings that makes a rate.
const SHORTEST: Duration = Duration::from_millis(500);
/// Wait for a second reading where a first gave no rate.
const AGAIN: Duration = Duration::from_secs(1);
/// Age of a container up to which its use since its start is its rate.
const FRESH: Duration = Duration::from_secs(90);
/// Bytes of a summary; a node with more is not read. One of 110 pods has less than 1 MiB.
const MOST_BYTES: usize = 8 << 20;
/// Window of a rate that the kubelet computed.
const KUBELETS: Duration = Duration::from_secs(10);

/// Use of a node or of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Use {
    /// End of the time that CPU was measured over.
    pub at: Timestamp,
    /// Length of that time.
    pub window: Duration,
    /// Nano-CPU.
    pub cpu: u64,
    /// Bytes of the working set.
    pub memory: u64,
}

/// A pod whose containers all have a reading.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PodUse {
    pub uid: String,
    pub containers: Vec<(String, Use)>,
}

/// The newest readings.
#[derive(Debug, Default)]
pub(crate) struct Newest {
    pub nodes: HashMap<String, Use>,
    /// By node, namespace and name: a node tells of its own pods only.
    pub pods: HashMap<(String, String, String), PodUse>,
}

/// A counter, and when it was read.
#[derive(Clone, Copy, Debug)]
struct Point {
    at: Timestamp,
    nanos: u64,
}

/// A container (node, uid of the pod, name) or a node (its name, and empty).
type Key = (String, String, String);

#[derive(Debug, Default)]
pub(crate) struct Readings {
    /// The counters of the last reading.
    last: HashMap<Key, Point>,
    newest: Arc<Newest>,
    read: Option<Timestamp>,
}

#[derive(Deserialize)]
struct Names {
    items: Vec<Named>,
}

#[derive(Deserialize)]
struct Named {
    metadata: Metadata,
    #[serde(default)]
    status: Status,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    conditions: Vec<Condition>,
}

#[derive(Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

impl Named {
    /// Returns true for a node that nobody has heard of lately: everyone would wait for it.
    fn is_lost(&self) -> bool {
        self.status.conditions.iter().any(|c| c.kind == "Ready" && c.status == "Unknown")
    }
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
}

impl Readings {
    pub(crate) fn newest(&self) -> Arc<Newest> {
        self.newest.clone()
    }

    /// Reads all nodes, unless that was done in the last `resolution`.
    pub(crate) async fn refresh(&mut self, client: &Client, clock: &Clock, resolution: Duration) {
        let now = clock.now();
        let age = self.read.and_then(|read| Duration::try_from(now.duration_since(read)).ok());
        if age.is_some_and(|age| age < resolution) {
            return;
        }
        let lacking = self.read(client).await;
        if lacking && self.read.is_none() {
            clock.sleep(AGAIN).await;
            self.read(client).await;
        }
        self.read = Some(now);
    }

    /// Reads all nodes once. Returns true if a counter gave no rate.
    async fn read(&mut self, client: &Client) -> bool {
        let nodes = match names(client).await {
            Ok(nodes) => nodes,
            Err(error) => {
                tracing::debug!(%error, "nodes not listed");
                return false;
            }
        };
        let read = stream::iter(nodes).map(|node| async move {
            let summary = summary(client, &node);
            match tokio::time::timeout(PATIENCE, summary).await {
                Ok(Ok(summary)) => Some((node, summary)),
                Ok(Err(error)) => {
                    tracing::debug!(node, %error, "no summary");
                    None
                }
                Err(_) => None,
            }
        });
        let summaries: Vec<_> = read.buffer_unordered(AT_ONCE).filter_map(async |one| one).collect().await;
        self.take(summaries)
    }

    /// Makes rates of counters. Returns true if one gave none.
    fn take(&mut self, summaries: Vec<(String, Summary)>) -> bool {
        let (mut last, mut newest, mut lacking) = (HashMap::new(), Newest::default(), false);
        for (node, summary) in summaries {
            match self.rate((node.clone(), String::new(), String::new()), &summary.node, &mut last) {
                Some(used) => drop(newest.nodes.insert(node.clone(), used)),
                None => lacking = true,
            }
            for pod in summary.pods {
                let uid = &pod.pod_ref.uid;
                let of = |container: &Stats| {
                    let used =
                        self.rate((node.clone(), uid.clone(), container.name.clone()), container, &mut last)?;
                    Some((container.name.clone(), used))
                };
                // All counters are kept, also of a pod that lacks a rate.
                let all: Vec<Option<(String, Use)>> = pod.containers.iter().map(of).collect();
                match all.into_iter().collect::<Option<Vec<_>>>() {
                    Some(containers) if !containers.is_empty() => {
                        let used = PodUse { uid: pod.pod_ref.uid, containers };
                        newest.pods.insert((node.clone(), pod.pod_ref.namespace, pod.pod_ref.name), used);
                    }
                    Some(_) => {}
                    None => lacking = true,
                }
            }
        }
        (self.last, self.newest) = (last, Arc::new(newest));
        lacking
    }

    fn rate(&self, key: Key, stats: &Stats, last: &mut HashMap<Key, Point>) -> Option<Use> {
        let cpu = stats.cpu.as_ref()?;
        let memory = stats.memory.as_ref()?.working_set_bytes?;
        let before = self.last.get(&key).copied();
        let since = |start: Timestamp| Duration::try_from(cpu.time.duration_since(start)).ok();
        if let Some(nanos) = cpu.usage_core_nano_seconds {
            // A reading of the same moment keeps the older one as the start of the next window.
            let kept = before.filter(|b| since(b.at).is_some_and(|d| d < SHORTEST) && nanos >= b.nanos);
            last.insert(key, kept.unwrap_or(Point { at: cpu.time, nanos }));
            let over = |window: Duration, nanos: u64| {
                let rate = u128::from(nanos) * 1_000_000_000 / window.as_nanos().max(1);
                let cpu = u64::try_from(rate).unwrap_or(u64::MAX);
                Use { at: stats.cpu.as_ref().map_or(Timestamp::MIN, |c| c.time), window, cpu, memory }
            };
            if let Some(before) = before
                && let Some(window) = since(before.at).filter(|d| *d >= SHORTEST)
                // Less than before: the container was started anew.
                && let Some(used) = nanos.checked_sub(before.nanos)
            {
                return Some(over(window, used));
            }
            if let Some(age) = stats.start_time.and_then(since)
                && (SHORTEST..FRESH).contains(&age)
                && !stats.name.is_empty()
            {
                return Some(over(age, nanos));
            }
        }
        let cpu_rate = cpu.usage_nano_cores?;
        Some(Use { at: cpu.time, window: KUBELETS, cpu: cpu_rate, memory })
    }
}

/// Returns the names of the nodes that may answer.
async fn names(client: &Client) -> Result<Vec<String>, Error> {
    let all: Names = client.json(Method::GET, "/api/v1/nodes", "application/json", "").await?;
    Ok(all.items.into_iter().filter(|node| !node.is_lost()).map(|node| node.metadata.name).collect())
}

/// Reads a body of at most `most` bytes. Without `async`: rustc cannot prove that such a future is `Send`.
pub(crate) fn whole(body: Body, most: usize) -> BoxFuture<'static, Result<Bytes, BoxError>> {
    Limited::new(body, most).collect().map(|read| read.map(Collected::to_bytes)).boxed()
}

async fn summary(client: &Client, node: &str) -> Result<Summary, Error> {
    let node = utf8_percent_encode(node, NON_ALPHANUMERIC);
    let path = format!("/api/v1/nodes/{node}/proxy/stats/summary?only_cpu_and_memory=true");
    let what = || format!("GET {path}");
    let request =
        Request::get(&path).body(empty_body()).map_err(|e| Error::Request(format!("{}: {e}", what())))?;
    let response = client.send(request).await?;
    if !response.status().is_success() {
        return Err(Error::Request(format!("{}: status {}", what(), response.status().as_u16())));
    }
    let bytes = whole(response.into_body(), MOST_BYTES).await;
    let bytes = bytes.map_err(|source| Error::Transport { context: what(), source })?;
    k8s_core::json::from_slice(&bytes).map_err(|source| Error::Decode { what: path, source })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A summary at a second of the day: the pod's only container, and the node, used `cpu` nanoseconds.
    fn at(second: i64, started: i64, cpu: u64) -> (String, Summary) {
        let time = |second: i64| Timestamp::from_second(1_767_225_600 + second).unwrap();
        let stats = |name: &str, rate: Option<u64>| {
            json!({"name": name, "startTime": time(started), "memory": {"workingSetBytes": 4096},
                "cpu": {"time": time(second), "usageCoreNanoSeconds": cpu, "usageNanoCores": rate}})
        };
        let pod =
            json!({"podRef": {"name": "p", "namespace": "n", "uid": "u"}, "containers": [stats("c", None)]});
        let summary = json!({"node": stats("", Some(7)), "pods": [pod]});
        ("node-1".into(), serde_json::from_value(summary).unwrap())
    }

    fn of_pod(readings: &Readings) -> Option<(Duration, u64)> {
        let pod = readings.newest.pods.get(&("node-1".into(), "n".into(), "p".into()))?;
        Some((pod.containers[0].1.window, pod.containers[0].1.cpu))
    }

    #[test]
    fn a_rate_is_between_two_readings_of_one_run_of_the_container() {
        let second = 1_000_000_000;
        let mut readings = Readings::default();
        assert!(readings.take(vec![at(1_000, 0, 5 * second)]), "an old container needs two readings");
        assert_eq!(of_pod(&readings), None);
        let node = readings.newest.nodes["node-1"];
        assert_eq!((node.cpu, node.window), (7, KUBELETS), "the kubelet's own rate");
        assert!(!readings.take(vec![at(1_010, 0, 10 * second)]));
        assert_eq!(of_pod(&readings), Some((Duration::from_secs(10), 500_000_000)));
        assert_eq!(readings.newest.nodes["node-1"].cpu, 500_000_000);
        // Restarted: the counter began anew, and is young enough to count from its start.
        assert!(!readings.take(vec![at(1_020, 1_015, second)]));
        assert_eq!(of_pod(&readings), Some((Duration::from_secs(5), 200_000_000)));
        // Gone, and back with the same name.
        assert!(!readings.take(Vec::new()));
        assert_eq!(of_pod(&readings), None);
        assert!(readings.take(vec![at(2_000, 1_015, 9 * second)]));
    }

    #[test]
    fn readings_of_one_moment_keep_the_start_of_the_window() {
        let second = 1_000_000_000;
        let mut readings = Readings::default();
        readings.take(vec![at(1_000, 0, 5 * second)]);
        readings.take(vec![at(1_000, 0, 5 * second)]);
        readings.take(vec![at(1_001, 0, 6 * second)]);
        assert_eq!(of_pod(&readings), Some((Duration::from_secs(1), second)));
    }
}
