//! A ThirdPartyResource of Kubernetes 1.5 (`extensions/v1beta1`), the predecessor of custom resources: our
//! API server still serves it, and the controller of `src/rds.rs` runs on it unchanged.
//!
//! Run it: `cargo run -p k8s-examples --bin third_party_resource`

use k8s_controllers::Conditions;
use k8s_core::{client::Resource, meta::ObjectExt};
use k8s_examples::rds::{DatabaseSpec, Databases, Engine, RdsDatabase, controller};
use k8s_testing::TestCluster;
use serde_json::json;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let cluster = TestCluster::builder().with(controller(), Databases).start().await?;
    let client = cluster.client();

    // As JSON, because no library has a type for it any more.
    let definitions = Resource {
        group: "extensions".into(),
        version: "v1beta1".into(),
        kind: "ThirdPartyResource".into(),
        plural: "thirdpartyresources".into(),
        namespaced: false,
    };
    let definition = serde_json::from_value(json!({
        "apiVersion": "extensions/v1beta1", "kind": "ThirdPartyResource",
        "metadata": {"name": "rds-database.stable.example.com"},
        "description": "A relational database that a controller provisions",
        "versions": [{"name": "v1"}],
    }))?;
    client.dynamic(&definitions, "").create(&definition).await?;

    let databases = client.namespaced::<RdsDatabase>("default");
    let orders = DatabaseSpec { engine: Engine::Mysql, storage_gb: 20 };
    databases.create(&RdsDatabase::new("orders", orders)).await?;
    let orders = databases.wait_until("orders", |db| db.condition("Ready")).await?;
    println!("{} is ready: {:?}", orders.name(), orders.spec.engine);
    cluster.shutdown().await;
    Ok(())
}
