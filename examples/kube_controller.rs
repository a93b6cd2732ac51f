//! An unmodified kube-rs operator on a cluster in the same process, without a socket: the operator is in
//! `src/kube_operator.rs`.
//!
//! Run it: `cargo run -p k8s-examples --bin kube_controller`

#![expect(clippy::disallowed_methods, reason = "the operator runs until the program aborts it")]

use k8s_examples::kube_operator::{self, DatabaseSpec, Engine, RdsDatabase};
use k8s_openapi::{
    api::core::v1::Secret, apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use k8s_testing::TestCluster;
use kube::{
    Api, Client, CustomResourceExt,
    api::{ListParams, PostParams},
    runtime::wait,
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let cluster = TestCluster::start().await?;
    let client = Client::new(cluster.service(), "default");
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    definitions.create(&PostParams::default(), &RdsDatabase::crd()).await?;
    let running = tokio::spawn(kube_operator::run(client.clone()));

    let databases: Api<RdsDatabase> = Api::default_namespaced(client.clone());
    let spec = DatabaseSpec { engine: Engine::Postgres, storage_gb: 20 };
    databases.create(&PostParams::default(), &RdsDatabase::new("orders", spec)).await?;
    let ready = |db: Option<&RdsDatabase>| {
        db.iter().flat_map(|db| db.status.iter()).flat_map(|s| &s.conditions).any(|c| c.status == "True")
    };
    wait::await_condition(databases, "orders", ready).await?;
    let secrets: Api<Secret> = Api::default_namespaced(client);
    let secret = secrets.list(&ListParams::default().fields("metadata.name=orders")).await?;
    println!("orders is ready, with {} secret", secret.items.len());
    running.abort();
    Ok(())
}
