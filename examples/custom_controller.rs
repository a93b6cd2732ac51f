//! A resource of one's own and the controller for it: an `RdsDatabase` gets a Deployment, a Service and a status that says when it is up.

use std::sync::Arc;

use k8s_controllers::{Action, Context, Controller, Error, Reconcile};
use k8s_core::{
    api::{
        api::{apps::v1::Deployment, core::v1::Service},
        apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
        apimachinery::pkg::apis::meta::v1::ObjectMeta,
    },
    meta::ObjectExt,
};
use k8s_testing::TestCluster;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// The resource.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RdsDatabase {
    api_version: String,
    kind: String,
    metadata: ObjectMeta,
    spec: DatabaseSpec,
    #[serde(default)]
    status: DatabaseStatus,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct DatabaseSpec {
    engine: String,
    storage_gb: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct DatabaseStatus {
    #[serde(default)]
    ready: bool,
}

impl k8s_openapi::Resource for RdsDatabase {
    const API_VERSION: &'static str = "stable.example.com/v1";
    const GROUP: &'static str = "stable.example.com";
    const KIND: &'static str = "RdsDatabase";
    const VERSION: &'static str = "v1";
    const URL_PATH_SEGMENT: &'static str = "rdsdatabases";
    type Scope = k8s_openapi::NamespaceResourceScope;
}

impl k8s_openapi::Metadata for RdsDatabase {
    type Ty = ObjectMeta;
    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn metadata_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

fn definition() -> serde_json::Value {
    json!({
        "metadata": {"name": "rdsdatabases.stable.example.com"},
        "spec": {
            "group": "stable.example.com", "scope": "Namespaced",
            "names": {"plural": "rdsdatabases", "singular": "rdsdatabase", "kind": "RdsDatabase"},
            "versions": [{
                "name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "required": ["engine"], "properties": {
                        "engine": {"type": "string", "enum": ["postgres", "mysql"]},
                        "storageGb": {"type": "integer", "minimum": 10, "default": 20},
                    }},
                    "status": {"type": "object", "properties": {"ready": {"type": "boolean"}}},
                }}},
            }],
        },
    })
}

fn typed<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> Result<T, Error> {
    serde_json::from_value(value).map_err(|e| Error::invalid("manifest", e))
}

fn deployment(db: &RdsDatabase) -> Result<Deployment, Error> {
    let labels = json!({"database": db.name()});
    typed(json!({
        "metadata": {"name": db.name()},
        "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": {
            "metadata": {"labels": labels},
            "spec": {"containers": [{"name": "db", "image": format!("{}:16", db.spec.engine)}]},
        }},
    }))
}

fn service(db: &RdsDatabase) -> Result<Service, Error> {
    typed(
        json!({"metadata": {"name": db.name()}, "spec": {"selector": {"database": db.name()}, "ports": [{"port": 5432}]}}),
    )
}

/// The controller.
struct Databases;

impl Reconcile for Databases {
    type Kind = RdsDatabase;

    async fn reconcile(&self, cx: &Context, db: Arc<RdsDatabase>) -> Result<Action, Error> {
        // Both are owned by the database, so they are garbage collected with it.
        cx.apply(&*db, &deployment(&db)?).await?;
        cx.apply(&*db, &service(&db)?).await?;
        let ready = cx
            .cached::<Deployment>(db.name())
            .is_some_and(|d| d.status.as_ref().and_then(|s| s.available_replicas) == Some(1));
        cx.status(&*db, |db| db.status.ready = ready).await?;
        Ok(Action::await_change())
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let cluster = TestCluster::start().await?;
    let client = cluster.client();
    cluster.create::<CustomResourceDefinition>("", &definition()).await?;
    let controller = Controller::<RdsDatabase>::new().owns::<Deployment>().owns::<Service>();
    let running = tokio::spawn(controller.run(client.named("databases"), Databases));

    let orders = json!({"apiVersion": "stable.example.com/v1", "kind": "RdsDatabase", "metadata": {"name": "orders"}, "spec": {"engine": "postgres", "storageGb": 20}});
    cluster.create::<RdsDatabase>("default", &orders).await?;
    let orders = cluster.until::<RdsDatabase>("default", "orders", |db| db.status.ready).await?;
    println!("{} is ready: {} with {} GB", orders.name(), orders.spec.engine, orders.spec.storage_gb);

    // What it owns goes with it.
    client.namespaced::<RdsDatabase>("default").delete("orders", &Default::default()).await?;
    let deployments = client.namespaced::<Deployment>("default");
    while deployments.get_opt("orders").await?.is_some() {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    println!("and gone with all it owned");
    running.abort();
    Ok(())
}
