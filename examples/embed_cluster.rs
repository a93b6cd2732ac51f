//! A cluster inside a program: no socket, no root, a simulated node.

use std::{path::Path, time::Duration};

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

    let manifest =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("embed/deployment.yaml"))?;
    let manifest: serde_json::Value = serde_saphyr::from_str(&manifest)?;
    let deployments = cluster.client().namespaced::<Deployment>("default");
    deployments.apply("web", &manifest).await?;
    while deployments.get("web").await?.status.and_then(|s| s.available_replicas) != Some(3) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for pod in cluster.client().namespaced::<Pod>("default").list(&Default::default()).await? {
        let phase = pod.status.and_then(|s| s.phase).unwrap_or_default();
        println!("{} {phase}", pod.metadata.name.unwrap_or_default());
    }
    cluster.down().await?;
    Ok(())
}
