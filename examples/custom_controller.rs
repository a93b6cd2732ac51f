//! A controller of a custom resource: the Rust type gives the CustomResourceDefinition, and the controller of
//! `src/rds.rs` creates a Secret, a Deployment and a Service for each object. It also shows that the garbage
//! collector deletes them with their owner.
//!
//! Run it: `cargo run -p k8s-examples --bin custom_controller`

use k8s_controllers::Conditions;
use k8s_core::{
    api::{
        api::{
            apps::v1::Deployment,
            core::v1::{Secret, Service},
        },
        apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    },
    custom::CustomResource,
    meta::ObjectExt,
};
use k8s_examples::rds::{DatabaseSpec, Databases, Engine, RdsDatabase, controller};
use k8s_testing::TestCluster;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let cluster = TestCluster::builder().with(controller(), Databases).start().await?;
    let client = cluster.client();
    cluster.create::<CustomResourceDefinition>("", &RdsDatabase::definition()).await?;

    let databases = client.namespaced::<RdsDatabase>("default");
    let orders = DatabaseSpec { engine: Engine::Postgres, storage_gb: 20 };
    databases.create(&RdsDatabase::new("orders", orders)).await?;
    let orders = databases.wait_until("orders", |db| db.condition("Ready")).await?;
    let secret = client.namespaced::<Secret>("default").get("orders").await?;
    let service = client.namespaced::<Service>("default").get("orders").await?;
    println!(
        "{} is ready: {:?} with {} GB at {}, secret with {} entries",
        orders.name(),
        orders.spec.engine,
        orders.spec.storage_gb,
        service.spec.and_then(|s| s.cluster_ip).unwrap_or_default(),
        secret.data.map_or(0, |d| d.len()),
    );

    databases.delete("orders", &Default::default()).await?;
    client.namespaced::<Deployment>("default").wait_deleted("orders").await?;
    client.namespaced::<Secret>("default").wait_deleted("orders").await?;
    println!("orders is gone with all it owned");
    cluster.shutdown().await;
    Ok(())
}
