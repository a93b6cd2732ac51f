//! An end-to-end test against an existing cluster, of any make: it rolls a Deployment out in a namespace of
//! its own, scales it, and deletes the namespace. Exit code 1: the cluster failed the test.
//!
//! `Client::try_default()` connects with the files of `KUBECONFIG`, `~/.kube/config`, or as a pod with its
//! service account.
//!
//! Run it: `KUBECONFIG=~/.kube/config cargo run -p k8s-examples --bin existing_cluster`

use std::time::Duration;

use anyhow::Context;
use k8s_core::{
    api::{
        api::{apps::v1::Deployment, core::v1::Namespace},
        apimachinery::pkg::apis::meta::v1::ObjectMeta,
    },
    client::{Client, Patch},
    random,
};
use serde_json::json;

async fn rollout(client: &Client, namespace: &str) -> anyhow::Result<()> {
    let deployments = client.namespaced::<Deployment>(namespace);
    let labels = json!({"app": "web"});
    let web = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
    "spec": {"replicas": 2, "selector": {"matchLabels": labels}, "template": {
        "metadata": {"labels": labels},
        "spec": {"containers": [{"name": "c", "image": "registry.k8s.io/pause:3.10"}]},
    }}});
    deployments.apply("web", &web).await?;
    for replicas in [2, 3] {
        deployments.patch("web", &Patch::Merge(json!({"spec": {"replicas": replicas}}))).await?;
        let available =
            |web: &Deployment| web.status.as_ref().is_some_and(|s| s.available_replicas == Some(replicas));
        deployments.wait_until("web", available).await?;
        println!("ok: {replicas} replicas are available");
    }
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let client = Client::try_default()?;
    let namespaces = client.all::<Namespace>();
    let name = format!("e2e-{:08x}", random::number() as u32);
    let metadata = ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() };
    namespaces.create(&Namespace { metadata, ..Namespace::default() }).await.context("create a namespace")?;

    let result = tokio::time::timeout(Duration::from_secs(120), rollout(&client, &name)).await;
    namespaces.delete(&name, &Default::default()).await?;
    result.context("the rollout did not end within 2 minutes")??;
    tokio::time::timeout(Duration::from_secs(120), namespaces.wait_deleted(&name)).await??;
    println!("ok: the namespace is gone");
    Ok(())
}
