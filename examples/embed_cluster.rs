//! A cluster inside a program: no socket, no root, a simulated node. It applies a Deployment and waits for
//! its pods.
//!
//! Run it: `cargo run -p k8s-examples --bin embed_cluster`

use std::time::Duration;

use hyperkube::{Cluster, Node};
use k8s_core::api::api::{apps::v1::Deployment, core::v1::Pod};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let cluster = Cluster::builder()
        .data_dir(directory.path().join("data"))
        .memory()
        .node(Node::simulated(1))
        .start()
        .await?;
    cluster.ready(Duration::from_secs(30)).await?;

    let manifest: serde_json::Value = serde_saphyr::from_str(include_str!("embed/deployment.yaml"))?;
    let deployments = cluster.client().namespaced::<Deployment>("default");
    deployments.apply("web", &manifest).await?;
    let all_available =
        |web: &Deployment| web.status.as_ref().is_some_and(|s| s.available_replicas == Some(3));
    deployments.wait_until("web", all_available).await?;

    for pod in cluster.client().namespaced::<Pod>("default").list(&Default::default()).await? {
        let phase = pod.status.and_then(|s| s.phase).unwrap_or_default();
        println!("{} {phase}", pod.metadata.name.unwrap_or_default());
    }
    cluster.down().await?;
    Ok(())
}
