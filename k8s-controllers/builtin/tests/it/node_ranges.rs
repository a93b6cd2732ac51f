//! Pod CIDRs of nodes.

use k8s_core::api::api::core::v1::{Node, NodeSpec};

use crate::{lab::Lab, runs};

fn node(name: &str, range: Option<&str>) -> Node {
    let spec = NodeSpec {
        pod_cidr: range.map(str::to_owned),
        pod_cidrs: range.map(|range| vec![range.to_owned()]),
        ..NodeSpec::default()
    };
    let mut node = Node { spec: Some(spec), ..Node::default() };
    node.metadata.name = Some(name.into());
    node
}

async fn range(lab: &Lab, name: &str) -> Option<String> {
    lab.get::<Node>(name).await.spec.and_then(|spec| spec.pod_cidr)
}

#[tokio::test(start_paused = true)]
async fn a_full_range_is_told_and_given_again_when_a_node_goes() {
    // The range of the cluster is 10.42.0.0/16. The two halves are taken by hand, but for what n0 has.
    let lab = Lab::start(1, runs).await;
    lab.until("n0 has a range", async || range(&lab, "n0").await.is_some()).await;
    lab.create(&node("low", Some("10.42.0.0/17"))).await;
    lab.create(&node("high", Some("10.42.128.0/17"))).await;
    lab.create(&node("one", Some("192.168.7.0/24"))).await;
    lab.create(&node("late", None)).await;
    lab.until("told", async || {
        lab.heard("Node", "CIDRNotAvailable", "Node late status is now: CIDRNotAvailable").await
    })
    .await;
    assert_eq!(range(&lab, "late").await, None);
    lab.api::<Node>().delete("high", &Default::default()).await.unwrap();
    lab.until("given", async || range(&lab, "late").await.is_some()).await;
    assert_eq!(range(&lab, "late").await.as_deref(), Some("10.42.128.0/24"));
}
