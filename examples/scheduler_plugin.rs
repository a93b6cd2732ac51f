//! A scheduler plugin: a score that places a pod in the rack of its data. The node's rack is its label
//! `rack`, the data's rack is the pod's annotation `data-rack`.
//!
//! Run it: `cargo run -p k8s-examples --bin scheduler_plugin`

use k8s_core::{
    api::api::core::v1::{Node, Pod},
    client::Patch,
};
use k8s_scheduler::{Cycle, NodeInfo, PodInfo, Scheduler, Score, ScoreExt};
use k8s_testing::TestCluster;
use serde_json::json;

struct SameRackAsData;

impl Score for SameRackAsData {
    fn score(&self, _: &Cycle<'_>, pod: &PodInfo, node: &NodeInfo) -> i64 {
        if node.label("rack") == pod.annotation("data-rack") { 100 } else { 0 }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let cluster = TestCluster::builder().nodes(6).without_scheduler().start().await?;
    let nodes = cluster.client().all::<Node>();
    for i in 0..6 {
        let rack = json!({"metadata": {"labels": {"rack": format!("rack-{}", i % 3)}}});
        nodes.patch(&format!("node-{i}"), &Patch::Merge(rack)).await?;
    }
    // The built-in plugins run beside it: their scores have weights of 1 to 3.
    let scheduler = Scheduler::builder().plugin(SameRackAsData.weight(5)).start(cluster.client());

    for i in 0..4 {
        let name = format!("query-{i}");
        let pod = json!({"metadata": {"name": name, "annotations": {"data-rack": "rack-1"}},
            "spec": {"containers": [{"name": "c", "image": "query:1"}]}});
        cluster.create::<Pod>("default", &pod).await?;
        let placed = |pod: &Pod| pod.spec.as_ref().is_some_and(|s| s.node_name.is_some());
        let pod = cluster.until::<Pod>("default", &name, placed).await?;
        let node = nodes.get(&pod.spec.and_then(|s| s.node_name).unwrap_or_default()).await?;
        let rack = node.metadata.labels.unwrap_or_default().remove("rack").unwrap_or_default();
        println!("{name} runs in {rack}");
    }
    scheduler.shutdown().await?;
    cluster.shutdown().await;
    Ok(())
}
