//! Runs the controller of `src/rds.rs` twice: for a CustomResourceDefinition generated from the Rust type,
//! and for a ThirdPartyResource of Kubernetes 1.5.

use k8s_controllers::Conditions;
use k8s_core::{
    api::{
        api::{
            apps::v1::Deployment,
            core::v1::{Secret, Service},
        },
        apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    },
    client::{Client, Resource},
    custom::CustomResource,
    meta::ObjectExt,
};
use k8s_examples::rds::{Databases, RdsDatabase, controller};
use k8s_testing::TestCluster;
use serde_json::json;

/// A ThirdPartyResource of Kubernetes 1.5, as JSON because no library has a type for it any more.
async fn define_third_party(client: &Client) -> anyhow::Result<()> {
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
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    for form in ["CustomResourceDefinition", "ThirdPartyResource"] {
        let cluster = TestCluster::start().await?;
        match form {
            "ThirdPartyResource" => define_third_party(&cluster.client()).await?,
            _ => drop(cluster.create::<CustomResourceDefinition>("", &RdsDatabase::definition()).await?),
        }
        let client = cluster.client();
        let running = tokio::spawn(controller().run(client.named("databases"), Databases));

        let orders = json!({"metadata": {"name": "orders"}, "spec": {"engine": "postgres", "storageGb": 20}});
        cluster.create::<RdsDatabase>("default", &orders).await?;
        let orders = cluster.until::<RdsDatabase>("default", "orders", |db| db.condition("Ready")).await?;
        let secret = client.namespaced::<Secret>("default").get("orders").await?;
        let service = client.namespaced::<Service>("default").get("orders").await?;
        println!(
            "{form}: {} is ready: {:?} with {} GB at {}, secret with {} entries",
            orders.name(),
            orders.spec.engine,
            orders.spec.storage_gb,
            service.spec.and_then(|s| s.cluster_ip).unwrap_or_default(),
            secret.data.map_or(0, |d| d.len()),
        );

        running.abort();
        // The garbage collector deletes the dependents.
        client.namespaced::<RdsDatabase>("default").delete("orders", &Default::default()).await?;
        let deployments = client.namespaced::<Deployment>("default");
        while deployments.get_opt("orders").await?.is_some() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        println!("{form}: gone with all it owned");
    }
    Ok(())
}
